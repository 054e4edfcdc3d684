"""Smooth losses: Newton steps with a quadratic model of the loss and the penalty as it is.

A step reads the rows once: predictions, derivatives and the Gram matrix weighted by the curvature, at the
point that the step before has led to. Steps are damped as by Levenberg and Marquardt where the model promised
more than the loss kept (More 1978), which makes convergence global for convex losses; near the optimum they
are plain Newton steps. Where a scale of the residuals is estimated, it is one more variable of the same
jointly convex objective (Huber, Ronchetti 2009, section 7.7).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import block_diag

from torchlinreg._linalg.cholesky import cholesky, solve_positive
from torchlinreg._objective.penalty import Penalty
from torchlinreg._objective.problem import Problem
from torchlinreg._objective.solution import Solution, Status
from torchlinreg._solvers.coordinates import Design, design_of
from torchlinreg._solvers.interior_point.interior_point import solve_interior_point
from torchlinreg._solvers.newton.certificate import Rounding, gap_bound, steepest
from torchlinreg._solvers.newton.mean_loss import Expansion, Objective
from torchlinreg._solvers.newton.shortest import ShortestOptimum, has_face
from torchlinreg._solvers.penalised.nearest import MixedBounds
from torchlinreg._solvers.penalised.quadratic import Descent, minimise_quadratic, minimum_about
from torchlinreg._solvers.penalised.units import rounding_of_model
from torchlinreg._solvers.proximal_newton.by_rows import ByRows
from torchlinreg._solvers.proximal_newton.recession import Fall, Recession
from torchlinreg.losses import AbsoluteError, CallableLoss, Loss, check_convex, is_known

DEFAULT_MAX_ITER = 200
# Most problems take less than 20; more are a sign of products that tell no columns apart.
PLAIN_ITERATIONS = 50
# A smooth loss usually takes less; the probe for kinks costs as much as a few steps of 1000 rows.
UNPROBED_STEPS = 12
# Of the curvature: keeps a singular matrix solvable, and is too small to slow a step down.
LEAST_DAMPING = 1e-13
# A step is taken if the objective falls by this share of what the model promised, and the next one is damped
# less if it falls by the other.
ACCEPTED, GOOD_FALL = 1e-4, 0.25
# Where a first step fails, damping begins at this share of the largest curvature at least, then changes by
# this factor; below `NO_DAMPING` of the curvature it ends, and above `LARGEST_DAMPING` times its beginning
# the solver does.
FIRST_DAMPING, DAMPING_FACTOR, NO_DAMPING, LARGEST_DAMPING = 1e-4, 8.0, 1e-6, 1e20
# Objectives closer to each other than this, relatively, are told apart by their gradients; where they are as
# close in units of the curvature, these are rounding as well, and the model decides.
INDISTINCT, ROUNDING = 1e-10, 1e-13
# Predictions this far from the typical target's are nothing, and by so much more than the model's may slopes
# change along a step whose fall is their mean.
NEXT_TO_NOTHING, MOST_BEND = 1e-6, 1.5
# Near the optimum each step must gain this many times less than any before; where so many in a row do not,
# rounding has taken over.
LEAST_GAIN, PATIENCE = 4.0, 3
STALLED = 1e-15
# A scale below this share of the typical spread of y is that of a perfect fit of many rows; so is one below
# the rounding of y or, where most of y is 0, this share of the largest.
NO_SCALE, EPS, NO_SCALE_AT_ALL = 1e-13, 4 * 2.0**-53, 1e-30
# In a step, the scale does not fall below this share of itself.
LEAST_SHRINK = 0.1
# A Hessian of unit diagonal is singular where its smallest eigenvalue is below this; a ridge of the other
# share of the objective, in coordinates of unit columns, then decides among several optima; of that of a
# constant prediction where next to nothing is left.
FLAT, PULL, PERFECT, TINY = 1e-12, 1e-6, 1e-9, 1e-300
# Where of the curvature this share is left in some direction, the optimum may be at infinity.
FLATTENED = 1e-3
PULL_STAGES = (1e5, 1e4, 1e3, 1e2, 1e1, 1.0, 0.0)
# Mean curvatures below this share of that at a residual of 0 are those of rows that are mostly far off; the
# least absolute error, to this tolerance, is then the better start.
THIN, ROBUST_TOL = 0.05, 1e-6
# Typical targets are found from about so many rows.
MEDIAN_ROWS = 50_000
# Columns whose terms are up to so many times as large as they are have coordinates of enough digits.
ACCURATE = 1e6
# Residuals so large are far off in units of the slope there; differences below this share are nothing.
FAR, NOTHING = 1e3, 1e-13
# Norms of combinations of columns below this share of theirs are rounding.
UNRESOLVED = 1e-15
# Rows at which a loss of the user's is probed for convexity.
PROBED_ROWS = 64
# Objectives that end closer to their optimum than this are no reason to warn; rounding of the rows allows it.
GOOD_ENOUGH = 1e-9
# An optimum whose objective is higher by this share is another.
SAME = 1e-12
# Ends of losses of the user's that are closer are not searched for kinks.
CLOSE = 1e-12


def solve_newton(problem: Problem, tol: float, max_iter: int | None) -> Solution:
    """The optimum of a smooth loss with any penalty.

    Raises
    ------
    ValueError
        A user's loss is not finite, not convex or not elementwise.
    """
    design = design_of(problem, mixing_bounded=True)
    shift = _typical_targets(design, problem.loss)
    smallest_scale = [_smallest_scale(y) for y in design.blocks.y.T]
    design = design.about(shift)
    robust_start = cache(lambda: _absolute_error_fit(problem, design, shift))
    limit = DEFAULT_MAX_ITER if max_iter is None else max(1, max_iter)
    by_rows = None
    if not (is_known(problem.loss) or problem.loss.estimates_scale):
        by_rows = ByRows(problem, design, shift)
    objectives = [Objective(design, problem.loss, target) for target in range(design.blocks.n_targets)]
    shortest = ShortestOptimum(problem, design, shift) if has_face(problem.loss) else None
    ends = [
        _solve_target(each, by_rows, shortest, robust_start, smallest, tol, max_iter)
        for each, smallest in zip(objectives, smallest_scale, strict=True)
    ]
    absolute = None
    if any(end.is_flat or _is_far_off(end, problem.loss) for end in ends):
        absolute = _without_scale(problem, tol, max_iter)
        start = design.coordinates_of(absolute.coef, absolute.intercept - shift)
        for target, end in enumerate(ends):
            if end.is_flat:
                ends[target] = _with_scale(
                    objectives[target], start[:, target], end, smallest_scale[target], tol, limit
                )
            elif _is_far_off(end, problem.loss):
                ends[target] = end._replace(is_flat=True, gap=np.inf)
    theta = np.stack([end.variables[: design.n_columns] for end in ends], axis=1)
    theta[: int(problem.fit_intercept)] += shift
    coef, intercept = design.in_users_units(theta)
    coef = _at_bounds_exactly(coef, theta[design.features], design, problem.penalty)
    if design.bounds is not None and design.fit_intercept:
        intercept = theta[0] - design.center @ coef
    scale = np.array([end.variables[-1] for end in ends]) if problem.loss.estimates_scale else None
    moved = rounding_of_model(design.center, design.spread, coef, intercept)
    if design.bounds is not None:
        moved = moved + np.linalg.norm(design.bounds.mixing @ coef - theta[design.features], axis=0)
    statuses, optimality, n_iter = [], 0.0, 0
    for target, end in enumerate(ends):
        status, n_steps = end.status, end.n_iter
        if end.is_flat:
            assert absolute is not None
            coef[:, target], intercept[target] = absolute.coef[:, target], absolute.intercept[target]
            if scale is not None:
                scale[target] = 0.0
            status, n_steps = absolute.status, n_steps + absolute.n_iter
            moved = rounding_of_model(design.center, design.spread, coef, intercept)
            smallest = smallest_scale[target]
            gap, least = (
                _gap_without_scale(objectives[target], absolute, by, smallest, end.gap) / end.unit
                for by in (moved[target], 0.0)
            )
            reached = status is not Status.OPTIMAL or least <= GOOD_ENOUGH
        else:
            gap = end.relative_gap(moved[target])
            # No solver could hand back less rounded coefficients.
            reached = end.relative_gap(0.0) <= GOOD_ENOUGH
        if status is Status.OPTIMAL and not reached:
            status = Status.STUCK
        if status is Status.STUCK and not design.amplification.max() <= ACCURATE:
            status = Status.NEARLY_DEPENDENT
        if status is Status.OPTIMAL and design.is_nearly_dependent:
            status = Status.NEARLY_DEPENDENT
        statuses.append(status)
        optimality, n_iter = max(optimality, gap), max(n_iter, n_steps)
    unfinished = [status for status in statuses if status is not Status.OPTIMAL]
    return Solution(
        coef=coef,
        intercept=intercept,
        rank=design.rank,
        condition_number=design.condition_number,
        solver="newton",
        status=unfinished[0] if unfinished else Status.OPTIMAL,
        n_iter=n_iter,
        error=0.0,
        optimality=float(optimality),
        scale=scale,
    )


def _without_scale(problem: Problem, tol: float, max_iter: int | None) -> Solution:
    """The limit of an estimated scale of 0, where so many rows are fitted exactly: the absolute error."""
    weight, penalty = steepest(problem.loss), problem.penalty
    lighter = replace(penalty, l1=penalty.l1 / weight, l2=penalty.l2 / weight)
    return solve_interior_point(replace(problem, loss=AbsoluteError(), penalty=lighter), tol, max_iter)


def _gap_without_scale(
    objective: Objective, absolute: Solution, moved: float, smallest_scale: float, most: float
) -> float:
    """The gap of the limit: that of the absolute error, and what the scale and rounding may add."""
    design, loss = objective.design, objective.loss
    y = design.blocks.y[:, objective.target]
    size = float(design.share @ y.abs())
    below = smallest_scale if loss.estimates_scale else _below_its_lines(loss)
    gap = steepest(loss) * ((absolute.optimality or 0.0) + EPS) * size + below
    return min(gap, most) + steepest(loss) * moved


def _below_its_lines(loss: Loss) -> float:
    """By how much a loss is less than the absolute residual times its slope far off, at most."""
    far = torch.full((1,), FAR * (1 + steepest(loss)), dtype=torch.float64, device="cpu")
    return float(steepest(loss) * far - loss.value(far, torch.zeros_like(far)))


def _is_far_off(end: _End, loss: Loss) -> bool:
    """Whether all but rounding of the objective is that of the lines far off, and nothing else was found."""
    if loss.estimates_scale or not is_known(loss) or not steepest(loss) < np.inf:
        return False
    used_up = end.status is Status.ITERATIONS_USED and end.n_iter < DEFAULT_MAX_ITER
    found = end.relative_gap(0.0) <= GOOD_ENOUGH
    return not (used_up or found) and _below_its_lines(loss) <= NOTHING * end.unit


def _with_scale(
    objective: Objective, theta: np.ndarray, flat: _End, smallest_scale: float, tol: float, limit: int
) -> _End:
    """From the least absolute error on, to an optimum at a small scale, if there is one."""
    residual = objective.predict(theta) - objective.design.blocks.y[:, objective.target]
    scale = float(objective.design.share @ residual.abs())
    model = _Model.of(objective.design, has_scale=True)
    value = steepest(objective.loss) * scale + model.penalty_of(np.append(theta, 0.0))
    flat = flat._replace(gap=value)  # no objective is below 0
    if not scale > smallest_scale or flat.n_iter >= limit:
        return flat
    variables = np.append(model.feasible(theta), scale)
    here = objective.expand(variables)
    end = _descend(objective, model, variables, here, flat.unit, smallest_scale, tol, limit - flat.n_iter)
    end = _certified(objective, model, end._replace(n_iter=flat.n_iter + end.n_iter, unit=flat.unit))
    if end.is_flat:
        return end._replace(gap=value)
    return end if end.here.value + model.penalty_of(end.variables) < value else flat


class _End(NamedTuple):
    variables: np.ndarray
    here: Expansion  # there or, where that is known to gain, at the point before
    status: Status
    n_iter: int
    unit: float = 1.0  # the objective of a constant
    gap: float = np.inf  # of the objective, with no rounding of what is handed back
    rounding: Rounding | None = None
    is_flat: bool = False  # the scale is 0
    proven: float | None = None  # the relative gap, where the rows of a user's loss tell it
    is_settled: bool = True  # of several optima, it is the one that does not depend on the start

    def relative_gap(self, predictions: float) -> float:
        """The relative gap, for coefficients that round predictions by so much."""
        if self.proven is not None:
            return self.proven
        assert self.rounding is not None
        return self.rounding.with_model(self.gap, predictions) / self.unit


def _absolute_error_fit(problem: Problem, design: Design, shift: np.ndarray) -> np.ndarray:
    """The coordinates of the least absolute error, shape (n_columns, n_targets)."""
    fit = solve_interior_point(replace(problem, loss=AbsoluteError()), ROBUST_TOL, None)
    return design.coordinates_of(fit.coef, fit.intercept - shift)


def _typical_targets(design: Design, loss: Loss) -> np.ndarray:
    """What may be taken from the targets, shape (n_targets,): their medians, which outliers leave be."""
    y = _sampled(design.blocks.y)
    if not (loss.of_residual and design.fit_intercept):
        return np.zeros(y.shape[1])
    return y.median(0).values.cpu().numpy()


def _solve_target(
    objective: Objective,
    by_rows: ByRows | None,
    shortest: ShortestOptimum | None,
    robust_start: Callable[[], np.ndarray],
    smallest_scale: float,
    tol: float,
    max_iter: int | None,
) -> _End:
    model = _Model.of(objective.design, objective.loss.estimates_scale)
    limit = DEFAULT_MAX_ITER if max_iter is None else max(1, max_iter)
    variables, here, unit = _first(objective, model, robust_start)
    first = here
    if by_rows is None:
        return _solve_known(objective, model, shortest, variables, here, unit, smallest_scale, tol, limit)
    # Nothing is known of a loss of the user's. Where it is smooth, a few steps end; where they do not, the
    # rows are searched for kinks, and they say how far the end is from the optimum.
    end = _End(variables, here, Status.ITERATIONS_USED, 0, unit)
    if here.hessian.any():
        few = min((limit + 1) // 2, UNPROBED_STEPS)
        end = _descend(objective, model, variables, here, unit, smallest_scale, tol, few)
    recession = _recession(objective, model, by_rows, variables, first, end)
    unclear = end.status is not Status.OPTIMAL and end.n_iter < limit
    if not (unclear and by_rows.have_kinks(objective.target)):
        if unclear:
            here, before = objective.expand(end.variables), end.n_iter
            end = _descend(objective, model, end.variables, here, unit, smallest_scale, tol, limit - before)
            end = end._replace(n_iter=before + end.n_iter, unit=unit)
            # Slopes may have underflowed to 0 by now, where before they were seen to stay.
            recession = _recession(objective, model, by_rows, variables, first, end) or recession
        if recession is None:
            end = _settled(objective, model, end, unit, smallest_scale, tol, limit)
        else:
            end = _without_optimum(objective, model, end, recession, unit)
        if end.status is Status.NO_FINITE_OPTIMUM:
            return end
        gap = by_rows.certified(objective.target, end.variables, unit)
        close = gap <= GOOD_ENOUGH * unit and (
            gap <= CLOSE * unit or not by_rows.have_kinks(objective.target)
        )
        if end.status is Status.ITERATIONS_USED or close:
            return end._replace(proven=gap / unit, unit=unit)
    rest = None if max_iter is None else limit - end.n_iter
    found = by_rows.solved(objective.target, end.variables, tol**2, rest)
    n_iter = end.n_iter + found.n_iter
    end = _End(found.theta, end.here, found.status, n_iter, unit, proven=found.gap / unit)
    if recession is None or end.status is Status.OPTIMAL:
        return end
    return _without_optimum(objective, model, end, recession, unit)


def _solve_known(
    objective: Objective,
    model: _Model,
    shortest: ShortestOptimum | None,
    variables: np.ndarray,
    here: Expansion,
    unit: float,
    smallest_scale: float,
    tol: float,
    limit: int,
) -> _End:
    """The end of a loss of the library's, with a bound."""
    plain = limit if model.penalty is None else min(limit, PLAIN_ITERATIONS)
    end = _descend(objective, model, variables, here, unit, smallest_scale, tol, plain)
    found = _shortest(objective, model, end, shortest, unit, tol)
    end = found or _settled(objective, model, end, unit, smallest_scale, tol, plain)
    end = _certified(objective, model, end._replace(unit=unit))
    if end.gap <= GOOD_ENOUGH * unit or end.is_flat or model.penalty is None or end.n_iter >= limit:
        return end
    # Products of columns that nearly depend on each other are no guide, but a decomposition of the rows is.
    objective = replace(objective, decomposes=True)
    here = objective.expand(end.variables)
    again = _descend(objective, model, end.variables, here, unit, smallest_scale, tol, limit - end.n_iter)
    again = _shortest(objective, model, again, shortest, unit, tol) or again
    again = _certified(objective, model, again._replace(n_iter=end.n_iter + again.n_iter, unit=unit))
    return again if again.gap < end.gap or again.is_flat or end.status is Status.ITERATIONS_USED else end


