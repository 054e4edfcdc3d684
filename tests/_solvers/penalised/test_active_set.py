"""Squared error with l1 penalties and bounds: never above a reference, and optimality conditions."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import lsq_linear, nnls
from sklearn.linear_model import ElasticNet, Lasso, LinearRegression

from torchlinreg import TorchLinearRegressor
from torchlinreg._data.rows import as_row_blocks
from torchlinreg._objective.penalty import Penalty, elastic_net
from torchlinreg._objective.problem import Problem
from torchlinreg._objective.solution import Status
from torchlinreg._solvers.penalised import active_set
from torchlinreg._solvers.penalised.active_set import solve_active_set

TOL = 1e-12


def fit(X, y, penalty, weight=None, fit_intercept=True, max_iter=None, tol=TOL):
    problem = Problem(as_row_blocks(X, y, weight), penalty, fit_intercept)
    return solve_active_set(problem, tol, max_iter)


def normal_data(n_samples, n_features, seed=0, n_targets=None, n_relevant=10):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, n_features))
    coef = np.zeros((n_features, n_targets or 1))
    coef[:n_relevant] = rng.standard_normal((len(coef[:n_relevant]), coef.shape[1]))
    y = X @ coef + 2 + rng.standard_normal((n_samples, coef.shape[1]))
    return X, y if n_targets else y[:, 0]


def centred(X, y, weight, fit_intercept):
    """Rows times the root of their share, with means taken out in extended precision."""
    X, y = np.asarray(X, dtype=np.longdouble), np.asarray(y, dtype=np.longdouble)
    share = np.ones(len(X), np.longdouble) if weight is None else np.asarray(weight, np.longdouble)
    share = share / share.sum()
    if fit_intercept:
        X, y = X - share @ X, y - share @ y
    return X * np.sqrt(share)[:, None], y * np.sqrt(share)


def objective(X, y, coef, penalty, weight=None, fit_intercept=True):
    X, y = centred(X, y, weight, fit_intercept)
    return float(((y - X @ coef) ** 2).sum() / 2 + penalty.value(coef))


def violation(X, y, coef, penalty, weight=None, fit_intercept=True):
    """The largest correlation of a column with the residual that should not be, but for cancelling terms."""
    X, y = centred(X, y, weight, fit_intercept)
    residual = y - X @ coef
    gradient = X.T @ residual - penalty.l2 * coef
    inside, spread = np.sign(coef) * penalty.l1, np.where(coef == 0, penalty.l1, 0)
    up = np.where(coef < penalty.upper, gradient - inside - spread, 0)
    down = np.where(coef > penalty.lower, inside - spread - gradient, 0)
    excess = np.maximum(np.maximum(up, down), 0)
    norm = np.sqrt((X**2).sum(0) + penalty.l2)
    gain = np.divide(excess, norm, out=np.zeros_like(excess), where=norm > 0)
    size = float(np.sqrt(y @ y) + norm @ np.abs(coef))
    return float(gain.max()) / max(size, 1e-300)


PENALTIES = {
    "lasso": {"l1_ratio": 1.0},
    "elastic net": {"l1_ratio": 0.5},
    "positive lasso": {"l1_ratio": 1.0, "lower": 0.0},
    "bounded ridge": {"l1_ratio": 0.0, "lower": -0.2, "upper": 0.3},
}
SHAPES = {"tall": (200, 30), "square": (40, 40), "wide": (40, 90)}


def reference(X, y, alpha, l1_ratio, fit_intercept=True, positive=False, weight=None):
    other = ElasticNet(
        alpha=alpha,
        l1_ratio=l1_ratio,
        tol=1e-14,
        max_iter=10**6,
        positive=positive,
        fit_intercept=fit_intercept,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tolerance of 1e-14 is not always reached
        return other.fit(X, y, sample_weight=weight)


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("l1_ratio", [1.0, 0.5])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_not_above_elastic_net(shape, fit_intercept, l1_ratio, positive, share):
    X, y = normal_data(*shape)
    alpha = share * np.abs(X.T @ (y - y.mean())).max() / len(y)
    penalty = elastic_net(alpha, l1_ratio, shape[1], lower=0.0 if positive else -np.inf)
    solution = fit(X, y, penalty, fit_intercept=fit_intercept)
    other = reference(X, y, alpha, l1_ratio, fit_intercept, positive)
    ours = objective(X, y, solution.coef[:, 0], penalty, fit_intercept=fit_intercept)
    theirs = objective(X, y, other.coef_, penalty, fit_intercept=fit_intercept)
    assert ours <= theirs * (1 + 1e-12)
    assert solution.status is Status.OPTIMAL
    assert solution.optimality <= TOL
    expected = y.mean() - X.mean(0) @ solution.coef if fit_intercept else [0.0]
    np.testing.assert_allclose(solution.intercept, expected, rtol=1e-12)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("ratio", [1e3, 1e6, 1e9])
@pytest.mark.parametrize("shape", [(60, 200), (200, 60)])
def test_each_of_several_targets_is_at_its_own_optimum(shape, ratio, positive):
    rng = np.random.default_rng(0)
    X = rng.standard_normal(shape)
    Y = X[:, :6] @ rng.standard_normal((6, 2)) + 0.3 * rng.standard_normal((shape[0], 2))
    Y[:, 1] *= ratio
    penalty = elastic_net(0.05, 1.0, shape[1], lower=0.0 if positive else -np.inf)
    solution = fit(X, Y, penalty)
    other = reference(X, Y[:, 0], 0.05, 1.0, positive=positive).coef_
    ours, theirs, null = (
        objective(X, Y[:, 0], coef, penalty) for coef in (solution.coef[:, 0], other, 0 * other)
    )
    assert ours <= theirs + TOL * null
    assert solution.status is Status.OPTIMAL


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_not_above_non_negative_least_squares(shape, fit_intercept):
    X, y = normal_data(*shape)
    penalty = elastic_net(0.0, 1.0, shape[1], lower=0.0)
    solution = fit(X, y, penalty, fit_intercept=fit_intercept)
    other = LinearRegression(positive=True, fit_intercept=fit_intercept).fit(X, y).coef_
    size = objective(X, y, 0 * other, penalty, fit_intercept=fit_intercept)
    ours, theirs = (
        objective(X, y, one, penalty, fit_intercept=fit_intercept) for one in (solution.coef[:, 0], other)
    )
    assert ours <= theirs + 1e-14 * size
    if not fit_intercept:
        assert ours <= objective(X, y, nnls(X, y)[0], penalty, fit_intercept=False) + 1e-14 * size
    assert violation(X, y, solution.coef[:, 0], penalty, fit_intercept=fit_intercept) < 1e-13
    assert solution.status is Status.OPTIMAL


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_not_above_bounded_least_squares(shape):
    X, y = normal_data(*shape)
    rng = np.random.default_rng(1)
    lower = rng.integers(-2, 2, shape[1]) / 4
    upper = lower + rng.integers(1, 3, shape[1]) / 4
    penalty = elastic_net(0.0, 1.0, shape[1], lower=lower, upper=upper)
    solution = fit(X, y, penalty, fit_intercept=False)
    other = lsq_linear(X, y, (lower, upper), tol=1e-15, lsq_solver="exact", method="bvls").x
    size = objective(X, y, 0 * other, penalty, fit_intercept=False)
    ours, theirs = (
        objective(X, y, one, penalty, fit_intercept=False) for one in (solution.coef[:, 0], other)
    )
    assert ours <= theirs + 1e-13 * size
    assert (solution.coef[:, 0] == lower).any()
    assert (solution.coef[:, 0] == upper).any()


@st.composite
def problems(draw):
    """Data, weights and penalty of all kinds that have made solvers fail."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_samples, n_features = draw(st.integers(2, 40)), draw(st.integers(1, 40))
    kind = draw(
        st.sampled_from(["normal", "tied", "duplicated", "constant", "outliers", "offset", "units", "flat y"])
    )
    X = rng.standard_normal((n_samples, n_features))
    if kind == "tied":
        X = rng.integers(-2, 3, X.shape).astype(float)
    if kind == "duplicated":
        X = X[:, rng.integers(n_features, size=n_features)]
    if kind == "constant":
        X[:, rng.random(n_features) < 0.4] = 3.7
    if kind == "outliers":
        X[rng.random(X.shape) < 0.03] = 1e6
    if kind == "offset":
        X += 1e6 * rng.standard_normal(n_features)
    if kind == "units":
        X *= 10.0 ** rng.integers(-6, 7, n_features)
    y = rng.integers(-3, 4, n_samples) + (X - X.mean(0)) @ (
        rng.integers(-1, 2, n_features) * (kind != "units")
    )
    if kind == "flat y":
        y = np.full(n_samples, 2.7)
    weight = rng.integers(0, 3, n_samples).astype(float) if draw(st.booleans()) else None
    assume(weight is None or weight.any())
    # Offsets of 1e6 without intercept make parallel columns, of which Gram matrices tell nothing apart.
    fit_intercept = kind == "offset" or draw(st.booleans())
    strongest = np.abs(
        centred(X, y, weight, fit_intercept)[0].T @ centred(X, y, weight, fit_intercept)[1]
    ).max()
    alpha = float(strongest) * 10.0 ** draw(st.integers(-5, 1))
    factor = rng.integers(0, 3, n_features).astype(float) if draw(st.booleans()) else None
    l1_ratio = draw(st.sampled_from([0.0, 0.5, 1.0]))
    lower, upper = np.full(n_features, -np.inf), np.full(n_features, np.inf)
    bounds = draw(st.sampled_from(["none", "positive", "some", "apart from zero", "equal"]))
    if bounds == "positive":
        lower[:] = 0
    elif bounds == "some":
        lower[rng.random(n_features) < 0.5] = -0.1
        upper[rng.random(n_features) < 0.5] = 0.2
    elif bounds == "apart from zero":
        lower[rng.random(n_features) < 0.5] = 0.25
    elif bounds == "equal":
        fixed = rng.random(n_features) < 0.5
        lower[fixed] = upper[fixed] = 0.5
    return X, y, weight, fit_intercept, elastic_net(alpha, l1_ratio, n_features, factor, lower, upper)


