"""Minima of ill-conditioned columns, refined and certified by gradients of the rows.

At a model (c, b) the rows give residuals r and the gradient ``g = X' r`` to 72 bits and more. The objective
above its minimum is then at most what the quadratic model of the objective expects to gain::

    max over d of  g.d - d'H d / 2 - (penalty(c + d) - penalty(c)),   and half the square of the mean residual

whose maximiser d is the next step (proximal Newton; Lee, Sun, Saunders 2014, SIAM J. Optim. 24, 1420-1443).
Where the model takes ``(1 - rate) H`` for H at least and ``(1 + rate) H`` at most, that is right up to the
factor ``1 / (1 - rate)``: the Gram matrix is only a metric. One of float64 products serves up to a condition
of about 1e7; beyond, a root from QR decompositions of the rows, along the directions that the products do not
resolve, serves up to 1e14.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch

from torchlinreg._data.rows import Block
from torchlinreg._linalg import double_double as dd
from torchlinreg._linalg.cholesky import cholesky, extreme_singular_values
from torchlinreg._linalg.gram import EPS
from torchlinreg._moments.exact import ExactMoments
from torchlinreg._moments.gradient import DEPTHS, Depth
from torchlinreg._moments.moments import Frame, shift_and_scale
from torchlinreg._moments.standardised import Standardised
from torchlinreg._objective.penalty import Penalty
from torchlinreg._objective.problem import Problem
from torchlinreg._solvers.least_squares.basis import MomentsSource, coordinates_of
from torchlinreg._solvers.least_squares.dependence import find_basis
from torchlinreg._solvers.penalised.quadratic import minimum_about
from torchlinreg._solvers.penalised.units import in_units, in_users_units

# A metric may be wrong by this share: steps then halve the error at least.
LARGEST_RATE = 0.5
# Float64 products are a metric up to this share: a better one costs two passes, a step one.
GRAM_RATE = 1e-2
# Eigenvalues of unit columns from here on are those of directions along which float64 products are accurate.
CLEAR = 1e-6
# Steps mostly end after two or three: from 0, a condition of 1e12 needs four.
MAX_STEPS = 10
# A step that leaves more than this share of the gap met the rounding of the coefficients.
NO_PROGRESS = 0.5
# Refinement goes on for so many digits of the objective, which may be far below that of the best constant,
# unless it is rounding itself.
DIGITS = 1e-14
LEAST_VALUE = 1e-30
# Rounding of gradients may add this share of the gap that is asked for.
SHARE_OF_ROUNDING = 1e-3
# Rows are decomposed in blocks of this many times as many as there are columns.
TALL = 8
SMALLEST_BLOCK = 4096
# Gradients at the end of a step are off by this many times the rounding of the root and its change, at most.
SLACK = 10.0
# In directions that rounding hides, coefficients of a minimum are at most so many times the largest found.
LARGEST_COEF = 3.0


@dataclass(frozen=True)
class Centred:
    """The products of columns that are not constant, with targets in units of their spreads."""

    columns: Standardised
    kept: np.ndarray  # features that are not constant
    gram: np.ndarray  # shape: (n_kept, n_kept)
    cross: np.ndarray  # shape: (n_kept, n_targets)
    spread: np.ndarray  # of the kept features, in the user's units
    target_spread: np.ndarray  # shape: (n_targets,)
    target: np.ndarray  # the same, 1 where it is 0
    roundoff: float  # rounding error of the products, relative to the columns' norms

    @cached_property
    def lengthened(self) -> float:
        """How much longer a column is about the frame's shift than about its mean, at most."""
        return float(np.sqrt(self.columns.cancellation.max(initial=1.0)))

    def in_units(self, penalty: Penalty) -> list[Penalty]:
        """The penalty of the kept coefficients in units, for each target."""
        return [in_units(penalty.part(self.kept), self.spread, unit) for unit in self.target]

    def ratio(self, target: int) -> np.ndarray:
        """What turns the user's coefficients of a target into those in units."""
        return self.spread / self.target[target]


