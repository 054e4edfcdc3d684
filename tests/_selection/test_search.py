"""`TorchLinearRegressorCV`: the scores of `GridSearchCV`, from moments wherever they suffice."""

import pickle

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import ElasticNetCV, LassoCV, Ridge, RidgeCV
from sklearn.metrics import make_scorer, mean_absolute_error, r2_score
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LeaveOneOut,
    LeavePOut,
    PredefinedSplit,
    RepeatedKFold,
    ShuffleSplit,
    TimeSeriesSplit,
    cross_val_predict,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from torchlinreg import TorchLinearRegressor, TorchLinearRegressorCV
from torchlinreg._data.rows import RowBlocks, as_row_blocks
from torchlinreg._moments.moments import Moments, choose_frame
from torchlinreg._selection.folds import fold_moments, leave_one_out, rows_of, splits_of

ALPHAS = [1e-3, 1.0, 0.03]
# What NumPy makes numbers of.
NO_STRENGTHS = [
    ["1"],
    [True],
    [True, 1.0],
    np.array(["1"]),
    torch.tensor([True]),
    np.array([True, 1.0], dtype=object),
    np.array(["2020-01-01"], dtype="datetime64[D]"),
]
MOMENT_SCORINGS = [None, "r2", "neg_mean_squared_error", "neg_root_mean_squared_error"]


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 5)) * [1, 10, 0.1, 1, 1] + 5
    y = X @ [1.0, 0.1, -8.0, 0.0, 0.5] + rng.normal(size=120)
    return X, y


@pytest.fixture
def no_fits(monkeypatch):
    """Make a score that takes a fit an error."""

    def refuse(*_):
        raise AssertionError("a score took a fit")

    monkeypatch.setattr("torchlinreg._selection.search._fit_and_score", refuse)


def split_scores(results):
    names = [name for name in results if name.startswith("split") and name.endswith("_test_score")]
    return np.stack([results[name] for name in names], axis=1)


def searched(
    X, y, *, alphas=ALPHAS, l1_ratio=0.0, cv=None, scoring=None, groups=None, sample_weight=None, **options
):
    """The grid search that ours must agree with."""
    grid = {"alpha": alphas, "l1_ratio": np.atleast_1d(l1_ratio)}
    search = GridSearchCV(TorchLinearRegressor(**options), grid, cv=cv, scoring=scoring)
    given = {"groups": groups, "sample_weight": sample_weight}
    return search.fit(X, y, **{name: value for name, value in given.items() if value is not None})


