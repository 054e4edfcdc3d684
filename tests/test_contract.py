"""At home in scikit-learn: its own checks in full, its tools, its words for errors."""

import io
import itertools
import pickle
import re
from unittest import SkipTest

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn import config_context
from sklearn.base import clone, is_regressor
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import NotFittedError, UnsetMetadataPassedError
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import estimator_checks_generator

from torchlinreg import TorchLinearRegressor, TorchLinearRegressorCV, losses
from torchlinreg._solvers import SOLVERS
from torchlinreg.losses import LOSSES


def log_cosh(prediction, target):
    """A loss as a user would write it."""
    return torch.log(torch.cosh(prediction - target))


# The solvers of least squares and ridge.
LEAST_SQUARES = [name for name, row in SOLVERS.items() if row.penalties != "any"]
NAMES = ["auto", *LEAST_SQUARES]
CONFIGURATIONS = [
    TorchLinearRegressor(solver=solver, alpha=alpha, fit_intercept=fit_intercept)
    for solver, alpha, fit_intercept in itertools.product(NAMES, [0.0, 0.1], [True, False])
]
LOSSES_AND_PENALTIES = [
    TorchLinearRegressor(loss=loss, **penalty)
    for loss, penalty in itertools.product(
        [*LOSSES, losses.Huber(scale=2.0), losses.Quantile(0.9), log_cosh],
        [
            {},
            {"alpha": 0.1},
            {"alpha": 0.1, "l1_ratio": 1.0},
            {"alpha": 0.1, "l1_ratio": 0.5, "penalty_factor": 2.0},
            {"positive": True},
            {"bounds": (-1, 2)},
        ],
    )
]
TRAINING_CONFIGURATIONS = [
    # Adam is at the optimum long before, and takes the longest for its epochs.
    TorchLinearRegressor(
        solver=solver,
        batch_size=batch_size,
        early_stopping=early_stopping,
        max_iter=300 if solver == "adam" else None,
    )
    for solver, batch_size, early_stopping in itertools.product(
        ["sgd", "adam", "lbfgs"], [None, 8, 64], [False, True]
    )
]
SEARCHES = [TorchLinearRegressorCV(alphas=3), TorchLinearRegressorCV(alphas=3, l1_ratio=1.0, cv=3)]
# The only check that may skip: it asks for array API inputs, which SCIPY_ARRAY_API=1 must allow
# before scipy is imported.
MAY_SKIP = {"check_array_api_input"}


def problem(n_samples=40, n_features=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, n_features))
    return X, 1.0 + X @ np.arange(1.0, n_features + 1) + rng.standard_normal(n_samples)


def named(X, names="abc"):
    return pd.DataFrame(X, columns=list(names))


def as_text(reg):
    """The class with its parameters, by which configurations are told apart."""
    return repr((type(reg).__name__, sorted(reg.get_params(deep=False).items())))


# Least squares and ridge by "auto" are in two of the tables.
EACH = [*CONFIGURATIONS, *LOSSES_AND_PENALTIES, *TRAINING_CONFIGURATIONS, *SEARCHES]
ALL = list({as_text(reg): reg for reg in EACH}.values())
# What a plain run checks: each loss, penalty, solver and way of training once; the others are exhaustive.
QUICK = [
    TorchLinearRegressor(),
    TorchLinearRegressor(alpha=0.1, fit_intercept=False),
    TorchLinearRegressor(solver="dual"),
    TorchLinearRegressor(solver="cholesky", alpha=0.1),
    TorchLinearRegressor(solver="exact", fit_intercept=False),
    TorchLinearRegressor(loss="squared_error", positive=True),
    TorchLinearRegressor(loss="huber", bounds=(-1, 2)),
    TorchLinearRegressor(loss="absolute_error"),
    TorchLinearRegressor(loss="quantile", alpha=0.1, l1_ratio=1.0),
    TorchLinearRegressor(loss="epsilon_insensitive", positive=True),
    TorchLinearRegressor(loss="squared_epsilon_insensitive", alpha=0.1),
    TorchLinearRegressor(loss="log_cosh", alpha=0.1, l1_ratio=0.5, penalty_factor=2.0),
    TorchLinearRegressor(loss=losses.Huber(scale=2.0)),
    TorchLinearRegressor(loss=losses.Quantile(0.9), bounds=(-1, 2)),
    TorchLinearRegressor(loss=log_cosh, alpha=0.1, l1_ratio=1.0),
    TorchLinearRegressor(solver="sgd", batch_size=8),
    TorchLinearRegressor(solver="sgd", batch_size=64, early_stopping=True),
    TorchLinearRegressor(solver="adam", early_stopping=True, max_iter=300),
    TorchLinearRegressor(solver="lbfgs"),
    *SEARCHES,
]
IN_QUICK = {as_text(reg) for reg in QUICK}


