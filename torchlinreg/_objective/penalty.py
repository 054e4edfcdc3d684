"""The penalty and the constraints of the coefficients, per feature."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from torchlinreg._checks import as_numbers


@dataclass(frozen=True)
class Penalty:
    """``sum_j l1_j |coef_j| + l2_j / 2 coef_j^2``, with ``lower_j <= coef_j <= upper_j``."""

    l1: np.ndarray  # shape: (n_features,)
    l2: np.ndarray  # shape: (n_features,)
    lower: np.ndarray  # shape: (n_features,); -inf where there is no bound
    upper: np.ndarray  # shape: (n_features,); inf where there is no bound

    @cached_property
    def has_bounds(self) -> bool:
        """Whether any coefficient is constrained."""
        return bool(self.lower.max(initial=-np.inf) > -np.inf or self.upper.min(initial=np.inf) < np.inf)

    @cached_property
    def is_ridge(self) -> bool:
        """Whether there is nothing but a ridge penalty, or none at all."""
        return not (self.l1.any() or self.has_bounds)

    @cached_property
    def is_uniform(self) -> bool:
        """Whether it is a ridge penalty, or none, of one strength for all features."""
        return self.is_ridge and bool((self.l2 == self.l2[0]).all())

    def value(self, coef: np.ndarray) -> np.ndarray:
        """The penalty of coefficients, shape (..., n_features)."""
        return (self.l1 * np.abs(coef) + self.l2 / 2 * coef * coef).sum(-1)

    def times(self, alpha: float) -> Penalty:
        """The penalty at another strength, with the same bounds."""
        with np.errstate(over="ignore"):
            l1, l2 = self.l1 * alpha, self.l2 * alpha
        _refuse_infinite(np.maximum(l1, l2), alpha)
        return Penalty(l1, l2, self.lower, self.upper)

    def prox(self, coef: np.ndarray, step: float | np.ndarray) -> np.ndarray:
        """The minimum of ``penalty(z) + |z - coef|^2 / (2 step)`` over `z`, per coefficient."""
        shrunk = np.sign(coef) * np.maximum(np.abs(coef) - step * self.l1, 0.0) / (1 + step * self.l2)
        return np.clip(shrunk, self.lower, self.upper)

    def within_bounds(self, coef: np.ndarray, dtype: type[np.floating[Any]]) -> np.ndarray:
        """Coefficients, shape (..., n_features), rounded to a dtype without leaving their bounds.

        Bounds that have no number of the dtype between them leave one next to them.
        """
        inside = np.clip(coef, self.lower, self.upper) if self.has_bounds else coef
        with np.errstate(over="ignore"):
            rounded = inside.astype(dtype)
        if not self.has_bounds:
            return rounded
        finite = np.isfinite(rounded)
        rounded = np.where(finite & (rounded > self.upper), np.nextafter(rounded, dtype(-np.inf)), rounded)
        return np.where(finite & (rounded < self.lower), np.nextafter(rounded, dtype(np.inf)), rounded)

    def part(self, index: np.ndarray) -> Penalty:
        """The same of some features."""
        return Penalty(self.l1[index], self.l2[index], self.lower[index], self.upper[index])

    def scaled(self, unit: np.ndarray) -> Penalty:
        """The same penalty of ``coef * unit``, where every unit is positive."""
        with np.errstate(over="ignore"):
            return Penalty(self.l1 / unit, self.l2 / unit**2, self.lower * unit, self.upper * unit)


def ridge(alpha: float, n_features: int) -> Penalty:
    """A ridge penalty of one strength."""
    return elastic_net(alpha, 0.0, n_features)


def elastic_net(
    alpha: float,
    l1_ratio: float,
    n_features: int,
    factor: np.ndarray | None = None,
    lower: np.ndarray | float = -np.inf,
    upper: np.ndarray | float = np.inf,
) -> Penalty:
    """``alpha * factor_j * (l1_ratio |coef_j| + (1 - l1_ratio) / 2 coef_j^2)``, summed, with bounds."""
    strength = np.full(n_features, float(alpha))
    if factor is not None:
        with np.errstate(over="ignore"):
            strength *= factor
        _refuse_infinite(strength, alpha)
    lower, upper = (np.full(n_features, bound, dtype=np.float64) for bound in (lower, upper))
    return Penalty(strength * l1_ratio, strength * (1 - l1_ratio), lower, upper)


def _refuse_infinite(strength: np.ndarray, alpha: float) -> None:
    if not np.isfinite(strength).all():
        raise ValueError(
            f"alpha={alpha!r} times penalty_factor is infinite for feature {np.isfinite(strength).argmin()}; "
            "use smaller numbers, or penalty_factor=inf to leave a feature out."
        )


def penalty_of(
    n_features: int, alpha: float, l1_ratio: float, penalty_factor: Any, positive: bool, bounds: Any
) -> Penalty:
    """The penalty that an estimator's parameters ask for.

    Raises
    ------
    ValueError
        `penalty_factor` or `bounds` has another shape, holds other numbers than it may, the bounds cross, or
        those of an excluded feature leave out 0.
    """
    factor, excluded = None, np.zeros(n_features, dtype=bool)
    if penalty_factor is not None:
        factor = _per_feature("penalty_factor", penalty_factor, n_features)
        if not (factor >= 0).all():  # false for NaN, too
            raise ValueError(
                "penalty_factor must hold numbers from 0 (no penalty) to infinity (the feature is excluded); "
                f"it is {penalty_factor!r}."
            )
        excluded = np.isinf(factor)
        factor[excluded] = 0.0
    if bounds is None and not (positive or excluded.any()):
        return elastic_net(alpha, l1_ratio, n_features, factor)
    lower, upper = _bounds(bounds, n_features)
    if positive:
        lower = np.maximum(lower, 0.0)
    crossed = np.flatnonzero(~(lower <= upper))
    if len(crossed):
        first = crossed[0]
        raise ValueError(
            f"bounds leave no coefficient for feature {first}: from {lower[first]:g} to {upper[first]:g}"
            f"{' with positive=True' if positive else ''}. Every lower bound must be at most the upper one."
        )
    barred = np.flatnonzero(excluded & ((lower > 0) | (upper < 0)))
    if len(barred):
        first = barred[0]
        raise ValueError(
            f"penalty_factor is infinite for feature {first}, whose coefficient is then 0, but its bounds go "
            f"from {lower[first]:g} to {upper[first]:g}. Let them contain 0, or use a finite factor."
        )
    lower[excluded] = upper[excluded] = 0.0
    return elastic_net(alpha, l1_ratio, n_features, factor, lower, upper)


def _bounds(bounds: Any, n_features: int) -> tuple[np.ndarray, np.ndarray]:
    if bounds is None:
        return np.full(n_features, -np.inf), np.full(n_features, np.inf)
    if isinstance(bounds, str) or not hasattr(bounds, "__len__") or len(bounds) != 2:
        raise ValueError(
            f"bounds={bounds!r} must be a pair (lower, upper), each a number, an array of shape "
            "(n_features,), or None for no bound, such as (0, None). An array may hold None as well."
        )
    sides = []
    for name, bound, none in (("lower", bounds[0], -np.inf), ("upper", bounds[1], np.inf)):
        sides.append(_per_feature(f"bounds: {name}", _without_none(bound, none), n_features))
        if np.isnan(sides[-1]).any() or (sides[-1] == -none).any():
            raise ValueError(f"bounds: {name} holds NaN or {-none}; use numbers, or None for no bound.")
    return sides[0], sides[1]


def _without_none(bound: Any, none: float) -> Any:
    """A bound, or several, with a number in place of None."""
    if bound is None:
        return none
    if isinstance(bound, (list, tuple)) or str(getattr(bound, "dtype", "")) == "object":
        return [none if value is None else value for value in bound]
    return bound


def _per_feature(name: str, value: Any, n_features: int) -> np.ndarray:
    """A float64 array of shape (n_features,), of an array or one number."""
    try:
        array = as_numbers(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}={value!r} must hold numbers: {error}") from error
    if array.shape not in ((), (n_features,)):
        raise ValueError(
            f"{name} has shape {array.shape}; it must be one number or have shape ({n_features},), one per "
            "feature."
        )
    return np.array(np.broadcast_to(array, n_features))
