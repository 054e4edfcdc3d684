"""Devices and dtypes: the same numbers on CPU and CUDA, and fitted state that lives on the CPU."""

import pickle
import subprocess
import sys
from os import environ
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from simulated_cuda import SimulatedCuda
from sklearn import config_context
from sklearn.base import clone

from torchlinreg import TorchLinearRegressor, TorchLinearRegressorCV

ROOT = Path(__file__).parents[1]
DTYPES = [torch.float32, torch.float64]


def problem(shape=(500, 6), n_targets=None, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal(shape) * 10.0 ** (np.arange(shape[1]) % 6) + 100
    noise = rng.standard_normal(shape[0] if n_targets is None else (shape[0], n_targets))
    return X, 7 + X[:, 0].reshape([-1] + [1] * (noise.ndim - 1)) + noise, rng.uniform(0, 3, shape[0])


def ill_conditioned():
    X, y, weight = problem()
    X[:, 1] = X[:, 0] * (1 + 1e-6 * X[:, 1])
    return X, y, weight


def rank_deficient():
    X, y, weight = problem()
    return np.column_stack([X, X[:, 2], np.full(len(X), 0.3)]), y, weight


PROBLEMS = {
    "tall": problem,
    "several targets": lambda: problem(n_targets=3),
    "several blocks": lambda: problem((200_000, 6)),
    "many columns": lambda: problem((600, 6), seed=1),
    "wide": lambda: problem((5, 12)),
    "ill-conditioned": ill_conditioned,
    "rank-deficient": rank_deficient,
    "constant": lambda: (np.full((20, 2), 0.3), np.arange(20.0), np.ones(20)),
}


def fitted_arrays(reg):
    return {
        name: value
        for name, value in vars(reg).items()
        if name.endswith("_") and isinstance(value, np.ndarray | np.generic | torch.Tensor)
    }


def tensors_within(value, seen=None):
    """All tensors that a fitted model holds, in any attribute."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return []
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, list | tuple):
        parts = list(value)
    else:
        parts = list(getattr(value, "__dict__", {}).values())
    return [tensor for part in parts for tensor in tensors_within(part, seen)]


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("as_kind", [np.asarray, torch.from_numpy])
def test_learned_attributes_are_numpy(method, as_kind):
    X, y, weight = problem()
    reg = getattr(TorchLinearRegressor(), method)(as_kind(X), as_kind(y), as_kind(weight))
    assert not any(isinstance(value, torch.Tensor) for value in fitted_arrays(reg).values())
    assert isinstance(reg.coef_, np.ndarray)
    assert isinstance(reg.rank_, int)
    assert isinstance(reg.condition_number_, float)
    assert all(tensor.device.type == "cpu" for tensor in tensors_within(reg))


@pytest.mark.parametrize("device", ["auto", "cpu", "cpu:0"])
def test_the_cpu_by_its_names(device):
    X, y, _ = problem()
    expected = TorchLinearRegressor().fit(X, y)
    np.testing.assert_array_equal(TorchLinearRegressor(device=device).fit(X, y).coef_, expected.coef_)


@pytest.fixture
def restored_precision():
    """Whatever a test does to torch's precision of float32 products, the next one does not see it."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("precision", ["medium", "high"])
@pytest.mark.parametrize("as_kind", [np.asarray, torch.from_numpy])
@pytest.mark.usefixtures("restored_precision")
def test_float32_precision_of_the_user_changes_nothing(precision, as_kind):
    X, y, weight = (as_kind(part.astype(np.float32)) for part in problem((400, 70)))
    torch.set_float32_matmul_precision("highest")
    expected = TorchLinearRegressor(alpha=1e-3).fit(X, y, weight)
    predicted = expected.predict(X)
    torch.set_float32_matmul_precision(precision)
    reg = TorchLinearRegressor(alpha=1e-3).fit(X, y, weight)
    np.testing.assert_array_equal(reg.coef_, expected.coef_)
    np.testing.assert_array_equal(reg.predict(X), predicted)
    assert torch.get_float32_matmul_precision() == precision


def test_float32_rows_accumulate_in_float64():
    """The float32 result is the rounded float64 one of the same numbers."""
    X, y, weight = problem((20_000, 3))
    X, y = X.astype(np.float32), y.astype(np.float32)
    single = TorchLinearRegressor().fit(X, y, weight)
    double = TorchLinearRegressor().fit(X.astype(np.float64), y.astype(np.float64), weight)
    assert single.coef_.dtype == np.float32
    np.testing.assert_allclose(single.coef_, double.coef_, rtol=2.0**-23)
    np.testing.assert_allclose(single.intercept_, double.intercept_, rtol=2.0**-23)


def test_nothing_is_recorded_for_gradients():
    X, y, _ = problem()
    rows = torch.from_numpy(X).requires_grad_()
    reg = TorchLinearRegressor().fit(rows, torch.from_numpy(y).requires_grad_())
    assert not any(tensor.requires_grad for tensor in tensors_within(reg))
    assert reg.predict(rows).grad_fn is None


def test_inside_inference_mode():
    X, y, _ = problem()
    expected = TorchLinearRegressor().fit(X, y)
    with torch.inference_mode():
        rows = torch.from_numpy(X)
        reg = TorchLinearRegressor().fit(rows, y)
        np.testing.assert_allclose(reg.predict(rows).numpy(), expected.predict(X), rtol=1e-12)
    np.testing.assert_array_equal(reg.coef_, expected.coef_)


@pytest.mark.cuda
class TestCuda:
    @pytest.mark.every(3)
    @pytest.mark.parametrize("alpha", [0.0, 0.1])
    @pytest.mark.parametrize("fit_intercept", [True, False])
    @pytest.mark.parametrize("weighted", [True, False])
    @pytest.mark.parametrize("method", ["fit", "partial_fit"])
    @pytest.mark.parametrize("name", PROBLEMS)
    def test_agrees_with_the_cpu(self, name, method, weighted, fit_intercept, alpha):
        X, y, weight = PROBLEMS[name]()
        options = {"alpha": alpha, "fit_intercept": fit_intercept}
        weight = weight if weighted else None
        cpu = getattr(TorchLinearRegressor(device="cpu", **options), method)(X, y, weight)
        cuda = getattr(TorchLinearRegressor(device="cuda", **options), method)(X, y, weight)
        size = np.abs(cpu.coef_).max(initial=1e-300)
        np.testing.assert_allclose(cuda.coef_, cpu.coef_, rtol=1e-10, atol=1e-13 * size)
        np.testing.assert_allclose(cuda.intercept_, cpu.intercept_, rtol=1e-10, atol=1e-10)
        assert cuda.rank_ == cpu.rank_
        assert cuda.status_ == cpu.status_

    @pytest.mark.parametrize("solver", ["cholesky", "exact", "dual"])
    def test_every_solver(self, solver):
        X, y, weight = problem((40, 4))
        cpu = TorchLinearRegressor(solver=solver, device="cpu").fit(X, y, weight)
        cuda = TorchLinearRegressor(solver=solver, device="cuda").fit(X, y, weight)
        np.testing.assert_allclose(cuda.coef_, cpu.coef_, rtol=1e-10)

    @pytest.mark.parametrize(
        "as_kind", [list, pd.DataFrame, sparse.csr_array, np.asfortranarray, np.float32, torch.from_numpy]
    )
    def test_host_data_go_there(self, as_kind):
        X, y, _ = problem()
        X = np.round(X)  # so that float32 holds it
        cpu = TorchLinearRegressor().fit(X, y)
        cuda = TorchLinearRegressor(device="cuda").fit(as_kind(X), y)
        rtol = 3e-7 if as_kind is np.float32 else 1e-10
        np.testing.assert_allclose(cuda.coef_, cpu.coef_, rtol=rtol)
        assert isinstance(cuda.predict(X), np.ndarray)

    def test_thin_sparse_rows(self):
        rng = np.random.default_rng(0)
        X = sparse.random_array((2000, 30), density=0.03, rng=rng, format="csr")
        y = rng.standard_normal(2000)
        cpu, cuda = (TorchLinearRegressor(device=device).fit(X, y) for device in ("cpu", "cuda"))
        np.testing.assert_allclose(cuda.coef_, cpu.coef_, rtol=1e-10)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("n_targets", [None, 1, 3])
    def test_tensors_there(self, dtype, n_targets):
        X, y, weight = (torch.from_numpy(part).to(dtype) for part in problem(n_targets=n_targets))
        cpu = TorchLinearRegressor().fit(X, y, weight)
        rows = X.cuda()
        reg = TorchLinearRegressor().fit(rows, y.cuda(), weight.cuda())
        found = reg.predict(rows)
        assert found.device == rows.device
        assert found.dtype == dtype
        assert found.shape == y.shape
        rtol = 1e-10 if dtype is torch.float64 else 3e-7
        np.testing.assert_allclose(reg.coef_, cpu.coef_, rtol=rtol)
        expected = X.double().numpy() @ np.atleast_2d(reg.coef_).T.astype(float)
        expected = (expected + reg.intercept_).reshape(y.shape)
        np.testing.assert_allclose(found.cpu(), expected, rtol=10 * rtol)

    def test_data_may_be_here_and_there(self):
        X, y, weight = problem()
        expected = TorchLinearRegressor().fit(X, y, weight)
        for parts in (
            (torch.from_numpy(X).cuda(), y, weight),
            (X, torch.from_numpy(y).cuda(), torch.from_numpy(weight).cuda()),
            (torch.from_numpy(X).cuda(), pd.Series(y), weight.tolist()),
        ):
            found = TorchLinearRegressor().fit(*parts)
            np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-10)

    def test_tensor_there_and_device_cpu(self):
        X, y, _ = problem()
        reg = TorchLinearRegressor(device="cpu").fit(torch.from_numpy(X).cuda(), y)
        np.testing.assert_array_equal(reg.coef_, TorchLinearRegressor().fit(X, y).coef_)
        assert reg.predict(torch.from_numpy(X).cuda()).device.type == "cuda"

    @pytest.mark.parametrize("place", ["X", "y"])
    @pytest.mark.parametrize("shape", [(50, 3), (5, 9)])
    def test_nan_is_found(self, place, shape):
        X, y, _ = problem(shape)
        rows, target = torch.from_numpy(X).cuda(), torch.from_numpy(y).cuda()
        {"X": rows, "y": target}[place][-1] = torch.nan
        for method in ("fit", "partial_fit"):
            with pytest.raises(ValueError, match=f"Input {place} contains NaN"):
                getattr(TorchLinearRegressor(), method)(rows, target)
        if place == "X":
            with pytest.raises(ValueError, match="Input X contains NaN"):
                TorchLinearRegressor().fit(X, y).predict(rows)

    def test_learned_state_lives_on_the_cpu(self):
        X, y, weight = problem()
        for method in ("fit", "partial_fit"):
            reg = getattr(TorchLinearRegressor(device="cuda"), method)(X, y, weight)
            assert isinstance(reg.coef_, np.ndarray)
            assert all(tensor.device.type == "cpu" for tensor in tensors_within(reg))

    @pytest.mark.every(2)
    @pytest.mark.parametrize("method", ["fit", "partial_fit"])
    def test_unpickles_where_there_is_none(self, method, tmp_path):
        X, y, _ = problem()
        reg = getattr(TorchLinearRegressor(), method)(torch.from_numpy(X).cuda(), y)
        (tmp_path / "model.pickle").write_bytes(pickle.dumps(reg))
        np.save(tmp_path / "X.npy", X)
        np.save(tmp_path / "y.npy", y)
        program = """
import pickle, sys
from pathlib import Path
import numpy as np, torch
assert not torch.cuda.is_available()
folder = Path(sys.argv[1])
reg = pickle.loads((folder / "model.pickle").read_bytes())
X, y = np.load(folder / "X.npy"), np.load(folder / "y.npy")
np.save(folder / "found.npy", reg.predict(X))
reg.partial_fit(X, y)
"""
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            cwd=ROOT,
            env={**environ, "CUDA_VISIBLE_DEVICES": ""},
            check=True,
        )
        np.testing.assert_allclose(np.load(tmp_path / "found.npy"), reg.predict(X), rtol=1e-12)

    def test_a_stream_from_both(self):
        X, y, _ = problem()
        reg = TorchLinearRegressor().partial_fit(X[:200], y[:200])
        reg.partial_fit(torch.from_numpy(X[200:350]).cuda(), y[200:350])
        reg.partial_fit(X[350:], y[350:])
        np.testing.assert_allclose(reg.coef_, TorchLinearRegressor().fit(X, y).coef_, rtol=1e-10)

    @pytest.mark.usefixtures("restored_precision")
    @pytest.mark.parametrize("allowed", [True, False])
    def test_tf32_of_the_user(self, allowed):
        """Neither changed by us, nor a change to us."""
        X, y, weight = (torch.from_numpy(part).float().cuda() for part in problem((5000, 40)))
        before = torch.backends.cuda.matmul.allow_tf32
        try:
            torch.backends.cuda.matmul.allow_tf32 = False
            expected = TorchLinearRegressor(alpha=1e-3).fit(X, y, weight)
            predicted = expected.predict(X)
            torch.backends.cuda.matmul.allow_tf32 = allowed
            reg = TorchLinearRegressor(alpha=1e-3).fit(X, y, weight)
            # TF32 has 10 bits: its errors are of the order of 1e-3
            np.testing.assert_allclose(reg.coef_, expected.coef_, rtol=3e-7)
            torch.testing.assert_close(reg.predict(X), predicted, rtol=1e-6, atol=0)
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    def test_a_device_beyond_the_last(self):
        X, y, _ = problem()
        name = f"cuda:{torch.cuda.device_count()}"
        with pytest.raises(ValueError, match=f"device='{name}'"):
            TorchLinearRegressor(device=name).fit(X, y)


