"""The table of solvers, and the choice among them.

A solver is a function from a `Problem` to a `Solution` and a row of `SOLVERS`, from which refusals are made.
Imports `_objective` and what is below; training, paths and the estimators import the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from torchlinreg._linalg.gram import EPS
from torchlinreg._linalg.threads import torch_first
from torchlinreg._moments.exact import ExactMoments
from torchlinreg._moments.moments import SAFE_RANGE, Frame, Moments, choose_frame
from torchlinreg._objective.penalty import Penalty
from torchlinreg._objective.problem import Problem
from torchlinreg._objective.solution import Solution, of_all_targets
from torchlinreg._solvers.best_constant import not_above_constant, not_above_constant_of_moments
from torchlinreg._solvers.interior_point.interior_point import solve_interior_point
from torchlinreg._solvers.least_squares.dual import is_wide, solve_dual
from torchlinreg._solvers.least_squares.normal_equations import solve_accumulated, solve_cholesky, solve_exact
from torchlinreg._solvers.newton.newton import solve_newton
from torchlinreg._solvers.penalised.active_set import solve_active_set, solve_moments
from torchlinreg._solvers.tie_break import with_least_norm
from torchlinreg.losses import Loss

__all__ = [
    "SOLVERS",
    "Solver",
    "able_solvers",
    "choose_solver",
    "frame_of",
    "named",
    "refuse",
    "refuse_extreme_units",
    "solve",
    "solve_of_moments",
]


Solve = Callable[[Problem, float, int | None], Solution]


class Solver(NamedTuple):
    """A row of the table: what it runs, which losses and penalties it serves, and what it is good for."""

    solve: Solve
    losses: tuple[str, ...]  # kinds of `Loss`
    penalties: str  # that it serves: UNIFORM_RIDGE, RIDGE or ANY, of which each contains those before
    good_for: str


UNIFORM_RIDGE, RIDGE, ANY = "ridge of one strength", "ridge", "any"

# Of the rows that serve a problem, "auto" takes the first; "dual" only for fewer rows than features.
SOLVERS = {
    "dual": Solver(solve_dual, ("quadratic",), UNIFORM_RIDGE, "fewer rows than features"),
    "cholesky": Solver(
        solve_cholesky,
        ("quadratic",),
        RIDGE,
        "conditions up to about 1e6; hands over to 'exact' beyond",
    ),
    "exact": Solver(solve_exact, ("quadratic",), RIDGE, "any condition and rank"),
    "active_set": Solver(solve_active_set, ("quadratic",), ANY, "l1 penalties, positive and bounds"),
    "newton": Solver(solve_newton, ("smooth",), ANY, "smooth losses"),
    "interior_point": Solver(
        solve_interior_point,
        ("piecewise_linear",),
        ANY,
        "absolute, quantile and epsilon-insensitive losses",
    ),
}
# Up to so many features all that NumPy and SciPy are given is small.
SINGLE = 32
# Products of stronger penalties with coefficients and units overflow in Newton and interior point steps.
LARGEST_STRENGTH = 1e300


def solve(name: object, problem: Problem, tol: float, max_iter: int | None) -> Solution:
    """Solve the problem by "auto" or the solver of that name.

    Raises
    ------
    ValueError
        The solver does not serve the loss or the penalty.
    """
    run = choose_solver(name, problem)
    # Of few rows, others than these two read no moments, and take any number of targets at once.
    parts = problem.by_targets
    if len(parts) > 1 and run not in (solve_cholesky, solve_exact) and is_wide(problem):
        parts = (problem,)
    return of_all_targets([_solve_part(run, part, tol, max_iter) for part in parts])


def _solve_part(run: Solve, problem: Problem, tol: float, max_iter: int | None) -> Solution:
    least_squares = problem.loss.kind == "quadratic" and problem.penalty.is_ridge
    if least_squares and problem.blocks.n_features <= SINGLE:
        return _solve(run, problem, tol, max_iter)
    with torch_first():
        if not least_squares:
            refuse_extreme_units(frame_of(problem))
            _refuse_extreme_strengths(problem)
        return _solve(run, problem, tol, max_iter)


def _solve(run: Solve, problem: Problem, tol: float, max_iter: int | None) -> Solution:
    solution = with_least_norm(problem, run(problem, tol, max_iter), tol)
    return not_above_constant(problem, solution)


def solve_of_moments(problem: Problem, moments: ExactMoments, tol: float) -> Solution:
    """Least squares, with the problem's penalty, of the rows that moments were accumulated from."""
    return not_above_constant_of_moments(problem, moments, _solve_of_moments(problem, moments, tol))


