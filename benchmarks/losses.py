"""Time losses, penalties and constraints against their rivals, every answer checked by its objective.

Run ``python -m benchmarks.losses``. In each case all minimise one objective, which is computed anew from
the coefficients and the intercept by a function of its own; who ends too far above the best one found is
wrong and not timed. Then the contestants take turns, as in `benchmarks.speed`; slow rivals are timed once.
All samples are kept in the JSON file.
"""

import argparse
import gc
import importlib
import importlib.metadata
import importlib.util
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
from scipy.optimize import brentq
from sklearn.linear_model import (
    ElasticNet,
    HuberRegressor,
    Lasso,
    LinearRegression,
    QuantileRegressor,
    Ridge,
    RidgeCV,
)
from sklearn.model_selection import GridSearchCV

import torchlinreg
from benchmarks.environment import describe
from benchmarks.libraries import OURS
from benchmarks.speed import (
    MIN_SAMPLE_S,
    SETTLE_S,
    Contestant,
    Role,
    Timing,
    hold_contest,
    pairwise_ratio,
    print_timings,
    ratio_text,
)
from benchmarks.synthetic import Data, Shape, Solution, make_data, parse_shape
from torchlinreg import TorchLinearRegressor, losses

OUTPUT = Path("benchmarks/results/losses.json")
SEED = 0
# skglm's and statsmodels' quantile fits end 1e-6 above the optimum when they say that they are done.
LIMIT = 1e-5
# What is demanded of ours, relative to the best objective of all contestants.
OUR_LIMIT = 1e-9
# Rivals above this are not run again, up to AGAIN_S once: a stall of the machine makes nobody slow by itself.
SLOW_S = 2.0
AGAIN_S = 10.0
# A fit of these many rows comes before everything: numba compiles skglm's and glum's code for 5 to 20 s.
WARM_ROWS = 200

# Of scikit-learn, statsmodels and glum, by name: not all need be installed.
NOT_CONVERGED = ("ConvergenceWarning", "IterationLimitWarning")

HUBER_EPSILON = 1.35
OURS_CV = "TorchLinearRegressorCV"
OURS_SEARCHED = "GridSearchCV(ours)"
N_ALPHAS = 20
N_FOLDS = 5


class Answer(NamedTuple):
    """What a fit found, and the iterations it says it took (None: it does not say)."""

    solution: Solution
    n_iter: int | None = None


class Entrant(NamedTuple):
    """One way to fit one problem.

    Parameters
    ----------
    name : str
        What tables call it.
    run : callable
        The fit, without arguments; gives an `Answer`, or scores where the problem is about scores.
    call : callable
        Says what is called; may import the rival.
    package : str, default="sklearn"
        The module that has to be installed.
    role : {"ours", "variant", "estimator", "routine"}, default="estimator"
        As in `benchmarks.speed.Contestant`.
    note : str, default=""
        What it does differently.
    comparable : bool, default=True
        Whether it minimises the objective of the problem; if not, it is timed with its own.
    """

    name: str
    run: Callable[[], Any]
    call: Callable[[], str]
    package: str = "sklearn"
    role: Role = "estimator"
    note: str = ""
    comparable: bool = True


class Problem(NamedTuple):
    """Data bound to all who fit them, and the measure of their answers.

    Parameters
    ----------
    entrants : list of Entrant
        Ours first.
    value : callable
        The objective of an answer; infinite where it breaks a constraint.
    details : dict
        What JSON says about the problem, such as `alpha`.
    best : float or None, default=None
        The least value that there is; None is the least one found, and excesses are relative to it.
    """

    entrants: list[Entrant]
    value: Callable[[Any], float]
    details: dict[str, Any]
    best: float | None = None


class Goal(NamedTuple):
    """A demand: the rival takes so many times as long as `ours` does."""

    rival: str
    limit: float
    ours: str = OURS


class Case(NamedTuple):
    """A contest.

    Parameters
    ----------
    title : str
        What the README calls it.
    shape : str
        Rows x columns.
    make : callable
        The problem of a shape.
    goals : tuple of Goal, default=()
        What is demanded of it.
    seconds : float, default=None
        Ours takes no longer than this.
    slow_s : float, default=SLOW_S
        A rival that takes longer is timed once.
    """

    title: str
    shape: str
    make: Callable[[Shape], Problem]
    goals: tuple[Goal, ...] = ()
    seconds: float | None = None
    slow_s: float = SLOW_S


