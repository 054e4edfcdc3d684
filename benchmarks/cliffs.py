"""Shapes of data on which a fit may take many times as long as on others of their size."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from sklearn.linear_model import Ridge

from torchlinreg import TorchLinearRegressor, regularization_path

Fit = Callable[[np.ndarray, np.ndarray], Any]  # Any: a model of scikit-learn or ours


class Cliff(NamedTuple):
    """Data, a fit, and what it is compared with."""

    draw: Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]
    ours: Fit
    rival: str
    fit_rival: Fit
    limit: float  # how many times the rival's time ours may take
    interpolates: bool = False  # whether predictions must equal y; else ours must equal the rival's


def normal(n_samples: int, n_features: int, n_targets: int = 0, signal: float = 1.0) -> Callable[..., Any]:
    """Draw normal columns, and targets of their sums, times `signal`, and noise.

    Parameters
    ----------
    n_samples, n_features, n_targets : int
        Rows, columns, and targets; 0 targets make `y` one-dimensional.
    signal : float, default=1.0
        The size of the coefficients.

    Returns
    -------
    callable
        From a generator to X and y.
    """

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        X = rng.standard_normal((n_samples, n_features))
        shape = (n_targets,) if n_targets else ()
        coef = signal * rng.standard_normal((n_features, *shape))
        return X, X @ coef + rng.standard_normal((n_samples, *shape))

    return draw


def _ours(**parameters: Any) -> Fit:
    return lambda X, y: TorchLinearRegressor(**parameters).fit(X, y)


def _ridge(alpha: float) -> Fit:
    return lambda X, y: Ridge(alpha=alpha).fit(X, y)


def _single_fits(X: np.ndarray, y: np.ndarray) -> list[Any]:
    """Thirty strengths of a lasso, each by itself, from near the largest that leaves a coefficient."""
    largest = np.abs(X.T @ (y - y.mean())).max() / len(y)
    alphas = np.geomspace(largest, 1e-3 * largest, 30)
    return [TorchLinearRegressor(alpha=alpha, l1_ratio=1.0).fit(X, y) for alpha in alphas]


CLIFFS = {
    "ridge 500x5000": Cliff(normal(500, 5000), _ours(alpha=1e-2), "Ridge", _ridge(5.0), 1.5),
    "least norm 500x5000": Cliff(normal(500, 5000), _ours(), "Ridge", _ridge(1e-8), 1.5, True),
    "square 2000x2000": Cliff(normal(2000, 2000), _ours(alpha=0.1), "Ridge", _ridge(200.0), 2.0),
    "box 5x20000": Cliff(
        normal(5, 20_000), _ours(bounds=(-1, 1)), "positive", _ours(positive=True), 3.0, True
    ),
    "path 30x2500": Cliff(
        normal(30, 2500),
        lambda X, y: regularization_path(X, y, alphas=30),
        "30 fits",
        _single_fits,
        1.0,
    ),
    "20 targets 100000x50": Cliff(normal(100_000, 50, 20), _ours(), "Ridge", _ridge(1e-8), 1.0),
    "20 targets of noise 100000x50": Cliff(
        normal(100_000, 50, 20, signal=0.0), _ours(), "Ridge", _ridge(1e-8), 1.0
    ),
}


def prediction_error(cliff: Cliff, X: np.ndarray, y: np.ndarray) -> Callable[[Any], float]:
    """Judge a fit by what it predicts.

    Parameters
    ----------
    cliff : Cliff
        The case.
    X, y : ndarray
        The data.

    Returns
    -------
    callable
        From a model, or several, to the largest difference from what is right, relative to y.
    """
    goal = y if cliff.interpolates else None

    def predicted(found: Any) -> np.ndarray:
        if isinstance(found, list):  # of a path
            return np.stack([X @ model.coef_ + model.intercept_ for model in found])
        if hasattr(found, "coefs"):
            return np.asarray(found.coefs @ X.T + found.intercepts[:, None])
        return np.asarray(found.predict(X))

    def error(found: Any) -> float:
        nonlocal goal
        goal = predicted(cliff.fit_rival(X, y)) if goal is None else goal
        return float(np.abs(predicted(found) - goal).max() / np.abs(y).max())

    return error
