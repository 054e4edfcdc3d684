"""Training that diverges raises an error, or is slowed down with an automatic rate."""

import copy
import functools
import re

import numpy as np
import pytest
from reference.plain_loop import fit_quietly
from reference.training import PROMISED, problem
from torch.optim import SGD

from torchlinreg import TorchLinearRegressor


def stable_rate(error):
    return float(re.search(r"stable below ([-+.e\d]+\d)", str(error.value)).group(1))


DIVERGENT = {
    "plain": {},
    "weighted": {"weighted": True},
    "targets": {"n_targets": 3},
    "ridge": {"alpha": 10.0},
    "no intercept": {"fit_intercept": False},
    "offset": {"offset": 1e4},
}


class TestDivergence:
    @pytest.mark.parametrize("kind", DIVERGENT)
    def test_the_error_names_the_stable_rate(self, kind):
        options = dict(DIVERGENT[kind])
        X, y, weight = problem(n_targets=options.pop("n_targets", None))
        X[:, 1] += options.pop("offset", 0)
        fit = {"sample_weight": weight} if options.pop("weighted", False) else {}
        reg = TorchLinearRegressor(solver="sgd", learning_rate=1e3, max_iter=3000, tol=0, **options)
        with pytest.raises(FloatingPointError, match=r"learning rate 1000 is too large.*'auto'") as error:
            reg.fit(X, y, **fit)
        rate = stable_rate(error)
        below = fit_quietly(reg.set_params(learning_rate=0.9 * rate), X, y, **fit)
        assert below.loss_curve_[-1] < below.loss_curve_[0]
        with pytest.raises(FloatingPointError) as error:
            reg.set_params(learning_rate=1.2 * rate).fit(X, y, **fit)
        assert stable_rate(error) == pytest.approx(rate)

    def test_wide_data_too(self):
        rng = np.random.default_rng(0)
        X, y = rng.standard_normal((6, 15)) + 0.5, rng.standard_normal(6)
        reg = TorchLinearRegressor(solver="sgd", learning_rate=1e3, max_iter=3000, tol=0)
        with pytest.raises(FloatingPointError) as error:
            reg.fit(X, y)
        fit_quietly(reg.set_params(learning_rate=0.9 * stable_rate(error)), X, y)
        with pytest.raises(FloatingPointError):
            reg.set_params(learning_rate=1.2 * stable_rate(error)).fit(X, y)

    @pytest.mark.every(3)
    @pytest.mark.parametrize("batch_size", [None, 8, 20])
    @pytest.mark.parametrize("solver", [*PROMISED, "rmsprop", "adagrad", "rprop"])
    def test_finite_or_an_error(self, solver, batch_size):
        X, y, _ = problem()
        for rate in (1e-300, 1e-3, 0.1, 1.0, 1e3, 1e10, 1e150, 1e300):
            reg = TorchLinearRegressor(solver=solver, learning_rate=rate, batch_size=batch_size, max_iter=15)
            try:
                fit_quietly(reg, X, y)
            except FloatingPointError as error:
                assert "learning" in str(error)  # noqa: PT017  (one of both has to hold)
            else:
                assert np.isfinite(reg.coef_).all()
                assert np.isfinite(reg.loss_curve_).all()
                assert reg.loss_curve_[-1] < 1e6 * (y**2).mean()

    @pytest.mark.parametrize("solver", PROMISED)
    def test_an_earlier_model_survives(self, solver):
        X, y, _ = problem()
        reg = TorchLinearRegressor(solver=solver).fit(X, y)
        before = reg.predict(X)
        with pytest.raises(FloatingPointError):
            reg.set_params(solver="sgd", learning_rate=1e3).fit(X, y)
        np.testing.assert_array_equal(reg.predict(X), before)
        with pytest.raises(FloatingPointError):
            reg.partial_fit(X * 1e9, y)
        np.testing.assert_array_equal(reg.predict(X), before)

    @pytest.mark.every(5)
    @pytest.mark.parametrize("batch_size", [None, 8])
    @pytest.mark.parametrize("momentum", [0.99, 0.999, 0.99999])
    def test_auto_with_huge_momentum(self, momentum, batch_size):
        X, y, _ = problem()
        for nesterov in (True, False):
            make = functools.partial(SGD, momentum=momentum, nesterov=nesterov)
            reg = fit_quietly(TorchLinearRegressor(solver=make, batch_size=batch_size, random_state=0), X, y)
            assert np.isfinite(reg.coef_).all()
            assert reg.status_.distance < 1.0

    @pytest.mark.parametrize("solver", ["sgd", "adam"])
    @pytest.mark.parametrize("batch_size", [None, 7])
    def test_a_perfect_fit_is_no_divergence(self, solver, batch_size):
        """The loss at the start is 0 but for rounding, and so is any multiple of it."""
        X, _, _ = problem(30)
        coef = np.array([1.0, 2.0, 3.0])
        reg = TorchLinearRegressor(solver=solver, learning_rate=0.01, batch_size=batch_size, max_iter=30)
        fit_quietly(reg, X, X @ coef + 1, coef_init=coef, intercept_init=1.0)
        np.testing.assert_allclose(reg.coef_, coef, atol=0.1)
        for _ in range(3):
            reg.partial_fit(X, X @ coef + 1)
        np.testing.assert_allclose(reg.coef_, coef, atol=0.1)

    def test_an_unlucky_batch_of_partial_fit_is_an_error(self):
        X, y, _ = problem()
        reg = TorchLinearRegressor(solver="sgd", learning_rate=1e-3).partial_fit(X, y)
        before = copy.deepcopy(reg)
        with pytest.raises(FloatingPointError, match="The model is as it was before the call"):
            reg.partial_fit(X * 1e9, y)
        np.testing.assert_array_equal(reg.coef_, before.coef_)

    @pytest.mark.parametrize("solver", [functools.partial(SGD, momentum=0.9), "adam"], ids=["sgd", "adam"])
    def test_the_optimizer_is_as_it_was_before_a_failed_call(self, solver):
        X, y, _ = problem()
        reg = TorchLinearRegressor(solver=solver, learning_rate=1e-3).partial_fit(X, y)
        expected = copy.deepcopy(reg).partial_fit(X, y)
        with pytest.raises(FloatingPointError):
            reg.set_params(learning_rate=1e12).partial_fit(X * 1e3, y)
        reg.set_params(learning_rate=1e-3).partial_fit(X, y)
        np.testing.assert_array_equal(reg.coef_, expected.coef_)
