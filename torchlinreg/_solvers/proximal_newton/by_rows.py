"""A user's loss as rows show it: certificates of what Newton's method found, and steps where kinks are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from torchlinreg._objective.problem import Problem
from torchlinreg._objective.solution import Status
from torchlinreg._solvers.coordinates import Design, design_of
from torchlinreg._solvers.interior_point.program import Rows
from torchlinreg._solvers.proximal_newton.certificate import Certified, certify_smooth
from torchlinreg._solvers.proximal_newton.convex import Convex
from torchlinreg._solvers.proximal_newton.kinks import has_kinks
from torchlinreg._solvers.proximal_newton.points import Points, RowLosses, tangents
from torchlinreg._solvers.proximal_newton.proximal_newton import DEFAULT_MAX_ITER, descend
from torchlinreg._solvers.proximal_newton.recession import Recession, find_recession

# Kinks are looked for in so many rows before others take part.
PROBED_ROWS = 64
# A bound this small, relatively, is not made smaller by another step.
ENOUGH = 1e-12


@dataclass(frozen=True)
class Found:
    """A point in the coordinates of the design that was given, and its objective above the optimum."""

    theta: np.ndarray
    gap: float
    status: Status
    n_iter: int


@dataclass(frozen=True)
class ByRows:
    """The targets of a problem, of which `design` holds the rows."""

    problem: Problem
    design: Design
    shift: np.ndarray  # what the design's targets are less than those of the problem; shape: (n_targets,)

    @cached_property
    def _own(self) -> Design:
        """Coordinates that do not mix features with bounds."""
        return self.design if self.design.bounds is None else design_of(self.problem).about(self.shift)

    @cached_property
    def _rows(self) -> Rows:
        return Rows(self._own.blocks)

    def have_kinks(self, target: int) -> bool:
        """Whether some rows show a kink about their targets."""
        y = self.design.blocks.y[:, target]
        spread = float(y.std(correction=0)) or float(y.abs().max()) or 1.0
        return has_kinks(self.problem.loss, y[:: max(1, len(y) // PROBED_ROWS)], spread)

    def certified(self, target: int, theta: np.ndarray, unit: float) -> float:
        """How far a point may be above the optimum of a smooth loss, whose typical objective is `unit`."""
        theta = self._inward(theta)
        convex, lines = self._convex(Rows(self._own.blocks, keeps_columns=False), target, theta)
        return certify_smooth(convex, theta, lines, ENOUGH * unit)

    def recession(self, target: int, theta: np.ndarray, start: np.ndarray) -> Recession | None:
        """The direction in which steps from `start` to `theta` go on for ever, if there is any."""
        theta, start = self._inward(theta), self._inward(start)
        convex, _ = self._convex(Rows(self._own.blocks, keeps_columns=False), target, start)
        return find_recession(convex, theta, start)

    def solved(self, target: int, theta: np.ndarray, tol: float, max_iter: int | None) -> Found:
        """The optimum by steps from a point."""
        theta = self._inward(theta)
        limit = DEFAULT_MAX_ITER if max_iter is None else max(1, max_iter)
        convex, _ = self._convex(self._rows, target, theta)
        end = descend(convex, theta, tol, limit)
        return self._outward(end.certified, end.status, end.n_iter)

    def _convex(self, rows: Rows, target: int, theta: np.ndarray) -> tuple[Convex, Points]:
        """The problem of a target, in units that its rows at a point suggest, and their tangents."""
        loss, y = self.problem.loss, self._own.blocks.y[:, target].contiguous()
        lines = tangents(loss, rows.times(theta), y)
        losses = RowLosses.about(loss, y, self._own.share, lines)
        return Convex.of(self._own, rows, losses), lines

    def _inward(self, theta: np.ndarray) -> np.ndarray:
        if self._own is self.design:
            return theta
        coef, intercept = self.design.in_users_units(theta[:, None])
        return self._own.coordinates_of(coef, intercept)[:, 0]

    def _outward(self, certified: Certified, status: Status, n_iter: int) -> Found:
        theta = certified.theta
        if self._own is not self.design:
            coef, intercept = self._own.in_users_units(theta[:, None])
            theta = self.design.coordinates_of(coef, intercept)[:, 0]
        return Found(theta, certified.gap, status, n_iter)
