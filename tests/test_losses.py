"""Losses: their values and derivatives, what an estimator takes as one, and what a new one needs."""

import pickle
import re
from dataclasses import FrozenInstanceError, dataclass

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize
from scipy.stats import norm
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from torchlinreg import TorchLinearRegressor, TorchLinearRegressorCV, losses
from torchlinreg._objective.solution import Status
from torchlinreg.losses import LOSSES, Huber, Loss

OBJECTS = [
    losses.SquaredError(),
    losses.Huber(epsilon=1.2),
    losses.Huber(epsilon=0.7, scale=1.5),
    losses.AbsoluteError(),
    losses.Quantile(0.2),
    losses.EpsilonInsensitive(0.3),
    losses.EpsilonInsensitive(0.0),
    losses.SquaredEpsilonInsensitive(0.3),
    losses.LogCosh(),
    losses.CallableLoss(lambda prediction, target: torch.exp(prediction) - target * prediction),
]
IDS = [re.sub(r" at 0x\w+", "", repr(loss)) for loss in OBJECTS]
FORMULAS = {
    "squared_error": lambda r: r**2 / 2,
    "huber": lambda r: np.where(np.abs(r) <= 1.35, r**2 / 2, 1.35 * np.abs(r) - 1.35**2 / 2),
    "absolute_error": np.abs,
    "quantile": lambda r: 0.5 * np.abs(r),
    "epsilon_insensitive": lambda r: np.maximum(0, np.abs(r) - 0.1),
    "squared_epsilon_insensitive": lambda r: np.maximum(0, np.abs(r) - 0.1) ** 2 / 2,
    "log_cosh": lambda r: np.log(np.cosh(r)),
}


def heavy_tailed(n_samples=60, n_features=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, n_features)) * [1.0, 100.0, 0.01][:n_features] + 5
    return X, X @ [1.0, -0.02, 50.0][:n_features] + 3 + rng.standard_t(2, n_samples)


class TestFormulas:
    @pytest.mark.parametrize("name", LOSSES)
    def test_value_at_defaults(self, name):
        residual = np.linspace(-4, 4, 81)
        zeros = torch.zeros(len(residual), dtype=torch.float64)
        value = LOSSES[name]().value(torch.from_numpy(residual), zeros).numpy()
        np.testing.assert_allclose(value, FORMULAS[name](residual), atol=1e-15)

    def test_quantile_weighs_what_is_too_low_by_the_quantile(self):
        prediction, target = torch.tensor([0.0, 0.0]), torch.tensor([2.0, -2.0])
        assert losses.Quantile(0.9).value(prediction, target).tolist() == pytest.approx([1.8, 0.2])

    @pytest.mark.parametrize("loss", OBJECTS, ids=IDS)
    def test_derivatives_are_those_of_the_value(self, loss):
        # Off the kinks, which lie at multiples of 0.05.
        prediction = torch.linspace(-3, 3, 61, dtype=torch.float64) + 0.0237
        target = torch.zeros_like(prediction) + 0.5
        h = 1e-6
        slope = (loss.value(prediction + h, target) - loss.value(prediction - h, target)) / (2 * h)
        torch.testing.assert_close(loss.derivative(prediction, target), slope, rtol=0, atol=2e-8)
        bend = (loss.derivative(prediction + h, target) - loss.derivative(prediction - h, target)) / (2 * h)
        torch.testing.assert_close(loss.curvature(prediction, target), bend, rtol=0, atol=2e-8)

    @pytest.mark.parametrize("loss", OBJECTS, ids=IDS)
    def test_derivative_never_falls(self, loss):
        prediction = torch.linspace(-3, 3, 601, dtype=torch.float64)
        assert (loss.derivative(prediction, torch.zeros_like(prediction)).diff() >= -1e-15).all()

    def test_log_cosh_neither_overflows_nor_cancels(self):
        residual = torch.tensor([1e-9, 1e-4, 1.0001e-4, 1e3, 1e300], dtype=torch.float64)
        value = losses.LogCosh().value(residual, torch.zeros_like(residual))
        expected = [5e-19, 5e-9, 5.0010000e-9, 1e3 - np.log(2), 1e300]
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-7)


