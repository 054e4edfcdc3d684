"""The exact route for at least as many rows as features.

One pass gives float64 moments and a Cholesky solution. Its error is estimated from the condition number;
where that leaves fewer digits than `tol` asks for, refinement follows: in float64 where that suffices,
else with residuals to about 100 bits (Bjorck 1967; Demmel, Hida, Li, Riedy 2009). Beyond a condition of
about 1e6, where a float64 Gram matrix no longer gives a factor that refinement converges with, a basis is
found by further passes over the rows, which also decide the rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from torchlinreg._linalg import double_double as dd
from torchlinreg._linalg.cholesky import MAX_REFINEMENTS, DoubleDouble, Factor, cholesky, solve_upper
from torchlinreg._linalg.gram import EPS, LONGEST_SUM
from torchlinreg._moments.exact import ExactMoments
from torchlinreg._moments.gradient import DEPTHS, Depth
from torchlinreg._moments.moments import Frame, log2_of_units, shift_and_scale
from torchlinreg._objective.problem import SMALL_DATA, Problem
from torchlinreg._objective.solution import Solution, Status
from torchlinreg._solvers.least_squares.basis import DEPENDENT, MomentsSource, RowsSource
from torchlinreg._solvers.least_squares.basis_fit import NEGLIGIBLE, UNCERTAIN, ZERO, BasisFit, fit_on_basis

# Rounding error of products of residuals with columns where their signs vary at random, relative to the norms
# of both: four standard deviations, `4 * RMS_ROUNDING * EPS / sqrt(2)`. Others are found out by the pass.
RANDOM_SIGNS = 1.2 * EPS
# Each pass of refinement must shrink the error by this at least, or the float64 factor is not good enough.
SLOWEST_REFINEMENT = 1e-2


class Errors(NamedTuple):
    """Estimates of how far off a fit is, per response."""

    gram: np.ndarray | float  # of each normal equation of unit columns; independent of those of the others
    mean: np.ndarray | float  # of the intercept's
    rows: np.ndarray | float  # of the predictions, in norm
    coef: float  # of the coefficients as they are held, relative to them


@dataclass(frozen=True)
class Fit:
    """A fit of columns ``[1, x]`` that are far from depending on each other, in a frame."""

    frame: Frame
    n_features: int
    design: np.ndarray  # columns of the frame, the intercept's 0 first if there is one
    responses: np.ndarray  # columns of the frame: y
    coef: DoubleDouble  # shape: (n_design, n_responses)
    ridge: np.ndarray  # shape: (n_design,)
    held: np.ndarray  # features that are constant, of coefficients that a ridge holds at 0
    held_ridge: np.ndarray
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

    @cached_property
    def errors(self) -> Errors:
        """Those that refinement left, or those of the moments."""
        if self.refined is not None:
            return self.refined
        gram = self.roundoff * self.cancellation * self.total_norm
        return Errors(gram, gram, 0.0, EPS)

    @cached_property
    def rate(self) -> float:
        """How much a refinement shrinks the error.

        With unit columns, a relative error ``u`` of the Gram matrix moves the coefficients by up to
        ``u / smallest_singular_value**2 * (||coef|| + ||y||)`` in norm.
        """
        size = max(1, len(self.ridge)) ** 0.5
        return 4 * size * self.roundoff * self.cancellation / self.factor.singular_values[1] ** 2

    @cached_property
    def total_norm(self) -> np.ndarray:
        """Norm of the coefficients of unit columns plus that of the response, per response."""
        scaled = self.coef[0][self.n_intercepts :] * self.factor.norm[:, None]
        return np.sqrt((scaled**2).sum(0)) + self.response_norm

    @property
    def residual_norm(self) -> np.ndarray:
        """Norm of the residuals, at least what rounding leaves of it."""
        return np.sqrt(np.maximum(self.rss, EPS * self.total_norm**2))

    @property
    def is_below_constant(self) -> bool:
        """Whether the explained part is more than errors and rounding of the predictions could undo.

        In the norm of the Gram matrix, the ridge included, the objective at c is ``|c - optimum|^2 / 2``
        above the optimum's, that at 0 ``|optimum|^2 / 2``.
        """
        first = self.n_intercepts
        shift, scale = self.units
        columns, roots = self.design[first:], np.sqrt(self.factor.weight_sum)
        terms = np.abs(self.coef[0][first:])
        offset = np.abs(shift * scale)
        largest = self.factor.norm
        if first:
            largest = largest + roots * (np.abs(self.factor.means) + offset[columns])
        rounding = 4 * EPS * (largest @ terms + roots * offset[self.responses])
        error = self.errors.gram / self.factor.singular_values[1] + self.errors.rows + rounding
        return bool((self.factor.energy(self.coef[0]) > 2 * error).all())

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
        errors, (of_gram, of_mean, of_rows) = self.errors, self.factor.mean_gains
        uncertain = (
            errors.gram * of_gram + errors.mean * of_mean + errors.rows * of_rows + errors.coef * moved
        )
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
    """Least squares on a well-conditioned basis of the columns; any condition and rank."""
    return basis_fit_of_rows(problem, tol, max_iter).solution("exact", tol)


def solve_with_fit(problem: Problem, tol: float) -> tuple[Solution, Fit | BasisFit]:
    """The solution that `solve_cholesky` gives, and the fit that it was refined from."""
    fit = _sound_fit_of_moments(problem)
    if fit is not None:
        return _finish(problem, fit, "cholesky", tol, None, n_passes=1), fit
    on_basis = basis_fit_of_rows(problem, tol)
    return on_basis.solution("exact", tol), on_basis


def solve_accumulated(
    moments: ExactMoments, n_features: int, l2: np.ndarray, fit_intercept: bool, tol: float
) -> Solution:
    """Least squares from moments alone, whose rows are gone."""
    return solve_accumulated_with_fit(moments, n_features, l2, fit_intercept, tol)[0]


def solve_accumulated_with_fit(
    moments: ExactMoments, n_features: int, l2: np.ndarray, fit_intercept: bool, tol: float
) -> tuple[Solution, BasisFit]:
    """Least squares from moments alone, and the fit that it comes from."""
    source = MomentsSource(moments, n_features, int(fit_intercept), l2)
    ridge = ridge_of(source.frame, l2, float(source.raw[0, 0]))
    fit = fit_on_basis(source, ridge, fit_intercept=fit_intercept, tol=tol)
    return replace(fit.solution("exact", tol), n_iter=1), fit


def basis_fit_of_rows(problem: Problem, tol: float, max_iter: int | None = None) -> BasisFit:
    """The fit on a basis that passes over the rows find."""
    source = RowsSource(problem)
    ridge = ridge_of(source.frame, problem.penalty.l2, float(source.raw[0, 0]))
    limit = MAX_REFINEMENTS if max_iter is None else max_iter
    return fit_on_basis(source, ridge, fit_intercept=problem.fit_intercept, tol=tol, limit=limit)


def _sound_fit_of_moments(problem: Problem) -> Fit | None:
    """The fit of float64 moments, or None where refinement would not converge from it."""
    fit = fit_moments(problem)
    return None if fit is None or fit.rate > SLOWEST_REFINEMENT else fit


def fit_moments(problem: Problem) -> Fit | None:
    """Cholesky fit of float64 moments, or None where they are not positive definite."""
    moments = problem.moments
    n_features = problem.blocks.n_features
    # A constant column equals its shift, which leaves exact zeros; its coefficient of least norm is 0, as is
    # that of the least penalty.
    varies = moments.on_host.diagonal()[1 : 1 + n_features] > 0
    moments = moments.for_ridge(problem.penalty.l2)
    raw = moments.on_host
    weight_sum = raw[0, 0]
    sums = raw[0, 1:]
    offset = sums / weight_sum if problem.fit_intercept else None
    # In place as far as possible: for 1000 columns, fresh memory costs more than the arithmetic.
    scatter = np.zeros((len(sums), len(sums))) if offset is None else sums[:, None] * -offset
    scatter += raw[1:, 1:]
    ridge = ridge_of(moments.frame, problem.penalty.l2, weight_sum)
    diagonal = scatter.diagonal()[:n_features] + ridge
    total = scatter.diagonal()[n_features:].copy()
    active = varies.nonzero()[0]
    norm = np.sqrt(np.maximum(diagonal[active], 0.0))
    about_zero = norm
    if offset is not None:
        from_zero = np.abs(offset + _shift_in_frame(moments.frame))[active]
        about_zero = np.hypot(norm, np.sqrt(weight_sum) * from_zero)
    if not (norm > DEPENDENT * EPS * about_zero).all():
        return None
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
        held=(~varies & (ridge > 0)).nonzero()[0],
        held_ridge=ridge[~varies & (ridge > 0)],
        factor=factor,
        response_norm=np.sqrt(raw.diagonal()[1 + n_features :]),
        rss=rss,
        n_samples=moments.n_samples,
        roundoff=moments.roundoff,
        cancellation=cancellation,
    )


def ridge_of(frame: Frame, l2: np.ndarray, weight_sum: float) -> np.ndarray:
    """What the penalty adds to the Gram matrix's diagonal, in the units of the frame."""
    if not l2.any():
        return l2
    mantissa, exponent = np.frexp(l2)
    of_weights, power = np.frexp(weight_sum)
    scale = shift_and_scale(frame)[1][1 : 1 + len(l2)]
    # In this order neither the weight sum nor the scales alone take it beyond float64.
    ridge: np.ndarray = np.ldexp(mantissa * of_weights, exponent + power + 2 * (np.frexp(scale)[1] - 1))
    return ridge


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


