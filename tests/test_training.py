"""Training on the full batch: the trajectory of a plain loop, the optimum without tuning, every refusal."""

import copy
import functools
import pickle
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from plain_loop import assert_follows, distance, fit_quietly, model_of, needs_closure, plain_loop
from scipy import sparse
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.optim import SGD, Adam, Optimizer
from torch.optim import lr_scheduler as schedulers

from benchmarks.problems import all_problems
from torchlinreg import TorchLinearRegressor
from torchlinreg._data.rows import as_row_blocks
from torchlinreg._objective.evaluate import split
from torchlinreg._objective.solution import Status
from torchlinreg._training.optimizers import OPTIMIZERS

PROBLEMS = {problem.name: problem for problem in all_problems()}
# Rates at which the problem below is stable; of the others, 0.05.
RATES = {"sgd": 1e-3, "asgd": 1e-3, "lbfgs": 1.0}
LBFGS = functools.partial(
    torch.optim.LBFGS,
    max_iter=1,
    line_search_fn="strong_wolfe",
    tolerance_grad=0,
    tolerance_change=0,
)


def problem(n_samples=50, n_targets=None, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, 3)) * [1, 8, 0.3] + [3, 0, 1]
    coef = np.array([1.0, -2.0, 3.0]) if n_targets is None else rng.standard_normal((3, n_targets))
    noise = rng.standard_normal((n_samples, *coef.shape[1:]))
    return X, 1 + X @ coef + 0.5 * noise, rng.integers(0, 4, n_samples) / 2.0


def at_rate(name):
    """The optimizer class of a name with its rate, for the plain loop, and that rate."""
    rate = RATES.get(name, 0.05)
    return functools.partial(LBFGS if name == "lbfgs" else OPTIMIZERS[name], lr=rate), rate


