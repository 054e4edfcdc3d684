"""Time torchlinreg and its rivals on the same data in one run, interleaved.

Run ``python -m benchmarks.speed``. Every answer is checked against a reference first; a wrong one
is reported as wrong and not timed. Then the contestants take turns (A B C A B C ...), so that each
round gives one ratio of a rival's time to ours, and slow spells of the machine fall on all of them.
All samples are kept in the JSON file.
"""

import argparse
import gc
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.sparse
import torch
from sklearn.linear_model import LinearRegression, Ridge

from benchmarks import cliffs, dependent, peak_memory
from benchmarks.environment import describe
from benchmarks.libraries import LIBRARIES, OURS, Kind, Library, ours, ours_from_host, unfit_reason
from benchmarks.synthetic import Data, Reference, Shape, Solution, make_data, parse_shape, reference
from torchlinreg import TorchLinearRegressor

OUTPUT = Path("benchmarks/results/speed.json")
TOLERANCE = {"float64": 1e-6, "float32": 1e-3}
DENSITY = 0.05
SEED = 0

# A sample lasts at least this long, by repetition: 25 x 1 takes 0.3 ms, and single calls scatter.
MIN_SAMPLE_S = 0.05
# Before each sample: the threads of the last contestant's OpenMP or OpenBLAS spin for a while after
# its last product (OpenBLAS by default for 2^26 cycles) and would slow the next contestant down.
SETTLE_S = 0.05
# One run above this is timed once only, on top of the run that checks it.
SLOW_S = 15.0
# Nobody is called slower for less: two copies of one estimator came out at 0.97 to 1.04.
LEVEL = 0.95
# From this many entries of X on, an estimator's checks no longer count, and ours has to be level
# with the bare routines as well; numpy.linalg.lstsq takes 0.01 ms at 25 x 1, validation alone more.
ROUTINES_FROM = 1_000_000

Role = Literal["ours", "variant", "estimator", "routine", "floor"]

SHAPES = {
    "fit": "25x1,1000x10,1e5x10,1e6x1,1e6x10,1e6x30,2e5x100,2e4x1000,1e6x100",
    "float32": "1000x10,1e6x1,1e6x10,1e6x30,2e5x100,2e4x1000,1e6x100",
    "weighted": "25x1,1000x10,1e5x10,1e6x1,1e6x10,2e5x100",
    "sparse": "1e5x200",
    "predict": "25x1,1000x10,1e6x10,1e6x100",
    "dependent": "",  # has cases of its own, in benchmarks.dependent
    "cliffs": "",  # in benchmarks.cliffs
    "memory": "1e6x100",
}
CPU_ONLY = ("weighted", "sparse", "dependent", "cliffs", "memory")
# Residual sums of squares of dependent columns, relative to the least: rivals stop early.
DEPENDENT_TOLERANCE = 1e-2
MEMORY_LIBRARIES = (OURS, "LinearRegression", "Ridge", "sklearnex")


class Ratio(NamedTuple):
    """A contestant's time over ours in the same round: median and quartiles over the rounds."""

    median: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Contestant:
    """Something to time.

    Parameters
    ----------
    name : str
        What tables call it.
    role : {"ours", "variant", "estimator", "routine", "floor"}
        Ours, ours in another setting, a rival estimator, a rival routine without an estimator's
        duties, or the least work that any fit has to do.
    run : callable
        The work, without arguments.
    error : callable or None
        The relative error of what `run` returns; None where there is nothing to check.
    reason : str or None
        Why it does not take part; None if it does.
    """

    name: str
    role: Role
    run: Callable[[], Any]  # Any: a solution or predictions, which `error` understands
    error: Callable[[Any], float] | None
    reason: str | None = None


