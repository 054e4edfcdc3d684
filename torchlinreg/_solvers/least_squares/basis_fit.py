"""Least squares on a basis of the columns, and the coefficients of least norm where some depend on it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from torchlinreg._linalg import double_double as dd
from torchlinreg._linalg.cholesky import (
    MAX_REFINEMENTS,
    DoubleDouble,
    extreme_singular_values,
    inverse_of_upper,
    largest_singular_value,
)
from torchlinreg._linalg.gram import EPS
from torchlinreg._moments.gradient import DEPTHS, Depth
from torchlinreg._moments.moments import log2_of_units
from torchlinreg._objective.solution import Solution, Status
from torchlinreg._solvers.least_squares.basis import (
    COMBINATION_ERRORS,
    Basis,
    Columns,
    Source,
    coordinates_of,
)
from torchlinreg._solvers.least_squares.dependence import Search, find_basis
from torchlinreg._solvers.least_squares.minimum_norm import shortest

# Coefficients that change predictions by less than this share of y pass for zeros: in float64 passes, where
# they are at the level of rounding, and in exact ones. No warning is due for those below UNCERTAIN, which
# come from the rounding of y itself.
NEGLIGIBLE = 1e-13
ZERO = 1e-20
UNCERTAIN = 1e-15
# A refinement by a factor of float64 never shrinks errors by more than this.
LEAST_RATE = 1e-10
# Refinement ends where another pass would change coefficients by less than this share.
SETTLED = 1e-15
# Share of a coefficient that gradients may be off by, with which depths are chosen.
DEPTH_ERROR = 3e-13
# Null vectors whose residual is below this share of the rounding of the data are known to more than that.
EXACTLY = 0.03
# Directions that may be lost to a choice of columns in their order.
LARGEST_LOSS = 1
# Share of the residuals' norm that moving along null vectors may change predictions by.
ALLOWED = 1e-6
# ... and share of the norm of y, for exact fits, where that is their rounding.
ALLOWED_OF_Y = 1e-13
# Residuals by moments are off by the root of their rounding, of y.
ROUNDING_OF_Y = 1e-7


class Move(NamedTuple):
    """Coefficients of least norm, and how they came about."""

    coef: DoubleDouble  # shape: (1 + n_features, n_targets)
    weights: DoubleDouble  # null vectors; shape: (1 + n_features, n_null)
    amount: np.ndarray  # of each null vector; shape: (n_null, n_targets)
    limited: (
        np.ndarray
    )  # whether they are of least norm only as far as predictions allow; shape: (n_targets,)


@dataclass(frozen=True)
class BasisFit:
    """A fit on a basis, in the coordinates of its source's frame."""

    basis: Basis
    coef: DoubleDouble  # with the intercept first; shape: (1 + n_features, n_targets)
    null: Columns  # null vectors, of which the own entry is 1
    rss: np.ndarray  # shape: (n_targets,)
    error: float  # estimated, of the coefficients relative to them; 0 where it is within tol
    limited: np.ndarray  # targets of least norm only as far as predictions allow; shape: (n_targets,)
    n_passes: int

    @property
    def n_features(self) -> int:
        """How many columns x has."""
        return self.basis.n_features

    @cached_property
    def transform(self) -> np.ndarray:
        """Coefficients of orthonormal columns that span the basis, of least norm in the user's units.

        Shape: (n_features, rank), in the user's units of x.
        """
        scale = self.basis.scale[: self.n_features, None]
        weights = _across(self.basis, self.null.weights, self.basis.whitening())
        return weights[1:] * scale

    @cached_property
    def inverse(self) -> np.ndarray:
        """What these coordinates are of coefficients in the user's units; shape: (rank, n_features)."""
        return coordinates_of(self.basis, self.null) / self.basis.scale[: self.n_features]

    @cached_property
    def condition_number(self) -> float:
        """Of the basis' own columns with unit norm."""
        basis = self.basis
        if len(basis.levels) == 1:
            largest, smallest = extreme_singular_values(basis.levels[0].upper)
            return largest / smallest
        own = np.concatenate([level.own for level in basis.levels])
        forward = self.inverse[:, own] * basis.scale[own]
        norm = np.linalg.norm(forward, axis=0)
        backward = norm[:, None] * basis.whitening()[1 + own]
        forward /= norm
        return largest_singular_value(forward) * largest_singular_value(backward)

    def in_user_units(self) -> tuple[DoubleDouble, DoubleDouble]:
        """Coefficients, shape (n_features, n_targets), and intercepts, shape (1, n_targets)."""
        return _in_user_units(self.basis, self.coef)

    @np.errstate(over="ignore", invalid="ignore")  # whoever keeps coefficients refuses infinite ones
    def solution(self, solver: str, tol: float) -> Solution:
        """The fit in the user's units."""
        coef, intercept = self.in_user_units()
        held, lost = self._held_by_ridge
        p, rank = self.n_features, self.basis.rank + held
        status = Status.OPTIMAL if rank == p else Status.MINIMUM_NORM
        error = 1.0 if lost else self.error
        if error > tol:
            status = Status.DIGITS_LOST
        elif self.limited.any():
            status = Status.NEARLY_DEPENDENT
        return Solution(
            coef=coef[0] + coef[1],
            intercept=(intercept[0] + intercept[1])[0],
            rank=rank,
            condition_number=self.condition_number,
            solver=solver,
            status=status,
            n_iter=self.n_passes,
            error=error if error > tol else 0.0,
            proven=error <= tol and self._is_below_constant,
        )

    @property
    def _held_by_ridge(self) -> tuple[int, bool]:
        """How many constant columns a ridge holds at 0, and whether it should tell others apart but is lost.

        It makes columns independent that depend on each other, but by less than the rounding of the data.
        """
        counted = self.null.weights[0][1:] != 0
        mixed = counted.sum(0) > 1
        is_penalised = self.basis.ridge > 0
        related = np.concatenate([level.own for level in self.basis.levels] + [self.null.own[mixed]])
        n_held = int(is_penalised.sum() - is_penalised[related].sum())
        return n_held, bool((counted & is_penalised[:, None]).any(0)[mixed].any())

    @property
    def _is_below_constant(self) -> bool:
        """Whether residuals are shorter than those of the best constant, whatever rounding adds to them."""
        basis, p = self.basis, self.n_features
        terms = self.coef[0][1:] * basis.raw_norm[:p, None]
        rounding = 4 * EPS * np.sqrt((terms**2).sum(0)) + ROUNDING_OF_Y * basis.raw_norm[p:]
        longest = (1 + ALLOWED) * np.sqrt(self.rss) + rounding
        return bool((longest < np.sqrt(basis.square[p:])).all())


