"""Additive statistics of weighted rows: the second moments of the columns ``[1, x, y]`` about a shift.

They are float64 and cost one product of the rows with themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse

from torchlinreg._data.rows import Block, RowBlocks
from torchlinreg._linalg import double_double as dd
from torchlinreg._linalg.gram import EPS, UpperGram, columns_at_once
from torchlinreg._linalg.sparse_gram import sparse_gram

HEAD_ROWS = 256
DEVIATION_STEP = 4  # of these rows, every so many-th tells how far they are from their mean
# Squares of numbers within these bounds neither overflow nor underflow, even summed over 1e12 rows.
SAFE_RANGE = (1e-140, 1e140)
# Products of rows from this width on with residuals take longer to copy the rows than to multiply them.
WIDE = 400
# Squares about the shift that are so many times those about the mean cost 6 of 16 digits, which another pass
# gains back.
FAR = 1e6
# Exponent of 2 that leaves room for sums and for being split, and a ridge's coefficients above underflow.
LARGEST_RIDGE = 900
# Splitting a float64 for an error-free product multiplies it by 2**27.
LARGEST_MOMENT = 1e280
# Sums of squares below this have lost digits to underflow.
SMALLEST_SQUARES = 1e-250


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


def log2_of_units(scale: np.ndarray, target_scale: np.ndarray) -> np.ndarray:
    """Exponents that bring coefficients of a frame into the user's units; shape: (n_columns, n_targets).

    For `numpy.ldexp`, both powers of two at once: one alone might over- or underflow.
    """
    exponent: np.ndarray = np.frexp(scale)[1][:, None] - np.frexp(target_scale)[1]
    return exponent


@np.errstate(invalid="ignore", over="ignore")  # NaN and infinity show in the moments
def choose_frame(blocks: RowBlocks, *, fit_intercept: bool) -> Frame:
    """Shift by the mean of the first rows, so that an offset costs no digits; scale extreme columns.

    A column that is constant in these rows is shifted by its value: if it is constant throughout, its
    moments are then exactly zero.
    """
    head = blocks.head(HEAD_ROWS)
    assert head.X is not None
    columns = np.concatenate([head.X.cpu().numpy(), head.y.cpu().numpy()], axis=1, dtype=np.float64)
    if head.weight is not None:
        columns = columns[head.weight.cpu().numpy() > 0]
    highest, lowest = columns.max(0), columns.min(0)
    shift = np.zeros(1 + columns.shape[1])
    if fit_intercept:
        shift[1:] = _round_mean(columns, highest, lowest)
        features = slice(1, 1 + blocks.n_features)
        if blocks.is_sparse or _is_near_zero(columns[:, : blocks.n_features], shift[features]):
            shift[features] = 0  # a shift would fill the zeros, or copy wide rows for little
    magnitude = np.maximum(highest - shift[1:], shift[1:] - lowest)
    return scaled_frame(torch.from_numpy(shift).to(blocks.device), magnitude)


def scaled_frame(shift: torch.Tensor, magnitude: np.ndarray) -> Frame:
    """The frame of a shift and the largest magnitudes of the shifted columns of x and y."""
    scale = _scale_of_extremes(magnitude)
    return Frame(shift, None if scale is None else torch.from_numpy(scale).to(shift.device))


def frame_for_ridge(frame: Frame, l2: np.ndarray, weight_sum: float) -> Frame:
    """The frame with `scale_for_ridge`."""
    scale = shift_and_scale(frame)[1]
    lowered = scale_for_ridge(scale, l2, weight_sum)
    return frame if lowered is scale else Frame(frame.shift, torch.from_numpy(lowered).to(frame.shift.device))


def scale_for_ridge(scale: np.ndarray, l2: np.ndarray, weight_sum: float) -> np.ndarray:
    """Scales, lowered for columns whose ridge would be beyond `LARGEST_RIDGE`: there it is about 1."""
    exponent = np.frexp(l2)[1] + math.frexp(weight_sum)[1] + 2 * np.frexp(scale[1 : 1 + len(l2)])[1]
    beyond = np.where((l2 > 0) & (exponent > LARGEST_RIDGE), exponent, 0)
    if not beyond.any():
        return scale
    lowered = scale.copy()
    lowered[1 : 1 + len(l2)] = np.ldexp(lowered[1 : 1 + len(l2)], -(beyond // 2))
    return lowered


def _scale_of_extremes(magnitude: np.ndarray) -> np.ndarray | None:
    """Powers of two that bring columns beyond `SAFE_RANGE` to about 1; constant ones stay as they are."""
    if magnitude.min() >= SAFE_RANGE[0] and magnitude.max() <= SAFE_RANGE[1]:
        return None
    extreme = (magnitude < SAFE_RANGE[0]) & (magnitude > 0)
    extreme |= (magnitude > SAFE_RANGE[1]) & (magnitude < np.inf)
    if not extreme.any():
        return None
    scale = np.ones(1 + len(magnitude))
    scale[1:][extreme] = 1 / dd.slice_scale(magnitude[extreme])
    return scale


def _round_mean(columns: np.ndarray, highest: np.ndarray, lowest: np.ndarray) -> np.ndarray:
    """Means, so round that subtracting one is mostly exact, and 0 for means that cost next to no digits.

    Those are up to half the mean absolute deviation of some rows. A single outlier adds to that no more than
    rounding a mean next to it may miss.
    """
    mean = columns.sum(0) / len(columns)
    apart = columns[::DEVIATION_STEP] - mean
    deviation = np.abs(apart, out=apart).sum(0) / len(apart)
    spread = highest - lowest
    unit = dd.slice_scale(spread / 64)
    rounded = np.where(np.abs(mean) > deviation / 2, np.rint(mean / unit) * unit, 0.0)
    return np.where(spread > 0, rounded, highest)


def _is_near_zero(columns: np.ndarray, shift: np.ndarray) -> bool:
    """Whether passes may read wide rows where they are: offsets of 8 standard deviations cost two digits."""
    if columns.shape[1] < WIDE:
        return False
    return bool((np.abs(shift) <= 8 * columns.std(0)).all())


def frame_of_all(blocks: RowBlocks, shift: torch.Tensor) -> Frame:
    """The frame of a shift, scaled by all rows: where the first ones misled; a pass over the rows."""
    return scaled_frame(shift, _largest_magnitudes(blocks, shift).cpu().numpy())


def _largest_magnitudes(blocks: RowBlocks, shift: torch.Tensor) -> torch.Tensor:
    """The largest ``|column - shift|`` of x and y; a pass over the rows."""

    def of(block: Block) -> torch.Tensor:
        assert block.X is not None
        columns = (torch.cat([block.X.to(torch.float64), block.y], dim=1) - shift[1:]).abs()
        if block.weight is not None:
            columns = torch.where(block.weight[:, None] > 0, columns, 0.0)
        return columns.amax(0)

    return blocks.map_reduce(of, torch.maximum, dense=True)


@dataclass(frozen=True)
class Moments:
    """Weighted second moments of ``[1, x, y]`` in a frame; only the upper triangle of `raw` is meant.

    ``raw[0, 0]`` is the weight sum, ``raw[0, 1:]`` the weighted sums, ``raw[1:, 1:]`` the Gram matrix, all of
    the shifted columns.
    """

    frame: Frame
    raw: torch.Tensor  # shape: (1 + n_features + n_targets,) * 2
    n_samples: int
    roundoff: float  # rounding error of an entry of `raw`, relative to the norms of its two columns

    @staticmethod
    def merge(a: Moments, b: Moments) -> Moments:
        """Moments of the rows of both."""
        b = b.in_frame(a.frame)
        # Independent roundings: n merges in sequence add as n products do (see `roundoff_of_sums`).
        roundoff = math.hypot(max(a.roundoff, b.roundoff), EPS)
        return Moments(a.frame, a.raw + b.raw, a.n_samples + b.n_samples, roundoff)

    @cached_property
    def on_host(self) -> np.ndarray:
        """`raw` on the CPU."""
        raw: np.ndarray = self.raw.cpu().numpy()
        return raw

    @property
    def is_sound(self) -> bool:
        """Whether all moments are finite, with room to be split, and no column's squares underflowed."""
        return is_sound(self.on_host)

    def with_scale(self, scale: torch.Tensor) -> Moments:
        """The same moments in a frame with other powers of two."""
        factor = scale if self.frame.scale is None else scale / self.frame.scale
        raw = self.raw * factor[:, None] * factor
        return Moments(Frame(self.frame.shift, scale), raw, self.n_samples, self.roundoff)

    def for_ridge(self, l2: np.ndarray) -> Moments:
        """Moments in a frame in which a ridge of these strengths, per weight, does not overflow."""
        if not l2.any():
            return self
        frame = frame_for_ridge(self.frame, l2, float(self.on_host[0, 0]))
        if frame.scale is None or frame is self.frame:
            return self
        return self.with_scale(frame.scale)

    @property
    def far_columns(self) -> np.ndarray:
        """Columns of x and y whose squares about the shift are `FAR` above those about their mean."""
        raw = self.on_host
        mean = raw[0, 1:] / raw[0, 0]
        square = raw.diagonal()[1:] / raw[0, 0]
        far: np.ndarray = (~(square - mean**2 > square / FAR) & (square > 0)).nonzero()[0]
        return far

    def in_frame(self, frame: Frame) -> Moments:
        """The same moments about another shift."""
        if frame is self.frame:
            return self
        one = torch.ones_like(frame.shift)
        old_scale = one if self.frame.scale is None else self.frame.scale
        new_scale = one if frame.scale is None else frame.scale
        change = torch.diag(new_scale / old_scale)
        change[0, 1:] = ((self.frame.shift - frame.shift) * new_scale)[1:]
        raw = change.T @ symmetric(self.raw) @ change
        # Errors are as large as before, but squares about a shift nearer to the mean are smaller.
        before = self.raw.diagonal() * (new_scale / old_scale).square()
        shrunk = torch.where(raw.diagonal() > 0, before / raw.diagonal(), 1.0).amax().clamp(min=1.0)
        return Moments(frame, raw, self.n_samples, 4 * (self.roundoff + EPS) * float(shrunk))