def assert_agrees(X, y, *, groups=None, sample_weight=None, rtol=1e-9, **options):
    search = searched(X, y, groups=groups, sample_weight=sample_weight, **options)
    options = {"alphas": ALPHAS, **options}
    reg = TorchLinearRegressorCV(**options)
    reg.fit(X, y, sample_weight, **({} if groups is None else {"groups": groups}))
    np.testing.assert_allclose(
        split_scores(reg.cv_results_), split_scores(search.cv_results_), rtol=rtol, atol=rtol
    )
    for name in ("mean_test_score", "std_test_score"):
        np.testing.assert_allclose(reg.cv_results_[name], search.cv_results_[name], rtol=rtol, atol=rtol)
    assert reg.cv_results_["params"] == search.cv_results_["params"]
    assert reg.cv_results_["param_alpha"].tolist() == search.cv_results_["param_alpha"].tolist()
    assert reg.cv_results_["rank_test_score"].tolist() == search.cv_results_["rank_test_score"].tolist()
    assert reg.best_index_ == search.best_index_
    assert {"alpha": reg.alpha_, "l1_ratio": reg.l1_ratio_} == search.best_params_
    assert reg.best_score_ == pytest.approx(search.best_score_, rel=rtol, abs=rtol)
    np.testing.assert_allclose(reg.coef_, search.best_estimator_.coef_, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(reg.intercept_, search.best_estimator_.intercept_, rtol=1e-9)
    return reg


SPLITTERS = {
    "default": None,
    "int": 3,
    "KFold": KFold(4),
    "shuffled": KFold(4, shuffle=True, random_state=0),
    "GroupKFold": GroupKFold(3),
    "ShuffleSplit": ShuffleSplit(3, random_state=0),
    "RepeatedKFold": RepeatedKFold(n_splits=3, n_repeats=2, random_state=1),
    "PredefinedSplit": PredefinedSplit(np.arange(120) % 4 - 1),
    "TimeSeriesSplit": TimeSeriesSplit(3),
    "pairs": [(np.arange(90), np.arange(80, 120)), (np.arange(60, 120), np.arange(30))],
    "bootstrap": [(np.repeat(np.arange(40), 3), np.arange(40, 120))],
    "masks": [(np.arange(120) % 2 == 0, np.arange(120) % 2 == 1)],
}


@pytest.mark.every(5)
@pytest.mark.parametrize("l1_ratio", [0.0, 1.0])
@pytest.mark.parametrize("splitter", SPLITTERS)
def test_splitters(data, no_fits, splitter, l1_ratio):
    groups = np.random.default_rng(1).integers(0, 7, 120) if splitter == "GroupKFold" else None
    assert_agrees(*data, cv=SPLITTERS[splitter], l1_ratio=l1_ratio, groups=groups)


@pytest.mark.every(3)
@pytest.mark.parametrize("scoring", MOMENT_SCORINGS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_scorings_from_moments(data, no_fits, scoring, weighted, several):
    X, y = data
    y = np.c_[y, X[:, 1] - 0.1 * y + 1e3] if several else y
    weight = np.random.default_rng(1).integers(0, 4, 120) if weighted else None
    assert_agrees(X, y, scoring=scoring, l1_ratio=[0.0, 0.5], sample_weight=weight)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "scoring",
    [
        "neg_median_absolute_error",
        make_scorer(mean_absolute_error, greater_is_better=False),
        lambda estimator, X, y: estimator.predict(X)[0] + len(estimator.coef_) + estimator.n_iter_,
    ],
)
@pytest.mark.filterwarnings("ignore:.*sample_weight.*statistically incorrect")
def test_other_scorings_see_predictions(data, no_fits, scoring, weighted):
    weight = np.random.default_rng(1).uniform(1, 4, 120) if weighted else None
    if weighted and callable(scoring) and not hasattr(scorer := scoring, "_score_func"):
        with pytest.warns(UserWarning, match="no use for sample_weight"):
            TorchLinearRegressorCV(alphas=ALPHAS, scoring=scorer).fit(*data, weight)
        return
    assert_agrees(*data, scoring=scoring, sample_weight=weight)


def test_leave_one_out(data, no_fits):
    X, y = data[0][:15], data[1][:15]
    for scoring in ("neg_mean_squared_error", "neg_mean_absolute_error"):
        assert_agrees(X, y, cv=LeaveOneOut(), scoring=scoring, l1_ratio=[0.0, 1.0])
    assert_agrees(X[:9], y[:9], cv=LeavePOut(2), scoring="neg_mean_squared_error")
    with pytest.warns(UserWarning, match="not finite; R2 needs two test rows"):
        reg = TorchLinearRegressorCV(alphas=ALPHAS, cv=[(np.arange(14), [14])]).fit(X, y)
    assert np.isnan(reg.cv_results_["mean_test_score"]).all()
    assert reg.best_index_ == 0


def pooled_scores(X, y, cv, weight=None, **options):
    """R2 of the predictions for all test rows together."""
    scores = []
    for alpha in ALPHAS:
        reg = TorchLinearRegressor(alpha=alpha, **options)
        params = {} if weight is None else {"sample_weight": weight}
        predicted = cross_val_predict(reg, X, y, cv=cv, params=params)
        scores.append(r2_score(y, predicted, sample_weight=weight))
    return np.array(scores)


POOLED = {
    "one": {},
    "several": {"several": True},
    "weighted": {"weighted": True, "several": True},
    "uneven": {"cv": KFold(8)},  # of 15 rows
    "two rows": {"rows": 2, "cv": 2},
    "lasso": {"l1_ratio": 1.0},
    "no intercept": {"fit_intercept": False},
    "nearly perfect": {"noise": 1e-9},
    "huber": {"loss": "huber", "rows": 9, "cv": KFold(5)},
    "wide": {"rows": 7, "cv": 4, "l1_ratio": 0.0, "wide": True},
    "sparse": {"kind": sparse.csr_array},
    "frame": {"kind": pd.DataFrame},
}


@pytest.mark.every(2)
@pytest.mark.parametrize("case", POOLED)
def test_single_test_rows_are_scored_together(data, case):
    options = {
        "rows": 15,
        "cv": LeaveOneOut(),
        "several": False,
        "weighted": False,
        "wide": False,
        **POOLED[case],
    }
    rows, cv, several, weighted, wide = (
        options.pop(name) for name in ("rows", "cv", "several", "weighted", "wide")
    )
    noise, kind = options.pop("noise", 1.0), options.pop("kind", np.asarray)
    X, y = data[0][:rows], data[1][:rows]
    y = X @ np.arange(5.0) + noise * (y - y.mean())
    X = np.hstack([X, X**2, X**3, 1 / X]) if wide else X
    y = np.c_[y, X[:, 1] - 0.1 * y + 1e3] if several else y
    weight = np.random.default_rng(1).integers(0, 4, rows).astype(float) if weighted else None
    expected = pooled_scores(X, y, cv, weight, **options)
    for scoring in (None, "r2"):
        reg = TorchLinearRegressorCV(alphas=ALPHAS, cv=cv, scoring=scoring, **options)
        reg.fit(kind(X), y, weight)
        np.testing.assert_allclose(reg.cv_results_["mean_test_score"], expected, rtol=1e-9, atol=1e-9)
        assert reg.best_index_ == expected.argmax()
        assert reg.best_score_ == reg.cv_results_["mean_test_score"][reg.best_index_]
        assert np.isnan(split_scores(reg.cv_results_)).all()


def test_leave_one_out_chooses_as_ridge_cv_does(data):
    X, y = data[0][:30], data[1][:30]
    # Leaving out one row, strengths over 29 rows are those that RidgeCV does not divide.
    ridge = RidgeCV(alphas=[29 * alpha for alpha in ALPHAS], cv=None, store_cv_results=True).fit(X, y)
    reg = TorchLinearRegressorCV(alphas=ALPHAS, cv=LeaveOneOut()).fit(X, y)
    mean_square = ridge.cv_results_.mean(0)
    np.testing.assert_allclose(reg.cv_results_["mean_test_score"], 1 - mean_square / y.var(), rtol=1e-9)
    assert reg.alpha_ * 29 == pytest.approx(ridge.alpha_)


def test_single_test_rows_without_weight_are_refused(data):
    with pytest.raises(ValueError, match="All rows that the splits test have a sample_weight of zero"):
        TorchLinearRegressorCV(cv=[(np.arange(9), [9])]).fit(data[0][:10], data[1][:10], np.arange(10) < 9)


@pytest.mark.parametrize(
    "options",
    [
        {"fit_intercept": False},
        {"positive": True},
        {"bounds": (-0.2, 0.3)},
        {"penalty_factor": [1, 0, 2, 1, 0.5]},
        {"penalty_factor": [1, 1e-9, 2, 1, 0.5]},
        {"solver": "cholesky"},
        {"tol": 1e-3},
    ],
)
@pytest.mark.parametrize("l1_ratio", [0.0, 0.5])
def test_options(data, no_fits, options, l1_ratio):
    if options.get("solver") == "cholesky" and l1_ratio:
        with pytest.raises(ValueError, match="does not serve an l1 penalty"):
            TorchLinearRegressorCV(l1_ratio=l1_ratio, **options).fit(*data)
        return
    assert_agrees(*data, l1_ratio=l1_ratio, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "huber", "l1_ratio": 0.5},
        {"loss": "quantile"},
        {"solver": "exact"},
        {"solver": "exact", "n_jobs": 2},
    ],
)
def test_what_moments_do_not_serve_is_fitted(data, options):
    n_jobs = options.pop("n_jobs", None)
    search = searched(*data, cv=3, **options)
    reg = TorchLinearRegressorCV(alphas=ALPHAS, cv=3, n_jobs=n_jobs, **options).fit(*data)
    np.testing.assert_array_equal(split_scores(reg.cv_results_), split_scores(search.cv_results_))
    assert reg.solver_ == search.best_estimator_.solver_