@dataclass(frozen=True)
class Timing:
    """What became of a contestant.

    Parameters
    ----------
    name, role : str
        As in `Contestant`.
    status : {"timed", "wrong", "failed", "skipped"}
        Only "timed" has samples.
    reason : str or None
        Why it was not timed.
    error : float or None
        Relative error of its answer, where that was checked.
    loops : int
        Calls in a sample.
    samples_s : tuple of float
        Seconds per call, one for each round.
    ratio : Ratio or None
        Its time over ours; None for what was not timed.
    """

    name: str
    role: Role
    status: Literal["timed", "wrong", "failed", "skipped"]
    reason: str | None = None
    error: float | None = None
    loops: int = 0
    samples_s: tuple[float, ...] = ()
    ratio: Ratio | None = None

    @property
    def median_s(self) -> float:
        """The median of the samples."""
        return statistics.median(self.samples_s)

    def record(self) -> dict[str, Any]:
        """Give all of it as JSON takes it, with median and minimum.

        Returns
        -------
        dict
            The fields, `median_s` and `minimum_s`.
        """
        record = asdict(self)
        record["ratio"] = None if self.ratio is None else self.ratio._asdict()
        if self.error is not None and not math.isfinite(self.error):
            record["error"] = None  # JSON knows no infinity; the reason tells
        if self.samples_s:
            record |= {"median_s": self.median_s, "minimum_s": min(self.samples_s)}
        return record


def fit_contestants(
    data: Data, truth: Reference, kind: Kind, libraries: Sequence[Library] = LIBRARIES
) -> list[Contestant]:
    """List who fits some data.

    Parameters
    ----------
    data : Data
        NumPy or scipy data.
    truth : Reference
        Their solution.
    kind : {"dense", "weighted", "sparse", "cuda"}
        What the data are; "cuda" lets ours and torch read them from the device, and the others from
        the host, on the CPU.
    libraries : sequence of Library, default=LIBRARIES
        Who may take part.

    Returns
    -------
    list of Contestant
        Ours first, those that cannot take part with their reason, and the floors.
    """
    on_device = _on_cuda(data) if kind == "cuda" else data
    contestants = []
    for library in libraries:
        from_host = kind == "cuda" and "cuda" not in library.kinds
        role: Role = "estimator" if library.estimator else "routine"
        contestants.append(
            Contestant(
                library.name,
                "ours" if library.name == OURS else role,
                _bind(library.fit, data if from_host else on_device),
                truth.error,
                unfit_reason(library, "dense" if from_host else kind, data.shape),
            )
        )
    if kind == "cuda":
        from_host_too = _bind(ours_from_host, data)
        contestants.append(Contestant("ours, X on the host", "variant", from_host_too, truth.error))
    X = on_device.X
    contestants.append(Contestant("X.T @ X", "floor", lambda: X.T @ X, None))
    contestants.append(Contestant("X.sum()", "floor", lambda: X.sum(), None))
    return contestants


def predict_contestants(data: Data, kind: Kind) -> list[Contestant]:
    """List who predicts some data.

    Parameters
    ----------
    data : Data
        NumPy data; the models are fitted to its first rows.
    kind : {"dense", "cuda"}
        As in `fit_contestants`.

    Returns
    -------
    list of Contestant
        Ours, `LinearRegression`, and the bare product as the floor.
    """
    few = slice(0, max(25, 2 * data.shape.n_features))
    fitted = TorchLinearRegressor().fit(data.X[few], data.y[few])
    rival = LinearRegression().fit(data.X[few], data.y[few])
    seen = _on_cuda(data).X if kind == "cuda" else data.X
    coef = torch.from_numpy(fitted.coef_).to(seen.device) if kind == "cuda" else fitted.coef_

    def error_of(model: Any) -> Callable[[Any], float]:  # Any: scikit-learn is untyped
        expected = data.X @ model.coef_ + model.intercept_

        def error(prediction: Any) -> float:
            found = np.asarray(prediction.cpu() if kind == "cuda" else prediction)
            if found.shape != expected.shape:
                return math.inf
            return float(np.abs(found - expected).max() / np.abs(expected).max())

        return error

    return [
        Contestant(OURS, "ours", lambda: fitted.predict(seen), error_of(fitted)),
        Contestant(
            "LinearRegression",
            "estimator",
            lambda: rival.predict(data.X),
            None if kind == "cuda" else error_of(rival),
        ),
        Contestant("X @ coef", "floor", lambda: seen @ coef, None),
    ]


