"""Rounding errors of products of combinations are within the bounds that come with them."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import sparse

from torchlinreg._data.rows import as_row_blocks
from torchlinreg._linalg import double_double as dd
from torchlinreg._moments.combinations import Combinations, CombinationsOf
from torchlinreg._moments.moments import Frame
from torchlinreg._objective.penalty import ridge
from torchlinreg._objective.problem import Problem
from torchlinreg._solvers.least_squares.basis import RowsSource


@pytest.mark.every(3)
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("order", ["random", "sorted"])
@pytest.mark.parametrize("n_levels", [40, 1000])
@pytest.mark.parametrize("n_slices", [0, 2])
def test_residuals_without_means(kind, order, n_levels, n_slices):
    """Sums over levels end near 0 after large terms; truths are sums rounded once."""
    rng = np.random.default_rng(n_levels)
    n_samples = 20_000
    level = np.concatenate([np.arange(n_levels), rng.integers(0, n_levels, n_samples - n_levels)])
    level = np.sort(level) if order == "sorted" else rng.permutation(level)
    y = 1e3 * rng.standard_normal(n_samples)
    y -= (np.bincount(level, y) / np.bincount(level))[level]
    X = (level[:, None] == np.arange(n_levels)).astype(float)
    source = RowsSource(Problem(as_row_blocks(kind(X), y), ridge(0.0, n_levels)))
    zero = np.zeros((1 + n_levels, 1))
    found = source.products(
        Combinations(np.array([1 + n_levels]), (zero, zero)), 1, n_slices, with_error=True
    )
    assert source.frame.scale is not None
    shift, scale = source.frame.shift.numpy(), source.frame.scale.numpy()
    z = (y - shift[-1]) * scale[-1]
    for j in range(0, n_levels, n_levels // 20):
        column = (X[:, j] - shift[1 + j]) * scale[1 + j]
        truth = math.fsum(np.concatenate(dd.two_product(column, z)))
        assert abs(found.of_x[1 + j, 0] - truth) <= found.error[1 + j, 0] + 2.0**-52 * abs(truth)
    assert found.error.max() < 1e-14 * np.linalg.norm(z) * math.sqrt(n_samples)


@pytest.mark.parametrize("n_slices", [0, 2])
def test_shifted_sparse_columns(n_slices):
    """Subtracting the shift from one row's small entry rounds; truths are exact."""
    rng = np.random.default_rng(0)
    X = sparse.random(60, 40, density=0.01, rng=0).toarray()
    X[:, 3] = 1.7e9 + rng.uniform(0, 60, len(X))
    X[5, 3] = 0.1
    y = rng.standard_normal(len(X))
    frame = Frame(torch.zeros(42, dtype=torch.float64), None)
    frame.shift[4] = 1.7e9 + 1 / 3
    high = rng.standard_normal((41, 1)) * (np.arange(41) != 4)[:, None]
    combinations = Combinations(np.array([4]), (high, np.zeros_like(high)))
    of = CombinationsOf(frame, combinations, 1, n_slices)
    blocks = as_row_blocks(sparse.csr_array(X), y)
    found = of.finish(of(blocks.rows(0, len(X))))
    rows = [[Fraction(1), *map(Fraction, row)] for row in X]
    for row in rows:
        row[4] -= Fraction(float(frame.shift[4]))
    weights = [Fraction(weight) + (j == 4) for j, weight in enumerate(high[:, 0])]
    z = [sum(w * v for w, v in zip(weights, row, strict=True)) for row in rows]
    truth = np.array(
        [float(sum(v * c for v, c in zip(column, z, strict=True))) for column in zip(*rows, strict=True)]
    )
    np.testing.assert_allclose(found.of_x[:, 0], truth, atol=1e-15 * np.abs(truth[4]), rtol=1e-14)
    assert found.of_z[0, 0] == pytest.approx(float(sum(value * value for value in z)), rel=1e-15)
