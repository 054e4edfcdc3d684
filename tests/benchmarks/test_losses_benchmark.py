"""The benchmark of losses and penalties: objectives are checked first, and the README's table shows them."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.fake_clock import TICK_S, Clock, put_on_fake_clock
from sklearn.linear_model import HuberRegressor

from benchmarks import losses, readme_tables, speed
from benchmarks.libraries import OURS
from benchmarks.losses import CASES, Answer, Case, Entrant, Goal, Problem
from benchmarks.speed import Ratio, Timing
from benchmarks.synthetic import Data, Shape, Solution, make_data

QUICK = {"rounds": 2, "budget_s": 0.1}
OPTIONAL = ("skglm", "glum", "statsmodels")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(speed, "MIN_SAMPLE_S", TICK_S)
    monkeypatch.setattr(losses, "N_ALPHAS", 4)
    return put_on_fake_clock(monkeypatch, speed, losses)


@pytest.fixture
def without_rivals(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the optional rivals were not installed; numba would compile for 20 s."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in OPTIONAL else find(name, *rest)
    )


def made_of(*rivals: Entrant) -> Case:
    """A case whose optimum has the value 1, found by ours, with some rivals."""
    ours = Entrant(OURS, lambda: 1.0, lambda: "ours()", role="ours")
    return Case("Made up", "9x2", lambda shape: Problem([ours, *rivals], lambda value: value, {}))


def rival(value: float, **settings: Any) -> Entrant:
    return Entrant("rival", lambda: value, lambda: "rival(\n  1)", **settings)


def held(case: Case, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setitem(CASES, "made up", case)
    record = losses.hold_case("made up", Shape(9, 2), **QUICK)
    return {timing["name"]: timing for timing in record["timings"]} | {"targets": record["targets"]}


def test_huber_loss_is_least_over_the_scale_and_half_of_scikit_learns() -> None:
    data = make_data(Shape(200, 3))
    y = data.y + np.where(np.arange(200) % 10 == 0, 30.0, 0.0)
    model = HuberRegressor(alpha=0.0, tol=1e-10, max_iter=1000).fit(data.X, y)
    residual = y - model.predict(data.X)

    def joint(scale: float) -> float:
        return scale / 2 + losses.huber(residual / scale, 1.35, 1.0) * scale

    value = losses.huber(residual, 1.35)
    assert value == pytest.approx(joint(model.scale_), rel=1e-9)
    assert value <= min(joint(scale) for scale in np.geomspace(0.1, 10, 400)) * (1 + 1e-14)
    # Inside and outside, at a scale that is given.
    assert losses.huber(np.array([0.5, -3.0]), 1.0, 2.0) == pytest.approx((0.125 + (2 * 3 - 2)) / 2)


def test_pinball_loss_is_least_at_the_quantile() -> None:
    y = np.random.default_rng(0).normal(size=1001)
    assert losses.pinball(np.array([2.0, -1.0]), 0.9) == pytest.approx((1.8 + 0.1) / 2)
    at_quantile = losses.pinball(y - np.quantile(y, 0.9, method="inverted_cdf"), 0.9)
    assert all(losses.pinball(y - level, 0.9) >= at_quantile - 1e-15 for level in y)


def test_objective_sees_the_penalty_the_bounds_and_what_is_no_answer() -> None:
    data = Data(np.eye(3, 2), np.zeros(3))
    value = losses.objective(data, lambda residual: float(np.sum(residual**2)), 0.5, 0.25, lower=-1.0)
    assert value(Answer(Solution(np.array([2.0, -1.0]), 0.0))) == pytest.approx(5 + 0.5 * (0.75 + 0.375 * 5))
    for coef, intercept in ([2.0, -1.1], 0.0), ([1.0], 0.0), ([np.nan, 0.0], 0.0), ([1.0, 1.0], np.inf):
        assert value(Answer(Solution(np.array(coef), intercept))) == math.inf


@pytest.mark.every(5)
@pytest.mark.usefixtures("quick", "without_rivals")
@pytest.mark.parametrize("name", CASES)
def test_ours_ends_at_the_best_objective_of_every_case(name: str) -> None:
    shape = Shape(30, 50) if name == "lasso_wide" else Shape(300, 5)
    record = losses.hold_case(name, shape, **QUICK)
    for timing in record["timings"]:
        if timing["status"] == "skipped":
            assert timing["reason"].endswith("is not installed")
            assert timing["call"] is None
            continue
        assert timing["status"] == "timed", timing
        assert timing["error"] < (losses.LIMIT if timing["role"] == "estimator" else losses.OUR_LIMIT)
        assert timing["success"]
        assert timing["call"]
    assert record["timings"][0]["role"] == "ours"
    correct = [target for target in record["targets"] if "excess" in target["target"]]
    assert correct
    assert all(target["passed"] for target in correct)
    n_goals = sum(goal.rival in {t["name"] for t in record["timings"]} for goal in CASES[name].goals)
    assert n_goals == len(CASES[name].goals)


@pytest.mark.usefixtures("quick")
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in OPTIONAL), reason="needs the rivals of [bench]"
)
@pytest.mark.parametrize("name", ["huber", "huber_fixed", "median", "elastic_net", "positive"])
def test_installed_rivals_are_right(name: str) -> None:
    record = losses.hold_case(name, Shape(300, 5), **QUICK)
    timings = {timing["name"]: timing for timing in record["timings"]}
    assert len(timings) >= 3
    assert {timing["status"] for timing in timings.values()} == {"timed"}
    if name == "huber":
        assert timings["statsmodels RLM"]["error"] is None
        assert timings["statsmodels RLM"]["note"]


@pytest.mark.usefixtures("quick")
def test_who_ends_above_the_best_is_wrong_and_who_raises_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> float:
        raise RuntimeError("no such solver\nat all")

    failing = Entrant("failing", fail, lambda: "fail()")
    other = rival(7.0, comparable=False)._replace(name="other")
    found = held(made_of(rival(1.001), failing, other), monkeypatch)
    assert found["rival"]["status"] == "wrong"
    assert found["rival"]["samples_s"] == ()
    assert found["rival"]["call"] == "rival( 1)"
    assert (found["failing"]["status"], found["failing"]["reason"]) == (
        "failed",
        "RuntimeError: no such solver",
    )
    assert found["other"]["status"] == "timed"
    assert found["other"]["error"] is None
    assert found[OURS]["status"] == "timed"


@pytest.mark.usefixtures("quick")
def test_ours_is_held_against_the_best_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    found = held(made_of(rival(1.0 - 1e-6)), monkeypatch)
    (target,) = found["targets"]
    assert target["value"] == pytest.approx(1e-6, rel=1e-3)
    assert not target["passed"]
    assert found[OURS]["status"] == "timed"
    found = held(made_of(rival(0.5)), monkeypatch)
    assert found[OURS]["status"] == "wrong"
    assert not any(target["passed"] for target in found["targets"])


@pytest.mark.usefixtures("quick")
def test_who_is_slow_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = held(made_of(rival(1.0))._replace(slow_s=0.0), monkeypatch)
    assert len(found["rival"]["samples_s"]) == 1
    assert not found["rival"]["interleaved"]
    assert found["rival"]["ratio"]["median"] > 0
    assert len(found[OURS]["samples_s"]) == 2
    found = held(made_of(rival(1.1))._replace(slow_s=0.0), monkeypatch)
    assert found["rival"]["status"] == "wrong"


def test_a_stall_makes_nobody_slow(monkeypatch: pytest.MonkeyPatch, quick: Clock) -> None:
    calls: list[int] = []

    def stalled() -> float:
        calls.append(1)
        quick.sleep(0.2 if len(calls) == 2 else 0.0)  # the first is the small fit
        return 1.0

    entrant = Entrant("rival", stalled, lambda: "rival()")
    found = held(made_of(entrant)._replace(slow_s=0.1), monkeypatch)
    assert found["rival"]["interleaved"]
    assert len(found["rival"]["samples_s"]) == 2


def test_goals_compare_with_the_contestant_they_name() -> None:
    def timing(name: str, role: speed.Role, *samples: float) -> Timing:
        return Timing(name, role, "timed", error=0.0, samples_s=samples, ratio=Ratio(1.0, 1.0, 1.0))

    case = CASES["huber"]._replace(
        goals=(Goal("a", 4.0), Goal("b", 4.0, "mine"), Goal("c", 1.0)), seconds=1.5
    )
    timings = [
        timing(OURS, "ours", 1.0, 2.0, 4.0),
        timing("mine", "variant", 0.5, 0.5, 0.5),
        timing("a", "estimator", 8.0),
        timing("b", "estimator", 1.0, 1.5, 1.5),
    ]
    targets = losses.judge(case, timings)
    assert [target["passed"] for target in targets] == [True, True, True, False, False]
    assert targets[2]["ratio"]["median"] == 4.0
    assert targets[2]["within_noise"]
    assert targets[3]["ratio"]["median"] == 3.0
    assert targets[4]["value"] == 2.0


@pytest.mark.usefixtures("quick", "without_rivals")
def test_what_is_written_is_what_the_readme_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        readme_tables, "TABLES", [table for table in readme_tables.TABLES if table.marker == "losses table"]
    )
    output = tmp_path / "new" / "losses.json"
    arguments = ["--cases", "huber,lasso,cross_validation", "--shape", "200x4", "--rounds", "1"]
    assert losses.main([*arguments, "--budget", "0.1", "--output", str(output)]) == 0
    assert "5 times HuberRegressor" in capsys.readouterr().out
    report = json.loads(output.read_text())
    assert report["environment"]["packages"]["glum"] is None
    assert [case["case"] for case in report["cases"]] == ["huber", "lasso", "cross_validation"]

    readme = tmp_path / "README.md"
    readme.write_text("Before.\n<!-- losses table: begin -->outdated<!-- losses table: end -->\nAfter.\n")
    assert readme_tables.main(["--readme", str(readme), "--results", str(output.parent)]) == 0
    text = readme.read_text()
    assert text.startswith("Before.\n<!-- losses table: begin -->\n")
    assert "outdated" not in text
    assert "| **Lasso, 200 x 4** |" in text
    assert "| GridSearchCV(Ridge) |" in text
    assert "| skglm Lasso | - | - | - | - |" in text


def losses_report() -> dict[str, Any]:
    timed = {"status": "timed", "median_s": 0.002, "n_iter": 1234, "error": 0.0}
    one = {"comparable": True, "note": "", "interleaved": True, "ratio": {"median": 1.0}}
    ours = timed | one | {"name": OURS, "role": "ours"}
    theirs = timed | one | {"name": "theirs", "ratio": {"median": 12.4}, "error": 3e-8}
    theirs |= {"n_iter": None, "interleaved": False}
    own = timed | one | {"name": "own", "comparable": False, "error": None, "note": "has another scale"}
    wrong = one | {"name": "wrong", "status": "wrong", "error": 0.1, "ratio": None, "n_iter": 3}
    return {
        "format": 1,
        "settings": {"limit": 1e-5},
        "environment": {
            "packages": {"torch": "2.0", "glum": None},
            "processor": {"model": "A Processor", "cores": 2},
            "threads": {"torch": 2},
            "cuda": None,
        },
        "cases": [
            {"title": "Median", "n_samples": 5000, "n_features": 10, "timings": [ours, theirs, own, wrong]}
        ],
    }


def test_table_tells_time_iterations_and_excess() -> None:
    lines = readme_tables.losses_table(losses_report()).splitlines()
    assert "| **Median, 5,000 x 10** |  |  |  |  |" in lines
    assert f"| {OURS} | 1.0 | 2.0 | 1,234 | 0e+00 |" in lines
    assert "| theirs | 12 | 2.0 | - | 3e-08 |" in lines
    assert "| own (*) | 1.0 | 2.0 | 1,234 | - |" in lines
    assert "| wrong | wrong | - | - | 1e-01 |" in lines
    assert any("own: has another scale" in line for line in lines)
    assert "Timed once, as they take seconds: theirs." in lines
    assert lines[-1].startswith("Measured on A Processor, 2 cores, 2 threads; torch 2.0;")
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    with pytest.raises(readme_tables.TableError, match="format 2"):
        readme_tables.losses_table({"format": 2})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "must be at least 1"),
        (["--cases", "huber,tea"], "--cases tea: there are huber, huber_centred"),
        (["--shape", "25by1"], "not a shape"),
    ],
)
def test_command_line_errors_say_what_to_give(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        losses.main(arguments)
    assert message in capsys.readouterr().err
