"""The limit on threads holds while solvers run, and is gone afterwards, whoever else runs."""

import threading

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from torchlinreg import TorchLinearRegressor
from torchlinreg._linalg.threads import torch_first
from torchlinreg._solvers.newton import newton


@pytest.fixture
def threads():
    """How many threads the linear algebra libraries may take; more than one to begin with."""
    libraries = ThreadpoolController().select(user_api="blas")
    with libraries.limit(limits=2):
        yield lambda: {library["num_threads"] for library in libraries.info()}


def test_limit_is_lifted_by_the_first_who_set_it(threads):
    before = threads()
    entered, leave = threading.Event(), threading.Event()

    def stay():
        with torch_first():
            entered.set()
            leave.wait()

    with torch_first():
        other = threading.Thread(target=stay)
        other.start()
        entered.wait()
        assert threads() == {1}
    assert threads() == before
    leave.set()
    other.join()
    assert threads() == before
    with torch_first(), torch_first():
        assert threads() == {1}
    assert threads() == before


def test_the_limits_of_others_stay(threads):
    libraries = ThreadpoolController().select(user_api="blas")
    with libraries.limit(limits=1), torch_first():
        assert threads() == {1}
    with torch_first():
        libraries.limit(limits=2)  # whoever set a limit before lifts it now
    assert threads() == {2}


def test_limit_is_lifted_after_errors(threads):
    before = threads()
    with pytest.raises(RuntimeError), torch_first():
        raise RuntimeError
    assert threads() == before


def test_solvers_run_under_it(threads, monkeypatch):
    before, seen = threads(), []

    def looked_at(problem, **options):
        seen.append(threads())
        return design_of(problem, **options)

    design_of = newton.design_of
    monkeypatch.setattr(newton, "design_of", looked_at)
    X = np.random.default_rng(0).normal(size=(50, 2))
    TorchLinearRegressor(loss="huber").fit(X, X[:, 0])
    assert seen == [{1}]
    assert threads() == before
