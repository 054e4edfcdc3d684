"""How far a point may be above the optimum, from values and first derivatives of the rows alone.

With a slope ``lam_i`` of each row and a line of that slope that its loss is nowhere below, the lines make a
lower bound of the objective if ``sum_i share_i lam_i a_i`` and the slopes of the penalty add up to 0.
Tangents on both sides of a prediction are such lines, and so is their mean of slope ``lam_i``. Neither the
kinks need be known, nor second derivatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchlinreg._linalg.cholesky import solve_positive
from torchlinreg._solvers.proximal_newton.convex import Convex
from torchlinreg._solvers.proximal_newton.points import ULP, Points, RowLosses

# Rows at kinks are as stiff as so many times a typical curvature, of which the largest counts up to a limit.
STIFF, LARGEST_BEND = 1e7, 1e3
# Steps of Newton's method with these; the second one takes away the rounding of the first.
STEPS = 2
# Singular values of their matrices below this, relatively, are rounding.
LEAST_DAMPING = 1e-13
# Sums of slopes, in coordinates of unit columns, are rounded by so many units in the last place.
SUMS = 4.0
# Tangents are taken this far on both sides of a prediction: in typical residuals; in units in the last place
# at a kink; and so many times as far as the curvature says, at least so much of a typical one.
WIDTH, AT_KINK, BEYOND, LEAST_BEND = 1e-9, 16, 2.0, 1e-3
# They are moved outwards by this factor until the slope lies between theirs.
WIDER, MOST_WIDER = 4.0, 30


@dataclass(frozen=True)
class Certified:
    """A point and a bound on its objective above the optimum."""

    theta: np.ndarray
    objective: float
    gap: float


@dataclass(frozen=True)
class Guess:
    """What is known of an optimum: each row's slope and curvature there, and the rows that are at kinks."""

    theta: np.ndarray
    slope: Tensor  # shape: (n_rows,)
    curvature: Tensor  # shape: (n_rows,)
    prediction: Tensor  # of a kink, where the row is at one; NaN elsewhere; shape: (n_rows,)


def certify(problem: Convex, guess: Guess) -> Certified:
    """The point nearby where the guessed slopes balance each other, and how far it may be off."""
    losses, share = problem.losses, problem.share
    bend, held = losses.bend, ~torch.isnan(guess.prediction)
    largest = float(guess.curvature.max().clamp(max=LARGEST_BEND * bend))
    stiffness = torch.where(held, STIFF * (bend + largest), guess.curvature)
    theta, slope, missing = _balanced(problem, guess, stiffness)
    there = losses.lines(problem.predict(theta))
    prediction, value = there.prediction, there.value
    off = (there.first - slope).abs().nan_to_num(nan=0.0, posinf=0.0)
    width = WIDTH * losses.spread + BEYOND * off / guess.curvature.clamp(min=LEAST_BEND * bend)
    width = torch.where(held, 2 * (prediction - guess.prediction).abs(), width)
    width += AT_KINK * ULP * losses.sizes(prediction)
    above, missed = _above_tangents(losses, prediction, value, slope, width)
    left = float(share @ missed) * losses.spread + missing * problem.reach
    gap = float(share @ above.abs()) + left
    return Certified(theta, problem.objective(theta, value), gap if np.isfinite(gap) else np.inf)


def certify_smooth(problem: Convex, theta: np.ndarray, lines: Points, enough: float) -> float:
    """How far a point may be off, from its tangents; if that is more than enough, from those of a step."""
    losses, share = problem.losses, problem.share
    gradient = problem.gradient(theta, lines.first)
    gap = _missing(problem, theta, gradient) * problem.reach
    if gap <= enough:
        return gap
    points = losses.at(lines.prediction)
    low, high = problem.subgradients(theta)
    moving = low == high
    step = np.zeros(len(theta))
    if moving.any():
        hessian = _definite(problem.hessian(points.second)[np.ix_(moving, moving)])
        step[moving] = -solve_positive(hessian, (gradient + low)[moving], LEAST_DAMPING)
    change = points.second * problem.predict(step)
    slope = points.first + change
    width = WIDTH * losses.spread + AT_KINK * ULP * losses.sizes(points.prediction)
    width += BEYOND * change.abs() / points.second.clamp(min=LEAST_BEND * losses.bend)
    above, missed = _above_tangents(losses, points.prediction, points.value, slope, width)
    bend = float(step @ problem.ridge @ step) / 2  # what the ridge is above its tangent after the step
    missing = _missing(problem, theta, problem.gradient(theta + step, slope))
    left = float(share @ missed) * losses.spread + missing * problem.reach
    after = float(share @ above.abs()) + left + bend
    return float(np.fmin(gap, after)) if np.isfinite([gap, after]).any() else np.inf


