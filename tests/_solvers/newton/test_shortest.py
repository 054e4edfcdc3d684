"""Of several optima of losses that are flat or straight in places: least norm, in any order of rows.

All optima share the slope of each row's loss. The truth is the shortest vector that leaves these as they are,
by SciPy's SLSQP, for an optimum whose gradients are 0.
"""

import numpy as np
import pytest
from reference.tied_rows import TiedRows
from scipy.linalg import null_space
from scipy.optimize import minimize

from torchlinreg import Status, TorchLinearRegressor
from torchlinreg.losses import Huber, SquaredEpsilonInsensitive

TUBES = [SquaredEpsilonInsensitive(0.1), SquaredEpsilonInsensitive(1.0)]
LOSSES = [*TUBES, Huber(epsilon=0.5, scale=1.0), Huber(epsilon=1.0, scale=0.1)]
CONSTRAINTS = [{}, {"positive": True}, {"bounds": (-0.25, 0.125)}]
PENALTIES = [{"alpha": 0.05, "l1_ratio": 1.0}, {"alpha": 0.05, "penalty_factor": "some"}]
SEEDS = range(16)


class Optima(TiedRows):
    """All optima of a small problem, wide or tall, in which many tie."""

    def __init__(self, seed, loss, parameters, *, dependent=True):
        parameters = dict(parameters, loss=loss, fit_intercept=seed % 5 > 0)
        super().__init__(seed, parameters, dependent=dependent)
        self.loss = loss
        if "penalty_factor" in parameters:
            parameters["penalty_factor"] = self.rng.integers(0, 2, self.p).astype(float)

    @property
    def bounds(self):
        if self.parameters.get("positive"):
            return 0.0, np.inf
        return self.parameters.get("bounds", (-np.inf, np.inf))

    def assert_shortest(self):
        found, design = self.fitted.coef_, self.X
        residual = self.y - self.fitted.predict(self.X)
        if self.parameters["fit_intercept"]:
            found = np.append(found, self.fitted.intercept_)
            design = np.column_stack([design, np.ones(self.n)])
        lower, upper = (np.full(len(found), bound) for bound in self.bounds)
        lower[self.p :], upper[self.p :] = -np.inf, np.inf
        if isinstance(self.loss, Huber):
            end = self.loss.threshold
            slope, held = residual.clip(-end, end), np.abs(residual) < end - 1e-9
            low, high = np.where(residual > 0, end, -np.inf), np.where(residual > 0, np.inf, -end)
        else:
            end = self.loss.epsilon
            slope = np.sign(residual) * np.maximum(np.abs(residual) - end, 0)
            held, low, high = np.abs(slope) > 1e-9, np.full(self.n, -end), np.full(self.n, end)
        gradient = -(self.weight * slope) @ design / self.weight.sum()
        np.testing.assert_array_less(-1e-12, np.where(found > lower + 1e-12, -gradient, np.inf))
        np.testing.assert_array_less(-1e-12, np.where(found < upper - 1e-12, gradient, np.inf))
        # What gradients pull against a bound stays there.
        fixed = np.abs(gradient) > 1e-9
        rows = np.concatenate([design[held], np.eye(len(found))[fixed]])
        free = null_space(rows) if len(rows) else np.eye(len(found))
        coef = np.eye(len(found))[: self.p]
        sides = np.concatenate([design[~held], -design[~held], coef, -coef])
        limits = np.concatenate(
            [(self.y - low)[~held], (high - self.y)[~held], upper[: self.p], -lower[: self.p]]
        )
        sides, limits = sides[np.isfinite(limits)], limits[np.isfinite(limits)]
        if free.shape[1]:
            result = minimize(
                lambda z: ((coef @ (found + free @ z)) ** 2).sum() / 2,
                np.zeros(free.shape[1]),
                jac=lambda z: free.T @ (coef.T @ (coef @ (found + free @ z))),
                constraints={
                    "type": "ineq",
                    "fun": lambda z: limits - sides @ (found + free @ z),
                    "jac": lambda z: -sides @ free,
                },
                method="SLSQP",
                options={"ftol": 1e-14, "maxiter": 500},
            )
            best = found + free @ result.x
            feasible = (sides @ best <= limits + 1e-9).all()
            assert feasible
            assert np.linalg.norm(found[: self.p]) <= np.linalg.norm(best[: self.p]) + 1e-7