class Lion(Optimizer):
    """An optimizer that torch does not have, as its users write them."""

    def __init__(self, params, lr=1e-4, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                average.mul_(group["beta"]).add_(p.grad, alpha=1 - group["beta"])
                p.add_(average.sign(), alpha=-group["lr"])


class Rebinding(Optimizer):
    """Gives parameters new memory, as some tutorials do."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr})

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data = p.data - group["lr"] * p.grad


class Midpoint(Optimizer):
    """Asks for gradients of its own, and clears them in between."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            closure()
        before = [p.clone() for group in self.param_groups for p in group["params"]]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"] / 2)
        self.zero_grad()
        with torch.enable_grad():
            closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(before.pop(0)).sub_(p.grad, alpha=group["lr"])
        self.zero_grad()


OWN = {
    "momentum": (functools.partial(SGD, momentum=0.9), 1e-3),
    "nesterov": (functools.partial(SGD, momentum=0.9, nesterov=True), 1e-3),
    "dampening": (functools.partial(SGD, momentum=0.5, dampening=0.3), 1e-3),
    "weight decay": (functools.partial(SGD, weight_decay=0.5), 1e-3),
    "class": (torch.optim.NAdam, 0.05),
    "adam with options": (functools.partial(Adam, betas=(0.5, 0.9), amsgrad=True, eps=1e-4), 0.05),
    "rmsprop with options": (functools.partial(torch.optim.RMSprop, centered=True, momentum=0.5), 0.01),
    "own class": (Lion, 0.05),
    "own class with options": (functools.partial(Lion, beta=0.5), 0.05),
    "new memory": (Rebinding, 1e-3),
    "own closure": (Midpoint, 1e-3),
}


class TestTrajectory:
    """With a number as learning_rate, training is the plain loop on the raw data, to rounding."""

    @pytest.mark.parametrize("alpha", [pytest.param(0.0, marks=pytest.mark.exhaustive), 0.1])
    @pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"muon"}))
    def test_every_name(self, name, alpha):
        X, y, _ = problem()
        make, rate = at_rate(name)
        # A line search branches on rounding once the optimum is near, so only a few epochs of it.
        expected = plain_loop(make, X, y, 6 if name == "lbfgs" else 130, alpha=alpha)
        assert expected.loss[-1] < 0.99 * expected.loss[0]
        reg = TorchLinearRegressor(solver=name, learning_rate=rate, alpha=alpha)
        assert_follows(reg, expected, X, y)
        assert fit_quietly(reg, X, y).solver_ == name

    @pytest.mark.skipif("muon" not in OPTIMIZERS, reason="this torch has no Muon")
    def test_muon_takes_matrices_only(self):
        """So its plain loop has no bias."""
        X, y, _ = problem()
        make, rate = at_rate("muon")
        expected = plain_loop(make, X, y, 40, fit_intercept=False)
        reg = TorchLinearRegressor(solver="muon", learning_rate=rate, fit_intercept=False)
        # It works in bfloat16 inside, where the last bit of a gradient may matter.
        assert_follows(reg, expected, X, y, rtol=1e-3)

    @pytest.mark.parametrize("kind", OWN)
    def test_classes_and_partials(self, kind):
        X, y, _ = problem()
        make, rate = OWN[kind]
        expected = plain_loop(functools.partial(make, lr=rate), X, y, 70)
        assert expected.loss[-1] < 0.9 * expected.loss[0]
        assert_follows(TorchLinearRegressor(solver=make, learning_rate=rate), expected, X, y)

    def test_a_rate_within_the_partial(self):
        X, y, _ = problem()
        make = functools.partial(Adam, lr=0.05)
        assert_follows(TorchLinearRegressor(solver=make), plain_loop(make, X, y, 70), X, y)

    @pytest.mark.parametrize("n_targets", [None, 2])
    def test_a_callable_sees_coef_and_intercept(self, n_targets):
        X, y, _ = problem(n_targets=n_targets)
        shapes = []

        def make(params):
            coef, intercept = params
            shapes.append((tuple(coef.shape), tuple(intercept.shape)))
            return SGD([{"params": [coef], "lr": 1e-3}, {"params": [intercept], "lr": 0.1}], momentum=0.5)

        assert_follows(TorchLinearRegressor(solver=make), plain_loop(make, X, y, 70), X, y)
        assert set(shapes) == {((n_targets or 1, 3), (n_targets or 1,))}

    @pytest.mark.every(5)
    @pytest.mark.parametrize("fit_intercept", [True, False])
    @pytest.mark.parametrize("n_targets", [None, 1, 3])
    @pytest.mark.parametrize("weighted", [True, False])
    @pytest.mark.parametrize("name", ["sgd", "adam", "lbfgs"])
    def test_weights_targets_and_intercept(self, name, weighted, n_targets, fit_intercept):
        X, y, weight = problem(n_targets=n_targets)
        weight = weight if weighted else None
        make, rate = at_rate(name)
        options = {"alpha": 0.1, "fit_intercept": fit_intercept}
        expected = plain_loop(make, X, y, 5 if name == "lbfgs" else 70, weight=weight, **options)
        reg = TorchLinearRegressor(solver=name, learning_rate=rate, **options)
        assert_follows(reg, expected, X, y, sample_weight=weight)
        assert fit_quietly(reg, X, y).coef_.shape == (*y.shape[1:], 3)

    @pytest.mark.parametrize("alpha", [0.0, 0.1])
    @pytest.mark.parametrize("fit_intercept", [True, False])
    @pytest.mark.parametrize("name", ["sgd", "adam", "lbfgs"])
    def test_wide_data(self, name, fit_intercept, alpha):
        rng = np.random.default_rng(0)
        X, y, weight = rng.standard_normal((6, 15)) + 0.5, rng.standard_normal(6), rng.uniform(0.5, 2, 6)
        make = at_rate(name)[0] if name != "sgd" else functools.partial(SGD, lr=0.02)
        options = {"alpha": alpha, "fit_intercept": fit_intercept}
        expected = plain_loop(make, X, y, 4 if name == "lbfgs" else 70, weight=weight, **options)
        reg = TorchLinearRegressor(solver=name, learning_rate=make.keywords["lr"], **options)
        # A perfect fit has a loss of 0, whose digits are those of the residuals.
        assert_follows(reg, expected, X, y, sample_weight=weight, rtol=1e-9)

    def test_raw_data_with_an_offset(self):
        """Whose loop crawls along the long axis of the loss; the moments must not lose that."""
        X, y, _ = problem()
        X[:, 1] += 1e4
        make = functools.partial(SGD, lr=1e-9)
        assert_follows(
            TorchLinearRegressor(solver="sgd", learning_rate=1e-9), plain_loop(make, X, y, 200), X, y
        )

    @pytest.mark.parametrize(
        "kind",
        [list, pd.DataFrame, sparse.csr_array, sparse.coo_matrix, np.asfortranarray, torch.from_numpy],
    )
    @pytest.mark.parametrize("name", ["sgd", "adam"])
    def test_kinds_of_data(self, name, kind):
        X, y, weight = problem()
        X[np.abs(X) < 2] = 0
        make, rate = at_rate(name)
        expected = plain_loop(make, X, y, 70, weight=weight)
        reg = TorchLinearRegressor(solver=name, learning_rate=rate)
        assert_follows(reg, expected, kind(X), y, sample_weight=weight)

    def test_float32_is_trained_in_float64(self):
        X, y, _ = problem()
        X = X.astype(np.float32)
        expected = plain_loop(functools.partial(SGD, lr=1e-3), X.astype(float), y, 70)
        reg = fit_quietly(TorchLinearRegressor(solver="sgd", learning_rate=1e-3, max_iter=70, tol=0), X, y)
        assert reg.coef_.dtype == np.float32
        np.testing.assert_allclose(reg.coef_, expected.coef[-1, 0], rtol=2.0**-23)
        np.testing.assert_allclose(reg.loss_curve_, expected.loss, rtol=1e-10)

    @pytest.mark.parametrize("name", ["sgd", "adam"])
    def test_coef_init_and_intercept_init(self, name):
        X, y, _ = problem(n_targets=2)
        start = np.random.default_rng(1).standard_normal((2, 3)), np.array([3.0, -1.0])
        make, rate = at_rate(name)
        expected = plain_loop(make, X, y, 70, start=start)
        reg = TorchLinearRegressor(solver=name, learning_rate=rate)
        assert_follows(reg, expected, X, y, coef_init=start[0], intercept_init=start[1])

    def test_weight_zero_is_removal(self):
        X, y, weight = problem()
        X[weight == 0], y[weight == 0] = 1e3, -1e5
        keep = weight > 0
        assert not keep.all()
        reg = TorchLinearRegressor(solver="adam", learning_rate=0.05, max_iter=50, tol=0)
        one = fit_quietly(clone(reg), X, y, sample_weight=weight)
        other = fit_quietly(reg, X[keep], y[keep], sample_weight=weight[keep])
        np.testing.assert_allclose(one.coef_, other.coef_, rtol=1e-10)
        np.testing.assert_allclose(one.loss_curve_, other.loss_curve_, rtol=1e-10)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    def test_default_dtype_of_torch_does_not_matter(self, dtype):
        X, y, _ = problem()
        reg = TorchLinearRegressor(solver="adam", learning_rate=0.05, max_iter=70)
        expected = fit_quietly(clone(reg), X, y)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            found = fit_quietly(reg, X, y)
        finally:
            torch.set_default_dtype(before)
        np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-10)

    @pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
    @pytest.mark.parametrize("name", ["sgd", "adam", "lbfgs"])
    def test_within_modes_of_torch(self, name, mode):
        X, y, _ = problem()
        reg = TorchLinearRegressor(solver=name, learning_rate=at_rate(name)[1], max_iter=20)
        expected = fit_quietly(clone(reg), X, y)
        with mode():
            found = fit_quietly(reg, X, y)
        np.testing.assert_array_equal(found.coef_, expected.coef_)


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


