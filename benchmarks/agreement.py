"""How many digits torchlinreg and its rivals get right, against exact truths.

Run ``python -m benchmarks.agreement --output benchmarks/results/agreement.json``.

Every method solves every problem that its interface can state: without an intercept of its own a
method gets a column of ones, without weights it gets rows times the square root of the weight. A
method that has no way to pose a problem has no figure there (null), rather than 0 digits: ridge
for those without a penalty; rank-deficient columns for those that do not choose the solution of
least norm, or that count the intercept in it. A method that is meant for a problem and fails, by
an exception or by a NaN, has 0 digits.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import torch
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures

from benchmarks.environment import describe
from benchmarks.exact import exact_least_squares
from benchmarks.problems import (
    MAX_DIGITS,
    Digits,
    Problem,
    all_problems,
    make_problem,
    nist_problems,
    tutorial_problems,
)
from torchlinreg import TorchLinearRegressor

Array = np.ndarray


class Estimate(NamedTuple):
    """Coefficients (n_targets, n_features) and intercepts (n_targets,)."""

    coef: Array
    intercept: Array | float


@dataclass(frozen=True)
class Method:
    """A way to fit a problem.

    Parameters
    ----------
    label : str
        Short name, used as the column's heading and as the key in the results.
    description : str
        The call that is made.
    package : str
        The module that must be there.
    fit : callable of Problem returning Estimate
        The fit itself.
    can_do : callable of Problem returning bool
        Whether the method's interface can state the problem.
    reads_x : bool, default=False
        Whether a polynomial is fitted to x itself and not to the matrix of rounded powers; the
        truth is then the one for exact powers.
    """

    label: str
    description: str
    package: str
    fit: Callable[[Problem], Estimate]
    can_do: Callable[[Problem], bool]
    reads_x: bool = False


class Outcome(NamedTuple):
    """What a method made of a problem it can state."""

    digits: Digits
    warned: bool
    error: str | None


def fit_ours(problem: Problem) -> Estimate:
    """Fit `TorchLinearRegressor` with its defaults."""
    return _fit_estimator(
        TorchLinearRegressor(alpha=problem.alpha, fit_intercept=problem.fit_intercept), problem
    )


def fit_linear_regression(problem: Problem) -> Estimate:
    """Fit `LinearRegression` with its defaults."""
    return _fit_estimator(LinearRegression(fit_intercept=problem.fit_intercept), problem)


def fit_linear_regression_tol_0(problem: Problem) -> Estimate:
    """Fit `LinearRegression` without its cut of small singular values."""
    return _fit_estimator(LinearRegression(fit_intercept=problem.fit_intercept, tol=0.0), problem)


def fit_ridge_cholesky(problem: Problem) -> Estimate:
    """Fit `Ridge` by a Cholesky factor."""
    return _fit_ridge(problem, "cholesky")


def fit_ridge_svd(problem: Problem) -> Estimate:
    """Fit `Ridge` by singular values."""
    return _fit_ridge(problem, "svd")


def fit_statsmodels_pinv(problem: Problem) -> Estimate:
    """Fit statsmodels' `OLS` or `WLS` by its default, the pseudo-inverse."""
    return _fit_statsmodels(problem, "pinv")


def fit_statsmodels_qr(problem: Problem) -> Estimate:
    """Fit statsmodels' `OLS` or `WLS` by a QR factorisation."""
    return _fit_statsmodels(problem, "qr")


def fit_numpy_lstsq(problem: Problem) -> Estimate:
    """Solve with `numpy.linalg.lstsq` (LAPACK gelsd)."""
    return _solve_design(problem, lambda design, y: np.linalg.lstsq(design, y, rcond=None)[0])


def fit_scipy_gelsd(problem: Problem) -> Estimate:
    """Solve with `scipy.linalg.lstsq` by gelsd, its default."""
    return _solve_design(problem, lambda design, y: scipy.linalg.lstsq(design, y, lapack_driver="gelsd")[0])