def pinball(residual: np.ndarray, quantile: float) -> float:
    """Give the mean pinball loss of residuals ``y - prediction``.

    Parameters
    ----------
    residual : ndarray
        Of any shape.
    quantile : float
        Between 0 and 1.

    Returns
    -------
    float
        With 0.5, half of the mean absolute residual.
    """
    return float(np.mean(np.maximum(quantile * residual, (quantile - 1) * residual)))


def huber(residual: np.ndarray, epsilon: float, scale: float | None = None) -> float:
    """Give the mean Huber loss of residuals, at a scale or at the best one.

    Parameters
    ----------
    residual : ndarray
        Of any shape, not all zero if `scale` is None.
    epsilon : float
        Where the loss turns linear, in units of the scale; above 1 if `scale` is None.
    scale : float, default=None
        None minimises ``scale / 2 + huber(residual / scale) * scale`` over it, which is half of what
        `HuberRegressor` minimises, divided by the number of rows.

    Returns
    -------
    float
        The mean of ``r^2 / 2`` inside and ``epsilon * scale * |r| - (epsilon * scale)^2 / 2`` outside; of
        the joint loss if `scale` is None.
    """
    size = np.abs(residual)
    if scale is not None:
        inside = np.minimum(size, epsilon * scale)
        return float(np.mean(inside * (size - inside / 2)))

    def slope(scale: float) -> float:
        # The derivative of the joint loss by the scale, in which it is convex.
        return float(1 - np.mean(np.minimum(size / scale, epsilon) ** 2)) / 2

    rms = float(np.sqrt(np.mean(size**2)))
    best = brentq(slope, 1e-9 * rms, 2 * rms, xtol=1e-15 * rms)
    return best / 2 + huber(residual / best, epsilon, 1.0) * best


def objective(
    data: Data,
    loss: Callable[[np.ndarray], float],
    alpha: float = 0.0,
    l1_ratio: float = 0.0,
    lower: float = -math.inf,
) -> Callable[[Answer], float]:
    """Make the measure of answers, without any code of ours.

    Parameters
    ----------
    data : Data
        NumPy data without weights.
    loss : callable
        The mean loss of residuals ``y - prediction``.
    alpha, l1_ratio : float, default=0.0
        Strength of the penalty, and the share of the absolute values in it.
    lower : float, default=-inf
        The least value that a coefficient may have.

    Returns
    -------
    callable
        Of an answer: the objective; infinite for a wrong shape, what is not finite, and what is below
        `lower`.
    """

    def value(answer: Answer) -> float:
        coef = np.asarray(answer.solution.coef, np.float64)
        finite = np.isfinite([*coef.ravel(), answer.solution.intercept]).all()
        if coef.shape != (data.shape.n_features,) or not finite or (coef < lower).any():
            return math.inf
        penalty = l1_ratio * np.abs(coef).sum() + (1 - l1_ratio) / 2 * (coef @ coef)
        return loss(data.y - answer.solution.intercept - data.X @ coef) + alpha * float(penalty)

    return value


def _squares(residual: np.ndarray) -> float:
    """Half the mean square of residuals."""
    return float(np.mean(residual**2)) / 2


def _huber_problem(shape: Shape, *, centred: bool) -> Problem:
    """Outliers, with the scale estimated as well and HuberRegressor's default penalty."""
    data, alpha = _outlier_data(shape, centred=centred), 1e-4
    own_alpha = alpha / shape.n_samples  # HuberRegressor sums twice these losses; its penalty has no 1/2
    entrants = [
        _estimator(OURS, lambda: TorchLinearRegressor(loss="huber", alpha=own_alpha), data, "ours"),
        _estimator("HuberRegressor", lambda: HuberRegressor(alpha=alpha, max_iter=1000), data),
        Entrant(
            "statsmodels RLM",
            lambda: _rlm(data),
            lambda: "statsmodels RLM(y, X, M=HuberT(1.35)).fit()",
            "statsmodels",
            "routine",
            "its scale is the median absolute deviation, so its coefficients are others; no penalty",
            comparable=False,
        ),
    ]
    value = objective(data, lambda residual: huber(residual, HUBER_EPSILON), own_alpha)
    return Problem(entrants, value, {"alpha": own_alpha, "l1_ratio": 0.0})


