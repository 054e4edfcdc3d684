"""Bounds of mixtures of variables: where coordinates are orthonormal, and the bounds are of coefficients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchlinreg._linalg.cholesky import cholesky, solve_upper
from torchlinreg._objective.penalty import Penalty
from torchlinreg._solvers.penalised.quadratic import minimise_quadratic

# Coefficients this close to a bound, in units of the variables that they mix, are there but for rounding.
AT_BOUND = 64 * 2.0**-53


@dataclass(frozen=True)
class MixtureBounds:
    """``lower <= mixing @ variables <= upper``, where that is not 0 whatever the variables."""

    mixing: np.ndarray  # shape: (n_mixtures, n_variables)
    lower: np.ndarray
    upper: np.ndarray

    def nearest(self, goal: np.ndarray, hessian: np.ndarray | None = None) -> np.ndarray:
        """The variables within the bounds that are nearest to a goal, in the norm of a Hessian (None: identity).

        They are ``goal - hessian^-1 mixing.T m`` where the multipliers `m` minimise a quadratic, with ``m * upper``
        the price of positive and ``m * lower`` that of negative ones: an l1 penalty with a tilt.
        """
        some = self.mixing.any(1)
        mixing, lower, upper = self.mixing[some], self.lower[some], self.upper[some]
        mixed = mixing @ goal
        if ((lower <= mixed) & (mixed <= upper)).all():
            return goal
        reach = mixing.T
        if hessian is not None:
            root = np.sqrt(hessian.diagonal())
            factor = cholesky(hessian / root[:, None] / root)
            if factor is None:
                reach = np.linalg.lstsq(hessian, reach)[0]
            else:
                reach = solve_upper(factor, reach / root[:, None]) / root[:, None]
        gram = mixing @ reach
        unit = np.sqrt(gram.diagonal())
        below, above = np.isfinite(lower), np.isfinite(upper)
        low = np.where(below, lower, np.where(above, upper, 0.0))
        high = np.where(above, upper, low)
        price = Penalty(
            (high / 2 - low / 2) / unit,
            np.zeros_like(unit),
            np.where(below, -np.inf, 0.0),
            np.where(above, np.inf, 0.0),
        )
        linear = (mixed - (low / 2 + high / 2)) / unit
        return goal - reach @ (minimise_quadratic(gram / unit[:, None] / unit, linear, price).coef / unit)

    def snapped(self, mixed: np.ndarray, size: float) -> np.ndarray:
        """Mixtures of variables of a norm, with those exactly at a bound that are there but for rounding."""
        rounding = AT_BOUND * size * np.linalg.norm(self.mixing, axis=1)
        at_upper = np.where(self.upper - mixed <= rounding, self.upper, mixed)
        return np.where(mixed - self.lower <= rounding, self.lower, at_upper)
