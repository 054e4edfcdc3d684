"""The truths that the other tests rely on: exact, and the ones that NIST certifies."""

import csv
import json
from decimal import Decimal
from fractions import Fraction
from math import inf, lcm, nan

import numpy as np
import pytest

from benchmarks.exact import exact_least_squares
from benchmarks.problems import DATA, Problem, all_problems, correct_digits

Rows = list[list[Fraction]]

PROBLEMS = {problem.name: problem for problem in all_problems()}
NIST = json.loads((DATA / "nist_strd" / "certified.json").read_text())
TUTORIALS = json.loads((DATA / "tutorial_truths.json").read_text())


def is_printed_as(exact: Fraction, printed: str) -> bool:
    """Whether a fraction rounds to a published decimal of 15 digits or more, or is equal to it."""
    _, digits, exponent = Decimal(printed).as_tuple()
    error = abs(exact - Fraction(printed))
    assert isinstance(exponent, int)  # a number, no NaN or infinity
    unit = Fraction(10) ** exponent
    return error == 0 or (len(digits) >= 15 and error <= unit / 2)


def rows_over_one_denominator(rows: Rows) -> tuple[list[list[int]], int]:
    """Integers, and the number that they must be divided by."""
    unit = lcm(*(value.denominator for row in rows for value in row))
    return [[int(value * unit) for value in row] for row in rows], unit


def rational_arrays(problem: Problem) -> tuple[Rows, Rows, list[Fraction]]:
    """Columns, targets and weights as fractions."""
    X = [[Fraction(value) for value in row] for row in problem.X.tolist()]
    y = [[Fraction(value) for value in row] for row in problem.y.reshape(len(X), -1).tolist()]
    weight = [Fraction(1)] * len(X)
    if problem.sample_weight is not None:
        weight = [Fraction(value) for value in problem.sample_weight.tolist()]
    return X, y, weight


def null_space(rows: Rows) -> Rows:
    """A basis of the vectors that all rows are orthogonal to, by exact row reduction."""
    rows = [list(row) for row in rows]
    n_columns = len(rows[0])
    pivots: list[int] = []
    for column in range(n_columns):
        below = next((i for i in range(len(pivots), len(rows)) if rows[i][column]), None)
        if below is None:
            continue
        top = len(pivots)
        rows[top], rows[below] = rows[below], rows[top]
        rows[top] = [value / rows[top][column] for value in rows[top]]
        for i, row in enumerate(rows):
            if i != top and row[column]:
                rows[i] = [a - row[column] * b for a, b in zip(row, rows[top], strict=True)]
        pivots.append(column)
    basis = []
    for free in set(range(n_columns)) - set(pivots):
        vector = [Fraction(0)] * n_columns
        vector[free] = Fraction(1)
        for row, pivot in zip(rows, pivots, strict=False):
            vector[pivot] = -row[free]
        basis.append(vector)
    return basis


