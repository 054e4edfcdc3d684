"""The exact route for at least as many rows as features.

One pass gives float64 moments and a Cholesky solution. Its error is estimated from the condition number;
where that leaves fewer digits than `tol` asks for, refinement follows: in float64 where that suffices,
else with residuals to about 100 bits (Bjorck 1967; Demmel, Hida, Li, Riedy 2009). Beyond a condition of
about 1e6, where a float64 Gram matrix no longer gives a factor that refinement converges with, the moments
are formed to about 100 bits (Ozaki, Ogita, Oishi, Rump 2012) and factorised in double-double arithmetic,
which also decides the rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from torchlinreg._linalg import double_double as dd
from torchlinreg._linalg.cholesky import (
    MAX_REFINEMENTS,
    DoubleDouble,
    Factor,
    assemble,
    cholesky,
    solve_upper,
)
from torchlinreg._linalg.gram import EPS
from torchlinreg._moments.exact import ExactMoments
from torchlinreg._moments.gradient import DEPTHS, Depth
from torchlinreg._moments.moments import Frame, shift_and_scale
from torchlinreg._objective.problem import Problem
from torchlinreg._objective.solution import Solution, Status

# Rounding error of products of residuals with columns where their signs vary at random, relative to the norms
# of both: four standard deviations, `4 * RMS_ROUNDING * EPS / sqrt(2)`. Others are found out by the pass.
RANDOM_SIGNS = 1.2 * EPS
# Each pass of refinement must shrink the error by this at least, or the float64 factor is not good enough.
SLOWEST_REFINEMENT = 1e-2
# With unit columns, a pivot of the Gram matrix below the square of this is a dependent column: columns that
# were computed as dependent in float64 come out at 1e-16, and conditions up to 1e14 must stay full rank.
RANK_TOLERANCE = 1e-15
# Coefficients that change the prediction by less than this share of y are at the level of rounding; only in
# data of up to SMALL_DATA numbers are they worth a refinement, and below ZERO they pass for zeros. No
# warning is due for those that come from the rounding of y itself.
NEGLIGIBLE = 1e-13
SMALL_DATA = 100_000
ZERO = 1e-20
UNCERTAIN = 1e-15


class Errors(NamedTuple):
    """Estimates of how far off a fit is, per response."""

    gram: np.ndarray | float  # of each normal equation of unit columns; independent of those of the others
    rows: np.ndarray | float  # of the predictions, in norm
    coef: float  # of the coefficients as they are held, relative to them


@dataclass(frozen=True)
class Fit:
    """A fit in a frame: which of the columns ``[1, x, y]`` explain which others, and how well is known."""

    frame: Frame
    n_features: int
    design: np.ndarray  # columns of the frame, the intercept's 0 first if there is one
    responses: np.ndarray  # columns of the frame: y first, then features that depend on the design
    coef: DoubleDouble  # shape: (n_design, n_responses)
    ridge: np.ndarray  # shape: (n_design,)
    factor: Factor
    response_norm: np.ndarray  # shape: (n_responses,)
    rss: np.ndarray  # shape: (n_responses,)
    n_samples: int
    roundoff: float  # of the moments
    cancellation: float  # of squares about the shift to squares about the mean
    refined: Errors | None = None  # those that refinement left, if there was any

    @property
    def n_intercepts(self) -> int:
        """1 with an intercept in the design, else 0."""
        return len(self.design) - len(self.ridge)

    @cached_property
    def units(self) -> tuple[np.ndarray, np.ndarray]:
        """Shifts and scales of the frame's columns."""
        return shift_and_scale(self.frame)

    @property
    def condition_number(self) -> float:
        """Of the design with unit columns."""
        largest, smallest = self.factor.singular_values
        return largest / smallest

    @property
    def _is_of_exact_moments(self) -> bool:
        return self.roundoff < EPS

    @cached_property
    def errors(self) -> Errors:
        """Those that refinement left, or those of the moments."""
        if self.refined is not None:
            return self.refined
        held = EPS**2 if self._is_of_exact_moments else EPS
        return Errors(self.roundoff * self.cancellation * self.total_norm, 0.0, held)

    @cached_property
    def rate(self) -> float:
        """How much a refinement shrinks the error.

        With unit columns, a relative error ``u`` of the Gram matrix moves the coefficients by up to
        ``u / smallest_singular_value**2 * (||coef|| + ||y||)`` in norm. A factor of float64 moments is as
        inaccurate as they are; one of exact moments was rounded to float64 only at the end.
        """
        smallest = self.factor.singular_values[1]
        size = max(1, len(self.ridge)) ** 0.5
        if self._is_of_exact_moments:
            return 8 * size * EPS / smallest
        return 4 * size * self.roundoff * self.cancellation / smallest**2

    @cached_property
    def total_norm(self) -> np.ndarray:
        """Norm of the coefficients of unit columns plus that of the response, per response."""
        scaled = self.coef[0][self.n_intercepts :] * self.factor.norm[:, None]
        return np.sqrt((scaled**2).sum(0)) + self.response_norm

    @property
    def residual_norm(self) -> np.ndarray:
        """Norm of the residuals, at least what rounding leaves of it."""
        return np.sqrt(np.maximum(self.rss, EPS * self.total_norm**2))

    def reaches(self, tol: float) -> bool:
        """Whether the estimated relative error is at most `tol`."""
        if self._error_in_norm <= tol:
            return True
        at_best = self._largest_error(1.0, self._least)
        return at_best <= tol and self.relative_error(self._least) <= tol

    @property
    def _least(self) -> float:
        small = self.n_samples * (1 + len(self.ridge)) <= SMALL_DATA
        return ZERO if small else NEGLIGIBLE

    def relative_error(self, least: float) -> float:
        """The largest relative error of a coefficient or intercept, estimated for each.

        Coefficients below `least` of the response pass for zeros.
        """
        return self._largest_error(self.factor.gains[:, None], least)

    @cached_property
    def _error_in_norm(self) -> float:
        """A bound on `relative_error` from the smallest singular value, which needs no inverse."""
        return self._largest_error(1 / self.factor.singular_values[1], self._least)

    def _largest_error(self, gain: np.ndarray | float, least: float) -> float:
        measure = np.abs(self.coef[0][self.n_intercepts :]) * self.factor.norm[:, None]
        largest = measure.max(0, initial=0.0)
        explained = self.responses <= self.n_features
        if explained.any():  # of columns explained by others, no single coefficient matters by itself
            measure = np.maximum(measure, np.where(explained, largest, 0.0))
        absolute = (self.errors.gram / self.factor.singular_values[1] + self.errors.rows) * gain
        counted = measure > least * np.maximum(largest, self.response_norm)
        ratio = np.divide(absolute, measure, out=np.zeros_like(measure), where=counted)
        worst = float(ratio.max(initial=0.0))
        return max(worst, self._relative_intercept_error()) if self.n_intercepts else worst

    def _relative_intercept_error(self) -> float:
        shift, scale = self.units
        terms = self.factor.shift[:, None] * self.coef[0][1:]
        constant = shift[self.responses] * scale[self.responses]
        intercept = np.abs(constant + self.coef[0][0] - terms.sum(0))
        moved = np.abs(terms).sum(0)
        size = np.abs(constant) + moved + self.response_norm / np.sqrt(self.factor.weight_sum)
        of_gram, of_rows = self.factor.mean_gains
        uncertain = self.errors.gram * of_gram + self.errors.rows * of_rows + self.errors.coef * moved
        # An intercept that is 0 but for rounding has no digits to lose.
        counted = intercept > 4 * EPS * size
        return float(np.divide(uncertain, intercept, out=np.zeros_like(size), where=counted).max())


