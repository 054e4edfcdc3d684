"""The optimum and the shape of the training objective around it: what training steers by and is judged by."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import qr, solve_triangular

from torchlinreg._linalg.cholesky import inverse_of_upper
from torchlinreg._moments.exact import ExactMoments
from torchlinreg._moments.moments import Moments, shift_and_scale, symmetric
from torchlinreg._objective.evaluate import squared_losses
from torchlinreg._objective.problem import Problem
from torchlinreg._objective.solution import Solution
from torchlinreg._solvers.least_squares.basis_fit import BasisFit
from torchlinreg._solvers.least_squares.dual import is_wide, solve_dual
from torchlinreg._solvers.least_squares.normal_equations import (
    Fit,
    solve_accumulated_with_fit,
    solve_with_fit,
)

# What others leave of a wide row is rounding below this share of the features that it consists of.
DEPENDENT_ROWS = 1e-12
# Moments give the residuals' mean square to about 1e-15 of that of y; below this share, another pass is made.
CANCELLED = 1e-6


@dataclass(frozen=True)
class Geometry:
    """The squared-error objective about its optimum, in the user's units.

    With ``coef = transform @ z`` the objective is, up to a constant, half the squared distance of `z` from
    its optimum, plus half the square of the predictions' mean error.
    """

    solution: Solution
    weight_sum: float
    center: np.ndarray  # means of x, 0 without intercept; shape: (n_features,)
    spread: np.ndarray  # standard deviations of x, about 0 without intercept; shape: (n_features,)
    target_center: np.ndarray  # shape: (n_targets,)
    target_spread: np.ndarray  # shape: (n_targets,)
    transform: np.ndarray  # shape: (n_features, rank)
    inverse: np.ndarray  # of transform, from the left; shape: (rank, n_features)
    cross: np.ndarray  # weighted mean of centred x y.T; shape: (n_features, n_targets)
    scatter: np.ndarray | None  # the same of x x.T; None for wide rows
    rows: np.ndarray | None  # centred rows times sqrt(weight / weight_sum), of wide data only
    floor: float  # the objective at the optimum

    @property
    def target_unit(self) -> np.ndarray:
        """What differences of predictions are measured in: the spread of y, else its size, else 1."""
        size = np.where(self.target_spread > 0, self.target_spread, np.abs(self.target_center))
        return np.where(size > 0, size, 1.0)

    @property
    def fingerprint(self) -> np.ndarray:
        """Numbers by which data are known again."""
        sums = [self.weight_sum, self.floor]
        return np.concatenate(
            [self.center, self.spread, self.target_center, self.target_spread, self.solution.intercept, sums]
        )

    @property
    def largest_coefficient(self) -> float:
        """The largest standardised coefficient of the optimum; large where columns nearly cancel."""
        standardised = np.abs(self.solution.coef) * self.spread[:, None] / self.target_unit
        return float(standardised.max(initial=0.0))

    def standardised(self, change: np.ndarray, mean_error: np.ndarray | float) -> np.ndarray:
        """The largest change of coefficients, shape (..., n_targets, n_features), and mean predictions.

        One number for each target.
        """
        if len(self.inverse) < len(self.center):  # of many optima, the nearest one
            change = (change @ self.inverse.T) @ self.transform.T
        in_spreads = np.abs(change * self.spread).max(-1, initial=0.0)
        return np.maximum(in_spreads, np.abs(mean_error)) / self.target_unit

    def curvature(self, coef: np.ndarray) -> np.ndarray:
        """The centred rows' second moments times coefficients, shape (..., n_features)."""
        if self.scatter is not None:
            return coef @ self.scatter
        assert self.rows is not None
        return (coef @ self.rows.T) @ self.rows


def geometry_of(problem: Problem, tol: float) -> Geometry:
    """Solve the problem exactly and describe the objective; costs a fit."""
    by_rows = is_wide(problem) and problem.penalty.is_uniform
    return _of_rows(problem, tol) if by_rows else _of_moments(problem, tol)


def geometry_of_accumulated(
    moments: ExactMoments, n_features: int, l2: np.ndarray, fit_intercept: bool, tol: float
) -> Geometry:
    """The same from moments alone, whose rows are gone."""
    solution, fit = solve_accumulated_with_fit(moments, n_features, l2, fit_intercept, tol)
    return _of_fit(solution, fit, moments, fit_intercept)


def _of_moments(problem: Problem, tol: float) -> Geometry:
    solution, fit = solve_with_fit(problem, tol)
    geometry = _of_fit(solution, fit, problem.moments, problem.fit_intercept)
    if 2 * geometry.floor > CANCELLED * float((geometry.target_spread**2).sum()):
        return geometry
    loss = squared_losses(problem.blocks, solution.coef.T[None], solution.intercept[None])[0]
    penalty = float(problem.penalty.value(solution.coef.T).sum())
    return replace(geometry, floor=float(loss) + penalty)


