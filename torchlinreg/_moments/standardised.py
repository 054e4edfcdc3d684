"""Moments as products of standardised columns, of whose coefficients the squared error is a quadratic."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from torchlinreg._linalg.cholesky import cholesky, extreme_singular_values
from torchlinreg._moments.moments import Moments, shift_and_scale, symmetric

# A squared spread below this many rounding errors of the mean square is that of a constant column.
CONSTANT = 10


@dataclass(frozen=True)
class Standardised:
    """Half the squared error, ``c @ gram @ c / 2 - cross @ c``, of ``c = coef * unit``, and constants.

    Products are those of the columns about their means, with an intercept, and spreads their root mean
    squares. The spread of a constant column is 0; it is left in its own unit, and its products are 0.
    """

    gram: np.ndarray  # of unit diagonal; shape: (n_features, n_features)
    cross: np.ndarray  # with the targets in the user's units; shape: (n_features, n_targets)
    spread: np.ndarray  # in the user's units; shape: (n_features,)
    target_spread: np.ndarray  # in the user's units; shape: (n_targets,)
    mean: np.ndarray  # in the frame, 0 without intercept; shape: (n_features + n_targets,)
    shift: np.ndarray  # of the frame; shape: (n_features + n_targets,)
    scale: np.ndarray  # of the frame; shape: (n_features + n_targets,)
    square: np.ndarray  # in the frame, about its shift; shape: (n_features + n_targets,)
    roundoff: float  # rounding error of the products about the shift, relative to the columns' norms about it
    rank: int  # that the number of rows allows at most

    @cached_property
    def unit(self) -> np.ndarray:
        """The spreads of the features, 1 for constant ones."""
        return np.where(self.spread > 0, self.spread, 1.0)

    @cached_property
    def center(self) -> np.ndarray:
        """The means of the features in the user's units, 0 without intercept; shape: (n_features,)."""
        return (self.shift + self.mean / self.scale)[: len(self.spread)]

    @cached_property
    def target_center(self) -> np.ndarray:
        """Those of the targets; shape: (n_targets,)."""
        return (self.shift + self.mean / self.scale)[len(self.spread) :]

    @cached_property
    def cancellation(self) -> np.ndarray:
        """Of each column, how much larger squares about the shift are; shape: (n_features + n_targets,)."""
        spread = np.concatenate([self.spread, self.target_spread]) * self.scale
        return np.divide(self.square, spread**2, where=spread > 0, out=np.ones_like(spread))

    @property
    def centred_roundoff(self) -> float:
        """Rounding error of `gram`, and of `cross` relative to the targets' spreads."""
        return self.roundoff * float(self.cancellation.max(initial=1.0))

    @cached_property
    def raw(self) -> np.ndarray:
        """Root mean squares of the columns about 0, in the frame; shape: (n_features + n_targets,)."""
        about_mean = np.sqrt(np.maximum(self.square - self.mean**2, 0.0))
        return np.hypot(about_mean, self.mean + self.shift * self.scale)

    @cached_property
    def smallest(self) -> float:
        """The smallest eigenvalue of `gram`, at least 0, which it is for fewer rows than features."""
        if self.rank < len(self.gram):
            return 0.0
        return max(float(np.linalg.eigvalsh(self.gram)[0]), 0.0)

    def is_conditioned(self, eigenvalue: float, among: np.ndarray | None = None) -> bool:
        """Whether the smallest eigenvalue of `gram`, of some features, is above a number, to about 30 %."""
        upper = cholesky(self.gram if among is None else self.gram[np.ix_(among, among)])
        return upper is not None and extreme_singular_values(upper)[1] ** 2 > eigenvalue

    def in_users_units(self, coef: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients, shape (..., n_features, n_targets), and intercepts, shape (..., n_targets)."""
        scaled = coef / self.unit[:, None]
        return scaled, self.target_center - self.center @ scaled


def standardised(moments: Moments, n_features: int, fit_intercept: bool) -> Standardised:
    """Standardise moments, of which the columns behind the features are targets."""
    products = symmetric(moments.raw).cpu().numpy()
    products /= products[0, 0]
    mean = products[0, 1:].copy() if fit_intercept else np.zeros(len(products) - 1)
    products = products[1:, 1:]
    square = products.diagonal().copy()
    if fit_intercept:
        products -= np.outer(mean, mean)
    variance = products.diagonal()
    constant = ~(variance > CONSTANT * moments.roundoff * square)
    spread = np.sqrt(np.where(constant, 0.0, variance))
    unit = np.where(constant, 1.0, spread)
    products /= unit[:, None]
    products /= unit
    products[constant] = 0.0
    products[:, constant] = 0.0
    np.fill_diagonal(products, 1.0)
    shift, scale = (values[1:] for values in shift_and_scale(moments.frame))
    spread /= scale
    features, targets = slice(n_features), slice(n_features, None)
    target_spread = spread[targets]
    return Standardised(
        gram=products[features, features],
        cross=products[features, targets] * target_spread,
        spread=spread[features],
        target_spread=target_spread,
        mean=mean,
        shift=shift,
        scale=scale,
        square=square,
        roundoff=moments.roundoff,
        rank=moments.n_samples - fit_intercept,
    )
