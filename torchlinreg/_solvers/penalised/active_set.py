"""Squared error with l1 penalties and bounds: the optimal set of free coefficients, and Newton on it.

With at least as many rows as features one pass gives the moments, and the rest is `minimise_quadratic`. With
fewer rows, the p x p Gram matrix is never formed: working sets of columns are gathered and solved, and a pass
over the rows finds the columns that do not satisfy the optimality conditions, until there are none. Where
bounds, and no l1, leave most coefficients off 0, the dual has a variable for each row.

How far the objective may be above its minimum follows from the measured rounding of the products and the
condition of the columns in use. Where that is above `tol`, `refine` improves and measures the fit on rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.linalg import blas

from torchlinreg._data.rows import RowBlocks, tensor_blocks
from torchlinreg._linalg.gram import EPS, roundoff_of_sums
from torchlinreg._moments.exact import ExactMoments
from torchlinreg._moments.moments import Frame, choose_frame, frame_of_all, shift_and_scale
from torchlinreg._objective.penalty import Penalty
from torchlinreg._objective.problem import Problem
from torchlinreg._objective.solution import Solution, Status
from torchlinreg._solvers.least_distance import MAX_PROXIMAL, closest_within
from torchlinreg._solvers.least_squares.dual import is_wide
from torchlinreg._solvers.penalised.bounded import Bounded, solve_bounded
from torchlinreg._solvers.penalised.quadratic import (
    QuadraticMinimum,
    duality_gap,
    error_of_rounding,
    first_order_gap,
    minimise_quadratic,
)
from torchlinreg._solvers.penalised.refinement import (
    MAX_STEPS,
    Centred,
    OfMoments,
    OfRows,
    Source,
    centred,
    refine,
    worth,
)
from torchlinreg._solvers.penalised.units import HUGE, in_units, in_users_units, relative, rounding_of_model

# Rows that are read where they are are multiplied with residuals so many bytes at a time.
PRODUCT_BYTES = 256 * 2**20
# The first working set, and the least number of columns that are added to one.
SMALLEST_SET = 150
FIRST_ROWS = 32
# Columns whose products with the residuals are this share of their l1 come along before they must: 2000 x
# 5000 with 96 of the coefficients not zero takes 3 passes instead of 4.
NEAR = 0.8
FEWEST_NEAR = 16
MAX_ROUNDS = 100
# With fewer rows than features, refinement forms the products of all columns where they are not larger.
MOMENTS_BYTES = 64 * 2**20
# A share of the objective that float64 cannot tell: no smaller gap is asked for.
LEAST_GAP = 1e-15
# Refinement goes on down to this share of the gap that is asked for.
ENOUGH = 1e-4
# A squared spread about the computed mean below this share of the mean square is that mean's rounding.
CONSTANT = 4e-15
# How much larger than the target coefficients of unit columns may be, whose predictions cancel, per condition
# number.
CANCELLATION = 10.0
# Singular values below this share of the largest are 0 but for rounding; of so many numbers at most they are
# computed, of others squares of them.
RESOLVED, RESOLVED_SQUARES, SVD_SIZE = 1e-13, 1e-15, 10**6
# Products of a column with the residuals, per spread of both, that may come from rounding.
UNSEEN = 1e-14


def solve_active_set(problem: Problem, tol: float, max_iter: int | None) -> Solution:
    """Minimise the squared error with an elastic net penalty and bounds; `n_iter` counts passes over rows."""
    blocks, penalty = problem.blocks, problem.penalty
    n_unrested = int((~_rests_at_zero(penalty)).sum())
    few_move = blocks.n_features > blocks.n_samples and 2 * n_unrested < blocks.n_samples
    many_move = is_wide(problem) and not penalty.l1.any() and (penalty.l2.any() or not few_move)
    if few_move or many_move:
        solve = _solve_by_rows if many_move else _solve_by_working_sets
        solution = solve(problem, tol, max_iter)
        small = 8 * blocks.n_features**2 <= MOMENTS_BYTES
        if solution.status is not Status.STUCK or not small:
            return solution
        data = centred(problem.standardised)
        refined = _refined(problem, data, OfRows(problem, data), solution.coef, tol, max_iter)
        return replace(refined, n_iter=solution.n_iter + 1 + refined.n_iter)
    bounded = solve_bounded(problem, tol, max_iter)
    if bounded is not None:
        return _certified(problem, bounded, tol, max_iter)
    return _solve_by_moments(problem, tol, max_iter)


def _certified(problem: Problem, bounded: Bounded, tol: float, max_iter: int | None) -> Solution:
    """Measure a bound on the rows, and refine the coefficients if that is above `tol`."""
    found = measured(problem, bounded.coef, tol)
    if found.status is not Status.OPTIMAL:
        data = centred(problem.standardised)
        found = _refined(problem, data, OfRows(problem, data), found.coef, tol, max_iter)
    return replace(found, n_iter=bounded.n_passes + found.n_iter)


def measured(problem: Problem, coef: np.ndarray, tol: float, moments: ExactMoments | None = None) -> Solution:
    """Coefficients with a bound from the rows, or from `moments` where these are gone."""
    if moments is None and is_wide(problem) and not problem.penalty.l1.any():
        return _HeldRows.of(problem).measured(problem, coef, tol)
    data = centred(problem.standardised)
    source = OfRows(problem, data) if moments is None else OfMoments(moments, data, problem.fit_intercept)
    return _refined(problem, data, source, coef, tol, 0)


def solve_moments(problem: Problem, moments: ExactMoments, tol: float) -> Solution:
    """Minimise from moments alone, of rows that may be gone; the problem has them in float64, too."""
    source = OfMoments(moments, centred(problem.standardised), problem.fit_intercept)
    return _solve_by_moments(problem, tol, None, source)


def _rests_at_zero(penalty: Penalty) -> np.ndarray:
    """Whether zero is a kink or bound of a coefficient, where it may stay whatever its gradient."""
    inside = (penalty.lower < 0) & (penalty.upper > 0)
    return np.where(inside, penalty.l1 > 0, (penalty.lower == 0) | (penalty.upper == 0))


# Moments


def _solve_by_moments(
    problem: Problem, tol: float, max_iter: int | None, source: Source | None = None
) -> Solution:
    """From float64 moments where their measured rounding allows that, else refined by the `source`."""
    columns = problem.standardised
    data = centred(columns)
    penalty = problem.penalty
    inside = data.in_units(penalty)
    minima = [
        minimise_quadratic(data.gram, linear, part) for linear, part in zip(data.cross.T, inside, strict=True)
    ]
    coef = np.repeat(np.clip(0.0, penalty.lower, penalty.upper)[:, None], len(minima), axis=1)
    for k, (minimum, part) in enumerate(zip(minima, inside, strict=True)):
        coef[data.kept, k] = in_users_units(
            minimum.coef, part, penalty.part(data.kept), data.spread, data.target[k]
        )
    intercept = columns.target_center - columns.center @ coef
    values, gaps, is_worth = _values_and_gaps(data, minima, inside)
    rounding = rounding_of_model(columns.center, columns.spread, coef, intercept)
    gaps = (np.sqrt(2 * gaps) + rounding / data.target) ** 2 / 2
    optimality = relative(gaps, values, _at_rest(data, inside))
    if not is_worth and optimality <= max(tol, LEAST_GAP):
        proven = _are_proven(values, gaps, data.target_spread)
        return _solution(coef, intercept, optimality, Status.OPTIMAL, 1, proven)
    refined = _refined(problem, data, source or OfRows(problem, data), coef, tol, max_iter)
    return replace(refined, n_iter=1 + refined.n_iter)


def _refined(
    problem: Problem, data: Centred, source: Source, coef: np.ndarray, tol: float, max_iter: int | None
) -> Solution:
    """From these coefficients on, with the status that what was measured earns."""
    limit = MAX_STEPS if max_iter is None else min(MAX_STEPS, max_iter)
    found = refine(problem, data, source, coef, limit, max(ENOUGH * tol, LEAST_GAP**2))
    constants = _at_rest(data, data.in_units(problem.penalty))
    optimality = relative(found.gaps, found.values, constants)
    status = Status.OPTIMAL
    if not optimality <= max(tol, LEAST_GAP):
        status = Status.STUCK if limit == MAX_STEPS else Status.ITERATIONS_USED
    proven = _are_proven(found.values, found.gaps, data.target_spread)
    return _solution(found.coef, found.intercept, optimality, status, found.n_passes, proven)


def _values_and_gaps(
    data: Centred, minima: list[QuadraticMinimum], inside: list[Penalty]
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Objectives, what rounding of the moments may add to them, and whether that is worth a pass.

    Where columns depend on each other, only `tol` can tell.
    """
    values, gaps = np.empty(len(minima)), np.empty(len(minima))
    is_worth = False
    for k, (minimum, part) in enumerate(zip(minima, inside, strict=True)):
        values[k] = _value(data, k, minimum.coef, part)
        gaps[k] = np.inf
        if not minimum.converged:
            continue
        size = float(data.target_spread[k] > 0)
        error = error_of_rounding(data.gram, part.l2, minimum, size, data.roundoff)
        if error < np.inf:
            gaps[k] = (np.sqrt(2 * minimum.optimality) + error) ** 2 / 2
            is_worth |= bool(gaps[k] > worth(values[k]))
        else:
            gaps[k] = minimum.optimality + first_order_gap(values[k], part, minimum, size, data.roundoff)
    return values, gaps, is_worth