def _certified(objective: Objective, model: _Model, end: _End) -> _End:
    """With a bound of the gap at the end."""
    if end.is_flat:
        return end
    here = end.here if end.here.variables is not None else objective.expand(end.variables)
    assert here.variables is not None
    rounding = Rounding.of(objective, here.variables, here.value)
    gap = model.gap(here, objective, rounding)
    if is_known(objective.loss):  # of which no objective is below 0
        gap = max(min(gap, here.value + model.penalty_of(here.variables)), 0.0)
    reached = end.status is Status.ITERATIONS_USED and end.is_settled and gap <= GOOD_ENOUGH * end.unit
    status = Status.OPTIMAL if reached else end.status
    return end._replace(here=here, gap=gap, rounding=rounding, status=status)


def _recession(
    objective: Objective, model: _Model, by_rows: ByRows, start: np.ndarray, first: Expansion, end: _End
) -> Recession | None:
    """The direction in which steps from `start` go on for ever, towards a finite infimum.

    Raises
    ------
    ValueError
        There is no finite infimum.
    """
    if not model.has_flattened(first.hessian, end.here.hessian):
        return None
    found = by_rows.recession(objective.target, end.variables, start)
    if found is not None and found.fall is Fall.FOR_EVER:
        raise ValueError(
            f"loss={objective.loss!r} is unbounded below on these rows: the sum of the losses falls for ever "
            "as some coefficients, or the intercept, grow. Look for targets that the loss is not made for, "
            "such as negative ones of a Poisson loss, and for losses that fall without end, such as linear "
            "ones. If only coefficients grow, alpha > 0 with l1_ratio < 1 makes the optimum finite."
        )
    return found


