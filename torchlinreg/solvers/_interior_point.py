"""Interior point for piecewise linear losses with any penalty and bounds: linear and quadratic programs.

A loss of ``t = y - prediction`` is a slope times t plus hinges ``jump * max(0, t - position)``. So are
``l1 |theta|`` and, with an infinite jump, a bound. The problem is then::

    minimise  linear . theta + theta . ridge . theta / 2 + sum_h cost_h max(0, s_h),   s_h = b_h - a_h . theta

and with ``s = u - v``, ``u, v >= 0``, and a dual ``d`` in [0, cost] of each hinge, an optimum is where
``linear + ridge theta = sum_h d_h a_h``, ``u (cost - d) = 0`` and ``v d = 0``. Newton's method for that, with
the zeros replaced by a falling number, needs one weighted Gram matrix of the rows per step: the Frisch-Newton
method (Portnoy, Koenker 1997), with the predictor and corrector of Mehrotra (1992). At the end the hinges at
their kinks are solved as equations, which gives the vertex of a linear program to rounding, and exact zeros.

Of many rows only those near the kinks take part; without penalty, 1e6 x 10 takes seven times less for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import lapack, qr, solve_triangular

from torchlinreg._blocks import RowBlocks, tensor_blocks
from torchlinreg._moments import upper_gram
from torchlinreg._problem import Problem
from torchlinreg._solution import Solution, Status
from torchlinreg.losses import PiecewiseLinear
from torchlinreg.solvers._design import Design, design_of

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
MEDIAN_ROWS = 50_000
# Steps go so far to the boundary.
TO_BOUNDARY = 0.9995
# Distance from a bound times its dual at the start; the loss has slopes of about 1.
START_MU = 0.1
# Rows start at least so far from the boundary, where y is of size 1: some may be met exactly.
SMALLEST_SHIFT = 1e-4
# From so many rows on most are left out; with fewer, steps take about as long as their calls.
SAMPLED_ROWS = 15_000
# The sample has so many rows, times (n_samples * n_columns)^(2/3), and the rows next to the kinks are so many
# times as many; with less, rows change sides and another round costs more than these save.
SAMPLE, KEPT = 0.6, 3.0
# The sample's own error is larger.
SAMPLE_TOL = 1e-2
MAX_ROUNDS = 6
# Steps without a smaller gap after which rounding stops progress.
PATIENCE = 8
# The vertex is tried from where the gap times the number of rows is so small: most kinks are then known.
EARLY = 0.1
# Rows times squared columns up to which steps may be found by QR, where a Gram matrix has lost the digits.
LARGEST_QR = 3 * 10**8
# Rows at kinks, times columns, up to which they are solved for.
LARGEST_VERTEX = 10**7
# A row at its kink is dependent on others if less than this share of it is not.
DEPENDENT = 1e-10


class _Rows:
    """Rows of a design, as one tensor or block by block."""

    def __init__(self, blocks: RowBlocks) -> None:
        self.n_samples, self.n_columns = blocks.n_samples, blocks.n_features
        self.device = blocks.device
        self._blocks = blocks
        self._whole: torch.Tensor | None = None
        if blocks.in_place:
            self._whole = next(blocks.large(blocks.n_samples)).X
        self._buffer = torch.empty((0, self.n_columns), dtype=torch.float64, device=self.device)

    def _parts(self) -> Iterator[tuple[slice, torch.Tensor]]:
        if self._whole is not None:
            yield slice(None), self._whole
            return
        start = 0
        for block in self._blocks.dense():
            assert block.X is not None
            yield slice(start, start + len(block.y)), block.X
            start += len(block.y)

    def gram(self, weight: torch.Tensor) -> np.ndarray:
        """The weighted Gram matrix, of which the upper triangle counts."""
        root = weight.sqrt()[:, None]
        total: torch.Tensor | None = None
        for part, X in self._parts():
            if len(self._buffer) < len(X):
                self._buffer = torch.empty_like(X)
            gram = upper_gram(torch.mul(X, root[part], out=self._buffer[: len(X)]))
            total = gram if total is None else total.add_(gram)
        assert total is not None
        return total.cpu().numpy()

    def times(self, theta: np.ndarray) -> torch.Tensor:
        """Rows times a vector."""
        vector = torch.from_numpy(theta).to(self.device)
        if self._whole is not None:
            return self._whole @ vector
        return torch.cat([X @ vector for _, X in self._parts()])

    def transposed(self, vector: torch.Tensor) -> np.ndarray:
        """The transposed rows times a vector."""
        if self._whole is not None:
            return (vector @ self._whole).cpu().numpy()
        return sum((vector[..., part] @ X for part, X in self._parts()), torch.zeros(())).cpu().numpy()

    def take(self, index: torch.Tensor) -> torch.Tensor:
        """Some rows."""
        if self._whole is not None:
            return self._whole.index_select(0, index)
        X = self._blocks.gather(index.cpu()).X
        assert X is not None
        return X


@dataclass(frozen=True)
class _Program:
    """The problem of one target; hinges are those of rows, position by position, l1 penalties, and bounds."""

    rows: _Rows
    y: torch.Tensor  # shape: (n_samples,)
    weight: torch.Tensor  # shape: (n_samples,)
    pieces: PiecewiseLinear
    l1: np.ndarray  # shape: (n_columns,)
    lower: np.ndarray  # shape: (n_columns,)
    upper: np.ndarray  # shape: (n_columns,)
    ridge: np.ndarray  # shape: (n_columns,) or (n_columns, n_columns)
    free: np.ndarray  # columns that are not held where they are; shape: (n_columns,)
    by_rows: bool  # whether the columns are too dependent for a Gram matrix
    n_all: int  # rows, before those whose side of all kinks is known were replaced by their mean

    @cached_property
    def n_row_hinges(self) -> int:
        return len(self.y) * len(self.pieces.positions)

    @cached_property
    def column(self) -> np.ndarray:
        """Of each hinge of columns, the column."""
        kinds = (self.l1 > 0, np.isfinite(self.lower), np.isfinite(self.upper))
        return np.concatenate([np.flatnonzero(kind & self.free) for kind in kinds])

    @cached_property
    def n_finite(self) -> int:
        """Hinges of finite cost, which come first."""
        return self.n_row_hinges + int(((self.l1 > 0) & self.free).sum())

    def finite(self, hinges: torch.Tensor) -> torch.Tensor:
        """Those of finite cost; a view."""
        return hinges if self.n_finite == len(hinges) else hinges[: self.n_finite]

    @cached_property
    def n_lower(self) -> int:
        """Lower bounds."""
        return int((np.isfinite(self.lower) & self.free).sum())

    @cached_property
    def sign(self) -> np.ndarray:
        """Of each hinge of columns, what it is of the column."""
        sign = np.ones(len(self.column))
        sign[self.n_finite - self.n_row_hinges + self.n_lower :] = -1
        return sign

    @cached_property
    def offset(self) -> np.ndarray:
        """Of each hinge of columns, its value at 0."""
        n_l1 = self.n_finite - self.n_row_hinges
        offset = np.zeros(len(self.column))
        offset[n_l1 : n_l1 + self.n_lower] = self.lower[self.column[n_l1 : n_l1 + self.n_lower]]
        offset[n_l1 + self.n_lower :] = -self.upper[self.column[n_l1 + self.n_lower :]]
        return offset

    @cached_property
    def has_ridge(self) -> bool:
        return bool(self.ridge.any())

    @cached_property
    def cost(self) -> torch.Tensor:
        """Of each hinge of finite cost."""
        n_l1 = self.n_finite - self.n_row_hinges
        l1 = torch.from_numpy(2 * self.l1[self.column[:n_l1]]).to(self.weight.device)
        return torch.cat([*(jump * self.weight for jump in self.pieces.jumps), l1])

    @cached_property
    def linear(self) -> np.ndarray:
        return self.l1 - self.pieces.slope * self.rows.transposed(self.weight)

    def values(self, theta: np.ndarray) -> torch.Tensor:
        """``s`` of all hinges."""
        residual = self.y - self.rows.times(theta)
        others = torch.from_numpy(self.offset - self.sign * theta[self.column]).to(residual.device)
        return torch.cat([*(residual - position for position in self.pieces.positions), others])

    def change(self, step: np.ndarray, out: torch.Tensor) -> torch.Tensor:
        """The change of ``s`` by a step of theta."""
        if len(out) == len(self.weight):
            return torch.neg(self.rows.times(step), out=out)
        by_position = out[: self.n_row_hinges].view(-1, len(self.y))
        torch.neg(self.rows.times(step), out=by_position[0])
        by_position[1:] = by_position[0]
        if len(self.column):
            out[self.n_row_hinges :] = torch.from_numpy(-self.sign * step[self.column])
        return out

    def _of_rows(self, hinges: torch.Tensor) -> torch.Tensor:
        if len(hinges) == len(self.weight):
            return hinges
        by_position = hinges[: self.n_row_hinges].view(-1, len(self.y))
        return by_position[0] if len(by_position) == 1 else by_position.sum(0)

    def transposed(self, hinges: torch.Tensor) -> np.ndarray:
        """``sum_h a_h x_h``."""
        result = self.rows.transposed(self._of_rows(hinges))
        if len(self.column):
            others = self.sign * hinges[self.n_row_hinges :].cpu().numpy()
            result = result + np.bincount(self.column, others, len(result))
        return result

    def newton_matrix(self, hinges: torch.Tensor) -> np.ndarray:
        """``ridge + sum_h x_h a_h a_h'``, of which the upper triangle counts."""
        result = self.rows.gram(self._of_rows(hinges))
        diagonal = result.reshape(-1)[:: len(result) + 1]
        if len(self.column):
            diagonal += np.bincount(self.column, hinges[self.n_row_hinges :].cpu().numpy(), len(result))
        if self.ridge.ndim == 1:
            diagonal += self.ridge
        else:
            result += self.ridge
        return result

    def bent(self, theta: np.ndarray) -> np.ndarray:
        """The gradient of the ridge penalty."""
        return self.ridge * theta if self.ridge.ndim == 1 else self.ridge @ theta

    def stationarity(self, theta: np.ndarray, dual: torch.Tensor) -> np.ndarray:
        """``linear + ridge theta - sum_h d_h a_h``, 0 for columns that are held."""
        missing = self.linear - self.transposed(dual)
        if self.has_ridge:
            missing += self.bent(theta)
        missing[~self.free] = 0
        return missing

    def objective(self, theta: np.ndarray, values: torch.Tensor) -> float:
        """What is minimised."""
        loss = self.pieces.slope * torch.dot(self.weight, values[: len(self.y)])
        loss += torch.dot(self.cost[: self.n_row_hinges], values[: self.n_row_hinges].clamp(min=0))
        penalty = float(self.l1 @ np.abs(theta)) + float(theta @ self.bent(theta)) / 2
        return float(loss) + penalty

    def gap(self, theta: np.ndarray, values: torch.Tensor, dual: torch.Tensor) -> float:
        """A bound on the objective above its optimum.

        What is missing of stationarity counts times the distance of the optimum, for which the size of
        theta is taken, in which y has residuals of size 1.
        """
        finite = values[: self.n_finite]
        at_kinks = torch.dot(self.cost, finite.clamp(min=0)) - torch.dot(dual, values)
        return max(float(at_kinks), 0.0) + self.slack(theta, self.stationarity(theta, dual))

    def slack(self, theta: np.ndarray, missing: np.ndarray) -> float:
        """What a lack of stationarity may cost."""
        cost = np.abs(missing) * (1 + np.abs(theta))
        if self.has_ridge and self.ridge.ndim == 1:
            cost = np.minimum(cost, missing**2 / (2 * self.ridge + 1e-300))
        return float(cost.sum())

    def weighted_rows(self, hinges: torch.Tensor) -> np.ndarray:
        """Rows whose Gram matrix is `newton_matrix`, the longest first."""
        root = self._of_rows(hinges).sqrt().cpu().numpy()[:, None]
        rows = root * self.rows.take(torch.arange(len(root), device=hinges.device)).cpu().numpy()
        others = np.zeros((len(self.column), rows.shape[1]))
        others[np.arange(len(others)), self.column] = hinges[self.n_row_hinges :].sqrt().cpu().numpy()
        if self.ridge.ndim == 1:
            ridge = np.diag(np.sqrt(self.ridge))
        else:
            values, vectors = np.linalg.eigh(self.ridge)
            ridge = (vectors * np.sqrt(values.clip(min=0))).T
        every = np.concatenate([rows, others, ridge])
        return every[np.argsort(-np.abs(every).max(1, initial=0.0))]


