"""Scores of `TorchLinearRegressorCV` are those of the estimator to ten digits, whatever rows are tested."""

from fractions import Fraction

import numpy as np
import pytest
import sklearn
from scipy import sparse
from sklearn.metrics import make_scorer, r2_score
from sklearn.model_selection import GridSearchCV, KFold, PredefinedSplit, ShuffleSplit

from torchlinreg import TorchLinearRegressor, TorchLinearRegressorCV, regularization_path

DIGITS = 1e-10


def split_scores(search):
    results = search.cv_results_
    names = [name for name in results if name.startswith("split") and name.endswith("_test_score")]
    return np.stack([results[name] for name in names], axis=1)


def searches(X, y, weight=None, *, alphas, l1_ratio=0.0, cv, scoring=None, **options):
    """Ours and the grid search that it stands for, fitted."""
    estimator = TorchLinearRegressor(l1_ratio=l1_ratio, **options)
    grid = GridSearchCV(estimator, {"alpha": alphas}, cv=cv, scoring=scoring, error_score="raise")
    ours = TorchLinearRegressorCV(alphas=alphas, l1_ratio=l1_ratio, cv=cv, scoring=scoring, **options)
    weights = {} if weight is None else {"sample_weight": weight}
    return ours.fit(X, y, **weights), grid.fit(X, y, **weights)


def assert_same_scores(X, y, weight=None, *, digits=DIGITS, **options):
    ours, grid = searches(X, y, weight, **options)
    expected = split_scores(grid)
    share = options.get("scoring") in (None, "r2", "explained_variance")
    unit = np.maximum(np.abs(expected), 1.0 if share else 0.0)
    error = np.abs(split_scores(ours) - expected)
    assert (error <= digits * unit).all(), (error / unit).max()
    return ours, grid


@pytest.fixture
def broken():
    """Columns that depend on each other in all rows but the first fifth, and what breaks that."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(100, 4))
    apart = np.where(np.arange(100) < 20, rng.normal(size=100), 0.0)
    X[:, 3] = X[:, 0] + X[:, 1] + apart
    y = X @ [1.0, 2.0, 0.5, 3.0] + 0.05 * rng.normal(size=100)
    return X, y, apart != 0


CV = PredefinedSplit(np.repeat(np.arange(5), 20))


@pytest.mark.every(5)
@pytest.mark.parametrize(
    "options", [{"positive": True}, {"bounds": (-100, 100)}, {"bounds": (0.25, None)}, {}]
)
@pytest.mark.parametrize("scoring", [None, "neg_mean_squared_error", "neg_mean_absolute_error"])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
def test_the_optimum_of_least_norm_is_scored(broken, options, scoring, kind):
    X, y, _ = broken
    ours, grid = assert_same_scores(
        kind(X), y, alphas=[0.0, 1e-3, 0.1], cv=CV, scoring=scoring, l1_ratio=0.0, **options
    )
    assert ours.alpha_ == grid.best_params_["alpha"]


@pytest.mark.parametrize("options", [{"positive": True}, {"bounds": (-100, 100)}, {"bounds": (0.25, None)}])
def test_paths_end_at_the_optimum_of_least_norm(broken, options):
    X, y, breaks = broken
    X, y = X[~breaks], y[~breaks]
    path = regularization_path(X, y, alphas=[0.1, 0.0], l1_ratio=0.0, **options)
    for alpha, coef, intercept in zip(path.alphas, path.coefs, path.intercepts, strict=True):
        reg = TorchLinearRegressor(alpha=alpha, **options).fit(X, y)
        np.testing.assert_allclose(coef, reg.coef_, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(intercept, reg.intercept_, rtol=1e-9, atol=1e-12)


def exact_ridge(X, y, alpha):
    """Coefficients and intercept of the float64 numbers, as fractions."""
    rows = [[Fraction(1), *map(Fraction, row)] for row in X.tolist()]
    target = [Fraction(value) for value in y.tolist()]
    size = len(rows[0])
    system = [
        [sum(row[i] * row[j] for row in rows) for j in range(size)]
        + [sum(row[i] * value for row, value in zip(rows, target, strict=True))]
        for i in range(size)
    ]
    for i in range(1, size):
        system[i][i] += Fraction(alpha) * len(rows)
    for i in range(size):
        for k in range(size):
            if k != i:
                factor = system[k][i] / system[i][i]
                system[k] = [a - factor * b for a, b in zip(system[k], system[i], strict=True)]
    return [system[i][-1] / system[i][i] for i in range(size)]


@pytest.mark.parametrize("near", [1e-3, 1e-5, 1e-7, 1e-9])
@pytest.mark.parametrize("alpha", [0.0, 1e-12, 1e-8, 1e-5])
def test_ridge_where_test_rows_break_a_near_dependence(near, alpha):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 3))
    tested = np.arange(40) < 10
    X[:, 2] = X[:, 0] - X[:, 1] + np.where(tested, 1.0, near) * rng.normal(size=40)
    y = X[:, 0] + 0.3 * rng.normal(size=40)
    reg = TorchLinearRegressorCV(alphas=[alpha], cv=[(~tested, tested)], scoring="neg_mean_squared_error")
    reg.fit(X, y)
    intercept, *coef = exact_ridge(X[~tested], y[~tested], alpha)
    residuals = [
        Fraction(value) - intercept - sum(Fraction(a) * b for a, b in zip(row, coef, strict=True))
        for row, value in zip(X[tested].tolist(), y[tested].tolist(), strict=True)
    ]
    expected = float(sum(residual**2 for residual in residuals) / 10)
    assert -reg.best_score_ == pytest.approx(expected, rel=DIGITS)


@pytest.mark.parametrize("seed", range(6))
def test_columns_alike_beyond_the_rounding_of_their_products(seed):
    """An eigenvalue that consists of rounding tells nothing of coefficients of 1e8 along it."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(17, 3))
    X[:, 2] = X[:, 0] + 1e-13 * rng.normal(size=17)
    y = X[:, 0] + X[:, 1] + 5e-5 * rng.normal(size=17)
    tested = np.arange(17) < 8
    reg = TorchLinearRegressorCV(alphas=[0.0], cv=[(~tested, tested)], scoring="r2").fit(X, y)
    intercept, *coef = exact_ridge(X[~tested], y[~tested], 0.0)
    values = [Fraction(value) for value in y[tested].tolist()]
    mean = sum(values) / len(values)
    residuals = [
        value - intercept - sum(Fraction(a) * b for a, b in zip(row, coef, strict=True))
        for row, value in zip(X[tested].tolist(), values, strict=True)
    ]
    expected = 1 - sum(each**2 for each in residuals) / sum((value - mean) ** 2 for value in values)
    assert reg.best_score_ == pytest.approx(float(expected), abs=2e-11)


