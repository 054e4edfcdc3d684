"""Mini-batches: the trajectory of a plain loop, shuffles from random_state, the optimum without tuning."""

import functools
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from reference.plain_loop import (
    assert_follows,
    distance,
    fit_quietly,
    plain_loop,
    seed_of_shuffles,
)
from scipy import sparse
from sklearn.base import clone
from torch.optim import SGD, Adam
from torch.optim import lr_scheduler as schedulers

from benchmarks.problems import all_problems
from torchlinreg import TorchLinearRegressor
from torchlinreg._training import epochs

BATCH = 16  # of 50 rows: the last batch has 2
MAKE = {
    "sgd": functools.partial(SGD, lr=2e-3),
    "adam": functools.partial(Adam, lr=0.02),
    "momentum": functools.partial(SGD, lr=5e-4, momentum=0.9),
}


def problem(n_features=3, n_targets=None, n_samples=50, seed=0):
    rng = np.random.default_rng(seed)
    X = 0.5 + rng.standard_normal((n_samples, n_features)) * 3.0 / np.sqrt(n_features)
    shape = (n_features,) if n_targets is None else (n_features, n_targets)
    y = 1 + X @ rng.standard_normal(shape)
    return X, y + 0.3 * rng.standard_normal(y.shape), rng.uniform(0.1, 3, n_samples)


def regressor(name, **options):
    return TorchLinearRegressor(solver=MAKE[name], batch_size=BATCH, **options)


@pytest.fixture
def runs(monkeypatch):
    """Whether Gram matrices of batches were made, in each training on mini-batches."""
    seen = set()
    original = epochs.MiniBatches.__init__

    def spy(self, *args, **kwargs):
        original(self, *args, **kwargs)
        seen.add(self._by_gram)

    monkeypatch.setattr(epochs.MiniBatches, "__init__", spy)
    return seen


# Few features are read as Gram matrices of the batches, many as rows.
WAYS = {3: True, 20: False}


