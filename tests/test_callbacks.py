"""scikit-learn's callbacks and ours: what they see, what they may stop, and going on after a kill."""

import functools
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.plain_loop import fit_quietly, plain_loop, seed_of_shuffles
from reference.problems import three_features
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.optim import SGD, Adam
from torch.optim import lr_scheduler as schedulers

from torchlinreg import TorchLinearRegressor
from torchlinreg._objective.solution import Status
from torchlinreg.callbacks import Checkpoint, CoefficientHistory

sklearn_callback = pytest.importorskip("sklearn.callback", reason="callbacks need scikit-learn 1.9")


def problem(n_samples=50, n_targets=None):
    return three_features(n_samples, n_targets, std=[1, 3, 0.3], mean=[1, 0, 1])[:2]


class Recorder:
    """Sees everything that the protocol offers, and stops after an epoch."""

    def __init__(self, stop_after=None):
        self.stop_after = stop_after
        self.events = []
        self.predictions = []

    def setup(self, estimator, context):
        self.events.append("setup")

    def teardown(self, estimator, context):
        self.events.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.events.append(f"begin {context.task_name}")

    def on_fit_task_end(self, estimator, context, *, X=None, fitted_estimator=None, metadata=None):
        self.events.append(f"end {context.task_name}")
        if context.task_name == "epoch":
            self.predictions.append(fitted_estimator.predict(X))
            return fitted_estimator.n_iter_ == self.stop_after
        return False


class TestProtocol:
    @pytest.mark.parametrize("batch_size", [None, 8])
    @pytest.mark.parametrize("learning_rate", ["auto", 0.01])
    @pytest.mark.parametrize("n_targets", [None, 2])
    def test_every_epoch_is_seen(self, n_targets, learning_rate, batch_size):
        X, y = problem(n_targets=n_targets)
        recorder = Recorder()
        reg = TorchLinearRegressor(solver="adam", learning_rate=learning_rate, batch_size=batch_size)
        reg.set_params(max_iter=7, tol=0, random_state=0)
        fit_quietly(clone(reg).set_callbacks(recorder), X, y)
        expected = ["setup", "begin fit", *["begin epoch", "end epoch"] * 7, "end fit", "teardown"]
        assert recorder.events == expected
        last = fit_quietly(reg, X, y)  # without callbacks
        np.testing.assert_allclose(recorder.predictions[-1], last.predict(X), rtol=1e-12)

    @pytest.mark.parametrize("solver", ["auto", "exact"])
    def test_solvers_without_epochs(self, solver):
        recorder = Recorder()
        TorchLinearRegressor(solver=solver).set_callbacks(recorder).fit(*problem())
        assert recorder.events == ["setup", "begin fit", "end fit", "teardown"]

    @pytest.mark.parametrize("early_stopping", [True, False])
    @pytest.mark.parametrize("batch_size", [None, 8])
    @pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
    def test_a_stop_is_honoured(self, solver, batch_size, early_stopping):
        X, y = problem()
        recorder = Recorder(stop_after=3)
        rate = 1e-3 if solver != "lbfgs" else 0.1
        reg = TorchLinearRegressor(solver=solver, learning_rate=rate, batch_size=batch_size, tol=0)
        reg.set_params(random_state=0, early_stopping=early_stopping).set_callbacks(recorder).fit(X, y)
        assert reg.n_iter_ == len(reg.loss_curve_) == len(recorder.predictions) == 3
        assert reg.status_.kind is Status.CALLBACK
        if not early_stopping:
            np.testing.assert_array_equal(reg.predict(X), recorder.predictions[-1])

    def test_torn_down_after_an_error(self):
        recorder = Recorder()
        reg = TorchLinearRegressor(solver="sgd", learning_rate=1e9).set_callbacks(recorder)
        with pytest.raises(FloatingPointError):
            reg.fit(*problem())
        assert recorder.events[-1] == "teardown"

    def test_callbacks_change_nothing(self):
        X, y = problem()
        for learning_rate in ("auto", 0.01):
            reg = TorchLinearRegressor(solver="adam", learning_rate=learning_rate, early_stopping=True)
            reg.set_params(random_state=0)
            plain, watched = fit_quietly(clone(reg), X, y), clone(reg).set_callbacks(Recorder())
            fit_quietly(watched, X, y)
            np.testing.assert_array_equal(plain.coef_, watched.coef_)
            np.testing.assert_allclose(plain.loss_curve_, watched.loss_curve_, rtol=1e-14)
            assert plain.n_iter_ == watched.n_iter_

    def test_the_warning_points_at_the_caller(self):
        reg = TorchLinearRegressor(solver="sgd", learning_rate=1e-9, max_iter=2).set_callbacks(Recorder())
        with pytest.warns(ConvergenceWarning) as caught:
            reg.fit(*problem())
        assert caught[0].filename == __file__

    def test_what_is_no_callback_is_refused(self):
        with pytest.raises(TypeError, match="callback"):
            TorchLinearRegressor(solver="sgd").set_callbacks("nonsense")