def _of_fit(
    solution: Solution, fit: Fit | BasisFit, moments: Moments | ExactMoments, fit_intercept: bool
) -> Geometry:
    """From moments, of which 16 digits are read, and a fit of them."""
    upper = moments.raw if isinstance(moments, Moments) else moments.high
    raw = symmetric(upper).cpu().numpy()
    n_features = fit.n_features
    weight_sum = float(raw[0, 0])
    shift, scale = (values[1:] for values in shift_and_scale(moments.frame))
    mean = np.zeros_like(shift)
    scatter = raw[1:, 1:]
    if fit_intercept:
        mean = raw[0, 1:] / weight_sum
        scatter = scatter - np.outer(raw[0, 1:], mean)
    scatter = scatter / weight_sum / scale[:, None] / scale
    spread = np.sqrt(np.maximum(scatter.diagonal(), 0.0))
    center = shift + mean / scale
    root = np.sqrt(weight_sum)
    if isinstance(fit, BasisFit):
        transform, inverse = fit.transform * root, fit.inverse / root
        rss = fit.rss / fit.basis.scale[n_features:] ** 2
    else:
        transform, inverse = _whitening(fit, scale[:n_features])
        rss = np.maximum(fit.rss, 0.0) / scale[n_features:] ** 2
    return Geometry(
        solution=solution,
        weight_sum=weight_sum,
        center=center[:n_features],
        spread=spread[:n_features],
        target_center=center[n_features:],
        target_spread=spread[n_features:],
        transform=transform,
        inverse=inverse,
        cross=scatter[:n_features, n_features:],
        scatter=scatter[:n_features, :n_features],
        rows=None,
        floor=float(rss.sum()) / weight_sum / 2,
    )


def _whitening(fit: Fit, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The transform of `Geometry`, and its inverse, from a fit's factor.

    Constant columns are left out, but those that a ridge holds.
    """
    columns = fit.design[fit.n_intercepts :] - 1
    root = np.sqrt(fit.factor.weight_sum)
    unit = fit.factor.norm / scale[columns]
    rank = len(columns) + len(fit.held)
    transform = np.zeros((fit.n_features, rank))
    inverse = np.zeros((rank, fit.n_features))
    inside, held = slice(len(columns)), np.arange(len(columns), rank)
    transform[columns, inside] = np.triu(inverse_of_upper(fit.factor.upper)) * root / unit[:, None]
    inverse[inside, columns] = fit.factor.upper * unit / root
    of_held = np.sqrt(fit.held_ridge) / scale[fit.held] / root
    transform[fit.held, held], inverse[held, fit.held] = 1 / of_held, of_held
    return transform, inverse


def _of_rows(problem: Problem, tol: float) -> Geometry:
    """The same for fewer rows than features, all of which are held at once."""
    solution = solve_dual(problem, tol, None)
    blocks = problem.blocks.positive_weight_rows()
    X = np.concatenate([block.X.double().cpu().numpy() for block in blocks.dense() if block.X is not None])
    y = blocks.y.cpu().numpy()
    weight = np.ones(len(y)) if blocks.weight is None else blocks.weight.cpu().numpy()
    weight_sum = float(weight.sum())
    center, target_center = np.zeros(X.shape[1]), np.zeros(y.shape[1])
    if problem.fit_intercept:
        center, target_center = weight @ X / weight_sum, weight @ y / weight_sum
        constant = (X[:1] == X).all(0)
        center[constant] = X[0, constant]
    root = np.sqrt(weight / weight_sum)[:, None]
    rows = (X - center) * root
    spread = np.sqrt((rows**2).sum(0))
    transform, inverse = _whitened(rows, spread, solution.rank, float(problem.penalty.l2[0]))
    centred_y = (y - target_center) * root
    residual = centred_y - rows @ solution.coef
    penalty = 2 * problem.penalty.value(solution.coef.T)
    return Geometry(
        solution=solution,
        weight_sum=weight_sum,
        center=center,
        spread=spread,
        target_center=target_center,
        target_spread=np.sqrt((centred_y**2).sum(0)),
        transform=transform,
        inverse=inverse,
        cross=rows.T @ centred_y,
        scatter=None,
        rows=rows,
        floor=float(((residual**2).sum(0) + penalty).sum()) / 2,
    )


def _whitened(
    rows: np.ndarray, spread: np.ndarray, rank: int | None, l2: float
) -> tuple[np.ndarray, np.ndarray]:
    """The transform of `Geometry`, and its inverse, triangular for features in the order of their sizes.

    By Householder reflections of the features in that order, with pivoting among the rows, each feature is
    rounded relative to itself, whatever the units of others (Cox and Higham 1998, Stability of Householder QR
    factorization for weighted least squares problems). The triangle does not depend on the order of rows, or
    on whether they are repeated or have weights.
    """
    by_size = np.argsort(-spread, kind="stable")
    directions = np.zeros((len(spread), min(rows.shape)))
    directions[by_size], factor, _ = qr(rows.T[by_size], mode="economic", pivoting=True)
    size = (np.abs(directions) * spread[:, None]).max(0)
    kept = np.abs(factor.diagonal()) > DEPENDENT_ROWS * size
    kept[rank:] = False  # which is known from exact products: here, a mean far from 0 leaves its rounding
    directions = directions[:, kept]
    ridge = np.sqrt(l2) * np.eye(directions.shape[1])
    upper = qr(np.vstack([factor[kept].T, ridge]), mode="r")[0][: len(ridge)]
    inverse = upper @ directions.T
    rotation, triangle = qr(inverse[:, by_size], mode="economic")
    rotation *= np.where(triangle.diagonal() < 0, -1.0, 1.0)
    return solve_triangular(upper, directions.T, trans="T").T @ rotation, rotation.T @ inverse
