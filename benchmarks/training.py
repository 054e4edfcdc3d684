"""Time training: full batches, mini-batches, and the way to a stated distance from OLS.

Run ``python -m benchmarks.training``. As in `benchmarks.speed`, every answer is checked first, a wrong
one is not timed, the contestants take turns, and all samples are kept in the JSON file. All are given
the same standardised rows. Ratios compare whole fits, from arrays to coefficients.
"""

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.environment import describe
from benchmarks.speed import (
    LEVEL,
    MIN_SAMPLE_S,
    SETTLE_S,
    Contestant,
    Ratio,
    Timing,
    fastest,
    hold_contest,
    pairwise_ratio,
    print_timings,
    ratio_text,
)
from benchmarks.synthetic import Data, Shape, Solution, parse_shape, reference
from benchmarks.trainers import (
    SEED,
    Optimizer,
    Rows,
    Trainer,
    exact_trajectory,
    full_batch_trainers,
    make_rows,
    mini_batch_trainers,
    reach_trainers,
)

OUTPUT = Path("benchmarks/results/training.json")
BATCH_SIZE = 256
FULL_BATCH_RATE = 0.01
# Half of it, on MSELoss, is 1e-3, the default of torch.optim.SGD. Five times as much leaves the rivals
# of a constant rate 5 times farther from OLS after 5 epochs.
MINI_BATCH_RATE = 0.002
REACH = 1e-3
# Coefficients may be exact and the intercept forgotten.
INTERCEPT_LIMIT = 0.05
# More do not help: a fit that stops by itself would take no longer with twice as many, for ever.
MOST_EPOCHS = 2**20
OPTIMIZERS: tuple[Optimizer, ...] = ("sgd", "adam")


class Part(NamedTuple):
    """A part of the benchmark: its shape, its epochs (0: found by trying), the distance that is wrong."""

    shape: str
    n_epochs: int
    limit: float


PARTS = {
    # float32 loops end 2e-6 off.
    "full": Part("10000x10", 2000, 1e-4),
    # Training has not ended after 5 epochs: SGDRegressor is 5e-3 off.
    "minibatch": Part("200000x10", 5, 2e-2),
    "reach": Part("200000x10", 0, REACH),
}


class Search(NamedTuple):
    """How many epochs a trainer needs.

    Parameters
    ----------
    n_epochs : int
        The least number found that is enough, or the last one tried.
    distance : float
        The distance after it.
    seconds : float
        How long that took.
    reached : bool
        Whether it was enough.
    """

    n_epochs: int
    distance: float
    seconds: float
    reached: bool


def distance(solution: Solution, truth: Solution, data: Data) -> float:
    """Measure how far coefficients are from others, in standardised units.

    Parameters
    ----------
    solution, truth : Solution
        What was found, and what there is to find.
    data : Data
        NumPy data that both are fitted to.

    Returns
    -------
    float
        The greatest ``|change of a coefficient| * std(its column) / std(y)``; infinite for a wrong shape,
        for what is not finite, and for an intercept more than `INTERCEPT_LIMIT` off in the same units.
        The intercept has no part in the distance otherwise: on standardised data it starts where it ends.
    """
    coef = np.asarray(solution.coef, np.float64)
    if coef.shape != truth.coef.shape or not np.isfinite([*coef, solution.intercept]).all():
        return math.inf
    change = coef - truth.coef
    at_mean = data.X.mean(axis=0) @ change + solution.intercept - truth.intercept
    if abs(at_mean) > INTERCEPT_LIMIT * data.y.std():
        return math.inf
    return float(np.max(np.abs(change) * data.X.std(axis=0)) / data.y.std())


