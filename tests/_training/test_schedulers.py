"""Schedulers of torch change the rate as in a loop written by hand."""

import functools

import numpy as np
import pytest
from reference.plain_loop import assert_follows, fit_quietly, plain_loop
from reference.training import at_rate, problem
from torch.optim import lr_scheduler as schedulers

from torchlinreg import TorchLinearRegressor


class Watching(schedulers.ReduceLROnPlateau):
    """Keeps the metrics it is given."""

    seen: list = []  # noqa: RUF012  (of all instances: the estimator makes its own)

    def step(self, metrics, *args, **kwargs):
        Watching.seen.append(float(metrics))
        super().step(metrics, *args, **kwargs)


SCHEDULERS = {
    "partial": functools.partial(schedulers.StepLR, step_size=7, gamma=0.5),
    "class": schedulers.ConstantLR,
    "name": "linearlr",
    "exponential": functools.partial(schedulers.ExponentialLR, gamma=0.95),
    "warm restarts": functools.partial(schedulers.CosineAnnealingWarmRestarts, T_0=5),
    "plateau": functools.partial(schedulers.ReduceLROnPlateau, patience=0, threshold=0.1),
    "callable": lambda optimizer: schedulers.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch)),
}


class TestSchedulers:
    @pytest.mark.every(3)
    @pytest.mark.parametrize("name", ["sgd", "adam"])
    @pytest.mark.parametrize("kind", SCHEDULERS)
    def test_follow_the_plain_loop(self, kind, name):
        X, y, _ = problem()
        make, rate = at_rate(name)
        scheduler = SCHEDULERS[kind]
        of_loop = schedulers.LinearLR if kind == "name" else scheduler
        expected = plain_loop(make, X, y, 70, make_scheduler=of_loop)
        constant = plain_loop(make, X, y, 70)
        assert not np.allclose(expected.coef, constant.coef, rtol=1e-6)
        reg = TorchLinearRegressor(solver=name, learning_rate=rate, lr_scheduler=scheduler)
        assert_follows(reg, expected, X, y)

    def test_plateau_is_told_the_loss(self):
        X, y, _ = problem()
        Watching.seen.clear()
        reg = TorchLinearRegressor(solver="adam", learning_rate=0.05, lr_scheduler=Watching, max_iter=30)
        fit_quietly(reg, X, y)
        np.testing.assert_array_equal(Watching.seen, reg.loss_curve_)

    @pytest.mark.parametrize("early_stopping", [True, False])
    def test_plateau_is_told_the_validation_loss(self, early_stopping):
        X, y, _ = problem()
        Watching.seen.clear()
        reg = TorchLinearRegressor(solver="adam", learning_rate=0.05, lr_scheduler=Watching, max_iter=30)
        reg.set_params(early_stopping=early_stopping)
        fit_quietly(reg, X[:40], y[:40], X_val=X[40:], y_val=y[40:])
        np.testing.assert_array_equal(Watching.seen, reg.validation_loss_curve_)
        assert not np.array_equal(reg.validation_loss_curve_, reg.loss_curve_)

    @pytest.mark.parametrize("batch_size", [None, 8])
    @pytest.mark.parametrize("solver", ["sgd", "adam"])
    def test_with_the_automatic_rate(self, solver, batch_size):
        X, y, _ = problem()
        scheduler = functools.partial(schedulers.ExponentialLR, gamma=0.99)
        reg = TorchLinearRegressor(solver=solver, lr_scheduler=scheduler, batch_size=batch_size)
        reg.set_params(random_state=0)
        assert fit_quietly(reg, X, y).status_.distance < 1e-4

    @pytest.mark.parametrize("factor", [5.0, 1e3])
    def test_one_that_drives_the_automatic_rate_too_high(self, factor):
        """The rate is cut, or at least the start is not left for something worse."""
        X, y, _ = problem()
        scheduler = functools.partial(schedulers.LambdaLR, lr_lambda=lambda epoch: factor)
        reg = fit_quietly(TorchLinearRegressor(solver="sgd", lr_scheduler=scheduler), X, y)
        assert np.isfinite(reg.coef_).all()
        assert reg.status_.distance <= 1.0

    @pytest.mark.parametrize(
        ("scheduler", "error", "words"),
        [
            ("nonsense", ValueError, r"lr_scheduler='nonsense' is not known.*'reducelronplateau'"),
            ("steplr", ValueError, "needs step_size.*functools.partial"),
            (schedulers.StepLR, ValueError, "needs step_size.*functools.partial"),
            (5, TypeError, "lr_scheduler=5 must be None, a name"),
            (lambda optimizer: None, TypeError, "NoneType, which is no scheduler"),
        ],
    )
    def test_refusals(self, scheduler, error, words):
        X, y, _ = problem()
        with pytest.raises(error, match=words):
            TorchLinearRegressor(solver="sgd", lr_scheduler=scheduler).fit(X, y)

    def test_names_that_are_offered_can_be_used(self):
        X, y, _ = problem()
        with pytest.raises(ValueError, match="is not known") as error:
            TorchLinearRegressor(solver="sgd", lr_scheduler="nonsense").fit(X, y)
        assert "'_" not in str(error.value)
