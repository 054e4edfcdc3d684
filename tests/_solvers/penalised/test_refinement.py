"""Penalised fits of ill-conditioned columns, and their certificates, against rational arithmetic."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import sparse

from benchmarks.exact_elastic_net import ExactElasticNet
from torchlinreg import TorchLinearRegressor, TorchLinearRegressorCV, regularization_path
from torchlinreg._data.rows import as_row_blocks
from torchlinreg._objective.penalty import Penalty, elastic_net
from torchlinreg._objective.problem import Problem
from torchlinreg._objective.solution import Status
from torchlinreg._solvers import solve_of_moments
from torchlinreg._solvers.penalised import refinement
from torchlinreg._solvers.penalised.active_set import solve_active_set
from torchlinreg._solvers.penalised.quadratic import minimum_about

TOL = 1e-12


def shifted(shift, n_samples=40, n_features=3, seed=0, n_targets=None):
    """Standard normal columns, half of their rows shifted alike, and y of the columns as they were."""
    rng = np.random.default_rng(seed)
    Z = rng.standard_normal((n_samples, n_features))
    coef = np.array([1.0, -2.0, 3.0, 0.5])[:n_features]
    coef = coef if n_targets is None else np.outer(coef, np.arange(1, 1 + n_targets))
    y = Z @ coef + 0.5 * rng.standard_normal((n_samples, *coef.shape[1:]))
    Z[: n_samples // 2] += shift
    return Z, y


def years(degree=4):
    x = np.arange(1990.0, 2021.0)
    noise = 0.1 * np.random.default_rng(1).standard_normal(len(x))
    return np.stack([x**power for power in range(1, 1 + degree)], axis=1), np.sin((x - 1990) / 9) + noise


def gap(exact, coef, intercept, minimum=None):
    """How far above the minimum the objective is, over that of the best constant or the minimum."""
    minimum = exact.minimum()[0] if minimum is None else minimum
    return float((exact.objective(coef, intercept) - minimum) / max(exact.square / 2, minimum))


def check(X, y, penalty, status, coef, intercept, weight=None, fit_intercept=True, tol=TOL):
    exact = ExactElasticNet(X, y, penalty, weight, fit_intercept)
    found = gap(exact, coef, intercept)
    assert status.kind is Status.OPTIMAL
    assert found <= tol
    assert found <= 1.01 * status.optimality + 1e-16


PENALTIES = {
    "lasso": {"l1_ratio": 1.0},
    "elastic net": {"l1_ratio": 0.5},
    "positive": {"l1_ratio": 1.0, "positive": True},
    "bounds": {"l1_ratio": 0.5, "bounds": (-1.0, 2.0)},
    "factors": {"l1_ratio": 1.0, "penalty_factor": [1.0, 0.0, 2.0]},
}


def penalty_of(alpha=0.1, *, l1_ratio, positive=False, bounds=(-np.inf, np.inf), penalty_factor=None):
    factor = None if penalty_factor is None else np.array(penalty_factor)
    return elastic_net(alpha, l1_ratio, 3, factor, 0.0 if positive else bounds[0], bounds[1])


class TestShiftedRows:
    """Columns of condition 1e9 in units of their spread, whose float64 Gram matrix is all ones."""

    @pytest.mark.parametrize("shift", [1e7, 1e8, 1e9])
    @pytest.mark.parametrize("name", PENALTIES)
    def test_all_penalties(self, name, shift):
        X, y = shifted(shift)
        reg = TorchLinearRegressor(alpha=0.1, **PENALTIES[name]).fit(X, y)
        check(X, y, penalty_of(**PENALTIES[name]), reg.status_, reg.coef_, reg.intercept_)

    @pytest.mark.parametrize("kind", [np.array, sparse.csr_array, torch.from_numpy, np.asfortranarray])
    def test_data_kinds(self, kind):
        X, y = shifted(1e9)
        weight = np.arange(40) % 3.0
        reg = TorchLinearRegressor(alpha=0.1, l1_ratio=1.0).fit(kind(X), y, weight)
        check(X, y, elastic_net(0.1, 1.0, 3), reg.status_, reg.coef_, reg.intercept_, weight)

    def test_frames_and_several_targets(self):
        pandas = pytest.importorskip("pandas")
        X, y = shifted(1e9, n_targets=2)
        reg = TorchLinearRegressor(alpha=0.1, l1_ratio=1.0).fit(pandas.DataFrame(X, columns=list("abc")), y)
        total = [ExactElasticNet(X, one, elastic_net(0.1, 1.0, 3)) for one in y.T]
        models = zip(reg.coef_, reg.intercept_, strict=True)
        gaps = [gap(exact, *model) for exact, model in zip(total, models, strict=True)]
        assert max(gaps) <= TOL
        assert reg.status_.name == "OPTIMAL"

    def test_float32(self):
        X, y = shifted(2.0**20)
        X = X.astype(np.float32)
        problem = Problem(as_row_blocks(X, y.astype(np.float32), None), elastic_net(0.1, 1.0, 3))
        solution = solve_active_set(problem, TOL, None)
        exact = ExactElasticNet(X, y.astype(np.float32), problem.penalty)
        assert gap(exact, solution.coef[:, 0], solution.intercept) <= TOL

    @pytest.mark.parametrize("unit", [1e-100, 1e-30, 1e30, 1e100])
    def test_units(self, unit):
        X, y = shifted(1e9)
        reg = TorchLinearRegressor(alpha=0.1 * unit, l1_ratio=1.0).fit(X * unit, y)
        check(X * unit, y, elastic_net(0.1 * unit, 1.0, 3), reg.status_, reg.coef_, reg.intercept_)

    def test_without_intercept(self):
        X, y = shifted(1e9)
        reg = TorchLinearRegressor(alpha=0.1, l1_ratio=1.0, fit_intercept=False).fit(X, y)
        check(X, y, elastic_net(0.1, 1.0, 3), reg.status_, reg.coef_, 0.0, fit_intercept=False)

    def test_moments_of_rows_that_are_gone(self):
        X, y = shifted(1e9)
        reg = TorchLinearRegressor(alpha=0.1, l1_ratio=1.0)
        for rows in (slice(0, 10), slice(10, 40)):
            reg.partial_fit(X[rows], y[rows])
        check(X, y, elastic_net(0.1, 1.0, 3), reg.status_, reg.coef_, reg.intercept_)

    @pytest.mark.parametrize("shift", [1e8, 1e9])
    def test_paths(self, shift):
        X, y = shifted(shift)
        path = regularization_path(X, y, alphas=[0.5, 0.1, 0.01])
        for alpha, coef, intercept, claimed in zip(*vars(path).values(), strict=True):
            found = gap(ExactElasticNet(X, y, elastic_net(alpha, 1.0, 3)), coef, intercept)
            assert found <= min(TOL, 1.01 * claimed + 1e-16)

    def test_cross_validation(self):
        X, y = shifted(1e9)
        X[:] = X[np.random.default_rng(0).permutation(40)]
        y = (X - 1e9 * (X > 1e8)) @ [1.0, -2.0, 3.0] + 0.5 * np.random.default_rng(1).standard_normal(40)
        alphas = [2.0, 0.5, 0.1]
        reg = TorchLinearRegressorCV(alphas=alphas, l1_ratio=1.0, cv=4).fit(X, y)
        check(X, y, elastic_net(reg.alpha_, 1.0, 3), reg.status_, reg.coef_, reg.intercept_)
        # The same problem, but for rounding of X: an unpenalised column has the shift.
        Z = np.column_stack([X - 1e9 * (X > 1e8), 1e9 * (X[:, :1] > 1e8)])
        scores = TorchLinearRegressorCV(
            alphas=alphas, l1_ratio=1.0, cv=4, penalty_factor=[1.0, 1.0, 1.0, 0.0]
        ).fit(Z, y)
        assert reg.alpha_ == scores.alpha_

    def test_the_optimum_that_training_is_judged_by(self):
        X, y = shifted(1e9)
        reg = TorchLinearRegressor(alpha=0.1, l1_ratio=1.0, solver="sgd", max_iter=3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reg.fit(X, y)
        exact = ExactElasticNet(X, y, elastic_net(0.1, 1.0, 3))
        # From the least squares coefficients, with 2.7e-3 to go, and not below that of half as good a model.
        assert gap(exact, reg.coef_, reg.intercept_) < 1e-2
        assert reg.status_.kind is not Status.OPTIMAL


def test_polynomials_of_years():
    X, y = years()
    reg = TorchLinearRegressor(alpha=1e-3, l1_ratio=1.0).fit(X, y)
    check(X, y, elastic_net(1e-3, 1.0, 4), reg.status_, reg.coef_, reg.intercept_)


def test_fewer_rows_than_features():
    """Working sets hand over what their float64 products do not determine."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((3, 4))
    X[0] += 1e8
    y = np.array([1.0, 2.0, -1.0])
    penalty = elastic_net(1e-3, 1.0, 4)
    solution = solve_active_set(Problem(as_row_blocks(X, y, None), penalty), TOL, None)
    exact = ExactElasticNet(X, y, penalty)
    assert solution.status is Status.OPTIMAL
    assert gap(exact, solution.coef[:, 0], solution.intercept) <= TOL