def name_of(reg, check):
    """As `parametrize_with_checks` names it, equal in each process: without a function's address."""
    return re.sub(r" at 0x\w+", "", f"{reg}-{check.func.__name__}")


# As `parametrize_with_checks` does, whose generator pytest 9 deprecates in scikit-learn 1.6.
CHECKS = [
    pytest.param(
        *pair, id=name_of(*pair), marks=[] if as_text(pair[0]) in IN_QUICK else [pytest.mark.exhaustive]
    )
    for reg in ALL
    for pair in estimator_checks_generator(reg)
]


class TestQuickConfigurations:
    """A new loss, solver, penalty or way of training needs a configuration that a plain run checks."""

    def values(self, name, configurations=QUICK):
        return {repr(getattr(reg, name, None)) for reg in configurations}

    def test_all_are_among_those_that_the_exhaustive_run_completes(self):
        assert len(IN_QUICK) == len(QUICK)
        assert set(map(as_text, ALL)) >= IN_QUICK

    def test_every_loss(self):
        assert self.values("loss") >= {repr(name) for name in LOSSES}

    def test_every_solver(self):
        X, y = problem()
        exact = [reg for reg in QUICK if getattr(reg, "solver", None) in ("auto", *SOLVERS)]
        assert {clone(reg).fit(X, y).solver_ for reg in exact} == set(SOLVERS)

    def test_every_value_of_a_parameter(self):
        for name in {name for reg in ALL for name in reg.get_params(deep=False)}:
            assert self.values(name) == self.values(name, ALL), name


@pytest.mark.parametrize(("estimator", "check"), CHECKS)
def test_scikit_learn_check(estimator, check):
    try:
        check(estimator)
    except SkipTest:
        assert check.func.__name__ in MAY_SKIP
        raise