class _Factor:
    """Cholesky factor of a Newton matrix of unit diagonal, made definite by as little as is needed.

    What is added changes the step, not the equations that it is to solve.
    """

    def __init__(self, program: _Program, hinges: torch.Tensor, by_rows: bool) -> None:
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


@dataclass(frozen=True)
class _Iterate:
    """Where the interior point method ended."""

    theta: np.ndarray
    dual: torch.Tensor
    objective: float
    gap: float
    is_vertex: bool
    n_iter: int = 0
    out_of_steps: bool = False


def _solved(program: _Program, theta: np.ndarray, tol: float, max_iter: int) -> _Iterate:
    """The optimum; of many rows from those near the kinks (Portnoy, Koenker 1997, section 4).

    A sample of the rows gives a model near the optimum. Rows far from its kinks, as long as they remain on
    their side, have the loss of their mean. Those that change sides are added and the others solved again: it
    ends with the optimum of all rows.
    """
    n_rows = len(program.y)
    n_sample = int(SAMPLE * (n_rows * len(theta)) ** (2 / 3))
    if n_rows < SAMPLED_ROWS or 2 * KEPT * n_sample > n_rows:
        return _interior_point(program, theta, tol, max_iter)
    index = torch.from_numpy(np.unique(np.random.default_rng(0).integers(n_rows, size=n_sample)))
    index = index.to(program.y.device)
    weight = program.weight[index]
    part = _part(program, program.rows.take(index), program.y[index], weight / weight.sum())
    found = _interior_point(replace(part, n_all=len(index)), theta, SAMPLE_TOL, max_iter)
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
        found = _interior_point(part, found.theta, tol, max_iter - n_iter)
        n_iter += found.n_iter
        values = program.values(found.theta)
        wrong = (_side(program, values) != side) & ~kept
        if not bool(wrong.any()):
            return replace(found, n_iter=n_iter, objective=program.objective(found.theta, values))
        kept |= wrong
    found = _interior_point(program, found.theta, tol, max(max_iter - n_iter, 0))
    return replace(found, n_iter=n_iter + found.n_iter)