@pytest.mark.every(11)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("constraints", CONSTRAINTS, ids=repr)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_coefficients_are_the_shortest_of_all_optima(seed, constraints, loss):
    Optima(seed, loss, constraints).assert_shortest()


@pytest.mark.every(11)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("parameters", [*CONSTRAINTS, *PENALTIES], ids=repr)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_order_and_repetition_of_rows_do_not_matter(seed, parameters, loss):
    # Dependent columns with an l1 penalty have several optima of one objective, of which any may be taken.
    optima = Optima(seed, loss, parameters, dependent="l1_ratio" not in parameters)
    tol = 1e-7 if "l1_ratio" in parameters else 1e-9  # along which the objective bends by its square
    for other in optima.others():
        np.testing.assert_allclose(other.coef_, optima.fitted.coef_, atol=tol)
        np.testing.assert_allclose(other.intercept_, optima.fitted.intercept_, atol=tol)


@pytest.mark.parametrize("scale", [1e-100, 1e-6, 1.0, 1e9])
@pytest.mark.parametrize("seed", [1, 3])
def test_units_of_y_do_not_matter(seed, scale):
    optima, other = Optima(seed, TUBES[0], {}), Optima(seed, SquaredEpsilonInsensitive(0.1 * scale), {})
    scaled = other.fit(optima.X, optima.y * scale, optima.weight)
    np.testing.assert_allclose(scaled.coef_ / scale, optima.fitted.coef_, atol=1e-11)


@pytest.mark.parametrize("n_features", [20, 30])
def test_tubes_around_few_rows_leave_one_shortest_vector(n_features):
    """What passes through all tubes is optimal for the squared loss as for the plain one."""
    rng = np.random.default_rng(4)
    X, y = rng.random((15, n_features)), rng.integers(0, 3, 15).astype(float)
    order = rng.permutation(15)
    found = TorchLinearRegressor(loss="squared_epsilon_insensitive").fit(X, y)
    other = TorchLinearRegressor(loss="squared_epsilon_insensitive").fit(X[order], y[order])
    plain = TorchLinearRegressor(loss="epsilon_insensitive").fit(X, y)
    np.testing.assert_allclose(found.coef_, other.coef_, atol=1e-11)
    np.testing.assert_allclose(found.coef_, plain.coef_, atol=1e-9)
    assert found.status_.kind is Status.MINIMUM_NORM


def test_of_constants_in_all_tubes_the_nearest_to_the_median():
    """Each from 1 to 2 has every row in its tube; the lower median of y is 1.5."""
    X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0.0, 1.5, 1.5, 3.0])
    for penalty in ({}, {"alpha": 0.1}, {"alpha": 0.1, "l1_ratio": 1.0}):
        found = TorchLinearRegressor(loss=SquaredEpsilonInsensitive(2.0), **penalty).fit(X, y)
        assert (found.coef_[0], found.intercept_) == (0.0, 1.5)


def test_a_slope_is_least_where_tubes_leave_it_free():
    """From (0, 1) to (3, -1) as flat as tubes of half a unit allow."""
    X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([1.0, 0.0, 0.0, -1.0])
    found = TorchLinearRegressor(loss=SquaredEpsilonInsensitive(0.5)).fit(X, y)
    np.testing.assert_allclose([found.coef_[0], found.intercept_], [-1 / 3, 0.5], atol=1e-12)


