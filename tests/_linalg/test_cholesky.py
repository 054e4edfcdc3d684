"""Small dense algebra at every size class: LAPACK through SciPy, through torch, and iterated."""

import numpy as np
import pytest

from torchlinreg import TorchLinearRegressor
from torchlinreg._linalg.cholesky import SVD_SIZE, TORCH_SIZE, cholesky, extreme_singular_values, solve_upper
from torchlinreg._solvers.least_squares.dual import _System

SIZES = [1, 2, SVD_SIZE - 1, SVD_SIZE, TORCH_SIZE - 1, TORCH_SIZE, 420]


def unit_gram(size):
    rng = np.random.default_rng(size)
    columns = rng.standard_normal((3 * size, size)) @ np.diag(rng.uniform(1, 30, size))
    columns += columns[:, :1]
    columns /= np.linalg.norm(columns, axis=0)
    return columns.T @ columns


@pytest.mark.parametrize("size", SIZES)
def test_factor_solves(size):
    gram = unit_gram(size)
    upper = cholesky(gram)
    np.testing.assert_allclose(upper.T @ upper, gram, atol=1e-13)
    right = np.random.default_rng(0).standard_normal((size, 2))
    np.testing.assert_allclose(gram @ solve_upper(upper, right), right, atol=1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_no_factor_of_an_indefinite_matrix(size):
    gram = unit_gram(size)
    gram[-1, -1] = -1.0
    assert cholesky(gram) is None


@pytest.mark.parametrize("size", SIZES)
def test_extreme_singular_values(size):
    upper = cholesky(unit_gram(size))
    exact = np.linalg.svd(upper, compute_uv=False)
    largest, smallest = extreme_singular_values(upper)
    assert largest == pytest.approx(exact[0], rel=0.1)
    assert smallest == pytest.approx(exact[-1], rel=0.3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("offset", [0, 1000])
def test_whole_numbers_are_found_exactly(size, offset):
    """A perfect fit in whole numbers has the coefficients it was made with."""
    rng = np.random.default_rng(size)
    X = rng.integers(-9, 10, (3 * size + 5, size)) + float(offset)
    coef = rng.integers(1, 10, size) * rng.choice([-1.0, 1.0], size)
    reg = TorchLinearRegressor().fit(X, X @ coef - 7)
    np.testing.assert_allclose(reg.coef_, coef, rtol=1e-12)
    np.testing.assert_allclose(reg.intercept_, -7, rtol=1e-12)
    assert reg.rank_ == size


def test_a_sum_that_is_off_moves_the_dual_intercept_rightly() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((6, 9))
    kernel = rows @ rows.T
    level = 0.5
    norm = np.sqrt(kernel.diagonal() + level)
    upper = cholesky((kernel + level) / norm[:, None] / norm)
    assert upper is not None
    system = _System(upper, norm, level, fit_intercept=True, condition_number=1.0, rate=0.0)
    residual, excess = rng.standard_normal((6, 2)), np.array([0.3, -2.0])

    change, intercept = system.solve(residual, excess)

    np.testing.assert_allclose(change.sum(0), excess, rtol=1e-12)
    np.testing.assert_allclose(kernel @ change + intercept, residual, rtol=1e-12, atol=1e-12)
