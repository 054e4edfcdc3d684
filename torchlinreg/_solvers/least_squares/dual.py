"""The exact route for more features than rows: an n_samples x n_samples system, never a p x p Gram matrix.

The coefficients of least norm are ``coef = X.T a``, where ``a`` sums to 0 (with intercept) and solves::

    (X X.T + alpha sum(w) diag(1 / w)) a + intercept = y

With a ridge, rows and their equations are multiplied by powers of two near the roots of the weights, as `a`
is divided by them: then weights of any size leave numbers of ordinary size.

Refinement has residuals to about 100 bits. Where that matrix is too ill-conditioned for a float64 factor, as
with rows that depend on each other or columns of very different units, independent columns are fitted
instead, and the least norm follows from how they explain the others; a ridge then takes the p x p route.
"""

from __future__ import annotations

from dataclasses import dataclass

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
from torchlinreg._moments.exact import exact_rows, split_weight
from torchlinreg._moments.gradient import DEPTHS, exact_residual, exact_transposed_product
from torchlinreg._moments.moments import SAFE_RANGE, Frame, frame_for_ridge, in_units_of
from torchlinreg._objective.penalty import ridge
from torchlinreg._objective.problem import Problem
from torchlinreg._objective.solution import Solution, Status
from torchlinreg._solvers.least_squares.basis_fit import UNCERTAIN, BasisFit
from torchlinreg._solvers.least_squares.minimum_norm import shortest_of_transfer
from torchlinreg._solvers.least_squares.normal_equations import (
    SLOWEST_REFINEMENT,
    basis_fit_of_rows,
    ridge_of,
    solve_exact,
)

RESPONSES_AT_ONCE = 512
MAX_ROWS = 50_000


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
    root: np.ndarray  # powers of two that the rows are multiplied by
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
        ones = self._solve(self.root[:, None])
        intercept = (self.root @ change - excess) / (self.root @ ones[:, 0])
        return change - ones * intercept, intercept + self.level * excess

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
    frame = _dual_frame(problem)
    alpha = float(problem.penalty.l2[0])
    blocks = problem.blocks.positive_weight_rows()
    diagonal, root = np.zeros(blocks.n_samples), np.ones(blocks.n_samples)
    rows = blocks if alpha > 0 else blocks.without_weights()
    if alpha > 0:
        frame = frame_for_ridge(frame, problem.penalty.l2, _weight_sum(blocks))
        diagonal += ridge_of(frame, problem.penalty.l2[:1], _weight_sum(blocks))
    if rows.weight is not None:
        row_scale, remainder = split_weight(rows.weight)
        root, diagonal = row_scale[:, 0].cpu().numpy(), diagonal / remainder.cpu().numpy()
    system = _factorise(rows, frame, diagonal, root, problem.fit_intercept)
    if system is None and alpha > 0:
        return solve_exact(problem, tol, max_iter)
    if system is None:
        return _solve_by_columns(problem, blocks, tol)
    limit = MAX_REFINEMENTS if max_iter is None else 1 + max_iter
    coef, intercept, error, n_passes = _refine(problem, rows, frame, diagonal, system, tol, limit)
    rank = blocks.n_samples - problem.fit_intercept
    unique = alpha > 0 or rank == blocks.n_features
    status = Status.OPTIMAL if unique else Status.MINIMUM_NORM
    return Solution(
        coef=coef[0] + coef[1],
        intercept=(intercept[0] + intercept[1])[0],
        rank=blocks.n_features if alpha > 0 else rank,
        condition_number=system.condition_number,
        solver="dual",
        status=status if error <= tol else Status.DIGITS_LOST,
        n_iter=n_passes,
        error=error,
    )


def _weight_sum(blocks: RowBlocks) -> float:
    return float(blocks.n_samples if blocks.weight is None else blocks.weight.sum())


