"""Few rows of many features within bounds, without l1: optima that are known, and the memory they take."""

import tracemalloc
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from scipy.optimize import lsq_linear

from torchlinreg import TorchLinearRegressor, TorchLinearRegressorCV, regularization_path

N_SAMPLES, N_FEATURES, N_FREE = 12, 80, 4


def known_optimum(rng, X, alpha=0.0, weight=None, fit_intercept=True):
    """Bounds, a target and the only optimum: residuals push coefficients to bounds and leave others alone."""
    share = np.full(len(X), 1 / len(X)) if weight is None else weight / weight.sum()
    rows = X - share @ X if fit_intercept else X
    unit = np.sqrt(share @ rows**2)
    coef = rng.uniform(-1, 1, X.shape[1]) / unit
    basis = rows[:, :N_FREE] * np.sqrt(share)[:, None]
    residual = rng.standard_normal(len(X))
    residual -= share @ residual if fit_intercept else 0.0
    # Free coefficients want the gradient to be their ridge.
    scaled = np.sqrt(share) * residual
    scaled -= np.linalg.pinv(basis.T) @ (basis.T @ scaled - alpha * coef[:N_FREE])
    residual = scaled / np.sqrt(share)
    pull = rows.T @ (share * residual) - alpha * coef
    lower, upper = coef - 1 / unit, coef + 1 / unit
    held = np.arange(X.shape[1]) >= N_FREE
    upper[held & (pull > 0)] = coef[held & (pull > 0)]
    lower[held & (pull < 0)] = coef[held & (pull < 0)]
    return (lower, upper), X @ coef + residual + (7.0 if fit_intercept else 0.0), coef


KINDS = {
    "normal": lambda X: X,
    "offset": lambda X: X + 30,
    "tiny": lambda X: 1e-60 * X,
    "huge": lambda X: 1e60 * X,
    "units": lambda X: X * 10.0 ** np.random.default_rng(1).integers(-3, 4, X.shape[1]),
}


@pytest.mark.every(2)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ridge", [0.0, 1e-6, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_a_known_optimum_is_found(kind, ridge, weighted, fit_intercept):
    rng = np.random.default_rng(0)
    X = KINDS[kind](rng.standard_normal((N_SAMPLES, N_FEATURES)))
    weight = rng.integers(1, 5, N_SAMPLES) / 4.0 if weighted else None
    alpha = ridge * float((X**2).mean()) if kind != "units" else 0.0
    bounds, y, coef = known_optimum(rng, X, alpha, weight, fit_intercept)
    reg = TorchLinearRegressor(bounds=bounds, alpha=alpha, l1_ratio=0.0, fit_intercept=fit_intercept)
    reg.fit(X, y, sample_weight=weight)
    np.testing.assert_allclose(reg.coef_ / coef, 1.0, rtol=0, atol=1e-10)
    assert reg.intercept_ == pytest.approx(7.0 if fit_intercept else 0.0, abs=1e-10)


@pytest.mark.parametrize(
    "as_kind",
    [scipy.sparse.csr_array, pd.DataFrame, torch.from_numpy, np.asfortranarray, np.float32],
    ids=["csr", "frame", "tensor", "columns", "float32"],
)
def test_kinds_of_data(as_kind):
    rng = np.random.default_rng(0)
    X = np.float32(rng.standard_normal((N_SAMPLES, N_FEATURES))).astype(np.float64)
    bounds, y, coef = known_optimum(rng, X)
    given = as_kind(X)
    atol = 1e-5 if getattr(given, "dtype", None) == np.float32 else 1e-10
    np.testing.assert_allclose(TorchLinearRegressor(bounds=bounds).fit(given, y).coef_, coef, atol=atol)


