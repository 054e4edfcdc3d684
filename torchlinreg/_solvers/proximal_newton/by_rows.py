"""A user's loss as its rows show it: certificates of what Newton's method found, and steps where kinks are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from torchlinreg._objective.problem import Problem
from torchlinreg._objective.solution import Status
from torchlinreg._solvers.coordinates import Design, design_of
from torchlinreg._solvers.interior_point.program import Rows
from torchlinreg._solvers.proximal_newton.certificate import Certified, Guess, certify
from torchlinreg._solvers.proximal_newton.convex import Convex
from torchlinreg._solvers.proximal_newton.kinks import has_kinks
from torchlinreg._solvers.proximal_newton.points import RowLosses
from torchlinreg._solvers.proximal_newton.proximal_newton import DEFAULT_MAX_ITER, descend

# Kinks are looked for in so many rows before others take part.
PROBED_ROWS = 64


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
        some = y[:: max(1, len(y) // PROBED_ROWS)]
        share = torch.full_like(some, 1 / len(some))
        return has_kinks(RowLosses.of(self.problem.loss, some, share, share @ some + torch.zeros_like(some)))

    def certified(self, target: int, theta: np.ndarray) -> Found:
        """What the rows say of a point near the optimum of a smooth loss."""
        theta = self._inward(theta)
        convex = self._convex(target, theta)
        points = convex.at(theta)
        guess = Guess(theta, points.first, points.second, torch.full_like(points.first, torch.nan))
        return self._outward(certify(convex, guess), Status.OPTIMAL, 0)

    def solved(self, target: int, theta: np.ndarray, tol: float, max_iter: int | None) -> Found:
        """The optimum by steps from a point."""
        theta = self._inward(theta)
        limit = DEFAULT_MAX_ITER if max_iter is None else max(1, max_iter)
        end = descend(self._convex(target, theta), theta, tol, limit)
        return self._outward(end.certified, end.status, end.n_iter)

    def _convex(self, target: int, theta: np.ndarray) -> Convex:
        y = self._own.blocks.y[:, target].contiguous()
        losses = RowLosses.of(self.problem.loss, y, self._own.share, self._rows.times(theta))
        return Convex.of(self._own, self._rows, losses)

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
