"""Which columns of tall data depend on others, measured on the rows.

A float64 Gram matrix names candidates and a well-conditioned rest; passes over the rows then form what is
left of the candidates, ``z = x_c - mean - (x_rest - mean) @ b``, and its products. Where z is at the rounding
of the data, ``16 u |w_j * raw norm_j|`` for ``z = [1, x] @ w``, the column depends on the rest. Otherwise it
joins the rest, and the others are reduced by it: Gram-Schmidt, by blocks (Stewart 2008, SIAM J. Sci. Comput.
31, 761-775).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import lapack

from torchlinreg._data.rows import Block
from torchlinreg._linalg import double_double as dd
from torchlinreg._linalg.cholesky import DoubleDouble, cholesky, solve_upper
from torchlinreg._linalg.gram import EPS
from torchlinreg._moments.exact import ExactMoments, ExactRows, exact_rows
from torchlinreg._moments.gradient import exact_residual
from torchlinreg._moments.moments import Frame
from torchlinreg._objective.problem import Problem

# Squared pivots of unit columns above this are clear: errors of the Gram matrix change them by 1e-8.
CLEAR_PIVOT = 1e-8
# Sums, shares and products of columns as users make them leave up to 4 times the rounding of the data,
# columns that differ in 1e-14 of themselves 71 times: this is between them.
DEPENDENT = 16.0
# Columns of which a projection took more than this share of their squares are measured anew.
UNSETTLED = 0.5
# A pass resolves 8 digits of the squares, and a column may need two; that is 5 down to the rounding of the
# data.
MAX_PASSES = 12
# Slices of the rows: the error of z is 2^-72 of its largest term.
N_SLICES = 2
# Weights of columns in a null vector below this share of the rounding of the data mean nothing.
CLEAN = EPS
# Multipliers between dependent columns and others, larger than this, are exchanged for their inverses.
LARGEST_TRANSFER = 2.0
# Differences below this share of what they are taken from are its rounding.
ROUNDING = 8 * EPS

# Wide data have about as many null vectors as features; up to so many features, these are worth their passes.
MOST_WIDE_FEATURES = 1000
# Errors of a pivot of a float64 Gram matrix, in units of the rounding of its entries.
PIVOT_ERRORS = 100.0


@dataclass(frozen=True)
class NullSpace:
    """Columns that depend on others, up to a constant: ``x[dependent] == x[others] @ transfer``.

    All in the user's units.
    """

    others: np.ndarray  # features; shape: (n_others,)
    dependent: np.ndarray  # features; shape: (n_dependent,)
    transfer: np.ndarray  # shape: (n_others, n_dependent)
    error: np.ndarray  # root mean squares of what is left of the dependent columns; shape: (n_dependent,)

    def balanced(self) -> NullSpace:
        """The null space with dependent columns so chosen that no multiplier is much larger than 1."""
        others, dependent = self.others.copy(), self.dependent.copy()
        transfer, error = self.transfer.copy(), self.error.copy()
        while np.abs(transfer).max(initial=0.0) > LARGEST_TRANSFER:
            row, column = np.unravel_index(np.abs(transfer).argmax(), transfer.shape)
            pivot, out = transfer[row, column], transfer[:, column].copy()
            share = transfer[row] / pivot
            moved = np.outer(out, share)
            left = transfer - moved
            transfer = np.where(np.abs(left) > ROUNDING * np.abs(moved), left, 0.0)
            transfer[row], transfer[:, column] = share, -out / pivot
            transfer[row, column] = 1 / pivot
            of_column = error[column]
            error += np.abs(share) * of_column
            error[column] = of_column / abs(pivot)
            others[row], dependent[column] = dependent[column], others[row]
        return NullSpace(others, dependent, transfer, error)


def null_space(problem: Problem, among: np.ndarray, moments: ExactMoments | None = None) -> NullSpace:
    """Dependence among some features, none of them constant; costs passes only where it is likely.

    Of `moments`, where the rows are gone, as far as these resolve it.
    """
    columns = problem.standardised
    nothing = NullSpace(among, among[:0], np.zeros((len(among), 0)), np.zeros(0))
    gram = columns.gram[np.ix_(among, among)]
    blur = columns.roundoff * float(columns.cancellation[among].max(initial=1.0))
    clear = max(CLEAR_PIVOT, PIVOT_ERRORS * len(among) * blur)
    upper = cholesky(gram)
    if upper is not None and (upper.diagonal() ** 2 > clear).all():
        return nothing
    lower, order, rank = _pivoted(gram, clear)
    scale = columns.scale[among]
    rest = _Rest(
        first=int(problem.fit_intercept),
        unit=columns.unit[among] * scale,
        mean=columns.mean[among],
        members=order[:rank],
        upper=np.tril(lower[:rank, :rank]).T,
    )
    products = _products_of(problem, moments, np.append(np.zeros(rest.first, dtype=np.intp), 1 + among))
    raw, in_frame = columns.raw[among], np.sqrt(columns.square[among])
    unresolved = 0.0 if moments is None else moments.unit_roundoff
    accepted, waiting = order[:0], order[rank:]
    combinations = rest.start(gram, waiting)
    for _ in range(MAX_PASSES):
        made = products(combinations)
        before = made.diagonal(-len(combinations[0]))[len(accepted) :].copy()
        combinations, square = rest.project(combinations, made)
        combinations, square = _reduced(combinations, square, len(accepted))
        weights = combinations[0][rest.first :, len(accepted) :]
        # Squared, as everything here: of the data or, where that is larger, of the moments.
        noise = np.maximum(EPS**2 * raw**2 @ weights**2, unresolved * in_frame**2 @ weights**2)
        square_left = square[len(accepted) :, len(accepted) :]
        left = square_left.diagonal()
        if ((left < UNSETTLED * before) & (before > DEPENDENT**2 * noise)).any():
            continue
        signal = square_left / np.sqrt(noise[:, None] * noise)
        tolerance = max(DEPENDENT**2, CLEAR_PIVOT * float(signal.diagonal().max()))
        _, order, n_new = _pivoted(signal, tolerance)
        if n_new == 0:
            weights = weights + combinations[1][rest.first :, len(accepted) :]
            weighty = np.abs(weights) * raw[:, None]
            weights = np.where(weighty > CLEAN * np.linalg.norm(weighty, axis=0), weights, 0.0)
            own = weights[waiting, np.arange(len(waiting))] * scale[waiting]
            others = np.append(rest.members, accepted)
            with np.errstate(over="ignore"):
                transfer = -weights[others] / own * scale[others][:, None]
            if not np.isfinite(transfer).all():  # units further apart than float64 spans
                return nothing
            used = transfer.any(1)
            error = np.sqrt(np.maximum(left, 0.0)) / np.abs(own)
            return NullSpace(among[others[used]], among[waiting], transfer[used], error).balanced()
        accepted, waiting = np.append(accepted, waiting[order[:n_new]]), waiting[order[n_new:]]
        if len(waiting) == 0:
            break
        order = np.append(np.arange(len(accepted) - n_new), len(accepted) - n_new + order)
        size = np.append(np.sqrt(square.diagonal()[order[: len(accepted)]]), np.ones(len(waiting)))
        combinations = combinations[0][:, order] / size, combinations[1][:, order] / size
        square = square[np.ix_(order, order)] / size[:, None] / size
        combinations, _ = _reduced(combinations, square, len(accepted))
    return nothing


def _pivoted(matrix: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Cholesky factor, largest pivots first, their order, and how many are above the tolerance."""
    lower, order, rank, _ = lapack.dpstrf(matrix, tol=tolerance, lower=1)
    if not matrix.diagonal().max() > tolerance:  # LAPACK takes the first one, whatever it is
        rank = 0
    return lower, order - 1, int(rank)