class TestObjects:
    @pytest.mark.parametrize("loss", OBJECTS[:-1], ids=IDS[:-1])
    def test_equal_by_value_printed_and_pickled(self, loss):
        again = type(loss)(**loss.get_params())
        assert again == loss
        assert hash(again) == hash(loss)
        assert eval(repr(loss), vars(losses)) == loss
        assert pickle.loads(pickle.dumps(loss)) == loss
        assert clone(loss) == loss

    def test_immutable(self):
        with pytest.raises(FrozenInstanceError):
            losses.Quantile(0.5).quantile = 0.9

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: losses.Huber(epsilon=1.0), "above 1"),
            (lambda: losses.Huber(epsilon=0.0, scale=1.0), "above 0"),
            (lambda: losses.Huber(scale="big"), "'auto' or a positive number"),
            (lambda: losses.Huber(scale=0.0), "'auto' or a positive number"),
            (lambda: losses.Quantile(0.0), "between 0 and 1"),
            (lambda: losses.Quantile(1), "between 0 and 1"),
            (lambda: losses.Quantile("0.5"), "between 0 and 1"),
            (lambda: losses.EpsilonInsensitive(-1), "0 or more"),
            (lambda: losses.SquaredEpsilonInsensitive(np.nan), "0 or more"),
        ],
    )
    def test_parameters_out_of_range(self, make, words):
        with pytest.raises(ValueError, match=words):
            make()

    def test_search_over_objects_and_their_parameters(self):
        X, y = heavy_tailed()
        reg = TorchLinearRegressor(loss=losses.Huber(1.5))
        search = GridSearchCV(reg, {"loss__epsilon": [1.1, 1.35, 3.0]}, cv=3).fit(X, y)
        assert search.best_estimator_.loss.epsilon == search.best_params_["loss__epsilon"]
        assert reg.loss == losses.Huber(1.5)
        search = GridSearchCV(
            make_pipeline(StandardScaler(), TorchLinearRegressor()),
            {"torchlinearregressor__loss": ["huber", losses.Quantile(0.3), losses.LogCosh()]},
            n_jobs=2,
        ).fit(X, y)
        assert len(search.cv_results_["params"]) == 3

    def test_cross_validation_has_them_too(self):
        X, y = heavy_tailed()
        reg = TorchLinearRegressorCV(loss=losses.Huber(), alphas=[0.1, 1.0], cv=2)
        assert reg.set_params(loss__epsilon=2.0).loss == losses.Huber(2.0)
        search = GridSearchCV(reg, {"loss__epsilon": [1.2, 3.0]}, cv=2).fit(X, y)
        assert search.best_estimator_.loss.epsilon == search.best_params_["loss__epsilon"]

    def test_set_params_makes_a_new_loss(self):
        loss = losses.Quantile(0.5)
        reg = TorchLinearRegressor(loss=loss).set_params(loss__quantile=0.9, alpha=1.0)
        assert (reg.loss, reg.alpha, loss.quantile) == (losses.Quantile(0.9), 1.0, 0.5)
        assert reg.get_params()["loss__quantile"] == 0.9
        reg.set_params(loss=losses.Huber(), loss__epsilon=2.0)
        assert reg.loss == losses.Huber(2.0)

    @pytest.mark.parametrize("loss", ["quantile", losses.LogCosh(), losses.Huber()])
    def test_set_params_names_what_there_is(self, loss):
        with pytest.raises(ValueError, match=r"Invalid parameter 'loss__quantile'.*has"):
            TorchLinearRegressor(loss=loss).set_params(loss__quantile=0.9)


