"""Laws of least squares: what a change of the data does to the model, and optimality itself."""

import itertools
import warnings
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge

from benchmarks.problems import make_problem
from torchlinreg import Status, TorchLinearRegressor
from torchlinreg._solvers import SOLVERS

# The solvers of least squares and ridge.
LEAST_SQUARES = [name for name, row in SOLVERS.items() if row.penalties != "any"]
NAMES = ["auto", *LEAST_SQUARES]


class Data:
    """A random problem, of full column rank where it is tall."""

    def __init__(self, seed, n_samples, n_features, n_targets=None, *, weighted=False):
        rng = np.random.default_rng(seed)
        shape = (n_samples,) if n_targets is None else (n_samples, n_targets)
        self.X = rng.standard_normal((n_samples, n_features)) + rng.integers(-3, 4, n_features)
        signal = self.X @ rng.standard_normal((n_features, *shape[1:]))
        self.y = 5 + signal + rng.standard_normal(shape)
        self.weight = rng.uniform(0.1, 4, n_samples) if weighted else None

    def fit(self, reg, X=None, y=None):
        X = self.X if X is None else X
        return clone(reg).fit(X, self.y if y is None else y, sample_weight=self.weight)


def tall(**kwargs):
    return st.builds(
        Data, st.integers(0, 10**6), st.integers(12, 60), st.integers(1, 8), weighted=st.booleans(), **kwargs
    )


def wide():
    return st.builds(
        Data, st.integers(0, 10**6), st.integers(2, 8), st.integers(9, 40), weighted=st.booleans()
    )


regressors = st.builds(TorchLinearRegressor, fit_intercept=st.booleans(), solver=st.sampled_from(NAMES))


def close(found, expected, size=None):
    """11 digits, for coefficients near 0 of the largest."""
    size = np.abs(expected).max() if size is None else size
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12 * size)


@given(data=tall(), reg=regressors, seed=st.integers(0, 999))
def test_a_factor_of_a_feature_divides_its_coefficient(data, reg, seed):
    factors = 10.0 ** np.random.default_rng(seed).uniform(-9, 9, data.X.shape[1])
    before, after = data.fit(reg), data.fit(reg, X=data.X * factors)
    close(after.coef_ * factors, before.coef_)
    close(after.intercept_, before.intercept_, size=10)