@pytest.mark.every(3)
@pytest.mark.parametrize("l1_ratio", [0.0, 1.0])
@pytest.mark.parametrize("n_features", [35, 90])
@pytest.mark.parametrize("scoring", ["r2", "neg_mean_squared_error"])
def test_wide(l1_ratio, n_features, scoring):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, n_features)) + 2
    y = X[:, :3].sum(1) + rng.normal(size=40)
    assert_agrees(X, y, l1_ratio=l1_ratio, scoring=scoring)


@pytest.mark.every(5)
@pytest.mark.parametrize("l1_ratio", [0.0, 0.5])
@pytest.mark.parametrize("scoring", ["r2", "neg_mean_squared_error", "neg_mean_absolute_error"])
@pytest.mark.parametrize("case", ["dependent", "nearly", "offset", "fold", "perfect", "constant", "units"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_ill_conditioned(data, case, scoring, l1_ratio):
    X, y = data
    rng = np.random.default_rng(1)
    if case == "dependent":
        X = np.c_[X, X[:, 0] + X[:, 1]]
    elif case == "nearly":
        X = np.c_[X, X[:, 0] + 1e-7 * rng.normal(size=120)]
    elif case == "offset":
        X = X + 1e8 * np.array([1, 0, 0, 0, 0])
    elif case == "fold":  # constant in the rows that one split trains on
        X = np.c_[X, np.where(np.arange(120) < 24, rng.normal(size=120), 0.3)]
    elif case == "perfect":
        y = X @ [1.0, 2, 3, 4, 5]
    elif case == "constant":
        y = np.full(120, 0.1)
    else:
        X = X * [1e-8, 1e8, 1, 1, 1]
    search = searched(X, y, alphas=[0.0, 1e-3, 1.0], l1_ratio=l1_ratio, scoring=scoring)
    reg = TorchLinearRegressorCV(alphas=[0.0, 1e-3, 1.0], l1_ratio=l1_ratio, scoring=scoring).fit(X, y)
    # Predictions from an intercept of 1e8 are rounded to 1e-8; moments about the means are not.
    size = 1e-8 if case == "offset" else 1e-9
    np.testing.assert_allclose(
        split_scores(reg.cv_results_), split_scores(search.cv_results_), rtol=size, atol=size
    )


def test_extreme_units_are_fitted(data):
    X, y = data
    assert_agrees(X * 1e180, y, alphas=[1e170, 1e300])


@pytest.mark.every(3)
@pytest.mark.parametrize(
    "kind",
    [
        sparse.csr_array,
        sparse.coo_array,
        np.asfortranarray,
        lambda X: pd.DataFrame(X, columns=list("abcde")),
        lambda X: X.tolist(),
    ],
)
@pytest.mark.parametrize("cv", [4, KFold(4, shuffle=True, random_state=0)])
@pytest.mark.parametrize("scoring", ["r2", "neg_mean_absolute_error"])
def test_data_kinds(data, no_fits, kind, cv, scoring):
    X, y = data
    X = np.where(np.abs(X - 5) > 0.7, 0, X)
    assert_agrees(kind(X), y, cv=cv, scoring=scoring)


def test_sparse_rows_stay_sparse(no_fits):
    X = sparse.random_array((200, 10), density=0.03, rng=np.random.default_rng(0), format="csr")
    y = X @ np.arange(10.0) + np.random.default_rng(1).normal(size=200)
    assert as_row_blocks(X, y).is_sparse
    assert_agrees(X, y, cv=4, l1_ratio=[0.0, 0.5])


def test_float32_scores_are_those_of_float64(data, no_fits):
    X, y = data
    X = X.astype(np.float32)
    reg = assert_agrees(X, y, rtol=1e-6)
    assert reg.coef_.dtype == np.float32
    double = TorchLinearRegressorCV(alphas=ALPHAS).fit(X.astype(np.float64), y)
    np.testing.assert_allclose(split_scores(reg.cv_results_), split_scores(double.cv_results_), rtol=1e-12)


def test_tensors(data):
    X, y = data
    expected = TorchLinearRegressorCV(alphas=ALPHAS, cv=KFold(3, shuffle=True, random_state=0)).fit(X, y)
    given = torch.from_numpy(X), torch.from_numpy(y)
    for scoring in (None, "neg_mean_absolute_error"):
        reg = clone(expected).set_params(scoring=scoring).fit(*given)
        assert isinstance(reg.predict(given[0]), torch.Tensor)
        if scoring is None:
            np.testing.assert_allclose(split_scores(reg.cv_results_), split_scores(expected.cv_results_))


def test_grids_as_of_scikit_learn(data):
    X, y = data
    lasso = LassoCV(alphas=10, cv=4, tol=1e-10).fit(X, y)
    reg = TorchLinearRegressorCV(alphas=10, l1_ratio=1.0, cv=4, scoring="neg_mean_squared_error").fit(X, y)
    np.testing.assert_allclose(reg.alphas_, lasso.alphas_, rtol=1e-12)
    np.testing.assert_allclose(-split_scores(reg.cv_results_), lasso.mse_path_, rtol=1e-6)
    assert reg.alpha_ == pytest.approx(lasso.alpha_)
    np.testing.assert_allclose(reg.coef_, lasso.coef_, atol=1e-6)
    net = ElasticNetCV(alphas=10, l1_ratio=[0.3, 0.9], cv=4, tol=1e-10).fit(X, y)
    reg.set_params(l1_ratio=[0.3, 0.9]).fit(X, y)
    assert reg.alphas_.shape == (2, 10)
    np.testing.assert_allclose(reg.alphas_, net.alphas_, rtol=1e-12)
    np.testing.assert_allclose(-split_scores(reg.cv_results_), net.mse_path_.reshape(20, 4), rtol=1e-6)
    assert (reg.alpha_, reg.l1_ratio_) == (pytest.approx(net.alpha_), net.l1_ratio_)


def test_ridge_of_scikit_learn(data):
    X, y = data
    cv = KFold(4)
    ours = TorchLinearRegressorCV(cv=cv, alphas=ALPHAS).fit(X, y)
    # Ridge sums where we average; all folds have 90 rows to train on.
    theirs = GridSearchCV(Ridge(solver="svd"), {"alpha": np.array(ALPHAS) * 90}, cv=cv).fit(X, y)
    np.testing.assert_allclose(split_scores(ours.cv_results_), split_scores(theirs.cv_results_), rtol=1e-10)


def test_ridge_cv_of_scikit_learn(data):
    X, y = data
    y = y + 20 * np.random.default_rng(1).normal(size=120)  # so that the best strength is in the middle
    alphas = np.array([1e-3, 0.1, 10.0])
    theirs = RidgeCV(alphas * 119, scoring="neg_mean_squared_error").fit(X, y)  # leaves one out
    ours = TorchLinearRegressorCV(alphas=alphas, cv=LeaveOneOut(), scoring="neg_mean_squared_error").fit(X, y)
    assert ours.alpha_ * 119 == pytest.approx(theirs.alpha_)
    assert ours.alpha_ == 0.1
    np.testing.assert_allclose(ours.best_score_, theirs.best_score_, rtol=1e-10)
    theirs = Ridge(alpha=ours.alpha_ * 120, solver="svd").fit(X, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-9)


def test_default_grid_has_the_best_inside(data):
    X, y = data
    reg = TorchLinearRegressorCV().fit(X, y + 5 * np.random.default_rng(1).normal(size=120))
    assert reg.alphas_.shape == (100,)
    assert (np.diff(reg.alphas_) < 0).all()
    assert reg.alphas_[-1] < reg.alpha_ < reg.alphas_[0]


def test_ties_are_broken_by_the_first(data):
    X, _ = data
    reg = TorchLinearRegressorCV(alphas=[0.5, 1.0, 0.1]).fit(X, np.ones(120))
    assert (reg.cv_results_["rank_test_score"] == 1).all()
    assert reg.alpha_ == 0.5


def test_best_model_is_all_there(data):
    X, y = data
    reg = TorchLinearRegressorCV(alphas=ALPHAS).fit(pd.DataFrame(X, columns=list("abcde")), y)
    best = TorchLinearRegressor(alpha=reg.alpha_).fit(X, y)
    for name in ("coef_", "intercept_", "rank_", "condition_number_", "n_iter_"):
        np.testing.assert_allclose(getattr(reg, name), getattr(best, name), rtol=1e-12)
    assert (reg.solver_, reg.status_.name) == ("cholesky", "OPTIMAL")
    assert reg.feature_names_in_.tolist() == list("abcde")
    assert reg.n_splits_ == 5
    frame = pd.DataFrame(X, columns=list("abcde"))
    np.testing.assert_allclose(reg.predict(frame), best.predict(X))
    assert reg.score(frame, y) == pytest.approx(best.score(X, y))
    more = reg.best_estimator_.partial_fit(frame, y)
    np.testing.assert_allclose(more.coef_, TorchLinearRegressor(alpha=reg.alpha_).fit(X, y).coef_)


def test_clone_pickle_pipeline(data):
    X, y = data
    reg = TorchLinearRegressorCV(alphas=5, l1_ratio=[0.5, 1.0]).fit(X, y)
    assert clone(reg).get_params() == reg.get_params()
    with pytest.raises(NotFittedError):
        clone(reg).predict(X)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reg)).predict(X), reg.predict(X))
    pipeline = make_pipeline(StandardScaler(), TorchLinearRegressorCV(alphas=5)).fit(X, y)
    assert pipeline.score(X, y) > 0.5
    assert cross_val_score(clone(reg), X, y, cv=3).min() > 0.3


