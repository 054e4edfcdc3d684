"""Fit and predict from the command line: ``python -m torchlinreg fit hubble``.

``fit`` prints the fit beside the answers of scikit-learn and numpy; ``predict`` applies a saved
fit to new data.
"""

import argparse
import inspect
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from torchlinreg._cli.table import (
    DATASETS,
    WRITE_NUMBERS,
    InputError,
    Sample,
    one_line,
    read_table,
    require,
    select,
    to_numbers,
)
from torchlinreg._estimator import TorchLinearRegressor


def fit(options: argparse.Namespace) -> None:
    """Fit and print the result beside the references."""
    table = read_table(options.data)
    target = options.target or table.target
    if target is None:
        raise InputError(f"--target is needed: the columns of {options.data} are {table.columns}")
    sample = select(table, target=target, features=options.features, weight=options.weight)
    model = TorchLinearRegressor(
        alpha=options.alpha, fit_intercept=not options.no_intercept, device=options.device
    )
    try:
        model.fit(sample.X, sample.y, sample.sample_weight)
    except ValueError as error:
        raise InputError(f"{options.data}: {one_line(error)}") from error
    page = report(options.data, sample, model)
    if options.save:
        import joblib

        try:
            joblib.dump(model, options.save)
        except OSError as error:
            raise InputError(f"{options.save}: {error.strerror or error}") from error
        page += f"\n\nsaved to {options.save}"
    if sample.notes:
        print(f"note: {options.data}: {'; '.join(sample.notes)}", file=sys.stderr)
    print(page)


def report(source: str, sample: Sample, model: TorchLinearRegressor) -> str:
    """Return the page that ``fit`` prints."""
    X, y, sample_weight, text, _ = sample
    r2 = model.score(X, y, sample_weight)
    features = ", ".join(X.columns) if X.shape[1] <= 5 else f"{X.shape[1]} columns"
    lines = [f"{y.name} from {features} ({source})"]
    if sample_weight is not None:
        lines.append(f"weighted by {sample_weight.name}")
    if text:
        lines.append(f"left out, not columns of numbers: {', '.join(text)}")
        lines.append(f"to use them, {WRITE_NUMBERS}")
    lines += ["", *coefficient_table(sample, model), ""]
    lines += ["digits: -log10 of the relative difference to torchlinreg, at most 16"]
    lines += ["(16 as well where both are 0 up to the rounding of the data)", ""]
    facts = {
        "R2": f"{r2:.15g}",
        "rows": len(y),
        "solver": model.solver_,
        "rank": f"{model.rank_} of {X.shape[1]}",
        "condition number": f"{model.condition_number_:.3g}",
        "status": f"{model.status_.name}: {model.status_.message}",
    }
    lines += [f"{name:<18}{value}" for name, value in facts.items()]
    return "\n".join(lines)


def coefficient_table(sample: Sample, model: TorchLinearRegressor) -> list[str]:
    """Return the coefficients of all libraries side by side, with the digits they agree to."""
    names = list(sample.X.columns)
    values = model.coef_
    if model.fit_intercept:
        names, values = [*names, "intercept"], np.append(values, model.intercept_)
    columns = [["", *names], ["torchlinreg", *(f"{value:.15g}" for value in values)]]
    zero = rounding(sample, model)
    for name, reference in references(sample, model).items():
        columns.append([name, *(f"{value:.15g}" for value in reference)])
        columns.append(["digits", *map(digits, values, reference, zero)])
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in zip(*columns, strict=True)
    ]


def references(sample: Sample, model: TorchLinearRegressor) -> dict[str, np.ndarray]:
    """Return the coefficients (and intercept) of scikit-learn and, for a line, numpy.polyfit."""
    from sklearn.linear_model import LinearRegression, Ridge

    X, y = sample.X.to_numpy(), sample.y.to_numpy()
    weight = np.ones(len(y)) if sample.sample_weight is None else sample.sample_weight.to_numpy()
    if model.alpha > 0:
        # Ridge sums where this package averages over the weights.
        rival = Ridge(alpha=model.alpha * weight.sum(), fit_intercept=model.fit_intercept)
        name = f"Ridge(alpha={rival.alpha:g})"
    else:
        rival, name = LinearRegression(fit_intercept=model.fit_intercept), "LinearRegression"
        if "tol" in inspect.signature(LinearRegression).parameters:
            # Its default drops singular values below 1e-6 of the largest; none is to be dropped
            # but those that are rounding.
            full_rank = model.rank_ == X.shape[1]
            rival.set_params(tol=0.0 if full_rank else max(X.shape) * np.finfo(float).eps)
            name = f"LinearRegression(tol={rival.tol:.2g})"
    rival.fit(X, y, weight)
    intercept = [rival.intercept_] if model.fit_intercept else []
    answers = {name: np.append(rival.coef_, intercept)}
    if X.shape[1] == 1 and model.rank_ == 1 and model.fit_intercept and not model.alpha:
        # Its w multiplies residuals, not their squares.
        answers["numpy.polyfit"] = np.polyfit(X[:, 0], y, 1, w=np.sqrt(weight))
    return answers