class TestTrajectory:
    @pytest.mark.every(7)
    @pytest.mark.parametrize("alpha", [0.0, 0.1])
    @pytest.mark.parametrize("n_targets", [None, 2])
    @pytest.mark.parametrize("fit_intercept", [True, False])
    @pytest.mark.parametrize("weighted", [True, False])
    @pytest.mark.parametrize("n_features", WAYS)
    @pytest.mark.parametrize("name", MAKE)
    def test_in_order(self, name, n_features, weighted, fit_intercept, n_targets, alpha, runs):
        X, y, weight = problem(n_features, n_targets)
        weight = weight if weighted else None
        options = {"alpha": alpha, "fit_intercept": fit_intercept}
        expected = plain_loop(MAKE[name], X, y, 12, weight=weight, batch_size=BATCH, **options)
        assert expected.loss[-1] < expected.loss[0]
        assert_follows(regressor(name, shuffle=False, **options), expected, X, y, sample_weight=weight)
        assert runs == {WAYS[n_features]}

    @pytest.mark.parametrize("n_features", WAYS)
    @pytest.mark.parametrize("name", MAKE)
    def test_shuffled_by_a_generator_of_its_own(self, name, n_features):
        X, y, _ = problem(n_features)
        expected = plain_loop(MAKE[name], X, y, 12, batch_size=BATCH, seed=seed_of_shuffles(7))
        in_order = plain_loop(MAKE[name], X, y, 12, batch_size=BATCH)
        assert not np.allclose(expected.coef, in_order.coef, rtol=1e-3)
        assert_follows(regressor(name, random_state=7), expected, X, y)

    @pytest.mark.parametrize("n_features", WAYS)
    @pytest.mark.parametrize("name", MAKE)
    def test_several_chunks_an_epoch(self, name, n_features, monkeypatch):
        """Batches are gathered some at a time; here two, and one with the rest."""
        monkeypatch.setattr(epochs, "CHUNK_BYTES", 2 * 8 * (n_features + 2) * BATCH)
        X, y, weight = problem(n_features, n_samples=90)
        expected = plain_loop(MAKE[name], X, y, 8, weight=weight, batch_size=BATCH, seed=seed_of_shuffles(3))
        assert_follows(regressor(name, random_state=3), expected, X, y, sample_weight=weight)

    @pytest.mark.every(5)
    @pytest.mark.parametrize("name", MAKE)
    @pytest.mark.parametrize("batch_size", [1, 7, 49, 50, 51, 1000])
    def test_sizes_of_batches(self, batch_size, name):
        X, y, _ = problem()
        expected = plain_loop(MAKE[name], X, y, 6, batch_size=batch_size)
        reg = regressor(name, shuffle=False).set_params(batch_size=batch_size)
        assert_follows(reg, expected, X, y)

    @pytest.mark.parametrize("name", MAKE)
    def test_weight_zero_is_removal(self, name):
        """The batches are those of the rows that are left, whatever stands in the others."""
        X, y, weight = problem()
        weight[::3] = 0
        keep = weight > 0
        expected = plain_loop(MAKE[name], X[keep], y[keep], 8, weight=weight[keep], batch_size=BATCH)
        X[~keep], y[~keep] = 1e5, -1e9
        assert_follows(regressor(name, shuffle=False), expected, X, y, sample_weight=weight)

    @pytest.mark.parametrize("name", MAKE)
    def test_a_factor_of_all_weights_is_nothing(self, name):
        X, y, weight = problem()
        expected = plain_loop(MAKE[name], X, y, 8, weight=weight, batch_size=BATCH)
        for factor in (1e-200, 1e9, 1e300):
            assert_follows(
                regressor(name, shuffle=False), expected, X, y, sample_weight=weight * factor, epochs=()
            )

    @pytest.mark.parametrize("n_features", WAYS)
    @pytest.mark.parametrize(
        "kind", [list, pd.DataFrame, sparse.csr_array, sparse.coo_matrix, np.asfortranarray, torch.from_numpy]
    )
    def test_kinds_of_data(self, kind, n_features):
        X, y, weight = problem(n_features)
        X[np.abs(X) < 0.5] = 0
        expected = plain_loop(
            MAKE["adam"], X, y, 6, weight=weight, batch_size=BATCH, seed=seed_of_shuffles(0)
        )
        assert_follows(regressor("adam", random_state=0), expected, kind(X), y, sample_weight=weight)

    def test_polars(self):
        polars = pytest.importorskip("polars")
        X, y, _ = problem()
        expected = plain_loop(MAKE["adam"], X, y, 6, batch_size=BATCH, seed=seed_of_shuffles(0))
        assert_follows(regressor("adam", random_state=0), expected, polars.DataFrame(X), y)

    def test_read_only_memory(self, tmp_path):
        X, y, _ = problem()
        np.save(tmp_path / "X.npy", X)
        mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
        expected = plain_loop(MAKE["sgd"], X, y, 6, batch_size=BATCH)
        assert_follows(regressor("sgd", shuffle=False), expected, mapped, y)

    @pytest.mark.parametrize("n_features", WAYS)
    def test_float32_is_trained_in_float64(self, n_features):
        X, y, _ = problem(n_features)
        X = X.astype(np.float32)
        expected = plain_loop(MAKE["sgd"], X.astype(float), y, 6, batch_size=BATCH)
        reg = fit_quietly(regressor("sgd", shuffle=False, max_iter=6, tol=0), X, y)
        np.testing.assert_allclose(reg.coef_, expected.coef[-1, 0], rtol=2.0**-22)
        np.testing.assert_allclose(reg.loss_curve_, expected.loss, rtol=1e-10)

    @pytest.mark.parametrize("name", MAKE)
    def test_a_scheduler_steps_once_an_epoch(self, name):
        X, y, _ = problem()
        make = functools.partial(schedulers.StepLR, step_size=3, gamma=0.5)
        expected = plain_loop(MAKE[name], X, y, 12, batch_size=BATCH, make_scheduler=make)
        assert_follows(regressor(name, shuffle=False, lr_scheduler=make), expected, X, y)

    @pytest.mark.parametrize("n_features", WAYS)
    def test_lbfgs(self, n_features):
        """A few epochs, before line searches branch on rounding."""
        X, y, _ = problem(n_features)
        make = functools.partial(
            torch.optim.LBFGS,
            lr=1.0,
            max_iter=1,
            line_search_fn="strong_wolfe",
            tolerance_grad=0,
            tolerance_change=0,
        )
        options = {"alpha": 1.0}
        expected = plain_loop(make, X, y, 2, batch_size=BATCH, **options)
        reg = TorchLinearRegressor(solver="lbfgs", learning_rate=1.0, batch_size=BATCH, shuffle=False)
        assert_follows(reg.set_params(**options), expected, X, y, rtol=1e-8)

    def test_the_validation_curve(self):
        X, y, _ = problem(n_samples=80)
        reg = regressor("adam", shuffle=False, max_iter=7, tol=0)
        fit_quietly(reg, X[:50], y[:50], X_val=X[50:], y_val=y[50:])
        expected = plain_loop(MAKE["adam"], X[:50], y[:50], 7, batch_size=BATCH)
        losses = [
            ((y[50:] - X[50:] @ coef[0] - intercept[0]) ** 2).mean() / 2
            for coef, intercept in zip(expected.coef, expected.intercept, strict=True)
        ]
        np.testing.assert_allclose(reg.validation_loss_curve_, losses, rtol=1e-10)


