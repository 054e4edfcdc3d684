"""The objective of any smooth loss in an optimizer's parameters, from rows, and proximal steps on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from torchlinreg._objective.penalty import Penalty
from torchlinreg._solvers.penalised.quadratic import minimise_quadratic
from torchlinreg._training.coordinates import Coordinates
from torchlinreg._training.optimum import NEAR
from torchlinreg.losses import Loss

# Steps of power iteration for the largest curvature.
POWER_STEPS = 40
# Before a line search the proximal step is tried so many times as long as what is safe everywhere, then
# halved.
LONGEST_STEP = 64


class RowSet(NamedTuple):
    """Some rows in coordinates, with their predictions and the loss's derivatives at an origin."""

    rows: torch.Tensor  # shape: (n_rows, n_coordinates)
    prediction: torch.Tensor  # shape: (n_rows, n_targets)
    slope: torch.Tensor  # the same, or of shape () for 0
    y: torch.Tensor  # shape: (n_rows, n_targets)
    share: torch.Tensor  # of each row in the mean; shape: (n_rows, 1)


@dataclass(frozen=True)
class LossRows:
    """The mean loss and the ridge penalty in parameters, shape (n_targets, n_coordinates); see `Objective`.

    Near the origin only differences from its gradient, which is given, are formed from rows, so that rounding
    is that of the difference. With `damping` half its square is added, of the distance from the origin.
    """

    sets: Callable[[], Iterable[RowSet]]
    loss: Loss
    ridge: torch.Tensor | None  # of change * scale; shape: (n_coordinates,) for a diagonal one, or twice
    scale: torch.Tensor  # of the coordinates; shape: (n_targets, 1)
    unit: torch.Tensor  # the objective is multiplied by; shape: (n_targets, 1)
    origin: torch.Tensor
    at_origin: torch.Tensor  # the gradient there
    is_anchored: bool  # whether the sets' predictions and slopes are those of the origin, or 0
    damping: float = 0.0

    def gradient(self, theta: torch.Tensor, out: torch.Tensor) -> None:
        """See `Objective`."""
        change = theta - self.origin
        inside = change * self.scale
        total = self._through_ridge(inside)
        for some in self.sets():
            prediction = torch.addmm(some.prediction, some.rows, inside.T)
            slope = self.loss.derivative(prediction, some.y)
            slope -= some.slope
            slope *= some.share
            total += slope.T @ some.rows
        torch.addcmul(self.at_origin, total, self.scale * self.unit, out=out)
        if self.damping:
            out += self.damping * change

    def slope(self, theta: torch.Tensor) -> torch.Tensor:
        """The gradient at `theta`."""
        out = torch.empty_like(theta)
        self.gradient(theta, out)
        return out

    def value(self, theta: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """See `Objective`."""
        change = theta - self.origin
        inside = change * self.scale
        rise = (inside * self._through_ridge(inside)).sum(1) / 2
        size = torch.zeros_like(rise)
        for some in self.sets():
            moved = some.rows @ inside.T
            prediction = some.prediction + moved
            losses = self.loss.value(prediction, some.y)
            if self.is_anchored:
                at_origin = self.loss.value(some.prediction, some.y)
                losses -= at_origin
                losses -= some.slope * moved
                size += (some.share * at_origin.abs()).sum(0)
            rise += (some.share * losses).sum(0)
        if self.is_anchored:
            steeper = ((gradient - self.at_origin - self.damping * change) * change).sum(1)
            rise = torch.where(rise > NEAR * size, rise, steeper / self.unit[:, 0] / 2)
        linear = (self.at_origin * change).sum() + self.damping / 2 * change.square().sum()
        return (rise * self.unit[:, 0]).sum() + linear

    def product(self, theta: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        """The Hessian at `theta` times a vector."""
        inside, along = (theta - self.origin) * self.scale, vector * self.scale
        total = self._through_ridge(along)
        for some in self.sets():
            curvature = self.loss.curvature(some.prediction + some.rows @ inside.T, some.y)
            total += (curvature * some.share * (some.rows @ along.T)).T @ some.rows
        return total * self.scale * self.unit + self.damping * vector

    def _through_ridge(self, inside: torch.Tensor) -> torch.Tensor:
        if self.ridge is None:
            return torch.zeros_like(inside)
        return inside * self.ridge if self.ridge.ndim == 1 else inside @ self.ridge

    def steepest(self, *points: torch.Tensor) -> np.ndarray:
        """The largest curvature at some points, per target, by power iteration; shape (n_targets,)."""
        largest = torch.zeros(len(self.origin), dtype=torch.float64, device="cpu")
        start = torch.from_numpy(np.random.default_rng(0).standard_normal(self.origin.shape))
        for point in points:
            vector = start.to(self.origin.device)
            for _ in range(POWER_STEPS):
                size = vector.norm(dim=1, keepdim=True)
                vector = self.product(point, vector / torch.where(size > 0, size, 1.0))
            largest = torch.maximum(largest, vector.norm(dim=1).cpu().nan_to_num(0.0, 0.0))
        return largest.numpy()


class Settled(NamedTuple):
    """Parameters after a proximal step, and their coefficients, with exact zeros and within their bounds."""

    theta: torch.Tensor
    coef: np.ndarray  # shape: (n_targets, n_features)


class Prox:
    """Proximal steps of the l1 penalty and the bounds in an optimizer's parameters.

    Where each parameter belongs to one feature they are soft thresholds, else small quadratic programs.
    """

    def __init__(self, penalty: Penalty, coordinates: Coordinates, unit: torch.Tensor) -> None:
        self._coordinates = coordinates
        self._penalty = replace(penalty, l2=np.zeros_like(penalty.l2))  # the ridge has a gradient
        self._unit = unit.cpu().numpy()
        self._n_inside = coordinates.optimum.shape[1] - coordinates.fit_intercept
        self._is_diagonal = coordinates.transform is None or coordinates.transform.ndim == 1
        self._gram = None if self._is_diagonal else _scaled_gram(coordinates)
        self._last: tuple[torch.Tensor, float, Settled] | None = None

    def coef_of_step(self, theta: torch.Tensor, step: float) -> np.ndarray:
        """The coefficients that minimise ``penalty + |z - theta|^2 / (2 step)``; zeros are exact."""
        coordinates = self._coordinates
        parameters = theta.cpu().numpy()
        if coordinates.transform is None:
            return self._penalty.prox(parameters[:, : self._n_inside], step)
        coef = coordinates.about.solution.coef.T + coordinates.change(parameters)[0]
        # In units in which the squared distance of parameters is that of coordinates.
        steps = step * self._unit * coordinates.scale[:, None] ** 2
        if self._is_diagonal:
            return self._penalty.prox(coef, steps * coordinates.transform**2)
        return np.stack([self._by_program(*pair) for pair in zip(coef, steps[:, 0], strict=True)])

    def _by_program(self, coef: np.ndarray, step: float) -> np.ndarray:
        assert self._gram is not None
        gram, unit = self._gram
        penalty = self._penalty
        scaled = replace(penalty, l1=penalty.l1 * step).scaled(unit)
        found = minimise_quadratic(gram, gram @ (coef * unit), scaled, coef * unit).coef
        result = found / unit
        result = np.where(found == scaled.lower, penalty.lower, result)
        return np.where(found == scaled.upper, penalty.upper, result)

    def step(self, theta: torch.Tensor, step: float) -> Settled:
        """These and their parameters; the intercept's stay.

        The last one is kept: what an epoch led to is asked for after it, and by the next one.
        """
        if self._last is not None and self._last[1] == step and torch.equal(self._last[0], theta):
            return self._last[2]
        coef = self.coef_of_step(theta, step)
        result = theta.clone()
        inside = torch.from_numpy(self._coordinates.inside(coef)).to(theta.device)
        result[:, : self._n_inside] = inside
        self._last = theta, step, Settled(result, coef)
        return self._last[2]


def _scaled_gram(coordinates: Coordinates) -> tuple[np.ndarray, np.ndarray]:
    """The squared distance in coordinates as a matrix, of coefficients in units that are given, too."""
    assert coordinates.inverse is not None
    unit = np.sqrt((coordinates.inverse**2).sum(0))
    unit = np.where(unit > 0, unit, 1.0)
    rows = coordinates.inverse / unit
    return rows.T @ rows, unit


@dataclass(frozen=True)
class Proximal:
    """An objective with a penalty that has no gradient, as optimizers see it.

    They are given the proximal gradient mapping, ``(theta - prox(theta - step * gradient)) / step``, which is
    0 at the optimum and nowhere else; plain gradient descent then makes proximal steps (ISTA; Beck, Teboulle
    2009, SIAM J. Imaging Sci. 2, 183). It is no function's gradient, which a line search needs: that is given
    half the squared distance from where the proximal step of its first point leads, whose gradient there is
    the mapping.
    """

    objective: LossRows
    prox: Prox
    step: float
    goal: torch.Tensor | None = None

    def gradient(self, theta: torch.Tensor, out: torch.Tensor) -> None:
        """See `Objective`."""
        goal = self.settled(theta, self.step).theta if self.goal is None else self.goal
        torch.sub(theta, goal, out=out).div_(self.step)

    def value(self, theta: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """See `Objective`; with a goal."""
        return gradient.square().sum() * (self.step / 2)

    def settled(self, theta: torch.Tensor, step: float) -> Settled:
        """A proximal step."""
        return self.prox.step(theta - step * self.objective.slope(theta), step)

    def for_search(self, theta: torch.Tensor) -> Proximal:
        """With the goal of a line search from `theta`, and the longest step that is sure to descend.

        That is one whose quadratic model is above the loss where it leads (Beck, Teboulle 2009, section 4).
        """
        slope = self.objective.slope(theta)
        here = self.objective.value(theta, slope)
        step = self.step * LONGEST_STEP
        while True:
            goal = self.prox.step(theta - step * slope, step).theta
            way = goal - theta
            rise = self.objective.value(goal, self.objective.slope(goal)) - here if step > self.step else 0.0
            if step <= self.step or rise <= (slope * way).sum() + way.square().sum() / (2 * step):
                return replace(self, step=step, goal=goal)
            step /= 2
