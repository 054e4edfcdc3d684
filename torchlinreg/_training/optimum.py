"""The objective of any smooth loss and any penalty about its optimum: what its training is judged by.

Heights above the optimum are Bregman divergences: what is linear at the optimum cancels on paper instead of
in floating point, so that an excess of 1e-20 has as many digits as one of 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from torchlinreg._data.rows import Block, RowBlocks
from torchlinreg._objective.penalty import Penalty, ridge
from torchlinreg._objective.problem import Problem
from torchlinreg._objective.solution import Solution
from torchlinreg._solvers.least_squares.dual import is_wide
from torchlinreg._solvers.least_squares.whitening import Geometry, geometry_of
from torchlinreg._solvers.newton.newton import solve_newton
from torchlinreg._solvers.penalised.active_set import solve_active_set
from torchlinreg.losses import Kind, Loss

# Differences of losses below this share of the losses have lost digits. There the loss is a parabola between
# the two points, but for a share of about the square root of this, and its derivatives give the difference.
NEAR = 1e-8
# Rows count with this share of the mean curvature at least: where a loss is flat at the optimum, it need not
# be a few steps aside.
FLATTEST = 1e-3
# Losses are least in each row, to rounding, where their squared slopes are this share of those at a constant.
LEAST_STEEPNESS = 1e-18
EPS = 2.0**-52
# Predictions of models are formed so many bytes at a time, which stay in the cache.
CHUNK_BYTES = 2**18
# Up to so many features a proximal step is a quadratic program.
PROGRAM_FEATURES = 256


class LossAtScale(Loss):
    """The loss at a fixed scale per target, ``s / 2 + s * loss(prediction / s, target / s)``.

    Targets are the last dimension. Its optimum at the estimated scale is that of the joint estimate.
    """

    kind: ClassVar[Kind] = "smooth"

    def __init__(self, loss: Loss, scale: np.ndarray) -> None:
        object.__setattr__(self, "loss", loss)
        object.__setattr__(self, "scale", torch.from_numpy(scale))

    loss: Loss
    scale: torch.Tensor  # shape: (n_targets,)

    def value(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """See `Loss`."""
        scale = self.scale.to(prediction.device)
        return (self.loss.value(prediction / scale, target / scale) + 0.5) * scale

    def derivative(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """See `Loss`."""
        scale = self.scale.to(prediction.device)
        return self.loss.derivative(prediction / scale, target / scale)

    def curvature(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """See `Loss`."""
        scale = self.scale.to(prediction.device)
        return self.loss.curvature(prediction / scale, target / scale) / scale


class Metric(NamedTuple):
    """Coordinates ``u`` of features, of mean ``offset . u`` at the center; the objective is round."""

    transform: np.ndarray  # shape: (n_features, n_coordinates), or (n_features,) for a diagonal one
    inverse: np.ndarray  # from the left
    offset: np.ndarray | None  # shape: (n_coordinates,); None for 0


@dataclass(frozen=True)
class Landscape:
    """The objective about its optimum; floor and solution of `geometry` are its own."""

    blocks: RowBlocks
    fit_intercept: bool
    loss: Loss  # at a fixed scale
    penalty: Penalty
    geometry: Geometry
    kappa: np.ndarray  # mean curvature of the loss at the optimum; shape: (n_targets,)
    slope: np.ndarray  # gradient of the loss and the ridge by the coefficients there; (n_targets, n_features)
    flat: np.ndarray  # whether each row's loss is least there, as at many models around; shape: (n_targets,)
    miss: float  # how far beyond such a region the solver's optimum may be; standardised predictions

    @property
    def optimum(self) -> np.ndarray:
        """The coefficients of the optimum, shape (n_targets, n_features)."""
        return self.geometry.solution.coef.T

    def nearest(self, distance: np.ndarray, excess: np.ndarray) -> np.ndarray:
        """Distances from the nearest optimum, given those from the solver's; shape (n_models, n_targets).

        Where the loss is flat, that is how far predictions are beyond it, standardised; a root mean square.
        """
        beyond = np.sqrt(2 * np.maximum(excess, 0.0) / self.kappa) / self.geometry.target_unit
        return np.where(self.flat, np.minimum(distance, beyond), distance)

    def excess(self, change: np.ndarray, mean_error: np.ndarray | float) -> np.ndarray:
        """The objective above the optimum of models that differ from it by that, (n_models, n_targets).

        `change` of the coefficients has shape (n_models, n_targets, n_features), `mean_error` of the
        predictions at the center (n_models, n_targets). One pass.
        """
        direct, parabola, size = self._divergences(change, np.broadcast_to(mean_error, change.shape[:2]))
        smooth = np.where(direct > NEAR * size, direct, parabola)
        smooth += (self.penalty.l2 / 2 * change**2).sum(-1)
        return smooth + self._rise_of_rest(change)

    def _divergences(
        self, change: np.ndarray, mean_error: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the losses: from their values and from their derivatives; and their size at the optimum.

        Model by model, so that rounding does not depend on how many there are: a training that is resumed
        takes the decisions of one that was not.
        """
        n_models, n_targets, _ = change.shape
        device = self.blocks.device
        weights = torch.from_numpy(np.ascontiguousarray(change.transpose(0, 2, 1))).to(device)
        constants = torch.from_numpy(mean_error.copy()).to(device)
        curved = torch.from_numpy(1.0 - self.flat).to(device)
        rows_at_once = max(1, CHUNK_BYTES // (8 * n_targets))

        def of(block: Block) -> torch.Tensor:
            sums = torch.zeros((n_models, 3, n_targets), dtype=torch.float64, device=device)
            for first in range(0, len(block.y), rows_at_once):
                part = slice(first, first + rows_at_once)
                y = block.y[part]
                rows, at_optimum = self._rows_and_predictions(block, part)
                # Where the loss is flat, its slope at the solver's optimum is rounding.
                value, slope = self.loss.value(at_optimum, y), self.loss.derivative(at_optimum, y) * curved
                weight = torch.ones_like(y[:, 0]) if block.weight is None else block.weight[part]
                for sums_of_model, coef, constant in zip(sums, weights, constants, strict=True):
                    moved = torch.addmm(constant, rows, coef)
                    prediction = at_optimum + moved
                    rise = (self.loss.value(prediction, y) - value).addcmul_(slope, moved, value=-1)
                    steeper = (self.loss.derivative(prediction, y) - slope).mul_(moved)
                    sums_of_model[0] += weight @ rise
                    sums_of_model[1] += weight @ steeper
                sums[:, 2] += weight @ value.abs()
            return sums

        sums = self.blocks.map_reduce(of, torch.add, dense=True).cpu().numpy() / self.geometry.weight_sum
        return sums[:, 0], sums[:, 1] / 2, sums[:, 2]

    def _rows_and_predictions(self, block: Block, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows about the center, and their predictions at the optimum."""
        assert block.X is not None
        rows, coef, mean_prediction = _centred(self.geometry, block.X[part])
        return rows, torch.addmm(mean_prediction, rows, coef)

    def _rise_of_rest(self, change: np.ndarray) -> np.ndarray:
        """What the l1 penalty rises by, less what is linear at the optimum; 0 or more within the bounds."""
        if self.penalty.is_ridge:
            return np.zeros(change.shape[:-1])
        optimum, l1 = self.optimum, self.penalty.l1
        coef = optimum + change
        free = (optimum > self.penalty.lower) & (optimum < self.penalty.upper)
        crossed = np.sign(coef) != np.sign(optimum)
        smooth = free & (optimum != 0)
        rise = l1 * (np.abs(coef) - np.abs(optimum)) + self.slope * change
        return np.where(smooth, np.where(crossed, 2 * l1 * np.abs(coef), 0.0), np.maximum(rise, 0.0)).sum(-1)

    def metric(self) -> Metric:
        """Coordinates in which the Hessian at the optimum is `kappa` times the identity.

        Where proximal steps in them would take too long, or columns depend on each other, each feature has
        its own.
        """
        geometry = self.geometry
        n_features = len(geometry.center)
        is_simple = n_features <= PROGRAM_FEATURES and geometry.transform.shape[1] == n_features
        if not (self.penalty.is_ridge or is_simple) or geometry.transform.shape[1] == 0:
            unit = np.where(geometry.spread > 0, geometry.spread, 1.0)
            return Metric(1 / unit, unit, None)
        hessian = self._hessian(geometry.transform)
        n_inside = geometry.transform.shape[1]
        inside, offset = hessian[:n_inside, :n_inside], None
        if self.fit_intercept:
            offset = hessian[-1, :-1] / hessian[-1, -1]
            inside = inside - np.outer(offset, hessian[-1, :-1])
        inside += (geometry.transform.T * (self.penalty.l2 * (1 / self.kappa).mean())) @ geometry.transform
        values, vectors = np.linalg.eigh(inside)
        root = np.sqrt(np.maximum(values, EPS * values.max(initial=0.0)))
        root = np.where(root > 0, root, 1.0)
        return Metric(
            transform=geometry.transform @ (vectors / root),
            inverse=(vectors * root).T @ geometry.inverse,
            offset=None if offset is None else offset @ (vectors / root),
        )

    def _hessian(self, transform: np.ndarray) -> np.ndarray:
        """The mean over targets of the loss's Hessians over `kappa`, by transformed features."""
        matrix = torch.from_numpy(transform).to(self.blocks.device)
        per_kappa = torch.from_numpy(1 / self.kappa / len(self.kappa)).to(self.blocks.device)
        least = max(FLATTEST, float(self.flat.mean()))

        def of(block: Block) -> torch.Tensor:
            rows, prediction = self._rows_and_predictions(block, slice(None))
            weight = self.loss.curvature(prediction, block.y) @ per_kappa + least
            if block.weight is not None:
                weight *= block.weight
            columns = rows @ matrix
            if self.fit_intercept:
                columns = torch.cat([columns, torch.ones_like(prediction[:, :1])], dim=1)
            return columns.T @ (columns * weight[:, None])

        total = self.blocks.map_reduce(of, torch.add, dense=True).cpu().numpy()
        return np.asarray(total) / self.geometry.weight_sum


def is_quadratic(problem: Problem) -> bool:
    """Whether the objective is a quadratic function, of which moments tell all."""
    return problem.loss.kind == "quadratic" and problem.penalty.is_ridge


def landscape_of(problem: Problem, tol: float) -> Landscape:
    """Solve the problem exactly and describe the objective; costs a fit and a pass over the rows or two.

    Raises
    ------
    ValueError
        The scale that `Huber` estimates is 0.
    """
    solve = solve_active_set if problem.loss.kind == "quadratic" else solve_newton
    solution = solve(problem, tol, None)
    loss = _at_fixed_scale(problem.loss, solution)
    # Of wide rows no moments are made, which a problem with any other penalty would have.
    plain = is_wide(problem) and not problem.penalty.is_ridge
    about = replace(problem, penalty=ridge(0.0, problem.blocks.n_features)) if plain else problem
    geometry = replace(geometry_of(about, tol=1e-6), solution=solution)
    at_optimum = _at_optimum(problem, loss, geometry)
    penalty = problem.penalty
    return Landscape(
        blocks=problem.blocks,
        fit_intercept=problem.fit_intercept,
        loss=loss,
        penalty=penalty,
        geometry=replace(geometry, floor=float((at_optimum.value + penalty.value(solution.coef.T)).sum())),
        kappa=at_optimum.kappa,
        slope=at_optimum.slope + penalty.l2 * solution.coef.T,
        flat=at_optimum.flat,
        miss=float((at_optimum.miss / geometry.target_unit).max()),
    )


def _at_fixed_scale(loss: Loss, solution: Solution) -> Loss:
    if not loss.estimates_scale:
        return loss
    assert solution.scale is not None
    if not (solution.scale > 0).all():
        raise ValueError(
            f"loss={loss!r} estimates a scale of 0, since the model fits most rows exactly; that loss has "
            "no gradient to follow. Use solver='auto', or give Huber a number for scale."
        )
    return LossAtScale(loss, solution.scale)


def _centred(geometry: Geometry, X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows about the center, the optimum's coefficients, and its predictions at the center."""
    center = torch.from_numpy(geometry.center).to(X.device)
    coef = np.ascontiguousarray(geometry.solution.coef)
    mean_prediction = geometry.solution.intercept + geometry.center @ coef
    return X - center, torch.from_numpy(coef).to(X.device), torch.from_numpy(mean_prediction).to(X.device)


class _AtOptimum(NamedTuple):
    """What a pass over the rows tells of the loss at the optimum, per target."""

    value: np.ndarray  # mean loss
    kappa: np.ndarray  # mean curvature; where it is flat, that of constant predictions
    slope: np.ndarray  # gradient by the coefficients; shape: (n_targets, n_features)
    flat: np.ndarray  # whether each row's loss is least, as at many models around
    miss: np.ndarray  # root mean square of what predictions lack for that; else 0


def _at_optimum(problem: Problem, loss: Loss, geometry: Geometry) -> _AtOptimum:
    def of(block: Block) -> torch.Tensor:
        assert block.X is not None
        rows, coef, mean_prediction = _centred(geometry, block.X)
        prediction = torch.addmm(mean_prediction, rows, coef)
        weight = torch.ones_like(block.y[:, :1]) if block.weight is None else block.weight[:, None]
        constant = mean_prediction.expand_as(block.y)
        slope = loss.derivative(prediction, block.y)
        parts = [
            loss.value(prediction, block.y),
            loss.curvature(prediction, block.y),
            loss.curvature(constant, block.y),
            slope.square(),
            loss.derivative(constant, block.y).square(),
        ]
        sums = torch.stack([(part * weight).sum(0) for part in parts], dim=1)
        return torch.cat([sums, (slope * weight).T @ rows], dim=1)

    total = problem.blocks.map_reduce(of, torch.add, dense=True).cpu().numpy() / geometry.weight_sum
    value, kappa, of_constant, steepness, steepness_of_constant = total[:, :5].T
    flat = (kappa <= of_constant / 2) & (steepness <= LEAST_STEEPNESS * steepness_of_constant)
    kappa = np.where(flat, of_constant, np.maximum(kappa, FLATTEST * of_constant))
    kappa = np.where(kappa > 0, kappa, 1.0)
    return _AtOptimum(value, kappa, total[:, 5:], flat, np.where(flat, np.sqrt(steepness), 0.0) / kappa)