TRAINING = {
    "full batch": {"solver": "adam"},
    "batches by Gram matrices": {"solver": "sgd", "batch_size": 64},
    "batches by rows": {"solver": "adam", "batch_size": 16, "max_iter": 50},
    "a number, by rows": {"solver": "sgd", "learning_rate": 1e-11, "batch_size": 16, "max_iter": 5, "tol": 0},
    "line searches": {"solver": "lbfgs", "batch_size": 16},
    "early stopping": {"solver": "sgd", "batch_size": 64, "early_stopping": True},
}


@pytest.mark.cuda
class TestTraining:
    @pytest.mark.parametrize("name", TRAINING)
    @pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
    def test_agrees_with_the_cpu(self, name):
        X, y, weight = problem()
        cpu = TorchLinearRegressor(**TRAINING[name], random_state=0).fit(X, y, weight)
        there = (torch.from_numpy(part).cuda() for part in (X, y, weight))
        cuda = TorchLinearRegressor(**TRAINING[name], random_state=0).fit(*there)
        np.testing.assert_allclose(cuda.coef_, cpu.coef_, rtol=1e-8)
        assert not any(tensor.is_cuda for tensor in tensors_within(cuda))

    def test_partial_fit_keeps_nothing_there(self):
        X, y, _ = problem((500, 40))
        reg = TorchLinearRegressor(solver="adam", learning_rate=0.01, batch_size=50, device="cuda")
        reg.partial_fit(X, y).partial_fit(X, y)
        assert not any(tensor.is_cuda for tensor in tensors_within(reg))


