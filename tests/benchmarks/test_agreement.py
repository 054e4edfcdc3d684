"""The comparison with other libraries states each problem to each of them as it should."""

import json
from pathlib import Path

import pytest

from benchmarks.agreement import METHODS, PIPELINED, Method, judge, main
from benchmarks.problems import all_problems

PROBLEMS = {problem.name: problem for problem in all_problems()}
# Weighted, with and without an intercept, several targets, ridge, polynomial, least norm: none of
# them hard in float64, so that a method with few digits here has been called in a wrong way.
EASY = (
    "weighted-integers",
    "weighted-zeros-no_intercept",
    "targets-weighted",
    "ridge-weighted",
    "ridge-no_intercept",
    "monomials--1_to_1-degree_10",
    "wide-5x12",
    "wide-5x12-no_intercept",
)


@pytest.mark.parametrize("method", METHODS + PIPELINED, ids=lambda method: method.description)
def test_methods_are_right_on_easy_problems(method: Method) -> None:
    pytest.importorskip(method.package)
    for name in EASY:
        outcome = judge(method, PROBLEMS[name])
        if outcome is not None:
            assert outcome.error is None
            assert outcome.digits.least > 9.0, name


def test_report_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results" / "agreement.json"
    main(["--quick", "--output", str(output)])
    report = json.loads(output.read_text(), parse_constant=pytest.fail)
    assert "reach the digits due" in capsys.readouterr().out
    assert set(report) == {
        "environment",
        "settings",
        "methods",
        "summary",
        "pipelines",
        "problems",
    }
    ours = report["summary"]["ours"]
    assert ours["all"]["n_problems"] == len(report["problems"])
    assert {record["family"] for record in report["problems"]} == set(ours["families"])
