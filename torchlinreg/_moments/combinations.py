"""Products of linear combinations of columns, which a pass forms row by row.

A combination is ``z = own column + [1, x] @ weights``: a column of the frame, or a target, less what other
columns explain of it. Where little is left, products of z tell far more of it than a Gram matrix of x could.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse

from torchlinreg._data.rows import Block
from torchlinreg._linalg import double_double as dd
from torchlinreg._linalg.cholesky import DoubleDouble
from torchlinreg._linalg.gram import EPS
from torchlinreg._moments.exact import ExactMoments, exact_rows
from torchlinreg._moments.gradient import GradientSums, exact_residual, sums_over_csr, sums_over_rows
from torchlinreg._moments.moments import Frame


@dataclass(frozen=True)
class Combinations:
    """Combinations ``z = own column + [1, x] @ weights`` of a frame's columns.

    The weight of an own column that is a feature is 0: it counts once.
    """

    own: np.ndarray  # columns of the frame ``[1, x, y]``; shape: (n_combinations,)
    weights: DoubleDouble  # shape: (1 + n_features, n_combinations)

    @property
    def n_features(self) -> int:
        """How many columns x has."""
        return len(self.weights[0]) - 1


class CombinationSums(NamedTuple):
    """Products of combinations with the columns of x and with each other, summed over rows in float64."""

    of_x: torch.Tensor  # with [1, x], in the units of the data; shape: (1 + n_features, n_new)
    deviation: torch.Tensor | None  # of `of_x`, as in `GradientSums`, where it is asked for
    of_z: torch.Tensor  # shape: (n_combinations, n_new)

    @staticmethod
    def merge(a: CombinationSums, b: CombinationSums) -> CombinationSums:
        """Products over the rows of both."""
        of_z = a.of_z + b.of_z
        if a.deviation is None or b.deviation is None:
            return CombinationSums(a.of_x + b.of_x, None, of_z)
        sums = GradientSums.merge(GradientSums(a.of_x, a.deviation), GradientSums(b.of_x, b.deviation))
        return CombinationSums(*sums, of_z)


class Products(NamedTuple):
    """Products of combinations in a frame."""

    of_x: np.ndarray  # with [1, x]; shape: (1 + n_features, n_new)
    of_z: np.ndarray  # with each other; shape: (n_combinations, n_new)
    error: np.ndarray | None  # rounding errors of `of_x`, where they are asked for


class CombinationsOf:
    """Products ``[1, x, z].T @ (weight * z)`` of a block, the last with those of the last `n_new` z only.

    Each z is formed in float64, or with `n_slices` slices, which leave an error of 2^-72 (2 slices) or 2^-95 (3)
    of its largest term. `with_error` asks for the rounding errors of products with x, which take longer to
    estimate than the products do.
    """

    def __init__(
        self,
        frame: Frame,
        combinations: Combinations,
        n_new: int,
        n_slices: int = 0,
        *,
        with_error: bool = True,
    ) -> None:
        device = frame.shift.device
        self._frame = frame
        self._scale = torch.ones_like(frame.shift) if frame.scale is None else frame.scale
        self._n_new = n_new
        self._n_slices = n_slices
        self._with_error = with_error
        self._n_columns = 1 + combinations.n_features
        self._own = combinations.own
        self._weights = combinations.weights
        high, low = combinations.weights
        self._design = np.union1d([0], np.flatnonzero(np.abs(high).max(1, initial=0.0)))
        self._coef = (
            torch.from_numpy(-high[self._design]).to(device),
            torch.from_numpy(-low[self._design]).to(device),
        )
        self._contrast = torch.from_numpy(high.copy()).to(device)
        self._is_shifted = bool(frame.shift[1 : self._n_columns].any())
        features = (self._own < self._n_columns).nonzero()[0]
        self._contrast[self._own[features], features] = 1.0
        self._targets = (self._own >= self._n_columns).nonzero()[0]

    def __call__(self, block: Block) -> CombinationSums:
        if block.csr is not None:
            return self._of_csr(block, block.csr.astype(np.float64, copy=False))
        return self._exact(block) if self._n_slices else self._in_float64(block)

    def finish(self, sums: CombinationSums) -> Products:
        """Products in the frame."""
        scale = self._scale[: self._n_columns, None]
        error = None if sums.deviation is None else (EPS * scale * sums.deviation).cpu().numpy()
        return Products((scale * sums.of_x).cpu().numpy(), sums.of_z.cpu().numpy(), error)

    def _sums(self, X: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Products ``[1, X].T @ z``, and their deviation or None."""
        if self._with_error:
            return sums_over_rows(X, z, sparse=True)
        return torch.cat([z.sum(0, keepdim=True), X.mT @ z]), None

    def _of_csr(self, block: Block, X: sparse.csr_array) -> CombinationSums:
        """Straight from the stored entries; the frame does not shift x."""
        scale = self._scale.numpy()
        inside = slice(1, self._n_columns)
        y = (block.y - self._frame.shift[self._n_columns :]).numpy() * scale[self._n_columns :]
        if self._n_slices:
            z = self._exact_csr(X, y)
        else:
            z = X @ (scale[inside, None] * self._contrast[1:].numpy()) + self._contrast[0].numpy()
            z[:, self._targets] += y[:, self._own[self._targets] - self._n_columns]
        new = z[:, z.shape[1] - self._n_new :]
        if block.weight is not None:
            new = new * block.weight.numpy()[:, None]
        of_z = torch.from_numpy(z.T @ new)
        if self._with_error:
            return CombinationSums(*sums_over_csr(X, torch.from_numpy(new)), of_z)
        of_x = np.concatenate([new.sum(0, keepdims=True), X.T @ new])
        return CombinationSums(torch.from_numpy(of_x), None, of_z)

    def _exact_csr(self, X: sparse.csr_array, y: np.ndarray) -> np.ndarray:
        """Combinations from products of slices of entries and of weights, which are exact."""
        high, low = (part.copy() for part in self._weights)
        scale = self._scale.numpy()[1 : self._n_columns, None]
        largest = dd.slice_scale(abs(X).max(axis=0).toarray().ravel())[:, None]
        features = (self._own < self._n_columns).nonzero()[0]
        high[self._own[features], features] = 1.0
        coef = high[1:] * (scale * largest), low[1:] * (scale * largest)
        coef_scale = dd.slice_scale(np.abs(coef[0]).max(0, initial=0.0))
        of_coef = dd.slices(coef[0] / coef_scale, coef[1] / coef_scale, self._n_slices)
        of_X = dd.slices(X.data / largest[X.indices, 0], None, self._n_slices)
        z = np.broadcast_to(high[0], (X.shape[0], len(self._own))).copy()
        z[:, self._targets] += y[:, self._own[self._targets] - self._n_columns]
        rest = np.broadcast_to(low[0], z.shape).copy()
        for level in range(2 * self._n_slices - 1):
            for i in range(max(0, level + 1 - self._n_slices), min(level + 1, self._n_slices)):
                if not of_X[i].any():
                    continue
                part = sparse.csr_array((of_X[i], X.indices, X.indptr), shape=X.shape)
                z, error = dd.two_sum(z, (part @ of_coef[level - i]) * coef_scale)
                rest += error
        return z + rest

    def _in_float64(self, block: Block) -> CombinationSums:
        """X is read where it is if there is no shift; scales go into the weights."""
        assert block.X is not None
        X = block.X.to(torch.float64)
        inside = slice(1, self._n_columns)
        if self._is_shifted:
            X = X - self._frame.shift[inside]
        z = X @ (self._scale[inside, None] * self._contrast[1:]) + self._contrast[0]
        if len(self._targets):
            own = self._own[self._targets]
            y = block.y[:, own - self._n_columns] - self._frame.shift[own]
            z[:, self._targets] += y * self._scale[own]
        new = z[:, z.shape[1] - self._n_new :]
        if block.weight is not None:
            new = new * block.weight[:, None]
        return CombinationSums(*self._sums(X, new), z.mT @ new)

    def _exact(self, block: Block) -> CombinationSums:
        """Of rows times powers of two near the square roots of their weights, and what is left of these."""
        rows = exact_rows(block, self._frame)
        design = rows.columns(self._design)
        slices = design.slices(self._n_slices)
        z, _ = exact_residual(slices, design.scale, self._coef, rows.columns(self._own))
        new = z[:, z.shape[1] - self._n_new :]
        if rows.remainder_weight is not None:
            new = new * rows.remainder_weight[:, None]
        # In the units of the data, like the others. Ones are powers of two near the roots of weights.
        unit = (rows.scale / self._scale)[: self._n_columns, None]
        sums = self._sums(rows.high[:, : self._n_columns], new)
        total, deviation = (None if part is None else part[1:] * unit for part in sums)
        assert total is not None
        return CombinationSums(total, deviation, z.mT @ new)


def combinations_of_moments(moments: ExactMoments, combinations: Combinations, n_new: int) -> Products:
    """Products as `CombinationsOf` sums them, from moments of about 100 bits; their rows may be gone."""
    n_combinations = len(combinations.own)
    n_columns = 1 + combinations.n_features
    contrast = tuple(
        np.concatenate([part, np.zeros((len(moments.high) - n_columns, n_combinations))])
        for part in combinations.weights
    )
    contrast[0][combinations.own, np.arange(n_combinations)] = 1.0
    new = contrast[0][:, n_combinations - n_new :], contrast[1][:, n_combinations - n_new :]
    products = dd.matmul((moments.high.numpy(), moments.low.numpy()), new)
    squares = dd.matmul((contrast[0].T, contrast[1].T), products)
    of_x = products[0][:n_columns]
    return Products(of_x, squares[0], EPS * np.abs(of_x))
