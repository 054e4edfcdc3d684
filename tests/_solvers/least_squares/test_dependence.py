"""Columns that depend on each other, exactly or up to the rounding of their numbers."""

import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import PolynomialFeatures

from benchmarks.problems import make_problem
from torchlinreg import TorchLinearRegressor
from torchlinreg._data.rows import as_row_blocks
from torchlinreg._moments.combinations import Combinations
from torchlinreg._objective.penalty import ridge
from torchlinreg._objective.problem import Problem
from torchlinreg._objective.solution import Status
from torchlinreg._solvers.least_squares.basis import RowsSource
from torchlinreg._solvers.least_squares.dependence import find_basis
from torchlinreg._solvers.least_squares.whitening import geometry_of

X_OF_POLYNOMIALS = {
    "years": np.linspace(1900, 2000, 50),
    "hundred": np.linspace(100, 110, 50),
    "thousand": np.linspace(1000, 1010, 50),
    "nile": np.linspace(1871, 1990, 71),
    "random years": np.sort(np.random.default_rng(0).uniform(1850, 2020, 300)),
}


def powers(x, degree):
    return PolynomialFeatures(degree, include_bias=False).fit_transform(x[:, None])


def smooth_curve(x):
    t = (x - x[0]) / (x[-1] - x[0])
    return np.sin(3 * t) + t**2 + 0.01 * np.random.default_rng(1).standard_normal(len(x))


@pytest.mark.every(2)
@pytest.mark.parametrize("name", X_OF_POLYNOMIALS)
def test_polynomials_of_any_degree_keep_their_r2(name):
    """No error, one warning where columns depend on each other, and no worse than lower degrees."""
    x = X_OF_POLYNOMIALS[name]
    y = smooth_curve(x)
    best = -np.inf
    for degree in range(1, 21):
        X = powers(x, degree)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            reg = TorchLinearRegressor().fit(X, y)
        assert [warning.category for warning in caught] in ([], [ConvergenceWarning])
        assert bool(caught) == (reg.rank_ < degree)
        r2 = reg.score(X, y)
        assert r2 >= best - 1e-5
        # Predictions of huge terms are rounded, which meets the residuals at random.
        rounding = 2.0**-53 * np.abs(X * reg.coef_).sum(1).max() / y.std() * math.sqrt(1 - r2)
        assert r2 >= LinearRegression(tol=0).fit(X, y).score(X, y) - 1e-12 - rounding
        best = max(best, r2)


def test_rank_of_powers_never_falls():
    """Which columns are in the basis does not depend on those after them."""
    x = X_OF_POLYNOMIALS["thousand"]
    ranks = []
    for degree in range(5, 21):
        blocks = as_row_blocks(powers(x, degree), smooth_curve(x))
        source = RowsSource(Problem(blocks, ridge(0.0, degree)))
        basis = find_basis(source, np.zeros(degree), fit_intercept=True, in_order=True).basis
        own = np.sort(np.concatenate([level.own for level in basis.levels]))
        assert own[: len(ranks[-1])].tolist() == ranks[-1] if ranks else True
        ranks.append(own.tolist())


@pytest.mark.every(3)
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_levels", [7, 300])
def test_one_hot_columns_have_least_norm(n_levels, weighted, kind):
    """With an intercept they predict the mean of each level; the intercept is the mean of these means."""
    rng = np.random.default_rng(0)
    level = np.concatenate([np.arange(n_levels), rng.integers(0, n_levels, 20_000)])
    y = rng.standard_normal(n_levels)[level] + rng.standard_normal(len(level))
    weight = rng.integers(1, 5, len(level)).astype(float) if weighted else np.ones(len(level))
    X = kind((level[:, None] == np.arange(n_levels)).astype(float))
    reg = TorchLinearRegressor().fit(X, y, sample_weight=weight if weighted else None)
    means = [
        sum(Fraction(w) * Fraction(v) for w, v in zip(weight[level == k], y[level == k], strict=True))
        / Fraction(weight[level == k].sum())
        for k in range(n_levels)
    ]
    intercept = sum(means) / n_levels
    np.testing.assert_allclose(reg.coef_, [float(mean - intercept) for mean in means], rtol=1e-12)
    np.testing.assert_allclose(reg.intercept_, float(intercept), rtol=1e-12)
    assert reg.rank_ == n_levels - 1
    assert reg.status_.kind is Status.MINIMUM_NORM


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(np.float64, scale) for scale in (1e-150, 1e-8, 1.0, 1e8, 1e150)]
    + [(np.float32, scale) for scale in (1e-8, 1.0, 1e8)],
)
def test_dependences_of_whole_numbers_are_exact(dtype, scale, offset):
    """Copies and sums, all columns in one unit; the truth is rational."""
    rng = np.random.default_rng(0)
    Z = rng.integers(-9, 10, (60, 4)).astype(float)
    Z = np.column_stack([Z, Z[:, 0], Z[:, 1] + Z[:, 2], Z[:, 0] - Z[:, 3]]) + offset
    unit = 2.0 ** round(math.log2(scale))
    X = (Z * unit).astype(dtype)
    y = (Z @ np.arange(7) + rng.standard_normal(60)).astype(dtype)
    truth = make_problem("x-x", X.astype(float) / unit, y.astype(float))
    reg = TorchLinearRegressor().fit(X, y)
    assert reg.rank_ == 4  # the intercept makes up for the offset
    digits = truth.digits(reg.coef_.astype(float) * unit, float(reg.intercept_)).least
    assert digits >= (7.2 if dtype is np.float32 else 12)


