"""A well-conditioned basis of columns that may depend on each other.

Basis columns are combinations ``z = [1, x] @ weights`` in *levels*: the first holds columns less their means,
each further one what the levels before leave of other columns. Levels are orthogonal to each other but for
rounding, so that each has a factor of its own. Weights are double-doubles, for z may be tiny sums of large
terms.

A ridge adds rows ``sqrt(ridge_j) e_j`` to x, and so ``w' diag(ridge) w`` to squares of z.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch

from torchlinreg._linalg import double_double as dd
from torchlinreg._linalg.cholesky import DoubleDouble, inverse_of_upper, solve_upper
from torchlinreg._linalg.gram import EPS
from torchlinreg._moments.combinations import (
    Combinations,
    CombinationsOf,
    CombinationSums,
    Products,
    combinations_of_moments,
)
from torchlinreg._moments.exact import ExactMoments
from torchlinreg._moments.gradient import Depth
from torchlinreg._moments.moments import Frame, scale_for_ridge, symmetric
from torchlinreg._objective.problem import Problem
from torchlinreg._solvers.least_squares.dominant_rows import UnfittedSquares, has_dominant_rows

# A column depends on others where what they leave of it is below so many rounding errors of the data, half a
# unit in the last place of each. Of dependences as users make them (degrees in two scales, shares of a whole,
# sums of 400 columns) 0.3 to 3.8 are left; two columns that are equal to 1e-14 leave 71, a Hilbert matrix of
# order 12 leaves 232. The geometric mean of 3.8 and 71 is 16; with 4 to 64 all these come out the same.
DEPENDENT = 16.0
# Relative errors of combinations in float64 and with 2 and 3 slices.
COMBINATION_ERRORS = {0: 4 * EPS, 2: 2.0**-72, 3: 2.0**-95}
# Pivots this far above the errors of combinations let refinement converge by a factor of 30 a pass.
FLOOR = 1e3


class Source(Protocol):
    """What a search reads: products of columns whose norms about their means are between 1/2 and 1."""

    frame: Frame
    raw: np.ndarray  # moments in the frame, both triangles; shape: (1 + n_features + n_targets,) * 2
    n_features: int
    roundoff: float  # of the moments, relative to the norms of both columns about the shift
    square_roundoff: float  # of squares of combinations, relative to those of their terms
    all_exact: bool  # whether combinations in float64 save nothing

    @property
    def n_distinct_rows(self) -> float:
        """How many different rows average the rounding of combinations out."""
        ...

    def products(
        self, combinations: Combinations, n_new: int, n_slices: int, *, with_error: bool = False
    ) -> Products:
        """Products ``[1, x, z].T @ z_new``; see `CombinationsOf`."""
        ...

    def gradient(
        self, design: np.ndarray, responses: np.ndarray, coef: DoubleDouble, depth: Depth
    ) -> DoubleDouble:
        """``design.T @ (responses - design @ coef)`` of columns of the frame."""
        ...

    def unfitted_norm(self, basis: Basis) -> np.ndarray | None:
        """Norms about 0 of columns without what the basis fits of rows on their own; None if that is none."""
        ...


def _unit_scale(
    raw: np.ndarray, scale: torch.Tensor | None, n_intercepts: int, l2: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Moments and scales of columns with norms about their means (about the shift without) near 1.

    They are less where a ridge of these strengths would overflow otherwise.
    """
    squares = raw.diagonal().copy()
    if n_intercepts:
        centred = squares - raw[0] ** 2 / raw[0, 0]
        squares = np.where(centred > 4 * EPS * squares, centred, squares)
    factor = 1 / dd.slice_scale(np.sqrt(squares))
    factor[0] = 1.0
    old = np.ones(len(raw)) if scale is None else scale.cpu().numpy()
    new = old * factor if l2 is None else scale_for_ridge(old * factor, l2, float(raw[0, 0]))
    factor = new / old
    return raw * factor[:, None] * factor, new


