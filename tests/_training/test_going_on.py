"""Training goes on from given or earlier coefficients and by `partial_fit`."""

import functools
import pickle
import warnings

import numpy as np
import pytest
import torch
from reference.plain_loop import distance, fit_quietly, needs_closure, plain_loop
from reference.training import OWN, PROMISED, at_rate, overfitting, problem
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from torch.optim import SGD, Adam
from torch.optim import lr_scheduler as schedulers

from torchlinreg import TorchLinearRegressor
from torchlinreg._objective.solution import Status
from torchlinreg._training.optimizers import OPTIMIZERS


class ManualPasses:
    """Optimizer steps over one set of rows after another, by hand."""

    def __init__(self, make, alpha=0.0):
        self.linear = torch.nn.Linear(3, 1, dtype=torch.float64)
        with torch.no_grad():
            for p in self.linear.parameters():
                p.zero_()
        self.optimizer = make(list(self.linear.parameters()))
        self.alpha = alpha

    def step(self, X, y, weight=None):
        X, y = torch.tensor(X), torch.tensor(y)
        weight = torch.ones(len(y)) if weight is None else torch.tensor(weight)

        def closure():
            self.optimizer.zero_grad()
            squares = (self.linear(X)[:, 0] - y) ** 2
            loss = (weight * squares).sum() / weight.sum() / 2
            loss = loss + self.alpha / 2 * self.linear.weight.square().sum()
            loss.backward()
            return loss

        if needs_closure(self.optimizer):
            self.optimizer.step(closure)
        else:
            closure()
            self.optimizer.step()

    def assert_same(self, reg):
        np.testing.assert_allclose(reg.coef_, self.linear.weight.detach().numpy()[0], rtol=1e-10)
        np.testing.assert_allclose(reg.intercept_, float(self.linear.bias.detach()), rtol=1e-10)