def fit_scipy_gelsy(problem: Problem) -> Estimate:
    """Solve with `scipy.linalg.lstsq` by gelsy."""
    return _solve_design(problem, lambda design, y: scipy.linalg.lstsq(design, y, lapack_driver="gelsy")[0])


def fit_torch_lstsq(problem: Problem) -> Estimate:
    """Solve with `torch.linalg.lstsq` on the CPU by gelsd."""

    def solve(design: Array, y: Array) -> Array:
        columns, targets = torch.tensor(design), torch.tensor(y).reshape(len(y), -1)
        return torch.linalg.lstsq(columns, targets, driver="gelsd").solution.numpy()

    return _solve_design(problem, solve)


def fit_polyfit(problem: Problem) -> Estimate:
    """Fit a polynomial with `numpy.polyfit`, whose weights multiply the residuals."""
    coef = np.polyfit(problem.X[:, 0], problem.y, _degree(problem), w=_root_weight(problem))[::-1]
    return Estimate(coef[None, 1:], coef[0])


def fit_polynomial_class(problem: Problem) -> Estimate:
    """Fit a polynomial with `numpy.polynomial.Polynomial.fit`, converted to powers of x."""
    fitted = np.polynomial.Polynomial.fit(
        problem.X[:, 0], problem.y, _degree(problem), w=_root_weight(problem)
    )
    coef = np.zeros(_degree(problem) + 1)
    converted = fitted.convert().coef
    coef[: len(converted)] = converted
    return Estimate(coef[None, 1:], coef[0])


def fit_ours_behind_features(problem: Problem) -> Estimate:
    """Fit `TorchLinearRegressor` to the polynomial features of x."""
    return _fit_behind_features(TorchLinearRegressor(), problem)


def fit_linear_regression_behind_features(problem: Problem) -> Estimate:
    """Fit `LinearRegression` to the polynomial features of x."""
    return _fit_behind_features(LinearRegression(), problem)


def _fit_estimator(estimator: Any, problem: Problem) -> Estimate:  # Any: scikit-learn is untyped
    estimator.fit(problem.X, problem.y, sample_weight=problem.sample_weight)
    return Estimate(estimator.coef_, estimator.intercept_)


def _fit_behind_features(estimator: Any, problem: Problem) -> Estimate:
    features = PolynomialFeatures(_degree(problem), include_bias=False)
    make_pipeline(features, estimator).fit(problem.X[:, :1], problem.y)
    return Estimate(estimator.coef_, estimator.intercept_)


def _fit_ridge(problem: Problem, solver: str) -> Estimate:
    weight_sum = len(problem.X) if problem.sample_weight is None else problem.sample_weight.sum()
    ridge = Ridge(alpha=problem.alpha * float(weight_sum), fit_intercept=problem.fit_intercept, solver=solver)
    return _fit_estimator(ridge, problem)


def _fit_statsmodels(problem: Problem, method: str) -> Estimate:
    import statsmodels.api as sm

    def solve(design: Array, target: Array) -> Array:
        model = sm.OLS(target, design)
        if problem.sample_weight is not None:
            model = sm.WLS(target, design, weights=problem.sample_weight)
        return np.asarray(model.fit(method=method).params)

    targets = problem.y.reshape(len(problem.y), -1).T
    return _split(problem, np.array([solve(_design(problem), target) for target in targets]))


def _solve_design(problem: Problem, solve: Callable[[Array, Array], Array]) -> Estimate:
    """A least squares solver for a matrix and right-hand sides, without weights or intercept."""
    design, y = _design(problem), problem.y
    root = _root_weight(problem)
    if root is not None:
        design, y = design * root[:, None], (y.T * root).T
    return _split(problem, solve(design, y).reshape(design.shape[1], -1).T)


def _design(problem: Problem) -> Array:
    """The columns, before them one of ones if there is an intercept."""
    ones = np.ones((len(problem.X), 1), dtype=problem.X.dtype)
    return np.hstack([ones, problem.X]) if problem.fit_intercept else problem.X


