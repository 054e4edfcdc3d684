"""`regularization_path`: grids, optimality along the path, and agreement with scikit-learn's paths."""

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import ElasticNet, Lasso, Ridge, enet_path, lasso_path

from torchlinreg import TorchLinearRegressor, losses, regularization_path
from torchlinreg._data.rows import as_row_blocks
from torchlinreg._objective.penalty import elastic_net
from torchlinreg._objective.problem import Problem
from torchlinreg._selection.path import PREDICTION_ERROR, minima_of, quadratic_of


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(150, 8)) * np.geomspace(0.1, 30, 8) + 5
    y = X @ np.array([4.0, 0, -1, 0, 0.5, 0, 0, 0.02]) + rng.normal(size=150)
    return X, y


def objective(X, y, coef, intercept, alpha, l1_ratio, weight=None):
    residual = y - X @ coef - intercept
    penalty = l1_ratio * np.abs(coef).sum() + (1 - l1_ratio) / 2 * (coef**2).sum()
    return np.average(residual**2, weights=weight) / 2 + alpha * penalty


@pytest.mark.parametrize("l1_ratio", [1.0, 0.3])
def test_agrees_with_enet_path(data, l1_ratio):
    X, y = data
    path = regularization_path(X, y, l1_ratio=l1_ratio, alphas=30)
    alphas, coefs, _ = enet_path(
        X - X.mean(0), y - y.mean(), l1_ratio=l1_ratio, alphas=30, tol=1e-13, max_iter=100_000
    )
    np.testing.assert_allclose(path.alphas, alphas, rtol=1e-12)
    assert not path.coefs[0].any()
    assert (path.dual_gaps < 1e-14).all()
    for alpha, ours, intercept, theirs in zip(alphas, path.coefs, path.intercepts, coefs.T, strict=True):
        least = objective(X, y, theirs, y.mean() - X.mean(0) @ theirs, alpha, l1_ratio)
        assert objective(X, y, ours, intercept, alpha, l1_ratio) <= least * (1 + 1e-12)


def test_default_is_the_lasso_path(data):
    X, y = data
    path = regularization_path(X, y)
    alphas, _, _ = lasso_path(X - X.mean(0), y - y.mean())
    np.testing.assert_allclose(path.alphas, alphas, rtol=1e-12)


def test_ridge_path_and_its_grid(data):
    X, y = data
    path = regularization_path(X, y, l1_ratio=0.0, alphas=20, eps=1e-2)
    assert path.alphas[0] == pytest.approx(X.var(0).sum())
    assert path.alphas[-1] == pytest.approx(1e-4 * path.alphas[0])
    for alpha, coef, intercept in zip(path.alphas, path.coefs, path.intercepts, strict=True):
        ridge = Ridge(alpha=alpha * len(y), solver="svd").fit(X, y)
        np.testing.assert_allclose(coef, ridge.coef_, rtol=1e-11)
        np.testing.assert_allclose(intercept, ridge.intercept_, rtol=1e-11)


@pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fit_intercept": False},
        {"positive": True},
        {"bounds": (-0.3, [0.2] * 8)},
        {"penalty_factor": [1, 0, 2, 1, 1, 0.5, 1, 1]},
    ],
)
def test_every_strength_is_a_fit(data, l1_ratio, options):
    X, y = data
    targets = np.c_[y, -2 * y + X[:, 1]]
    weight = np.random.default_rng(1).integers(0, 4, len(y))
    alphas = [0.5, 0.01, 10.0]
    path = regularization_path(X, targets, alphas=alphas, l1_ratio=l1_ratio, sample_weight=weight, **options)
    assert path.alphas.tolist() == [10.0, 0.5, 0.01]
    assert path.coefs.shape == (3, 2, 8)
    assert path.intercepts.shape == (3, 2)
    for alpha, coef, intercept in zip(path.alphas, path.coefs, path.intercepts, strict=True):
        reg = TorchLinearRegressor(alpha=alpha, l1_ratio=l1_ratio, **options)
        reg.fit(X, targets, sample_weight=weight)
        np.testing.assert_allclose(coef, reg.coef_, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(intercept, np.broadcast_to(reg.intercept_, 2), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"positive": True},
        {"fit_intercept": False},
        {"penalty_factor": [1, 0, 2, 1, 1, 0.5, 1, 0]},
        {"bounds": (-0.5, 0.0)},
        {"penalty_factor": [1, 0, 2, 1, 1, 0.5, 1, 0], "bounds": (-0.1, 0.2)},
        {"loss": "huber"},
        {"loss": losses.Huber(scale=1.0)},
        {"loss": "absolute_error"},
        {"loss": losses.Quantile(0.37)},
        {"loss": losses.EpsilonInsensitive(0.3)},
        {"loss": "log_cosh", "penalty_factor": [1, 0, 2, 1, 1, 0.5, 1, 0]},
    ],
)
def test_grid_begins_where_penalised_coefficients_vanish(data, options):
    X, y = data
    largest = regularization_path(X, y, alphas=1, **options).alphas[0]
    path = regularization_path(X, y, alphas=[largest * (1 + 1e-6), largest * (1 - 1e-3)], **options)
    penalised = np.array(options.get("penalty_factor", np.ones(8))) > 0
    for offset in (0.0, 0.7, 10.0):  # which is to change roundings
        assert not regularization_path(X + offset, y, alphas=2, **options).coefs[0, penalised].any()
    assert not path.coefs[0, penalised].any()
    assert path.coefs[1, penalised].any()


def test_grid_of_wide_data_is_that_of_their_moments():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 50)) + 3
    y = X[:, :3].sum(1) + rng.normal(size=30)
    alphas, coefs, _ = lasso_path(X - X.mean(0), y - y.mean(), alphas=8, tol=1e-12, max_iter=100_000)
    path = regularization_path(X, y, alphas=8)
    np.testing.assert_allclose(path.alphas, alphas, rtol=1e-9)
    for alpha, ours, intercept, theirs in zip(alphas, path.coefs, path.intercepts, coefs.T, strict=True):
        least = objective(X, y, theirs, y.mean() - X.mean(0) @ theirs, alpha, 1.0)
        assert objective(X, y, ours, intercept, alpha, 1.0) <= least * (1 + 1e-12)
    ridge = regularization_path(X, y, l1_ratio=0.0, alphas=3)
    assert ridge.alphas[0] == pytest.approx(X.var(0).sum())
    expected = Ridge(alpha=ridge.alphas[1] * 30, solver="svd").fit(X, y).coef_
    np.testing.assert_allclose(ridge.coefs[1], expected, rtol=1e-9)


def test_long_steps_through_dependent_columns():
    """A single small strength, which is approached step by step through sets of coefficients off zero."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 80))
    y = X[:, :5].sum(1) + rng.normal(size=40)
    path = regularization_path(X, y, alphas=[0.01])
    lasso = Lasso(alpha=0.01, tol=1e-12, max_iter=1_000_000).fit(X, y)
    least = objective(X, y, lasso.coef_, lasso.intercept_, 0.01, 1.0)
    assert objective(X, y, path.coefs[0], path.intercepts[0], 0.01, 1.0) <= least * (1 + 1e-11)


def test_columns_that_moments_do_not_resolve_are_solved_on_the_rows(data):
    X, y = data
    X = np.c_[X, X[:, 0] + 1e-7 * np.random.default_rng(1).normal(size=len(X))]
    problem = Problem(as_row_blocks(X, y), elastic_net(1.0, 0.0, 9))
    quadratic = quadratic_of(problem.moments, 9, True)
    assert (minima_of(quadratic, [elastic_net(0.0, 0.0, 9)]).error > PREDICTION_ERROR * y.std()).all()
    path = regularization_path(X, y, l1_ratio=0.0, alphas=[1.0, 0.0])
    reg = TorchLinearRegressor().fit(X, y)
    np.testing.assert_allclose(path.coefs[1], reg.coef_, rtol=1e-12)


def test_ridge_of_columns_in_very_different_units():
    """Each strength has its own factor then, and digits as in a fit."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 4)) * [1e-6, 1.0, 1e6, 1.0]
    y = X @ [1e6, 1.0, 1e-6, 0.0] + rng.normal(size=100)
    path = regularization_path(X, y, l1_ratio=0.0, alphas=[1e3, 1.0, 1e-12, 0.0])
    for alpha, coef in zip(path.alphas, path.coefs, strict=True):
        np.testing.assert_allclose(coef, TorchLinearRegressor(alpha=alpha).fit(X, y).coef_, rtol=1e-10)


