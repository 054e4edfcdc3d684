"""Smooth losses: optimality over a battery of data and penalties, and agreement with rivals by objective."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import HuberRegressor

from torchlinreg import Status, TorchLinearRegressor, losses
from torchlinreg._solvers.newton import newton

KINDS = [
    "normal",
    "tied",
    "few rows",
    "wide",
    "duplicated",
    "constant y",
    "heavy tails",
    "outlier",
    "offset",
    "units",
]
LOSSES = [
    losses.Huber(),
    losses.Huber(scale=0.3),
    losses.Huber(scale=1e-3),
    losses.SquaredEpsilonInsensitive(0.5),
    losses.LogCosh(),
]
PENALTIES = [
    {},
    {"alpha": 0.3},
    {"alpha": 0.3, "l1_ratio": 1.0},
    {"alpha": 0.1, "l1_ratio": 0.5, "penalty_factor": [0.0, 1.0, 3.0]},
    {"positive": True},
    {"alpha": 0.1, "l1_ratio": 0.3, "bounds": (-0.4, 0.4)},
]


def data(kind, seed, n_features=3, offset=1e6):
    rng = np.random.default_rng(seed)
    n_samples = {"few rows": n_features + 2, "wide": n_features - 1}.get(kind, int(rng.integers(12, 80)))
    X = rng.standard_normal((n_samples, n_features))
    y = X @ rng.standard_normal(n_features) + 1 + rng.standard_normal(n_samples)
    match kind:
        case "tied":
            X, y = np.rint(X), np.rint(y)
        case "duplicated":
            X[:, 1] = X[:, 0]
        case "constant y":
            y[:] = 3.0
        case "heavy tails":
            y += 10 * rng.standard_cauchy(n_samples)
        case "outlier":
            y[0] += 1e6
        case "offset":
            X += offset
            y += offset
        case "units":
            X *= [1e-6, 1.0, 1e6]
    return X, y


def slope(loss, residual, scale):
    """Derivatives of the loss by the prediction, of prediction minus target, from the formulas."""
    match loss:
        case losses.Huber():
            limit = loss.epsilon * (scale if loss.scale == "auto" else loss.scale)
            return np.clip(residual, -limit, limit) / (scale if loss.scale == "auto" else 1.0)
        case losses.SquaredEpsilonInsensitive():
            return np.sign(residual) * np.maximum(np.abs(residual) - loss.epsilon, 0)
        case losses.LogCosh():
            return np.tanh(residual)


def violation(reg, X, y, weight, coef, intercept, scale):
    """How far the conditions of optimality are from being met, relative to the pulls on a constant."""
    share = weight / weight.sum()
    center, constant = (share @ X, share @ y) if reg.fit_intercept else (0.0, 0.0)
    columns = X - center
    residual = columns @ coef + (intercept + center @ coef if reg.fit_intercept else 0.0) - y
    pulls = share * slope(reg.loss, residual, scale)
    strength = share @ np.abs(slope(reg.loss, constant - y, scale)) + 1e-300
    size = np.abs(columns).max(0) * strength
    factor = np.ones(len(coef)) if reg.penalty_factor is None else np.array(reg.penalty_factor)
    gradient = columns.T @ pulls + reg.alpha * factor * (1 - reg.l1_ratio) * coef
    l1 = reg.alpha * factor * reg.l1_ratio
    lower, upper = (-np.inf, np.inf) if reg.bounds is None else reg.bounds
    lower = 0.0 if reg.positive else lower
    assert (coef >= lower).all()
    assert (coef <= upper).all()
    # The interval of subgradients; at a bound it is open to one side.
    least = gradient + np.where(coef > 0, l1, -l1)
    most = gradient + np.where(coef < 0, -l1, l1)
    least = np.where(coef == lower, -np.inf, least) if np.isfinite(lower) else least
    most = np.where(coef == upper, np.inf, most) if np.isfinite(upper) else most
    at_lower, at_upper = coef == lower, coef == upper
    wrong = np.where(at_lower, -most, np.where(at_upper, least, np.maximum(least, -most)))
    worst = float((np.maximum(wrong, 0) / (size + l1)).max(initial=0.0))
    if reg.fit_intercept:
        worst = max(worst, abs(pulls.sum()) / strength)
    return worst


@pytest.mark.every(2)
@pytest.mark.filterwarnings("error::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
# A sixth of the usual number: there are 30 of these tests.
@settings(max_examples=settings.default.max_examples // 6)
@given(
    kind=st.sampled_from(KINDS), seed=st.integers(0, 999), fit_intercept=st.booleans(), weighted=st.booleans()
)
def test_conditions_of_optimality(loss, penalty, kind, seed, fit_intercept, weighted):
    # Without an intercept, columns far from 0 all but depend on each other.
    X, y = data(kind, seed, offset=1e6 if fit_intercept else 10.0)
    rng = np.random.default_rng(seed)
    weight = rng.integers(0, 4, len(y)).astype(float) if weighted else np.ones(len(y))
    weight[0] = 1.0
    reg = TorchLinearRegressor(loss=loss, fit_intercept=fit_intercept, **penalty)
    reg.fit(X, y, sample_weight=weight if weighted else None)
    if getattr(reg, "scale_", 1.0) == 0:
        return  # the absolute error's optimum, which has a test of its own
    assert reg.status_.optimality <= 1e-9
    scale = getattr(reg, "scale_", 1.0)
    # Rounding of residuals, which matters for the losses of a small scale.
    rounding = 1e-15 * (np.abs(y).max() + np.abs(X * reg.coef_).max()) / getattr(loss, "threshold", 1.0)
    # The objective is above its optimum by about the square of this.
    assert violation(reg, X, y, weight, reg.coef_, reg.intercept_, scale) < 1e-5 + rounding


class TestHuberRegressor:
    @pytest.mark.parametrize("alpha", [0.0, 50.0])
    @pytest.mark.parametrize("fit_intercept", [True, False])
    def test_same_coefficients(self, alpha, fit_intercept):
        # It ends where its objective changes by less than 2e-9, so there must be enough rows.
        rng = np.random.default_rng(0)
        X = rng.standard_normal((20_000, 4))
        y = X @ [1.0, -2.0, 0.5, 3.0] + 1 + rng.standard_t(3, len(X))
        rival = HuberRegressor(alpha=alpha, fit_intercept=fit_intercept, max_iter=1000, tol=1e-9).fit(X, y)
        ours = TorchLinearRegressor(loss="huber", alpha=alpha / len(X), fit_intercept=fit_intercept).fit(X, y)
        assert np.linalg.norm(ours.coef_ - rival.coef_) <= 1e-6 * np.linalg.norm(ours.coef_)
        np.testing.assert_allclose(ours.intercept_, rival.intercept_, rtol=1e-6)
        np.testing.assert_allclose(ours.scale_, rival.scale_, rtol=1e-6)

    @pytest.mark.every(5)
    @pytest.mark.parametrize("alpha", [0.0, 0.5])
    @pytest.mark.parametrize("kind", ["normal", "tied", "heavy tails", "outlier"])
    @pytest.mark.parametrize("epsilon", [1.1, 1.35, 2.5])
    def test_never_above_its_objective(self, alpha, kind, epsilon):
        X, y = data(kind, 1)
        weight = np.random.default_rng(0).integers(1, 4, len(y)).astype(float)
        alpha /= weight.sum()

        def objective(reg):
            size = np.abs(X @ reg.coef_ + reg.intercept_ - y)
            limit = epsilon * reg.scale_
            each = epsilon * size
            if limit > 0:
                each = np.where(size <= limit, size**2 / reg.scale_, 2 * each - limit * epsilon) / 2
            mean = weight @ (reg.scale_ / 2 + each) / weight.sum()
            return mean + alpha / 2 * reg.coef_ @ reg.coef_

        ours = TorchLinearRegressor(loss=losses.Huber(epsilon), alpha=alpha).fit(X, y, sample_weight=weight)
        rival = HuberRegressor(epsilon=epsilon, alpha=alpha * weight.sum(), max_iter=1000)
        rival.fit(X, y, sample_weight=weight)
        assert objective(ours) <= objective(rival) * (1 + 1e-9)

    def test_scale_follows_the_units_of_y(self):
        X, y = data("heavy tails", 2)
        one, thousand = (TorchLinearRegressor(loss="huber").fit(X, factor * y) for factor in (1, 1000))
        np.testing.assert_allclose(thousand.coef_, 1000 * one.coef_, rtol=1e-10)
        np.testing.assert_allclose(thousand.scale_, 1000 * one.scale_, rtol=1e-10)

    def test_several_targets_are_fitted_each_by_itself(self):
        X, y = data("heavy tails", 3)
        both = TorchLinearRegressor(loss="huber", alpha=0.1).fit(X, np.column_stack([y, -3 * y]))
        one = TorchLinearRegressor(loss="huber", alpha=0.1).fit(X, y)
        assert both.scale_.shape == (2,)
        np.testing.assert_allclose(both.coef_[0], one.coef_, rtol=1e-10)
        np.testing.assert_allclose(both.scale_, [one.scale_, both.scale_[1]], rtol=1e-10)

    @pytest.mark.parametrize("outlier", [1e6, 1e10, 1e14])
    def test_the_size_of_outliers_does_not_matter(self, outlier):
        X, y = data("normal", 3)
        y[:5] = 1e3
        near = TorchLinearRegressor(loss="huber").fit(X, y)
        y[:5] = outlier
        far = TorchLinearRegressor(loss="huber").fit(X, y)
        np.testing.assert_allclose(far.coef_, near.coef_, rtol=1e-12)
        np.testing.assert_allclose(far.scale_, near.scale_, rtol=1e-12)

    def test_the_scale_of_small_residuals_about_a_large_offset(self):
        X, y = data("normal", 3)
        usual = TorchLinearRegressor(loss="huber").fit(X, y)
        far = TorchLinearRegressor(loss="huber").fit(X, 1e-4 * y + 1e9)
        np.testing.assert_allclose(far.scale_, 1e-4 * usual.scale_, rtol=0.01)
        np.testing.assert_allclose(far.coef_, 1e-4 * usual.coef_, rtol=0.05, atol=1e-6)

    def test_a_row_of_no_weight_has_no_say(self):
        X, y = data("normal", 3)
        weight = np.ones(len(y))
        without = TorchLinearRegressor(loss="huber").fit(X[1:], y[1:])
        weight[0], y[0] = 0.0, 1e200
        ignored = TorchLinearRegressor(loss="huber").fit(X, y, sample_weight=weight)
        np.testing.assert_allclose(ignored.coef_, without.coef_, rtol=1e-9)
        np.testing.assert_allclose(ignored.scale_, without.scale_, rtol=1e-9)

    def test_a_majority_fitted_exactly_has_no_scale(self):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((40, 2))
        y = X @ [2.0, -1.0] + 5
        y[:12] += 100 * rng.standard_normal(12)
        reg = TorchLinearRegressor(loss="huber").fit(X, y)
        assert reg.scale_ == 0
        np.testing.assert_allclose(reg.coef_, [2, -1], rtol=1e-12)


class TestObjectives:
    def test_huber_of_a_fixed_scale(self):
        X, y = data("heavy tails", 4)
        design = np.column_stack([np.ones(len(y)), X])
        reg = TorchLinearRegressor(loss=losses.Huber(1.345, scale=2.0)).fit(X, y)

        def objective(model):
            size = np.abs(design @ model - y)
            return np.where(size <= 2.69, size**2 / 2, 2.69 * size - 2.69**2 / 2).mean()

        start = np.linalg.lstsq(design, y)[0]
        rival = minimize(objective, start, method="BFGS", tol=1e-12).x
        assert objective(np.append(reg.intercept_, reg.coef_)) <= objective(rival) * (1 + 1e-9)

    @pytest.mark.parametrize("penalty", PENALTIES[1:4], ids=repr)
    def test_no_other_point_is_better(self, penalty):
        X, y = data("heavy tails", 5)
        reg = TorchLinearRegressor(loss="log_cosh", **penalty).fit(X, y)
        factor = np.array(penalty.get("penalty_factor", 1.0)) * np.ones(3)
        l1 = penalty["alpha"] * penalty.get("l1_ratio", 0) * factor
        l2 = penalty["alpha"] * (1 - penalty.get("l1_ratio", 0)) * factor

        def objective(model):
            size = np.abs(X @ model[:3] + model[3] - y)
            mean = (size + np.log1p(np.expm1(-2 * size) / 2)).mean()
            return mean + l1 @ np.abs(model[:3]) + l2 @ model[:3] ** 2 / 2

        ours = np.append(reg.coef_, reg.intercept_)
        for start in (np.zeros(4), ours + 1e-3, ours):
            found = minimize(objective, start, method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-14})
            assert objective(ours) <= objective(found.x) * (1 + 1e-9)


def test_rows_too_many_to_keep_are_made_anew(monkeypatch):
    X, y = data("heavy tails", 6)
    kept = TorchLinearRegressor(loss="huber").fit(X, y)
    monkeypatch.setattr("torchlinreg._solvers.coordinates.KEPT_BYTES", 0)
    anew = TorchLinearRegressor(loss="huber").fit(X, y)
    np.testing.assert_allclose(anew.coef_, kept.coef_, rtol=1e-12)


def test_badly_conditioned_columns():
    x = np.linspace(1900, 2000, 200)
    X = np.column_stack([x, x**2, x**3])
    y = 1e-4 * (x - 1950) ** 3 + np.random.default_rng(0).standard_t(2, 200)
    reg = TorchLinearRegressor(loss="log_cosh").fit(X, y)
    centred = ((x - 1950) / 50)[:, None] ** [1, 2, 3]
    easy = TorchLinearRegressor(loss="log_cosh").fit(centred, y)
    np.testing.assert_allclose(reg.predict(X), easy.predict(centred), rtol=1e-6, atol=1e-5)


def assert_ends_by_itself(reg, X, y):
    """At the optimum, not by max_iter, which is several times what is needed."""
    reg.set_params(max_iter=100).fit(X, y)
    assert reg.status_.name == "OPTIMAL"
    # The status alone does not tell: it is OPTIMAL wherever the last iterate is near enough.
    assert reg.n_iter_ < reg.max_iter


@pytest.mark.parametrize("loss", ["huber", "log_cosh", losses.Huber(scale=1.0)], ids=repr)
def test_an_optimum_of_zero_is_found(loss):
    """All iterations are taken where steps are judged by rounding."""
    half = np.sqrt(np.arange(1.0, 40.0))
    t = np.concatenate([-half, half])
    X, y = np.abs(t)[:, None], t**3
    reg = TorchLinearRegressor(loss=loss)
    assert_ends_by_itself(reg, X, y)
    np.testing.assert_allclose(reg.predict(X), 0, atol=1e-10 * np.median(np.abs(y)))


@pytest.mark.parametrize("unit", [0.3, 1.0, 7.9])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_an_optimum_within_a_flat_region_is_found_in_any_units(unit, offset):
    """160 to 200 iterations where each step is judged by the last alone, as roundings may alternate."""
    half = np.sqrt(np.arange(1.0, 40.0))
    t = np.concatenate([-half, half])
    X, y = unit * np.abs(t)[:, None] - offset, t**3
    reg = TorchLinearRegressor(loss=losses.Huber(scale=1.0))
    assert_ends_by_itself(reg, X, y)
    np.testing.assert_allclose(reg.predict(X), 0, atol=1e-10 * np.median(np.abs(y)))


@pytest.mark.parametrize("penalty", [{}, {"alpha": 0.1, "l1_ratio": 1.0}, {"bounds": (-0.4, 0.4)}], ids=repr)
@pytest.mark.parametrize("loss", [losses.Huber(), losses.SquaredEpsilonInsensitive(0.5), losses.LogCosh()])
def test_offsets_cost_no_digits(loss, penalty):
    X, y = data("normal", 5)
    y = np.rint(y * 2**20) / 2**20  # which an offset leaves exactly so
    near = TorchLinearRegressor(loss=loss, **penalty).fit(X, y)
    far = TorchLinearRegressor(loss=loss, **penalty).fit(X, y + 2.0**30)
    np.testing.assert_allclose(far.coef_, near.coef_, rtol=1e-10)
    np.testing.assert_allclose(far.intercept_ - 2.0**30, near.intercept_, atol=1e-6)


def test_max_iter_is_kept_and_told():
    X, y = data("heavy tails", 7)
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        reg = TorchLinearRegressor(loss="log_cosh", max_iter=1).fit(X, y)
    assert (reg.n_iter_, reg.status_.name) == (1, "ITERATIONS_USED")


@pytest.mark.parametrize("penalty", [{}, {"alpha": 0.05, "l1_ratio": 1.0}, {"positive": True}], ids=repr)
@pytest.mark.parametrize("loss", [losses.Huber(), losses.SquaredEpsilonInsensitive(0.1), losses.LogCosh()])
def test_a_constant_column_changes_nothing(loss, penalty, monkeypatch):
    """It does not make for several optima, among which a small ridge would decide."""
    monkeypatch.setattr(newton, "PULL_STAGES", None)  # an error where one is asked for
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((30, 1)), 1 + rng.standard_normal(30)
    expected = TorchLinearRegressor(loss=loss, **penalty).fit(x, y)
    found = TorchLinearRegressor(loss=loss, **penalty).fit(np.column_stack([x, np.ones(30)]), y)
    np.testing.assert_allclose(found.coef_, [*expected.coef_, 0.0], rtol=1e-9, atol=1e-12)
    assert found.intercept_ == pytest.approx(expected.intercept_, rel=1e-9)


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("loss", [losses.SquaredEpsilonInsensitive(0.1), losses.LogCosh()])
def test_several_optima_about_a_constant_prediction(loss, copies):
    """The ridge that decides among them is small, however near to the constant they are."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((30, 1)), 1 + rng.standard_normal(30)
    found = TorchLinearRegressor(loss=loss, alpha=10.0, l1_ratio=1.0).fit(np.repeat(x, copies, axis=1), y)
    constant = TorchLinearRegressor(loss=loss).fit(np.zeros((30, 1)), y)
    assert not found.coef_.any()
    assert found.intercept_ == pytest.approx(constant.intercept_, rel=1e-9)


