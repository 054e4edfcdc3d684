"""The exact route for more features than rows: an n_samples x n_samples system, never a p x p Gram matrix.

The coefficients of least norm are ``coef = X.T a``, where ``a`` sums to 0 (with intercept) and solves::

    (X X.T + alpha sum(w) diag(1 / w)) a + intercept = y

Refinement has residuals to about 100 bits. Where that matrix is too ill-conditioned for a float64 factor, as
with rows that depend on each other or columns of very different units, independent columns are fitted
instead, and the least norm follows from how they explain the others; a ridge then takes the p x p route. So
do ridges with weights so far apart that `a` does not hold what light rows add.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from torchlinreg._data.rows import Block, RowBlocks, tensor_blocks
from torchlinreg._linalg import double_double as dd
from torchlinreg._linalg.cholesky import (
    MAX_REFINEMENTS,
    DoubleDouble,
    cholesky,
    extreme_singular_values,
    solve_upper,
)
from torchlinreg._linalg.gram import EPS
from torchlinreg._moments.moments import SAFE_RANGE, Frame, log2_of_units, scale_for_ridge, shift_and_scale
from torchlinreg._moments.wide import PIECE_BYTES, WideRows
from torchlinreg._objective.penalty import ridge
from torchlinreg._objective.problem import Problem
from torchlinreg._objective.solution import Solution, Status
from torchlinreg._solvers.least_squares.basis_fit import ALLOWED_OF_Y, UNCERTAIN, BasisFit
from torchlinreg._solvers.least_squares.minimum_norm import shortest_of_transfer
from torchlinreg._solvers.least_squares.normal_equations import (
    SLOWEST_REFINEMENT,
    basis_fit_of_rows,
    ridge_of,
    solve_exact,
)

RESPONSES_AT_ONCE = 512
# Sums of weights over the least one, beyond which squares of what light rows add underflow.
WIDEST_WEIGHTS = 1e150
MAX_ROWS = 50_000
# Coefficients may be smaller than the terms of ``X.T a`` by the square of the condition number times the
# ratio of the rows' norms. Up to this amplification of rounding, products to 2^-70 leave all digits.
MILD = 2.0**14
# Where columns that were chosen turn out to depend on each other, the choice is made anew among so many.
MOST_COLUMNS = 1000
# A change by less than this share of the whole, amplified, is known well enough in float64.
SMALL_CHANGE = 2.0**-10


def is_wide(problem: Problem) -> bool:
    """Whether the rows of positive weight, less one for the intercept, are fewer than the features."""
    blocks = problem.blocks
    enough = blocks.n_features + problem.fit_intercept
    if blocks.weight is None or blocks.n_samples < enough:
        return blocks.n_samples < enough
    front = blocks.weight[: 2 * enough]  # mostly they are here, and all need not be counted
    return int(torch.count_nonzero(front)) < enough and int(torch.count_nonzero(blocks.weight)) < enough


@dataclass(frozen=True)
class _System:
    """``kernel + level`` factorised, which takes away the null direction of centred rows.

    Where `a` sums to 0, that number times the all-ones matrix changes nothing; rounding that it sums to
    moves the intercept by `level` times as much.
    """

    upper: np.ndarray  # of the kernel with unit diagonal
    norm: np.ndarray
    level: float
    fit_intercept: bool
    condition_number: float
    rate: float  # by which a pass of refinement shrinks the error

    def solve(self, residual: np.ndarray, excess: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Changes of `a` and the intercept for a residual of the rows and of the constraint."""
        change = self._solve(residual)
        if not self.fit_intercept:
            return change, np.zeros(residual.shape[1])
        ones = self._solve(np.ones((len(residual), 1)))
        intercept = (change.sum(0) - excess) / ones.sum()
        return change - ones * intercept, intercept + self.level * excess

    def energy(self, change: np.ndarray) -> np.ndarray:
        """Norm of changes of `a` in the matrix, at least that of the coefficients, in units of the frame."""
        return np.sqrt(((np.triu(self.upper) @ (change * self.norm[:, None])) ** 2).sum(0))

    def _solve(self, right: np.ndarray) -> np.ndarray:
        return solve_upper(self.upper, right / self.norm[:, None]) / self.norm[:, None]


