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
from torchlinreg._solvers.newton.mean_loss import Expansion, Objective
from torchlinreg._solvers.penalised.nearest import MixedBounds
from torchlinreg._solvers.penalised.quadratic import minimise_quadratic
from torchlinreg._solvers.proximal_newton.by_rows import ByRows
from torchlinreg._solvers.proximal_newton.recession import Fall, Recession
from torchlinreg.losses import AbsoluteError, CallableLoss, Loss, check_convex, is_known

DEFAULT_MAX_ITER = 200
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
# Rows at which a loss of the user's is probed for convexity.
PROBED_ROWS = 64
# Objectives that end closer to their optimum than this are no reason to warn; rounding of the rows allows it.
GOOD_ENOUGH = 1e-9
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
    by_rows = None
    if not (is_known(problem.loss) or problem.loss.estimates_scale):
        by_rows = ByRows(problem, design, shift)
    ends = [
        _solve_target(
            Objective(design, problem.loss, target),
            by_rows,
            robust_start,
            smallest_scale[target],
            tol,
            max_iter,
        )
        for target in range(design.blocks.n_targets)
    ]
    theta = np.stack([end.variables[: design.n_columns] for end in ends], axis=1)
    theta[: int(problem.fit_intercept)] += shift
    coef, intercept = design.in_users_units(theta)
    coef = _at_bounds_exactly(coef, theta[design.features], design, problem.penalty)
    if design.bounds is not None and design.fit_intercept:
        intercept = theta[0] - design.center @ coef
    scale = np.array([end.variables[-1] for end in ends]) if problem.loss.estimates_scale else None
    flat = [target for target, end in enumerate(ends) if end.is_flat]
    if flat:
        absolute = _without_scale(problem, tol, max_iter)
        assert scale is not None
        coef[:, flat], intercept[flat], scale[flat] = absolute.coef[:, flat], absolute.intercept[flat], 0.0
        for target in flat:
            ends[target] = ends[target]._replace(
                status=absolute.status,
                optimality=absolute.optimality or 0.0,
                n_iter=ends[target].n_iter + absolute.n_iter,
            )
    unfinished = [end.status for end in ends if end.status is not Status.OPTIMAL]
    return Solution(
        coef=coef,
        intercept=intercept,
        rank=design.rank,
        condition_number=design.condition_number,
        solver="newton",
        status=unfinished[0] if unfinished else Status.OPTIMAL,
        n_iter=max(end.n_iter for end in ends),
        error=0.0,
        optimality=max(end.optimality for end in ends),
        scale=scale,
    )


def _without_scale(problem: Problem, tol: float, max_iter: int | None) -> Solution:
    """The limit of an estimated scale of 0, where so many rows are fitted exactly: the absolute error."""
    epsilon = problem.loss.derivative(torch.tensor([np.inf], device="cpu"), torch.zeros(1, device="cpu"))
    weight = float(epsilon)
    penalty = problem.penalty
    lighter = replace(penalty, l1=penalty.l1 / weight, l2=penalty.l2 / weight)
    return solve_interior_point(replace(problem, loss=AbsoluteError(), penalty=lighter), tol, max_iter)


