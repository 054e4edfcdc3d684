"""What a solver hands back: the coefficients, and a status whose text is the help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np


class Status(Enum):
    """How a fit ended; the value says what that means and what to do."""

    OPTIMAL = "The optimum was reached to the accuracy asked for with tol."
    MINIMUM_NORM = (
        "Several coefficient vectors fit equally well, because columns of X depend on each other; the one of "
        "least norm was taken. Use alpha > 0, or remove columns, for a unique answer."
    )
    NEARLY_DEPENDENT = (
        "Columns of X depend on each other up to the rounding of their numbers, so that many coefficient "
        "vectors fit equally well. The one taken predicts like the best of them, but single coefficients "
        "mean little. Use alpha > 0, remove columns, or center x before taking its powers."
    )
    DIGITS_LOST = (
        "The coefficients have fewer correct digits than tol asks for: the columns of X are nearly dependent."
    )
    MAX_ITER = (
        "Training ended after max_iter epochs, before the optimum was reached. Use more epochs, another "
        "learning_rate ('auto' needs no tuning), or solver='auto', which lands on the optimum at once."
    )
    NO_PROGRESS = (
        "Training ended because the loss no longer changed, for n_iter_no_change epochs, before the optimum "
        "was reached. Use another learning rate or optimizer, learning_rate='auto', or solver='auto'."
    )
    EARLY_STOPPED = (
        "Training ended because the validation loss had not fallen for n_iter_no_change epochs, or the "
        "training loss could fall no more; the coefficients of the lowest validation loss were taken."
    )
    ITERATIONS_USED = (
        "The solver ended after max_iter iterations, before the optimum, of several the one of least norm, "
        "was reached. Use a larger max_iter."
    )
    STUCK = (
        "The solver could not lower the objective any more before the optimum was reached: the problem is "
        "too badly conditioned for float64, or the loss is not convex. Use alpha > 0, remove nearly "
        "dependent columns, or use a convex loss."
    )
    NO_FINITE_OPTIMUM = (
        "The objective has no finite optimum: it falls towards its infimum as some coefficients, "
        "or the intercept, grow without bound: a feature separates the classes, or all counts, or those of a "
        "group, are 0. The coefficients are those where the search ended. Use alpha > 0, or remove the "
        "features whose coefficients are huge, or their rows."
    )
    CONSTANT = (
        "No coefficients were found that predict the rows better than a constant does, so the constant was "
        "taken: the problem is too badly conditioned for float64, or the loss is not convex. Bring X and y "
        "to ordinary units and means near 0, remove nearly dependent columns, or use a convex loss."
    )
    CALLBACK = "Training ended because a callback asked for it."
    ONE_PASS = "partial_fit made one pass of the optimizer over the rows of its last call."


@dataclass(frozen=True)
class FitStatus:
    """How a fit ended, and for a trained model how far from the optimum.

    Parameters
    ----------
    kind : Status
        What happened.
    distance : float or None, default=None
        For a trained model, the largest difference of a coefficient, or of the mean prediction, from the
        optimum of the training objective, with every column of X and y in units of its standard deviation (of
        its root mean square without intercept). Of several optima the nearest counts. None for solvers that
        do not train.
    optimality : float or None, default=None
        For losses, penalties and constraints beyond least squares and ridge, a bound on how far the objective
        is above its optimum, relative to the objective of the best constant prediction (of 0 without
        intercept), the largest of all targets: the duality gap or, for smooth losses, what the next Newton
        step expects to gain and what rounding of rows and coefficients may hide. None for other fits.

    Examples
    --------
    >>> from torchlinreg import TorchLinearRegressor
    >>> reg = TorchLinearRegressor(solver="sgd", tol=1e-6).fit([[0.0], [1.0], [2.0]], [1.0, 2.0, 4.0])
    >>> reg.status_.kind.name
    'OPTIMAL'
    >>> reg.status_.distance < 1e-6
    True
    """

    kind: Status
    distance: float | None = None
    optimality: float | None = None

    @property
    def name(self) -> str:
        """The name of `kind`."""
        return self.kind.name

    @property
    def message(self) -> str:
        """What the status means and what to do, with the distance from the optimum if that is known."""
        parts = [self.kind.value]
        if self.distance is not None:
            parts.append(f"Standardised distance from the optimum: {self.distance:.1e}.")
        if self.optimality is not None:
            parts.append(f"Objective above its optimum, relatively: at most {self.optimality:.1e}.")
        return " ".join(parts)

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


@dataclass(frozen=True)
class Solution:
    """A solver's result in the user's units.

    `error` is an estimate of the largest relative error of a coefficient or intercept; 0 where `tol` is met.
    `optimality` is that of `FitStatus`, and `scale` the estimated scale of the residuals, per target.
    `proven` says that the objective is known to be at most that of the best constant.
    The others are of trained models: `distance` is that of `FitStatus`, the curves have a loss per epoch.
    """

    coef: np.ndarray  # shape: (n_features, n_targets)
    intercept: np.ndarray  # shape: (n_targets,)
    rank: int | None  # None where no solver has looked
    condition_number: float | None
    solver: str
    status: Status
    n_iter: int
    error: float
    optimality: float | None = None
    scale: np.ndarray | None = None
    proven: bool = False
    distance: float | None = None
    loss_curve: list[float] | None = None
    validation_loss_curve: list[float] | None = None


def of_all_targets(parts: Sequence[Solution]) -> Solution:
    """The solution for all targets, of those for some of the targets each: as good as the worst."""
    if len(parts) == 1:
        return parts[0]
    severity = list(Status)
    worst = max(parts, key=lambda part: (severity.index(part.status), part.error))
    scales = [part.scale for part in parts if part.scale is not None]
    optimalities = [part.optimality for part in parts if part.optimality is not None]
    return replace(
        worst,
        coef=np.concatenate([part.coef for part in parts], axis=1),
        intercept=np.concatenate([part.intercept for part in parts]),
        n_iter=max(part.n_iter for part in parts),
        error=max(part.error for part in parts),
        optimality=max(optimalities, default=None),
        scale=np.concatenate(scales) if scales else None,
        proven=all(part.proven for part in parts),
    )