def _fixed_huber_problem(shape: Shape) -> Problem:
    """Outliers at a scale of 1, which more libraries can state."""
    data = _outlier_data(shape, centred=True)
    loss = losses.Huber(HUBER_EPSILON, scale=1.0)
    entrants = [
        _estimator(OURS, lambda: TorchLinearRegressor(loss=loss), data, "ours"),
        Entrant(
            "statsmodels RLM",
            lambda: _rlm(data, start_scale=1.0, update_scale=False),
            lambda: "statsmodels RLM(y, X, M=HuberT(1.35)).fit(start_scale=1, update_scale=False)",
            "statsmodels",
            "routine",
        ),
        _estimator(
            "skglm",
            lambda: _skglm_general("Huber", {"delta": HUBER_EPSILON}, "L1", {"alpha": 0.0}),
            data,
            package="skglm",
            call="skglm GeneralizedLinearEstimator(Huber(1.35), L1(0), AndersonCD(tol=1e-6))",
        ),
    ]
    value = objective(data, lambda residual: huber(residual, HUBER_EPSILON, 1.0))
    return Problem(entrants, value, {"alpha": 0.0, "l1_ratio": 0.0})


def _quantile_problem(quantile: float, shape: Shape) -> Problem:
    """A quantile of noise whose spread changes with the rows; without those who would take minutes."""
    rng = np.random.default_rng(SEED)
    X, signal = _signal(shape, rng)
    data = Data(X, signal + np.exp(X[:, 0] / 2) * rng.standard_normal(shape.n_samples))
    loss = losses.Quantile(quantile)
    entrants = [
        _estimator(OURS, lambda: TorchLinearRegressor(loss=loss), data, "ours"),
        Entrant(
            "statsmodels QuantReg",
            lambda: _quant_reg(data, quantile),
            lambda: f"statsmodels QuantReg(y, X).fit(q={quantile})",
            "statsmodels",
            "routine",
            "reweighted least squares; computes standard errors too",
        ),
    ]
    if shape.n_samples <= 20_000:  # where it takes 10 to 40 s
        entrants.append(
            _estimator(
                "QuantileRegressor",
                lambda: QuantileRegressor(quantile=quantile, alpha=0.0, solver="highs"),
                data,
            )
        )
    if shape.n_samples <= 5000:  # 4 s there, 20 to 200 s at 20,000
        entrants.append(
            Entrant(
                "skglm",
                lambda: _skglm_pinball(data, quantile),
                lambda: f"skglm PDCD_WS(tol=1e-4, max_epochs=10000), Pinball({quantile}), L1(0)",
                "skglm",
                "routine",
                "tol=1e-4: its default 1e-6 took six times as long",
            )
        )
    value = objective(data, lambda residual: pinball(residual, quantile))
    return Problem(entrants, value, {"quantile": quantile, "alpha": 0.0, "l1_ratio": 0.0})


def _sparse_problem(l1_ratio: float, shape: Shape) -> Problem:
    """At most 50 coefficients that are not 0, and a tenth of the alpha at which all of them end at 0."""
    rng = np.random.default_rng(SEED)
    X, signal = _signal(shape, rng, n_nonzero=min(50, math.ceil(shape.n_features / 10)))
    data = Data(X, signal + 2 * rng.standard_normal(shape.n_samples))
    greatest = np.abs(X.T @ (data.y - data.y.mean())).max() / shape.n_samples / l1_ratio
    alpha = float(0.1 * greatest)
    lasso = l1_ratio == 1
    given = {"alpha": alpha} if lasso else {"alpha": alpha, "l1_ratio": l1_ratio}
    name = "Lasso" if lasso else "ElasticNet"
    sklearn_class = Lasso if lasso else ElasticNet
    entrants = [
        _estimator(OURS, lambda: TorchLinearRegressor(alpha=alpha, l1_ratio=l1_ratio), data, "ours"),
        _estimator(name, lambda: sklearn_class(**given), data),
        _estimator(f"skglm {name}", lambda: _skglm(name)(**given), data, package="skglm"),
    ]
    # glum builds the Gram matrix of all columns: 5000 x 5000 in every iteration.
    if shape.n_features <= shape.n_samples:
        entrants.append(
            _estimator(
                "glum", lambda: _glum(alpha=alpha, l1_ratio=l1_ratio, gradient_tol=1e-8), data, package="glum"
            )
        )
    value = objective(data, _squares, alpha, l1_ratio)
    return Problem(entrants, value, {"alpha": alpha, "l1_ratio": l1_ratio})


