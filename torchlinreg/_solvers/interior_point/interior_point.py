"""Interior point for piecewise linear losses with any penalty and bounds: linear and quadratic programs.

With ``s = u - v`` and ``u, v >= 0`` for the hinges that `program` makes of them, an optimum is where
``linear + ridge theta = sum_h d_h a_h``, ``u (cost - d) = 0`` and ``v d = 0``. Newton's method for that, with
the zeros replaced by a falling number, needs one weighted Gram matrix of the rows per step: the Frisch-Newton
method (Portnoy, Koenker 1997), with the predictor and corrector of Mehrotra (1992). At the end the hinges at
their kinks are solved as equations, which gives the vertex of a linear program to rounding, and exact zeros.

Of many rows only those near the kinks take part; without penalty, 1e6 x 10 takes seven times less for that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import lapack, qr

from torchlinreg._data.rows import tensor_blocks
from torchlinreg._objective.problem import Problem
from torchlinreg._objective.solution import Solution, Status
from torchlinreg._solvers.coordinates import Design, design_of
from torchlinreg._solvers.interior_point.optimal_face import root_of_norm, shortest_optimum
from torchlinreg._solvers.interior_point.program import Iterate, Program, Rows, State
from torchlinreg._solvers.interior_point.vertex import vertex_of_kinks, vertex_of_weights
from torchlinreg._solvers.penalised.units import rounding_of_model
from torchlinreg.losses import PiecewiseLinear

DEFAULT_MAX_ITER = 100
# The relative gap at which steps end, at most: the last steps converge so fast that less saves one or two.
SMALLEST_TOL = 1e-10
# Gaps relative to the typical residual that float64 cannot tell from 0.
ROUNDING = 1e-15
# An optimality up to this counts as reached whatever tol: where columns nearly depend on each other, rounding
# leaves the duals no better a certificate.
REACHED = 1e-9
# Where columns do not matter to the loss, steps are kept short by so much curvature; that of a row is its
# weight over its distance from the kink. By QR, it is a row of so much.
PROXIMAL = 1e-14
PROXIMAL_BY_ROWS = 3e-9
# Below this share of a unit column that does not depend on others, its digits in a Gram matrix are lost.
DEPENDENT_COLUMNS = 1e-5
# Typical values of y are found from about so many rows.
MEDIAN_ROWS = 2_000
# Steps go so far to the boundary.
TO_BOUNDARY = 0.9995
# A step against cycles aims at this share of the mean product of a hinge and its dual.
CENTERED = 0.5
# Distance from a bound times its dual at the start; the loss has slopes of about 1.
START_MU = 0.1
# Hinges that cost less than this share of the mean start as much farther from the boundary. Of 180 fits with
# weights down to 1e-12 and a ridge, 44 got stuck without that.
LIGHT = 0.1
# Rows start at least so far from the boundary, where y is of size 1: some may be met exactly.
SMALLEST_SHIFT = 1e-4
# From so many rows on most are left out; with fewer, steps take about as long as their calls.
SAMPLED_ROWS = 7_000
# The sample has so many rows, times (n_samples * n_columns)^(2/3), and the rows next to the kinks are so many
# times as many; with less, rows change sides and another round costs more than these save.
SAMPLE, KEPT = 0.6, 3.0
# The sample's own error is larger.
SAMPLE_TOL = 1e-2
MAX_ROUNDS = 6
# Steps without a smaller gap after which rounding stops progress.
PATIENCE = 8
# The vertex is tried from where the gap times the number of rows is so small: the hinges of the largest
# weights are then often those of the optimum.
EARLY = 0.5
# With a ridge it is tried later, and where the gap falls by so much in a step: most kinks are then known.
EARLY_WITH_RIDGE, FAST = 0.1, 0.03
# Sums of weights this close, relatively, are the same.
SAME = 1e-12
# Rows times squared columns up to which steps may be found by QR, where a Gram matrix has lost the digits.
LARGEST_QR = 3 * 10**8


class _Factor:
    """Cholesky factor of a Newton matrix of unit diagonal, made definite by as little as is needed.

    What is added changes the step, not the equations that it is to solve.
    """

    def __init__(self, program: Program, hinges: torch.Tensor, by_rows: bool) -> None:
        self._free = np.flatnonzero(program.free)
        self._rows: np.ndarray | None = None
        if by_rows:
            self._factorise_rows(program.weighted_rows(hinges)[:, self._free])
        else:
            upper = program.newton_matrix(hinges)
            self._factorise(upper if program.free.all() else upper[np.ix_(self._free, self._free)])

    def _factorise(self, matrix: np.ndarray) -> None:
        self._unit = 1 / np.sqrt(matrix.diagonal() + PROXIMAL)
        scaled = matrix * self._unit * self._unit[:, None]
        added = 1e-15
        while True:
            scaled.reshape(-1)[:: len(scaled) + 1] = 1 + added
            self._upper, info = lapack.dpotrf(scaled, lower=0)
            if info == 0 or not added < 1:
                return
            added *= 10

    def _factorise_rows(self, rows: np.ndarray) -> None:
        """By QR, which keeps the digits of small rows next to large ones if these come first."""
        self._unit = 1 / np.sqrt((rows**2).sum(0) + PROXIMAL_BY_ROWS**2)
        scaled = np.concatenate([rows * self._unit, np.diag(PROXIMAL_BY_ROWS * self._unit)])
        (self._upper,) = qr(scaled, mode="r", check_finite=False)
        self._upper = self._upper[: rows.shape[1]]
        self._rows = scaled

    def solve(self, right: np.ndarray) -> np.ndarray:
        """The step of a right hand side; 0 for columns that are held."""
        scaled = right[self._free] * self._unit
        inside, _ = lapack.dpotrs(self._upper, scaled, lower=0)
        if self._rows is not None:
            missing = scaled - self._rows.T @ (self._rows @ inside)
            refined = inside + lapack.dpotrs(self._upper, missing, lower=0)[0]
            left = scaled - self._rows.T @ (self._rows @ refined)
            if np.linalg.norm(left) < np.linalg.norm(missing):
                inside = refined
        result = np.zeros_like(right)
        result[self._free] = inside * self._unit
        return result


def _solved(
    program: Program,
    theta: np.ndarray,
    shortest: Callable[[Program, Iterate], Iterate],
    tol: float,
    max_iter: int,
) -> Iterate:
    """The optimum; of many rows from those near the kinks (Portnoy, Koenker 1997, section 4).

    A sample of the rows gives a model near the optimum. Rows far from its kinks, as long as they remain on
    their side, have the loss of their mean. Those that change sides are added and the others solved again: it
    ends with the optimum of all rows. Of several optima it is the `shortest`: the optima of all rows are
    among those of the rows that take part.
    """

    def optimum(program: Program, theta: np.ndarray, limit: int) -> Iterate:
        found = minimise_program(program, theta, tol, limit)
        return found if found.out_of_steps else shortest(program, found)

    n_rows = len(program.y)
    n_sample = int(SAMPLE * (n_rows * len(theta)) ** (2 / 3))
    if n_rows < SAMPLED_ROWS or 2 * KEPT * n_sample > n_rows:
        return optimum(program, theta, max_iter)
    index = torch.from_numpy(np.unique(np.random.default_rng(0).integers(n_rows, size=n_sample)))
    index = index.to(program.y.device)
    weight = program.weight[index]
    part = _part(program, program.rows.take(index), program.y[index], weight / weight.sum())
    found = minimise_program(replace(part, n_all=len(index)), theta, SAMPLE_TOL, max_iter)
    n_iter = found.n_iter
    near = _from_kinks(part, part.values(found.theta))
    width = torch.kthvalue(near, max(1, int(len(near) * KEPT * n_sample / n_rows))).values
    values = program.values(found.theta)
    kept = torch.zeros(n_rows, dtype=torch.bool, device=index.device)
    for _ in range(MAX_ROUNDS):
        kept |= _from_kinks(program, values) <= width
        index = torch.nonzero(kept)[:, 0]
        if 2 * len(index) > n_rows or n_iter >= max_iter:
            break
        side = _side(program, values)
        X, y, weight = _means(program, side.masked_fill(kept, -1))
        part = _part(
            program,
            torch.cat([program.rows.take(index), X]),
            torch.cat([program.y[index], y]),
            torch.cat([program.weight[index], weight]),
        )
        found = optimum(part, found.theta, max_iter - n_iter)
        n_iter += found.n_iter
        values = program.values(found.theta)
        wrong = (_side(program, values) != side) & ~kept
        if not bool(wrong.any()):
            return replace(found, n_iter=n_iter, objective=program.objective(found.theta, values))
        kept |= wrong
    found = optimum(program, found.theta, max(max_iter - n_iter, 0))
    return replace(found, n_iter=n_iter + found.n_iter)


def _part(program: Program, X: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> Program:
    """The program of other rows."""
    return replace(program, rows=Rows(tensor_blocks(X, y[:, None])), y=y, weight=weight)


def _means(program: Program, side: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean rows, targets and weights of the rows of each side, from 0 on."""
    sides = torch.arange(len(program.pieces.positions) + 1, device=side.device)
    share = (side == sides[:, None]) * program.weight
    weight = share.sum(1)
    share = share[weight > 0] / weight[weight > 0, None]
    X = torch.from_numpy(program.rows.transposed(share)).to(share.device)
    return X, share @ program.y, weight[weight > 0]


