"""Coordinates in which the squared error is simple, for other losses and for training."""

import numpy as np
import pytest

from torchlinreg import TorchLinearRegressor, losses
from torchlinreg._data.rows import as_row_blocks
from torchlinreg._objective.penalty import ridge
from torchlinreg._objective.problem import Problem
from torchlinreg._solvers.least_squares.whitening import geometry_of

LOSSES = ["absolute_error", "huber", "log_cosh", losses.Quantile(0.9), "squared_epsilon_insensitive"]


@pytest.mark.parametrize("scale", [1e-13, 1e8, 1e13, 1e40])
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_wide_rows_in_mixed_units_are_interpolated(loss, scale):
    """Any targets of fewer rows than features can be met, whatever the units of the features."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((4, 6))
    X[:, 0] *= scale
    X[:, 3] *= scale**0.5
    y = rng.standard_normal(4)
    reg = TorchLinearRegressor(loss=loss).fit(X, y)
    within = 0.1 if loss == "squared_epsilon_insensitive" else 0.0
    assert np.abs(reg.predict(X) - y).max() <= within + 1e-12


@pytest.mark.parametrize("alpha", [0.0, 1e-3])
def test_whitened_coordinates_have_the_hessian_of_the_rows(alpha):
    rng = np.random.default_rng(1)
    X, y = rng.standard_normal((5, 9)) * 10.0 ** rng.integers(-6, 7, 9), rng.standard_normal(5)
    X[4] = X[3]  # rank 4, 3 about the mean
    geometry = geometry_of(Problem(as_row_blocks(X, y), ridge(alpha, 9)), 1e-12)
    rank = geometry.transform.shape[1]
    assert rank == 3
    np.testing.assert_allclose(geometry.inverse @ geometry.transform, np.eye(rank), atol=1e-12)
    moved = geometry.rows @ geometry.transform
    hessian = moved.T @ moved + alpha * geometry.transform.T @ geometry.transform
    np.testing.assert_allclose(hessian, np.eye(rank), atol=1e-12)
