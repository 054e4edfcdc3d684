"""Directions along which an objective falls for ever: it has no finite optimum, or none at all.

A convex function has its infimum at infinity only if it falls along some half-line for ever (Rockafellar
1970, theorem 27.1). Far out its slope there is 0, with a finite infimum, or negative: unbounded below.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from torch import Tensor

from torchlinreg._linalg.cholesky import solve_positive
from torchlinreg._solvers.proximal_newton.convex import Convex

# Curvatures below this share of the typical one may be those of a direction of recession.
FLAT = 1e-4
# Of a direction, changes of columns and predictions below this share of the largest are rounding.
STILL = 1e-7
# A slope this small, beside the slopes of its rows, is that of an optimum.
LEVEL = 1e-6
# Slopes are taken so far out, in sizes of targets and predictions at the start: where they are 0 the optimum
# is attained; and in sizes of all predictions, where they may underflow to 0.
NEAR, FAR = (0.1, 1.0), (1e1, 1e2, 1e3, 1e4)
# Far out, a slope beyond this share of a typical one stays.
STEEP = 1e-6
# Singular values of Hessians below this, relatively, are rounding.
LEAST = 1e-13


class Fall(Enum):
    """How an objective falls along a half-line."""

    TO_LIMIT = "to a finite limit"
    FOR_EVER = "below all bounds"


@dataclass(frozen=True)
class Recession:
    """A direction in the coordinates of a problem, how the objective falls along it, and to what."""

    direction: np.ndarray
    fall: Fall
    limit: float


def find_recession(problem: Convex, theta: np.ndarray, start: np.ndarray) -> Recession | None:
    """The direction of recession that steps from `start` to `theta` show, if there is any."""
    here = problem.at(theta)
    gradient, hessian = problem.gradient(theta, here.first), problem.hessian(here.second)
    if not (np.isfinite(gradient).all() and np.isfinite(hessian).all()):
        return None
    free = problem.free
    low, high = problem.subgradients(theta)
    pull = gradient + np.clip(-gradient, low, high)
    moving = (low == high) | (pull != 0)  # others are held by bounds and the l1 penalty
    typical = float(hessian.diagonal().max(initial=0.0)) or 1.0
    damped = hessian[np.ix_(moving, moving)] + LEAST * typical * np.eye(int(moving.sum()))
    step = np.zeros(len(theta))
    step[moving] = -solve_positive(damped, pull[moving], LEAST)
    way = np.where(free, theta - start, 0.0)
    values, vectors = np.linalg.eigh(hessian)
    flat = vectors[:, values <= FLAT * max(typical, problem.losses.bend)]
    for direction in (step, flat @ (flat.T @ way), way, np.where(free, theta, 0.0)):
        found = _along(problem, theta, direction, problem.predict(start))
        if found is not None:
            return found
    return None


def _along(problem: Convex, theta: np.ndarray, direction: np.ndarray, at_start: Tensor) -> Recession | None:
    """What the slopes along a half-line say."""
    largest = float(np.abs(direction).max(initial=0.0))
    if not 0 < largest < np.inf:
        return None
    direction = np.where(np.abs(direction) > STILL * largest, direction / largest, 0.0)
    if ((direction > 0) & np.isfinite(problem.upper) | (direction < 0) & np.isfinite(problem.lower)).any():
        return None
    share, losses = problem.share, problem.losses
    origin, change = problem.predict(theta), problem.predict(direction)
    change[change.abs() <= STILL * float(change.abs().max())] = 0.0
    near = float(torch.maximum(at_start.abs(), losses.y.abs()).max()) or 1.0
    far = max(near, float(origin.abs().max()))
    # Rows that stay where they are do not matter, nor does their rounding.
    moves = (change != 0).nonzero()[:, 0]
    part, of_part, origin, change = losses.of_rows(moves), share[moves], origin[moves], change[moves]
    # How far a unit of the direction leads the rows that have a slope: the last ones of many, perhaps.
    pulls = of_part * part.lines(origin).first.abs()
    reach = float(pulls @ change.abs()) / (float(pulls.sum()) or 1.0)
    if not 0 < reach < np.inf:
        return None
    lengths = (0.0, *(near / reach * each for each in NEAR), *(far / reach * each for each in FAR))
    for number, length in enumerate(lengths):
        lines = part.lines(origin + length * change)
        terms = of_part * lines.first * change
        point = theta + length * direction
        signs = np.where(point == 0, np.sign(direction), np.sign(point))
        slope = float(terms.sum()) + float(direction @ (problem.ridge @ point + problem.l1 * signs))
        noise = float(terms.abs().sum())
        if not np.isfinite(slope) or slope > LEAST * noise:
            return None
        if length == 0 and slope >= -LEVEL * noise:
            return None
        if number <= len(NEAR) and slope == 0:
            return None
        if length == 0:
            before = float(of_part @ lines.value) + problem.penalty(theta)
    fallen = before - float(of_part @ lines.value) - problem.penalty(point)
    limit = problem.objective(theta, losses.loss.value(problem.predict(theta), losses.y)) - max(fallen, 0.0)
    fall = Fall.FOR_EVER if slope < -STEEP * losses.steep * reach else Fall.TO_LIMIT
    return Recession(direction, fall, limit)