class TestTools:
    def test_a_search_weighs_its_scores(self):
        X, y = problem()
        weight = np.random.default_rng(1).uniform(0, 3, len(y))
        search = TorchLinearRegressorCV(alphas=[0.5], cv=2).fit(X, y, sample_weight=weight)
        for split, train in enumerate((slice(20, 40), slice(0, 20))):
            test = slice(20 - train.start, 40 - train.start)
            reg = TorchLinearRegressor(alpha=0.5).fit(X[train], y[train], weight[train])
            expected = reg.score(X[test], y[test], weight[test])
            found = search.cv_results_[f"split{split}_test_score"][0]
            np.testing.assert_allclose(found, expected, rtol=1e-12)

    def test_pipeline_of_polynomial_features(self):
        x = np.linspace(-2, 3, 30)[:, None]
        pipeline = make_pipeline(PolynomialFeatures(3, include_bias=False), TorchLinearRegressor())
        pipeline.fit(x, 1 - 2 * x[:, 0] + 0.5 * x[:, 0] ** 3)
        np.testing.assert_allclose(pipeline[-1].coef_, [-2, 0, 0.5], atol=1e-12)
        np.testing.assert_allclose(pipeline[-1].intercept_, 1, rtol=1e-12)

    def test_transformed_target(self):
        X, y = problem()
        direct = TorchLinearRegressor().fit(X, y)
        around = TransformedTargetRegressor(TorchLinearRegressor(), transformer=StandardScaler())
        np.testing.assert_allclose(around.fit(X, y).predict(X), direct.predict(X), rtol=1e-12)

    def test_grid_search_in_two_processes(self):
        X, y = problem()
        grid = {"alpha": [0.0, 0.01, 100.0], "fit_intercept": [True, False]}
        one = GridSearchCV(TorchLinearRegressor(), grid, cv=3).fit(X, y)
        two = GridSearchCV(TorchLinearRegressor(), grid, cv=3, n_jobs=2).fit(X, y)
        assert two.best_params_ == one.best_params_
        assert two.best_params_["alpha"] < 100
        scores = [search.cv_results_["mean_test_score"] for search in (one, two)]
        np.testing.assert_allclose(*scores, rtol=1e-10)

    def test_cross_validation(self):
        X, y = problem()
        scores = cross_val_score(TorchLinearRegressor(), X, y, cv=4)
        assert scores.shape == (4,)
        assert (scores > 0.5).all()

    def test_score_is_r2(self):
        X, y = problem()
        reg = TorchLinearRegressor().fit(X, y)
        rest = ((y - reg.predict(X)) ** 2).sum() / ((y - y.mean()) ** 2).sum()
        assert reg.score(X, y) == pytest.approx(1 - rest, rel=1e-12)

    def test_clone_keeps_parameters_and_forgets_the_fit(self):
        X, y = problem()
        reg = TorchLinearRegressor(alpha=np.float64(0.5), solver="exact", tol=1e-9).fit(X, y)
        copy = clone(reg)
        assert copy.get_params() == reg.get_params()
        assert [name for name in vars(copy) if name.endswith("_")] == []
        with pytest.raises(NotFittedError, match="TorchLinearRegressor instance is not fitted yet"):
            copy.predict(X)

    def test_parameters_are_keyword_only_and_kept_as_given(self):
        with pytest.raises(TypeError):
            TorchLinearRegressor(0.5)
        alpha = [1, "nonsense"]
        reg = TorchLinearRegressor(alpha=alpha)
        assert reg.alpha is alpha
        assert reg.set_params(alpha=2).get_params()["alpha"] == 2
        with pytest.raises(ValueError, match="Invalid parameter 'beta'"):
            reg.set_params(beta=1)

    @pytest.mark.parametrize("solver", NAMES)
    def test_pickle_and_joblib(self, solver, tmp_path):
        X, y = problem()
        reg = TorchLinearRegressor(solver=solver).fit(X, y)
        joblib.dump(reg, tmp_path / "model.joblib")
        for copy in (pickle.loads(pickle.dumps(reg)), joblib.load(tmp_path / "model.joblib")):
            np.testing.assert_array_equal(copy.predict(X), reg.predict(X))
            assert copy.status_ == reg.status_
            assert copy.get_params() == reg.get_params()

    def test_tags(self):
        reg = TorchLinearRegressor()
        tags = get_tags(reg)
        assert is_regressor(reg)
        assert tags.input_tags.sparse
        assert not tags.input_tags.allow_nan
        assert tags.target_tags.required
        assert tags.target_tags.multi_output
        assert not tags.non_deterministic
        assert not tags.regressor_tags.poor_score

    def test_html_links_to_the_documentation(self):
        reg = TorchLinearRegressor(alpha=0.25)
        link = re.compile(r'href="https://[^"]*/torchlinreg\.TorchLinearRegressor\.html"')
        for html in (reg._repr_html_(), reg.fit(*problem())._repr_html_()):
            assert link.search(html)
            assert "0.25" in html

    def test_text_shows_changed_parameters_only(self):
        assert repr(TorchLinearRegressor(alpha=0.25)) == "TorchLinearRegressor(alpha=0.25)"

    def test_fit_prints_nothing_unless_asked(self, capsys):
        X, y = problem()
        TorchLinearRegressor().fit(X, y)
        assert capsys.readouterr().out == ""
        TorchLinearRegressor(verbose=1).fit(X, y)
        assert "40 x 3" in capsys.readouterr().out

    def test_global_states_of_the_user_stay(self):
        np.random.rand(3)  # noqa: NPY002  (so that seeding it would show)
        torch.rand(3)
        numpy_state, torch_state = np.random.get_state()[1:3], torch.get_rng_state()  # noqa: NPY002
        dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
        TorchLinearRegressor().fit(*problem(20, 30))
        TorchLinearRegressor().fit(*problem(300, 100))
        np.testing.assert_equal(np.random.get_state()[1:3], numpy_state)  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), torch_state)
        assert torch.get_default_dtype() == dtype
        assert torch.get_num_threads() == threads

    def test_torch_default_dtype_of_the_user_does_not_matter(self):
        X, y = problem()
        expected = TorchLinearRegressor().fit(X, y)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float16)
        try:
            reg = TorchLinearRegressor().fit(X, y)
            parts = TorchLinearRegressor().partial_fit(X[:9], y[:9]).partial_fit(X[9:], y[9:])
        finally:
            torch.set_default_dtype(before)
        np.testing.assert_array_equal(reg.coef_, expected.coef_)
        np.testing.assert_allclose(parts.coef_, expected.coef_, rtol=1e-13)


