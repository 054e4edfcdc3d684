"""The benchmark scripts: a wrong answer is no time, and what they write is what README.md shows."""

import json
import math
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.fake_clock import TICK_S, put_on_fake_clock

from benchmarks import cliffs, libraries, peak_memory, readme_tables, speed
from benchmarks.environment import describe
from benchmarks.libraries import LIBRARIES, OURS, Library
from benchmarks.synthetic import (
    Data,
    Shape,
    Solution,
    make_data,
    parse_shape,
    reference,
)

OWN = next(library for library in LIBRARIES if library.name == OURS)


def contest(data: Data, rivals: list[Library]) -> dict[str, speed.Timing]:
    contestants = speed.fit_contestants(data, reference(data), "dense", [OWN, *rivals])
    timings = speed.hold_contest(contestants, tolerance=1e-6, rounds=2, budget_s=1.0)
    return {timing.name: timing for timing in timings}


def rival(fit: Any, package: str = "numpy") -> Library:
    return Library("rival", "rival()", package, fit, frozenset({"dense"}))


def lie(change: float) -> Any:
    def fit(data: Data) -> Solution:
        truth = reference(data).solution
        return Solution(truth.coef * (1 + change), truth.intercept)

    return fit


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "MIN_SAMPLE_S", TICK_S)
    put_on_fake_clock(monkeypatch, speed)


@pytest.fixture
def data() -> Data:
    return make_data(Shape(40, 3))


@pytest.mark.parametrize("text", ["25", "axb", "1x2x3", ""])
def test_bad_shape_is_named_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a shape: write rows x columns"):
        parse_shape(text)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("density", [None, 0.2])
def test_reference_solves_the_normal_equations(dtype: str, weighted: bool, density: float | None) -> None:
    data = make_data(Shape(300, 5), dtype=dtype, weighted=weighted, density=density)
    X = data.X if density is None else data.X.toarray()
    X, y = X.astype(np.float64), data.y.astype(np.float64)
    weight = np.ones(300) if data.sample_weight is None else data.sample_weight.astype(np.float64)
    solution = reference(data).solution
    residual = weight * (y - X @ solution.coef - solution.intercept)
    assert X.dtype == np.float64
    assert data.X.dtype == dtype
    np.testing.assert_allclose(residual.sum(), 0.0, atol=1e-11)
    np.testing.assert_allclose(X.T @ residual, 0.0, atol=1e-10)


def test_error_sees_coefficients_intercept_shape_and_nan(data: Data) -> None:
    truth = reference(data)
    coef, intercept = truth.solution
    assert truth.error(truth.solution) == 0.0
    assert truth.error(Solution(coef * 1.001, intercept)) > 5e-4
    assert truth.error(Solution(coef, intercept + 0.01)) > 1e-3
    assert truth.error(Solution(coef[:2], intercept)) == math.inf
    assert truth.error(Solution(coef * np.nan, intercept)) == math.inf
    assert truth.error(Solution(coef, np.nan)) == math.inf


@pytest.mark.usefixtures("quick")
def test_right_answer_is_timed_and_wrong_one_is_not(data: Data) -> None:
    right = contest(data, [rival(lie(1e-9))])
    assert right["rival"].status == "timed"
    assert len(right["rival"].samples_s) == len(right[OURS].samples_s) == 2
    assert right["rival"].ratio is not None
    wrong = contest(data, [rival(lie(1e-3))])
    assert wrong["rival"].status == "wrong"
    assert wrong["rival"].samples_s == ()
    assert wrong["rival"].ratio is None
    assert "relative error" in str(wrong["rival"].reason)
    assert speed.fastest(list(wrong.values()), ("estimator",)) is None
    assert speed.judge("fit", data.shape, list(wrong.values())) == []