class TestGoingOn:
    def test_warm_start_goes_on(self):
        X, y, _ = problem()
        expected = plain_loop(functools.partial(SGD, lr=1e-3), X, y, 30)
        reg = TorchLinearRegressor(solver="sgd", learning_rate=1e-3, max_iter=10, warm_start=True)
        for _ in range(3):
            fit_quietly(reg, X, y)
        np.testing.assert_allclose(reg.coef_, expected.coef[-1, 0], rtol=1e-10)
        cold = fit_quietly(clone(reg).set_params(warm_start=False), X, y)
        cold = fit_quietly(cold, X, y)
        np.testing.assert_allclose(cold.coef_, expected.coef[9, 0], rtol=1e-10)

    def test_warm_start_with_the_automatic_rate(self):
        X, y, _ = problem()
        reg = TorchLinearRegressor(solver="adam", max_iter=20, warm_start=True)
        distances = [fit_quietly(reg, X, y).status_.distance for _ in range(4)]
        assert distances == sorted(distances, reverse=True)
        assert distances[-1] < 0.1 * distances[0]

    def test_given_starts_win_over_the_fitted_ones(self):
        X, y, _ = problem()
        reg = TorchLinearRegressor(solver="sgd", learning_rate=1e-3, max_iter=3, warm_start=True)
        fit_quietly(reg, X, y)
        start = np.array([5.0, 5.0, 5.0])
        expected = plain_loop(
            functools.partial(SGD, lr=1e-3), X, y, 3, start=(start[None], [float(reg.intercept_)])
        )
        fit_quietly(reg, X, y, coef_init=start)
        np.testing.assert_allclose(reg.coef_, expected.coef[-1, 0], rtol=1e-10)

    @pytest.mark.parametrize("features", [2, 4])
    def test_warm_start_on_other_features_says_so(self, features):
        X, y, _ = problem()
        reg = TorchLinearRegressor(solver="sgd", warm_start=True).fit(X, y)
        with pytest.raises(ValueError, match="warm_start"):
            reg.fit(np.column_stack([X, X])[:, :features], y)

    @pytest.mark.every(5)
    @pytest.mark.parametrize("weighted", [True, False])
    @pytest.mark.parametrize("pickled", [True, False])
    @pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "rmsprop", "adagrad", "lbfgs", "own class"])
    def test_partial_fit_is_a_step_per_call(self, name, pickled, weighted):
        X, y, weight = problem(120)
        make, rate = OWN[name] if name in OWN else at_rate(name)
        reg = TorchLinearRegressor(solver=name if name in OPTIMIZERS else make, learning_rate=rate, alpha=0.1)
        manual = ManualPasses(functools.partial(make, lr=rate), alpha=0.1)
        calls = 4 if name == "lbfgs" else 12
        for rows in np.array_split(np.arange(120), calls):
            w = weight[rows] if weighted else None
            reg.partial_fit(X[rows], y[rows], sample_weight=w)
            manual.step(X[rows], y[rows], w)
            if pickled:
                reg = pickle.loads(pickle.dumps(reg))
        manual.assert_same(reg)
        assert reg.n_iter_ == calls
        assert reg.status_.kind is Status.ONE_PASS

    def test_partial_fit_in_batches(self):
        X, y, _ = problem(50)
        reg = TorchLinearRegressor(solver="adam", learning_rate=0.05, batch_size=8, shuffle=False)
        manual = ManualPasses(functools.partial(Adam, lr=0.05))
        for _ in range(2):
            reg.partial_fit(X, y)
            for start in range(0, 50, 8):
                manual.step(X[start : start + 8], y[start : start + 8])
        manual.assert_same(reg)

    def test_partial_fit_heeds_a_new_learning_rate(self):
        X, y, _ = problem()
        reg = TorchLinearRegressor(solver="sgd", learning_rate=1e-3).partial_fit(X, y)
        before = reg.coef_
        reg.set_params(learning_rate=1e-14).partial_fit(X, y)
        np.testing.assert_allclose(reg.coef_, before, rtol=1e-10)

    def test_fit_forgets_the_optimizer_of_partial_fit(self):
        X, y, _ = problem()
        reg = TorchLinearRegressor(solver="adam", learning_rate=0.05, max_iter=30)
        fresh = fit_quietly(clone(reg), X, y).partial_fit(X, y)
        for _ in range(5):
            reg.partial_fit(X, y)
        fit_quietly(reg, X, y).partial_fit(X, y)
        np.testing.assert_array_equal(reg.coef_, fresh.coef_)

    def test_partial_fit_goes_on_from_fit(self):
        X, y, _ = problem()
        reg = TorchLinearRegressor(solver="sgd", learning_rate=1e-3, max_iter=10, tol=0)
        fit_quietly(reg, X, y).partial_fit(X, y)
        expected = plain_loop(functools.partial(SGD, lr=1e-3), X, y, 11)
        np.testing.assert_allclose(reg.coef_, expected.coef[-1, 0], rtol=1e-10)
        assert reg.n_iter_ == 11

    @pytest.mark.parametrize("learning_rate", ["auto", 1e-3])
    def test_partial_fit_takes_weights_of_any_size(self, learning_rate):
        """Or refuses them by their name, but does not call it divergence."""
        X, y, weight = problem()
        reg = TorchLinearRegressor(solver="sgd", learning_rate=learning_rate)
        expected = clone(reg).partial_fit(X, y, sample_weight=weight)
        try:
            reg.partial_fit(X, y, sample_weight=weight * 1e307)
        except ValueError as error:
            assert "sample_weight" in str(error)  # noqa: PT017
        else:
            np.testing.assert_allclose(reg.coef_, expected.coef_, rtol=1e-10)

    @pytest.mark.parametrize("batch_size", [None, 8])
    @pytest.mark.parametrize("solver", PROMISED)
    def test_automatic_partial_fit_comes_closer_to_all_rows(self, solver, batch_size):
        X, y, _ = problem(120)
        reg = TorchLinearRegressor(solver=solver, batch_size=batch_size, random_state=0)
        distances = []
        for _ in range(4):
            for rows in np.array_split(np.arange(120), 4):
                reg.partial_fit(X[rows], y[rows])
            distances.append(reg.status_.distance)
        exact = TorchLinearRegressor().fit(X, y)
        found = distance(reg, exact.coef_, exact.intercept_, X, y)
        assert distances[-1] == pytest.approx(found, rel=1e-6, abs=1e-10)
        assert distances[-1] < max(0.5 * distances[0], 1e-12)

    def test_automatic_partial_fit_after_early_stopping_counts_all_rows(self):
        X, y = overfitting(60)
        reg = TorchLinearRegressor(solver="sgd", early_stopping=True, random_state=0).fit(X, y)
        for _ in range(60):
            reg.partial_fit(X, y, sample_weight=np.full(60, 1e-12))
        exact = TorchLinearRegressor().fit(X, y)
        np.testing.assert_allclose(reg.coef_, exact.coef_, rtol=1e-6)

    def test_partial_fit_refuses_other_targets(self):
        X, y, _ = problem()
        reg = TorchLinearRegressor(solver="sgd", learning_rate=1e-3).partial_fit(X, y)
        with pytest.raises(ValueError, match="y is 2-D with 2 columns, but it was 1-D"):
            reg.partial_fit(X, np.column_stack([y, y]))

    def test_pickled_and_cloned(self):
        X, y, _ = problem()
        reg = TorchLinearRegressor(
            solver=functools.partial(Adam, betas=(0.8, 0.99)),
            lr_scheduler=functools.partial(schedulers.ExponentialLR, gamma=0.99),
            batch_size=8,
            random_state=0,
        )
        fit_quietly(reg, X, y, X_val=X, y_val=y)
        other = pickle.loads(pickle.dumps(reg))
        np.testing.assert_array_equal(other.predict(X), reg.predict(X))
        np.testing.assert_array_equal(other.loss_curve_, reg.loss_curve_)
        assert other.status_ == reg.status_
        again = fit_quietly(clone(reg), X, y)
        np.testing.assert_array_equal(again.coef_, reg.coef_)

    @pytest.mark.exhaustive
    def test_grid_search_in_two_processes(self):
        X, y, _ = problem()
        grid = {"solver": ["sgd", Adam], "learning_rate": ["auto", 1e-3], "batch_size": [None, 16]}
        reg = TorchLinearRegressor(max_iter=20, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            one, two = (GridSearchCV(reg, grid, cv=2, n_jobs=n_jobs).fit(X, y) for n_jobs in (1, 2))
        assert two.best_params_ == one.best_params_
        assert two.best_params_["learning_rate"] == "auto"
        scores = [search.cv_results_["mean_test_score"] for search in (one, two)]
        np.testing.assert_allclose(*scores, rtol=1e-6)
