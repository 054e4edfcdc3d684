"""No solution is above the best constant: a last line of defence behind what solvers prove of themselves.

The objective of a model comes from its residuals on the rows, in float64 and, where that is too much, to 60
bits. That of the best constant is bounded from below by tangents of the mean loss, a convex function of
the constant, until the two tell which is lower.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from torchlinreg._data.rows import Block
from torchlinreg._linalg import double_double as dd
from torchlinreg._linalg.gram import EPS
from torchlinreg._moments.exact import ExactMoments, exact_rows
from torchlinreg._moments.gradient import DEPTHS, exact_residual
from torchlinreg._moments.moments import Frame, log2_of_units, shift_and_scale
from torchlinreg._objective.problem import Problem
from torchlinreg._objective.solution import Solution, Status
from torchlinreg.losses import Loss

# Whoever ended the fit, or the user's learning rate, answers for where it is; a constant may be as near to an
# infimum at infinity as it likes.
ENDED_BY_OTHERS = (
    Status.MAX_ITER,
    Status.EARLY_STOPPED,
    Status.CALLBACK,
    Status.ONE_PASS,
    Status.ITERATIONS_USED,
    Status.NO_FINITE_OPTIMUM,
)
# Objectives that are closer, relatively, are the same.
ROUNDING = 1e-13
# Rounding of predictions, relative to the targets.
AS_LARGE = 2 * EPS
# Tangents meet after a few dozen points; scales take about ten.
MOST_POINTS, MOST_SCALES = 100, 60
SETTLED = 1e-14


def not_above_constant(problem: Problem, solution: Solution) -> Solution:
    """The solution; where the best constant (0 without intercept) is allowed and better, that constant.

    Costs a pass over the rows, unless the solution is proven to be better.
    """
    if _is_exempt(problem, solution):
        return solution
    constants = _Constants.all_of(problem)
    for exact in (False, True):  # most are told apart without exact residuals
        values = _objectives(problem, solution, exact=exact).tolist()
        found = [each.search(value) for each, value in zip(constants, values, strict=True)]
        if all(value <= bound * (1 + ROUNDING) for value, (bound, _) in zip(values, found, strict=True)):
            return solution
    coef, intercept = solution.coef.copy(), solution.intercept.copy()
    scale = None if solution.scale is None else solution.scale.copy()
    for target, (value, unit) in enumerate(zip(values, _units(problem), strict=True)):
        best = constants[target].search()[1]
        if value <= best.value * (1 + ROUNDING):
            continue
        coef[:, target], intercept[target] = 0.0, best.constant * unit
        if scale is not None and best.scale is not None:
            scale[target] = best.scale
    if (coef == solution.coef).all() and (intercept == solution.intercept).all():
        return solution
    return _as_constant(solution, coef, intercept, scale)


def not_above_constant_of_moments(problem: Problem, moments: ExactMoments, solution: Solution) -> Solution:
    """`not_above_constant` of the squared error, as far as moments tell of rows that are gone."""
    if _is_exempt(problem, solution):
        return solution
    mean, above = _above_constant(problem, moments, solution)
    if not above.any():
        return solution
    coef = np.where(above, 0.0, solution.coef)
    return _as_constant(solution, coef, np.where(above, mean, solution.intercept), None)


def _is_exempt(problem: Problem, solution: Solution) -> bool:
    """Whether a solution is known to be better, ended by others, refused later, or kept from a constant."""
    penalty = problem.penalty
    if solution.proven or solution.status in ENDED_BY_OTHERS:
        return True
    if np.isinf(solution.coef).any() or np.isinf(solution.intercept).any():
        return True
    return bool((penalty.lower > 0).any() or (penalty.upper < 0).any())


def _as_constant(
    solution: Solution, coef: np.ndarray, intercept: np.ndarray, scale: np.ndarray | None
) -> Solution:
    return replace(
        solution,
        coef=coef,
        intercept=intercept,
        scale=scale,
        status=Status.CONSTANT,
        optimality=None if solution.optimality is None else 1.0,
        error=0.0,
        distance=None,
    )


@np.errstate(over="ignore", invalid="ignore")  # what is beyond float64 is not known to be above
def _above_constant(
    problem: Problem, moments: ExactMoments, solution: Solution
) -> tuple[np.ndarray, np.ndarray]:
    """Means of the targets, and whether objectives are above those of the best constants, rounding included.

    Of a model (c, b) in the frame, ``v = [-b, -c, 1]``, the squared residuals sum up to ``v' M v``.
    """
    penalty, n_features = problem.penalty, len(solution.coef)
    shift, scale = shift_and_scale(moments.frame)
    raw = moments.high.cpu().numpy(), moments.low.cpu().numpy()
    targets, of_y = slice(1 + n_features, None), scale[1 + n_features :]
    origin = shift[None, 1 : 1 + n_features]
    seen = dd.matmul((origin, np.zeros_like(origin)), (solution.coef, np.zeros_like(solution.coef)))
    seen = dd.add(seen, dd.two_sum(solution.intercept[None], -shift[None, targets]))
    model = np.zeros((len(raw[0]), len(of_y))), np.zeros((len(raw[0]), len(of_y)))
    model[0][0], model[1][0] = (-part[0] * of_y for part in seen)
    model[0][1 : 1 + n_features] = -np.ldexp(
        solution.coef, log2_of_units(1 / scale[1 : 1 + n_features], 1 / of_y)
    )
    model[0][targets] = np.eye(len(of_y))
    residual = dd.sum_over_first_axis(dd.multiply(model, dd.matmul(raw, model)))
    total = raw[0].diagonal()[targets], raw[1].diagonal()[targets]
    mean = np.zeros(len(of_y))
    if problem.fit_intercept:
        sums, weight_sum = (raw[0][0, targets], raw[1][0, targets]), (raw[0][:1, 0], raw[1][:1, 0])
        mean = shift[targets] + sums[0] / weight_sum[0] / of_y
        total = dd.add(total, dd.negative(dd.divide(dd.multiply(sums, sums), weight_sum)))
    inside = (solution.coef * of_y).T
    penalties = (penalty.l1 * np.abs(inside)).sum(1) * of_y + (penalty.l2 / 2 * inside * inside).sum(1)
    size = np.sqrt(np.maximum(raw[0].diagonal(), 0.0)) @ np.abs(model[0])
    target_norm = np.hypot(np.sqrt(np.maximum(total[0], 0.0)), np.sqrt(raw[0][0, 0]) * mean * of_y)
    uncertain = moments.unit_roundoff * size**2 + ROUNDING * total[0]
    uncertain += 2 * AS_LARGE * target_norm * np.sqrt(np.maximum(residual[0], 0.0))  # of predictions
    difference = dd.add(residual, dd.negative(total))[0] + 2 * raw[0][0, 0] * penalties
    return mean, difference > uncertain


def _objectives(problem: Problem, solution: Solution, *, exact: bool) -> np.ndarray:
    """Of each target, in its unit: the mean loss over the rows, and the penalty; one pass."""
    blocks, penalty = problem.blocks.weighted_rows(), problem.penalty
    units = _units(problem)
    model = np.concatenate([solution.intercept[None], solution.coef])
    scales = [None] * len(units) if solution.scale is None else solution.scale.tolist()

    def of(block: Block) -> torch.Tensor:
        left = _residual(block, model, exact)
        if exact:  # what remains is the rounding of predictions as large as the targets
            rounding = (AS_LARGE * block.y).abs_()
            left -= torch.clamp(left, -rounding, rounding)
        weight = torch.ones_like(left[:, 0]) if block.weight is None else block.weight
        sums = [
            weight @ _losses(problem.loss, block.y[:, k] / unit, left[:, k] / unit, scale)
            for k, (unit, scale) in enumerate(zip(units.tolist(), scales, strict=True))
        ]
        return torch.stack([*sums, weight.sum()])

    sums = blocks.map_reduce(of, torch.add, dense=True).cpu().numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        coef = (solution.coef / units).T  # the penalty grows as the loss does: with the unit, or its square
        rest = (penalty.l1 * np.abs(coef)).sum(1) / units + (penalty.l2 / 2 * coef * coef).sum(1)
        return np.asarray(sums[:-1] / sums[-1] + rest)


def _units(problem: Problem) -> np.ndarray:
    """Powers of two near the targets, whose squares might overflow; 1 for other losses than that."""
    largest = problem.blocks.y.abs().amax(0).cpu().numpy()
    return np.where(problem.loss.kind == "quadratic", np.exp2(np.frexp(largest)[1]), 1.0)


def _residual(block: Block, model: np.ndarray, exact: bool) -> torch.Tensor:
    """Targets less predictions, in float64 throughout or only rounded to it."""
    assert block.X is not None
    coef = torch.from_numpy(model).to(block.y.device)
    if not exact:
        return block.y - torch.addmm(coef[:1], block.X.to(torch.float64), coef[1:])
    size = 1 + block.X.shape[1] + block.y.shape[1]
    frame = Frame(torch.zeros(size, dtype=torch.float64, device=block.y.device), None)
    rows = exact_rows(block._replace(weight=None), frame)
    design = rows.columns(np.arange(len(model)))
    slices = design.slices(DEPTHS[-1].residual_slices)
    responses = rows.columns(np.arange(len(model), size))
    return exact_residual(slices, design.scale, (coef, torch.zeros_like(coef)), responses)[0]


def _losses(
    loss: Loss, target: torch.Tensor, residual: torch.Tensor, scale: float | None = None
) -> torch.Tensor:
    """Of ``target - residual``; with a scale, those that are least at the estimated one."""
    if loss.of_residual or loss.kind == "quadratic":
        target = torch.zeros_like(residual)
    if scale is None:
        return loss.value(target - residual, target)
    if scale == 0:  # the limit: lines of the slope that the loss has far off
        return residual.abs() * loss.derivative(torch.full_like(residual, torch.inf), target)
    return scale / 2 + scale * loss.value(-residual / scale, target)


@dataclass(frozen=True)
class _Point:
    """A constant, the mean loss there in units, its slope, and the scale of the residuals."""

    constant: float
    value: float
    slope: float
    scale: float | None


@dataclass(frozen=True)
class _Constants:
    """Constant predictions of one target, in its unit."""

    loss: Loss
    y: torch.Tensor  # shape: (n_samples,)
    share: torch.Tensor  # shape: (n_samples,)
    free: bool  # without intercept, the only constant is 0

    @staticmethod
    def all_of(problem: Problem) -> list[_Constants]:
        """Those of each target."""
        blocks = problem.blocks.weighted_rows()
        y = blocks.y / torch.from_numpy(_units(problem)).to(blocks.device)
        return [_Constants(problem.loss, one, blocks.share, problem.fit_intercept) for one in y.T]

    def at(self, constant: float) -> _Point:
        """The point of a constant."""
        residual = self.y - constant
        scale = self._scale(residual) if self.loss.estimates_scale else None
        value = float(self.share @ _losses(self.loss, self.y, residual, scale))
        unit = scale or 1.0
        slopes = self.loss.derivative(torch.full_like(self.y, constant) / unit, self.y / unit)
        if scale == 0:
            slopes = self.loss.derivative(-residual.sign() * torch.inf, torch.zeros_like(residual))
            slopes = slopes.nan_to_num(0.0)
        return _Point(constant, value, float(self.share @ slopes), scale)

    def _scale(self, residual: torch.Tensor) -> float:
        """The scale of least loss, by Newton steps; 0 where the limit is the best."""
        size = float(residual.abs().max())
        if size == 0:
            return 0.0
        residual, zero = residual / size, torch.zeros_like(residual)
        scale = float((self.share @ residual.square()).sqrt())
        for _ in range(MOST_SCALES):
            inside = residual / scale
            slope = 0.5 + float(self.share @ self.loss.derivative_by_scale(inside))
            bend = float(self.share @ (self.loss.curvature(inside, zero) * inside.square()))
            if bend == 0 or scale < SETTLED:
                return 0.0
            change = max(1 - slope / bend, 0.5)
            scale *= change
            if abs(change - 1) <= SETTLED:
                break
        return size * scale

    def search(self, below: float | None = None) -> tuple[float, _Point]:
        """A lower bound of all constants, and the best that was met.

        Ends once the bound is at least `below`, or a constant is less than that; else at the minimum.
        """
        if not self.free or self.loss.kind == "quadratic":
            constant = 0.0
            for _ in range(2 * self.free):  # twice, since a mean far from 0 is rounded
                constant += float(self.share @ (self.y - constant))
            best = self.at(constant)
            return best.value, best
        low, high = self._bracket()
        best = min(low, high, key=lambda point: point.value)
        bound = -np.inf
        for step in range(MOST_POINTS):
            steeper = high.slope - low.slope
            if not (low.slope < 0 < high.slope):
                return best.value, best
            down = (low.value - high.value + high.slope * (high.constant - low.constant)) / steeper
            bound = low.value + low.slope * down
            middle = (low.constant + high.constant) / 2
            if below is not None and (bound >= below or best.value < below):
                break
            if not low.constant < middle < high.constant or best.value - bound <= SETTLED * abs(best.value):
                break
            between = low.constant + down if step % 2 else middle
            inside = self.at(between if low.constant < between < high.constant else middle)
            best = min(best, inside, key=lambda point: point.value)
            low, high = (inside, high) if inside.slope < 0 else (low, inside)
        return min(bound, best.value), best

    def _bracket(self) -> tuple[_Point, _Point]:
        """Constants on both sides of the best one."""
        ends = float(self.y.min()), float(self.y.max())
        low, high = (self.at(end) for end in ends)
        width = (ends[1] - ends[0]) or abs(ends[0]) or 1.0
        for _ in range(MOST_POINTS):
            if low.slope <= 0:
                break
            low, width = self.at(low.constant - width), 2 * width
        for _ in range(MOST_POINTS):
            if high.slope >= 0:
                break
            high, width = self.at(high.constant + width), 2 * width
        return low, high