def centred(columns: Standardised) -> Centred:
    """Leave out constant columns, and targets' units."""
    kept = columns.spread.nonzero()[0]
    target = np.where(columns.target_spread > 0, columns.target_spread, 1.0)
    return Centred(
        columns,
        kept,
        columns.gram[kept[:, None], kept],
        columns.cross[kept] / target,
        columns.spread[kept],
        columns.target_spread,
        target,
        columns.centred_roundoff,
    )


class Measured(NamedTuple):
    """What rows, or moments, tell of a model, in the frame and over the weight sum."""

    gradient: np.ndarray  # by the intercept first, if there is one; shape: (n_design, n_targets)
    square: np.ndarray  # mean of the squared residuals; shape: (n_targets,)


class Source(Protocol):
    """Rows or moments, as far as refinement asks."""

    @property
    def frame(self) -> Frame:
        """The frame of the measurements."""

    def measure(self, coef: tuple[np.ndarray, np.ndarray], depth: Depth) -> Measured:
        """The gradient at a double-double model of the frame's ``[1, x]``, or ``[x]``."""

    def roundoff(self, depth: Depth) -> tuple[float, float]:
        """Relative errors of the residuals, and of their products with unit columns."""

    def root(self, directions: np.ndarray) -> np.ndarray:
        """``root.T @ root`` is the Gram matrix of these combinations of the centred unit columns."""

    @property
    def root_roundoff(self) -> float:
        """Error of the root, relative to its columns."""

    @property
    def passes(self) -> tuple[int, int]:
        """Over rows, that a measurement and the root cost."""


@dataclass(frozen=True)
class OfRows:
    """Gradients and a root from passes over the rows."""

    problem: Problem
    centred: Centred
    passes: tuple[int, int] = (1, 1)

    @property
    def frame(self) -> Frame:
        """See `Source`."""
        return self.problem.moments.frame

    @cached_property
    def _weight_sum(self) -> float:
        return float(self.problem.moments.raw[0, 0])

    def measure(self, coef: tuple[np.ndarray, np.ndarray], depth: Depth) -> Measured:
        """See `Source`."""
        n_features, n_targets = self.problem.blocks.n_features, coef[0].shape[1]
        first = 0 if self.problem.fit_intercept else 1
        responses = 1 + n_features + np.arange(n_targets)
        design = np.arange(first, 1 + n_features + n_targets)
        # Products of the residuals with the targets, as of columns without coefficients, give their squares.
        nothing = np.zeros((n_targets, n_targets))
        model = np.concatenate([coef[0], nothing]), np.concatenate([coef[1], nothing])
        products = self.problem.exact_gradient(self.frame, design, responses, model, depth)
        weight_sum = np.full((1, 1), self._weight_sum)
        return _measured(dd.divide(products, (weight_sum, np.zeros_like(weight_sum))), coef)

    def roundoff(self, depth: Depth) -> tuple[float, float]:
        """See `Source`; the largest terms are at most sqrt(n) times their root mean square."""
        longest = self.centred.lengthened * self.problem.blocks.n_samples**0.5
        return depth.residual_roundoff * longest, depth.product_roundoff * longest

    @property
    def root_roundoff(self) -> float:
        """See `Source`: that of Householder's QR decomposition, and of subtracting means."""
        return 4 * max(1, len(self.centred.kept)) ** 0.5 * EPS * self.centred.lengthened

    def root(self, directions: np.ndarray) -> np.ndarray:
        """See `Source`; a QR decomposition of each block, and of what blocks leave."""
        blocks = self.problem.blocks
        columns, kept = self.centred.columns, self.centred.kept
        of = _RootOf(
            kept=torch.from_numpy(kept).to(blocks.device),
            shift=torch.from_numpy(columns.shift[kept]).to(blocks.device),
            mean=torch.from_numpy((columns.mean / columns.scale)[kept]).to(blocks.device),
            unit=torch.from_numpy(self.centred.spread).to(blocks.device),
            directions=torch.from_numpy(directions).to(blocks.device),
            weight_sum=self._weight_sum,
        )
        rows = max(SMALLEST_BLOCK, TALL * len(kept))
        return blocks.map_reduce(of, _merged_roots, dense=True, rows_in_place=rows).cpu().numpy()