def _split(problem: Problem, coef: Array) -> Estimate:
    if problem.fit_intercept:
        return Estimate(coef[:, 1:], coef[:, 0])
    return Estimate(coef, np.zeros(len(coef)))


def _root_weight(problem: Problem) -> Array | None:
    return None if problem.sample_weight is None else np.sqrt(problem.sample_weight)


def _degree(problem: Problem) -> int:
    if problem.polynomial_degree is None:
        raise ValueError(f"{problem.name} is no polynomial")
    return problem.polynomial_degree


def _any_problem(problem: Problem) -> bool:
    return True


def _no_penalty(problem: Problem) -> bool:
    return problem.alpha == 0


def _only_penalty(problem: Problem) -> bool:
    return problem.alpha > 0


def _full_rank(problem: Problem) -> bool:
    return problem.alpha == 0 and problem.determined


def _least_norm_without_intercept(problem: Problem) -> bool:
    """A column of ones would count in the norm."""
    return problem.alpha == 0 and (problem.determined or not problem.fit_intercept)


def _polynomial(problem: Problem) -> bool:
    return problem.polynomial_degree is not None and problem.fit_intercept


METHODS = (
    Method("ours", "TorchLinearRegressor()", "torchlinreg", fit_ours, _any_problem),
    Method("LinearReg", "LinearRegression()", "sklearn", fit_linear_regression, _no_penalty),
    Method(
        "LR tol=0",
        "LinearRegression(tol=0)",
        "sklearn",
        fit_linear_regression_tol_0,
        _no_penalty,
    ),
    Method(
        "Ridge chol",
        'Ridge(alpha * sum(w), solver="cholesky")',
        "sklearn",
        fit_ridge_cholesky,
        _only_penalty,
    ),
    Method(
        "Ridge svd",
        'Ridge(alpha * sum(w), solver="svd")',
        "sklearn",
        fit_ridge_svd,
        _only_penalty,
    ),
    Method(
        "sm pinv",
        'statsmodels OLS/WLS.fit(method="pinv")',
        "statsmodels",
        fit_statsmodels_pinv,
        _least_norm_without_intercept,
    ),
    Method(
        "sm qr",
        'statsmodels OLS/WLS.fit(method="qr")',
        "statsmodels",
        fit_statsmodels_qr,
        _full_rank,
    ),
    Method(
        "np lstsq",
        "numpy.linalg.lstsq",
        "numpy",
        fit_numpy_lstsq,
        _least_norm_without_intercept,
    ),
    Method("polyfit", "numpy.polyfit", "numpy", fit_polyfit, _polynomial, reads_x=True),
    Method(
        "Polynomial",
        "numpy.polynomial.Polynomial.fit(...).convert()",
        "numpy",
        fit_polynomial_class,
        _polynomial,
        reads_x=True,
    ),
    Method(
        "sp gelsd",
        'scipy.linalg.lstsq(lapack_driver="gelsd")',
        "scipy",
        fit_scipy_gelsd,
        _least_norm_without_intercept,
    ),
    Method(
        "sp gelsy",
        'scipy.linalg.lstsq(lapack_driver="gelsy")',
        "scipy",
        fit_scipy_gelsy,
        _least_norm_without_intercept,
    ),
    Method(
        "torch lstsq",
        'torch.linalg.lstsq(driver="gelsd"), CPU',
        "torch",
        fit_torch_lstsq,
        _least_norm_without_intercept,
    ),
)


PIPELINED = (
    Method(
        "ours",
        "make_pipeline(PolynomialFeatures(degree, include_bias=False), TorchLinearRegressor())",
        "torchlinreg",
        fit_ours_behind_features,
        _polynomial,
    ),
    Method(
        "LinearReg",
        "make_pipeline(PolynomialFeatures(degree, include_bias=False), LinearRegression())",
        "sklearn",
        fit_linear_regression_behind_features,
        _polynomial,
    ),
)


