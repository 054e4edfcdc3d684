"""Training with losses other than the squared error, and with penalties that need proximal steps."""

import functools
import re
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from reference.plain_loop import assert_follows, distance, fit_quietly, model_of, seed_of_shuffles
from reference.problems import three_features
from reference.proximal_loop import ProximalLoop
from scipy import sparse
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from torch.optim import SGD, Adam

from torchlinreg import TorchLinearRegressor, losses
from torchlinreg._data.rows import as_row_blocks
from torchlinreg._objective.penalty import elastic_net
from torchlinreg._objective.problem import Problem
from torchlinreg._training import optimizers
from torchlinreg._training.optimum import landscape_of
from torchlinreg.callbacks import Checkpoint, CoefficientHistory
from torchlinreg.losses import as_loss


def poisson(prediction, target):
    return torch.exp(prediction) - target * prediction


def pseudo_huber(prediction, target):
    return torch.sqrt(1 + (prediction - target) ** 2) - 1


LOSSES = {
    "huber": losses.Huber(scale=0.5),
    "log_cosh": losses.LogCosh(),
    "tube": losses.SquaredEpsilonInsensitive(0.3),
    "callable": pseudo_huber,
}
OPTIMIZERS = {
    "sgd": (SGD, 0.02),
    "momentum": (functools.partial(SGD, momentum=0.9), 0.01),
    "adam": (Adam, 0.05),
}
PENALTIES = {
    "none": {},
    "ridge": {"alpha": 0.1, "penalty_factor": [1.0, 0.0, 3.0]},
    "lasso": {"alpha": 0.2, "l1_ratio": 1.0},
    "elastic net": {"alpha": 0.2, "l1_ratio": 0.5, "penalty_factor": [1.0, 0.0, 3.0]},
    "positive": {"positive": True},
    "bounds": {"bounds": ([-0.5, None, -1.0], [0.5, 1.0, 0.5]), "alpha": 0.05, "l1_ratio": 0.3},
}
PENALTIES["bounds"]["bounds"] = ([-0.5, -np.inf, -1.0], [0.5, 1.0, 0.5])


problem = functools.partial(three_features, std=[1, 3, 0.3], mean=[1, 0, 1], noise="heavy tails")