@dataclass(frozen=True)
class _RootOf:
    """The triangular factor of combinations of a block's centred unit columns."""

    kept: torch.Tensor
    shift: torch.Tensor
    mean: torch.Tensor  # about the shift, so that both differences are nearly exact
    unit: torch.Tensor
    directions: torch.Tensor
    weight_sum: float

    def __call__(self, block: Block) -> torch.Tensor:
        assert block.X is not None
        rows = block.X[:, self.kept].to(torch.float64) - self.shift
        rows -= self.mean
        rows /= self.unit
        weight = torch.ones_like(rows[:, 0]) if block.weight is None else block.weight
        rows *= (weight / self.weight_sum).sqrt()[:, None]
        return torch.linalg.qr(rows @ self.directions, mode="r").R


def _merged_roots(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.linalg.qr(torch.cat([a, b]), mode="r").R


@dataclass(frozen=True)
class OfMoments:
    """Gradients and a root of double-double moments, of rows that are gone."""

    moments: ExactMoments
    centred: Centred
    fit_intercept: bool
    passes: tuple[int, int] = (0, 0)

    @property
    def frame(self) -> Frame:
        """See `Source`."""
        return self.moments.frame

    @cached_property
    def _products(self) -> tuple[np.ndarray, np.ndarray]:
        raw = self.moments.high.cpu().numpy(), self.moments.low.cpu().numpy()
        weight_sum = raw[0][:1, :1], raw[1][:1, :1]
        return dd.divide(raw, weight_sum)

    def measure(self, coef: tuple[np.ndarray, np.ndarray], depth: Depth) -> Measured:
        """See `Source`."""
        first = 0 if self.fit_intercept else 1
        high, low = (products[first:] for products in self._products)
        n_design = len(coef[0])
        features, targets = slice(first, first + n_design), slice(first + n_design, None)
        explained = dd.matmul((high[:, features], low[:, features]), coef)
        total = dd.add((high[:, targets], low[:, targets]), dd.negative(explained))
        return _measured(total, coef)

    def roundoff(self, depth: Depth) -> tuple[float, float]:
        """See `Source`."""
        return 0.0, self.moments.unit_roundoff * self.centred.lengthened**2

    @property
    def root_roundoff(self) -> float:
        """See `Source`."""
        size = max(1, len(self.centred.kept))
        products = self.moments.unit_roundoff * self.centred.lengthened**2
        return max(4 * (size * products) ** 0.5, 4 * size**0.5 * EPS)

    def root(self, directions: np.ndarray) -> np.ndarray:
        """See `Source`."""
        kept = self.centred.kept
        n_features = len(self.centred.columns.spread)
        source = MomentsSource(self.moments, n_features, int(self.fit_intercept))
        search = find_basis(source, np.zeros(n_features), fit_intercept=self.fit_intercept, among=kept)
        basis = search.basis
        unit = self.centred.spread * basis.scale[kept] * np.sqrt(basis.weight_sum)
        return np.asarray(coordinates_of(basis, search.null)[:, kept] / unit @ directions)


def _measured(products: tuple[np.ndarray, np.ndarray], coef: tuple[np.ndarray, np.ndarray]) -> Measured:
    """Of products of the residuals with the design and the targets."""
    high, low = products
    n_design = len(coef[0])
    gradient = high[:n_design], low[:n_design]
    with_targets = high[n_design:].diagonal(), low[n_design:].diagonal()
    explained = dd.sum_over_first_axis(dd.multiply(coef, gradient))
    square = dd.add(with_targets, dd.negative(explained))
    return Measured(gradient[0] + gradient[1], np.maximum(square[0], 0.0))


@dataclass(frozen=True)
class _Metric:
    """The Hessian as float64 products or a root of it, and how well it tells columns apart."""

    root: np.ndarray | None
    smallest: float  # singular value in the directions that it resolves, of columns in units of their norms
    rate: float  # relative error there
    unresolved: float  # error in other directions, relative to the columns; 0 if there are none
    norm: np.ndarray  # of the columns, the ridge included

    @property
    def least_norm(self) -> float:
        """Share of columns' norms below which that of a combination is rounding; 0 if none is."""
        return self.rate * self.smallest / LARGEST_RATE if self.unresolved else 0.0

    def over(self, used: np.ndarray) -> _Metric:
        """The metric among some of the columns, where these alone tell its directions apart."""
        if self.root is None or not self.unresolved:
            return self
        values = np.linalg.svd(self.root[:, used] / self.norm[used], compute_uv=False)
        smallest = float(values.min(initial=1.0)) if len(used) <= len(self.root) else 0.0
        if smallest * LARGEST_RATE <= self.unresolved:
            return self
        rate = self.rate * self.smallest / smallest
        return _Metric(self.root, smallest, rate, 0.0, self.norm) if rate <= LARGEST_RATE else self


def _metric(data: Centred, source: Source, ridge: np.ndarray) -> _Metric:
    """Float64 products where they are accurate enough, else a root, from the rows where they are not.

    Eigenvectors of the products split into those along which they are accurate, and others, along which rows
    are decomposed. Products of one with the other are 0 but for rounding, which counts relative to both.
    """
    size = len(data.kept)
    norm = np.sqrt(1 + ridge)
    hessian = (data.gram + np.diag(ridge)) / norm[:, None] / norm
    error = size * data.roundoff
    upper = cholesky(hessian)
    smallest = 0.0 if upper is None else extreme_singular_values(upper)[1]
    if error <= GRAM_RATE * smallest**2:
        return _Metric(None, smallest, error / smallest**2, 0.0, norm)
    values, vectors = np.linalg.eigh(hessian)
    clear = values > max(CLEAR, error / GRAM_RATE)
    metric = _split_metric(data, source, ridge, values[clear], vectors[:, clear], vectors[:, ~clear])
    if metric.rate <= LARGEST_RATE or not clear.any():
        return metric
    return _split_metric(data, source, ridge, values[:0], vectors[:, :0], vectors)


def _split_metric(
    data: Centred,
    source: Source,
    ridge: np.ndarray,
    values: np.ndarray,
    accurate: np.ndarray,
    others: np.ndarray,
) -> _Metric:
    norm = np.sqrt(1 + ridge)
    of_ridge = (np.sqrt(ridge) / norm)[:, None] * others
    left = np.linalg.qr(np.concatenate([source.root(others / norm[:, None]), of_ridge]), mode="r")
    found = np.linalg.svd(left, compute_uv=False)
    resolved = found[found > source.root_roundoff / LARGEST_RATE]
    root = np.concatenate([np.sqrt(values)[:, None] * accurate.T, left @ others.T]) * norm
    smallest = float(min(resolved.min(initial=1.0), np.sqrt(values.min(initial=1.0))))
    error = source.root_roundoff
    if len(values):
        error += len(ridge) * data.roundoff / float(np.sqrt(values.min()))
    unresolved = source.root_roundoff if len(resolved) < others.shape[1] else 0.0
    return _Metric(root, smallest, error / smallest, unresolved, norm)


class Refined(NamedTuple):
    """Models in the user's units, with what was measured of them."""

    coef: np.ndarray  # shape: (n_features, n_targets)
    intercept: np.ndarray  # shape: (n_targets,)
    values: np.ndarray  # the objectives in units of the squared targets
    gaps: np.ndarray  # at most so much above their minima, in these units
    n_passes: int


def refine(
    problem: Problem, data: Centred, source: Source, coef: np.ndarray, limit: int, enough: float
) -> Refined:
    """From coefficients in the user's units to the minima, as far as float64 can hold them.

    Steps end where the gaps are below `enough`, in units of the squared targets, and not `worth` another, or
    at rounding. There is a measurement after each, and `limit` of them at most; the best model is given.
    """
    inside = data.in_units(problem.penalty)
    metric = _metric(data, source, inside[0].l2)
    depth = _depth(data, source, metric, coef, enough)
    center = data.columns.center
    intercept = data.columns.target_center - center @ coef
    n_passes = source.passes[1] if metric.root is not None else 0
    best: Refined | None = None
    last = np.inf
    for n_steps in range(limit + 1):
        here, goal, mean_residual = _look(problem, data, source, metric, depth, inside, coef, intercept)
        n_passes += source.passes[0]
        best = here if best is None else _better(best, here)
        gap = float(here.gaps.max())
        done = (here.gaps <= np.minimum(enough, worth(here.values))).all()
        if done or not gap <= NO_PROGRESS * last or n_steps == limit:
            break
        rest = _at_rest(problem, data)
        worse = here.values > rest.values
        if n_steps == 0 and worse.any():
            # Products that tell no columns apart lead anywhere, and each step back gains but a few digits.
            coef = np.where(worse, rest.coef, coef)
            intercept = np.where(worse, rest.intercept, intercept)
            continue
        last = gap
        if problem.fit_intercept:
            intercept = intercept + (mean_residual - center @ (goal - coef))
        coef = goal
    assert best is not None
    return _not_above_constants(problem, data, best._replace(n_passes=n_passes))


def worth(values: np.ndarray) -> np.ndarray:
    """Gaps that are worth a pass over the rows, at objectives of these values in units."""
    return DIGITS * np.maximum(values, LEAST_VALUE)


def _depth(data: Centred, source: Source, metric: _Metric, coef: np.ndarray, enough: float) -> Depth:
    """The coarsest slices whose rounding does not matter, for coefficients like these."""
    size = 1 + float(np.abs(coef[data.kept] * data.spread[:, None] / data.target).sum(0).max())
    # A first guess may be far too small; what the target is worth of the least direction is not.
    size = max(size, 1 / metric.smallest)
    for depth in DEPTHS:
        if _error(data, source, metric, depth, size) ** 2 <= SHARE_OF_ROUNDING * enough:
            return depth
    return DEPTHS[-1]


def _error(data: Centred, source: Source, metric: _Metric, depth: Depth, size: float) -> float:
    """What rounding of measurements may add to the predictions' distance from the minimum."""
    of_residuals, of_products = _measured_errors(source, depth, size)
    return of_residuals + of_products * max(1, len(data.kept)) ** 0.5 / metric.smallest


def _measured_errors(source: Source, depth: Depth, size: float) -> tuple[float, float]:
    """Rounding errors of residuals and of their products with unit columns, of a model of this size."""
    of_residuals, of_products = source.roundoff(depth)
    # Residuals are at most about as large as the target; moments multiply coefficients themselves.
    return of_residuals * size, of_products * (1.0 if of_residuals else size)


def _look(
    problem: Problem,
    data: Centred,
    source: Source,
    metric: _Metric,
    depth: Depth,
    inside: list[Penalty],
    coef: np.ndarray,
    intercept: np.ndarray,
) -> tuple[Refined, np.ndarray, np.ndarray]:
    """Measure a model; how far it is above the minimum, the coefficients there, and the mean residuals."""
    first = int(problem.fit_intercept)
    columns, kept = data.columns, data.kept
    shift, scale = shift_and_scale(source.frame)
    n_features = len(coef)
    scale_x, scale_y = scale[1 : 1 + n_features], scale[1 + n_features :]
    in_frame = coef * scale_y / scale_x[:, None]
    model = in_frame, np.zeros_like(in_frame)
    if first:
        high, low = _constant(coef, intercept, shift[1 : 1 + n_features], shift[1 + n_features :])
        model = np.vstack([high * scale_y, model[0]]), np.vstack([low * scale_y, model[1]])
    gradient, square = source.measure(model, depth)
    mean_residual = gradient[0] / scale_y if first else np.zeros(len(scale_y))
    by_columns = gradient[first:][kept]
    if first:
        by_columns = by_columns - np.outer(columns.mean[kept], gradient[0])
    by_columns = by_columns / (data.spread * scale_x[kept])[:, None] / (data.target * scale_y)
    goal = coef.copy()
    gaps, values = np.empty(len(scale_y)), np.empty(len(scale_y))
    part = problem.penalty.part(kept)
    for k, penalty in enumerate(inside):
        origin = coef[kept, k] * data.ratio(k)
        before = 1 + float(np.abs(origin).sum())
        descent = minimum_about(
            origin,
            by_columns[:, k],
            data.gram,
            metric.root,
            penalty,
            rounding=sum(_measured_errors(source, depth, before)),
            unresolved=metric.least_norm,
        )
        moved = coef[kept, k] + descent.step / data.ratio(k)
        ends = in_users_units(descent.goal, penalty, part, data.spread, data.target[k])
        at_end = (descent.goal == 0) | (descent.goal == penalty.lower) | (descent.goal == penalty.upper)
        goal[kept, k] = np.where(at_end, ends, np.clip(moved, part.lower, part.upper)) + 0.0
        values[k] = square[k] / (data.target[k] * scale_y[k]) ** 2 / 2 + float(penalty.value(origin))
        size = 1 + float(np.abs(descent.goal).sum())
        gain = descent.gain + (mean_residual[k] / data.target[k]) ** 2 / 2
        # Coefficients that rest, by more than rounding may hide, do so at the minimum, too.
        moved_by = float(np.abs(descent.step).sum()) + float(np.sqrt(2 * gain))
        slack = SLACK * (source.root_roundoff * moved_by + _error(data, source, metric, depth, size))
        among = metric.over((descent.pull >= -slack).nonzero()[0])
        error = _error(data, source, among, depth, size) + among.unresolved * LARGEST_COEF * size
        gap = float(np.sqrt(2 * gain / (1 - among.rate)) + error) ** 2 / 2
        # No objective is below 0.
        gaps[k] = min(
            gap if descent.converged else np.inf,
            values[k] + _error(data, source, metric, depth, before),
        )
    return Refined(coef, intercept, values, gaps, 0), goal, mean_residual


def _constant(
    coef: np.ndarray, intercept: np.ndarray, shift: np.ndarray, target_shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The intercept about the frame's shifts, ``intercept + shift @ coef - target_shift``, exactly."""
    total = dd.two_sum(intercept, -target_shift)
    if not shift.any():
        return total
    high, low = dd.two_product(np.broadcast_to(shift[:, None], coef.shape), coef)
    return dd.add(total, dd.sum_over_first_axis((high, low)))


def _better(a: Refined, b: Refined) -> Refined:
    """Of each target, the model of the smaller gap or, where none is known, the lower objective."""
    take = (b.gaps < a.gaps) | ((b.gaps == a.gaps) & (b.values < a.values))
    coef, intercept, values, gaps = (np.where(take, new, old) for old, new in zip(a[:4], b[:4], strict=True))
    return Refined(coef, intercept, values, gaps, a.n_passes)


def _at_rest(problem: Problem, data: Centred) -> Refined:
    """The models of coefficients nearest to zero; where that is not 0, their objectives pass for infinite."""
    penalty, columns = problem.penalty, data.columns
    rest = np.clip(0.0, penalty.lower, penalty.upper)
    coef = np.repeat(rest[:, None], len(data.target), axis=1)
    intercept = columns.target_center - columns.center @ coef
    values = np.where(rest.any(), np.inf, 0.5 * (data.target_spread > 0))
    return Refined(coef, intercept, values, values, 0)


def _not_above_constants(problem: Problem, data: Centred, found: Refined) -> Refined:
    """The models, or the best constants where these are better and coefficients of 0 are allowed."""
    constants = _at_rest(problem, data)
    worse = found.values > constants.values
    if not worse.any():
        return found
    coef, intercept, values = (
        np.where(worse, new, old) for new, old in zip(constants[:3], found[:3], strict=True)
    )
    gaps = np.where(worse, np.minimum(found.gaps, values), found.gaps)
    return Refined(coef, intercept, values, gaps, found.n_passes)