@pytest.mark.parametrize("options", [{}, {"positive": True}, {"penalty_factor": [1, 1e-7, 1]}])
def test_rows_that_only_the_scores_count(options):
    """What breaks the dependence has no weight, but is scored."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(60, 3))
    breaks = np.arange(60) % 20 == 0
    X[:, 2] = X[:, 0] + X[:, 1] + np.where(breaks, 1.0, 1e-6) * rng.normal(size=60)
    y = X.sum(1) + 0.3 * rng.normal(size=60)
    scorer = make_scorer(r2_score)
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = scorer.set_score_request(sample_weight=False)
        estimator = TorchLinearRegressor(**options).set_fit_request(sample_weight=True)
        alphas = [1e-10, 1e-7]
        weight = np.where(breaks, 0.0, 1.0)
        grid = GridSearchCV(estimator, {"alpha": alphas}, cv=3, scoring=scorer)
        grid.fit(X, y, sample_weight=weight)
        with pytest.MonkeyPatch.context() as patch:  # R2 by moments, which a scorer's own function is not
            patch.setattr(TorchLinearRegressorCV, "_routed", lambda *_: ({"groups": None}, {}))
            ours = TorchLinearRegressorCV(alphas=alphas, cv=3, **options).fit(X, y, weight)
        np.testing.assert_allclose(split_scores(ours), split_scores(grid), rtol=DIGITS, atol=DIGITS)


def test_targets_that_hardly_vary_in_the_test_rows():
    """R2 is far below zero there, and the rounding of its denominator counts."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    y = np.repeat([0.0, 1e4, -1e4], 20) + 0.1 * rng.normal(size=60)
    assert_same_scores(X, y, alphas=[1e-3, 1.0], cv=3)


# Powers of this degree leave the estimator few digits, of which it warns in each fit.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_fits_see_the_rows_in_the_order_of_the_splitter():
    x = np.linspace(1950, 2020, 36)
    X = x[:, None] ** np.arange(1, 9)
    y = np.sin(x / 9) + 0.1 * np.random.default_rng(0).normal(size=36)
    ours, grid = searches(X, y, alphas=[0.0, 1e-11], cv=ShuffleSplit(3, test_size=0.3, random_state=1))
    np.testing.assert_array_equal(split_scores(ours), split_scores(grid))


def dependent(rng, X, tested):
    X[:, -1] = X[:, :-1].sum(1) + np.where(tested, rng.normal(size=len(X)), 0)


def nearly_dependent(rng, X, tested):
    near = 10.0 ** rng.uniform(-14, -2)
    X[:, -1] = X[:, 0] + np.where(tested, 1.0, near) * rng.normal(size=len(X))


def nearly_alike(rng, X, _):
    X[:, -1] = X[:, 0] + 10.0 ** rng.uniform(-14, -2) * rng.normal(size=len(X))


def constant(rng, X, tested):
    X[:, -1] = 0.3 + np.where(tested, 1.0, rng.choice([0.0, 1e-7])) * rng.normal(size=len(X))