def epochs_to_reach(
    fit: Callable[[int], Solution],
    distance_of: Callable[[Solution], float],
    limit: float,
    patience_s: float,
) -> Search:
    """Find the least number of epochs after which a fit is near enough.

    Parameters
    ----------
    fit : callable
        Takes a number of epochs.
    distance_of : callable
        Takes what `fit` returns.
    limit : float
        The distance to get below.
    patience_s : float
        No fit is begun that is expected to take longer than this, nor one of more than `MOST_EPOCHS`.

    Returns
    -------
    Search
        From doubling and halving, which suppose that more epochs never end farther off.
    """

    def attempt(n_epochs: int) -> Search:
        start = time.perf_counter()
        solution = fit(n_epochs)
        seconds = time.perf_counter() - start
        found = distance_of(solution)
        return Search(n_epochs, found, seconds, found < limit)

    last = attempt(1)
    while not last.reached:
        if 2 * last.seconds > patience_s or last.n_epochs >= MOST_EPOCHS:
            return last
        last = attempt(2 * last.n_epochs)
    too_few = last.n_epochs // 2
    while last.n_epochs - too_few > 1:
        middle = attempt((last.n_epochs + too_few) // 2)
        if middle.reached:
            last = middle
        else:
            too_few = middle.n_epochs
    return last


def full_batch_case(rows: Rows, optimizer: Optimizer, n_epochs: int, **settings: Any) -> dict[str, Any]:
    """Hold the contest of full-batch steps with one optimizer.

    Parameters
    ----------
    rows : Rows
        The data.
    optimizer : {"sgd", "adam"}
        The optimizer.
    n_epochs : int
        The number of steps.
    **settings
        `rounds` and `budget_s` of `hold_contest`.

    Returns
    -------
    dict
        The case, for JSON. Each answer is compared with where exact steps lead after as many epochs.
    """
    contestants, extras = [], []
    for trainer in full_batch_trainers(optimizer, FULL_BATCH_RATE):
        n_timed = min(n_epochs, trainer.most_epochs or n_epochs)
        truth = exact_trajectory(rows.double, optimizer, FULL_BATCH_RATE, n_timed)
        contestants.append(_contestant(trainer, rows, n_timed, truth))
        extras.append(_extra(trainer, n_epochs) | {"n_epochs_timed": n_timed})
    timings = hold_contest(contestants, tolerance=PARTS["full"].limit, **settings)
    # A trainer that was timed for fewer epochs: its time is that of all of them, in proportion.
    timings = [
        _scaled(timing, extra["n_epochs"] / extra["n_epochs_timed"])
        for timing, extra in zip(timings, extras, strict=True)
    ]
    details = {
        "optimizer": optimizer,
        "learning_rate": FULL_BATCH_RATE,
        "n_epochs": n_epochs,
        "batch_size": None,
        "error_is": "distance from exact full-batch steps after n_epochs_timed epochs",
    }
    return _case("full", rows, details, timings, extras)


def mini_batch_case(rows: Rows, n_epochs: int, **settings: Any) -> dict[str, Any]:
    """Hold the contest of a few epochs of mini-batches.

    Parameters
    ----------
    rows : Rows
        The data.
    n_epochs : int
        The number of epochs.
    **settings
        `rounds` and `budget_s` of `hold_contest`.

    Returns
    -------
    dict
        The case, for JSON.
    """
    truth = reference(rows.double).solution
    trainers = mini_batch_trainers(MINI_BATCH_RATE, BATCH_SIZE)
    contestants = [_contestant(trainer, rows, n_epochs, truth) for trainer in trainers]
    timings = hold_contest(contestants, tolerance=PARTS["minibatch"].limit, **settings)
    extras = [_extra(trainer, n_epochs) | {"n_epochs_timed": n_epochs} for trainer in trainers]
    details = {
        "optimizer": "sgd",
        "learning_rate": MINI_BATCH_RATE,
        "n_epochs": n_epochs,
        "batch_size": BATCH_SIZE,
        "error_is": "distance from OLS",
    }
    return _case("minibatch", rows, details, timings, extras)


def reach_case(
    rows: Rows, patience_s: float, trainers: Sequence[Trainer] | None = None, **settings: Any
) -> dict[str, Any]:
    """Hold the race to a distance of `REACH` from OLS.

    Parameters
    ----------
    rows : Rows
        The data.
    patience_s : float
        As in `epochs_to_reach`.
    trainers : sequence of Trainer, default=None
        Who takes part; None is all.
    **settings
        `rounds` and `budget_s` of `hold_contest`.

    Returns
    -------
    dict
        The case, for JSON. Each is timed with the fewest epochs that are enough for it, which were found
        beforehand; who does not get there is wrong, with the distance it did reach.
    """
    truth = reference(rows.double).solution
    contestants, extras = [], []
    searches: list[Search | None] = []
    for trainer in reach_trainers(BATCH_SIZE) if trainers is None else trainers:
        search = None if trainer.missing else _search(trainer, rows, truth, patience_s)
        n_epochs = 1 if search is None else search.n_epochs
        contestant = _contestant(trainer, rows, n_epochs, truth)
        if search is not None and not search.reached:
            reason = (
                f"its distance is {search.distance:.1e}, not below {REACH:.0e}, "
                f"after {search.n_epochs} epochs in {search.seconds:.1f} s"
            )
            contestant = replace(contestant, reason=reason)
        contestants.append(contestant)
        searches.append(search)
        n_timed = search.n_epochs if search is not None and search.reached else None
        extra = _extra(trainer, n_timed) | {"n_epochs_timed": n_timed}
        extras.append(extra | {"search": None if search is None else _finite(search._asdict())})
    timings = [
        timing if search is None or search.reached else replace(timing, status="wrong", error=search.distance)
        for timing, search in zip(
            hold_contest(contestants, tolerance=REACH, **settings), searches, strict=True
        )
    ]
    details = {
        "optimizer": None,
        "learning_rate": None,
        "n_epochs": None,
        "batch_size": BATCH_SIZE,
        "error_is": "distance from OLS",
    }
    return _case("reach", rows, details, timings, extras)


def judge(part: str, timings: Sequence[Timing]) -> list[dict[str, Any]]:
    """Hold a contest against the stated targets.

    Parameters
    ----------
    part : {"full", "minibatch", "reach"}
        The part of the benchmark; the race has no target but that ours arrives.
    timings : sequence of Timing
        What came of it.

    Returns
    -------
    list of dict
        As `benchmarks.speed.judge`. Where the target is to end nearer to OLS than a rival, `ratio` is None,
        and `distances` are ours and its own. Mini-batches of a given rate are judged as those of "auto".
    """
    owned = [timing for timing in timings if timing.role in ("ours", "variant")]
    missed = [
        {
            "target": f"{timing.name} is right",
            "rival": "",
            "limit": None,
            "ratio": None,
            "passed": False,
            "within_noise": False,
        }
        for timing in owned
        if timing.status != "timed"
    ]
    targets: list[dict[str, Any]] = []
    for own in owned:
        if own.status != "timed" or part == "reach":
            continue
        rivals = [_against(timing, own) for timing in timings if timing.samples_s]
        skorch = next((timing for timing in rivals if timing.name == "skorch"), None)
        plain = next((timing for timing in rivals if timing.name == "SGDRegressor"), None)
        if part == "full":
            loop = fastest(rivals, ("routine",))
            targets += _speed_targets(
                [("3 times a PyTorch loop", loop, 3.0), ("100 times skorch", skorch, 100.0)]
            )
            continue
        targets += _speed_targets(
            [
                (f"{own.name}: level with SGDRegressor", plain, LEVEL),
                (f"{own.name}: 40 times skorch", skorch, 40.0),
            ]
        )
        targets += [
            {
                "target": f"{own.name}: nearer to OLS",
                "rival": rival.name,
                "limit": None,
                "ratio": None,
                "distances": [own.error, rival.error],
                "passed": own.error < rival.error,
                "within_noise": False,
            }
            for rival in (plain, skorch)
            if rival is not None and rival.error is not None and own.error is not None
        ]
    return missed + targets


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print its tables and write its JSON file.

    Parameters
    ----------
    arguments : sequence of str, default=None
        Command line arguments; None takes those of the process.

    Returns
    -------
    int
        The exit status: 1 if an answer of ours was wrong or failed, else 0. Missed targets are
        reported, and do not change it.
    """
    options = _parse(arguments)
    report: dict[str, Any] = {
        "format": 1,
        "environment": describe(),
        "settings": {
            "rounds": options.rounds,
            "budget_s": options.budget,
            "patience_s": options.patience,
            "min_sample_s": MIN_SAMPLE_S,
            "settle_s": SETTLE_S,
            "seed": SEED,
            "data": "make_data, then every column of X and y standardised",
            "distance": "greatest |change of a coefficient| * std(x) / std(y)",
            "ratio": "a contestant's time over ours, round by round",
        },
        "cases": [],
    }
    for case in _cases(options):
        report["cases"].append(case)
        # After every case, so that an interrupted run leaves what it has.
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    _print_summary(report)
    print(f"\nwritten to {options.output}")
    roles = ("ours", "variant")
    ours = [t for case in report["cases"] for t in case["timings"] if t["role"] in roles]
    return int(any(timing["status"] != "timed" for timing in ours))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--parts", default="", help=f"some of {','.join(PARTS)}; all by default")
    parser.add_argument("--shape", type=_shape, help="a shape such as 1e4x10 for every part")
    parser.add_argument("--epochs", type=int, help="epochs of full and minibatch (2000 and 5)")
    parser.add_argument("--rounds", type=int, default=15, help="samples of each at most (15)")
    parser.add_argument(
        "--budget", type=float, default=15.0, help="seconds for one contestant's samples (15)"
    )
    parser.add_argument(
        "--patience", type=float, default=20.0, help="seconds until the race is given up (20)"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"JSON file ({OUTPUT})")
    options = parser.parse_args(arguments)
    for name in ("rounds", "epochs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}: it must be at least 1")
    options.parts = options.parts.split(",") if options.parts else list(PARTS)
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"--parts {part}: there are {', '.join(PARTS)}")
    return options


def _shape(text: str) -> Shape:
    """A shape, with an error that argparse shows."""
    try:
        return parse_shape(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _cases(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Hold the contests that were asked for."""
    settings = {"rounds": options.rounds, "budget_s": options.budget}
    for name in options.parts:
        part = PARTS[name]
        rows = make_rows(options.shape or parse_shape(part.shape))
        n_epochs: int = options.epochs or part.n_epochs
        if name == "full":
            for optimizer in OPTIMIZERS:
                yield full_batch_case(rows, optimizer, n_epochs, **settings)
        elif name == "minibatch":
            yield mini_batch_case(rows, n_epochs, **settings)
        else:
            yield reach_case(rows, options.patience, **settings)


def _case(
    part: str,
    rows: Rows,
    details: dict[str, Any],
    timings: Sequence[Timing],
    extras: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """A case as JSON takes it, printed."""
    shape = rows.double.shape
    case = {
        "part": part,
        "shape": str(shape),
        "n_samples": shape.n_samples,
        "n_features": shape.n_features,
        **details,
        "limit": PARTS[part].limit,
        "timings": [timing.record() | extra for timing, extra in zip(timings, extras, strict=True)],
        "targets": judge(part, timings),
    }
    optimizer = details["optimizer"] or f"to {REACH:.0e}"
    print_timings(f"{part} {shape} {optimizer}", case["timings"])
    return case


def _contestant(trainer: Trainer, rows: Rows, n_epochs: int, truth: Solution) -> Contestant:
    """A trainer with its data and epochs."""
    return Contestant(
        trainer.name,
        trainer.role,
        lambda: trainer.fit(rows, n_epochs),
        lambda solution: distance(solution, truth, rows.double),
        trainer.missing,
    )


def _extra(trainer: Trainer, n_epochs: int | None) -> dict[str, Any]:
    """What the JSON file says about a trainer besides its timing."""
    return {"call": trainer.call, "n_epochs": n_epochs}


def _search(trainer: Trainer, rows: Rows, truth: Solution, patience_s: float) -> Search:
    """The epochs that a trainer needs, after a run that loads its libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that training has not converged is known
        trainer.fit(rows, 1)
        return epochs_to_reach(
            lambda n_epochs: trainer.fit(rows, n_epochs),
            lambda solution: distance(solution, truth, rows.double),
            REACH,
            patience_s,
        )


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """The same record without infinity, which JSON does not know."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }


def _scaled(timing: Timing, factor: float) -> Timing:
    """A timing of so many times the work."""
    if factor == 1.0 or timing.ratio is None:
        return timing
    samples = tuple(factor * sample for sample in timing.samples_s)
    return replace(timing, samples_s=samples, ratio=Ratio(*(factor * value for value in timing.ratio)))


def _against(timing: Timing, own: Timing) -> Timing:
    """A timing with its ratio to one of ours."""
    return replace(timing, ratio=pairwise_ratio(timing.samples_s, own.samples_s))


def _speed_targets(wanted: Sequence[tuple[str, Timing | None, float]]) -> list[dict[str, Any]]:
    """Targets on ratios with their verdicts, for the rivals that were timed."""
    return [
        {
            "target": target,
            "rival": rival.name,
            "limit": limit,
            "ratio": rival.ratio._asdict(),
            "passed": rival.ratio.median >= limit,
            "within_noise": rival.ratio.lower < limit < rival.ratio.upper,
        }
        for target, rival, limit in wanted
        if rival is not None and rival.ratio is not None
    ]


def _print_summary(report: dict[str, Any]) -> None:
    """Every target with its verdict."""
    print("\nTargets: rival's time over ours, median (quartiles), or distances from OLS")
    for case in report["cases"]:
        for target in case["targets"]:
            verdict = "PASS" if target["passed"] else "FAIL"
            noise = " (within noise)" if target["within_noise"] else ""
            if "distances" in target:
                value = "{:.1e} against {:.1e}".format(*target["distances"])
            else:
                value = ratio_text(target["ratio"])
            print(
                f"  {case['part']:9} {case['optimizer'] or '':5} {target['target']:38} "
                f"{target['rival']:20} {value:28} {verdict}{noise}"
            )


if __name__ == "__main__":
    sys.exit(main())