def test_what_float64_cannot_hold_is_not_called_optimal():
    """Of columns with 12 digits in common, coefficients round to predictions of 4 digits."""
    X, y = shifted(1e13)
    problem = Problem(as_row_blocks(X, y, None), elastic_net(0.1, 1.0, 3))
    solution = solve_active_set(problem, TOL, None)
    found = gap(ExactElasticNet(X, y, problem.penalty), solution.coef[:, 0], solution.intercept)
    assert TOL < found <= 1.1 * solution.optimality
    assert solution.status is Status.STUCK


def test_not_above_the_best_constant():
    """Columns that are one but for their last bit."""
    rng = np.random.default_rng(3)
    X = 1.0 + 2.0**-52 * rng.integers(0, 2, (20, 3)) + 1e3 * rng.standard_normal((20, 1))
    y = rng.standard_normal(20)
    for penalty in (elastic_net(1e-6, 1.0, 3), elastic_net(0.0, 1.0, 3, lower=-1e20, upper=1e20)):
        solution = solve_active_set(Problem(as_row_blocks(X, y, None), penalty), TOL, None)
        exact = ExactElasticNet(X, y, penalty)
        assert exact.objective(solution.coef[:, 0], solution.intercept) <= exact.square / 2 * (1 + 1e-15)