@pytest.mark.parametrize("n_copies", [1, 2000])
def test_a_group_in_its_tubes_among_many_rows(n_copies):
    """The second group's mean may be anything within 0.5 of its targets; 0 is as far as it need not move."""
    rng = np.random.default_rng(0)
    first, group = rng.standard_normal(50), np.repeat([0.0, 1.0], 50)
    y = np.concatenate([3 * rng.standard_normal(50), first.clip(-0.25, 0.25)])
    X, y = np.tile(np.column_stack([1 - group, group]), (n_copies, 1)), np.tile(y, n_copies)
    found = TorchLinearRegressor(loss=SquaredEpsilonInsensitive(0.5), fit_intercept=False).fit(X, y)
    assert abs(found.coef_[1]) < 1e-12
    alone = TorchLinearRegressor(loss=SquaredEpsilonInsensitive(0.5), fit_intercept=False).fit(X[:, :1], y)
    np.testing.assert_allclose(found.coef_[0], alone.coef_[0], rtol=1e-9)


def ratings(seed):
    """Rows as scikit-learn's check of weights has them."""
    rng = np.random.RandomState(seed)
    return (
        rng.rand(15, 30),
        rng.randint(0, 3, size=15).astype(float),
        rng.randint(0, 5, size=15).astype(float),
    )


def shortest_in_tubes(X, y, start, lower, upper):
    """The norm of the shortest coefficients that predict all within their tubes."""

    def above(z):
        return X @ z[:-1] + z[-1] - y + 0.1

    sides = [{"type": "ineq", "fun": above}, {"type": "ineq", "fun": lambda z: 2 * 0.1 - above(z)}]
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
def test_few_rows_within_bounds_whatever_the_order_or_repetition(seed, parameters):
    X, y, weight = ratings(seed)
    reg = TorchLinearRegressor(loss="squared_epsilon_insensitive", **parameters).fit(X, y, weight)
    coef, intercept = reg.coef_, reg.intercept_
    assert reg.status_.kind is Status.MINIMUM_NORM
    seen = weight > 0
    assert np.abs(X @ coef + intercept - y)[seen].max() < 0.1 + 1e-12
    lower, upper = (0, None) if "positive" in parameters else (-1, 2)
    least = shortest_in_tubes(X[seen], y[seen], np.append(coef, intercept), lower, upper)
    assert np.linalg.norm(coef) <= least * (1 + 1e-8)
    order = np.random.default_rng(0).permutation(int(weight.sum()))
    repeated = [np.repeat(part, weight.astype(int), axis=0)[order] for part in (X, y)]
    np.testing.assert_allclose(reg.fit(*repeated).coef_, coef, rtol=1e-9, atol=1e-11)


def test_rows_outside_keep_their_predictions():
    """A row of positive features cannot come down to its negative target; the others leave a choice."""
    X, y, _ = ratings(0)
    X[0] = np.r_[1.0, np.zeros(29)]
    y[0] = -4.0
    reg = TorchLinearRegressor(loss=TUBES[0], positive=True, fit_intercept=False).fit(X, y)
    free = TorchLinearRegressor(loss=TUBES[0], positive=True, fit_intercept=False).fit(X[1:, 1:], y[1:])
    assert reg.coef_[0] == 0.0
    np.testing.assert_allclose(reg.coef_[1:], free.coef_, rtol=1e-9, atol=1e-11)


def test_unpenalised_features_are_shortest_beside_a_ridge():
    """Two copies of what one feature explains share its coefficient."""
    rng = np.random.default_rng(0)
    x, other = rng.standard_normal((2, 20))
    y = x + other
    reg = TorchLinearRegressor(loss=TUBES[0], alpha=0.1, penalty_factor=[0, 0, 1], bounds=(-5, 5))
    coef = reg.fit(np.column_stack([x, x, other]), y).coef_
    assert coef[0] == pytest.approx(coef[1], rel=1e-9)