class TestTrajectory:
    """With a number for learning_rate training is the plain loop on the raw data, to rounding."""

    @pytest.mark.every(5)
    @pytest.mark.parametrize(
        ("loss", "name", "penalty"),
        [("callable", "sgd", "none"), *((loss, name, "ridge") for loss in LOSSES for name in OPTIMIZERS)],
    )
    def test_full_batch(self, loss, name, penalty):
        X, y, weight = problem()
        make, rate = OPTIMIZERS[name]
        expected = ProximalLoop(
            functools.partial(make, lr=rate), LOSSES[loss], X, y, 70, weight=weight, **PENALTIES[penalty]
        )
        assert expected.loss[-1] < 0.9 * expected.loss[0]
        reg = TorchLinearRegressor(loss=LOSSES[loss], solver=make, learning_rate=rate, **PENALTIES[penalty])
        assert_follows(reg, expected, X, y, sample_weight=weight)

    @pytest.mark.parametrize("name", ["sgd", "adam"])
    @pytest.mark.parametrize("loss", LOSSES)
    def test_minibatches_of_several_targets(self, loss, name):
        X, y, weight = problem(n_targets=2)
        make, rate = OPTIMIZERS[name]
        seed = seed_of_shuffles(3)
        expected = ProximalLoop(
            functools.partial(make, lr=rate),
            LOSSES[loss],
            X,
            y,
            6,
            weight=weight,
            batch_size=16,
            seed=seed,
            alpha=0.05,
        )
        reg = TorchLinearRegressor(
            loss=LOSSES[loss], alpha=0.05, solver=name, learning_rate=rate, batch_size=16, random_state=3
        )
        assert_follows(reg, expected, X, y, sample_weight=weight)

    @pytest.mark.every(3)
    @pytest.mark.parametrize("batch_size", [None, 16])
    @pytest.mark.parametrize("loss", ["squared_error", "huber"])
    @pytest.mark.parametrize("penalty", ["lasso", "elastic net", "positive", "bounds"])
    def test_proximal_steps_of_gradient_descent(self, penalty, loss, batch_size):
        X, y, _ = problem()
        loss = LOSSES.get(loss, loss)
        seed = seed_of_shuffles(0)
        expected = ProximalLoop(
            functools.partial(SGD, lr=0.02),
            loss,
            X,
            y,
            40,
            batch_size=batch_size,
            seed=seed,
            **PENALTIES[penalty],
        )
        reg = TorchLinearRegressor(
            loss=loss,
            solver="sgd",
            learning_rate=0.02,
            batch_size=batch_size,
            random_state=0,
            **PENALTIES[penalty],
        )
        assert_follows(reg, expected, X, y)
        zeros = expected.coef[-1] == 0
        assert ((model_of(fit_quietly(reg.set_params(max_iter=40, tol=0), X, y))[0] == 0) == zeros).all()

    @pytest.mark.parametrize("penalty", ["none", "lasso"])
    def test_line_search(self, penalty):
        X, y, _ = problem()
        make = functools.partial(torch.optim.LBFGS, lr=0.5, line_search_fn="strong_wolfe")
        reg = TorchLinearRegressor(loss="log_cosh", max_iter=60, tol=0, **PENALTIES[penalty])
        optimum = clone(reg).set_params(max_iter=None, tol=1e-12).fit(X, y)
        fit_quietly(reg.set_params(solver=make), X, y)

        def objective(fitted):
            error = torch.from_numpy(fitted.predict(X) - y)
            return (
                float(losses.LogCosh().value(error, 0 * error).mean())
                + reg.alpha * np.abs(fitted.coef_).sum()
            )

        # Steps of line searches, each followed by a proximal step, may stall where rounding decides.
        assert objective(reg) <= (1 + 1e-5) * objective(optimum)

    def test_an_optimizer_of_functions_of_its_own_makes_the_same_proximal_steps(self):
        X, y, _ = problem()
        common = {"max_iter": 30, "tol": 0, **PENALTIES["lasso"]}
        plain = fit_quietly(TorchLinearRegressor(solver="sgd", learning_rate=0.02, **common), X, y)
        own = fit_quietly(TorchLinearRegressor(solver=lambda params: SGD(params, lr=0.02), **common), X, y)
        np.testing.assert_allclose(own.coef_, plain.coef_, atol=1e-13)

    def test_huber_keeps_the_estimated_scale(self):
        X, y, _ = problem()
        scale = TorchLinearRegressor(loss="huber").fit(X, y).scale_
        reg = fit_quietly(
            TorchLinearRegressor(loss="huber", solver="sgd", learning_rate=0.02, max_iter=40, tol=0), X, y
        )
        expected = ProximalLoop(functools.partial(SGD, lr=0.02), losses.Huber(scale=scale), X, y, 40)
        assert reg.scale_ == scale
        # The loss of the joint estimate is that of the scale over it, but for a constant.
        at_scale = ProximalLoop(functools.partial(SGD, lr=0.02 / scale), losses.Huber(scale=scale), X, y, 40)
        np.testing.assert_allclose(reg.coef_, at_scale.coef[-1][0], rtol=1e-9)
        assert np.abs(reg.coef_ - expected.coef[-1][0]).max() > 1e-4
        np.testing.assert_allclose(reg.loss_curve_, at_scale.loss / scale + scale / 2, rtol=1e-10)


def hubble(seed=0):
    """Velocities (km/s) and distances (Mpc) as raw as in the data, with a second column of other units."""
    rng = np.random.default_rng(seed)
    mpc = rng.uniform(0.03, 2, 60)
    velocity = -40 + 454 * mpc + 200 * rng.standard_normal(60)
    velocity[:5] += 2000
    return np.column_stack([mpc, 1e3 * mpc**2 + 50]), velocity


ROUGH = {
    "none": {},
    "ridge": {"alpha": 0.01},
    "lasso": {"alpha": 0.05, "l1_ratio": 1.0},
    "positive": {"positive": True},
}
SMOOTH = {
    "squared_error": losses.SquaredError(),
    "huber": losses.Huber(),
    "tube": losses.SquaredEpsilonInsensitive(50.0),
    "wide log cosh": lambda prediction, target: torch.log(torch.cosh((prediction - target) / 100)),
    "poisson": poisson,
}