class TestOfScikitLearn:
    def test_scoring_monitor(self):
        X, y = problem()
        monitor = sklearn_callback.ScoringMonitor(scoring="r2")
        reg = TorchLinearRegressor(solver="adam", max_iter=30, tol=0).set_callbacks(monitor)
        fit_quietly(reg, X, y)
        log = monitor.get_logs().data_as_pandas
        epochs = log[log["task_name"] == "epoch"] if "task_name" in log else log
        scores = epochs["r2"].dropna().to_numpy()
        assert len(scores) in (30, 31)  # of the epochs, and of the fit
        assert scores[-1] == pytest.approx(reg.score(X, y), rel=1e-12)
        assert scores[0] < scores[-1]

    def test_scoring_monitor_with_weights(self):
        X, y = problem()
        monitor = sklearn_callback.ScoringMonitor(scoring="r2")
        reg = TorchLinearRegressor(solver="adam", max_iter=5, tol=0).set_callbacks(monitor)
        weight = np.random.default_rng(0).uniform(0, 3, len(y))
        fit_quietly(reg, X, y, sample_weight=weight)
        found = monitor.get_logs().data_as_pandas["r2"].dropna().to_numpy()
        assert found[-1] == pytest.approx(reg.score(X, y, sample_weight=weight), rel=1e-12)

    def test_scoring_monitor_in_pipeline_and_search(self):
        X, y = problem()
        monitor = sklearn_callback.ScoringMonitor(scoring="r2")
        reg = TorchLinearRegressor(solver="adam", max_iter=5, tol=0).set_callbacks(monitor)
        pipeline = make_pipeline(StandardScaler(), reg)
        fit_quietly(pipeline, X, y)
        assert len(monitor.get_logs().data_as_pandas["r2"].dropna()) >= 5
        search = GridSearchCV(pipeline, {"torchlinearregressor__alpha": [0.0, 1.0]}, cv=2)
        fit_quietly(search, X, y)
        n_scores = sum(len(run.data_as_pandas["r2"].dropna()) for run in monitor.get_logs(select="all"))
        assert n_scores >= 5 + 5 * (2 * 2 + 1)

    @pytest.mark.parametrize("solver", ["auto", "sgd"])
    def test_progress_bar(self, solver):
        pytest.importorskip("rich")
        X, y = problem()
        out = io.StringIO()
        with redirect_stdout(out):
            bar = sklearn_callback.ProgressBar()
            reg = TorchLinearRegressor(solver=solver, max_iter=20).set_callbacks(bar)
            fit_quietly(reg, X, y)
            pipeline = make_pipeline(StandardScaler(), clone(reg).set_callbacks())
            fit_quietly(pipeline.set_callbacks(bar), X, y)
            search = GridSearchCV(clone(reg).set_callbacks(), {"alpha": [0.0, 1.0]}, cv=2)
            fit_quietly(search.set_callbacks(bar), X, y)
        assert "TorchLinearRegressor" in out.getvalue()


