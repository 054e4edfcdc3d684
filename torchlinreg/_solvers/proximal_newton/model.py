"""A convex problem about a point: quadratic losses of the rows, and hinges at the kinks that are known.

The loss of row i is ``f + d (p - p0) + c (p - p0)^2 / 2`` on the side of its kinks where p0 is, and beyond a
kink at k with the jump J another ``J max(0, k - p)`` or ``J max(0, p - k)``. That makes a quadratic program
of hinges for the interior point. Its duals say which slope each row takes on at the minimum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchlinreg._data.rows import tensor_blocks
from torchlinreg._linalg.cholesky import solve_positive
from torchlinreg._objective.penalty import Penalty
from torchlinreg._solvers.interior_point.interior_point import inside_bounds, minimise_program
from torchlinreg._solvers.interior_point.program import Iterate, Program, Rows
from torchlinreg._solvers.penalised.quadratic import minimise_quadratic
from torchlinreg._solvers.proximal_newton.convex import Convex
from torchlinreg._solvers.proximal_newton.kinks import Kinks
from torchlinreg._solvers.proximal_newton.points import Points
from torchlinreg.losses import PiecewiseLinear

# Of the largest curvature: keeps a singular matrix solvable.
LEAST_DAMPING = 1e-13
# Steps of the interior point, and the gap at which they end, relative to a typical loss.
MAX_ITER, TOL = 100, 1e-13
# One hinge, with half of its slope taken away so that the interior point may start in the middle; the tilt
# of the program gives it back.
HINGE = PiecewiseLinear(-0.5, (0.0,), (1.0,))


@dataclass(frozen=True)
class Goal:
    """The minimum of a model."""

    theta: np.ndarray
    slope: Tensor  # of each row there, between those of both sides of a kink; shape: (n_rows,)
    at_kink: Tensor  # which kinks rows are held at; shape: (n_kinks,)
    n_iter: int


@dataclass(frozen=True)
class Model:
    """The model of a problem about `theta`, where the rows are `here`."""

    problem: Convex
    theta: np.ndarray
    here: Points
    kinks: Kinks
    above: Tensor  # whether the row of each kink is above it; shape: (n_kinks,)
    gradient: np.ndarray
    hessian: np.ndarray

    @staticmethod
    def of(problem: Convex, theta: np.ndarray, kinks: Kinks) -> Model:
        """With the rows at a kink on its upper side; two passes."""
        prediction = problem.predict(theta)
        at = kinks.holds(prediction)
        prediction[kinks.row[at]] = kinks.high.prediction[at]
        here = problem.losses.at(prediction)
        above = prediction[kinks.row] > kinks.position
        gradient = problem.gradient(theta, here.first)
        return Model(problem, theta, here, kinks, above, gradient, problem.hessian(here.second))

    def minimum(self, damping: float) -> Goal:
        """Where the model is least, with so much curvature more in all coordinates."""
        hessian = self.hessian + damping * np.eye(len(self.theta))
        if len(self.kinks):
            return self._with_hinges(hessian)
        problem = self.problem
        own = np.maximum(hessian.diagonal(), LEAST_DAMPING * hessian.diagonal().max() or 1.0)
        hessian = hessian + np.diag(LEAST_DAMPING * own)
        if problem.mixes:
            theta = self.theta - solve_positive(hessian, self.gradient, LEAST_DAMPING)
        else:
            penalty = Penalty(problem.l1, np.zeros(len(own)), problem.lower, problem.upper)
            theta = minimise_quadratic(
                hessian, hessian @ self.theta - self.gradient, penalty, self.theta
            ).coef
        theta = np.where(problem.free, theta, self.theta)
        slope = self.here.first + self.here.second * problem.predict(theta - self.theta)
        return Goal(theta, slope, torch.zeros(0, dtype=torch.bool, device=slope.device), 0)

    def _with_hinges(self, hessian: np.ndarray) -> Goal:
        problem, spread, steep = self.problem, self.problem.losses.spread, self.problem.losses.steep
        # Differences from where the model is, but for columns that have a kink at 0 of their own.
        origin = np.where((problem.l1 > 0) & problem.free, 0.0, self.theta)
        program = self._program(hessian, origin)
        start = (self.theta - origin) / spread
        start = np.where(
            program.free, inside_bounds(start, program.lower, program.upper, program.ridge.diagonal()), start
        )
        found = minimise_program(program, start, TOL, MAX_ITER)
        values = program.values(found.theta)
        held = _held(program, found, values)
        # Bounds in the units of the program are rounded.
        theta = _with_exact_columns(problem, program, origin + spread * found.theta, held)
        theta = np.where(problem.free, problem.feasible(theta), self.theta)
        n_kinks = len(self.kinks)
        pulls = torch.where(self.above, -1.0, 1.0) * found.dual[:n_kinks] * steep
        slope = self.here.first + self.here.second * problem.predict(theta - self.theta)
        slope.index_add_(0, self.kinks.row, pulls / problem.share[self.kinks.row])
        return Goal(theta, slope, held[:n_kinks], found.n_iter)

    def _program(self, hessian: np.ndarray, origin: np.ndarray) -> Program:
        """The model in units of a typical residual and slope, about the origin."""
        problem, kinks = self.problem, self.kinks
        spread, steep = problem.losses.spread, problem.losses.steep
        sign = torch.where(self.above, 1.0, -1.0).to(torch.float64)
        distance = sign * (kinks.position - problem.predict(origin)[kinks.row]) / spread
        rows = sign[:, None] * problem.rows.take(kinks.row)
        weight = problem.share[kinks.row] * kinks.jump / steep
        hinges = Rows(tensor_blocks(rows, distance[:, None]))
        tilt = (self.gradient - hessian @ (self.theta - origin)) / steep
        with np.errstate(invalid="ignore"):
            lower, upper = ((bound - origin) / spread for bound in (problem.lower, problem.upper))
        return Program(
            rows=hinges,
            y=distance,
            weight=weight,
            pieces=HINGE,
            l1=problem.l1 / steep,
            lower=lower,
            upper=upper,
            ridge=hessian * (spread / steep),
            free=problem.free,
            by_rows=False,
            n_all=len(distance),
            tilt=tilt - hinges.transposed(weight) / 2,
        )


def _held(program: Program, found: Iterate, values: Tensor) -> Tensor:
    """Hinges that are at their kinks: nearer to these than their duals are to the ends of their ranges."""
    room = found.dual.clone()
    finite = slice(program.n_finite)
    room[finite] = torch.minimum(room[finite], program.cost - room[finite]) / program.cost
    return values.abs() < room


def _with_exact_columns(problem: Convex, program: Program, theta: np.ndarray, held: Tensor) -> np.ndarray:
    """The point, with columns at their kinks and bounds exactly there."""
    theta = theta.copy()
    n_l1 = program.n_finite - program.n_row_hinges
    index = held[program.n_row_hinges :].cpu().numpy()
    for part, exact in (
        (slice(n_l1), np.zeros_like(theta)),
        (slice(n_l1, n_l1 + program.n_lower), problem.lower),
        (slice(n_l1 + program.n_lower, None), problem.upper),
    ):
        column = program.column[part][index[part]]
        theta[column] = exact[column]
    return theta
