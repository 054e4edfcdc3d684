"""Rows so large, or of such weight, that a basis of columns fits them as if they were alone.

Rounding of a row of leverage h reaches residuals by the share ``sqrt(1 - h)``: a row that coefficients follow
hardly adds to the noise of a column, however large it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from torchlinreg._data.rows import Block, RowBlocks

# Mean squares of columns over the geometric mean of their squares that are not 0, beyond which rows dominate:
# below it they lengthen a column by a factor of 100 at most, of the 1e14 that it is above its noise.
DOMINANT = 1e4
# Rows that geometric means are estimated from.
SAMPLE_ROWS = 1024
# Shares ``1 - h`` below this are 0. Of what is left of such rows, ``1 - h`` times the square, the other rows
# have as much.
LEAST_SHARE = 1e-6


def has_dominant_rows(blocks: RowBlocks, scale: torch.Tensor) -> bool:
    """Whether a few rows make up most of a column, by a sample of rows, scaled to unit norms."""
    n_sampled = min(blocks.n_samples, SAMPLE_ROWS)
    index = torch.from_numpy(np.linspace(0, blocks.n_samples - 1, n_sampled).round().astype(np.int64))
    sample = blocks.gather(index)
    size = (_rows(sample) * scale).abs() * _weight(sample).sqrt()[:, None]
    counts = (size > 0).sum(0)
    logarithms = torch.where(size > 0, size.log(), 0.0).sum(0) / counts.clamp(min=1)
    n_counted = counts * (blocks.n_samples / n_sampled)
    return bool((DOMINANT * n_counted * (2 * logarithms).exp() < 1)[counts > 0].any())


@dataclass(frozen=True)
class UnfittedSquares:
    """Sums over a block of ``weight (1 - leverage) (x unit)^2``.

    Leverages are those of ``[1, (x - shift) scale] @ basis`` and, if there is one, the intercept.
    """

    basis: torch.Tensor  # orthonormal for the weighted rows; shape: (1 + n_features, rank)
    shift: torch.Tensor  # shape: (n_features,)
    scale: torch.Tensor  # shape: (n_features,)
    unit: torch.Tensor  # shape: (n_features,)
    of_intercept: float  # leverage of a row of weight 1 for the intercept alone

    def __call__(self, block: Block) -> torch.Tensor:
        rows, weight = _rows(block), _weight(block)
        inside = self.basis[0] + ((rows - self.shift) * self.scale) @ self.basis[1:]
        share = 1 - weight * (inside.square().sum(1) + self.of_intercept)
        share = torch.where(share > LEAST_SHARE, share, 0.0)
        return (weight * share) @ (rows * self.unit).square()


def _rows(block: Block) -> torch.Tensor:
    assert block.X is not None
    return block.X.to(torch.float64)


def _weight(block: Block) -> torch.Tensor:
    return torch.ones_like(block.y[:, 0]) if block.weight is None else block.weight
