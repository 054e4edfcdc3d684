"""Shared settings of the tests: what runs each time, hypothesis profiles, and a CUDA device where needed."""

import os
from collections import Counter
from collections.abc import Generator
from typing import Any

import hypothesis
import pytest
import torch
from simulated_cuda import SimulatedCuda

# The same examples on every run and machine; no deadline, since the first torch call is slow.
hypothesis.settings.register_profile("torchlinreg", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.register_profile("exhaustive", derandomize=True, deadline=None, max_examples=500)
hypothesis.settings.load_profile("torchlinreg")


def asks_for_exhaustive(config: pytest.Config) -> bool:
    return "exhaustive" in config.option.markexpr.replace("not exhaustive", "")


def pytest_configure(config: pytest.Config) -> None:
    # With -n, each process has its share of the cores: threads that wait for each other's cores spin.
    n_processes = getattr(config.option, "numprocesses", None)
    if n_processes:
        n_threads = str(max(1, (os.cpu_count() or 1) // n_processes))
        for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ.setdefault(variable, n_threads)
    # Before test modules are imported, so that their own settings are fractions of the right number.
    if asks_for_exhaustive(config):
        hypothesis.settings.load_profile("exhaustive")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    number: Counter[str] = Counter()
    for item in items:
        # A property is tested in both selections: by few examples each time, by many if exhaustive.
        if asks_for_exhaustive(config) and hypothesis.is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker("exhaustive")
        every = item.get_closest_marker("every")
        if every:
            test = item.nodeid.partition("[")[0]
            # A prime n meets each value of each parameter, unless a parameter has n values itself.
            if number[test] % every.args[0]:
                item.add_marker("exhaustive")
            number[test] += 1


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Run a test marked ``cuda``, with its fixtures, on the simulated device where torch sees no other."""
    if item.get_closest_marker("cuda") is None or torch.cuda.is_available():
        return (yield)
    with SimulatedCuda():
        return (yield)