def _definite(hessian: np.ndarray) -> np.ndarray:
    """The matrix with so much more on its diagonal that rounding does not matter."""
    own = hessian.diagonal()
    least = LEAST_DAMPING * own.max(initial=0.0) + LEAST_DAMPING
    return hessian + np.diag(LEAST_DAMPING * np.maximum(own, least))


def _balanced(problem: Convex, guess: Guess, stiffness: Tensor) -> tuple[np.ndarray, Tensor, float]:
    """The point and slopes where these balance the penalty, by Newton steps; what is missing of that.

    Slopes change as the stiffness says, so that they balance whatever it is.
    """
    theta, slope = guess.theta, guess.slope
    low, high = problem.subgradients(theta)
    moving = low == high
    hessian = _definite(problem.hessian(stiffness)[np.ix_(moving, moving)])
    for _ in range(STEPS if moving.any() else 0):
        gradient = problem.gradient(theta, slope)[moving] + low[moving]
        # Where the objective is flat, rounding of the sums would lead anywhere.
        gradient[np.abs(gradient) <= SUMS * ULP * float(problem.share @ slope.abs())] = 0.0
        step = np.zeros(len(theta))
        step[moving] = -solve_positive(hessian, gradient, LEAST_DAMPING)
        # Within the bounds, and with the signs for which the slopes of the l1 penalty are.
        stays = (theta + step < problem.lower) | (theta + step > problem.upper)
        step[stays | (problem.l1 > 0) & ((theta + step) * theta < 0)] = 0.0
        # A step too small to change theta changes the slopes of stiff rows all the same.
        slope = slope + stiffness * problem.predict(step)
        theta = theta + step
    return theta, slope, _missing(problem, theta, problem.gradient(theta, slope))


def _missing(problem: Convex, theta: np.ndarray, gradient: np.ndarray) -> float:
    """How far the gradient of rows and ridge is from balancing the slopes of the other penalties."""
    return float(np.abs(gradient + np.clip(-gradient, *problem.subgradients(theta))).sum())


def _above_tangents(
    losses: RowLosses, prediction: Tensor, value: Tensor, slope: Tensor, width: Tensor
) -> tuple[Tensor, Tensor]:
    """How far each loss is above a line of this slope that it is nowhere below, and how far the slope is
    beyond those of all tangents."""
    width = width.clone()
    low, high = losses.lines(prediction - width), losses.lines(prediction + width)
    for _ in range(MOST_WIDER):
        missed = torch.maximum(low.first - slope, slope - high.first)
        wide = (missed > 8 * ULP * (low.first.abs() + high.first.abs())).nonzero()[:, 0]
        if not len(wide):
            break
        width[wide] *= WIDER
        part = losses.of_rows(wide)
        low.numbers[:, wide] = part.lines(prediction[wide] - width[wide]).numbers
        high.numbers[:, wide] = part.lines(prediction[wide] + width[wide]).numbers
    rise = high.first - low.first
    mix = ((high.first - slope) / rise).clamp_(0.0, 1.0).nan_to_num_(nan=0.5)
    below = torch.addcmul(low.value, low.first, prediction - low.prediction)
    above = torch.addcmul(high.value, high.first, prediction - high.prediction)
    line = torch.where(mix == 1, below, torch.lerp(above, below, mix))
    return value - line, missed.clamp_(min=0.0)
