"""Piecewise linear losses: objectives against HiGHS, optimality, exact zeros and bounds, and many rows."""

import warnings
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import linprog
from sklearn.linear_model import QuantileRegressor
from statsmodels.regression.quantile_regression import QuantReg

from torchlinreg import Status
from torchlinreg._data.rows import as_row_blocks
from torchlinreg._objective.penalty import elastic_net
from torchlinreg._objective.problem import Problem
from torchlinreg._solvers import coordinates
from torchlinreg._solvers.interior_point import interior_point
from torchlinreg._solvers.interior_point.interior_point import solve_interior_point
from torchlinreg.losses import (
    AbsoluteError,
    EpsilonInsensitive,
    PiecewiseLinear,
    Quantile,
    _Polyhedral,
)


@dataclass(frozen=True)
class Staircase(_Polyhedral):
    """A loss of three kinks that is flat nowhere."""

    def pieces(self):
        return PiecewiseLinear(-2.0, (-1.0, 0.0, 0.5), (1.5, 1.0, 2.5))


class Case:
    """A problem, its solution, and what HiGHS says of it."""

    def __init__(self, X, y, loss, weight=None, fit_intercept=True, alpha=0.0, l1_ratio=0.0, **penalty):
        self.X, self.y, self.loss, self.fit_intercept = X, y, loss, fit_intercept
        self.weight = np.ones(len(y)) if weight is None else weight
        self.given_weight = weight
        self.penalty = elastic_net(alpha, l1_ratio, X.shape[1], **penalty)
        # The intercept takes up what is subtracted; rounding at an offset is not what is tested.
        self.centred = X - np.average(X, axis=0, weights=self.weight) * fit_intercept

    def solve(self, tol=1e-10, max_iter=None):
        blocks = as_row_blocks(self.X, self.y, self.given_weight)
        return solve_interior_point(
            Problem(blocks, self.penalty, self.fit_intercept, loss=self.loss), tol, max_iter
        )

    def objective(self, solution, target=0):
        coef = solution.coef[:, target]
        y = self.y if self.y.ndim == 1 else self.y[:, target]
        slope, positions, jumps = self.loss.pieces()
        shift = self.X[0] - self.centred[0]
        residual = y - self.centred @ coef - (solution.intercept[target] + shift @ coef)
        losses = slope * (residual - positions[0])
        for position, jump in zip(positions, jumps, strict=True):
            losses += jump * np.maximum(residual - position, 0)
        return np.average(losses, weights=self.weight) + self.penalty.value(coef)

    def bound(self, solution):
        """What no objective is below, by the tangent of the ridge: the optimum, if the solution is one."""
        kept = self.weight > 0
        X, y, share = self.centred[kept], self.y[kept], self.weight[kept] / self.weight[kept].sum()
        n, p = X.shape
        slope, positions, jumps = self.loss.pieces()
        unit = np.where(np.abs(X).max(0) > 0, np.abs(X).max(0), 1.0)
        size = np.median(np.abs(y)) or np.abs(y).max() or 1.0
        coef = solution.coef[:, 0]
        tangent = (self.penalty.l2 * coef - slope * (share @ X)) / unit * size
        cost = [tangent, [-slope * self.fit_intercept * size], self.penalty.l1 / unit * size]
        identity, zeros = sparse.identity(n), sparse.csr_array((n, n))
        above = [
            [-X / unit, -np.ones((n, 1)), np.zeros((n, p))]
            + [-identity if k == other else zeros for other in range(len(positions))]
            for k in range(len(positions))
        ]
        magnitude = [
            [sign * np.eye(p), np.zeros((p, 1)), -np.eye(p), np.zeros((p, n * len(positions)))]
            for sign in (1, -1)
        ]
        rows = [sparse.hstack([sparse.csr_array(part) for part in parts]) for parts in above + magnitude]
        limits = [(position - y) / size for position in positions] + [np.zeros(2 * p)]
        lower, upper = self.penalty.lower * unit / size, self.penalty.upper * unit / size
        free = [(None, None)] if self.fit_intercept else [(0, 0)]
        bounds = [*zip(lower, upper, strict=True), *free] + [(0, None)] * (p + n * len(positions))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = linprog(
                np.concatenate([*cost, *(jump * size * share for jump in jumps)]),
                A_ub=sparse.vstack(rows).tocsr(),
                b_ub=np.concatenate(limits),
                bounds=bounds,
                method="highs",
                options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
            )
        assert result.status == 0, result.message
        return result.fun + slope * (share @ (y - positions[0])) - self.penalty.l2 @ coef**2 / 2

    @property
    def level(self):
        """The mean distance of y from its median."""
        y = self.y[self.weight > 0]
        return np.abs(y - np.median(y) * self.fit_intercept).mean()


