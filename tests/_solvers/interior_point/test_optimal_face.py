"""Of several optima of a piecewise linear loss: least norm, then the intercept nearest to the median of y.

The truth is a quadratic program of SciPy's SLSQP among the optima that HiGHS finds.
"""

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from reference.tied_rows import TiedRows
from scipy.optimize import linprog, minimize

from torchlinreg import Status, TorchLinearRegressor
from torchlinreg.losses import AbsoluteError, EpsilonInsensitive, Quantile

LOSSES = [EpsilonInsensitive(0.1), EpsilonInsensitive(1.0), AbsoluteError(), Quantile(0.25)]


class Optima(TiedRows):
    """All optima of a small problem of integers, wide or tall, in which many tie."""

    def __init__(self, seed, loss, *, positive=False, fit_intercept=True):
        super().__init__(seed, {"loss": loss, "positive": positive, "fit_intercept": fit_intercept})
        self.loss, self.positive, self.fit_intercept = loss, positive, fit_intercept

    def assert_shortest(self):
        """The fitted model is optimal, and no shorter one is found by SLSQP among the optima."""
        n, p, share = self.n, self.p, self.weight / self.weight.sum()
        slope, positions, jumps = self.loss.pieces()
        cost = np.concatenate([-slope * (share @ self.X), [-slope], *(jump * share for jump in jumps)])
        matrix = np.zeros((len(positions) * n, len(cost)))
        limits = np.zeros(len(matrix))
        for k, position in enumerate(positions):
            rows = slice(k * n, (k + 1) * n)
            matrix[rows, :p], matrix[rows, p] = -self.X, -1
            matrix[rows, p + 1 :][:, rows] = -np.eye(n)
            limits[rows] = position - self.y
        intercept = (None, None) if self.fit_intercept else (0, 0)
        bounds = [(0 if self.positive else None, None)] * p + [intercept] + [(0, None)] * len(matrix)
        tight = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
        optimum = linprog(cost, matrix, limits, bounds=bounds, method="highs", options=tight)
        counted = np.arange(len(cost)) < p
        result = minimize(
            lambda x: x @ (counted * x) / 2,
            optimum.x,
            jac=lambda x: counted * x,
            constraints=[
                {"type": "ineq", "fun": lambda x: limits - matrix @ x, "jac": lambda x: -matrix},
                {"type": "ineq", "fun": lambda x: optimum.fun + 1e-11 - cost @ x, "jac": lambda x: -cost},
            ],
            bounds=bounds,
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        feasible = cost @ result.x <= optimum.fun + 1e-9 and (matrix @ result.x <= limits + 1e-9).all()
        assert feasible
        found = np.append(self.fitted.coef_, self.fitted.intercept_)
        excess = [np.maximum(self.y - self.X @ found[:p] - found[p] - position, 0) for position in positions]
        assert cost @ np.concatenate([found, *excess]) <= optimum.fun + 1e-10
        assert np.linalg.norm(found[:p]) <= np.linalg.norm(result.x[:p]) + 1e-6


SEEDS = [1, 2, 4, 5, 7, 8, 9, 10]


@pytest.mark.every(3)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_coefficients_are_the_shortest_of_all_optima(seed, positive, loss):
    optima = Optima(seed, loss, positive=positive, fit_intercept=seed % 5 > 0)
    optima.assert_shortest()


@pytest.mark.every(3)
@pytest.mark.parametrize("seed", [*SEEDS, 35, 89, 149])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_order_and_repetition_of_rows_do_not_matter(seed, positive, loss):
    optima = Optima(seed, loss, positive=positive, fit_intercept=seed % 5 > 0)
    for other in optima.others():
        np.testing.assert_allclose(other.coef_, optima.fitted.coef_, atol=1e-9)
        np.testing.assert_allclose(other.intercept_, optima.fitted.intercept_, atol=1e-9)


@pytest.mark.parametrize("n_features", [20, 30])
def test_tubes_around_few_rows_leave_one_shortest_vector(n_features):
    """Optimal is what passes through all tubes, so that least squares with bounds on predictions is truth."""
    rng = np.random.default_rng(4)
    X, y = rng.random((15, n_features)), rng.integers(0, 3, 15).astype(float)
    order = rng.permutation(15)
    found, other = (
        TorchLinearRegressor(loss="epsilon_insensitive").fit(rows, of)
        for rows, of in ((X, y), (X[order], y[order]))
    )
    np.testing.assert_allclose(found.coef_, other.coef_, atol=1e-11)
    assert found.status_.kind is Status.MINIMUM_NORM
    result = minimize(
        lambda x: x[1:] @ x[1:] / 2,
        np.append(found.intercept_, found.coef_),
        jac=lambda x: np.append(0.0, x[1:]),
        constraints=[
            {"type": "ineq", "fun": lambda x, s=sign: 0.1 - s * (y - x[0] - X @ x[1:])} for sign in (-1, 1)
        ],
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert result.success
    np.testing.assert_allclose(found.coef_, result.x[1:], atol=1e-5)


@pytest.mark.parametrize("scale", [1e-100, 1e-6, 1.0, 1e9])
def test_units_of_y_do_not_matter(scale):
    optima, other = Optima(1, EpsilonInsensitive(0.1)), Optima(1, EpsilonInsensitive(0.1 * scale))
    scaled = other.fit(optima.X, optima.y * scale, optima.weight)
    np.testing.assert_allclose(scaled.coef_ / scale, optima.fitted.coef_, atol=1e-11)


def test_of_equally_short_optima_the_intercept_nearest_to_the_median():
    """Each constant from 1 to 2 has every row in its tube; the lower median of y is 1.5."""
    X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0.0, 1.5, 1.5, 3.0])
    found = TorchLinearRegressor(loss=EpsilonInsensitive(2.0)).fit(X, y)
    assert (found.coef_[0], found.intercept_) == (0.0, 1.5)
    ridge = TorchLinearRegressor(loss=EpsilonInsensitive(2.0), alpha=0.1).fit(X, y)
    np.testing.assert_allclose([ridge.coef_[0], ridge.intercept_], [0.0, 1.5], atol=1e-9)