def hold_contest(
    contestants: Sequence[Contestant],
    *,
    tolerance: float,
    rounds: int,
    budget_s: float,
    wait: Callable[[], None] | None = None,
) -> list[Timing]:
    """Check every contestant, then time them in turns.

    Parameters
    ----------
    contestants : sequence of Contestant
        Ours and the others.
    tolerance : float
        The relative error above which an answer is wrong.
    rounds : int
        The greatest number of samples of each.
    budget_s : float
        About how many seconds one contestant may take for its samples; a slow one has fewer.
    wait : callable, default=None
        Called after each run, to wait for a device.

    Returns
    -------
    list of Timing
        In the order of the contestants. Ratios are given if ours was timed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the error says whether a warning was due
        checked = [_check(contestant, tolerance, wait) for contestant in contestants]
        plans = [
            _plan(seconds, rounds, budget_s) if timing.status == "timed" else (0, 0)
            for timing, seconds in checked
        ]
        samples: list[list[float]] = [[] for _ in contestants]
        for index in range(rounds):
            gc.collect()
            for contestant, (loops, n_samples), own in zip(contestants, plans, samples, strict=True):
                if index < n_samples:
                    own.append(_sample(contestant.run, loops, wait, warm=n_samples > 1))
    ours = next((own for who, own in zip(contestants, samples, strict=True) if who.role == "ours"), [])
    return [
        replace(
            timing,
            loops=loops,
            samples_s=tuple(own),
            ratio=pairwise_ratio(own, ours) if own and ours else None,
        )
        for (timing, _), (loops, _), own in zip(checked, plans, samples, strict=True)
    ]


def pairwise_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Ratio:
    """Compare samples of the same rounds.

    Parameters
    ----------
    numerator, denominator : sequence of float
        Samples; the longer one is cut.

    Returns
    -------
    Ratio
        Median and quartiles of the ratios, round by round.

    Examples
    --------
    >>> pairwise_ratio([2.0, 4.0, 9.0], [1.0, 1.0, 3.0])
    Ratio(median=3.0, lower=2.5, upper=3.5)
    """
    ratios = [a / b for a, b in zip(numerator, denominator, strict=False)]
    lower, median, upper = np.percentile(ratios, [25, 50, 75]).tolist()
    return Ratio(median, lower, upper)


def fastest(timings: Sequence[Timing], roles: tuple[Role, ...]) -> Timing | None:
    """Find the fastest of some roles.

    Parameters
    ----------
    timings : sequence of Timing
        What came of a contest.
    roles : tuple of {"ours", "variant", "estimator", "routine", "floor"}
        Whom to look at.

    Returns
    -------
    Timing or None
        The one with the least median ratio to ours; None if none of them has a ratio.
    """
    timed = [timing for timing in timings if timing.role in roles and timing.ratio is not None]
    return min(timed, key=lambda timing: timing.ratio or Ratio(0.0, 0.0, 0.0), default=None)


def judge(part: str, shape: Shape, timings: Sequence[Timing]) -> list[dict[str, Any]]:
    """Hold a contest against the stated targets.

    Parameters
    ----------
    part : {"fit", "float32", "weighted", "sparse", "predict"}
        The part of the benchmark.
    shape : Shape
        The shape of X.
    timings : sequence of Timing
        What came of it.

    Returns
    -------
    list of dict
        For each target that the shape has: `target`, `rival`, `limit`, the `ratio`, whether it
        `passed` (the median is at the limit or above) and whether that is `within_noise` (the
        limit lies between the quartiles). If ours was not timed, that alone.
    """
    ours = next((timing for timing in timings if timing.role == "ours"), None)
    if ours is not None and ours.status != "timed":
        missed = {"target": "ours is right", "rival": "", "limit": None, "ratio": None}
        return [missed | {"passed": False, "within_noise": False}]
    estimator = fastest(timings, ("estimator",))
    anyone = fastest(timings, ("estimator", "routine"))
    linear = next((timing for timing in timings if timing.name == "LinearRegression"), None)
    wanted = [("level with the fastest estimator", estimator, LEVEL)]
    if part != "predict" and shape.n_samples * shape.n_features >= ROUTINES_FROM:
        wanted.append(("level with the fastest of all", anyone, LEVEL))
    if part == "fit" and shape.n_samples < 1000:
        wanted.append(("not slower than LinearRegression", linear, LEVEL))
    if part == "fit" and shape.n_samples >= 100_000:
        wanted.append(("4 times LinearRegression", linear, 4.0))
    return [
        _verdict(target, rival, limit)
        for target, rival, limit in wanted
        if rival is not None and rival.ratio is not None
    ]


def _verdict(target: str, rival: Timing, limit: float) -> dict[str, Any]:
    """Whether a rival's time over ours is what was wanted."""
    assert rival.ratio is not None
    return {
        "target": target,
        "rival": rival.name,
        "limit": limit,
        "ratio": rival.ratio._asdict(),
        "passed": rival.ratio.median >= limit,
        "within_noise": rival.ratio.lower < limit < rival.ratio.upper,
    }