def assert_optimal(case, solution, rtol=1e-9):
    """Not above HiGHS, feasible, and known to be so."""
    coef = solution.coef[:, 0]
    assert (coef >= case.penalty.lower).all()
    assert (coef <= case.penalty.upper).all()
    objective, bound = case.objective(solution), case.bound(solution)
    # HiGHS itself meets its constraints to 1e-10, which is all there is where the optimum is 0.
    assert objective - bound <= rtol * abs(objective) + 1e-10 * case.level + 1e-12
    assert solution.status is Status.OPTIMAL
    assert 0 <= solution.optimality <= 1e-9
    assert solution.n_iter >= 1


LOSSES = [
    AbsoluteError(),
    *(Quantile(quantile) for quantile in (0.01, 0.1, 0.5, 0.9, 0.99)),
    *(EpsilonInsensitive(epsilon) for epsilon in (0.0, 0.1, 1.0)),
    Staircase(),
]
KINDS = ["normal", "ties", "heavy tails", "outlier", "duplicates", "binary", "constant y", "perfect"]


def data(kind, n, p, rng):
    X = rng.standard_normal((n, p))
    y = X @ rng.standard_normal(p) + rng.standard_normal(n) + 3
    if kind == "ties":
        X, y = rng.integers(-2, 3, (n, p)).astype(float), rng.integers(-3, 4, n).astype(float)
    elif kind == "heavy tails":
        y = X @ rng.standard_normal(p) + rng.standard_cauchy(n)
    elif kind == "outlier":
        y[rng.integers(n)] = 1e6
    elif kind == "duplicates":
        X[:, -1] = X[:, 0]
    elif kind == "binary":
        X = (X > 0.5).astype(float)
    elif kind == "constant y":
        y[:] = 7.0
    elif kind == "perfect":
        y = X @ rng.standard_normal(p) + 2
    return X, y


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    n, p = draw(st.sampled_from([1, 2, 3, 5, 8, 12, 20, 40, 100, 200])), draw(st.integers(1, 12))
    X, y = data(draw(st.sampled_from(KINDS)), n, p, rng)
    weight = draw(st.sampled_from(["none", "some", "zeros"]))
    if weight != "none":
        weights = rng.uniform(0.1, 3, n)
        weights[1:][rng.random(n - 1) < 0.3 * (weight == "zeros")] = 0
    bounds = draw(st.sampled_from(["none", "none", "positive", "box", "fixed"]))
    lower, upper = {
        "none": (-np.inf, np.inf),
        "positive": (0.0, np.inf),
        "box": (-0.5, 0.5),
        "fixed": (np.where(rng.random(p) < 0.5, 0.3, -np.inf), np.where(rng.random(p) < 0.5, 0.3, np.inf)),
    }[bounds]
    units = 10 ** rng.uniform(-6, 6, p) if draw(st.booleans()) and bounds == "none" else np.ones(p)
    # A ridge is of the coefficients' units, and the bound by its tangent loses digits where it is large.
    l1_ratio = draw(st.sampled_from([0.0, 0.5, 1.0])) if units.max() == 1 else 1.0
    factor = rng.uniform(0.5, 2, p) * (rng.random(p) < 0.7) if draw(st.booleans()) else None
    return Case(
        X * units,
        y,
        draw(st.sampled_from(LOSSES)),
        None if weight == "none" else weights,
        draw(st.booleans()),
        alpha=draw(st.sampled_from([0.0, 0.0, 1e-4, 1e-2, 0.1, 1.0, 1e6])) if l1_ratio == 1 else 0.1,
        l1_ratio=l1_ratio,
        factor=factor,
        lower=lower,
        upper=upper,
    )