class TestMetadataRouting:
    @pytest.fixture(autouse=True)
    def _routing(self):
        with config_context(enable_metadata_routing=True):
            yield

    def weighted_problem(self):
        X, y = problem()
        weight = np.random.default_rng(1).uniform(0, 3, len(y))
        return X, y, weight, TorchLinearRegressor().fit(X, y, sample_weight=weight)

    def test_pipeline_hands_the_weights_on(self):
        X, y, weight, expected = self.weighted_problem()
        reg = TorchLinearRegressor().set_fit_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        pipeline = make_pipeline(scaler, reg).fit(X, y, sample_weight=weight)
        np.testing.assert_allclose(pipeline.predict(X), expected.predict(X), rtol=1e-12)
        assert not np.allclose(TorchLinearRegressor().fit(X, y).coef_, expected.coef_, rtol=1e-3)

    def test_search_hands_the_weights_on(self):
        X, y, weight, expected = self.weighted_problem()
        reg = TorchLinearRegressor().set_fit_request(sample_weight=True)
        reg.set_score_request(sample_weight=True)
        search = GridSearchCV(reg, {"alpha": [0.0]}, cv=3).fit(X, y, sample_weight=weight)
        np.testing.assert_array_equal(search.best_estimator_.coef_, expected.coef_)

    def test_cross_validation_hands_the_weights_on(self):
        X, y, weight, _ = self.weighted_problem()
        reg = TorchLinearRegressor().set_fit_request(sample_weight=True)
        reg.set_score_request(sample_weight=False)
        options = {"cv": 2, "params": {"sample_weight": weight}, "return_estimator": True}
        fits = cross_validate(reg, X, y, **options)["estimator"]
        expected = TorchLinearRegressor().fit(X[20:], y[20:], sample_weight=weight[20:])
        np.testing.assert_array_equal(fits[0].coef_, expected.coef_)

    def test_weights_that_nobody_asked_for_are_refused(self):
        X, y, weight, _ = self.weighted_problem()
        with pytest.raises(UnsetMetadataPassedError, match="sample_weight"):
            make_pipeline(TorchLinearRegressor()).fit(X, y, sample_weight=weight)

    def test_partial_fit_can_request_weights(self):
        reg = TorchLinearRegressor().set_partial_fit_request(sample_weight=True)
        assert reg.get_metadata_routing().partial_fit.requests == {"sample_weight": True}


