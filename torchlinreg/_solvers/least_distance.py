"""The vector within bounds that satisfies linear equations best, and the shortest that satisfies them.

``min |c|^2 / 2`` with ``A c = b`` and ``lower <= c <= upper`` has a dual with a variable for each equation::

    min_v sum_j h_j(a_j . v) - b . v,   where h_j'(t) = clip(t, lower_j, upper_j) and c_j = h_j'(a_j . v)

It is piecewise quadratic: proximal steps (which are augmented Lagrangians of the primal), each by Newton's
method with exact line searches (Li, Sun, Toh 2018, SIAM J. Optim. 28, 433-458), end at the optimum after
finitely many. Least squares within bounds has the same dual, with an anchor at 0 of weight 1: variables for
each row, whatever the number of columns.
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
# Least squares without a ridge takes steps with this one, relative to the sum of the squares of all columns:
# two steps where equations can be satisfied or many coefficients are free, more the fewer are.
RIDGE = 1e-8
# Steps end where their square, weighted by the ridge, is this share of that of the equations' right sides, or
# where they are of this many units of rounding.
NOTHING, STILL = 1e-32, 8.0
# Up to this share of a column's square an l2 is so small that the dual tells too little.
WEAK = 1e-2
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
        dual = _proximal_step(equations, size, right, lower, upper, weight, dual, dual)
        pull = equations.T @ dual
        rounding = EPS * (size.T @ np.abs(dual))
        coef = _snapped(pull, lower, upper, rounding)
        free = (coef > lower) & (coef < upper)
        terms = size @ np.where(free, rounding / EPS, np.abs(coef)) + np.abs(right)
        if (np.abs(equations @ coef - right) <= SATISFIED * EPS * terms).all():
            return _snapped(_corrected(equations, right, lower, upper, weight, coef), lower, upper, rounding)
    return None


def closest_within(
    equations: np.ndarray,
    right: np.ndarray,
    l2: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    max_steps: int = MAX_PROXIMAL,
) -> np.ndarray:
    """Minimise ``|equations @ c - right|^2 / 2 + l2 @ c^2 / 2`` within the bounds.

    Parameters
    ----------
    equations : ndarray of shape (n_equations, n_features)
        Of which products, and no larger matrix, are formed.
    l2 : ndarray of shape (n_features,)
        Where one is 0 there may be several optima, of which any one is given.
    """
    coef = np.clip(0.0, lower, upper)
    ridge = 0.0 if l2.all() else RIDGE * float((equations**2).sum()) or 1.0
    unit = np.sqrt(l2 + ridge)
    inside = equations / unit
    size, one = np.abs(inside), np.ones(len(equations))
    enough = NOTHING * float(right @ right)
    dual = np.zeros(len(equations))
    for _ in range(max_steps):
        anchor = coef * (ridge / unit**2)
        low, high = (lower - anchor) * unit, (upper - anchor) * unit
        zero = np.zeros_like(dual)
        dual = _proximal_step(inside, size, right - equations @ anchor, low, high, one, zero, dual)
        pull = inside.T @ dual
        moved = np.clip(anchor + pull / unit, lower, upper)
        moved = np.where(pull <= low, lower, np.where(pull >= high, upper, moved))
        step, coef = moved - coef, moved
        square = float(step @ step)
        if ridge * square <= enough or square <= (STILL * EPS) ** 2 * float(coef @ coef):
            break
    return _settled(equations, right, l2, lower, upper, coef)


def _settled(
    equations: np.ndarray,
    right: np.ndarray,
    l2: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    coef: np.ndarray,
) -> np.ndarray:
    """The free coefficients by least squares, for those with next to no l2, and by the dual for others.

    Where the equations are not satisfied, the dual tells coefficients to the rounding of residuals over l2.
    """
    free = (coef > lower) & (coef < upper)
    weak = free & (l2 <= WEAK * (equations**2).sum(0))
    strong = free & ~weak
    if not 0 < np.count_nonzero(weak) <= len(equations):
        return coef
    of_strong = equations[:, strong] / np.sqrt(l2[strong])
    lower_factor = np.linalg.cholesky(np.eye(len(equations)) + of_strong @ of_strong.T)
    root = np.sqrt(l2[weak])
    moved = coef.copy()
    left = right - equations @ np.where(strong, 0.0, coef)
    rows = np.concatenate([np.linalg.solve(lower_factor, equations[:, weak]), np.diag(root)])
    goal = np.concatenate([np.linalg.solve(lower_factor, left), -root * coef[weak]])
    step = np.linalg.lstsq(rows, goal, rcond=None)[0]
    moved[weak] += step
    dual = np.linalg.solve(lower_factor, left - equations[:, weak] @ step)
    dual = np.linalg.solve(lower_factor.T, dual)
    moved[strong] = (equations[:, strong].T @ dual) / l2[strong]
    return moved if ((moved >= lower) & (moved <= upper)).all() else coef


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
    start: np.ndarray,
) -> np.ndarray:
    """Where the dual plus ``sum(weight * (v - anchor)^2) / 2`` is least."""
    dual = start
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
    if last < 0:
        return 0.0
    return float(starts[last] - (slopes[last] / rises[last] if slopes[last] else 0.0))
