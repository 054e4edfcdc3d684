"""With `learning_rate="auto"` training ends at the optimum without tuning."""

import re

import numpy as np
import pytest
from reference.plain_loop import distance, fit_quietly, model_of
from reference.training import PROMISED, problem

from benchmarks.problems import all_problems
from torchlinreg import TorchLinearRegressor
from torchlinreg._objective.solution import Status
from torchlinreg._training.optimizers import OPTIMIZERS

PROBLEMS = {problem.name: problem for problem in all_problems()}


# Of the adaptive and the line-searching ones, some problems of each family.
SOME = [
    name
    for name in PROBLEMS
    if re.match(
        r"nist-(Norris|Pontius|Longley|Wampler3)|tutorial-[^-]*$|condition-1e(4|8)-l|offset-1e9|offset-mixed|"
        r"scale-1e-12_to_1e12|scale-all|scale-target|weighted-(zeros|1e-8)|targets-(units|constant)|"
        r"ridge-(alpha|units|wide|dup)|line|wide-5x12|wide-(targets|units)|deficient-(dup|const|all|by)|"
        r"perfect-(integers|offset)|float32-(plain|units)",
        name,
    )
]


def trained_distance(name, solver, **options):
    """The standardised distance from the exact solution, in units of the solution where that is larger."""
    truth = PROBLEMS[name]
    reg = TorchLinearRegressor(solver=solver, alpha=truth.alpha, fit_intercept=truth.fit_intercept)
    reg.set_params(**options)
    fit_quietly(reg, truth.X, truth.y, sample_weight=truth.sample_weight)
    coef = np.array([[float(value) for value in target] for target in truth.coef])
    intercept = np.array([float(value) for value in truth.intercept])
    data = truth.X, truth.y, truth.sample_weight
    size = distance(reg, np.zeros_like(coef), model_of(reg)[1] - 0 * intercept, *data)
    return distance(reg, coef, intercept, *data) / max(1.0, size), reg


def figure_due(name):
    """1e-8, but where the numbers themselves do not carry that: float32, and means of 1e9 with noise of 1."""
    if name == "float32-condition_1e6":
        return 1e-2
    return 1e-4 if name.startswith("float32") else 1e-6 if "1e9" in name else 1e-8