def _without_optimum(
    objective: Objective, model: _Model, end: _End, recession: Recession, unit: float
) -> _End:
    """The end of steps along a direction of recession, unless it is still far from the infimum."""
    left = objective.value(end.variables) + model.penalty_of(end.variables) - recession.limit
    if end.status is not Status.OPTIMAL and not left <= GOOD_ENOUGH * unit:
        return end
    return end._replace(status=Status.NO_FINITE_OPTIMUM, proven=max(left, 0.0) / unit)


def _shortest(
    objective: Objective, model: _Model, end: _End, shortest: ShortestOptimum | None, unit: float, tol: float
) -> _End | None:
    """The shortest of several optima; None where none as good is found."""
    if shortest is None or end.status is not Status.OPTIMAL or end.is_flat:
        return None
    is_flat = len(model.flat_at(end.here.hessian)[:, : objective.design.n_columns]) > 0
    variables = shortest.of(objective.target, end.variables, is_flat)
    if variables is None or not np.isfinite(variables).all():
        return None
    here = objective.expand(variables)
    before = objective.value(end.variables) + model.penalty_of(end.variables)
    risen = here.value + model.penalty_of(variables) - before
    if not risen <= SAME * abs(before) + tol**2 * unit:
        return None
    return end._replace(variables=variables, here=here)