@pytest.mark.parametrize("offset", [0.0, 1e6, 1e9])
def test_claims_count_the_rounding_of_what_is_handed_back(offset):
    """In exact arithmetic; a line of least absolute error goes through two of the rows."""
    rng = np.random.default_rng(0)
    x = offset + np.arange(8.0)
    y = offset * 0.1 + rng.standard_normal(8)
    found = TorchLinearRegressor(loss="absolute_error").fit(x[:, None], y)
    rows = [(Fraction(a), Fraction(b)) for a, b in zip(x, y, strict=True)]

    def loss(coef, intercept):
        return sum(abs(coef * a + intercept - b) for a, b in rows)

    slopes = [((b - d) / (a - c), a, b) for (a, b), (c, d) in combinations(rows, 2)]
    least = min(loss(slope, b - slope * a) for slope, a, b in slopes)
    constant = min(loss(0, b) for _, b in rows)
    above = loss(Fraction(found.coef_[0]), Fraction(found.intercept_)) - least
    assert found.status_.kind is Status.OPTIMAL
    assert above <= Fraction(found.status_.optimality) * constant
    assert found.status_.optimality < 1e-14 * max(offset, 1)


def test_coefficients_off_their_bounds_are_free():
    """Interior points have duals above 0 for all bounds, of which those of rounding hold nothing."""
    groups = np.random.default_rng(5).integers(0, 3, (3, 24))
    X = np.concatenate([np.eye(3)[group] for group in groups], axis=1)[:, :7]
    y = np.rint(2 * np.random.default_rng(6).standard_normal(24))
    weight = np.random.default_rng(7).integers(0, 4, 24)
    weighted, repeated = (
        TorchLinearRegressor(loss=Quantile(0.9), positive=True, fit_intercept=False).fit(*rows)
        for rows in ((X, y, weight), (np.repeat(X, weight, 0), np.repeat(y, weight)))
    )
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, atol=1e-9)
