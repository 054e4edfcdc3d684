"""The product of rows with themselves, which is most of a fit's time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch

# Fewer numbers are multiplied at once; of fewer rows by NumPy, since torch's threads may take milliseconds to
# wake.
SMALL = 2**18
SMALL_ROWS = 1024
# On a CPU, rows are written into a buffer and multiplied there, each core's share by itself, in panels of
# columns that leave out most of the lower triangle: 2e5 x 102 in 24 to 35 ms on two cores, where a symmetric
# product of OpenBLAS takes 45 and torch's 27 to 45. Panels are counted from the last column, hold multiples
# of the 24 columns that kernels take at a time, and begin on lines of the cache.
SHARE_BYTES = 2 * 2**20
NARROW = 64  # up to so many columns, where lines begin does not matter
PANELS = ((256, 24), (512, 48))  # up to so many columns: so many to a panel
WIDE_PANEL = 72
LINE = 8  # numbers in a line of the cache
# Sums of so many products at most, and then of these: errors of 1e-16, where in one sum of 1e6 positive
# products those of 4e-15 add up. It costs no time.
LONGEST_SUM = 1024
# Where the sums of all cores' shares were larger, the cores share one, of more rows.
SUMS_BYTES = 16 * 2**20
SHARED_ROWS, SHARED_BYTES = 2048, 64 * 2**20
# Fresh memory costs more than to write to it again, so that few rows are written in parts, too; of this size.
PARTS, PART_BYTES, PART_ROWS = 4, 2**20, 512
# A GPU has no such caches, and few calls are better.
CUDA_BYTES = 256 * 2**20
# torch gives fewer numbers to one thread.
PARALLEL = 32768


class UpperGram:
    """``rows.T @ rows`` of rows that the caller writes into a buffer, some at a time.

    The buffer is kept for further calls, so that one thread may call it at a time. Only the upper triangle of
    a result counts. With `has_ones`, the first column is 1, unless every call writes it.
    """

    def __init__(self, n_columns: int, device: torch.device, *, has_ones: bool = False) -> None:
        self._n_columns = n_columns
        self._device = device
        self._has_ones = has_ones
        self._buffer: _Buffer | None = None

    def __call__(self, n_rows: int, write: Callable[[slice, torch.Tensor], object]) -> torch.Tensor:
        """The product of `n_rows` rows, of which ``write(part, out)`` writes those of a slice."""
        if n_rows * self._n_columns == 0:
            return torch.zeros((self._n_columns,) * 2, dtype=torch.float64, device=self._device)
        if n_rows * self._n_columns < SMALL and self._device.type == "cpu":
            rows = np.empty((n_rows, self._n_columns))
            if self._has_ones:
                rows[:, 0] = 1
            write(slice(0, n_rows), torch.from_numpy(rows))
            return _small_gram(rows)
        if self._buffer is None or self._buffer.is_too_small_for(n_rows):
            self._buffer = _Buffer(n_rows, self._n_columns, self._device)
            if self._has_ones:
                self._buffer.rows[:, : columns_at_once(*self._buffer.rows.shape)] = 1
        buffer = self._buffer
        buffer.begin()
        for start in range(0, n_rows, len(buffer.rows)):
            part = slice(start, min(start + len(buffer.rows), n_rows))
            n_written = part.stop - start
            write(part, buffer.rows[:n_written])
            if n_written < len(buffer.rows):
                buffer.rows[n_written:] = 0
            buffer.add_products()
        if self._has_ones:
            buffer.rows[n_written:, 0] = 1
        return buffer.total()

    def of_scaled(self, rows: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """The product of rows times a factor each, shape (n_rows,)."""
        factor = factor[:, None]
        return self(len(rows), lambda part, out: torch.mul(rows[part], factor[part], out=out))


class _Buffer:
    """Rows for the cores' caches, what is multiplied with what, and the sums of the products so far."""

    def __init__(self, n_rows: int, n_columns: int, device: torch.device) -> None:
        self._n_rows = n_rows
        n_stacks, length = _stacks(n_rows, n_columns, device)
        n_lines = -(-n_columns // LINE) | 1  # an odd number, lest rows compete for the same sets of the cache
        before = LINE * n_lines - n_columns if n_columns > NARROW else 0
        whole = torch.empty((length * n_stacks, before + n_columns), dtype=torch.float64, device=device)
        self.rows = whole[:, before:]
        self._panels = _panels(n_columns) if device.type == "cpu" else [slice(0, n_columns)]
        stacks = self.rows.view(n_stacks, length, n_columns)
        self._factors = [(stacks[:, :, panel].mT, stacks[:, :, panel.start :]) for panel in self._panels]
        # One tensor for each: torch copies parts of larger ones to and fro.
        self._sums = [
            whole.new_zeros((n_stacks, left.shape[1], right.shape[2])) for left, right in self._factors
        ]

    def is_too_small_for(self, n_rows: int) -> bool:
        """Whether another buffer may take so many rows in fewer parts by far."""
        return n_rows > PARTS * self._n_rows

    def begin(self) -> None:
        for total in self._sums:
            total.zero_()

    def add_products(self) -> None:
        for total, (left, right) in zip(self._sums, self._factors, strict=True):
            total.baddbmm_(left, right)

    def total(self) -> torch.Tensor:
        n_columns = self.rows.shape[1]
        result = self.rows.new_zeros((n_columns, n_columns))
        for total, panel in zip(self._sums, self._panels, strict=True):
            torch.sum(total, 0, out=result[panel, panel.start :])
        return result


def _small_gram(rows: np.ndarray) -> torch.Tensor:
    if len(rows) >= SMALL_ROWS:
        same = torch.from_numpy(rows)
        return same.T @ same
    with np.errstate(invalid="ignore", over="ignore"):
        return torch.from_numpy(rows.T @ rows)


def columns_at_once(n_rows: int, n_columns: int) -> int:
    """How many of these columns to write so that torch shares the work out among its threads.

    A single column that one thread writes takes its lines from the other cores' caches. To write it into
    neighbours, too, that are overwritten later made 28 ms of 37 at 1e6 x 30. For few rows one thread does.
    """
    if n_rows * n_columns < SMALL:
        return 1
    return min(n_columns, PARALLEL // n_rows + 1)


def _stacks(n_rows: int, n_columns: int, device: torch.device) -> tuple[int, int]:
    """Into how many stacks of how many rows rows are written at a time.

    All parts of `n_rows` are of nearly the same length, or the last one might be mostly zeros.
    """
    row_bytes = 8 * n_columns
    if device.type != "cpu":
        return 1, -(-n_rows // -(-n_rows * row_bytes // CUDA_BYTES))
    n_shares = torch.get_num_threads()
    most_bytes = n_shares * SHARE_BYTES
    if n_shares * 4 * n_columns**2 > SUMS_BYTES:
        n_shares, most_bytes = 1, min(SHARED_BYTES, SHARED_ROWS * row_bytes)
    parts = min(PARTS, n_rows * row_bytes // PART_BYTES, n_rows // (PART_ROWS * n_shares))
    n_parts = max(1, parts, -(-n_rows * row_bytes // most_bytes))
    share = -(-n_rows // (n_parts * n_shares))
    n_sums = -(-share // LONGEST_SUM)
    return n_shares * n_sums, -(-share // n_sums)


def _panels(n_columns: int) -> list[slice]:
    """Whole panels, counted from the last column; the first one takes the rest, too, where that is little."""
    width = next((width for most, width in PANELS if n_columns <= most), WIDE_PANEL)
    starts = list(range(n_columns - width, 0, -width))[::-1]
    if starts and starts[0] < width / 3:
        starts = starts[1:]
    edges = [0, *starts, n_columns]
    return [slice(start, stop) for start, stop in pairwise(edges)]