def test_metadata_routing(data):
    X, y = data
    groups = np.random.default_rng(1).integers(0, 7, 120)
    weight = np.random.default_rng(2).integers(0, 4, 120)
    plain = TorchLinearRegressorCV(alphas=ALPHAS, cv=GroupKFold(3)).fit(X, y, weight, groups=groups)
    with sklearn.config_context(enable_metadata_routing=True):
        routed = TorchLinearRegressorCV(alphas=ALPHAS, cv=GroupKFold(3)).fit(X, y, weight, groups=groups)
        np.testing.assert_array_equal(split_scores(plain.cv_results_), split_scores(routed.cv_results_))
        for requested in (False, True):
            scorer = make_scorer(r2_score).set_score_request(sample_weight=requested)
            reg = TorchLinearRegressorCV(alphas=ALPHAS, cv=3, scoring=scorer).fit(X, y, sample_weight=weight)
            estimator = TorchLinearRegressor().set_fit_request(sample_weight=True)
            search = GridSearchCV(estimator, {"alpha": ALPHAS}, cv=3, scoring=scorer)
            search.fit(X, y, sample_weight=weight)
            np.testing.assert_allclose(
                split_scores(reg.cv_results_), split_scores(search.cv_results_), rtol=1e-9
            )
        with pytest.raises(sklearn.exceptions.UnsetMetadataPassedError):
            TorchLinearRegressorCV(scoring="r2", cv=3).fit(X, y, sample_weight=weight)