def _side(program: Program, values: torch.Tensor) -> torch.Tensor:
    """Of each row, how many kinks it is above."""
    return (values[: program.n_row_hinges] > 0).view(-1, len(program.y)).sum(0)


def _from_kinks(program: Program, values: torch.Tensor) -> torch.Tensor:
    """Of each row, how far it is from the nearest kink."""
    by_position = values[: program.n_row_hinges].abs().view(-1, len(program.y))
    return by_position[0] if len(by_position) == 1 else by_position.amin(0)


def minimise_program(program: Program, theta: np.ndarray, tol: float, max_iter: int) -> Iterate:
    """Mehrotra's predictor-corrector steps until the gap is at most `tol` of the objective."""
    state = _start(program, theta)
    can_by_rows = len(program.y) * len(theta) ** 2 <= LARGEST_QR
    smallest_gap, least_missing, waited, by_rows = np.inf, np.inf, 0, program.by_rows and can_by_rows
    found: list[Iterate] = []
    before, total_before = theta, np.inf
    near = max(1e-4, EARLY / program.n_all)  # where the objective begins to matter
    for n_iter in range(max_iter + 1):
        total = state.complementarity()
        if not np.isfinite(total):  # no step could be found
            state, waited = _start(program, before), PATIENCE
            total = state.complementarity()
        missing = program.stationarity(state.theta, state.d)
        slack = program.slack(state.theta, missing)
        if n_iter == 0 or total + slack <= near or n_iter == max_iter or waited:
            objective = program.objective(state.theta, state.s)
        gap = min(total + slack, program.most_above(objective))
        small = program.unit(objective)
        rounding = ROUNDING * (1 + float(np.abs(state.theta).sum()))
        most = float(np.abs(missing).max())
        done = gap <= max(tol * small, rounding)
        progress = gap < 0.9 * smallest_gap or most < 0.9 * least_missing
        waited = 0 if progress and waited < PATIENCE else waited + 1
        if gap < smallest_gap and (gap <= 1e-4 * small or n_iter == max_iter):
            found = [i for i in found if i.is_vertex] + [
                Iterate(state.theta, state.d.clone(), objective, gap, False)
            ]
        smallest_gap, least_missing = min(gap, smallest_gap), min(most, max(least_missing, 1e-13))
        # Once complementarity is far below what rounding leaves of stationarity, steps gain nothing.
        waited += total < 1e-6 * slack and by_rows
        last = done or waited >= PATIENCE or n_iter == max_iter
        if program.has_ridge:
            near_vertex = gap * program.n_all <= EARLY_WITH_RIDGE * small and total <= FAST * total_before
            guesses = [vertex_of_kinks] if near_vertex or last else []
        else:
            near_vertex = gap * program.n_all <= EARLY * small
            guesses = [vertex_of_weights] * near_vertex + [vertex_of_kinks] * last
        for vertex in (guess(program, state) for guess in guesses):
            if vertex is not None:
                found.append(vertex)
                if vertex.gap <= max(1e-3 * tol * small, 100 * rounding):
                    return replace(vertex, n_iter=n_iter)
        if last:
            break
        lost = most > least_missing and max(total, rounding) < slack
        by_rows = by_rows or (can_by_rows and lost and total < 1e-3)
        cycles = total > total_before
        before, total_before = state.theta, total
        _advance(program, state, total, missing, by_rows, cycles)
    # Without the rounding of the steps:
    objective = program.objective(state.theta, program.values(state.theta))
    found.append(Iterate(state.theta, state.d, objective, gap, False))
    return replace(_best_of(program, found, tol), n_iter=n_iter, out_of_steps=not done and waited < PATIENCE)