def log_cosh(prediction, target):
    return torch.log(torch.cosh(prediction - target))


@pytest.mark.cuda
@pytest.mark.parametrize("penalty", [{}, {"alpha": 0.1, "l1_ratio": 0.5}, {"positive": True}])
@pytest.mark.parametrize("loss", ["squared_error", "huber", "absolute_error", log_cosh])
def test_losses_and_penalties_agree_with_the_cpu(loss, penalty):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((120, 4)) * [1, 3, 0.1, 10] + [0, 5, 1, -3]
    y = X @ [1, 0.2, 3, -0.1] + rng.standard_normal(120)
    weight = rng.integers(0, 3, 120).astype(float)
    reg = TorchLinearRegressor(loss=loss, **penalty)
    expected = clone(reg).fit(X, y, weight)
    there = [torch.from_numpy(part).cuda() for part in (X, y, weight)]
    np.testing.assert_allclose(reg.fit(*there).coef_, expected.coef_, rtol=1e-7, atol=1e-9)


@pytest.mark.every(5)
@pytest.mark.cuda
@pytest.mark.parametrize("scoring", [None, "r2", "neg_mean_absolute_error"])
@pytest.mark.parametrize("loss", ["squared_error", "huber"])
def test_cross_validation_of_tensors_there(loss, scoring):
    X, y, _ = problem((90, 3))
    search = TorchLinearRegressorCV(loss=loss, scoring=scoring, alphas=3, n_jobs=2)
    expected = clone(search).fit(X, y)
    found = search.fit(torch.from_numpy(X).cuda(), torch.from_numpy(y).cuda())
    assert found.alpha_ == pytest.approx(expected.alpha_, rel=1e-9)
    np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-7)


