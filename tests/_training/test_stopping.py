"""Training stops by tol, patience, validation loss or max_iter."""

import functools
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from reference.plain_loop import fit_quietly
from reference.training import PROMISED, overfitting, problem
from scipy import sparse
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.optim import SGD

from torchlinreg import TorchLinearRegressor
from torchlinreg._data.rows import as_row_blocks
from torchlinreg._objective.evaluate import split
from torchlinreg._objective.solution import Status


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
