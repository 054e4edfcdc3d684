"""What an optimizer's parameters mean: the user's coefficients, or coordinates in which training is easy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from torchlinreg._objective.penalty import Penalty
from torchlinreg._solvers.least_squares.whitening import Geometry
from torchlinreg._training.optimum import Landscape, Metric

Model = tuple[np.ndarray, np.ndarray]  # coef, shape: (n_targets, n_features); intercept, shape: (n_targets,)


@dataclass(frozen=True)
class Coordinates:
    """The map from parameters, shape (n_targets, n_coordinates), the intercept's last, to the user's units.

    It is anchored at the optimum, so that parameters near `optimum` give coefficients near the optimal ones
    to their last digit, however ill-conditioned the map.
    """

    geometry: Geometry | None  # None where only a pass over rows in the user's units is made
    fit_intercept: bool
    optimum: np.ndarray  # shape: (n_targets, n_coordinates)
    start: np.ndarray  # shape: (n_targets, n_coordinates)
    scale: np.ndarray  # of the targets; shape: (n_targets,)
    # Of the coefficients; one dimension for a diagonal matrix, None for the user's units.
    transform: np.ndarray | None
    inverse: np.ndarray | None = None  # of transform, from the left; kept where it is not the geometry's
    offset: np.ndarray | None = None  # of predictions at the center, per coordinate; None for 0

    @property
    def about(self) -> Geometry:
        """The geometry, where there is one."""
        assert self.geometry is not None
        return self.geometry

    def model(self, parameters: np.ndarray) -> Model:
        """Coefficients and intercepts, with any leading dimensions that `parameters` has."""
        if self.transform is None:
            if self.fit_intercept:
                return parameters[..., :-1], parameters[..., -1]
            return parameters, np.zeros(parameters.shape[:-1])
        change = (parameters - self.optimum) * self.scale[:, None]
        moved = self._transformed(change[..., :-1] if self.fit_intercept else change)
        coef = self.about.solution.coef.T + moved
        intercept = np.broadcast_to(self.about.solution.intercept, coef.shape[:-1])
        if self.fit_intercept:
            intercept = intercept + self._mean_error(change) - moved @ self.about.center
        return coef, intercept

    def within(self, parameters: np.ndarray, penalty: Penalty) -> np.ndarray:
        """The parameters with coefficients moved into their bounds; mean predictions stay."""
        if not penalty.has_bounds:
            return parameters
        result = parameters.copy()
        if self.transform is None:
            inside = result[..., : len(penalty.lower)]
            inside[...] = np.clip(inside, penalty.lower, penalty.upper)
            return result
        coef = self.about.solution.coef.T + self.change(parameters)[0]
        moved = np.clip(coef, penalty.lower, penalty.upper) - coef
        inside = result[..., : self.optimum.shape[1] - self.fit_intercept]
        inside += self._inside_change(moved)
        if self.offset is not None and self.fit_intercept:
            result[..., -1] += self._inside_change(moved) @ self.offset
        return result

    def inside(self, coef: np.ndarray) -> np.ndarray:
        """The parameters of coefficients, without the intercept's."""
        if self.transform is None:
            return coef
        optimum = self.optimum[:, : self.optimum.shape[1] - self.fit_intercept]
        return optimum + self._inside_change(coef - self.about.solution.coef.T)

    def _inside_change(self, change: np.ndarray) -> np.ndarray:
        assert self.inverse is not None
        inside = change * self.inverse if self.inverse.ndim == 1 else change @ self.inverse.T
        return inside / self.scale[:, None]

    def _transformed(self, change: np.ndarray) -> np.ndarray:
        assert self.transform is not None
        return change * self.transform if self.transform.ndim == 1 else change @ self.transform.T

    def _mean_error(self, change: np.ndarray) -> np.ndarray:
        """Differences of predictions at the center."""
        if self.offset is None:
            return change[..., -1]
        return change[..., -1] - change[..., :-1] @ self.offset

    def centred(self, X: torch.Tensor) -> torch.Tensor:
        """Rows about the center, and a 1 for the intercept; `affine` makes coordinates of them."""
        n_features = X.shape[1]
        rows = torch.empty((len(X), n_features + self.fit_intercept), dtype=torch.float64, device=X.device)
        if self.transform is None:
            rows[:, :n_features] = X
        else:
            center = torch.from_numpy(self.about.center).to(X.device)
            torch.sub(X, center, out=rows[:, :n_features])
        rows[:, n_features:] = 1
        return rows

    @cached_property
    def affine(self) -> torch.Tensor | None:
        """``centred @ affine`` times parameters predicts, but for the scale; None for the identity.

        One dimension stands for a diagonal matrix.
        """
        if self.transform is None:
            return None
        if self.transform.ndim == 1:
            return torch.from_numpy(np.append(self.transform, np.ones(int(self.fit_intercept))))
        n_features, rank = self.transform.shape
        shape = n_features + self.fit_intercept, rank + self.fit_intercept
        matrix = torch.zeros(shape, dtype=torch.float64, device="cpu")
        matrix[:n_features, :rank] = torch.from_numpy(self.transform)
        matrix[n_features:, rank:] = 1
        if self.offset is not None:
            matrix[n_features:, :rank] = -torch.from_numpy(self.offset)
        return matrix

    def excess(self, parameters: np.ndarray, l2: np.ndarray) -> np.ndarray:
        """The objective above its optimum, per target; leading dimensions as in `model`."""
        if self.transform is not None:
            return (((parameters - self.optimum) * self.scale[:, None]) ** 2).sum(-1) / 2
        coef, mean_error = self.change(parameters)
        spread = (self.about.curvature(coef) * coef).sum(-1) + (l2 * coef**2).sum(-1)
        return (spread + mean_error**2) / 2

    def distance(self, parameters: np.ndarray) -> np.ndarray:
        """The largest difference of a coefficient, or of the mean prediction, from the optimum, standardised.

        One number for each target.
        """
        return self.about.standardised(*self.change(parameters))

    def change(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray | float]:
        """Differences of the coefficients and of the mean prediction from the optimum, not cancelling."""
        change = (parameters - self.optimum) * self.scale[:, None]
        coef = change[..., :-1] if self.fit_intercept else change
        mean_error = self._mean_error(change) if self.fit_intercept else 0.0
        if self.transform is not None:
            return self._transformed(coef), mean_error
        return coef, mean_error + coef @ self.about.center if self.fit_intercept else 0.0


