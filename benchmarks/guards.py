"""Whether fits keep guards and laws on random problems of every kind, checked in exact arithmetic.

Run ``python -m benchmarks.guards --n 100000 --alone --jobs 2``. The guards are: no fit that claims an
optimum, or that trained to its end without tuning, has a higher objective on its own rows than the best
constant (0 without intercept); and nothing claims to be nearer to its optimum than it is: neither exact
solutions nor the optimizers of SciPy, from there, find a lower objective. The laws: neither the order of
rows, nor copies in place of weights, nor the units of a feature change the objective or, without a penalty,
predictions. Objectives are those of the coefficients before they are rounded to float32, with residuals in
rational arithmetic. A problem is made from its seed alone: ``judge(make_trial(seed))`` and
``judge_laws(make_trial(seed))`` repeat it.
"""

import argparse
import json
import math
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from scipy import sparse
from scipy.optimize import linprog, lsq_linear, minimize, minimize_scalar

from benchmarks.environment import describe
from benchmarks.exact import exact_least_squares
from benchmarks.exact_elastic_net import ExactElasticNet
from torchlinreg import Status, TorchLinearRegressor
from torchlinreg._objective.penalty import Penalty, penalty_of
from torchlinreg._objective.solution import Solution
from torchlinreg.losses import Huber, Loss, Quantile, as_loss

Array = np.ndarray
EPS = 2.0**-53
NOTHING = Fraction(0)
# Share of the constant's objective that float64 losses, and the search for the best constant, may be off by.
SUMS = 1e-9
# Predictions may be off by so many units of rounding of the largest target.
PREDICT = 2
# Columns of which others leave less than so many units of rounding are dependent.
DEPENDENT = 16
# Scales are looked for from here to 1, in units of the largest residual.
LEAST_SCALE = 1e-10
# Gaps below this share of the constant's objective are no claim: no smaller one is asked for either.
LEAST_GAP = 1e-15
# Coefficients that change predictions by less than this share of y pass for zeros.
ZERO = 1e-9
# Relative error of others where 12 digits are claimed.
DIGITS = 1e-11
# Exact optima are found for so many features, by elimination and by trying all pieces of a penalty.
ELIMINATED, PIECEWISE = 8, 3
# Share of the constant's objective that others may find below a claimed optimum.
LOWER = 1e-8
# Share of the spread of y that a law may move predictions by, which may be flat to the root of a gap.
MOVED = 1e-5
# Powers of two that units of features change by, up or down.
POWERS = 20
# Epochs of training: of moments of the rows, and of rows, which take a hundred times as long.
MAX_EPOCHS, MAX_ROW_EPOCHS = 300, 40


