"""What an optimizer's parameters mean: the user's coefficients, or coordinates in which training is easy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from torchlinreg.solvers._geometry import Geometry

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
    transform: np.ndarray | None  # of the coefficients; None for the user's units

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
        moved = (change[..., :-1] if self.fit_intercept else change) @ self.transform.T
        coef = self.about.solution.coef.T + moved
        intercept = np.broadcast_to(self.about.solution.intercept, coef.shape[:-1])
        if self.fit_intercept:
            intercept = intercept + change[..., -1] - moved @ self.about.center
        return coef, intercept

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
        """``centred @ affine`` times parameters predicts, but for the scale; None for the identity."""
        if self.transform is None:
            return None
        n_features, rank = self.transform.shape
        matrix = torch.zeros(
            (n_features + self.fit_intercept, rank + self.fit_intercept), dtype=torch.float64
        )
        matrix[:n_features, :rank] = torch.from_numpy(self.transform)
        matrix[n_features:, rank:] = 1
        return matrix

    def excess(self, parameters: np.ndarray, alpha: float) -> np.ndarray:
        """The objective above its optimum, per target; leading dimensions as in `model`."""
        if self.transform is not None:
            return (((parameters - self.optimum) * self.scale[:, None]) ** 2).sum(-1) / 2
        coef, mean_error = self._change(parameters)
        spread = (self.about.curvature(coef) * coef).sum(-1) + alpha * (coef**2).sum(-1)
        return (spread + mean_error**2) / 2

    def distance(self, parameters: np.ndarray) -> np.ndarray:
        """The largest difference of a coefficient, or of the mean prediction, from the optimum, standardised.

        One number for parameters, an array for parameters with a leading dimension.
        """
        change, mean_error = self._change(parameters)
        return self.about.standardised(change, mean_error)

    def _change(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray | float]:
        """Differences of the coefficients and of the mean prediction from the optimum, not cancelling."""
        change = (parameters - self.optimum) * self.scale[:, None]
        coef = change[..., :-1] if self.fit_intercept else change
        mean_error = change[..., -1] if self.fit_intercept else 0.0
        if self.transform is not None:
            return coef @ self.transform.T, mean_error
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
    radius = np.sqrt(((optimum - first) ** 2).sum(1))
    scale = np.where(radius > 0, radius, 1.0)
    return Coordinates(
        geometry=geometry,
        fit_intercept=fit_intercept,
        optimum=optimum / scale[:, None],
        start=first / scale[:, None],
        scale=scale,
        transform=geometry.transform,
    )


def _joined(coef: np.ndarray, intercept: np.ndarray, fit_intercept: bool) -> np.ndarray:
    columns = np.concatenate([coef, intercept[:, None]], axis=1) if fit_intercept else coef
    return np.array(columns, dtype=np.float64, order="C")