@pytest.mark.parametrize("name", PROBLEMS)
def test_truth_is_stationary(name: str) -> None:
    """Exactly: X' W r = alpha * sum(w) * coef, and 1' W r = 0 with an intercept."""
    problem = PROBLEMS[name]
    X, Y, weight = rational_arrays(problem)
    columns, x_unit = rows_over_one_denominator(X)
    for target, (coef, intercept) in enumerate(zip(problem.coef, problem.intercept, strict=True)):
        # residual * unit in integers, which are far quicker than fractions of this length
        (slopes,), slope_unit = rows_over_one_denominator([[b / x_unit for b in coef]])
        rest = [[row[target] - intercept] for row in Y]
        rest_integers, rest_unit = rows_over_one_denominator(rest)
        weights, _ = rows_over_one_denominator([weight])
        unit = lcm(slope_unit, rest_unit)
        residual = [
            r[0] * (unit // rest_unit)
            - sum(x * b for x, b in zip(row, slopes, strict=True)) * (unit // slope_unit)
            for row, r in zip(columns, rest_integers, strict=True)
        ]
        weighted = [w * r for w, r in zip(weights[0], residual, strict=True)]
        penalty = Fraction(problem.alpha) * sum(weights[0]) * unit * x_unit
        for j, b in enumerate(coef):
            gradient = sum(row[j] * r for row, r in zip(columns, weighted, strict=True))
            assert gradient == penalty * b
        if problem.fit_intercept:
            assert sum(weighted) == 0
        else:
            assert intercept == 0


@pytest.mark.parametrize("name", [n for n, p in PROBLEMS.items() if p.alpha == 0])
def test_truth_has_least_norm_and_rank(name: str) -> None:
    """The coefficients are orthogonal to everything that leaves the fitted values as they are."""
    problem = PROBLEMS[name]
    X, _, weight = rational_arrays(problem)
    used = [row for row, w in zip(X, weight, strict=True) if w > 0]
    if problem.fit_intercept:
        used = [[x - x_0 for x, x_0 in zip(row, used[0], strict=True)] for row in used]
    free = null_space(used)
    assert problem.rank == problem.X.shape[1] - len(free)
    for vector in free:
        for coef in problem.coef:
            assert sum(a * b for a, b in zip(vector, coef, strict=True)) == 0


@pytest.mark.parametrize("name", NIST)
def test_nist_truth_is_the_published_one(name: str) -> None:
    """Our truth for the float64 design, and the recomputed decimal truth for the certificate."""
    record, problem = NIST[name], PROBLEMS[f"nist-{name}"]
    recomputed = record["recomputed_40_digits"]
    ours = ([problem.intercept[0]] if problem.fit_intercept else []) + [*problem.coef[0]]
    published = recomputed["float64_design"]["estimate"]
    assert len(ours) == len(published)
    assert all(is_printed_as(a, b) for a, b in zip(ours, published, strict=True))

    certified = [parameter["estimate"] for parameter in record["parameters"]]
    exact = [Fraction(estimate) for estimate in recomputed["decimal"]["estimate"]]
    assert all(is_printed_as(a, b) for a, b in zip(exact, certified, strict=True))


@pytest.mark.parametrize("name", NIST)
def test_nist_decimal_truth_from_decimals(name: str) -> None:
    """The exact solver, given the printed decimals and exact powers, gives the certificate."""
    record = NIST[name]
    model = record["model"]
    with (DATA / record["file"]).open(newline="") as file:
        rows = [[Fraction(row[key]) for key in record["columns"]] for row in csv.DictReader(file)]
    X = [row[1:] for row in rows]
    if model["type"] == "polynomial":
        X = [[x**k for k in range(1, model["degree"] + 1)] for (x,) in X]
    truth = exact_least_squares(X, [row[:1] for row in rows], fit_intercept=model["fit_intercept"])
    ours = ([truth.intercept[0]] if model["fit_intercept"] else []) + [*truth.coef[0]]
    published = record["recomputed_40_digits"]["decimal"]["estimate"]
    assert all(is_printed_as(a, b) for a, b in zip(ours, published, strict=True))


@pytest.mark.parametrize("file", TUTORIALS)
def test_tutorial_truth_is_the_published_one(file: str) -> None:
    record, stem = TUTORIALS[file]["float64"], file.removesuffix(".csv")
    with_intercept = PROBLEMS[f"tutorial-{stem}"]
    without = PROBLEMS[f"tutorial-{stem}-no_intercept"]
    assert is_printed_as(with_intercept.intercept[0], record["intercept"])
    for ours, published in (
        (with_intercept.coef[0], record["coef"]),
        (without.coef[0], record["no_intercept"]["coef"]),
    ):
        assert all(is_printed_as(a, b) for a, b in zip(ours, published, strict=True))


def test_exact_solver_on_numbers_done_by_hand() -> None:
    fit = exact_least_squares([["0"], ["1"], ["2"]], [["1"], ["2"], ["4"]])
    assert fit.coef == ((Fraction(3, 2),),)
    assert fit.intercept == (Fraction(5, 6),)
    # slope = S_xy / (S_xx + alpha * n) = 3 / (2 + 3)
    ridge = exact_least_squares([["0"], ["1"], ["2"]], [["1"], ["2"], ["4"]], alpha=1)
    assert ridge.coef == ((Fraction(3, 5),),)
    # x and 2 x share a slope of 3/2 in the proportion 1 to 2
    double = exact_least_squares([["0", "0"], ["1", "2"], ["2", "4"]], [["1"], ["2"], ["4"]])
    assert double.coef == ((Fraction(3, 10), Fraction(3, 5)),)
    assert double.rank == 1
    weighted = exact_least_squares([["0"], ["1"], ["9"]], [["1"], ["2"], ["9"]], ["1", "3", "0"])
    assert weighted.coef == ((Fraction(1),),)


@pytest.mark.parametrize(
    ("estimate", "truth", "digits"),
    [
        (1.0, Fraction(1), 16.0),
        (1.001, Fraction(1), 3.0),
        (-1.0, Fraction(1), 0.0),
        (2.5, Fraction(1), 0.0),
        (nan, Fraction(1), 0.0),
        (inf, Fraction(1), 0.0),
        (1e-300, Fraction(1, 10**300), 15.95),
        (0.0, Fraction(1, 10**300), 0.0),
    ],
)
def test_correct_digits(estimate: float, truth: Fraction, digits: float) -> None:
    assert correct_digits(estimate, truth) == pytest.approx(digits, abs=0.06 if digits > 15 else 1e-9)


def test_correct_digits_of_a_zero_truth_are_relative_to_the_scale() -> None:
    assert correct_digits(1e-6, Fraction(0), scale=1e3) == pytest.approx(9.0)
    assert correct_digits(0.0, Fraction(0), scale=1e3) == 16.0


def test_nearest_numbers_have_all_digits() -> None:
    """The exact solution rounded to the results' type reaches the digits due."""
    for problem in PROBLEMS.values():
        coef = np.array([[float(value) for value in row] for row in problem.coef])
        intercept = np.array([float(value) for value in problem.intercept])
        dtype = problem.X.dtype
        digits = problem.digits(coef.astype(dtype), intercept.astype(dtype))
        assert digits.least >= problem.digits_due, problem.name


def test_names_are_unique_and_families_known() -> None:
    names = [problem.name for problem in all_problems()]
    assert len(set(names)) == len(names)
    assert all(name.startswith(PROBLEMS[name].family) for name in names)


def test_conditions_are_what_the_names_say() -> None:
    for exponent in range(2, 15, 2):
        for label in ("small", "large"):
            problem = PROBLEMS[f"condition-1e{exponent}-{label}_residual"]
            assert 0.1 < problem.condition / 10.0**exponent < 10.0