def _best_of(program: Program, found: list[Iterate], tol: float) -> Iterate:
    """The vertex, unless its objective is higher, with the best dual."""
    lowest = min(iterate.objective for iterate in found)
    level = lowest + 1e-14 * abs(lowest)
    result = next((i for i in reversed(found) if i.is_vertex and i.objective <= level), None)
    if result is None:
        result = min(found, key=lambda iterate: iterate.objective)
    values = program.values(result.theta)

    def gap_of(dual: torch.Tensor) -> float:
        return program.gap(result.theta, values, dual)

    duals = [result.dual, *(iterate.dual for iterate in found)]
    gaps = [result.gap, *map(gap_of, duals[1:])]
    if min(gaps) > tol * program.unit(result.objective):
        balanced = [_balanced(program, result.theta, dual) for dual in duals[1:]]
        duals, gaps = duals + balanced, gaps + list(map(gap_of, balanced))
    best = int(np.argmin(gaps))
    return replace(result, dual=duals[best], gap=min(gaps[best], program.most_above(result.objective)))


def _balanced(program: Program, theta: np.ndarray, dual: torch.Tensor) -> torch.Tensor:
    """Duals changed, in proportion to their squared room, such that they balance the gradient."""
    finite, plain = slice(program.n_finite), replace(program, ridge=np.zeros(len(theta)))
    by_rows = len(program.y) * len(theta) ** 2 <= LARGEST_QR
    change = torch.empty_like(dual)
    for _ in range(2):
        dual = dual.clamp(min=0)
        torch.minimum(dual[finite], program.cost, out=dual[finite])
        room = dual.clamp(max=1)
        torch.minimum(room[finite], program.cost - dual[finite], out=room[finite])
        weight = room.square_()
        step = _Factor(plain, weight, by_rows).solve(program.stationarity(theta, dual))
        dual = dual - weight * plain.change(step, change)
    dual.clamp_(min=0)
    torch.minimum(dual[finite], program.cost, out=dual[finite])
    return dual