def fit_on_basis(
    source: Source, ridge: np.ndarray, *, fit_intercept: bool, tol: float, limit: int = MAX_REFINEMENTS
) -> BasisFit:
    """Solve for any condition and rank.

    Where columns depend on each other only up to rounding, which of them form the basis is a choice: then it
    is made in their order, so that the next power of x, say, never takes one away that fitted better. Targets
    that leave no such choice keep their fits.
    """
    fit = _fit(find_basis(source, ridge, fit_intercept=fit_intercept), tol, limit)
    if not fit.limited.any():
        return fit
    search = find_basis(source, ridge, fit_intercept=fit_intercept, in_order=True)
    costs_rank = search.basis.rank < fit.basis.rank - LARGEST_LOSS
    if costs_rank or not search.is_complete:  # as of many columns that each look much like the next
        return replace(fit, n_passes=fit.n_passes + search.n_passes)
    in_order = _fit(search, tol, limit)
    high, low = (np.where(fit.limited, new, old) for new, old in zip(in_order.coef, fit.coef, strict=True))
    return replace(
        in_order,
        coef=(high, low),
        rss=np.where(fit.limited, in_order.rss, fit.rss),
        error=in_order.error if fit.limited.all() else max(in_order.error, fit.error),
        limited=fit.limited & in_order.limited,
        n_passes=fit.n_passes + in_order.n_passes - 1,  # the moments' once
    )


