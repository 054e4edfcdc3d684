"""Squared losses beyond a tube, within bounds: of several optima the shortest, by a program of SciPy's."""

import numpy as np
import pytest
from scipy.optimize import minimize

from torchlinreg import Status, TorchLinearRegressor

LOSS, EPSILON = "squared_epsilon_insensitive", 0.1


def data(seed):
    rng = np.random.RandomState(seed)
    return (
        rng.rand(15, 30),
        rng.randint(0, 3, size=15).astype(float),
        rng.randint(0, 5, size=15).astype(float),
    )


def shortest(X, y, start, lower, upper):
    """The norm of the shortest coefficients that predict all within their tubes."""

    def above(z):
        return X @ z[:-1] + z[-1] - y + EPSILON

    sides = [{"type": "ineq", "fun": above}, {"type": "ineq", "fun": lambda z: 2 * EPSILON - above(z)}]
    bounds = [(lower, upper)] * X.shape[1] + [(None, None)]
    found = minimize(
        lambda z: z[:-1] @ z[:-1] / 2,
        start,
        jac=lambda z: np.append(z[:-1], 0.0),
        bounds=bounds,
        constraints=sides,
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-14},
    )
    return np.linalg.norm(found.x[:-1])


@pytest.mark.parametrize("parameters", [{"positive": True}, {"bounds": (-1, 2)}])
@pytest.mark.parametrize("seed", range(42, 48))
def test_shortest_whatever_the_order_or_repetition(seed, parameters):
    X, y, weight = data(seed)
    reg = TorchLinearRegressor(loss=LOSS, **parameters).fit(X, y, weight)
    coef, intercept = reg.coef_, reg.intercept_
    assert reg.status_.kind is Status.MINIMUM_NORM
    seen = weight > 0
    assert np.abs(X @ coef + intercept - y)[seen].max() < EPSILON + 1e-12
    lower, upper = (0, None) if "positive" in parameters else (-1, 2)
    least = shortest(X[seen], y[seen], np.append(coef, intercept), lower, upper)
    assert np.linalg.norm(coef) <= least * (1 + 1e-8)
    order = np.random.default_rng(0).permutation(int(weight.sum()))
    repeated = [np.repeat(part, weight.astype(int), axis=0)[order] for part in (X, y)]
    np.testing.assert_allclose(reg.fit(*repeated).coef_, coef, rtol=1e-9, atol=1e-11)


def test_rows_outside_keep_their_predictions():
    """A row of positive features cannot come down to its negative target; the others leave a choice."""
    X, y, _ = data(0)
    X[0] = np.r_[1.0, np.zeros(29)]
    y[0] = -4.0
    reg = TorchLinearRegressor(loss=LOSS, positive=True, fit_intercept=False).fit(X, y)
    free = TorchLinearRegressor(loss=LOSS, positive=True, fit_intercept=False).fit(X[1:, 1:], y[1:])
    assert reg.coef_[0] == 0.0
    np.testing.assert_allclose(reg.coef_[1:], free.coef_, rtol=1e-9, atol=1e-11)


def test_unpenalised_features_are_shortest_beside_a_ridge():
    """Two copies of what one feature explains share its coefficient."""
    rng = np.random.default_rng(0)
    x, other = rng.standard_normal((2, 20))
    y = x + other
    reg = TorchLinearRegressor(loss=LOSS, alpha=0.1, penalty_factor=[0, 0, 1], bounds=(-5, 5))
    coef = reg.fit(np.column_stack([x, x, other]), y).coef_
    assert coef[0] == pytest.approx(coef[1], rel=1e-9)
