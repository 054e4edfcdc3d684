"""The product of rows with themselves, which is most of a fit's time."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from torchlinreg._linalg import double_double as dd

EPS = 2.0**-53

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
# Products are summed in stacks of rows of this length, between these limits, in units of sqrt(n_rows): then
# the errors within stacks and those of adding the stacks up are about equal. Longer stacks save little time.
SHORTEST_SUM, LONGEST_SUM = 128, 1024
SUM_PER_ROOT = 4
# torch adds up along the first axis in cascades, of so many terms at a time.
CASCADE = 16
# Root mean square of a relative rounding error in units of u = 2^-53, for sums whose leading digits are
# distributed as those of most data are: sqrt(1 / 3 * 3 / 8 / log(2)).
RMS_ROUNDING = 0.42
# Rounding errors that add up instead of cancelling are measured on some of the columns' squares; products of
# different columns may have somewhat larger ones.
DRIFT_SAFETY = 2.0
# Rows are uneven where a column's squares amount to fewer equal sums than this fraction of all sums.
EVEN = 0.5
# The largest of 1000 independent errors can be this many times what is expected of a single one.
CLEARLY_MORE = 1.5
# Relative error of a sum that is accurate but for its own rounding, and that of each square.
SQUARE_ROUNDOFF = 2 * EPS
# Numbers whose squares are taken at once to measure the errors of a product.
SQUARES_AT_ONCE = 2**16
# Roundings are alike where numbers are: closer than the unit of a stack's sum, relative to them. Among so
# many rows a column of 450 different numbers repeats more of them than this.
ALIKE = LONGEST_SUM * 2.0**-52
SAMPLE_ROWS, SAMPLE_REPEATS = 64, 4
# Where the sums of all cores' shares were larger, the cores share one, of more rows.
SUMS_BYTES = 16 * 2**20
SHARED_ROWS, SHARED_BYTES = 2048, 64 * 2**20
# Fresh memory costs more than to write to it again, so that few rows are written in parts, too; of this size.
PARTS, PART_BYTES, PART_ROWS = 4, 2**20, 512
# A GPU has no such caches, and few calls are better.
CUDA_BYTES = 256 * 2**20
# torch gives fewer numbers to one thread.
PARALLEL = 32768


class Product(NamedTuple):
    """A Gram matrix and how far rounding may have moved it."""

    upper: torch.Tensor  # valid above and on the diagonal; shape: (n_columns, n_columns)
    roundoff: float  # of an entry, relative to the norms of its two columns


def longest_sum(n_rows: int) -> int:
    """How many rows to a stack, for `n_rows` in all."""
    return max(1, min(n_rows, LONGEST_SUM, max(SHORTEST_SUM, SUM_PER_ROOT * math.isqrt(n_rows))))


def roundoff_of_sums(n_rows: int, length: int, n_stacks: int, n_fills: int = 1) -> float:
    """Rounding error of a sum of products over rows, relative to the norms of the two factors.

    Rows are summed one after another in stacks of `length`, each stack over `n_fills` of a buffer, and then
    the stacks. Adding up `n` products of one sign and size in sequence leaves a relative error of standard
    deviation ``0.42 u sqrt(n / 3)``, with ``u = 2^-53``, if roundings are independent (Higham, Mary 2019,
    SIAM J. Sci. Comput. 41, A2815-A2835). Four of those are ``u sqrt(n)``, and m sums that are added up
    divide it by sqrt(m). Products of both signs leave less, and so does any other order within a stack.
    """
    n_sums = max(1.0, n_rows / length)
    within = length / n_sums
    over_fills = n_fills / min(n_stacks, n_sums)
    return EPS * math.sqrt(within + over_fills + min(n_stacks, CASCADE))


def _roundoff_of_uneven_sums(length: int, n_even: float, n_fills: int) -> float:
    """Rounding error where a few rows are so large that others are added to nearly the whole sum.

    A relative error of standard deviation ``0.42 u`` for each row of the stack and each fill after them.
    """
    return 4 * RMS_ROUNDING * EPS * math.sqrt((length + n_fills) / n_even)


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
        return self._product(n_rows, write, measured=False).upper

    def with_roundoff(self, n_rows: int, write: Callable[[slice, torch.Tensor], object]) -> Product:
        """The product with its rounding error.

        Errors of independent roundings follow from the way in which sums are formed. Where the same few
        products come again and again (standardised indicators, constants) they do not cancel, by how much
        depends on the processor: so squares of such columns in the first and the last buffer are summed
        accurately, too.
        """
        return self._product(n_rows, write, measured=True)

    def _product(
        self, n_rows: int, write: Callable[[slice, torch.Tensor], object], *, measured: bool
    ) -> Product:
        if n_rows * self._n_columns == 0:
            return Product(torch.zeros((self._n_columns,) * 2, dtype=torch.float64, device=self._device), EPS)
        if n_rows * self._n_columns < SMALL and self._device.type == "cpu":
            return self._small_product(n_rows, write, measured=measured)
        if self._device.type != "cpu" and self._buffer is not None:
            measured = False  # once: the host waits for the device to tell a number
        if self._buffer is None or self._buffer.is_too_small_for(n_rows):
            self._buffer = _Buffer(n_rows, self._n_columns, self._device)
            if self._has_ones:
                self._buffer.rows[:, : columns_at_once(*self._buffer.rows.shape)] = 1
        buffer = self._buffer
        buffer.begin()
        drift, n_fills = 0.0, 0
        squares = [np.zeros((buffer.n_stacks, self._n_columns))]  # after each fill
        for start in range(0, n_rows, len(buffer.rows)):
            part = slice(start, min(start + len(buffer.rows), n_rows))
            n_written = part.stop - start
            write(part, buffer.rows[:n_written])
            if n_written < len(buffer.rows):
                buffer.rows[n_written:] = 0
            buffer.add_products()
            n_fills += 1
            if measured:
                squares.append(buffer.squares().cpu().numpy())
            if measured and (n_fills == 1 or part.stop == n_rows):
                with np.errstate(invalid="ignore"):  # NaN and infinity show in the product
                    found = (squares[-1] - squares[-2]).sum(0)
                # One rounding of the whole sum counts n_fills times as much for a part.
                expected = math.hypot(
                    roundoff_of_sums(n_written, buffer.length, buffer.n_stacks),
                    EPS * (n_fills - 1) / math.sqrt(buffer.n_stacks),
                )
                drift = max(drift, _measured_drift(buffer.rows[:n_written], found, expected))
        if self._has_ones:
            buffer.rows[n_written:, 0] = 1
        independent = roundoff_of_sums(n_rows, buffer.length, buffer.n_stacks, n_fills)
        if measured:
            n_even = _n_even(np.diff(squares, axis=0).reshape(-1, self._n_columns))
            if n_even < EVEN * n_rows / buffer.length:
                independent = max(independent, _roundoff_of_uneven_sums(buffer.length, n_even, n_fills))
        return Product(buffer.total(), max(independent, drift))

    @np.errstate(invalid="ignore", over="ignore")  # NaN and infinity show in the product
    def _small_product(
        self, n_rows: int, write: Callable[[slice, torch.Tensor], object], *, measured: bool
    ) -> Product:
        """The product of rows that are written at once, by few calls of NumPy."""
        n_stacks = -(-n_rows // longest_sum(n_rows))
        length = -(-n_rows // n_stacks)
        rows = np.empty((n_stacks * length, self._n_columns))
        if self._has_ones:
            rows[:, 0] = 1
        if len(rows) > n_rows:
            rows[n_rows:] = 0
        write(slice(0, n_rows), torch.from_numpy(rows[:n_rows]))
        products = _products_of_stacks(rows.reshape(n_stacks, length, self._n_columns))
        upper = products[0] if n_stacks == 1 else products.sum(0)
        roundoff = roundoff_of_sums(n_rows, length, n_stacks)
        if measured:
            drift = _measured_drift(torch.from_numpy(rows[:n_rows]), upper.diagonal(), roundoff)
            n_even = 1.0 if n_stacks == 1 else _n_even(np.einsum("sii->si", products))
            if n_even < EVEN * n_stacks:
                roundoff = max(roundoff, _roundoff_of_uneven_sums(length, n_even, 1))
            roundoff = max(roundoff, drift)
        return Product(torch.from_numpy(upper), roundoff)

    def of_scaled(self, rows: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """The product of rows times a factor each, shape (n_rows,)."""
        factor = factor[:, None]
        return self(len(rows), lambda part, out: torch.mul(rows[part], factor[part], out=out))


class _Buffer:
    """Rows for the cores' caches, what is multiplied with what, and the sums of the products so far."""

    def __init__(self, n_rows: int, n_columns: int, device: torch.device) -> None:
        self._n_rows = n_rows
        self.n_stacks, self.length = n_stacks, length = _stacks(n_rows, n_columns, device)
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

    def squares(self) -> torch.Tensor:
        """Sums of squares so far; shape: (n_stacks, n_columns)."""
        parts = [sums[:, :, : sums.shape[1]].diagonal(dim1=1, dim2=2) for sums in self._sums]
        return torch.cat(parts, dim=1)

    def total(self) -> torch.Tensor:
        n_columns = self.rows.shape[1]
        result = self.rows.new_zeros((n_columns, n_columns))
        for total, panel in zip(self._sums, self._panels, strict=True):
            torch.sum(total, 0, out=result[panel, panel.start :])
        return result