def powers(rng, X, _):
    low, high = [(1950, 2020), (-1, 1), (100, 110)][rng.integers(3)]
    X[:] = np.linspace(low, high, len(X))[:, None] ** np.arange(1, X.shape[1] + 1)


def groups(rng, X, _):
    X[:] = np.eye(X.shape[1])[rng.integers(0, X.shape[1], len(X))]


def offsets(rng, X, _):
    X += 10.0 ** rng.integers(0, 8, X.shape[1])


def units(rng, X, tested):
    nearly_dependent(rng, X, tested)
    X *= 10.0 ** rng.integers(-8, 8, X.shape[1])


def far(rng, X, tested):
    X[tested] *= 10.0 ** rng.integers(1, 9)


def integers(rng, X, tested):
    X[:] = rng.integers(-3, 4, X.shape)
    X[:, -1] = 2 * X[:, 0] - X[:, X.shape[1] // 2] + np.where(tested, rng.integers(-3, 4, len(X)), 0)


KINDS = [
    dependent,
    nearly_dependent,
    nearly_alike,
    constant,
    powers,
    groups,
    offsets,
    units,
    far,
    integers,
    lambda *_: None,
]
CVS = [
    3,
    4,
    KFold(3, shuffle=True, random_state=0),
    ShuffleSplit(2, test_size=0.3, random_state=1),
    ShuffleSplit(3, test_size=1, random_state=2),
]
# Columns beyond this are refused with bounds or an l1 penalty.
LARGEST_WITH_BOUNDS = 1e140
SCORINGS = [
    "neg_mean_squared_error",
    "neg_mean_absolute_error",
    "neg_root_mean_squared_error",
    "neg_median_absolute_error",
    "r2",
    "explained_variance",
]


def random_problem(seed):
    """X, y, weights and options, of which rows of a test set may be unlike others."""
    rng = np.random.default_rng(seed)
    n_samples = int(rng.integers(12, 40))
    n_features = int(rng.integers(2, 9)) if rng.random() < 0.9 else 2 * n_samples
    cv = CVS[rng.choice(5, p=[0.3, 0.25, 0.2, 0.2, 0.05])]
    splits = list((KFold(cv) if isinstance(cv, int) else cv).split(np.zeros(n_samples)))
    tested = np.isin(np.arange(n_samples), splits[rng.integers(len(splits))][1])
    X = rng.normal(size=(n_samples, n_features))
    KINDS[seed % len(KINDS)](rng, X, tested)
    with np.errstate(over="ignore"):  # units may be extreme
        spread = X.std(0)
    z = (X - X.mean(0)) / np.where(spread > 0, spread, 1)
    y = z @ rng.normal(size=(n_features, 1 + (rng.random() < 0.2)))
    y += 10.0 ** rng.uniform(-6, 0.5) * rng.normal(size=y.shape)
    options = {
        "alphas": [0.0, *10.0 ** rng.choice(np.arange(-12, 7), 3, replace=False)],
        "l1_ratio": float(rng.choice([0, 0, 0, 0.5, 1.0])),
        "cv": cv,
        "scoring": SCORINGS[rng.integers(2 if len(splits[0][1]) < 2 else len(SCORINGS))],
        "fit_intercept": bool(rng.random() < 0.8),
        **[{"positive": True}, {"bounds": (-0.5, 0.5)}, {"bounds": (-1e6, 1e6)}, {}, {}, {}][rng.integers(6)],
    }
    if np.abs(X).max() > LARGEST_WITH_BOUNDS:
        options = {name: value for name, value in options.items() if name not in ("positive", "bounds")}
        options["l1_ratio"] = 0.0
    if rng.random() < 0.2:
        options["penalty_factor"] = 10.0 ** rng.integers(-6, 3, n_features) * (rng.random(n_features) < 0.8)
    weight = rng.integers(0, 3, n_samples) + 0.25 if rng.random() < 0.25 else None
    if rng.random() < 0.2:
        X = sparse.csr_array(X)
    return X, y[:, 0] if y.shape[1] == 1 else y, weight, options


# Nearly dependent training rows are what is tried here, and the estimator warns of them in each fit.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    "first", [0, *(pytest.param(first, marks=pytest.mark.exhaustive) for first in range(22, 1672, 22))]
)
def test_random_problems(first):
    wrong = []
    for seed in range(first, first + 22):
        X, y, weight, options = random_problem(seed)
        try:
            assert_same_scores(X, y, weight, **options)
        except AssertionError as error:
            wrong.append((seed, KINDS[seed % len(KINDS)].__name__, str(error)))
    assert not wrong


def test_single_precision_is_scored_before_its_rounding(broken):
    X, y, _ = broken
    X = X.astype(np.float32)
    options = {"alphas": [0.0, 1e-5, 1e-2], "cv": CV, "positive": True}
    assert_same_scores(X, y, digits=1e-5, **options)
