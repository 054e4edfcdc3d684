"""Coefficients keep to their bounds in the dtype that they are returned in, whatever fits them."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from scipy.optimize import lsq_linear
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold

from torchlinreg import TorchLinearRegressor, TorchLinearRegressorCV, regularization_path
from torchlinreg._objective.penalty import elastic_net

# Numbers that neither float32 nor standardised units hold.
LOWER, UPPER = -0.1, 0.3


def problem(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(40, 4)) * rng.uniform(0.1, 10, 4) + rng.normal(size=4)
    return X.astype(dtype), X @ rng.normal(size=4) + rng.normal(size=40)


def assert_inside(coef, lower=LOWER, upper=UPPER):
    wide = coef.astype(np.float64)
    assert ((lower <= wide) & (wide <= upper)).all()
    # Bounds that hold are reached as nearly as the dtype can.
    at = np.isclose(wide, upper, rtol=1e-5, atol=0)
    above = np.nextafter(coef, coef.dtype.type(np.inf)).astype(np.float64)
    assert (above > upper)[at].all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_paths_keep_to_bounds(dtype):
    for seed in range(30):
        X, y = problem(seed, dtype)
        path = regularization_path(X, y, alphas=[0.01, 0.0], bounds=(LOWER, UPPER))
        assert path.coefs.dtype == dtype
        assert_inside(path.coefs)


@pytest.mark.parametrize("options", [{}, {"alpha": 0.01, "l1_ratio": 0.5}, {"loss": "huber"}])
@pytest.mark.parametrize("as_kind", [np.asarray, sparse.csr_array])
def test_float32_fits_keep_to_bounds(options, as_kind):
    for seed in range(3):
        X, y = problem(seed, np.float32)
        reg = TorchLinearRegressor(bounds=(LOWER, UPPER), **options).fit(as_kind(X), np.column_stack([y, -y]))
        assert reg.coef_.dtype == np.float32
        assert_inside(reg.coef_)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_way_to_fit_keeps_to_bounds(dtype):
    for seed in range(3):
        X, y = problem(seed, dtype)
        bounds = np.array([LOWER, -1e-10, -np.inf, LOWER]), np.array([UPPER, 0.7, UPPER, 1e-10])
        search = TorchLinearRegressorCV(alphas=[1e-3, 0.0], bounds=bounds, cv=KFold(3)).fit(X, y)
        assert_inside(search.coef_, *bounds)
        in_parts = TorchLinearRegressor(bounds=bounds).partial_fit(X[:30], y[:30]).partial_fit(X[30:], y[30:])
        assert_inside(in_parts.coef_, *bounds)
        trained = TorchLinearRegressor(bounds=bounds, solver="sgd").fit(X, y)
        assert_inside(trained.coef_, *bounds)
        by_pass = TorchLinearRegressor(bounds=bounds, solver="sgd", learning_rate=0.1)
        assert_inside(by_pass.partial_fit(X, y).partial_fit(X, y).coef_, *bounds)


def test_rounding_stays_within_bounds():
    rng = np.random.default_rng(0)
    upper = rng.normal(size=300) * 10.0 ** rng.uniform(-44, 37, 300)
    lower = upper - np.abs(upper) * 10.0 ** rng.uniform(-5, 1, 300)
    for coef in (lower, upper, 2 * upper, upper + (lower - upper) / 3):
        rounded = elastic_net(0.0, 0.0, 300, None, lower, upper).within_bounds(coef, np.float32)
        between = np.nextafter(lower.astype(np.float32), np.float32(np.inf)) < upper
        assert ((lower <= rounded) & (rounded <= upper))[between].all()
        nearest = np.clip(coef, lower, upper).astype(np.float32)
        assert (np.abs(rounded - nearest) <= np.spacing(np.abs(nearest))).all()


def test_bounds_without_a_number_between_give_its_neighbour():
    coef = elastic_net(0.0, 0.0, 1, None, 0.3, 0.3).within_bounds(np.array([5.0]), np.float32)
    assert abs(coef[0] - 0.3) <= np.spacing(np.float32(0.3))


def test_overflow_is_not_hidden_by_bounds():
    coef = elastic_net(0.0, 0.0, 1, None, 0.0, 1e39).within_bounds(np.array([1e39]), np.float32)
    assert coef[0] == np.inf


@pytest.mark.parametrize(
    ("bounds", "numbers"),
    [
        (([0, None, -1.0, None], None), ([0, -np.inf, -1, -np.inf], np.inf)),
        ((None, (None, 0.5, None, 2)), (-np.inf, [np.inf, 0.5, np.inf, 2])),
        (
            (np.array([0, None, None, None]), pd.Series([None, None, 0.5, 1], dtype=object)),
            ([0, -np.inf, -np.inf, -np.inf], [np.inf, np.inf, 0.5, 1]),
        ),
    ],
)
def test_none_among_bounds_is_no_bound(bounds, numbers):
    X, y = problem(0)
    lower, upper = (np.broadcast_to(side, 4) for side in numbers)
    truth = lsq_linear(X - X.mean(0), y - y.mean(), (lower, upper), tol=1e-14).x
    for fitted in (
        TorchLinearRegressor(bounds=bounds).fit(X, y).coef_,
        TorchLinearRegressorCV(alphas=[0.0], bounds=bounds).fit(X, y).coef_,
        regularization_path(X, y, alphas=[0.0], bounds=bounds).coefs[0],
        TorchLinearRegressor(bounds=bounds).partial_fit(X, y).coef_,
    ):
        np.testing.assert_allclose(fitted, truth, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bounds": (["0", 0, 0, 0], None)}, "bounds: lower.* must hold numbers: it holds str"),
        ({"bounds": (None, True)}, "bounds: upper=True must hold numbers: it holds bool"),
        ({"bounds": (None, np.ones(4, dtype=bool))}, "must hold numbers: it has dtype bool"),
        ({"bounds": (None, [1.0, np.nan, 1.0, 1.0])}, "upper holds NaN"),
        ({"penalty_factor": [True, 1.0, 1.0, 1.0]}, "penalty_factor=.* must hold numbers: it holds bool"),
        ({"penalty_factor": "1"}, "penalty_factor='1' must hold numbers"),
    ],
)
def test_what_is_no_number_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        TorchLinearRegressor(**options).fit(*problem(0))


WITHOUT = [0, 2, 3]
EXCLUDING = [1.0, np.inf, 0.0, 2.0]
EXCLUDING_CASES = {
    "least squares": {},
    "ridge": {"alpha": 0.1},
    "l1": {"alpha": 0.1, "l1_ratio": 0.5},
    "positive": {"alpha": 0.1, "positive": True},
    "bounds": {"bounds": (-0.3, None)},
    "huber": {"loss": "huber", "alpha": 0.1},
    "median": {"loss": "absolute_error"},
    "no intercept": {"alpha": 0.1, "fit_intercept": False},
    "training": {"solver": "lbfgs", "alpha": 0.1},
}


@pytest.mark.parametrize("case", EXCLUDING_CASES)
@pytest.mark.parametrize("as_kind", [np.asarray, sparse.csr_array])
def test_infinite_factors_exclude_features(case, as_kind):
    options = EXCLUDING_CASES[case]
    X, y = problem(0)
    y = np.column_stack([y, y[::-1]])
    reg = TorchLinearRegressor(penalty_factor=EXCLUDING, **options).fit(as_kind(X), y)
    factor = [EXCLUDING[index] for index in WITHOUT]
    rest = TorchLinearRegressor(penalty_factor=factor, **options).fit(as_kind(X[:, WITHOUT]), y)
    assert (reg.coef_[:, 1] == 0).all()
    rtol = 1e-6 if case == "training" else 1e-9
    np.testing.assert_allclose(reg.coef_[:, WITHOUT], rest.coef_, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(reg.intercept_, rest.intercept_, rtol=rtol, atol=rtol)


@pytest.mark.every(5)
@pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("loss", ["squared_error", "huber"])
def test_infinite_factors_in_paths_and_cross_validation(l1_ratio, loss):
    X, y = problem(0)
    factors = EXCLUDING, [EXCLUDING[index] for index in WITHOUT]
    whole, rest = (
        regularization_path(columns, y, alphas=3, l1_ratio=l1_ratio, loss=loss, penalty_factor=factor)
        for columns, factor in zip((X, X[:, WITHOUT]), factors, strict=True)
    )
    np.testing.assert_allclose(whole.alphas, rest.alphas, rtol=1e-9)
    np.testing.assert_allclose(whole.coefs[:, WITHOUT], rest.coefs, rtol=1e-8, atol=1e-9)
    assert (whole.coefs[:, 1] == 0).all()
    whole, rest = (
        TorchLinearRegressorCV(alphas=2, l1_ratio=l1_ratio, loss=loss, penalty_factor=factor, cv=2).fit(
            columns, y
        )
        for columns, factor in zip((X, X[:, WITHOUT]), factors, strict=True)
    )
    scores = (search.cv_results_["mean_test_score"] for search in (whole, rest))
    np.testing.assert_allclose(*scores, rtol=1e-8)
    assert whole.coef_[1] == 0


def test_infinite_factors_in_partial_fit_and_for_all_features():
    X, y = problem(0)
    reg = TorchLinearRegressor(penalty_factor=EXCLUDING, alpha=0.1)
    reg.partial_fit(X[:30], y[:30]).partial_fit(X[30:], y[30:])
    expected = TorchLinearRegressor(penalty_factor=[1.0, 0.0, 2.0], alpha=0.1).fit(X[:, WITHOUT], y)
    np.testing.assert_allclose(reg.coef_, np.insert(expected.coef_, 1, 0.0), rtol=1e-9)
    none = TorchLinearRegressor(penalty_factor=np.inf).fit(X, y)
    assert not none.coef_.any()
    assert none.intercept_ == pytest.approx(y.mean())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bounds": (0.5, None)}, "infinite for feature 1, .* bounds go from 0.5 to inf"),
        ({"solver": "cholesky"}, "does not serve positive, bounds or an infinite penalty_factor"),
    ],
)
def test_features_that_cannot_be_excluded(options, words):
    with pytest.raises(ValueError, match=words):
        TorchLinearRegressor(penalty_factor=EXCLUDING, **options).fit(*problem(0))


@pytest.mark.parametrize("factor", [-np.inf, np.nan, -1.0])
def test_factors_are_numbers_from_0_on(factor):
    with pytest.raises(ValueError, match="penalty_factor must hold numbers from 0"):
        TorchLinearRegressor(penalty_factor=[1.0, factor, 1.0, 1.0]).fit(*problem(0))


def as_tensor(values):
    return torch.tensor(values, dtype=torch.float64)


STRENGTHS = [0.1, 0.1, 3.0, 0.0]


def four_targets(n_samples=60):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_samples, 3)) + 5
    return X, X @ rng.standard_normal((3, 4)) + rng.standard_normal((n_samples, 4))


@pytest.mark.parametrize("kind", [list, tuple, np.asarray, pd.Series, as_tensor])
def test_each_target_has_its_own_ridge(kind):
    X, Y = four_targets()
    weight = np.linspace(0.5, 2, len(X))
    reg = TorchLinearRegressor(alpha=kind(STRENGTHS)).fit(X, Y, weight)
    truth = Ridge(alpha=np.array(STRENGTHS) * weight.sum(), solver="svd").fit(X, Y, weight)
    np.testing.assert_allclose(reg.coef_, truth.coef_, rtol=1e-10)
    np.testing.assert_allclose(reg.intercept_, truth.intercept_, rtol=1e-10)
    half = len(X) // 2
    parts = TorchLinearRegressor(alpha=kind(STRENGTHS))
    for rows in (slice(0, half), slice(half, None)):
        parts.partial_fit(X[rows], Y[rows], weight[rows])
    np.testing.assert_allclose(parts.coef_, truth.coef_, rtol=1e-10)


@pytest.mark.parametrize("n_samples", [60, 3])
@pytest.mark.parametrize(
    "parameters",
    [
        {"l1_ratio": 1.0},
        {"positive": True},
        {"loss": "huber"},
        {"loss": "quantile", "l1_ratio": 0.5},
        {"penalty_factor": [1, 2, 0.5]},
    ],
    ids=lambda parameters: next(iter(parameters)),
)
def test_each_target_has_its_own_strength(parameters, n_samples):
    """Targets do not meet in the objective, so that each is as fitted alone."""
    X, Y = four_targets(n_samples)
    strengths = [0.1, 0.1, 3.0, 0.5]
    reg = TorchLinearRegressor(alpha=strengths, **parameters).fit(X, Y)
    for k, alpha in enumerate(strengths):
        alone = TorchLinearRegressor(alpha=alpha, **parameters).fit(X, Y[:, k])
        np.testing.assert_allclose(reg.coef_[k], alone.coef_, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("alpha", "solver", "words"),
    [
        ([1.0, 2.0], "auto", "2 numbers, but y has 4 targets"),
        ([[1.0] * 4], "auto", "one for each target"),
        ([1.0, np.nan, 1.0, 1.0], "auto", "must be a finite number"),
        ([1.0, -1.0, 1.0, 1.0], "auto", "0 or more"),
        (["1"] * 4, "auto", "array of such numbers"),
        ([], "auto", "must be a finite number"),
        ([1.0, 2.0, 3.0, 4.0], "adam", "all targets share it"),
    ],
)
def test_strengths_are_refused(alpha, solver, words):
    X, Y = four_targets()
    with pytest.raises(ValueError, match=words):
        TorchLinearRegressor(alpha=alpha, solver=solver).fit(X, Y)