def _positive_problem(shape: Shape) -> Problem:
    """Non-negative least squares, where half the coefficients would be negative."""
    rng = np.random.default_rng(SEED)
    X, signal = _signal(shape, rng)
    data = Data(X, signal + rng.standard_normal(shape.n_samples))
    entrants = [
        _estimator(OURS, lambda: TorchLinearRegressor(positive=True), data, "ours"),
        _estimator("LinearRegression", lambda: LinearRegression(positive=True), data),
        _estimator(
            "skglm",
            lambda: _skglm_general("Quadratic", {}, "PositiveConstraint", {}),
            data,
            package="skglm",
            call="skglm GeneralizedLinearEstimator(Quadratic(), PositiveConstraint(), AndersonCD(tol=1e-6))",
        ),
        _estimator(
            "glum",
            lambda: _glum(alpha=0.0, lower_bounds=np.zeros(shape.n_features), gradient_tol=1e-8),
            data,
            package="glum",
        ),
    ]
    return Problem(entrants, objective(data, _squares, lower=0.0), {"alpha": 0.0, "l1_ratio": 0.0})


def _cross_validation_problem(shape: Shape) -> Problem:
    """Scores of 20 ridge penalties over 5 folds; the value is the largest difference from NumPy's."""
    rng = np.random.default_rng(SEED)
    X, signal = _signal(shape, rng)
    X[:, 1:] += X[:, :1]  # correlated columns, so that the penalty matters
    data = Data(X, signal + 5 * rng.standard_normal(shape.n_samples))
    summed = np.logspace(-2, 6, N_ALPHAS)
    # All folds train on as many rows, so one alpha of ours is one of Ridge's.
    averaged = summed * N_FOLDS / ((N_FOLDS - 1) * shape.n_samples)
    truth = _ridge_scores(data, summed)

    def searched(estimator: Any, alphas: np.ndarray) -> np.ndarray:
        search = GridSearchCV(estimator, {"alpha": alphas}, cv=N_FOLDS).fit(data.X, data.y)
        return np.asarray(search.cv_results_["mean_test_score"])

    def value(scores: np.ndarray) -> float:
        # RidgeCV tells its best score alone.
        expected = truth if len(scores) > 1 else truth.max(keepdims=True)
        if scores.shape != expected.shape or not np.isfinite(scores).all():
            return math.inf
        return float(np.abs(scores - expected).max())

    entrants = [
        Entrant(
            OURS_CV,
            lambda: _own_scores(data, averaged),
            lambda: f"TorchLinearRegressorCV(alphas={N_ALPHAS}, cv={N_FOLDS})",
            role="ours",
        ),
        Entrant(
            OURS_SEARCHED,
            lambda: searched(TorchLinearRegressor(), averaged),
            lambda: f'GridSearchCV(TorchLinearRegressor(), {{"alpha": {N_ALPHAS}}}, cv={N_FOLDS})',
            role="variant",
        ),
        Entrant(
            "GridSearchCV(Ridge)",
            lambda: searched(Ridge(), summed),
            lambda: f'GridSearchCV(Ridge(), {{"alpha": {N_ALPHAS}}}, cv={N_FOLDS})',
        ),
        Entrant(
            "RidgeCV",
            lambda: np.array([RidgeCV(alphas=summed, cv=N_FOLDS).fit(data.X, data.y).best_score_]),
            lambda: f"RidgeCV(alphas={N_ALPHAS}, cv={N_FOLDS})",
        ),
    ]
    return Problem(entrants, value, {"n_alphas": N_ALPHAS, "n_folds": N_FOLDS}, best=0.0)