class TestOptimum:
    """With learning_rate="auto" training ends at the optimum of every smooth loss and penalty."""

    @pytest.mark.every(3)
    @pytest.mark.parametrize("penalty", ROUGH)
    @pytest.mark.parametrize("loss", SMOOTH)
    def test_of_every_loss_and_penalty(self, loss, penalty):
        X, y = hubble()
        if loss == "poisson":
            y = np.random.default_rng(1).poisson(np.exp(0.3 + 0.8 * X[:, 0])).astype(float)
        reg = TorchLinearRegressor(loss=SMOOTH[loss], **ROUGH[penalty])
        exact = clone(reg).fit(X, y)
        reg.set_params(tol=1e-8)
        ways = [("sgd", None), ("adam", None), ("lbfgs", None), ("sgd", 16)]
        for solver, batch_size in ways if penalty in ("none", "lasso") else ways[:3]:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                fitted = clone(reg).set_params(solver=solver, batch_size=batch_size, random_state=0).fit(X, y)
            assert fitted.status_.distance < 1e-7, solver
            assert fitted.status_.kind.name == "OPTIMAL"
            assert distance(fitted, exact.coef_, exact.intercept_, X, y) < 1e-7
            assert ((fitted.coef_ == 0) == (exact.coef_ == 0)).all()
            if penalty == "positive":
                assert (fitted.coef_ >= 0).all()

    @pytest.mark.parametrize("penalty", ROUGH)
    def test_where_the_loss_is_flat_almost_everywhere(self, penalty):
        """log(cosh) of residuals of hundreds is about the absolute error: two rows have curvature."""
        X, y = hubble()
        reg = TorchLinearRegressor(loss="log_cosh", solver="sgd", **ROUGH[penalty]).fit(X, y)
        assert reg.status_.distance < 1e-9

    @pytest.mark.parametrize("epsilon", [50.0, 500.0])
    def test_line_searches_see_differences_below_rounding(self, epsilon):
        X, y = hubble()
        reg = TorchLinearRegressor(loss=losses.SquaredEpsilonInsensitive(epsilon), solver="lbfgs").fit(X, y)
        assert reg.status_.kind.name == "OPTIMAL"
        assert reg.status_.distance < 2e-12

    @pytest.mark.every(3)
    @pytest.mark.parametrize("n_epochs", [1, 3])
    @pytest.mark.parametrize("penalty", ROUGH)
    @pytest.mark.parametrize("loss", ["huber", "poisson"])
    def test_curves_are_of_the_model(self, loss, penalty, n_epochs):
        X, y = hubble()
        y = np.abs(y / 200).round() if loss == "poisson" else y
        reg = TorchLinearRegressor(
            loss=SMOOTH[loss], solver="adam", max_iter=n_epochs, tol=0, **ROUGH[penalty]
        )
        fit_quietly(reg, X, y, X_val=X, y_val=y)
        loss = losses.Huber(scale=reg.scale_) if loss == "huber" else as_loss(reg.loss)
        value = float(loss.value(torch.from_numpy(reg.predict(X)), torch.from_numpy(y)).mean())
        if isinstance(loss, losses.Huber):
            value = value / reg.scale_ + reg.scale_ / 2
        share = reg.l1_ratio
        cost = reg.alpha * (share * np.abs(reg.coef_) + (1 - share) / 2 * reg.coef_**2).sum()
        assert reg.validation_loss_curve_[-1] == pytest.approx(value, rel=1e-9)
        assert reg.loss_curve_[-1] == pytest.approx(value + cost, rel=1e-9)

    def test_bounds_are_reached_to_the_last_bit(self):
        X, y = hubble()
        for solver in ("sgd", "adam", "lbfgs"):
            reg = TorchLinearRegressor(loss="huber", solver=solver, bounds=([0.1, 0.1], [150.1, 0.11]))
            np.testing.assert_array_equal(reg.fit(X, y).coef_, [150.1, 0.11])
            free = reg.set_params(bounds=([0.1, 0.1], [150.1, 300.0])).fit(X, y).coef_
            assert free[0] == 150.1
            assert 0.1 < free[1] < 0.3

    @pytest.mark.parametrize("solver", ["adam", "lbfgs"])
    def test_exact_zeros_and_bounds_in_every_epoch(self, solver):
        pytest.importorskip("sklearn.callback", reason="callbacks need scikit-learn 1.9")
        X, y = hubble()
        history = CoefficientHistory()
        reg = TorchLinearRegressor(loss="huber", solver=solver, positive=True, max_iter=20)
        fit_quietly(reg.set_callbacks(history), X, y)
        assert (history.coef_ >= 0).all()
        assert (history.coef_ == 0).any()
        np.testing.assert_array_equal(history.coef_[-1], reg.coef_)

    def test_weights_targets_and_no_intercept(self):
        X, y, weight = problem(n_targets=3)
        for penalty in ROUGH.values():
            reg = TorchLinearRegressor(loss="huber", fit_intercept=False, **penalty)
            exact = clone(reg).fit(X, y, weight)
            fitted = clone(reg).set_params(solver="sgd").fit(X, y, weight)
            np.testing.assert_allclose(fitted.coef_, exact.coef_, atol=1e-8)
            np.testing.assert_allclose(fitted.scale_, exact.scale_)
            repeated = np.repeat(np.arange(len(X)), (2 * weight).astype(int))
            twice = clone(fitted).fit(X[repeated], y[repeated])
            np.testing.assert_allclose(twice.coef_, fitted.coef_, atol=1e-7)

    def test_many_correlated_features_by_one_proximal_step_each(self):
        """Beyond 256 features coordinates are single features, which takes more epochs."""
        rng = np.random.default_rng(0)
        X = rng.standard_normal((600, 300)) + 1e4
        y = X[:, 0] - X[:, 1] + rng.standard_normal(600)
        reg = TorchLinearRegressor(loss=losses.Huber(scale=1.0), alpha=0.05, l1_ratio=1.0, solver="adam")
        reg.fit(X, y)
        assert reg.status_.distance < 1e-7
        assert 2 <= np.count_nonzero(reg.coef_) < 150

    def test_fewer_rows_than_features(self):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((30, 60))
        y = X[:, 0] - 2 * X[:, 1] + 0.1 * rng.standard_normal(30)
        reg = TorchLinearRegressor(alpha=0.1, l1_ratio=1.0, solver="lbfgs")
        exact = clone(reg).set_params(solver="auto").fit(X, y)
        fitted = fit_quietly(reg, X, y)
        np.testing.assert_allclose(fitted.coef_, exact.coef_, atol=1e-4)
        smooth = TorchLinearRegressor(loss="log_cosh", alpha=0.1, solver="sgd")
        exact = clone(smooth).set_params(solver="auto").fit(X, y)
        np.testing.assert_allclose(smooth.fit(X, y).coef_, exact.coef_, atol=1e-7)

    def test_a_start_and_a_scheduler(self):
        X, y = hubble()
        exact = TorchLinearRegressor(loss="huber", alpha=0.05, l1_ratio=1.0).fit(X, y)
        reg = clone(exact).set_params(solver="sgd")
        reg.fit(X, y, coef_init=[300.0, 0.5], intercept_init=100.0)
        np.testing.assert_allclose(reg.coef_, exact.coef_, rtol=1e-8)
        close = clone(reg).fit(X, y, coef_init=exact.coef_, intercept_init=exact.intercept_)
        # It is there from the beginning, whether it takes an epoch to see that or not.
        assert reg.loss_curve_[0] > 1.001 * reg.loss_curve_[-1]
        assert all(loss == pytest.approx(reg.loss_curve_[-1], rel=1e-12) for loss in close.loss_curve_)
        reg.set_params(tol=1e-7)
        scheduled = clone(reg).set_params(
            lr_scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.999)
        )
        assert scheduled.fit(X, y).status_.distance < 1e-7