def _fit(search: Search, tol: float, limit: int) -> BasisFit:
    in_levels = len(search.basis.levels) > 1
    found = None if search.basis.source.all_exact or in_levels else _fit_by_sums(search, tol)
    found = found or _fit_by_gradients(search, tol, limit)
    return found if search.is_complete else replace(found, error=1.0)


def _fit_by_sums(search: Search, tol: float) -> BasisFit | None:
    """The fit by residuals whose products are summed in float64; None where that loses digits.

    Residuals in float64 come first, then exact ones.
    """
    basis, null = search.basis, search.null
    columns, null_norm = search.targets, search.null_norm
    k = len(columns.own)
    n_passes = 1 + search.n_passes  # with that of the moments
    for n_slices in (0, 2):
        if n_slices:
            columns = Columns.join([columns, null])
        projection = basis.project(columns, n_slices, with_error=True)
        assert projection.error is not None
        n_passes += 1
        columns = projection.columns.take(slice(k))
        if n_slices:
            null, null_norm = projection.columns.take(slice(k, None)), projection.norm[k:]
        residual_norm = projection.norm[:k]
        accuracy = _Accuracy(basis, projection.error[:, :k], n_slices)
        basic = dd.negative(columns.weights)
        move = Move(basic, null.weights, np.zeros((len(null.own), k)), np.zeros(k, dtype=bool))
        error = accuracy.error_of(basic, move)
        if len(null.own) and (n_slices or error <= tol):
            move = _to_minimum_norm(basis, basic, null, null_norm, residual_norm, accuracy.of_null(null))
            error = accuracy.error_of(basic, move)
        if error <= tol:
            null = Columns(null.own, move.weights)
            return BasisFit(basis, move.coef, null, residual_norm**2, 0.0, move.limited, n_passes)
    return None


def _fit_by_gradients(search: Search, tol: float, limit: int) -> BasisFit:
    """The fit refined by exact gradients."""
    basis, null, null_norm = search.basis, search.null, search.null_norm
    n_passes = 1 + search.n_passes
    measured = len(basis.levels) == 1 or basis.source.all_exact
    if len(null.own) and not measured:
        projection = basis.project(null, 3)
        n_passes += 1
        null, null_norm = projection.columns, projection.norm
    residual_norm = _residual_norm_of_moments(search) if search.rss is None else np.sqrt(search.rss)
    known = null_norm <= EXACTLY * basis.noise(null.weights)
    exactly = basis.source.all_exact or bool(known.any())
    basic = dd.negative(search.targets.weights)
    refined = _refine(basis, basic, null if exactly else null.take(slice(0)), residual_norm, limit)
    n_passes += refined.n_passes
    gains = basis.whitening()
    coef, limited = refined.coef, np.zeros(len(residual_norm), dtype=bool)
    if len(null.own):
        if exactly:
            projection = basis.project(refined.null, 3)
            n_passes += 1
            null, null_norm = projection.columns, projection.norm
        move = _to_minimum_norm(basis, coef, null, null_norm, residual_norm)
        coef, limited, null = move.coef, move.limited, Columns(null.own, move.weights)
        gains = _across(basis, move.weights, gains)
    error = _largest_error(basis, coef, _norms(basis, gains)[:, None] * refined.error, UNCERTAIN)
    return BasisFit(basis, coef, null, residual_norm**2, error if error > tol else 0.0, limited, n_passes)


def _residual_norm_of_moments(search: Search) -> np.ndarray:
    """Norms of what the only level leaves of the targets."""
    basis = search.basis
    level = basis.levels[0]
    cross = basis.scatter[level.own][:, search.targets.own]
    explained = (cross * level.solve(cross)).sum(0)
    return np.sqrt(np.maximum(basis.square[search.targets.own] - explained, 0.0))


