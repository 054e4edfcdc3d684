"""Offsets that the first rows do not show: of one column among sparse ones, and of rows behind the first."""

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import linprog, lsq_linear
from sklearn.linear_model import Lasso

from torchlinreg import TorchLinearRegressor, TorchLinearRegressorCV

MINUTE = 1.7e9  # Unix time


def among_sparse():
    """Seconds of one minute beside columns of a few entries; also with the minute subtracted exactly."""
    rng = np.random.default_rng(0)
    n_samples, n_features = 400, 60
    others = sparse.random(n_samples, n_features, density=0.01, rng=1).toarray()
    seconds = rng.uniform(0, 60, n_samples)
    time = MINUTE + seconds
    y = others @ rng.standard_normal(n_features) + 0.05 * seconds + 0.01 * rng.standard_normal(n_samples)
    X = sparse.csr_array(np.column_stack([others, time]))
    assert X.nnz < 0.035 * X.shape[0] * X.shape[1]
    return X, np.column_stack([others, time - MINUTE]), y, None


def behind_the_first_rows():
    """Rows of hardly any weight in front that lie elsewhere."""
    rng = np.random.default_rng(1)
    seconds = rng.uniform(0, 1, 600)
    time = MINUTE + seconds
    weight = np.ones(600)
    time[:256] -= 1e8
    weight[:256] = 1e-20
    others = rng.standard_normal((600, 2))
    y = others @ [1.0, 2.0] + 0.05 * seconds + 0.01 * rng.standard_normal(600)
    X = np.column_stack([others, time])
    return X, np.column_stack([others, time - MINUTE]), y, weight


KINDS = {"among sparse columns": among_sparse, "behind the first rows": behind_the_first_rows}


def centred(X, y, weight):
    share = np.full(len(y), 1 / len(y)) if weight is None else weight / weight.sum()
    mean, center = share @ X, share @ y
    mean = mean + share @ (X - mean)
    root = np.sqrt(share)
    return root[:, None] * (X - mean), root * (y - center)


PENALTIES = {
    "none": {},
    "ridge": {"alpha": 1e-2},
    "lasso": {"alpha": 1e-3, "l1_ratio": 1.0},
    "positive": {"positive": True},
    "bounds": {"bounds": (-0.5, 0.5)},
}


def reference(X, y, weight, alpha=0.0, l1_ratio=0.0, positive=False, bounds=None):
    X, y = centred(X, y, weight)
    if l1_ratio:
        size = np.sqrt(len(y))  # of which a share is 1 / n
        return (
            Lasso(alpha=alpha, fit_intercept=False, tol=1e-15, max_iter=10**5).fit(size * X, size * y).coef_
        )
    lower, upper = (0.0, np.inf) if positive else bounds or (-np.inf, np.inf)
    X = np.concatenate([X, np.sqrt(alpha) * np.eye(X.shape[1])])
    y = np.concatenate([y, np.zeros(X.shape[1])])
    if not positive and bounds is None:
        return np.linalg.lstsq(X, y)[0]
    return lsq_linear(X, y, (lower, upper), tol=1e-15, lsq_solver="exact", method="bvls").x


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
def test_coefficients_are_those_without_the_offset(kind, penalty):
    X, near, y, weight = kind()
    reg = TorchLinearRegressor(**penalty).fit(X, y, weight)
    truth = reference(near, y, weight, **penalty)
    np.testing.assert_allclose(reg.coef_, truth, rtol=1e-8, atol=1e-10)
    share = np.full(len(y), 1 / len(y)) if weight is None else weight / weight.sum()
    intercept = share @ (y - near @ truth) - MINUTE * truth[-1]
    np.testing.assert_allclose(reg.intercept_, intercept, rtol=1e-8)
    assert reg.status_.name == "OPTIMAL"


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_absolute_error_is_that_of_the_linear_program(kind):
    X, near, y, weight = kind()
    reg = TorchLinearRegressor(loss="absolute_error").fit(X, y, weight)
    weight = np.ones(len(y)) if weight is None else weight
    n_features = near.shape[1]
    rows = weight > 1e-10
    equations = sparse.hstack(
        [near[rows], np.ones((rows.sum(), 1)), sparse.eye(rows.sum()), -sparse.eye(rows.sum())]
    )
    cost = np.concatenate([np.zeros(n_features + 1), weight[rows] / 2, weight[rows] / 2])
    free = [(None, None)] * (n_features + 1) + [(0, None)] * (2 * rows.sum())
    least = linprog(cost, A_eq=equations, b_eq=y[rows], bounds=free, method="highs").fun
    constant = reg.intercept_ + MINUTE * reg.coef_[-1]
    ours = weight[rows] @ np.abs(y[rows] - near[rows] @ reg.coef_ - constant) / 2
    assert ours <= least * (1 + 1e-6)  # an intercept of 1e8 is rounded


@pytest.mark.parametrize("l1_ratio", [0.0, 1.0])
def test_cross_validation_of_sparse_rows_is_that_of_dense_ones(l1_ratio):
    X, near, y, _ = among_sparse()
    found = TorchLinearRegressorCV(alphas=[1e-2, 1e-3], l1_ratio=l1_ratio, cv=3).fit(X, y)
    truth = TorchLinearRegressorCV(alphas=[1e-2, 1e-3], l1_ratio=l1_ratio, cv=3).fit(near, y)
    assert found.alpha_ == truth.alpha_
    np.testing.assert_allclose(found.coef_, truth.coef_, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("constant", [1.0, 0.1, 1e15])
@pytest.mark.parametrize("penalty", [{}, {"alpha": 1e-2}, {"alpha": 1e-3, "l1_ratio": 1.0}])
def test_constant_columns_among_sparse_ones_get_nothing(constant, penalty):
    _, near, y, _ = among_sparse()
    X = near.copy()
    X[:, 7] = constant
    reg = TorchLinearRegressor(**penalty).fit(sparse.csr_array(X), y)
    X[:, 7] = 0.0
    truth = TorchLinearRegressor(**penalty).fit(X, y)
    assert reg.coef_[7] == 0
    np.testing.assert_allclose(reg.coef_, truth.coef_, rtol=1e-9, atol=1e-12)
