"""Products of linear combinations of columns, which a pass forms row by row.

A combination is ``z = own column + [1, x] @ weights``: a column of the frame, or a target, less what other
columns explain of it. Where little is left, products of z tell far more of it than a Gram matrix of x could.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from torchlinreg._data.rows import Block
from torchlinreg._linalg import double_double as dd
from torchlinreg._moments.exact import ExactMoments, exact_rows
from torchlinreg._moments.gradient import exact_residual
from torchlinreg._moments.moments import Frame

DoubleDouble = tuple[np.ndarray, np.ndarray]


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


class CombinationsOf:
    """Products ``[1, x, z].T @ (weight * z)`` of a block, the last with those of the last `n_new` z only.

    Products are summed in float64. Each z is formed in float64, or with `n_slices` slices, which leave an
    error of 2^-72 (2 slices) or 2^-95 (3) of its largest term.
    """

    def __init__(self, frame: Frame, combinations: Combinations, n_new: int, n_slices: int = 0) -> None:
        device = frame.shift.device
        self._frame = frame
        self._scale = torch.ones_like(frame.shift) if frame.scale is None else frame.scale
        self._n_new = n_new
        self._n_slices = n_slices
        self._n_columns = 1 + combinations.n_features
        self._own = combinations.own
        high, low = combinations.weights
        self._design = np.flatnonzero(np.abs(high).max(1, initial=0.0))
        self._coef = (
            torch.from_numpy(-high[self._design]).to(device),
            torch.from_numpy(-low[self._design]).to(device),
        )
        self._contrast = torch.from_numpy(high.copy()).to(device)
        self._is_shifted = bool(frame.shift[1 : self._n_columns].any())
        features = (self._own < self._n_columns).nonzero()[0]
        self._contrast[self._own[features], features] = 1.0
        self._targets = (self._own >= self._n_columns).nonzero()[0]

    def __call__(self, block: Block) -> torch.Tensor:
        return self._exact(block) if self._n_slices else self._in_float64(block)

    def _in_float64(self, block: Block) -> torch.Tensor:
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
        of_x = self._scale[inside, None] * (X.mT @ new)
        return torch.cat([new.sum(0, keepdim=True), of_x, z.mT @ new])

    def _exact(self, block: Block) -> torch.Tensor:
        """Of rows times powers of two near the square roots of their weights, and what is left of these."""
        rows = exact_rows(block, self._frame)
        design = rows.columns(self._design)
        slices = design.slices(self._n_slices)
        z, _ = exact_residual(slices, design.scale, self._coef, rows.columns(self._own))
        new = z[:, z.shape[1] - self._n_new :]
        if rows.remainder_weight is not None:
            new = new * rows.remainder_weight[:, None]
        inside = slice(self._n_columns)
        return torch.cat([rows.scale[inside, None] * (rows.high[:, inside].mT @ new), z.mT @ new])


def combinations_of_moments(moments: ExactMoments, combinations: Combinations, n_new: int) -> np.ndarray:
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
    return np.concatenate([products[0][:n_columns], squares[0]])