def print_timings(title: str, timings: Sequence[dict[str, Any]]) -> None:
    """Print one line for each contestant.

    Parameters
    ----------
    title : str
        The line above.
    timings : sequence of dict
        As `Timing.record` gives them.
    """
    print(f"\n{title}")
    print(f"  {'':24} {'median ms':>10} {'min ms':>10} {'n':>3} {'error':>8}  ratio to ours")
    for timing in timings:
        if timing["status"] != "timed":
            print(f"  {timing['name']:24} {timing['status']}: {timing['reason']}")
            continue
        error = "" if timing["error"] is None else f"{timing['error']:.0e}"
        print(
            f"  {timing['name']:24} {1e3 * timing['median_s']:10.3f} "
            f"{1e3 * timing['minimum_s']:10.3f} {len(timing['samples_s']):3} {error:>8}  "
            f"{ratio_text(timing['ratio'])}",
            flush=True,
        )


def ratio_text(ratio: dict[str, float] | None) -> str:
    """Write a ratio with its quartiles.

    Parameters
    ----------
    ratio : dict or None
        The fields of a `Ratio`.

    Returns
    -------
    str
        Such as "1.52 (1.48 to 1.61)"; a dash for None.
    """
    if ratio is None:
        return "-"
    return f"{ratio['median']:.2f} ({ratio['lower']:.2f} to {ratio['upper']:.2f})"


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
            "device": options.device,
            "rounds": options.rounds,
            "budget_s": options.budget,
            "min_sample_s": MIN_SAMPLE_S,
            "settle_s": SETTLE_S,
            "seed": SEED,
            "calls": {library.name: library.call for library in LIBRARIES},
            "ratio": "a contestant's time over ours, round by round",
        },
        "cases": [],
        "memory": [],
    }
    for part, shape in _cases(options):
        if isinstance(shape, str):
            hold = _cliff_case if part == "cliffs" else _dependent_case
            report["cases"].append(hold(shape, options))
        elif part == "memory":
            report["memory"].append(_memory_case(shape))
        else:
            report["cases"].append(_case(part, shape, options))
        # After every case, so that an interrupted run leaves what it has.
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    _print_summary(report)
    print(f"\nwritten to {options.output}")
    ours = [t for case in report["cases"] for t in case["timings"] if t["role"] == "ours"]
    return int(any(timing["status"] != "timed" for timing in ours))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument(
        "--shapes",
        type=_shapes,
        help="shapes such as 25x1,1e6x10 for every part; each part has its own list by default",
    )
    parser.add_argument("--parts", default="", help=f"some of {','.join(SHAPES)}; all by default")
    parser.add_argument("--rounds", type=int, default=15, help="samples of each at most (15)")
    parser.add_argument(
        "--budget", type=float, default=15.0, help="seconds for one contestant's samples (15)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"JSON file ({OUTPUT})")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}: it must be at least 1")
    on_cuda = options.device == "cuda"
    if on_cuda and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    default = [part for part in SHAPES if not (on_cuda and part in CPU_ONLY)]
    options.parts = options.parts.split(",") if options.parts else default
    for part in options.parts:
        if part not in default:
            parser.error(f"--parts {part}: on {options.device} there are {', '.join(default)}")
    return options


