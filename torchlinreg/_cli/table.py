"""Tables of the command line: what a file holds, and the columns of a fit, in full or refused by name.

No column is left out, and none is taken in, without a word: a cell that is no number is an error unless
its whole column is text, and a column that the header does not name is an index, empty, or refused.
"""

import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from torchlinreg import datasets

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
# What pandas calls a column without a name when it reads a file, and then writes as its name.
NAMELESS = re.compile(r"|Unnamed: \d+(_level_\d+)?")
# What is written in numbers for people: "1,234", "12%", "$5", "1 000", "2026_11".
DECORATION = re.compile(r"[\s,_'%$€£¥]")


# What to do with columns of text.
WRITE_NUMBERS = "write numbers: 0 and 1 for two values, a column of these for each of more"


class InputError(Exception):
    """What the user gave cannot be used; the text is one line that says why."""


class Table(NamedTuple):
    """The cells of a file or a data set.

    `nameless` holds the columns that the header does not name, by their number in the file from 1 on;
    `target` is that of a data set of the package.
    """

    source: str
    named: "pd.DataFrame"
    nameless: "pd.DataFrame"
    target: str | None = None

    @property
    def columns(self) -> str:
        """The names, for a message."""
        return ", ".join(self.named.columns) or "without names"


class Sample(NamedTuple):
    """The columns of one fit, as float64, and what was left out: columns of text, and why others."""

    X: "pd.DataFrame"
    y: "pd.Series"
    sample_weight: "pd.Series | None"
    text: list[str]
    notes: list[str]


def read_table(source: str) -> Table:
    """Return the table that `source` names."""
    if source in DATASETS:
        bunch = DATASETS[source]()
        return Table(source, bunch.frame, bunch.frame.iloc[:, :0], bunch.target_names[0])
    if not Path(source).exists():
        names = ", ".join(DATASETS)
        raise InputError(f"{source}: no such file, and not one of the data sets ({names})")
    return read_csv(source)


def read_csv(path: str) -> Table:
    """Read the cells of a CSV file with a header, as text."""
    cells = read_cells(path)
    if len(cells) < 2:
        raise InputError(f"{path}: no rows below the header")
    names = [name.strip() for name in cells.iloc[0]]
    is_nameless = np.array([NAMELESS.fullmatch(name) is not None for name in names])
    cells = cells.iloc[1:].reset_index(drop=True)
    cells.columns = range(1, len(names) + 1)
    named = cells.loc[:, ~is_nameless]
    named.columns = [name for name, without in zip(names, is_nameless, strict=True) if not without]
    twice = list(dict.fromkeys(named.columns[named.columns.duplicated()]))
    if twice:
        numbers = [str(number) for number, name in enumerate(names, start=1) if name == twice[0]]
        raise InputError(
            f"{path}: columns {', '.join(numbers)} have the same name {twice[0]!r}; "
            "every column needs a name of its own in the header"
        )
    return Table(path, named, cells.loc[:, is_nameless])


def read_cells(path: str) -> "pd.DataFrame":
    """Read all lines of a CSV file, the header being row 0; cells without a value are empty text."""
    import pandas as pd

    try:
        # header=None: pandas would rename columns that share a name or have none.
        return pd.read_csv(path, header=None, dtype=str, keep_default_na=False, skipinitialspace=True)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except pd.errors.ParserError as error:
        what = one_line(error).removeprefix("Error tokenizing data. C error: ")
        raise InputError(
            f"{path}: cannot be read as CSV: {what}; every row has as many cells as the header, "
            "and a cell that holds a comma stands in quotes"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as CSV: {one_line(error)}; save it as UTF-8") from error
    # EmptyDataError is a ValueError; the others come from damaged compressed files.
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path}: cannot be read as CSV: {one_line(error)}") from error