class TestFeatureNames:
    def fitted(self):
        X, y = problem()
        return X, TorchLinearRegressor().fit(named(X), y)

    def test_seen(self):
        _, reg = self.fitted()
        assert reg.feature_names_in_.tolist() == ["a", "b", "c"]
        assert reg.n_features_in_ == 3

    def test_none_without_names(self):
        X, y = problem()
        reg = TorchLinearRegressor().fit(named(X), y).fit(X, y)
        assert not hasattr(reg, "feature_names_in_")
        assert not hasattr(TorchLinearRegressor().fit(pd.DataFrame(X), y), "feature_names_in_")

    @pytest.mark.parametrize(
        ("names", "words"),
        [
            ("abd", "Feature names unseen at fit time:\n- d"),
            ("abd", "Feature names seen at fit time, yet now missing:\n- c"),
            ("bac", "Feature names must be in the same order as they were in fit."),
        ],
    )
    @pytest.mark.parametrize("method", ["predict", "partial_fit"])
    def test_others_are_refused(self, names, words, method):
        X, reg = self.fitted()
        arguments = (X[:, 0],) if method == "partial_fit" else ()
        with pytest.raises(ValueError, match="The feature names should match") as error:
            getattr(reg, method)(named(X, names), *arguments)
        assert words in str(error.value)

    def test_a_warning_where_one_side_has_none(self):
        X, reg = self.fitted()
        with pytest.warns(UserWarning, match="X does not have valid feature names"):
            reg.predict(X)
        nameless = TorchLinearRegressor().fit(*problem())
        with pytest.warns(UserWarning, match="X has feature names, but TorchLinearRegressor"):
            nameless.predict(named(X))

    def test_names_of_several_types_are_refused(self):
        X, y = problem()
        with pytest.raises(TypeError, match="only supported if all input features have string"):
            TorchLinearRegressor().fit(pd.DataFrame(X, columns=["a", 1, "c"]), y)

    @pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array, torch.from_numpy, list])
    def test_another_number_of_features_is_refused(self, kind):
        X, y = problem()
        reg = TorchLinearRegressor().fit(X, y)
        words = "X has 2 features, but TorchLinearRegressor is expecting 3 features as input"
        with pytest.raises(ValueError, match=words):
            reg.predict(kind(X[:, :2].copy()))


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_array, sparse.coo_matrix])
@pytest.mark.parametrize("reg", CONFIGURATIONS, ids=repr)
class TestWeights:
    """Coefficients, where scikit-learn's check compares predictions for one wide problem."""

    def thin_problem(self, container):
        """Few stored entries, so that a sparse X is read as such; no column is empty."""
        rng = np.random.default_rng(3)
        X = np.zeros((60, 6))
        X[np.arange(60), np.arange(60) % 6] = rng.standard_normal(60)
        X[rng.integers(0, 60, 5), rng.integers(0, 6, 5)] = 2.0
        X[:12] *= 0.0 if container is not np.asarray else 1.0
        return X, rng.standard_normal(60)

    def assert_same(self, reg, one, other):
        first, second = (clone(reg).fit(X, y, sample_weight=w) for X, y, w in (one, other))
        np.testing.assert_allclose(first.coef_, second.coef_, rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(first.intercept_, second.intercept_, rtol=1e-10, atol=1e-13)

    def test_weight_is_repetition(self, reg, container):
        X, y = self.thin_problem(container)
        times = np.random.default_rng(4).integers(0, 4, len(y))
        repeated = container(np.repeat(X, times, axis=0)), np.repeat(y, times), None
        self.assert_same(reg, (container(X), y, times), repeated)

    def test_weight_zero_is_removal(self, reg, container):
        X, y = self.thin_problem(container)
        y[::3] = 1e6  # would be seen
        weight = (np.arange(len(y)) % 3 > 0).astype(float)
        kept = container(X[weight > 0]), y[weight > 0], None
        self.assert_same(reg, (container(X), y, weight), kept)

    def test_a_factor_of_all_weights_is_nothing(self, reg, container):
        X, y = self.thin_problem(container)
        weight = np.random.default_rng(5).uniform(0.5, 2, len(y))
        self.assert_same(reg, (container(X), y, weight), (container(X), y, 1e9 * weight))


def with_value(array, value):
    changed = np.array(array, dtype=float)
    changed.flat[-1] = value
    return changed


def with_word(array):
    changed = np.array(array, dtype=object)
    changed.flat[-1] = "word"
    return changed


TEXT = "could not convert string to float|not compatible with arrays of bytes/strings"
INFINITE = re.escape("contains infinity or a value too large for dtype('float64')")
# What is wrong -> how it comes about from good X, y, weights; scikit-learn's words for it.
WRONG = {
    "1-D X": (lambda X, y, w: (X[:, 0], y, w), "Expected 2D array, got 1D array instead"),
    "scalar X": (lambda X, y, w: (1.5, y, w), "Expected 2D array, got scalar array instead"),
    "3-D X": (lambda X, y, w: (X[None], y, w), "Found array with dim 3"),
    "1-D tensor": (lambda X, y, w: (torch.from_numpy(X[:, 0]), y, w), "Expected 2D array, got 1D"),
    "3-D tensor": (lambda X, y, w: (torch.from_numpy(X[None]), y, w), "Found array with dim 3"),
    "no rows": (lambda X, y, w: (X[:0], y[:0], None), r"Found array with 0 sample\(s\)"),
    "no rows, weights": (lambda X, y, w: (X[:0], y[:0], w[:0]), r"Found array with 0 sample\(s\)"),
    "no rows, frame": (lambda X, y, w: (named(X)[:0], y[:0], None), r"with 0 sample\(s\)"),
    "no rows, tensor": (
        lambda X, y, w: (torch.from_numpy(X)[:0], y[:0], None),
        r"Found array with 0 sample\(s\)",
    ),
    "no rows, sparse": (
        lambda X, y, w: (sparse.csr_array(X)[:0], y[:0], None),
        r"Found array with 0 sample\(s\)",
    ),
    "no features": (lambda X, y, w: (X[:, :0], y, w), r"Found array with 0 feature\(s\)"),
    "no features, frame": (lambda X, y, w: (named(X)[[]], y, w), r"0 feature\(s\)"),
    "no y": (lambda X, y, w: (X, None, w), "requires y to be passed, but the target y is None"),
    "scalar y": (lambda X, y, w: (X, 1.0, w), "y should be a 1d"),
    "3-D y": (lambda X, y, w: (X, y[:, None, None], w), "Found array with dim 3|y should be a 1d"),
    "short y": (lambda X, y, w: (X, y[1:], w), "inconsistent numbers of samples: .40, 39"),
    "short y, tensor": (
        lambda X, y, w: (X, torch.from_numpy(y[1:]), w),
        "inconsistent numbers of samples: .40, 39",
    ),
    "empty y": (lambda X, y, w: (X, [], w), "inconsistent numbers of samples|0 sample"),
    "y of no columns": (lambda X, y, w: (X, np.empty((40, 0)), w), "y.* 0 (columns|feature)"),
    "NaN in X": (lambda X, y, w: (with_value(X, np.nan), y, w), "Input X contains NaN"),
    "inf in X": (lambda X, y, w: (with_value(X, np.inf), y, w), f"Input X {INFINITE}"),
    "-inf in X": (lambda X, y, w: (with_value(X, -np.inf), y, w), f"Input X {INFINITE}"),
    "NaN in y": (lambda X, y, w: (X, with_value(y, np.nan), w), "Input y contains NaN"),
    "inf in y": (lambda X, y, w: (X, with_value(y, np.inf), w), f"Input y {INFINITE}"),
    "NaN in weights": (
        lambda X, y, w: (X, y, with_value(w, np.nan)),
        "Input sample_weight contains NaN",
    ),
    "inf in weights": (
        lambda X, y, w: (X, y, with_value(w, np.inf)),
        f"Input sample_weight {INFINITE}",
    ),
    "complex X": (lambda X, y, w: (X + 1j, y, w), "Complex data not supported"),
    "complex tensor": (lambda X, y, w: (torch.from_numpy(X + 1j), y, w), "Complex data not supp"),
    "complex y": (lambda X, y, w: (X, y + 1j, w), "Complex data not supported"),
    "complex weights": (lambda X, y, w: (X, y, w + 1j), "Complex data not supported"),
    "text in X": (lambda X, y, w: (with_word(X), y, w), TEXT),
    "text in a frame": (lambda X, y, w: (pd.DataFrame(with_word(X)), y, w), TEXT),
    "all text": (lambda X, y, w: (X.astype(str), y, w), TEXT),
    "text in y": (lambda X, y, w: (X, with_word(y), w), TEXT),
    "text in weights": (lambda X, y, w: (X, y, with_word(w)), TEXT),
    "negative weight": (
        lambda X, y, w: (X, y, with_value(w, -1e-9)),
        "Negative values in data passed to `sample_weight`",
    ),
    "all weights 0": (lambda X, y, w: (X, y, 0 * w), "(?i)weight.*zero"),
    "scalar weight 0": (lambda X, y, w: (X, y, 0), "(?i)weight.*zero"),
    "scalar weight below 0": (lambda X, y, w: (X, y, -1.0), "Negative values in data passed to"),
    "short weights": (
        lambda X, y, w: (X, y, w[1:]),
        re.escape("sample_weight.shape == (39,), expected (40,)!"),
    ),
    "2-D weights": (
        lambda X, y, w: (X, y, w[:, None]),
        "Sample weights must be 1D array or scalar",
    ),
}


def wrong_input(name):
    change, words = WRONG[name]
    X, y = problem()
    return *change(X, y, np.ones(len(y))), words


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_wrong_input_is_refused_in_scikit_learns_words(name, method):
    X, y, weight, words = wrong_input(name)
    with pytest.raises(ValueError, match=words):
        getattr(TorchLinearRegressor(), method)(X, y, sample_weight=weight)


def test_sparse_y_is_refused():
    X, y = problem()
    with pytest.raises(TypeError, match="dense data is required"):
        TorchLinearRegressor().fit(X, sparse.csr_array(y[:, None]))


def test_the_message_for_nan_names_the_estimator():
    X, y = problem()
    with pytest.raises(ValueError, match="TorchLinearRegressor does not accept missing values"):
        TorchLinearRegressor().fit(with_value(X, np.nan), y)


KINDS = {
    "array": np.asarray,
    "float32": np.float32,
    "frame": pd.DataFrame,
    "nullable frame": lambda X: pd.DataFrame(X).astype("Float64"),
    "csr": sparse.csr_array,
    "thin csr": lambda X: sparse.csr_array(np.where(np.isfinite(X) & (abs(X) < 2), 0, X)),
    "tensor": torch.from_numpy,
    "list": np.ndarray.tolist,
}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("kind", KINDS)
class TestNotFinite:
    def spoilt(self, kind, place, value, shape=(40, 3)):
        X, y = problem(*shape)
        X.flat[0 if place == "first" else -1] = value
        return KINDS[kind](X), y

    def words(self, value):
        return "Input X contains " + ("NaN" if np.isnan(value) else "infinity")

    @pytest.mark.every(5)
    @pytest.mark.parametrize("solver", NAMES)
    def test_fit(self, kind, place, value, solver):
        X, y = self.spoilt(kind, place, value)
        with pytest.raises(ValueError, match=self.words(value)):
            TorchLinearRegressor(solver=solver).fit(X, y)

    @pytest.mark.every(5)
    def test_fit_of_wide_data(self, kind, place, value):
        X, y = self.spoilt(kind, place, value, shape=(4, 10))
        with pytest.raises(ValueError, match=self.words(value)):
            TorchLinearRegressor().fit(X, y)

    @pytest.mark.every(5)
    def test_fit_in_a_row_of_weight_zero(self, kind, place, value):
        X, y = self.spoilt(kind, place, value)
        weight = np.ones(len(y))
        weight[[0, -1]] = 0
        with pytest.raises(ValueError, match=self.words(value)):
            TorchLinearRegressor().fit(X, y, sample_weight=weight)

    @pytest.mark.every(5)
    def test_partial_fit(self, kind, place, value):
        X, y = self.spoilt(kind, place, value)
        with pytest.raises(ValueError, match=self.words(value)):
            TorchLinearRegressor().partial_fit(X, y)

    @pytest.mark.every(5)
    @pytest.mark.filterwarnings("ignore:X has feature names")
    def test_predict(self, kind, place, value):
        X, _ = self.spoilt(kind, place, value)
        with pytest.raises(ValueError, match=self.words(value)):
            TorchLinearRegressor().fit(*problem()).predict(X)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [(40, 3), (4, 10)])