def judge(method: Method, problem: Problem) -> Outcome | None:
    """Fit a problem by a method and count the correct digits.

    Parameters
    ----------
    method : Method
        The method.
    problem : Problem
        The problem.

    Returns
    -------
    Outcome or None
        None where the method cannot state the problem. An exception of the fit counts as 0
        digits and is named in `error`.
    """
    if not method.can_do(problem):
        return None
    truth = _with_exact_powers(problem) if method.reads_x else problem
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            estimate = method.fit(problem)
        except Exception as error:  # a rival may fail in any way; the table says that it did
            return Outcome(Digits(0.0, 0.0), bool(caught), type(error).__name__)
    return Outcome(truth.digits(estimate.coef, estimate.intercept), bool(caught), None)


def judge_pipelines() -> list[dict[str, Any]]:
    """Fit the NIST polynomials as a user would, behind `PolynomialFeatures`.

    Returns
    -------
    list of dict
        For each set how many numbers of the matrix are not the exact powers rounded once, and
        for each method of `PIPELINED` the digits against the exact solution for the matrix that
        `PolynomialFeatures` makes, which multiplies and rounds power by power.
    """
    records = []
    for problem in nist_problems():
        degree = problem.polynomial_degree
        if degree is None:
            continue
        design = PolynomialFeatures(degree, include_bias=False).fit_transform(problem.X[:, :1])
        actual = make_problem(problem.name, design, problem.y, polynomial_degree=degree)
        records.append(
            {
                "name": problem.name,
                "degree": degree,
                "n_entries": design.size,
                "n_entries_not_rounded_once": int(np.count_nonzero(design != problem.X)),
                "digits": {method.label: _outcome_record(judge(method, actual)) for method in PIPELINED},
            }
        )
    return records


def summarise(
    outcomes: Iterable[tuple[Problem, Outcome | None]],
) -> dict[str, float | int] | None:
    """Condense a method's outcomes.

    Parameters
    ----------
    outcomes : iterable of (Problem, Outcome or None)
        The outcomes on some problems.

    Returns
    -------
    dict or None
        Over the problems that the method can state: their number, the share that reaches the
        digits due, the least and the median number of digits. None if there is no such problem.
    """
    done = [(problem, outcome.digits.least) for problem, outcome in outcomes if outcome]
    if not done:
        return None
    return {
        "n_problems": len(done),
        "share_reaching_digits_due": sum(d >= p.digits_due for p, d in done) / len(done),
        "min": min(d for _, d in done),
        "median": statistics.median(d for _, d in done),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison, print its tables and write its JSON file.

    Parameters
    ----------
    arguments : sequence of str, default=None
        Command line arguments; None takes those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agreement", description=__doc__)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument(
        "--quick", action="store_true", help="of the battery, one problem of each family only"
    )
    options = parser.parse_args(arguments)

    problems = _quick_problems() if options.quick else all_problems()
    methods = [method for method in METHODS if _installed(method.package)]
    for method in METHODS:
        if method not in methods:
            print(f"{method.label} is left out: {method.package} is not installed")
    outcomes = {
        method.label: [(problem, judge(method, problem)) for problem in problems] for method in methods
    }
    pipelines = judge_pipelines()
    summary = {label: _summary_by_family(found) for label, found in outcomes.items()}
    _print_problems(problems, outcomes)
    _print_pipelines(pipelines)
    _print_summary(summary)
    if options.output is not None:
        report = {
            "environment": describe(),
            "settings": {
                "quick": options.quick,
                "digits": "-log10(relative error), the least over coefficients and intercepts",
                "max_digits": MAX_DIGITS,
                "digits_due": "12 (7.2 for float32 problems, whose results are float32)",
            },
            "methods": {m.label: {"call": m.description, "package": m.package} for m in methods},
            "summary": summary,
            "pipelines": pipelines,
            "problems": [
                _problem_record(problem, {label: found[k][1] for label, found in outcomes.items()})
                for k, problem in enumerate(problems)
            ],
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=1) + "\n")


