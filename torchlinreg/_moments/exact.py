"""Moments to about 100 bits, for ill-conditioned data and for rows that cannot be read again.

Rows are cut into slices of so few bits that float64 products of slices are exact (Ozaki, Ogita, Oishi,
Rump 2012, Numerical Algorithms 59, 95-118); sums of such products are kept as double-doubles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from torchlinreg._data.rows import Block
from torchlinreg._linalg import double_double as dd
from torchlinreg._moments.moments import Frame, Moments, is_sound, symmetric

N_SLICES = 5
# Products of slices i and j are of the order of 2**(-22 (i + j)); those beyond this level are dropped.
LAST_LEVEL = 4


class ExactRows(NamedTuple):
    """Columns of a block as ``(high + low) * scale``, exact, with ``|high| <= 1``; None is a zero `low`.

    Each row is multiplied by a power of two near the square root of its weight; what is left of the
    weight, between 1/2 and 2, is `remainder_weight` (None without weights).
    """

    high: torch.Tensor  # shape: (n_rows, n_columns)
    low: torch.Tensor | None  # shape: (n_rows, n_columns)
    scale: torch.Tensor  # shape: (n_columns,)
    remainder_weight: torch.Tensor | None  # shape: (n_rows,)

    def columns(self, index: np.ndarray) -> ExactRows:
        """Some of the columns; a view where they are consecutive."""
        chosen: slice | torch.Tensor
        if len(index) and (np.diff(index) == 1).all():
            chosen = slice(int(index[0]), int(index[-1]) + 1)
        else:
            chosen = torch.from_numpy(index).to(self.scale.device)
        low = None if self.low is None else self.low[:, chosen]
        return ExactRows(self.high[:, chosen], low, self.scale[chosen], self.remainder_weight)

    def slices(self, n_slices: int) -> list[torch.Tensor]:
        """Slices of the columns, see `double_double.slices`."""
        return dd.slices(self.high, self.low, n_slices)


def exact_rows(block: Block, frame: Frame) -> ExactRows:
    """The columns ``[1, x, y]`` of a block in a frame without rounding."""
    assert block.X is not None
    n_features = block.X.shape[1]
    columns = torch.empty((len(block.y), len(frame.shift)), dtype=torch.float64, device=block.y.device)
    columns[:, 0] = 1
    columns[:, 1 : 1 + n_features] = block.X
    columns[:, 1 + n_features :] = block.y
    high, low = columns, _shift_exactly(columns, frame.shift)
    factor = torch.ones_like(frame.shift) if frame.scale is None else frame.scale
    remainder_weight = row_scale = None
    if block.weight is not None:
        row_scale, remainder_weight = split_weight(block.weight)
        high *= row_scale
    if frame.scale is not None:
        high *= frame.scale
    scale = dd.slice_scale(high.abs().amax(0))
    high /= scale
    if low is not None:
        low *= factor / scale
        low = low if row_scale is None else low * row_scale
    return ExactRows(high, low, scale, remainder_weight)


def _shift_exactly(columns: torch.Tensor, shift: torch.Tensor) -> torch.Tensor | None:
    """Subtract shifts in place, and return what rounding leaves out; None where that is nothing."""
    shifted = shift.nonzero()[:, 0]
    if len(shifted) == 0:
        return None
    if len(shifted) > len(shift) // 2:
        high, low = dd.two_sum(columns, -shift)
        columns.copy_(high)
        return low if low.any() else None
    high, rest = dd.two_sum(columns[:, shifted], -shift[shifted])
    columns[:, shifted] = high
    if not rest.any():
        return None
    low = torch.zeros_like(columns)
    low[:, shifted] = rest
    return low


def split_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Powers of two, as a column, near the weights' square roots, and weights over their squares."""
    exponent = torch.div(torch.frexp(weight).exponent, 2, rounding_mode="floor")
    positive = weight > 0
    row_scale = torch.where(positive, dd.power_of_two(exponent), 0.0)
    return row_scale[:, None], torch.where(positive, weight / row_scale / row_scale, 1.0)