def _products_of_stacks(stacks: np.ndarray) -> np.ndarray:
    """Products of few rows with themselves; shape: (n_stacks, n_columns, n_columns)."""
    if stacks.shape[0] * stacks.shape[1] >= SMALL_ROWS:
        same = torch.from_numpy(stacks)
        products: np.ndarray = torch.bmm(same.mT, same).numpy()
        return products
    if len(stacks) == 1:
        return (stacks[0].T @ stacks[0])[None]
    return np.matmul(stacks.transpose(0, 2, 1), stacks)


def _n_even(squares: np.ndarray) -> float:
    """How many sums of equal size a column's squares amount to, at least; shape: (n_sums, n_columns).

    It is their number where rows are alike, and 1 where a single row outweighs all others.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        whole = squares.sum(0)
        shares = squares[:, whole > 0] / whole[whole > 0]
        return float((1 / (shares**2).sum(0)).min(initial=len(squares)))


def measured_roundoff(found: np.ndarray, accurate: np.ndarray, expected: float) -> float:
    """The largest relative error of squares, with a margin where it is clearly more than expected.

    In that case squares of the same few numbers were rounded alike, and products of two columns, too.
    """
    with np.errstate(invalid="ignore"):  # NaN and infinity show in the product
        error = np.abs(found - accurate)
    beyond = error + SQUARE_ROUNDOFF * accurate > expected * accurate
    if not beyond.any():
        return 0.0
    largest = float((error[beyond] / accurate[beyond]).max())
    return DRIFT_SAFETY * largest if largest > CLEARLY_MORE * expected else largest + SQUARE_ROUNDOFF


def _measured_drift(rows: torch.Tensor, found: np.ndarray, expected: float) -> float:
    """Relative error of sums of squares whose roundings do not cancel; 0 where no column has such sums."""
    repeating = _repeating_columns(rows[:: -(-len(rows) // SAMPLE_ROWS)].cpu().numpy())
    if not len(repeating):
        return 0.0
    accurate = _accurate_squares(rows[:, torch.from_numpy(repeating).to(rows.device)])
    return measured_roundoff(found[repeating], accurate.cpu().numpy(), expected)


def _repeating_columns(sample: np.ndarray) -> np.ndarray:
    """Columns that hold the same few numbers, or nearly so, again and again.

    Not those of whole numbers, whose squares add up exactly.
    """
    ordered = np.abs(sample)
    ordered.sort(0)
    with np.errstate(invalid="ignore"):  # NaN and infinity show in the product
        alike = ordered[1:] * (1 - ALIKE) < ordered[:-1]
    repeats: np.ndarray = alike.sum(0) > SAMPLE_REPEATS
    if repeats.any():
        repeats &= (np.rint(ordered) != ordered).any(0)
    return repeats.nonzero()[0]


def _accurate_squares(rows: torch.Tensor) -> torch.Tensor:
    """Sums of squares to about one rounding; shape: (n_columns,)."""
    parts = torch.split(rows, max(1, SQUARES_AT_ONCE // rows.shape[1]))
    return _accurate_sum(torch.stack([_accurate_sum(part.square()) for part in parts]))


def _accurate_sum(terms: torch.Tensor) -> torch.Tensor:
    """The sum over the first axis of positive terms, which are overwritten.

    Terms are cut at a bit so high that the sum of their leading parts is exact in any order: at the last bit
    of a number as large as the sum.
    """
    rough = terms.sum(0)
    if rough.device.type == "cpu":  # with fewer calls
        cut = torch.from_numpy(dd.slice_scale(rough.numpy()))
    else:
        cut = dd.slice_scale(rough)
    high = (terms + cut).sub_(cut)
    return high.sum(0) + terms.sub_(high).sum(0)


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
        share = -(-n_rows // -(-n_rows * row_bytes // CUDA_BYTES))
        n_stacks = -(-share // max(longest_sum(n_rows), n_columns))  # whose sums take no more than the rows
        return n_stacks, -(-share // n_stacks)
    n_shares = torch.get_num_threads()
    most_bytes = n_shares * SHARE_BYTES
    longest = longest_sum(n_rows)
    if n_shares * 4 * n_columns**2 > SUMS_BYTES:
        n_shares, most_bytes = 1, min(SHARED_BYTES, SHARED_ROWS * row_bytes)
        longest = LONGEST_SUM
    parts = min(PARTS, n_rows * row_bytes // PART_BYTES, n_rows // (PART_ROWS * n_shares))
    n_parts = max(1, parts, -(-n_rows * row_bytes // most_bytes))
    share = -(-n_rows // (n_parts * n_shares))
    n_sums = -(-share // longest)
    return n_shares * n_sums, -(-share // n_sums)


def _panels(n_columns: int) -> list[slice]:
    """Whole panels, counted from the last column; the first one takes the rest, too, where that is little."""
    width = next((width for most, width in PANELS if n_columns <= most), WIDE_PANEL)
    starts = list(range(n_columns - width, 0, -width))[::-1]
    if starts and starts[0] < width / 3:
        starts = starts[1:]
    edges = [0, *starts, n_columns]
    return [slice(start, stop) for start, stop in pairwise(edges)]
