"""Training with a fixed rate follows the loop of a tutorial, whatever the optimizer."""

import functools

import numpy as np
import pandas as pd
import pytest
import torch
from reference.plain_loop import assert_follows, fit_quietly, plain_loop
from reference.training import OWN, at_rate, problem
from scipy import sparse
from sklearn.base import clone
from torch.optim import SGD, Adam

from torchlinreg import TorchLinearRegressor
from torchlinreg._training.optimizers import OPTIMIZERS


class TestTrajectory:
    """With a number as learning_rate, training is the plain loop on the raw data, to rounding."""

    @pytest.mark.every(2)
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