def _settled(
    objective: Objective,
    model: _Model,
    end: _End,
    unit: float,
    smallest_scale: float,
    tol: float,
    limit: int,
) -> _End:
    """The end of a smooth loss; where there are several optima, one that does not depend on the start."""
    design = objective.design
    if end.status is not Status.OPTIMAL or end.is_flat:
        return end
    flat = model.flat_at(end.here.hessian)[:, : design.n_columns]
    if len(flat) == 0:
        return end
    flat = np.linalg.qr(flat.T)[0].T
    # Of several optima a small ridge leads to one that does not depend on the start. It comes from larger
    # ones, since steps far into a flat region would be no guide; a last one, about the optimum found, takes
    # away what the others have moved elsewhere.
    toward = _constant_prediction(design, objective.target)
    away = end.variables[: design.n_columns] - toward
    left = objective.value(end.variables)
    size = left if left > PERFECT * unit else unit
    # The constant prediction may be as good, or nearly.
    rest = design.blocks.y[:, objective.target] - (float(toward[0]) if design.fit_intercept else 0.0)
    spread = float(design.share @ rest.square())
    pull = PULL * min(size / max(float(away @ away), TINY), unit / max(spread, TINY))
    if pull <= FLAT * float(end.here.hessian.diagonal().max()):
        return end  # coordinates so large that a ridge would do more than to decide
    found = end
    for stage in PULL_STAGES:
        if stage == 0:
            toward, stage = found.variables[: design.n_columns], 1.0
        pulled = replace(model, pull=pull * stage, pulled=flat, toward=toward)
        here = objective.expand(found.variables)
        n_left = limit - found.n_iter
        if n_left <= 0:
            return end._replace(status=Status.ITERATIONS_USED, n_iter=found.n_iter, is_settled=False)
        again = _descend(objective, pulled, found.variables, here, unit, smallest_scale, tol, n_left)
        if again.status is Status.ITERATIONS_USED:
            n_iter = found.n_iter + again.n_iter
            return end._replace(status=again.status, n_iter=n_iter, is_settled=False)
        if again.status is not Status.OPTIMAL:
            return end
        found = again._replace(n_iter=found.n_iter + again.n_iter)
    return found._replace(here=objective.expand(found.variables))