class TestWhatIsTaken:
    @pytest.mark.parametrize(
        ("loss", "error", "words"),
        [
            ("hinge", ValueError, "'huber'.*torchlinreg.losses"),
            (losses.Huber, TypeError, r"Huber\(\)"),
            (3.0, TypeError, "function"),
            (None, TypeError, "function"),
            (Loss(), TypeError, r"Loss\(\) has no value"),
            (torch.nn.MSELoss(), ValueError, "reduction='none'"),
            (lambda p, y: ((p - y) ** 2).mean(), ValueError, r"shape \(\).*reduction='none'"),
            (lambda p, y: (p - y).square().sum() + 0 * p, ValueError, "not elementwise"),
            (lambda p, y: (p - p.mean() - y) ** 2, ValueError, "not elementwise"),
            (lambda p, y: np.square((p - y).numpy()), TypeError, "without.*NumPy"),
            (lambda p, y: 1.0, TypeError, "float"),
            (lambda p, y: (p - y).detach().square(), TypeError, "detach"),
            (lambda p, y: torch.log1p((p - y).square()), ValueError, "not convex"),
            (lambda p, y: -((p - y) ** 2), ValueError, "not convex"),
            (lambda p, y: ((p - y) ** 2).clamp(max=9.0), ValueError, "not convex"),
            (lambda p, y: (p - y).abs() + 0.01 * ((p - y) ** 2).clamp(max=4.0), ValueError, "not convex"),
            (lambda p, y: (p - y) ** 2 / 0, ValueError, "not finite"),
        ],
    )
    def test_refusals(self, loss, error, words):
        X, y = heavy_tailed()
        with pytest.raises(error, match=words):
            TorchLinearRegressor(loss=loss).fit(X, y)

    @pytest.mark.parametrize(
        "loss",
        [
            lambda p, y: (p - p.mean() - y) ** 2 + 0.1 * p**2,
            lambda p, y: (p - y) ** 2 / (1 + p.max() - p.min()),
        ],
    )
    def test_losses_of_all_predictions_are_found_out_on_periodic_targets(self, loss):
        X, _ = heavy_tailed()
        with pytest.raises(ValueError, match="not elementwise"):
            TorchLinearRegressor(loss=loss).fit(X, np.tile([0.0, 1.0], 30))

    def test_a_failed_fit_keeps_the_earlier_one(self):
        X, y = heavy_tailed()
        reg = TorchLinearRegressor().fit(X, y)
        before = reg.coef_.copy()
        with pytest.raises(ValueError, match=r"not convex"):
            reg.set_params(loss=lambda p, y: torch.log1p((p - y).square())).fit(X[:, :2], y)
        np.testing.assert_array_equal(reg.coef_, before)
        assert reg.n_features_in_ == 3

    @pytest.mark.parametrize(
        ("function", "same_as"),
        [
            (lambda p, y: (p - y) ** 2, "squared_error"),
            (lambda p, y: torch.log(torch.cosh(p - y)), "log_cosh"),
            (lambda p, y: torch.nn.functional.huber_loss(p, y, "none", 1.5), losses.Huber(1.5, scale=1.0)),
            (torch.nn.HuberLoss(reduction="none", delta=0.5), losses.Huber(0.5, scale=1.0)),
        ],
    )
    def test_a_callable_lands_where_the_object_does(self, function, same_as):
        X, y = heavy_tailed()
        ours = TorchLinearRegressor(loss=function).fit(X, y)
        named = TorchLinearRegressor(loss=same_as).fit(X, y)
        np.testing.assert_allclose(ours.coef_, named.coef_, rtol=1e-9)
        np.testing.assert_allclose(ours.intercept_, named.intercept_, rtol=1e-9)
        assert ours.status_.name == "OPTIMAL"

    def test_a_callable_that_is_no_function_of_the_residual(self):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((300, 2))
        y = rng.poisson(np.exp(X @ [0.5, -0.3] + 1))
        poisson = TorchLinearRegressor(loss=lambda p, y: torch.exp(p) - y * p).fit(X, y)
        model = np.append(poisson.coef_, poisson.intercept_)
        columns = np.column_stack([X, np.ones(len(y))])
        gradient = columns.T @ (np.exp(columns @ model) - y) / len(y)
        assert np.abs(gradient).max() < 1e-12

    def test_far_residuals_of_a_callable(self):
        # torch.cosh has overflown at 371, and its second derivative by autograd is negative.
        X = np.arange(20.0)[:, None]
        y = 2 * X[:, 0] + 1
        y[3] += 371
        reg = TorchLinearRegressor(loss=lambda p, y: torch.log(torch.cosh(p - y))).fit(X, y)
        named = TorchLinearRegressor(loss="log_cosh").fit(X, y)
        np.testing.assert_allclose(reg.coef_, named.coef_, rtol=1e-6)


