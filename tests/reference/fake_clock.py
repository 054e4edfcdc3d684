"""A clock for tests of benchmarks, which are about what is recorded, not about how fast this machine is."""

import gc
from types import ModuleType

import pytest

# What passes between two looks at the clock, unless somebody spends more.
TICK_S = 1e-3


class Clock:
    """Stands for the module `time`; its time passes by looking at it, by sleeping and by spending."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += TICK_S
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def put_on_fake_clock(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> Clock:
    """Let benchmarks measure by a clock on which every run takes as long, and collect no garbage."""
    clock = Clock()
    for module in modules:
        monkeypatch.setattr(module, "time", clock)
    # Among the objects of a whole test session a collection takes 0.2 s, before each sample.
    monkeypatch.setattr(gc, "collect", lambda: 0)
    return clock
