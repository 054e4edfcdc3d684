"""Wide rows: their products with each other, and exact products with few columns, read in small pieces.

A piece stays in the caches while it is cut into slices, whose float64 products are exact; see `exact`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from torchlinreg._data.rows import RowBlocks
from torchlinreg._linalg import double_double as dd

# A piece and its slices fit into the cache of a core, and are not so small that calls count: 500 x 5000 takes
# 11 ms in these, 28 in pieces of 128 KiB.
PIECE_BYTES = 2**20
# A GPU wants few calls.
CUDA_PIECE_BYTES = 64 * 2**20
# Rows that must be moved or converted first are multiplied with each other in parts of their columns of this
# size: 500 x 5000 in 29 to 38 ms, with 2 MiB in 40.
KERNEL_BYTES = 8 * 2**20
# Panels of rows, since only a triangle counts.
KERNEL_PANELS = 6


@dataclass(frozen=True)
class WideRows:
    """Rows ``(x - origin) * scale``, which are exact in float64.

    Parameters
    ----------
    blocks : RowBlocks
    origin : Tensor of shape (n_features,)
        The mean of columns that lie within half of it and twice of it, from which float64 subtract it
        without rounding (Sterbenz); 0 for others, whose spread is of the size of their mean.
    scale : float
        A power of two.
    largest : Tensor of shape (n_features,)
        Powers of two at or above the magnitudes of the rows.
    """

    blocks: RowBlocks
    origin: torch.Tensor
    scale: float
    largest: torch.Tensor

    def kernel(self, mean: torch.Tensor) -> np.ndarray:
        """Products of the rows about a mean with each other, in float64; shape (n_samples, n_samples).

        Only the upper triangle counts.
        """
        n_samples = self.blocks.n_samples
        kernel = torch.zeros((n_samples,) * 2, dtype=torch.float64, device=mean.device)
        step = self.blocks.rows_per_block
        starts = range(0, n_samples, step)
        for start, block in zip(starts, self.blocks.dense(), strict=True):
            for other_start, other in zip(starts, self.blocks.dense(), strict=True):
                if other_start < start:
                    continue
                assert block.X is not None
                assert other.X is not None
                part = kernel[start : start + step, other_start : other_start + step]
                self._add_products(part, block.X, None if other_start == start else other.X, mean)
        return kernel.cpu().numpy()

    def _add_products(
        self, total: torch.Tensor, left: torch.Tensor, right: torch.Tensor | None, mean: torch.Tensor
    ) -> None:
        """Add the products of two blocks, or the upper triangle of those of one with itself."""
        panel = -(-len(left) // KERNEL_PANELS)
        as_they_are = self.scale == 1 and left.dtype == torch.float64 and not bool(mean.any())
        n_columns = len(mean) if as_they_are else max(1, KERNEL_BYTES // (8 * len(left)))
        for start in range(0, len(mean), n_columns):
            columns = slice(start, start + n_columns)
            of_left = self._moved(left[:, columns], mean[columns])
            if right is not None:
                total.addmm_(of_left, self._moved(right[:, columns], mean[columns]).mT)
                continue
            for first in range(0, len(left), panel):
                rows = slice(first, first + panel)
                total[rows, first:].addmm_(of_left[rows], of_left[first:].mT)

    def _moved(self, rows: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        rows = rows.to(torch.float64)
        rows = rows - shift if bool(shift.any()) else rows
        return rows if self.scale == 1 else rows * self.scale

    def times(self, coef: tuple[np.ndarray, np.ndarray], n_slices: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows times a double-double of shape (n_features, n_columns), as a double-double; one pass.

        Rounding is below ``2**-70`` of the largest terms for two slices of the rows, ``2**-90`` for three.
        """
        partners, scale = self._slices_of(coef, self.largest[:, None], n_slices)
        parts = [self._levels(rows, partners, scale, n_slices) for _, rows in self._pieces()]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def vector_times(
        self, vector: np.ndarray, coef: tuple[np.ndarray, np.ndarray], n_slices: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `times`, of a given row, a column here, that is not larger than others; shape (1, n_columns)."""
        partners, scale = self._slices_of(coef, self.largest[:, None], n_slices)
        return self._levels(torch.from_numpy(vector.T).to(scale.device), partners, scale, n_slices)

    def transposed_times(
        self, values: tuple[np.ndarray, np.ndarray], n_slices: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """``rows.T @ values`` of a double-double of shape (n_samples, n_columns), as one; one pass."""
        ones = torch.ones((1, 1), dtype=torch.float64, device=self.origin.device)
        partners, scale = self._slices_of(values, ones, n_slices)
        width = partners.shape[1] // (n_slices + 1)
        sums = [
            torch.zeros(
                (len(self.origin), partners.shape[1] - k * width), dtype=torch.float64, device=ones.device
            )
            for k in range(n_slices)
        ]
        for index, rows in self._pieces():
            for of_slice, part in zip(sums, self._slices(rows, n_slices), strict=True):
                of_slice.addmm_(part.mT, partners[index, : of_slice.shape[1]])
        return _total(sums, scale)

    def _pieces(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Pieces of the rows and where they are."""
        n_bytes = CUDA_PIECE_BYTES if self.origin.is_cuda else PIECE_BYTES
        n_rows = max(1, n_bytes // (8 * len(self.origin)))
        start = 0
        for block in self.blocks.dense():
            assert block.X is not None
            for piece in torch.split(block.X, n_rows):
                yield slice(start, start + len(piece)), self._moved(piece, self.origin)
                start += len(piece)

    def transposed_times_roughly(self, values: np.ndarray) -> np.ndarray:
        """As `transposed_times`, in float64."""
        right = torch.from_numpy(values).to(self.origin.device)
        total = torch.zeros((len(self.origin), right.shape[1]), dtype=torch.float64, device=right.device)
        for index, rows in self._pieces():
            total.addmm_(rows.mT, right[index])
        return total.cpu().numpy()

    @property
    def _bits(self) -> int:
        """Bits of a slice, with the sign, so that sums over rows or columns are exact."""
        return (55 - max(self.blocks.n_samples, self.blocks.n_features).bit_length()) // 2

    def _slices(self, rows: torch.Tensor, n_slices: int) -> Iterator[torch.Tensor]:
        """Slices of the rows as `double_double.slices` cuts them, each column in units of its largest."""
        for k in range(n_slices - 1):
            sigma = self.largest * (1.5 * 2.0 ** (53 - self._bits * (k + 1)))
            part = rows + sigma
            part -= sigma
            yield part
            rows = rows - part
        yield rows

    def _slices_of(
        self, values: tuple[np.ndarray, np.ndarray], unit: torch.Tensor, n_slices: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Slices of a factor of the rows side by side, one more than of the rows, and their scale."""
        high, low = (torch.from_numpy(part).to(unit.device) * unit for part in values)
        scale = dd.slice_scale(high.abs().amax(0))
        slices = dd.slices(high / scale, low / scale, n_slices + 1, bits=self._bits)
        return torch.cat(slices, dim=1) / unit, scale

    def _levels(
        self, rows: torch.Tensor, partners: torch.Tensor, scale: torch.Tensor, n_slices: int
    ) -> tuple[np.ndarray, np.ndarray]:
        width = len(scale)
        parts = enumerate(self._slices(rows, n_slices))
        return _total([part @ partners[:, : (n_slices + 1 - k) * width] for k, part in parts], scale)


def _total(of_slices: list[torch.Tensor], scale: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Sum of products of slices, of which the k-th lie beside those of level k and later ones."""
    width = len(scale)
    high, low = of_slices[0][:, :width] * scale, torch.zeros_like(of_slices[0][:, :width])
    for level in range(1, len(of_slices) + 1):
        parts = [
            part[:, (level - k) * width : (level - k + 1) * width]
            for k, part in enumerate(of_slices[: level + 1])
        ]
        high, error = dd.two_sum(high, torch.stack(parts).sum(0) * scale)
        low = low + error
    high, low = dd.two_sum(high, low)
    return high.cpu().numpy(), low.cpu().numpy()
