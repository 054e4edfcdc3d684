"""The command line: what it prints, what it saves, and the one line it gives for bad input."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from torchlinreg import TorchLinearRegressor
from torchlinreg._cli.main import digits, main, rounding
from torchlinreg._cli.table import DATASETS, Sample

ROOT = Path(__file__).parents[2]

TREES = """\
girth,height,volume,plot,copies
8.3,70,10.3,A,1
8.6,65,10.3,A,2
8.8,63,10.2,B,0
10.5,72,16.4,B,1
11.0,66,15.6,C,3
"""


@pytest.fixture
def trees(tmp_path, monkeypatch):
    """A small CSV file, the working directory being its folder."""
    monkeypatch.chdir(tmp_path)
    Path("trees.csv").write_text(TREES)
    return pd.read_csv("trees.csv")


def run(capsys, *arguments):
    """Return what a successful command prints."""
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def numbers(output, name):
    """Return the numbers on the line of the output that `name` begins."""
    line = re.search(rf"^{re.escape(name)}  +(.*)$", output, re.MULTILINE)
    assert line, output
    return [float(text) for text in line[1].split()]


def refusal(capsys, *arguments):
    """Return the one line on stderr with which a command ends, its status being 2."""
    try:
        status = main(arguments)
    except SystemExit as stop:  # argparse's way
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.endswith("\n")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_agrees_with_the_references(capsys, name):
    output = run(capsys, "fit", name)
    bunch = DATASETS[name]()
    for row in [*bunch.feature_names, "intercept"]:
        ours, reference, digits, *polyfit = numbers(output, row)
        assert ours == pytest.approx(reference, rel=1e-11)
        assert digits >= 11
        assert len(polyfit) == (2 if len(bunch.feature_names) == 1 else 0)
    for fact in ("R2", "solver", "rank", "condition number", "status"):
        assert re.search(rf"^{fact} ", output, re.MULTILINE)
    assert numbers(output, "rows") == [len(bunch.target)]


def test_hubble_prints_the_exact_answer(capsys):
    output = run(capsys, "fit", "hubble")
    assert output.startswith("velocity_km_s from distance_mpc (hubble)\n")
    assert numbers(output, "distance_mpc")[0] == pytest.approx(76.1269568572890853, rel=1e-14)
    assert numbers(output, "intercept")[0] == pytest.approx(6.69625465073728718, rel=1e-12)
    assert numbers(output, "R2") == [pytest.approx(0.745082247559357, rel=1e-12)]


def test_help_lists_the_data_sets(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--help"])
    text = capsys.readouterr().out.split()
    for name in DATASETS:
        assert name in " ".join(text).replace(",", " ").split()


def test_file_takes_all_columns_of_numbers_and_says_what_it_left_out(capsys, trees):
    output = run(capsys, "fit", "trees.csv", "--target", "volume")
    assert output.startswith("volume from girth, height, copies (trees.csv)\n")
    assert "left out, not columns of numbers: plot\n" in output


@pytest.mark.parametrize("cell", ["oops", '"1,234"', "12%", "True", ""])
def test_a_bad_cell_in_a_column_of_numbers_ends_the_program(capsys, trees, cell):
    Path("trees.csv").write_text(TREES.replace("66", cell))
    line = refusal(capsys, "fit", "trees.csv", "--target", "volume")
    assert f"column 'height' has {repr(cell.strip(chr(34))) if cell else 'no value'} in data row 5;" in line


def test_columns_of_one_name_end_the_program(capsys, trees):
    Path("trees.csv").write_text(TREES.replace("height", "volume"))
    line = refusal(capsys, "fit", "trees.csv", "--target", "volume", "--features", "girth")
    assert "columns 2, 3 have the same name 'volume'" in line


def test_an_index_is_left_out_in_one_line_on_stderr(capsys, trees):
    expected = run(capsys, "fit", "trees.csv", "--target", "volume")
    trees.to_csv("trees.csv")
    assert main(["fit", "trees.csv", "--target", "volume"]) == 0
    captured = capsys.readouterr()
    assert captured.out == expected
    assert captured.err.startswith("note: trees.csv: column 1 has no name")
    assert captured.err.count("\n") == 1
    features = ["--features", "girth,height,copies"]
    assert numbers(run(capsys, "fit", "trees.csv", "--target", "volume", *features), "rows") == [5]


def test_columns_of_text_are_named_with_what_to_do(capsys, trees):
    output = run(capsys, "fit", "trees.csv", "--target", "volume")
    assert "left out, not columns of numbers: plot\nto use them, write numbers: 0 and 1" in output


UNRELATED = np.array([1.0, 1, -1, -1] * 5)  # orthogonal to the next, and to a constant
ALTERNATING = np.array([1.0, -1, 1, -1] * 5)


@pytest.mark.parametrize("units", [(1.0, 1.0), (1e-9, 1e-9), (1e3, 1e-3), (1e-3, 1e3)])
@pytest.mark.parametrize("options", [[], ["--alpha", "0.1"], ["--no-intercept"]])
def test_answers_that_are_both_0_to_rounding_agree(capsys, tmp_path, monkeypatch, units, options):
    monkeypatch.chdir(tmp_path)
    y = 0.1 * ALTERNATING + (0.0 if options else 0.3) + 1e-17
    X = {"other": UNRELATED * units[0], "own": ALTERNATING * units[1]}
    pd.DataFrame(X | {"y": y}).to_csv("data.csv", index=False)
    output = run(capsys, "fit", "data.csv", "--target", "y", *options)
    assert numbers(output, "other")[2] == 16
    assert numbers(output, "own")[2] > 14


def test_an_intercept_of_0_agrees_far_from_the_data(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    years = np.arange(1990.0, 2020)
    pd.DataFrame({"year": years, "y": 2 * years}).to_csv("data.csv", index=False)
    output = run(capsys, "fit", "data.csv", "--target", "y")
    assert numbers(output, "intercept")[2::2] == [16, 16]
    assert "-0.0" not in output


@pytest.mark.parametrize("share", [1e-6, 1e-13])
def test_small_answers_are_compared_by_their_own_digits(share):
    """Of a reference that is wrong by a thousandth in a coefficient far above rounding."""
    X = pd.DataFrame({"own": ALTERNATING, "small": UNRELATED})
    y = pd.Series(ALTERNATING + share * UNRELATED, name="y")
    sample = Sample(X, y, None, [], [])
    model = TorchLinearRegressor().fit(X, y)
    zero = rounding(sample, model)
    assert digits(model.coef_[1], model.coef_[1] * 1.001, zero[1]) == "3.0"
    assert digits(model.coef_[1], -model.coef_[1], zero[1]) == "0.0"
    assert digits(zero[1], -zero[1], zero[1]) == "16.0"


def test_features_are_those_asked_for_in_that_order(capsys, trees):
    output = run(capsys, "fit", "trees.csv", "--target", "volume", "--features", "height,girth")
    assert output.startswith("volume from height, girth (trees.csv)\n")
    assert "left out" not in output
    expected = np.linalg.lstsq(
        np.column_stack([trees.height, trees.girth, np.ones(5)]), trees.volume, rcond=None
    )[0]
    found = [numbers(output, name)[0] for name in ("height", "girth", "intercept")]
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_weight_k_is_k_copies_for_all_three(capsys, trees):
    fit = ["--target", "volume", "--features", "girth"]
    weighted = run(capsys, "fit", "trees.csv", *fit, "--weight", "copies")
    assert "weighted by copies" in weighted
    trees.loc[trees.index.repeat(trees.copies)].to_csv("repeated.csv", index=False)
    repeated = run(capsys, "fit", "repeated.csv", *fit)
    for name in ("girth", "intercept"):
        ours, ols, _, polyfit, _ = numbers(weighted, name)
        truth = numbers(repeated, name)[1]
        assert [ours, ols, polyfit] == pytest.approx([truth] * 3, rel=1e-11)
    assert numbers(weighted, "R2") == pytest.approx(numbers(repeated, "R2"), rel=1e-11)


def test_no_intercept_compares_with_the_line_through_the_origin(capsys, trees):
    output = run(capsys, "fit", "trees.csv", "--target", "volume", "--features", "girth", "--no-intercept")
    slope = trees.girth @ trees.volume / (trees.girth @ trees.girth)
    ours, reference, digits = numbers(output, "girth")
    assert [ours, reference] == pytest.approx([slope] * 2, rel=1e-13)
    assert digits > 13
    assert "intercept" not in output
    assert "polyfit" not in output


def test_alpha_compares_with_ridge_of_the_same_objective(capsys, trees):
    output = run(capsys, "fit", "trees.csv", "--target", "volume", "--weight", "copies", "--alpha", "0.5")
    assert "Ridge(alpha=3.5)" in output  # the weights sum to 7
    for name in ("girth", "height", "intercept"):
        ours, ridge, digits = numbers(output, name)
        assert ours == pytest.approx(ridge, rel=1e-10)
        assert digits >= 10


def test_rank_deficient_file_agrees_on_the_minimum_norm(capsys, trees):
    trees.assign(twice=2 * trees.girth).to_csv("trees.csv", index=False)
    features = "girth,twice"
    output = run(capsys, "fit", "trees.csv", "--target", "volume", "--features", features)
    assert "1 of 2" in output
    for name in ("girth", "twice", "intercept"):
        assert numbers(output, name)[2] >= 11


@pytest.mark.filterwarnings("default")
def test_warnings_are_one_line(capsys, trees):
    trees[:1].to_csv("trees.csv", index=False)  # R2 of one row is not defined
    assert main(["fit", "trees.csv", "--target", "volume", "--features", "girth"]) == 0
    warning = capsys.readouterr().err
    assert re.fullmatch(r"warning: R\^2 .*\n", warning)


def test_saved_model_predicts_what_it_predicted(capsys, trees):
    fit = ["fit", "trees.csv", "--target", "volume", "--features", "girth,height"]
    assert run(capsys, *fit, "--save", "model.joblib").endswith("saved to model.joblib\n")
    printed = run(capsys, "predict", "model.joblib", "trees.csv")
    run(capsys, "predict", "model.joblib", "trees.csv", "--output", "out.csv")
    assert Path("out.csv").read_text() == printed
    found = pd.read_csv("out.csv")
    assert list(found.columns) == ["prediction"]
    design = np.column_stack([trees.girth, trees.height, np.ones(5)])
    expected = design @ np.linalg.lstsq(design, trees.volume, rcond=None)[0]
    np.testing.assert_allclose(found.prediction, expected, rtol=1e-11)


@pytest.mark.exhaustive  # .ci/run runs the program each time
@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["fit", "hubble"], 0, "76.126956857289"),
        (["fit", "hubbel"], 2, "hubbel: no such file"),
    ],
)
def test_as_a_program(tmp_path, arguments, status, words):
    # The working directory is not the repository's, as for a user who installed the package.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "torchlinreg", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


ON_TREES = ["fit", "trees.csv", "--target", "volume"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit", "hubbel"], ["hubbel", "no such file", "hubble", "plant_richness"]),
        (["fit", "trees.csv"], ["--target", "girth, height, volume, plot, copies"]),
        (["fit", "trees.csv", "--target", "v"], ["trees.csv", "'v'", "girth, height"]),
        ([*ON_TREES, "--features", "girth,a,b"], ["trees.csv", "'a', 'b'", "girth, height"]),
        ([*ON_TREES, "--weight", "w"], ["trees.csv", "'w'", "girth, height"]),
        ([*ON_TREES, "--features", "plot"], ["trees.csv", "'plot'", "'A', 'B', 'C'", "number"]),
        ([*ON_TREES, "--features", "volume"], ["different columns", "'volume', 'volume'"]),
        ([*ON_TREES, "--weight", "volume"], ["different columns", "'volume', 'volume'"]),
        ([*ON_TREES, "--alpha", "-1"], ["trees.csv", "alpha", "-1"]),
        ([*ON_TREES, "--alpha", "much"], ["--alpha", "'much'"]),
        ([*ON_TREES, "--device", "abacus"], ["trees.csv", "device", "abacus"]),
        ([*ON_TREES, "--save", "no/such/folder/m"], ["no/such/folder/m"]),
        (["predict", "missing.joblib", "trees.csv"], ["missing.joblib", "No such file"]),
        (["guess"], ["guess", "fit", "predict"]),
        ([], ["COMMAND"]),
    ],
)
def test_refused_arguments(capsys, trees, arguments, words):
    line = refusal(capsys, *arguments)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["No columns to parse"]),
        (b"x,y,w\n", ["no rows below the header"]),
        (
            b"x,y,w\n1,2,1\n3,,1\n,5,1\n7,,1\n",
            ["'y' has no value in data rows 2, 4", "'x'", "row 3"],
        ),
        (b"x,y,w\n1,2,1\n3,2.5?,1\n", ["'y' has '2.5?' in data row 2", "finite number"]),
        (b"x,y,w\n1,2,1\n3,inf,1\n", ["'y' has 'inf' in data row 2", "finite number"]),
        (b"x,y,w\n1,True,1\n3,False,1\n", ["'y' has 'True', 'False' in data rows 1, 2"]),
        (b"x,y,w\n1,2026_11,1\n", ["'y' has '2026_11' in data row 1"]),
        (b"x,y,w\n" + b"1,,1\n" * 9, ["data rows 1, 2, 3, 4, 5 and 4 more"]),
        (b"x,y,w\n1,2,1\n3,4,-0.5\n", ["'w' has -0.5 in data row 2", ">= 0"]),
        (b"x,y,w\n1,2,0\n3,4,0\n", ["weight", "zero"]),
        (b"x,y,w\n1,2,1\n1,2,3,4\n", ["cannot be read as CSV", "line 3"]),
        (b"x,y,w\n1,2,3,4\n1,2,3,4\n", ["cannot be read as CSV"]),
        (b"y,w,t\n1,1,a\n2,1,b\n", ["no column of numbers other than 'y', 'w'", "y, w, t"]),
        (b"x,y,w\n\xff\xfe,1,2\n", ["cannot be read as CSV", "utf-8"]),
    ],
)
def test_refused_files(capsys, tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    Path("data.csv").write_bytes(content)
    line = refusal(capsys, "fit", "data.csv", "--target", "y", "--weight", "w")
    for word in ["data.csv", *words]:
        assert word in line


@pytest.mark.parametrize("content", [b"", b"girth\n8\n", b"x,y\n1,2\n", b"\x80\x04K\x01."])
def test_what_is_no_saved_model_is_refused(capsys, trees, content):
    Path("model.joblib").write_bytes(content)
    line = refusal(capsys, "predict", "model.joblib", "trees.csv")
    assert "model.joblib: " in line
    assert "not a saved model" in line


def test_refused_prediction_names_the_missing_feature(capsys, trees):
    run(capsys, *ON_TREES, "--save", "model.joblib")
    Path("new.csv").write_text("girth,copies\n8,1\n")
    line = refusal(capsys, "predict", "model.joblib", "new.csv")
    assert "new.csv: no column 'height'; the columns are girth, copies" in line