def test_weights_are_repetitions(data):
    X, y = data
    weight = np.random.default_rng(1).integers(1, 4, 120)
    fold = np.arange(120) % 3
    weighted = TorchLinearRegressorCV(alphas=8, cv=PredefinedSplit(fold)).fit(X, y, weight)
    repeated = TorchLinearRegressorCV(alphas=8, cv=PredefinedSplit(fold.repeat(weight)))
    repeated.fit(X.repeat(weight, axis=0), y.repeat(weight))
    np.testing.assert_allclose(weighted.alphas_, repeated.alphas_)
    np.testing.assert_allclose(split_scores(weighted.cv_results_), split_scores(repeated.cv_results_))
    scaled = clone(weighted).fit(X, y, sample_weight=weight * 1e-200)
    np.testing.assert_allclose(split_scores(weighted.cv_results_), split_scores(scaled.cv_results_))
    number = clone(weighted).fit(X, y, sample_weight=2.0)
    np.testing.assert_allclose(number.coef_, clone(weighted).fit(X, y).coef_)


def test_verbose_tells_of_fits(data, capsys):
    TorchLinearRegressorCV(alphas=ALPHAS, verbose=1).fit(*data)
    assert "3 candidates on 5 splits, of which 0 fits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alphas": -1}, "positive integer"),
        ({"alphas": [1.0, np.nan]}, "finite numbers"),
        ({"l1_ratio": [0.5, 2.0]}, "from 0"),
        ({"l1_ratio": []}, "1-D array"),
        ({"l1_ratio": torch.tensor([])}, "1-D array"),
        ({"alphas": [1e300], "penalty_factor": [1e10] * 5}, r"alpha=1e\+300 times penalty_factor"),
        ({"eps": 2.0}, "between 0 and 1"),
        ({"solver": "adam"}, "GridSearchCV"),
        ({"solver": "simplex"}, "not known"),
        ({"scoring": ["r2", "max_error"]}, "one scorer"),
        ({"scoring": "best"}, "scoring"),
        ({"cv": 1}, "n_splits"),
        ({"cv": []}, "no splits"),
        ({"cv": [([0, 1], [])]}, "no test rows"),
        ({"loss": "hubert"}, "not known"),
        ({"positive": 1}, "True or False"),
        ({"penalty_factor": [-1.0] * 5}, "penalty_factor"),
        ({"bounds": (1, 0)}, "bounds leave no coefficient"),
        ({"fit_intercept": "no"}, "True or False"),
        *(({"alphas": alphas}, "1-D array of finite numbers") for alphas in NO_STRENGTHS),
        ({"eps": 1e-300}, r"eps=1e-300 is too small"),
        ({"cv": list(KFold(4).split(np.empty((132, 1))))}, "train rows of split 0 .* 33 to 131, .* 120 rows"),
        ({"cv": [([0, 1, -121], [2])]}, "train rows of split 0 .* reach from -121 to 1"),
        ({"cv": [([0, 1], [2]), ([0, 1], [120])]}, "test rows of split 1 .* reach from 120 to 120"),
        ({"cv": [([True, False], [2, 3])]}, "2 booleans, but there are 120 rows"),
        ({"cv": [(np.zeros(120, dtype=bool), [2, 3])]}, "no train rows"),
        ({"cv": [([0.0, 1.0], [2, 3])]}, "train rows of split 0 .* dtype float64"),
        ({"cv": [([[0], [1]], [2, 3])]}, r"train rows of split 0 .* shape \(2, 1\)"),
    ],
)
def test_refusals(data, options, words):
    with pytest.raises(ValueError, match=words):
        TorchLinearRegressorCV(**options).fit(*data)