@dataclass(frozen=True)
class _Accuracy:
    """Errors that a pass leaves in coefficients of a basis of one level, if its sums are in float64."""

    basis: Basis
    product_error: np.ndarray  # of products of residuals with features; shape: (n_features, n_targets)
    n_slices: int = 0  # with which residuals were formed; 0 for float64

    @cached_property
    def _inverse(self) -> np.ndarray:
        inverse: np.ndarray = np.triu(inverse_of_upper(self.basis.levels[0].upper))
        return inverse

    @cached_property
    def _gain(self) -> np.ndarray:
        """How an error of unit norm in the predictions reaches the coefficients."""
        return np.sqrt((self._inverse**2).sum(1))[:, None] / self.basis.levels[0].norm[:, None]

    @cached_property
    def _gram_gain(self) -> np.ndarray:
        """How squared errors in the normal equations do, if those of each are independent."""
        norm = self.basis.levels[0].norm
        return (self._inverse @ self._inverse.T / norm[:, None] / norm) ** 2

    def of_null(self, null: Columns) -> np.ndarray:
        """Errors of the weights of null vectors; shape: (n_features, n_null)."""
        error = np.zeros_like(null.weights[0][1:])
        error[self.basis.levels[0].own] = self._gain * self._of_residuals(null.weights[0])
        return error

    def _of_residuals(self, weights: np.ndarray) -> np.ndarray:
        """Norms of the errors of residuals, or combinations, of these weights, as columns see them.

        Those of different rows are independent of each other and of the columns.
        """
        terms = weights[1:] * self.basis.framed_norm[: self.basis.n_features, None]
        error = COMBINATION_ERRORS[self.n_slices] / np.sqrt(self.basis.source.n_distinct_rows)
        norms: np.ndarray = error * np.sqrt((terms**2).sum(0))
        return norms

    def error_of(self, basic: DoubleDouble, move: Move) -> float:
        """The largest relative error of a coefficient or intercept.

        Null vectors, along which the basic coefficients were moved, are each off by the errors of residuals.
        """
        basis, p = self.basis, self.basis.n_features
        own = basis.levels[0].own
        error = np.zeros_like(basic[0])
        error[1 + own] = np.sqrt(self._gram_gain @ self.product_error[own] ** 2)
        error[1 + own] += self._gain * self._of_residuals(basic[0])
        moved = self._of_residuals(move.weights[0])[:, None] * np.abs(move.amount)
        error[1 + own] += self._gain * np.sqrt((move.weights[0][1 + own] != 0) @ moved**2)
        error[0] = np.sqrt((((basis.mean + basis.origin)[:p, None] * error[1:]) ** 2).sum(0))
        return _largest_error(basis, move.coef, error, NEGLIGIBLE)


def _largest_error(basis: Basis, coef: DoubleDouble, error: np.ndarray, least: float) -> float:
    """The largest of the errors of the intercept and the coefficients, relative to them."""
    values, counted = _values(basis, coef, np.arange(basis.n_features, len(basis.mean)), least)
    ratio = np.divide(error, values, out=np.zeros_like(values), where=counted)
    return float(ratio.max(initial=0.0))