@pytest.mark.usefixtures("quick")
def test_failing_and_missing_rivals_are_reported(data: Data) -> None:
    def fail(data: Data) -> Solution:
        raise RuntimeError("no such driver")

    failed = contest(data, [rival(fail)])["rival"]
    assert (failed.status, failed.reason) == ("failed", "RuntimeError: no such driver")
    missing = contest(data, [rival(lie(0.0), package="no_such_package")])["rival"]
    assert (missing.status, missing.reason) == ("skipped", "no_such_package is not installed")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["dense", "weighted", "sparse"])
def test_every_installed_library_is_right(kind: libraries.Kind) -> None:
    data = make_data(
        Shape(60, 1 if kind == "dense" else 4),
        weighted=kind == "weighted",
        density=0.3 if kind == "sparse" else None,
    )
    contestants = speed.fit_contestants(data, reference(data), kind)
    timings = speed.hold_contest(contestants, tolerance=1e-6, rounds=1, budget_s=1.0)
    assert {timing.status for timing in timings} <= {"timed", "skipped"}
    assert {timing.name for timing in timings if timing.role == "floor"} == {"X.T @ X", "X.sum()"}
    timed = {timing.name for timing in timings if timing.status == "timed"}
    assert {OURS, "LinearRegression", "Ridge"} <= timed


def test_targets_pass_at_the_limit_and_tell_noise() -> None:
    def linear(*ratios: float) -> list[speed.Timing]:
        ratio = speed.Ratio(*ratios)
        return [speed.Timing("LinearRegression", "estimator", "timed", ratio=ratio)]

    large = speed.judge("fit", Shape(100_000, 10), linear(4.0, 3.9, 4.1))
    assert [target["target"] for target in large] == [
        "level with the fastest estimator",
        "level with the fastest of all",
        "4 times LinearRegression",
    ]
    assert [target["passed"] for target in large] == [True, True, True]
    assert [target["within_noise"] for target in large] == [False, False, True]
    small = speed.judge("fit", Shape(25, 1), linear(0.9, 0.8, 0.94))
    assert [target["passed"] for target in small] == [False, False]
    assert not any(target["within_noise"] for target in small)


def test_a_wrong_answer_of_ours_misses_its_target() -> None:
    ours = speed.Timing(OURS, "ours", "wrong", reason="its relative error is 1, above 1e-06")
    (target,) = speed.judge("fit", Shape(100_000, 10), [ours])
    assert target["target"] == "ours is right"
    assert not target["passed"]


def test_slow_contestants_have_fewer_samples() -> None:
    assert speed._plan(1e-4, rounds=15, budget_s=15.0) == (500, 15)
    assert speed._plan(3.0, rounds=15, budget_s=15.0) == (1, 5)
    assert speed._plan(12.0, rounds=15, budget_s=15.0) == (1, 2)
    assert speed._plan(100.0, rounds=15, budget_s=15.0) == (1, 1)