def users_units(geometry: Geometry, start: Model | None, fit_intercept: bool) -> Coordinates:
    """The coefficients and the intercept themselves, as in a loop on the raw data."""
    optimum = _joined(geometry.solution.coef.T, geometry.solution.intercept, fit_intercept)
    return Coordinates(
        geometry=geometry,
        fit_intercept=fit_intercept,
        optimum=optimum,
        start=np.zeros_like(optimum) if start is None else _joined(*start, fit_intercept),
        scale=np.ones(len(optimum)),
        transform=None,
    )


def users_units_without_optimum(start: Model, fit_intercept: bool) -> Coordinates:
    """The same for a pass over rows whose optimum nobody knows."""
    first = _joined(*start, fit_intercept)
    return Coordinates(
        geometry=None,
        fit_intercept=fit_intercept,
        optimum=np.full_like(first, np.nan),
        start=first,
        scale=np.ones(len(first)),
        transform=None,
    )


def unit_sphere(geometry: Geometry, start: Model | None, fit_intercept: bool) -> Coordinates:
    """Whitened coordinates, in which the objective is a sphere and the start is at distance 1 of its centre.

    Without a start, that is at coefficients of 0 and the intercept that fits them.
    """
    coef, intercept = geometry.solution.coef.T, geometry.solution.intercept
    optimum = _joined(coef @ geometry.inverse.T, np.zeros_like(intercept), fit_intercept)
    first = np.zeros_like(optimum)
    if start is not None:
        mean_error = start[1] - intercept + (start[0] - coef) @ geometry.center
        first = _joined(start[0] @ geometry.inverse.T, mean_error, fit_intercept)
    return _at_distance_one(geometry, fit_intercept, optimum, first, geometry.transform)


def about_optimum(landscape: Landscape, start: Model | None, fit_intercept: bool) -> Coordinates:
    """The same for any smooth loss, about round near the optimum; with proximal steps, one per feature."""
    geometry, metric = landscape.geometry, landscape.metric()
    coef, intercept = landscape.optimum, geometry.solution.intercept
    optimum = _joined(_inside(coef, metric), np.zeros_like(intercept), fit_intercept)
    change, mean_error = -coef, np.zeros_like(intercept)
    if start is not None:
        change = start[0] - coef
        mean_error = start[1] - intercept + change @ geometry.center
    inside = _inside(change, metric)
    if metric.offset is not None:
        mean_error = mean_error + inside @ metric.offset
    first = optimum + _joined(inside, mean_error, fit_intercept)
    place = _at_distance_one(geometry, fit_intercept, optimum, first, metric.transform)
    return replace(place, inverse=metric.inverse, offset=metric.offset)


def _inside(coef: np.ndarray, metric: Metric) -> np.ndarray:
    return coef * metric.inverse if metric.inverse.ndim == 1 else coef @ metric.inverse.T


def _at_distance_one(
    geometry: Geometry,
    fit_intercept: bool,
    optimum: np.ndarray,
    first: np.ndarray,
    transform: np.ndarray,
) -> Coordinates:
    radius = np.sqrt(((optimum - first) ** 2).sum(1))
    scale = np.where(radius > 0, radius, 1.0)
    return Coordinates(
        geometry=geometry,
        fit_intercept=fit_intercept,
        optimum=optimum / scale[:, None],
        start=first / scale[:, None],
        scale=scale,
        transform=transform,
    )


def _joined(coef: np.ndarray, intercept: np.ndarray, fit_intercept: bool) -> np.ndarray:
    columns = np.concatenate([coef, intercept[:, None]], axis=1) if fit_intercept else coef
    return np.array(columns, dtype=np.float64, order="C")
