"""Wrong files: no column is left out, and none is taken in, without a word."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from torchlinreg._cli.table import InputError, read_table, select


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write the file of a test, the working directory being its folder."""
    monkeypatch.chdir(tmp_path)

    def data_csv(content):
        Path("data.csv").write_bytes(content if isinstance(content, bytes) else content.encode())

    return data_csv


def sample_of(**options):
    return select(read_table("data.csv"), **{"target": "y", "features": None, "weight": None} | options)


def refusal(**options):
    with pytest.raises(InputError) as caught:
        sample_of(**options)
    assert str(caught.value).startswith("data.csv: ")
    return str(caught.value)


@pytest.mark.parametrize("row", [1, 2, 30])
@pytest.mark.parametrize(
    "cell",
    [
        *["oops", "1,234", "12%", "True", "$5", "€5", "1 000", "1'000", "1,5", "2026_11", "2026-11-28"],
        *["1.2.3", "-", "?", "NA", "nan", "null", "inf", "-Infinity", "1e400", "0x10", "1\n2"],
        "\N{MINUS SIGN}1",
    ],
)
def test_one_bad_cell_is_named_with_its_column_and_row(write, cell, row):
    cells = [f"{number}" for number in range(30)]
    cells[row - 1] = f'"{cell}"'
    write("good,bad,y\n" + "".join(f"{i},{text},{i % 3}\n" for i, text in enumerate(cells)))
    line = refusal()
    assert f"column 'bad' has {cell!r} in data row {row};" in line
    assert "finite number" in line
    assert "--features" in line
    assert list(sample_of(features=["good"]).X) == ["good"]


@pytest.mark.parametrize("cell", ["", '""', "  "])
def test_a_cell_without_value_is_named_with_its_column_and_row(write, cell):
    write(f"good,bad,y\n1,2,3\n2,{cell},4\n3,3,6\n")
    assert "column 'bad' has no value in data row 2;" in refusal()


def test_a_short_row_has_no_value_at_its_end(write):
    write("good,bad,y\n1,2,3\n2,1\n3,3,6\n")
    assert "column 'y' has no value in data row 2;" in refusal()


@pytest.mark.parametrize("content", ["x,gone,y\n1,,1\n2,,3\n", "x,y,gone\n1,1\n2,3\n"])
def test_a_named_column_without_any_value_is_refused(write, content):
    write(content)
    assert "column 'gone' has no value in data rows 1, 2;" in refusal()


@pytest.mark.parametrize(
    "cells", [["12%", "3%"], ["1,234", "5,678"], ["inf", "inf"], ["A", "1"], ["True", "0"]]
)
def test_a_column_meant_as_numbers_is_not_one_of_text(write, cells):
    write("z,x,y\n" + "".join(f'"{cell}",{i},{i * i}\n' for i, cell in enumerate(cells)))
    assert "column 'z' has " in refusal()


@pytest.mark.parametrize(
    "cells", ["AB", ["True", "False"], ["2026-11-28", "2026-11-29"], ["NA", "x"], ["", "x"]]
)
def test_a_column_of_text_alone_is_named(write, cells):
    write("z,x,y\n" + "".join(f"{cell},{i},{i * i}\n" for i, cell in enumerate(cells)))
    sample = sample_of()
    assert sample.text == ["z"]
    assert list(sample.X) == ["x"]
    assert repr(cells[1]) in refusal(features=["z"])


def test_columns_of_text_alone_leave_nothing_to_fit_and_it_says_what_to_do(write):
    write("z,y\nA,1\nB,2\n")
    line = refusal()
    assert "no column of numbers other than 'y'" in line
    assert "0 and 1" in line


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("x,y,y", "columns 2, 3 have the same name 'y'"),
        ("y,y,x", "columns 1, 2 have the same name 'y'"),
        ("x,x,y", "columns 1, 2 have the same name 'x'"),
        ("x, x ,y", "columns 1, 2 have the same name 'x'"),
        ('x,"x ",y', "columns 1, 2 have the same name 'x'"),
        ("y,y,y", "columns 1, 2, 3 have the same name 'y'"),
    ],
)
@pytest.mark.parametrize("features", [None, ["x"]])
def test_columns_of_one_name_are_refused(write, header, words, features):
    write(header + "\n1,2,3\n2,3,5\n3,4,6\n")
    assert words in refusal(features=features)


@pytest.mark.parametrize("header", ["X,x,y", "x,y.1,y", "x,x.1,y", " X ,'x',y"])
def test_columns_of_different_names_are_all_taken(write, header):
    write(header + "\n1,2,3\n2,4,5\n3,1,6\n")
    sample = sample_of()
    assert sample.X.to_numpy().tolist() == [[1, 2], [2, 4], [3, 1]]
    assert list(sample.X) == [name.strip() for name in header.split(",")[:2]]
    assert sample.notes == []


@pytest.mark.parametrize("header", [",x,y", '"",x,y', " ,x,y", "Unnamed: 0,x,y", "Unnamed: 0_level_1,x,y"])
@pytest.mark.parametrize(
    "index", ["012", "312", "abc", ["2026-11-28", "2026-11-29", "2026-11-30"], ["0.0", "1.0", "5.0"]]
)
def test_an_index_is_left_out_with_a_note(write, header, index):
    write(header + "\n" + "".join(f"{label},{i},{i * i}\n" for i, label in enumerate(index)))
    sample = sample_of()
    assert list(sample.X) == ["x"]
    assert sample.notes == [
        "column 1 has no name and is taken for an index: left out (to use it, name it in the header)"
    ]