def test_targets_are_fitted_one_by_one():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N_SAMPLES, N_FEATURES))
    Y = rng.standard_normal((N_SAMPLES, 3)) * [1e-8, 1.0, 1e8]
    model = TorchLinearRegressor(bounds=(-0.01, 0.02), alpha=0.1, l1_ratio=0.0)
    together = model.fit(X, Y).coef_
    for k in range(3):
        np.testing.assert_allclose(together[k], model.fit(X, Y[:, k]).coef_, rtol=1e-9, atol=1e-30)


@pytest.mark.parametrize("bounds", [(-1, 1), (-0.05, 0.05), (-0.2, 0.01), (None, 0.1), (0.01, 0.05)])
@pytest.mark.parametrize("alpha", [0.0, 1e-8, 0.1])
def test_no_objective_of_scipy_is_lower(bounds, alpha):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((10, 40)), rng.standard_normal(10)
    reg = TorchLinearRegressor(bounds=bounds, alpha=alpha, l1_ratio=0.0, fit_intercept=False).fit(X, y)
    sides = tuple(
        side if bound is None else bound for bound, side in zip(bounds, (-np.inf, np.inf), strict=True)
    )
    rows = np.concatenate([X, np.sqrt(10 * alpha) * np.eye(40)])
    right = np.append(y, np.zeros(40))
    best = lsq_linear(rows, right, sides, method="bvls", tol=1e-15)
    assert ((rows @ reg.coef_ - right) ** 2).sum() <= 2 * best.cost + 1e-13
    assert reg.status_.optimality < 1e-12


def test_of_several_optima_the_shortest():
    """Bounds that do not bind leave the pseudoinverse; others cut a combination of the rows off."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((5, 2000)), rng.standard_normal(5)
    expected = np.linalg.pinv(X - X.mean(0)) @ (y - y.mean())
    wide = TorchLinearRegressor(bounds=(-1, 1)).fit(X, y)
    np.testing.assert_allclose(wide.coef_, expected, rtol=1e-9, atol=1e-13)
    bound = 0.5 * np.abs(expected).max()
    tight = TorchLinearRegressor(bounds=(-bound, bound)).fit(X, y)
    np.testing.assert_allclose(tight.predict(X), y, atol=1e-12)
    free = np.abs(tight.coef_) < bound
    assert 0 < np.count_nonzero(~free) < 500
    rows = X - X.mean(0)
    dual = np.linalg.lstsq(rows[:, free].T, tight.coef_[free], rcond=None)[0]
    np.testing.assert_allclose(np.clip(rows.T @ dual, -bound, bound), tight.coef_, atol=1e-12)


@pytest.mark.parametrize(
    "parameters", [{"bounds": (-1, 1)}, {"bounds": (-1e-4, 1e-4)}, {"positive": True}], ids=str
)
@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_no_products_of_columns_are_formed(parameters, alpha):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((5, 1000)), rng.standard_normal(5)
    model = TorchLinearRegressor(alpha=alpha, l1_ratio=0.0, **parameters).fit(X, y)
    tracemalloc.start()
    model.fit(X, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6  # 1000 x 1000 products take 8e6


def test_paths_and_cross_validation_within_bounds_agree_with_fits():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((12, 40)), rng.standard_normal(12)
    path = regularization_path(X, y, alphas=[1.0, 0.1], l1_ratio=0.0, bounds=(-0.05, 0.1))
    for alpha, coef in zip(path.alphas, path.coefs, strict=True):
        one = TorchLinearRegressor(alpha=alpha, l1_ratio=0.0, bounds=(-0.05, 0.1)).fit(X, y)
        np.testing.assert_allclose(coef, one.coef_, atol=1e-11)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = TorchLinearRegressorCV(alphas=[1.0, 0.1], l1_ratio=0.0, bounds=(-0.05, 0.1), cv=3).fit(X, y)
    one = TorchLinearRegressor(alpha=found.alpha_, l1_ratio=0.0, bounds=(-0.05, 0.1)).fit(X, y)
    np.testing.assert_allclose(found.coef_, one.coef_, atol=1e-11)