def solve_cholesky(problem: Problem, tol: float, max_iter: int | None) -> Solution:
    """Normal equations in float64, refined where needed; `solve_exact` where the condition asks for it."""
    fit = _sound_fit_of_moments(problem)
    if fit is None:
        return solve_exact(problem, tol, max_iter)
    return _finish(problem, fit, "cholesky", tol, max_iter, n_passes=1)


def solve_exact(problem: Problem, tol: float, max_iter: int | None) -> Solution:
    """Normal equations accumulated to about 100 bits; any condition and rank."""
    return _finish(problem, _exact_fit(problem), "exact", tol, max_iter, n_passes=2)


def solve_with_fit(problem: Problem, tol: float) -> tuple[Solution, Fit]:
    """The solution that `solve_cholesky` gives, and the fit that it was refined from."""
    fit = _sound_fit_of_moments(problem)
    if fit is not None:
        return _finish(problem, fit, "cholesky", tol, None, n_passes=1), fit
    fit = _exact_fit(problem)
    return _finish(problem, fit, "exact", tol, None, n_passes=2), fit


def _sound_fit_of_moments(problem: Problem) -> Fit | None:
    """The fit of float64 moments, or None where refinement would not converge from it."""
    fit = fit_moments(problem)
    return None if fit is None or fit.rate > SLOWEST_REFINEMENT else fit


