"""Additive statistics of weighted rows: the second moments of the columns ``[1, x, y]`` about a shift.

They are float64 and cost one product of the rows with themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from torchlinreg import _compensated as dd
from torchlinreg._blocks import Block, RowBlocks

HEAD_ROWS = 256
# Products of fewer rows are NumPy's: torch's threads may take milliseconds to wake.
SMALL_ROWS = 1024
# Squares of numbers within these bounds neither overflow nor underflow, even summed over 1e12 rows.
SAFE_RANGE = (1e-140, 1e140)
# Splitting a float64 for an error-free product multiplies it by 2**27.
LARGEST_MOMENT = 1e280
# Sums of squares below this have lost digits to underflow.
SMALLEST_SQUARES = 1e-250
# On a CPU, products of BATCHES stacks of rows run one per core without splitting a product among threads, and
# panels of columns leave out most of the lower triangle. On two cores, against a symmetric product of
# OpenBLAS: 1e6 x 12: 5 against 12 ms; 2e5 x 102: 28 against 50 ms. Wide columns need no stacks: 20,000 x 1000
# takes 143 against 158 ms. All of it is torch's, since its threads and those of NumPy's and SciPy's libraries
# hinder each other where they take turns.
BATCHES = 8
NARROW, NARROW_PANEL, PANEL, WIDE_PANEL = 64, 16, 48, 128
# Rows from this width on are multiplied in such panels, and read where they are.
WIDE = 400


class Frame(NamedTuple):
    """Where the columns ``[1, x, y]`` are measured from: ``(column - shift) * scale``.

    `scale` holds powers of two and is None where no column needs one.
    """

    shift: torch.Tensor  # shape: (1 + n_features + n_targets,)
    scale: torch.Tensor | None  # shape: (1 + n_features + n_targets,)


def shift_and_scale(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Those of a frame on the host, scales of 1 included."""
    shift = frame.shift.cpu().numpy()
    return shift, np.ones_like(shift) if frame.scale is None else frame.scale.cpu().numpy()


@np.errstate(invalid="ignore", over="ignore")  # NaN and infinity show in the moments
def choose_frame(blocks: RowBlocks, *, fit_intercept: bool, largest: torch.Tensor | None = None) -> Frame:
    """Shift by the mean of the first rows, so that an offset costs no digits; scale extreme columns.

    A column that is constant in these rows is shifted by its value: if it is constant throughout, its
    moments are then exactly zero. `largest`, the largest magnitude of each shifted column, is given when
    the first rows misled and moments over- or underflowed.
    """
    head = blocks.head(HEAD_ROWS)
    assert head.X is not None
    columns = np.concatenate([head.X.cpu().numpy(), head.y.cpu().numpy()], axis=1, dtype=np.float64)
    if head.weight is not None:
        columns = columns[head.weight.cpu().numpy() > 0]
    highest, lowest = columns.max(0), columns.min(0)
    shift = np.zeros(1 + columns.shape[1])
    if fit_intercept:
        shift[1:] = _round_mean(columns.mean(0), highest, lowest)
        features = slice(1, 1 + blocks.n_features)
        if blocks.is_sparse or _is_near_zero(columns[:, : blocks.n_features], shift[features]):
            shift[features] = 0  # a shift would fill the zeros, or copy the rows for little
    if largest is None:
        magnitude = np.maximum(np.abs(highest - shift[1:]), np.abs(lowest - shift[1:]))
    else:
        magnitude = largest.cpu().numpy()
    extreme = (magnitude < SAFE_RANGE[0]) & (magnitude > 0)
    extreme |= (magnitude > SAFE_RANGE[1]) & (magnitude < np.inf)
    scale = None
    if extreme.any():
        scale = torch.ones(len(shift), dtype=torch.float64, device=blocks.device)
        scale[1:][torch.from_numpy(extreme)] = torch.from_numpy(1 / dd.slice_scale(magnitude[extreme])).to(
            blocks.device
        )
    return Frame(torch.from_numpy(shift).to(blocks.device), scale)


def _round_mean(mean: np.ndarray, highest: np.ndarray, lowest: np.ndarray) -> np.ndarray:
    """Means to about an eighth of the columns' spread; so round that subtracting one is mostly exact."""
    spread = highest - lowest
    unit = dd.slice_scale(spread / 64)
    return np.where(spread > 0, np.rint(mean / unit) * unit, highest)


