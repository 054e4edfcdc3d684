"""Synthetic regression data with a reference solution, for timing and for memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse

BLOCK_BYTES = 8 * 2**20


class Shape(NamedTuple):
    """The shape of X."""

    n_samples: int
    n_features: int

    def __str__(self) -> str:
        """Rows by columns, in the form that `parse_shape` reads."""
        return f"{self.n_samples}x{self.n_features}"


def parse_shape(text: str) -> Shape:
    """Read a shape such as ``1000x10`` or ``1e6x30``.

    Parameters
    ----------
    text : str
        Rows, an x, columns; powers of ten may be written as 1e6.

    Returns
    -------
    Shape
        The two integers.

    Raises
    ------
    ValueError
        If the text is anything else.

    Examples
    --------
    >>> parse_shape("1e6x30")
    Shape(n_samples=1000000, n_features=30)
    """
    try:
        n_samples, n_features = (int(float(number)) for number in text.split("x"))
    except ValueError:
        message = f"{text!r} is not a shape: write rows x columns, for example 1000x10 or 1e6x30"
        raise ValueError(message) from None
    return Shape(n_samples, n_features)


class Solution(NamedTuple):
    """Coefficients of shape (n_features,) and the intercept."""

    coef: np.ndarray
    intercept: float


# X and y are what a contestant takes: NumPy arrays, a CSR matrix (scipy has no types) or tensors.
@dataclass(frozen=True, eq=False)
class Data:
    """A regression problem with one target.

    Parameters
    ----------
    X : ndarray, csr_array or Tensor of shape (n_samples, n_features)
        Columns of unit spread, a few units away from zero.
    y : ndarray or Tensor of shape (n_samples,)
        Target, of the same type.
    sample_weight : ndarray of shape (n_samples,) or None
        Weights; None is weight 1 for every row.
    """

    X: Any
    y: Any
    sample_weight: np.ndarray | None = None

    @property
    def shape(self) -> Shape:
        """The shape of X."""
        return Shape(*self.X.shape)


def make_data(
    shape: Shape,
    *,
    dtype: str = "float64",
    weighted: bool = False,
    density: float | None = None,
    seed: int = 0,
) -> Data:
    """Draw a well-conditioned regression problem.

    Parameters
    ----------
    shape : Shape
        Rows and columns of X.
    dtype : {"float64", "float32"}, default="float64"
        Type of X, y and the weights.
    weighted : bool, default=False
        Whether there are weights, uniform between 0.5 and 2.
    density : float, default=None
        Share of entries that are stored. None is a dense array.
    seed : int, default=0
        Seed of the random numbers.

    Returns
    -------
    Data
        Standard normal columns shifted by up to 5 units, coefficients of size 0.5 to 2 with either
        sign, the intercept 3, and standard normal noise. A sparse X is not shifted.

    Notes
    -----
    A dense X is filled by blocks of rows, so that nothing of its size exists beside it.
    """
    rng = np.random.default_rng(seed)
    coef = rng.uniform(0.5, 2.0, shape.n_features) * rng.choice([-1.0, 1.0], shape.n_features)
    if density is None:
        offset = rng.uniform(-5.0, 5.0, shape.n_features)
        X = np.empty(shape, dtype)
        signal = np.empty(shape.n_samples)
        for rows in _row_slices(shape):
            block = rng.standard_normal((rows.stop - rows.start, shape.n_features)) + offset
            X[rows] = block
            signal[rows] = block @ coef
    else:
        X = scipy.sparse.random_array(
            shape, density=density, format="csr", rng=rng, data_sampler=rng.standard_normal
        ).astype(dtype)
        signal = X @ coef
    y = (3.0 + signal + rng.standard_normal(shape.n_samples)).astype(dtype)
    weight = rng.uniform(0.5, 2.0, shape.n_samples).astype(dtype) if weighted else None
    return Data(X, y, weight)


class Reference(NamedTuple):
    """The least squares solution in float64, and the mean row, which errors are taken at."""

    solution: Solution
    mean_row: np.ndarray

    def error(self, solution: Solution) -> float:
        """Error of the coefficients and of the prediction for the mean row, relative.

        Parameters
        ----------
        solution : Solution
            What a contestant found.

        Returns
        -------
        float
            The greater of the two; infinite for a wrong shape or a number that is not finite.
        """
        coef = np.asarray(solution.coef, np.float64)
        expected = self.solution.coef
        if coef.shape != expected.shape or not np.isfinite([*coef, solution.intercept]).all():
            return float("inf")
        change = coef - expected
        at_mean = self.mean_row @ change + solution.intercept - self.solution.intercept
        scale = np.linalg.norm(expected)
        return float(max(np.abs(change).max() / np.abs(expected).max(), abs(at_mean) / scale))


def reference(data: Data) -> Reference:
    """Solve a problem of `make_data` in float64, by a route of its own.

    Parameters
    ----------
    data : Data
        NumPy or scipy data.

    Returns
    -------
    Reference
        From centred normal equations over blocks of rows and two refinements with the residuals
        of the rows, which is accurate to rounding because the data are well-conditioned.
    """
    n_features = data.shape.n_features
    weight_sum, mean, y_mean = 0.0, np.zeros(n_features), 0.0
    for X, y, w in _blocks(data):
        weight_sum += w.sum()
        mean += w @ X
        y_mean += w @ y
    mean /= weight_sum
    y_mean /= weight_sum

    gram = np.zeros((n_features, n_features))
    for X, _, w in _blocks(data):
        centred = X - mean
        gram += centred.T @ (w[:, None] * centred)
    factor = scipy.linalg.cho_factor(gram)

    coef, intercept = np.zeros(n_features), y_mean
    for _ in range(3):
        gradient, residual_sum = np.zeros(n_features), 0.0
        for X, y, w in _blocks(data):
            residual = w * (y - intercept - (X - mean) @ coef)
            gradient += (X - mean).T @ residual
            residual_sum += residual.sum()
        coef += scipy.linalg.cho_solve(factor, gradient)
        intercept += residual_sum / weight_sum
    return Reference(Solution(coef, float(intercept - mean @ coef)), mean)


def _row_slices(shape: Shape) -> Iterator[slice]:
    """Slices that cover the rows in blocks of about BLOCK_BYTES of float64."""
    step = max(1, BLOCK_BYTES // (8 * shape.n_features))
    for start in range(0, shape.n_samples, step):
        yield slice(start, min(start + step, shape.n_samples))


def _blocks(data: Data) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Dense float64 blocks of X, y and the weights."""
    for rows in _row_slices(data.shape):
        X, y = data.X[rows], data.y[rows].astype(np.float64)
        dense = X.toarray() if scipy.sparse.issparse(X) else X
        weight = np.ones(len(y)) if data.sample_weight is None else data.sample_weight[rows]
        yield dense.astype(np.float64), y, weight.astype(np.float64)
