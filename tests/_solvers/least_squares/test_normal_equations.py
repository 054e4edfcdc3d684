"""Intercepts near 0 of many rows: their digits, and the passes that these take."""

import warnings

import numpy as np
import pytest
from reference.tensor_work import TensorWork

from benchmarks.problems import make_problem
from torchlinreg import TorchLinearRegressor

N_SAMPLES = 4000
ROWS = np.arange(N_SAMPLES)
# Residuals as they come, or in an order in which they add up before they cancel.
NOISES = {
    "random": lambda rng: rng.standard_normal(N_SAMPLES),
    "sorted": lambda rng: np.sort(rng.standard_normal(N_SAMPLES)),
    "seasonal": lambda rng: np.sin(2 * np.pi * ROWS / 128) + 0.01 * rng.standard_normal(N_SAMPLES),
    "blocks": lambda rng: np.sign(np.sin(2 * np.pi * ROWS / 500)) + 0.01 * rng.standard_normal(N_SAMPLES),
    "heavy tails": lambda rng: rng.standard_t(1.5, N_SAMPLES),
    "few values": lambda rng: rng.integers(-1, 2, N_SAMPLES).astype(float),
}


@pytest.mark.every(2)
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("power", [0, 150])
def test_intercepts_near_zero_have_their_digits(noise, weighted, power):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N_SAMPLES, 2))
    y = X @ [7.0, -5.0] + NOISES[noise](rng)
    y += 10.0 ** -rng.uniform(3, 7) - y.mean()
    weight = rng.integers(1, 4, N_SAMPLES) / 4.0 if weighted else None
    problem = make_problem("x-x", X, np.ldexp(y, power), weight)
    reg = TorchLinearRegressor()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reg.fit(problem.X, problem.y, sample_weight=weight)
    digits = problem.digits(reg.coef_, reg.intercept_)
    assert digits.coef >= 12
    assert digits.intercept >= 12


def test_many_targets_take_two_passes_in_float64():
    """Exact slices, for the one intercept of 20 that happens to be near 0, took four times as long."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50_000, 10))
    Y = X @ rng.standard_normal((10, 20)) + rng.standard_normal((50_000, 20))
    Y[:, 0] += 1e-4 - np.linalg.lstsq(np.insert(X, 0, 1.0, axis=1), Y[:, 0])[0][0]
    with TensorWork() as work:
        TorchLinearRegressor().fit(X, Y)
    assert work.n_numbers < 6 * (X.size + Y.size)
