"""Rounding errors of products of combinations are within the bounds that come with them."""

import math

import numpy as np
import pytest
from scipy import sparse

from torchlinreg._data.rows import as_row_blocks
from torchlinreg._linalg import double_double as dd
from torchlinreg._moments.combinations import Combinations
from torchlinreg._objective.penalty import ridge
from torchlinreg._objective.problem import Problem
from torchlinreg._solvers.least_squares.basis import RowsSource


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