def _exact_fit(problem: Problem) -> Fit:
    return fit_exact_moments(
        problem.exact_moments, problem.blocks.n_features, problem.penalty.l2, problem.fit_intercept
    )


def solve_accumulated(
    moments: ExactMoments, n_features: int, l2: np.ndarray, fit_intercept: bool, tol: float
) -> Solution:
    """The same from moments alone, whose rows are gone."""
    return solve_accumulated_with_fit(moments, n_features, l2, fit_intercept, tol)[0]


def solve_accumulated_with_fit(
    moments: ExactMoments, n_features: int, l2: np.ndarray, fit_intercept: bool, tol: float
) -> tuple[Solution, Fit]:
    """The same, and the fit that it comes from."""
    fit = fit_exact_moments(moments, n_features, l2, fit_intercept)
    return _to_solution(fit, "exact", tol, n_passes=1), fit


def fit_moments(problem: Problem) -> Fit | None:
    """Cholesky fit of float64 moments, or None where they are not positive definite."""
    moments = problem.moments
    n_features = problem.blocks.n_features
    raw = moments.raw.cpu().numpy()
    weight_sum = raw[0, 0]
    sums = raw[0, 1:]
    offset = sums / weight_sum if problem.fit_intercept else None
    # In place as far as possible: for 1000 columns, fresh memory costs more than the arithmetic.
    scatter = np.zeros((len(sums), len(sums))) if offset is None else sums[:, None] * -offset
    scatter += raw[1:, 1:]
    ridge = ridge_of(moments.frame, problem.penalty.l2, weight_sum)
    diagonal = scatter.diagonal()[:n_features] + ridge
    total = scatter.diagonal()[n_features:].copy()
    # A constant column equals its shift, which leaves exact zeros; its coefficient of least norm is 0.
    active = ((raw.diagonal()[1 : 1 + n_features] > 0) | (ridge > 0)).nonzero()[0]
    if not (diagonal[active] > 0).all():
        return None
    norm = np.sqrt(diagonal[active])
    gram = scatter[:n_features, :n_features]
    cross = scatter[:n_features, n_features:]
    if len(active) < n_features:
        gram, cross = gram[np.ix_(active, active)], cross[active]
    gram /= norm[:, None]
    gram /= norm
    np.einsum("ii->i", gram)[:] = 1.0
    upper = cholesky(gram)
    if upper is None:
        return None
    factor = Factor(
        upper,
        norm,
        None if offset is None else offset[active],
        _shift_in_frame(moments.frame)[active],
        weight_sum,
    )
    coef = solve_upper(upper, cross / norm[:, None]) / norm[:, None]
    design, coef = _with_intercept(active, offset, coef, n_features)
    cancellation = float((raw.diagonal()[1 + active] / diagonal[active]).max(initial=1.0))
    rss = total - (cross * coef[-len(active) :] if len(active) else cross).sum(0)
    return Fit(
        frame=moments.frame,
        n_features=n_features,
        design=design,
        responses=np.arange(1 + n_features, len(raw)),
        coef=(coef, np.zeros_like(coef)),
        ridge=ridge[active],
        factor=factor,
        response_norm=np.sqrt(raw.diagonal()[1 + n_features :]),
        rss=rss,
        n_samples=moments.n_samples,
        roundoff=moments.roundoff,
        cancellation=cancellation,
    )


