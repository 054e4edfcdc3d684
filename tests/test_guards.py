"""Random problems of every kind: claims of optima hold, and order, copies and units do not matter."""

import numpy as np
import pytest

from benchmarks.guards import FAMILIES, Exact, Trial, judge, judge_laws, main, make_trial
from benchmarks.guards import LOSSES as LOSSES_OF_TRIALS
from torchlinreg import Status, TorchLinearRegressor
from torchlinreg._data.rows import as_row_blocks
from torchlinreg._objective.penalty import ridge
from torchlinreg._objective.problem import Problem
from torchlinreg._objective.solution import Solution
from torchlinreg._solvers.best_constant import not_above_constant
from torchlinreg._solvers.least_squares.normal_equations import solve_cholesky
from torchlinreg.losses import LOSSES, Quantile

LOSS_NAMES = sorted(LOSSES)


@pytest.mark.every(197)
@pytest.mark.parametrize("seed", range(2000))
def test_guards_and_laws_hold(seed):
    trial = make_trial(seed)
    for verdict in (judge(trial), judge_laws(trial)):
        assert not verdict.is_broken, f"{trial}: {verdict}"


@pytest.mark.parametrize("seed", [6534, 14225, 21831, 31133])
def test_claims_hold_for_each_target(seed):
    """The one with the smaller variance was up to four times farther from its optimum than was claimed."""
    trial = make_trial(seed)
    assert trial.y.shape[1] == 2
    assert judge(trial).outcome == "kept"


PENALTIES = {
    "none": {},
    "ridge": {"alpha": 0.1},
    "lasso": {"alpha": 0.1, "l1_ratio": 1.0},
    "bounds": {"bounds": (-0.5, 0.7)},
}


@pytest.mark.every(5)
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("loss", LOSSES_OF_TRIALS)
def test_what_is_off_the_optimum_is_found_out(loss, penalty):
    rng = np.random.default_rng(1)
    X = rng.standard_normal((20, 3)) + 5
    y = X @ [[1.0], [0.3], [-0.5]] + rng.standard_normal((20, 1))
    parameters = {"loss": LOSSES_OF_TRIALS[loss], "fit_intercept": True, "solver": "auto"} | PENALTIES[
        penalty
    ]
    trial = Trial(0, "ordinary", "dense", loss, X, y, rng.uniform(0.5, 2, 20), parameters)
    assert judge(trial).outcome == judge_laws(trial).outcome == "kept"
    reg = TorchLinearRegressor(**parameters).fit(X, y[:, 0], trial.weight)
    exact, coef = Exact(trial, 0), reg.coef_ * 0.97
    intercept = float(reg.intercept_ + 0.03 * reg.coef_ @ X.mean(0))
    assert exact.check_lower(reg.coef_, float(reg.intercept_), None, Status.OPTIMAL) == ""
    assert "finds an objective lower by" in exact.check_lower(coef, intercept, None, Status.OPTIMAL)


def test_trials_are_of_all_families_and_a_seed_repeats_them():
    trials = [make_trial(seed) for seed in range(200)]
    assert {trial.family for trial in trials} == set(FAMILIES)
    assert {"sgd", "adam", "lbfgs"} & {trial.parameters["solver"] for trial in trials}
    assert (trials[7].X == make_trial(7).X).all()


def test_command_prints_and_writes_figures(tmp_path, capsys):
    assert main(["--n", "2", "--output", str(tmp_path / "guards.json")]) == 0
    assert "kept" in capsys.readouterr().out
    assert (tmp_path / "guards.json").exists()


def solution_of(coef, intercept, **given):
    coef, intercept = np.array(coef, dtype=float), np.array(intercept, dtype=float)
    return Solution(coef, intercept, 1, 1.0, "exact", Status.OPTIMAL, 1, 0.0, **given)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("loss", [*LOSS_NAMES, "quantile 0.9"])
def test_what_is_above_the_best_constant_becomes_that_constant(loss, fit_intercept):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((30, 2)), rng.standard_normal((30, 2)) + 5
    weight = rng.uniform(0.5, 2, 30)
    scale = np.ones(2) if loss == "huber" else None
    loss = Quantile(0.9) if loss == "quantile 0.9" else LOSSES[loss]()
    problem = Problem(as_row_blocks(X, y, weight), ridge(0.0, 2), fit_intercept, loss=loss)
    bad = solution_of([[0.0, 9.0], [0.0, 9.0]], [6.0 * fit_intercept] * 2, scale=scale)
    found = not_above_constant(problem, bad)
    assert found.status is Status.CONSTANT
    zeros = np.zeros((30, 1))  # a fit of nothing
    reg = TorchLinearRegressor(loss=loss, fit_intercept=fit_intercept)
    of_constant = reg.fit(zeros, y[:, 1], weight).intercept_
    assert (found.coef[:, 1] == 0).all()
    np.testing.assert_allclose(found.intercept[1], of_constant, rtol=1e-6)
    assert not_above_constant(problem, found) == found


def test_a_good_solution_stays_and_a_proven_one_is_not_looked_at():
    x = np.arange(10.0)[:, None] + 1e9
    y = 3 * x[:, 0] + 1
    problem = Problem(as_row_blocks(x, y), ridge(0.0, 1))
    good = solution_of([[3.0]], [1.0])
    assert not_above_constant(problem, good) is good
    proven = solution_of([[9.0]], [1.0], proven=True)
    assert not_above_constant(problem, proven) is proven


def test_only_residuals_to_more_than_float64_tell_a_small_slope_of_a_far_column():
    x = np.arange(8.0)[:, None] + 2.0**40
    y = np.arange(8.0) * 2.0**-10
    problem = Problem(as_row_blocks(x, y), ridge(0.0, 1))
    good = solution_of([[2.0**-10]], [-(2.0**30)])
    assert not_above_constant(problem, good) is good
    bad = solution_of([[-(2.0**-10)]], [2.0**30])
    assert not_above_constant(problem, bad).status is Status.CONSTANT


def test_a_dense_ordinary_fit_proves_itself():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50, 3)) + 10
    y = X @ [1.0, 2.0, 3.0] + rng.standard_normal(50)
    problem = Problem(as_row_blocks(X, y), ridge(0.0, 3))
    assert solve_cholesky(problem, 1e-12, None).proven


def test_rows_of_small_weight_far_from_0_span_no_further_coordinates():
    trial = make_trial(63)
    assert judge(trial).outcome == "kept"