@given(problems())
def test_optimality_conditions(problem):
    X, y, weight, fit_intercept, penalty = problem
    solution = fit(X, y, penalty, weight, fit_intercept, tol=1e-30)
    coef = solution.coef[:, 0]
    assert (coef >= penalty.lower).all()
    assert (coef <= penalty.upper).all()
    assert solution.status is Status.OPTIMAL
    assert solution.n_iter >= 1
    assert violation(X, y, coef, penalty, weight, fit_intercept) < 1e-13
    assert np.isfinite(solution.intercept).all()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", PENALTIES)
class TestLaws:
    def penalty(self, name, n_features, alpha=0.05):
        return elastic_net(alpha, n_features=n_features, **PENALTIES[name])

    def test_weights_are_repetitions(self, name, shape):
        X, y = normal_data(*shape)
        weight = np.random.default_rng(2).integers(0, 3, len(y)).astype(float)
        penalty = self.penalty(name, shape[1])
        repeated = weight.astype(int)
        ours = fit(X, y, penalty, weight)
        theirs = fit(np.repeat(X, repeated, axis=0), np.repeat(y, repeated), penalty)
        np.testing.assert_allclose(ours.coef, theirs.coef, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(ours.intercept, theirs.intercept, rtol=1e-9)

    def test_targets_are_by_themselves(self, name, shape):
        X, y = normal_data(*shape, n_targets=3)
        y[:, 1] *= 1e3
        penalty = self.penalty(name, shape[1])
        together = fit(X, y, penalty)
        for k in range(3):
            alone = fit(X, y[:, k], penalty)
            np.testing.assert_allclose(together.coef[:, k], alone.coef[:, 0], rtol=1e-9, atol=1e-11)
            np.testing.assert_allclose(together.intercept[k], alone.intercept[0], rtol=1e-9)

    def test_data_kinds_agree(self, name, shape):
        X, y = normal_data(*shape)
        X = np.where(np.abs(X) > 1.8, X, 0).astype(np.float32)
        penalty = self.penalty(name, shape[1])
        expected = fit(X.astype(float), y, penalty)
        kinds = [X, sparse.csr_array(X), torch.from_numpy(X), np.asfortranarray(X, dtype=float)[::1]]
        for kind in kinds:
            solution = fit(kind, y, penalty)
            np.testing.assert_allclose(solution.coef, expected.coef, rtol=1e-9, atol=1e-11)
            np.testing.assert_allclose(solution.intercept, expected.intercept, rtol=1e-9)

    def test_units_of_columns_do_not_matter(self, name, shape):
        X, y = normal_data(*shape)
        unit = 10.0 ** np.random.default_rng(3).integers(-6, 7, shape[1])
        penalty = self.penalty(name, shape[1])
        plain = fit(X, y, penalty)
        scaled = Penalty(penalty.l1 * unit, penalty.l2 * unit**2, penalty.lower / unit, penalty.upper / unit)
        other = fit(X * unit + 1e3 * unit, y, scaled)
        np.testing.assert_allclose(other.coef * unit[:, None], plain.coef, rtol=1e-8, atol=1e-10)

    @pytest.mark.parametrize("where", ["X", "y"])
    @pytest.mark.parametrize("what", [np.nan, np.inf])
    def test_not_finite(self, name, shape, where, what):
        X, y = normal_data(*shape)
        (X if where == "X" else y[:, None])[3, 0] = what
        with pytest.raises(ValueError, match=f"Input {where} contains {'NaN' if np.isnan(what) else 'inf'}"):
            fit(X, y, self.penalty(name, shape[1]))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_huge_penalty_leaves_exact_zeros(shape):
    X, y = normal_data(*shape)
    solution = fit(X, y, elastic_net(1e6, 1.0, shape[1]))
    assert not solution.coef.any()
    assert not np.signbit(solution.coef).any()
    np.testing.assert_allclose(solution.intercept, y.mean(), rtol=1e-14)
    assert solution.optimality < 1e-30  # the intercept is rounded


def test_wide_rows_never_form_all_products(monkeypatch):
    X, y = normal_data(60, 2000)

    def forbidden(self):
        raise AssertionError("the moments of all columns were formed")

    monkeypatch.setattr(Problem, "moments", property(forbidden))
    alpha = 0.1 * np.abs(X.T @ (y - y.mean())).max() / len(y)
    solution = fit(X, y, elastic_net(alpha, 1.0, 2000))
    assert solution.status is Status.OPTIMAL
    other = Lasso(alpha=alpha, tol=1e-14, max_iter=10**6).fit(X, y).coef_
    penalty = elastic_net(alpha, 1.0, 2000)
    ours, theirs = (objective(X, y, one, penalty) for one in (solution.coef[:, 0], other))
    assert ours <= theirs * (1 + 1e-12)


def test_working_sets_that_meet_bounds_apart_from_zero():
    X, y = normal_data(60, 500)
    lower = np.full(500, -np.inf)
    lower[[3, 400]] = 0.5
    penalty = elastic_net(0.2, 1.0, 500, lower=lower)
    solution = fit(X, y, penalty)
    assert solution.coef[400, 0] == 0.5
    assert violation(X, y, solution.coef[:, 0], penalty) < 1e-13


def test_working_sets_end_at_max_iter():
    X, y = normal_data(80, 800, n_relevant=70)
    solution = fit(X, y, elastic_net(1e-3, 1.0, 800), max_iter=2)
    assert solution.status is Status.ITERATIONS_USED
    assert solution.n_iter == 2
    assert solution.optimality > TOL
    full = fit(X, y, elastic_net(1e-3, 1.0, 800))
    assert full.status is Status.OPTIMAL
    assert full.n_iter > 2


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_ill_conditioned_columns_are_refined(offset, monkeypatch):
    """Columns of condition 1e7 that nearly cancel, which moments to 16 digits do not determine well."""
    rng = np.random.default_rng(6)
    base = rng.standard_normal((300, 1))
    X = base + 3e-7 * rng.standard_normal((300, 8)) + offset
    y = (X - X.mean(0)) @ np.array([1e6, 2e6, 3e6, 0, 1e6, 0, 0, 2e6]) + 1e-3 * rng.standard_normal(300)
    penalty = elastic_net(0.0, 1.0, 8, lower=0.0)
    refined = fit(X, y, penalty)
    monkeypatch.setattr(active_set, "LEAST_GAP", np.inf)  # any gap will do
    monkeypatch.setattr(active_set, "_values_and_gaps", lambda *_: (np.ones(1), np.zeros(1), False))
    monkeypatch.setattr(active_set, "solve_bounded", lambda *_: None)
    plain = fit(X, y, penalty)
    assert refined.n_iter > 1 == plain.n_iter
    best, first = (objective(X, y, one.coef[:, 0], penalty) for one in (refined, plain))
    assert best < first


@pytest.mark.parametrize("seed", [7, 11, 33, 55, 63, 155, 171, 459])
def test_parallel_columns_of_which_some_are_free(seed):
    """About their means the columns of two rows are parallel, but for the rounding of any root of them."""
    rng = np.random.default_rng(seed)
    n_features = int(rng.integers(5, 35))
    X = rng.normal(size=(2, n_features)) + 1e6 * rng.normal(size=n_features)
    lower = np.where(rng.random(n_features) < 0.5, 0.25, -np.inf)
    y = X[:, 0] + rng.normal(size=2)
    factor = rng.integers(0, 3, n_features).astype(float)
    penalty = elastic_net(0.2, 0.5 * (seed // 2 % 2), n_features, factor, lower)
    solution = fit(X, y, penalty, tol=1e-30)
    assert solution.status is Status.OPTIMAL
    assert violation(X, y, solution.coef[:, 0], penalty) < 1e-13


def test_a_constant_target_beyond_bounds_that_exclude_zero():
    """The best constant has an objective of 0, so that objectives are those of coefficients nearest to 0."""
    X = np.random.default_rng(0).normal(size=(2, 3))
    penalty = elastic_net(0.0, 1.0, 3, lower=np.array([-np.inf, -np.inf, 0.25]))
    solution = fit(X, np.full(2, 2.7), penalty, tol=1e-30)
    assert solution.status is Status.OPTIMAL
    assert solution.optimality < 1e-15
    np.testing.assert_allclose(X @ solution.coef[:, 0] + solution.intercept, 2.7, rtol=1e-15)


@pytest.mark.parametrize("max_iter", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.1, "l1_ratio": 1.0},
        {"positive": True},
        {"loss": "squared_epsilon_insensitive"},
        {"loss": "squared_epsilon_insensitive", "alpha": 0.1, "l1_ratio": 1.0},
    ],
)
@pytest.mark.filterwarnings("ignore:After . iterations")
def test_wide_fits_keep_to_max_iter_and_tell(options, max_iter):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 40))
    y = 3 * X[:, 0] + rng.normal(size=20)
    reg = TorchLinearRegressor(max_iter=max_iter, **options).fit(X, y)
    assert reg.n_iter_ <= max_iter
    whole = TorchLinearRegressor(**options).fit(X, y)
    if whole.n_iter_ > max_iter:
        assert reg.status_.name == "ITERATIONS_USED"
        assert "max_iter" in reg.status_.message