def ridge_of(frame: Frame, l2: np.ndarray, weight_sum: float) -> np.ndarray:
    """What the penalty adds to the Gram matrix's diagonal, in the units of the frame."""
    ridge = l2 * weight_sum
    if frame.scale is None or not ridge.any():
        return ridge
    # Columns so small that this overflows have coefficients that underflow; a finite ridge keeps them 0.
    log2_scale = np.log2(frame.scale[1 : 1 + len(l2)].cpu().numpy())
    return np.ldexp(ridge, np.minimum(2 * log2_scale, 900).astype(int))


def _shift_in_frame(frame: Frame) -> np.ndarray:
    """Shifts of x and y in the units of the frame."""
    shift = frame.shift if frame.scale is None else frame.shift * frame.scale
    return shift[1:].cpu().numpy()


def _with_intercept(
    active: np.ndarray, offset: np.ndarray | None, coef: np.ndarray, n_features: int
) -> tuple[np.ndarray, np.ndarray]:
    """Design columns and coefficients of the frame, with the intercept first."""
    if offset is None:
        return 1 + active, coef
    design = np.zeros(1 + len(active), dtype=np.intp)
    design[1:] = 1 + active
    full = np.empty((1 + len(active), coef.shape[1]))
    full[0] = offset[n_features:] - offset[active] @ coef
    full[1:] = coef
    return design, full


def fit_exact_moments(moments: ExactMoments, n_features: int, l2: np.ndarray, fit_intercept: bool) -> Fit:
    """Fit of moments of about 100 bits: independent columns explain y and the dependent columns."""
    raw = moments.high.cpu().numpy(), moments.low.cpu().numpy()
    weight_sum = float(raw[0][0, 0])
    scatter = raw[0][1:, 1:], raw[1][1:, 1:]
    offset = None
    if fit_intercept:
        sums = raw[0][0, 1:], raw[1][0, 1:]
        offset = dd.divide(sums, (raw[0][:1, 0], raw[1][:1, 0]))
        products = dd.multiply((sums[0][:, None], sums[1][:, None]), offset)
        scatter = dd.add(scatter, dd.negative(products))
    ridge = ridge_of(moments.frame, l2, weight_sum)
    penalty = np.zeros(len(raw[0]) - 1)
    penalty[:n_features] = ridge
    scatter = dd.add(scatter, (np.diag(penalty), np.zeros_like(scatter[0])))
    raw_diagonal = raw[0].diagonal()[1:] + penalty
    # A column of which cancellation leaves less than this cannot be told from a constant one.
    resolved = scatter[0].diagonal() > moments.unit_roundoff * raw_diagonal
    inverse_norm = np.where(resolved, 1 / dd.slice_scale(np.sqrt(np.abs(scatter[0].diagonal()))), 0.0)
    unit = (
        scatter[0] * inverse_norm[:, None] * inverse_norm,
        scatter[1] * inverse_norm[:, None] * inverse_norm,
    )
    features = slice(0, n_features)
    independent = resolved[features].nonzero()[0]
    squares = scatter[0].diagonal()[independent]
    cancellation = float((raw_diagonal[independent] / squares).max(initial=1.0))
    tolerance = max(RANK_TOLERANCE**2, 16 * moments.unit_roundoff * cancellation)
    design_gram = unit[0][features, features], unit[1][features, features]
    upper, order, rank = dd.pivoted_cholesky(design_gram, tolerance)
    if rank < n_features:
        # The columns of the largest units stay: the least norm, in the user's units, then has small
        # multipliers.
        units = -np.log2(np.where(resolved, inverse_norm, 1.0)) - np.log2(
            shift_and_scale(moments.frame)[1][1:]
        )
        priority = np.exp2(2 * (units - units.max())[features])
        upper, order, rank = dd.prioritised_cholesky(design_gram, rank, priority)
    active, dependent = order[:rank], np.sort(order[rank:])
    explained = np.concatenate([np.arange(n_features, len(scatter[0])), dependent])
    unit_norm = np.sqrt((upper[:, :rank] ** 2).sum(0))
    norm = unit_norm / inverse_norm[active]
    factor = Factor(
        upper[:, :rank] / unit_norm,
        norm,
        None if offset is None else offset[0][active],
        _shift_in_frame(moments.frame)[active],
        weight_sum,
    )
    gram = scatter[0][np.ix_(active, active)], scatter[1][np.ix_(active, active)]
    cross = scatter[0][np.ix_(active, explained)], scatter[1][np.ix_(active, explained)]
    coef = _solve_refined(factor, gram, cross)
    design = 1 + active
    explained_norm = cross[0] * coef[0]
    if offset is not None:
        shift = dd.matmul((offset[0][active][None], offset[1][active][None]), coef)
        intercept = dd.add((offset[0][explained][None], offset[1][explained][None]), dd.negative(shift))
        coef = np.concatenate([intercept[0], coef[0]]), np.concatenate([intercept[1], coef[1]])
        design = np.concatenate([[0], design])
    rss = scatter[0].diagonal()[explained] - explained_norm.sum(0)
    return Fit(
        frame=moments.frame,
        n_features=n_features,
        design=design,
        responses=1 + explained,
        coef=coef,
        ridge=ridge[active],
        factor=factor,
        response_norm=np.sqrt(raw_diagonal[explained]),
        rss=rss,
        n_samples=moments.n_samples,
        roundoff=moments.unit_roundoff,
        cancellation=cancellation,
    )