class TestRows:
    """How rows are held makes no difference."""

    @pytest.mark.parametrize("batch_size", [None, 20])
    @pytest.mark.parametrize("penalty", ["none", "lasso"])
    def test_kinds_weights_and_sizes(self, penalty, batch_size, monkeypatch):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((90, 6)) * (rng.random((90, 6)) < 0.05)
        X[:12] = np.repeat(np.eye(6), 2, axis=0)
        y = X @ [3.0, -1, 0, 0, 2, 0] + rng.standard_t(2, 90)
        reg = TorchLinearRegressor(
            loss=losses.Huber(scale=1.0), solver="sgd", batch_size=batch_size, random_state=0, max_iter=8,
            tol=0, alpha=0.01, l1_ratio=float(penalty == "lasso"),
        )  # fmt: skip
        expected = fit_quietly(clone(reg), X, y)
        of_sparse = fit_quietly(clone(reg), sparse.csr_array(X), y)
        np.testing.assert_allclose(of_sparse.coef_, expected.coef_, atol=1e-8)
        of_tensor = fit_quietly(clone(reg), torch.from_numpy(X), torch.from_numpy(y))
        np.testing.assert_array_equal(of_tensor.coef_, expected.coef_)
        monkeypatch.setattr("torchlinreg._training.row_epochs.KEPT_BYTES", 0)
        with config_context(working_memory=0.005):
            in_blocks = fit_quietly(clone(reg), X, y)
        np.testing.assert_allclose(in_blocks.coef_, expected.coef_, atol=1e-8)
        np.testing.assert_allclose(in_blocks.loss_curve_, expected.loss_curve_, rtol=1e-8)

    def test_float32(self):
        X, y = hubble()
        reg = TorchLinearRegressor(loss="huber", solver="adam", alpha=0.05, l1_ratio=1.0)
        exact = clone(reg).set_params(solver="auto").fit(X.astype(np.float32), y)
        fitted = reg.fit(X.astype(np.float32), y)
        assert fitted.coef_.dtype == np.float32
        np.testing.assert_allclose(fitted.coef_, exact.coef_, rtol=1e-6)

    @pytest.mark.every(5)
    @pytest.mark.cuda
    @pytest.mark.parametrize("batch_size", [None, 16])
    @pytest.mark.parametrize("rate", ["auto", 0.02])
    @pytest.mark.parametrize("penalty", PENALTIES)
    def test_cuda(self, penalty, rate, batch_size):
        X, y, weight = problem(n_targets=2)
        reg = TorchLinearRegressor(
            loss="huber", solver="sgd", learning_rate=rate, batch_size=batch_size, random_state=0,
            max_iter=20, tol=0, **PENALTIES[penalty],
        )  # fmt: skip
        expected = fit_quietly(clone(reg), X, y, weight)
        found = fit_quietly(clone(reg).set_params(device="cuda"), X, y, weight)
        np.testing.assert_allclose(found.coef_, expected.coef_, atol=1e-8)
        np.testing.assert_allclose(found.loss_curve_, expected.loss_curve_, rtol=1e-8)

    @pytest.mark.parametrize("batch_size", [None, 20])
    @pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
    def test_rows_of_weight_zero_are_none(self, solver, batch_size):
        X, y, weight = problem()
        y[weight == 0] = 1e6
        reg = TorchLinearRegressor(
            loss="huber", solver=solver, batch_size=batch_size, positive=True, random_state=0
        )
        keep = weight > 0
        fitted = fit_quietly(clone(reg).set_params(max_iter=6), X, y, weight)
        expected = fit_quietly(clone(reg).set_params(max_iter=6), X[keep], y[keep], weight[keep])
        np.testing.assert_allclose(fitted.coef_, expected.coef_, atol=1e-9)