def exact_product(
    left: list[torch.Tensor], right: list[torch.Tensor], last_level: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """``left.T @ right`` over the rows from their slices, one double-double for each level of magnitude.

    Level ``k``, of the order of ``2**(-22 k)`` of the whole, is the sum of the products of slices ``i`` and
    ``k - i``. Such products are exact in float64 over at most `EXACT_INNER_LENGTH` rows, so the rows are
    cut into batches. Levels beyond the last are dropped. Shape: (n_levels, n_left, n_right).
    """
    n_rows = len(left[0])
    length = n_rows // -(-n_rows // dd.EXACT_INNER_LENGTH)
    n_whole = n_rows // length * length
    partners = torch.cat(right, dim=1)
    width = right[0].shape[1]
    parts = []
    for rows, size in ((slice(0, n_whole), length), (slice(n_whole, n_rows), n_rows - n_whole)):
        if size == 0:
            continue
        of_right = partners[rows].view(-1, size, partners.shape[1])
        shape = len(of_right), last_level + 1, left[0].shape[1], width
        high = torch.zeros(shape, dtype=torch.float64, device=partners.device)
        for i, part in enumerate(left[: last_level + 1]):
            n_partners = min(len(right), last_level + 1 - i)
            of_left = part[rows].reshape(-1, size, part.shape[1])
            products = torch.bmm(of_left.mT, of_right[:, :, : n_partners * width])
            high[:, i : i + n_partners] += products.view(len(products), -1, n_partners, width).transpose(1, 2)
        parts.append(high)
    high = parts[0] if len(parts) == 1 else torch.cat(parts)
    return dd.sum_over_first_axis((high, torch.zeros_like(high)))


@dataclass(frozen=True)
class ExactMoments:
    """`Moments` as a double-double, to about 100 bits of each column's norm; both triangles are meant."""

    frame: Frame
    high: torch.Tensor  # shape: (1 + n_features + n_targets,) * 2
    low: torch.Tensor  # shape: (1 + n_features + n_targets,) * 2
    n_samples: int
    unit_roundoff: float = 2.0**-100

    @staticmethod
    def merge(a: ExactMoments, b: ExactMoments) -> ExactMoments:
        """Moments of the rows of both, about one shift, in the scales that the larger columns need."""
        if a.frame.scale is not b.frame.scale:
            scale = _common_scale(a, b)
            a, b = a.with_scale(scale), b.with_scale(scale)
        high, low = dd.add((a.high, a.low), (b.high, b.low))
        roundoff = max(a.unit_roundoff, b.unit_roundoff)
        return ExactMoments(a.frame, high, low, a.n_samples + b.n_samples, roundoff)

    @property
    def is_sound(self) -> bool:
        """Whether all moments are finite, with room to be split, and no column's squares underflowed."""
        return is_sound(self.high.cpu().numpy())

    def with_scale(self, scale: torch.Tensor | None) -> ExactMoments:
        """The same moments in a frame with other powers of two, or none."""
        factor = torch.ones_like(self.frame.shift) if scale is None else scale
        if self.frame.scale is not None:
            factor = factor / self.frame.scale
        # One after the other: a product of factors might overflow where moments are 0.
        high, low = (part * factor[:, None] * factor for part in (self.high, self.low))
        return ExactMoments(Frame(self.frame.shift, scale), high, low, self.n_samples, self.unit_roundoff)

    @staticmethod
    def from_moments(moments: Moments) -> ExactMoments:
        """Float64 moments, with their rounding errors, ready to be merged with exact ones."""
        raw = symmetric(moments.raw)
        unit_roundoff = max(2.0**-50, 2 * moments.roundoff)
        return ExactMoments(moments.frame, raw, torch.zeros_like(raw), moments.n_samples, unit_roundoff)


def _common_scale(a: ExactMoments, b: ExactMoments) -> torch.Tensor | None:
    """Powers of two that bring columns of both to at most about 1, if they are extreme; None without such.

    A column that is constant on one side has the scale of the other.
    """
    one = torch.ones_like(a.frame.shift)
    of_a, of_b = (one if each.frame.scale is None else each.frame.scale for each in (a, b))
    scale = torch.where(a.high.diagonal() == 0, of_b, torch.minimum(of_a, of_b))
    scale = torch.where(b.high.diagonal() == 0, of_a, scale)
    return None if bool((scale == 1).all()) else scale


class ExactMomentsOf:
    """``ExactMoments`` of a block in a given frame."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame

    def __call__(self, block: Block) -> ExactMoments:
        rows = exact_rows(block, self.frame)
        left = right = rows.slices(N_SLICES)
        factor = rows.scale[:, None] * rows.scale
        if rows.remainder_weight is not None:
            high, low = dd.times_float(rows.high, rows.low, rows.remainder_weight[:, None])
            right = dd.slices(high / 2, low / 2, N_SLICES)  # weights below 2
            factor = 2 * factor
        high, low = dd.sum_over_first_axis(exact_product(left, right, LAST_LEVEL))
        return ExactMoments(self.frame, high * factor, low * factor, len(block.y))