def select(table: Table, *, target: str, features: Sequence[str] | None, weight: str | None) -> Sample:
    """Return the columns asked for, or refuse, naming columns and rows.

    Without `features`, these are all columns other than target and weight but those of text.
    """
    special = [target] if weight is None else [target, weight]
    require(table, [*special, *(features or [])])
    text: list[str] = []
    notes = header_of_numbers(table)
    if features is None:
        notes += leave_out_nameless(table)
        others = [name for name in table.named.columns if name not in special]
        text = [name for name in others if is_text(table.named[name])]
        features = [name for name in others if name not in text]
        if not features:
            raise InputError(
                f"{table.source}: no column of numbers other than {', '.join(map(repr, special))}; "
                f"the columns are {table.columns}" + (f"; instead of text, {WRITE_NUMBERS}" if text else "")
            )
    chosen = [*special, *features]
    if len(set(chosen)) < len(chosen):
        raise InputError(
            f"--target, --weight and --features must name different columns, got "
            f"{', '.join(map(repr, chosen))}"
        )
    numbers = to_numbers(table, chosen, "mend these cells, or choose other columns with --features")
    sample_weight = None
    if weight is not None:
        sample_weight = numbers[weight]
        negative = (sample_weight < 0).to_numpy()
        if negative.any():
            raise InputError(
                f"{table.source}: column {weight!r} has {sample_weight[negative].iloc[0]:g} in "
                f"{rows(negative)}; weights must be >= 0"
            )
    return Sample(numbers[list(features)], numbers[target], sample_weight, text, notes)


def require(table: Table, columns: Sequence[str]) -> None:
    """Refuse a table that lacks one of `columns`."""
    unknown = [name for name in columns if name not in table.named.columns]
    if unknown:
        hint = "; is the file separated by commas?" if table.named.shape[1] == 1 else ""
        raise InputError(
            f"{table.source}: no column {', '.join(map(repr, unknown))}; "
            f"the columns are {table.columns}{hint}"
        )


def header_of_numbers(table: Table) -> list[str]:
    """Say that a first row of numbers alone is taken for names, unless pandas counted the columns so."""
    names = list(table.named.columns)
    if not all(map(is_float, names)) or names == [str(number) for number in range(len(names))]:
        return []
    return [f"the first row, {table.columns}, is taken for the header, not for data"]


def leave_out_nameless(table: Table) -> list[str]:
    """Say of each column without a name why it is left out, or refuse it."""
    notes = []
    for place, (number, cells) in enumerate(table.nameless.items(), start=1):
        column = f"column {number} has no name"
        if not any(map(str.strip, cells)):
            notes.append(f"{column} and no values: left out")
        elif place == number and is_index(cells):  # none but other indices stand before it
            notes.append(f"{column} and is taken for an index: left out (to use it, name it in the header)")
        else:
            examples = ", ".join(map(repr, cells.head(3)))
            raise InputError(
                f"{table.source}: {column}, and its values {examples} are no index; "
                "name it in the header, or choose columns with --features"
            )
    return notes


def is_index(cells: "pd.Series") -> bool:
    """Whether cells can be labels of rows: all different, and whole numbers or text."""
    return cells.is_unique and (is_text(cells) or all(to_number(cell).is_integer() for cell in cells))


def is_text(cells: "pd.Series") -> bool:
    """Whether there are values, none of them a number or meant as one, as "1,234", "12%" and "inf" are."""
    if any(is_float(DECORATION.sub("", str(cell))) for cell in cells):
        return False
    return any(str(cell).strip() for cell in cells)


def to_numbers(table: Table, columns: Sequence[str], advice: str = "mend these cells") -> "pd.DataFrame":
    """Return `columns` as float64, or refuse, naming every cell that is no finite number."""
    import pandas as pd

    numbers, faults = {}, []
    for name in columns:
        cells = table.named[name]
        # float() rounds correctly; pandas before 3.1 does only if asked, and later versions warn if asked.
        numbers[name] = np.array([to_number(cell) for cell in cells])
        bad = ~np.isfinite(numbers[name])
        if bad.any():
            given = [repr(cell) if cell.strip() else "no value" for cell in map(str, cells[bad])]
            examples = list(dict.fromkeys(given))
            more = ", ..." if len(examples) > 3 else ""
            faults.append(f"column {name!r} has {', '.join(examples[:3])}{more} in {rows(bad)}")
    if faults:
        raise InputError(
            f"{table.source}: {'; '.join(faults)}; every value must be a finite number: {advice}"
        )
    return pd.DataFrame(numbers, table.named.index)


def to_number(cell: str | float) -> float:
    """Return the number in a cell, NaN where there is none."""
    if isinstance(cell, str) and "_" in cell:  # float("2026_11") is 202611
        return float("nan")
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def is_float(text: str) -> bool:
    """Whether Python reads a number in `text`, be it infinite or NaN."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def rows(mask: np.ndarray) -> str:
    """Name the rows of a mask, the first below the header being 1."""
    numbers = np.flatnonzero(mask) + 1
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return f"data row{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:5]))}{more}"


def one_line(message: BaseException | str) -> str:
    """Return the text of an error or a warning without its line breaks."""
    return " ".join(str(message).split()) or type(message).__name__