def _quick_problems() -> tuple[Problem, ...]:
    first_of_family = {problem.family: problem for problem in reversed(all_problems())}
    fixed = nist_problems() + tutorial_problems()
    return fixed + tuple(problem for problem in first_of_family.values() if problem not in fixed)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _with_exact_powers(problem: Problem) -> Problem:
    """The problem with the truth for a polynomial in x itself, its powers not rounded."""
    x = [Fraction(value) for value in problem.X[:, 0].tolist()]
    truth = exact_least_squares(
        [[value**k for k in range(1, _degree(problem) + 1)] for value in x],
        problem.y.reshape(len(x), -1),
        problem.sample_weight,
    )
    return replace(problem, coef=truth.coef, intercept=truth.intercept)


def _summary_by_family(found: list[tuple[Problem, Outcome | None]]) -> dict[str, Any]:
    families = dict.fromkeys(problem.family for problem, _ in found)
    return {
        "all": summarise(found),
        "families": {
            family: summarise(pair for pair in found if pair[0].family == family) for family in families
        },
    }


def _outcome_record(outcome: Outcome | None) -> dict[str, Any] | None:
    if outcome is None:
        return None
    return {
        "coef": round(outcome.digits.coef, 2),
        "intercept": round(outcome.digits.intercept, 2),
        "warned": outcome.warned,
        "error": outcome.error,
    }


def _problem_record(problem: Problem, outcomes: dict[str, Outcome | None]) -> dict[str, Any]:
    n_samples, n_features = problem.X.shape
    return {
        "name": problem.name,
        "family": problem.family,
        "n_samples": n_samples,
        "n_features": n_features,
        "n_targets": len(problem.coef),
        "dtype": str(problem.X.dtype),
        "fit_intercept": problem.fit_intercept,
        "weighted": problem.sample_weight is not None,
        "alpha": problem.alpha,
        "rank": problem.rank,
        "unit_column_condition": float(f"{problem.condition:.2e}"),
        "digits_due": problem.digits_due,
        "digits": {label: _outcome_record(outcome) for label, outcome in outcomes.items()},
    }


def _print_problems(
    problems: Sequence[Problem], outcomes: dict[str, list[tuple[Problem, Outcome | None]]]
) -> None:
    print("\nCorrect digits, the least over coefficients and intercepts")
    _print_row("problem", ["cond", *outcomes])
    for k, problem in enumerate(problems):
        at_hand = [found[k][1] for found in outcomes.values()]
        cells = ["" if outcome is None else f"{outcome.digits.least:.1f}" for outcome in at_hand]
        _print_row(problem.name, [f"{problem.condition:.0e}", *cells])


def _print_pipelines(pipelines: list[dict[str, Any]]) -> None:
    print("\nThe same behind PolynomialFeatures, against the exact solution for its matrix")
    _print_row("data set", ["inexact", *(method.label for method in PIPELINED)])
    for record in pipelines:
        cells = [f"{min(digits['coef'], digits['intercept']):.1f}" for digits in record["digits"].values()]
        _print_row(record["name"], [str(record["n_entries_not_rounded_once"]), *cells])


def _print_summary(summary: dict[str, dict[str, Any]]) -> None:
    overall = {label: record["all"] for label, record in summary.items()}
    overall = {label: figures for label, figures in overall.items() if figures}
    print("\nOver the problems that a method can state")
    _print_row("", list(overall))
    _print_row("problems", [str(figures["n_problems"]) for figures in overall.values()])
    _print_row(
        "reach the digits due",
        [f"{figures['share_reaching_digits_due']:.0%}" for figures in overall.values()],
    )
    for key in ("min", "median"):
        _print_row(f"{key} digits", [f"{figures[key]:.1f}" for figures in overall.values()])
    print("\nShare that reaches the digits due, by family")
    _print_row("", list(overall))
    for family in summary[next(iter(overall))]["families"]:
        found = [summary[label]["families"][family] for label in overall]
        _print_row(
            family,
            [f"{figures['share_reaching_digits_due']:.0%}" if figures else "" for figures in found],
        )


def _print_row(name: str, cells: Sequence[str]) -> None:
    print(f"{name:<40}" + "".join(f"{cell:>12}" for cell in cells))


if __name__ == "__main__":
    main()
