"""Squared error within bounds where a Gram matrix would lose the digits: in orthonormal coordinates.

With ``coef = transform @ z`` the objective is half the squared distance of `z` from the least squares
solution, so that the optimum is the point nearest to that within the bounds of ``transform @ z``. Gradients
of the rows refine it, as they do least squares.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from torchlinreg._moments.gradient import DEPTHS
from torchlinreg._moments.moments import shift_and_scale
from torchlinreg._objective.problem import Problem
from torchlinreg._solvers.least_squares.whitening import geometry_of
from torchlinreg._solvers.null_space import null_space
from torchlinreg._solvers.penalised.nearest import MixedBounds

# Coefficients by a Gram matrix of unit columns, of no smaller eigenvalue, have 12 digits.
WELL_CONDITIONED = 1e-4
MAX_REFINEMENTS = 10
# Steps end where they gain this share of the objective of the best constant: nothing of it is left in
# float64.
NOTHING = 1e-30


class Bounded(NamedTuple):
    """Coefficients within bounds, of one target or all, and the passes that they took."""

    coef: np.ndarray
    n_passes: int


def solve_bounded(problem: Problem, tol: float, max_iter: int | None) -> Bounded | None:
    """Minimise the squared error with bounds and at most a ridge; None where moments do as well."""
    penalty, columns = problem.penalty, problem.standardised
    if penalty.l1.any() or columns.is_conditioned(WELL_CONDITIONED):
        return None
    kept = columns.spread.nonzero()[0]
    null = null_space(problem, kept)
    independent = np.setdiff1d(kept, null.dependent)
    if len(null.dependent) and (penalty.l2.any() or columns.is_conditioned(WELL_CONDITIONED, independent)):
        return None
    free = np.full(len(independent), np.inf)
    unbounded = replace(penalty.part(independent), lower=-free, upper=free)
    blocks = (
        problem.blocks.columns(torch.from_numpy(independent))
        if len(free) < len(penalty.l1)
        else problem.blocks
    )
    geometry = geometry_of(replace(problem, blocks=blocks, penalty=unbounded), tol)
    if len(geometry.inverse) < len(free):
        return None
    bounds = MixedBounds.of(geometry.inverse, independent, null, penalty.lower, penalty.upper)
    transform = np.zeros((len(columns.unit), len(geometry.inverse)))
    transform[independent] = geometry.transform
    best = geometry.inverse @ geometry.solution.coef
    found = [
        _solve_target(problem, bounds, transform, goal, target, max_iter)
        for target, goal in enumerate(best.T)
    ]
    return Bounded(np.stack([each.coef for each in found], axis=1), max(each.n_passes for each in found))


def _solve_target(
    problem: Problem,
    bounds: MixedBounds,
    transform: np.ndarray,
    best: np.ndarray,
    target: int,
    max_iter: int | None,
) -> Bounded:
    """From the coordinates of least squares on, by steps that the rows' gradients lead to."""
    penalty = problem.penalty
    coef, _ = bounds.nearest(best)
    enough = NOTHING * float(problem.standardised.target_spread[target] ** 2)
    last, n_passes = np.inf, 1
    limit = MAX_REFINEMENTS if max_iter is None else min(MAX_REFINEMENTS, max(1, max_iter))
    for _ in range(limit):
        n_passes += 1
        slope = transform.T @ (_gradient(problem, coef, target) - penalty.l2 * coef)
        left = replace(bounds, lower=penalty.lower - coef, upper=penalty.upper - coef)
        change, side = left.nearest(slope)
        step = bounds.mixing @ change
        gain = float(step @ (slope - step / 2))
        # The gain of a step to the nearest point is at least half its square; less of it is rounding.
        gap = max(gain, float(step @ step) / 2)
        if not enough < gap < last / 2:
            break
        last = gap
        coef = bounds.placed(coef + change, side)
    return Bounded(coef, n_passes)


def _gradient(problem: Problem, coef: np.ndarray, target: int) -> np.ndarray:
    """Mean products of the centred columns with the residuals, of the rows; a pass. Shape: (n_features,)."""
    frame = problem.moments.frame
    scale = shift_and_scale(frame)[1]
    raw = problem.moments.raw.cpu().numpy()
    first, n_features = int(problem.fit_intercept), len(coef)
    response = 1 + n_features + target
    mean = first * raw[0] / raw[0, 0]
    inside = coef / scale[1 : 1 + n_features] * scale[response]
    constant = mean[response] - mean[1 : 1 + n_features] @ inside
    model = np.append(constant, inside)[1 - first :, None]
    design = np.arange(1 - first, 1 + n_features)
    high, low = problem.exact_gradient(
        frame, design, np.array([response]), (model, np.zeros_like(model)), DEPTHS[1]
    )
    gradient = (high + low)[:, 0] / raw[0, 0]
    inside = gradient[first:] - mean[1 : 1 + n_features] * gradient[:first].sum()
    return inside / scale[1 : 1 + n_features] / scale[response]
