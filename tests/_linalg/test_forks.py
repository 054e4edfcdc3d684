"""A process forked after the parent has used threads computes on, in one thread."""

import os
import signal
import subprocess
import sys

import pytest

# For interpreters of their own: this one may have used its threads already.
THREADS = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
SECONDS = 60
BEGIN = """
import os
import numpy as np, torch
from torchlinreg import TorchLinearRegressor, TorchLinearRegressorCV, regularization_path

def in_child(call):
    child = os.fork()
    if child == 0:
        os._exit(not call())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

torch.set_num_threads(2)
X = np.random.default_rng(0).standard_normal((3000, 50))
y = X @ np.arange(50.0) + 1
reg = TorchLinearRegressor()
"""
COMPUTES = """
def compute():
    return np.allclose(TorchLinearRegressor().fit(X, y).predict(X), y)
"""
# What the parent has called before.
CALLS = [
    "reg.fit(X, y)",
    "reg.partial_fit(X, y)",
    "reg.coef_, reg.intercept_ = np.arange(50.0), 1.0; reg.predict(X)",
    "TorchLinearRegressor(loss='huber', alpha=0.1).fit(X, y)",
    "TorchLinearRegressor(loss='log_cosh', solver='adam', max_iter=2, tol=1).fit(X, y)",
    "regularization_path(X, y, l1_ratio=1.0, alphas=2)",
    "TorchLinearRegressorCV(alphas=2).fit(X, y)",
]
GRID_SEARCH = """
import joblib
from sklearn.model_selection import GridSearchCV
reg.fit(X, y)
search = GridSearchCV(reg, {"alpha": [0.0, 1.0]}, n_jobs=2, cv=3)
with joblib.parallel_config(backend="multiprocessing"):
    print(search.fit(X, y).best_params_["alpha"])
"""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def run(program):
    """What a program prints; it and its children are gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program],
        env=os.environ | THREADS,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, errors = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    assert process.returncode == 0, errors
    return printed.strip()


def test_only_children_forked_after_a_fit_with_threads_have_one_thread():
    numbers = "in_child(lambda: torch.get_num_threads() == {})\n"
    one_thread = "torch.set_num_threads(1)\nreg.fit(X, y)\ntorch.set_num_threads(2)\n"
    two_threads = "reg.fit(X, y)\nin_child(compute)\n"
    program = BEGIN + COMPUTES + numbers.format(2) + one_thread + numbers.format(2) + two_threads
    assert run(program + numbers.format(1) + "print(torch.get_num_threads())") == "2"


@pytest.mark.exhaustive
@pytest.mark.parametrize("call", CALLS)
def test_a_child_computes_whatever_the_parent_has_called(call):
    run(BEGIN + COMPUTES + call + "\nin_child(compute)")


@pytest.mark.exhaustive
def test_joblib_may_fork_for_a_grid_search():
    assert run(BEGIN + GRID_SEARCH) == "0.0"
