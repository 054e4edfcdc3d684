"""Few rows of many features: digits of every kind of data, and the work that they take."""

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from reference.tensor_work import TensorWork

from benchmarks.problems import make_problem
from torchlinreg import TorchLinearRegressor

N_SAMPLES, N_FEATURES = 9, 30


def normal(rng):
    return rng.standard_normal((N_SAMPLES, N_FEATURES))


def outlier(rng):
    """A row far from the others, which lie far from 0: no shift is exact for all."""
    X = 1e6 + normal(rng)
    X[2] = 1.0
    return X


KINDS = {
    "normal": normal,
    "offset": lambda rng: 1e7 + normal(rng),
    "negative offset": lambda rng: -3e9 + normal(rng),
    "some offsets": lambda rng: normal(rng) + 10.0 ** rng.integers(-3, 7, N_FEATURES),
    "outlier": outlier,
    "units of columns": lambda rng: normal(rng) * 10.0 ** rng.integers(-3, 4, N_FEATURES),
    "units of rows": lambda rng: normal(rng) * 10.0 ** rng.integers(-4, 5, (N_SAMPLES, 1)),
    "tiny": lambda rng: 1e-150 * normal(rng),
    "huge": lambda rng: 1e145 * normal(rng),
    "float32": lambda rng: (normal(rng) + 5).astype(np.float32).astype(np.float64),
    "whole numbers": lambda rng: rng.integers(-4, 5, (N_SAMPLES, N_FEATURES)).astype(float),
    "nearly equal rows": lambda rng: rng.standard_normal(N_FEATURES) + 1e-4 * normal(rng),
}


def digits_of(problem):
    reg = TorchLinearRegressor(alpha=problem.alpha, fit_intercept=problem.fit_intercept)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reg.fit(problem.X, problem.y, sample_weight=problem.sample_weight)
    assert reg.solver_ == "dual"
    return problem.digits(reg.coef_, reg.intercept_).least


@pytest.mark.every(3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 1e-8, 1.0], ids=["minimum norm", "small ridge", "ridge"])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_twelve_digits_of_rational_truths(kind, share, fit_intercept):
    rng = np.random.default_rng(0)
    X = KINDS[kind](rng)
    y = X @ rng.uniform(1, 2, N_FEATURES) / np.abs(X).max() + rng.standard_normal(N_SAMPLES)
    alpha = share * float(np.square(X).sum(1).mean()) if kind not in ("tiny", "huge") else 0.0
    weight = rng.integers(1, 9, N_SAMPLES) / 8.0
    problem = make_problem("x-x", X, y, weight, fit_intercept=fit_intercept, alpha=alpha)
    assert digits_of(problem) >= 12


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_targets_of_any_units_at_once(alpha):
    rng = np.random.default_rng(0)
    X = normal(rng) + 3
    Y = rng.standard_normal((N_SAMPLES, 4)) * [1e-200, 1.0, 1e9, 1e200] + [0, 1e8, 0, 0]
    assert digits_of(make_problem("x-x", X, Y, alpha=alpha)) >= 12