class TestLosslessEquivalences:
    """Losses that become each other."""

    @pytest.mark.parametrize("penalty", [{}, {"alpha": 0.3}, {"alpha": 0.3, "l1_ratio": 1.0}])
    def test_of_tube_zero(self, penalty):
        X, y = heavy_tailed()
        squared = TorchLinearRegressor(**penalty).fit(X, y)
        tube = TorchLinearRegressor(loss=losses.SquaredEpsilonInsensitive(0.0), **penalty).fit(X, y)
        np.testing.assert_allclose(tube.coef_, squared.coef_, rtol=1e-8)
        absolute = TorchLinearRegressor(loss="absolute_error", **penalty).fit(X, y)
        tube = TorchLinearRegressor(loss=losses.EpsilonInsensitive(0.0), **penalty).fit(X, y)
        np.testing.assert_allclose(tube.coef_, absolute.coef_, rtol=1e-8)

    def test_huber_of_large_scale_is_least_squares(self):
        X, y = heavy_tailed()
        reg = TorchLinearRegressor(loss=losses.Huber(scale=1e6)).fit(X, y)
        np.testing.assert_allclose(reg.coef_, LinearRegression(tol=0).fit(X, y).coef_, rtol=1e-8)

    def test_huber_of_small_scale_nears_the_absolute_error(self):
        X, y = heavy_tailed(61)
        reg = TorchLinearRegressor(loss=losses.Huber(scale=1e-9)).fit(X, y)
        absolute = TorchLinearRegressor(loss="absolute_error").fit(X, y)
        np.testing.assert_allclose(reg.coef_, absolute.coef_, rtol=1e-5)

    def test_a_median_is_a_quantile(self):
        X, y = heavy_tailed()
        median = TorchLinearRegressor(loss="quantile", alpha=0.05, l1_ratio=1.0).fit(X, y)
        absolute = TorchLinearRegressor(loss="absolute_error", alpha=0.1, l1_ratio=1.0).fit(X, y)
        np.testing.assert_allclose(median.coef_, absolute.coef_, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", ["huber", "log_cosh", "absolute_error", losses.Quantile(0.8)], ids=repr)
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("kind", ["duplicated", "wide"])
def test_dependent_columns_have_coefficients_of_least_norm(loss, fit_intercept, kind):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 3) if kind == "duplicated" else (5, 8))
    X[:, 2] = X[:, 0] if kind == "duplicated" else X[:, 2]
    y = X[:, 0] + rng.standard_t(2, len(X))
    reg = TorchLinearRegressor(loss=loss, fit_intercept=fit_intercept).fit(X, y)
    assert reg.status_.kind is Status.MINIMUM_NORM
    rows = X - X.mean(0) if fit_intercept else X
    rank = np.linalg.matrix_rank(rows)
    assert reg.rank_ == rank
    nothing = np.linalg.svd(rows)[2][rank:]
    np.testing.assert_allclose(nothing @ reg.coef_, 0, atol=1e-13 * np.abs(reg.coef_).max())


@dataclass(frozen=True)
class Fair(Loss):
    """``c^2 (|r| / c - log(1 + |r| / c))``, all that a new loss needs."""

    c: float = 1.0

    def value(self, prediction, target):
        size = (prediction - target).abs() / self.c
        return self.c**2 * (size - torch.log1p(size))

    def derivative(self, prediction, target):
        residual = prediction - target
        return residual / (1 + residual.abs() / self.c)

    def curvature(self, prediction, target):
        return (1 + (prediction - target).abs() / self.c) ** -2


@dataclass(frozen=True)
class Lopsided(Huber):
    """Twice as steep where the prediction is too high."""

    def value(self, prediction, target):
        return super().value(prediction, target) * torch.where(prediction > target, 2.0, 1.0)

    def derivative(self, prediction, target):
        return super().derivative(prediction, target) * torch.where(prediction > target, 2.0, 1.0)

    def curvature(self, prediction, target):
        return super().curvature(prediction, target) * torch.where(prediction > target, 2.0, 1.0)