def test_indices_may_count_from_the_end(data):
    X, y = data
    splits = list(KFold(4).split(X))
    from_the_end = [(train - 120, test) for train, test in splits]
    reg = TorchLinearRegressorCV(alphas=ALPHAS, cv=from_the_end).fit(X, y)
    expected = searched(X, y, cv=splits)
    np.testing.assert_allclose(split_scores(reg.cv_results_), split_scores(expected.cv_results_), rtol=1e-9)


def test_strengths_may_be_as_large_as_numbers_are(data):
    reg = TorchLinearRegressorCV(alphas=[1e300, 1.0]).fit(*data)
    assert reg.alpha_ == 1.0


def test_refusals_of_fit(data):
    X, y = data
    with pytest.raises(ValueError, match="metadata routing"):
        TorchLinearRegressorCV().fit(X, y, colour="red")
    with pytest.raises(ValueError, match="weight of zero"):
        TorchLinearRegressorCV(cv=2).fit(X, y, np.arange(120) < 60)
    for loss in ("squared_error", "huber"):
        with pytest.raises(ValueError, match="split 0 tests have a sample_weight of zero"):
            TorchLinearRegressorCV(loss=loss, alphas=[1.0], cv=5).fit(X, y, np.arange(120) >= 24)
    with pytest.raises(ValueError, match="y is None"):
        TorchLinearRegressorCV().fit(X, None)
    X[3, 3] = np.inf
    for alphas in (5, [1.0]):
        with pytest.raises(ValueError, match="infinity"):
            TorchLinearRegressorCV(alphas=alphas).fit(X, y)


