"""Proximal Newton steps for convex losses with kinks, which are discovered on the way.

Each step goes to the minimum of a model in which the rows are quadratic on the side of their kinks where they
are, and the kinks known so far are hinges. Rows whose slope ends elsewhere than the model said are searched
for the kinks in between; where the objective has not fallen, the step is made again with these. Steps end
when the certificate says so, which knows nothing of kinks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchlinreg._objective.solution import Status
from torchlinreg._solvers.proximal_newton.certificate import Certified, Guess, certify
from torchlinreg._solvers.proximal_newton.convex import Convex
from torchlinreg._solvers.proximal_newton.kinks import Kinks, brackets, find_kinks
from torchlinreg._solvers.proximal_newton.model import Goal, Model
from torchlinreg._solvers.proximal_newton.points import ULP, Points

DEFAULT_MAX_ITER = 60
# Objectives this close to their optimum, relatively, end the steps, and are good enough where rounding keeps
# steps from that; beyond both, what rounding makes counts so many times.
CLOSE, GOOD_ENOUGH, ROUNDINGS = 1e-12, 1e-10, 10.0
# Certificates that did not fall by half, after which rounding has taken over.
PATIENCE = 5
# Slopes that end farther from the model's than this share of what curvature may have changed, and than this
# share of a typical slope, are searched for kinks.
UNEXPLAINED, SAME_SLOPE = 0.3, 1e-10
# Rows this near a kink, in units in the last place, are at it.
AT_KINK = 64
# Steps that found kinks without a lower objective, after which they are made shorter all the same.
MOST_FRUITLESS = 8
# Damping, in typical curvatures: of a first step where there is next to none, and later; after a step that
# failed, changed by a factor; none below, and at most.
FIRST, LEAST, FAILED, FACTOR, NONE, MOST = 1e-2, 1e-9, 1e-3, 8.0, 1e-6, 1e12
# Steps are shortened by this factor, down to that share.
SHORTER, SHORTEST = 4.0, 1e-9


@dataclass(frozen=True)
class End:
    """Where the steps ended, and what is known of the problem there."""

    certified: Certified
    status: Status
    n_iter: int
    kinks: Kinks
    guess: Guess | None = None


def descend(problem: Convex, theta: np.ndarray, tol: float, limit: int, kinks: Kinks | None = None) -> End:
    """Steps from `theta` until the certificate is at most `tol` of the objective, or rounding stops them."""
    bend = problem.losses.bend
    kinks = Kinks.none(problem.share.device) if kinks is None else kinks
    best, guess, damping, fruitless, waited = None, None, 0.0, 0, 0
    theta = problem.feasible(theta)
    status = Status.ITERATIONS_USED
    for n_iter in range(1, limit + 1):
        model = Model.of(problem, theta, kinks)
        before = problem.objective(theta, problem.losses.loss.value(problem.predict(theta), problem.losses.y))
        if float(model.hessian.diagonal().max(initial=0.0)) < NONE * bend:
            damping = max(damping, (FIRST if n_iter == 1 else LEAST) * bend)
        goal = model.minimum(damping)
        there = problem.at(goal.theta)
        after = problem.objective(goal.theta, there.value)
        at_kink = goal.at_kink | _is_at(kinks, problem, there)
        found = _with_kinks_between(model, goal, there, at_kink)
        rounding = problem.rounding(there)
        if after <= before + rounding and bool(there.is_finite.all()):
            fruitless = 0
            damping = 0.0 if damping < NONE * bend else damping / FACTOR
            guess = _guess(goal, there, kinks, at_kink)
            certified = certify(problem, guess)
            waited = 0 if best is None or certified.gap < best.gap / 2 else waited + 1
            theta = goal.theta
            if best is None or certified.gap <= best.gap:
                best, best_guess = certified, guess
            size = abs(after)
            if best.gap <= max(CLOSE, tol) * size + rounding:
                return End(best, Status.OPTIMAL, n_iter, found, best_guess)
            if len(found) == len(kinks):
                found = _with_kinks_at(problem, there, kinks)
            if waited >= PATIENCE and best.gap <= GOOD_ENOUGH * size + ROUNDINGS * rounding:
                return End(best, Status.OPTIMAL, n_iter, found, best_guess)
        elif len(found) == len(kinks) or fruitless > MOST_FRUITLESS:
            theta = _shortened(problem, theta, goal.theta, before)
            damping = max(FACTOR * damping, FAILED * bend)
            if damping > MOST * bend:
                status = Status.STUCK
                break
        else:
            fruitless += 1
        kinks = found
    if best is None:
        value = problem.losses.loss.value(problem.predict(theta), problem.losses.y)
        return End(Certified(theta, problem.objective(theta, value), np.inf), status, n_iter, kinks)
    if best.gap <= GOOD_ENOUGH * abs(best.objective) + ROUNDINGS * problem.rounding(there):
        status = Status.OPTIMAL
    return End(best, status, n_iter, kinks, best_guess)


def _is_at(kinks: Kinks, problem: Convex, there: Points) -> Tensor:
    """Which kinks their rows are at, up to rounding."""
    prediction = there.prediction[kinks.row]
    size = problem.losses.of_rows(kinks.row).sizes(prediction)
    return (prediction - kinks.position).abs() <= AT_KINK * ULP * size


def _with_kinks_between(model: Model, goal: Goal, there: Points, at_kink: Tensor) -> Kinks:
    """The kinks and those between the model's point and its goal that explain slopes that differ there."""
    here, kinks, losses = model.here, model.kinks, model.problem.losses
    move = (there.prediction - here.prediction).abs()
    allowed = UNEXPLAINED * torch.maximum(here.second, there.second) * move + SAME_SLOPE * losses.steep
    off = ~((there.first - goal.slope).abs() <= allowed) & there.is_finite & (move > 0)
    off[kinks.row[at_kink]] = False
    row = off.nonzero()[:, 0]
    if not len(row):
        return kinks
    rises = there.prediction[row] > here.prediction[row]
    low, high = Points.where(rises, here[row], there[row]), Points.where(rises, there[row], here[row])
    return kinks.with_new(find_kinks(losses, *brackets(kinks, row, low, high)), losses)


def _with_kinks_at(problem: Convex, there: Points, kinks: Kinks) -> Kinks:
    """The kinks and those that rows are at, which show no difference of slopes as long as the rows stay."""
    losses = problem.losses
    width = AT_KINK * ULP * losses.sizes(there.prediction)
    row = torch.arange(len(there), device=width.device)
    low, high = losses.at(there.prediction - width), losses.at(there.prediction + width)
    usable = low.is_finite & high.is_finite
    return kinks.with_new(find_kinks(losses, row[usable], low[usable], high[usable]), losses)


def _guess(goal: Goal, there: Points, kinks: Kinks, at_kink: Tensor) -> Guess:
    """What a step says of the optimum."""
    prediction = torch.full_like(there.prediction, torch.nan)
    prediction[kinks.row[at_kink]] = kinks.position[at_kink]
    return Guess(goal.theta, goal.slope, there.second, prediction)


def _shortened(problem: Convex, theta: np.ndarray, goal: np.ndarray, before: float) -> np.ndarray:
    """So much of the way that the objective falls; none where that is next to nothing."""
    share = 1.0
    while share > SHORTEST:
        part = theta + share * (goal - theta)
        value = problem.losses.loss.value(problem.predict(part), problem.losses.y)
        if problem.objective(part, value) < before:
            return part
        share /= SHORTER
    return theta
