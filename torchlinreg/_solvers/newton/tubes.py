"""Of several optima of squared losses beyond a tube, the one of least norm within bounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from torchlinreg._data.rows import tensor_blocks
from torchlinreg._linalg.gram import EPS
from torchlinreg._objective.evaluate import mean_losses
from torchlinreg._objective.problem import Problem
from torchlinreg._objective.solution import Solution, Status
from torchlinreg._solvers.interior_point.interior_point import solve_interior_point
from torchlinreg.losses import EpsilonInsensitive, SquaredEpsilonInsensitive

# Rows that a linear program is made of.
MOST_ROWS = 10_000
# Rows at the edge of their tubes are outside by rounding, up to this share of its place and width.
BEYOND = 1e-9


def are_decided_in_tubes(problem: Problem) -> bool:
    """Whether `shortest_in_tubes` decides among optima."""
    penalty = problem.penalty
    bounded = not (penalty.is_ridge or penalty.l1.any() or penalty.l2.all())
    in_tubes = isinstance(problem.loss, SquaredEpsilonInsensitive)
    return bounded and in_tubes and problem.blocks.n_samples <= MOST_ROWS


def shortest_in_tubes(problem: Problem, solution: Solution, tol: float) -> Solution:
    """The shortest coefficients with the predictions of rows outside their tubes, and the others inside.

    These are all optima, and the ones without loss of a linear program: a row outside its tube is two, whose
    tubes meet at its prediction.
    """
    assert isinstance(problem.loss, SquaredEpsilonInsensitive)
    if solution.status is not Status.OPTIMAL:
        return solution
    blocks, penalty = problem.blocks.positive_weight_rows(), problem.penalty
    X = torch.cat([block.X.to(torch.float64) for block in blocks.dense() if block.X is not None])

    def objective(of: Solution) -> np.ndarray:
        losses = mean_losses(blocks, problem.loss, of.coef.T[None], of.intercept[None])[0]
        return np.asarray(losses + penalty.value(of.coef.T).sum())

    allowed = objective(solution) + EPS * problem.loss.epsilon**2
    for beyond in (BEYOND, 0.0):
        shorter = _shortest(problem, solution, X, blocks.y, beyond, tol)
        if shorter is not None and objective(shorter) <= allowed:
            return shorter
    return solution


def _shortest(
    problem: Problem, solution: Solution, X: torch.Tensor, y: torch.Tensor, beyond: float, tol: float
) -> Solution | None:
    """Where rows are outside by more than a share of the tube's place and width; None without an optimum."""
    assert isinstance(problem.loss, SquaredEpsilonInsensitive)
    penalty, epsilon = problem.penalty, problem.loss.epsilon
    held = penalty.l2 > 0  # whose optimum is known
    coef, intercept = solution.coef.copy(), solution.intercept.copy()
    predictions = X @ torch.from_numpy(coef).to(X.device) + torch.from_numpy(intercept).to(X.device)
    for target, (seen, middle) in enumerate(zip(predictions.T, y.T, strict=True)):
        outside = (seen - middle).abs() > epsilon + beyond * (epsilon + middle.abs())
        rows = torch.cat([X[~outside], X[outside], X[outside]])
        tubes = torch.cat([middle[~outside], seen[outside] - epsilon, seen[outside] + epsilon])
        bounds = replace(
            penalty,
            l2=np.zeros_like(penalty.l2),
            lower=np.where(held, coef[:, target], penalty.lower),
            upper=np.where(held, coef[:, target], penalty.upper),
        )
        program = replace(
            problem,
            blocks=tensor_blocks(rows, tubes[:, None]),
            penalty=bounds,
            loss=EpsilonInsensitive(epsilon),
        )
        found = solve_interior_point(program, tol, None)
        if found.status is not Status.OPTIMAL:
            return None
        coef[:, target], intercept[target] = found.coef[:, 0], found.intercept[0]
    return replace(solution, coef=coef, intercept=intercept)
