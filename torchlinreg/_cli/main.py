"""Fit and predict from the command line: ``python -m torchlinreg fit hubble``.

``fit`` prints the fit beside the answers of scikit-learn and numpy; ``predict`` applies a saved
fit to new data.
"""

import argparse
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from torchlinreg import datasets
from torchlinreg._estimator import TorchLinearRegressor

if TYPE_CHECKING:
    import pandas as pd

DATASETS: dict[str, Callable[[], Any]] = {
    "hubble": lambda: datasets.load_hubble(as_frame=True),
    "hubble23": lambda: datasets.load_hubble(version="freedman23", as_frame=True),
    "hubble1929": lambda: datasets.load_hubble(version="1929", as_frame=True),
    "plant_richness": lambda: datasets.load_plant_richness(as_frame=True),
    "plant_richness_covariates": lambda: datasets.load_plant_richness(covariates=True, as_frame=True),
    "perceptron25": lambda: datasets.load_perceptron25(as_frame=True),
}


class InputError(Exception):
    """What the user gave cannot be used; the text is one line that says why."""


class Sample(NamedTuple):
    """The columns of one fit, as float64."""

    X: "pd.DataFrame"
    y: "pd.Series"
    sample_weight: "pd.Series | None"
    left_out: list[str]


def read_table(source: str) -> "tuple[pd.DataFrame, str | None]":
    """Return the table that `source` names, and the target of a data set of the package."""
    if source in DATASETS:
        bunch = DATASETS[source]()
        return bunch.frame, bunch.target_names[0]
    if not Path(source).exists():
        names = ", ".join(DATASETS)
        raise InputError(f"{source}: no such file, and not one of the data sets ({names})")
    return read_csv(source), None


def read_csv(path: str) -> "pd.DataFrame":
    """Read a CSV file with a header; columns of numbers become float64, all others text."""
    import pandas as pd

    try:
        with warnings.catch_warnings():
            # index_col=False with this warning as an error: a row longer than the header is
            # refused, where pandas would take the first column for row names.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(path, dtype=str, index_col=False, skipinitialspace=True)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    # EmptyDataError, ParserError and UnicodeDecodeError are all ValueErrors.
    except (ValueError, pd.errors.ParserWarning) as error:
        raise InputError(f"{path}: cannot be read as CSV: {one_line(error)}") from error
    if table.empty:
        raise InputError(f"{path}: no rows below the header")
    for name, cells in table.items():
        # pandas before 3.1 rounds correctly only if asked, and later versions warn if asked.
        numbers = np.array([to_number(cell) for cell in cells])
        if not np.isnan(numbers[cells.notna()]).any():
            table[name] = numbers
    return table


def select(
    table: "pd.DataFrame",
    source: str,
    *,
    target: str,
    features: Sequence[str] | None,
    weight: str | None,
) -> Sample:
    """Return the columns asked for, or refuse, naming columns and rows.

    Without `features`, these are the columns of numbers other than target and weight.
    """
    special = [target] if weight is None else [target, weight]
    require(table, source, [*special, *(features or [])])
    left_out: list[str] = []
    if features is None:
        others = [name for name in table.columns if name not in special]
        features = [name for name in others if table[name].dtype == float]
        left_out = [name for name in others if name not in features]
        if not features:
            raise InputError(
                f"{source}: no column of numbers other than {', '.join(map(repr, special))}; "
                f"the columns are {', '.join(table.columns)}"
            )
    chosen = [*special, *features]
    if len(set(chosen)) < len(chosen):
        raise InputError(
            f"--target, --weight and --features must name different columns, got "
            f"{', '.join(map(repr, chosen))}"
        )
    numbers = to_numbers(table, source, chosen)
    sample_weight = None
    if weight is not None:
        sample_weight = numbers[weight]
        negative = (sample_weight < 0).to_numpy()
        if negative.any():
            raise InputError(
                f"{source}: column {weight!r} has {sample_weight[negative].iloc[0]:g} in "
                f"{rows(negative)}; weights must be >= 0"
            )
    return Sample(numbers[list(features)], numbers[target], sample_weight, left_out)