@pytest.mark.parametrize("loss", ["huber", "quantile", losses.LogCosh()])
@pytest.mark.parametrize("l1_ratio", [0.0, 1.0])
def test_other_losses(data, loss, l1_ratio):
    X, y = data
    path = regularization_path(X, y, loss=loss, l1_ratio=l1_ratio, alphas=4)
    assert (np.diff(path.alphas) < 0).all()
    reg = TorchLinearRegressor(loss=loss, alpha=path.alphas[2], l1_ratio=l1_ratio).fit(X, y)
    np.testing.assert_allclose(path.coefs[2], reg.coef_, rtol=1e-6, atol=1e-9)
    sizes = np.linalg.norm(path.coefs * X.std(0), axis=1)
    assert (np.diff(sizes) > 0).all()


def test_constant_target_has_zeros(data):
    path = regularization_path(data[0], np.full(150, 3.0), alphas=3)
    assert not path.coefs.any()
    assert (path.intercepts == 3.0).all()
    assert (path.dual_gaps == 0).all()


def test_a_constant_column_has_no_coefficient(data):
    X, y = data
    X = np.c_[X, np.full(len(X), 0.1)]
    for l1_ratio in (0.0, 1.0):
        path = regularization_path(X, y, l1_ratio=l1_ratio, alphas=[1.0, 0.0])
        assert not path.coefs[:, -1].any()
        np.testing.assert_allclose(path.coefs[1, :-1], TorchLinearRegressor().fit(X[:, :-1], y).coef_)


@pytest.mark.parametrize(
    "kind", [np.asfortranarray, sparse.csr_array, torch.from_numpy, lambda X: X.astype(np.float32)]
)
def test_data_kinds(data, kind):
    X, y = data
    path = regularization_path(kind(X), y, alphas=5)
    expected = regularization_path(X, y, alphas=5)
    single = path.coefs.dtype == np.float32
    np.testing.assert_allclose(path.coefs, expected.coefs, rtol=1e-4 if single else 1e-9, atol=1e-6)
    assert single == (kind(X).dtype == np.float32)


def test_weight_sum_does_not_matter(data):
    X, y = data
    once = regularization_path(X, y, alphas=5)
    twice = regularization_path(X, y, alphas=5, sample_weight=np.full(len(y), 7.0))
    np.testing.assert_allclose(once.alphas, twice.alphas)
    np.testing.assert_allclose(once.coefs, twice.coefs, atol=1e-12)
    tiny = regularization_path(X, y, alphas=5, sample_weight=np.full(len(y), 1e-250))
    np.testing.assert_allclose(once.coefs, tiny.coefs, atol=1e-12)


def test_columns_beyond_the_range_of_squares(data):
    X, y = data
    path = regularization_path(X * 1e200, y, alphas=[0.0], l1_ratio=0.0)
    np.testing.assert_allclose(path.coefs[0] * 1e200, TorchLinearRegressor().fit(X, y).coef_, rtol=1e-9)
    with pytest.raises(ValueError, match="Give the strengths"):
        regularization_path(X * 1e200, y, alphas=3, l1_ratio=0.0)
    with pytest.raises(ValueError, match="ordinary units"):
        regularization_path(X * 1e200, y, alphas=3)