# Solvers that promise the optimum without tuning.
PROMISED = ["sgd", "adam", "lbfgs"]
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


def overfitting(n_samples=40, seed=0):
    """Few rows of many columns, so that the validation loss rises again."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, 25))
    return X, X[:, 0] + 2 * rng.standard_normal(n_samples)


def mean_loss(reg, X, y, weight=None):
    return float(np.average((y - reg.predict(X)) ** 2, weights=weight) / 2)


class TestStopping:
    @pytest.mark.parametrize("momentum", [0.9, 0.95])
    def test_an_overshoot_is_no_end(self, momentum):
        """The loss of momentum, and of Adam, rises for many epochs before it falls again."""
        X, y, _ = problem()
        make = functools.partial(SGD, momentum=momentum)
        reg = TorchLinearRegressor(solver=make, learning_rate=0.02, max_iter=5000).fit(X, y)
        assert (np.diff(reg.loss_curve_) > 0).any()
        assert reg.status_.distance < 1e-6

    @pytest.mark.parametrize("learning_rate", ["auto", 0.05])
    @pytest.mark.parametrize("batch_size", [None, 8])
    def test_tol_0_runs_all_epochs(self, learning_rate, batch_size):
        X, y, _ = problem()
        reg = TorchLinearRegressor(solver="adam", learning_rate=learning_rate, tol=0, max_iter=150)
        fit_quietly(reg.set_params(batch_size=batch_size), X, y)
        assert reg.n_iter_ == len(reg.loss_curve_) == 150
        assert reg.status_.kind is Status.MAX_ITER

    def test_a_larger_tol_ends_earlier(self):
        X, y, _ = problem()
        counts = [TorchLinearRegressor(solver="sgd", tol=tol).fit(X, y).n_iter_ for tol in (1e-4, 1e-12)]
        assert counts[0] < counts[1]
        reg = TorchLinearRegressor(solver="sgd", tol=1e-4).fit(X, y)
        assert reg.status_.kind is Status.OPTIMAL
        assert reg.status_.distance < 1e-3

    @pytest.mark.parametrize("n_iter_no_change", [1, 7])
    def test_n_iter_no_change(self, n_iter_no_change):
        """Steps that are too small change the loss by less than tol."""
        X, y, _ = problem()
        reg = TorchLinearRegressor(solver="adam", learning_rate=1e-8, tol=1e-4)
        reg.set_params(n_iter_no_change=n_iter_no_change)
        with pytest.warns(ConvergenceWarning, match="for n_iter_no_change epochs"):
            reg.fit(X, y)
        assert reg.status_.kind is Status.NO_PROGRESS
        assert reg.n_iter_ == len(reg.loss_curve_) == 1 + n_iter_no_change
        shorter = fit_quietly(clone(reg).set_params(max_iter=reg.n_iter_, tol=0), X, y)
        np.testing.assert_array_equal(reg.coef_, shorter.coef_)  # what came after the end is undone

    @pytest.mark.parametrize("solver", PROMISED)
    def test_the_warning_helps(self, solver):
        X, y, _ = problem()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            reg = TorchLinearRegressor(solver=solver, learning_rate=1e-7, max_iter=2).fit(X, y)
        (warning,) = caught
        assert warning.category is ConvergenceWarning
        assert warning.filename == __file__
        text = str(warning.message)
        assert "After 2 epochs" in text
        assert solver in text
        assert f"{reg.status_.distance:.1e}" in text
        for word in ("max_iter", "learning_rate", "'auto'"):
            assert word in text

    def test_the_warning_of_a_pipeline_and_a_fit_with_validation(self):
        X, y, _ = problem()
        reg = TorchLinearRegressor(solver="sgd", learning_rate=1e-7, max_iter=2)
        with pytest.warns(ConvergenceWarning, match="After 2 epochs"):
            make_pipeline(StandardScaler(), reg).fit(X, y)
        with pytest.warns(ConvergenceWarning, match="After 2 epochs") as caught:
            reg.fit(X, y, X_val=X, y_val=y)
        assert caught[0].filename == __file__

    def test_no_warning_at_the_optimum(self):
        TorchLinearRegressor(solver="sgd", learning_rate=0.02, max_iter=20_000).fit(*problem()[:2])

    @pytest.mark.parametrize("early_stopping", [True, False])
    @pytest.mark.parametrize("weighted", [True, False])
    @pytest.mark.parametrize("learning_rate", ["auto", 0.02])
    def test_the_validation_curve(self, learning_rate, weighted, early_stopping):
        """The mean of squared errors / 2 on the validation rows, without a penalty."""
        X, y, weight = problem(80)
        train, validate = slice(0, 50), slice(50, None)
        weight = weight if weighted else None
        fit = {"X_val": X[validate], "y_val": y[validate]}
        if weighted:
            fit |= {"sample_weight": weight[train], "sample_weight_val": weight[validate]}
        reg = TorchLinearRegressor(solver="adam", learning_rate=learning_rate, alpha=0.1, tol=0)
        whole = fit_quietly(clone(reg).set_params(max_iter=40), X[train], y[train], **fit)
        assert len(whole.validation_loss_curve_) == len(whole.loss_curve_) == 40
        if learning_rate == "auto":
            return  # whose schedule depends on max_iter
        for n in (1, 2, 40):
            part = fit_quietly(clone(reg).set_params(max_iter=n), X[train], y[train], **fit)
            expected = mean_loss(part, X[validate], y[validate], None if weight is None else weight[validate])
            assert whole.validation_loss_curve_[n - 1] == pytest.approx(expected, rel=1e-10)

    def test_several_targets_sum_up(self):
        X, y, _ = problem(80, n_targets=3)
        reg = TorchLinearRegressor(solver="adam", learning_rate=0.05, max_iter=9)
        fit_quietly(reg, X[:50], y[:50], X_val=X[50:], y_val=y[50:])
        expected = ((y[50:] - reg.predict(X[50:])) ** 2).mean(0).sum() / 2
        assert reg.validation_loss_curve_[-1] == pytest.approx(expected, rel=1e-10)
        expected = ((y[:50] - reg.predict(X[:50])) ** 2).mean(0).sum() / 2
        assert reg.loss_curve_[-1] == pytest.approx(expected, rel=1e-10)

    @pytest.mark.parametrize("batch_size", [None, 8])
    @pytest.mark.parametrize("learning_rate", ["auto", 0.02])
    @pytest.mark.parametrize("solver", PROMISED)
    def test_the_best_coefficients_are_restored(self, solver, learning_rate, batch_size):
        X, y = overfitting()
        X_val, y_val = overfitting(200, seed=1)
        if solver == "lbfgs" and learning_rate != "auto":
            learning_rate = 1.0
        reg = TorchLinearRegressor(solver=solver, learning_rate=learning_rate, early_stopping=True)
        reg.set_params(batch_size=batch_size, random_state=0, n_iter_no_change=5)
        reg.fit(X, y, X_val=X_val, y_val=y_val)
        curve = reg.validation_loss_curve_
        assert mean_loss(reg, X_val, y_val) == pytest.approx(curve.min(), rel=1e-10)
        if solver == "lbfgs" and learning_rate == "auto":
            return  # which is at the optimum after an epoch or two
        assert curve[-1] > curve.min()
        assert reg.status_.kind is Status.EARLY_STOPPED
        assert reg.n_iter_ == len(curve) == np.argmin(curve) + 1 + 5

    def test_nobody_warns_of_an_early_stop(self):
        """For it is what was asked for."""
        X, y = overfitting()
        reg = TorchLinearRegressor(solver="adam", early_stopping=True, random_state=0).fit(X, y)
        assert reg.status_.kind is Status.EARLY_STOPPED
        assert "validation loss" in reg.status_.message

    def test_without_early_stopping_validation_changes_nothing(self):
        X, y = overfitting()
        reg = TorchLinearRegressor(solver="adam")
        plain = clone(reg).fit(X, y)
        assert not hasattr(plain, "validation_loss_curve_")
        watched = clone(reg).fit(X, y, X_val=X[:9], y_val=y[:9])
        np.testing.assert_array_equal(plain.coef_, watched.coef_)
        assert not hasattr(watched.fit(X, y), "validation_loss_curve_")
        assert not hasattr(watched.set_params(solver="auto").fit(X, y), "loss_curve_")

    @pytest.mark.parametrize("fraction", [0.1, 0.3])
    def test_the_split_takes_its_fraction(self, fraction):
        X, y = overfitting(200)
        train, validate = split(as_row_blocks(X, y), fraction, seed=3)
        assert validate.n_samples == round(200 * fraction)
        assert train.n_samples + validate.n_samples == 200
        other = split(as_row_blocks(X, y), fraction, seed=4)[1]
        assert not torch.equal(validate.y, other.y)

    @pytest.mark.parametrize("learning_rate", ["auto", 0.02])
    @pytest.mark.parametrize("solver", ["sgd", "adam"])
    def test_the_split_is_by_content(self, solver, learning_rate):
        X, y = overfitting(60)
        rng = np.random.default_rng(0)
        times = rng.integers(0, 4, len(y))
        reg = TorchLinearRegressor(solver=solver, learning_rate=learning_rate, early_stopping=True)
        reg.set_params(random_state=5, validation_fraction=0.3, alpha=0.01)
        expected = clone(reg).fit(X, y, sample_weight=times)
        repeated = np.repeat(np.arange(len(y)), times)
        for rows in (repeated, rng.permutation(repeated)):
            found = clone(reg).fit(X[rows], y[rows])
            assert found.n_iter_ == expected.n_iter_
            np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-7)
            np.testing.assert_allclose(
                found.validation_loss_curve_, expected.validation_loss_curve_, rtol=1e-7
            )
        found = clone(reg).fit(sparse.csr_array(X), y, sample_weight=times)
        np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-7)
        other = clone(reg).set_params(random_state=6).fit(X, y, sample_weight=times)
        assert not np.allclose(other.coef_, expected.coef_, rtol=1e-3)

    def test_through_a_pipeline(self):
        X, y = overfitting()
        X_val, y_val = overfitting(200, seed=1)
        X, X_val = 100 + 5 * X, 100 + 5 * X_val
        scaler = StandardScaler().fit(X)
        reg = TorchLinearRegressor(solver="adam", learning_rate=0.02, early_stopping=True)
        expected = clone(reg).fit(scaler.transform(X), y, X_val=scaler.transform(X_val), y_val=y_val)
        with config_context(enable_metadata_routing=True):
            reg.set_fit_request(X_val=True, y_val=True)
            pipeline = make_pipeline(StandardScaler(), reg, transform_input=["X_val"])
            pipeline.fit(X, y, X_val=X_val, y_val=y_val)
        found = pipeline[-1]
        np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-10)
        np.testing.assert_allclose(found.validation_loss_curve_, expected.validation_loss_curve_, rtol=1e-10)

    @pytest.mark.parametrize("X_kind", [list, pd.DataFrame, sparse.csr_array, torch.from_numpy])
    def test_kinds_of_validation_data(self, X_kind):
        X, y = overfitting()
        X_val, y_val = overfitting(30, seed=1)
        reg = TorchLinearRegressor(solver="adam", learning_rate=0.02, max_iter=9)
        expected = fit_quietly(clone(reg), X, y, X_val=X_val, y_val=y_val).validation_loss_curve_
        as_kind = pd.DataFrame if X_kind is pd.DataFrame else np.asarray
        found = fit_quietly(reg, as_kind(X), y, X_val=X_kind(X_val), y_val=y_val).validation_loss_curve_
        np.testing.assert_allclose(found, expected, rtol=1e-12)

    def test_validation_weights_of_any_size(self):
        X, y = overfitting()
        reg = TorchLinearRegressor(solver="adam", learning_rate=0.02, max_iter=9)
        expected = fit_quietly(clone(reg), X, y, X_val=X, y_val=y).validation_loss_curve_
        for size in (1e-300, 1e307):
            found = fit_quietly(clone(reg), X, y, X_val=X, y_val=y, sample_weight_val=np.full(len(y), size))
            np.testing.assert_allclose(found.validation_loss_curve_, expected, rtol=1e-10)


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


WRONG_PARAMETERS = {
    "solver name": ({"solver": "SGD"}, ValueError, r"solver='SGD' is not known.*'adam'.*'lbfgs'.*'sgd'"),
    "solver number": ({"solver": 3}, ValueError, r"solver=3 is not known"),
    "sparse optimizer": ({"solver": "sparseadam"}, ValueError, "is not known"),
    "batch_size 0": ({"batch_size": 0}, ValueError, r"batch_size=0 must be None \(the full batch\)"),
    "batch_size float": ({"batch_size": 8.0}, ValueError, r"batch_size=8\.0 must be"),
    "batch_size bool": ({"batch_size": True}, ValueError, "batch_size=True must be"),
    "learning_rate word": ({"learning_rate": "optimal"}, ValueError, "'optimal' must be 'auto' or a posi"),
    "learning_rate 0": ({"learning_rate": 0}, ValueError, "learning_rate=0 must be"),
    "learning_rate NaN": ({"learning_rate": np.nan}, ValueError, "learning_rate=nan must be"),
    "learning_rate inf": ({"learning_rate": np.inf}, ValueError, "learning_rate=inf must be"),
    "max_iter 0": ({"max_iter": 0}, ValueError, "max_iter=0 must be None or an integer, 1 or more"),
    "tol below 0": ({"tol": -1e-3}, ValueError, r"tol=-0\.001 must be a number, 0 or more"),
    "n_iter_no_change": ({"n_iter_no_change": 0}, ValueError, "n_iter_no_change=0 must be"),
    "validation_fraction": ({"validation_fraction": 1.0}, ValueError, "between 0 and 1"),
    "early_stopping": ({"early_stopping": "yes"}, ValueError, "early_stopping='yes' must be True or False"),
    "shuffle": ({"shuffle": 1}, ValueError, "shuffle=1 must be True or False"),
    "warm_start": ({"warm_start": None}, ValueError, "warm_start=None must be True or False"),
    "two rates": (
        {"solver": functools.partial(SGD, lr=0.1), "learning_rate": 0.2},
        ValueError,
        "both given",
    ),
    "no optimizer": ({"solver": lambda params: None}, TypeError, r"NoneType.*\[coef, intercept\]"),
    "another class": ({"solver": dict}, (TypeError, ValueError), "Optimizer"),
    "no concrete optimizer": ({"solver": Optimizer}, (TypeError, ValueError), "Optimizer"),
}
WRONG_DATA = {
    "no y_val": (lambda X, y: {"X_val": X}, "X_val and y_val belong together"),
    "no X_val": (lambda X, y: {"y_val": y}, "X_val and y_val belong together"),
    "weights alone": (lambda X, y: {"sample_weight_val": y}, "X_val and y_val belong together"),
    "features of X_val": (lambda X, y: {"X_val": X[:, :2], "y_val": y}, "2 features"),
    "targets of y_val": (lambda X, y: {"X_val": X, "y_val": np.column_stack([y, y])}, "y_val has 2 targets"),
    "rows of X_val": (lambda X, y: {"X_val": X, "y_val": y[:9]}, "inconsistent numbers of samples"),
    "NaN in X_val": (lambda X, y: {"X_val": X * np.nan, "y_val": y}, "X_val.*NaN"),
    "NaN in y_val": (lambda X, y: {"X_val": X, "y_val": np.abs(y) * np.inf}, "y_val.*infinity"),
    "zero validation weights": (
        lambda X, y: {"X_val": X, "y_val": y, "sample_weight_val": 0 * y},
        "zero",
    ),
    "shape of coef_init": (lambda X, y: {"coef_init": [1.0, 2.0]}, r"coef_init has shape .*2.*3"),
    "NaN in coef_init": (lambda X, y: {"coef_init": [1.0, 2.0, np.nan]}, "coef_init holds NaN"),
    "shape of intercept_init": (lambda X, y: {"intercept_init": [1.0, 2.0]}, "intercept_init has shape"),
    "infinite intercept_init": (lambda X, y: {"intercept_init": np.inf}, "intercept_init holds NaN or inf"),
    "zero weights": (lambda X, y: {"sample_weight": 0 * y}, "zero"),
}


class TestRefusals:
    @pytest.mark.parametrize("case", WRONG_PARAMETERS)
    def test_parameters(self, case):
        options, error, words = WRONG_PARAMETERS[case]
        X, y, _ = problem()
        with pytest.raises(error, match=words):
            TorchLinearRegressor(**{"solver": "sgd", **options}).fit(X, y)

    @pytest.mark.parametrize("batch_size", [None, 8])
    @pytest.mark.parametrize("case", WRONG_DATA)
    def test_arguments_of_fit(self, case, batch_size):
        wrong, words = WRONG_DATA[case]
        X, y, _ = problem()
        reg = TorchLinearRegressor(solver="sgd", early_stopping=True, batch_size=batch_size)
        with pytest.raises(ValueError, match=words):
            reg.fit(X, y, **wrong(X, y))

    @pytest.mark.parametrize("learning_rate", ["auto", 1e-3])
    @pytest.mark.parametrize("early_stopping", [True, False])
    @pytest.mark.parametrize("batch_size", [None, 8])
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_values_of_the_data(self, value, batch_size, early_stopping, learning_rate):
        X, y, _ = problem()
        reg = TorchLinearRegressor(solver="adam", learning_rate=learning_rate, batch_size=batch_size)
        reg.set_params(early_stopping=early_stopping)
        wrong_X, wrong_y = X.copy(), y.copy()
        wrong_X[3, 1] = wrong_y[3] = value
        for method in (reg.fit, reg.partial_fit):
            with pytest.raises(ValueError, match="Input X contains"):
                method(wrong_X, y)
            with pytest.raises(ValueError, match="Input y contains"):
                method(X, wrong_y)

    def test_an_intercept_that_nobody_fits(self):
        X, y, _ = problem()
        with pytest.raises(ValueError, match="intercept_init is given, but fit_intercept=False"):
            TorchLinearRegressor(solver="sgd", fit_intercept=False).fit(X, y, intercept_init=1.0)

    @pytest.mark.parametrize(
        "options",
        [
            {"batch_size": 8},
            {"learning_rate": 0.1},
            {"lr_scheduler": schedulers.ConstantLR},
            {"early_stopping": True},
        ],
    )
    @pytest.mark.parametrize("solver", ["auto", "cholesky", "exact", "dual"])
    def test_training_parameters_of_solvers_that_do_not_train(self, solver, options):
        X, y, _ = problem()
        (name,) = options
        with pytest.raises(ValueError, match=f"{name}=.* has no meaning for solver='{solver}'.*'adam'"):
            TorchLinearRegressor(solver=solver, **options).fit(X, y)

    @pytest.mark.parametrize(
        "given", ["coef_init", "intercept_init", "X_val", "y_val", "sample_weight_val", "resume_from"]
    )
    def test_training_arguments_of_solvers_that_do_not_train(self, given):
        X, y, _ = problem()
        with pytest.raises(ValueError, match=f"{given} cannot be used by solver='auto'"):
            TorchLinearRegressor().fit(X, y, **{given: 1.0})

    def test_too_few_rows_to_split(self):
        with pytest.raises(ValueError, match=r"validation_fraction=0\.1.*early_stopping=False"):
            TorchLinearRegressor(solver="sgd", early_stopping=True).fit([[1.0], [1.0]], [2.0, 2.0])


def test_a_huge_offset_does_not_hide_the_optimum() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 3)) + 1e12
    y = (X - 1e12) @ [1.0, 2.0, 3.0] + 0.1 * rng.standard_normal(60)
    reg = TorchLinearRegressor(solver="sgd").fit(X, y)
    assert reg.status_.kind is Status.OPTIMAL
    assert reg.status_.distance <= 1e-12
    np.testing.assert_allclose(reg.coef_, TorchLinearRegressor().fit(X, y).coef_, rtol=1e-11)
