"""The benchmark of training: who is wrong is not timed, who gives up says so, and the table shows it."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.fake_clock import TICK_S, Clock, put_on_fake_clock

from benchmarks import readme_tables, speed, training
from benchmarks.speed import Ratio, Timing
from benchmarks.synthetic import Shape, Solution, reference
from benchmarks.trainers import (
    Fit,
    Optimizer,
    Rows,
    Trainer,
    exact_trajectory,
    full_batch_trainers,
    make_rows,
    mini_batch_trainers,
    reach_trainers,
    skorch_net,
)

QUICK = {"rounds": 2, "budget_s": 0.1}
# Few epochs are the point; what skorch warns about is its own.
short_fits = pytest.mark.filterwarnings("ignore:After .* epochs", "ignore::UserWarning:skorch")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(speed, "MIN_SAMPLE_S", TICK_S)
    # On the clock all fits take as long, so that the number of epochs ends the race of who does not arrive.
    monkeypatch.setattr(training, "MOST_EPOCHS", 128)
    monkeypatch.setattr(training, "BATCH_SIZE", 16)
    monkeypatch.setattr(training, "MINI_BATCH_RATE", 0.05)
    return put_on_fake_clock(monkeypatch, speed, training)


@pytest.fixture(scope="module")
def rows() -> Rows:
    return make_rows(Shape(800, 3))


def lie(change: float) -> Fit:
    def fit(rows: Rows, n_epochs: int) -> Solution:
        coef, intercept = reference(rows.double).solution
        return Solution(coef + change / n_epochs, intercept)

    return fit


def test_rows_are_standardised_and_the_same_in_both_types(rows: Rows) -> None:
    np.testing.assert_allclose(rows.double.X.mean(axis=0), 0.0, atol=1e-14)
    np.testing.assert_allclose(rows.double.X.std(axis=0), 1.0)
    np.testing.assert_allclose([rows.double.y.mean(), rows.double.y.std()], [0.0, 1.0], atol=1e-14)
    assert rows.single.X.dtype == rows.single.y.dtype == np.float32
    np.testing.assert_allclose(rows.single.X, rows.double.X, rtol=1e-6)
    np.testing.assert_allclose(rows.single.y[:, 0], rows.double.y, rtol=1e-6)


def test_distance_is_in_standard_deviations_and_infinite_for_what_is_no_solution() -> None:
    raw = make_rows(Shape(200, 2)).double
    data = type(raw)(raw.X * [10.0, 1.0], raw.y * 4.0)
    truth = reference(data).solution
    changed = Solution(truth.coef + np.array([0.02, 0.01]), truth.intercept)
    assert training.distance(truth, truth, data) == 0.0
    assert training.distance(changed, truth, data) == pytest.approx(0.02 * 10.0 / 4.0)
    assert training.distance(Solution(truth.coef[:1], 0.0), truth, data) == math.inf
    assert training.distance(Solution(truth.coef * np.nan, 0.0), truth, data) == math.inf
    assert training.distance(Solution(truth.coef, truth.intercept + 1.0), truth, data) == math.inf


@short_fits
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_all_full_batch_trainers_take_the_same_steps(rows: Rows, optimizer: Optimizer) -> None:
    exact = exact_trajectory(rows.double, optimizer, 0.01, 30)
    assert np.abs(exact.coef - reference(rows.double).solution.coef).max() > 0.1
    trainers = [trainer for trainer in full_batch_trainers(optimizer, 0.01) if trainer.missing is None]
    assert len(trainers) >= 3
    for trainer in trainers:
        assert training.distance(trainer.fit(rows, 30), exact, rows.double) < 1e-5, trainer.name


@short_fits
def test_mini_batch_trainers_approach_ols(rows: Rows) -> None:
    truth = reference(rows.double).solution
    trainers = [trainer for trainer in mini_batch_trainers(0.05, 16) if trainer.missing is None]
    found = {
        trainer.name: training.distance(trainer.fit(rows, 8), truth, rows.double) for trainer in trainers
    }
    assert len(found) >= 6
    assert max(found.values()) < 0.1
    assert min(found, key=found.__getitem__) == 'ours, "auto"'


@pytest.mark.skipif(importlib.util.find_spec("skorch") is None, reason="skorch is not installed")
@short_fits
def test_skorch_takes_part_with_mini_batches(rows: Rows) -> None:
    assert "skorch" in {trainer.name for trainer in reach_trainers(16) if trainer.missing is None}
    truth = reference(rows.double).solution
    assert training.distance(skorch_net("sgd", 0.02, 16)(rows, 8), truth, rows.double) < 0.1


@pytest.mark.parametrize("needed", [1, 2, 3, 7, 8, 9])
def test_the_least_number_of_epochs_is_found(needed: int) -> None:
    search = training.epochs_to_reach(
        lambda n_epochs: Solution(np.zeros(1), float(n_epochs)),
        lambda solution: 1.0 / solution.intercept,
        limit=1.0 / (needed - 0.5),
        patience_s=60.0,
    )
    assert (search.n_epochs, search.reached) == (needed, True)
    assert search.distance == 1.0 / needed


@pytest.mark.parametrize(("patience_s", "n_epochs"), [(0.0, 1), (10.0, 8), (1e9, 128)])
def test_the_search_is_given_up_with_the_distance_reached(
    quick: Clock, patience_s: float, n_epochs: int
) -> None:
    """A second for each epoch: 16 more would exceed 10 s; beyond 128 it is given up whatever the patience."""

    def fit(n_epochs: int) -> Solution:
        quick.sleep(n_epochs)
        return Solution(np.zeros(1), 0.0)

    search = training.epochs_to_reach(fit, lambda solution: 0.5, limit=0.1, patience_s=patience_s)
    assert (search.n_epochs, search.distance, search.reached) == (n_epochs, 0.5, False)


def test_fewer_epochs_are_scaled_to_all(rows: Rows, monkeypatch: pytest.MonkeyPatch, quick: Clock) -> None:
    ours, loop, *_ = full_batch_trainers("sgd", training.FULL_BATCH_RATE)

    def fit(rows: Rows, n_epochs: int) -> Solution:
        quick.sleep(0.01 * n_epochs)
        return loop.fit(rows, n_epochs)

    whole_loop = Trainer("whole", "loop", "estimator", fit)
    short = Trainer("short", "loop", "estimator", fit, most_epochs=4)
    absent = Trainer("absent", "absent()", "estimator", loop.fit, package="no_such_package")
    monkeypatch.setattr(training, "full_batch_trainers", lambda *_: (ours, whole_loop, short, absent))
    case = training.full_batch_case(rows, "sgd", 400, **QUICK)
    own, whole, few, skipped = case["timings"]
    assert [timing["status"] for timing in case["timings"]] == ["timed", "timed", "timed", "skipped"]
    assert skipped["reason"] == "no_such_package is not installed"
    assert (whole["n_epochs"], whole["n_epochs_timed"]) == (400, 400)
    assert (few["n_epochs"], few["n_epochs_timed"]) == (400, 4)
    # A look at the clock is scaled along.
    assert whole["median_s"] == pytest.approx(4.0 + TICK_S)
    assert few["median_s"] == pytest.approx(100 * (0.04 + TICK_S))
    ratios = [a / b for a, b in zip(few["samples_s"], own["samples_s"], strict=False)]
    assert few["ratio"]["median"] == pytest.approx(np.median(ratios))
    assert own["ratio"]["median"] == 1.0
    assert "(*) short was timed for 4 epochs, and its time scaled to 400." in table_of(case)


@pytest.mark.usefixtures("quick")
def test_wrong_steps_are_not_timed(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    own = full_batch_trainers("sgd", training.FULL_BATCH_RATE)[0]
    liar = Trainer("liar", "liar()", "routine", lie(0.1))
    monkeypatch.setattr(training, "full_batch_trainers", lambda *_: (own, liar))
    case = training.full_batch_case(rows, "sgd", 10, **QUICK)
    right, wrong = case["timings"]
    assert (right["status"], wrong["status"]) == ("timed", "wrong")
    assert wrong["samples_s"] == ()
    assert "relative error" in wrong["reason"]
    assert case["targets"] == []
    assert "| liar | - | wrong | - |" in table_of(case)


@pytest.mark.usefixtures("quick")
def test_who_does_not_arrive_says_how_far_it_came(rows: Rows) -> None:
    trainers = [
        reach_trainers(16)[0],
        Trainer("slow", "slow()", "estimator", lie(6.5 * training.REACH)),
        Trainer("never", "never()", "estimator", lie(1e6)),
        Trainer("absent", "absent()", "estimator", lie(0.0), package="no_such_package"),
    ]
    case = training.reach_case(rows, 0.2, trainers, **QUICK)
    ours, slow, never, absent = case["timings"]
    assert ours["status"] == slow["status"] == "timed"
    assert ours["error"] < training.REACH
    assert slow["n_epochs"] == 7
    assert never["status"] == "wrong"
    assert never["error"] == pytest.approx(1e6 / never["search"]["n_epochs"], rel=1e-6)
    assert "not below 1e-03, after" in never["reason"]
    assert (absent["status"], absent["search"]) == ("skipped", None)
    json.dumps(case, allow_nan=False)
    assert "| not reached | > " in table_of(case)


def test_targets_are_judged_against_each_of_ours() -> None:
    def timing(name: str, role: Any, seconds: float, error: float) -> Timing:
        ratio = Ratio(seconds, seconds, seconds)
        return Timing(name, role, "timed", error=error, samples_s=(seconds,), ratio=ratio)

    timings = [
        timing("auto", "ours", 1.0, 1e-6),
        timing("rate", "variant", 2.0, 4e-4),
        timing("SGDRegressor", "estimator", 1.5, 5e-3),
        timing("skorch", "estimator", 60.0, 3e-4),
    ]
    targets = training.judge("minibatch", timings)
    passed = {(target["target"], target["rival"]): target["passed"] for target in targets}
    assert passed == {
        ("auto: level with SGDRegressor", "SGDRegressor"): True,
        ("auto: 40 times skorch", "skorch"): True,
        ("auto: nearer to OLS", "SGDRegressor"): True,
        ("auto: nearer to OLS", "skorch"): True,
        ("rate: level with SGDRegressor", "SGDRegressor"): False,
        ("rate: 40 times skorch", "skorch"): False,
        ("rate: nearer to OLS", "SGDRegressor"): True,
        ("rate: nearer to OLS", "skorch"): False,
    }
    wrong = Timing("auto", "ours", "wrong", reason="its relative error is 1")
    (target,) = training.judge("reach", [wrong])
    assert (target["target"], target["passed"]) == ("auto is right", False)


@pytest.mark.usefixtures("quick")
def test_training_writes_its_samples_and_the_readme_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "new" / "training.json"
    few = ["--rounds", "1", "--budget", "0.1", "--patience", "0.2"]
    assert training.main(["--shape", "200x3", "--epochs", "12", *few, "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert report["environment"]["packages"]["torch"]
    assert report["settings"]["patience_s"] == 0.2
    cases = [(case["part"], case["optimizer"]) for case in report["cases"]]
    assert cases == [("full", "sgd"), ("full", "adam"), ("minibatch", "sgd"), ("reach", None)]
    for case in report["cases"]:
        assert case["timings"][0]["role"] == "ours"
        for timing in case["timings"]:
            assert timing["call"]
            if timing["status"] == "timed":
                assert len(timing["samples_s"]) == 1
                assert timing["error"] <= case["limit"]
                assert timing["n_epochs"] >= timing["n_epochs_timed"] >= 1
            else:
                assert timing["reason"]
    assert len(report["cases"][0]["targets"]) >= 1
    printed = capsys.readouterr().out
    assert "full 200x3 sgd" in printed
    assert "3 times a PyTorch loop" in printed

    table = next(table for table in readme_tables.TABLES if table.marker == "training table")
    monkeypatch.setattr(readme_tables, "TABLES", (table,))
    readme = tmp_path / "README.md"
    readme.write_text("Before.\n<!-- training table: begin -->old<!-- training table: end -->\nAfter.\n")
    where = ["--readme", str(readme), "--results", str(output.parent)]
    assert readme_tables.main([*where, "--check"]) == 1
    assert readme_tables.main(where) == 0
    assert readme_tables.main([*where, "--check"]) == 0
    text = readme.read_text()
    assert "| **Full batch, Adam, rate 0.01, 200 x 3** |" in text
    assert "| **Until the distance is below 0.001, 200 x 3** |" in text
    assert "training.json" in text
    assert "old" not in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {6}


def table_of(case: dict[str, Any]) -> str:
    processor = {"model": "a processor", "cores": 2}
    environment = {"packages": {"torch": "2"}, "processor": processor, "threads": {"torch": 2}, "cuda": None}
    return readme_tables.training_table({"format": 1, "environment": environment, "cases": [case]})


def test_a_table_of_an_unknown_format_is_refused() -> None:
    with pytest.raises(readme_tables.TableError, match="format 2: 1 is known"):
        readme_tables.training_table({"format": 2})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "must be at least 1"),
        (["--epochs", "0"], "must be at least 1"),
        (["--parts", "full,tea"], "--parts tea: there are full, minibatch, reach"),
        (["--shape", "25by1"], "not a shape"),
    ],
)
def test_command_line_errors_say_what_to_give(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        training.main(arguments)
    assert message in capsys.readouterr().err
