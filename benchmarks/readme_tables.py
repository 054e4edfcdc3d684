"""Write the benchmark tables of README.md from the JSON files of results.

Run ``python -m benchmarks.readme_tables``, with ``--check`` to see only whether README.md is up to
date. A table stands between ``<!-- speed table: begin -->`` and ``<!-- speed table: end -->``.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path("benchmarks/results")
README = Path("README.md")

SPEED_PACKAGES = ("torch", "numpy", "scikit-learn", "scikit-learn-intelex", "statsmodels")
TRAINING_PACKAGES = ("torch", "numpy", "scikit-learn", "skorch")
LOSSES_PACKAGES = ("torch", "numpy", "scikit-learn", "statsmodels", "skglm", "glum")

# A result as read from JSON.
Report = dict[str, Any]


class TableError(Exception):
    """A file or a marker is missing, or a result has an unknown format."""


class Table(NamedTuple):
    """A table of the README: its marker, its JSON file, and what writes it from that."""

    marker: str
    file: str
    write: Callable[[Report], str]


def speed_table(report: Report) -> str:
    """Write the table of times as ratios.

    Parameters
    ----------
    report : dict
        What `benchmarks.speed` wrote.

    Returns
    -------
    str
        Markdown: for every case each rival's time over ours, our time in products ``X.T @ X`` and
        in milliseconds; then predictions, memory, and where it was measured.
    """
    if report.get("format") != 1:
        raise TableError(f"the speed results have format {report.get('format')}: 1 is known")
    parts = [
        ("fit", "Dense, float64"),
        ("float32", "Dense, float32"),
        ("weighted", "Weighted, float64"),
        ("sparse", "Sparse (CSR), float64"),
    ]
    fits = [case for case in report["cases"] if case["part"] in dict(parts)]
    rivals = list(
        dict.fromkeys(
            timing["name"]
            for case in fits
            for timing in case["timings"]
            if timing["role"] in ("estimator", "routine")
        )
    )
    lines = [
        "Each rival's time over ours (above 1 we are faster), and our own time. A dash: not run, "
        "for the reason in the JSON file.",
        "",
        *_table_head(["rows x features", *rivals, "ours, in `X.T @ X`", "ours, ms"]),
    ]
    for part, title in parts:
        cases = [case for case in fits if case["part"] == part]
        if cases:
            lines.append(_row([f"**{title}**"] + [""] * (len(rivals) + 2)))
        for case in cases:
            found = {timing["name"]: timing for timing in case["timings"]}
            lines.append(
                _row(
                    [
                        _shape_text(case),
                        *(_times(found.get(name)) for name in rivals),
                        _inverse(found.get("X.T @ X")),
                        _milliseconds(next(t for t in case["timings"] if t["role"] == "ours")),
                    ]
                )
            )
    lines += [
        "",
        *_predict_lines(report),
        *_memory_lines(report),
        _measured_on(report["environment"], SPEED_PACKAGES, "speed.json"),
    ]
    return "\n".join(lines)


def agreement_table(report: Report) -> str:
    """Write the table of correct digits.

    Parameters
    ----------
    report : dict
        What `benchmarks.agreement` wrote.

    Returns
    -------
    str
        Markdown: for every method the share of problems with the digits due, the least and the
        median number of digits over all problems it can state, and the digits on each NIST set.
    """
    methods = list(report["methods"])
    lines = [
        "Correct digits, the least over coefficients and intercepts. A dash: the method cannot "
        "state the problem.",
        "",
        *_table_head(["", *methods]),
    ]
    overall = {name: report["summary"][name]["all"] for name in methods}
    for label, key, form in (
        ("problems", "n_problems", "{:d}"),
        ("share with the digits due", "share_reaching_digits_due", "{:.1%}"),
        ("least digits", "min", "{:.1f}"),
        ("median digits", "median", "{:.1f}"),
    ):
        values = [overall[name] for name in methods]
        lines.append(_row([label, *("-" if v is None else form.format(v[key]) for v in values)]))
    for problem in report["problems"]:
        family, _, name = problem["name"].partition("-")
        if family == "nist":
            digits = [problem["digits"].get(method) for method in methods]
            lines.append(_row([f"NIST {name}", *(_digits(found) for found in digits)]))
    due = report["settings"]["digits_due"]
    lines += ["", f"Digits due: {due}. From `{RESULTS / 'agreement.json'}`."]
    return "\n".join(lines)


def training_table(report: Report) -> str:
    """Write the table of training.

    Parameters
    ----------
    report : dict
        What `benchmarks.training` wrote.

    Returns
    -------
    str
        Markdown: for every contest and contestant the epochs, the time over ours, the time in
        milliseconds and the distance from OLS, or from exact steps where training goes by full batches;
        then how that is meant, and where it was measured.
    """
    if report.get("format") != 1:
        raise TableError(f"the training results have format {report.get('format')}: 1 is known")
    lines = [
        "Times over ours (above 1 we are faster), and how far the coefficients end from the least squares "
        "solution (from exact steps for the full batch), in standard deviations. All on the same "
        "standardised rows; training starts at zero.",
        "",
        *_table_head(["", "epochs", "time over ours", "ms", "distance"]),
    ]
    for case in report["cases"]:
        lines.append(_row([f"**{_training_title(case)}**"] + [""] * 4))
        lines += [_row(_training_cells(timing)) for timing in case["timings"]]
    scaled = [
        f"{timing['name']} was timed for {timing['n_epochs_timed']} epochs, and its time scaled to "
        f"{timing['n_epochs']:,}"
        for case in report["cases"]
        for timing in case["timings"]
        if timing["status"] == "timed" and timing["n_epochs"] != timing["n_epochs_timed"]
    ]
    lines += [""]
    if scaled:
        # Once for all the contests that say the same.
        lines += [f"(*) {'; '.join(dict.fromkeys(scaled))}.", ""]
    lines.append(_measured_on(report["environment"], TRAINING_PACKAGES, "training.json"))
    return "\n".join(lines)


# Raw data of tutorials and of NIST; the others are summed up.
UNTUNED = (
    ("tutorial-hubble_freedman24", "Hubble, 24 galaxies"),
    ("tutorial-plant_richness_lr", "plant richness"),
    ("tutorial-perceptron25", "25 points"),
    ("nist-Norris", "NIST Norris"),
    ("nist-Pontius", "NIST Pontius"),
    ("nist-Longley", "NIST Longley"),
)


def untuned_table(report: Report) -> str:
    """Write the table of distances from the optimum without tuning.

    Parameters
    ----------
    report : dict
        What `benchmarks.untuned` wrote.

    Returns
    -------
    str
        Markdown: for some data sets the distance of each optimizer, full batch and in mini-batches, and how
        many of all problems end how near.
    """
    if report.get("format") != 1:
        raise TableError(f"the untuned results have format {report.get('format')}: 1 is known")
    runs = report["runs"]
    columns = [(solver, full) for full in (True, False) for solver in ("sgd", "adam", "lbfgs")]
    lines = [
        "Distance from the exact least squares coefficients, in standard deviations, of training with "
        "default parameters on raw data; mini-batches of 64 rows, or of 8 where there are no more than 64.",
        "",
        *_table_head(["", *(f'"{solver}"{"" if full else ", batches"}' for solver, full in columns)]),
    ]

    def distances(solver: str, full: bool, name: str | None = None) -> list[float]:
        return [
            run["distance"]
            for run in runs
            if run["solver"] == solver
            and (run["batch_size"] is None) == full
            and (name is None or run["problem"] == name)
        ]

    for name, title in UNTUNED:
        cells = [distances(*column, name) for column in columns]
        lines.append(_row([title, *(f"{max(cell):.0e}" if cell else "-" for cell in cells)]))
    n_problems = len({run["problem"] for run in runs})
    for limit in (1e-6, 1e-2):
        near = [sum(distance <= limit for distance in distances(*column)) for column in columns]
        lines.append(_row([f"of all {n_problems} problems within {limit:.0e}", *map(str, near)]))
    return "\n".join(
        [
            *lines,
            "",
            "The problems have conditions up to 1e14, offsets to 1e9 and column scales from 1e-12 to 1e12; "
            "those of float32 data are rounded to float32 at the end. "
            f"From `{RESULTS / 'untuned.json'}`.",
        ]
    )


def losses_table(report: Report) -> str:
    """Write the table of losses, penalties and constraints.

    Parameters
    ----------
    report : dict
        What `benchmarks.losses` wrote.

    Returns
    -------
    str
        Markdown: for every case and contestant the time over ours, the time in milliseconds, the iterations
        and how far the objective is above the best one; then who minimises something else, and where it was
        measured.
    """
    if report.get("format") != 1:
        raise TableError(f"the losses results have format {report.get('format')}: 1 is known")
    lines = [
        "Times over ours (above 1 we are faster), and how far each objective is above the best one found, "
        "relative to it; for cross-validation, the largest error of a mean score. The objectives are "
        f"computed anew from the coefficients; more than {report['settings']['limit']:.0e} is wrong.",
        "",
        *_table_head(["", "time over ours", "ms", "iterations", "excess"]),
    ]
    for case in report["cases"]:
        lines.append(_row([f"**{case['title']}, {_shape_text(case)}**"] + [""] * 4))
        lines += [_row(_losses_cells(timing)) for timing in case["timings"]]
    own = [
        f"{timing['name']}: {timing['note']}"
        for case in report["cases"]
        for timing in case["timings"]
        if not timing["comparable"] and timing["status"] == "timed"
    ]
    lines += [""]
    if own:
        lines += [f"(*) Minimises an objective of its own. {'; '.join(dict.fromkeys(own))}.", ""]
    once = [t["name"] for case in report["cases"] for t in case["timings"] if _is_single(t)]
    if once:
        lines += [f"Timed once, as they take seconds: {', '.join(dict.fromkeys(once))}.", ""]
    lines.append(_measured_on(report["environment"], LOSSES_PACKAGES, "losses.json"))
    return "\n".join(lines)


TABLES = (
    Table("speed table", "speed.json", speed_table),
    Table("agreement table", "agreement.json", agreement_table),
    Table("training table", "training.json", training_table),
    Table("untuned table", "untuned.json", untuned_table),
    Table("losses table", "losses.json", losses_table),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the tables in the README, or check them.

    Parameters
    ----------
    arguments : sequence of str, default=None
        Command line arguments; None takes those of the process.

    Returns
    -------
    int
        The exit status: 0; 1 if ``--check`` finds an old table; 2 if something is missing.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme_tables", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if out of date")
    parser.add_argument("--readme", type=Path, default=README, help=f"the file ({README})")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"the folder ({RESULTS})")
    options = parser.parse_args(arguments)
    try:
        old = _read(options.readme)
        new = old
        for table in TABLES:
            written = table.write(json.loads(_read(options.results / table.file)))
            new = replace_between_markers(new, table.marker, written)
    except TableError as error:
        print(error, file=sys.stderr)
        return 2
    if new == old:
        print(f"{options.readme} is up to date")
        return 0
    if options.check:
        print(f"{options.readme} is out of date: run python -m benchmarks.readme_tables")
        return 1
    options.readme.write_text(new, encoding="utf-8")
    print(f"{options.readme} is rewritten")
    return 0


def replace_between_markers(text: str, marker: str, table: str) -> str:
    """Put a table between its two markers.

    Parameters
    ----------
    text : str
        The document.
    marker : str
        The table's name in the markers.
    table : str
        The new content.

    Returns
    -------
    str
        The document with whatever stood there replaced.

    Raises
    ------
    TableError
        If a marker is missing, not unique, or out of order.

    Examples
    --------
    >>> replace_between_markers("<!-- a: begin --> old <!-- a: end -->", "a", "new")
    '<!-- a: begin -->\\nnew\\n<!-- a: end -->'
    """
    begin, end = f"<!-- {marker}: begin -->", f"<!-- {marker}: end -->"
    for needed in (begin, end):
        if text.count(needed) != 1:
            raise TableError(f"the README has {text.count(needed)} times {needed!r}: 1 is needed")
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise TableError(f"the README has {end!r} before {begin!r}")
    return f"{before}{begin}\n{table}\n{end}{after}"


def _read(path: Path) -> str:
    """The text of a file."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TableError(f"{path} is missing") from None


