"""How near training without any tuning ends to the exact optimum, on raw data.

Run ``python -m benchmarks.untuned``. Each optimizer trains with its defaults, ``learning_rate="auto"``, on
the problems of `benchmarks.problems`, full batch and in mini-batches, and its coefficients are compared with
the exact ones: the largest difference, with x and y in units of their standard deviations.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.environment import describe
from benchmarks.problems import Problem, all_problems
from torchlinreg import TorchLinearRegressor

OUTPUT = Path("benchmarks/results/untuned.json")
SOLVERS = ("sgd", "adam", "lbfgs")
# Small sets have mini-batches of 8 rows, since 64 are all of them.
SMALL_ROWS = 64


@dataclass(frozen=True)
class Run:
    """What came of one fit.

    Parameters
    ----------
    problem, solver, status : str
        The names.
    batch_size : int or None
        None is the full batch.
    n_iter : int
        Epochs.
    distance : float
        Of the coefficients from the exact optimum, in standard deviations.
    reported : float
        What ``status_.distance`` says, which counts the intercept, too.
    """

    problem: str
    solver: str
    batch_size: int | None
    status: str
    n_iter: int
    distance: float
    reported: float


def train(problem: Problem, solver: str, batch_size: int | None) -> Run:
    """Train with defaults and measure the distance.

    Parameters
    ----------
    problem : Problem
        The data and their exact solution.
    solver : str
        The name of an optimizer.
    batch_size : int or None
        None is the full batch.

    Returns
    -------
    Run
        What came of it.
    """
    reg = TorchLinearRegressor(
        solver=solver,
        batch_size=batch_size,
        alpha=problem.alpha,
        fit_intercept=problem.fit_intercept,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # status and distance tell
        reg.fit(problem.X, problem.y, problem.sample_weight)
    return Run(
        problem.name,
        solver,
        batch_size,
        reg.status_.name,
        reg.n_iter_,
        standardised_distance(problem, reg.coef_),
        reg.status_.distance,
    )


def standardised_distance(problem: Problem, coef: np.ndarray) -> float:
    """Measure the largest difference from the exact coefficients, x and y in standard deviations.

    Parameters
    ----------
    problem : Problem
        The data and their exact solution.
    coef : ndarray of shape (n_features,) or (n_targets, n_features)
        What was found.

    Returns
    -------
    float
        The distance; spreads are about 0 where there is no intercept.
    """
    weight = np.ones(len(problem.X)) if problem.sample_weight is None else problem.sample_weight
    X, y = problem.X.astype(np.float64), problem.y.reshape(len(problem.X), -1).astype(np.float64)
    truth = np.array([[float(value) for value in row] for row in problem.coef])
    x_spread, y_spread = (_spread(values, weight, problem.fit_intercept) for values in (X, y))
    y_spread = np.where(y_spread > 0, y_spread, 1.0)
    difference = np.abs(coef.reshape(truth.shape).astype(np.float64) - truth)
    return float((difference * x_spread / y_spread[:, None]).max())


def _spread(values: np.ndarray, weight: np.ndarray, about_mean: bool) -> np.ndarray:
    scale = np.abs(values).max(0)
    values = values / np.where(scale > 0, scale, 1.0)
    mean = np.average(values, axis=0, weights=weight) if about_mean else 0.0
    return np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weight)) * scale


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line.

    Parameters
    ----------
    arguments : sequence of str, default=None
        In place of those of the command line.

    Returns
    -------
    int
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.untuned", description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"JSON file ({OUTPUT})")
    parser.add_argument("--only", default="", help="problems whose name holds this text")
    options = parser.parse_args(arguments)
    runs = []
    for problem in all_problems():
        if options.only not in problem.name:
            continue
        small = len(problem.X) <= SMALL_ROWS
        for batch_size in (None, 8) if small else (None, 64):
            for solver in SOLVERS:
                run = train(problem, solver, batch_size)
                runs.append(run)
                print(
                    f"{run.problem:40} {solver:6} {batch_size or 'full':>5} {run.distance:8.1e} "
                    f"{run.n_iter:5} {run.status}",
                    flush=True,
                )
    for solver in SOLVERS:
        for kind, chosen in (("full batch", [None]), ("mini-batch", [8, 64])):
            distances = [r.distance for r in runs if r.solver == solver and r.batch_size in chosen]
            if distances:
                print(
                    f"{solver:6} {kind}: median {np.median(distances):.1e}, worst {max(distances):.1e} "
                    f"of {len(distances)}"
                )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    report = {"format": 1, "environment": describe(), "runs": [asdict(run) for run in runs]}
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