@np.errstate(over="ignore", invalid="ignore")  # whoever keeps coefficients refuses infinite ones
def solve_dual(problem: Problem, tol: float, max_iter: int | None) -> Solution:
    """The coefficients of least norm, or the ridge's, for few rows."""
    n_samples = problem.blocks.n_samples
    if n_samples > MAX_ROWS:
        raise ValueError(
            f"solver='dual' needs an n_samples x n_samples matrix, {8e-9 * n_samples**2:.0f} GB for these "
            f"{n_samples} rows; at most {MAX_ROWS} are allowed. Use solver='exact' or fewer rows."
        )
    l2 = problem.penalty.l2[:1]
    alpha = float(l2[0])
    blocks = problem.blocks.positive_weight_rows()
    weight = np.ones(blocks.n_samples) if blocks.weight is None else blocks.weight.cpu().numpy()
    weight = np.ldexp(weight, -np.frexp(weight.max())[1])  # the heaviest is about 1
    if alpha > 0 and weight.sum() > WIDEST_WEIGHTS * weight.min():
        return solve_exact(problem, tol, max_iter)
    frame, rows = _dual_frame(problem, blocks, weight.sum())
    diagonal = ridge_of(frame, l2, weight.sum()) / weight
    system = _factorise(rows.kernel(frame.shift[1 : 1 + blocks.n_features]), diagonal, problem.fit_intercept)
    if system is None and alpha > 0:
        return solve_exact(problem, tol, max_iter)
    if system is None:
        return _solve_by_columns(problem, blocks, tol)
    limit = MAX_REFINEMENTS if max_iter is None else 1 + max_iter
    found = _refine(rows, frame, diagonal, system, tol, limit)
    coef, intercept = _in_user_units(frame, found.coef, found.intercept, problem.fit_intercept)
    if alpha > 0 and found.error > tol:  # as with an intercept and rows that outweigh others by 1e80
        other = solve_exact(problem, tol, max_iter)
        if other.error < found.error:
            return other
    rank = blocks.n_samples - problem.fit_intercept
    unique = alpha > 0 or rank == blocks.n_features
    status = Status.OPTIMAL if unique else Status.MINIMUM_NORM
    return Solution(
        coef=coef[0] + coef[1],
        intercept=(intercept[0] + intercept[1])[0],
        rank=blocks.n_features if alpha > 0 else rank,
        condition_number=system.condition_number,
        solver="dual",
        status=status if found.error <= tol else Status.DIGITS_LOST,
        n_iter=found.n_passes,
        error=found.error,
    )