def _table_head(titles: Sequence[str]) -> list[str]:
    """The first two lines of a table; numbers to the right."""
    return [_row(titles), _row(["---"] + ["---:"] * (len(titles) - 1))]


def _row(cells: Sequence[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def _shape_text(case: Report) -> str:
    """Rows and columns for the eye."""
    return f"{case['n_samples']:,} x {case['n_features']:,}"


def _number(value: float) -> str:
    """Two figures, or all before the point."""
    if value >= 9.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 0.995 else f"{value:.2g}"


def _times(timing: Report | None) -> str:
    """A rival's ratio, or what became of it."""
    if timing is None or timing["status"] == "skipped":
        return "-"
    return timing["status"] if timing["ratio"] is None else _number(timing["ratio"]["median"])


def _inverse(timing: Report | None) -> str:
    """Our time in units of another's."""
    if timing is None or timing["ratio"] is None:
        return "-"
    return _number(1.0 / timing["ratio"]["median"])


def _milliseconds(timing: Report) -> str:
    """The median, or what became of it."""
    return _number(1e3 * timing["median_s"]) if timing["status"] == "timed" else timing["status"]


def _predict_lines(report: Report) -> list[str]:
    """One sentence on predictions."""
    ratios = [
        f"{_times(timing)} at {_shape_text(case)}"
        for case in report["cases"]
        for timing in case["timings"]
        if case["part"] == "predict" and timing["name"] == "LinearRegression"
    ]
    if not ratios:
        return []
    return [f"`predict`, `LinearRegression`'s time over ours: {', '.join(ratios)}.", ""]


def _memory_lines(report: Report) -> list[str]:
    """One sentence on memory for each shape."""
    lines = []
    for memory in report["memory"]:
        fractions = [
            f"{record['name']} {_number(record['fraction'])}"
            for record in memory["records"]
            if record["status"] == "measured"
        ]
        rows, _, columns = memory["shape"].partition("x")
        shape = f"{int(rows):,} x {int(columns):,}"
        lines += [
            f"Extra peak memory of a fit at {shape} as a fraction of X: {', '.join(fractions)}.",
            "",
        ]
    return lines


def _training_title(case: Report) -> str:
    """What a contest of training is about."""
    if case["part"] == "full":
        name = {"sgd": "SGD", "adam": "Adam"}[case["optimizer"]]
        title = f"Full batch, {name}, rate {case['learning_rate']:g}"
    elif case["part"] == "minibatch":
        title = f"Mini-batches of {case['batch_size']}, rate {case['learning_rate']:g} where given"
    else:
        title = f"Until the distance is below {case['limit']:g}"
    return f"{title}, {_shape_text(case)}"


def _training_cells(timing: Report) -> list[str]:
    """A contestant's line: what it took and where it ended, or what became of it."""
    distance = "-" if timing["error"] is None else f"{timing['error']:.0e}"
    search = timing.get("search")
    if timing["status"] == "wrong" and search is not None:
        # It was given up: how long that took is no time over ours.
        tried = f"{search['n_epochs']:,}"
        return [timing["name"], tried, "not reached", f"> {_number(1e3 * search['seconds'])}", distance]
    if timing["status"] != "timed":
        outcome = "-" if timing["status"] == "skipped" else timing["status"]
        return [timing["name"], "-", outcome, "-", distance]
    scaled = timing["n_epochs"] != timing["n_epochs_timed"]
    return [
        f"{timing['name']} (*)" if scaled else timing["name"],
        f"{timing['n_epochs']:,}",
        _times(timing),
        _milliseconds(timing),
        distance,
    ]


def _is_single(timing: Report) -> bool:
    """Whether a time is that of one run."""
    return timing["status"] == "timed" and not timing["interleaved"]


def _losses_cells(timing: Report) -> list[str]:
    """A contestant's line: its time, its iterations and its objective, or what became of it."""
    name = timing["name"] if timing["comparable"] else f"{timing['name']} (*)"
    excess = "-" if timing["error"] is None else f"{timing['error']:.0e}"
    if timing["status"] != "timed":
        outcome = "-" if timing["status"] == "skipped" else timing["status"]
        return [name, outcome, "-", "-", excess]
    iterations = "-" if timing["n_iter"] is None else f"{timing['n_iter']:,}"
    return [name, _times(timing), _milliseconds(timing), iterations, excess]


def _measured_on(environment: Report, names: Sequence[str], file: str) -> str:
    """One sentence on where the figures come from."""
    packages = environment["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in names if packages.get(name))
    processor = environment["processor"]
    cuda = environment["cuda"]
    device = "" if cuda is None else f", {cuda['device']}"
    return (
        f"Measured on {processor['model']}, {processor['cores']} cores, "
        f"{environment['threads']['torch']} threads{device}; {versions}; interleaved, medians. "
        f"From `{RESULTS / file}`."
    )


def _digits(found: Report | None) -> str:
    """The digits of one method on one problem."""
    if found is None:
        return "-"
    return f"{min(found['coef'], found['intercept']):.1f}"


if __name__ == "__main__":
    sys.exit(main())
