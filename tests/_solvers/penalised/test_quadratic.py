"""The minimum of a penalised quadratic: optimality conditions, and no reference below it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import lsq_linear, nnls
from sklearn.linear_model import ElasticNet

from torchlinreg._objective.penalty import Penalty, elastic_net
from torchlinreg._solvers.penalised.quadratic import (
    _first_pieces,
    _pivot,
    _Point,
    _task,
    duality_gap,
    minimise_quadratic,
)

KINDS = ["normal", "tied", "correlated", "duplicated", "random walk", "constant"]


def quadratic(rng, kind, n_samples, n_features):
    """Gram matrix, products and mean square of a target, of columns of unit mean square."""
    X = rng.standard_normal((n_samples, n_features))
    if kind == "tied":
        X = rng.integers(-2, 3, X.shape).astype(float)
    elif kind == "correlated":
        X = 0.1 * X + rng.standard_normal((n_samples, 1)) @ rng.standard_normal((1, n_features))
    elif kind == "duplicated":
        X = X[:, rng.integers(n_features, size=n_features)]
    elif kind == "random walk":
        X = np.cumsum(X, axis=1)
    elif kind == "constant":
        X[:, rng.random(n_features) < 0.3] = 0
    norm = np.sqrt((X**2).mean(0))
    X = X / np.where(norm > 0, norm, 1)
    y = X @ rng.integers(-1, 2, n_features) + rng.integers(-3, 4, n_samples)
    return X.T @ X / n_samples, X.T @ y / n_samples, float(y @ y) / n_samples, X, y


def penalty_of(rng, kind, linear):
    n_features = len(linear)
    size = np.abs(linear).max() * 10.0 ** rng.uniform(-4, 0.1)
    l1, l2 = np.zeros(n_features), np.zeros(n_features)
    lower, upper = np.full(n_features, -np.inf), np.full(n_features, np.inf)
    if kind in ("lasso", "elastic net", "both", "some"):
        l1 += size
    if kind == "some":
        l1 *= rng.integers(0, 3, n_features)
    if kind == "elastic net":
        l2 += size
    if kind in ("positive", "positive lasso"):
        lower[:] = 0
        l1 += size if kind == "positive lasso" else 0
    if kind in ("bounds", "both"):
        at, width = rng.integers(-3, 3, n_features) / 2, rng.integers(0, 4, n_features) / 2
        below, above = rng.random((2, n_features)) < 0.7
        lower[below] = at[below]
        upper[above] = (at + width)[above]
    return Penalty(l1, l2, lower, upper)


def value(gram, linear, penalty, coef):
    return coef @ gram @ coef / 2 - linear @ coef + penalty.value(coef)


def violation(gram, linear, penalty, coef):
    """The largest violation of the optimality conditions, relative to the terms of the gradient."""
    gradient = linear - gram @ coef - penalty.l2 * coef
    inside = np.where(coef == 0, 0.0, np.sign(coef)) * penalty.l1
    spread = np.where(coef == 0, penalty.l1, 0.0)
    up = np.where(coef < penalty.upper, gradient - inside - spread, 0.0)
    down = np.where(coef > penalty.lower, inside - spread - gradient, 0.0)
    size = np.abs(linear).max() + np.abs(coef).sum() + penalty.l1.max() + np.abs(penalty.l2 * coef).max()
    return max(up.max(), down.max(), 0.0) / max(size, 1e-300)


@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(KINDS),
    penalties=st.sampled_from(
        ["lasso", "elastic net", "some", "positive", "positive lasso", "bounds", "both"]
    ),
    n_samples=st.integers(1, 40),
    n_features=st.integers(1, 30),
    warm=st.booleans(),
)
def test_optimality_conditions_hold_to_rounding(seed, kind, penalties, n_samples, n_features, warm):
    rng = np.random.default_rng(seed)
    gram, linear, square, _, _ = quadratic(rng, kind, n_samples, n_features)
    penalty = penalty_of(rng, penalties, linear)
    start = rng.integers(-1, 2, n_features) * rng.random(n_features) if warm else None
    minimum = minimise_quadratic(gram, linear, penalty, start)
    coef = minimum.coef
    assert minimum.converged
    assert (coef >= penalty.lower).all()
    assert (coef <= penalty.upper).all()
    assert violation(gram, linear, penalty, coef) < 1e-13
    assert minimum.optimality < 1e-20 * max(square, 1.0)
    gap = duality_gap(coef, gram @ coef - linear, penalty, 10 + 10 * np.abs(coef).max())
    assert gap <= 1e-10 * (square + float(penalty.value(coef)) + np.abs(coef).max() ** 2 + 1)


@pytest.mark.parametrize("penalties", ["lasso", "positive", "both", "elastic net"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_descent_alone_ends_at_the_optimum(kind, penalties, monkeypatch):
    """As after pivoting that does not end."""

    def no_pivots(task, piece):
        coef = np.clip(np.zeros(len(piece)), task.lower, task.upper)
        nothing = np.zeros(0, dtype=np.intp)
        return _Point(coef, nothing, np.zeros(0)), None, 0

    monkeypatch.setattr("torchlinreg._solvers.penalised.quadratic._pivot", no_pivots)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        gram, linear, _, _, _ = quadratic(rng, kind, 12 + 6 * (seed % 4), 20)
        penalty = penalty_of(rng, penalties, linear)
        minimum = minimise_quadratic(gram, linear, penalty)
        assert minimum.converged
        assert violation(gram, linear, penalty, minimum.coef) < 1e-13


def test_pivoting_hands_over_to_the_descent():
    """Few rows of tied integers: both ways of going on are taken in these examples."""
    handed_over = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        gram, linear, _, _, _ = quadratic(rng, "tied", 10, 30)
        penalty = penalty_of(rng, "bounds", linear)
        task = _task(gram, linear, penalty)
        _, factor, _ = _pivot(task, _first_pieces(task, None))
        handed_over += factor is None
        assert violation(gram, linear, penalty, minimise_quadratic(gram, linear, penalty).coef) < 1e-13
    assert 0 < handed_over < 30


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("l1_ratio", [0.3, 1.0])
def test_not_above_elastic_net(kind, l1_ratio):
    rng = np.random.default_rng(1)
    gram, linear, square, X, y = quadratic(rng, kind, 60, 20)
    alpha = 0.05 * np.abs(linear).max()
    penalty = elastic_net(alpha, l1_ratio, 20)
    coef = minimise_quadratic(gram, linear, penalty).coef
    other = ElasticNet(alpha=alpha, l1_ratio=l1_ratio, tol=1e-14, max_iter=10**6, fit_intercept=False)
    reference = other.fit(X, y).coef_
    ours, theirs = (value(gram, linear, penalty, one) + square / 2 for one in (coef, reference))
    assert ours <= theirs * (1 + 1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_not_above_nnls_and_lsq_linear(kind):
    rng = np.random.default_rng(2)
    gram, linear, square, X, y = quadratic(rng, kind, 50, 20)
    n_features = len(linear)
    for lower, upper, reference in [
        (0.0, np.inf, nnls(X, y)[0]),
        (-0.3, 0.4, lsq_linear(X, y, (-0.3, 0.4), tol=1e-15, lsq_solver="exact", method="bvls").x),
    ]:
        penalty = elastic_net(0.0, 1.0, n_features, None, lower, upper)
        coef = minimise_quadratic(gram, linear, penalty).coef
        ours, theirs = (value(gram, linear, penalty, one) + square / 2 for one in (coef, reference))
        assert ours <= theirs + 1e-13 * square


def test_zeros_and_bounds_are_exact():
    rng = np.random.default_rng(3)
    gram, linear, _, _, _ = quadratic(rng, "normal", 100, 30)
    lower, upper = np.full(30, -0.1), np.full(30, 0.3)
    penalty = elastic_net(0.3, 1.0, 30, None, lower, upper)
    coef = minimise_quadratic(gram, linear, penalty).coef
    assert np.count_nonzero(coef == 0) > 3
    assert not np.signbit(coef[coef == 0]).any()
    assert np.count_nonzero(coef == upper) > 3
    assert np.count_nonzero(coef == lower) > 0


def test_a_start_at_the_minimum_needs_one_factorisation():
    rng = np.random.default_rng(4)
    gram, linear, _, _, _ = quadratic(rng, "correlated", 100, 40)
    penalty = elastic_net(0.01, 1.0, 40)
    first = minimise_quadratic(gram, linear, penalty)
    again = minimise_quadratic(gram, linear, penalty, first.coef)
    assert again.n_iter == 1 < first.n_iter
    np.testing.assert_allclose(again.coef, first.coef, rtol=1e-12)


@pytest.mark.parametrize("start", [None, np.zeros(3)])
def test_coefficients_are_free_as_soon_as_their_gradient_asks_for_it(start):
    gram, linear = np.eye(3), np.array([0.5 + 1e-13, -0.5 - 1e-13, 0.5])
    coef = minimise_quadratic(gram, linear, elastic_net(0.5, 1.0, 3), start).coef
    np.testing.assert_allclose(coef, [1e-13, -1e-13, 0.0], rtol=1e-2)


def test_equal_bounds_fix_coefficients():
    gram, linear = np.eye(3), np.array([1.0, 2.0, -3.0])
    lower, upper = np.array([5.0, -np.inf, -1.0]), np.array([5.0, np.inf, -1.0])
    coef = minimise_quadratic(gram, linear, elastic_net(0.5, 1.0, 3, None, lower, upper)).coef
    np.testing.assert_array_equal(coef, [5.0, 1.5, -1.0])


def test_duality_gap_bounds_the_distance_from_the_minimum():
    rng = np.random.default_rng(5)
    for kind in ["lasso", "elastic net", "positive lasso", "both"]:
        gram, linear, _, _, _ = quadratic(rng, "normal", 60, 15)
        penalty = penalty_of(rng, kind, linear)
        best = minimise_quadratic(gram, linear, penalty).coef
        away = np.clip(best + 0.1 * rng.standard_normal(15), penalty.lower, penalty.upper)
        above = value(gram, linear, penalty, away) - value(gram, linear, penalty, best)
        gap = duality_gap(away, gram @ away - linear, penalty, 2 * np.abs(best).max())
        assert 0 < above <= gap
