"""The first promise: at least 12 correct digits, on every problem whose exact solution is known."""

import warnings

import numpy as np
import pytest

from benchmarks.problems import Problem, all_problems
from torchlinreg import TorchLinearRegressor

Fitted = tuple[Problem, TorchLinearRegressor, list[str]]

PROBLEMS = {problem.name: problem for problem in all_problems()}


@pytest.fixture(scope="module", params=PROBLEMS)
def fitted(request: pytest.FixtureRequest) -> Fitted:
    """A problem, a regressor with default settings fitted to it, and the warnings that came."""
    problem = PROBLEMS[request.param]
    regressor = TorchLinearRegressor(alpha=problem.alpha, fit_intercept=problem.fit_intercept)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        regressor.fit(problem.X, problem.y, sample_weight=problem.sample_weight)
    return problem, regressor, [str(warning.message) for warning in caught]


def test_no_warning(fitted: Fitted) -> None:
    _, _, messages = fitted
    assert messages == []


def test_coefficients(fitted: Fitted) -> None:
    """12 digits; 7.2 for float32, whose one rounding at the end costs all beyond 7.22."""
    problem, regressor, _ = fitted
    digits = problem.digits(regressor.coef_, regressor.intercept_)
    assert digits.coef >= problem.digits_due


def test_intercept(fitted: Fitted) -> None:
    problem, regressor, _ = fitted
    digits = problem.digits(regressor.coef_, regressor.intercept_)
    assert digits.intercept >= problem.digits_due
    if not problem.fit_intercept:
        assert np.all(np.asarray(regressor.intercept_) == 0.0)


def test_rank(fitted: Fitted) -> None:
    problem, regressor, _ = fitted
    if problem.alpha > 0:
        pytest.skip("the rank of a penalised fit is not that of the columns")
    assert regressor.rank_ == problem.rank


def test_shapes_and_dtype(fitted: Fitted) -> None:
    problem, regressor, _ = fitted
    assert regressor.coef_.shape == problem.y.shape[1:] + problem.X.shape[1:]
    assert np.shape(regressor.intercept_) == problem.y.shape[1:]
    assert regressor.coef_.dtype == problem.X.dtype


def test_an_intercept_below_the_rounding_of_y_has_no_digits():
    """Standardised columns and targets leave one of 1e-19."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((200, 10)), rng.standard_normal(200)
    X, y = (X - X.mean(0)) / X.std(0), (y - y.mean()) / y.std()
    reg = TorchLinearRegressor(solver="exact").fit(X, y)
    assert abs(reg.intercept_) < 1e-15
    assert reg.status_.name == "OPTIMAL"