def _solve_of_moments(problem: Problem, moments: ExactMoments, tol: float) -> Solution:
    penalty = problem.penalty
    if penalty.is_ridge:
        n_features = problem.blocks.n_features
        return solve_accumulated(moments, n_features, penalty.l2, problem.fit_intercept, tol)
    refuse_extreme_units(moments.frame)
    roundoff = max(EPS, moments.unit_roundoff)
    given = problem.with_moments(Moments(moments.frame, moments.high, moments.n_samples, roundoff))
    return with_least_norm(given, solve_moments(given, moments, tol), tol, moments)


def frame_of(problem: Problem) -> Frame:
    """The frame of the moments, of wide rows the one that they would have."""
    return choose_frame(problem.blocks, fit_intercept=True) if is_wide(problem) else problem.moments.frame


def refuse_extreme_units(frame: Frame) -> None:
    """Raise a ValueError where squares could over- or underflow."""
    if frame.scale is not None:
        raise ValueError(
            f"X or y holds columns beyond {SAFE_RANGE[0]:g} to {SAFE_RANGE[1]:g}, which only the solvers of "
            "the squared error with at most a ridge penalty serve. Bring them to ordinary units, or use "
            "solver='auto' with that loss and penalty."
        )


def _refuse_extreme_strengths(problem: Problem) -> None:
    strongest = float(np.maximum(problem.penalty.l1, problem.penalty.l2).max())
    if problem.loss.kind != "quadratic" and strongest > LARGEST_STRENGTH:
        raise ValueError(
            f"alpha times penalty_factor is {strongest:g}, beyond {LARGEST_STRENGTH:g}, which only the "
            "squared error is solved for. Use smaller numbers, or bounds of 0 to leave features out."
        )


def choose_solver(name: object, problem: Problem) -> Solve:
    """The function that solves this problem, by "auto" or a name in `SOLVERS`.

    Raises
    ------
    ValueError
        The solver does not serve the loss or the penalty.
    """
    if name == "auto":
        wide = is_wide(problem)
        rows = (key for key in SOLVERS if key != "dual" or wide)
        name = next(key for key in rows if _serves(SOLVERS[key], problem))
    elif not _serves(SOLVERS[str(name)], problem):
        refuse(f"solver={name!r}", _missing(SOLVERS[str(name)], problem), able_solvers(problem))
    return SOLVERS[str(name)].solve


def able_solvers(problem: Problem) -> list[str]:
    """Names of the solvers that serve the loss and the penalty."""
    return [name for name, row in SOLVERS.items() if _serves(row, problem)]


def _serves(row: Solver, problem: Problem) -> bool:
    return problem.loss.kind in row.losses and _serves_penalty(row, problem.penalty)


def _serves_penalty(row: Solver, penalty: Penalty) -> bool:
    if row.penalties == ANY:
        return True
    return penalty.is_uniform if row.penalties == UNIFORM_RIDGE else penalty.is_ridge


def _missing(row: Solver, problem: Problem) -> list[str]:
    """What of the problem a row does not serve."""
    missing = [] if problem.loss.kind in row.losses else [named(problem.loss)]
    if not _serves_penalty(row, problem.penalty):
        kinds = {
            "an l1 penalty (l1_ratio > 0)": problem.penalty.l1.any(),
            "positive, bounds or an infinite penalty_factor": problem.penalty.has_bounds,
            "a penalty_factor that differs between features": problem.penalty.is_ridge,
        }
        missing += [kind for kind, there in kinds.items() if there]
    return missing


def named(loss: Loss) -> str:
    """The loss and its kind, for a message."""
    return f"loss={loss!r}, which is {loss.kind.replace('_', ' ')}"


def refuse(what: str, missing: list[str], able: list[str]) -> None:
    """Raise a ValueError for what is not served, which names the solvers that do."""
    options = " or ".join(f"solver={key!r}" for key in ["auto", *able])
    raise ValueError(f"{what} does not serve {' and '.join(missing)}. Use {options}.")