def _dual_frame(problem: Problem) -> Frame:
    """Shift by the mean of the rows; one scale for all features, so that least norm stays so.

    About the weighted mean, a row that outweighs all others leaves an intercept that holds their digits.
    """
    blocks = problem.blocks

    def total(block: Block) -> torch.Tensor:
        assert block.X is not None
        columns = torch.cat([block.X.to(torch.float64), block.y], dim=1)
        of_rows = columns if block.weight is None else block.weight[:, None] * columns
        return torch.stack([of_rows.sum(0), columns.abs().amax(0)])

    def merge(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.stack([a[0] + b[0], torch.maximum(a[1], b[1])])

    sums, largest = blocks.map_reduce(total, merge, dense=True)
    if not bool(largest.isfinite().all()):
        blocks.raise_if_not_finite(problem.name)
    shift = torch.zeros(1 + len(sums), dtype=torch.float64, device=sums.device)
    if problem.fit_intercept:
        shift[1:] = sums / _weight_sum(blocks)
    magnitude = torch.cat(
        [largest[: blocks.n_features].max().expand(blocks.n_features), largest[blocks.n_features :]]
    )
    safe = ((magnitude > SAFE_RANGE[0]) & (magnitude < SAFE_RANGE[1])) | (magnitude == 0)
    if bool(safe.all()):
        return Frame(shift, None)
    scale = torch.ones_like(shift)
    scale[1:] = torch.where(safe, 1.0, 1 / dd.slice_scale(magnitude))
    return Frame(shift, scale)


def _shifted_features(block: Block, frame: Frame) -> torch.Tensor:
    assert block.X is not None
    inside = slice(1, 1 + block.X.shape[1])
    rows = block.X.to(torch.float64) - frame.shift[inside]
    return rows if frame.scale is None else rows * frame.scale[inside]


def _factorise(
    blocks: RowBlocks, frame: Frame, diagonal: np.ndarray, root: np.ndarray, fit_intercept: bool
) -> _System | None:
    """The kernel's factor; None where its condition is too bad for float64, as with dependent rows."""
    kernel = np.zeros((blocks.n_samples,) * 2)
    starts = range(0, blocks.n_samples, blocks.rows_per_block)
    for start, block in zip(starts, blocks.dense(), strict=True):
        rows = _shifted_features(block, frame)
        for other_start, other in zip(starts, blocks.dense(), strict=True):
            if other_start < start:
                continue
            product = rows @ (rows if other_start == start else _shifted_features(other, frame)).T
            stop, other_stop = start + len(block.y), other_start + len(other.y)
            kernel[start:stop, other_start:other_stop] = product.cpu().numpy()
            kernel[other_start:other_stop, start:stop] = product.T.cpu().numpy()
    kernel *= root[:, None]
    kernel *= root
    level = _level(kernel, root) if fit_intercept else 0.0
    kernel += np.diag(diagonal) + level * np.outer(root, root)
    norm = np.sqrt(kernel.diagonal())
    if not (norm > 0).all():
        return None
    upper = cholesky(kernel / norm[:, None] / norm)
    if upper is not None:
        largest, smallest = extreme_singular_values(upper)
        rate = 16 * len(norm) * EPS / smallest**2
        if rate <= SLOWEST_REFINEMENT:
            return _System(upper, root, norm, level, fit_intercept, largest / smallest, rate)
    return None


def _level(kernel: np.ndarray, root: np.ndarray) -> float:
    return float(dd.slice_scale(np.array(np.trace(kernel) / float(root @ root) / len(kernel))))


def _refine(
    problem: Problem,
    blocks: RowBlocks,
    frame: Frame,
    diagonal: np.ndarray,
    system: _System,
    tol: float,
    limit: int,
) -> tuple[DoubleDouble, DoubleDouble, float, int]:
    """Coefficients and intercept in the user's units, refined until a pass no longer changes them."""
    shape = blocks.n_samples, blocks.n_targets
    dual: DoubleDouble = np.zeros(shape), np.zeros(shape)
    constant: DoubleDouble = np.zeros((1, shape[1])), np.zeros((1, shape[1]))
    scaled: DoubleDouble = (
        np.zeros((blocks.n_features, shape[1])),
        np.zeros((blocks.n_features, shape[1])),
    )
    coef, intercept = _in_user_units(frame, scaled, constant, problem.fit_intercept)
    intercept_scale = blocks.y.abs().amax(0).cpu().numpy()  # an intercept of its rounding size is 0
    previous = error = np.inf
    n_passes = 0
    while n_passes < limit:
        residual = _residual(blocks, frame, diagonal, dual, constant, scaled)
        excess = -dd.sum_over_first_axis((system.root[:, None] * dual[0], system.root[:, None] * dual[1]))[0]
        change, change_constant = system.solve(residual[0], excess)
        dual = dd.add(dual, (change, np.zeros_like(change)))
        constant = dd.add(constant, (change_constant[None], np.zeros((1, shape[1]))))
        scaled = _coefficients(blocks, frame, dual)
        before = coef, intercept
        coef, intercept = _in_user_units(frame, scaled, constant, problem.fit_intercept)
        n_passes += 1
        zero = UNCERTAIN * np.abs(coef[0]).max(0, initial=0.0)
        error = max(
            _relative_change(before[0], coef, zero),
            _relative_change(before[1], intercept, 4 * EPS * intercept_scale),
        )
        if n_passes == 1:
            error = system.rate  # no change to go by yet
        elif error <= max(EPS, 1e-3 * tol) or (n_passes > 2 and error > 0.5 * previous):
            break
        previous = error
    return coef, intercept, error, n_passes


def _relative_change(old: DoubleDouble, new: DoubleDouble, zero: np.ndarray) -> float:
    """The largest change relative to the new value, among values above what passes for zero."""
    moved = np.abs(dd.add(new, dd.negative(old))[0])
    size = np.abs(new[0])
    return float(np.divide(moved, size, out=np.zeros_like(size), where=size > zero).max(initial=0.0))


def _coefficients(blocks: RowBlocks, frame: Frame, dual: DoubleDouble) -> DoubleDouble:
    """``X.T a`` of the shifted rows times their roots as a double-double; one pass."""
    device = blocks.device
    features = np.arange(1, 1 + blocks.n_features)
    depth = DEPTHS[1]
    high = torch.zeros((blocks.n_features, blocks.n_targets), dtype=torch.float64, device=device)
    result = high, high
    start = 0
    for block in blocks.dense():
        rows = exact_rows(block, frame).columns(features)
        slices = rows.slices(depth.product_slices)
        part = slice(start, start + len(block.y))
        values = (
            torch.from_numpy(dual[0][part]).to(device),
            torch.from_numpy(dual[1][part]).to(device),
        )
        levels = exact_transposed_product(slices, rows.scale, values, depth.last_level)
        result = dd.add(result, dd.sum_over_first_axis(levels))
        start += len(block.y)
    return result[0].cpu().numpy(), result[1].cpu().numpy()


def _residual(
    blocks: RowBlocks,
    frame: Frame,
    diagonal: np.ndarray,
    dual: DoubleDouble,
    intercept: DoubleDouble,
    coef: DoubleDouble,
) -> DoubleDouble:
    """What the rows' equations still lack, as a double-double; one pass."""
    device = blocks.device
    n_columns = 1 + blocks.n_features
    model = (
        torch.from_numpy(np.concatenate([intercept[0], coef[0]])).to(device),
        torch.from_numpy(np.concatenate([intercept[1], coef[1]])).to(device),
    )
    parts = []
    for block in blocks.dense():
        rows = exact_rows(block, frame)
        design = rows.columns(np.arange(n_columns))
        responses = rows.columns(np.arange(n_columns, len(frame.shift)))
        slices = design.slices(DEPTHS[1].residual_slices)
        parts.append(exact_residual(slices, design.scale, model, responses))
    residual: DoubleDouble = (
        torch.cat([part[0] for part in parts]).cpu().numpy(),
        torch.cat([part[1] for part in parts]).cpu().numpy(),
    )
    column = diagonal[:, None]
    return dd.add(residual, dd.negative(dd.multiply(dual, (column, np.zeros_like(column)))))


def _in_user_units(
    frame: Frame, coef: DoubleDouble, intercept: DoubleDouble, fit_intercept: bool
) -> tuple[DoubleDouble, DoubleDouble]:
    shift = frame.shift.cpu().numpy()
    n_features = len(coef[0])
    if frame.scale is not None:
        scale = frame.scale.cpu().numpy()
        of_columns, of_targets = scale[1 : 1 + n_features], scale[1 + n_features :]
        coef = in_units_of(coef[0], of_columns, of_targets), in_units_of(coef[1], of_columns, of_targets)
        intercept = intercept[0] / scale[1 + n_features :], intercept[1] / scale[1 + n_features :]
    if not fit_intercept:
        return coef, intercept
    origin = shift[None, 1 : 1 + n_features]
    moved = dd.matmul((origin, np.zeros_like(origin)), coef)
    target = shift[None, 1 + n_features :]
    return coef, dd.add(dd.add((target, np.zeros_like(target)), intercept), dd.negative(moved))


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
    chosen = np.delete(chosen, dependent_among_chosen)
    if len(dependent_among_chosen):
        of_targets = fit(blocks.y)
    dependent = np.setdiff1d(np.arange(blocks.n_features), chosen)
    error, coef, intercept = of_targets.error, *of_targets.in_user_units()
    full = np.zeros((blocks.n_features, blocks.n_targets))
    status = Status.MINIMUM_NORM if len(dependent) else Status.OPTIMAL
    if len(dependent):
        transfers, intercepts = [], []
        for start in range(0, len(dependent), RESPONSES_AT_ONCE):
            part = fit(X[:, dependent[start : start + RESPONSES_AT_ONCE]])
            transfer, offset = part.in_user_units()
            error = max(error, part.error)
            transfers.append(transfer)
            intercepts.append(offset)
        # Dependent columns are ``offset + X_chosen @ transfer``, so that their coefficients d leave
        # ``coef - transfer @ d`` to the others.
        transfer = dd.negative(_side_by_side(transfers))
        moved = shortest_of_transfer(coef, transfer)
        if moved is None:
            status = Status.NEARLY_DEPENDENT
        else:
            coef, rest = moved
            of_rest = dd.matmul(_side_by_side(intercepts), rest)
            intercept = dd.add(intercept, dd.negative(of_rest))
            full[dependent] = rest[0] + rest[1]
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
