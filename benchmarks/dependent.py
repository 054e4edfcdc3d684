"""Data whose columns depend on each other, exactly or nearly, for timing."""

from collections.abc import Callable

import numpy as np
import scipy.sparse

from benchmarks.synthetic import Data, Solution


def one_hot(n_samples: int, n_groups: int, n_levels: int, *, sparse: bool = False) -> Data:
    """Draw categories, with a column of 0 and 1 for each level of each.

    Parameters
    ----------
    n_samples, n_groups, n_levels : int
        Rows, categorical variables, and levels of each.
    sparse : bool, default=False
        Whether X is a CSR matrix.

    Returns
    -------
    Data
        With an intercept, each variable depends on the others in one way.
    """
    rng = np.random.default_rng(0)
    level = rng.integers(0, n_levels, (n_samples, n_groups)) + n_levels * np.arange(n_groups)
    shape = n_samples, n_groups * n_levels
    starts = np.arange(0, n_samples * n_groups + 1, n_groups)
    X = scipy.sparse.csr_array((np.ones(level.size), level.ravel(), starts), shape=shape)
    return _with_target(X if sparse else X.toarray(), rng)


def nearly_equal(n_samples: int, n_features: int, difference: float) -> Data:
    """Draw normal columns, of which the second is the first but for a difference of that size."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_samples, n_features))
    X[:, 1] = X[:, 0] + difference * X[:, 1]
    return _with_target(X, rng)


def twins(n_samples: int, n_pairs: int, difference: float) -> Data:
    """Draw normal columns, and each of them once more but for a difference of that size."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_samples, n_pairs))
    return _with_target(np.hstack([X, X + difference * rng.standard_normal(X.shape)]), rng)


def duplicate(n_samples: int, n_features: int) -> Data:
    """Draw normal columns, of which the last one is the first."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_samples, n_features))
    X[:, -1] = X[:, 0]
    return _with_target(X, rng)


def bumps(n_samples: int, n_features: int, width: float) -> Data:
    """Evaluate Gaussian radial basis functions with centers from 0 to 1 at uniform numbers."""
    rng = np.random.default_rng(0)
    x = rng.random((n_samples, 1))
    return _with_target(np.exp(-(((x - np.linspace(0, 1, n_features)) / width) ** 2) / 2), rng)


def _with_target(X: np.ndarray, rng: np.random.Generator) -> Data:
    y = X @ rng.standard_normal(X.shape[1]) + rng.standard_normal(X.shape[0])
    return Data(X, y)


# Whether columns depend on each other exactly, and how to draw them.
CASES: dict[str, tuple[bool, Callable[[], Data]]] = {
    "one-hot 20000x1000": (True, lambda: one_hot(20_000, 10, 100)),
    "one-hot 20000x300": (True, lambda: one_hot(20_000, 10, 30)),
    "duplicate 20000x201": (True, lambda: duplicate(20_000, 201)),
    "twins 20000x600": (True, lambda: twins(20_000, 300, 0.0)),
    "sparse one-hot 100000x500": (True, lambda: one_hot(100_000, 5, 100, sparse=True)),
    "sparse one-hot 100000x1000": (True, lambda: one_hot(100_000, 10, 100, sparse=True)),
    "sparse one-hot 1000000x1000": (True, lambda: one_hot(1_000_000, 10, 100, sparse=True)),
    "condition 1e6 200000x20": (False, lambda: nearly_equal(200_000, 20, 1e-6)),
    "condition 1e9 200000x20": (False, lambda: nearly_equal(200_000, 20, 1e-9)),
    "near twins 20000x600": (False, lambda: twins(20_000, 300, 1e-9)),
    "radial basis 5000x200": (False, lambda: bumps(5000, 200, 0.1)),
}


def prediction_error(data: Data, best: Solution) -> Callable[[Solution], float]:
    """Judge a solution by what it predicts, for coefficients of dependent columns are not unique.

    Parameters
    ----------
    data : Data
        The rows.
    best : Solution
        The solution to compare with.

    Returns
    -------
    callable
        From a solution to how much its residual sum of squares is above that of `best`, relatively.
    """

    def squares(solution: Solution) -> float:
        return float(((data.y - data.X @ solution.coef - solution.intercept) ** 2).sum())

    least = squares(best)
    return lambda solution: max(0.0, squares(solution) / least - 1)