class TestLandscape:
    @pytest.mark.parametrize("loss", ["huber", "callable", "squared_error"])
    @pytest.mark.parametrize("penalty", PENALTIES)
    def test_excess_is_the_difference_of_the_objectives(self, loss, penalty):
        X, y, weight = problem(n_targets=2)
        reg = TorchLinearRegressor(loss=LOSSES.get(loss, loss), **PENALTIES[penalty])
        asked = Problem(
            as_row_blocks(X, y, weight), reg._problem_of(as_row_blocks(X, y)).penalty, loss=as_loss(reg.loss)
        )
        landscape = landscape_of(asked, 1e-12)
        rng = np.random.default_rng(0)
        lower, upper = asked.penalty.lower, asked.penalty.upper
        optimum, at = landscape.optimum, landscape.geometry.solution.intercept

        def objective(coef, intercept):
            prediction = torch.from_numpy(X @ coef.T + intercept)
            values = asked.loss.value(prediction, torch.from_numpy(y)).numpy()
            return np.average(values, axis=0, weights=weight).sum() + asked.penalty.value(coef).sum()

        assert landscape.geometry.floor == pytest.approx(objective(optimum, at), rel=1e-12)
        for size in (10.0, 1.0, 1e-2):
            coef = np.clip(optimum + size * rng.standard_normal(optimum.shape), lower, upper)
            intercept = at + size
            mean_error = intercept - at + (coef - optimum) @ landscape.geometry.center
            excess = landscape.excess((coef - optimum)[None], mean_error[None])
            assert excess[0].sum() == pytest.approx(
                objective(coef, intercept) - objective(optimum, at), rel=1e-6
            )

    def test_excess_has_digits_where_objectives_have_none(self):
        X, y, _ = problem()
        landscape = landscape_of(
            Problem(as_row_blocks(X, y), elastic_net(0, 0, 3), loss=losses.LogCosh()), 1e-12
        )
        change = np.array([1.0, -2.0, 0.5])
        sizes = 10.0 ** -np.arange(2, 13)
        excess = landscape.excess(sizes[:, None, None] * change, 0.0)[:, 0] / sizes**2
        np.testing.assert_allclose(excess, excess[-1], rtol=0.05)


