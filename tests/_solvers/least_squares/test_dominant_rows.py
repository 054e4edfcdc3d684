"""Rows of far larger weight or numbers than all others, which leave what the others tell as it is."""

import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning

from torchlinreg import TorchLinearRegressor


def exact_fit(X, y, weight, fit_intercept):
    """Intercept and coefficients of the float64 numbers, by rational arithmetic."""
    rows = [[Fraction(1)] * fit_intercept + [Fraction(value) for value in row] for row in X.tolist()]
    weights = [Fraction(value) for value in weight.tolist()]
    size = len(rows[0])
    both = [[*row, Fraction(value)] for row, value in zip(rows, y.tolist(), strict=True)]
    system = [
        [sum(w * row[i] * row[j] for w, row in zip(weights, both, strict=True)) for j in range(size + 1)]
        for i in range(size)
    ]
    for i in range(size):
        for k in range(size):
            if k != i:
                factor = system[k][i] / system[i][i]
                system[k] = [a - factor * b for a, b in zip(system[k], system[i], strict=True)]
    found = [float(system[i][-1] / system[i][i]) for i in range(size)]
    return (found[0], found[1:]) if fit_intercept else (0.0, found)


def problem(what, ratio):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(30, 3))
    weight = np.ones(30)
    y = X @ [1.0, 2.0, 3.0] + 0.1 * rng.normal(size=30)
    if what == "a weight":
        weight[4] = ratio
    elif what == "two weights":
        weight[[4, 7]] = ratio
    elif what == "weights of three sizes":
        weight[:2], weight[2:4] = ratio, ratio**1.5
    elif what == "a row":
        X[4] = ratio
    elif what == "a random row":
        X[4] *= ratio
    return X, y, weight


WEIGHTS = ["a weight", "two weights", "weights of three sizes"]


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("ratio", [1e16, 1e18, 1e20])
@pytest.mark.parametrize("what", WEIGHTS)
def test_weights_far_apart(what, ratio, fit_intercept):
    X, y, weight = problem(what, ratio)
    intercept, coef = exact_fit(X, y, weight, fit_intercept)
    reg = TorchLinearRegressor(fit_intercept=fit_intercept).fit(X, y, weight)
    np.testing.assert_allclose(reg.coef_, coef, rtol=1e-12)
    np.testing.assert_allclose(reg.intercept_, intercept, rtol=1e-12)
    assert reg.rank_ == 3


# Coefficients of 16 digits leave such a row a residual of the size of y; the estimated error is near 1e-12.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("what", ["a row", "a random row"])
def test_a_row_far_from_the_others(what, fit_intercept):
    X, y, weight = problem(what, 1e16)
    intercept, coef = exact_fit(X, y, weight, fit_intercept)
    reg = TorchLinearRegressor(fit_intercept=fit_intercept).fit(X, y)
    np.testing.assert_allclose(reg.coef_, coef, rtol=1e-12)
    np.testing.assert_allclose(reg.intercept_, intercept, rtol=1e-12)
    assert reg.rank_ == 3


@pytest.mark.parametrize("kind", [sparse.csr_array, torch.from_numpy])
def test_kinds_of_data_and_targets(kind):
    X, y, weight = problem("a weight", 1e20)
    targets = np.stack([y, 1e-3 * y**2], axis=1)
    reg = TorchLinearRegressor().fit(kind(X), targets, weight)
    for k in range(2):
        np.testing.assert_allclose(reg.coef_[k], exact_fit(X, targets[:, k], weight, True)[1], rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_units_of_columns_do_not_matter(scale):
    X, y, weight = problem("a weight", 1e20)
    reg = TorchLinearRegressor().fit(X * [1.0, scale, 1.0], y, weight)
    expected = np.array(exact_fit(X, y, weight, True)[1]) / [1.0, scale, 1.0]
    np.testing.assert_allclose(reg.coef_, expected, rtol=1e-12)


def test_many_rows_of_which_one_is_fitted_exactly():
    """The limit of a huge weight: least squares about that row, without intercept."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(5000, 25))
    y = X @ rng.normal(size=25) + rng.normal(size=5000)
    weight = np.ones(5000)
    weight[7] = 1e24
    reg = TorchLinearRegressor().fit(X, y, weight)
    expected = np.linalg.lstsq(X - X[7], y - y[7], rcond=None)[0]
    np.testing.assert_allclose(reg.coef_, expected, rtol=1e-10)


def test_a_copy_shares_its_coefficient():
    X, y, weight = problem("a weight", 1e20)
    reg = TorchLinearRegressor().fit(np.column_stack([X, X[:, 0]]), y, weight)
    first, *others = exact_fit(X, y, weight, True)[1]
    np.testing.assert_allclose(reg.coef_, [first / 2, *others, first / 2], rtol=1e-12)
    assert reg.rank_ == 3


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("ratio", [1e20, 1e30, 1e100])
@pytest.mark.parametrize("what", ["a row", "a random row", "two weights"])
def test_digits_that_no_sum_holds_are_not_lost_in_silence(what, ratio, fit_intercept):
    X, y, weight = problem(what, ratio)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reg = TorchLinearRegressor(fit_intercept=fit_intercept).fit(X, y, weight)
    assert {warning.category for warning in caught} <= {ConvergenceWarning}
    if not caught:
        np.testing.assert_allclose(reg.coef_, exact_fit(X, y, weight, fit_intercept)[1], rtol=1e-12)