@st.composite
def ill_conditioned(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_samples, n_features = draw(st.integers(3, 12)), draw(st.integers(1, 3))
    Z = rng.standard_normal((n_samples, n_features))
    y = Z @ rng.integers(-3, 4, n_features) + draw(st.sampled_from([0.0, 0.1, 1.0])) * rng.standard_normal(
        n_samples
    )
    size = 10.0 ** draw(st.integers(3, 12))
    kind = draw(st.sampled_from(["shift", "outlier", "offset", "near", "units"]))
    X = Z.copy()
    if kind == "near":
        X = Z[:, :1] + Z / size
    elif kind == "offset":
        X += size
    else:
        X[: 1 if kind == "outlier" else n_samples // 2] += size
    unit = 10.0 ** rng.integers(-30, 31, n_features) if kind == "units" else np.ones(n_features)
    alpha = 10.0 ** draw(st.integers(-9, 1))
    l1_ratio = draw(st.sampled_from([0.0, 0.5, 1.0]))
    lower = draw(st.sampled_from([-np.inf, 0.0, -0.5])) / unit
    upper = draw(st.sampled_from([np.inf, 0.7])) / unit
    factor = rng.integers(0, 3, n_features) * unit
    weight = rng.integers(1, 4, n_samples).astype(float) if draw(st.booleans()) else None
    return X * unit, y, weight, elastic_net(alpha, l1_ratio, n_features, factor, lower, upper)


@given(ill_conditioned(), st.booleans(), st.booleans())
def test_certificates_hold(problem, fit_intercept, gone):
    """The bound is never below the truth, and OPTIMAL never above `tol`, from rows or from their moments."""
    X, y, weight, penalty = problem
    given_problem = Problem(as_row_blocks(X, y, weight), penalty, fit_intercept)
    exact = ExactElasticNet(X, y, penalty, weight, fit_intercept)
    try:
        minimum, _ = exact.minimum()
    except AssertionError:
        assume(False)
    assume(exact.square > 0)
    if gone and penalty.l1.all():
        solution = solve_of_moments(given_problem, given_problem.exact_moments, TOL)
    else:
        solution = solve_active_set(given_problem, TOL, None)
    found = gap(exact, solution.coef[:, 0], solution.intercept, minimum)
    assert found <= 1.05 * solution.optimality + 1e-15
    assert found <= TOL or solution.status is not Status.OPTIMAL


class TestMinimumAbout:
    def test_root_and_gram_agree(self):
        rng = np.random.default_rng(0)
        root = np.triu(rng.standard_normal((5, 5)))
        origin, gradient = rng.standard_normal((2, 5))
        penalty = elastic_net(0.1, 0.7, 5, lower=-0.5, upper=3.0)
        origin = np.clip(origin, -0.5, 3.0)
        both = np.concatenate([root, np.diag(np.sqrt(penalty.l2))])
        steps = [minimum_about(origin, gradient, root.T @ root, one, penalty) for one in (None, both)]
        np.testing.assert_allclose(steps[0].goal, steps[1].goal, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(steps[0].gain, steps[1].gain, rtol=1e-9)

    def test_nothing_to_gain_at_the_minimum(self):
        rng = np.random.default_rng(0)
        root = np.triu(rng.standard_normal((5, 5)))
        gradient, penalty = rng.standard_normal(5), elastic_net(0.1, 1.0, 5)
        first = minimum_about(np.zeros(5), gradient, root.T @ root, root, penalty)
        left = gradient - root.T @ (root @ first.step)
        again = minimum_about(first.goal, left, root.T @ root, root, penalty)
        assert again.gain < 1e-25
        assert np.abs(again.step).max() < 1e-12


def test_steps_end_with_max_iter():
    X, y = shifted(1e10)
    problem = Problem(as_row_blocks(X, y, None), elastic_net(0.1, 1.0, 3))
    solution = solve_active_set(problem, TOL, 0)
    assert solution.status is Status.ITERATIONS_USED
    exact = ExactElasticNet(X, y, problem.penalty)
    assert TOL < gap(exact, solution.coef[:, 0], solution.intercept) <= solution.optimality * 1.01


def test_well_conditioned_rows_are_read_once(monkeypatch):
    def forbidden(*_):
        raise AssertionError("rows were read again")

    monkeypatch.setattr(refinement.OfRows, "measure", forbidden)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 20))
    y = X @ rng.standard_normal(20) + rng.standard_normal(200)
    for penalty in (elastic_net(0.1, 1.0, 20), elastic_net(0.1, 0.5, 20, lower=0.0)):
        solution = solve_active_set(Problem(as_row_blocks(X, y, None), penalty), TOL, None)
        assert solution.n_iter == 1
        assert 0 < solution.optimality < 1e-20


@pytest.mark.cuda
def test_rows_on_a_device():
    X, y = shifted(1e9)
    reg = TorchLinearRegressor(alpha=0.1, l1_ratio=1.0, device="cuda").fit(X, y)
    check(X, y, elastic_net(0.1, 1.0, 3), reg.status_, reg.coef_, reg.intercept_)


def test_a_start_far_above_the_best_constant():
    """A minimum of float64 products, along columns that they do not tell apart, may be anywhere."""
    X, y = shifted(1e11, n_samples=20)
    unit = np.array([1e60, 1e-60, 1.0])
    problem = Problem(as_row_blocks(X * unit, y, None), elastic_net(0.0, 1.0, 3, lower=-1e90))
    data = refinement.centred(problem.standardised)
    source = refinement.OfRows(problem, data)
    far = np.array([[1e80], [0.0], [-1e80]]) / unit[:, None]
    found = refinement.refine(problem, data, source, far, 10, 1e-16)
    exact = ExactElasticNet(X * unit, y, problem.penalty)
    assert gap(exact, found.coef[:, 0], found.intercept) < 1e-9


def test_no_steps_from_far_above_the_best_constant():
    X, y = shifted(1e9)
    problem = Problem(as_row_blocks(X, y, None), elastic_net(0.1, 1.0, 3))
    data = refinement.centred(problem.standardised)
    found = refinement.refine(problem, data, refinement.OfRows(problem, data), np.full((3, 1), 1e3), 0, 1e-16)
    assert not found.coef.any()
    assert found.values <= 0.5
    assert found.gaps <= 0.5
    np.testing.assert_allclose(found.intercept, y.mean(), rtol=1e-14)


def test_objectives_of_large_coefficients_that_cancel():
    """Residuals of 1e-5 of terms of 1e12, over a weight sum that is no power of two."""
    X, y = shifted(1e12, n_samples=4)  # which 3 coefficients and an intercept fit, but for rounding
    weight = np.array([1.0, 1.0, 1.0, 2.0])
    problem = Problem(as_row_blocks(X, y, weight), elastic_net(0.0, 1.0, 3, lower=-100.0))
    solution = solve_active_set(problem, TOL, None)
    data = refinement.centred(problem.standardised)
    source = refinement.OfRows(problem, data)
    found = refinement.refine(problem, data, source, solution.coef, 0, 1e-16)
    exact = ExactElasticNet(X, y, problem.penalty, weight)
    value = float(exact.objective(found.coef[:, 0], found.intercept) / exact.square)
    np.testing.assert_allclose(found.values[0], value, rtol=1e-4)


@pytest.mark.parametrize(("seed", "offset"), [(8, 3e9), (62, 3e9), (94, 1e9), (128, 1e9), (140, 1e9)])
def test_a_certificate_counts_the_rounding_of_the_mean_of_y(seed, offset):
    """Indicators, whose products are exact; far from 0, an intercept is off by up to a unit of rounding."""
    rng = np.random.default_rng(seed)
    X = np.eye(3)[rng.integers(0, 3, 8)]
    y = offset * (1 + rng.random()) + X @ rng.standard_normal(3)
    weight = rng.uniform(0.5, 3, 8) if seed % 2 else None
    reg = TorchLinearRegressor(alpha=0.004, l1_ratio=1.0).fit(X, y, weight)
    check(X, y, elastic_net(0.004, 1.0, 3), reg.status_, reg.coef_, reg.intercept_, weight)


def test_few_ill_conditioned_rows_within_bounds_claim_no_more_than_they_know():
    """Coefficients of 1 beside bounds of -0.5, of columns that differ by 1e-3 to 1e-8 of themselves."""
    rng = np.random.default_rng(1)
    for _ in range(60):
        n_samples = int(rng.integers(2, 5))
        X = rng.standard_normal((n_samples, 3))
        X[: max(1, n_samples // 2)] += 10.0 ** rng.integers(3, 9)
        y = 2 * rng.standard_normal(n_samples)
        lower, upper = np.full(3, -0.5), np.full(3, rng.choice([np.inf, 0.7]))
        penalty = Penalty(np.zeros(3), rng.choice([0.0, 0.0, 20.0, 0.1], 3), lower, upper)
        exact = ExactElasticNet(X, y, penalty, None, True)
        try:
            minimum, _ = exact.minimum()
        except AssertionError:  # which knows no minimum of columns that depend on each other
            continue
        solution = solve_active_set(Problem(as_row_blocks(X, y, None), penalty, True), TOL, None)
        found = gap(exact, solution.coef[:, 0], solution.intercept, minimum)
        assert found <= 1.05 * solution.optimality + 1e-15
