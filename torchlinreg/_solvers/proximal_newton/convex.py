"""A convex loss of the rows of one target with its penalty and bounds, in the coordinates of a design."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from torchlinreg._solvers.coordinates import Design
from torchlinreg._solvers.interior_point.program import Rows
from torchlinreg._solvers.proximal_newton.points import Points, RowLosses

# Eigenvalues of columns of mean square 1 below this are those of columns that depend on each other.
RESOLVED = 1e-15


@dataclass(frozen=True)
class Convex:
    """``sum_i share_i loss_i(a_i theta) + l1 |theta| + theta ridge theta / 2`` within bounds."""

    rows: Rows
    share: Tensor  # shape: (n_rows,)
    losses: RowLosses
    l1: np.ndarray  # shape: (n_columns,)
    lower: np.ndarray  # shape: (n_columns,)
    upper: np.ndarray  # shape: (n_columns,)
    ridge: np.ndarray  # shape: (n_columns, n_columns)
    free: np.ndarray  # columns that may move; shape: (n_columns,)
    gram: np.ndarray | None  # mean products of the columns; None where these are orthonormal

    @staticmethod
    def of(design: Design, rows: Rows, losses: RowLosses) -> Convex:
        """With the penalty of a design, of which the coordinates may mix features without bounds."""
        n_columns, features = design.n_columns, design.features
        l1, lower, upper = np.zeros(n_columns), np.full(n_columns, -np.inf), np.full(n_columns, np.inf)
        free = np.ones(n_columns, dtype=bool)
        if design.penalty is None:
            ridge = design.ridge
        else:
            l1[features] = design.penalty.l1
            lower[features], upper[features] = design.penalty.lower, design.penalty.upper
            assert design.gram is not None
            free = (design.gram.diagonal() >= 0.5) & (lower < upper) & np.isfinite(design.ridge)
            ridge = np.diag(np.where(free, design.ridge, 0.0))
        l1[~free] = 0.0
        return Convex(rows, design.share, losses, l1, lower, upper, ridge, free, design.gram)

    @cached_property
    def reach(self) -> float:
        """How far away an optimum may be: a typical residual, as far as columns can make one of it."""
        if self.gram is None:
            return self.losses.spread
        values = np.linalg.eigvalsh(self.gram[np.ix_(self.free, self.free)])
        values = values[values > RESOLVED * len(values) * values.max(initial=1.0)]
        return self.losses.spread / float(np.sqrt(values.min(initial=1.0)))

    @property
    def mixes(self) -> bool:
        """Whether the kinks and bounds of columns are none."""
        return not self.l1.any() and not np.isfinite([self.lower, self.upper]).any()

    def feasible(self, theta: np.ndarray) -> np.ndarray:
        """The nearest point within the bounds; 0 there for columns that stay."""
        return np.clip(np.where(self.free, theta, 0.0), self.lower, self.upper)

    def predict(self, theta: np.ndarray) -> Tensor:
        """Predictions of all rows; one pass."""
        return self.rows.times(theta)

    def penalty(self, theta: np.ndarray) -> float:
        """The penalty at a point."""
        return float(self.l1 @ np.abs(theta)) + float(theta @ self.ridge @ theta) / 2

    def objective(self, theta: np.ndarray, value: Tensor) -> float:
        """The objective, given the loss of each row."""
        return float(self.share @ value) + self.penalty(theta)

    def gradient(self, theta: np.ndarray, slopes: Tensor) -> np.ndarray:
        """Of the rows, given the slope of each, and of the ridge."""
        return self.rows.transposed(self.share * slopes) + self.ridge @ theta

    def hessian(self, curvatures: Tensor) -> np.ndarray:
        """Of the rows, given the curvature of each, and of the ridge."""
        upper = np.triu(self.rows.gram(self.share * curvatures))
        return upper + np.triu(upper, 1).T + self.ridge

    def subgradients(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and the highest slope of the l1 penalty and the bounds at a point."""
        low, high = np.where(theta > 0, self.l1, -self.l1), np.where(theta < 0, -self.l1, self.l1)
        stays = ~self.free
        return (
            np.where((theta <= self.lower) | stays, -np.inf, low),
            np.where((theta >= self.upper) | stays, np.inf, high),
        )

    def at(self, theta: np.ndarray) -> Points:
        """The points of all rows."""
        return self.losses.at(self.predict(theta))

    def rounding(self, points: Points) -> float:
        """What rounding of the predictions may do to the objective: 16 units in their last place."""
        slopes = points.first.abs() + self.losses.steep
        return 16 * 2.0**-52 * float(self.share @ (slopes * self.losses.sizes(points.prediction)))