def _dual_frame(problem: Problem, blocks: RowBlocks, weight_sum: float) -> tuple[Frame, WideRows]:
    """Shift by the mean of the rows; one scale for all features, so that least norm stays so.

    Features are not shifted where the mean of all rows is so short that their sum is no longer than the
    others may be: then it does not matter to the kernel.
    """
    n_features = blocks.n_features

    def of(block: Block) -> torch.Tensor:
        assert block.X is not None
        parts = (block.X.to(torch.float64), block.y)
        ends = [torch.stack([part.sum(0), -part.amin(0), part.amax(0)]) for part in parts]
        return torch.cat(ends, dim=1)

    def merge(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat([a[:1] + b[:1], torch.maximum(a[1:], b[1:])])

    in_place = max(1, PIECE_BYTES // (8 * n_features))
    total, minus_lowest, highest = blocks.map_reduce(of, merge, dense=True, rows_in_place=in_place)
    largest = torch.maximum(minus_lowest, highest)
    if blocks is not problem.blocks or not bool(largest.isfinite().all()):
        problem.blocks.raise_if_not_finite(problem.name)
    magnitude = torch.cat([largest[:n_features].max().expand(n_features), largest[n_features:]])
    safe = ((magnitude > SAFE_RANGE[0]) & (magnitude < SAFE_RANGE[1])) | (magnitude == 0)
    scale = torch.where(safe, 1.0, 1 / dd.slice_scale(magnitude))
    if problem.penalty.l2.any():
        with_first = np.append(1.0, scale.cpu().numpy())
        scale = torch.from_numpy(scale_for_ridge(with_first, problem.penalty.l2, weight_sum)[1:]).to(scale)
    mean, origin = torch.zeros_like(total), torch.zeros_like(total)
    if problem.fit_intercept:
        mean = torch.where(total.isfinite(), total / blocks.n_samples, highest / 2 - minus_lowest / 2)
        of_rows, of_ends = ((part * scale)[:n_features] for part in (mean, largest))
        if float(of_rows.square().sum()) * blocks.n_samples <= float(of_ends.square().sum()):
            mean[:n_features] = 0
        size, sign = mean.abs(), mean.sign()
        least = torch.minimum(-minus_lowest * sign, highest * sign)
        origin = torch.where((2 * least >= size) & (largest / 2 <= size), mean, 0.0)
    moved = (torch.maximum((highest - origin).abs(), (minus_lowest + origin).abs()) * scale)[:n_features]
    rows = WideRows(blocks, origin[:n_features], float(scale[0]), dd.slice_scale(moved))
    zero, one = total.new_zeros(1), total.new_ones(1)
    return Frame(torch.cat([zero, mean]), None if bool((scale == 1).all()) else torch.cat([one, scale])), rows


def _factorise(kernel: np.ndarray, diagonal: np.ndarray, fit_intercept: bool) -> _System | None:
    """The factor of a kernel, of which the upper triangle counts.

    None where its condition is too bad for float64, as with dependent rows.
    """
    level = _level(kernel) if fit_intercept else 0.0
    kernel += level
    kernel.ravel()[:: len(kernel) + 1] += diagonal
    norm = np.sqrt(kernel.diagonal())
    if not (norm > 0).all():
        return None
    kernel /= norm[:, None]
    kernel /= norm
    upper = cholesky(kernel)
    if upper is not None:
        largest, smallest = extreme_singular_values(upper)
        rate = 16 * len(norm) * EPS / smallest**2
        if rate <= SLOWEST_REFINEMENT:
            return _System(upper, norm, level, fit_intercept, largest / smallest, rate)
    return None


def _level(kernel: np.ndarray) -> float:
    return float(dd.slice_scale(np.array(np.trace(kernel) / len(kernel) ** 2)))


class _Refined(NamedTuple):
    """Coefficients and intercepts in units of the frame, about its shift."""

    coef: DoubleDouble  # shape: (n_features, n_targets)
    intercept: DoubleDouble  # shape: (1, n_targets)
    error: float  # relative
    n_passes: int


def _refine(
    rows: WideRows, frame: Frame, diagonal: np.ndarray, system: _System, tol: float, limit: int
) -> _Refined:
    """The solution, refined until what the next change would be is below rounding."""
    y = _shifted_targets(rows.blocks, frame)
    reach = _reach_of_intercept(rows, frame, diagonal)
    offset = _offset(rows, frame)
    amplification = float(system.norm.max() / system.norm.min()) * system.condition_number**2
    n_slices = 2 if amplification <= MILD else 3
    n_targets = y[0].shape[1]
    dual, constant = _with_zero(np.zeros_like(y[0])), _with_zero(np.zeros((1, n_targets)))
    coef = _with_zero(np.zeros((rows.blocks.n_features, n_targets)))
    residual, rate, energies = y[0], system.rate, []
    while True:
        change, change_constant = system.solve(residual, -dd.sum_over_first_axis(dual)[0])
        energies.append(system.energy(change))
        dual = dd.add(dual, _with_zero(change))
        constant = dd.add(constant, _with_zero(change_constant[None]))
        if len(energies) > 1:
            rate = max(system.rate, _largest_ratio(*energies[-2:]))
        if _largest_ratio(energies[0], energies[-1]) * amplification <= SMALL_CHANGE:
            more = rows.transposed_times_roughly(change) - offset * change.sum(0)
            coef = dd.add(coef, _with_zero(more))
        else:
            coef = _coefficients(rows, offset, dual, n_slices)
        error = _relative_error(frame, y, coef, constant, min(rate, 1.0) * energies[-1], reach)
        if error <= max(EPS, 1e-3 * tol) or rate > 0.5 or len(energies) >= limit:
            return _Refined(coef, constant, error, len(energies))
        residual = _residual(rows, offset, diagonal, y, dual, constant, coef, n_slices)


def _with_zero(high: np.ndarray) -> DoubleDouble:
    return high, np.zeros_like(high)


def _largest_ratio(old: np.ndarray, new: np.ndarray) -> float:
    """Of new to old ones, 0 where those are 0."""
    return float(np.divide(new, old, out=np.zeros_like(new), where=old > 0).max())


def _shifted_targets(blocks: RowBlocks, frame: Frame) -> DoubleDouble:
    """The targets in the frame; shape: (n_samples, n_targets)."""
    shift, scale = shift_and_scale(frame)
    targets = slice(1 + blocks.n_features, None)
    high, low = dd.two_sum(blocks.y.cpu().numpy(), -shift[targets])
    return high * scale[targets], low * scale[targets]


def _reach_of_intercept(rows: WideRows, frame: Frame, diagonal: np.ndarray) -> float:
    """How far the intercept may be off where the coefficients are by 1, in the norm of the system."""
    n_samples = rows.blocks.n_samples
    shift = torch.linalg.vector_norm(frame.shift[1 : 1 + rows.blocks.n_features] * rows.scale)
    mean = float(shift + torch.linalg.vector_norm(rows.largest) / n_samples**0.5)  # see `_dual_frame`
    return mean + float(np.sqrt(diagonal.sum())) / n_samples


def _relative_error(
    frame: Frame,
    y: DoubleDouble,
    coef: DoubleDouble,
    constant: DoubleDouble,
    error: np.ndarray,
    reach: float,
) -> float:
    """The largest relative error of a coefficient or an intercept, above what passes for zero.

    The coefficients are off by at most `error` in norm, since ``|X.T a|`` is not above that of the system.
    """
    shift, scale = shift_and_scale(frame)
    columns, targets = slice(1, 1 + len(coef[0])), slice(1 + len(coef[0]), None)
    size = np.abs(coef[0])
    counted = size > UNCERTAIN * size.max(0, initial=0.0)
    worst = float(np.divide(error, size, out=np.zeros_like(size), where=counted).max(initial=0.0))
    mean = shift[targets] * scale[targets]
    intercept = np.abs(mean + constant[0][0] - (shift[columns] * scale[columns]) @ coef[0])
    counted = intercept > 4 * EPS * (np.abs(y[0]).max(0) + np.abs(mean))
    of_intercept = np.divide(reach * error, intercept, out=np.zeros_like(error), where=counted)
    return max(worst, float(of_intercept.max(initial=0.0)))


def _offset(rows: WideRows, frame: Frame) -> np.ndarray:
    """How far the rows' origin is from the shift of the frame, without rounding; shape (n_features, 1)."""
    shift = frame.shift[1 : 1 + rows.blocks.n_features]
    return ((shift - rows.origin) * rows.scale)[:, None].cpu().numpy()  # the shift, or 0


def _coefficients(rows: WideRows, offset: np.ndarray, dual: DoubleDouble, n_slices: int) -> DoubleDouble:
    """``X.T a`` of the rows about the shift; one exact pass."""
    coef = rows.transposed_times(dual, n_slices)
    if not offset.any():
        return coef
    high, low = dd.sum_over_first_axis(dual)  # 0, but for rounding
    return dd.add(coef, dd.negative(dd.multiply(_with_zero(offset), (high[None], low[None]))))


def _residual(
    rows: WideRows,
    offset: np.ndarray,
    diagonal: np.ndarray,
    y: DoubleDouble,
    dual: DoubleDouble,
    constant: DoubleDouble,
    coef: DoubleDouble,
    n_slices: int,
) -> np.ndarray:
    """What the rows' equations still lack; one exact pass."""
    model = dd.add(rows.times(coef, n_slices), constant)
    if offset.any():
        model = dd.add(model, dd.negative(rows.vector_times(offset, coef, n_slices)))
    if diagonal.any():
        model = dd.add(model, dd.multiply(dual, _with_zero(diagonal[:, None])))
    return dd.add(y, dd.negative(model))[0]


def _in_user_units(
    frame: Frame, coef: DoubleDouble, intercept: DoubleDouble, fit_intercept: bool
) -> tuple[DoubleDouble, DoubleDouble]:
    shift, scale = shift_and_scale(frame)
    columns, targets = slice(1, 1 + len(coef[0])), slice(1 + len(coef[0]), None)
    exponent = log2_of_units(scale[columns], scale[targets])
    high, low = np.ldexp(coef[0], exponent), np.ldexp(coef[1], exponent)
    if not fit_intercept:
        return (high, low), (intercept[0] / scale[targets], intercept[1] / scale[targets])
    # In the frame, where coefficients can be split; constant columns may be too large for that.
    origin = np.where(coef[0].any(1), shift[columns] * scale[columns], 0.0)[None]
    moved = dd.matmul(_with_zero(origin), coef)
    seen = dd.add(intercept, dd.negative(moved))
    target = _with_zero(shift[None, targets])
    return (high, low), dd.add(target, (seen[0] / scale[targets], seen[1] / scale[targets]))


def _solve_by_columns(problem: Problem, blocks: RowBlocks, tol: float) -> Solution:
    """Least squares on independent columns, then the least norm.

    Holds all rows at once, as float64: they are fewer than the features.
    """
    X = torch.cat([block.X.to(torch.float64) for block in blocks.dense() if block.X is not None])
    centred = torch.where((X[0] == X).all(0), 0.0, X - X.mean(0)) if problem.fit_intercept else X
    chosen = _independent_columns(centred.cpu().numpy())

    def fit(responses: torch.Tensor) -> BasisFit:
        part = tensor_blocks(X[:, chosen], responses, blocks.weight)
        no_penalty = ridge(0.0, part.n_features)
        return basis_fit_of_rows(Problem(part, no_penalty, problem.fit_intercept, problem.name), tol)

    of_targets = fit(blocks.y)
    dependent_among_chosen = of_targets.null.own  # exact arithmetic knows better
    if len(dependent_among_chosen) and blocks.n_features <= MOST_COLUMNS:
        return solve_exact(problem, tol, None)  # which may find others in their place
    chosen = np.delete(chosen, dependent_among_chosen)
    if len(dependent_among_chosen):
        of_targets = fit(blocks.y)
    dependent = np.setdiff1d(np.arange(blocks.n_features), chosen)
    error, coef, intercept = of_targets.error, *of_targets.in_user_units()
    full = np.zeros((blocks.n_features, blocks.n_targets))
    status = Status.MINIMUM_NORM if len(dependent) else Status.OPTIMAL
    if len(dependent):
        parts = [
            fit(X[:, dependent[start : start + RESPONSES_AT_ONCE]])
            for start in range(0, len(dependent), RESPONSES_AT_ONCE)
        ]
        # Dependent columns are ``offset + X_chosen @ transfer``, so that their coefficients d leave
        # ``coef - transfer @ d`` to the others. Errors relative to each term do not matter: many terms are 0
        # but for rounding, and `change` measures what they are off by together.
        explained = [part.in_user_units() for part in parts]
        transfer, offset = (_side_by_side([part[k] for part in explained]) for k in (0, 1))
        length, spread = (torch.linalg.vector_norm(columns, dim=0).cpu().numpy() for columns in (X, centred))
        transfer = _cleaned(dd.negative(transfer), length[chosen], length[dependent])
        of_chosen = torch.from_numpy(transfer[0]).to(X.device)
        left = X[:, dependent] + X[:, chosen] @ of_chosen - torch.from_numpy(offset[0]).to(X.device)
        change = torch.linalg.vector_norm(left, dim=0).cpu().numpy()
        allowed = ALLOWED_OF_Y * torch.linalg.vector_norm(blocks.y, dim=0).cpu().numpy()
        # ... or what rounds the predictions.
        allowed += 4 * EPS * np.sqrt(((coef[0] * length[chosen, None]) ** 2).sum(0))
        status = Status.NEARLY_DEPENDENT
        for unit in (np.ones(len(spread)), np.exp2(np.round(np.log2(np.where(spread > 0, spread, 1.0))))):
            moved = _shortest_in(unit[chosen, None], unit[dependent, None], coef, transfer)
            if moved is not None and not (np.abs(moved[1][0]).T @ change > allowed).any():
                coef, rest = moved
                intercept = dd.add(intercept, dd.negative(dd.matmul(offset, rest)))
                full[dependent] = rest[0] + rest[1]
                status = Status.MINIMUM_NORM if (unit == 1).all() else status
                break
    full[chosen] = coef[0] + coef[1]
    return Solution(
        coef=full,
        intercept=(intercept[0] + intercept[1])[0],
        rank=len(chosen),
        condition_number=of_targets.condition_number,
        solver="dual",
        status=status if error <= tol else Status.DIGITS_LOST,
        n_iter=3,
        error=error,
    )


def _cleaned(transfer: DoubleDouble, length: np.ndarray, own_length: np.ndarray) -> DoubleDouble:
    """A transfer without terms below the rounding of the data."""
    terms = np.abs(transfer[0]) * length[:, None]
    small = terms <= EPS * np.sqrt((terms**2).sum(0) + own_length**2)
    return np.where(small, 0.0, transfer[0]), np.where(small, 0.0, transfer[1])


def _shortest_in(
    unit: np.ndarray, own_unit: np.ndarray, coef: DoubleDouble, transfer: DoubleDouble
) -> tuple[DoubleDouble, DoubleDouble] | None:
    """`shortest_of_transfer` of coefficients times units, which are powers of two."""
    scaled = transfer[0] * unit / own_unit.T, transfer[1] * unit / own_unit.T
    found = shortest_of_transfer((coef[0] * unit, coef[1] * unit), scaled)
    if found is None or not all(np.isfinite(part[0]).all() for part in found):
        return None
    first, rest = found
    return (first[0] / unit, first[1] / unit), (rest[0] / own_unit, rest[1] / own_unit)


def _side_by_side(parts: list[DoubleDouble]) -> DoubleDouble:
    high, low = zip(*parts, strict=True)
    return np.concatenate(high, axis=1), np.concatenate(low, axis=1)


def _independent_columns(X: np.ndarray) -> np.ndarray:
    """Columns that span all others, those of the largest units first; Gram-Schmidt with pivoting.

    A column is dependent when what is left of it is rounding relative to itself.
    """
    norm = np.sqrt((X**2).sum(0))
    rest = np.divide(X, norm, out=np.zeros_like(X), where=norm > 0)
    tolerance = (2 * EPS * max(X.shape)) ** 2
    basis = np.zeros((0, len(X)))
    chosen: list[int] = []
    while len(chosen) < min(X.shape):
        left = (rest**2).sum(0)
        candidates = np.where(left > tolerance, np.sqrt(left) * norm, -1.0)
        pivot = int(np.argmax(candidates))
        if candidates[pivot] < 0:
            break
        direction = rest[:, pivot]
        for _ in range(2):
            direction = direction - basis.T @ (basis @ direction)
            direction = direction / np.sqrt((direction**2).sum())
        basis = np.vstack([basis, direction])
        rest = rest - np.outer(direction, direction @ rest)
        rest[:, pivot] = 0
        chosen.append(pivot)
    return np.array(chosen, dtype=np.intp)