class TestCoefficientHistory:
    @pytest.mark.parametrize("n_targets", [None, 2])
    @pytest.mark.parametrize("batch_size", [None, 8])
    def test_is_the_trajectory(self, batch_size, n_targets):
        X, y = problem(n_targets=n_targets)
        history = CoefficientHistory()
        reg = TorchLinearRegressor(solver="adam", learning_rate=0.05, batch_size=batch_size, max_iter=30)
        fit_quietly(reg.set_params(tol=0, random_state=3).set_callbacks(history), X, y)
        make = functools.partial(Adam, lr=0.05)
        expected = plain_loop(make, X, y, 30, batch_size=batch_size, seed=seed_of_shuffles(3))
        coef, intercept = expected.coef, expected.intercept
        if n_targets is None:
            coef, intercept = coef[:, 0], intercept[:, 0]
        np.testing.assert_allclose(history.coef_, coef, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(history.intercept_, intercept, rtol=1e-9, atol=1e-12)
        assert history.epochs_ == list(range(1, 31))
        np.testing.assert_array_equal(history.coef_[-1], reg.coef_)

    def test_every_so_many_and_only_of_the_last_fit(self):
        X, y = problem()
        history = CoefficientHistory(every=4)
        reg = TorchLinearRegressor(solver="adam", max_iter=10, tol=0).set_callbacks(history)
        for _ in range(2):
            fit_quietly(reg, X, y)
            assert history.epochs_ == [4, 8]
            assert history.coef_.shape == (2, 3)

    def test_in_the_users_units_without_tuning(self):
        X, y = problem()
        history = CoefficientHistory()
        X = X * [1e6, 1, 1e-6] + [1e6, 0, 0]
        reg = TorchLinearRegressor(solver="sgd").set_callbacks(history).fit(X, y)
        losses = [
            ((y - X @ coef - intercept) ** 2).mean() / 2
            for coef, intercept in zip(history.coef_, history.intercept_, strict=True)
        ]
        np.testing.assert_allclose(losses, reg.loss_curve_, rtol=1e-7)

    @pytest.mark.parametrize("callback", [CoefficientHistory, functools.partial(Checkpoint, "x.pt")])
    @pytest.mark.parametrize("every", [0, -1, 1.5, True])
    def test_every_is_checked(self, every, callback):
        with pytest.raises(ValueError, match=f"every={every} must be an integer, 1 or more"):
            callback(every=every)


def halve(optimizer):
    return schedulers.StepLR(optimizer, step_size=150, gamma=0.5)


N_EPOCHS = 500
TRAINING = {
    "sgd": {"solver": "sgd", "learning_rate": 1e-4},
    "sgd auto batches": {"solver": "sgd", "batch_size": 8},
    "adam auto": {"solver": "adam"},
    "momentum batches": {
        "solver": functools.partial(SGD, momentum=0.9),
        "learning_rate": 1e-4,
        "batch_size": 8,
    },
    "adam scheduler": {"solver": "adam", "learning_rate": 1e-3, "batch_size": 16, "lr_scheduler": halve},
    "adam plateau": {
        "solver": "adam",
        "learning_rate": 1e-3,
        "lr_scheduler": functools.partial(schedulers.ReduceLROnPlateau, patience=3, threshold=1e-3),
    },
    "adam early stopping": {
        "solver": "adam",
        "learning_rate": 1e-3,
        "batch_size": 16,
        "early_stopping": True,
        "tol": 1e-12,
        "n_iter_no_change": 10**6,
    },
    "lbfgs": {"solver": "lbfgs", "learning_rate": 0.01},
}


def regressor(name, n_epochs=N_EPOCHS):
    return TorchLinearRegressor(**{"max_iter": n_epochs, "tol": 0, "random_state": 1, **TRAINING[name]})


def train_all(folder):
    """Train all of them at once, writing checkpoints; what the process that is killed does."""

    def train(name):
        checkpoint = Checkpoint(Path(folder) / f"{name}.pt", every=1)
        regressor(name).set_callbacks(checkpoint).fit(*problem())

    threads = [threading.Thread(target=train, args=(name,)) for name in TRAINING]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of checkpoints that a process left behind, which was killed at some moment."""
    folder = tmp_path_factory.mktemp("killed")
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    # However long it takes until it is killed, it is there.
    code = f"import signal, test_callbacks; test_callbacks.train_all({str(folder)!r}); signal.pause()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL, cwd=here.parent
    )
    try:
        while not all((folder / f"{name}.pt").exists() for name in TRAINING):
            assert process.poll() is None, "the process ended before it was killed"
            time.sleep(0.01)
        time.sleep(random.SystemRandom().uniform(0, 0.3))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    return folder


def assert_same_fit(found, expected):
    np.testing.assert_array_equal(found.coef_, expected.coef_)
    np.testing.assert_array_equal(found.intercept_, expected.intercept_)
    np.testing.assert_array_equal(found.loss_curve_, expected.loss_curve_)
    assert found.n_iter_ == expected.n_iter_
    assert found.status_ == expected.status_


class TestCheckpoint:
    @pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
    @pytest.mark.parametrize(
        "name",
        [
            name
            if name in ("sgd", "adam early stopping")
            else pytest.param(name, marks=pytest.mark.exhaustive)
            for name in TRAINING
        ],
    )
    def test_a_killed_process_goes_on(self, name, killed):
        """Bit by bit as if it had never been interrupted."""
        X, y = problem()
        history = CoefficientHistory()  # whose epochs tell where it went on
        found = regressor(name).set_callbacks(history)
        fit_quietly(found, X, y, resume_from=killed / f"{name}.pt")
        expected = fit_quietly(regressor(name).set_callbacks(CoefficientHistory()), X, y)
        assert_same_fit(found, expected)
        if name == "adam early stopping":
            np.testing.assert_array_equal(found.validation_loss_curve_, expected.validation_loss_curve_)
        if history.epochs_:
            assert history.epochs_[0] > 1

    @pytest.mark.every(3)
    @pytest.mark.parametrize("name", TRAINING)
    def test_from_the_middle(self, name, tmp_path):
        X, y = problem()
        path = tmp_path / "training.pt"

        class StopAt37(Recorder):
            def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
                return context.task_name == "epoch" and fitted_estimator.n_iter_ == 37

        fit_quietly(regressor(name, 60).set_callbacks(Checkpoint(path, every=5), StopAt37()), X, y)
        history = CoefficientHistory()
        found = fit_quietly(regressor(name, 60).set_callbacks(history), X, y, resume_from=path)
        expected = fit_quietly(regressor(name, 60).set_callbacks(CoefficientHistory()), X, y)
        assert history.epochs_ == list(range(36, 61))
        assert_same_fit(found, expected)

    @pytest.mark.parametrize(
        "options",
        [
            {"solver": "sgd"},
            {"solver": "adam", "learning_rate": 0.5, "early_stopping": True, "n_iter_no_change": 5},
        ],
        ids=["optimal", "early stopping"],
    )
    def test_from_the_end(self, options, tmp_path):
        X, y = problem()
        path = tmp_path / "training.pt"
        reg = TorchLinearRegressor(**options, random_state=0)
        expected = clone(reg).set_callbacks(Checkpoint(path, every=1)).fit(X, y)
        assert_same_fit(clone(reg).fit(X, y, resume_from=path), expected)
        assert expected.status_.kind.name in ("OPTIMAL", "EARLY_STOPPED")  # not MAX_ITER

    def test_more_epochs_than_before(self, tmp_path):
        """With a number as learning_rate, nothing else depends on max_iter."""
        X, y = problem()
        path = tmp_path / "training.pt"
        fit_quietly(regressor("momentum batches", 20).set_callbacks(Checkpoint(path, every=20)), X, y)
        found = fit_quietly(regressor("momentum batches", 50), X, y, resume_from=path)
        assert_same_fit(found, fit_quietly(regressor("momentum batches", 50), X, y))

    def test_nothing_else_is_left_in_the_folder(self, tmp_path):
        fit_quietly(regressor("sgd", 10).set_callbacks(Checkpoint(tmp_path / "a.pt", every=3)), *problem())
        assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]

    def test_a_failed_write_leaves_the_last_one(self, tmp_path, monkeypatch):
        path = tmp_path / "a.pt"
        fit_quietly(regressor("sgd", 10).set_callbacks(Checkpoint(path, every=10)), *problem())
        before = path.read_bytes()

        def no_space(*args):
            raise OSError("No space left on device")

        monkeypatch.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space left"):
            fit_quietly(regressor("sgd", 20).set_callbacks(Checkpoint(path, every=1)), *problem())
        assert path.read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]

    def test_a_folder_that_is_not_there(self, tmp_path):
        reg = regressor("sgd", 10).set_callbacks(Checkpoint(tmp_path / "no" / "a.pt", every=1))
        with pytest.raises(FileNotFoundError):
            reg.fit(*problem())

    @pytest.mark.parametrize("features", [1, 3])
    @pytest.mark.parametrize("learning_rate", ["auto", 1e-3])
    def test_other_data_are_refused(self, learning_rate, features, tmp_path):
        X, y = problem()
        X = X[:, :features]
        path = tmp_path / "a.pt"
        reg = TorchLinearRegressor(solver="adam", learning_rate=learning_rate, max_iter=10, tol=0)
        fit_quietly(clone(reg).set_callbacks(Checkpoint(path, every=5)), X, y)
        others = [
            (X * 3 + 5, y, {}),
            (X, 2 * y + X[:, 0], {}),
            (X[:-3], y[:-3], {}),
            (X, y, {"sample_weight": np.arange(1.0, 51.0)}),
            (X, np.column_stack([y, y]), {}),
            (np.column_stack([X, X[:, 0] ** 2]), y, {}),
        ]
        for other_X, other_y, options in others:
            with pytest.raises(ValueError, match="checkpoint"):
                reg.fit(other_X, other_y, resume_from=path, **options)
        assert fit_quietly(reg, X, y, resume_from=path).n_iter_ == 10

    def test_small_coefficients_of_other_data_are_refused(self, tmp_path):
        X, y = problem()
        path = tmp_path / "a.pt"
        reg = TorchLinearRegressor(solver="sgd", learning_rate=1e-22, fit_intercept=False, max_iter=9, tol=0)
        fit_quietly(clone(reg).set_callbacks(Checkpoint(path, every=5)), 1e9 * X, y)
        with pytest.raises(ValueError, match="checkpoint"):
            reg.fit(1e9 * X, -3 * y, resume_from=path)

    @pytest.mark.parametrize(
        "options",
        [
            {"solver": "sgd"},
            {"solver": "lbfgs"},
            {"alpha": 1.0},
            {"fit_intercept": False},
            {"learning_rate": "auto"},
            {"lr_scheduler": schedulers.ConstantLR},
        ],
    )
    def test_other_parameters_are_refused(self, options, tmp_path):
        X, y = problem()
        path = tmp_path / "a.pt"
        reg = TorchLinearRegressor(solver="adam", learning_rate=0.01, max_iter=10, tol=0)
        fit_quietly(clone(reg).set_callbacks(Checkpoint(path, every=5)), X, y)
        with pytest.raises(ValueError, match="checkpoint"):
            reg.set_params(**options).fit(X, y, resume_from=path)

    def test_another_rate_of_a_callable_is_refused(self, tmp_path):
        X, y = problem()
        path = tmp_path / "a.pt"
        reg = TorchLinearRegressor(solver=functools.partial(torch.optim.SGD, lr=0.01), max_iter=10, tol=0)
        fit_quietly(clone(reg).set_callbacks(Checkpoint(path, every=5)), X, y)
        with pytest.raises(ValueError, match="checkpoint"):
            reg.set_params(solver=functools.partial(torch.optim.SGD, lr=0.02)).fit(X, y, resume_from=path)

    def test_damaged_files_are_refused(self, tmp_path):
        X, y = problem()
        path, damaged = tmp_path / "a.pt", tmp_path / "b.pt"
        fit_quietly(regressor("adam auto", 10).set_callbacks(Checkpoint(path, every=5)), X, y)
        good = path.read_bytes()
        rng = np.random.default_rng(0)
        for index in range(60):
            content = bytearray(good)
            if index % 3 == 0:
                content = content[: int(rng.integers(0, len(good)))]
            elif index % 3 == 1:
                for place in rng.integers(0, len(good), 5):
                    content[place] ^= 0xFF
            else:
                content = bytearray(rng.bytes(int(rng.integers(1, 600))))
            damaged.write_bytes(bytes(content))
            with pytest.raises(ValueError, match=r"resume_from='.*b\.pt' is (damaged|not a file that)"):
                regressor("adam auto", 10).fit(X, y, resume_from=damaged)

    def test_other_files_of_torch_are_refused(self, tmp_path):
        path = tmp_path / "a.pt"
        for content in ([1, 2], {"format": 1}, {"weights": torch.ones(2)}):
            torch.save(content, path)
            with pytest.raises(ValueError, match=r"is not a file that .*Checkpoint wrote"):
                regressor("sgd", 10).fit(*problem(), resume_from=path)

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            regressor("sgd", 10).fit(*problem(), resume_from=tmp_path / "none.pt")

    def test_code_in_a_file_is_not_run(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return (Path(tmp_path / "ran").touch, ())

        torch.save({"format": 1, "epoch": Evil()}, tmp_path / "a.pt")
        with pytest.raises(ValueError, match=r"is not a file that .*Checkpoint wrote"):
            regressor("sgd", 10).fit(*problem(), resume_from=tmp_path / "a.pt")
        assert not (tmp_path / "ran").exists()


class TestVerbose:
    def test_some_lines(self, capsys):
        reg = TorchLinearRegressor(solver="adam", learning_rate=0.01, max_iter=200, tol=0, verbose=1)
        X, y = problem()
        fit_quietly(reg, X, y, X_val=X, y_val=y)
        lines = [line for line in capsys.readouterr().out.splitlines() if ": epoch " in line]
        assert 5 <= len(lines) <= 25
        assert lines[-1] == (
            f"TorchLinearRegressor: epoch 200, loss {reg.loss_curve_[-1]:.6g}, "
            f"validation {reg.validation_loss_curve_[-1]:.6g}"
        )

    def test_a_line_per_epoch(self, capsys):
        reg = TorchLinearRegressor(solver="adam", learning_rate=0.01, max_iter=30, tol=0, verbose=2)
        fit_quietly(reg, *problem())
        assert capsys.readouterr().out.count(": epoch ") == 30