def test_elastic_net_of_scikit_learn_is_nowhere_better(data):
    X, y = data
    weight = np.random.default_rng(1).uniform(0, 3, len(y))
    path = regularization_path(X, y, alphas=6, l1_ratio=0.7, sample_weight=weight)
    for alpha, coef, intercept in zip(path.alphas, path.coefs, path.intercepts, strict=True):
        net = ElasticNet(alpha=alpha, l1_ratio=0.7, tol=1e-12, max_iter=100_000).fit(X, y, weight)
        least = objective(X, y, net.coef_, net.intercept_, alpha, 0.7, weight)
        assert objective(X, y, coef, intercept, alpha, 0.7, weight) <= least * (1 + 1e-11)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alphas": 0}, "positive integer"),
        ({"alphas": [1.0, -1.0]}, "0 or more"),
        ({"alphas": []}, "1-D array"),
        ({"alphas": "many"}, "1-D array"),
        ({"alphas": [[1.0]]}, "1-D array"),
        ({"l1_ratio": 1.5}, "from 0"),
        ({"eps": 1.0}, "between 0 and 1"),
        ({"tol": 0}, "positive number"),
        ({"loss": "hubert"}, "not known"),
        ({"penalty_factor": [1.0]}, "penalty_factor has shape"),
        ({"alphas": [1e300], "penalty_factor": [1e10] + [1.0] * 7}, "is infinite for feature 0"),
        ({"y": None}, "y is None"),
        ({"alphas": ["1"]}, "1-D array of finite numbers"),
        ({"alphas": [True, 1.0]}, "1-D array of finite numbers"),
        ({"l1_ratio": 0.0, "eps": 1e-300}, r"eps=1e-300 is too small: .* as ridge acts on squares"),
        ({"l1_ratio": 1.0, "eps": 5e-324}, "eps=5e-324 is too small"),
        ({"bounds": ([0, None], None)}, r"shape \(2,\); it must be one number or have shape \(8,\)"),
    ],
)
def test_refusals(data, options, words):
    X, y = data
    with pytest.raises(ValueError, match=words):
        regularization_path(X, **{"y": y, **options})


def test_parameters_may_be_tensors(data):
    X, y = data
    options = {"alphas": [0.01, 0.1], "penalty_factor": np.arange(8.0), "bounds": (-np.ones(8), np.ones(8))}
    tensors = {
        "alphas": torch.tensor([0.01, 0.1], dtype=torch.float64, requires_grad=True),
        "penalty_factor": torch.arange(8.0, requires_grad=True),
        "bounds": (-torch.ones(8, requires_grad=True), torch.ones(8)),
    }
    expected, given = (regularization_path(X, y, **each) for each in (options, tensors))
    np.testing.assert_array_equal(given.coefs, expected.coefs)


@pytest.mark.parametrize("loss", ["squared_error", "huber"])
def test_not_finite(data, loss):
    X, y = data
    X[3, 2] = np.nan
    with pytest.raises(ValueError, match="contains NaN"):
        regularization_path(X, y, loss=loss, alphas=3)


def test_a_wide_path_decomposes_no_more_columns_than_rows(monkeypatch):
    """Columns of fewer rows depend on each other: eigenvalues of their products would take longest."""
    sizes = []
    eigenvalues = np.linalg.eigvalsh
    monkeypatch.setattr(
        np.linalg, "eigvalsh", lambda matrix: sizes.append(len(matrix)) or eigenvalues(matrix)
    )
    rng = np.random.default_rng(0)
    X = rng.standard_normal((20, 200))
    y = X[:, 0] + rng.standard_normal(20)
    path = regularization_path(X, y, alphas=10)
    assert max(sizes, default=0) <= 20
    for alpha, coef, intercept in zip(path.alphas, path.coefs, path.intercepts, strict=True):
        residual = y - X @ coef - intercept
        pull = X.T @ residual / 20  # the residuals sum to 0
        np.testing.assert_allclose(pull[coef != 0], alpha * np.sign(coef[coef != 0]), rtol=1e-9)
        assert np.abs(pull).max() <= alpha * (1 + 1e-9)