class TestRandomState:
    @pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
    def test_reproducible_bit_by_bit(self, solver):
        X, y, _ = problem()
        reg = TorchLinearRegressor(solver=solver, batch_size=BATCH, random_state=3, max_iter=20)
        one, two = fit_quietly(clone(reg), X, y), fit_quietly(clone(reg), X, y)
        np.testing.assert_array_equal(one.coef_, two.coef_)
        np.testing.assert_array_equal(one.loss_curve_, two.loss_curve_)
        copy = pickle.loads(pickle.dumps(reg))
        np.testing.assert_array_equal(fit_quietly(copy, X, y).coef_, one.coef_)

    def test_seeds_differ(self):
        X, y, _ = problem()
        one, two = (fit_quietly(regressor("sgd", random_state=seed, max_iter=3), X, y) for seed in (0, 1))
        assert not np.array_equal(one.coef_, two.coef_)
        unshuffled = [
            fit_quietly(regressor("sgd", random_state=seed, max_iter=3, shuffle=False), X, y).coef_
            for seed in (0, 1)
        ]
        np.testing.assert_array_equal(*unshuffled)

    def test_a_state_of_numpy_advances(self):
        X, y, _ = problem()
        state = np.random.RandomState(0)
        one, two = (fit_quietly(regressor("sgd", random_state=state, max_iter=3), X, y) for _ in range(2))
        assert not np.array_equal(one.coef_, two.coef_)

    @pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
    def test_global_states_stay(self, solver):
        X, y, _ = problem()
        numpy_state, torch_state = np.random.get_state()[1:3], torch.get_rng_state()  # noqa: NPY002
        reg = TorchLinearRegressor(solver=solver, batch_size=BATCH, random_state=3, max_iter=20)
        fit_quietly(reg, X, y).partial_fit(X, y)
        fit_quietly(reg.set_params(early_stopping=True), X, y)
        np.testing.assert_equal(np.random.get_state()[1:3], numpy_state)  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), torch_state)

    def test_the_global_state_of_torch_is_not_read(self):
        X, y, _ = problem()
        reg = regressor("sgd", random_state=0, max_iter=3)
        before = torch.get_rng_state()
        try:
            coefs = []
            for seed in (0, 1):
                torch.manual_seed(seed)
                coefs.append(fit_quietly(clone(reg), X, y).coef_)
        finally:
            torch.set_rng_state(before)
        np.testing.assert_array_equal(*coefs)

    def test_partial_fit_shuffles_anew_in_each_call(self):
        """As the epochs of one fit do, from the same generator."""
        X, y, _ = problem()
        reg = regressor("momentum", random_state=7)
        for _ in range(4):
            reg = pickle.loads(pickle.dumps(reg.partial_fit(X, y)))
        expected = plain_loop(MAKE["momentum"], X, y, 4, batch_size=BATCH, seed=seed_of_shuffles(7))
        np.testing.assert_allclose(reg.coef_, expected.coef[-1, 0], rtol=1e-10)


