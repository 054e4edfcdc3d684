"""Threads: the libraries of NumPy and SciPy keep to one while torch does the large products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock

from threadpoolctl import ThreadpoolController

_TAKEN = Lock()


@contextmanager
def torch_first() -> Iterator[None]:
    """One thread for the linear algebra of NumPy and SciPy; all others are left to torch.

    Their pools wait for work by spinning, and taken in turn with torch's, as by a solver's steps, each finds
    the processors busy with the others' waiting: 14 steps of 2000 x 150 take 30 ms with this, 1000 without.
    The limit is the process's, so that only the first of several threads sets it, and lifts it.
    """
    if not _TAKEN.acquire(blocking=False):
        yield
        return
    try:
        with _linear_algebra().limit(limits=1):
            yield
    finally:
        _TAKEN.release()


@cache
def _linear_algebra() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")