def require(table: "pd.DataFrame", source: str, columns: Sequence[str]) -> None:
    """Refuse a table that lacks one of `columns`."""
    unknown = [name for name in columns if name not in table.columns]
    if unknown:
        raise InputError(
            f"{source}: no column {', '.join(map(repr, unknown))}; the columns are {', '.join(table.columns)}"
        )


def to_numbers(table: "pd.DataFrame", source: str, columns: Sequence[str]) -> "pd.DataFrame":
    """Return `columns` as float64, or refuse, naming every cell that is no finite number."""
    import pandas as pd

    numbers, faults = {}, []
    for name in columns:
        cells = table[name]
        numbers[name] = np.array([to_number(cell) for cell in cells])
        bad = ~np.isfinite(numbers[name])
        if bad.any():
            given = ["no value" if pd.isna(cell) else repr(str(cell)) for cell in cells[bad]]
            examples = list(dict.fromkeys(given))
            more = ", ..." if len(examples) > 3 else ""
            faults.append(f"column {name!r} has {', '.join(examples[:3])}{more} in {rows(bad)}")
    if faults:
        raise InputError(f"{source}: {'; '.join(faults)}; every value must be a finite number")
    return pd.DataFrame(numbers, table.index)


def to_number(cell: str | float) -> float:
    """Return the number in a cell, NaN where there is none."""
    if isinstance(cell, str) and "_" in cell:  # float("2026_11") is 202611
        return float("nan")
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def rows(mask: np.ndarray) -> str:
    """Name the rows of a mask, the first below the header being 1."""
    numbers = np.flatnonzero(mask) + 1
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return f"data row{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:5]))}{more}"


def one_line(message: BaseException | str) -> str:
    """Return the text of an error or a warning without its line breaks."""
    return " ".join(str(message).split()) or type(message).__name__


def fit(options: argparse.Namespace) -> None:
    """Fit and print the result beside the references."""
    table, default_target = read_table(options.data)
    target = options.target or default_target
    if target is None:
        raise InputError(f"--target is needed: the columns of {options.data} are {', '.join(table.columns)}")
    sample = select(table, options.data, target=target, features=options.features, weight=options.weight)
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
    print(page)


def report(source: str, sample: Sample, model: TorchLinearRegressor) -> str:
    """Return the page that ``fit`` prints."""
    X, y, sample_weight, left_out = sample
    r2 = model.score(X, y, sample_weight)
    features = ", ".join(X.columns) if X.shape[1] <= 5 else f"{X.shape[1]} columns"
    lines = [f"{y.name} from {features} ({source})"]
    if sample_weight is not None:
        lines.append(f"weighted by {sample_weight.name}")
    if left_out:
        lines.append(f"left out, not columns of numbers: {', '.join(left_out)}")
    lines += ["", *coefficient_table(sample, model), ""]
    lines += ["digits: -log10 of the relative difference to torchlinreg, at most 16", ""]
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
    for name, reference in references(sample, model).items():
        columns.append([name, *(f"{value:.15g}" for value in reference)])
        columns.append(["digits", *map(digits, values, reference)])
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


def digits(value: float, reference: float) -> str:
    """Return -log10 of the relative difference, between 0 and 16."""
    if value == reference:
        return "16.0"
    relative = abs(value - reference) / max(abs(value), abs(reference))
    return f"{min(max(-np.log10(relative), 0.0), 16.0):.1f}"


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
    table, _ = read_table(options.data)
    if not hasattr(model, "feature_names_in_") or model.coef_.ndim > 1:
        raise InputError(
            f"{options.model}: not a model of named columns and one target, as fit --save writes"
        )
    features = list(model.feature_names_in_)
    require(table, options.data, features)
    prediction = model.predict(to_numbers(table, options.data, features))
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
        type=lambda text: text.split(","),
        metavar="A,B,...",
        help="columns to explain it by (default: all other columns of numbers)",
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
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning in one line, without the place in the code."""
    print(f"warning: {one_line(message)}", file=sys.stderr)
