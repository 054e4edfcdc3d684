"""Of several optima within bounds, the one of least norm, whatever the order or number of rows.

All optima of a strictly convex loss share their predictions, so that they differ by null vectors of the
columns: the set of them is ``{coef: X coef = X coef0, lower <= coef <= upper}``, and to find the shortest is
a least distance problem. Wide data give it an equation for each row, tall data one for each column that
others depend on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import qr

from torchlinreg._linalg import double_double as dd
from torchlinreg._linalg.gram import EPS
from torchlinreg._moments.exact import ExactMoments
from torchlinreg._objective.problem import Problem
from torchlinreg._objective.solution import Solution, Status
from torchlinreg._solvers.least_distance import shortest_within
from torchlinreg._solvers.least_squares.basis import DEPENDENT
from torchlinreg._solvers.least_squares.dual import is_wide
from torchlinreg._solvers.null_space import null_space
from torchlinreg._solvers.penalised.active_set import measured

# What the predictions may change by, relative to the residuals, and in units of their own rounding.
OF_RESIDUALS, OF_ROUNDING = 1e-6, 2 * EPS
# Ridges below this share of a unit column's square are lost in it.
NO_RIDGE = EPS


def with_least_norm(
    problem: Problem,
    solution: Solution,
    tol: float,
    moments: ExactMoments | None = None,
) -> Solution:
    """The solution or, where columns depend on each other, the one of least norm.

    If the bound on its objective, measured again, is above `tol`, the solution stays as it was. Piecewise
    linear losses, whose optima may differ in their predictions as well, come with their least norm. `moments`
    take the place of rows that are gone.
    """
    penalty = problem.penalty
    if penalty.is_ridge and solution.rank is not None:  # whose coordinates span the rows, and have that norm
        return _told(solution) if solution.rank < problem.blocks.n_features else solution
    if penalty.l1.any() or penalty.l2.all():
        return solution
    ties = _ties_of_rows(problem) if moments is None and is_wide(problem) else _ties(problem, moments)
    if ties is None:
        return solution
    if problem.loss.kind == "piecewise_linear":
        return _told(solution)
    coef, intercept = solution.coef.copy(), solution.intercept.copy()
    residual = ties.residual(solution.coef) if problem.loss.kind == "quadratic" else np.zeros(coef.shape[1])
    for target, old in enumerate(solution.coef.T):
        new = ties.shortest(old, penalty.lower, penalty.upper, float(residual[target]))
        if new is None:
            return solution
        coef[:, target] = new
        intercept[target] += (ties.center @ (old - new)).sum()
    if problem.loss.kind != "quadratic":
        return _told(replace(solution, coef=coef, intercept=intercept))
    found = measured(problem, coef, tol, moments)
    if found.status is not Status.OPTIMAL:
        return solution
    found = replace(found, coef=coef, intercept=intercept, n_iter=solution.n_iter, solver=solution.solver)
    return _told(found)


def _told(solution: Solution) -> Solution:
    """The solution, with a status that tells that there are other optima."""
    if solution.status is not Status.OPTIMAL:
        return solution
    return replace(solution, status=Status.MINIMUM_NORM)


@dataclass(frozen=True)
class _Ties:
    """Equations of the coefficients that leave the predictions as they are, and by how much they may miss."""

    features: np.ndarray  # that take part; shape: (n_taking_part,)
    equations: np.ndarray  # shape: (n_equations, n_taking_part)
    size: np.ndarray  # what their rounding is relative to; shape: (n_equations, n_taking_part)
    error: np.ndarray  # what a change of 1 may do to the predictions, in mean square; shape: (n_taking_part,)
    raw: np.ndarray  # root mean squares of all features about 0; shape: (n_features,)
    center: np.ndarray  # two parts of their means, 0 without intercept; shape: (2, n_features)
    residual: Callable[[np.ndarray], np.ndarray]  # root mean squares for coefficients; shape: (n_targets,)

    def shortest(
        self, coef: np.ndarray, lower: np.ndarray, upper: np.ndarray, residual: float
    ) -> np.ndarray | None:
        """The shortest coefficients that predict the same, but for a share of the residuals and rounding.

        Coefficients of which the null vectors are not known as well stay; None where all do.
        """
        old = coef[self.features]
        zero = np.zeros_like(self.equations)
        terms = dd.matmul((self.equations, zero), (old[:, None], np.zeros((len(old), 1))))
        right = (terms[0] + terms[1])[:, 0]
        low, high = lower[self.features].copy(), upper[self.features].copy()
        moves = low < high
        while moves.any():
            new = shortest_within(self.equations, self.size, right, low, high)
            if new is None:
                return None
            result = coef.copy()
            result[self.features] = new
            size = np.abs(coef) + np.abs(result)
            allowed = OF_RESIDUALS * residual + OF_ROUNDING * float(np.linalg.norm(size * self.raw))
            predicted = np.abs(new - old) * self.error
            if predicted.sum() <= allowed:
                return result
            held = moves & (predicted * max(1, np.count_nonzero(predicted)) > allowed)
            low[held], high[held], moves = old[held], old[held], moves & ~held
        return None


def _ties(problem: Problem, moments: ExactMoments | None) -> _Ties | None:
    """Those of tall data, or None where no column depends on others."""
    columns, penalty = problem.standardised, problem.penalty
    movable = penalty.l2 <= NO_RIDGE * columns.spread**2
    constant = (movable & (columns.spread == 0)).nonzero()[0]
    null = null_space(problem, (movable & (columns.spread > 0)).nonzero()[0], moments)
    features = np.concatenate([null.others, null.dependent, constant])
    if len(features) == len(null.others):
        return None
    equations = np.zeros((len(null.others), len(features)))
    equations[:, : len(null.others)] = np.eye(len(null.others))
    equations[:, len(null.others) : len(features) - len(constant)] = null.transfer
    error = np.zeros(len(features))
    error[len(null.others) : len(features) - len(constant)] = null.error
    n_features = len(columns.spread)
    center = np.stack([columns.shift, columns.mean / columns.scale])[:, :n_features]

    def residual(coef: np.ndarray) -> np.ndarray:
        inside = coef * columns.unit[:, None]
        square = columns.target_spread**2 + (inside * (columns.gram @ inside - 2 * columns.cross)).sum(0)
        return np.sqrt(np.maximum(square, 0.0))

    return _Ties(
        features,
        equations,
        np.abs(equations),
        error,
        (columns.raw / columns.scale)[:n_features],
        center if problem.fit_intercept else np.zeros_like(center),
        residual,
    )


def _ties_of_rows(problem: Problem) -> _Ties | None:
    """Those of fewer rows than features, all of which are held at once, as float64."""
    blocks = problem.blocks.positive_weight_rows()
    X = np.concatenate([block.X.double().cpu().numpy() for block in blocks.dense() if block.X is not None])
    share, y = blocks.share.cpu().numpy(), blocks.y.cpu().numpy()
    raw = np.sqrt(share @ X**2)
    square = (X**2).sum(1)
    center = np.zeros((2, X.shape[1]))
    if problem.fit_intercept:  # twice, since a mean far from 0 is rounded
        for part in center:
            part[:] = np.where((X[:1] == X).all(0), X[0], share @ X)
            X = X - part
        y = y - share @ y
    size = np.sqrt(share * (square + (center**2).sum()))
    X *= np.sqrt(share)[:, None]
    movable = (problem.penalty.l2 <= NO_RIDGE * (X**2).sum(0)).nonzero()[0]
    orthonormal, upper, order = qr(X[:, movable].T, mode="economic", pivoting=True)
    rank = int((np.abs(upper.diagonal()) > DEPENDENT * EPS * size[order[: len(upper)]]).sum())
    if rank == len(movable):
        return None

    def residual(coef: np.ndarray) -> np.ndarray:
        return np.linalg.norm(np.sqrt(share)[:, None] * y - X @ coef, axis=0)

    equations = orthonormal[:, :rank].T
    size = np.broadcast_to(np.linalg.norm(equations, axis=0), equations.shape)
    return _Ties(movable, equations, size, np.zeros(len(movable)), raw, center, residual)
