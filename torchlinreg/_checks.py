"""Checks of parameters that both estimators and the path have."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
import torch


def check_number(name: str, value: Any, allowed: str, holds: Callable[[Any], bool]) -> None:
    """Raise a ValueError unless it is a finite number in its range."""
    is_number = isinstance(value, Real) and not isinstance(value, (bool, np.bool_)) and math.isfinite(value)
    if not is_number or not holds(value):
        raise ValueError(f"{name}={value!r} must be {allowed}.")


def check_strengths(alpha: Any, *, one_each: bool) -> None:
    """Raise a ValueError unless it is a strength of the penalty or, with `one_each`, an array of them."""
    if isinstance(alpha, Real):
        check_number("alpha", alpha, "a finite number, 0 or more", lambda value: value >= 0)
        return
    allowed = "a finite number, 0 or more"
    if one_each:
        allowed += ", or an array of such numbers, one for each target"
    try:
        strengths = as_numbers(alpha)
    except (TypeError, ValueError) as error:
        raise ValueError(f"alpha={alpha!r} must be {allowed}.") from error
    is_array = (
        strengths.ndim == 1 and len(strengths) and np.isfinite(strengths).all() and strengths.min() >= 0
    )
    if not is_array:
        raise ValueError(f"alpha={alpha!r} must be {allowed}.")
    if not one_each:
        raise ValueError(
            f"alpha={alpha!r} must be {allowed}, to train: all targets share it. Use solver='auto' for one "
            "number for each."
        )


def as_numbers(value: Any) -> np.ndarray:
    """A float64 array of what a parameter holds, a tensor on any device included.

    Raises
    ------
    TypeError, ValueError
        It holds other things than numbers, such as text or booleans.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if not hasattr(value, "dtype") or array.dtype == object:
        # NumPy makes numbers of text and of booleans beside numbers.
        for kind in set(map(type, np.asarray(value, dtype=object).flat)):
            if issubclass(kind, (str, bytes, bool, np.bool_)):
                raise TypeError(f"it holds {kind.__name__}")
    elif array.dtype.kind not in "iuf":
        raise TypeError(f"it has dtype {array.dtype}")
    return np.asarray(value, dtype=np.float64)


def check_flag(name: str, value: Any) -> None:
    """Raise a ValueError unless it is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name}={value!r} must be True or False.")
