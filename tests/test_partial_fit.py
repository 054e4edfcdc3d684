"""Exact `partial_fit`: any split of the rows into calls gives the model of one `fit`."""

import pickle
import warnings
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from benchmarks.problems import nist_problems
from torchlinreg import TorchLinearRegressor

N_SAMPLES, N_FEATURES = 30, 4
NIST = {problem.name.removeprefix("nist-"): problem for problem in nist_problems()}


def problem(n_targets=None, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N_SAMPLES, N_FEATURES)) * [1, 1e3, 1e-4, 1] + [0, 5, 1, 1e4]
    shape = (N_SAMPLES,) if n_targets is None else (N_SAMPLES, n_targets)
    return X, 100 + rng.standard_normal(shape), rng.integers(0, 4, N_SAMPLES) / 2.0


def fit_parts(reg, X, y, weight=None, cuts=()):
    """Call `partial_fit` on the rows between the cuts."""
    for start, stop in pairwise([0, *cuts, X.shape[0]]):
        part = None if weight is None else weight[start:stop]
        reg.partial_fit(X[start:stop], y[start:stop], sample_weight=part)
    return reg


def fit_parts_quietly(reg, *args, **kwargs):
    """The same, where models of a few rows may lack digits that later rows bring."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return fit_parts(reg, *args, **kwargs)


def refusal(call, *arguments):
    """The message of the ValueError that a call raises, if it does."""
    try:
        call(*arguments)
    except ValueError as error:
        return str(error)
    return None


def assert_same_model(found, expected, rtol=1e-11):
    np.testing.assert_allclose(found.coef_, expected.coef_, rtol=rtol)
    np.testing.assert_allclose(found.intercept_, expected.intercept_, rtol=rtol)
    assert found.coef_.shape == expected.coef_.shape
    assert found.coef_.dtype == expected.coef_.dtype
    assert found.rank_ == expected.rank_


cut_places = st.sets(st.integers(1, N_SAMPLES - 1), max_size=8).map(sorted)


@given(
    cuts=cut_places,
    weighted=st.booleans(),
    n_targets=st.sampled_from([None, 1, 3]),
    alpha=st.sampled_from([0.0, 0.3]),
    fit_intercept=st.booleans(),
)
def test_any_split_is_one_fit(cuts, weighted, n_targets, alpha, fit_intercept):
    X, y, weight = problem(n_targets)
    weight = weight + 0.5 if weighted else None
    reg = TorchLinearRegressor(alpha=alpha, fit_intercept=fit_intercept)
    expected = clone(reg).fit(X, y, sample_weight=weight)
    assert_same_model(fit_parts_quietly(reg, X, y, weight, cuts), expected)


@given(cuts=cut_places, seed=st.integers(0, 99))
def test_order_of_the_parts_does_not_matter(cuts, seed):
    X, y, _ = problem()
    order = np.random.default_rng(seed).permutation(N_SAMPLES)
    expected = TorchLinearRegressor().fit(X, y)
    found = fit_parts_quietly(TorchLinearRegressor(), X[order], y[order], cuts=cuts)
    assert_same_model(found, expected)


@pytest.mark.parametrize("n_targets", [None, 2])
def test_one_row_at_a_time(n_targets):
    X, y, weight = problem(n_targets)
    weight = weight + 0.25
    cuts = range(1, N_SAMPLES)
    found = fit_parts_quietly(TorchLinearRegressor(), X, y, weight, cuts)
    assert_same_model(found, TorchLinearRegressor().fit(X, y, sample_weight=weight))


def test_the_model_is_right_after_every_row():
    """From the first on, which leaves nothing but the intercept, through minimum norm."""
    X = np.random.default_rng(1).standard_normal((12, 5))
    y = X.sum(axis=1) + np.arange(12.0)
    reg = TorchLinearRegressor()
    for n in range(1, 13):
        reg.partial_fit(X[n - 1 : n], y[n - 1 : n])
        centred = X[:n] - X[:n].mean(axis=0)
        coef = np.linalg.pinv(centred) @ (y[:n] - y[:n].mean())
        np.testing.assert_allclose(reg.coef_, coef, rtol=1e-7, atol=1e-10)
        np.testing.assert_allclose(reg.predict(X[:n]).mean(), y[:n].mean(), rtol=1e-10)
        assert reg.rank_ == min(n - 1, 5)


def test_first_rows_fewer_than_features():
    rng = np.random.default_rng(2)
    X, y = rng.standard_normal((60, 10)), rng.standard_normal(60)
    expected = TorchLinearRegressor().fit(X, y)
    assert_same_model(fit_parts(TorchLinearRegressor(), X, y, cuts=(3, 7)), expected)


@pytest.mark.parametrize("weight", [1e-3, 1e-6, 1e-9, 1e-12, 1e-15])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_few_rows_of_very_different_weights(weight, fit_intercept):
    """Weights do not matter to a model that meets all rows."""
    rng = np.random.default_rng(3)
    X, y = rng.integers(-5, 6, (3, 7)).astype(float), rng.standard_normal(3)
    reg = TorchLinearRegressor(fit_intercept=fit_intercept)
    found = fit_parts_quietly(clone(reg), X, y, np.array([weight, 1.0, 2.0]), cuts=(2,))
    np.testing.assert_allclose(found.coef_, reg.fit(X, y).coef_, rtol=1e-6)
    assert found.rank_ == reg.rank_


def test_wide_to_the_end():
    rng = np.random.default_rng(3)
    X, y = rng.standard_normal((6, 15)), rng.standard_normal(6)
    found = fit_parts(TorchLinearRegressor(), X, y, cuts=(2, 3))
    assert_same_model(found, TorchLinearRegressor().fit(X, y))
    np.testing.assert_allclose(found.predict(X), y, rtol=1e-10)


def test_dependent_columns():
    X, y, _ = problem()
    X = np.round(X * [1e3, 1, 1e7, 1])
    X = np.column_stack([X, X[:, 0], np.full(N_SAMPLES, 0.1), X[:, 1] - 2 * X[:, 3]])
    found = fit_parts(TorchLinearRegressor(), X, y, cuts=(9, 20))
    expected = TorchLinearRegressor().fit(X, y)
    assert found.rank_ == expected.rank_ == 4
    np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("solver", ["cholesky", "exact", "dual"])
def test_the_solver_chosen_for_fit_does_not_matter(solver):
    X, y, _ = problem()
    found = fit_parts(TorchLinearRegressor(solver=solver), X, y, cuts=(11,))
    assert_same_model(found, TorchLinearRegressor().fit(X, y))


NIST_CUTS = {"halves": lambda n: [n // 2], "twos": lambda n: range(2, n, 2)}


@pytest.mark.parametrize("cuts", NIST_CUTS)
@pytest.mark.parametrize("name", NIST)
def test_certified_problems(name, cuts, record_property):
    """12 digits in all; Filip, of condition 4e9 and so beyond what is promised, may warn (13.9)."""
    truth = NIST[name]
    X, y = truth.X, truth.y
    inner = list(NIST_CUTS[cuts](len(X)))
    reg = TorchLinearRegressor(fit_intercept=truth.fit_intercept)
    fit_parts_quietly(reg, X[: inner[-1]], y[: inner[-1]], cuts=inner[:-1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reg.partial_fit(X[inner[-1] :], y[inner[-1] :])
    digits = truth.digits(reg.coef_, reg.intercept_).least
    record_property("digits", digits)
    assert digits >= 12
    if name != "Filip":
        assert caught == []


@pytest.mark.parametrize("offset", [1e6, 1e9])
@pytest.mark.parametrize("cut", [1, 150])
def test_offsets(offset, cut):
    rng = np.random.default_rng(4)
    X = offset + rng.integers(-50, 50, (300, 3))
    y = -offset + rng.standard_normal(300)
    found = fit_parts(TorchLinearRegressor(), X, y, cuts=(cut,))
    assert_same_model(found, TorchLinearRegressor().fit(X, y))


def test_drift_away_from_the_first_rows():
    """The first call chooses the shift; later rows are far from it."""
    rng = np.random.default_rng(5)
    X = rng.standard_normal((300, 3))
    X[100:] = X[100:] * 1e3 + 1e8
    y = X.sum(axis=1) + rng.standard_normal(300)
    found = fit_parts(TorchLinearRegressor(), X, y, cuts=(100, 200))
    assert_same_model(found, TorchLinearRegressor().fit(X, y))


@pytest.mark.parametrize("magnitude", [1e-150, 1e-50, 1e50, 1e150])
@pytest.mark.parametrize("later", [False, True])
def test_magnitudes(magnitude, later):
    """Of all rows, or of those after a first call on ordinary ones."""
    rng = np.random.default_rng(6)
    X, y = rng.standard_normal((90, 3)), rng.standard_normal(90)
    X[30 * later :] *= magnitude
    y[30 * later :] *= magnitude
    found = fit_parts(TorchLinearRegressor(), X, y, cuts=(30, 60))
    assert_same_model(found, TorchLinearRegressor().fit(X, y))


SCALES = [1e-300, 1e-170, 1e-150, 1.0, 1e150, 1e170, 1e250]


def slope_and_intercept(parts):
    """Of one feature, in rational numbers."""
    rows = [(Fraction(x), Fraction(y)) for X, y in parts for (x,), y in zip(X, y, strict=True)]
    x_mean, y_mean = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    square = sum((x - x_mean) ** 2 for x, _ in rows)
    slope = sum((x - x_mean) * (y - y_mean) for x, y in rows) / square
    return float(slope), float(y_mean - slope * x_mean)


@pytest.mark.every(4)
@pytest.mark.parametrize("later", SCALES)
@pytest.mark.parametrize("first", SCALES)
@pytest.mark.parametrize("n_first", [1, 3])
def test_calls_of_other_scales(first, later, n_first):
    parts = [
        ((np.array([[1.0], [2.0], [4.0]]) * first)[:n_first], np.zeros(n_first)),
        (np.array([[1.0], [2.0], [3.0], [5.0]]) * later, np.array([1.0, 2.0, 3.0, 4.0])),
        (np.array([[2.0], [7.0]]) * first, np.array([0.0, 1.0])),
    ]
    reg = TorchLinearRegressor()
    for X, y in parts:
        reg.partial_fit(X, y)
    slope, intercept = slope_and_intercept(parts)
    assert reg.coef_[0] == pytest.approx(slope, rel=1e-12, abs=0)
    assert reg.intercept_ == pytest.approx(intercept, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("n_rows", [50, 100])
def test_a_gaussian_basis_in_the_order_of_x(n_rows):
    """Columns are nearly 0 in the first rows, and grow by 100 powers of ten."""
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(0, 9, 300))
    X = np.exp(-(((x[:, None] - np.linspace(0, 9, 21)) / 0.25) ** 2) / 2)
    y = np.sin(3 * x) + 0.1 * rng.standard_normal(len(x))
    reg = fit_parts_quietly(TorchLinearRegressor(), X, y, cuts=range(n_rows, len(x), n_rows))
    rows = np.column_stack([np.ones(len(x)), X])
    intercept, *coef = np.linalg.lstsq(rows, y)[0]
    np.testing.assert_allclose(reg.coef_, coef, rtol=1e-9)
    np.testing.assert_allclose(reg.intercept_, intercept, rtol=1e-9)


@pytest.mark.parametrize("parameters", [{"alpha": 1e-3, "l1_ratio": 1.0}, {"positive": True}])
@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_penalties_refuse_extreme_columns_as_fit_does(scale, parameters):
    X, y, _ = problem()
    reg = TorchLinearRegressor(**parameters).partial_fit(X[:20], y[:20])
    coef = reg.coef_.copy()
    extreme = X[20:] * [1.0, 1.0, scale, 1.0]
    if scale > 1:
        with pytest.raises(ValueError, match="columns beyond 1e-140"):
            reg.partial_fit(extreme, y[20:])
        np.testing.assert_array_equal(reg.coef_, coef)
        reg.partial_fit(X[20:], y[20:])
        assert_same_model(reg, TorchLinearRegressor(**parameters).fit(X, y))
    with pytest.raises(ValueError, match="columns beyond 1e-140"):
        TorchLinearRegressor(**parameters).partial_fit(extreme, y[20:])


def test_coefficients_beyond_float64_leave_the_model_as_it_was():
    reg = TorchLinearRegressor(fit_intercept=False).partial_fit([[1e-160], [1e-160]], [1e120, 1e120])
    with pytest.raises(ValueError, match="exceed float64"):
        reg.partial_fit([[1e-160]], [1e200])
    assert reg.coef_[0] == pytest.approx(1e280)
    reg.partial_fit([[1e-160], [1e-160]], [1e120, 1e120])
    assert reg.coef_[0] == pytest.approx(1e280)


@pytest.mark.parametrize("as_X", [list, np.asfortranarray, sparse.csr_array, torch.from_numpy, pd.DataFrame])
def test_kinds_of_data_may_change(as_X):
    X, y, _ = problem()
    reg = TorchLinearRegressor().partial_fit(X[:10], y[:10])
    reg.partial_fit(as_X(X[10:].copy()), y[10:])
    assert_same_model(reg, TorchLinearRegressor().fit(X, y))


def test_thin_sparse_rows():
    """Read straight from CSR by `fit`, so without a shift of the columns."""
    rng = np.random.default_rng(8)
    X = np.zeros((300, 12))
    X[np.arange(300), np.arange(300) % 12] = rng.uniform(1, 2, 300)
    y = 30 + X @ np.arange(1.0, 13.0) + rng.standard_normal(300)
    expected = TorchLinearRegressor().fit(X, y)
    given = sparse.csr_array(X)
    assert_same_model(fit_parts(TorchLinearRegressor(), given, y, cuts=(130,)), expected)
    mixed = TorchLinearRegressor().fit(given[:130], y[:130]).partial_fit(X[130:], y[130:])
    assert_same_model(mixed, expected)


class TestAfterFit:
    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize("n_targets", [None, 1, 3])
    def test_it_goes_on(self, weighted, n_targets):
        X, y, weight = problem(n_targets)
        weight = weight + 0.5 if weighted else np.ones(N_SAMPLES)
        expected = TorchLinearRegressor().fit(X, y, sample_weight=weight)
        reg = TorchLinearRegressor().fit(X[:17], y[:17], sample_weight=weight[:17])
        reg.partial_fit(X[17:], y[17:], sample_weight=weight[17:])
        assert_same_model(reg, expected)

    def test_fit_forgets(self):
        X, y, _ = problem()
        reg = TorchLinearRegressor().partial_fit(10 * X, y).partial_fit(X + 1, y)
        np.testing.assert_array_equal(reg.fit(X, y).coef_, TorchLinearRegressor().fit(X, y).coef_)
        reg.fit(X[:, :2], np.column_stack([y, y]))  # other shapes are fine, too
        assert reg.coef_.shape == (2, 2)

    @pytest.mark.parametrize("solver", ["auto", "exact", "dual"])
    def test_after_wide_data_it_goes_on_or_says_why_not(self, solver):
        rng = np.random.default_rng(9)
        X, y = rng.standard_normal((30, 6)), rng.standard_normal(30)
        reg = TorchLinearRegressor(solver=solver).fit(X[:4], y[:4])
        message = refusal(reg.partial_fit, X[4:], y[4:])
        if message is None:
            assert_same_model(reg, TorchLinearRegressor().fit(X, y))
        else:
            assert "fewer rows than features" in message


class TestRefusals:
    def started(self, n_targets=None):
        X, y, _ = problem(n_targets)
        return X, y, TorchLinearRegressor().partial_fit(X[:20], y[:20])

    def test_another_number_of_features(self):
        X, y, reg = self.started()
        with pytest.raises(ValueError, match=r"X has 3 features, but .* is expecting 4 features"):
            reg.partial_fit(X[:, :3], y)

    def test_other_feature_names(self):
        X, y, _ = problem()
        reg = TorchLinearRegressor().partial_fit(pd.DataFrame(X, columns=list("abcd")), y)
        for names in ("abdc", "abce"):
            with pytest.raises(ValueError, match="The feature names should match"):
                reg.partial_fit(pd.DataFrame(X, columns=list(names)), y)
        assert reg.partial_fit(pd.DataFrame(X, columns=list("abcd")), y).n_features_in_ == 4
        assert reg.feature_names_in_.tolist() == list("abcd")

    @pytest.mark.parametrize("before", [None, 1, 2])
    @pytest.mark.parametrize("after", [None, 1, 2, 3])
    def test_another_form_of_y(self, before, after):
        X, _, reg = self.started(before)
        y = problem(after)[1]
        if before == after:
            reg.partial_fit(X, y)
        else:
            with pytest.raises(ValueError, match=r"(?i)\by\b"):
                reg.partial_fit(X, y)

    @pytest.mark.parametrize("place", ["X", "y", "weight"])
    def test_a_refused_call_leaves_the_model_as_it_was(self, place):
        X, y, weight = problem()
        weight = weight + 1
        reg = TorchLinearRegressor().partial_fit(X[:20], y[:20], sample_weight=weight[:20])
        coef = reg.coef_.copy()
        spoilt = {"X": X[20:].copy(), "y": y[20:].copy(), "weight": weight[20:].copy()}
        spoilt[place].flat[-1] = np.nan
        with pytest.raises(ValueError, match="contains NaN"):
            reg.partial_fit(spoilt["X"], spoilt["y"], sample_weight=spoilt["weight"])
        np.testing.assert_array_equal(reg.coef_, coef)
        reg.partial_fit(X[20:], y[20:], sample_weight=weight[20:])
        assert_same_model(reg, TorchLinearRegressor().fit(X, y, sample_weight=weight))

    def test_a_refused_first_call_is_no_start(self):
        X, y, _ = problem()
        reg = TorchLinearRegressor()
        with pytest.raises(ValueError, match="contains NaN"):
            reg.partial_fit(np.full((5, 7), np.nan), y[:5])
        assert_same_model(reg.partial_fit(X, y), TorchLinearRegressor().fit(X, y))

    def test_another_intercept_is_refused_or_right(self):
        X, y, reg = self.started()
        reg.set_params(fit_intercept=False)
        message = refusal(reg.partial_fit, X[20:], y[20:])
        if message is None:
            assert_same_model(reg, TorchLinearRegressor(fit_intercept=False).fit(X, y))
        else:
            assert "fit_intercept" in message


def test_alpha_may_change_between_calls():
    X, y, _ = problem()
    reg = TorchLinearRegressor().partial_fit(X[:20], y[:20])
    reg.set_params(alpha=0.5).partial_fit(X[20:], y[20:])
    assert_same_model(reg, TorchLinearRegressor(alpha=0.5).fit(X, y))


def test_pickles_between_calls():
    X, y, weight = problem(2)
    weight = weight + 1
    reg = TorchLinearRegressor()
    for start in range(0, N_SAMPLES, 10):
        rows = slice(start, start + 10)
        reg.partial_fit(X[rows], y[rows], sample_weight=weight[rows])
        reg = pickle.loads(pickle.dumps(reg))
    assert_same_model(reg, TorchLinearRegressor().fit(X, y, sample_weight=weight))


def test_copies_go_their_own_ways():
    X, y, _ = problem()
    reg = TorchLinearRegressor().partial_fit(X[:20], y[:20])
    copy = pickle.loads(pickle.dumps(reg))
    reg.partial_fit(X[20:], y[20:])
    assert_same_model(copy, TorchLinearRegressor().fit(X[:20], y[:20]))


def test_rows_are_kept_by_nobody():
    """A model of any number of rows is as small as its moments, and the rows may change."""
    rng = np.random.default_rng(10)
    sizes = set()
    reg = TorchLinearRegressor()
    X, y = np.empty((500, 3)), np.empty(500)
    rows, targets = [], []
    for _ in range(3):
        X[...], y[...] = rng.standard_normal((500, 3)), rng.standard_normal(500)
        rows.append(X.copy())
        targets.append(y.copy())
        sizes.add(len(pickle.dumps(reg.partial_fit(X, y))))
    assert max(sizes) < 5000
    assert_same_model(reg, TorchLinearRegressor().fit(np.vstack(rows), np.hstack(targets)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_of_the_rows(dtype):
    X, y, _ = problem()
    X = X.astype(dtype)
    found = fit_parts(TorchLinearRegressor(), X, y, cuts=(13,))
    rtol = 3e-7 if dtype == np.float32 else 1e-11
    assert_same_model(found, TorchLinearRegressor().fit(X, y), rtol=rtol)
    assert found.coef_.dtype == dtype


def test_a_stream_of_many_rows():
    rng = np.random.default_rng(11)
    X, y = rng.standard_normal((20_000, 5)), rng.standard_normal(20_000)
    found = fit_parts(TorchLinearRegressor(), X, y, cuts=range(1000, 20_000, 1000))
    assert_same_model(found, TorchLinearRegressor().fit(X, y))


@pytest.mark.parametrize("weight", [1e-120, 1e120])
def test_extreme_weights_are_refused(weight):
    """One fit may divide them by a constant; calls that follow each other may not."""
    X, y, _ = problem()
    weights = np.full(len(y), weight)
    with pytest.raises(ValueError, match="between 1e-100 and 1e100"):
        TorchLinearRegressor().partial_fit(X, y, sample_weight=weights)
    fitted = TorchLinearRegressor().fit(X, y, sample_weight=weights)
    with pytest.raises(ValueError, match="no moments were kept"):
        fitted.partial_fit(X, y)


def test_fit_of_ill_conditioned_rows_goes_on_exactly():
    """A fit that needed exact moments keeps them."""
    filip = NIST["Filip"]
    reg = TorchLinearRegressor().fit(filip.X[:60], filip.y[:60])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        reg.partial_fit(filip.X[60:], filip.y[60:])
    assert reg.rank_ == 10
    assert filip.digits(reg.coef_, reg.intercept_).least >= 12


def test_solver_names_are_checked():
    X, y, _ = problem()
    with pytest.raises(ValueError, match="'nonsense' is not known"):
        TorchLinearRegressor(solver="nonsense").partial_fit(X, y)


@pytest.mark.parametrize(
    "penalty",
    [
        {"alpha": 0.2, "l1_ratio": 1.0},
        {"alpha": 0.2, "l1_ratio": 0.5, "penalty_factor": [0.0, 1.0, 2.0]},
        {"positive": True},
        {"alpha": 0.1, "bounds": (-0.5, [0.5, 1.0, 2.0])},
    ],
    ids=repr,
)
def test_penalties_and_bounds_in_pieces(penalty):
    rng = np.random.default_rng(0)
    X = 100 + rng.standard_normal((50, 3)) * [1, 10, 0.1]
    y = X @ [1.0, -0.2, 3.0] + rng.standard_normal(50)
    whole = TorchLinearRegressor(**penalty).fit(X, y)
    pieces = TorchLinearRegressor(**penalty)
    for rows in (slice(0, 2), slice(2, 31), slice(31, 50)):
        pieces.partial_fit(X[rows], y[rows])
    np.testing.assert_allclose(pieces.coef_, whole.coef_, rtol=1e-9)
    np.testing.assert_array_equal(pieces.coef_ == 0, whole.coef_ == 0)
    np.testing.assert_allclose(pieces.intercept_, whole.intercept_, rtol=1e-9)
    assert pieces.solver_ == "active_set"


def test_losses_that_need_all_rows_have_no_partial_fit():
    reg = TorchLinearRegressor(loss="huber")
    assert not hasattr(reg, "partial_fit")
    with pytest.raises(AttributeError, match="partial_fit"):
        reg.partial_fit([[1.0]], [1.0])


def test_a_constant_sparse_column_stays_constant_after_fit():
    """Moments of a fit in float64 keep their rounding errors, of which a constant column may consist."""
    rng = np.random.default_rng(0)
    X = np.where(rng.random((20_000, 60)) < 0.01, rng.random((20_000, 60)), 0.0)
    X[:, 0] = 0.7
    y = X[:, 1] + rng.standard_normal(20_000)
    rows = sparse.csr_array(X)
    reg = TorchLinearRegressor(bounds=(-1e9, 1e9)).fit(rows, y)
    assert reg.coef_[0] == 0
    assert reg.partial_fit(rows[:100], y[:100]).coef_[0] == 0


@pytest.mark.parametrize("size", [1e-165, 1e165])
def test_training_refuses_units_whose_squares_leave_float64(size):
    X, y, _ = problem()
    with pytest.raises(ValueError, match="ordinary units"):
        TorchLinearRegressor(solver="adam").partial_fit(X * size, y)