CASES = {
    # HuberRegressor's L-BFGS needs 27 iterations on raw columns, and 10 on centred ones.
    "huber": Case(
        "Huber, scale estimated",
        "100000x20",
        lambda shape: _huber_problem(shape, centred=False),
        goals=(Goal("HuberRegressor", 5.0),),
    ),
    "huber_centred": Case(
        "Huber, scale estimated, centred columns",
        "100000x20",
        lambda shape: _huber_problem(shape, centred=True),
    ),
    "huber_fixed": Case("Huber, scale 1, centred columns", "100000x20", _fixed_huber_problem),
    "median": Case(
        "Median",
        "5000x10",
        lambda shape: _quantile_problem(0.5, shape),
        goals=(Goal("QuantileRegressor", 100.0),),
    ),
    "quantile": Case(
        "Quantile 0.9",
        "20000x10",
        lambda shape: _quantile_problem(0.9, shape),
        goals=(Goal("QuantileRegressor", 300.0),),
    ),
    "quantile_large": Case(
        "Quantile 0.9", "1e6x10", lambda shape: _quantile_problem(0.9, shape), seconds=10.0
    ),
    "lasso": Case(
        "Lasso", "100000x100", lambda shape: _sparse_problem(1.0, shape), goals=(Goal("Lasso", 1.5),)
    ),
    "lasso_wide": Case(
        "Lasso", "2000x5000", lambda shape: _sparse_problem(1.0, shape), goals=(Goal("Lasso", 1 / 1.5),)
    ),
    "elastic_net": Case("Elastic net", "100000x100", lambda shape: _sparse_problem(0.5, shape)),
    "positive": Case(
        "Coefficients >= 0",
        "20000x200",
        _positive_problem,
        goals=(Goal("LinearRegression", 4.0),),
    ),
    "cross_validation": Case(
        "Ridge, 20 alphas, 5 folds",
        "100000x50",
        _cross_validation_problem,
        goals=(
            Goal("GridSearchCV(Ridge)", 20.0, OURS_CV),
            Goal("GridSearchCV(Ridge)", 1.5, OURS_SEARCHED),
        ),
        slow_s=20.0,  # both sides of a goal take seconds, and single runs scatter by 2
    ),
}


class Trial(NamedTuple):
    """The first run of an entrant: what came of it, before it is timed; `slow` if it is the only run."""

    seconds: float = 0.0
    slow: bool = False
    value: float | None = None
    n_iter: int | None = None
    warning: str | None = None
    failure: str | None = None


def hold_case(name: str, shape: Shape, *, rounds: int, budget_s: float) -> dict[str, Any]:
    """Hold one contest.

    Parameters
    ----------
    name : str
        One of `CASES`.
    shape : Shape
        Rows and columns.
    rounds, budget_s : int and float
        As in `benchmarks.speed.hold_contest`.

    Returns
    -------
    dict
        The case, for JSON.
    """
    case = CASES[name]
    problem = case.make(shape)
    warm = {entrant.name: entrant.run for entrant in case.make(_warm_shape(shape)).entrants}
    trials = [_trial(entrant, warm[entrant.name], problem.value, case.slow_s) for entrant in problem.entrants]
    together = list(zip(problem.entrants, trials, strict=True))
    found = [trial.value for trial in trials if trial.value is not None]
    best = min(found, default=math.inf) if problem.best is None else problem.best
    contestants = [_contestant(*each, problem, best) for each in together]
    timings = hold_contest(contestants, tolerance=LIMIT, rounds=rounds, budget_s=budget_s)
    ours = next(timing.samples_s for timing in timings if timing.role == "ours")
    timings = [
        _settled(timing, trial, _excess(trial.value, best, problem), ours)
        for timing, trial in zip(timings, trials, strict=True)
    ]
    extras = [_extra(*each, timing) for each, timing in zip(together, timings, strict=True)]
    record: dict[str, Any] = {
        "case": name,
        "title": case.title,
        "shape": str(shape),
        "n_samples": shape.n_samples,
        "n_features": shape.n_features,
        **problem.details,
        "slow_s": case.slow_s,
        "best": best if math.isfinite(best) else None,
        "error_is": "objective / best - 1" if problem.best is None else "greatest error of a mean score",
        "timings": [timing.record() | extra for timing, extra in zip(timings, extras, strict=True)],
        "targets": judge(case, timings),
    }
    print_timings(f"{name} {shape}: {case.title}", record["timings"])
    return record


