"""Bounded least squares of few variables by QR, which no Gram matrix of ill-conditioned columns would solve.

Block principal pivoting (Portugal, Judice, Vicente 1994, Math. Comp. 63, 625-643): all coefficients that are
out of bounds go there, and all that their gradients pull off a bound are freed, at once; where that makes no
progress, one at a time, which ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular

from torchlinreg._linalg.gram import EPS
from torchlinreg._solvers.null_space import NullSpace

# Rounds that may fail to lower the number of misplaced coefficients, and all rounds for each coefficient.
PATIENCE, MAX_ROUNDS = 5, 20
# Of a column's norm, what keeps moves along null vectors in place, from one step to the next, and such steps.
PROXIMAL, N_PROXIMAL = 1e-11, 3
# Gradients below so many times their rounding are 0; see `_bounded_least_squares`.
ROUNDING = 8.0


class Nearest(NamedTuple):
    """Coefficients within bounds, and which bounds hold them there."""

    coef: np.ndarray
    side: np.ndarray  # -1 at the lower bound, 1 at the upper one, 0 at none


@dataclass(frozen=True)
class MixedBounds:
    """``lower <= coef <= upper`` for variables that mix coefficients, ``variables = mixing @ coef``."""

    mixing: np.ndarray  # shape: (n_variables, n_coefficients)
    lower: np.ndarray
    upper: np.ndarray
    has_ties: bool = False  # whether different coefficients can have the same variables

    @staticmethod
    def of(
        inverse: np.ndarray, independent: np.ndarray, null: NullSpace, lower: np.ndarray, upper: np.ndarray
    ) -> MixedBounds:
        """For ``variables = inverse @ coef[independent]``, and other features as these depend on them."""
        mixing = np.zeros((len(inverse), len(lower)))
        mixing[:, independent] = inverse
        mixing[:, null.dependent] = mixing[:, null.others] @ null.transfer
        return MixedBounds(mixing, lower, upper, len(null.dependent) > 0)

    def nearest(self, goal: np.ndarray, root: np.ndarray | None = None) -> Nearest:
        """The coefficients whose variables are nearest to a goal, in the norm of ``root @ variables``."""
        matrix = self.mixing if root is None else root @ self.mixing
        goal = goal if root is None else root @ goal
        unit = np.linalg.norm(matrix, axis=0)
        moves = unit > 0
        coef = np.clip(np.zeros_like(unit), self.lower, self.upper)
        side = np.where(coef == self.lower, -1, np.where(coef == self.upper, 1, 0))
        unit, matrix = unit[moves], matrix[:, moves] / unit[moves]
        lower, upper = self.lower[moves] * unit, self.upper[moves] * unit
        if not self.has_ties:
            found = _bounded_least_squares(matrix, goal, lower, upper)
        else:
            matrix = np.concatenate([matrix, PROXIMAL * np.eye(len(unit))])
            last = np.zeros(len(unit))
            for _ in range(N_PROXIMAL):
                found = _bounded_least_squares(matrix, np.append(goal, PROXIMAL * last), lower, upper)
                last = found.coef
        side[moves] = found.side
        coef[moves] = found.coef / unit
        return Nearest(self.placed(coef, side), side)

    def placed(self, coef: np.ndarray, side: np.ndarray) -> np.ndarray:
        """Coefficients within the bounds, exactly there where these hold them."""
        inside = np.clip(coef, self.lower, self.upper)
        return np.where(side < 0, self.lower, np.where(side > 0, self.upper, inside))


def _bounded_least_squares(
    matrix: np.ndarray, goal: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> Nearest:
    """Minimise ``|matrix @ coef - goal|`` within the bounds, for independent columns of unit norm."""
    side = np.zeros(len(lower), dtype=int)
    fewest, patience = len(side) + 1, PATIENCE
    size = float(np.linalg.norm(goal))
    for _ in range(MAX_ROUNDS * (1 + len(side))):
        free = side == 0
        coef = np.where(side < 0, lower, upper)
        coef[free] = 0.0
        rest = goal - matrix @ coef
        orthonormal, factor = np.linalg.qr(matrix[:, free])
        coef[free] = solve_triangular(factor, orthonormal.T @ rest)
        left = rest - orthonormal @ (orthonormal.T @ rest)
        left -= orthonormal @ (orthonormal.T @ left)
        pull = matrix.T @ left
        # Of what is left, rounding of large terms reaches a gradient by as much as its column is off the free
        # ones.
        apart = np.linalg.norm(matrix - orthonormal @ (orthonormal.T @ matrix), axis=0)
        terms = size + float(np.linalg.norm(coef))
        slack = ROUNDING * EPS * (float(np.linalg.norm(left)) + terms * apart)
        out = np.where(free & (coef < lower), -1, np.where(free & (coef > upper), 1, 0))
        freed = (lower < upper) & (((side < 0) & (pull > slack)) | ((side > 0) & (pull < -slack)))
        misplaced = (freed | (out != 0)).nonzero()[0]
        if len(misplaced) == 0:
            break
        if len(misplaced) < fewest:
            fewest, patience = len(misplaced), PATIENCE
        else:
            patience -= 1
        moved = misplaced if patience >= 0 else misplaced[-1:]
        side[moved] = out[moved]
    return Nearest(coef, side)