@pytest.mark.parametrize("solver", NAMES)
def test_y_that_is_not_finite(solver, shape, value):
    X, y = problem(*shape)
    Y = np.column_stack([y, with_value(y, value)])
    for target in (Y[:, 1], Y, torch.from_numpy(Y), pd.DataFrame(Y)):
        with pytest.raises(ValueError, match=r"Input y contains (NaN|infinity)"):
            TorchLinearRegressor(solver=solver).fit(X, target)


def test_missing_values_of_pandas():
    frame = pd.DataFrame({"a": pd.array([1, 2, None, 5], dtype="Int64"), "b": [1.0, 0.0, 1.0, 1.0]})
    with pytest.raises(ValueError, match="Input X contains NaN"):
        TorchLinearRegressor().fit(frame, [1.0, 2.0, 3.0, 4.0])
    with pytest.raises(ValueError, match="Input y contains NaN"):
        TorchLinearRegressor().fit(frame[["b"]], frame["a"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha", -1e-9),
        ("alpha", np.nan),
        ("alpha", np.inf),
        ("alpha", "1"),
        ("alpha", None),
        ("alpha", 1j),
        ("tol", 0),
        ("tol", -1e-3),
        ("tol", np.nan),
        ("tol", "small"),
        ("tol", None),
        ("max_iter", -1),
        ("max_iter", 1.5),
        ("max_iter", "many"),
        ("fit_intercept", "yes"),
        ("fit_intercept", None),
        ("device", "gpu"),
        ("device", "cuda:x"),
        ("device", "mps"),
        ("device", "meta"),
        ("device", None),
        ("device", ""),
        ("solver", "lsqr"),
        ("solver", None),
        ("solver", ["auto"]),
    ],
)
def test_a_wrong_parameter_is_named_with_its_value(name, value):
    X, y = problem()
    reg = TorchLinearRegressor(**{name: value})
    for method in (reg.fit, *([reg.partial_fit] if name != "solver" else [])):
        with pytest.raises(ValueError, match=re.escape(f"{name}={value!r}")):
            method(X, y)