class TestFlatOptimum:
    """Many models put all rows into the tube of the squared epsilon-insensitive loss: each is an optimum."""

    @staticmethod
    def rows(epsilon, scale=(1.0, 1.0), mean=(0.0, 0.0)):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((30, 2)) * scale + mean
        return X, X @ [3.0, 2.0] + 5 + 0.9 * rng.uniform(-epsilon, epsilon, 30)

    @staticmethod
    def beyond(reg, X, y, epsilon):
        """How far the farthest row is out of the tube, in spreads of y."""
        return ((np.abs(reg.predict(X) - y) - epsilon) / y.std(0)).max()

    @pytest.mark.every(3)
    @pytest.mark.parametrize("batch_size", [None, 7])
    @pytest.mark.parametrize("epsilon", [0.01, 0.5, 3.0])
    @pytest.mark.parametrize("data", [{}, {"scale": (1.0, 100.0), "mean": (0.0, 1000.0)}])
    @pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
    def test_training_ends_in_the_tube(self, solver, data, epsilon, batch_size):
        X, y = self.rows(epsilon, **data)
        loss = losses.SquaredEpsilonInsensitive(epsilon)
        reg = TorchLinearRegressor(loss=loss, solver=solver, batch_size=batch_size, random_state=0, tol=1e-10)
        reg.fit(X, y)  # without a warning
        assert reg.status_.distance < 1e-6
        assert self.beyond(reg, X, y, epsilon) < 1e-6

    @pytest.mark.parametrize("learning_rate", ["auto", 0.1])
    @pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
    def test_a_start_in_the_tube_is_an_optimum(self, solver, learning_rate):
        X, y = self.rows(100.0)
        loss = losses.SquaredEpsilonInsensitive(200.0)
        reg = TorchLinearRegressor(loss=loss, solver=solver, learning_rate=learning_rate).fit(X, y)
        assert (reg.status_.name, reg.status_.distance, reg.n_iter_) == ("OPTIMAL", 0.0, 1)
        assert self.beyond(reg, X, y, 200.0) < 0

    def test_other_targets_are_judged_by_their_own_optimum(self):
        X, y = self.rows(0.5)
        far = np.column_stack([y, 10 * np.random.default_rng(1).standard_normal(30)])
        loss = losses.SquaredEpsilonInsensitive(0.5)
        both = TorchLinearRegressor(loss=loss, solver="adam").fit(X, far)
        alone = TorchLinearRegressor(loss=loss).fit(X, far[:, 1])
        assert both.status_.distance < 1e-6
        assert self.beyond(both, X, far, 0.5)  # of the second target
        assert ((np.abs(both.predict(X) - far) - 0.5)[:, 0]).max() < 1e-6
        np.testing.assert_allclose(both.coef_[1], alone.coef_, rtol=1e-9)


@pytest.mark.parametrize("loss", ["squared_error", "log_cosh", losses.Huber(scale=1.0)])
@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
class TestExtremes:
    @pytest.mark.every(3)
    @pytest.mark.parametrize("learning_rate", ["auto", 0.1])
    @pytest.mark.parametrize("size", [1e-300, 1e-165, 1e165, 1e300])
    @pytest.mark.parametrize("of", ["X", "a column", "y", "wide X"])
    def test_units_whose_squares_leave_float64_are_refused(self, solver, loss, of, size, learning_rate):
        X = np.random.default_rng(0).standard_normal((30, 2))
        y = X @ [1.0, 2.0]
        if of == "y":
            y = y * size
        elif of == "wide X":
            X, y = X.T * size, y[:2]
        else:
            X = X * (size if of == "X" else [1.0, size])
        reg = TorchLinearRegressor(loss=loss, solver=solver, learning_rate=learning_rate)
        with pytest.raises(
            ValueError, match=r"X or y holds columns beyond 1e-140 to 1e\+140.*ordinary units"
        ):
            reg.fit(X, y)

    @pytest.mark.parametrize("batch_size", [None, 1])
    @pytest.mark.parametrize(
        "X", [[[1.0, 2.0]], [[1.0, 2.0]] * 4, [[7.0]] * 4], ids=["one row", "equal rows", "constant column"]
    )
    def test_rows_without_spread_get_the_best_constant(self, solver, loss, X, batch_size):
        y = np.array([3.0, 4.0, 3.5, 6.5])[: len(X)]
        reg = TorchLinearRegressor(loss=loss, solver=solver, batch_size=batch_size).fit(X, y)
        best = TorchLinearRegressor(loss=loss).fit(np.zeros((len(X), 1)), y).intercept_
        np.testing.assert_allclose(reg.predict(X), best, rtol=1e-7)


@pytest.mark.parametrize("tol", [0, 1e-12])
@pytest.mark.parametrize("loss", ["squared_error", "log_cosh", losses.Huber(scale=1.0)])
@pytest.mark.parametrize("solver", sorted(optimizers.OPTIMIZERS))
@pytest.mark.every(3)
def test_training_that_begins_at_the_optimum_stays(solver, loss, tol):
    y = np.array([3.0, 4.0, 3.5, 6.5])
    reg = TorchLinearRegressor(loss=loss, solver=solver, tol=tol, max_iter=12).fit(np.full((4, 1), 7.0), y)
    best = TorchLinearRegressor(loss=loss).fit(np.zeros((4, 1)), y).intercept_
    np.testing.assert_allclose(reg.predict([[7.0]]), best, rtol=1e-7)
    assert reg.n_iter_ == len(reg.loss_curve_) >= 1