def heavy_tails(seed=0):
    """Rows of very different size, a few of which are all of the curvature."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((500, 4)) * np.exp(2 * rng.standard_normal((500, 1)))
    return X, X @ [1.0, -1.0, 2.0, 0.5] + rng.standard_normal(500)


def offset_and_scales(seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((300, 5))
    y = X @ rng.standard_normal(5) + rng.standard_normal(300)
    return X * 10.0 ** np.array([-12, 12, 0, 3, -3]) + np.array([0, 0, 1e9, 1e6, 0]), 1e5 + y


def targets_of_scales(seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((200, 4))
    y = X @ rng.standard_normal((4, 3)) + rng.standard_normal((200, 3))
    return X, y * [1e-9, 1.0, 1e9] + [0, 1e6, 0]


def many_features(seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((150, 50)) @ rng.standard_normal((50, 50))
    return X, X @ rng.standard_normal(50) + rng.standard_normal(150)


def dependent(seed=0):
    X, y, _ = problem(6, n_samples=300, seed=seed)
    return np.column_stack([X, X @ np.ones(6), X[:, 0]]), y


def few_rows_matter(seed=0):
    """All rows but some are 0, so that most batches know nothing."""
    rng = np.random.default_rng(seed)
    X = np.zeros((6000, 2))
    X[:5] = rng.standard_normal((5, 2))
    return X, X @ [1.0, 2.0] + 0.1 * rng.standard_normal(6000)


DATA = {
    "heavy tails": heavy_tails,
    "offset and scales": offset_and_scales,
    "targets of scales": targets_of_scales,
    "many features": many_features,
    "dependent": dependent,
}


class TestWithoutTuning:
    @pytest.mark.every(2)
    @pytest.mark.parametrize("alpha", [pytest.param(0.0, marks=pytest.mark.exhaustive), 0.05])
    @pytest.mark.parametrize("name", DATA)
    @pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
    def test_batches_of_64(self, solver, name, alpha):
        """1e-2 of the optimum is promised; 1e-8 is reached."""
        X, y = DATA[name]()
        exact = TorchLinearRegressor(alpha=alpha).fit(X, y)
        reg = TorchLinearRegressor(solver=solver, batch_size=64, random_state=0, alpha=alpha)
        fit_quietly(reg, X, y)
        found = distance(reg, exact.coef_, exact.intercept_, X, y)
        assert found < (1e-6 if name == "offset and scales" else 1e-8)
        assert reg.status_.distance < 1e-8

    @pytest.mark.every(3)
    @pytest.mark.parametrize("weighted", [True, False])
    @pytest.mark.parametrize("solver", ["sgd", "adam"])
    def test_weights_of_the_heaviest_rows(self, solver, weighted):
        X, y = heavy_tails(1)
        weight = np.random.default_rng(2).lognormal(0, 2, len(y)) if weighted else None
        exact = TorchLinearRegressor().fit(X, y, sample_weight=weight)
        reg = TorchLinearRegressor(solver=solver, batch_size=64, random_state=0)
        reg.fit(X, y, sample_weight=weight)
        assert distance(reg, exact.coef_, exact.intercept_, X, y, weight) < 1e-6

    @pytest.mark.parametrize("fit_intercept", [True, False])
    @pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
    def test_few_rows_matter(self, solver, fit_intercept):
        X, y = few_rows_matter()
        reg = TorchLinearRegressor(solver=solver, batch_size=256, random_state=0, max_iter=200)
        fit_quietly(reg.set_params(fit_intercept=fit_intercept), X, y)
        exact = TorchLinearRegressor(fit_intercept=fit_intercept).fit(X, y)
        assert distance(reg, exact.coef_, exact.intercept_, X, y) < 1e-2

    @pytest.mark.parametrize("seed", range(5))
    def test_batches_of_one_and_two_rows(self, seed):
        X, y, _ = problem(seed=seed)
        exact = TorchLinearRegressor().fit(X, y)
        for batch_size in (1, 2):
            reg = TorchLinearRegressor(solver="sgd", batch_size=batch_size, random_state=seed, max_iter=300)
            fit_quietly(reg, X, y)
            assert distance(reg, exact.coef_, exact.intercept_, X, y) < 1e-2

    def test_ordered_rows_without_a_shuffle(self):
        """Every batch has its own part of the line."""
        x = np.sort(np.random.default_rng(0).uniform(0, 10, 400))[:, None]
        y = 2 * x[:, 0] + np.sin(x[:, 0])
        exact = TorchLinearRegressor().fit(x, y)
        for solver in ("sgd", "adam", "lbfgs"):
            reg = TorchLinearRegressor(solver=solver, batch_size=64, shuffle=False).fit(x, y)
            assert distance(reg, exact.coef_, exact.intercept_, x, y) < 1e-8

    def test_the_loss_falls_to_that_of_the_optimum(self):
        X, y, _ = problem(n_samples=300)
        exact = TorchLinearRegressor().fit(X, y)
        best = ((y - exact.predict(X)) ** 2).mean() / 2
        reg = TorchLinearRegressor(solver="adam", batch_size=64, random_state=0).fit(X, y)
        assert reg.loss_curve_[-1] == pytest.approx(best, rel=1e-12)
        assert (reg.loss_curve_ >= best * (1 - 1e-12)).all()


def test_ill_conditioned_batches_transform_rows_not_gram_matrices() -> None:
    # Filip's powers have a condition of 1e10: whitening Gram matrices would square it.
    filip = next(problem for problem in all_problems() if problem.name == "nist-Filip")
    reg = TorchLinearRegressor(solver="sgd", batch_size=64, random_state=0).fit(filip.X, filip.y)
    truth = np.array([float(value) for value in filip.coef[0]])
    np.testing.assert_allclose(reg.coef_, truth, rtol=1e-9)
