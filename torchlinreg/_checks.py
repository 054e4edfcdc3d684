"""Checks of what both estimators and the path are given."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import validate_data


def check_number(name: str, value: Any, allowed: str, holds: Callable[[Any], bool]) -> None:
    """Raise a ValueError unless it is a finite number in its range."""
    is_number = isinstance(value, Real) and not isinstance(value, (bool, np.bool_)) and math.isfinite(value)
    if not is_number or not holds(value):
        raise ValueError(f"{name}={value!r} must be {allowed}.")


def as_numbers(value: Any) -> np.ndarray:
    """A float64 array of what a parameter holds, a tensor on any device included.

    Raises
    ------
    TypeError, ValueError
        It holds other things than numbers.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    return np.asarray(value, dtype=np.float64)


def check_flag(name: str, value: Any) -> None:
    """Raise a ValueError unless it is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name}={value!r} must be True or False.")


def check_features(estimator: Any, X: Any, *, reset: bool) -> None:
    """Keep the number and the names of the features in `reset`, else compare them with those kept.

    Both as scikit-learn does, whose own function takes longer than the rest of a small fit's checks: arrays,
    which have no names, go without it.
    """
    if type(X) is np.ndarray and X.ndim == 2:
        if reset:
            estimator.n_features_in_ = X.shape[1]
            vars(estimator).pop("feature_names_in_", None)
            return
        if X.shape[1] == getattr(estimator, "n_features_in_", None) and not hasattr(
            estimator, "feature_names_in_"
        ):
            return
    validate_data(estimator, X, reset=reset, skip_check_array=True)