class TestEnds:
    def test_early_stopping_by_the_same_loss(self):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((80, 40))
        y = X[:, 0] + rng.standard_t(2, 80)
        X_val = rng.standard_normal((200, 40))
        y_val = X_val[:, 0] + rng.standard_t(2, 200)
        reg = TorchLinearRegressor(
            loss=losses.Huber(scale=1.0), solver="adam", learning_rate=0.02, early_stopping=True,
            alpha=0.01, l1_ratio=1.0, max_iter=400, tol=1e-4,
        ).fit(X, y, X_val=X_val, y_val=y_val)  # fmt: skip
        assert reg.status_.kind.name == "EARLY_STOPPED"
        prediction = torch.from_numpy(reg.predict(X_val))
        loss = float(reg.loss.value(prediction, torch.from_numpy(y_val)).mean())
        curve = reg.validation_loss_curve_
        assert np.abs(curve - loss).min() < 1e-12
        assert curve.min() >= loss * (1 - 1e-4)
        assert curve[-1] > loss

    @pytest.mark.parametrize("sign", [-1, 1])
    def test_early_stopping_with_losses_of_any_sign(self, sign):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((200, 3))
        y = rng.poisson(np.exp(1 + X @ [0.5, 0.3, 0.0])).astype(float)
        tol = 1e-3
        reg = TorchLinearRegressor(
            loss=lambda p, t: poisson(p, t) + 10.0 * sign, solver="sgd", learning_rate=0.02,
            early_stopping=True, random_state=0, tol=tol,
        ).fit(X, y)  # fmt: skip
        assert reg.status_.kind.name == "EARLY_STOPPED"
        curve = reg.validation_loss_curve_
        assert (sign * curve[1:] > 0).all()
        lowest, idle, epochs = curve[0], 0, 1
        while idle < reg.n_iter_no_change:
            falls = curve[epochs] < lowest - tol * abs(lowest)
            lowest, idle = (curve[epochs], 0) if falls else (lowest, idle + 1)
            epochs += 1
        assert epochs == reg.n_iter_

    @pytest.mark.parametrize("loss", ["huber", poisson])
    def test_divergence_is_an_error(self, loss):
        X, y, _ = problem()
        y = np.abs(y).round() if loss is poisson else y
        reg = TorchLinearRegressor(loss=loss, solver="sgd", learning_rate=1e9, max_iter=50)
        with pytest.raises(FloatingPointError, match=r"diverged.*is stable below \d"):
            reg.fit(X, y)

    def test_the_rate_that_the_error_names_is_stable(self):
        X, y, _ = problem()
        reg = TorchLinearRegressor(loss=pseudo_huber, solver="sgd", learning_rate=1e8, max_iter=300)
        with pytest.raises(FloatingPointError) as error:
            reg.fit(X, y)
        stable = float(re.search(r"stable below ([\d.e+-]+)\.", str(error.value)).group(1))
        curve = fit_quietly(reg.set_params(learning_rate=0.5 * stable), X, y).loss_curve_
        assert (np.diff(curve) <= 1e-12).all()

    def test_too_few_epochs_are_told(self):
        X, y = hubble()
        with pytest.warns(ConvergenceWarning, match="max_iter epochs"):
            reg = TorchLinearRegressor(loss="huber", solver="adam", max_iter=5).fit(X, y)
        assert reg.status_.distance > 1e-3

    def test_a_scale_of_zero_is_refused(self):
        X, y, _ = problem()
        y = X @ [1.0, 2.0, 3.0]
        y[:3] += 100
        with pytest.raises(ValueError, match=r"scale of 0.*solver='auto'.*number for scale"):
            TorchLinearRegressor(loss="huber", solver="sgd").fit(X, y)

    @pytest.mark.parametrize("loss", ["quantile", "absolute_error", losses.EpsilonInsensitive(0.1)])
    @pytest.mark.parametrize("method", ["fit", "partial_fit"])
    def test_losses_without_gradient_are_refused(self, loss, method):
        X, y, _ = problem()
        reg = TorchLinearRegressor(loss=loss, solver="sgd", learning_rate=0.1)
        with pytest.raises(ValueError, match=r"gradients.*(does not serve|does not have).*solver='auto'"):
            getattr(reg, method)(X, y)


