"""Error-free transformations: arithmetic whose rounding errors are kept instead of lost.

A *double-double* is a pair ``(high, low)`` of float64 arrays that stands for ``high + low`` with about
106 bits. Everything here is written with operators, so that torch tensors and NumPy arrays both work.

References: Dekker (1971), Numerische Mathematik 18, 224-242 (two_product); Knuth, TAOCP 2, 4.2.2
(two_sum); Ozaki, Ogita, Oishi, Rump (2012), Numerical Algorithms 59, 95-118 (slices).
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch

Array = TypeVar("Array", np.ndarray, torch.Tensor)

SLICE_BITS = 22
# Two slices of 22 bits (sign included: integers up to 2**21) multiply to at most 2**42, so a float64 matrix
# product over at most 2**11 terms is exact; one factor of two is kept for adding two such products. Sums of
# more of them, of lower levels, may round once at 2**-97 of the whole.
EXACT_INNER_LENGTH = 1024
_SPLITTER = 2.0**27 + 1.0
# Products of up to so many pairs, or of so few rows or columns, are summed one after another.
FEW_PRODUCTS, FEW_COLUMNS = 300_000, 4
PRODUCT_SLICES = 4


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return ``s, e`` with ``s = fl(a + b)`` and ``s + e == a + b`` exactly."""
    total = a + b
    virtual = total - a
    return total, (a - (total - virtual)) + (b - virtual)


def two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """Return ``p, e`` with ``p = fl(a * b)`` and ``p + e == a * b`` exactly (barring under- and overflow)."""
    product = a * b
    a_high, a_low = _split(a)
    b_high, b_low = _split(b)
    error = a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)
    return product, error


def _split(a: Array) -> tuple[Array, Array]:
    scaled = a * _SPLITTER
    high = scaled - (scaled - a)
    return high, a - high


def add(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    """Sum of two double-doubles, accurate also under cancellation."""
    high, low = two_sum(a[0], b[0])
    low_high, low_low = two_sum(a[1], b[1])
    high, low = two_sum(high, low + low_high)
    return two_sum(high, low + low_low)


def multiply(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    """Product of two double-doubles."""
    high, low = two_product(a[0], b[0])
    return two_sum(high, low + (a[0] * b[1] + a[1] * b[0]))


def times_float(high: Array, low: Array | None, b: Array) -> tuple[Array, Array]:
    """Product of a double-double, whose `low` may be None for zero, and a float64."""
    product, error = two_product(high, b)
    return two_sum(product, error if low is None else error + low * b)


def negative(a: tuple[Array, Array]) -> tuple[Array, Array]:
    """The double-double ``-a``."""
    return -a[0], -a[1]


def divide(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    """Quotient of two double-doubles."""
    quotient = a[0] / b[0]
    zero = quotient * 0
    remainder = add(a, negative(multiply((quotient, zero), b)))
    correction = remainder[0] / b[0]
    remainder = add(remainder, negative(multiply((correction, zero), b)))
    high, low = two_sum(quotient, correction)
    return two_sum(high, low + remainder[0] / b[0])


def sum_over_first_axis(terms: tuple[Array, Array]) -> tuple[Array, Array]:
    """Sum of double-doubles over the first axis, by halves."""
    high, low = terms
    while len(high) > 1:
        half = len(high) // 2
        odd_high, odd_low = high[2 * half :], low[2 * half :]
        high, low = add((high[:half], low[:half]), (high[half : 2 * half], low[half : 2 * half]))
        if len(odd_high):
            head = add((high[:1], low[:1]), (odd_high, odd_low))
            high[:1], low[:1] = head
    return high[0], low[0]


def matmul(
    a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """``a @ b`` for double-double matrices.

    Small products are exact but for the rounding of double-doubles. Large ones are formed from slices, to
    2^-88 of the largest in the row of `a` times the largest in the column of `b`.
    """
    n_rows, n_inner, n_columns = len(a[0]), len(b[0]), b[0].shape[1]
    if n_rows * n_inner * n_columns > FEW_PRODUCTS and min(n_rows, n_inner, n_columns) >= FEW_COLUMNS:
        return _sliced_product(a, b)
    if n_rows < n_columns:
        high, low = matmul((b[0].T, b[1].T), (a[0].T, a[1].T))
        return high.T, low.T
    high, low = np.zeros((n_rows, n_columns)), np.zeros((n_rows, n_columns))
    if n_inner < n_columns:
        for i in range(n_inner):
            left, right = (a[0][:, i, None], a[1][:, i, None]), (b[0][None, i], b[1][None, i])
            high, low = add((high, low), multiply(left, right))
        return high, low
    transposed = a[0].T, a[1].T
    for column in range(n_columns):
        factor = b[0][:, column, None], b[1][:, column, None]
        high[:, column], low[:, column] = sum_over_first_axis(multiply(transposed, factor))
    return high, low


def _sliced_product(
    a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """``a @ b`` from exact products of slices (Ozaki, Ogita, Oishi, Rump 2012)."""
    a_scale = slice_scale(np.abs(a[0]).max(1))[:, None]
    b_scale = slice_scale(np.abs(b[0]).max(0))[None]
    shape = len(a[0]), b[0].shape[1]
    result = np.zeros(shape), np.zeros(shape)
    for start in range(0, len(b[0]), EXACT_INNER_LENGTH):
        inner = slice(start, start + EXACT_INNER_LENGTH)
        left = slices(a[0][:, inner] / a_scale, a[1][:, inner] / a_scale, PRODUCT_SLICES)
        right = slices(b[0][inner] / b_scale, b[1][inner] / b_scale, PRODUCT_SLICES)
        for level in range(PRODUCT_SLICES + 1):
            for i in range(max(0, level + 1 - PRODUCT_SLICES), min(level + 1, PRODUCT_SLICES)):
                result = add(result, (left[i] @ right[level - i], np.zeros(shape)))
    return result[0] * (a_scale * b_scale), result[1] * (a_scale * b_scale)


def slices(high: Array, low: Array | None, n_slices: int, *, bits: int = SLICE_BITS) -> list[Array]:
    """Cut ``high + low``, with ``|high| <= 1``, into `n_slices` arrays that sum to it; None is a zero `low`.

    Slice ``k`` (from 0) holds multiples of ``2**(1 - bits (k + 1))`` that need so many bits, at most 26, with
    their sign; the last one is what is left, rounded once.
    """
    parts = []
    for k in range(n_slices - 1):
        # Adding sigma rounds to the wanted multiple: that multiple is sigma's unit in the last place.
        sigma = 1.5 * 2.0 ** (53 - bits * (k + 1))
        part = high + sigma
        part -= sigma
        parts.append(part)
        high = high - part
        if low is not None and k % 2:  # two slices are most of the 53 bits of `high`: time to bring up `low`
            high, low = two_sum(high, low)
    parts.append(high if low is None else high + low)
    return parts


def slice_scale(magnitude: Array) -> Array:
    """Powers of two at or above ``magnitude`` (1 where it is 0), the scale under which `slices` may cut."""
    if isinstance(magnitude, np.ndarray):
        exponent = np.minimum(np.maximum(np.frexp(magnitude)[1], -1022), 1023)  # np.clip takes twice as long
        return np.where(magnitude > 0, np.ldexp(1.0, exponent), 1.0)
    powers = power_of_two(torch.frexp(magnitude).exponent)
    return torch.where(magnitude > 0, powers, 1.0)


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """``2.0 ** exponent`` from the bits of a float64: torch's own power is not exact on every device."""
    return ((exponent.to(torch.int64).clamp(-1022, 1023) + 1023) << 52).view(torch.float64)