def _start(program: Program, theta: np.ndarray) -> State:
    """Both sides of each hinge half a mean residual off the boundary, and duals that are stationary but for
    ridge penalty and bounds."""
    cost, finite = program.cost, slice(program.n_finite)
    s = program.values(theta)
    shift = max(0.5 * float(s[: program.n_row_hinges].abs().mean()), SMALLEST_SHIFT)
    # Products with duals that are much less than others would keep steps short.
    far = shift * (LIGHT * float(cost.mean()) / cost).clamp_(min=1)
    u = s[finite].clamp(min=0) + far
    v = (-s).clamp_(min=0)
    v[finite] += far
    d = torch.empty_like(s)
    torch.mul(cost, -program.pieces.slope / sum(program.pieces.jumps), out=d[finite])
    d[program.n_row_hinges : program.n_finite] = cost[program.n_row_hinges :] / 2
    e = cost - d[finite]
    d[program.n_finite :] = START_MU / v[program.n_finite :]
    return State(theta, s, u, v, d, e)


def _advance(
    program: Program, state: State, total: float, missing: np.ndarray, by_rows: bool, cycles: bool
) -> None:
    """A predictor, which aims at the boundary, and the corrected step, which aims at where it led.

    Corrections may lead in cycles if products of single hinges are far from their mean (Colombo and
    Gondzio 2008); the step then has none and aims at half of the mean.
    """
    s, u, v, d, e = state.s, state.u, state.v, state.d, state.e
    joint = program.has_ridge  # which ties the duals to theta
    per_e, per_d = e.reciprocal(), d.reciprocal()
    ue, vd = u * per_e, v * per_d
    if len(ue) == len(vd):
        w = (ue + vd).reciprocal_()
    else:
        w = vd.clone()
        w[: len(ue)] += ue
        w.reciprocal_()
    factor = _Factor(program, w, by_rows)
    ds = torch.empty_like(s)
    program.change(factor.solve(program.transposed(w * s) - missing), ds)
    dd = (ds + s).mul_(w)
    p, q = program.finite(dd) * per_e, dd * per_d
    low_p, high_p = _range(p)
    low_q, high_q = _range(q)
    primal = min(1.0, 1 / max(1 - low_p, 1 + high_q))
    dual = min(1.0, 1 / max(high_p, -low_q, 1e-300))
    if joint:
        primal = dual = min(primal, dual)
    s_dd, ds_dd = float(torch.dot(s, dd)), float(torch.dot(ds, dd))
    affine = total + primal * (s_dd - total) - dual * s_dd - primal * dual * ds_dd
    center = max(affine / total, 0.0) ** 3 * total / (len(e) + len(s))
    if cycles:
        center = CENTERED * total / (len(e) + len(s))
        p, q = torch.zeros_like(p), torch.zeros_like(q)
    ku = (p - 1).mul_(p).mul_(u).add_(per_e, alpha=center)
    kv = (q + 1).mul_(q).mul_(v).add_(per_d, alpha=center)
    t = s + kv
    program.finite(t).sub_(ku)
    step = factor.solve(program.transposed(w * t) - missing)
    program.change(step, ds)
    dd = (ds + t).mul_(w)
    finite = program.finite(dd)
    du = ku.sub_(u).addcmul_(ue, finite)
    dv = kv.sub_(v).addcmul_(vd, dd, value=-1)
    primal = min(1.0, TO_BOUNDARY / max(-_least(du / u), -_least(dv / v), 1e-300))
    dual = min(1.0, TO_BOUNDARY / max(float(per_e.mul_(finite).amax()), -_least(per_d.mul_(dd)), 1e-300))
    if joint:
        primal = dual = min(primal, dual)
    state.theta = state.theta + primal * step
    s.add_(ds, alpha=primal)
    u.add_(du, alpha=primal)
    v.add_(dv, alpha=primal)
    d.add_(dd, alpha=dual)
    e.sub_(finite, alpha=dual)