@pytest.mark.skipif(find_spec("sklearn.callback") is None, reason="callbacks need scikit-learn 1.9")
class TestResume:
    @pytest.mark.parametrize("rate", ["auto", 0.02])
    @pytest.mark.parametrize("penalty", ["none", "lasso"])
    @pytest.mark.parametrize("batch_size", [None, 16])
    def test_goes_on_bit_by_bit(self, rate, penalty, batch_size, tmp_path):
        X, y, weight = problem()
        reg = TorchLinearRegressor(
            loss="huber",
            solver="adam",
            learning_rate=rate,
            batch_size=batch_size,
            random_state=0,
            tol=0,
            max_iter=12,
            **PENALTIES[penalty],
        )
        whole = fit_quietly(clone(reg), X, y, weight)
        path = tmp_path / "state.pt"
        interrupted = clone(reg).set_callbacks(Checkpoint(path, every=5))
        fit_quietly(interrupted, X, y, weight)
        resumed = fit_quietly(clone(reg), X, y, weight, resume_from=path)
        np.testing.assert_array_equal(resumed.coef_, whole.coef_)
        assert resumed.intercept_ == whole.intercept_
        np.testing.assert_array_equal(resumed.loss_curve_, whole.loss_curve_)

    @pytest.mark.parametrize(
        "other",
        [
            {"loss": "log_cosh"},
            {"loss": losses.Huber(scale=2.0)},
            {"loss": pseudo_huber},
            {"l1_ratio": 0.5},
            {"alpha": 0.1},
            {"positive": True},
        ],
        ids=["loss", "instance", "function", "l1_ratio", "alpha", "positive"],
    )
    def test_another_objective_is_refused(self, other, tmp_path):
        X, y, _ = problem()
        reg = TorchLinearRegressor(loss="huber", solver="adam", alpha=0.2, l1_ratio=1.0, max_iter=5)
        path = tmp_path / "state.pt"
        fit_quietly(clone(reg).set_callbacks(Checkpoint(path, every=2)), X, y)
        with pytest.raises(ValueError, match="checkpoint was written with"):
            clone(reg).set_params(**other).fit(X, y, resume_from=path)


class TestPartialFit:
    @pytest.mark.every(3)
    @pytest.mark.parametrize("penalty", ["none", "ridge", "lasso", "positive"])
    @pytest.mark.parametrize("loss", LOSSES)
    def test_is_one_pass_of_the_loop(self, loss, penalty):
        X, y, _ = problem()
        make = functools.partial(SGD, lr=0.02)
        expected = ProximalLoop(make, LOSSES[loss], X, y, 1, batch_size=10, **PENALTIES[penalty])
        reg = TorchLinearRegressor(
            loss=LOSSES[loss],
            solver="sgd",
            learning_rate=0.02,
            batch_size=10,
            shuffle=False,
            **PENALTIES[penalty],
        )
        for part in (slice(0, 30), slice(30, 50)):
            reg.partial_fit(X[part], y[part])
        np.testing.assert_allclose(reg.coef_, expected.coef[0, 0], atol=1e-12)
        assert ((reg.coef_ == 0) == (expected.coef[0, 0] == 0)).all()
        assert reg.n_iter_ == 2

    def test_bounds_with_any_optimizer(self):
        X, y, _ = problem()
        reg = TorchLinearRegressor(positive=True, solver="adam", learning_rate=0.05, batch_size=10)
        for _ in range(30):
            reg.partial_fit(X, y)
        assert (reg.coef_ >= 0).all()
        assert reg.coef_[1] == 0

    @pytest.mark.parametrize(
        ("parameters", "words"),
        [
            ({"loss": "huber", "learning_rate": 0.1}, "number for scale"),
            ({"loss": "log_cosh"}, "number for learning_rate"),
            ({"alpha": 0.1, "l1_ratio": 1.0}, "l1 penalty.*number for learning_rate"),
            ({"positive": True}, "positive.*number for learning_rate"),
        ],
    )
    def test_refusals_say_what_to_do(self, parameters, words):
        X, y, _ = problem()
        with pytest.raises(ValueError, match=words):
            TorchLinearRegressor(solver="sgd", **parameters).partial_fit(X, y)

    def test_divergence_leaves_the_model(self):
        X, y, _ = problem()
        reg = TorchLinearRegressor(loss=pseudo_huber, solver="sgd", learning_rate=0.02).partial_fit(X, y)
        before = reg.coef_.copy()
        with pytest.raises(FloatingPointError, match="stable below"):
            reg.set_params(learning_rate=1e12).partial_fit(X, y)
        np.testing.assert_array_equal(reg.coef_, before)

    def test_a_loss_that_is_not_elementwise(self):
        X, y, _ = problem()
        reg = TorchLinearRegressor(loss=lambda p, t: (p - p.mean() - t) ** 2, solver="sgd", learning_rate=0.1)
        with pytest.raises(ValueError, match="elementwise"):
            reg.partial_fit(X, y)