@dataclass(frozen=True)
class _Rest:
    """Columns that do not depend on each other, and their factor; all in the units of the frame."""

    first: int  # 1 with an intercept, whose ones are the first of the design, else 0
    unit: np.ndarray  # of all columns; shape: (n_features,)
    mean: np.ndarray  # shape: (n_features,)
    members: np.ndarray  # indices of the rest
    upper: np.ndarray  # factor of their Gram matrix

    def start(self, gram: np.ndarray, candidates: np.ndarray) -> DoubleDouble:
        """Candidates in units of their spreads, less what the rest explains by the Gram matrix."""
        result = np.zeros((self.first + len(self.unit), len(candidates)))
        result[self.first + candidates, np.arange(len(candidates))] = 1.0
        explained = solve_upper(self.upper, gram[np.ix_(self.members, candidates)])
        result[self.first + self.members] = -explained
        result[self.first :] /= self.unit[:, None]
        if self.first:
            result[0] = -self.mean @ result[1:]
        return result, np.zeros_like(result)

    def project(self, combinations: DoubleDouble, products: np.ndarray) -> tuple[DoubleDouble, np.ndarray]:
        """The combinations and their products, less what the rest and the ones explain by the products."""
        n_design = self.first + len(self.unit)
        cross, square = products[:n_design], products[n_design:]
        constant = cross[: self.first]
        inside = cross[self.first :] - self.mean[:, None] * constant.sum(0)
        inside = inside[self.members] / self.unit[self.members][:, None]
        explained = solve_upper(self.upper, inside)
        change = np.zeros_like(cross)
        change[self.first + self.members] = explained / self.unit[self.members][:, None]
        change[: self.first] = constant - self.mean @ change[self.first :]
        square = square - inside.T @ explained - constant.T @ constant
        return dd.add(combinations, (-change, np.zeros_like(change))), square


