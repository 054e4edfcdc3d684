"""Exact products of wide rows, against rational arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from torchlinreg._data.rows import as_row_blocks
from torchlinreg._linalg import double_double as dd
from torchlinreg._moments import wide
from torchlinreg._moments.wide import WideRows

LEFT_OF_TWO_AND_THREE = {2: 2.0**-68, 3: 2.0**-90}


def wide_rows(X, scale=1.0):
    rows = torch.from_numpy(X)
    largest = dd.slice_scale(rows.abs().amax(0) * scale)
    blocks = as_row_blocks(X, np.zeros(len(X)))
    return WideRows(blocks, torch.zeros(X.shape[1], dtype=torch.float64), scale, largest)


def worst_error(found, left, right, largest):
    """In units of the largest products that rows and columns of such sizes could have."""
    worst = 0.0
    for j, (high, low) in enumerate(zip(right[0].T, right[1].T, strict=True)):
        factor = [Fraction(h) + Fraction(lo) for h, lo in zip(high, low, strict=True)]
        for i, row in enumerate(left):
            exact = sum(Fraction(x) * f for x, f in zip(row, factor, strict=True))
            error = Fraction(found[0][i, j]) + Fraction(found[1][i, j]) - exact
            worst = max(worst, abs(float(error)) / largest[i, j])
    return worst


def largest_of_rows(X, coef):
    return np.tile((np.abs(X).max(0)[:, None] * np.abs(coef[0])).max(0), (len(X), 1))


def largest_of_columns(X, values):
    return np.outer(np.abs(X).max(0), np.abs(values[0]).max(0))


def double_double(rng, n_rows, n_columns):
    high = rng.standard_normal((n_rows, n_columns))
    return high, 2.0**-54 * rng.uniform(-1, 1, high.shape) * high


@pytest.mark.parametrize("n_slices", [2, 3])
@pytest.mark.parametrize("piece", [1, 3, 100])
@pytest.mark.parametrize("power", [0, 120, -120])
def test_products_are_exact_but_for_the_last_slice(monkeypatch, n_slices, piece, power):
    rng = np.random.default_rng(0)
    X = np.ldexp(rng.standard_normal((7, 40)), power)
    monkeypatch.setattr(wide, "PIECE_BYTES", piece * 8 * 40)
    rows = wide_rows(X)
    coef, values = double_double(rng, 40, 2), double_double(rng, 7, 2)
    of_columns = largest_of_columns(X, values)
    limit = LEFT_OF_TWO_AND_THREE[n_slices]
    assert worst_error(rows.times(coef, n_slices), X, coef, largest_of_rows(X, coef)) < limit
    assert worst_error(rows.transposed_times(values, n_slices), X.T, values, of_columns) < limit
    one = rows.vector_times(X[3][:, None], coef, n_slices)
    assert worst_error(one, X[3:4], coef, largest_of_rows(X, coef)) < limit


def test_columns_of_other_units_keep_their_own_accuracy():
    rng = np.random.default_rng(0)
    units = 10.0 ** rng.integers(-60, 60, 40)
    X = rng.standard_normal((7, 40)) * units
    values = double_double(rng, 7, 1)
    found = wide_rows(X).transposed_times(values, 2)
    assert worst_error(found, X.T, values, largest_of_columns(X, values)) < 2.0**-68
    coef = double_double(rng, 40, 1)
    coef = coef[0] / units[:, None], coef[1] / units[:, None]
    found = wide_rows(X).times(coef, 3)
    assert worst_error(found, X, coef, largest_of_rows(X, coef)) < 2.0**-90


@pytest.mark.parametrize("n_rows", [1, 5, 64])
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("rows_per_block", [2, 100])
def test_the_upper_triangle_of_the_kernel(monkeypatch, n_rows, moved, rows_per_block):
    rng = np.random.default_rng(n_rows)
    X = rng.standard_normal((n_rows, 90))
    rows = wide_rows(X)
    rows.blocks.rows_per_block = rows_per_block
    monkeypatch.setattr(wide, "KERNEL_BYTES", 8 * 20 * n_rows)
    mean = X.mean(0) if moved else np.zeros(90)
    expected = (X - mean) @ (X - mean).T
    np.testing.assert_allclose(np.triu(rows.kernel(torch.from_numpy(mean))), np.triu(expected), atol=1e-12)