def test_an_unknown_solver_is_told_the_known_ones():
    with pytest.raises(ValueError, match="'lsqr'") as error:
        TorchLinearRegressor(solver="lsqr").fit(*problem())
    assert all(f"'{name}'" in str(error.value) for name in NAMES)


@pytest.mark.parametrize("device", ["cuda", "cuda:99"])
def test_a_cuda_device_that_is_not_there(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=f"device='{device}' .*0 CUDA devices.*'cpu'"):
        TorchLinearRegressor(device=device).fit(*problem())


def test_predict_before_fit():
    with pytest.raises(NotFittedError):
        TorchLinearRegressor().predict(problem()[0])


@pytest.mark.parametrize("name", ["1-D X", "no rows", "complex X", "text in X", "3-D tensor"])
def test_predict_checks_its_rows(name):
    reg = TorchLinearRegressor().fit(*problem())
    X, _, _, words = wrong_input(name)
    with pytest.raises(ValueError, match=words):
        reg.predict(X)


def test_a_refused_fit_leaves_no_half_fitted_model():
    X, y = problem()
    reg = TorchLinearRegressor()
    with pytest.raises(ValueError, match="NaN"):
        reg.fit(with_value(X, np.nan), y)
    with pytest.raises(NotFittedError):
        reg.predict(X)
    np.testing.assert_array_equal(reg.fit(X, y).coef_, TorchLinearRegressor().fit(X, y).coef_)


