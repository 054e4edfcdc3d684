"""Of several optima within bounds, the one of least norm, whatever the order or number of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.optimize import nnls

from torchlinreg._linalg.cholesky import cholesky
from torchlinreg._objective.problem import Problem
from torchlinreg._objective.solution import Solution, Status

# Eigenvalues of the Gram matrix of unit columns below this are 0, and pivots above the other are not near it.
NULL_EIGENVALUE, CLEAR_PIVOT = 1e-13, 1e-5
# An eigendecomposition of more features takes longer than the rest of the fit.
MAX_FEATURES = 1000
# The ridge that decides, relative to the spread of y.
PULL = 1e-5
# Coefficients this close to a bound, relative to the largest, are there but for rounding.
SNAP = 1e-14
# The mean square of what the prediction changes by, relative to that of the change, which rounding explains.
ROUNDING = 1e-12


def with_least_norm(problem: Problem, solution: Solution, solve: Callable[[Problem], Solution]) -> Solution:
    """The solution, or where columns depend on each other, that of least norm.

    Optima of piecewise linear losses may differ in their predictions as well; there a small ridge decides,
    with which `solve` runs again.
    """
    penalty = problem.penalty
    if penalty.is_ridge:  # whose coordinates span the rows, and so have that norm
        dependent = solution.rank is not None and solution.rank < problem.blocks.n_features
        return _told(solution) if dependent else solution
    if penalty.l1.any() or problem.blocks.n_features > MAX_FEATURES:
        return solution
    columns = problem.standardised
    unit = columns.unit
    gram = columns.gram + np.diag(penalty.l2 / unit**2 - (columns.spread == 0))
    free = _null_space(gram)
    if free.shape[1] == 0:
        return solution
    if problem.loss.kind == "piecewise_linear":
        size = float(((solution.coef * unit[:, None]) ** 2).sum()) or 1.0
        pulled = replace(penalty, l2=penalty.l2 + PULL * _size_of_y(problem) / size * unit**2)
        again = solve(replace(problem, penalty=pulled))
        if again.status is Status.OPTIMAL:
            solution = replace(again, optimality=max(again.optimality or 0.0, PULL**2))
    directions = np.linalg.qr(free / unit[:, None])[0]
    coef, intercept = solution.coef.copy(), solution.intercept.copy()
    for target, old in enumerate(solution.coef.T):
        new = _nearest_to_zero(old, directions, penalty.lower, penalty.upper)
        change = (new - old) * unit
        if not float(change @ gram @ change) <= ROUNDING * float(change @ change):
            continue
        coef[:, target] = new
        intercept[target] += columns.center @ (old - new)
    return _told(replace(solution, coef=coef, intercept=intercept))


def _told(solution: Solution) -> Solution:
    """The same, with a status that tells that there are other optima."""
    if solution.status is not Status.OPTIMAL:
        return solution
    return replace(solution, status=Status.MINIMUM_NORM)


def _size_of_y(problem: Problem) -> float:
    """Its spread, or its size where that is 0, else 1."""
    spread = float(problem.standardised.target_spread.max())
    return spread or float(problem.blocks.y.abs().max()) or 1.0


def _null_space(gram: np.ndarray) -> np.ndarray:
    """Orthonormal directions in which nothing changes, shape (n_features, n_directions)."""
    diagonal = gram.diagonal()
    if (diagonal > 0).all():
        upper = cholesky(gram)
        if upper is not None and (upper.diagonal() > CLEAR_PIVOT * np.sqrt(diagonal)).all():
            return np.zeros((len(gram), 0))
    values, vectors = np.linalg.eigh(gram)
    return vectors[:, values <= NULL_EIGENVALUE * len(gram)]


def _nearest_to_zero(
    coef: np.ndarray, directions: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> np.ndarray:
    """The shortest vector within the bounds that differs from `coef` by orthonormal directions only.

    Lawson, Hanson (1974), Solving Least Squares Problems, chapter 23, section 4: least distance programming.
    """
    shortest = coef - directions @ (directions.T @ coef)
    sides = np.concatenate([np.isfinite(lower), np.isfinite(upper)])
    walls = np.concatenate([directions, -directions])[sides]
    needed = np.concatenate([lower - shortest, shortest - upper])[sides]
    size = np.abs(needed).max(initial=0.0)
    nearest, touched = shortest, np.zeros(len(sides), dtype=bool)
    if (needed > 0).any():
        system = np.vstack([walls.T, needed / size])
        goal = np.zeros(len(system))
        goal[-1] = 1.0
        forces, _ = nnls(system, goal)
        rest = system @ forces - goal
        if rest[-1] == 0:
            return coef
        nearest = shortest - directions @ rest[:-1] / rest[-1] * size
        touched[sides] = forces > 0
    near = SNAP * np.abs(nearest).max(initial=0.0)
    at_lower = touched[: len(coef)] | (nearest - lower <= near)
    at_upper = touched[len(coef) :] | (upper - nearest <= near)
    return np.where(at_lower, lower, np.where(at_upper, upper, nearest))