@pytest.mark.usefixtures("quick")
def test_speed_writes_its_samples_and_the_readme_its_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readme_tables, "TABLES", readme_tables.TABLES[:2])
    output = tmp_path / "new" / "speed.json"
    parts = "fit,float32,weighted,sparse,predict"
    arguments = ["--shapes", "400x2", "--rounds", "1", "--budget", "0.1", "--parts", parts]
    assert speed.main([*arguments, "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert report["environment"]["packages"]["torch"]
    assert [case["part"] for case in report["cases"]] == parts.split(",")
    for case in report["cases"]:
        assert case["targets"]
        for timing in case["timings"]:
            if timing["status"] == "timed":
                assert len(timing["samples_s"]) == 1
                assert timing["median_s"] == timing["minimum_s"] == timing["samples_s"][0] > 0
            else:
                assert timing["status"] == "skipped"
                assert timing["reason"]
    printed = capsys.readouterr().out
    assert "fit 400x2 float64" in printed
    assert "level with the fastest estimator" in printed

    (output.parent / "agreement.json").write_text(json.dumps(agreement_report()))
    readme = tmp_path / "README.md"
    readme.write_text(
        "Before.\n<!-- speed table: begin -->\n<!-- speed table: end -->\nBetween.\n"
        "<!-- agreement table: begin -->old<!-- agreement table: end -->\nAfter.\n"
    )
    where = ["--readme", str(readme), "--results", str(output.parent)]
    assert readme_tables.main([*where, "--check"]) == 1
    assert "out of date" in capsys.readouterr().out
    assert readme_tables.main(where) == 0
    assert readme_tables.main([*where, "--check"]) == 0
    text = readme.read_text()
    assert text.startswith("Before.\n<!-- speed table: begin -->\n")
    assert text.endswith("<!-- agreement table: end -->\nAfter.\n")
    assert "| 400 x 2 |" in text
    assert "| NIST Longley | 15.9 | - |" in text
    assert "| share with the digits due | 100.0% | 25.0% |" in text
    assert "old" not in text
    for table in text.split("\n\n"):
        widths = {line.count("|") for line in table.splitlines() if line.startswith("|")}
        assert len(widths) <= 1


def agreement_report() -> dict[str, Any]:
    def summary(share: float) -> dict[str, Any]:
        condensed = {"n_problems": 4, "share_reaching_digits_due": share, "min": 1, "median": 14.5}
        return {"all": condensed, "families": {}}

    digits = {"coef": 15.9, "intercept": 16.0, "warned": False, "error": None}
    return {
        "methods": {"ours": {"call": "A()"}, "theirs": {"call": "B()"}},
        "summary": {"ours": summary(1.0), "theirs": summary(0.25)},
        "settings": {"digits_due": "12"},
        "problems": [
            {"name": "nist-Longley", "digits": {"ours": digits, "theirs": None}},
            {"name": "wide-5x12", "digits": {"ours": digits, "theirs": None}},
        ],
    }


def test_readme_tables_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--readme", str(tmp_path / "README.md"), "--results", str(tmp_path)]
    assert readme_tables.main(where) == 2
    assert "README.md is missing" in capsys.readouterr().err
    (tmp_path / "README.md").write_text("no markers")
    assert readme_tables.main(where) == 2
    assert "speed.json is missing" in capsys.readouterr().err
    with pytest.raises(readme_tables.TableError, match=r"0 times '<!-- speed table: begin -->'"):
        readme_tables.replace_between_markers("no markers", "speed table", "")
    swapped = "<!-- a: end --><!-- a: begin -->"
    with pytest.raises(readme_tables.TableError, match="before"):
        readme_tables.replace_between_markers(swapped, "a", "")


@pytest.mark.exhaustive
def test_peak_memory_is_measured_in_a_child_process() -> None:
    record = peak_memory.measure("LinearRegression", Shape(200_000, 10))
    assert record["status"] == "measured", record
    assert record["X_bytes"] == 16_000_000
    # LinearRegression copies X, and LAPACK copies it again.
    assert 1.0 < float(str(record["fraction"])) < 6.0


def test_environment_is_json_without_paths_or_host() -> None:
    text = json.dumps(describe())
    assert "filepath" not in text
    assert sys.prefix not in text
    assert f'"{platform.node()}"' not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "must be at least 1"),
        (["--parts", "fit,tea"], "--parts tea: on cpu there are fit, float32"),
        (["--shapes", "25by1"], "not a shape"),
    ],
)
def test_command_line_errors_say_what_to_give(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        speed.main(arguments)
    assert message in capsys.readouterr().err


def test_cliffs_are_judged_by_predictions():
    X, y = cliffs.normal(6, 20)(np.random.default_rng(0))
    box = cliffs.CLIFFS["box 5x20000"]
    assert cliffs.prediction_error(box, X, y)(box.ours(X, y)) < 1e-12
    path = cliffs.CLIFFS["path 30x2500"]
    error = cliffs.prediction_error(path, X, y)
    assert error(path.ours(X, y)) < 1e-10
    assert error(path.ours(X, y + X[:, 0])) > 1e-3