def judge(case: Case, timings: Sequence[Timing]) -> list[dict[str, Any]]:
    """Hold a contest against the stated demands.

    Parameters
    ----------
    case : Case
        With its goals.
    timings : sequence of Timing
        What came of it.

    Returns
    -------
    list of dict
        As `benchmarks.speed.judge`: for each goal whose rival was timed the `ratio`; for each of ours,
        whether its `value` (the excess) is within `OUR_LIMIT`; for `seconds`, the median as `value`.
    """
    named = {timing.name: timing for timing in timings}
    targets = [
        _verdict(f"{timing.name}: excess at most {OUR_LIMIT:.0e}", OUR_LIMIT, timing.error)
        for timing in timings
        if timing.role in ("ours", "variant")
    ]
    for goal in case.goals:
        rival, own = named.get(goal.rival), named.get(goal.ours)
        if rival is None or own is None or not rival.samples_s or not own.samples_s:
            continue
        ratio = pairwise_ratio(_repeated(rival, own), own.samples_s)
        targets.append(
            {
                "target": f"{goal.ours}: {goal.limit:.3g} times {goal.rival}",
                "rival": goal.rival,
                "limit": goal.limit,
                "ratio": ratio._asdict(),
                "passed": ratio.median >= goal.limit,
                "within_noise": ratio.lower < goal.limit < ratio.upper,
            }
        )
    ours = named.get(OURS)
    if case.seconds is not None and ours is not None and ours.samples_s:
        targets.append(_verdict(f"{OURS}: within {case.seconds:g} s", case.seconds, ours.median_s))
    return targets


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
        "environment": _environment(),
        "settings": {
            "rounds": options.rounds,
            "budget_s": options.budget,
            "min_sample_s": MIN_SAMPLE_S,
            "settle_s": SETTLE_S,
            "limit": LIMIT,
            "our_limit": OUR_LIMIT,
            "seed": SEED,
            "data": "standard normal columns, float64; in the case huber up to 5 units from 0",
            "ratio": "a contestant's time over ours, round by round; a slow one was timed once",
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
    owned = [t for case in report["cases"] for t in case["timings"] if t["role"] in ("ours", "variant")]
    return int(any(timing["status"] != "timed" for timing in owned))


def _environment() -> dict[str, object]:
    """The environment, with the versions of the rivals that take part here alone."""
    environment = describe()
    packages = environment["packages"]
    assert isinstance(packages, dict)
    for name in ("skglm", "numba", "glum"):
        installed = importlib.util.find_spec(name) is not None
        packages[name] = importlib.metadata.version(name) if installed else None
    return environment


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.losses", description=__doc__)
    parser.add_argument("--cases", default="", help=f"some of {','.join(CASES)}; all by default")
    parser.add_argument("--shape", type=_shape, help="a shape such as 1e4x10 for every case")
    parser.add_argument("--rounds", type=int, default=15, help="samples of each at most (15)")
    parser.add_argument(
        "--budget", type=float, default=15.0, help="seconds for one contestant's samples (15)"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"JSON file ({OUTPUT})")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}: it must be at least 1")
    options.cases = options.cases.split(",") if options.cases else list(CASES)
    for name in options.cases:
        if name not in CASES:
            parser.error(f"--cases {name}: there are {', '.join(CASES)}")
    return options