def _range(values: torch.Tensor) -> tuple[float, float]:
    low, high = torch.aminmax(values)
    return float(low), float(high)


def _least(values: torch.Tensor) -> float:
    return float(values.amin())


def _best_constant(y: torch.Tensor, weight: torch.Tensor, pieces: PiecewiseLinear) -> float:
    """The constant prediction of least loss; of several the nearest to the median of y."""
    kinks = torch.cat([y - position for position in pieces.positions])
    mass = torch.cat([jump * weight for jump in pieces.jumps])
    total = float(weight.sum())
    level = total * (pieces.slope + sum(pieces.jumps))
    lowest, highest = _where_below(kinks, mass, level)
    return min(max(median_of(y, weight), lowest), highest)


def median_of(y: torch.Tensor, weight: torch.Tensor) -> float:
    """The lower median."""
    return _where_below(y, weight, float(weight.sum()) / 2)[0]


def _where_below(values: torch.Tensor, mass: torch.Tensor, level: float) -> tuple[float, float]:
    """The first value up to where the mass reaches a level, and the first where it exceeds it."""
    values, order = torch.sort(values)
    below = torch.cumsum(mass[order], 0)
    slack = SAME * float(below[-1])
    first, last = int((below < level - slack).sum()), int((below <= level + slack).sum())
    most = len(values) - 1
    return float(values[min(first, most)]), float(values[min(last, most)])


def _mean_loss(residual: torch.Tensor, weight: torch.Tensor, pieces: PiecewiseLinear) -> float:
    """Above the least loss that there is."""
    loss = pieces.slope * (residual - pieces.positions[0])
    for position, jump in zip(pieces.positions, pieces.jumps, strict=True):
        loss += jump * (residual - position).clamp_(min=0)
    return float(torch.dot(weight, loss - pieces.least))