class _End(NamedTuple):
    variables: np.ndarray
    optimality: float
    status: Status
    n_iter: int
    hessian: np.ndarray  # of the loss
    is_flat: bool = False  # the scale is 0


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
        end = _descend(objective, model, variables, here, unit, smallest_scale, tol, limit)
        return _settled(objective, model, end, unit, smallest_scale, tol, limit)
    # Nothing is known of a loss of the user's. Where it is smooth, a few steps end; where they do not, the
    # rows are searched for kinks, and they say how far the end is from the optimum.
    end = _End(variables, np.inf, Status.ITERATIONS_USED, 0, here.hessian)
    if here.hessian.any():
        few = min((limit + 1) // 2, UNPROBED_STEPS)
        end = _descend(objective, model, variables, here, unit, smallest_scale, tol, few)
    recession = _recession(objective, model, by_rows, variables, first, end)
    unclear = end.status is not Status.OPTIMAL and end.n_iter < limit
    if not (unclear and by_rows.have_kinks(objective.target)):
        if unclear:
            here, before = objective.expand(end.variables), end.n_iter
            end = _descend(objective, model, end.variables, here, unit, smallest_scale, tol, limit - before)
            end = end._replace(n_iter=before + end.n_iter)
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
            return end._replace(optimality=gap / unit)
    rest = None if max_iter is None else limit - end.n_iter
    found = by_rows.solved(objective.target, end.variables, tol**2, rest)
    end = _End(found.theta, found.gap / unit, found.status, end.n_iter + found.n_iter, end.hessian)
    if recession is None or end.status is Status.OPTIMAL:
        return end
    return _without_optimum(objective, model, end, recession, unit)


def _recession(
    objective: Objective, model: _Model, by_rows: ByRows, start: np.ndarray, first: Expansion, end: _End
) -> Recession | None:
    """The direction in which steps from `start` go on for ever, towards a finite infimum.

    Raises
    ------
    ValueError
        There is no finite infimum.
    """
    if not model.has_flattened(first.hessian, end.hessian):
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
    return end._replace(status=Status.NO_FINITE_OPTIMUM, optimality=max(left, 0.0) / unit)


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
    flat = model.flat_at(end.hessian)[:, : design.n_columns]
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
    if pull <= FLAT * float(end.hessian.diagonal().max()):
        return end  # coordinates so large that a ridge would do more than to decide
    found = end
    for stage in PULL_STAGES:
        if stage == 0:
            toward, stage = found.variables[: design.n_columns], 1.0
        pulled = replace(model, pull=pull * stage, pulled=flat, toward=toward)
        here = objective.expand(found.variables)
        n_left = limit - found.n_iter
        if n_left <= 0:
            return end._replace(status=Status.ITERATIONS_USED, n_iter=found.n_iter)
        again = _descend(objective, pulled, found.variables, here, unit, smallest_scale, tol, n_left)
        if again.status is Status.ITERATIONS_USED:
            return end._replace(status=again.status, n_iter=found.n_iter + again.n_iter)
        if again.status is not Status.OPTIMAL:
            return end
        found = again._replace(n_iter=found.n_iter + again.n_iter)
    return found


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
    damping, first_damping, waited = 0.0, np.inf, 0
    last_gain = least_gain = np.inf
    for n_iter in range(1, limit + 1):
        if has_scale and variables[-1] <= smallest_scale:
            return _End(variables, 0.0, Status.OPTIMAL, n_iter, here.hessian, is_flat=True)
        goal, gain = model.minimum(here, variables, damping)
        before = here.value + model.penalty_of(variables)
        bent = float(variables @ here.hessian @ variables)
        bent += (NEXT_TO_NOTHING * typical) ** 2 * float(here.hessian.diagonal().sum())
        close = damping == 0 and gain <= ROUNDING * (min(abs(before), bent) or abs(before))
        waited = waited + 1 if close and gain * LEAST_GAIN > least_gain else 0
        enough = tol**2 * min(unit, bent)
        if gain <= enough * (damping == 0) or waited == PATIENCE:
            return _End(variables, gain / unit, Status.OPTIMAL, n_iter, here.hessian)
        if close and gain * gain <= enough * last_gain < np.inf:  # convergence is quadratic
            return _End(goal, gain / last_gain * gain / unit, Status.OPTIMAL, n_iter, here.hessian)
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
    optimality = model.minimum(here, variables, 0.0)[1] / unit
    if optimality <= GOOD_ENOUGH:
        return _End(variables, optimality, Status.OPTIMAL, n_iter, here.hessian)
    status = Status.STUCK if damping > LARGEST_DAMPING * first_damping else Status.ITERATIONS_USED
    return _End(variables, optimality, status, n_iter, here.hessian)


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
    spread = float((sample - sample.median()).abs().median()) or size
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

    def minimum(self, here: Expansion, variables: np.ndarray, damping: float) -> tuple[np.ndarray, float]:
        """Where the model about `variables` is least, and by how much it falls until there."""
        hessian = here.hessian + self.ridge
        if self.pull and self.pulled is not None:
            hessian = hessian.copy()
            inside = slice(0, self.pulled.shape[1])
            hessian[inside, inside] += self.pull * (self.pulled.T @ self.pulled)
        # Relative to each coordinate: a ridge may be 1e12 times as large for one of them.
        own = np.maximum(
            hessian.diagonal(), LEAST_DAMPING * float(here.hessian.diagonal().max(initial=0.0)) or 1.0
        )
        damped = hessian + np.diag(damping + LEAST_DAMPING * own)
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