def _descend(
    objective: Objective,
    model: _Model,
    variables: np.ndarray,
    here: Expansion,
    unit: float,
    smallest_scale: float,
    tol: float,
    limit: int,
) -> _End:
    """Newton steps from `variables`, where the expansion is `here`, to the optimum."""
    has_scale = objective.loss.estimates_scale
    typical = float(_sampled(objective.design.blocks.y[:, objective.target]).abs().median())
    damping, first_damping, waited, stalled = 0.0, np.inf, 0, 0
    last_gain = least_gain = np.inf
    for n_iter in range(1, limit + 1):
        if has_scale and variables[-1] <= smallest_scale:
            return _End(variables, here, Status.OPTIMAL, n_iter, is_flat=True)
        goal, gain = model.minimum(here, variables, damping)
        before = here.value + model.penalty_of(variables)
        bent = float(variables @ here.hessian @ variables)
        bent += (NEXT_TO_NOTHING * typical) ** 2 * float(here.hessian.diagonal().sum())
        close = damping == 0 and gain <= ROUNDING * (min(abs(before), bent) or abs(before))
        waited = waited + 1 if close and gain * LEAST_GAIN > least_gain else 0
        enough = tol**2 * min(unit, bent)
        # Of columns that nearly depend on each other rounding of gradients alone promises that much.
        stalled += here.root is not None and gain <= STALLED * unit
        if gain <= enough * (damping == 0) or waited == PATIENCE or stalled == PATIENCE:
            return _End(variables, here, Status.OPTIMAL, n_iter)
        if close and gain * gain <= enough * last_gain < np.inf:  # convergence is quadratic
            return _End(goal, here, Status.OPTIMAL, n_iter)
        trial = goal if not has_scale else _with_positive_scale(variables, goal)
        there = objective.expand(trial, here)
        fall = _fall(here, there, trial - variables, gain)
        fall += model.penalty_of(variables) - model.penalty_of(trial)
        if close or fall >= ACCEPTED * gain:
            variables, here = trial, there
            last_gain = gain if damping == 0 else np.inf
            least_gain = min(least_gain, last_gain)
            if fall >= GOOD_FALL * gain:
                damping /= DAMPING_FACTOR
            if damping <= NO_DAMPING * float(here.hessian.diagonal().max()):
                damping = 0.0
        elif damping == 0:
            # A model that promises more than the whole objective has too little curvature.
            steepness = float(model.gradient(here, variables) @ model.gradient(here, variables))
            damping = max(FIRST_DAMPING * float(here.hessian.diagonal().max()), steepness / (2 * unit))
            first_damping = damping
        else:
            damping *= DAMPING_FACTOR
            if damping > LARGEST_DAMPING * first_damping:
                break
    if model.minimum(here, variables, 0.0)[1] <= GOOD_ENOUGH * unit:
        return _End(variables, here, Status.OPTIMAL, n_iter)
    status = Status.STUCK if damping > LARGEST_DAMPING * first_damping else Status.ITERATIONS_USED
    return _End(variables, here, status, n_iter)