def test_fold_moments_are_those_of_the_rows(data):
    X, y = data
    blocks = as_row_blocks(X, y, np.random.default_rng(0).uniform(size=120))
    frame = choose_frame(blocks, fit_intercept=True)
    for splitter in SPLITTERS.values():
        if splitter is None or isinstance(splitter, (int, list, GroupKFold)):
            continue
        pairs = list(splitter.split(X))
        folds = list(fold_moments(blocks, frame, splits_of(pairs, 120)))
        assert [fold.number for fold in folds] == list(range(len(pairs)))
        for fold, (train, test) in zip(folds, pairs, strict=True):
            for moments, index in ((fold.train, train), (fold.test, test)):
                rows = np.c_[np.ones(len(index)), np.c_[X, y][index] - frame.shift[1:].numpy()]
                gram = np.triu(rows.T @ (blocks.weight.numpy()[index][:, None] * rows))
                np.testing.assert_allclose(np.triu(moments.raw.numpy()), gram, rtol=1e-11, atol=1e-11)
                assert moments.n_samples == len(index)


def test_partitions_are_read_once(data, monkeypatch):
    X, y = data
    blocks = as_row_blocks(X, y)
    frame = choose_frame(blocks, fit_intercept=True)
    n_read = 0
    take = type(blocks).dense_rows

    def counted(self, start, stop):
        nonlocal n_read
        n_read += stop - start
        return take(self, start, stop)

    monkeypatch.setattr(type(blocks), "dense_rows", counted)
    list(fold_moments(blocks, frame, splits_of(KFold(5).split(X), 120)))
    assert n_read == 120