def _solution(
    coef: np.ndarray, intercept: np.ndarray, optimality: float, status: Status, n_passes: int, proven: bool
) -> Solution:
    return Solution(
        coef=coef,
        intercept=intercept,
        rank=None,
        condition_number=None,
        solver="active_set",
        status=status,
        n_iter=n_passes,
        error=0.0,
        optimality=optimality,
        proven=proven,
    )


def _are_proven(values: np.ndarray, gaps: np.ndarray, spread: np.ndarray) -> bool:
    """Whether objectives in units of the targets' spreads, up to these gaps, are below those of constants."""
    return bool((values + gaps < 0.5 * (spread > 0)).all())


def _at_rest(data: Centred, inside: list[Penalty]) -> np.ndarray:
    """Objectives of the best constants in the units of the targets.

    A constant target has an objective of 0, in which rounding would be all; if bounds exclude coefficients of
    0, those nearest to 0 tell instead how large objectives are.
    """
    nearest = [_value(data, k, np.clip(0.0, part.lower, part.upper), part) for k, part in enumerate(inside)]
    return np.where(data.target_spread > 0, 0.5, nearest)


def _value(data: Centred, index: int, coef: np.ndarray, penalty: Penalty) -> float:
    """The objective in the units of the target."""
    square = float(data.target_spread[index] > 0)
    half = (square - 2 * data.cross[:, index] @ coef + coef @ data.gram @ coef) / 2
    return max(half, 0.0) + float(penalty.value(coef))