def rounding(sample: Sample, model: TorchLinearRegressor) -> np.ndarray:
    """Return what rounding of the data moves each coefficient, and the intercept, by.

    With `D` the columns, and one of ones for the intercept, and `P` the matrix that takes `y` to `coef`,
    a relative change of the numbers by `eps` moves the coefficients by up to `eps |P| (|y| + |D| |coef|)`.
    """
    X, y = sample.X.to_numpy(), sample.y.to_numpy()
    root = np.ones(len(y)) if sample.sample_weight is None else np.sqrt(sample.sample_weight.to_numpy())
    design, coef = (
        (np.column_stack([X, np.ones(len(y))]), np.append(model.coef_, model.intercept_))
        if model.fit_intercept
        else (X, model.coef_)
    )
    largest = np.abs(design).max(axis=0)
    unit = np.where(largest >= np.finfo(float).tiny, largest, 1.0)
    # In units of the columns' largest numbers, so that the rank does not depend on the user's units.
    penalised = np.arange(len(coef)) < X.shape[1]
    penalty = np.diag(np.sqrt(model.alpha) * np.linalg.norm(root) * penalised / unit)
    to_coef = np.linalg.pinv(np.vstack([design / unit * root[:, None], penalty]))[:, : len(y)] * root
    of_rows = np.abs(y) + np.abs(design / unit) @ np.abs(coef * unit)
    return np.finfo(float).eps * (np.abs(to_coef) @ of_rows) / unit


def digits(value: float, reference: float, zero: float) -> str:
    """Return -log10 of the relative difference, between 0 and 16; 16 where both are at most `zero`."""
    size = max(abs(value), abs(reference))
    if value == reference or size <= zero:
        return "16.0"
    return f"{min(max(-np.log10(abs(value - reference) / size), 0.0) + 0.0, 16.0):.1f}"


def predict(options: argparse.Namespace) -> None:
    """Write one prediction per row of a CSV file."""
    import joblib
    import pandas as pd

    try:
        model = joblib.load(options.model)
    except OSError as error:
        raise InputError(f"{options.model}: {error.strerror or error}") from error
    except Exception as error:  # bytes that are no pickle can raise anything
        raise InputError(f"{options.model}: not a saved model: {one_line(error)}") from error
    if not isinstance(model, TorchLinearRegressor):
        raise InputError(f"{options.model}: holds a {type(model).__name__}, not a saved model")
    table = read_table(options.data)
    if not hasattr(model, "feature_names_in_") or model.coef_.ndim > 1:
        raise InputError(
            f"{options.model}: not a model of named columns and one target, as fit --save writes"
        )
    features = list(model.feature_names_in_)
    require(table, features)
    prediction = model.predict(to_numbers(table, features))
    page = pd.DataFrame({"prediction": prediction}).to_csv(index=False)
    if options.output is None:
        print(page, end="")
        return
    try:
        Path(options.output).write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{options.output}: {error.strerror or error}") from error


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    main_parser = Parser(
        prog="python -m torchlinreg", description="Linear regression of the columns of a CSV file."
    )
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "fit",
        help="fit and compare with scikit-learn and numpy",
        description="Fit a linear regression and print it beside the answers of scikit-learn and, "
        "for one feature, numpy.polyfit, with the number of digits that agree.",
        epilog=f"data sets of the package: {', '.join(DATASETS)}",
    )
    command.add_argument("data", help="a CSV file with a header, or a data set of the package")
    command.add_argument("--target", help="column to explain (needed with a file)")
    command.add_argument(
        "--features",
        type=lambda text: [name.strip() for name in text.split(",")],
        metavar="A,B,...",
        help="columns to explain it by (default: all others but those of text)",
    )
    command.add_argument("--weight", help="column of sample weights, >= 0")
    command.add_argument("--alpha", type=float, default=0.0, help="ridge penalty (default: 0)")
    command.add_argument("--no-intercept", action="store_true", help="fit through the origin")
    command.add_argument("--device", default="auto", help='"auto" (default), "cpu", "cuda" or "cuda:1"')
    command.add_argument("--save", metavar="FILE", help="save the fitted model with joblib")
    command.set_defaults(run=fit)
    command = commands.add_parser(
        "predict",
        help="predict from a saved model",
        description="Print a CSV column of predictions, one for each row of the data.",
    )
    command.add_argument(
        "model", help="a file of fit --save; loading runs code in it, so open only what you trust"
    )
    command.add_argument("data", help="a CSV file with the model's features")
    command.add_argument("--output", metavar="FILE", help="write there instead of printing")
    command.set_defaults(run=predict)
    return main_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors of the input end with status 2 and one line."""
    options = parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        try:
            options.run(options)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader, such as head, has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except InputError as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            return 2
    return 0


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning in one line, without the place in the code."""
    print(f"warning: {one_line(message)}", file=sys.stderr)
