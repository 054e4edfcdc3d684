"""Small dense algebra that the exact solvers share: factors and condition numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.linalg import lapack

DoubleDouble = tuple[np.ndarray, np.ndarray]

# Matrices from this size on go to torch and its threads, for which smaller ones are too little work (a factor
# of 100 columns takes 0.02 ms without, 0.06 with).
TORCH_SIZE = 200
# Singular values of smaller ones are computed exactly.
SVD_SIZE = 33
POWER_STEPS = 7
MAX_REFINEMENTS = 30


@dataclass(frozen=True)
class Factor:
    """Triangular factor of a centred design with unit columns.

    ``upper.T @ upper`` approximates the (ridge-penalised) Gram matrix of the columns divided by `norm`.
    `offset` is the mean of the design columns in their frame, whose shift is `shift`; None without intercept.
    """

    upper: np.ndarray  # shape: (n_columns, n_columns)
    norm: np.ndarray  # shape: (n_columns,)
    offset: np.ndarray | None  # shape: (n_columns,)
    shift: np.ndarray  # in the units of the frame; shape: (n_columns,)
    weight_sum: float

    def solve(self, gradient: np.ndarray) -> np.ndarray:
        """The change of ``[intercept, coef]`` (or ``coef``) that takes a gradient of that shape to 0."""
        if self.offset is None:
            return self._solve_centred(gradient)
        coef = self._solve_centred(gradient[1:] - np.outer(self.offset, gradient[0]))
        intercept = gradient[0] / self.weight_sum - self.offset @ coef
        return np.concatenate([intercept[None], coef])

    @cached_property
    def gains(self) -> np.ndarray:
        """How an error of the predictions reaches each coefficient: row norms of ``upper^-1``."""
        return np.sqrt((np.triu(inverse_of_upper(self.upper)) ** 2).sum(1))

    @cached_property
    def singular_values(self) -> tuple[float, float]:
        """The largest and the smallest one of `upper`."""
        return extreme_singular_values(self.upper)

    @cached_property
    def means(self) -> np.ndarray:
        """Means as seen from 0 of the columns, of unit norm about their means."""
        assert self.offset is not None
        return (self.shift + self.offset) / self.norm

    @cached_property
    def mean_gains(self) -> tuple[float, float, float]:
        """How errors of the columns' normal equations, its own one and the predictions reach the intercept.

        Through the coefficients, with the columns' means, and through the mean residual.
        """
        solved = solve_upper(self.upper, self.means[:, None])[:, 0]
        directly = self.weight_sum**-0.5
        # The square of upper @ solved, since solved was made by solving upper.T @ upper @ solved = means.
        predicted = max(0.0, float(self.means @ solved))
        return float(solved @ solved) ** 0.5, directly, predicted**0.5 + directly

    def energy(self, change: np.ndarray) -> np.ndarray:
        """Norm of the centred predictions' change, per response; what refinement shrinks at a steady rate.

        Its error in single coefficients can be larger by the condition number.
        """
        coef = change if self.offset is None else change[1:]
        return np.sqrt(((self.upper @ (coef * self.norm[:, None])) ** 2).sum(0))

    def _solve_centred(self, gradient: np.ndarray) -> np.ndarray:
        return solve_upper(self.upper, gradient / self.norm[:, None]) / self.norm[:, None]


def cholesky(matrix: np.ndarray) -> np.ndarray | None:
    """Upper Cholesky factor from the upper triangle, or None where the matrix is not positive definite."""
    if len(matrix) == 0:
        return matrix
    # LAPACK wants columns in sequence: the transposed factor of the transposed matrix saves two copies.
    if len(matrix) >= TORCH_SIZE:
        factor, status = torch.linalg.cholesky_ex(torch.from_numpy(matrix).mT)
        lower, info = factor.numpy(), int(status)
    else:
        lower, info = lapack.dpotrf(matrix.T, lower=1, clean=1)
    return lower.T if info == 0 else None


def solve_upper(upper: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve ``upper.T @ upper @ x = right``."""
    if right.size == 0:
        return np.zeros_like(right)
    # Without the copies that torch makes of the factor, which took 4 of 5 ms for 1000 columns.
    return lapack.dpotrs(upper.T, right, lower=1)[0]


def solve_positive(matrix: np.ndarray, right: np.ndarray, smallest: float) -> np.ndarray:
    """The solution of a positive definite system; the least one where rounding has made it singular.

    Singular values below `smallest`, relatively, are then taken for 0.
    """
    unit = np.sqrt(matrix.diagonal())
    upper = cholesky(matrix / unit[:, None] / unit)
    if upper is None:
        return np.linalg.lstsq(matrix, right, rcond=smallest)[0]
    return solve_upper(upper, (right / unit)[:, None])[:, 0] / unit


def inverse_of_upper(upper: np.ndarray) -> np.ndarray:
    """The inverse of a triangular factor, of which the upper triangle counts."""
    if len(upper) == 0:
        return upper
    if len(upper) >= TORCH_SIZE:
        one = torch.eye(len(upper), dtype=torch.float64, device="cpu")
        return torch.linalg.solve_triangular(torch.from_numpy(upper), one, upper=True).numpy()
    return lapack.dtrtri(upper.T, lower=1)[0].T


def extreme_singular_values(upper: np.ndarray) -> tuple[float, float]:
    """The largest and smallest singular value of a triangular factor; to about 30 % where it is large."""
    size = len(upper)
    if size <= 1:
        return 1.0, 1.0  # its columns have unit norm
    if size < SVD_SIZE:
        values = np.linalg.svd(upper, compute_uv=False)
        return float(values[0]), float(values[-1])
    # Touches no random state of the user.
    start = np.random.default_rng(0).standard_normal((size, 2))
    largest = _largest_eigenvalue(lambda v: _multiply_upper(upper, v), start)
    smallest = 1 / _largest_eigenvalue(lambda v: solve_upper(upper, v), start)
    return float(np.sqrt(largest)), float(np.sqrt(smallest))


def largest_singular_value(matrix: np.ndarray) -> float:
    """The largest singular value; to about 30 % where the matrix is large."""
    if min(matrix.shape) < SVD_SIZE:
        return float(np.linalg.norm(matrix, 2)) if matrix.size else 1.0
    start = np.random.default_rng(0).standard_normal((matrix.shape[1], 2))
    return float(np.sqrt(_largest_eigenvalue(lambda v: matrix.T @ (matrix @ v), start)))


def _multiply_upper(upper: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``upper.T @ upper @ right``."""
    factor = torch.from_numpy(upper)
    return (factor.mT @ (factor @ torch.from_numpy(right))).numpy()


def _largest_eigenvalue(apply: Callable[[np.ndarray], np.ndarray], vectors: np.ndarray) -> float:
    """Largest eigenvalue of a symmetric positive operator by some steps of subspace iteration."""
    for _ in range(POWER_STEPS):
        first, second = (vectors / np.linalg.norm(vectors, axis=0)).T
        second = second - first * (first @ second)
        vectors = apply(np.stack([first, second / np.linalg.norm(second)], axis=1))
    return float(np.linalg.norm(vectors, axis=0).max())