def test_a_new_loss_may_estimate_a_scale():
    X, y = heavy_tailed()
    reg = TorchLinearRegressor(loss=Lopsided(epsilon=2.0)).fit(X, y)

    def objective(model):
        scale = np.exp(model[4])
        target, prediction = (torch.from_numpy(each / scale) for each in (y, X @ model[:3] + model[3]))
        return scale * (0.5 + float(Lopsided(epsilon=2.0).value(prediction, target).mean()))

    ours = np.concatenate([reg.coef_, [reg.intercept_, np.log(reg.scale_)]])
    found = minimize(
        objective, ours, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 4000}
    )
    assert objective(ours) <= found.fun * (1 + 1e-10)


class Cauchy(Fair):
    """``log(1 + r^2)``, which is not convex."""

    def value(self, prediction, target):
        return torch.log1p((prediction - target).square())

    def derivative(self, prediction, target):
        residual = prediction - target
        return 2 * residual / (1 + residual.square())

    def curvature(self, prediction, target):
        square = (prediction - target).square()
        return 2 * (1 - square) / (1 + square) ** 2


def test_a_new_loss_that_is_not_convex_is_refused():
    X, y = heavy_tailed()
    with pytest.raises(ValueError, match=r"Cauchy\(c=1.0\) is not convex"):
        TorchLinearRegressor(loss=Cauchy()).fit(X, y)


class TestANewLoss:
    """One class and one row of `LOSSES` give every penalty, constraint, solver and search."""

    @pytest.fixture(autouse=True)
    def fair(self, monkeypatch):
        monkeypatch.setitem(LOSSES, "fair", Fair)

    @pytest.mark.parametrize(
        "penalty", [{}, {"alpha": 0.2}, {"alpha": 0.2, "l1_ratio": 1.0}, {"positive": True}], ids=repr
    )
    def test_it_is_minimised(self, penalty):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((80, 3))
        y = X @ [1.0, -2.0, 0.05] + rng.standard_t(2, 80)
        reg = TorchLinearRegressor(loss="fair", **penalty).fit(X, y)

        def objective(model):
            size = np.abs(X @ model[:3] + model[3] - y)
            alpha, l1_ratio = penalty.get("alpha", 0), penalty.get("l1_ratio", 0)
            l1, l2 = alpha * l1_ratio, alpha * (1 - l1_ratio)
            return (
                (size - np.log1p(size)).mean() + l1 * np.abs(model[:3]).sum() + l2 / 2 * model[:3] @ model[:3]
            )

        ours = np.append(reg.coef_, reg.intercept_)
        bounds = [(0 if penalty.get("positive") else None, None)] * 3 + [(None, None)]
        for start in (np.zeros(4), ours):
            for method in ("L-BFGS-B", "SLSQP"):
                found = minimize(objective, start, method=method, bounds=bounds, tol=1e-14)
                assert objective(ours) <= objective(found.x) * (1 + 1e-9)

    def test_optimizers_train_it(self):
        X, y = heavy_tailed()
        exact = TorchLinearRegressor(loss="fair").fit(X, y)
        trained = TorchLinearRegressor(loss="fair", solver="lbfgs").fit(X, y)
        np.testing.assert_allclose(trained.coef_, exact.coef_, rtol=1e-5)

    def test_it_is_searched_and_checked(self):
        X, y = heavy_tailed()
        GridSearchCV(TorchLinearRegressor(loss=Fair()), {"loss__c": [0.5, 2.0]}).fit(X, y)
        check_estimator(TorchLinearRegressor(loss="fair"), on_skip=None)


@pytest.mark.parametrize(("epsilon", "efficiency"), [(1.35, 0.89), (1.6, 0.95)])
def test_efficiency_of_the_estimated_scale_is_that_of_the_docstring(epsilon, efficiency):
    """With ``E min(|z|, k)^2`` of normal errors z, which the squared scale is for k = epsilon * scale."""

    def clipped(k):
        return 2 * norm.cdf(k) - 1 - 2 * k * norm.pdf(k) + 2 * k**2 * norm.sf(k)

    scale = brentq(lambda s: clipped(epsilon * s) - s**2, 0.1, 1.0)
    threshold = epsilon * scale
    assert round((2 * norm.cdf(threshold) - 1) ** 2 / clipped(threshold), 2) == efficiency
    y = norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    reg = TorchLinearRegressor(loss=losses.Huber(epsilon)).fit(np.zeros((len(y), 1)), y)
    assert float(reg.scale_) == pytest.approx(scale, rel=1e-4)
