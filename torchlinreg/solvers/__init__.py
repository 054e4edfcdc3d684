"""The table of solvers, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torchlinreg._problem import Problem
from torchlinreg._solution import Solution
from torchlinreg.solvers._coordinates import Model
from torchlinreg.solvers._dual import is_wide, solve_dual
from torchlinreg.solvers._exact import solve_accumulated, solve_cholesky, solve_exact
from torchlinreg.solvers._geometry import Geometry, geometry_of_accumulated
from torchlinreg.solvers._optimizers import OPTIMIZERS, is_training, optimizer_recipe, scheduler_maker
from torchlinreg.solvers._training import DEFAULT_MAX_ITER, Epoch, Training, train, train_one_pass

__all__ = [
    "DEFAULT_MAX_ITER",
    "SOLVERS",
    "Epoch",
    "Geometry",
    "Model",
    "Solver",
    "Training",
    "check_solver",
    "choose_solver",
    "geometry_of_accumulated",
    "is_training",
    "is_wide",
    "optimizer_recipe",
    "scheduler_maker",
    "solve_accumulated",
    "train",
    "train_one_pass",
]


class Solver(NamedTuple):
    """A row of the table: what it runs, and what it is good for."""

    solve: Callable[[Problem, float, int | None], Solution]
    good_for: str


SOLVERS = {
    "cholesky": Solver(solve_cholesky, "conditions up to about 1e6; hands over to 'exact' beyond"),
    "exact": Solver(solve_exact, "any condition and rank"),
    "dual": Solver(solve_dual, "fewer rows than features"),
}


def choose_solver(name: object, problem: Problem) -> Callable[[Problem, float, int | None], Solution]:
    """The function that solves this problem.

    Raises
    ------
    ValueError
        There is no solver of that name.
    """
    check_solver(name)
    if name == "auto":
        name = "dual" if is_wide(problem) else "cholesky"
    return SOLVERS[str(name)].solve


def check_solver(name: object) -> None:
    """Raise a ValueError that lists the solvers unless `name` is one or stands for an optimizer."""
    if is_training(name) or (isinstance(name, str) and name in ("auto", *SOLVERS)):
        return
    known = "; ".join(f"'{key}' ({solver.good_for})" for key, solver in SOLVERS.items())
    raise ValueError(
        f"solver={name!r} is not known; use 'auto', or one of {known}; or train with an optimizer of torch, "
        f"one of {', '.join(map(repr, sorted(OPTIMIZERS)))}, a subclass of torch.optim.Optimizer, or a "
        "callable params -> Optimizer."
    )
