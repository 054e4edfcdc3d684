"""How far a smooth fit may be above its optimum, rounding included.

About a point with gradient g and Hessian H, the objective may fall by what the next step gains. Three kinds
of rounding add to that, each as a root mean square of predictions whose halved square counts:

- an error e of the gradient, as of sums over rows whose coordinates are rounded: ``|H^-1/2 e|``;
- what the rounding of predictions and targets makes of slopes, at most themselves;
- that of the coefficients and intercepts that are handed back.

Only variables that move, or nearly do, are in H: others rest at kinks and bounds whatever the error (see
`error_of_rounding` of the squared error). Along directions without curvature the gradient counts in full,
times how far away an optimum may be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from torchlinreg._linalg.cholesky import cholesky, extreme_singular_values
from torchlinreg._linalg.gram import EPS
from torchlinreg._solvers.newton.mean_loss import Objective
from torchlinreg.losses import Loss, is_known

# Sums over rows, and coordinates, are off by so many units of rounding: measured on shifted rows, 1.5.
GRADIENT_ROUNDING = 4 * EPS
# The gain of a step counts so many times, as the curvature changes along it.
CHANGING = 2.0
# Eigenvalues of a Hessian of unit diagonal below so many units of rounding are 0, or might be.
CLEAR = 1e3 * EPS
# Singular values of columns of unit norm below so many units are those of dependent ones.
DEPENDENT = 16 * EPS
# In flat directions the optimum is at most so many times the size of the targets away, per singular value of
# the columns.
REACH = 10.0


@dataclass(frozen=True)
class Rounding:
    """Sizes that rounding is relative to, of one target at one point."""

    slope: float  # root mean square of the derivatives
    curvature: float  # the largest second derivative
    steepest: float  # the largest derivative, or infinity
    size: float  # root mean square of the targets
    gradient: np.ndarray  # error of each entry; shape: (n_variables,)
    predictions: float  # root mean square

    @staticmethod
    def of(objective: Objective, variables: np.ndarray, value: float) -> Rounding:
        """At a point of that value; no pass over the rows for a loss that is known."""
        design, loss = objective.design, objective.loss
        has_scale = loss.estimates_scale
        y = design.blocks.y[:, objective.target]
        scale = float(variables[-1]) if has_scale else 1.0
        theta = variables[: design.n_columns]
        size = float((design.share @ y.square()).sqrt())
        if is_known(loss):
            # Of all of these the curvature is at most 1, and the square of the slope at most twice the value.
            mean = value / scale - 0.5 * has_scale
            most = steepest(loss)
            slope, curvature = min(float(np.sqrt(max(2 * mean, 0.0))), most), 1.0
        else:
            prediction = objective.predict(variables)
            slope = float((design.share @ loss.derivative(prediction, y).square()).sqrt())
            curvature, most = float(loss.curvature(prediction, y).max()), np.inf
        terms = design.amplification * np.abs(theta)
        predictions = GRADIENT_ROUNDING * float(np.linalg.norm(terms)) + EPS * size
        gradient = GRADIENT_ROUNDING * slope * design.amplification
        gradient = np.append(gradient, GRADIENT_ROUNDING * (1 + slope**2)) if has_scale else gradient
        return Rounding(slope, curvature / scale, most, size, gradient, predictions)

    def with_model(self, gap: float, predictions: float) -> float:
        """The gap of a model whose predictions are rounded by so much, besides."""
        moved = self.predictions + predictions
        with np.errstate(over="ignore"):
            squares = (np.sqrt(gap) + np.sqrt(self.curvature / 2) * moved) ** 2
        return float(min(squares, gap + self.steepest * moved))


def steepest(loss: Loss) -> float:
    """The slope of a loss far off."""
    far = torch.full((1,), torch.inf, dtype=torch.float64, device="cpu")
    return float(loss.derivative(far, torch.zeros_like(far)))


def gap_bound(
    objective: Objective,
    theta: np.ndarray,
    rounding: Rounding,
    hessian: np.ndarray,
    gradient: np.ndarray,
    gain: float,
    pull: np.ndarray | None,
    root: np.ndarray | None,
    moves: np.ndarray,
) -> float:
    """By how much the objective may fall, for a step that gains so much; infinite where rounding hides that.

    `gradient` is that of the variables that move, penalty included, `pull` that of `QuadraticMinimum`, None
    if all that may do, which `moves` tells, and `root` one of `hessian` where that is too inaccurate.
    """
    design = objective.design
    norm = np.sqrt(hessian.diagonal())
    norm = np.where(norm > 0, norm, 1.0)
    error = rounding.gradient / norm
    slack = np.zeros(len(norm)) if pull is None else pull / norm
    reach, n_used = float(error.max(initial=0.0)), 0
    while True:
        used = (moves & (slack >= -(error + reach))).nonzero()[0]
        if len(used) == n_used:
            break
        n_used = len(used)
        of_error = float(np.linalg.norm(error[used]))
        smallest = _smallest_eigenvalue(hessian, norm, used) if root is None else 0.0
        if smallest > CLEAR * n_used:
            vectors, resolved = np.zeros((n_used, 0)), np.ones(n_used, dtype=bool)
            reach = max(reach, of_error / np.sqrt(smallest))
            continue
        values, vectors = _spectrum(hessian, root, norm, used)
        resolved = values > (CLEAR * n_used if root is None else (DEPENDENT * n_used) ** 2)
        reach = max(reach, of_error / np.sqrt(values[resolved].min(initial=1.0)))
    if n_used == 0:
        return CHANGING * gain
    gap = float(np.sqrt(CHANGING * gain) + reach / np.sqrt(2)) ** 2
    if resolved.all():
        return gap
    flat = vectors[:, ~resolved]
    along = np.linalg.norm(norm[used] * (flat @ (flat.T @ (gradient[used] / norm[used]))))
    steep = float(along) + float(np.linalg.norm(rounding.gradient[used]))
    if steep == 0:
        return gap
    # What moves along the flat directions is rounding in predictions, or far away.
    inside = used < design.n_columns
    directions = np.linalg.qr((flat / norm[used][:, None])[inside])[0]
    columns = used[inside]
    if root is None:
        smallest = 1.0
        if design.gram is not None:
            block = directions.T @ design.gram[np.ix_(columns, columns)] @ directions
            smallest = float(np.linalg.eigvalsh(block).min(initial=1.0))
        if smallest <= CLEAR * len(columns):
            return np.inf
        return gap + steep * REACH * rounding.size / np.sqrt(smallest)
    singular = np.linalg.svd(objective.root_of_columns[:, columns] @ directions, compute_uv=False)
    singular = np.pad(singular, (0, directions.shape[1] - len(singular)))
    dependent = singular <= DEPENDENT * len(columns)
    smallest = float(singular[~dependent].min(initial=1.0))
    gap += steep * REACH * rounding.size / smallest
    if not dependent.any():
        return gap
    # Columns that depend on each other change predictions by no more than rounding, which slopes multiply.
    return gap + DEPENDENT * len(columns) * rounding.slope * REACH * float(np.abs(theta[columns]).sum())


def _smallest_eigenvalue(hessian: np.ndarray, norm: np.ndarray, used: np.ndarray) -> float:
    """Of the block of some variables, of unit diagonal: half of about what it is, or 0."""
    upper = cholesky(hessian[np.ix_(used, used)] / norm[used][:, None] / norm[used])
    return 0.0 if upper is None else extreme_singular_values(upper)[1] ** 2 / 2


def _spectrum(
    hessian: np.ndarray, root: np.ndarray | None, norm: np.ndarray, used: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors of the block of some variables, of unit diagonal."""
    if root is None:
        block = hessian[np.ix_(used, used)] / norm[used][:, None] / norm[used]
        values, vectors = np.linalg.eigh(block)
        return values, vectors
    _, singular, transposed = np.linalg.svd(root[:, used] / norm[used])
    return np.append(singular, np.zeros(len(used) - len(singular))) ** 2, transposed.T