def _is_near_zero(columns: np.ndarray, shift: np.ndarray) -> bool:
    """Whether wide rows may stay where they are: offsets of eight standard deviations cost two digits."""
    if columns.shape[1] < WIDE:
        return False
    return bool((np.abs(shift) <= 8 * columns.std(0)).all())


def largest_magnitudes(blocks: RowBlocks, frame: Frame) -> torch.Tensor:
    """The largest ``|column - shift|`` of x and y; a pass over the rows."""

    def of(block: Block) -> torch.Tensor:
        assert block.X is not None
        columns = (torch.cat([block.X.to(torch.float64), block.y], dim=1) - frame.shift[1:]).abs()
        if block.weight is not None:
            columns = torch.where(block.weight[:, None] > 0, columns, 0.0)
        return columns.amax(0)

    return blocks.map_reduce(of, torch.maximum, dense=True)


def reads_in_place(frame: Frame, blocks: RowBlocks) -> bool:
    """Whether passes take x from where it is, because the frame leaves it so and it is wide.

    A copy of narrow rows costs less than the border's separate products.
    """
    if not blocks.in_place or blocks.n_features < WIDE or blocks.device.type != "cpu":
        return False
    if blocks.weight is not None or blocks.dtype is not torch.float64 or frame.scale is not None:
        return False
    return not frame.shift[1 : 1 + blocks.n_features].any()


class BorderedRows(NamedTuple):
    """The columns ``[1, x, y]`` of a block in a frame that leaves x as it is: x itself, and ``[1, y]``."""

    X: torch.Tensor  # shape: (n_rows, n_features)
    border: torch.Tensor  # shape: (n_rows, 1 + n_targets)

    def gram(self) -> torch.Tensor:
        """``rows.T @ rows``, of which the upper triangle counts."""
        n_features = self.X.shape[1]
        order = torch.tensor([0, *range(1 + n_features, n_features + self.border.shape[1])])
        features = slice(1, 1 + n_features)
        gram = torch.zeros((n_features + self.border.shape[1],) * 2, dtype=torch.float64)
        _wide_gram(self.X, gram[features, features])
        cross = self.border.mT @ self.X
        gram[order, features] = cross
        gram[features, order] = cross.T
        gram[order[:, None], order] = self.border.T @ self.border
        return gram


class ShiftedRows:
    """Callable that gives a block's columns ``[1, x, y]`` in a frame, each row times sqrt(weight).

    The result lives in one buffer that the next call overwrites: a fresh one per block costs more in
    page faults than the arithmetic. With `in_place` (see `reads_in_place`), x is not copied at all.
    """

    def __init__(self, frame: Frame, in_place: bool = False) -> None:
        self.frame = frame
        self.in_place = in_place
        self._buffer: torch.Tensor | None = None

    def __call__(self, block: Block) -> torch.Tensor | BorderedRows:
        assert block.X is not None
        n_rows, n_features = block.X.shape
        shift, scale = self.frame
        if self.in_place:
            border = torch.cat([torch.ones_like(block.y[:, :1]), block.y - shift[1 + n_features :]], dim=1)
            return BorderedRows(block.X, border)
        if self._buffer is None or len(self._buffer) < n_rows:
            self._buffer = torch.empty((n_rows, len(shift)), dtype=torch.float64, device=shift.device)
            self._buffer[:, 0] = 1
        rows = self._buffer[:n_rows]
        torch.sub(block.X, shift[1 : 1 + n_features], out=rows[:, 1 : 1 + n_features])
        torch.sub(block.y, shift[1 + n_features :], out=rows[:, 1 + n_features :])
        if scale is not None:
            rows *= scale
        if block.weight is not None:
            root = block.weight.sqrt()
            rows *= root[:, None]
            rows[:, 0] = root
        return rows