@given(case=cases())
def test_no_objective_is_above_that_of_highs(case):
    assert_optimal(case, case.solve())


@pytest.mark.every(3)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("alpha", [pytest.param(0.0, marks=pytest.mark.exhaustive), 0.02])
def test_more_rows(loss, alpha):
    rng = np.random.default_rng(3)
    X, y = data("normal", 1500, 6, rng)
    case = Case(X, y, loss, alpha=alpha, l1_ratio=0.5)
    assert_optimal(case, case.solve(), rtol=1e-10)


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("alpha", [0.0, 0.05])
def test_agrees_with_quantile_regressor(quantile, alpha):
    rng = np.random.default_rng(7)
    X, y = data("normal", 300, 4, rng)
    case = Case(X, y, Quantile(quantile), alpha=alpha, l1_ratio=1.0)
    found = case.solve()
    expected = QuantileRegressor(quantile=quantile, alpha=alpha, solver="highs").fit(X, y)
    np.testing.assert_allclose(found.coef[:, 0], expected.coef_, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.intercept[0], expected.intercept_, rtol=1e-7)


@pytest.mark.parametrize("seed", range(10))
def test_a_loss_may_be_negative(seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((13, 7))
    assert_optimal(case := Case(X, X[:, 0] + 0.3 * rng.standard_normal(13), Staircase()), case.solve())
    assert case.objective(case.solve()) < 0


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["normal", "heavy tails", "outlier"])
def test_never_above_the_objective_of_statsmodels(quantile, kind):
    rng = np.random.default_rng(7)
    X, y = data(kind, 300, 4, rng)
    case = Case(X, y, Quantile(quantile))
    ours = case.solve()
    theirs = QuantReg(y, np.column_stack([np.ones(len(y)), X])).fit(q=quantile, max_iter=5000, p_tol=1e-10)
    found = replace(ours, coef=theirs.params[1:, None], intercept=theirs.params[:1])
    assert case.objective(ours) <= case.objective(found) * (1 + 1e-12)
    assert case.objective(found) <= case.objective(ours) * (1 + 1e-4)  # the same problem


def test_a_linear_program_ends_at_a_vertex():
    rng = np.random.default_rng(1)
    X, y = data("heavy tails", 400, 5, rng)
    found = Case(X, y, Quantile(0.3)).solve()
    residual = y - X @ found.coef[:, 0] - found.intercept[0]
    assert np.sort(np.abs(residual))[5] < 1e-13  # six rows at their kinks
    assert np.sort(np.abs(residual))[6] > 1e-6
    assert found.optimality < 1e-14


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_a_huge_penalty_leaves_exact_zeros_and_the_best_constant(fit_intercept):
    rng = np.random.default_rng(2)
    X, y = data("heavy tails", 101, 4, rng)
    found = Case(X, y, AbsoluteError(), fit_intercept=fit_intercept, alpha=1e6, l1_ratio=1.0).solve()
    assert (found.coef == 0).all()
    assert found.intercept[0] == (np.median(y) if fit_intercept else 0)


