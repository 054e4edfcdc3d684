"""Threads: NumPy's and SciPy's keep to one while torch does the large products; so does a forked child."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock

import torch
from threadpoolctl import ThreadpoolController

_TAKEN = Lock()


@contextmanager
def torch_first() -> Iterator[None]:
    """One thread for the linear algebra of NumPy and SciPy; all others are left to torch.

    Their pools wait for work by spinning, and taken in turn with torch's, as by a solver's steps, each finds
    the processors busy with the others' waiting: 14 steps of 2000 x 150 take 30 ms with this, 1000 without.
    The limit is the process's, so that only the first of several threads sets it, and lifts it; a limit that
    is there already, or comes from elsewhere in between, stays.
    """
    if not _TAKEN.acquire(blocking=False):
        yield
        return
    try:
        libraries = _linear_algebra()
        if not _has_several_threads(libraries):
            yield
            return
        limit = libraries.limit(limits=1)
        try:
            yield
        finally:
            if not _has_several_threads(libraries):
                limit.__exit__(None, None, None)
    finally:
        _TAKEN.release()


def _has_several_threads(libraries: ThreadpoolController) -> bool:
    return any(library.num_threads > 1 for library in libraries.lib_controllers)


@cache
def _linear_algebra() -> ThreadpoolController:
    """The libraries with threads of their own: neither torch's, nor such as share OpenMP's with torch."""
    found = ThreadpoolController().select(user_api="blas")
    folder = Path(torch.__file__).parent
    own = [
        library.filepath
        for library in found.lib_controllers
        if getattr(library, "threading_layer", "") == "pthreads"
        and folder not in Path(library.filepath).parents
    ]
    return found.select(filepath=own)


def may_fork() -> None:
    """Let processes that are forked from now on compute in one thread, if torch has several here.

    GNU's OpenMP would wait for ever in a child for threads that only the parent has (GCC bug 58378). Children
    of a process whose torch has a single thread keep the number that they are given.
    """
    if torch.get_num_threads() > 1:
        _register_for_children()


@cache
def _register_for_children() -> None:
    if hasattr(os, "register_at_fork"):  # where processes fork
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