@pytest.mark.parametrize("n_at_once", [2, 3, 100])
def test_leave_one_out_in_halves(n_at_once):
    frame = choose_frame(as_row_blocks(np.eye(2), np.ones(2)), fit_intercept=False)
    parts = [rows_of(np.array([number])) for number in range(7)]

    def of(rows):
        return Moments(frame, torch.full((1, 1), 10.0 ** rows.runs[0][0], dtype=torch.float64), 1, 0.0)

    pairs = list(leave_one_out(parts, of, n_at_once))
    assert [float(test.raw) for _, test in pairs] == [10.0**k for k in range(7)]
    assert [float(train.raw) for train, _ in pairs] == [1111111 - 10.0**k for k in range(7)]
    assert all(train.n_samples == 6 for train, _ in pairs)


def test_many_folds_do_not_hold_all_moments(data, no_fits, monkeypatch):
    X, y = data[0][:30], data[1][:30]
    options = {"alphas": ALPHAS, "cv": LeaveOneOut(), "scoring": "neg_mean_squared_error"}
    expected = TorchLinearRegressorCV(**options).fit(X, y)
    monkeypatch.setattr("torchlinreg._selection.folds.MOMENTS_BYTES", 1)
    monkeypatch.setattr("torchlinreg._selection.search.MOMENTS_BYTES", 1)
    reg = TorchLinearRegressorCV(**options).fit(X, y)
    np.testing.assert_allclose(
        reg.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"], rtol=1e-12
    )


def test_shuffled_folds_are_copied_block_by_block(monkeypatch):
    """Runs of rows are views, of which moments take more at once; others are copies."""
    copied, gather = [], RowBlocks.gather

    def counted(self, index):
        copied.append(len(index))
        return gather(self, index)

    monkeypatch.setattr(RowBlocks, "gather", counted)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60_000, 60))
    y = X[:, 0] + rng.standard_normal(len(X))
    TorchLinearRegressorCV(alphas=[0.1, 1.0], cv=KFold(2, shuffle=True, random_state=0)).fit(X, y)
    assert copied
    assert max(copied) * 8 * 61 <= 4 * 2**20
