"""A ridge beside columns, weights and strengths of any size; truths are solved in rational numbers."""

from fractions import Fraction

import numpy as np
import pytest

from torchlinreg import TorchLinearRegressor


def solved(matrix, right):
    """Gaussian elimination."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    size = len(rows)
    for k in range(size):
        pivot = next(i for i in range(k, size) if rows[i][k])
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [value / rows[k][k] for value in rows[k]]
        for i in range(size):
            if i != k and rows[i][k]:
                rows[i] = [a - rows[i][k] * b for a, b in zip(rows[i], rows[k], strict=True)]
    return [row[-1] for row in rows]


def truth(X, y, alpha, weight=None, fit_intercept=True):
    """Coefficients of the normal equations, with the intercept eliminated."""
    weight = [Fraction(1)] * len(y) if weight is None else [Fraction(float(w)) for w in weight]
    total = sum(weight)
    columns = [[Fraction(float(value)) for value in column] for column in [*np.asarray(X).T, y]]
    if fit_intercept:
        means = [sum(w * v for w, v in zip(weight, column, strict=True)) / total for column in columns]
        columns = [[v - mean for v in column] for column, mean in zip(columns, means, strict=True)]
    weighted = [[w * v for w, v in zip(weight, column, strict=True)] for column in columns]
    products = [[sum(a * b for a, b in zip(u, v, strict=True)) for v in columns] for u in weighted[:-1]]
    penalty = Fraction(alpha) * total
    gram = [
        [value + (i == j) * penalty for j, value in enumerate(row[:-1])] for i, row in enumerate(products)
    ]
    return np.array([float(value) for value in solved(gram, [row[-1] for row in products])])


def data(n_samples=8, n_features=2):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_samples, n_features))
    return X, X.sum(1) + 0.1 * rng.standard_normal(n_samples)


def fit_in_pieces(reg, X, y):
    return reg.partial_fit(X[:5], y[:5]).partial_fit(X[5:], y[5:])


WAYS = {
    "fit": lambda X, y, alpha: TorchLinearRegressor(alpha=alpha).fit(X, y),
    "exact": lambda X, y, alpha: TorchLinearRegressor(alpha=alpha, solver="exact").fit(X, y),
    "partial_fit": lambda X, y, alpha: fit_in_pieces(TorchLinearRegressor(alpha=alpha), X, y),
}


@pytest.mark.every(2)
@pytest.mark.parametrize("only_first", [False, True])
@pytest.mark.parametrize("alpha", [1e-320, 1e-300, 0.1, 1e300, "like the squares"])
@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-160, 1e-145, 1e-130, 1e145, 1e200, 1e300])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_ridge_of_extreme_columns(way, scale, alpha, only_first):
    X, y = data()
    X[:, : 1 if only_first else 2] *= scale
    if alpha == "like the squares":
        alpha = max(1e-320, min(scale, 1e150) ** 2)
    expected = truth(X, y, alpha)
    reg = way(X, y, alpha)
    np.testing.assert_allclose(reg.coef_, expected, rtol=1e-11, atol=1e-323)
    assert reg.status_.name == "OPTIMAL"


@pytest.mark.parametrize("shape", [(8, 2), (4, 6)])
def test_the_strongest_ridge(shape):
    X, y = data(*shape)
    reg = TorchLinearRegressor(alpha=1e308).fit(X, y)
    np.testing.assert_allclose(reg.coef_, truth(X, y, 1e308), rtol=1e-11, atol=1e-323)
    assert reg.intercept_ == pytest.approx(y.mean())


@pytest.mark.parametrize("scale", [1e-200, 1e-150, 1e150, 1e200])
def test_wide_ridge_of_extreme_columns(scale):
    X, y = data(3, 5)
    reg = TorchLinearRegressor(alpha=0.1).fit(scale * X, y)
    np.testing.assert_allclose(reg.coef_, truth(scale * X, y, 0.1), rtol=1e-11)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("alpha", [1e-6, 0.1, 10.0])
@pytest.mark.parametrize("span", [1, 20, 80, 150, 160, 300])
def test_wide_ridge_with_weights_of_any_size(span, alpha, fit_intercept):
    X, y = data(4, 6)
    weight = 10.0 ** np.random.default_rng(span).uniform(-span, span, 4)
    reg = TorchLinearRegressor(alpha=alpha, fit_intercept=fit_intercept).fit(X, y, weight)
    np.testing.assert_allclose(reg.coef_, truth(X, y, alpha, weight, fit_intercept), rtol=1e-11)
    assert reg.status_.name == "OPTIMAL"


@pytest.mark.parametrize("lightest", [1e-50, 1e-150, 1e-200])
def test_coefficients_that_only_light_rows_see(lightest):
    X = np.kron(np.eye(3), [[1.0, 2.0]])
    weight = [1.0, lightest, 1e-3]
    reg = TorchLinearRegressor(alpha=0.1, fit_intercept=False).fit(X, [1.0, 2.0, 3.0], weight)
    np.testing.assert_allclose(reg.coef_, truth(X, [1.0, 2.0, 3.0], 0.1, weight, False), rtol=1e-12)


@pytest.mark.parametrize("shape", [(8, 2), (4, 6)])
def test_coefficients_beyond_float64_are_refused(shape):
    X, y = data(*shape)
    with pytest.raises(ValueError, match="exceed float64"):
        TorchLinearRegressor().fit(1e-300 * X, 1e200 * y)


@pytest.mark.parametrize("scale", [1e-200, 1e-170])
def test_long_coefficients_without_a_penalty_are_not_above_the_constant(scale):
    X, y = data(4, 6)
    near = TorchLinearRegressor().fit(X, y)
    reg = TorchLinearRegressor().fit(scale * X, y)
    centred = X - X.mean(0)
    expected = np.linalg.lstsq(centred, y - y.mean())[0]
    np.testing.assert_allclose(near.coef_, expected, rtol=1e-10)
    np.testing.assert_allclose(scale * reg.coef_, expected, rtol=1e-10)


@pytest.mark.parametrize("parameters", [{}, {"alpha": 0.1}, {"alpha": 0.1, "solver": "exact"}])
@pytest.mark.parametrize("constant", [1e160, -1e300])
def test_a_constant_column_of_any_size_is_left_out(constant, parameters):
    X, y = data()
    reg = TorchLinearRegressor(**parameters).fit(np.column_stack([np.full(len(y), constant), X]), y)
    np.testing.assert_allclose(reg.coef_, [0.0, *truth(X, y, parameters.get("alpha", 0.0))], rtol=1e-11)


@pytest.mark.parametrize("loss", ["huber", "absolute_error", "log_cosh"])
def test_other_losses_refuse_the_strongest_penalties(loss):
    X, y = data()
    assert np.abs(TorchLinearRegressor(loss=loss, alpha=1e299).fit(X, y).coef_).max() < 1e-298
    with pytest.raises(ValueError, match=r"alpha times penalty_factor is 1e\+308.*smaller"):
        TorchLinearRegressor(loss=loss, alpha=1e308).fit(X, y)
