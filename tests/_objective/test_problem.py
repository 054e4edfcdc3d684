"""Many targets: the coefficients of one fit for each, from moments that grow with their number only."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold

from torchlinreg import TorchLinearRegressor, TorchLinearRegressorCV, regularization_path
from torchlinreg._objective.problem import TARGETS_AT_ONCE

N_TARGETS = 2 * TARGETS_AT_ONCE + 5


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 3)) * [1, 100, 0.01] + 5
    y = X @ rng.normal(size=(3, N_TARGETS)) + rng.normal(size=(40, N_TARGETS)) * np.geomspace(
        1e-3, 1e3, N_TARGETS
    )
    return X, y


def least_squares(X, y, weight):
    root = np.sqrt(weight)[:, None]
    center, target_center = np.average(X, 0, weight), np.average(y, 0, weight)
    coef = np.linalg.lstsq(root * (X - center), root * (y - target_center), rcond=None)[0]
    return coef.T, target_center - center @ coef


def assert_equal(reg, coef, intercept):
    size = np.abs(coef).max(0)
    np.testing.assert_allclose(reg.coef_ / size, coef / size, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(reg.intercept_, intercept, rtol=1e-9, atol=1e-12 * np.abs(intercept).max())


@pytest.mark.parametrize("solver", ["auto", "exact", "active_set"])
def test_fit_and_partial_fit_are_least_squares(data, solver):
    X, y = data
    weight = np.random.default_rng(1).uniform(0, 3, 40)
    expected = least_squares(X, y, weight)
    reg = TorchLinearRegressor(solver=solver).fit(X, y, weight)
    assert_equal(reg, *expected)
    assert reg.rank_ == (None if solver == "active_set" else 3)
    in_parts = TorchLinearRegressor(solver=solver).partial_fit(X[:30], y[:30], weight[:30])
    assert_equal(in_parts.partial_fit(X[30:], y[30:], weight[30:]), *expected)


# The moments that fit keeps are float64.
@pytest.mark.filterwarnings("ignore:Only about . digits")
def test_partial_fit_goes_on_after_fit(data):
    X, y = data
    reg = TorchLinearRegressor().fit(X[:30], y[:30]).partial_fit(X[30:], y[30:])
    assert_equal(reg, *least_squares(X, y, np.ones(40)))


def test_moments_grow_with_the_number_of_targets_only():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 3))
    kept = []
    for n_targets in (500, 1000):
        reg = TorchLinearRegressor().fit(X, rng.normal(size=(20, n_targets)))
        kept.append(sum(part.raw.numel() for part in reg._moments))
    assert kept[1] < 2.2 * kept[0] < 200 * 1000


def test_ridge_and_its_path(data):
    X, y = data
    ridge = Ridge(0.01 * 40, solver="svd").fit(X, y)
    assert_equal(TorchLinearRegressor(alpha=0.01).fit(X, y), ridge.coef_, ridge.intercept_)
    path = regularization_path(X, y, alphas=[1.0, 0.01], l1_ratio=0.0)
    size = np.abs(ridge.coef_).max(0)
    np.testing.assert_allclose(path.coefs[1] / size, ridge.coef_ / size, rtol=1e-9, atol=1e-12)
    assert path.dual_gaps.shape == (2,)


def test_lasso_and_its_path_are_optimal(data):
    X, y = data
    alpha = 0.01
    reg = TorchLinearRegressor(alpha=alpha, l1_ratio=1.0).fit(X, y)
    path = regularization_path(X, y, alphas=[1.0, alpha])
    assert (path.dual_gaps < 1e-12).all()
    for coef in (reg.coef_.T, path.coefs[1].T):
        residual = (y - y.mean(0)) - (X - X.mean(0)) @ coef
        pull = (X - X.mean(0)).T @ residual / len(X)
        np.testing.assert_allclose(pull[coef != 0], alpha * np.sign(coef[coef != 0]), rtol=1e-7)
        assert (np.abs(pull) <= alpha * (1 + 1e-7)).all()
        assert 0 < (coef == 0).sum() < coef.size


def test_grids_begin_where_all_targets_do(data):
    X, y = data
    path = regularization_path(X, y, alphas=2)
    covariance = (X - X.mean(0)).T @ (y - y.mean(0)) / len(X)
    assert path.alphas[0] == pytest.approx(np.abs(covariance).max(), rel=1e-12)
    path = regularization_path(X, y, alphas=2, l1_ratio=0.0)
    assert path.alphas[0] == pytest.approx(X.var(0).sum(), rel=1e-12)


def test_cross_validation(data):
    X, y = data
    reg = TorchLinearRegressorCV(alphas=[1e-3, 0.1], cv=KFold(2)).fit(X, y)
    for number, (train, test) in enumerate(KFold(2).split(X)):
        scores = [
            Ridge(alpha * 20, solver="svd").fit(X[train], y[train]).score(X[test], y[test])
            for alpha in (1e-3, 0.1)
        ]
        np.testing.assert_allclose(reg.cv_results_[f"split{number}_test_score"], scores, rtol=1e-9)


@pytest.mark.parametrize("place", [(7, 3), (7, TARGETS_AT_ONCE + 9)])
def test_missing_targets_are_found(data, place):
    X, y = data[0], data[1].copy()
    y[place] = np.nan
    with pytest.raises(ValueError, match="Input y contains NaN"):
        TorchLinearRegressor().fit(X, y)
    with pytest.raises(ValueError, match="Input y contains NaN"):
        TorchLinearRegressor().partial_fit(X, y)


def test_training_does_not_go_on_from_moments_in_parts(data):
    X, y = data
    reg = TorchLinearRegressor().fit(X, y)
    with pytest.raises(ValueError, match="trained before that are not now, or the other way round"):
        reg.set_params(solver="adam").partial_fit(X, y)


@pytest.mark.parametrize(
    "options", [{}, {"solver": "exact"}, {"alpha": 0.1}, {"alpha": 0.1, "penalty_factor": 1.0}]
)
def test_many_targets_of_wide_rows(data, options):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(10, 15)), data[1][:10]
    reg = TorchLinearRegressor(**options).fit(X, y)
    center, target_center = X.mean(0), y.mean(0)
    if options.get("alpha"):
        exact = np.linalg.solve(
            (X - center).T @ (X - center) + np.eye(15), (X - center).T @ (y - target_center)
        )
    else:
        exact = np.linalg.pinv(X - center) @ (y - target_center)
    assert_equal(reg, exact.T, target_center - center @ exact)
