"""A ridge beside columns that it leaves out, or that it alone holds: constants and dependent ones."""

import numpy as np
import pytest

from torchlinreg import TorchLinearRegressor

SOLVERS = ["auto", "exact", pytest.param("adam", marks=pytest.mark.exhaustive)]
ALPHA = 0.1


def data(n_samples=60):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n_samples, 2))
    return x, x @ [1.0, 2.0] + 3 + 0.1 * rng.standard_normal(n_samples)


def closed_form(X, y, factor, fit_intercept=True):
    """Least squares of rows and of the penalty's square root, by singular values."""
    if fit_intercept:
        X, y = X - X.mean(0), y - y.mean()
    rows = np.concatenate([X, np.diag(np.sqrt(ALPHA * len(y) * np.asarray(factor, dtype=float)))])
    return np.linalg.lstsq(rows, np.concatenate([y, np.zeros(X.shape[1])]), rcond=1e-12)[0]


def above(x):
    return np.column_stack([x[:, 0] > 0, x[:, 0] <= 0])


# Columns put before two ordinary ones, the factor of each, and how many the penalised system determines.
CASES = {
    "unpenalised ones": (lambda x: np.ones((len(x), 1)), [0], 2),
    "unpenalised 1e15": (lambda x: np.full((len(x), 1), 1e15), [0], 2),
    "penalised ones": (lambda x: np.ones((len(x), 1)), [1], 3),
    "penalised 1e15": (lambda x: np.full((len(x), 1), 1e15), [1], 3),
    "unpenalised copies": (lambda x: np.column_stack([above(x)[:, :1]] * 2), [0, 0], 3),
    "unpenalised dummies": (above, [0, 0], 3),
    "one of two dummies": (above, [0, 1], 4),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_answers_are_those_of_the_closed_form_without_alarm(case, solver):
    before, factor, rank = case
    x, y = data()
    X = np.column_stack([before(x), x]).astype(float)
    factor = [*factor, 1, 1]
    reg = TorchLinearRegressor(alpha=ALPHA, penalty_factor=factor, solver=solver).fit(X, y)
    truth = closed_form(np.where((X[0] == X).all(0), 0.0, X), y, factor)
    np.testing.assert_allclose(reg.coef_, truth, rtol=1e-9, atol=1e-11)
    assert reg.rank_ == rank
    if solver != "adam":
        assert reg.status_.name == ("OPTIMAL" if rank == X.shape[1] else "MINIMUM_NORM")


def test_training_takes_a_penalised_constant_column_to_zero():
    x, y = data()
    X = np.column_stack([np.ones(len(x)), x])
    reg = TorchLinearRegressor(alpha=ALPHA, solver="adam").fit(X, y, coef_init=[5.0, 0.0, 0.0])
    np.testing.assert_allclose(reg.coef_, [0.0, *closed_form(x, y, [1, 1])], atol=1e-9)


def test_a_ridge_below_the_rounding_of_the_data_is_told():
    x, y = data()
    X = np.column_stack([x[:, 0], x])
    with pytest.warns(UserWarning, match="Only about 0 digits"):
        TorchLinearRegressor(alpha=1e-40).fit(X, y)
