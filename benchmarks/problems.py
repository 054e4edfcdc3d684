"""Least squares problems whose exact solution is known.

A problem is a set of floating-point arrays; its truth is the exact solution for *those* numbers,
a rational number for each coefficient. It does not depend on how the arrays came about, so the
battery may be built with ordinary random numbers and ordinary rounding.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.exact import exact_least_squares
from torchlinreg.datasets import load_hubble, load_perceptron25, load_plant_richness

DATA = Path(__file__).parent / "data"
MAX_DIGITS = 16.0

# By their names in `data/tutorial_truths.json`.
TUTORIAL_LOADERS = {
    "plant_richness_lr.csv": load_plant_richness,
    "plant_richness_mlr.csv": partial(load_plant_richness, covariates=True),
    "hubble_freedman24.csv": partial(load_hubble, version="freedman24"),
    "hubble_freedman23.csv": partial(load_hubble, version="freedman23"),
    "hubble1929.csv": partial(load_hubble, version="1929"),
    "perceptron25.csv": load_perceptron25,
}

Array = np.ndarray


class Digits(NamedTuple):
    """Correct digits: the least over the coefficients, and the least over the intercepts."""

    coef: float
    intercept: float

    @property
    def least(self) -> float:
        """The least over everything that was fitted."""
        return min(self)


@dataclass(frozen=True, eq=False)
class Problem:
    """A least squares or ridge problem and its exact solution.

    The objective is ``sum_i w_i r_i^2 / (2 sum_i w_i) + alpha / 2 * sum_j coef_j^2`` with
    residuals ``r = y - X @ coef - intercept``; where that leaves the coefficients open the truth
    is the one with the least ``sum_j coef_j^2``.

    Parameters
    ----------
    name : str
        Unique name, beginning with the family's.
    family : str
        What the problem is about.
    X : ndarray of shape (n_samples, n_features)
        Columns, float64 or float32, read-only.
    y : ndarray of shape (n_samples,) or (n_samples, n_targets)
        Target or targets, of the same type.
    sample_weight : ndarray of shape (n_samples,) or None
        Weights; None is weight 1 for every row.
    fit_intercept : bool
        Whether the model has an intercept.
    alpha : float
        Strength of the ridge penalty.
    coef : tuple of tuples of Fraction, n_targets by n_features
        The exact coefficients.
    intercept : tuple of Fraction, of length n_targets
        The exact intercepts, zero without one.
    rank : int
        Exact rank of the weighted columns, centred if there is an intercept.
    polynomial_degree : int or None
        Where the columns are the powers 1 to this degree of the first column, that degree.
    """

    name: str
    family: str
    X: Array = field(repr=False)
    y: Array = field(repr=False)
    sample_weight: Array | None = field(repr=False)
    fit_intercept: bool
    alpha: float
    coef: tuple[tuple[Fraction, ...], ...] = field(repr=False)
    intercept: tuple[Fraction, ...] = field(repr=False)
    rank: int
    polynomial_degree: int | None

    @property
    def determined(self) -> bool:
        """Whether one solution only is best, so that no choice by least norm is needed."""
        return self.alpha > 0 or self.rank == self.X.shape[1]

    @property
    def digits_due(self) -> float:
        """The digits that a correct program reaches here.

        12 for float64. A float32 result that was rounded once, at the end, is off by up to
        2^-24 in relative terms, that is by 7.22 digits.
        """
        return 7.2 if self.X.dtype == np.float32 else 12.0

    @cached_property
    def condition(self) -> float:
        """Condition number of the (centred, weighted) columns scaled to unit length.

        Singular values beyond the exact rank do not count. In float64, so an indication only;
        the columns are centred exactly, and 1 is given for a matrix of rank 0.
        """
        columns = _centred_columns(self.X, self.sample_weight, self.fit_intercept)
        lengths = np.linalg.norm(columns, axis=0)
        singular = np.linalg.svd(columns[:, lengths > 0] / lengths[lengths > 0], compute_uv=False)
        return float(singular[0] / singular[self.rank - 1]) if self.rank else 1.0

    def digits(self, coef: Array, intercept: Array | float) -> Digits:
        """Correct digits of an estimate.

        Parameters
        ----------
        coef : array of shape (n_features,) or (n_targets, n_features)
            Estimated coefficients.
        intercept : float or array of shape (n_targets,)
            Estimated intercepts.

        Returns
        -------
        Digits
            The least number of correct digits over the coefficients and over the intercepts.

        Notes
        -----
        See `correct_digits`. For a truth of exactly 0 the scale of a coefficient is the range of
        its target over the range of its column, without an intercept the largest absolute value
        of both; the scale of an intercept is the largest absolute target. Rows of weight zero do
        not count and a range of zero is replaced by the largest absolute value, or by 1.
        """
        n_targets, n_features = len(self.coef), len(self.coef[0])
        estimates = np.asarray(coef, dtype=np.float64).reshape(n_targets, n_features)
        intercepts = np.asarray(intercept, dtype=np.float64).reshape(n_targets)
        used = slice(None) if self.sample_weight is None else self.sample_weight > 0
        targets = self.y.reshape(len(self.y), -1)[used].astype(np.float64)
        column_sizes = _sizes(self.X[used].astype(np.float64), centred=self.fit_intercept)
        target_sizes = _sizes(targets, centred=self.fit_intercept)
        return Digits(
            coef=min(
                correct_digits(estimate, truth, scale=target_size / column_size)
                for row, truths, target_size in zip(estimates.tolist(), self.coef, target_sizes, strict=True)
                for estimate, truth, column_size in zip(row, truths, column_sizes, strict=True)
            ),
            intercept=min(
                correct_digits(estimate, truth, scale=target_size)
                for estimate, truth, target_size in zip(
                    intercepts.tolist(), self.intercept, _sizes(targets, centred=False), strict=True
                )
            ),
        )


def correct_digits(estimate: float, truth: Fraction, *, scale: float = 1.0) -> float:
    """Log relative error: the number of correct leading decimal digits.

    Parameters
    ----------
    estimate : float
        The number to judge.
    truth : Fraction
        The exact number.
    scale : float, default=1.0
        What the error is relative to where the truth is exactly 0.

    Returns
    -------
    float
        ``-log10(|estimate - truth| / |truth|)``, between 0 and 16; 16 for an exact hit and 0 for
        a NaN or an infinity. The number nearest to the truth has 15.95 digits or more.

    Examples
    --------
    >>> from fractions import Fraction
    >>> round(correct_digits(0.3333, Fraction(1, 3)), 6)
    4.0
    """
    if not math.isfinite(estimate):
        return 0.0
    error = abs(Fraction(estimate) - truth) / (abs(truth) or Fraction(scale))
    if error <= Fraction(1, 10**16):
        return MAX_DIGITS
    return max(0.0, -math.log10(error)) if error < 1 else 0.0


@cache
def nist_problems() -> tuple[Problem, ...]:
    """Return the eleven NIST StRD sets, polynomials as the float64 matrix of powers.

    Returns
    -------
    tuple of Problem
        The truth is for the float64 numbers (`float64_design` in `data/nist_strd/certified.json`).
    """
    problems = []
    for name, record in json.loads((DATA / "nist_strd" / "certified.json").read_text()).items():
        model = record["model"]
        rows = _read_numbers(DATA / record["file"], record["columns"])
        degree = model["degree"] if model["type"] == "polynomial" else None
        problems.append(
            make_problem(
                f"nist-{name}",
                powers(rows[:, 1], degree) if degree else rows[:, 1:],
                rows[:, 0],
                fit_intercept=model["fit_intercept"],
                polynomial_degree=degree,
            )
        )
    return tuple(problems)


@cache
def tutorial_problems() -> tuple[Problem, ...]:
    """Return the small sets of well-known tutorials, with and without an intercept.

    Returns
    -------
    tuple of Problem
        The truth is for the float64 numbers (`data/tutorial_truths.json`).
    """
    problems = []
    for file, load in TUTORIAL_LOADERS.items():
        X, y = load(return_X_y=True)
        for fit_intercept in (True, False):
            name = Path(file).stem + ("" if fit_intercept else "-no_intercept")
            problems.append(make_problem(f"tutorial-{name}", X, y, fit_intercept=fit_intercept))
    return tuple(problems)


@cache
def battery(seed: int = 0) -> tuple[Problem, ...]:
    """Return the problems made to be hard in one way each.

    Parameters
    ----------
    seed : int, default=0
        Another seed gives other numbers under the same names, to see whether what holds on the
        usual ones holds in general.

    Returns
    -------
    tuple of Problem
        The same on every call; the last bits of the data may differ between machines, and the
        truth with them.
    """
    families = (
        _conditions, _noise, _offsets, _scales, _laeuchli, _hilbert, _monomials, _trends, _weights,
        _targets, _ridge, _one_feature, _wide, _deficient, _perfect, _cancellation, _single,
    )  # fmt: skip
    return tuple(
        problem
        for k, family in enumerate(families)
        for problem in family(np.random.default_rng(1000 * seed + k))
    )


def all_problems() -> tuple[Problem, ...]:
    """Return every problem there is.

    Returns
    -------
    tuple of Problem
        The NIST sets, the tutorials' sets and the battery, under unique names.
    """
    return nist_problems() + tutorial_problems() + battery()


def make_problem(
    name: str,
    X: Array,
    y: Array,
    sample_weight: Array | None = None,
    *,
    fit_intercept: bool = True,
    alpha: float = 0.0,
    polynomial_degree: int | None = None,
) -> Problem:
    """Solve a problem exactly and put both into one record.

    Parameters
    ----------
    name : str
        The problem's name; what comes before the first hyphen is its family.
    X : ndarray of shape (n_samples, n_features)
        Columns; a read-only copy is kept.
    y : ndarray of shape (n_samples,) or (n_samples, n_targets)
        Targets; a read-only copy is kept.
    sample_weight : ndarray of shape (n_samples,), default=None
        Weights.
    fit_intercept : bool, default=True
        Whether the model has an intercept.
    alpha : float, default=0.0
        Strength of the ridge penalty.
    polynomial_degree : int, default=None
        The degree, where the columns are powers of the first.

    Returns
    -------
    Problem
        The problem with its exact solution.
    """
    truth = exact_least_squares(
        X, y.reshape(len(y), -1), sample_weight, fit_intercept=fit_intercept, alpha=alpha
    )
    return Problem(
        name=name,
        family=name.partition("-")[0],
        X=_read_only(X),
        y=_read_only(y),
        sample_weight=None if sample_weight is None else _read_only(sample_weight),
        fit_intercept=fit_intercept,
        alpha=alpha,
        coef=truth.coef,
        intercept=truth.intercept,
        rank=truth.rank,
        polynomial_degree=polynomial_degree,
    )


def powers(x: Array, degree: int) -> Array:
    """Return the powers 1 to degree of x, each rounded once.

    Parameters
    ----------
    x : ndarray of shape (n_samples,)
        Float64 numbers.
    degree : int
        The highest power.

    Returns
    -------
    ndarray of shape (n_samples, degree)
        The float64 numbers nearest to the exact powers.
    """
    exact = [Fraction(value) for value in x.tolist()]
    return np.array([[float(value**k) for k in range(1, degree + 1)] for value in exact])


def _read_numbers(path: Path, columns: list[str]) -> Array:
    with path.open(newline="") as file:
        return np.array([[float(row[name]) for name in columns] for row in csv.DictReader(file)])


def _read_only(values: Array) -> Array:
    copy = np.array(values, order="C")
    copy.setflags(write=False)
    return copy


def _sizes(columns: Array, *, centred: bool) -> list[float]:
    """What a column's numbers are of the order of; never zero."""
    largest = np.abs(columns).max(axis=0)
    sizes = np.ptp(columns, axis=0) if centred else largest
    return np.where(sizes > 0, sizes, np.where(largest > 0, largest, 1.0)).tolist()