def softplus_and_square(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Weigh residuals above 0 more, smoothly; convex."""
    residual = prediction - target
    return residual.square() + torch.nn.functional.softplus(residual)


LOSSES: dict[str, Any] = {
    "squared_error": "squared_error",
    "huber": "huber",
    "huber of scale 1": Huber(scale=1.0),
    "absolute_error": "absolute_error",
    "quantile": "quantile",
    "quantile 0.9": Quantile(0.9),
    "epsilon_insensitive": "epsilon_insensitive",
    "squared_epsilon_insensitive": "squared_epsilon_insensitive",
    "log_cosh": "log_cosh",
    "callable": softplus_and_square,
}
SOLVERS = {
    "squared_error": ("auto", "auto", "cholesky", "exact", "dual", "active_set"),
    "absolute_error": ("auto", "interior_point"),
    "quantile": ("auto", "interior_point"),
    "quantile 0.9": ("auto", "interior_point"),
    "epsilon_insensitive": ("auto", "interior_point"),
}
PIECEWISE_LINEAR = "absolute_error", "quantile", "quantile 0.9", "epsilon_insensitive"
# Optima of these may differ where no columns depend on each other: predictions are not those of one optimum.
FLAT_OR_STRAIGHT = (*PIECEWISE_LINEAR, "huber", "huber of scale 1", "squared_epsilon_insensitive")
OPTIMIZERS = "sgd", "adam", "lbfgs"
KINDS = "dense", "dense", "float32", "csr", "tensor", "frame"
# Claims that the first guard holds for; the others say that something is amiss, and warn.
CLAIMS = Status.OPTIMAL, Status.MINIMUM_NORM, Status.NEARLY_DEPENDENT
TRAINED = (*CLAIMS, Status.NO_PROGRESS)


# Problems


def _offset(rng: np.random.Generator, n: int, p: int) -> Array:
    return rng.standard_normal((n, p)) + 10 ** rng.uniform(3, 12, p)


def _shifted(rng: np.random.Generator, n: int, p: int) -> Array:
    return rng.standard_normal((n, p)) + np.outer(np.arange(n) % 2, 10 ** rng.uniform(7, 10, p))


def _units(rng: np.random.Generator, n: int, p: int) -> Array:
    return (rng.standard_normal((n, p)) + rng.choice([0.0, 5.0], p)) * 10 ** rng.uniform(-100, 100, p)


def _one_hot(rng: np.random.Generator, n: int, p: int) -> Array:
    groups = [np.eye(size)[rng.integers(0, size, n)] for size in rng.integers(2, 5, 1 + p // 3)]
    return np.concatenate(groups, axis=1)


def _duplicates(rng: np.random.Generator, n: int, p: int) -> Array:
    X = rng.standard_normal((n, p)) * 10 ** rng.uniform(-3, 3, p) + rng.choice([0.0, 1e3], p)
    return np.concatenate([X, X[:, rng.integers(0, p, 2)]], axis=1)


def _sums(rng: np.random.Generator, n: int, p: int) -> Array:
    X = rng.standard_normal((n, p)) + rng.choice([0.0, 1e6], p)
    return np.column_stack([X, X.sum(1), X @ rng.standard_normal(p)])


def _nearly_dependent(rng: np.random.Generator, n: int, p: int) -> Array:
    X = rng.standard_normal((n, p)) + rng.choice([0.0, 1e4], p)
    return np.column_stack([X, X.sum(1) + rng.standard_normal(n) * 10 ** rng.uniform(-15, -2)])


def _years(rng: np.random.Generator, n: int, p: int) -> Array:
    first, last = rng.choice([(1900, 2000), (1990, 2020), (100, 110), (1000, 1010), (0, 1), (-1, 1)])
    return np.linspace(first, last, n)[:, None] ** np.arange(1, rng.integers(2, 21))


def _constants(rng: np.random.Generator, n: int, p: int) -> Array:
    X = rng.standard_normal((n, p + 1)) * rng.integers(0, 2, p + 1)
    return X + rng.choice([0.0, 1.0, 0.1, 1e9], p + 1)


def _integers(rng: np.random.Generator, n: int, p: int) -> Array:
    return rng.integers(-3, 4, (n, p)).astype(float)


FAMILIES: dict[str, Callable[[np.random.Generator, int, int], Array]] = {
    "ordinary": lambda rng, n, p: rng.standard_normal((n, p)),
    "offset": _offset,
    "shifted rows": _shifted,
    "units": _units,
    "one-hot": _one_hot,
    "duplicates": _duplicates,
    "sums": _sums,
    "nearly dependent": _nearly_dependent,
    "years": _years,
    "constant columns": _constants,
    "integers": _integers,
    "wide": lambda rng, n, p: rng.standard_normal((2 + n % 5, 6 + p)) + rng.choice([0.0, 1e5], 6 + p),
    "one row": lambda rng, n, p: rng.standard_normal((1, p)) + rng.choice([0.0, 1e9], p),
    "one column": lambda rng, n, p: rng.standard_normal((n, 1)) + rng.choice([0.0, 1e7, 1e12]),
}


@dataclass(frozen=True)
class Trial:
    """A problem and the estimator that solves it.

    Parameters
    ----------
    seed : int
        What it is made from.
    family, kind, loss : str
        Of the columns, of the data, and of the loss.
    X, y : ndarray of shape (n_samples, n_features) and (n_samples, n_targets)
        The numbers.
    weight : ndarray of shape (n_samples,) or None
        Weights.
    parameters : dict
        Of the estimator.
    """

    seed: int
    family: str
    kind: str
    loss: str
    X: Array
    y: Array
    weight: Array | None
    parameters: dict[str, Any]

    @property
    def penalty(self) -> Penalty:
        """What the parameters ask for."""
        given = {"alpha": 0.0, "l1_ratio": 0.0, "penalty_factor": None, "positive": False, "bounds": None}
        given |= {name: value for name, value in self.parameters.items() if name in given}
        return penalty_of(self.X.shape[1], **given)

    @property
    def fit_intercept(self) -> bool:
        """Whether there is an intercept."""
        return bool(self.parameters["fit_intercept"])

    @property
    def trains(self) -> bool:
        """Whether an optimizer of torch is the solver."""
        return self.parameters["solver"] in OPTIMIZERS

    def data(self) -> Any:
        """X as the estimator is given it."""
        if self.kind == "float32":
            return self.X.astype(np.float32)
        if self.kind == "csr":
            return sparse.csr_array(self.X)
        if self.kind == "tensor":
            return torch.from_numpy(self.X.copy())
        return pd.DataFrame(self.X) if self.kind == "frame" else self.X

    @property
    def targets(self) -> Array:
        """Y as the estimator is given it."""
        return self.y[:, 0] if self.y.shape[1] == 1 else self.y

    def __str__(self) -> str:
        n_samples, n_features = self.X.shape
        settings = ", ".join(f"{name}={value!r}" for name, value in self.parameters.items() if name != "loss")
        weights = "" if self.weight is None else ", weighted"
        return (
            f"seed {self.seed}: {self.family} {n_samples} x {n_features}, {self.kind}{weights}, "
            f"{self.y.shape[1]} target(s), {self.loss}, {settings}"
        )


def make_trial(seed: int) -> Trial:
    """Make a small random problem.

    Parameters
    ----------
    seed : int
        What all of it is drawn from.

    Returns
    -------
    Trial
        The problem.
    """
    rng = np.random.default_rng(seed)
    family = str(rng.choice(list(FAMILIES)))
    kind = str(rng.choice(KINDS))
    loss = "squared_error" if rng.random() < 0.55 else str(rng.choice(list(LOSSES)))
    X = FAMILIES[family](rng, int(rng.integers(4, 25)), int(rng.integers(1, 5)))
    if kind == "float32":
        with np.errstate(over="ignore", under="ignore"):
            X = X.astype(np.float32).astype(float)
        X = np.where(np.isfinite(X), X, 1.0)
    n, p = X.shape
    y = _targets(rng, X)
    weight = None
    if rng.random() < 0.3:
        weight = rng.choice([1.0, 2.0, 0.5, 0.0, 1e-6], n) if rng.random() < 0.5 else rng.uniform(0.1, 3, n)
        weight[int(rng.integers(n))] = 1.0
    trains = loss not in PIECEWISE_LINEAR and rng.random() < 0.08
    parameters: dict[str, Any] = {
        "loss": LOSSES[loss],
        "fit_intercept": bool(rng.random() < 0.75),
        "solver": str(rng.choice(OPTIMIZERS if trains else SOLVERS.get(loss, ("auto", "newton")))),
    } | _penalty(rng, p)
    if trains:
        batch_size = None if rng.random() < 0.7 else 4
        on_moments = loss == "squared_error" and batch_size is None
        parameters |= {"max_iter": MAX_EPOCHS if on_moments else MAX_ROW_EPOCHS}
        parameters |= {"batch_size": batch_size, "random_state": 0}
    return Trial(seed, family, kind, loss, X, y, weight, parameters)


def _targets(rng: np.random.Generator, X: Array) -> Array:
    n, p = X.shape
    size = np.abs(X).max(0)
    size = np.where(size > 0, size, 1.0)
    spread = np.ptp(X / size, axis=0) * size if rng.random() < 0.5 else size
    unit = np.where(spread > 0, spread, size)
    n_targets = 2 if rng.random() < 0.1 else 1
    signal = (X / unit) @ rng.standard_normal((p, n_targets))
    noise = rng.standard_normal((n, n_targets))
    kind = rng.choice(["signal", "noise", "exact", "constant", "huge", "tiny", "offset", "integers"])
    if kind == "exact":
        return signal
    if kind == "constant":
        return np.full((n, n_targets), rng.choice([0.0, 0.1, -3.0, 1e9, 1e-30]))
    if kind == "integers":
        return rng.integers(-4, 5, (n, n_targets)).astype(float)
    y = noise if kind == "noise" else signal + noise * 10 ** rng.uniform(-8, 1)
    return {"huge": y * 1e100, "tiny": y * 1e-100, "offset": y + 10 ** rng.uniform(3, 12)}.get(kind, y)


def _penalty(rng: np.random.Generator, p: int) -> dict[str, Any]:
    """Parameters of the penalty and the bounds."""
    alpha = float(10 ** rng.uniform(-8, 2))
    result: dict[str, Any] = {
        "none": {},
        "ridge": {"alpha": alpha},
        "lasso": {"alpha": alpha, "l1_ratio": 1.0},
        "elastic net": {"alpha": alpha, "l1_ratio": 0.5},
    }[rng.choice(["none", "none", "ridge", "lasso", "elastic net"])]
    if result and rng.random() < 0.2:
        result["penalty_factor"] = rng.choice([0.0, 1.0, 3.0], p)
    constraint = rng.random()
    if constraint < 0.12:
        result["positive"] = True
    elif constraint < 0.24:
        bound = float(10 ** rng.uniform(-3, 2))
        result["bounds"] = [(-bound, bound), (None, bound), (0.0, None), (-bound, None)][rng.integers(4)]
    return result


# Judgement


class _Watched(TorchLinearRegressor):
    """Keeps what the solver handed back, before it is rounded to the dtype of X."""

    def _keep(self, solution: Solution, *args: Any, **kwargs: Any) -> None:
        self.solution = solution
        super()._keep(solution, *args, **kwargs)


@dataclass(frozen=True)
class Verdict:
    """What became of a trial.

    Parameters
    ----------
    outcome : str
        "kept", "exempt" (the status claims nothing), "refused" (an error that says what to do), or what was
        broken: "worse than constant", "false optimum" or "error".
    status : str
        How the fit ended.
    detail : str
        Figures.
    """

    outcome: str
    status: str
    detail: str = ""

    @property
    def is_broken(self) -> bool:
        """Whether a guard does not hold."""
        return self.outcome not in ("kept", "exempt", "refused")


def judge(trial: Trial, *, look_lower: bool = True) -> Verdict:
    """Fit, and check both guards.

    Parameters
    ----------
    trial : Trial
        What to fit.
    look_lower : bool, default=True
        Whether SciPy's optimizers look for a lower objective, too.

    Returns
    -------
    Verdict
        What came of it.
    """
    reg = _fitted(trial)
    if isinstance(reg, Verdict):
        return reg
    solution, status = reg.solution, reg.status_.kind
    for target in range(trial.y.shape[1]):
        exact = Exact(trial, target)
        coef, intercept = solution.coef[:, target], float(solution.intercept[target])
        found, limit = exact.objective(coef, intercept, exact.rounding), exact.of_constant
        may_rest = ((trial.penalty.lower <= 0) & (trial.penalty.upper >= 0)).all()
        if may_rest and found > limit:
            detail = f"objective {_text(found)}, of the constant {_text(limit)}"
            return Verdict("worse than constant", status.name, detail)
        claim = exact.check_claim(coef, intercept, reg) if not trial.trains else ""
        if look_lower and not claim and status in CLAIMS:
            claim = exact.check_lower(coef, intercept, _scale_of(solution, target), status)
        if claim:
            return Verdict("false optimum", status.name, claim)
    return Verdict("kept", status.name)


def judge_laws(trial: Trial) -> Verdict:
    """Fit, and fit again to data that mean the same.

    Parameters
    ----------
    trial : Trial
        What to fit.

    Returns
    -------
    Verdict
        What came of it; "broken law" where one does not hold.
    """
    if trial.trains:  # by an optimizer, whose mini-batches and steps are those of the rows and units given
        return Verdict("exempt", "TRAINED")
    first = _fitted(trial)
    for name, (one, other, unit) in _same_problems(trial).items():
        fits = [first if one is trial else _fitted(one), _fitted(other)]
        for reg in fits:
            if isinstance(reg, Verdict):
                return replace(reg, detail=f"{name}: {reg.detail}")
        # The shortest of several optima is another in other units.
        unique = all(reg.status_.kind is Status.OPTIMAL for reg in fits)
        if name == "units" and not unique:
            continue
        decided_by_rounding = any(reg.status_.kind is Status.NEARLY_DEPENDENT for reg in fits)
        units = DEPENDENT if decided_by_rounding else PREDICT
        same = not (name == "units" and trial.loss in FLAT_OR_STRAIGHT)
        difference = _difference(one, [reg.solution for reg in fits], unit, units, predictions=same)
        if difference:
            return Verdict("broken law", fits[0].status_.kind.name, f"{name}: {difference}")
    return Verdict("kept", "")


def _same_problems(trial: Trial) -> dict[str, tuple[Trial, Trial, Array]]:
    """Pairs of problems of one solution, and the factors of the features of the second."""
    rng = np.random.default_rng(trial.seed)
    n, p = trial.X.shape
    ones = np.ones(p)
    order = rng.permutation(n)
    weight = None if trial.weight is None else trial.weight[order]
    result = {"order": (trial, replace(trial, X=trial.X[order], y=trial.y[order], weight=weight), ones)}
    copies = rng.integers(0, 4, n)
    copies[rng.integers(n)] = 1
    repeated = replace(trial, X=trial.X.repeat(copies, 0), y=trial.y.repeat(copies, 0), weight=None)
    result["copies"] = replace(trial, weight=copies.astype(float)), repeated, ones
    if not trial.penalty.l1.any() and not trial.penalty.l2.any() and trial.parameters.get("bounds") is None:
        unit = 2.0 ** rng.integers(-POWERS, POWERS + 1, p)
        result["units"] = trial, replace(trial, X=trial.X * unit), unit
    return result


def _difference(
    trial: Trial, solutions: Sequence[Solution], unit: Array, units: int, *, predictions: bool
) -> str:
    """What two solutions predict differently, the second that of the features times `unit`.

    Predictions may be off by so many units of rounding; without `predictions`, only objectives count.
    """
    one, other = solutions
    for target in range(trial.y.shape[1]):
        exact = Exact(trial, target)
        models = [
            (one.coef[:, target], float(one.intercept[target])),
            (other.coef[:, target] * unit, float(other.intercept[target])),
        ]
        residuals = [exact.residual(*model) for model in models]
        apart = max(abs(a - b) for a, b, w in zip(*residuals, exact.share, strict=True) if w)
        roundings = [exact.rounding_of(*model, units) for model in models]
        low = [exact.objective(*model, slack) for model, slack in zip(models, roundings, strict=True)]
        high = [exact.objective(*model, -slack) for model, slack in zip(models, roundings, strict=True)]
        if max(low[0] - high[1], low[1] - high[0]) > Fraction(LOWER) * exact.of_constant:
            return f"objectives {_text(low[0])} and {_text(low[1])}"
        if not predictions or trial.penalty.l1.any() or trial.penalty.l2.any():
            continue  # which may be too weak to tell optima apart, and keeps their objectives equal
        spread = max(exact.y) - min(exact.y) if trial.fit_intercept else max(map(abs, exact.y))
        if apart > sum(roundings) + Fraction(MOVED) * spread:
            return f"predictions apart by {_rounded(apart):.1e} where y spreads over {_rounded(spread):.1e}"
    return ""


def _fitted(trial: Trial) -> "_Watched | Verdict":
    """The fitted model where it claims an optimum, or what came instead."""
    reg = _Watched(**trial.parameters)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reg.fit(trial.data(), trial.targets, trial.weight)
    except (ValueError, FloatingPointError) as error:
        return Verdict("refused", type(error).__name__, str(error)[:100])
    except Exception as error:  # any other is a fault of ours, to be counted; the trials go on
        return Verdict("error", type(error).__name__, repr(error)[:200])
    status = reg.status_.kind
    if status not in (TRAINED if trial.trains else CLAIMS):
        return Verdict("exempt", status.name)
    return reg


def _scale_of(solution: Solution, target: int) -> float | None:
    return None if solution.scale is None else float(solution.scale[target])


class Exact:
    """The objective of one target, with residuals in rational arithmetic."""

    def __init__(self, trial: Trial, target: int) -> None:
        self.trial = trial
        self.rows = [[Fraction(x) for x in row] for row in trial.X.tolist()]
        self.y = [Fraction(value) for value in trial.y[:, target].tolist()]
        weight = [1.0] * len(self.y) if trial.weight is None else trial.weight.tolist()
        total = sum(Fraction(w) for w in weight)
        self.share = [Fraction(w) / total for w in weight]
        self.loss: Loss = as_loss(trial.parameters["loss"])
        self.penalty = trial.penalty

    def residual(self, coef: Array, intercept: float) -> list[Fraction]:
        """Predictions of float64 coefficients less the targets."""
        used = [(j, Fraction(c)) for j, c in enumerate(coef.tolist()) if c]
        constant = Fraction(intercept)
        return [
            constant + sum(c * row[j] for j, c in used) - y for row, y in zip(self.rows, self.y, strict=True)
        ]

    def rounding_of(self, coef: Array, intercept: float, units: int = PREDICT) -> Fraction:
        """So many units of rounding of the terms of the largest prediction."""
        used = [(j, abs(Fraction(c))) for j, c in enumerate(coef.tolist()) if c]
        largest = max(sum(c * abs(row[j]) for j, c in used) for row in self.rows)
        return units * Fraction(EPS) * (largest + abs(Fraction(intercept)))

    def objective(self, coef: Array, intercept: float, slack: Fraction = NOTHING) -> Fraction:
        """Of float64 coefficients, with predictions moved by up to `slack` nearer, or -`slack` away."""
        residual = self.residual(coef, intercept)
        terms = [Fraction(c) for c in coef.tolist()]
        rest = sum(
            Fraction(l1) * abs(c) + Fraction(l2) / 2 * c * c
            for l1, l2, c in zip(self.penalty.l1.tolist(), self.penalty.l2.tolist(), terms, strict=True)
        )
        value = self._mean_loss(residual)
        if slack > 0:
            value = min(value, self._mean_loss([r - max(-slack, min(slack, r)) for r in residual]))
        elif slack < 0:
            value = max(value, self._mean_loss([r - slack if r > 0 else r + slack for r in residual]))
        return value + rest

    def _mean_loss(self, residual: Sequence[Fraction]) -> Fraction:
        if self.loss.kind == "quadratic":
            return sum((w * r * r for w, r in zip(self.share, residual, strict=True)), NOTHING) / 2
        values = torch.tensor([_rounded(r) for r in residual], dtype=torch.float64)
        if not self.loss.estimates_scale:
            return self._mean_of(values)
        size = float(values.abs().max())
        if size == 0:
            return NOTHING

        share = torch.tensor([_rounded(w) for w in self.share], dtype=torch.float64)

        def at(scale: float) -> float:  # of the largest residual
            unit = values / size / scale
            return scale / 2 + scale * float(share @ self.loss.value(unit, torch.zeros_like(unit)))

        best = minimize_scalar(at, bounds=(LEAST_SCALE, 1), method="bounded", options={"xatol": LEAST_SCALE})
        return Fraction(size) * Fraction(min(best.fun, at(LEAST_SCALE)))

    def _mean_of(self, residual: torch.Tensor) -> Fraction:
        losses = self.loss.value(residual, torch.zeros_like(residual)).tolist()
        if not all(map(math.isfinite, losses)):
            return Fraction(10) ** 400
        return sum((w * Fraction(v) for w, v in zip(self.share, losses, strict=True)), NOTHING)

    @cached_property
    def of_constant(self) -> Fraction:
        """The objective of the best constant."""
        constant = self.best_constant if self.trial.fit_intercept else NOTHING
        return self._mean_loss([constant - y for y in self.y]) * (1 + Fraction(SUMS))

    @property
    def rounding(self) -> Fraction:
        """What rounds predictions as large as the targets."""
        return PREDICT * Fraction(EPS) * max(map(abs, self.y))

    @cached_property
    def best_constant(self) -> Fraction:
        """The prediction of least loss that is the same for all rows."""
        if self.loss.kind == "quadratic":
            return sum((w * y for w, y in zip(self.share, self.y, strict=True)), NOTHING)
        values = [float(value) for value in self.y]
        low, high = min(values), max(values)

        def of(constant: float) -> float:
            return _rounded(self._mean_loss([Fraction(constant) - y for y in self.y]))

        def between(share: float) -> float:
            return low + share * (high - low)

        if self.loss.kind == "piecewise_linear":
            kinks = self.loss.pieces().positions
            return Fraction(min((value + kink for value in values for kink in kinks), key=of))
        low, high = (low - 1, high + 1) if self.trial.loss == "callable" else (low, high)
        candidates = [low, sorted(values)[len(values) // 2], high]
        candidates.append(_rounded(sum(w * y for w, y in zip(self.share, self.y, strict=True))))
        unit = of(low) or 1.0
        inside = minimize_scalar(lambda share: of(between(share)) / unit, bounds=(0, 1), method="bounded")
        candidates.append(between(float(inside.x)))
        return Fraction(min(candidates, key=of))

    def check_claim(self, coef: Array, intercept: float, reg: Any) -> str:
        """What is wrong with the optimum that a fit claims; empty where nothing is, or nobody knows."""
        if self.loss.kind != "quadratic" or reg.status_.kind is Status.NEARLY_DEPENDENT:
            return ""
        p = len(coef)
        if not self.penalty.is_ridge or reg.solver_ == "active_set":
            found = self.objective(coef, intercept)
            return self._check_bound(found, reg.status_.optimality) if p <= PIECEWISE else ""
        if p > ELIMINATED or not self.penalty.is_uniform:
            return ""
        alpha = float(self.penalty.l2[0])
        truth = exact_least_squares(
            self.trial.X,
            [[y] for y in self.y],
            self.trial.weight,
            fit_intercept=self.trial.fit_intercept,
            alpha=alpha,
        )
        if truth.rank != reg.rank_ and not alpha:
            return ""  # columns that depend on each other up to rounding
        return self._check_digits(coef, [float(_rounded(value)) for value in truth.coef[0]], reg)

    def check_lower(self, coef: Array, intercept: float, scale: float | None, status: Status) -> str:
        """By how much others find a lower objective than that of a claimed optimum; empty if they do not."""
        constant = self.of_constant
        if not constant:
            return ""
        slack = self.rounding_of(coef, intercept)
        found = self.objective(coef, intercept, slack)
        for name, other, other_intercept in _Polish(self, coef, intercept, scale).candidates():
            units = PREDICT if status is Status.OPTIMAL else DEPENDENT
            other_slack = -self.rounding_of(other, other_intercept, units)
            gap = (found - self.objective(other, other_intercept, other_slack)) / constant
            if gap > LOWER:
                return f"{name} finds an objective lower by {_rounded(gap):.1e}"
        return ""

    def _check_digits(self, coef: Array, truth: list[float], reg: Any) -> str:
        X, y = self.trial.X, np.array([_rounded(value) for value in self.y])
        size = np.abs(X).max(0)
        center = (X / np.where(size > 0, size, 1.0)).mean(0) if self.trial.fit_intercept else 0.0
        reach = np.sqrt(((X / np.where(size > 0, size, 1.0) - center) ** 2).mean(0)) * size
        high = np.abs(y).max() or 1.0
        expected = np.array(truth)
        counted = np.abs(expected / high) * reach > ZERO
        error = np.abs(coef - expected)[counted] / np.abs(expected[counted])
        worst = float(error.max(initial=0.0))
        limit = max(DIGITS, 10 * reg.tol)
        return f"relative error of a coefficient {worst:.1e}" if worst > limit else ""

    def _check_bound(self, found: Fraction, claimed: float | None) -> str:
        least = self._minimum()
        if least is None or claimed is None:
            return "" if claimed is not None else "no optimality"
        unit = max(self.of_constant, found)
        gap = _rounded((found - least) / unit) if unit else 0.0
        if gap <= claimed * (1 + 1e-6) + LEAST_GAP:
            return ""
        return f"objective {gap:.1e} above its optimum, claimed {claimed:.1e}"

    def _minimum(self) -> Fraction | None:
        """The least objective, from all pieces of the penalty; None where columns depend on each other."""
        y = np.array([_rounded(value) for value in self.y])
        trial = self.trial
        exact = ExactElasticNet(trial.X, y, self.penalty, trial.weight, trial.fit_intercept)
        try:
            least, _ = exact.minimum()
        except AssertionError:
            return None
        return Fraction(least)


class _Polish:
    """Optimizers of SciPy that look for a lower objective, from a fit on.

    With `Z` the columns less their means, in units of their largest numbers, `size` that of y, and `b0` and
    `r0` the coefficients and residuals of the fit in these units, those of `b` and of another constant `c`
    are ``r = r0 + Z (b - b0) + c``. An l1 penalty splits `b` into its positive and its negative part.
    """

    def __init__(self, exact: Exact, coef: Array, intercept: float, scale: float | None) -> None:
        self.exact, self.coef, self.intercept = exact, coef, intercept
        n, p = exact.trial.X.shape
        mean = [NOTHING] * p
        if exact.trial.fit_intercept:
            mean = [sum(w * row[j] for w, row in zip(exact.share, exact.rows, strict=True)) for j in range(p)]
        self.mean = mean
        centred = np.array([[_rounded(x - m) for x, m in zip(row, mean, strict=True)] for row in exact.rows])
        largest = np.abs(centred).max(0)
        self.unit = np.where(largest > 0, largest, 1.0)
        self.share = np.array([_rounded(w) for w in exact.share])
        residual = exact.residual(coef, intercept)
        best = exact.best_constant if exact.trial.fit_intercept else NOTHING
        self.size = max(_rounded(max(abs(y - best) for y in exact.y)), np.finfo(float).tiny)
        self.r0 = np.array([_rounded(r / Fraction(self.size)) for r in residual])
        self.null = _rounded(exact.of_constant)
        penalty = exact.penalty
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            unit = self.unit / self.size
            b0, lower, upper = coef * unit, penalty.lower * unit, penalty.upper * unit
            l1, l2 = penalty.l1 / unit / self.null, penalty.l2 / unit**2 / self.null
        constant = np.ones((n, 1)) * exact.trial.fit_intercept
        Z = centred / self.unit
        self.split = bool(l1.any())
        if self.split:
            Z, l1, l2 = np.column_stack([Z, -Z]), np.tile(l1, 2), np.tile(l2, 2)
            lower, upper = (
                np.append(lower.clip(0), (-upper).clip(0)),
                np.append(upper.clip(0), (-lower).clip(0)),
            )
            b0 = np.append(b0.clip(0), (-b0).clip(0))
        self.design = np.column_stack([Z, constant])
        self.start, self.l1, self.l2 = np.append(b0, 0.0), np.append(l1, 0.0), np.append(l2, 0.0)
        self.lower, self.upper = np.append(lower, -np.inf), np.append(upper, np.inf)
        self.r0 = self.r0 - self.design @ self.start
        self.scale = scale

    def candidates(self) -> Iterator[tuple[str, Array, float]]:
        """The optimizers that serve the loss and the penalty, with what they find."""
        if not 0 < self.null < np.inf or not np.isfinite([*self.l1, *self.l2, *self.start]).all():
            return
        kind = self.exact.loss.kind
        if kind == "quadratic" and not self.l1.any():
            yield "lsq_linear", *self._model(self._least_squares())
        elif kind == "piecewise_linear":
            yield "linprog" if not self.l2.any() else "SLSQP", *self._model(self._program())
        else:
            yield "L-BFGS-B", *self._model(self._smooth())

    def _model(self, found: Array) -> tuple[Array, float]:
        """Coefficients and intercept in the user's units."""
        p = len(self.coef)
        change = found - self.start
        moved = change[:p] - change[p : 2 * p] if self.split else change[:p]
        penalty = self.exact.penalty
        coef = np.clip(self.coef + moved / self.unit * self.size, penalty.lower, penalty.upper)
        if not self.exact.trial.fit_intercept:
            return coef, self.intercept
        back = sum(
            m * (Fraction(a) - Fraction(b))
            for m, a, b in zip(self.mean, coef.tolist(), self.coef.tolist(), strict=True)
        )
        return coef, _rounded(
            Fraction(self.intercept) + Fraction(self.size) * Fraction(float(change[-1])) - back
        )

    def _least_squares(self) -> Array:
        root = np.sqrt(self.share)
        # The null objective is that of the residuals in units of `size`, times its square.
        strength = np.sqrt(self.l2 * self.null) / self.size
        matrix = np.vstack([self.design * root[:, None], np.diag(strength)])
        result = lsq_linear(
            matrix,
            np.append(-self.r0 * root, 0 * strength),
            (self.lower, self.upper),
            method="bvls",
            tol=1e-14,
        )
        return np.asarray(result.x)

    def _program(self) -> Array:
        """A bound of each row's loss is a variable, above all lines of the loss."""
        pieces = self.exact.loss.pieces()
        n, k = self.design.shape
        slopes = np.cumsum([pieces.slope, *pieces.jumps])
        at, value = np.array(pieces.positions), self._loss(-np.array(pieces.positions))[0]
        # Lines of t = target - prediction: left of each position, and right of the last.
        lines = [(slopes[i], at[min(i, len(at) - 1)], value[min(i, len(at) - 1)]) for i in range(len(slopes))]
        above = np.vstack([np.column_stack([-m * self.design, -np.eye(n)]) for m, _, _ in lines])
        limit = np.concatenate([m * self.r0 + (m * t - v) / self.size for m, t, v in lines])
        cost = np.concatenate([self.l1, self.share * self.size / self.null])
        bounds = [*zip(self.lower, self.upper, strict=True), *[(None, None)] * n]
        if not self.l2.any():
            result = linprog(cost, above, limit, bounds=bounds, method="highs")
            return self.start if result.x is None else result.x[:k]
        begin = np.append(
            self.start, self._loss(self.size * (self.r0 + self.design @ self.start))[0] / self.size
        )
        square = np.append(self.l2, np.zeros(n))
        result = minimize(
            lambda z: (cost @ z + square @ z**2 / 2, cost + square * z),
            begin,
            jac=True,
            method="SLSQP",
            bounds=bounds,
            constraints={"type": "ineq", "fun": lambda z: limit - above @ z, "jac": lambda z: -above},
            options={"ftol": 1e-13},
        )
        return np.asarray(result.x[:k])

    def _smooth(self) -> Array:
        k = len(self.start)
        least = LEAST_SCALE * np.abs(self.r0 + self.design @ self.start).max()
        with_scale = self.exact.loss.estimates_scale
        start, bounds = self.start, list(zip(self.lower, self.upper, strict=True))
        if with_scale:
            start = np.append(start, max((self.scale or 0.0) / self.size, least))
            bounds.append((max(least, np.finfo(float).tiny), None))

        def of(z: Array) -> tuple[float, Array]:
            scale = z[k] * self.size if with_scale else 1.0
            residual = self.size * (self.r0 + self.design @ z[:k])
            value, slope = self._loss(residual / scale)
            total = scale * (self.share @ value + 0.5 * with_scale) / self.null
            gradient = self.design.T @ (self.share * slope) * self.size / self.null
            rest = self.l1 @ z[:k] + self.l2 @ z[:k] ** 2 / 2
            gradient += self.l1 + self.l2 * z[:k]
            if with_scale:
                by_scale = 0.5 + self.share @ (value - slope * residual / scale)
                gradient = np.append(gradient, by_scale * self.size / self.null)
            return float(total + rest), gradient

        options = {"ftol": 1e-15, "gtol": 1e-12, "maxiter": 300, "maxls": 50}
        return np.asarray(
            minimize(of, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x[:k]
        )

    def _loss(self, residual: Array) -> tuple[Array, Array]:
        """Values and derivatives."""
        prediction = torch.from_numpy(residual.copy())
        zeros = torch.zeros_like(prediction)
        loss = self.exact.loss
        return loss.value(prediction, zeros).numpy(), loss.derivative(prediction, zeros).numpy()


def _rounded(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def _text(value: Fraction) -> str:
    rounded = _rounded(value)
    return f"{rounded:.17g}"


# Command line


def _judged(seed: int, *, alone: bool) -> tuple[Trial, Verdict]:
    trial = make_trial(seed)
    verdict = judge(trial, look_lower=not alone)
    if not alone and verdict.outcome == "kept":
        laws = judge_laws(trial)
        verdict = laws if laws.is_broken else verdict
    return trial, verdict


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line.

    Parameters
    ----------
    arguments : sequence of str, default=None
        In place of those of the command line.

    Returns
    -------
    int
        The exit status: 1 if a guard was broken.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guards", description=__doc__)
    parser.add_argument("--n", type=int, default=1000, help="how many problems (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first problem (0)")
    parser.add_argument("--alone", action="store_true", help="without SciPy and the laws")
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    parser.add_argument("--show", type=int, default=20, help="how many that fail are printed (20)")
    parser.add_argument("--output", type=Path, default=None, help="JSON file (none)")
    options = parser.parse_args(arguments)
    outcomes: Counter[tuple[str, str]] = Counter()
    broken: list[dict[str, Any]] = []
    seeds = range(options.seed, options.seed + options.n)
    judged = Parallel(n_jobs=options.jobs, return_as="generator")(
        delayed(_judged)(seed, alone=options.alone) for seed in seeds
    )
    for trial, verdict in judged:
        outcomes[trial.family, verdict.outcome] += 1
        if verdict.is_broken:
            broken.append({"trial": str(trial), **asdict(verdict)})
            if len(broken) <= options.show:
                print(f"{trial}\n    {verdict.outcome}, {verdict.status}: {verdict.detail}", flush=True)
    names = sorted({outcome for _, outcome in outcomes})
    print(f"{'':20}" + "".join(f"{name:>20}" for name in names))
    for family in (*FAMILIES, None):
        counts = [
            sum(n for (f, o), n in outcomes.items() if o == name and family in (f, None)) for name in names
        ]
        print(f"{family or 'all':20}" + "".join(f"{n:20}" for n in counts))
    if options.output is not None:
        counted = [{"family": f, "outcome": o, "n": n} for (f, o), n in sorted(outcomes.items())]
        report = {
            "format": 1,
            "environment": describe(),
            "n": options.n,
            "seed": options.seed,
            "alone": options.alone,
            "outcomes": counted,
            "broken": broken,
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=1) + "\n")
        print(f"written to {options.output}")
    return 1 if broken else 0


if __name__ == "__main__":
    from benchmarks import guards  # whose functions other processes find

    sys.exit(guards.main())