# Working sets


@dataclass(frozen=True)
class _Columns:
    """Columns of X in a frame, and rows' weights over their sum."""

    blocks: RowBlocks
    frame: Frame
    share: torch.Tensor  # shape: (n_samples,)
    fit_intercept: bool

    @property
    def _shift(self) -> torch.Tensor | None:
        shift = self.frame.shift[1 : 1 + self.blocks.n_features]
        return shift if bool(shift.any()) else None

    @property
    def scale(self) -> np.ndarray:
        """Powers of two that the columns are multiplied by."""
        return shift_and_scale(self.frame)[1][1 : 1 + self.blocks.n_features]

    def correlate(self, residual: np.ndarray) -> np.ndarray:
        """``columns.T @ (share * residual)``; a pass. Shape: (n_features, n_targets)."""
        blocks = self.blocks
        right = self.share[:, None] * torch.from_numpy(residual).to(blocks.device)
        rows = max(1, PRODUCT_BYTES // (8 * blocks.n_features))
        total = torch.zeros((blocks.n_features, right.shape[1]), dtype=torch.float64, device=blocks.device)
        start = 0
        shift = self._shift
        for block in blocks.large(rows) if shift is None else blocks:
            part = right[start : start + len(block.y)]
            start += len(block.y)
            if block.csr is not None:
                products = torch.from_numpy(block.csr.T.astype(np.float64) @ part.numpy())
                if shift is not None:
                    products -= shift[:, None] * part.sum(0)
                total += products
                continue
            assert block.X is not None
            X = block.X.to(torch.float64)
            total += (X if shift is None else X - shift).mT @ part
        return total.cpu().numpy() * self.scale[:, None]

    def gather(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Columns as rows, centred, in units of their spread, times sqrt(share); their means and spreads."""
        blocks = self.blocks
        columns = np.empty((len(index), blocks.n_samples))
        start = 0
        there = torch.from_numpy(index).to(blocks.device)
        for block in blocks.large(blocks.n_samples):
            stop = start + len(block.y)
            if block.csr is not None:
                columns[:, start:stop] = block.csr[:, index].toarray().T
            else:
                assert block.X is not None
                if block.X.is_cuda:
                    columns[:, start:stop] = block.X.index_select(1, there).T.cpu().numpy()
                else:
                    columns[:, start:stop] = block.X.numpy().T[index]
            start = stop
        shift = self.frame.shift.cpu().numpy()[1 + index]
        if shift.any():
            columns -= shift[:, None]
        scale = self.scale[index]
        if (scale != 1).any():
            columns *= scale[:, None]
        share = self.share.cpu().numpy()
        mean = columns @ share
        square = mean**2
        if self.fit_intercept:
            columns -= mean[:, None]
        else:
            mean = np.zeros_like(mean)
        columns *= np.sqrt(share)
        variance = np.einsum("ij,ij->i", columns, columns)
        spread = np.sqrt(np.where(variance > CONSTANT * square, variance, 0.0))
        columns /= np.where(spread > 0, spread, 1.0)[:, None]
        columns[spread == 0] = 0.0
        return columns, mean, spread


@dataclass(frozen=True)
class _WorkingSet:
    index: np.ndarray  # features
    columns: np.ndarray  # shape: (n_working, n_samples); see _Columns.gather
    mean: np.ndarray
    spread: np.ndarray
    gram: np.ndarray  # shape: (n_working, n_working)

    @property
    def unit(self) -> np.ndarray:
        """The spreads, 1 for columns that are constant."""
        return np.where(self.spread > 0, self.spread, 1.0)

    @property
    def roundoff(self) -> float:
        """Rounding error of the products, that of subtracting means included."""
        n_samples = self.columns.shape[1]
        lengthened = float(np.hypot(1.0, self.mean / self.unit).max(initial=1.0))
        return roundoff_of_sums(n_samples, n_samples, 1) + 2 * EPS * lengthened

    def grown(self, source: _Columns, index: np.ndarray) -> _WorkingSet:
        """The set with more features."""
        columns, mean, spread = source.gather(index)
        old = len(self.index)
        gram = np.empty((old + len(index),) * 2)
        gram[:old, :old] = self.gram
        lower = blas.dsyrk(1.0, columns.T, trans=1, lower=1)
        gram[old:, old:] = np.tril(lower) + np.tril(lower, -1).T
        if old:
            gram[old:, :old] = blas.dgemm(1.0, columns.T, self.columns.T, trans_a=True)
            gram[:old, old:] = gram[old:, :old].T
        return _WorkingSet(
            np.concatenate([self.index, index]),
            np.concatenate([self.columns, columns]) if old else columns,
            np.concatenate([self.mean, mean]),
            np.concatenate([self.spread, spread]),
            gram,
        )


@dataclass(frozen=True)
class _Targets:
    """Centred targets in units of their spread."""

    values: np.ndarray  # shape: (n_samples, n_targets)
    center: np.ndarray
    spread: np.ndarray  # shape: (n_targets,)
    unit: np.ndarray  # the same, 1 where it is 0


def _targets(blocks: RowBlocks, share: torch.Tensor, fit_intercept: bool) -> _Targets:
    y, weight = blocks.y.cpu().numpy(), share.cpu().numpy()
    with np.errstate(invalid="ignore", over="ignore"):
        counted = y[weight > 0]
        center = counted[0] + weight @ (y - counted[0]) if fit_intercept else np.zeros(y.shape[1])
        values = y - center
        size = np.abs(values[weight > 0]).max(0)
        size = np.where(size > 0, size, 1.0)
        spread = size * np.sqrt(weight @ (values / size) ** 2)
        unit = np.where(spread > 0, spread, 1.0)
        return _Targets(values / unit, center, spread, unit)


def _open(problem: Problem) -> tuple[_Columns, _Targets, np.ndarray]:
    """The columns, the targets, and their products; a pass, or more for extreme columns."""
    blocks = problem.blocks
    share = blocks.share
    targets = _targets(blocks, share, problem.fit_intercept)
    frame = choose_frame(_first_rows(blocks), fit_intercept=problem.fit_intercept)
    source = _Columns(blocks, frame, share, problem.fit_intercept)
    with np.errstate(invalid="ignore", over="ignore"):
        products = source.correlate(targets.values)
    if not np.isfinite(products).all():
        blocks.raise_if_not_finite(problem.name)
        source = replace(source, frame=frame_of_all(blocks, frame.shift))
        products = source.correlate(targets.values)
    return source, targets, products


def _first_rows(blocks: RowBlocks) -> RowBlocks:
    """A few rows that choose a frame; of wide rows `choose_frame` would take more, for 10 ms at p = 5000."""
    head = blocks.head(FIRST_ROWS)
    assert head.X is not None
    return tensor_blocks(head.X, head.y, head.weight)


def _rough_spreads(source: _Columns, products: np.ndarray) -> np.ndarray:
    """Spreads of all columns, about: those of the first rows, and what products with targets imply."""
    rows = _first_rows(source.blocks).rows(0, FIRST_ROWS).X
    assert rows is not None
    shifted = (rows.cpu().numpy() - source.frame.shift.cpu().numpy()[1 : 1 + rows.shape[1]]) * source.scale
    square = np.einsum("ij,ij->j", shifted, shifted) / len(shifted)
    mean = shifted.mean(0) if source.fit_intercept else 0.0
    return np.maximum(np.sqrt(np.maximum(square - mean**2, 0.0)), np.abs(products).max(1))


@dataclass(frozen=True)
class _Candidate:
    """Minima over a working set, one for each target, and what is left of the targets."""

    minima: list[QuadraticMinimum]
    inside: list[Penalty]
    residual: np.ndarray  # shape: (n_samples, n_targets)
    values: np.ndarray  # the objectives

    @property
    def gaps(self) -> np.ndarray:
        """How far they are above the minima over the working set, but for rounding."""
        return np.array([minimum.optimality for minimum in self.minima])

    def distances(self, working: _WorkingSet) -> np.ndarray:
        """How far from those of the minima predictions may be, with the measured rounding of the products."""
        distances = np.full(len(self.minima), np.inf)
        for k, (minimum, part) in enumerate(zip(self.minima, self.inside, strict=True)):
            if minimum.converged:
                error = error_of_rounding(working.gram, part.l2, minimum, 1.0, working.roundoff)
                distances[k] = np.sqrt(2 * minimum.optimality) + error
        return distances


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """By the library of the passes: what wakes the threads of another waits for theirs to end."""
    return (torch.from_numpy(left) @ torch.from_numpy(right)).numpy()


def _minimise_over(
    working: _WorkingSet,
    source: _Columns,
    targets: _Targets,
    penalty: Penalty,
    last: _Candidate | None,
    correct: bool = False,
) -> _Candidate:
    """From the last minima on; with `correct`, those are of the same set, and the rows give the gradient."""
    root = np.sqrt(source.share.cpu().numpy())[:, None]
    weighted = root * targets.values
    part = penalty.part(working.index)
    unit = working.unit / source.scale[working.index]
    inside = [in_units(part, unit, target) for target in targets.unit]
    cross = _product(working.columns, weighted)
    starts: list[np.ndarray | None] = [None] * len(inside)
    if last is not None:
        old = len(last.minima[0].coef)
        starts = [np.clip(np.zeros_like(unit), each.lower, each.upper) for each in inside]
        for start, minimum in zip(starts, last.minima, strict=True):
            assert start is not None
            start[:old] = minimum.coef
    if correct and last is not None:
        before = np.stack([minimum.coef for minimum in last.minima], axis=1)
        cross = _product(working.columns, root * last.residual) + working.gram @ before
    minima = [
        minimise_quadratic(working.gram, linear, each, start)
        for linear, each, start in zip(cross.T, inside, starts, strict=True)
    ]
    coef = np.stack([minimum.coef for minimum in minima], axis=1)
    left = weighted - _product(working.columns.T, coef)
    penalties = np.array([each.value(one) for each, one in zip(inside, coef.T, strict=True)])
    residual = np.divide(left, root, out=np.zeros_like(left), where=root > 0)
    return _Candidate(minima, inside, residual, (left**2).sum(0) / 2 + penalties)


def _solve_by_working_sets(problem: Problem, tol: float, max_iter: int | None) -> Solution:
    source, targets, products = _open(problem)
    penalty = problem.penalty
    outside = [in_units(penalty, 1 / source.scale, target) for target in targets.unit]
    spread = _rough_spreads(source, products)
    working = _empty_set(problem.blocks.n_samples)
    candidate = _minimise_over(working, source, targets, penalty, None)
    is_outside = np.ones(len(spread), dtype=bool)
    score, near = _scores(products, outside, spread)
    unrested = ~_rests_at_zero(penalty)
    score[unrested] = np.inf
    n_passes = 1
    # Coefficients that may not be 0 take a second pass to enter.
    limit = MAX_ROUNDS if max_iter is None else max(2 if unrested.any() else 1, max_iter)
    while True:
        gaps = candidate.gaps + _gaps_outside(products, outside, spread, is_outside, candidate.values)
        optimality = relative(gaps, candidate.values, 0.5 * (targets.spread > 0))
        misplaced = is_outside & (score > UNSEEN)
        n_unrested = int((misplaced & unrested).sum())
        done = not misplaced.any() or (optimality <= tol and n_unrested == 0)
        if done or n_passes >= limit:
            break
        n_more = n_unrested + max(SMALLEST_SET, len(working.index))
        n_more = min(n_more, 2 * int(misplaced.sum()) + FEWEST_NEAR)
        found = (misplaced | (is_outside & near)).nonzero()[0]
        found = found[np.argsort(-score[found], kind="stable")[:n_more]]
        working = working.grown(source, found)
        is_outside[found] = False
        candidate = _minimise_over(working, source, targets, penalty, candidate)
        products = source.correlate(candidate.residual)
        n_passes += 1
        score, near = _scores(products, outside, spread)
    if len(working.index):
        corrected = _minimise_over(working, source, targets, penalty, candidate, correct=True)
        if corrected.values.sum() <= candidate.values.sum():
            candidate = corrected
    coef = np.zeros((len(spread), len(targets.unit)))
    unit = working.unit / source.scale[working.index]
    part = penalty.part(working.index)
    for k, (minimum, inside) in enumerate(zip(candidate.minima, candidate.inside, strict=True)):
        coef[working.index, k] = in_users_units(minimum.coef, inside, part, unit, targets.unit[k])
    center = source.frame.shift.cpu().numpy()[1 + working.index] + working.mean / source.scale[working.index]
    intercept = targets.center - center @ coef[working.index]
    if not problem.fit_intercept:
        intercept, center = np.zeros_like(targets.center), np.zeros_like(center)
    rounding = rounding_of_model(center, unit, coef[working.index], intercept) / targets.unit
    gaps = (candidate.distances(working) + rounding) ** 2 / 2
    gaps += _gaps_outside(products, outside, spread, is_outside, candidate.values)
    # No objective is below 0.
    gaps = np.minimum(gaps, (np.sqrt(2 * candidate.values) + rounding) ** 2 / 2)
    optimality = relative(gaps, candidate.values, 0.5 * (targets.spread > 0))
    if not done:
        status = Status.ITERATIONS_USED
    else:
        status = Status.OPTIMAL if optimality <= max(tol, LEAST_GAP) else Status.STUCK
    proven = _are_proven(candidate.values, gaps, targets.spread)
    return _solution(coef, intercept, optimality, status, n_passes, proven)


def _solve_by_rows(problem: Problem, tol: float, max_iter: int | None) -> Solution:
    """Bounds and at most a ridge; all rows are held at once, as float64, but no products of columns."""
    held = _HeldRows.of(problem)
    limit = MAX_PROXIMAL if max_iter is None else max(1, max_iter)
    coef = np.empty((len(held.unit), len(held.inside)))
    for k, (part, right) in enumerate(zip(held.inside, held.weighted.T, strict=True)):
        found = closest_within(held.columns.T, right, part.l2, part.lower, part.upper, limit)
        coef[:, k] = in_users_units(found, part, problem.penalty, held.unit, held.targets.unit[k])
    return held.measured(problem, coef, tol)


@dataclass(frozen=True)
class _HeldRows:
    """All columns, centred, in units of their spread, and what is fitted to them."""

    columns: np.ndarray  # shape: (n_features, n_samples); see _Columns.gather
    center: np.ndarray  # in the user's units, 0 without intercept; shape: (n_features,)
    unit: np.ndarray  # the spreads, 1 where they are 0, in the user's units; shape: (n_features,)
    targets: _Targets
    weighted: np.ndarray  # the targets times sqrt(share); shape: (n_samples, n_targets)
    inside: list[Penalty]  # of each target

    @staticmethod
    def of(problem: Problem) -> _HeldRows:
        """Those of a problem, of few rows."""
        source, targets, _ = _open(problem)
        columns, mean, spread = source.gather(np.arange(problem.blocks.n_features))
        weighted = np.sqrt(source.share.cpu().numpy())[:, None] * targets.values
        unit = np.where(spread > 0, spread, 1.0) / source.scale
        center = source.frame.shift.cpu().numpy()[1 : 1 + len(unit)] + mean / source.scale
        inside = [in_units(problem.penalty, unit, target) for target in targets.unit]
        center = center if problem.fit_intercept else np.zeros_like(center)
        return _HeldRows(columns, center, unit, targets, weighted, inside)

    def measured(self, problem: Problem, coef: np.ndarray, tol: float) -> Solution:
        """Coefficients in the user's units with a bound on how far their objective is above its minimum."""
        targets = self.targets
        scaled = coef * self.unit[:, None] / targets.unit
        left = self.weighted - self.columns.T @ scaled
        products = self.columns @ left
        values, gaps, constants = np.empty((3, len(self.inside)))
        cancellation = CANCELLATION * _condition_number(self.columns)
        for k, part in enumerate(self.inside):
            values[k] = left[:, k] @ left[:, k] / 2 + part.value(scaled[:, k])
            gaps[k] = _gap_within(scaled[:, k], products[:, k], part, values[k], cancellation)
            resting = np.clip(0.0, part.lower, part.upper)
            away = self.weighted[:, k] - resting @ self.columns
            constants[k] = 0.5 if targets.spread[k] > 0 else away @ away / 2 + part.value(resting)
        intercept = targets.center - self.center @ coef
        rounding = rounding_of_model(self.center, self.unit, coef, intercept) / targets.unit
        gaps = np.minimum((np.sqrt(2 * gaps) + rounding) ** 2, (np.sqrt(2 * values) + rounding) ** 2) / 2
        optimality = relative(gaps, values, constants)
        status = Status.OPTIMAL if optimality <= max(tol, LEAST_GAP) else Status.STUCK
        if not problem.fit_intercept:
            intercept = np.zeros_like(intercept)
        proven = _are_proven(values, gaps, targets.spread)
        return _solution(coef, intercept, optimality, status, 2, proven)


def _gap_within(
    coef: np.ndarray, gradient: np.ndarray, penalty: Penalty, value: float, cancellation: float
) -> float:
    """How far the objective is above its minimum, at most.

    No coefficient is larger there than alone would make predictions as large as the target, times a factor
    for cancellation, or than the penalty lets it be; see `_gaps_outside`.
    """
    by_penalty = np.divide(2 * value, penalty.l2, out=np.full_like(coef, np.inf), where=penalty.l2 > 0)
    largest = np.maximum(np.minimum(np.sqrt(by_penalty), cancellation), np.abs(coef))
    return min(value, duality_gap(coef, -gradient, penalty, largest))


def _condition_number(columns: np.ndarray) -> float:
    """Of columns, shape (n_features, n_samples), with more features than rows; those that depend aside."""
    if columns.size <= SVD_SIZE:
        values = np.linalg.svd(columns, compute_uv=False)
        values = values[values > RESOLVED * values.max(initial=0.0)]
    else:
        values = np.linalg.eigvalsh(columns.T @ columns)
        values = np.sqrt(values[values > RESOLVED_SQUARES * values.max(initial=0.0)])
    return float(values.max() / values.min()) if len(values) else 1.0


def _empty_set(n_samples: int) -> _WorkingSet:
    nothing = np.zeros(0)
    return _WorkingSet(
        np.zeros(0, dtype=np.intp), np.zeros((0, n_samples)), nothing, nothing, np.zeros((0, 0))
    )


def _scores(
    products: np.ndarray, outside: list[Penalty], spread: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """By how much each column pulls a coefficient off its rest, per spread, and whether it nearly does.

    Of several targets, the one that is pulled most counts.
    """
    score = np.full(len(spread), -np.inf)
    near = np.zeros(len(spread), dtype=bool)
    for pull, penalty in zip(products.T, outside, strict=True):
        up, down = np.where(penalty.upper > 0, pull, 0.0), np.where(penalty.lower < 0, -pull, 0.0)
        strength = np.maximum(up, down)
        excess = strength - penalty.l1
        score = np.maximum(score, np.divide(excess, spread, out=np.full_like(spread, -1.0), where=spread > 0))
        near |= strength > NEAR * penalty.l1
    return score, near


def _gaps_outside(
    products: np.ndarray,
    outside: list[Penalty],
    spread: np.ndarray,
    is_outside: np.ndarray,
    values: np.ndarray,
) -> np.ndarray:
    """How much the coefficients outside the working set may lower the objectives, at most.

    At the minimum none is larger than the objective over its l1 or, without cancellation, than what alone
    would make predictions as large as the target; for cancellation there is a factor of 10.
    """
    index = is_outside.nonzero()[0]
    gaps = np.zeros(len(outside))
    for k, penalty in enumerate(outside):
        part = penalty.part(index)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            by_penalty = np.where(part.l1 > 0, values[k] / part.l1, HUGE)
            largest = np.minimum(np.minimum(10 / spread[index], by_penalty), HUGE)
        gaps[k] = duality_gap(np.zeros(len(index)), -products[index, k], part, largest)
    return gaps
