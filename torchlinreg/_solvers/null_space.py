"""Which columns of tall data depend on others, in the user's units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchlinreg._linalg.gram import EPS
from torchlinreg._moments.exact import ExactMoments
from torchlinreg._moments.standardised import Standardised
from torchlinreg._objective.problem import Problem
from torchlinreg._solvers.least_squares.basis import MomentsSource, RowsSource, Source
from torchlinreg._solvers.least_squares.dependence import find_basis

# Multipliers between dependent columns and others, larger than this, are exchanged for their inverses.
LARGEST_TRANSFER = 2.0
# Differences below this share of what they are taken from are its rounding.
ROUNDING = 8 * EPS
# Null vectors come from combinations with an error of 2^-72 of their largest term.
N_SLICES = 2
# Columns whose spread is above this share of their size, and that have a Gram matrix of unit columns of no
# smaller eigenvalue, nor one within so many rounding errors of it, need no passes to be told apart.
CLEARLY_VARIES, CLEARLY_APART, OF_ROUNDOFF = 1e-10, 1e-6, 1e8
# Wide data have about as many null vectors as features; up to so many features, these are worth their passes.
MOST_WIDE_FEATURES = 1000


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
    nothing = NullSpace(among, among[:0], np.zeros((len(among), 0)), np.zeros(0))
    if _are_clearly_independent(problem.standardised, among):
        return nothing
    n_features = problem.blocks.n_features
    source: Source
    if moments is None:
        source = RowsSource(problem)
    else:
        source = MomentsSource(moments, n_features, int(problem.fit_intercept))
    no_ridge = np.zeros(n_features)
    search = find_basis(source, no_ridge, fit_intercept=problem.fit_intercept, among=among)
    basis = search.basis
    if len(search.null.own) == 0:
        return nothing
    null = basis.project(search.null, N_SLICES)
    own = null.columns.own
    (high, _), norm = basis.cleaned(null.columns, null.norm)
    weights = high[1:]
    scale = basis.scale[:n_features]
    others = np.sort(np.concatenate([level.own for level in basis.levels]))
    with np.errstate(over="ignore"):
        transfer = -weights[others] / scale[own] * scale[others][:, None]
    if not np.isfinite(transfer).all():  # units further apart than float64 spans
        return nothing
    used = transfer.any(1)
    error = norm / scale[own] / np.sqrt(basis.weight_sum)
    return NullSpace(others[used], own, transfer[used], error).balanced()


def _are_clearly_independent(columns: Standardised, among: np.ndarray) -> bool:
    """Whether moments alone tell that no feature depends on the others, nor is constant but for rounding."""
    if len(among) == 0:
        return True
    from_zero = columns.raw[among] / columns.scale[among]
    if not (columns.spread[among] > CLEARLY_VARIES * from_zero).all():
        return False
    return columns.is_conditioned(max(CLEARLY_APART, OF_ROUNDOFF * columns.centred_roundoff), among)