def test_a_fitted_model_is_small():
    X, y = problem(5000, 4)
    stream = io.BytesIO()
    joblib.dump(TorchLinearRegressor().fit(X, y), stream)
    assert stream.tell() < 10_000


def test_a_model_of_given_coefficients_predicts():
    """As LinearRegression does."""
    reg, linear = TorchLinearRegressor(), LinearRegression()
    for model in (reg, linear):
        model.coef_, model.intercept_ = np.array([1.0, 2.0]), 3.0
    np.testing.assert_array_equal(reg.predict(np.ones((2, 2))), linear.predict(np.ones((2, 2))))


@pytest.mark.parametrize("model", [TorchLinearRegressor(), LinearRegression()])
def test_features_are_remembered_as_by_scikit_learn(model):
    X, y = np.random.default_rng(0).standard_normal((20, 2)), np.arange(20.0)
    frame = pd.DataFrame(X, columns=["a", "b"])
    model.fit(X, y)
    with pytest.warns(UserWarning, match="was fitted without feature names"):
        model.predict(frame)
    with pytest.raises(ValueError, match="X has 1 features, but"):
        model.predict(X[:, :1])
    model.fit(frame, y)
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        model.predict(X)
    with (
        pytest.warns(UserWarning, match="valid feature"),
        pytest.raises(ValueError, match="X has 1 features"),
    ):
        model.predict(X[:, :1])
    model.fit(X, y)
    assert not hasattr(model, "feature_names_in_")