def test_zeros_and_bounds_are_exact_in_the_users_units():
    rng = np.random.default_rng(4)
    X = rng.standard_normal((200, 8)) * 10.0 ** np.arange(-4, 4) + 0.1
    coef = np.array([3.0, 0, 0, 1, 0, 1, 0, 0.1]) / 10.0 ** np.arange(-4, 4)
    y = X @ coef + rng.standard_normal(200)
    upper = np.full(8, np.inf)
    upper[[3, 5]] = 1 / 3, 0.07
    factor = np.array([0, 1, 0, 0, 1, 0, 1, 0])
    case = Case(X, y, AbsoluteError(), alpha=0.5, l1_ratio=1.0, factor=factor, upper=upper)
    found = case.solve()
    assert_optimal(case, found)
    assert (found.coef[[3, 5], 0] == upper[[3, 5]]).all()
    assert (found.coef[:, 0] == 0).any()
    assert not np.signbit(found.coef[found.coef == 0]).any()


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_units_and_offsets_do_not_matter(offset):
    rng = np.random.default_rng(5)
    X, y = data("normal", 150, 3, rng)
    X = np.round(X * 2**10) / 2**10
    factors = np.array([1e-6, 1.0, 1e6])
    before = Case(X, y, Quantile(0.7)).solve()
    after = Case((X + offset) * factors, y * 1e3 + offset, Quantile(0.7)).solve()
    np.testing.assert_allclose(after.coef[:, 0] * factors / 1e3, before.coef[:, 0], rtol=1e-7)


def test_an_outlier_of_any_size_leaves_the_median_where_it_was():
    rng = np.random.default_rng(6)
    X, y = data("normal", 60, 3, rng)
    y[5] = 1e3
    before = Case(X, y, AbsoluteError()).solve()
    y[5] = 1e12
    after = Case(X, y, AbsoluteError()).solve()
    np.testing.assert_allclose(after.coef, before.coef, rtol=1e-12)


def test_weights_are_repetitions_and_zero_weights_drop_rows():
    rng = np.random.default_rng(8)
    X, y = data("normal", 80, 3, rng)
    weight = rng.integers(0, 4, 80).astype(float)
    one = Case(X, y, Quantile(0.6), weight, alpha=0.1, l1_ratio=0.5).solve()
    copies = weight.astype(int)
    other = Case(X.repeat(copies, 0), y.repeat(copies), Quantile(0.6), alpha=0.1, l1_ratio=0.5).solve()
    np.testing.assert_allclose(one.coef, other.coef, rtol=1e-9, atol=1e-11)


@pytest.mark.every(7)
@pytest.mark.parametrize("seed", range(60))
def test_order_and_number_of_rows_do_not_choose_among_several_optima(seed):
    rng = np.random.default_rng(seed)
    n, p = rng.integers(4, 14), rng.integers(1, 4)
    X, y = np.rint(2 * rng.standard_normal((n, p))), np.rint(2 * rng.standard_normal(n))
    weight, order = rng.integers(1, 4, n).astype(float), rng.permutation(n)
    loss = Quantile(0.25 if seed % 2 else 0.5)
    found = Case(X, y, loss, weight).solve()
    permuted = Case(X[order], y[order], loss, weight[order]).solve()
    repeated = Case(np.repeat(X, weight.astype(int), 0), np.repeat(y, weight.astype(int)), loss).solve()
    for other in (permuted, repeated):
        np.testing.assert_allclose(other.coef, found.coef, atol=1e-8)
        np.testing.assert_allclose(other.intercept, found.intercept, atol=1e-8)
    assert_optimal(Case(X, y, loss, weight), found)