def _values(
    basis: Basis, coef: DoubleDouble, responses: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes of the intercept as seen from 0 and of the coefficients, and whether they are worth digits.

    Coefficients are where they change predictions by more than `least` of the response, intercepts where they
    are more than the rounding of what they are the sum of, or of the response. Shape of both:
    (1 + n_features, n_responses).
    """
    p = basis.n_features
    center = (basis.mean + basis.origin)[:p]
    values = np.abs(coef[0])
    counted = np.ones_like(values, dtype=bool)
    counted[1:] = values[1:] * basis.framed_norm[:p, None] > least * np.sqrt(basis.square[responses])
    values[0] = np.abs(coef[0][0] + basis.origin[responses] - basis.origin[:p] @ coef[0][1:])
    terms = np.abs(center) @ values[1:] + np.abs(basis.mean + basis.origin)[responses]
    terms += np.sqrt(basis.square[responses] / basis.weight_sum)
    counted[0] = basis.fit_intercept & (responses >= p) & (values[0] > 4 * EPS * terms)
    return values, counted


class _Refined(NamedTuple):
    """Coefficients and null vectors, and the norm that predictions may be off by, per target."""

    coef: DoubleDouble
    null: Columns
    error: np.ndarray
    n_passes: int


def _refine(
    basis: Basis, coef: DoubleDouble, null: Columns, residual_norm: np.ndarray, limit: int
) -> _Refined:
    """Passes with exact gradients, for targets and null vectors, until the next would change nothing."""
    p, k, n_null = basis.n_features, coef[0].shape[1], len(null.own)
    at_own = 1 + null.own, np.arange(n_null)
    explained = tuple(-part for part in null.weights)
    for part in explained:
        part[at_own] = 0.0
    both = tuple(np.concatenate([a, b], axis=1) for a, b in zip(coef, explained, strict=True))
    design = basis.design()
    responses = 1 + np.concatenate([np.arange(p, p + k), null.own])
    square = np.concatenate([basis.square[p : p + k], basis.square[null.own]])
    size = np.where(square > 0, np.sqrt(square), 1.0)
    penalty = np.concatenate([np.zeros(1), basis.ridge])[design][:, None]
    gains = _norms(basis, basis.whitening())[:, None]
    slowest = max(LEAST_RATE, *(2 * level.blur for level in basis.levels))
    depth, floor = _depth(basis, gains, coef, residual_norm)
    previous, active = size.copy(), np.arange(k + n_null if len(design) else 0)
    left = np.zeros(k + n_null)
    n_passes = 0
    while n_passes < limit and len(active):
        here = both[0][:, active], both[1][:, active]
        gradient = basis.source.gradient(design, responses[active], (here[0][design], here[1][design]), depth)
        if basis.ridge.any():
            pull = dd.multiply((here[0][design], here[1][design]), (penalty, np.zeros_like(penalty)))
            gradient = dd.add(gradient, dd.negative(pull))
        whole = np.zeros_like(here[0]), np.zeros_like(here[0])
        whole[0][design], whole[1][design] = gradient
        change, energy = basis.step(whole)
        n_passes += 1
        stalled = energy > 0.5 * previous[active]
        changed = dd.add(here, change)
        for part, new in zip(both, changed, strict=True):
            part[:, active[~stalled]] = new[:, ~stalled]
        rate = np.maximum(energy / previous[active], slowest)
        previous[active] = np.where(energy > 0, energy, 1.0)
        left[active] = rate * energy
        error = gains * left[active]
        now = both[0][:, active], both[1][:, active]
        values, counted = _values(basis, now, responses[active] - 1, ZERO)
        finished = (energy == 0) | ~((error > SETTLED * values) & counted).any(0)
        active = active[~(stalled | finished)]
    n = slice(k, None)
    weights = -both[0][:, n], -both[1][:, n]
    weights[0][at_own] = 1.0
    refined = both[0][:, :k], both[1][:, :k]
    return _Refined(refined, Columns(null.own, weights), left[:k] + floor, n_passes)


def _norms(basis: Basis, whitening: np.ndarray) -> np.ndarray:
    """How an error of unit norm in the predictions reaches the intercept (first) and the coefficients."""
    origin = np.concatenate([[0.0], basis.origin[: basis.n_features]])
    gains = (whitening**2).sum(1)
    gains[0] = ((whitening[0] - origin @ whitening) ** 2).sum() + 1 / basis.weight_sum
    norms: np.ndarray = np.sqrt(gains)
    return norms


def _depth(
    basis: Basis, gains: np.ndarray, coef: DoubleDouble, residual_norm: np.ndarray
) -> tuple[Depth, np.ndarray]:
    """The coarsest slices that leave 12 digits, and the norm of what they leave in the predictions."""
    p = basis.n_features
    terms = np.abs(coef[0][1:]) * basis.framed_norm[:p, None]
    y = np.sqrt(basis.square[p:])
    size = np.sqrt((terms**2).sum(0)) + y
    smallest = min(
        (level.norm / np.maximum(basis.framed_norm[level.own], level.norm)).min(initial=1.0)
        for level in basis.levels
    )
    of_squares = basis.source.square_roundoff * size / smallest
    values, counted = _values(basis, coef, np.arange(p, len(basis.mean)), NEGLIGIBLE)
    choices = DEPTHS[-1:] if basis.source.all_exact else DEPTHS
    for depth in choices:
        floor = depth.product_roundoff / smallest * residual_norm + depth.residual_roundoff * size
        floor = floor + of_squares
        if not (counted & (gains * floor > DEPTH_ERROR * values)).any():
            break
    return depth, floor


def _to_minimum_norm(
    basis: Basis,
    coef: DoubleDouble,
    null: Columns,
    null_norm: np.ndarray,
    residual_norm: np.ndarray,
    null_error: np.ndarray | float = 0.0,
) -> Move:
    """The fit of least norm, as far as the null vectors are known, whose weights may be off by `null_error`.

    In the user's units, if the move there changes predictions by no more than ALLOWED of the residuals; else
    in standard deviations of the columns; else the fit on the basis alone. Each target is judged by itself.
    """
    p = basis.n_features
    weights, norm = basis.cleaned(null, null_norm, null_error)
    live = np.abs(weights[0][1:]).max(1) > 0
    allowed = ALLOWED * residual_norm + ALLOWED_OF_Y * basis.raw_norm[p:]
    spread = np.where(basis.square[:p] > 0, np.sqrt(basis.square[:p]), 1.0)
    moved = coef[0].copy(), coef[1].copy()
    total = np.zeros((len(null.own), coef[0].shape[1]))
    limited = np.ones(coef[0].shape[1], dtype=bool)
    basic = limited.copy()
    for in_user_units, unit in ((True, basis.scale[:p]), (False, spread)):
        power = np.exp2(np.round(np.log2(unit[live])))[:, None]
        along = _times(_part(weights, live), power)
        is_lost = bool(((along[0] == 0) & (weights[0][1:][live] != 0)).any())
        moved_to = None if is_lost else shortest(_times(_part(coef, live), power), along)
        if moved_to is None:
            continue
        found, amount = moved_to
        able = basic & np.isfinite(found[0]).all(0) & (np.abs(amount[0]).T @ norm <= allowed)
        moved_intercept = dd.matmul((weights[0][:1], weights[1][:1]), amount)
        intercept = dd.add((coef[0][:1], coef[1][:1]), moved_intercept)
        for part, new, first in zip(moved, found, intercept, strict=True):
            part[np.ix_(1 + live.nonzero()[0], able)] = (new / power)[:, able]
            part[0, able] = first[0, able]
        total[:, able] = amount[0][:, able]
        basic &= ~able
        limited &= ~(able & in_user_units)
        if not basic.any():
            break
    return Move(moved, weights, total, limited)


def _part(values: DoubleDouble, live: np.ndarray) -> DoubleDouble:
    return values[0][1:][live], values[1][1:][live]


def _times(values: DoubleDouble, power: np.ndarray) -> DoubleDouble:
    return values[0] * power, values[1] * power


def _across(basis: Basis, null: DoubleDouble, weights: np.ndarray) -> np.ndarray:
    """Weights of least norm in the user's units, of all that differ by null vectors."""
    if null[0].shape[1] == 0:
        return weights
    unit = basis.scale[: basis.n_features, None]
    along = null[0][1:] * unit, null[1][1:] * unit
    moved_to = shortest((weights[1:] * unit, np.zeros_like(weights[1:])), along)
    if moved_to is None:
        return weights
    moved, amount = moved_to
    return np.concatenate([weights[:1] + null[0][:1] @ amount[0], moved[0] / unit])


def _in_user_units(basis: Basis, coef: DoubleDouble) -> tuple[DoubleDouble, DoubleDouble]:
    p = basis.n_features
    scale, target_scale = basis.scale[:p], basis.scale[p:]
    exponent = log2_of_units(scale, target_scale)
    features = np.ldexp(coef[0][1:], exponent), np.ldexp(coef[1][1:], exponent)
    zero = np.zeros((1, coef[0].shape[1]))
    if not basis.fit_intercept:
        return features, (zero, zero)
    # Constant columns may be too large to be split.
    origin = np.where(coef[0][1:].any(1), basis.origin[:p], 0.0)[None]
    moved = dd.matmul((origin, np.zeros_like(origin)), (coef[0][1:], coef[1][1:]))
    seen = dd.add((coef[0][:1], coef[1][:1]), (basis.origin[None, p:], zero))
    intercept = dd.add(seen, dd.negative(moved))
    return features, (intercept[0] / target_scale, intercept[1] / target_scale)