@given(data=tall(), reg=regressors, constant=st.sampled_from([-1e6, 0.5, 1e3]))
def test_a_shift_of_y_shifts_the_intercept_only(data, reg, constant):
    reg.set_params(fit_intercept=True)
    before, after = data.fit(reg), data.fit(reg, y=data.y + constant)
    np.testing.assert_allclose(after.coef_, before.coef_, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(after.intercept_, before.intercept_ + constant, rtol=1e-9, atol=1e-9)


@given(data=tall(), reg=regressors, shift=st.sampled_from([-1000, 7, 2**20]))
def test_a_shift_of_a_feature_moves_the_intercept_only(data, reg, shift):
    reg.set_params(fit_intercept=True)
    X = np.round(data.X * 2**10) / 2**10  # so that the shift is exact
    moved = X.copy()
    moved[:, 0] += shift
    before, after = data.fit(reg, X=X), data.fit(reg, X=moved)
    close(after.coef_, before.coef_)
    expected = before.intercept_ - shift * before.coef_[0]
    close(after.intercept_, expected, size=1 + abs(shift * before.coef_[0]))


@given(data=tall(), reg=regressors, factor=st.sampled_from([-1.0, 1e-80, 3.0, 1e80]))
def test_a_factor_of_y_is_one_of_the_model(data, reg, factor):
    before, after = data.fit(reg), data.fit(reg, y=data.y * factor)
    close(after.coef_, before.coef_ * factor)
    close(after.intercept_, before.intercept_ * factor, size=10 * abs(factor))


@given(data=tall(), reg=regressors, column=st.integers(0, 7), copies=st.integers(1, 3))
def test_copies_of_a_column_share_its_coefficient(data, reg, column, copies):
    column %= data.X.shape[1]
    before = data.fit(reg)
    after = data.fit(reg, X=np.column_stack([data.X, *[data.X[:, column]] * copies]))
    expected = before.coef_.copy()
    expected[column] /= copies + 1
    close(after.coef_, np.append(expected, [expected[column]] * copies))
    close(after.intercept_, before.intercept_, size=10)
    assert after.rank_ == before.rank_ == data.X.shape[1]
    assert after.status_.kind is Status.MINIMUM_NORM


@given(data=tall(), reg=regressors, value=st.sampled_from([0.0, 0.1, -1e9, 1e-9]))
def test_a_constant_column_is_ignored_next_to_an_intercept(data, reg, value):
    reg.set_params(fit_intercept=True)
    before = data.fit(reg)
    after = data.fit(reg, X=np.column_stack([np.full(len(data.X), value), data.X]))
    assert after.coef_[0] == 0
    close(after.coef_[1:], before.coef_)
    close(after.intercept_, before.intercept_, size=10)


@given(data=tall(n_targets=st.integers(2, 4)), reg=regressors)
def test_targets_do_not_meet(data, reg):
    together = data.fit(reg)
    for target in range(data.y.shape[1]):
        alone = data.fit(reg, y=data.y[:, target])
        close(together.coef_[target], alone.coef_)
        close(np.atleast_1d(together.intercept_)[target * reg.fit_intercept], alone.intercept_, size=10)


@given(data=tall(), reg=regressors, seed=st.integers(0, 999))
def test_order_of_rows_and_columns_does_not_matter(data, reg, seed):
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(len(data.X)), rng.permutation(data.X.shape[1])
    weight = None if data.weight is None else data.weight[rows]
    before = data.fit(reg)
    after = clone(reg).fit(data.X[rows][:, columns], data.y[rows], sample_weight=weight)
    close(after.coef_, before.coef_[columns])
    close(after.intercept_, before.intercept_, size=10)


def exact_gradient(data, reg):
    """Of the objective times the weight sum, and its terms' absolute sum, in rational arithmetic."""
    coef = [Fraction(value) for value in reg.coef_.tolist()]
    intercept = Fraction(float(reg.intercept_))
    weights = (
        [Fraction(1)] * len(data.X) if data.weight is None else list(map(Fraction, data.weight.tolist()))
    )
    rows = [[Fraction(value) for value in row] for row in data.X.tolist()]
    gradient, size = [Fraction(0)] * (len(coef) + 1), [Fraction(0)] * (len(coef) + 1)
    for row, target, weight in zip(rows, data.y.tolist(), weights, strict=True):
        terms = [intercept, *(x * b for x, b in zip(row, coef, strict=True))]
        residual = Fraction(target) - sum(terms)
        magnitude = abs(Fraction(target)) + sum(map(abs, terms))
        for j, x in enumerate([Fraction(1), *row]):
            gradient[j] += weight * x * residual
            size[j] += weight * abs(x) * magnitude
    penalty = Fraction(reg.alpha) * sum(weights)
    for j, value in enumerate(coef, start=1):
        gradient[j] -= penalty * value
    first = 0 if reg.fit_intercept else 1
    return np.array([float(abs(g) / s) for g, s in zip(gradient, size, strict=True)])[first:]


@given(data=tall(), reg=regressors, alpha=st.sampled_from([0.0, 1e-3, 1.0, 1e6]))
def test_the_gradient_is_that_of_rounded_coefficients(data, reg, alpha):
    """Normal equations in exact arithmetic: what is left comes from the coefficients' last bits."""
    fitted = data.fit(reg.set_params(alpha=alpha))
    # Without an intercept 4 * 2^-53 is exceeded by 1 of 120 problems; of alpha=1e6 9 * 2^-53 was seen.
    assert exact_gradient(data, fitted).max() <= 10 * 2.0**-53


@given(data=wide(), alpha=st.sampled_from([1e-6, 1.0]), fit_intercept=st.booleans())
def test_the_gradient_of_a_wide_ridge(data, alpha, fit_intercept):
    fitted = data.fit(TorchLinearRegressor(alpha=alpha, fit_intercept=fit_intercept))
    assert exact_gradient(data, fitted).max() <= 2.0**-51


@pytest.mark.parametrize("condition", [1e3, 1e6, 1e9, 1e12])
def test_the_gradient_of_ill_conditioned_columns(condition):
    data = Data(1, 40, 4, weighted=True)
    data.X[:, 3] = data.X[:, 0] + data.X[:, 3] / condition
    fitted = data.fit(TorchLinearRegressor())
    assert exact_gradient(data, fitted).max() <= 2.0**-51


@given(
    data=st.one_of(tall(), wide()),
    reg=regressors,
    alpha=st.sampled_from([1e-3, 0.1, 1.0, 1e3]),
    kind=st.sampled_from([np.asarray, sparse.csr_array]),
)
def test_ridge_is_that_of_scikit_learn(data, reg, alpha, kind):
    """Ours divides the squared errors by the weight sum; theirs does not."""
    fitted = data.fit(reg.set_params(alpha=alpha), X=kind(data.X))
    weight_sum = len(data.X) if data.weight is None else data.weight.sum()
    theirs = Ridge(alpha * weight_sum, fit_intercept=reg.fit_intercept, solver="svd")
    theirs.fit(data.X, data.y, sample_weight=data.weight)
    np.testing.assert_allclose(fitted.coef_, theirs.coef_, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(fitted.intercept_, theirs.intercept_, rtol=1e-8, atol=1e-10)
    assert fitted.status_.kind is Status.OPTIMAL


def test_ridge_shrinks_and_vanishes():
    data = Data(2, 30, 4)
    norms = [np.linalg.norm(data.fit(TorchLinearRegressor(alpha=a)).coef_) for a in (0, 1e-9, 1, 1e9)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    assert norms[1] > norms[2] > norms[3]
    strong = data.fit(TorchLinearRegressor(alpha=1e15))
    assert np.abs(strong.coef_).max() < 1e-12
    assert strong.intercept_ == pytest.approx(data.y.mean(), rel=1e-12)


@given(data=wide(), reg=regressors)
def test_wide_data_are_interpolated_with_least_norm(data, reg):
    fitted = data.fit(reg)
    close(fitted.predict(data.X), data.y, size=100)
    X, y = data.X, data.y
    if reg.fit_intercept:
        X, y = X - X.mean(axis=0), y - y.mean()
    pinv = np.linalg.pinv(X)
    expected = pinv @ y
    assume(np.linalg.cond(X @ X.T + reg.fit_intercept) < 1e6)
    np.testing.assert_allclose(fitted.coef_, expected, rtol=1e-8, atol=1e-10)
    # orthogonal to all that predicts the same
    away = fitted.coef_ - pinv @ (X @ fitted.coef_)
    assert np.abs(away).max() < 1e-10 * (1 + np.abs(fitted.coef_).max())
    assert fitted.rank_ == len(X) - reg.fit_intercept
    assert fitted.status_.kind is Status.MINIMUM_NORM


@pytest.mark.every(5)
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("shape", [(6, 20), (40, 20), (200, 20)])
@pytest.mark.parametrize("rank", [1, 3, 5])
@pytest.mark.parametrize("solver", NAMES)
def test_low_rank_has_least_norm(solver, rank, shape, fit_intercept):
    """Products of small integers, whose rank is exact."""
    rng = np.random.default_rng(rank)
    n_samples, n_features = shape
    # The rows' factors sum to 0, so that centring does not change the rank.
    left = rng.integers(-5, 6, (n_samples // 2, rank)).astype(float)
    X = np.vstack([left, -left]) @ rng.integers(-5, 6, (rank, n_features))
    rank = np.linalg.matrix_rank(X)
    y = rng.standard_normal(n_samples)
    reg = TorchLinearRegressor(solver=solver, fit_intercept=fit_intercept).fit(X, y)
    expected = np.linalg.pinv(X, rcond=1e-10) @ (y - y.mean() * fit_intercept)
    np.testing.assert_allclose(reg.coef_, expected, rtol=1e-9, atol=1e-12)
    assert reg.rank_ == rank
    assert reg.status_.kind is Status.MINIMUM_NORM


@pytest.mark.parametrize("solver", NAMES)
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_a_perfect_fit_is_found_without_a_warning(solver, fit_intercept):
    """Also where coefficients or the intercept are 0, which have no digits to lose."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 3))
    for coef, intercept in itertools.product([(1, 0, 0), (1, 2, 3), (0, 0, 0)], [0, -2]):
        intercept *= fit_intercept
        reg = TorchLinearRegressor(solver=solver, fit_intercept=fit_intercept)
        reg.fit(X, X @ np.array(coef, dtype=float) + intercept)
        np.testing.assert_allclose(reg.coef_, coef, atol=1e-14)
        np.testing.assert_allclose(reg.intercept_, intercept, atol=1e-14)


FAMILIES = {
    "normal": lambda rng, X: X,
    "whole numbers": lambda rng, X: np.round(2 * X),
    "indicators": lambda rng, X: (X > 0) * 1.0,
    "units": lambda rng, X: X * 10.0 ** rng.integers(-6, 7, X.shape[1]),
    "extreme units": lambda rng, X: X * 10.0 ** rng.integers(-12, 13, X.shape[1]),
    "offset": lambda rng, X: X + 10.0 ** rng.integers(0, 10),
    "powers": lambda rng, X: (10 + X[:, :1]) ** np.arange(1, X.shape[1] + 1),
    "copies": lambda rng, X: X[:, rng.integers(0, X.shape[1], X.shape[1])],
    "constants": lambda rng, X: np.where(np.arange(X.shape[1]) % 2, X, rng.choice([0, 0.1, 1e9])),
    "collinear": lambda rng, X: X + 10.0 ** rng.uniform(0, 12) * X[:, :1],
}
# Of wide data in extreme units, the least norm asks for the squares of all units in one sum.
MAY_WARN = {"powers", "collinear", "extreme units"}
# Six have each combination of weights and intercept.
SEEDS = [range(6), pytest.param(range(6, 25), marks=pytest.mark.exhaustive)]


def random_problem(seed, family, shape, *, ridge=False):
    """A small problem and its exact solution; every third is weighted, every other has no intercept."""
    rng = np.random.default_rng(seed)
    n_features = int(rng.integers(1, 7))
    lowest, highest = {"tall": (8, 20), "wide": (1, n_features), "any": (1, 9)}[shape]
    n_samples = int(rng.integers(lowest, highest + 1))
    X = FAMILIES[family](rng, rng.standard_normal((n_samples, n_features)))
    signal = (X / np.abs(X).max(axis=0, initial=1e-300)) @ rng.uniform(1, 2, n_features)
    y = 3 + signal + rng.standard_normal(n_samples)
    weight = rng.integers(1, 9, n_samples) / 8.0 if seed % 3 == 0 else None
    alpha = 10.0 ** rng.uniform(-12, 3) if ridge else 0.0
    return make_problem("x-x", X, y, weight, fit_intercept=seed % 2 == 0, alpha=alpha)


def fit_and_digits(truth, solver="auto"):
    """The model of a problem, its correct digits, and the warnings that came."""
    reg = TorchLinearRegressor(solver=solver, alpha=truth.alpha, fit_intercept=truth.fit_intercept)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reg.fit(truth.X, truth.y, sample_weight=truth.sample_weight)
    return reg, truth.digits(reg.coef_, reg.intercept_).least, caught


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", ["tall", "wide", "any"])
@pytest.mark.parametrize("ridge", [False, True])
@pytest.mark.parametrize("seeds", SEEDS, ids=str)
def test_random_problems_against_exact_solutions(seeds, ridge, shape, family):
    """12 digits in all coefficients and intercepts, or a warning where columns are nearly dependent."""
    for seed in seeds:
        truth = random_problem(seed, family, shape, ridge=ridge)
        reg, digits, caught = fit_and_digits(truth)
        # Of equal columns of 1e9, a ridge of 1e-12 is below what 100 bits of their squares hold.
        too_small = ridge and family == "constants"
        if caught and (family in MAY_WARN or too_small):
            assert [warning.category for warning in caught] == [ConvergenceWarning]
        else:
            assert not caught, (seed, str(caught[0].message), digits)
            assert digits >= 12, (seed, digits)
            assert ridge or reg.rank_ == truth.rank, seed


@pytest.mark.parametrize("seed", range(20))
def test_an_intercept_far_below_y_has_its_digits(seed):
    """The sums of large targets are rounded, too, also where columns at the origin add nothing to that."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((400, 2))
    X -= X.mean(0)
    y = X @ [1e6, -3e4] + 1e3 * rng.standard_normal(400)
    y -= y.mean() - 1
    _, digits, caught = fit_and_digits(make_problem("x-x", X, y))
    assert not caught
    assert digits >= 12


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("solver", LEAST_SQUARES)
@pytest.mark.parametrize("ridge", [False, True])
@pytest.mark.parametrize("seeds", SEEDS, ids=str)
def test_every_solver_is_right_or_warns(seeds, ridge, solver, family):
    """Also on data that it was not made for."""
    for seed in seeds:
        reg, digits, caught = fit_and_digits(random_problem(seed, family, "any", ridge=ridge), solver)
        if not caught:
            assert digits >= 12, (seed, digits, reg.solver_)
        else:
            assert [warning.category for warning in caught] == [ConvergenceWarning], seed


@pytest.mark.every(5)
@pytest.mark.parametrize("value", [0.0, 0.3, 1e9])
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("solver", NAMES)
def test_rank_where_y_is_constant(solver, seed, value):
    """All coefficients are 0 then, so nothing but the rank tells that columns depend on each other."""
    X = np.random.default_rng(seed).standard_normal((20, 3))[:, [0, 1, 2, 0]]
    reg = TorchLinearRegressor(solver=solver).fit(X, np.full(20, value))
    np.testing.assert_allclose(reg.coef_, 0, atol=1e-15 * max(value, 1))
    assert reg.intercept_ == value
    assert reg.rank_ == 3
    assert reg.status_.kind is Status.MINIMUM_NORM


@pytest.mark.every(5)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("condition", [1, 10, 1e4])
@pytest.mark.parametrize("n_features", [16, 63, 64, 65, 300, 400, 450])
def test_many_columns(n_features, condition, weighted, dtype):
    """Around the widths where a pass over the rows changes its way; with each kind of refinement."""
    rng = np.random.default_rng(n_features)
    X = rng.standard_normal((n_features + 1100, n_features))
    X[:, 1] = X[:, 0] + X[:, 1] / condition
    y = (5 + X.sum(axis=1) + rng.standard_normal(len(X))).astype(dtype)
    X = X.astype(dtype)
    weight = rng.uniform(0.5, 2, len(X)) if weighted else None
    reg = TorchLinearRegressor().fit(X, y, sample_weight=weight)
    root = np.ones(len(X)) if weight is None else np.sqrt(weight)
    design = np.column_stack([np.ones(len(X)), X.astype(float)]) * root[:, None]
    expected = np.linalg.lstsq(design, y * root, rcond=None)[0]
    rtol = 2e-7 if dtype is np.float32 else 1e-10 * condition
    np.testing.assert_allclose(reg.coef_, expected[1:], rtol=rtol, atol=1e-9)
    np.testing.assert_allclose(reg.intercept_, expected[0], rtol=rtol)
    assert reg.rank_ == n_features


@pytest.mark.parametrize("solver", NAMES)
def test_one_row(solver):
    reg = TorchLinearRegressor(solver=solver).fit([[3.0, 4.0]], [7.0])
    assert reg.coef_.tolist() == [0, 0]
    assert reg.intercept_ == 7
    assert reg.rank_ == 0
    origin = TorchLinearRegressor(solver=solver, fit_intercept=False).fit([[3.0, 4.0]], [7.0])
    np.testing.assert_allclose(origin.coef_, [21 / 25, 28 / 25], rtol=1e-14)
    assert origin.intercept_ == 0


@pytest.mark.parametrize("solver", NAMES)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_single_row_of_positive_weight(solver, weighted):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((5, 2)), rng.standard_normal(5)
    weight = np.array([0, 0, 0.7 if weighted else 1, 0, 0])
    reg = TorchLinearRegressor(solver=solver).fit(X, y, sample_weight=weight)
    assert reg.coef_.tolist() == [0, 0]
    assert reg.intercept_ == y[2]


@pytest.mark.parametrize("solver", NAMES)
@pytest.mark.parametrize("as_X", [np.asarray, sparse.csr_array])
def test_a_long_lead_of_rows_without_weight(solver, as_X):
    rng = np.random.default_rng(1)
    X = rng.standard_normal((1200, 4)) * (rng.random((1200, 4)) < 0.09)
    y = 1 + X.sum(axis=1) + rng.standard_normal(1200)
    weight = (np.arange(1200) >= 1000) * 1.0
    X[:1000] = 1e100
    X[:999, 1:] = 0
    expected = TorchLinearRegressor().fit(X[1000:], y[1000:])
    reg = TorchLinearRegressor(solver=solver).fit(as_X(X), y, sample_weight=weight)
    np.testing.assert_allclose(reg.coef_, expected.coef_, rtol=1e-10)
    np.testing.assert_allclose(reg.intercept_, expected.intercept_, rtol=1e-10)


@pytest.mark.every(5)
@pytest.mark.parametrize("n_rows", [3, 300, 5000])
@pytest.mark.parametrize("solver", ["auto", "exact"])
@pytest.mark.parametrize("first", [0.0, 1.0, 1e-150, 1e150])
@pytest.mark.parametrize("then", [1.0, 1e-150, 1e150])
def test_first_rows_that_mislead(first, then, solver, n_rows):
    """The columns' shift and scale are taken from the first rows; the later ones are different."""
    rng = np.random.default_rng(1)
    X, y = rng.standard_normal((n_rows + 400, 2)), rng.standard_normal(n_rows + 400)
    X[:n_rows] *= first
    X[n_rows:] *= then
    size = max(first, then)
    # Reference: rows in the other order, and the columns brought to ordinary size.
    scaled = np.where(np.abs(X) < 1e-20 * size, 0, X) / size
    expected = TorchLinearRegressor().fit(scaled[::-1], y[::-1])
    reg = TorchLinearRegressor(solver=solver).fit(X, y)
    np.testing.assert_allclose(reg.coef_ * size, expected.coef_, rtol=1e-9)
    np.testing.assert_allclose(reg.intercept_, expected.intercept_, rtol=1e-9)


@pytest.mark.parametrize("magnitude", [1e-150, 1e150])
@pytest.mark.parametrize("solver", NAMES)
@pytest.mark.parametrize("shape", [(30, 3), (4, 9)])
def test_extreme_magnitudes(magnitude, solver, shape):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal(shape), rng.standard_normal(shape[0])
    expected = TorchLinearRegressor().fit(X, y)
    for of_X, of_y in ((magnitude, 1), (1, magnitude), (magnitude, magnitude)):
        reg = TorchLinearRegressor(solver=solver).fit(X * of_X, y * of_y)
        np.testing.assert_allclose(reg.coef_ / of_y * of_X, expected.coef_, rtol=1e-10)
        np.testing.assert_allclose(reg.intercept_ / of_y, expected.intercept_, rtol=1e-10)


@pytest.mark.every(5)
@pytest.mark.parametrize("factor", [1e-310, 1e-200, 1e-30, 1e30, 1e200, 1e307])
@pytest.mark.parametrize("solver", NAMES)
@pytest.mark.parametrize("shape", [(30, 3), (4, 9)])
@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_extreme_weights(factor, solver, shape, alpha):
    rng = np.random.default_rng(0)
    X, y, weight = rng.standard_normal(shape), rng.standard_normal(shape[0]), rng.uniform(1, 9, shape[0])
    reg = TorchLinearRegressor(solver=solver, alpha=alpha)
    expected = clone(reg).fit(X, y, sample_weight=weight)
    reg.fit(X, y, sample_weight=weight * factor)
    np.testing.assert_allclose(reg.coef_, expected.coef_, rtol=1e-10)


@pytest.mark.parametrize("solver", NAMES)
@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("shape", [(40, 3), (5, 12)])
def test_same_data_same_bits(solver, alpha, shape):
    rng = np.random.default_rng(1)
    X, y = rng.standard_normal(shape), rng.standard_normal(shape[0])
    reg = TorchLinearRegressor(solver=solver, alpha=alpha)
    one, two = clone(reg).fit(X, y), clone(reg).fit(X, y)
    np.testing.assert_array_equal(one.coef_, two.coef_)
    assert one.intercept_ == two.intercept_


@pytest.mark.parametrize("solver", NAMES)
@pytest.mark.parametrize("shape", [(40, 3), (5, 12)])
def test_what_is_told_about_a_fit(solver, shape):
    rng = np.random.default_rng(1)
    X, y = rng.standard_normal(shape), rng.standard_normal(shape[0])
    reg = TorchLinearRegressor(solver=solver).fit(X, y)
    centred = X - X.mean(axis=0)
    values = np.linalg.svd(centred / np.linalg.norm(centred, axis=0), compute_uv=False)
    if reg.solver_ != "dual":
        rank = min(shape[0] - 1, shape[1])
        if rank == shape[1]:
            assert reg.condition_number_ == pytest.approx(values[0] / values[rank - 1], rel=0.1)
    assert reg.solver_ in SOLVERS
    assert isinstance(reg.n_iter_, int)
    assert reg.n_iter_ >= 1
    full = shape[0] > shape[1]
    assert reg.status_.kind is (Status.OPTIMAL if full else Status.MINIMUM_NORM)
    assert len(reg.status_.message) > 20


def nearly_dependent():
    data = Data(3, 60, 4)
    data.X[:, 3] = data.X[:, 0] + 1e-5 * data.X[:, 3]
    return data


def test_a_larger_tol_saves_passes():
    data = nearly_dependent()
    strict, lax = data.fit(TorchLinearRegressor()), data.fit(TorchLinearRegressor(tol=1e-2))
    assert lax.n_iter_ < strict.n_iter_
    assert strict.status_.kind is lax.status_.kind is Status.OPTIMAL
    np.testing.assert_allclose(lax.coef_, strict.coef_, rtol=1e-2)


def test_max_iter_limits_the_passes_and_says_what_is_lost():
    data = nearly_dependent()
    with pytest.warns(ConvergenceWarning, match=r"Only about \d+ digits"):
        reg = data.fit(TorchLinearRegressor(solver="cholesky", max_iter=0))
    assert reg.n_iter_ == 1
    assert reg.status_.kind is Status.DIGITS_LOST
    assert data.fit(TorchLinearRegressor(solver="cholesky", max_iter=0, tol=0.1)).n_iter_ == 1


def test_fits_in_threads_do_not_meet():
    problems = [Data(seed, 2000, 20, weighted=seed % 2) for seed in range(8)]
    expected = [data.fit(TorchLinearRegressor()).coef_ for data in problems]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda data: data.fit(TorchLinearRegressor()).coef_, problems)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_parameters_stay_as_they_were_given(method):
    data = Data(0, 20, 2)
    given = {"alpha": np.float32(0.5), "tol": 1e-6, "max_iter": np.int64(3), "verbose": 0}
    reg = TorchLinearRegressor(**given)
    before = reg.get_params()
    getattr(reg, method)(data.X, data.y)
    assert all(reg.get_params()[name] is value for name, value in before.items())
    assert all(before[name] is value for name, value in given.items())