@dataclass(frozen=True)
class _Target:
    """The result for one target, in the coordinates of the design."""

    theta: np.ndarray  # shape: (n_columns,)
    at_lower: np.ndarray  # which of them are at a bound
    at_upper: np.ndarray
    optimality: float
    constant: float  # the objective of the best one, which optimality is relative to
    n_iter: int
    converged: bool


def _solve_target(
    rows: Rows,
    y: torch.Tensor,
    weight: torch.Tensor,
    columns: _Columns,
    pieces: PiecewiseLinear,
    start: np.ndarray,
    root: np.ndarray,
    n_intercepts: int,
    tol: float,
    max_iter: int,
) -> _Target:
    """Scale one target to residuals of size 1, and solve."""
    some = slice(None, None, 1 + len(y) // MEDIAN_ROWS)
    constant = _best_constant(y[some], weight[some], pieces) if n_intercepts else 0.0
    y = y - constant
    base = _mean_loss(y, weight, pieces)
    l1, lower, upper, ridge, held, by_rows = columns
    size = typical_size(y)
    theta = start.copy()
    theta[:n_intercepts] -= constant
    theta /= size
    lower, upper = lower / size, upper / size
    resting = np.clip(0.0, lower, upper)
    if (base == 0 and not resting.any()) or held.all():
        theta, gap, n_iter, converged = resting, 0.0, 1, True
        theta[:n_intercepts] = _best_constant(y, weight, pieces) / size
    else:
        scaled = PiecewiseLinear(pieces.slope, tuple(p / size for p in pieces.positions), pieces.jumps)
        program = Program(
            rows, y / size, weight, scaled, l1, lower, upper, ridge * size, ~held, by_rows, len(y)
        )
        theta = np.where(held, resting, inside_bounds(theta, lower, upper, ridge * size))

        def shortest(part: Program, found: Iterate) -> Iterate:
            middle = median_of(program.y, weight) if n_intercepts else 0.0
            return shortest_optimum(part, found, root, n_intercepts, middle)

        found = _solved(program, theta, shortest, tol, max_iter)
        theta, gap, n_iter, converged = found.theta, found.gap, max(found.n_iter, 1), not found.out_of_steps
        if base == 0:  # and the coefficients that it belongs to are beyond a bound
            base = size * program.objective(resting, program.values(resting))
    theta = np.clip(theta, lower, upper)
    at_lower, at_upper = theta == lower, theta == upper
    theta = theta * size
    theta[:n_intercepts] += constant
    return _Target(theta, at_lower, at_upper, gap * size / base if gap else 0.0, base, n_iter, converged)


def typical_size(y: torch.Tensor) -> float:
    """A typical magnitude: the median, which outliers do not reach, or the mean where most are 0."""
    magnitude = y[:: 1 + len(y) // MEDIAN_ROWS].abs()
    median = float(magnitude.median())
    return median or float(magnitude.mean()) or float(y.abs().mean()) or 1.0


def inside_bounds(theta: np.ndarray, lower: np.ndarray, upper: np.ndarray, ridge: np.ndarray) -> np.ndarray:
    """The point moved to the inside of the bounds, to where the barrier keeps a ridge penalty in balance."""
    if ridge.ndim == 2:  # there are no bounds then
        return theta
    pull = ridge * np.abs(np.clip(0.0, lower, upper))
    margin = START_MU / (START_MU + pull + np.sqrt(START_MU * ridge))
    with np.errstate(invalid="ignore"):
        margin = np.minimum(margin, (upper - lower) / 4)
    return np.clip(theta, lower + margin, upper - margin)


class _Columns(NamedTuple):
    """Penalty and bounds of all columns."""

    l1: np.ndarray  # shape: (n_columns,)
    lower: np.ndarray  # shape: (n_columns,)
    upper: np.ndarray  # shape: (n_columns,)
    ridge: np.ndarray  # shape: (n_columns,) or (n_columns, n_columns)
    held: np.ndarray  # columns that are known to be as near to 0 as they may; shape: (n_columns,)
    by_rows: bool  # whether columns are too dependent for steps from a Gram matrix


def _steepest(pieces: PiecewiseLinear) -> float:
    """The largest slope of the loss."""
    return max(-pieces.slope, pieces.slope + sum(pieces.jumps))


def _columns(
    design: Design, rows: Rows, weight: torch.Tensor, pieces: PiecewiseLinear, bounded: bool
) -> _Columns:
    """What is known of the columns of a design, whatever the target."""
    n_columns, features = design.n_columns, design.features
    l1 = np.zeros(n_columns)
    lower, upper = np.full(n_columns, -np.inf), np.full(n_columns, np.inf)
    if design.penalty is None:
        return _Columns(l1, lower, upper, design.ridge, np.zeros(n_columns, dtype=bool), False)
    l1[features] = design.penalty.l1
    lower[features], upper[features] = design.penalty.lower, design.penalty.upper
    # The loss has no slope beyond `steepest`, and the columns a mean square of 1, or 0 if constant.
    steepest = _steepest(pieces)
    assert design.gram is not None
    held = (design.gram.diagonal() < 0.5) | (l1 >= steepest * (1 + 1e-9)) | ~np.isfinite(design.ridge)
    held |= lower == upper
    by_rows = False
    if (bounded or l1.any()) and not held.all():  # else the columns are known to be independent
        upper_triangle, info = lapack.dpotrf(rows.gram(weight)[np.ix_(~held, ~held)], lower=0)
        by_rows = info > 0 or upper_triangle.diagonal().min() < DEPENDENT_COLUMNS
    return _Columns(np.where(held, 0.0, l1), lower, upper, np.where(held, 0.0, design.ridge), held, by_rows)


def solve_interior_point(problem: Problem, tol: float, max_iter: int | None) -> Solution:
    """Minimise a piecewise linear loss with any penalty and bounds; a linear program ends at its vertex."""
    pieces = problem.loss.pieces()
    design = design_of(problem)
    blocks, weight = design.blocks, design.share
    rows = Rows(blocks)
    goal = min(max(tol, 1e-14), SMALLEST_TOL)
    limit = DEFAULT_MAX_ITER if max_iter is None else max_iter
    columns = _columns(design, rows, weight, pieces, problem.penalty.has_bounds)
    n_intercepts = int(problem.fit_intercept)
    root = root_of_norm(design.transform, n_intercepts)
    targets = [
        _solve_target(rows, y, weight, columns, pieces, start, root, n_intercepts, goal, limit)
        for y, start in zip(blocks.y.T.contiguous(), design.start.T, strict=True)
    ]
    coef, intercept = _in_users_units(problem, design, targets)
    optimality = max(target.optimality for target in targets)
    # No solver could hand back less rounded coefficients; `status` does not ask for it.
    rounding = _steepest(pieces) * rounding_of_model(design.center, design.spread, coef, intercept)
    rounded = max(
        target.optimality + (moved / target.constant if target.constant else 0.0)
        for target, moved in zip(targets, rounding.tolist(), strict=True)
    )
    status = Status.OPTIMAL
    if not optimality <= max(tol, REACHED):
        status = Status.STUCK if all(target.converged for target in targets) else Status.ITERATIONS_USED
    return Solution(
        coef=coef,
        intercept=intercept,
        rank=design.rank,
        condition_number=design.condition_number,
        solver="interior_point",
        status=status,
        n_iter=max(target.n_iter for target in targets),
        error=0.0,
        optimality=rounded,
    )


def _in_users_units(
    problem: Problem, design: Design, targets: list[_Target]
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients, those at a bound exactly so, and intercepts."""
    theta = np.stack([target.theta for target in targets], axis=1)
    coef, intercept = design.in_users_units(theta)
    if not problem.penalty.has_bounds:
        return coef, intercept
    lower, upper = problem.penalty.lower[:, None], problem.penalty.upper[:, None]
    at_lower = np.stack([target.at_lower[design.features] for target in targets], axis=1)
    at_upper = np.stack([target.at_upper[design.features] for target in targets], axis=1)
    coef = np.where(at_lower, lower, np.where(at_upper, upper, np.clip(coef, lower, upper)))
    if problem.fit_intercept:
        intercept = theta[0] - design.center @ coef
    return coef, intercept