def _shape(text: str) -> Shape:
    """A shape, with an error that argparse shows."""
    try:
        return parse_shape(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _cases(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Hold the contests that were asked for."""
    for name in options.cases:
        shape = options.shape or parse_shape(CASES[name].shape)
        yield hold_case(name, shape, rounds=options.rounds, budget_s=options.budget)


def _warm_shape(shape: Shape) -> Shape:
    """A small shape with the same entrants: wide if the shape is."""
    rows = min(WARM_ROWS, shape.n_samples)
    return Shape(rows, min(10, shape.n_features) if shape.n_features <= shape.n_samples else 2 * rows)


def _trial(entrant: Entrant, warm: Callable[[], Any], value: Callable[[Any], float], slow_s: float) -> Trial:
    """Run an entrant for the first time, after a small fit that loads and compiles its code."""
    if not _is_installed(entrant):
        return Trial()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warm()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            answer, seconds = _timed(entrant)
            if slow_s < seconds < AGAIN_S:
                seconds = min(seconds, _timed(entrant)[1])
    except Exception as error:  # whatever a rival raises, the others go on
        return Trial(failure=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
    told = [str(w.message).partition("\n")[0] for w in caught if w.category.__name__ in NOT_CONVERGED]
    return Trial(
        seconds,
        entrant.role != "ours" and seconds > slow_s,
        value(answer) if entrant.comparable else None,
        answer.n_iter if isinstance(answer, Answer) else None,
        told[0] if told else None,
    )


def _timed(entrant: Entrant) -> tuple[Any, float]:  # Any: an `Answer` or scores
    """The answer of one run and its seconds."""
    gc.collect()
    start = time.perf_counter()
    answer = entrant.run()
    return answer, time.perf_counter() - start


def _contestant(entrant: Entrant, trial: Trial, problem: Problem, best: float) -> Contestant:
    """An entrant for `hold_contest`; those that the trial settled have a reason not to run again."""
    reason = "timed once" if trial.slow else trial.failure
    if not _is_installed(entrant):
        reason = f"{entrant.package} is not installed"

    def error(answer: Any) -> float:
        return _excess(problem.value(answer), best, problem) or 0.0

    return Contestant(entrant.name, entrant.role, entrant.run, error if entrant.comparable else None, reason)


def _excess(value: float | None, best: float, problem: Problem) -> float | None:
    """How far a value is above the best one."""
    if value is None:
        return None
    if not math.isfinite(value):
        return math.inf
    return value - best if problem.best is not None else max(0.0, value / best - 1)


def _settled(timing: Timing, trial: Trial, excess: float | None, ours: Sequence[float]) -> Timing:
    """A timing, or what the trial says where that is the only run."""
    if trial.failure is not None:
        return replace(timing, status="failed", reason=trial.failure)
    if not trial.slow:
        return timing
    if excess is not None and excess > LIMIT:
        reason = f"its relative error is {excess:.1e}, above {LIMIT:.0e}"
        return replace(timing, status="wrong", reason=reason, error=excess)
    once = (trial.seconds,)
    ratio = pairwise_ratio(once * len(ours), ours) if ours else None
    return replace(timing, status="timed", reason=None, error=excess, loops=1, samples_s=once, ratio=ratio)


def _extra(entrant: Entrant, trial: Trial, timing: Timing) -> dict[str, Any]:
    """What the JSON file says about an entrant besides its timing."""
    finite = trial.value is not None and math.isfinite(trial.value)
    return {
        "call": _call_text(entrant) if _is_installed(entrant) else None,
        "note": entrant.note,
        "comparable": entrant.comparable,
        "objective": trial.value if finite else None,
        "n_iter": trial.n_iter,
        "warning": trial.warning,
        "interleaved": timing.status == "timed" and not trial.slow,
        "success": timing.status == "timed" and trial.warning is None,
    }


def _is_installed(entrant: Entrant) -> bool:
    """Whether an entrant can take part."""
    return importlib.util.find_spec(entrant.package) is not None


def _call_text(entrant: Entrant) -> str:
    """What is called, in one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a rival's imports
        return " ".join(entrant.call().split())


def _repeated(rival: Timing, own: Timing) -> Sequence[float]:
    """A rival's samples, and its only one as often as ours has some."""
    return rival.samples_s if len(rival.samples_s) > 1 else rival.samples_s * len(own.samples_s)


def _verdict(target: str, limit: float, value: float | None) -> dict[str, Any]:
    """A target on a value that may not exceed a limit."""
    finite = value is not None and math.isfinite(value)
    return {
        "target": target,
        "rival": "",
        "limit": limit,
        "ratio": None,
        "value": value if finite else None,
        "passed": finite and value is not None and value <= limit,
        "within_noise": False,
    }


def _print_summary(report: dict[str, Any]) -> None:
    """Every target with its verdict."""
    print("\nTargets: rival's time over ours, median (quartiles), or a value")
    for case in report["cases"]:
        for target in case["targets"]:
            verdict = "PASS" if target["passed"] else "FAIL"
            noise = " (within noise)" if target["within_noise"] else ""
            if target["ratio"] is not None:
                text = ratio_text(target["ratio"])
            else:
                text = "-" if target["value"] is None else f"{target['value']:.2g}"
            print(
                f"  {case['case']:16} {case['shape']:>10}  {target['target']:56} {text:26} {verdict}{noise}"
            )


def _signal(
    shape: Shape, rng: np.random.Generator, n_nonzero: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Standard normal columns, and 3 plus their product with coefficients of size 0.5 to 2 or 0."""
    X = rng.standard_normal(shape)
    coef = rng.uniform(0.5, 2.0, shape.n_features) * rng.choice([-1.0, 1.0], shape.n_features)
    if n_nonzero is not None:
        coef[rng.permutation(shape.n_features)[n_nonzero:]] = 0.0
    return X, 3.0 + X @ coef


def _outlier_data(shape: Shape, *, centred: bool) -> Data:
    """The data of `make_data`, with 5 % of the rows far off; their columns are up to 5 units from 0."""
    data = make_data(shape, seed=SEED)
    rng = np.random.default_rng(SEED + 1)
    far = np.where(rng.random(shape.n_samples) < 0.05, 20 * rng.standard_normal(shape.n_samples), 0.0)
    return Data(data.X - data.X.mean(axis=0) if centred else data.X, data.y + far)


def _estimator(
    name: str,
    make: Callable[[], Any],
    data: Data,
    role: Role = "estimator",
    package: str = "sklearn",
    call: str | None = None,
) -> Entrant:
    """An entrant of scikit-learn's interface, which names its parameters itself."""

    def run() -> Answer:
        model = make().fit(data.X, data.y)
        n_iter = getattr(model, "n_iter_", None)
        found = Solution(model.coef_, float(np.squeeze(model.intercept_)))
        return Answer(found, None if n_iter is None else int(np.max(n_iter)))

    return Entrant(name, run, lambda: repr(make()) if call is None else call, package, role)


def _own_scores(data: Data, alphas: np.ndarray) -> np.ndarray:
    """The mean score of each alpha by our cross-validation."""
    model = torchlinreg.TorchLinearRegressorCV(alphas=alphas, cv=N_FOLDS).fit(data.X, data.y)
    return np.asarray(model.cv_results_["mean_test_score"])


def _ridge_scores(data: Data, alphas: np.ndarray) -> np.ndarray:
    """The mean R2 of each of Ridge's alphas over the folds, from centred normal equations."""
    scores = np.empty((N_FOLDS, len(alphas)))
    for fold, rows in enumerate(np.array_split(np.arange(data.shape.n_samples), N_FOLDS)):
        X, y = np.delete(data.X, rows, axis=0), np.delete(data.y, rows)
        mean, centre = X.mean(axis=0), y.mean()
        values, vectors = np.linalg.eigh((X - mean).T @ (X - mean))
        rotated = vectors.T @ ((X - mean).T @ (y - centre))
        coef = vectors @ (rotated[:, None] / (values[:, None] + alphas))
        predicted = centre + (data.X[rows] - mean) @ coef
        total = np.sum((data.y[rows] - data.y[rows].mean()) ** 2)
        scores[fold] = 1 - np.sum((data.y[rows, None] - predicted) ** 2, axis=0) / total
    return scores.mean(axis=0)


def _with_ones(X: np.ndarray) -> np.ndarray:
    """X behind a column of ones."""
    return np.column_stack([np.ones(len(X)), X])


def _rlm(data: Data, **options: Any) -> Answer:  # Any: of statsmodels, which is untyped
    """Fit statsmodels' `RLM`, which reweights."""
    models = importlib.import_module("statsmodels.api")
    norm = models.robust.norms.HuberT(HUBER_EPSILON)
    found = models.RLM(data.y, _with_ones(data.X), M=norm).fit(**options)
    return Answer(Solution(found.params[1:], float(found.params[0])), found.fit_history["iteration"])


def _quant_reg(data: Data, quantile: float) -> Answer:
    """Fit statsmodels' `QuantReg`, which reweights."""
    models = importlib.import_module("statsmodels.api")
    found = models.QuantReg(data.y, _with_ones(data.X)).fit(q=quantile)
    return Answer(Solution(found.params[1:], float(found.params[0])), int(found.iterations))


def _skglm(name: str) -> Any:  # Any: an untyped class
    """One of skglm's estimators."""
    return getattr(importlib.import_module("skglm"), name)


def _skglm_general(datafit: str, given: dict[str, Any], penalty: str, strength: dict[str, Any]) -> Any:
    """Skglm's estimator of a datafit and a penalty, by coordinate descent to a sharper `tol`."""
    return _skglm("GeneralizedLinearEstimator")(
        getattr(importlib.import_module("skglm.datafits"), datafit)(**given),
        getattr(importlib.import_module("skglm.penalties"), penalty)(**strength),
        importlib.import_module("skglm.solvers").AndersonCD(tol=1e-6, p0=1000),
    )


def _skglm_pinball(data: Data, quantile: float) -> Answer:
    """Skglm's primal-dual solver for the pinball loss, which takes the intercept as a column."""
    experimental = importlib.import_module("skglm.experimental")
    no_penalty = importlib.import_module("skglm.penalties").L1(0.0)
    solver = experimental.PDCD_WS(tol=1e-4, max_epochs=10000)
    design = np.asfortranarray(_with_ones(data.X))
    coef, values, _ = solver.solve(design, data.y, experimental.Pinball(quantile), no_penalty)
    return Answer(Solution(coef[1:], float(coef[0])), len(values))


def _glum(**given: Any) -> Any:  # Any: of glum, whose estimators are untyped
    """A glum estimator of the squared error."""
    return importlib.import_module("glum").GeneralizedLinearRegressor(family="normal", **given)


if __name__ == "__main__":
    sys.exit(main())