def _after_float64(
    fit: Fit, n_distinct_rows: float, columns: np.ndarray | float = 0.0, ones: np.ndarray | float = 0.0
) -> Fit:
    """The fit with the errors that a refinement in float64 leaves.

    They are at least those of random signs, or what was measured of the gradient of unit columns and of
    `ones`. Products of ones with residuals are of their size, and only stacks of them are summed in sequence;
    a column may hold most of its products in one stack.
    """
    of_columns = np.maximum(columns, RANDOM_SIGNS * fit.residual_norm)
    in_stacks = min(1.0, LONGEST_SUM / n_distinct_rows) ** 0.5
    of_ones = np.maximum(ones, in_stacks * RANDOM_SIGNS * fit.residual_norm)
    before = fit.rate * fit.errors.gram
    rows = 4 * EPS * _offset_in_norm(fit) / np.sqrt(n_distinct_rows) * fit.total_norm
    return replace(fit, refined=Errors(of_columns + before, of_ones + before, rows, EPS**2))


def _at_floor(fit: Fit, depth: Depth) -> Fit:
    """The fit with the errors that refinement with residuals of this depth cannot go below."""
    gram = depth.product_roundoff * fit.cancellation * fit.residual_norm
    rows = depth.residual_roundoff * fit.cancellation * fit.total_norm
    return replace(fit, refined=Errors(gram, gram, rows, EPS**2))


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
        expected = _after_float64(fit, problem.n_distinct_rows)
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
    of_ones = error[:first].sum(0) / fit.factor.weight_sum**0.5
    refined = _after_float64(fit, problem.n_distinct_rows, of_columns, of_ones)
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
        fit = replace(fit, coef=coef, refined=Errors(0.0, 0.0, rate * energy, EPS**2))
        if fit.reaches(max(EPS / 4, 1e-3 * tol)):
            break
    floor = _at_floor(fit, depth).errors
    return replace(fit, refined=floor._replace(rows=np.maximum(fit.errors.rows, floor.rows))), n_passes


