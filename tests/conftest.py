"""Shared settings of the tests: one fixed hypothesis profile, and the skip of CUDA tests."""

import hypothesis
import pytest
import torch

# The same examples on every run and machine; no deadline, since the first torch call is slow.
hypothesis.settings.register_profile("torchlinreg", derandomize=True, deadline=None)
hypothesis.settings.load_profile("torchlinreg")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