def _centred_columns(X: Array, sample_weight: Array | None, fit_intercept: bool) -> Array:
    """sqrt(w) * (X - mean), the means and differences exact until they are rounded once."""
    weights = [Fraction(1)] * len(X)
    if sample_weight is not None:
        weights = [Fraction(value) for value in sample_weight.tolist()]
    columns = []
    for column in X.T.tolist():
        exact = [Fraction(value) for value in column]
        mean = Fraction(0)
        if fit_intercept:
            mean = sum((w * x for w, x in zip(weights, exact, strict=True)), mean) / sum(weights)
        columns.append([float(x - mean) for x in exact])
    return np.sqrt([float(w) for w in weights])[:, None] * np.array(columns).T


# The battery. Problems have 3 to 8 columns and up to 60 rows unless the family says otherwise:
# enough for every numerical difficulty, and few enough to be solved exactly in milliseconds.


def _orthonormal(rng: np.random.Generator, n_rows: int, n_columns: int) -> Array:
    """Random orthonormal columns, orthogonal to the constant."""
    columns = rng.standard_normal((n_rows, n_columns))
    return np.linalg.qr(columns - columns.mean(axis=0))[0]


def _graded(rng: np.random.Generator, n_samples: int, n_features: int, condition: float) -> Array:
    """Centred columns with singular values from 1 down to 1/condition, in a random basis."""
    basis = np.linalg.qr(rng.standard_normal((n_features, n_features)))[0]
    singular = np.sqrt(n_samples) * np.geomspace(1.0, 1.0 / condition, n_features)
    return (_orthonormal(rng, n_samples, n_features) * singular) @ basis.T


