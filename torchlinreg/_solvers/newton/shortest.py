"""Of several optima of a loss that is flat or straight in places, the one of least norm.

All optima share the derivative of each row's loss. Where the loss is strictly convex they share the
prediction as well; elsewhere it may be anything in a tube around y (squared epsilon-insensitive), or on one
side of y (Huber). With rows of the former kind moved to the edge of their tubes, that is the face of a
program of hinges, and `interior_point` finds the shortest of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from torchlinreg._objective.problem import Problem
from torchlinreg._solvers.coordinates import Design, design_of
from torchlinreg._solvers.interior_point.interior_point import median_of, typical_size
from torchlinreg._solvers.interior_point.optimal_face import Face, root_of_norm, shortest_of
from torchlinreg._solvers.interior_point.program import Program, Rows
from torchlinreg.losses import Huber, Loss, PiecewiseLinear, SquaredEpsilonInsensitive

# What rounding and the last Newton step leave of 0: of residuals beyond a tube, in units of a typical target,
# and of gradients, in units of the root mean square of slopes.
NOTHING = 1e-9


def has_face(loss: Loss) -> bool:
    """Whether all optima of a loss are known from one."""
    return type(loss) is Huber or (type(loss) is SquaredEpsilonInsensitive and loss.epsilon > 0)


@dataclass(frozen=True)
class ShortestOptimum:
    """The search among all optima of a problem whose loss `has_face`.

    `design` is of the problem's rows, with targets less `shift`.
    """

    problem: Problem
    design: Design
    shift: np.ndarray  # shape: (n_targets,)

    def of(self, target: int, variables: np.ndarray, is_flat: bool) -> np.ndarray | None:
        """The shortest for an optimum; None where this is the only one, or there are too many rows to tell.

        `is_flat` tells whether the rows that are curved at the optimum leave directions free. If not, only
        rows at the very end of what is curved may.
        """
        design, theta = self._unmixed, self._into(variables)
        scale = float(variables[-1]) if self.problem.loss.estimates_scale else 1.0
        y, share = design.blocks.y[:, target], design.share
        rows = Rows(design.blocks, keeps_columns=False)
        size = max(typical_size(y), self._width * scale)
        width = self._width * scale / size
        is_tube = type(self.problem.loss) is SquaredEpsilonInsensitive
        constant = self._constant(design, y, share) if is_tube else None
        if constant is not None:
            return self._back(constant, variables)
        above = y / size - rows.times(theta / size)
        beyond = torch.nn.functional.softshrink(above, width)
        is_held = beyond.abs() > NOTHING if is_tube else above.abs() < width - NOTHING
        at_end = ((above.abs() - width).abs() <= NOTHING).any()
        if not (is_flat or bool(at_end)):
            return None
        # Held rows get to an end of their tubes: the upper one if there are both.
        moved = beyond.masked_fill(~is_held, 0.0) if is_tube else (above + width).masked_fill(~is_held, 0.0)
        program = self._program(design, rows, y / size - moved, share, width, size, scale)
        if is_tube:
            held = [is_held & (beyond < 0), is_held & (beyond > 0)]
            higher = [torch.ones_like(is_held), torch.zeros_like(is_held)]
            pull = moved
        else:
            held = [is_held, torch.zeros_like(is_held)]
            higher = [~is_held & (above > 0)] * 2
            pull = above.clamp(-width, width)
            pull = pull.masked_fill(pull.abs() <= NOTHING, 0.0)
        gradient = program.bent(theta / size) - rows.transposed(share * pull)
        unit = float((share @ pull.square()).sqrt())
        columns = _hinges_of_columns(program, theta / size, gradient, NOTHING * unit)
        is_held, is_above = (
            torch.cat([*parts, torch.from_numpy(of_columns).to(y.device)])
            for parts, of_columns in zip((held, higher), columns, strict=True)
        )
        face = Face.of(program, theta / size, is_held, is_above)
        if face is None or not face.directions.shape[1]:
            return None
        n_intercepts = int(design.fit_intercept)
        median = median_of(y, share) / size if n_intercepts else 0.0
        root = root_of_norm(design.transform, n_intercepts)
        found = shortest_of(face, root, n_intercepts, median)
        return self._back(np.clip(found, program.lower, program.upper) * size, variables)

    def _constant(self, design: Design, y: torch.Tensor, share: torch.Tensor) -> np.ndarray | None:
        """The constant in all tubes that is nearest to the median, if there is one and bounds allow it."""
        penalty = self.problem.penalty
        lowest, highest = float(y.max()) - self._width, float(y.min()) + self._width
        if (penalty.lower > 0).any() or (penalty.upper < 0).any():
            return None
        if not lowest <= highest or not (design.fit_intercept or lowest <= 0 <= highest):
            return None
        theta = np.zeros(design.n_columns)
        if design.fit_intercept:
            theta[0] = np.clip(median_of(y, share), lowest, highest)
        return theta

    @property
    def _width(self) -> float:
        loss = self.problem.loss
        if isinstance(loss, Huber):
            return loss.threshold
        assert isinstance(loss, SquaredEpsilonInsensitive)
        return float(loss.epsilon)

    @cached_property
    def _unmixed(self) -> Design:
        """Coordinates in which bounds are those of single features."""
        return self.design if self.design.bounds is None else design_of(self.problem).about(self.shift)

    def _into(self, variables: np.ndarray) -> np.ndarray:
        design, theta = self.design, variables[: self.design.n_columns]
        if design.bounds is None:
            return theta
        coef = design.bounds.nearest(theta[design.features]).coef
        intercept = theta[:1] - design.center @ coef if design.fit_intercept else np.zeros(1)
        return self._unmixed.coordinates_of(coef[:, None], intercept)[:, 0]

    def _back(self, theta: np.ndarray, variables: np.ndarray) -> np.ndarray:
        if self.design.bounds is not None:
            theta = self.design.coordinates_of(*self._unmixed.in_users_units(theta[:, None]))[:, 0]
        return np.append(theta, variables[self.design.n_columns :])

    def _program(
        self,
        design: Design,
        rows: Rows,
        y: torch.Tensor,
        share: torch.Tensor,
        width: float,
        size: float,
        scale: float,
    ) -> Program:
        """The program whose hinges are the ends of the tubes, the l1 penalty and the bounds.

        In units of ``scale * size``, the loss has the squares of residuals over `size`.
        """
        n_columns, features, penalty = design.n_columns, design.features, design.penalty
        l1, free = np.zeros(n_columns), np.ones(n_columns, dtype=bool)
        lower, upper = np.full(n_columns, -np.inf), np.full(n_columns, np.inf)
        ridge = design.ridge
        if penalty is not None:
            lower[features], upper[features] = penalty.lower / size, penalty.upper / size
            free = (lower < upper) & np.isfinite(ridge)
            if design.gram is not None:
                free &= design.gram.diagonal() >= 0.5  # 0 of constant columns, else 1
            ridge = np.where(free, ridge, 0.0)
            l1[features] = penalty.l1 * (scale / size)
            l1[~free] = 0.0
        pieces = PiecewiseLinear(-1.0, (-width, width), (1.0, 1.0))
        return Program(rows, y, share, pieces, l1, lower, upper, scale * ridge, free, False, len(y))


def _hinges_of_columns(
    program: Program, theta: np.ndarray, gradient: np.ndarray, nothing: float
) -> tuple[np.ndarray, np.ndarray]:
    """Whether hinges of l1 penalties and bounds are at their kinks in all optima, and else above them.

    The gradient, of loss and ridge, is that of all optima; less than `nothing` of it is 0.
    """
    n_l1 = program.n_finite - program.n_row_hinges
    of_l1, of_lower, of_upper = np.split(program.column, [n_l1, n_l1 + program.n_lower])
    # The penalty's slope where a coefficient that is at a bound would go.
    up = program.l1 * np.where(program.lower >= 0, 1, -1)
    down = program.l1 * np.where(program.upper <= 0, -1, 1)
    at_zero = (np.abs(gradient) < program.l1 - nothing) & (program.lower <= 0) & (program.upper >= 0)
    below_zero = np.where(theta == 0, gradient > 0, theta < 0)
    held = [
        at_zero[of_l1],
        ((theta <= program.lower) & (gradient + up > nothing))[of_lower],
        ((theta >= program.upper) & (gradient + down < -nothing))[of_upper],
    ]
    above = [below_zero[of_l1], np.zeros(len(of_lower) + len(of_upper), dtype=bool)]
    return np.concatenate(held), np.concatenate(above)