@pytest.mark.skipif(torch.cuda.is_available(), reason="waits are counted by the simulated device")
class TestWaits:
    """How often the host waits for the device does not depend on the number of blocks or batches."""

    @staticmethod
    def waits(reg, n_samples, *, weighted=False):
        X, y, weight = problem((n_samples, 4))
        with SimulatedCuda() as simulated, config_context(working_memory=0.02):  # 109 rows a block
            rows, target, weight = (torch.from_numpy(part).cuda() for part in (X, y, weight))
            clone(reg).fit(rows, target, weight if weighted else None)
        return simulated.waits

    @pytest.mark.parametrize("weighted", [True, False])
    def test_a_pass_over_many_blocks(self, weighted):
        reg = TorchLinearRegressor(tol=1e-6)  # which needs no refinement
        few = self.waits(reg, 300, weighted=weighted)
        assert few == self.waits(reg, 5000, weighted=weighted)
        assert 0 < few.total() < 20

    @pytest.mark.parametrize("solver", ["sgd", "adam"])
    @pytest.mark.parametrize("rate", ["auto", 1e-11])
    @pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
    def test_an_epoch_of_many_batches(self, solver, rate):
        reg = TorchLinearRegressor(solver=solver, learning_rate=rate, batch_size=20, tol=0, random_state=0)

        def of_an_epoch(n_samples):
            three, four = (self.waits(clone(reg).set_params(max_iter=n), n_samples) for n in (3, 4))
            return (four - three).total()

        assert of_an_epoch(100) == of_an_epoch(600)
        assert 0 < of_an_epoch(600) <= 2
