"""Shared settings of the tests: one fixed hypothesis profile, and a CUDA device for the tests of it."""

from collections.abc import Generator
from typing import Any

import hypothesis
import pytest
import torch
from simulated_cuda import SimulatedCuda

# The same examples on every run and machine; no deadline, since the first torch call is slow.
hypothesis.settings.register_profile("torchlinreg", derandomize=True, deadline=None)
hypothesis.settings.load_profile("torchlinreg")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Run a test marked ``cuda``, with its fixtures, on the simulated device where torch sees no other."""
    if item.get_closest_marker("cuda") is None or torch.cuda.is_available():
        return (yield)
    with SimulatedCuda():
        return (yield)