def _shapes(text: str) -> list[Shape]:
    """Shapes from a list with commas."""
    try:
        return [parse_shape(item) for item in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _cases(options: argparse.Namespace) -> Iterator[tuple[str, Shape | str]]:
    """The parts and shapes that were asked for, names where a part has cases of its own."""
    named: dict[str, Iterable[str]] = {"dependent": dependent.CASES, "cliffs": cliffs.CLIFFS}
    for part in options.parts:
        if part in named:
            yield from ((part, name) for name in named[part])
            continue
        for shape in options.shapes or _shapes(SHAPES[part]):
            yield part, shape


def _case(part: str, shape: Shape, options: argparse.Namespace) -> dict[str, Any]:
    """Hold the contest of one part and shape."""
    dtype = "float32" if part == "float32" else "float64"
    density = DENSITY if part == "sparse" else None
    data = make_data(shape, dtype=dtype, weighted=part == "weighted", density=density, seed=SEED)
    kind: Kind = "dense"
    if options.device == "cuda":
        kind = "cuda"
    elif part == "weighted":
        kind = "weighted"
    elif part == "sparse":
        kind = "sparse"
    if part == "predict":
        contestants = predict_contestants(data, kind)
    else:
        contestants = fit_contestants(data, reference(data), kind)
    timings = hold_contest(
        contestants,
        tolerance=TOLERANCE[dtype],
        rounds=options.rounds,
        budget_s=options.budget,
        wait=torch.cuda.synchronize if kind == "cuda" else None,
    )
    case: dict[str, Any] = {
        "part": part,
        "shape": str(shape),
        "n_samples": shape.n_samples,
        "n_features": shape.n_features,
        "dtype": dtype,
        "density": density,
        "tolerance": TOLERANCE[dtype],
        "timings": [timing.record() for timing in timings],
        "targets": judge(part, shape, timings),
    }
    print_timings(f"{part} {shape} {dtype}", case["timings"])
    return case


def _dependent_case(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Hold the contest of a case of dependent columns."""
    is_exact, draw = dependent.CASES[name]
    data = draw()
    best = ours(data)
    error = dependent.prediction_error(data, best)
    sparse = scipy.sparse.issparse(data.X)
    rivals = {"LinearRegression": LinearRegression(tol=1e-12 if sparse else 0)}
    if not sparse:
        rivals["Ridge"] = Ridge(alpha=1e-8, solver="cholesky")
    timings = hold_contest(
        [
            Contestant(OURS, "ours", _bind(ours, data), error),
            *(
                Contestant(key, "estimator", _bind(_fit_rival(rival), data), error)
                for key, rival in rivals.items()
            ),
        ],
        tolerance=DEPENDENT_TOLERANCE,
        rounds=options.rounds,
        budget_s=options.budget,
    )
    found = {timing.name: timing for timing in timings}
    wanted = [("level with LinearRegression(tol=0)", "LinearRegression", LEVEL)]
    if is_exact and not sparse:
        wanted = [("at most 3 times Ridge", "Ridge", 1 / 3)]
    case: dict[str, Any] = {
        "part": "dependent",
        "shape": name,
        "n_samples": data.shape.n_samples,
        "n_features": data.shape.n_features,
        "dtype": "float64",
        "density": None,
        "tolerance": DEPENDENT_TOLERANCE,
        "timings": [timing.record() for timing in timings],
        "targets": [
            _verdict(target, found[rival], limit) for target, rival, limit in wanted if found[rival].ratio
        ],
    }
    print_timings(f"dependent {name}", case["timings"])
    return case


def _cliff_case(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Hold the contest of a shape that may take long."""
    cliff = cliffs.CLIFFS[name]
    X, y = cliff.draw(np.random.default_rng(SEED))
    error = cliffs.prediction_error(cliff, X, y)
    timings = hold_contest(
        [
            Contestant(OURS, "ours", lambda: cliff.ours(X, y), error),
            Contestant(cliff.rival, "estimator", lambda: cliff.fit_rival(X, y), error),
        ],
        tolerance=TOLERANCE["float64"],
        rounds=options.rounds,
        budget_s=options.budget,
    )
    target = f"at most {cliff.limit:g} times {cliff.rival}"
    rival = timings[1]
    case: dict[str, Any] = {
        "part": "cliffs",
        "shape": name,
        "n_samples": X.shape[0],
        "n_features": X.shape[1],
        "dtype": "float64",
        "density": None,
        "tolerance": TOLERANCE["float64"],
        "timings": [timing.record() for timing in timings],
        "targets": [_verdict(target, rival, 1 / cliff.limit)] if rival.ratio else [],
    }
    print_timings(f"cliffs {name}", case["timings"])
    return case


def _fit_rival(rival: Any) -> Callable[[Data], Solution]:  # Any: scikit-learn is untyped
    def fit(data: Data) -> Solution:
        rival.fit(data.X, data.y)
        return Solution(rival.coef_, float(rival.intercept_))

    return fit


def _memory_case(shape: Shape) -> dict[str, Any]:
    """Measure the peak memory of a fit of one shape."""
    limit = 0.1
    records = [peak_memory.measure(name, shape) for name in MEMORY_LIBRARIES]
    print(f"\npeak extra memory of a fit, {shape} float64, as a fraction of X")
    for record in records:
        fraction = record.get("fraction")
        print(f"  {record['name']:24}", f"{fraction:8.4f}" if fraction is not None else record)
    ours = records[0].get("fraction")
    passed = isinstance(ours, float) and ours <= limit
    target = {"target": f"at most {limit} of X", "limit": limit, "value": ours, "passed": passed}
    return {"shape": str(shape), "records": records, "targets": [target]}


def _on_cuda(data: Data) -> Data:
    """The same data as tensors on the device."""
    return Data(torch.from_numpy(data.X).cuda(), torch.from_numpy(data.y).cuda())


def _bind(fit: Callable[[Data], Solution], data: Data) -> Callable[[], Solution]:
    """A call without arguments."""
    return lambda: fit(data)


def _check(contestant: Contestant, tolerance: float, wait: Callable[[], None] | None) -> tuple[Timing, float]:
    """Run a contestant until its time is known; its answer, judged, and seconds for one run."""
    judged = Timing(contestant.name, contestant.role, "timed")
    if contestant.reason is not None:
        return replace(judged, status="skipped", reason=contestant.reason), 0.0
    try:
        start = time.perf_counter()
        answer = contestant.run()
        if wait is not None:
            wait()
        seconds = time.perf_counter() - start
    except Exception as error:  # whatever a rival raises, the others go on
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return replace(judged, status="failed", reason=reason), 0.0
    if contestant.error is not None:
        relative = contestant.error(answer)
        judged = replace(judged, error=relative)
        # Written so that a NaN is wrong as well.
        if not relative <= tolerance:
            reason = f"its relative error is {relative:.1e}, above {tolerance:.0e}"
            return replace(judged, status="wrong", reason=reason), seconds
    del answer
    # The first run may have loaded libraries and started threads.
    for _ in range(2 if seconds < 1.0 else 0):
        seconds = min(seconds, _sample(contestant.run, 1, wait))
    return judged, seconds


def _plan(seconds: float, rounds: int, budget_s: float) -> tuple[int, int]:
    """Calls in a sample, and samples, for a run that takes some seconds."""
    loops = max(1, math.ceil(MIN_SAMPLE_S / seconds))
    if seconds > SLOW_S:
        return loops, 1
    affordable = int(budget_s / (loops * seconds))
    return loops, min(rounds, max(2, affordable))


def _sample(
    run: Callable[[], Any], loops: int, wait: Callable[[], None] | None, *, warm: bool = True
) -> float:
    """Seconds per call, after a call that wakes the contestant's own threads if `warm`."""
    time.sleep(SETTLE_S)
    if warm:
        run()
    gc.disable()
    try:
        start = time.perf_counter()
        for _ in range(loops):
            run()
            if wait is not None:
                wait()
        return (time.perf_counter() - start) / loops
    finally:
        gc.enable()


def _print_summary(report: dict[str, Any]) -> None:
    """Every target with its verdict."""
    print("\nTargets: rival's time over ours, median (quartiles)")
    for case in report["cases"]:
        for target in case["targets"]:
            verdict = "PASS" if target["passed"] else "FAIL"
            noise = " (within noise)" if target["within_noise"] else ""
            print(
                f"  {case['part']:9} {case['shape']:>12}  {target['target']:33} "
                f"{target['rival']:17} {ratio_text(target['ratio']):24} {verdict}{noise}"
            )
    for memory in report["memory"]:
        for target in memory["targets"]:
            verdict = "PASS" if target["passed"] else "FAIL"
            value = "not measured" if target["value"] is None else f"{target['value']:.4f}"
            print(f"  {'memory':9} {memory['shape']:>12}  {target['target']:33} {'':17} {value:24} {verdict}")


if __name__ == "__main__":
    sys.exit(main())