def _solve_refined(factor: Factor, gram: DoubleDouble, cross: DoubleDouble) -> DoubleDouble:
    """Solve ``gram @ coef = cross`` to double-double accuracy, preconditioned by the factor."""
    centred = replace(factor, offset=None)
    coef = np.zeros_like(cross[0]), np.zeros_like(cross[0])
    previous = np.full(cross[0].shape[1], np.inf)
    for _ in range(MAX_REFINEMENTS):
        residual = dd.add(cross, dd.negative(dd.matmul(gram, coef)))
        change = centred.solve(residual[0])
        energy = centred.energy(change)
        if (energy > 0.5 * previous).all():
            break
        previous = energy
        coef = dd.add(coef, (change, np.zeros_like(change)))
        if not energy.any():
            break
    return coef


def _after_float64(fit: Fit, gradient: np.ndarray | float) -> Fit:
    """The fit with the errors that a refinement in float64 leaves, by the gradient's in units of columns."""
    left = gradient + fit.rate * fit.errors.gram
    rows = 4 * EPS * _offset_in_norm(fit) / np.sqrt(fit.n_samples) * fit.total_norm
    return replace(fit, refined=Errors(left, rows, EPS**2))


def _at_floor(fit: Fit, depth: Depth) -> Fit:
    """The fit with the errors that refinement with residuals of this depth cannot go below."""
    gram = depth.product_roundoff * fit.cancellation * fit.residual_norm
    rows = depth.residual_roundoff * fit.cancellation * fit.total_norm
    return replace(fit, refined=Errors(gram, rows, EPS**2))


def _cheapest_depth(fit: Fit, tol: float) -> Depth:
    """The coarsest slices with which refinement reaches `tol` with three digits to spare."""
    enough = (depth for depth in DEPTHS if _at_floor(fit, depth).reaches(1e-3 * tol))
    return next(enough, DEPTHS[-1])


def _offset_in_norm(fit: Fit) -> float:
    """How much longer the longest column is as seen from 0 than as seen from its mean."""
    if not fit.n_intercepts:
        return 1.0
    largest = np.square(fit.factor.means).max(initial=0.0)
    return float(np.sqrt(1 + fit.factor.weight_sum * largest))


def _finish(
    problem: Problem, fit: Fit, solver: str, tol: float, max_iter: int | None, n_passes: int
) -> Solution:
    """Refine as far as `tol` asks for, and give the solution in the user's units."""
    limit = MAX_REFINEMENTS if max_iter is None else max_iter
    if limit > 0 and not fit.reaches(tol):
        expected = _after_float64(fit, RANDOM_SIGNS * fit.residual_norm)
        if expected.reaches(tol):
            fit = _refined_in_float64(problem, fit)
            limit -= 1
            n_passes += 1
        if limit > 0 and not fit.reaches(tol):
            fit, passes = refine_exactly(problem, fit, tol, limit)
            n_passes += passes
    return _to_solution(fit, solver, tol, n_passes)