def recentred_shift(moments: Moments, blocks: RowBlocks) -> torch.Tensor | None:
    """A shift to the means of columns that are `FAR` from it, or None without such; a pass over these.

    The first rows may lie elsewhere than the others, and sparse columns are not shifted at first. A constant
    column is shifted by its value.
    """
    far = moments.far_columns
    if len(far) == 0:
        return None
    shift, scale = shift_and_scale(moments.frame)
    shift = shift.copy()
    lowest, highest = _extremes(blocks, far)
    raw = moments.raw.cpu().numpy()
    moved = shift[1 + far] + raw[0, 1 + far] / raw[0, 0] / scale[1 + far]
    shift[1 + far] = np.where(lowest == highest, lowest, moved)
    return torch.from_numpy(shift).to(blocks.device)


def _extremes(blocks: RowBlocks, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest number of some columns of x and y, among rows that have a weight; a pass."""
    features = index[index < blocks.n_features]
    targets = torch.from_numpy(index[len(features) :] - blocks.n_features).to(blocks.device)

    def of(block: Block) -> torch.Tensor:
        assert block.X is not None
        columns = torch.cat([block.X.to(torch.float64), block.y[:, targets]], dim=1)
        low = high = columns
        if block.weight is not None:
            counted = block.weight[:, None] > 0
            low, high = torch.where(counted, columns, torch.inf), torch.where(counted, columns, -torch.inf)
        return torch.stack([-low.amin(0), high.amax(0)])

    of_features = blocks.columns(torch.from_numpy(features))
    least, largest = of_features.map_reduce(of, torch.maximum, dense=True).cpu().numpy()
    return -least, largest


def is_sound(raw: np.ndarray) -> bool:
    """Whether all moments are finite, with room to be split, and no column's squares underflowed."""
    squares = raw.diagonal()
    if not np.abs(squares).max() < LARGEST_MOMENT:  # false for NaN, too
        return False
    small = squares < SMALLEST_SQUARES
    return not (small.any() and (raw[0][small] != 0).any())


class MomentsOf:
    """``Moments`` of a block in a given frame; of blocks that all have weights, or none has."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self._gram = UpperGram(len(frame.shift), frame.shift.device, has_ones=True)

    @cached_property
    def _is_shifted(self) -> bool:
        return bool(self.frame.shift.cpu().numpy().any())

    def __call__(self, block: Block) -> Moments:
        if block.csr is not None:
            with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity show in the moments
                return self._of_csr(block)
        root = None if block.weight is None else block.weight.sqrt()[:, None]
        raw, roundoff = self._gram.with_roundoff(
            len(block.y), lambda part, out: self._write(block, root, part, out)
        )
        return Moments(self.frame, raw, len(block.y), roundoff)

    def _write(self, block: Block, root: torch.Tensor | None, part: slice, out: torch.Tensor) -> None:
        """The columns ``[1, x, y]`` of some rows in the frame, each row times sqrt(weight)."""
        assert block.X is not None
        X, y = block.X[part], block.y[part]
        shift, scale = self.frame
        n_features = X.shape[1]
        n_at_once = columns_at_once(len(X), 1 + n_features)
        # Roots and a single target are first written into neighbours that x and then they overwrite.
        if root is not None:
            out[:, :n_at_once] = 1
        if y.shape[1] != 1 or n_at_once == 1:
            torch.sub(y, shift[1 + n_features :], out=out[:, 1 + n_features :])
        else:
            torch.sub(y.expand(-1, n_at_once), shift[-1:], out=out[:, -n_at_once:])
        inside = out[:, 1 : 1 + n_features]
        if X.dtype is torch.float64:
            torch.sub(X, shift[1 : 1 + n_features], out=inside)
        else:  # faster than to convert and subtract at once
            inside.copy_(X)
            if self._is_shifted:
                inside -= shift[1 : 1 + n_features]
        if scale is not None:
            out *= scale
        if root is not None:
            out *= root[part]

    def _of_csr(self, block: Block) -> Moments:
        """Straight from the stored entries, but of columns that the frame shifts."""
        assert block.csr is not None
        scale = None if self.frame.scale is None else self.frame.scale.numpy()
        n_features = block.csr.shape[1]
        X, _ = shifted_csr(block.csr.astype(np.float64, copy=False), self.frame)
        shift_y = self.frame.shift[1 + n_features :]
        others = torch.cat([torch.ones_like(block.y[:, :1]), block.y - shift_y], dim=1)
        if scale is not None:
            X = X.multiply(scale[1 : 1 + n_features]).tocsr()
            others *= torch.from_numpy(scale[[0, *range(1 + n_features, len(scale))]])
        root = None if block.weight is None else block.weight.sqrt()
        if root is not None:
            X = X.multiply(root.numpy()[:, None]).tocsr()
            others *= root[:, None]
        order = [0, *range(1 + n_features, 1 + n_features + block.y.shape[1])]
        inside = np.arange(1, 1 + n_features)
        raw = np.empty((len(self.frame.shift),) * 2)
        of_x = sparse_gram(X)
        raw[1 : 1 + n_features, 1 : 1 + n_features] = of_x.gram
        product = UpperGram(others.shape[1], others.device).with_roundoff(
            len(others), lambda part, out: out.copy_(others[part])
        )
        raw[np.ix_(order, order)] = product.upper.numpy()
        cross = X.T @ others.numpy()
        raw[np.ix_(inside, order)] = cross
        raw[np.ix_(order, inside)] = cross.T
        roundoff = max(product.roundoff, of_x.roundoff)
        return Moments(self.frame, torch.from_numpy(raw), len(block.y), roundoff)


def shifted_csr(X: sparse.csr_array, frame: Frame) -> tuple[sparse.csr_array, sparse.csr_array | None]:
    """Float64 rows of x less the frame's shift, and what rounding leaves out; None where that is nothing.

    Columns that are shifted become full.
    """
    shift = frame.shift.cpu().numpy()[1 : 1 + X.shape[1]]
    columns = shift.nonzero()[0]
    if len(columns) == 0:
        return X, None
    high, low = dd.two_sum(X[:, columns].toarray(), -shift[columns])
    others = X.copy()
    others.data[shift[X.indices] != 0] = 0.0
    others.eliminate_zeros()
    left_out = _at_columns(low, columns, X.shape) if low.any() else None
    return others + _at_columns(high, columns, X.shape), left_out


def _at_columns(values: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    """Full columns at these places of a sparse array."""
    starts = np.arange(0, values.size + 1, len(columns))
    return sparse.csr_array((values.ravel(), np.tile(columns, len(values)), starts), shape=shape)


def symmetric(upper: torch.Tensor) -> torch.Tensor:
    """The symmetric matrix of which the upper triangle is given."""
    return upper.triu() + upper.triu(1).T
