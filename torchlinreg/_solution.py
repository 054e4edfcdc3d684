"""What a solver hands back: the coefficients, and a status whose text is the help."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np


class Status(Enum):
    """How a fit ended; the value says what that means and what to do."""

    OPTIMAL = "The optimum was reached to the accuracy asked for with tol."
    MINIMUM_NORM = (
        "Several coefficient vectors fit equally well, because columns of X depend on each other; the one of "
        "least norm was taken. Use alpha > 0, or remove columns, for a unique answer."
    )
    DIGITS_LOST = (
        "The coefficients have fewer correct digits than tol asks for: the columns of X are nearly dependent."
    )

    @property
    def message(self) -> str:
        """The text of the status."""
        return self.value


@dataclass(frozen=True)
class Solution:
    """A solver's result in the user's units.

    `error` is an estimate of the largest relative error of a coefficient or intercept; 0 where `tol` is met.
    """

    coef: np.ndarray  # shape: (n_features, n_targets)
    intercept: np.ndarray  # shape: (n_targets,)
    rank: int
    condition_number: float
    solver: str
    status: Status
    n_iter: int
    error: float