@np.errstate(over="ignore", invalid="ignore")  # whoever keeps coefficients refuses infinite ones
def _to_solution(fit: Fit, solver: str, tol: float, n_passes: int) -> Solution:
    active = fit.design[fit.design > 0] - 1
    (high, low), intercept = in_user_units(fit)
    coef = np.zeros((fit.n_features, len(fit.responses)))
    coef[active] = high + low
    rank = len(active) + len(fit.held)
    status = Status.OPTIMAL if rank == fit.n_features else Status.MINIMUM_NORM
    error = 0.0 if fit.reaches(tol) else fit.relative_error(UNCERTAIN)
    return Solution(
        coef=coef,
        intercept=(intercept[0] + intercept[1])[0],
        rank=rank,
        condition_number=fit.condition_number,
        solver=solver,
        status=status if error <= tol else Status.DIGITS_LOST,
        n_iter=n_passes,
        error=error,
        proven=fit.is_below_constant,
    )


def in_user_units(fit: Fit) -> tuple[DoubleDouble, DoubleDouble]:
    """Coefficients, shape (n_columns, n_responses), and intercepts, shape (1, n_responses)."""
    shift, scale = fit.units
    first = fit.n_intercepts
    columns = fit.design[first:]
    exponent = log2_of_units(scale[columns], scale[fit.responses])
    high, low = np.ldexp(fit.coef[0][first:], exponent), np.ldexp(fit.coef[1][first:], exponent)
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