def _reduced(combinations: DoubleDouble, square: np.ndarray, n_first: int) -> tuple[DoubleDouble, np.ndarray]:
    """Combinations and their products, the others less what the first ones explain."""
    if n_first == 0:
        return combinations, square
    high, low = combinations
    explained = np.linalg.solve(square[:n_first, :n_first], square[:n_first, n_first:])
    change = np.zeros_like(high)
    change[:, n_first:] = -(high[:, :n_first] @ explained)
    square = square.copy()
    square[n_first:, n_first:] -= square[n_first:, :n_first] @ explained
    square[n_first:, :n_first] = square[:n_first, n_first:] = 0.0
    return dd.add((high, low), (change, np.zeros_like(change))), square


class _ProductsOf:
    """``[1, x, z].T @ (weight * z)`` of a block, for combinations ``z`` of the design's columns."""

    def __init__(self, frame: Frame, design: np.ndarray, combinations: DoubleDouble) -> None:
        self._frame = frame
        self._design = design
        device = frame.shift.device
        high, low = combinations
        self._negative = torch.from_numpy(-high).to(device), torch.from_numpy(-low).to(device)

    def __call__(self, block: Block) -> torch.Tensor:
        rows = exact_rows(block, self._frame)
        columns = rows.columns(self._design)
        n_combinations = self._negative[0].shape[1]
        zero = torch.zeros((len(block.y), n_combinations), dtype=torch.float64, device=block.y.device)
        nothing = ExactRows(zero, None, torch.ones_like(zero[0]), None)
        z, _ = exact_residual(columns.slices(N_SLICES), columns.scale, self._negative, nothing)
        weighted = z if rows.remainder_weight is None else z * rows.remainder_weight[:, None]
        return torch.cat([(columns.high * columns.scale).mT @ weighted, z.mT @ weighted])


def _products_of(
    problem: Problem, moments: ExactMoments | None, design: np.ndarray
) -> Callable[[DoubleDouble], np.ndarray]:
    """A function of combinations that gives `_ProductsOf`, over all rows and the weight sum."""
    if moments is None:
        frame = problem.moments.frame
        weight_sum = float(problem.moments.raw[0, 0])

        def of_rows(combinations: DoubleDouble) -> np.ndarray:
            of = _ProductsOf(frame, design, combinations)
            return problem.blocks.map_reduce(of, torch.add, dense=True).cpu().numpy() / weight_sum

        return of_rows
    raw = tuple(part.cpu().numpy()[np.ix_(design, design)] for part in (moments.high, moments.low))
    total = float(moments.high[0, 0])

    def of_moments(combinations: DoubleDouble) -> np.ndarray:
        cross = dd.matmul(raw, combinations)
        square = dd.matmul((combinations[0].T, combinations[1].T), cross)
        return np.concatenate([cross[0], square[0]]) / total

    return of_moments