def _fall(here: Expansion, there: Expansion, step: np.ndarray, expected: float) -> float:
    """By how much the loss falls; few digits of that are in the values where outliers make these large."""
    if expected > INDISTINCT * abs(here.value):
        return here.value - there.value
    start, end = float(here.gradient @ step), float(there.gradient @ step)
    if end - start <= MOST_BEND * float(step @ here.hessian @ step):
        return -(start + end) / 2
    return -end  # which a convex function cannot fall short of


def _smallest_scale(y: torch.Tensor) -> float:
    """What rounding leaves of residuals; of a median, since outliers must not count."""
    sample = _sampled(y)
    size = float(sample.abs().median())
    away = (sample - sample.median()).abs()
    spread = float(away.median())
    if spread == 0 and bool(away.any()):  # most targets are the same
        spread = float(away[away > 0].median())
    spread = spread or size
    return max(NO_SCALE * spread, EPS * size, NO_SCALE_AT_ALL * float(y.abs().max()))


def _sampled(y: torch.Tensor) -> torch.Tensor:
    """Some of many targets, for what is typical of them."""
    return y[:: 1 + len(y) // MEDIAN_ROWS]


def _with_positive_scale(variables: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """As much of the way to the goal as leaves the scale positive."""
    least = LEAST_SHRINK * variables[-1]
    if goal[-1] >= least:
        return goal
    share = (variables[-1] - least) / (variables[-1] - goal[-1])
    return variables + share * (goal - variables)


def _first(
    objective: Objective, model: _Model, robust_start: Callable[[], np.ndarray]
) -> tuple[np.ndarray, Expansion, float]:
    """Where to start, of a constant prediction and the least squares fit, and the objective of the former.

    Where a robust loss has next to no curvature there, with most rows far off, the least absolute error is a
    better start.
    """
    design, loss = objective.design, objective.loss
    y = design.blocks.y[:, objective.target]
    constant = model.feasible(_constant_prediction(design, objective.target))
    fitted = model.feasible(design.start[:, objective.target])
    spread = 1.0 if is_known(loss) else float((y - y.mean()).square().mean().sqrt()) or 1.0
    if isinstance(loss, CallableLoss):
        # Not at a constant, where the mean of the predictions would pass for one of them.
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(len(y), generator=generator, dtype=torch.float64, device="cpu")
        loss.check(y + spread * noise.to(y.device), y)
    if not is_known(loss):
        check_convex(loss, y[:: max(1, len(y) // PROBED_ROWS)], spread)
    if loss.estimates_scale:
        constant, fitted = (np.append(each, objective.scale_at(each)) for each in (constant, fitted))
        for exact in (constant, fitted):
            if exact[-1] == 0:  # all residuals are 0
                return exact, Expansion(0.0, np.zeros(len(exact)), np.eye(len(exact))), 1.0
    reference = objective.value(constant) + model.penalty_of(constant)
    variables, here = fitted, objective.expand(fitted)
    if not here.is_finite or here.value + model.penalty_of(fitted) > reference:
        variables, here = constant, objective.expand(constant)
    if not here.is_finite:
        raise ValueError(
            f"loss={loss!r} is not finite: neither where all predictions are "
            f"{constant[0] if design.fit_intercept else 0.0:.6g}, nor at the least squares fit. It must give "
            "finite numbers, with finite derivatives, for every prediction."
        )
    unit = (abs(reference) if np.isfinite(reference) else abs(here.value)) or 1.0
    n_columns = design.n_columns
    thin = np.trace(here.hessian) < THIN * n_columns * _curvature_at_zero(loss)
    if thin and not loss.estimates_scale:
        robust = model.feasible(robust_start()[:, objective.target])
        return robust, objective.expand(robust), unit
    return variables, here, unit


def _constant_prediction(design: Design, target: int) -> np.ndarray:
    """Coordinates of the mean of y as the prediction; of 0 without intercept."""
    theta = np.zeros(design.n_columns)
    if design.fit_intercept:
        theta[0] = float(design.share @ design.blocks.y[:, target])
    return theta


def _curvature_at_zero(loss: Loss) -> float:
    """Where the residual is 0; 0 for users' functions, which may not be of the residual."""
    zero = torch.zeros(1, dtype=torch.float64, device="cpu")
    return 0.0 if isinstance(loss, CallableLoss) else float(loss.curvature(zero, zero))


@dataclass(frozen=True)
class _Model:
    """The penalty of the variables, and the minimum of a quadratic model of the loss plus that penalty."""

    ridge: np.ndarray  # shape: (n_variables,) * 2
    penalty: Penalty | None  # None where there is a ridge only
    moves: np.ndarray  # whether a variable changes any prediction; shape: (n_variables,)
    bounds: MixedBounds | None = None  # of coefficients that the variables mix
    pull: float = 0.0  # ridge towards the coordinates `toward`, in directions `pulled` only
    pulled: np.ndarray | None = None  # orthonormal; shape: (n_directions, n_columns)
    toward: np.ndarray | float = 0.0

    @staticmethod
    def of(design: Design, has_scale: bool) -> _Model:
        """With no penalty on the intercept and the scale."""
        n_variables = design.n_columns + has_scale
        ridge = np.zeros((n_variables, n_variables))
        inside = slice(0, design.n_columns)
        ridge[inside, inside] = np.diag(design.ridge) if design.ridge.ndim == 1 else design.ridge
        moves = np.ones(n_variables, dtype=bool)
        if design.gram is not None:
            moves[inside] = design.gram.diagonal() > 0
        if design.penalty is None or design.penalty.is_ridge:
            bounds = None
            if design.bounds is not None:
                bounds = _with_free_ends(design.bounds, int(design.fit_intercept), int(has_scale))
            return _Model(ridge, None, moves, bounds)
        before, after = int(design.fit_intercept), int(has_scale)

        def padded(values: np.ndarray, free: float) -> np.ndarray:
            return np.pad(values, (before, after), constant_values=free)

        rest = design.penalty
        return _Model(
            np.zeros_like(ridge),
            Penalty(
                padded(rest.l1, 0.0),
                padded(rest.l2, 0.0),
                padded(rest.lower, -np.inf),
                padded(rest.upper, np.inf),
            ),
            moves,
        )

    def has_flattened(self, before: np.ndarray, after: np.ndarray) -> bool:
        """Whether a Hessian has lost nearly all curvature of an earlier one in some direction."""
        ridge = self.ridge if self.penalty is None else np.diag(self.penalty.l2)
        moves = np.flatnonzero(self.moves)
        inside = np.ix_(moves, moves)
        unit = np.sqrt((before + ridge)[inside].diagonal())
        unit = np.where(unit > 0, unit, 1.0)
        total = (after + ridge)[inside] / unit[:, None] / unit
        return not np.isfinite(total).all() or bool(np.linalg.eigvalsh(total)[:1] <= FLATTENED)

    def feasible(self, theta: np.ndarray) -> np.ndarray:
        """The nearest coordinates within the bounds."""
        if self.bounds is not None:
            padded = np.pad(theta, (0, len(self.moves) - len(theta)))
            return (self.bounds.mixing @ self.bounds.nearest(padded).coef)[: len(theta)]
        if self.penalty is None:
            return theta
        bounds = self.penalty.lower[: len(theta)], self.penalty.upper[: len(theta)]
        return np.clip(theta, *bounds)

    def penalty_of(self, variables: np.ndarray) -> float:
        """The penalty at a point."""
        away = self._away(variables)
        pulled = self.pull / 2 * float(away @ away)
        if self.penalty is not None:
            return float(self.penalty.value(variables)) + pulled
        return float(variables @ self.ridge @ variables) / 2 + pulled

    def flat_at(self, hessian: np.ndarray) -> np.ndarray:
        """Directions in which the objective does not change, shape (n_directions, n_variables)."""
        ridge = self.ridge if self.penalty is None else np.diag(self.penalty.l2)
        moves = self.moves.nonzero()[0]
        total = (hessian + ridge)[np.ix_(moves, moves)]
        unit = np.sqrt(total.diagonal())
        unit = np.where(unit > 0, unit, 1.0)
        values, vectors = np.linalg.eigh(total / unit[:, None] / unit)
        flat = vectors[:, values <= FLAT * len(unit)].T / unit
        directions = np.zeros((len(flat), len(self.moves)))
        directions[:, moves] = flat
        return directions

    def _away(self, variables: np.ndarray) -> np.ndarray:
        """What the ridge pulls of them."""
        away = np.zeros_like(variables)
        if self.pull and self.pulled is not None:
            inside = slice(0, self.pulled.shape[1])
            away[inside] = self.pulled.T @ (self.pulled @ (variables[inside] - self.toward))
        return away

    def gradient(self, here: Expansion, variables: np.ndarray) -> np.ndarray:
        """Of the loss and the ridge; the other penalties have none."""
        return here.gradient + self.ridge @ variables + self.pull * self._away(variables)

    def hessian(self, here: Expansion) -> np.ndarray:
        """Of the loss and all that is quadratic of the model but the penalty."""
        hessian = here.hessian + self.ridge
        if self.pull and self.pulled is not None:
            inside = slice(0, self.pulled.shape[1])
            hessian[inside, inside] += self.pull * (self.pulled.T @ self.pulled)
        return hessian

    def gap(self, here: Expansion, objective: Objective, rounding: Rounding) -> float:
        """A bound on how far the objective at the point of an expansion is above its optimum."""
        variables = here.variables
        assert variables is not None
        gradient, hessian = self.gradient(here, variables), here.hessian + self.ridge
        root, pull = here.root, None
        if self.bounds is not None:  # the step balances what these hold
            gradient = np.zeros_like(gradient)
        if self.penalty is None:
            _, gain = self.minimum(here, variables, 0.0)
        else:
            if root is None:
                damped = self._damped(hessian, here, 0.0)
                found = minimum_about(variables, -here.gradient, damped, None, self.penalty)
                gain = found.gain
                if not found.converged:
                    gain = max(gain, self.minimum(here, variables, 0.0)[1])
            else:
                found = self._minimum_by_root(here, root, variables, self.penalty)
                root = np.concatenate([root, np.diag(np.sqrt(self.penalty.l2))])
                gain = found.gain if found.converged else np.inf
            pull, gradient = found.pull, np.maximum(found.pull, 0.0)
            hessian = hessian + np.diag(self.penalty.l2)
        return gap_bound(objective, variables, rounding, hessian, gradient, gain, pull, root, self.moves)

    def _damped(self, hessian: np.ndarray, here: Expansion, damping: float) -> np.ndarray:
        # Relative to each coordinate: a ridge may be 1e12 times as large for one of them.
        own = np.maximum(
            hessian.diagonal(), LEAST_DAMPING * float(here.hessian.diagonal().max(initial=0.0)) or 1.0
        )
        return hessian + np.diag(damping + LEAST_DAMPING * own)

    def _minimum_by_root(
        self, here: Expansion, root: np.ndarray, variables: np.ndarray, penalty: Penalty, damping: float = 0.0
    ) -> Descent:
        """Of the model; damping is relative to the columns, whatever the units of their combinations."""
        rows, hessian = [root, np.diag(np.sqrt(penalty.l2))], here.hessian
        if damping > 0 and here.metric is not None:
            rows.append(np.sqrt(damping) * here.metric)
            hessian = hessian + damping * (here.metric.T @ here.metric)
        both = np.concatenate(rows)
        return minimum_about(variables, -here.gradient, hessian, both, penalty, unresolved=UNRESOLVED)

    def minimum(self, here: Expansion, variables: np.ndarray, damping: float) -> tuple[np.ndarray, float]:
        """Where the model about `variables` is least, and by how much it falls until there."""
        if here.root is not None and self.penalty is not None:
            found = self._minimum_by_root(here, here.root, variables, self.penalty, damping)
            moved = here.metric @ found.step if here.metric is not None else found.step
            return found.goal, found.gain + damping / 2 * float(moved @ moved)
        hessian = self.hessian(here)
        damped = self._damped(hessian, here, damping)
        gradient = self.gradient(here, variables)
        if self.penalty is None:
            goal = variables - solve_positive(damped, gradient, LEAST_DAMPING)
            goal = goal if self.bounds is None else _within(self.bounds, goal, damped)
            change = 0.0
        else:
            goal = minimise_quadratic(damped, damped @ variables - gradient, self.penalty, variables).coef
            change = float(self.penalty.value(goal) - self.penalty.value(variables))
        step = goal - variables
        fall = -float(gradient @ step + step @ hessian @ step / 2) - change
        return goal, max(fall, 0.0)


def _with_free_ends(bounds: MixedBounds, before: int, after: int) -> MixedBounds:
    """The bounds with variables of their own, which have none, before and after the others."""
    mixing = block_diag(np.eye(before), bounds.mixing, np.eye(after))
    lower = np.pad(bounds.lower, (before, after), constant_values=-np.inf)
    upper = np.pad(bounds.upper, (before, after), constant_values=np.inf)
    return MixedBounds(mixing, lower, upper, bounds.has_ties)


def _within(bounds: MixedBounds, goal: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """The variables within the bounds that are nearest to a goal, in the norm of a Hessian."""
    unit = np.sqrt(hessian.diagonal())
    upper = cholesky(hessian / unit[:, None] / unit)
    if upper is None:  # rounding of a singular matrix
        values, vectors = np.linalg.eigh(hessian)
        return (
            bounds.mixing @ bounds.nearest(goal, np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T).coef
        )
    return bounds.mixing @ bounds.nearest(goal, np.triu(upper) * unit).coef


def _at_bounds_exactly(coef: np.ndarray, inside: np.ndarray, design: Design, penalty: Penalty) -> np.ndarray:
    """Coefficients that reached a bound, in coordinates, take the user's number."""
    if design.bounds is not None:
        return np.stack([design.bounds.nearest(each).coef for each in inside.T], axis=1)
    if design.penalty is None or not penalty.has_bounds:
        return coef
    for scaled, bound in ((design.penalty.lower, penalty.lower), (design.penalty.upper, penalty.upper)):
        coef = np.where(inside == scaled[:, None], bound[:, None], coef)
    return coef
