"""Penalties and coefficients in units of the columns' spreads and the target's, and gaps in the user's."""

from __future__ import annotations

import numpy as np

from torchlinreg._linalg.gram import EPS
from torchlinreg._objective.penalty import Penalty

# Penalties and bounds in units so extreme that they overflow.
HUGE = 1e300


def in_units(penalty: Penalty, unit: np.ndarray, target: float) -> Penalty:
    """The penalty, over ``target**2``, of ``coef * unit / target``."""
    with np.errstate(over="ignore", under="ignore"):
        ratio = np.clip(unit / target, 1 / HUGE, HUGE)
        scaled = penalty.scaled(ratio)
        l1 = np.minimum(penalty.l1 / unit / target, HUGE)
        l2 = np.minimum(penalty.l2 / unit / unit, HUGE)
    return Penalty(l1, l2, scaled.lower, scaled.upper)


def in_users_units(
    coef: np.ndarray, inside: Penalty, penalty: Penalty, unit: np.ndarray, target: float
) -> np.ndarray:
    """Back from `in_units`; what is at a bound there is exactly at the user's."""
    users = np.clip(coef / unit * target, penalty.lower, penalty.upper)
    users = np.where(coef == inside.upper, penalty.upper, users)
    return np.where(coef == inside.lower, penalty.lower, users) + 0.0


def relative(gaps: np.ndarray, values: np.ndarray, constants: np.ndarray) -> float:
    """The largest gap of a target, relative to the objective of its best constant; each in the target's unit.

    The objective of the solution takes that place where bounds make it the larger one.
    """
    scale = np.maximum(constants, values)
    return float(np.divide(gaps, scale, out=gaps.copy(), where=scale > 0).max())


def rounding_of_model(
    center: np.ndarray, spread: np.ndarray, coef: np.ndarray, intercept: np.ndarray
) -> np.ndarray:
    """What rounding coefficients and intercepts makes of the predictions of each target, in its units.

    Coefficients have shape (..., n_features, n_targets). A product, and a sum of so many terms, mostly round
    in both directions.
    """
    size = np.abs(coef)
    share = (2 + coef.shape[-2] ** 0.5) * EPS
    return share * (np.abs(center) @ size) + EPS * (np.abs(intercept) + spread @ size)