@pytest.mark.parametrize("n", [3000, 9000])
def test_nor_do_they_among_many_rows(n):
    """The medians of both groups may be anything from 0 to 2, and from 1 to 4."""
    group, upper = np.arange(n) % 2, np.arange(n) % 4 > 1
    X, y = group[:, None].astype(float), np.where(group, np.where(upper, 4.0, 1.0), np.where(upper, 2.0, 0.0))
    found = Case(X, y, Quantile(0.5)).solve()
    order = np.random.default_rng(0).permutation(n)
    half = np.arange(n) < n // 2  # as many of each kind as in all
    others = [
        Case(X[order], y[order], Quantile(0.5)),
        Case(X[half], y[half], Quantile(0.5), np.full(n // 2, 2.0)),
    ]
    for other in (case.solve() for case in others):
        np.testing.assert_allclose(other.coef, found.coef, atol=1e-8)
        np.testing.assert_allclose(other.intercept, found.intercept, atol=1e-8)
    assert_optimal(others[1], found)
    # The least slope of all is 0; the median of y is the lower middle one, 1.
    np.testing.assert_allclose([found.coef[0, 0], found.intercept[0]], [0.0, 1.0], atol=1e-8)


@pytest.mark.parametrize("max_iter", [3, 6, 10])
def test_the_choice_among_optima_keeps_to_max_iter(max_iter):
    X, y = np.repeat([[0.0], [1.0]], 2, axis=0), np.array([0.0, 1.0, 1.0, 2.0])
    assert Case(X, y, Quantile(0.5)).solve(max_iter=max_iter).n_iter <= max_iter


def test_of_all_medians_the_one_nearest_to_no_slope():
    case = Case(np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([0.0, 1.0, 1.0, 2.0]), Quantile(0.5))
    np.testing.assert_allclose(case.solve().coef, 0, atol=1e-12)  # of slopes from 0 to 2


def test_targets_are_solved_one_by_one():
    rng = np.random.default_rng(9)
    X, first = data("normal", 90, 4, rng)
    Y = np.column_stack([first, first**2, np.full(90, 2.5)])
    together = Case(X, Y, AbsoluteError(), alpha=0.01, l1_ratio=1.0).solve()
    for target in range(3):
        alone = Case(X, Y[:, target].copy(), AbsoluteError(), alpha=0.01, l1_ratio=1.0).solve()
        np.testing.assert_allclose(together.coef[:, target], alone.coef[:, 0], rtol=1e-9, atol=1e-12)
    assert (together.coef[:, 2] == 0).all()
    assert together.intercept[2] == 2.5


def test_dependent_columns_share_their_coefficient():
    rng = np.random.default_rng(10)
    X, y = data("normal", 70, 3, rng)
    single = Case(X, y, AbsoluteError()).solve()
    double = Case(np.column_stack([X, X[:, 0]]), y, AbsoluteError()).solve()
    np.testing.assert_allclose(double.coef[[0, 3], 0], single.coef[0, 0] / 2, rtol=1e-10)
    assert double.rank == 3


@pytest.mark.parametrize("penalty", [{}, {"alpha": 1e-8, "l1_ratio": 1.0}, {"lower": 0.0}])
def test_wide_rows_are_met(penalty):
    rng = np.random.default_rng(11)
    X = np.abs(rng.standard_normal((6, 15)))
    y = X @ rng.random(15)
    case = Case(X, y, AbsoluteError(), **penalty)
    found = case.solve()
    assert_optimal(case, found)
    if not penalty:
        centred = X - X.mean(0)
        least = np.linalg.pinv(centred) @ (y - y.mean())
        np.testing.assert_allclose(found.coef[:, 0], least, rtol=1e-9)


NEAR = [
    {"lower": -0.5, "upper": 0.3},
    {"alpha": 1e-8, "l1_ratio": 1.0},
    {"alpha": 0.1, "l1_ratio": 1.0, "lower": 0},
]


@pytest.mark.parametrize("kind", NEAR)
@pytest.mark.parametrize("n_samples", [12, 80])
def test_nearly_dependent_columns_with_a_penalty_of_single_ones(kind, n_samples):
    rng = np.random.default_rng(12)
    X, y = data("normal", n_samples, 14, rng)
    X[:, -1] = X[:, 0] + 1e-7 * X[:, -1]
    case = Case(X, y, Quantile(0.4), **kind)
    solution = case.solve()
    assert case.objective(solution) <= case.bound(solution) + 1e-8
    assert solution.status is Status.OPTIMAL


@pytest.mark.every(5)
@pytest.mark.parametrize("kind", ["normal", "heavy tails", "ties", "binary"])
@pytest.mark.parametrize("loss", [Quantile(0.95), EpsilonInsensitive(0.5), Staircase()], ids=repr)
def test_rows_that_are_left_out_change_nothing(monkeypatch, kind, loss):
    rng = np.random.default_rng(13)
    X, y = data(kind, 6000, 3, rng)
    weight = rng.integers(0, 3, 6000).astype(float)
    case = Case(X, y, loss, weight, alpha=0.01, l1_ratio=0.5)
    calls = []
    inner = interior_point.minimise_program
    monkeypatch.setattr(
        interior_point, "minimise_program", lambda *args: calls.append(len(args[0].y)) or inner(*args)
    )
    whole = case.solve()
    monkeypatch.setattr(interior_point, "SAMPLED_ROWS", 1000)
    found = case.solve()
    assert len(calls) >= 3
    assert max(calls) == calls[0]
    assert calls[1] < 1000
    assert abs(case.objective(found) - case.objective(whole)) <= 1e-12 * case.objective(whole)
    assert found.status is whole.status is Status.OPTIMAL


@pytest.mark.parametrize("sampled_rows", [1000, 10**9])
def test_rows_that_are_not_kept_give_the_same(monkeypatch, sampled_rows):
    rng = np.random.default_rng(14)
    X, y = data("normal", 3000, 3, rng)
    weight = rng.integers(0, 3, 3000).astype(float)
    case = Case(X, y, EpsilonInsensitive(0.3), weight)
    kept = case.solve()
    monkeypatch.setattr(interior_point, "SAMPLED_ROWS", sampled_rows)
    monkeypatch.setattr(coordinates, "KEPT_BYTES", 0)
    monkeypatch.setattr("torchlinreg._data.rows.BLOCK_BYTES", 10_000)
    monkeypatch.setattr("torchlinreg._data.rows.WIDE_BLOCK_ROWS", 1)
    np.testing.assert_allclose(case.solve().coef, kept.coef, rtol=1e-9)


@pytest.mark.every(2)
@pytest.mark.parametrize("max_iter", [1, 3, 6])
@pytest.mark.parametrize("penalty", [{}, {"alpha": 0.1, "l1_ratio": 0.5}, {"lower": 0.0}])
def test_too_few_steps_are_told_and_the_gap_is_a_bound(max_iter, penalty):
    rng = np.random.default_rng(15)
    X, y = data("normal", 2000, 5, rng)
    case = Case(X, y, AbsoluteError(), **penalty)
    best, found = case.solve(), case.solve(max_iter=max_iter)
    assert found.status is Status.ITERATIONS_USED
    assert found.n_iter <= max_iter
    excess = case.objective(found) - case.objective(best)
    assert 0 < excess <= found.optimality * case.level * (1 + 1e-9)


WEIGHTS = {
    "two sizes": lambda n, rng: np.where(np.arange(n) % 2, 1.0, 1e-7),
    "halving": lambda n, rng: 0.5 ** (np.arange(n)[::-1] / 30),
    "any": lambda n, rng: 10.0 ** rng.uniform(-12, 0, n),
}


@pytest.mark.parametrize("penalty", [{"alpha": 0.01}, {"alpha": 1.0}, {"alpha": 0.01, "l1_ratio": 0.5}])
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("n", [50, 1000])
def test_rows_of_little_weight_do_not_stop_a_ridge(n, kind, penalty):
    """The dual of the problem bounds its optimum from below; a row without weight changes nothing."""
    rng = np.random.default_rng(0)
    X, y, weight = rng.standard_normal((n, 3)), 3 * rng.standard_normal(n), WEIGHTS[kind](n, rng)
    case = Case(X, y, Quantile(0.9), weight, **penalty)
    found = case.solve()
    assert found.status is Status.OPTIMAL
    assert_optimal(case, found)