class RowsSource:
    """`Source` of rows, each request a pass."""

    square_roundoff = 0.0

    def __init__(self, problem: Problem) -> None:
        moments = problem.moments
        raw, scale = _unit_scale(
            symmetric(moments.raw).cpu().numpy(),
            moments.frame.scale,
            problem.fit_intercept,
            problem.penalty.l2,
        )
        self._problem = problem
        self.frame = Frame(moments.frame.shift, torch.from_numpy(scale).to(moments.frame.shift.device))
        self.raw = raw
        self.n_features = problem.blocks.n_features
        self.roundoff = moments.roundoff
        self.all_exact = problem.is_small
        self._has_dominant_rows: bool | None = None  # once it is asked for

    @property
    def n_distinct_rows(self) -> float:
        return self._problem.n_distinct_rows

    def products(
        self, combinations: Combinations, n_new: int, n_slices: int, *, with_error: bool = False
    ) -> Products:
        of = CombinationsOf(self.frame, combinations, n_new, n_slices, with_error=with_error)
        blocks = self._problem.blocks
        sums = blocks.map_reduce(
            of, CombinationSums.merge, dense=not blocks.is_sparse, width=2 * len(combinations.own)
        )
        return of.finish(sums)

    def gradient(
        self, design: np.ndarray, responses: np.ndarray, coef: DoubleDouble, depth: Depth
    ) -> DoubleDouble:
        return self._problem.exact_gradient(self.frame, design, responses, coef, depth)

    def unfitted_norm(self, basis: Basis) -> np.ndarray | None:
        """See `Source`; a pass for each basis, if rows are of very different size."""
        shift, scale = self._features_frame
        norm = torch.from_numpy(basis.raw_norm[: self.n_features]).to(scale.device)
        norm = torch.where(norm > 0, norm, 1.0)
        if self._has_dominant_rows is None:
            self._has_dominant_rows = has_dominant_rows(self._problem.blocks, scale / norm)
        if not self._has_dominant_rows:
            return None
        of = UnfittedSquares(
            basis=torch.from_numpy(basis.whitening()).to(shift.device),
            shift=shift,
            scale=scale,
            unit=scale / norm,
            of_intercept=basis.fit_intercept / basis.weight_sum,
        )
        squares: torch.Tensor = self._problem.blocks.map_reduce(of, torch.add, dense=True)
        return (norm * squares.sqrt()).cpu().numpy()

    @property
    def _features_frame(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Shifts and scales of the features."""
        features = slice(1, 1 + self.n_features)
        assert self.frame.scale is not None
        return self.frame.shift[features], self.frame.scale[features]


class MomentsSource:
    """`Source` of moments whose rows are gone."""

    all_exact = True
    n_distinct_rows = 1.0  # of which nothing is known

    def __init__(
        self, moments: ExactMoments, n_features: int, n_intercepts: int, l2: np.ndarray | None = None
    ) -> None:
        _, scale = _unit_scale(moments.high.cpu().numpy(), moments.frame.scale, n_intercepts, l2)
        moments = moments.with_scale(torch.from_numpy(scale).to(moments.high.device))
        self.frame = moments.frame
        self._moments = replace(moments, high=moments.high.cpu(), low=moments.low.cpu())
        self.raw = self._moments.high.numpy()
        self.n_features = n_features
        self.square_roundoff = moments.unit_roundoff
        self.roundoff = max(EPS, moments.unit_roundoff)

    def products(
        self, combinations: Combinations, n_new: int, n_slices: int, *, with_error: bool = False
    ) -> Products:
        return combinations_of_moments(self._moments, combinations, n_new)

    def gradient(
        self, design: np.ndarray, responses: np.ndarray, coef: DoubleDouble, depth: Depth
    ) -> DoubleDouble:
        high, low = self._moments.high.numpy(), self._moments.low.numpy()
        gram, cross = np.ix_(design, design), np.ix_(design, responses)
        explained = dd.matmul((high[gram], low[gram]), coef)
        return dd.add((high[cross], low[cross]), dd.negative(explained))

    def unfitted_norm(self, basis: Basis) -> np.ndarray | None:
        """See `Source`; of rows that are gone nothing is known."""
        return None


@dataclass(frozen=True)
class Level:
    """Basis columns that are about equally long, and the factor of their Gram matrix with unit columns."""

    own: np.ndarray  # features
    weights: DoubleDouble | None  # z = [1, x] @ weights; None for z = x - mean
    norm: np.ndarray
    upper: np.ndarray
    blur: float  # errors of z, relative to the smallest singular value

    def solve(self, products: np.ndarray) -> np.ndarray:
        """Coefficients of the level's columns from products with them."""
        return solve_upper(self.upper, products / self.norm[:, None]) / self.norm[:, None]


@dataclass(frozen=True)
class Columns:
    """Combinations of features, or of targets (from `n_features` on)."""

    own: np.ndarray
    weights: DoubleDouble  # shape: (1 + n_features, n_columns)

    def take(self, index: np.ndarray | slice) -> Columns:
        """Select combinations by index."""
        return Columns(self.own[index], (self.weights[0][:, index], self.weights[1][:, index]))

    @staticmethod
    def join(parts: list[Columns]) -> Columns:
        """Put combinations side by side."""
        high, low = zip(*(part.weights for part in parts), strict=True)
        own = np.concatenate([part.own for part in parts])
        return Columns(own, (np.concatenate(high, axis=1), np.concatenate(low, axis=1)))


class Projection(NamedTuple):
    """Columns less their projection on a basis."""

    columns: Columns
    before: np.ndarray  # products of the columns with each other
    products: np.ndarray  # products of what the projection leaves
    # Of products with features about their means, where it is asked for; shape: (n_features, n_columns)
    error: np.ndarray | None

    @property
    def norm(self) -> np.ndarray:
        """Norms of what the projection leaves."""
        return np.sqrt(np.maximum(self.products.diagonal(), 0.0))


class Basis:
    """Levels of basis columns, and the projection on them.

    Coordinates are those of the source's frame. Squares and products include the ridge's.
    """

    def __init__(self, source: Source, ridge: np.ndarray, *, fit_intercept: bool) -> None:
        raw, p = source.raw, source.n_features
        self.source = source
        self.ridge = ridge
        self.fit_intercept = fit_intercept
        self.n_features = p
        self.weight_sum = float(raw[0, 0])
        self.mean = raw[0, 1:] / self.weight_sum if fit_intercept else np.zeros(len(raw) - 1)
        self.scatter = raw[1:, 1:] - np.outer(raw[0, 1:], self.mean)
        np.einsum("ii->i", self.scatter)[:p] += ridge
        self.square = np.maximum(self.scatter.diagonal(), 0.0)
        assert source.frame.scale is not None
        self.scale = source.frame.scale[1:].cpu().numpy()
        self.origin = source.frame.shift[1:].cpu().numpy() * self.scale  # the shift in the frame
        bare = self.square.copy()
        bare[:p] = np.maximum(bare[:p] - ridge, 0.0)
        from_zero = np.sqrt(self.weight_sum) * np.abs(self.mean + self.origin)
        self.raw_norm = np.hypot(np.sqrt(bare), from_zero)  # about 0
        self.framed_norm = np.sqrt(np.maximum(raw.diagonal()[1:], 0.0))  # about the shift
        self.levels: tuple[Level, ...] = ()
        self.noisy_norm = self.raw_norm[:p]  # of what rounding of the data is relative to
        self._follow_dominant_rows()

    @property
    def rank(self) -> int:
        """How many basis columns there are."""
        return sum(len(level.own) for level in self.levels)

    def design(self) -> np.ndarray:
        """Columns of the frame that the basis is made of, the ones first if there is an intercept."""
        own = np.sort(np.concatenate([level.own for level in self.levels])) + 1
        return np.concatenate([[0], own]) if self.fit_intercept else own

    def centred(self, own: np.ndarray) -> Columns:
        """Columns less their means."""
        high = np.zeros((1 + self.n_features, len(own)))
        features = (own < self.n_features).nonzero()[0]
        high[1 + own[features], features] = 1.0
        if self.fit_intercept:
            high[0] = -self.mean[own]
        return Columns(own, (high, np.zeros_like(high)))

    def noise(self, weights: DoubleDouble) -> np.ndarray:
        """Norm of what rounding of the data, by half a unit in the last place, makes of combinations."""
        raw = np.sqrt(((weights[0][1:] * self.noisy_norm[:, None]) ** 2).sum(0))
        return self.noise_of_terms(raw, self._terms(weights))

    def noise_of_terms(self, raw: np.ndarray, framed: np.ndarray) -> np.ndarray:
        """Norm of the rounding of data whose terms have norms `raw` about 0 and `framed` about the shift."""
        return np.hypot(EPS * raw, self.source.square_roundoff**0.5 / DEPENDENT * framed)

    def _terms(self, weights: DoubleDouble) -> np.ndarray:
        """Norms of the terms that combinations are added up from."""
        return np.sqrt(((weights[0][1:] * self.framed_norm[: self.n_features, None]) ** 2).sum(0))

    def least_error(self, weights: DoubleDouble) -> np.ndarray:
        """Norm of the errors of combinations whose terms are as many slices as there are."""
        return min(COMBINATION_ERRORS.values()) * self._terms(weights)

    def combination_error(self, weights: DoubleDouble, n_slices: int) -> np.ndarray:
        """Norm of the errors that combinations are formed with."""
        of_squares = np.sqrt(10 * self.source.square_roundoff) / FLOOR
        return (COMBINATION_ERRORS[n_slices] + of_squares) * self._terms(weights)

    def cleaned(
        self, null: Columns, norm: np.ndarray, error: np.ndarray | float = 0.0
    ) -> tuple[DoubleDouble, np.ndarray]:
        """Null vectors without terms below their rounding or `error`, and norms of what they miss then."""
        size = np.abs(null.weights[0][1:])
        length = size * self.raw_norm[: self.n_features, None]
        small = (length <= EPS * np.sqrt((length**2).sum(0))) | (size <= error)
        small[null.own, np.arange(len(null.own))] = False
        high, low = null.weights[0].copy(), null.weights[1].copy()
        high[1:][small] = low[1:][small] = 0.0
        left_out = np.where(small, size * self.framed_norm[: self.n_features, None], 0.0)
        return (high, low), norm + np.sqrt((left_out**2).sum(0))

    def less(self, columns: Columns, level: Level, delta: np.ndarray) -> Columns:
        """Columns less ``z_level @ delta``."""
        if level.weights is not None:
            step = dd.negative(dd.matmul(level.weights, (delta, np.zeros_like(delta))))
        else:
            step = np.zeros_like(columns.weights[0]), np.zeros_like(columns.weights[0])
            step[0][1 + level.own] = -delta
            if self.fit_intercept:
                mean = self.mean[level.own][None]
                moved = dd.matmul((mean, np.zeros_like(mean)), (delta, np.zeros_like(delta)))
                step[0][0], step[1][0] = moved[0][0], moved[1][0]
        return Columns(columns.own, dd.add(columns.weights, step))

    def project(self, columns: Columns, n_slices: int, *, with_error: bool = False) -> Projection:
        """Columns less their projection on the basis; one pass."""
        p = self.n_features
        later = [Columns(level.own, level.weights) for level in self.levels if level.weights is not None]
        formed = Columns.join([*later, columns])
        n_new = len(columns.own)
        high, low = formed.weights
        mean = high[0] + self.mean[:p] @ high[1:]
        mean += np.where(formed.own >= p, self.mean[formed.own], 0.0)
        own = (formed.own < p).nonzero()[0]
        rest = high.copy(), low.copy()
        rest[0][1 + formed.own[own], own] = rest[1][1 + formed.own[own], own] = 0.0
        combinations = Combinations(1 + formed.own, rest)
        sums = self.source.products(combinations, n_new, n_slices, with_error=with_error)
        total = sums.of_x[0] if self.fit_intercept else np.zeros(n_new)
        # Weights give means up to rounding, which may be larger than what is left.
        mean[len(mean) - n_new :] = total / self.weight_sum
        penalty = self.ridge[:, None] * high[1:, high.shape[1] - n_new :]
        of_x = sums.of_x[1:] - np.outer(self.mean[:p], total) + penalty
        of_z = sums.of_z - np.outer(mean, total) + high[1:].T @ penalty
        start = 0
        before = of_z[len(formed.own) - n_new :]
        after = before.copy()
        for level in self.levels:
            if level.weights is None:
                cross = of_x[level.own]
            else:
                cross = of_z[start : start + len(level.own)]
                start += len(level.own)
            delta = level.solve(cross)
            after -= cross.T @ delta
            columns = self.less(columns, level, delta)
        moved = np.zeros_like(columns.weights[0])
        moved[0] = -total / self.weight_sum
        moved_to = Columns(columns.own, dd.add(columns.weights, (moved, np.zeros_like(moved))))
        error = None if sums.error is None else np.hypot(sums.error[1:], self.mean[:p, None] * sums.error[:1])
        return Projection(moved_to, before, after, error)

    def with_level(self, level: Level) -> None:
        """Take another level in."""
        self.levels = (*self.levels, level)
        self._follow_dominant_rows()

    def _follow_dominant_rows(self) -> None:
        """Leave out of the noise what the basis fits of rows on their own, if the source knows rows."""
        norm = self.source.unfitted_norm(self)
        if norm is not None:
            self.noisy_norm = norm

    def step(self, gradient: DoubleDouble) -> tuple[DoubleDouble, np.ndarray]:
        """What takes a gradient over ``[1, x]`` to 0: weights, and the norms of the predictions' change."""
        change = Columns(np.zeros(0), (np.zeros_like(gradient[0]), np.zeros_like(gradient[0])))
        energy = np.zeros(gradient[0].shape[1])
        for level in self.levels:
            if level.weights is None:
                products = gradient[0][1 + level.own], gradient[1][1 + level.own]
                if self.fit_intercept:
                    mean = self.mean[level.own][:, None]
                    moved = dd.multiply((mean, np.zeros_like(mean)), (gradient[0][:1], gradient[1][:1]))
                    products = dd.add(products, dd.negative(moved))
            else:
                products = dd.matmul((level.weights[0].T, level.weights[1].T), gradient)
            delta = level.solve(products[0] + products[1])
            energy += ((level.upper @ (delta * level.norm[:, None])) ** 2).sum(0)
            change = self.less(change, level, -delta)
        if self.fit_intercept:
            change.weights[0][0] += gradient[0][0] / self.weight_sum
        return change.weights, np.sqrt(energy)

    def whitening(self) -> np.ndarray:
        """Weights of orthonormal combinations that span the basis; shape: (1 + n_features, rank)."""
        parts = [np.zeros((1 + self.n_features, 0))]
        for level in self.levels:
            inverse = np.triu(inverse_of_upper(level.upper)) / level.norm[:, None]
            if level.weights is not None:
                parts.append(level.weights[0] @ inverse)
                continue
            part = np.zeros((1 + self.n_features, len(level.own)))
            part[1 + level.own] = inverse
            part[0] = -self.mean[level.own] @ inverse
            parts.append(part)
        return np.concatenate(parts, axis=1)


def coordinates_of(basis: Basis, null: Columns) -> np.ndarray:
    """Coordinates of features, in the frame, among the orthonormal columns of `Basis.whitening`.

    Columns that depend on the basis have those that their null vectors say. Shape: (rank, n_features).
    """
    left = np.eye(basis.n_features)
    left -= null.weights[0][1:] @ left[null.own]  # x_c is [1, x] @ w, less x_c itself
    parts: list[np.ndarray] = []
    for level in basis.levels[::-1]:
        here = left[level.own]
        parts.append(level.upper @ (level.norm[:, None] * here))
        if level.weights is not None:
            left -= level.weights[0][1:] @ here
    return np.concatenate(parts[::-1])
