"""The shortest vector within bounds that satisfies linear equations: least distance programming.

``min |c|^2 / 2`` with ``A c = b`` and ``lower <= c <= upper`` has a dual with a variable for each equation::

    min_v sum_j h_j(a_j . v) - b . v,   where h_j'(t) = clip(t, lower_j, upper_j) and c_j = h_j'(a_j . v)

It is piecewise quadratic: proximal steps (which are augmented Lagrangians of the primal), each by Newton's
method with exact line searches (Li, Sun, Toh 2018, SIAM J. Optim. 28, 433-458), end at the optimum after
finitely many.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import lapack

from torchlinreg._linalg.gram import EPS

# Each proximal step shrinks the violation of an equation by this share of its squared norm, over what of that
# belongs to coefficients that are free: two or three steps suffice, up to five where few are.
PROXIMAL = 1e-6
MAX_PROXIMAL = 60
# Newton steps of a proximal one: 5 to 7 for normal data of up to 200 x 5000, up to 110 where one vector is
# left.
MAX_NEWTON = 200
# Violations of the equations, in units of the rounding of their terms, that end a step.
SETTLED = 4.0
# Violations that may remain, in the same units.
SATISFIED = 32.0
# Corrections of the free coefficients at the end, each of which shrinks their error by `PROXIMAL`.
CORRECTIONS = 2


def shortest_within(
    equations: np.ndarray, size: np.ndarray, right: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> np.ndarray | None:
    """The shortest `c` with ``equations @ c == right``, within the bounds; None where rounding forbids.

    Parameters
    ----------
    equations : ndarray of shape (n_equations, n_features)
        Neither they nor the bounds may contradict each other, but for rounding.
    size : ndarray of shape (n_equations, n_features)
        What the rounding of the equations is relative to.
    """
    if len(equations) == 0:
        return np.clip(0.0, lower, upper)
    square = (equations**2).sum(1)
    weight = PROXIMAL * np.where(square > 0, square, 1.0)
    dual = np.zeros(len(equations))
    for _ in range(MAX_PROXIMAL):
        dual = _proximal_step(equations, size, right, lower, upper, weight, dual)
        pull = equations.T @ dual
        rounding = EPS * (size.T @ np.abs(dual))
        coef = _snapped(pull, lower, upper, rounding)
        free = (coef > lower) & (coef < upper)
        terms = size @ np.where(free, rounding / EPS, np.abs(coef)) + np.abs(right)
        if (np.abs(equations @ coef - right) <= SATISFIED * EPS * terms).all():
            return _snapped(_corrected(equations, right, lower, upper, weight, coef), lower, upper, rounding)
    return None


def _snapped(coef: np.ndarray, lower: np.ndarray, upper: np.ndarray, rounding: np.ndarray) -> np.ndarray:
    """Coefficients within the bounds; those that are off one by rounding are there."""
    return np.where(coef - lower <= rounding, lower, np.where(upper - coef <= rounding, upper, coef))


def _corrected(
    equations: np.ndarray,
    right: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    weight: np.ndarray,
    coef: np.ndarray,
) -> np.ndarray:
    """Free coefficients moved to satisfy the equations to their own rounding, not that of the dual."""
    free = (coef > lower) & (coef < upper)
    inside = equations[:, free]
    coef = coef.copy()
    for _ in range(CORRECTIONS):
        step = _newton_step(inside, weight, equations @ coef - right)
        if step is not None:
            coef[free] = np.clip(coef[free] + inside.T @ step, lower[free], upper[free])
    return coef


def _newton_step(inside: np.ndarray, weight: np.ndarray, gradient: np.ndarray) -> np.ndarray | None:
    """The Newton step of the dual's proximal objective; None for overflow."""
    hessian = inside @ inside.T
    hessian.ravel()[:: len(hessian) + 1] += weight
    unit = np.sqrt(hessian.diagonal())
    factor, info = lapack.dpotrf(hessian / unit[:, None] / unit, lower=1)
    return None if info else -lapack.dpotrs(factor, gradient / unit, lower=1)[0] / unit


def _proximal_step(
    equations: np.ndarray,
    size: np.ndarray,
    right: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    weight: np.ndarray,
    anchor: np.ndarray,
) -> np.ndarray:
    """Where the dual plus ``sum(weight * (v - anchor)^2) / 2`` is least."""
    dual = anchor
    for _ in range(MAX_NEWTON):
        pull = equations.T @ dual
        coef = np.clip(pull, lower, upper)
        away = weight * (dual - anchor)
        gradient = equations @ coef - right + away
        free = (pull > lower) & (pull < upper)
        terms = size @ np.where(free, size.T @ np.abs(dual), np.abs(coef)) + np.abs(right) + np.abs(away)
        if (np.abs(gradient) <= SETTLED * EPS * terms).all():
            break
        step = _newton_step(equations[:, free], weight, gradient)
        if step is None:
            break
        length = _line_search(pull, equations.T @ step, lower, upper, gradient @ step, weight @ step**2)
        if not length > 0:
            break
        dual = dual + length * step
    return dual


def _line_search(
    pull: np.ndarray, step: np.ndarray, lower: np.ndarray, upper: np.ndarray, slope: float, curvature: float
) -> float:
    """Where along a step the dual is least: its slope grows by `curvature` and, of free ones, ``step^2``."""
    moving = step != 0
    pull, step, lower, upper = pull[moving], step[moving], lower[moving], upper[moving]
    with np.errstate(over="ignore"):
        ends = (np.stack([lower, upper]) - pull) / step
    enters, leaves = np.minimum(*ends), np.maximum(*ends)
    square = step**2
    at = np.concatenate([np.maximum(enters, 0.0), leaves])
    change = np.concatenate([square, -square])
    counted = (np.concatenate([leaves, leaves]) > 0) & (at < np.inf)
    at, change = at[counted], change[counted]
    order = np.argsort(at)
    at = at[order]
    rises = np.maximum(curvature + np.cumsum(change[order]), curvature)
    starts, rises = np.append(0.0, at), np.append(curvature, rises)
    slopes = slope + np.append(0.0, np.cumsum(rises[:-1] * np.diff(starts)))
    last = int(np.searchsorted(slopes, 0.0, side="right")) - 1
    return float(starts[last] - slopes[last] / rises[last]) if last >= 0 else 0.0