class TestWithoutTuning:
    @pytest.mark.every(3)
    @pytest.mark.parametrize("name", PROBLEMS)
    def test_sgd_on_every_problem(self, name):
        found, reg = trained_distance(name, "sgd")
        assert found < figure_due(name)
        assert reg.n_iter_ == len(reg.loss_curve_)

    @pytest.mark.every(5)
    @pytest.mark.parametrize("solver", ["adam", "lbfgs"])
    @pytest.mark.parametrize("name", SOME)
    def test_adam_and_lbfgs(self, name, solver):
        assert trained_distance(name, solver)[0] < figure_due(name)

    @pytest.mark.every(5)
    @pytest.mark.parametrize("solver", PROMISED)
    @pytest.mark.parametrize("name", SOME)
    def test_mini_batches_of_64(self, name, solver):
        """Those with fewer rows in batches of 8, for which nothing is promised, but it holds."""
        batch_size = 64 if len(PROBLEMS[name].X) > 64 else 8
        max_iter = {"adam": 400, "sgd": 200, "lbfgs": 50}[solver] if batch_size == 8 else None
        found, _ = trained_distance(
            name, solver, batch_size=batch_size, max_iter=max_iter, random_state=0, tol=1e-9
        )
        assert found < max(figure_due(name), 1e-6)

    @pytest.mark.every(2)
    @pytest.mark.parametrize("name", sorted(OPTIMIZERS))
    def test_every_name_ends_near_on_raw_data(self, name):
        """1e-2 is asked of none but those above; a decay of the weights keeps some away from the optimum."""
        X, y, _ = problem()
        X = X * [1, 1e6, 1e-6] + [1e3, 0, 0]
        reg = fit_quietly(TorchLinearRegressor(solver=name), X, y)
        exact = TorchLinearRegressor().fit(X, y)
        assert distance(reg, exact.coef_, exact.intercept_, X, y) < 1e-2

    @pytest.mark.parametrize("solver", PROMISED)
    def test_the_status_tells_the_distance(self, solver):
        X, y, weight = problem()
        exact = TorchLinearRegressor().fit(X, y, sample_weight=weight)
        reg = TorchLinearRegressor(solver=solver, max_iter=3, tol=0)
        fit_quietly(reg, X, y, sample_weight=weight)
        found = distance(reg, exact.coef_, exact.intercept_, X, y, weight)
        assert reg.status_.distance == pytest.approx(found, rel=1e-6, abs=1e-12)
        assert f"{reg.status_.distance:.1e}" in reg.status_.message

    def test_dependent_columns_keep_the_least_norm(self):
        X, y, _ = problem()
        X = np.column_stack([X, X[:, 0] + X[:, 1]])
        exact = TorchLinearRegressor().fit(X, y)
        for solver in PROMISED:
            reg = TorchLinearRegressor(solver=solver).fit(X, y)
            np.testing.assert_allclose(reg.coef_, exact.coef_, rtol=1e-8)
            assert reg.rank_ == 3
            assert reg.status_.kind is Status.MINIMUM_NORM

    @pytest.mark.parametrize("batch_size", [None, 4])
    @pytest.mark.parametrize("fit_intercept", [True, False])
    @pytest.mark.parametrize("solver", [*PROMISED, "rmsprop", "nadam"])
    def test_nothing_to_learn(self, solver, fit_intercept, batch_size):
        """Columns of zeros, and without an intercept no parameter at all that matters."""
        y = np.arange(20.0)
        reg = TorchLinearRegressor(solver=solver, fit_intercept=fit_intercept, batch_size=batch_size)
        reg.set_params(max_iter=5).fit(np.zeros((20, 2)), y)
        np.testing.assert_array_equal(reg.coef_, [0, 0])
        assert reg.intercept_ == (pytest.approx(y.mean()) if fit_intercept else 0)
        assert reg.n_iter_ >= 1

    @pytest.mark.parametrize("batch_size", [None, pytest.param(8, marks=pytest.mark.exhaustive)])
    @pytest.mark.parametrize("solver", PROMISED)
    def test_huge_and_tiny_weights(self, solver, batch_size):
        X, y, weight = problem()
        exact = TorchLinearRegressor().fit(X, y, sample_weight=weight)
        reg = TorchLinearRegressor(solver=solver, batch_size=batch_size, random_state=0)
        for factor in (1e-300, 1e300):
            reg.fit(X, y, sample_weight=weight * factor)
            np.testing.assert_allclose(reg.coef_, exact.coef_, rtol=1e-8)

    def test_a_start_near_the_optimum_is_no_worse(self):
        X, y, _ = problem()
        exact = TorchLinearRegressor().fit(X, y)
        for start in (exact.coef_, exact.coef_ + 1e-9, exact.coef_ * 1e6):
            reg = TorchLinearRegressor(solver="sgd").fit(X, y, coef_init=start)
            np.testing.assert_allclose(reg.coef_, exact.coef_, rtol=1e-8)
            assert reg.loss_curve_[-1] <= reg.loss_curve_[0]


def test_a_huge_offset_does_not_hide_the_optimum() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 3)) + 1e12
    y = (X - 1e12) @ [1.0, 2.0, 3.0] + 0.1 * rng.standard_normal(60)
    reg = TorchLinearRegressor(solver="sgd").fit(X, y)
    assert reg.status_.kind is Status.OPTIMAL
    assert reg.status_.distance <= 1e-12
    np.testing.assert_allclose(reg.coef_, TorchLinearRegressor().fit(X, y).coef_, rtol=1e-11)