def _orthogonal_residual(rng: np.random.Generator, X: Array) -> Array:
    """Unit-sized noise that the columns and the intercept explain nothing of.

    Its least squares residual, computed exactly: a float projection leaves a rest that
    ill-conditioned columns turn into huge coefficients.
    """
    noise = rng.standard_normal(len(X)).tolist()
    (coef,), (intercept,), _ = exact_least_squares(X, [[value] for value in noise])
    return np.array(
        [
            float(Fraction(value) - intercept - sum(b * Fraction(x) for b, x in zip(coef, row, strict=True)))
            for value, row in zip(noise, X.tolist(), strict=True)
        ]
    )


def _conditions(rng: np.random.Generator) -> Iterator[Problem]:
    """Ill-conditioned columns and moderate coefficients; the residual is small or large."""
    for exponent in range(2, 15, 2):
        for size, label in ((1e-6, "small"), (1.0, "large")):
            X = _graded(rng, 60 - 2 * exponent, 3 + exponent // 3, 10.0**exponent)
            y = 2.0 + X @ rng.standard_normal(X.shape[1]) + size * _orthogonal_residual(rng, X)
            yield make_problem(f"condition-1e{exponent}-{label}_residual", X, y)


def _noise(rng: np.random.Generator) -> Iterator[Problem]:
    """Ill-conditioned columns that are fitted to noise, so that the coefficients are huge."""
    for exponent in (4, 8, 12, 14):
        X = _graded(rng, 40, 5, 10.0**exponent)
        yield make_problem(f"noise-1e{exponent}", X, rng.standard_normal(40))


def _offsets(rng: np.random.Generator) -> Iterator[Problem]:
    """Columns of unit spread far from zero."""
    for exponent in (3, 6, 9):
        X = 10.0**exponent + rng.standard_normal((50, 4))
        signal = (X - 10.0**exponent) @ np.array([1.0, -2.0, 0.5, 3.0])
        noise = rng.standard_normal(50)
        yield make_problem(f"offset-1e{exponent}-columns", X, signal + noise)
        # The two means are about equal, and the intercept is the little that remains of them.
        yield make_problem(f"offset-1e{exponent}-both", X, X @ np.array([1.0, -2.0, 0.5, 3.0]) + noise)
        yield make_problem(f"offset-1e{exponent}-no_intercept", X, signal + noise, fit_intercept=False)
    X = rng.standard_normal((50, 4))
    yield make_problem("offset-1e9-target", X, 1e9 + X.sum(axis=1) + rng.standard_normal(50))
    X = rng.standard_normal((50, 4)) + np.array([0.0, 1e3, -1e6, 1e9])
    yield make_problem("offset-mixed", X, rng.standard_normal(50))


def _scales(rng: np.random.Generator) -> Iterator[Problem]:
    """Columns and targets in very different units."""
    units = 10.0 ** np.arange(-12, 13, 4)
    X = rng.standard_normal((40, 7)) + 0.5
    y = X.sum(axis=1) + rng.standard_normal(40)
    yield make_problem("scale-1e-12_to_1e12", X * units, y)
    yield make_problem("scale-1e-12_to_1e12-no_intercept", X * units, y, fit_intercept=False)
    yield make_problem("scale-1e-12_to_1e12-reversed", X * units[::-1], y)
    yield make_problem("scale-all_1e-12", X * 1e-12, y)
    yield make_problem("scale-all_1e12", X * 1e12, y)
    yield make_problem("scale-target_1e-12", X, y * 1e-12)
    yield make_problem("scale-target_1e12", X, y * 1e12)
    yield make_problem("scale-1e-100_to_1e100", X[:, :3] * np.array([1e-100, 1.0, 1e100]), y)
    ill = _graded(rng, 40, 7, 1e6)
    yield make_problem("scale-1e-12_to_1e12-condition_1e6", ill * units, y)


def _laeuchli(rng: np.random.Generator) -> Iterator[Problem]:
    """A row of ones above eps * I (Laeuchli, 1961), where a float Gram matrix may be singular."""
    for exponent in (4, 6, 8, 10):
        X = np.vstack([np.ones(4), 10.0**-exponent * np.eye(4)])
        yield make_problem(
            f"laeuchli-1e-{exponent}-no_intercept", X, rng.standard_normal(5), fit_intercept=False
        )
        twice = np.vstack([X, 2.0 * X])
        yield make_problem(f"laeuchli-1e-{exponent}", twice, rng.standard_normal(10))


def _hilbert(rng: np.random.Generator) -> Iterator[Problem]:
    """Columns 1 / (i + j + 1)."""
    for n_features in (4, 6, 8):
        i, j = np.indices((30, n_features))
        X, y = 1.0 / (i + j + 1.0), rng.standard_normal(30)
        yield make_problem(f"hilbert-{n_features}", X, y)
        yield make_problem(f"hilbert-{n_features}-no_intercept", X, y, fit_intercept=False)


def _monomials(rng: np.random.Generator) -> Iterator[Problem]:
    """Powers of one variable, each rounded once."""
    grids = {
        "0_to_1": (np.linspace(0.0, 1.0, 41), (5, 8, 10)),
        "-1_to_1": (np.linspace(-1.0, 1.0, 41), (10,)),
        "0_to_20": (np.arange(21.0), (5, 10)),
        "10_to_11": (np.linspace(10.0, 11.0, 41), (3, 4)),
        "1950_to_1975": (np.arange(1950.0, 1976.0), (2, 3)),
        "1e-3_to_1e3": (np.geomspace(1e-3, 1e3, 30), (4,)),
    }
    for label, (x, degrees) in grids.items():
        for degree in degrees:
            y = np.cos(3.0 * (x - x[0]) / np.ptp(x)) + 0.1 * rng.standard_normal(len(x))
            yield make_problem(
                f"monomials-{label}-degree_{degree}",
                powers(x, degree),
                y,
                polynomial_degree=degree,
            )


def _trends(rng: np.random.Generator) -> Iterator[Problem]:
    """Columns that all grow with the years, as in Longley's data."""
    for first, n_years in ((1947, 16), (1900, 40)):
        year = np.arange(float(first), float(first + n_years))
        growth = np.exp(0.03 * (year - first))
        X = np.column_stack(
            [
                year,
                np.round(2.3e5 * growth * (1.0 + 0.01 * rng.standard_normal(n_years))),
                np.round(83.0 * growth * (1.0 + 0.01 * rng.standard_normal(n_years)), 1),
                np.round(1.07e5 + 1500.0 * (year - first) + 50.0 * rng.standard_normal(n_years)),
            ]
        )
        y = np.round(6.0e4 + 600.0 * (year - first) + 300.0 * rng.standard_normal(n_years))
        yield make_problem(f"trend-{first}", X, y)
        yield make_problem(f"trend-{first}-no_intercept", X, y, fit_intercept=False)


def _weights(rng: np.random.Generator) -> Iterator[Problem]:
    """Weighted rows, some of weight zero."""
    X = rng.standard_normal((50, 4))
    y = X.sum(axis=1) + rng.standard_normal(50)
    some_zero = rng.uniform(0.5, 2.0, 50) * (rng.random(50) > 0.3)
    yield make_problem("weighted-integers", X, y, rng.integers(1, 6, 50).astype(np.float64))
    yield make_problem("weighted-zeros", X, y, some_zero)
    yield make_problem("weighted-zeros-no_intercept", X, y, some_zero, fit_intercept=False)
    # The rows of weight zero would ruin everything if they were counted.
    wild = np.where(some_zero[:, None] > 0, X, 1e12 * X)
    yield make_problem("weighted-zeros-wild_rows", wild, y, some_zero)
    yield make_problem("weighted-1e-3_to_1e3", X, y, 10.0 ** rng.uniform(-3.0, 3.0, 50))
    yield make_problem("weighted-1e-8_to_1e8", X, y, 10.0 ** rng.uniform(-8.0, 8.0, 50))
    yield make_problem("weighted-all_1e-12", X, y, 1e-12 * rng.uniform(0.5, 2.0, 50))
    yield make_problem("weighted-offset_1e6", 1e6 + X, y, 10.0 ** rng.uniform(-3.0, 3.0, 50))
    ill = _graded(rng, 50, 5, 1e8)
    yield make_problem("weighted-condition_1e8", ill, y, rng.uniform(0.5, 2.0, 50))
    yield make_problem(
        "weighted-monomials",
        powers(np.linspace(0.0, 1.0, 50), 6),
        y,
        10.0 ** rng.uniform(-2.0, 2.0, 50),
        polynomial_degree=6,
    )


def _targets(rng: np.random.Generator) -> Iterator[Problem]:
    """Three targets."""
    X = rng.standard_normal((40, 4))
    Y = X @ rng.standard_normal((4, 3)) + rng.standard_normal((40, 3))
    yield make_problem("targets-plain", X, Y)
    yield make_problem("targets-units", X, Y * np.array([1e-9, 1.0, 1e9]))
    yield make_problem("targets-offset_1e6", 1e6 + X, Y + np.array([0.0, 1e6, -1e6]))
    yield make_problem("targets-condition_1e10", _graded(rng, 40, 6, 1e10), Y)
    yield make_problem("targets-weighted", X, Y, rng.uniform(0.1, 10.0, 40))
    integers = rng.integers(-9, 10, (40, 4)).astype(np.float64)
    exact = integers @ np.array([1.0, -2.0, 3.0, 4.0])
    constant = np.full(40, 7.0)
    yield make_problem("targets-constant_and_exact", integers, np.column_stack([Y[:, 0], constant, exact]))


def _ridge(rng: np.random.Generator) -> Iterator[Problem]:
    """Penalised coefficients, with an intercept that is not."""
    X = rng.standard_normal((40, 4)) + 0.5
    y = 1.0 + X.sum(axis=1) + rng.standard_normal(40)
    for alpha in (1e-6, 1e-2, 1.0, 1e3):
        yield make_problem(f"ridge-alpha_{alpha:g}", X, y, alpha=alpha)
    yield make_problem("ridge-no_intercept", X, y, alpha=0.1, fit_intercept=False)
    yield make_problem("ridge-weighted", X, y, rng.uniform(0.1, 10.0, 40), alpha=0.1)
    yield make_problem("ridge-offset_1e6", 1e6 + X, y, alpha=0.1)
    yield make_problem("ridge-units", X * np.array([1e-6, 1.0, 1e3, 1e6]), y, alpha=0.1)
    Y = X @ rng.standard_normal((4, 3)) + rng.standard_normal((40, 3))
    yield make_problem("ridge-targets", X, Y, alpha=0.1)
    for exponent in (8, 12):
        ill = _graded(rng, 40, 6, 10.0**exponent)
        yield make_problem(f"ridge-condition_1e{exponent}", ill, y, alpha=10.0 ** (4 - 2 * exponent))
    yield make_problem("ridge-duplicates", X[:, [0, 1, 0, 2, 1]], y, alpha=1e-3)
    wide = rng.standard_normal((8, 15))
    yield make_problem("ridge-wide", wide, rng.standard_normal(8), alpha=1e-3)


def _one_feature(rng: np.random.Generator) -> Iterator[Problem]:
    """A line."""
    x = rng.uniform(0.0, 10.0, (30, 1))
    y = 3.0 - 0.7 * x[:, 0] + rng.standard_normal(30)
    yield make_problem("line-plain", x, y)
    yield make_problem("line-no_intercept", x, y, fit_intercept=False)
    yield make_problem("line-offset_1e9", x + 1e9, y)
    yield make_problem("line-two_rows", x[:2], y[:2])
    yield make_problem("line-one_row", x[:1], y[:1])


def _wide(rng: np.random.Generator) -> Iterator[Problem]:
    """Fewer rows than columns: the coefficients of least norm."""
    for n_samples, n_features in ((5, 12), (10, 25)):
        X, y = rng.standard_normal((n_samples, n_features)), rng.standard_normal(n_samples)
        yield make_problem(f"wide-{n_samples}x{n_features}", X, y)
        yield make_problem(f"wide-{n_samples}x{n_features}-no_intercept", X, y, fit_intercept=False)
    X, Y = rng.standard_normal((6, 10)), rng.standard_normal((6, 3))
    yield make_problem("wide-targets", X, Y)
    yield make_problem("wide-offset_1e6", 1e6 + X, Y[:, 0])
    yield make_problem("wide-weighted", X, Y[:, 0], 10.0 ** rng.uniform(-3.0, 3.0, 6))
    yield make_problem("wide-units", X * 10.0 ** np.linspace(-4.0, 4.0, 10), Y[:, 0])
    steep = np.linalg.qr(rng.standard_normal((10, 5)))[0] * np.geomspace(1.0, 1e-6, 5)
    yield make_problem("wide-condition_1e6", rng.standard_normal((5, 5)) @ steep.T, Y[:5, 0])


def _deficient(rng: np.random.Generator) -> Iterator[Problem]:
    """Columns that depend on each other exactly: the coefficients of least norm."""
    X = rng.integers(-50, 51, (40, 4)).astype(np.float64)
    y = X.sum(axis=1) + rng.standard_normal(40)
    duplicated = X[:, [0, 1, 0, 2, 3, 1]]
    combined = np.column_stack([X, X @ np.array([1.0, 2.0, 0.0, -3.0]), X[:, 0] - X[:, 1]])
    yield make_problem("deficient-duplicates", duplicated, y)
    yield make_problem("deficient-duplicates-no_intercept", duplicated, y, fit_intercept=False)
    yield make_problem("deficient-duplicates-real", rng.standard_normal((40, 2))[:, [0, 1, 0]], y)
    yield make_problem("deficient-duplicates-offset_1e6", duplicated + 1e6, y)
    yield make_problem("deficient-multiples", X[:, [0, 1, 0]] * np.array([1.0, 1.0, 1024.0]), y)
    yield make_problem("deficient-combinations", combined, y)
    yield make_problem("deficient-combinations-weighted", combined, y, rng.uniform(0.1, 10.0, 40))
    yield make_problem("deficient-combinations-targets", combined, np.column_stack([y, X[:, 0], -y]))
    yield make_problem("deficient-constant", np.column_stack([X, np.full(40, 0.1)]), y)
    yield make_problem(
        "deficient-constant-no_intercept",
        np.column_stack([X, np.full(40, 0.1), np.full(40, 0.2)]),
        y,
        fit_intercept=False,
    )
    yield make_problem("deficient-zero_column", np.column_stack([X, np.zeros(40)]), y)
    yield make_problem("deficient-all_constant", np.full((20, 2), 0.3), y[:20])
    levels = np.eye(4)[rng.integers(0, 4, 40)]
    yield make_problem("deficient-levels", np.column_stack([levels, X[:, 0] / 16.0]), y)
    few = rng.integers(-9, 10, (4, 6)).astype(np.float64)[rng.integers(0, 4, 20)]
    yield make_problem("deficient-few_distinct_rows", few, y[:20])
    hidden = np.column_stack([X, X[:, 0]])
    hidden[:5, 4] += 1.0
    yield make_problem("deficient-by_weight", hidden, y, (np.arange(40) >= 5).astype(np.float64))


def _perfect(rng: np.random.Generator) -> Iterator[Problem]:
    """Targets that the columns explain without any residual."""
    X = rng.integers(-99, 100, (30, 5)).astype(np.float64)
    yield make_problem("perfect-integers", X, 12.0 + X @ np.array([3.0, -1.0, 4.0, 1.0, -5.0]))
    x = np.arange(21.0)
    design = powers(x, 5)
    yield make_problem("perfect-monomials", design, 1.0 + design.sum(axis=1), polynomial_degree=5)
    yield make_problem("perfect-offset_1e6", 1e6 + X, X @ np.array([3.0, -1.0, 4.0, 1.0, -5.0]))
    # As many rows as there are coefficients and intercept.
    yield make_problem("perfect-saturated", rng.standard_normal((6, 5)), rng.standard_normal(6))
    yield make_problem("perfect-saturated_1e10", _graded(rng, 6, 5, 1e10), rng.standard_normal(6))


def _cancellation(rng: np.random.Generator) -> Iterator[Problem]:
    """An intercept far smaller than the mean of the target."""
    for exponent in (3, 6, 9):
        X = rng.uniform(50.0, 150.0, (40, 3))
        y = X @ np.array([1.0, 2.0, -0.5]) + _orthogonal_residual(rng, X)
        yield make_problem(f"cancellation-1e-{exponent}", X, y + 10.0**-exponent * y.mean())


def _single(rng: np.random.Generator) -> Iterator[Problem]:
    """Float32 arrays: the truth is for the float32 numbers, the result is a float32 too."""
    X = rng.standard_normal((50, 4))
    y = 1.0 + X.sum(axis=1) + rng.standard_normal(50)
    weight = rng.uniform(0.1, 10.0, 50)
    cases = {
        "plain": (X, y),
        "no_intercept": (X, y),
        "weighted": (X, y),
        "ridge": (X, y),
        "offset_1e3": (1e3 + X, y),
        "units": (X * np.array([1e-6, 1e-2, 1e2, 1e6]), y),
        "condition_1e3": (_graded(rng, 50, 5, 1e3), y),
        "condition_1e6": (_graded(rng, 50, 5, 1e6), y),
        "duplicates": (X[:, [0, 1, 0, 2]], y),
        "wide": (X[:6].reshape(3, 8), y[:3]),
        "targets": (X, np.column_stack([y, -2.0 * y + X[:, 0], X[:, 1] ** 2])),
    }
    for label, (columns, target) in cases.items():
        yield make_problem(
            f"float32-{label}",
            columns.astype(np.float32),
            target.astype(np.float32),
            weight.astype(np.float32) if label == "weighted" else None,
            fit_intercept=label != "no_intercept",
            alpha=0.125 if label == "ridge" else 0.0,
        )