@pytest.mark.parametrize("parts", [1, 4])
def test_dependent_columns_in_parts(parts):
    """Moments whose rows are gone decide like the rows."""
    rng = np.random.default_rng(2)
    Z = rng.integers(-9, 10, (400, 3)).astype(float)
    X = np.column_stack([Z, Z[:, 0] + Z[:, 1], 3 * Z[:, 2]])
    Y = rng.standard_normal((400, 2))
    expected = TorchLinearRegressor().fit(X, Y)
    reg = TorchLinearRegressor()
    for part in np.array_split(np.arange(400), parts):
        reg.partial_fit(X[part], Y[part])
    assert reg.rank_ == expected.rank_ == 3
    np.testing.assert_allclose(reg.coef_, expected.coef_, rtol=1e-12)
    np.testing.assert_allclose(reg.intercept_, expected.intercept_, rtol=1e-12)


@pytest.mark.every(3)
@pytest.mark.parametrize("noise", [1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("shape", [(300, 5), (30_000, 6)])
def test_columns_that_are_nearly_copies_keep_their_digits(noise, shape):
    rng = np.random.default_rng(3)
    X = rng.standard_normal(shape)
    X[:, 1] = X[:, 0] + noise * X[:, 1]
    y = X.sum(1) + rng.standard_normal(len(X))
    reg = TorchLinearRegressor().fit(X, y)
    assert reg.rank_ == shape[1]
    assert make_problem("x-x", X, y).digits(reg.coef_, reg.intercept_).least >= 12


@pytest.mark.parametrize("seed", range(10))
def test_columns_just_above_rounding_keep_their_digits(seed):
    """Their difference has a mean that products of the columns do not resolve."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(22)
    X = np.column_stack([x, x + 3e-14 * rng.standard_normal(22)])
    y = x + 1e-8 * rng.standard_normal(22)
    reg = TorchLinearRegressor().fit(X, y)
    assert reg.rank_ == 2
    assert make_problem("x-x", X, y).digits(reg.coef_, reg.intercept_).least >= 12


def test_columns_in_two_scales_are_dependent():
    """Fahrenheit is Celsius but for rounding."""
    rng = np.random.default_rng(4)
    celsius = np.round(rng.uniform(-10, 35, 500), 1)
    X = np.column_stack([celsius, 1.8 * celsius + 32, rng.standard_normal(500)])
    y = celsius + rng.standard_normal(500)
    reg = TorchLinearRegressor().fit(X, y)
    assert reg.rank_ == 2
    assert np.abs(reg.coef_).max() < 2
    alone = TorchLinearRegressor().fit(X[:, [0, 2]], y)
    np.testing.assert_allclose(reg.predict(X), alone.predict(X[:, [0, 2]]), rtol=1e-12)


@pytest.mark.parametrize(
    ("n_different", "least", "most"),
    [(1, 1, 1), (8, 6, 9), (100, 80, 120), (1000, 600, 1400), (10**6, 2e4, 1e5)],
)
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
def test_number_of_distinct_rows(n_different, least, most, kind):
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((n_different, 3))[rng.integers(0, n_different, 100_000)]
    problem = Problem(as_row_blocks(kind(rows), np.zeros(100_000)), ridge(0.0, 3))
    assert least <= problem.n_distinct_rows <= most


def test_weights_count_in_the_number_of_distinct_rows():
    weight = np.full(1000, 1e-9)
    weight[:4] = 1.0
    rows = np.random.default_rng(5).standard_normal((1000, 3))
    problem = Problem(as_row_blocks(rows, np.zeros(1000), weight), ridge(0.0, 3))
    assert problem.n_distinct_rows == pytest.approx(4, rel=1e-6)


@pytest.mark.parametrize("shape", [(200, 4), (40_000, 4)])
def test_residuals_of_later_levels_are_those_of_the_fit(shape):
    """What the difference of two nearly equal columns explains is not left in the objective's floor."""
    rng = np.random.default_rng(8)
    X = rng.integers(-50, 50, shape).astype(float)
    difference = rng.integers(-50, 50, shape[0]) * 2.0**-30
    X[:, 1] = X[:, 0] + difference
    noise = rng.standard_normal(shape[0])
    y = 2.0**30 * difference + noise
    geometry = geometry_of(Problem(as_row_blocks(X, y), ridge(0.0, shape[1])), 1e-12)
    columns = np.column_stack([np.ones(shape[0]), X[:, [0, 2, 3]], 2.0**30 * difference])  # spans the same
    residual = noise - columns @ np.linalg.lstsq(columns, noise, rcond=None)[0]
    np.testing.assert_allclose(geometry.floor, residual @ residual / (2 * shape[0]), rtol=1e-10)


def test_products_of_sums_far_below_their_terms():
    """Combinations of 1e9 that leave 1e-3, in float64 and exactly; the truth is rational."""
    rng = np.random.default_rng(6)
    X = np.round(rng.standard_normal((500, 2)), 3) + 1e9
    y, weight = rng.standard_normal(500), rng.integers(1, 4, 500).astype(float)
    problem = Problem(as_row_blocks(X, y, weight), ridge(0.0, 2))
    source = RowsSource(problem)
    shift, scale = (part.numpy() for part in source.frame)
    columns = [
        [(Fraction(v) - Fraction(s)) * Fraction(c) for v in x]
        for x, s, c in zip(X.T, shift[1:3], scale[1:3], strict=True)
    ]
    share = Fraction(0.5)
    z = [a - share * b for a, b in zip(*columns, strict=True)]
    weights = np.array([[0.0], [0.0], [-0.5]])
    for n_slices in (0, 2, 3):
        combinations = Combinations(np.array([1]), (weights, 0 * weights))
        found = source.products(combinations, 1, n_slices, with_error=True)
        with_ones = sum(Fraction(w) * v for w, v in zip(weight, z, strict=True))
        with_x = [
            sum(Fraction(w) * v * c for w, v, c in zip(weight, z, column, strict=True)) for column in columns
        ]
        square = sum(Fraction(w) * v * v for w, v in zip(weight, z, strict=True))
        np.testing.assert_allclose(found.of_z[0, 0], float(square), rtol=1e-13)
        for value, truth, error in zip(
            found.of_x[:, 0], [with_ones, *with_x], found.error[:, 0], strict=True
        ):
            assert abs(value - float(truth)) <= error + 1e-15 * abs(float(truth))
        assert found.error.max() < 1e-12
        without = source.products(combinations, 1, n_slices)
        np.testing.assert_allclose(without.of_x, found.of_x, rtol=0, atol=2 * found.error.max())


@pytest.mark.parametrize("offset", [0.0, 1e10, 1e13])
def test_a_copy_far_from_zero_shares_its_coefficient(offset):
    rng = np.random.default_rng(5)
    Z = rng.integers(-50, 50, (3000, 40)).astype(float)
    y = Z @ rng.integers(1, 9, 40) + rng.standard_normal(3000).round(1)
    alone = TorchLinearRegressor().fit(Z, y).coef_
    reg = TorchLinearRegressor().fit(np.column_stack([Z, Z[:, 0]]) + offset, y)
    np.testing.assert_allclose(reg.coef_, np.append(alone, alone[0] / 2) / np.where(np.arange(41) == 0, 2, 1))
    assert reg.status_.kind is Status.MINIMUM_NORM


def test_units_too_far_apart_for_the_least_norm():
    """A warning, not an error."""
    rows = np.random.default_rng(7).integers(-5, 5, (6, 7)).astype(float)
    rows[3:, :] = rows[:3, :]
    X = rows * 2.0 ** np.array([80, 0, -80, 60, 0, -60, 90])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        reg = TorchLinearRegressor().fit(X, np.arange(6.0))
    assert np.isfinite(reg.coef_).all()


@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize("loss", ["huber", "log_cosh"])
def test_training_on_constant_columns(loss, solver):
    reg = TorchLinearRegressor(loss=loss, solver=solver).fit(np.ones((40, 2)), np.arange(40.0))
    assert reg.coef_.tolist() == [0, 0]
    np.testing.assert_allclose(reg.intercept_, 19.5)


@pytest.mark.every(2)
@pytest.mark.parametrize("near", [1e-4, 1e-6, 1e-8])
def test_a_target_of_huge_coefficients_leaves_the_others_as_they_are(near):
    """One that is fitted exactly may move along a null vector less far than others with residuals."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(60, 4))
    X[:, 1] = X[:, 0] + near * rng.normal(size=60)
    X[:, 3] = 1000.1 * (0.3 * X[:, 0] + 0.11 * X[:, 1] + 0.7 * X[:, 2])
    Y = X[:, 2:3] * rng.normal(size=20) + 0.3 * rng.normal(size=(60, 20))
    Y[:, 7] = (X[:, 1] - X[:, 0]) / near + X[:, 2]
    with pytest.warns(ConvergenceWarning, match="depend on each other"):
        together = TorchLinearRegressor().fit(X, Y)
    for target in np.delete(np.arange(20), 7):
        alone = TorchLinearRegressor().fit(X, Y[:, target])
        np.testing.assert_allclose(together.coef_[target], alone.coef_, rtol=1e-12)
        np.testing.assert_allclose(together.intercept_[target], alone.intercept_, rtol=1e-12)