@pytest.mark.parametrize(
    "as_kind",
    [
        scipy.sparse.csr_array,
        pd.DataFrame,
        torch.from_numpy,
        np.asfortranarray,
        lambda X: X.astype(np.float32),
    ],
    ids=["csr", "frame", "tensor", "columns", "float32"],
)
def test_kinds_of_data_give_the_same_fit(as_kind):
    rng = np.random.default_rng(0)
    X = np.float32(rng.standard_normal((60, 300)) * (rng.random((60, 300)) < 0.5)).astype(np.float64)
    y = rng.standard_normal(60)
    expected = np.linalg.pinv(X - X.mean(0)) @ (y - y.mean())
    given = as_kind(X)
    rtol = 1e-5 if getattr(given, "dtype", None) == np.float32 else 1e-9
    found = TorchLinearRegressor().fit(given, y)
    np.testing.assert_allclose(found.coef_, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


def test_rows_without_weight_do_not_count():
    rng = np.random.default_rng(0)
    X, y = normal(rng), rng.standard_normal(N_SAMPLES)
    weight = np.ones(N_SAMPLES)
    weight[[1, 4]] = 0
    moved = X.copy()
    moved[[1, 4]] = 1e9
    one = TorchLinearRegressor().fit(X, y, sample_weight=weight)
    other = TorchLinearRegressor().fit(moved, y, sample_weight=weight)
    np.testing.assert_allclose(other.coef_, one.coef_, rtol=1e-14)
    moved[4, 2] = np.nan
    with pytest.raises(ValueError, match="contains NaN"):
        TorchLinearRegressor().fit(moved, y, sample_weight=weight)


@pytest.mark.parametrize("alpha", [0.0, 0.1])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_a_wide_fit_writes_its_rows_a_few_times_only(alpha, offset):
    """Few operations on all rows, in float64 pieces: exact slices of whole blocks took far more."""
    rng = np.random.default_rng(0)
    X, y = offset + rng.standard_normal((100, 3000)), rng.standard_normal(100)
    with TensorWork() as work:
        TorchLinearRegressor(alpha=alpha).fit(X, y)
    assert work.n_numbers < 20 * X.size


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("unit", [1e-10, 1e-20, 1e-30, 1e-60, 1e-120])
def test_least_norm_across_units(unit, fit_intercept):
    """Rounding of null vectors must not make the huge coefficient of a column in a tiny unit smaller."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, 3))
    third = 3 * x[:, 0]  # rounded, so that null vectors are so, too
    columns = [x[:, 0], unit * x[:, 1], x[:, 0], third, x[:, 2], x[:, 2] * unit]
    X = np.column_stack([*columns, *np.zeros((5, 9))])
    y = x @ [2.0, 3.0, 4.0] + 7.0 * fit_intercept
    reg = TorchLinearRegressor(solver="dual", fit_intercept=fit_intercept).fit(X, y)
    assert reg.rank_ == 3
    # 2 = c (1 + 1 + 9), all in proportion; the column in the tiny unit repeats another and is worth nothing.
    expected = np.array([2 / 11, 3 / unit, 2 / 11, 6 / 11, 4.0])
    np.testing.assert_allclose(reg.coef_[:5], expected, rtol=1e-10)
    assert abs(reg.coef_[5] * unit) <= max(1.0, 4 * unit)
    assert not reg.coef_[6:].any()


def test_columns_chosen_in_vain_leave_room_for_others():
    """Powers of 7 years have rank 6 about their means: of 5 columns, a fifth of the variance was left."""
    x = np.linspace(1990, 2020, 7)
    y = np.array([-1.0, -4.0, -2.0, 4.0, 0.0, 4.0, -4.0])
    X = x[:, None] ** np.arange(1, 16)
    reg = TorchLinearRegressor(solver="dual").fit(X, y)
    assert reg.rank_ == 6  # all that 7 rows allow: the polynomial of degree 6 meets every one
    assert reg.score(X, y) > 0.98


@pytest.mark.parametrize("loss", ["squared_error", "absolute_error", "huber"])
@pytest.mark.parametrize("alpha", [0.0, 0.1])
@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_a_constant_target_needs_no_coefficients(constant, alpha, loss):
    X = np.random.default_rng(0).standard_normal((2, 3))
    reg = TorchLinearRegressor(loss=loss, alpha=alpha).fit(X, [constant, constant])
    assert (reg.coef_ == 0).all()
    assert reg.intercept_ == constant


def test_a_target_of_zeros_beside_another():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((3, 5)), rng.standard_normal(3)
    reg = TorchLinearRegressor().fit(X, np.column_stack([np.zeros(3), y]))
    assert (reg.coef_[0] == 0).all()
    np.testing.assert_allclose(X @ reg.coef_[1] + reg.intercept_[1], y, rtol=1e-12)