def test_index_that_pandas_wrote_twice(write):
    write(",Unnamed: 0,x,y\n0,0,5,2\n1,1,6,3\n")
    sample = sample_of()
    assert list(sample.X) == ["x"]
    assert [note[:8] for note in sample.notes] == ["column 1", "column 2"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x,,y\n1,0,2\n2,1,3\n", ["column 2 has no name", "'0', '1'"]),
        (",x,y\n0.5,0,2\n2,1,3\n", ["column 1 has no name", "'0.5', '2'"]),
        (",x,y\n0,0,2\n0,1,3\n", ["column 1 has no name", "'0', '0'"]),
        (",x,y\n0,0,2\n?,1,3\n", ["column 1 has no name", "'0', '?'"]),
        (",x,y\n0,0,2\n,1,3\n", ["column 1 has no name", "'0', ''"]),
        ("x,y,Unnamed: 2\n0,0,a\n1,1,b\n", ["column 3 has no name", "'a', 'b'"]),
    ],
)
def test_a_column_without_name_that_is_no_index_is_refused(write, content, words):
    write(content)
    line = refusal()
    for word in [*words, "--features", "header"]:
        assert word in line
    assert list(sample_of(features=["x"]).X) == ["x"]


@pytest.mark.parametrize(
    "content",
    ["x,y,\n1,2,\n2,3,\n", "x,y, \n1,2,  \n2,3,\n", "x,y,\n1,2\n2,3\n", "x,y,Unnamed: 2\n1,2,\n2,3,\n"],
)
def test_a_comma_at_the_end_of_every_line_makes_no_column(write, content):
    write(content)
    sample = sample_of()
    assert list(sample.X) == ["x"]
    assert sample.notes == ["column 3 has no name and no values: left out"]


@pytest.mark.parametrize(
    "content",
    [
        "x,y\n1,2\n3,4.5\n",
        '"x","y"\n"1","2"\n"3","4.5"\n',
        " x , y \n 1 , 2 \n 3 , 4.5 \n",
        "\ufeffx,y\n1,2\n3,4.5\n",
        '\ufeff"x",y\n1,2\n3,4.5\n',
        "x,y\r\n1,2\r\n3,4.5\r\n",
        "x,y\r1,2\r3,4.5",
        "\n\nx,y\n\n1,2\n3,4.5\n\n",
        "x,y\n+1.0,2e0\n.3e1,4.5\n",
    ],
)
def test_ways_to_write_the_same_numbers(write, content):
    write(content)
    sample = sample_of()
    assert sample.X.to_dict("list") == {"x": [1.0, 3.0]}
    assert sample.y.tolist() == [2.0, 4.5]
    assert sample.notes == sample.text == []


def test_numbers_are_rounded_correctly(write):
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal(300) * 10.0 ** rng.integers(-300, 300, 300)
    write("x,y\n" + "".join(f"{value!r},0\n" for value in numbers.tolist()))
    np.testing.assert_array_equal(sample_of().X["x"], numbers)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["No columns to parse"]),
        ("\n\n", ["No columns to parse"]),
        ("x,y\n", ["no rows below the header"]),
        ("x,y\n1,2\n1,234,5\n", ["Expected 2 fields in line 3, saw 3", "quotes"]),
        ("x,y\n1,2,\n3,4,\n", ["Expected 2 fields in line 2, saw 3"]),
        ('x,y\n1,"2\n3,4\n', ["EOF inside string", "quotes"]),
        ("x;y\n1;2\n", ["no column 'y'; the columns are x;y", "commas"]),
        ("x;y\n1,5;2\n", ["Expected 1 fields in line 2, saw 2"]),
        ("x\ty\n1\t2\n", ["no column 'y'", "commas"]),
        (",,\n1,2,3\n", ["no column 'y'; the columns are without names"]),
        ("x,y\n1,2\n".encode("utf-16"), ["utf-8", "save it as UTF-8"]),
        ("größe,y\n1,2\n".encode("latin-1"), ["utf-8", "save it as UTF-8"]),
    ],
)
def test_what_is_no_table_is_refused(write, content, words):
    write(content)
    line = refusal()
    for word in words:
        assert word in line


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zip"])
def test_compressed_files_are_read_and_damaged_ones_refused(write, ending):
    name = f"data.csv.{ending}"
    pd.DataFrame({"x": range(9), "y": range(9)}).to_csv(name, index=False)
    assert read_table(name).columns == "x, y"
    whole = Path(name).read_bytes()
    for damaged in (whole[:25], b"x,y\n1,2\n", whole[:20] + bytes(20) + whole[40:]):
        Path(name).write_bytes(damaged)
        with pytest.raises(InputError, match=name):
            read_table(name)


@pytest.mark.parametrize(
    ("header", "noted"), [("1,2", True), ("1990,-2e3", True), ("0,1", False), ("x,2", False), ("2,y", False)]
)
def test_a_first_row_of_numbers_is_said_to_be_the_header(write, header, noted):
    write(f"{header}\n2,3\n3,5\n")
    x, y = header.split(",")
    for features in (None, [x]):
        sample = sample_of(target=y, features=features)
        assert len(sample.y) == 2
        assert any("taken for the header" in note for note in sample.notes) is noted