def _part(program: _Program, X: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> _Program:
    """The program of other rows."""
    return replace(program, rows=_Rows(tensor_blocks(X, y[:, None])), y=y, weight=weight)


def _means(program: _Program, side: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean rows, targets and weights of the rows of each side, from 0 on."""
    sides = torch.arange(len(program.pieces.positions) + 1, device=side.device)
    share = (side == sides[:, None]) * program.weight
    weight = share.sum(1)
    share = share[weight > 0] / weight[weight > 0, None]
    X = torch.from_numpy(program.rows.transposed(share)).to(share.device)
    return X, share @ program.y, weight[weight > 0]


def _side(program: _Program, values: torch.Tensor) -> torch.Tensor:
    """Of each row, how many kinks it is above."""
    return (values[: program.n_row_hinges] > 0).view(-1, len(program.y)).sum(0)


def _from_kinks(program: _Program, values: torch.Tensor) -> torch.Tensor:
    """Of each row, how far it is from the nearest kink."""
    by_position = values[: program.n_row_hinges].abs().view(-1, len(program.y))
    return by_position[0] if len(by_position) == 1 else by_position.amin(0)


def _interior_point(program: _Program, theta: np.ndarray, tol: float, max_iter: int) -> _Iterate:
    """Mehrotra's predictor-corrector steps until the gap is at most `tol` of the objective."""
    state = _start(program, theta)
    can_by_rows = len(program.y) * len(theta) ** 2 <= LARGEST_QR
    smallest_gap, least_missing, waited, by_rows = np.inf, np.inf, 0, program.by_rows and can_by_rows
    found: list[_Iterate] = []
    before = theta
    for n_iter in range(max_iter + 1):
        total = state.complementarity()
        if not np.isfinite(total):  # no step could be found
            state, waited = _start(program, before), PATIENCE
            total = state.complementarity()
        missing = program.stationarity(state.theta, state.d)
        slack = program.slack(state.theta, missing)
        if n_iter == 0 or total + slack <= 0.1 or n_iter == max_iter or waited:
            objective = program.objective(state.theta, state.s)
        gap = min(total + slack, max(objective, 0.0))  # the loss is never below 0
        small = min(objective, 1.0)
        rounding = ROUNDING * (1 + float(np.abs(state.theta).sum()))
        most = float(np.abs(missing).max())
        done = gap <= max(tol * small, rounding)
        progress = gap < 0.9 * smallest_gap or most < 0.9 * least_missing
        waited = 0 if progress and waited < PATIENCE else waited + 1
        if gap < smallest_gap and (gap <= 1e-4 * small or n_iter == max_iter):
            found = [i for i in found if i.is_vertex] + [
                _Iterate(state.theta, state.d.clone(), objective, gap, False)
            ]
        smallest_gap, least_missing = min(gap, smallest_gap), min(most, max(least_missing, 1e-13))
        # Once complementarity is far below what rounding leaves of stationarity, steps gain nothing.
        waited += total < 1e-6 * slack and by_rows
        last = done or waited >= PATIENCE or n_iter == max_iter
        if last or gap * program.n_all <= EARLY * small:
            vertex = _vertex(program, state)
            if vertex is not None:
                found.append(vertex)
                if vertex.gap <= max(1e-3 * tol * small, 100 * rounding):
                    return replace(vertex, n_iter=n_iter)
        if last:
            break
        lost = most > least_missing and max(total, rounding) < slack
        by_rows = by_rows or (can_by_rows and lost and total < 1e-3)
        before = state.theta
        _advance(program, state, total, missing, by_rows)
    # Without the rounding of the steps:
    objective = program.objective(state.theta, program.values(state.theta))
    found.append(_Iterate(state.theta, state.d, objective, gap, False))
    return replace(_best_of(program, found, tol), n_iter=n_iter, out_of_steps=not done and waited < PATIENCE)


def _best_of(program: _Program, found: list[_Iterate], tol: float) -> _Iterate:
    """The vertex, unless its objective is higher, with the best dual."""
    lowest = min(iterate.objective for iterate in found)
    level = lowest + 1e-14 * abs(lowest)
    result = next((i for i in reversed(found) if i.is_vertex and i.objective <= level), None)
    if result is None:
        result = min(found, key=lambda iterate: iterate.objective)
    values = program.values(result.theta)
    duals = [iterate.dual for iterate in found]
    gaps = [result.gap, *(program.gap(result.theta, values, dual) for dual in duals)]
    if min(gaps) > tol * min(result.objective, 1.0):
        duals = [_balanced(program, result.theta, dual) for dual in duals]
        gaps += [program.gap(result.theta, values, dual) for dual in duals]
    return replace(result, gap=min(*gaps, max(result.objective, 0.0)))


def _balanced(program: _Program, theta: np.ndarray, dual: torch.Tensor) -> torch.Tensor:
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


@dataclass
class _State:
    """An interior point; `u` and `e` are of hinges of finite cost only. Steps change it in place."""

    theta: np.ndarray
    s: torch.Tensor
    u: torch.Tensor
    v: torch.Tensor
    d: torch.Tensor
    e: torch.Tensor

    def complementarity(self) -> float:
        """What the gap is where the duals are stationary."""
        return float(torch.dot(self.u, self.e) + torch.dot(self.v, self.d))


def _start(program: _Program, theta: np.ndarray) -> _State:
    """Both sides of each hinge half a mean residual off the boundary, and duals that are stationary but for
    ridge penalty and bounds."""
    cost, finite = program.cost, slice(program.n_finite)
    s = program.values(theta)
    shift = max(0.5 * float(s[: program.n_row_hinges].abs().mean()), SMALLEST_SHIFT)
    u = s[finite].clamp(min=0) + shift
    v = (-s).clamp_(min=0)
    v[finite] += shift
    d = torch.empty_like(s)
    torch.mul(cost, -program.pieces.slope / sum(program.pieces.jumps), out=d[finite])
    d[program.n_row_hinges : program.n_finite] = cost[program.n_row_hinges :] / 2
    e = cost - d[finite]
    d[program.n_finite :] = START_MU / v[program.n_finite :]
    return _State(theta, s, u, v, d, e)


def _advance(program: _Program, state: _State, total: float, missing: np.ndarray, by_rows: bool) -> None:
    """A predictor, which aims at the boundary, and the corrected step, which aims at where it led."""
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


def _vertex(program: _Program, state: _State) -> _Iterate | None:
    """Where the hinges that seem to be at their kinks are so exactly; for a ridge, the optimum there.

    A hinge counts whose dual is farther inside its range than the hinge is from its kink, where typical
    residuals next to it differ by one over the number of rows.
    """
    cost, n_rows = program.cost, len(program.y)
    n_row_hinges, n_finite = program.n_row_hinges, program.n_finite
    distance = program.n_all * state.s.abs()
    if program.ridge.ndim == 1 and len(program.column):
        distance[n_row_hinges:] *= torch.from_numpy(1 + program.ridge[program.column]).to(distance.device)
    room = state.d.clone()
    torch.minimum(state.d[:n_finite], state.e, out=room[:n_finite])
    room[:n_finite] /= cost
    active = room > distance
    index = torch.nonzero(active[:n_row_hinges])[:, 0]
    if len(index) * program.rows.n_columns > LARGEST_VERTEX:
        return None
    fixed = active[n_row_hinges:].cpu().numpy()
    columns = program.column[fixed]
    theta = state.theta.copy()
    theta[columns] = program.sign[fixed] * program.offset[fixed]
    moving = program.free.copy()
    moving[columns] = False
    kinks = _Kinks(program.rows.take(index % n_rows).cpu().numpy()[:, moving])
    values = program.values(theta)
    theta[moving] += kinks.onto(values[index].cpu().numpy())

    dual = torch.zeros_like(state.d)
    dual[:n_finite] = torch.where(state.d[:n_finite] > cost / 2, cost, 0.0)
    dual[index] = 0
    dual[n_row_hinges:][torch.from_numpy(fixed)] = 0
    pulled = program.linear - program.transposed(dual)
    if program.has_ridge:
        bend = program.ridge[moving] if program.ridge.ndim == 1 else program.ridge[np.ix_(moving, moving)]
        theta[moving] += kinks.along((pulled + program.bent(theta))[moving], bend)
    at_kinks = state.d[index].cpu().numpy()
    at_kinks = kinks.duals((pulled + program.bent(theta))[moving], at_kinks)
    dual[index] = torch.from_numpy(at_kinks).to(dual.device)
    pull = program.stationarity(theta, dual)[columns] * program.sign[fixed]
    dual[n_row_hinges:][torch.from_numpy(fixed)] = torch.from_numpy(pull).to(dual.device)
    dual.clamp_(min=0)
    torch.minimum(dual[:n_finite], cost, out=dual[:n_finite])
    values = program.values(theta)
    if bool((values[n_finite:] > 0).any()):
        return None
    return _Iterate(theta, dual, program.objective(theta, values), program.gap(theta, values, dual), True)


class _Kinks:
    """Rows that are to be met exactly, by a pivoted QR of their transpose: dependent ones are left out."""

    def __init__(self, rows: np.ndarray) -> None:
        norm = np.sqrt((rows**2).sum(1))
        self._norm = np.where(norm > 0, norm, 1.0)
        self._rows = rows / self._norm[:, None]
        n_columns = rows.shape[1]
        if not rows.size:
            self._index, self._upper = np.arange(0), np.zeros((0, 0))
            self._along, self._across = np.zeros((n_columns, 0)), np.eye(n_columns)
            return
        basis, upper, pivots = qr(self._rows.T, pivoting=True, check_finite=False)
        diagonal = np.abs(upper.diagonal())
        rank = int((diagonal > DEPENDENT * diagonal[:1]).sum())
        self._index = pivots[:rank]
        self._upper = upper[:rank, :rank]
        self._along, self._across = basis[:, :rank], basis[:, rank:]

    def onto(self, values: np.ndarray) -> np.ndarray:
        """The least step by which the rows change by these values."""
        right = (values / self._norm)[self._index]
        return self._along @ solve_triangular(self._upper, right, trans=1, check_finite=False)

    def along(self, gradient: np.ndarray, curvature: np.ndarray) -> np.ndarray:
        """The step to the minimum of a quadratic among those that do not change the rows."""
        if not self._across.shape[1]:
            return np.zeros_like(gradient)
        bent = curvature[:, None] * self._across if curvature.ndim == 1 else curvature @ self._across
        inverse = np.linalg.pinv(self._across.T @ bent, rcond=1e-13, hermitian=True)
        return -self._across @ (inverse @ (self._across.T @ gradient))

    def duals(self, pulled: np.ndarray, near: np.ndarray) -> np.ndarray:
        """Duals near those given by which the rows balance the gradient."""
        missing = pulled - self._rows.T @ (near * self._norm)
        change = solve_triangular(self._upper, self._along.T @ missing, check_finite=False)
        result = near.copy()
        result[self._index] += change / self._norm[self._index]
        return result


def _best_constant(y: torch.Tensor, weight: torch.Tensor, pieces: PiecewiseLinear) -> float:
    """The constant prediction of least loss."""
    stride = 1 + len(y) // MEDIAN_ROWS
    y, weight = y[::stride], weight[::stride]
    kinks = torch.cat([y - position for position in pieces.positions])
    mass = torch.cat([jump * weight for jump in pieces.jumps])
    kinks, order = torch.sort(kinks)
    below = torch.cumsum(mass[order], 0)
    level = float(below[-1]) + pieces.slope * float(weight.sum())
    index = int((below < level).sum())
    return float(kinks[min(index, len(order) - 1)])


def _mean_loss(residual: torch.Tensor, weight: torch.Tensor, pieces: PiecewiseLinear) -> float:
    loss = pieces.slope * (residual - pieces.positions[0])
    for position, jump in zip(pieces.positions, pieces.jumps, strict=True):
        loss += jump * (residual - position).clamp_(min=0)
    return float(torch.dot(weight, loss))


@dataclass(frozen=True)
class _Target:
    """The result for one target, in the coordinates of the design."""

    theta: np.ndarray  # shape: (n_columns,)
    at_lower: np.ndarray  # which of them are at a bound
    at_upper: np.ndarray
    optimality: float
    n_iter: int
    converged: bool


def _solve_target(
    rows: _Rows,
    y: torch.Tensor,
    weight: torch.Tensor,
    columns: _Columns,
    pieces: PiecewiseLinear,
    start: np.ndarray,
    n_intercepts: int,
    tol: float,
    max_iter: int,
) -> _Target:
    """Scale one target to residuals of size 1, and solve."""
    constant = _best_constant(y, weight, pieces) if n_intercepts else 0.0
    y = y - constant
    base = _mean_loss(y, weight, pieces)
    l1, lower, upper, ridge, held, by_rows = columns
    size = _size(y)
    theta = start.copy()
    theta[:n_intercepts] -= constant
    theta /= size
    lower, upper = lower / size, upper / size
    resting = np.clip(0.0, lower, upper)
    if (base == 0 and not resting.any()) or held.all():
        theta, gap, n_iter, converged = resting, 0.0, 1, True
    else:
        scaled = PiecewiseLinear(pieces.slope, tuple(p / size for p in pieces.positions), pieces.jumps)
        program = _Program(
            rows, y / size, weight, scaled, l1, lower, upper, ridge * size, ~held, by_rows, len(y)
        )
        theta = np.where(held, resting, _inside(theta, lower, upper, ridge * size))
        found = _solved(program, theta, tol, max_iter)
        theta, gap, n_iter, converged = found.theta, found.gap, max(found.n_iter, 1), not found.out_of_steps
        if base == 0:  # and the coefficients that it belongs to are beyond a bound
            base = size * program.objective(resting, program.values(resting))
    theta = np.clip(theta, lower, upper)
    at_lower, at_upper = theta == lower, theta == upper
    theta = theta * size
    theta[:n_intercepts] += constant
    return _Target(theta, at_lower, at_upper, gap * size / base if gap else 0.0, n_iter, converged)


def _size(y: torch.Tensor) -> float:
    """A typical magnitude: the median, which outliers do not reach, or the mean where most are 0."""
    magnitude = y[:: 1 + len(y) // MEDIAN_ROWS].abs()
    median = float(magnitude.median())
    return median or float(magnitude.mean()) or float(y.abs().mean()) or 1.0


def _inside(theta: np.ndarray, lower: np.ndarray, upper: np.ndarray, ridge: np.ndarray) -> np.ndarray:
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


def _columns(
    design: Design, rows: _Rows, weight: torch.Tensor, pieces: PiecewiseLinear, bounded: bool
) -> _Columns:
    """What is known of the columns of a design, whatever the target."""
    n_columns, features = design.n_columns, design.features
    l1 = np.zeros(n_columns)
    lower, upper = np.full(n_columns, -np.inf), np.full(n_columns, np.inf)
    if design.penalty is None:
        return _Columns(l1, lower, upper, design.ridge, np.zeros(n_columns, dtype=bool), False)
    l1[features] = design.penalty.l1
    lower[features], upper[features] = design.penalty.lower, design.penalty.upper
    gram = rows.gram(weight)
    # The loss has no slope beyond `steepest`, and the columns a mean square of 1, or 0 if constant.
    steepest = max(-pieces.slope, pieces.slope + sum(pieces.jumps))
    held = (gram.diagonal() < 0.5) | (l1 >= steepest * (1 + 1e-9)) | ~np.isfinite(design.ridge)
    held |= lower == upper
    by_rows = False
    if (bounded or l1.any()) and not held.all():  # else the columns are known to be independent
        upper_triangle, info = lapack.dpotrf(gram[np.ix_(~held, ~held)], lower=0)
        by_rows = info > 0 or upper_triangle.diagonal().min() < DEPENDENT_COLUMNS
    return _Columns(np.where(held, 0.0, l1), lower, upper, np.where(held, 0.0, design.ridge), held, by_rows)


def solve_interior_point(problem: Problem, tol: float, max_iter: int | None) -> Solution:
    """Minimise a piecewise linear loss with any penalty and bounds; a linear program ends at its vertex."""
    pieces = problem.loss.pieces()
    design = design_of(problem)
    blocks, weight = design.blocks, design.share
    rows = _Rows(blocks)
    goal = min(max(tol, 1e-14), SMALLEST_TOL)
    limit = DEFAULT_MAX_ITER if max_iter is None else max_iter
    columns = _columns(design, rows, weight, pieces, problem.penalty.has_bounds)
    n_intercepts = int(problem.fit_intercept)
    targets = [
        _solve_target(rows, y, weight, columns, pieces, start, n_intercepts, goal, limit)
        for y, start in zip(blocks.y.T.contiguous(), design.start.T, strict=True)
    ]
    coef, intercept = _in_users_units(problem, design, targets)
    optimality = max(target.optimality for target in targets)
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
        optimality=optimality,
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