@pytest.mark.parametrize("loss", ["huber", "log_cosh", "absolute_error", "squared_error"])
def test_nothing_to_fit(loss):
    reg = TorchLinearRegressor(loss=loss, fit_intercept=False).fit(np.zeros((30, 2)), np.arange(30.0))
    assert not reg.coef_.any()


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_where_most_targets_are_the_same_the_scale_may_be_0(shift):
    """Then the objective is 1.35 times the least mean absolute error: here 1.35 * 6 / 7."""
    X, y = np.array([[0.0], [0.0], [0.0], [1.0], [1.0], [0.0], [1.0]]), np.array([0.0, 0, 0, 0, 6, 0, 0])
    reg = TorchLinearRegressor(loss="huber").fit(X, y + shift)
    np.testing.assert_allclose([reg.coef_[0], reg.intercept_ - shift, reg.scale_], 0, atol=1e-12)
    assert reg.status_.kind.name == "OPTIMAL"


@pytest.mark.parametrize("alpha", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(12))
def test_few_claims_among_zeros(seed, alpha):
    """No higher than HiGHS finds without a scale, in any units, and known to be optimal."""
    rng = np.random.default_rng(seed)
    n, unit = int(rng.integers(6, 60)), 10.0 ** rng.integers(-6, 6)
    X = rng.integers(0, 2, (n, int(rng.integers(1, 4)))).astype(float)
    y = np.where(rng.random(n) < rng.uniform(0.6, 0.95), 0, rng.exponential(5, n)) * unit
    reg = TorchLinearRegressor(loss="huber", alpha=alpha, l1_ratio=1.0).fit(X, y)
    parts = np.eye(n)
    cost = np.concatenate([np.full(2 * X.shape[1], alpha), [0.0], np.full(2 * n, 1.35 / n)])
    equations = np.column_stack([X, -X, np.ones(n), parts, -parts])
    bounds = [(0, None)] * (2 * X.shape[1]) + [(None, None)] + [(0, None)] * (2 * n)
    least = linprog(cost, A_eq=equations, b_eq=y / unit, bounds=bounds, method="highs").fun * unit
    residual = np.abs(y - reg.predict(X))
    scale = float(reg.scale_)
    inside = np.minimum(residual, 1.35 * scale)
    loss = scale / 2 + (inside * (residual - inside / 2) / scale).mean() if scale else 1.35 * residual.mean()
    assert loss + alpha * np.abs(reg.coef_).sum() <= least * (1 + 1e-9)
    assert reg.status_.kind.name in ("OPTIMAL", "MINIMUM_NORM")


def test_second_derivatives_that_overflow_in_autograd():
    """Of ``log(cosh(r))`` autograd makes 1 beyond r = 400, where the cosine's square overflows."""

    def written_by_hand(prediction, target):
        return torch.log(torch.cosh(prediction - target))

    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 20))
    y = 150 * X[:, 0] + 100 * rng.standard_normal(200)
    y[:3] = 500.0, -480.0, 600.0
    reg = TorchLinearRegressor(loss=written_by_hand, alpha=0.1).fit(X, y)
    stable = TorchLinearRegressor(loss="log_cosh", alpha=0.1).fit(X, y)
    assert reg.status_.kind is Status.OPTIMAL
    np.testing.assert_allclose(reg.coef_, stable.coef_, rtol=1e-11)