@dataclass(frozen=True)
class Moments:
    """Weighted second moments of ``[1, x, y]`` in a frame; only the upper triangle of `raw` is meant.

    ``raw[0, 0]`` is the weight sum, ``raw[0, 1:]`` the weighted sums, ``raw[1:, 1:]`` the Gram matrix, all of
    the shifted columns.
    """

    frame: Frame
    raw: torch.Tensor  # shape: (1 + n_features + n_targets,) * 2
    n_samples: int

    @staticmethod
    def merge(a: Moments, b: Moments) -> Moments:
        """Moments of the rows of both."""
        return Moments(a.frame, a.raw + b.in_frame(a.frame).raw, a.n_samples + b.n_samples)

    @property
    def is_sound(self) -> bool:
        """Whether all moments are finite, with room to be split, and no column's squares underflowed."""
        raw = self.raw.cpu().numpy()
        squares = raw.diagonal()
        if not np.abs(squares).max() < LARGEST_MOMENT:  # false for NaN, too
            return False
        return not ((squares < SMALLEST_SQUARES) & (raw[0] != 0)).any()

    def in_frame(self, frame: Frame) -> Moments:
        """The same moments about another shift."""
        if frame is self.frame:
            return self
        one = torch.ones_like(frame.shift)
        old_scale = one if self.frame.scale is None else self.frame.scale
        new_scale = one if frame.scale is None else frame.scale
        change = torch.diag(new_scale / old_scale)
        change[0, 1:] = ((self.frame.shift - frame.shift) * new_scale)[1:]
        return Moments(frame, change.T @ symmetric(self.raw) @ change, self.n_samples)


class MomentsOf:
    """``Moments`` of a block in a given frame."""

    def __init__(self, frame: Frame, in_place: bool = False) -> None:
        self.frame = frame
        self._rows = ShiftedRows(frame, in_place)

    def __call__(self, block: Block) -> Moments:
        if block.csr is None:
            rows = self._rows(block)
            raw = rows.gram() if isinstance(rows, BorderedRows) else upper_gram(rows)
            return Moments(self.frame, raw, len(block.y))
        with np.errstate(invalid="ignore"):  # infinity times a zero weight; found out by the NaN it leaves
            raw = self._of_csr(block)
        return Moments(self.frame, raw, len(block.y))

    def _of_csr(self, block: Block) -> torch.Tensor:
        """Straight from the stored entries; the frame does not shift x."""
        X = block.csr
        assert X is not None
        scale = None if self.frame.scale is None else self.frame.scale.numpy()
        n_features = X.shape[1]
        X = X.astype(np.float64)
        shift_y = self.frame.shift[1 + n_features :]
        others = torch.cat(
            [torch.ones((len(block.y), 1), dtype=torch.float64), block.y - shift_y], dim=1
        ).numpy()
        weight = np.ones(len(others)) if block.weight is None else block.weight.numpy()
        if scale is not None:
            X = X.multiply(scale[1 : 1 + n_features]).tocsr()
            others = others * scale[[0, *range(1 + n_features, len(scale))]]
        order = [0, *range(1 + n_features, 1 + n_features + block.y.shape[1])]
        inside = np.arange(1, 1 + n_features)
        weighted_others = others * weight[:, None]
        raw = np.empty((len(self.frame.shift),) * 2)
        weighted_X = X if block.weight is None else X.multiply(weight[:, None]).tocsr()
        raw[1 : 1 + n_features, 1 : 1 + n_features] = (X.T @ weighted_X).toarray()
        raw[np.ix_(order, order)] = others.T @ weighted_others
        cross = X.T @ weighted_others
        raw[np.ix_(inside, order)] = cross
        raw[np.ix_(order, inside)] = cross.T
        return torch.from_numpy(raw)


def upper_gram(rows: torch.Tensor) -> torch.Tensor:
    """``rows.T @ rows``, of which the upper triangle counts."""
    n_rows, n_columns = rows.shape
    if rows.is_cuda:
        return rows.T @ rows
    if n_columns >= WIDE:
        return _wide_gram(rows, torch.zeros((n_columns, n_columns), dtype=rows.dtype))
    if n_rows < SMALL_ROWS:
        array = rows.numpy()
        with np.errstate(invalid="ignore", over="ignore"):
            return torch.from_numpy(array.T @ array)
    length = n_rows // BATCHES
    batches = rows[: length * BATCHES].view(BATCHES, length, n_columns)
    rest = rows[length * BATCHES :]
    gram = rest.T @ rest
    width = NARROW_PANEL if n_columns <= NARROW else PANEL
    for start in range(0, n_columns, width):
        stop = start + width
        gram[start:stop, start:] += torch.bmm(batches[:, :, start:stop].mT, batches[:, :, start:]).sum(0)
    return gram


def _wide_gram(rows: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The same into `out`, whose lower triangle is mostly left as it is."""
    for start in range(0, rows.shape[1], WIDE_PANEL):
        panel = slice(start, start + WIDE_PANEL)
        torch.mm(rows[:, panel].T, rows[:, start:], out=out[panel, start:])
    return out


def symmetric(upper: torch.Tensor) -> torch.Tensor:
    """The symmetric matrix of which the upper triangle is given."""
    return upper.triu() + upper.triu(1).T