def _refined_in_float64(problem: Problem, fit: Fit) -> Fit:
    """One pass: residuals of the rows, their gradient, and the change that takes it to 0."""
    gradient, error = problem.gradient(fit.frame, fit.design, fit.responses, fit.coef[0])
    first = fit.n_intercepts
    gradient[first:] -= fit.ridge[:, None] * fit.coef[0][first:]
    of_columns = (error[first:] / fit.factor.norm[:, None]).max(0, initial=0.0)
    refined = _after_float64(fit, np.maximum(of_columns, RANDOM_SIGNS * fit.residual_norm))
    return replace(refined, coef=dd.two_sum(fit.coef[0], fit.factor.solve(gradient)))


def refine_exactly(problem: Problem, fit: Fit, tol: float, limit: int) -> tuple[Fit, int]:
    """Passes with exact residuals, until what the next one would change is below rounding."""
    coef = fit.coef
    first = fit.n_intercepts
    penalty = np.zeros((len(fit.design), 1))
    penalty[first:, 0] = fit.ridge
    rate = min(fit.rate, 0.5)
    previous = np.zeros(len(fit.responses))
    depth = _cheapest_depth(fit, tol)
    n_passes = 0
    while n_passes < limit:
        gradient = problem.exact_gradient(fit.frame, fit.design, fit.responses, coef, depth)
        if fit.ridge.any():
            gradient = dd.add(gradient, dd.negative(dd.multiply(coef, (penalty, np.zeros_like(penalty)))))
        change = fit.factor.solve(gradient[0])
        energy = fit.factor.energy(change)
        n_passes += 1
        if n_passes > 1:
            shrunk = np.divide(energy, previous, out=np.zeros_like(energy), where=previous > 0)
            if shrunk.max() > 0.5:
                break
            rate = float(shrunk.max())
        previous = energy
        coef = dd.add(coef, (change, np.zeros_like(change)))
        fit = replace(fit, coef=coef, refined=Errors(0.0, rate * energy, EPS**2))
        if fit.reaches(max(EPS / 4, 1e-3 * tol)):
            break
    floor = _at_floor(fit, depth).errors
    return replace(fit, refined=floor._replace(rows=np.maximum(fit.errors.rows, floor.rows))), n_passes


def _to_solution(fit: Fit, solver: str, tol: float, n_passes: int) -> Solution:
    active = fit.design[fit.design > 0] - 1
    n_features = fit.n_features
    dependent = fit.responses[fit.responses <= n_features] - 1
    coef, intercept = assemble(active, dependent, n_features, *in_user_units(fit))
    status = Status.OPTIMAL if len(active) == n_features else Status.MINIMUM_NORM
    error = 0.0 if fit.reaches(tol) else fit.relative_error(UNCERTAIN)
    if fit.ridge.any() and len(active) < n_features:  # the ridge made the columns independent, but too little
        error = 1.0
    return Solution(
        coef=coef,
        intercept=intercept,
        rank=len(active),
        condition_number=fit.condition_number,
        solver=solver,
        status=status if error <= tol else Status.DIGITS_LOST,
        n_iter=n_passes,
        error=error,
    )


def in_user_units(fit: Fit) -> tuple[DoubleDouble, DoubleDouble]:
    """Coefficients, shape (n_columns, n_responses), and intercepts, shape (1, n_responses)."""
    shift, scale = fit.units
    first = fit.n_intercepts
    columns = fit.design[first:]
    change = scale[columns][:, None] / scale[fit.responses]
    high, low = fit.coef[0][first:] * change, fit.coef[1][first:] * change
    zero = np.zeros((1, len(fit.responses)))
    if not first:
        return (high, low), (zero, zero)
    origin, target = shift[columns][None], shift[fit.responses][None]
    intercept = fit.coef[0][:1] / scale[fit.responses], fit.coef[1][:1] / scale[fit.responses]
    if not low.any():  # a plain float64 fit, whose estimated error allows for this rounding
        return (high, low), (target + intercept[0] - origin @ high, zero)
    in_frame = fit.factor.shift[None]  # where the largest coefficients can still be split
    moved = dd.matmul((in_frame, np.zeros_like(in_frame)), (fit.coef[0][first:], fit.coef[1][first:]))
    moved = moved[0] / scale[fit.responses], moved[1] / scale[fit.responses]
    return (high, low), dd.add(dd.add((target, zero), intercept), dd.negative(moved))
