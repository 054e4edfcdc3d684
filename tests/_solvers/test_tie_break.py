"""Of several optima the shortest, against exact truths; and no tie where columns are just ill-conditioned."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import sparse

from torchlinreg import TorchLinearRegressor, TorchLinearRegressorCV, regularization_path
from torchlinreg._data.rows import as_row_blocks
from torchlinreg._objective.penalty import ridge
from torchlinreg._objective.problem import Problem
from torchlinreg._objective.solution import Status
from torchlinreg._solvers.least_distance import shortest_within
from torchlinreg._solvers.null_space import null_space

Matrix = list[list[Fraction]]


def exact(array) -> Matrix:
    return [[Fraction(float(value)) for value in row] for row in np.atleast_2d(array)]


def times(a: Matrix, b: Matrix) -> Matrix:
    return [
        [
            sum((x * y for x, y in zip(row, column, strict=True)), Fraction(0))
            for column in zip(*b, strict=True)
        ]
        for row in a
    ]


def transposed(a: Matrix) -> Matrix:
    return [list(row) for row in zip(*a, strict=True)]


def reduced(a: Matrix) -> tuple[Matrix, list[int]]:
    """The rows of the reduced echelon form that are not 0, and their pivots."""
    rows, pivots = [row[:] for row in a], []
    for column in range(len(a[0])):
        found = next((k for k in range(len(pivots), len(rows)) if rows[k][column] != 0), None)
        if found is None:
            continue
        here = len(pivots)
        rows[here], rows[found] = rows[found], rows[here]
        rows[here] = [value / rows[here][column] for value in rows[here]]
        for k, row in enumerate(rows):
            if k != here and row[column] != 0:
                rows[k] = [x - row[column] * y for x, y in zip(row, rows[here], strict=True)]
        pivots.append(column)
    return rows[: len(pivots)], pivots


def solved(a: Matrix, b: Matrix) -> Matrix:
    rows, _ = reduced([x + y for x, y in zip(a, b, strict=True)])
    return [row[len(a) :] for row in rows]


def shortest_least_squares(a: Matrix, b: Matrix) -> Matrix:
    """By a factorisation of full rank, ``a = left @ right``."""
    right, pivots = reduced(a)
    if not pivots:
        return [[Fraction(0)] for _ in a[0]]
    left = [[row[k] for k in pivots] for row in a]
    inside = solved(times(transposed(left), left), times(transposed(left), b))
    return times(transposed(right), solved(times(right, transposed(right)), inside))


def truth(X, y, lower, upper, weight=None, fit_intercept=True) -> np.ndarray:
    """The shortest optimum, from all faces of the bounds, in rational arithmetic."""
    rows, target = exact(X), exact(y)[0]
    share = [Fraction(1)] * len(rows) if weight is None else exact(weight)[0]
    columns = [*transposed(rows), target]
    if fit_intercept:
        means = [sum(w * x for w, x in zip(share, column, strict=True)) / sum(share) for column in columns]
        columns = [[x - mean for x in column] for column, mean in zip(columns, means, strict=True)]
    # Weights that are squares of whole numbers have exact roots.
    columns = [
        [Fraction(int(float(w) ** 0.5)) * x for w, x in zip(share, column, strict=True)] for column in columns
    ]
    design, target = columns[:-1], columns[-1]
    best = None
    for sides in itertools.product((None, 0, 1), repeat=len(design)):
        held = [None if side is None else (lower, upper)[side][j] for j, side in enumerate(sides)]
        if any(value is not None and not np.isfinite(value) for value in held):
            continue
        coef = [None if value is None else Fraction(float(value)) for value in held]
        free = [j for j, value in enumerate(coef) if value is None]
        left = [
            t - sum(c * design[j][i] for j, c in enumerate(coef) if c is not None)
            for i, t in enumerate(target)
        ]
        if free:
            part = transposed([design[j] for j in free])
            for j, (value,) in zip(free, shortest_least_squares(part, [[t] for t in left]), strict=True):
                coef[j] = value
        if not all(low <= c <= high for c, low, high in zip(coef, lower, upper, strict=True)):
            continue
        residual = [
            t - sum(c * column[i] for c, column in zip(coef, design, strict=True))
            for i, t in enumerate(target)
        ]
        key = sum(r * r for r in residual), sum(c * c for c in coef)
        if best is None or key < best[0]:
            best = key, coef
    assert best is not None
    return np.array([float(c) for c in best[1]])


ISSUE = (
    np.array([[2.0, 3, 2], [-2, -2, -2], [2, 2, 2], [0, -2, 0], [2, 0, 2]]),
    np.array([-4.0, -4, -1, 2, -1]),
)
KINDS = {
    "dense": lambda X: X,
    "float32": lambda X: X.astype(np.float32),
    "csr": sparse.csr_array,
    "tensor": torch.from_numpy,
}


@pytest.mark.parametrize("solver", ["auto", "active_set"])
@pytest.mark.parametrize("kind", KINDS)
def test_shortest_positive_coefficients_of_every_kind_of_data(kind, solver):
    X, y = ISSUE
    np.testing.assert_array_equal(truth(X, y, [0] * 3, [np.inf] * 3), [0.09375, 0, 0.09375])
    reg = TorchLinearRegressor(positive=True, solver=solver).fit(KINDS[kind](X), y)
    np.testing.assert_allclose(reg.coef_, [0.09375, 0, 0.09375], rtol=1e-14)
    assert reg.status_.kind is Status.MINIMUM_NORM


def some_integers(seed):
    """Small data with columns that depend on each other, tall or wide, and bounds."""
    rng = np.random.default_rng(seed)
    n_samples, n_features = rng.integers(2, 6), rng.integers(2, 5)
    X = rng.integers(-3, 4, (n_samples, n_features)).astype(float)
    if seed % 3 == 0:
        X[:, -1] = X[:, 0]
    if seed % 3 == 1:
        X[:, -1] = X[:, 0] - 2 * X[:, 1]
    lower, upper = np.zeros(n_features), np.full(n_features, np.inf)
    if seed % 2:
        lower = np.where(rng.random(n_features) < 0.6, rng.integers(-2, 2, n_features) / 2, -np.inf)
        upper = np.where(
            rng.random(n_features) < 0.5, np.maximum(lower, -1) + rng.integers(0, 3, n_features) / 2, upper
        )
    weight = rng.choice([1.0, 4.0, 9.0], n_samples) if seed % 5 == 0 else None
    return X, rng.integers(-4, 5, n_samples).astype(float), lower, upper, weight


@pytest.mark.parametrize("seed", range(60))
def test_shortest_coefficients_within_bounds(seed):
    X, y, lower, upper, weight = some_integers(seed)
    fit_intercept = seed % 4 > 0
    reg = TorchLinearRegressor(bounds=(lower, upper), fit_intercept=fit_intercept).fit(X, y, weight)
    expected = truth(X, y, lower, upper, weight, fit_intercept)
    np.testing.assert_allclose(reg.coef_, expected, rtol=1e-12, atol=1e-13)


def assert_shortest_positive(X, coef, rtol=1e-9):
    """No shorter coefficients predict the same: ``coef = max(X.T v, 0)`` for some `v` (Kuhn, Tucker)."""
    centred = X - X.mean(0)
    used = coef > 0
    v = np.linalg.lstsq(centred[:, used].T, coef[used])[0]
    np.testing.assert_allclose(np.maximum(centred.T @ v, 0), coef, rtol=rtol, atol=rtol * coef.max())


@pytest.mark.parametrize("solver", ["auto", "active_set"])
def test_more_features_than_rows_of_any_number(solver):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((5, 1001)), rng.standard_normal(5)
    reg = TorchLinearRegressor(positive=True, solver=solver).fit(X, y)
    np.testing.assert_allclose(reg.predict(X), y, rtol=1e-12)
    assert_shortest_positive(X, reg.coef_)
    assert reg.status_.kind is Status.MINIMUM_NORM


def test_more_rows_than_features_of_any_number():
    rng = np.random.default_rng(1)
    X = rng.integers(-2, 3, (1100, 1020)).astype(float)
    X[:, -1] = X[:, 0]
    y = X[:, :3] @ [1.0, 2.0, -1.0] + rng.standard_normal(1100)
    reg = TorchLinearRegressor(bounds=(-5, 5)).fit(X, y)
    assert reg.status_.kind is Status.MINIMUM_NORM
    assert reg.coef_[0] == pytest.approx(reg.coef_[-1], rel=1e-12)


def test_active_set_without_a_penalty_takes_the_shortest():
    X, y = ISSUE
    reg = TorchLinearRegressor(solver="active_set").fit(X, y)
    np.testing.assert_allclose(reg.coef_, truth(X, y, [-np.inf] * 3, [np.inf] * 3), rtol=1e-13)
    assert reg.status_.kind is Status.MINIMUM_NORM


def test_several_targets_each_have_their_shortest():
    X, y = ISSUE
    targets = np.column_stack([y, -y, X @ [1.0, -1.0, 3.0]])
    reg = TorchLinearRegressor(bounds=(-0.5, 3)).fit(X, targets)
    expected = [truth(X, one, [-0.5] * 3, [3] * 3) for one in targets.T]
    np.testing.assert_allclose(reg.coef_, expected, rtol=1e-12, atol=1e-14)


def test_features_with_a_ridge_stay():
    X, y = ISSUE
    reg = TorchLinearRegressor(positive=True, alpha=1.0, l1_ratio=0.0, penalty_factor=[0, 0, 1]).fit(X, y)
    assert reg.coef_[2] == pytest.approx(0, abs=1e-14)
    assert reg.coef_[0] == pytest.approx(0.1875)


@pytest.mark.parametrize("unit", [1e-100, 1e-9, 1e9, 1e100])
def test_columns_of_any_units(unit):
    """The column whose coefficients can be smaller takes nearly all."""
    X, y = ISSUE
    X = X * [1, 1, unit]
    reg = TorchLinearRegressor(positive=True).fit(X, y)
    shares = np.array([1.0, 0, unit]) / (1 + unit**2)  # of 0.1875: the shortest with a + unit * b fixed
    np.testing.assert_allclose(reg.coef_, 0.1875 * shares, rtol=1e-13)


def test_partial_fit_takes_the_shortest():
    X, y = ISSUE
    reg = TorchLinearRegressor(positive=True)
    for part in (slice(0, 2), slice(2, 5)):
        reg.partial_fit(X[part], y[part])
    np.testing.assert_allclose(reg.coef_, [0.09375, 0, 0.09375], rtol=1e-13)


def test_path_and_cross_validation_take_the_shortest():
    X, y = ISSUE
    path = regularization_path(X, y, alphas=[0.1, 0.0], positive=True, l1_ratio=0.5)
    np.testing.assert_allclose(path.coefs[1], [0.09375, 0, 0.09375], rtol=1e-13)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((30, 3))[:, [0, 1, 2, 0]]
    X[:15, 3] *= 2  # in the last folds' training rows another dependence than in the first's
    X[10:, 3] = X[10:, 0]
    y = X @ [1.0, 2.0, 0.0, 1.0] + 0.1 * rng.standard_normal(30)
    folds = [(np.arange(10, 30), np.arange(10)), (np.arange(20), np.arange(20, 30))]
    search = TorchLinearRegressorCV(alphas=[1.0, 0.0], cv=folds, positive=True).fit(X, y)
    for k, (train, test) in enumerate(folds):
        alone = TorchLinearRegressor(positive=True).fit(X[train], y[train])
        scores = [
            search.cv_results_[f"split{k}_test_score"][i]
            for i, p in enumerate(search.cv_results_["params"])
            if p["alpha"] == 0
        ]
        assert scores == pytest.approx([alone.score(X[test], y[test])] * len(scores), rel=1e-10)


# Columns that are ill-conditioned, but do not depend on each other.

SMALL = np.array([[0.0, 1], [1, 0], [2, 2], [3, 1], [0, 2], [1, 1], [2, 0], [3, 3]])
TARGET = SMALL @ [1.0, -2.0]


def shifted(offset):
    X = SMALL.copy()
    X[:4] += offset
    return X


@pytest.mark.parametrize("bounds", [(-9, 9), (-1, 9), (-9, 0.5)])
@pytest.mark.parametrize("offset", [1e5, 1e7, 1e8, 1e9])
def test_bounds_of_ill_conditioned_columns(offset, bounds):
    X = shifted(offset)
    reg = TorchLinearRegressor(bounds=bounds).fit(X, TARGET)
    expected = truth(X, TARGET, [bounds[0]] * 2, [bounds[1]] * 2)
    np.testing.assert_allclose(reg.coef_, expected, rtol=1e-12)
    assert reg.status_.kind is Status.OPTIMAL
    assert reg.status_.optimality < 1e-12
    if bounds == (-9, 9):
        assert reg.score(X, TARGET) == pytest.approx(0.841346, abs=1e-5)


@pytest.mark.parametrize("loss", ["huber", "log_cosh", "squared_epsilon_insensitive"])
@pytest.mark.parametrize("bounds", [(-9, 9), (-1, 9)])
@pytest.mark.parametrize("offset", [1e5, 1e7, 1e8, 1e9])
def test_bounds_of_ill_conditioned_columns_for_smooth_losses(offset, bounds, loss):
    """Against well-conditioned coordinates: ``c x1 + d x2 = c (x1 - x2) + (c + d) x2``."""
    X = shifted(offset)
    away = np.column_stack([X[:, 0] - X[:, 1], X[:, 1]])
    y, held = TARGET, bounds == (-1, 9)
    if held:  # the second coefficient at its bound
        away, y = X[:, :1], TARGET + X[:, 1]
    plain = TorchLinearRegressor(loss=loss).fit(away, y)
    expected = [plain.coef_[0], -1.0] if held else [plain.coef_[0], plain.coef_[1] - plain.coef_[0]]
    reg = TorchLinearRegressor(loss=loss, bounds=bounds).fit(X, TARGET)
    np.testing.assert_allclose(reg.coef_, expected, rtol=1e-6)
    assert reg.status_.kind is Status.OPTIMAL
    if held:
        assert reg.coef_[1] == -1


@pytest.mark.parametrize("loss", ["squared_error", "huber", "log_cosh"])
@pytest.mark.parametrize("offset", [1e3, 1e6, 1e8])
def test_a_tie_among_ill_conditioned_columns(offset, loss):
    """What decides among optima leaves what the rows do determine."""
    X = shifted(offset)
    alone = TorchLinearRegressor(loss=loss).fit(X, TARGET)
    reg = TorchLinearRegressor(loss=loss, bounds=(-9, 9)).fit(np.column_stack([X, X[:, 0]]), TARGET)
    expected = [alone.coef_[0] / 2, alone.coef_[1], alone.coef_[0] / 2]
    np.testing.assert_allclose(reg.coef_, expected, rtol=1e-6)
    assert reg.status_.kind is Status.MINIMUM_NORM


@pytest.mark.parametrize("offset", [1e5, 1e8])
def test_a_tie_at_bounds_of_ill_conditioned_columns(offset):
    X = np.column_stack([shifted(offset), shifted(offset)[:, 0]])
    lower, upper = [-9, -1, -9], [9, 9, 0.25]
    reg = TorchLinearRegressor(bounds=(lower, upper)).fit(X, TARGET)
    np.testing.assert_allclose(reg.coef_, truth(X, TARGET, lower, upper), rtol=1e-9)
    assert reg.coef_[1:].tolist() == [-1, 0.25]


@pytest.mark.every(3)
@pytest.mark.parametrize("seed", range(30))
def test_some_bounds_of_ill_conditioned_columns(seed):
    """Also with a column that depends on another, and several bounds that hold nearly parallel columns."""
    rng = np.random.default_rng(seed)
    n_features = rng.integers(2, 4)
    X = rng.integers(-3, 4, (rng.integers(n_features + 3, 9), n_features)).astype(float)
    offset = 10.0 ** rng.integers(4, 10)
    X[: len(X) // 2] += offset
    if seed % 2:
        X = np.column_stack([X, X[:, 0] * rng.choice([1, 2, -1])])
    y = rng.integers(-4, 5, len(X)).astype(float)
    lower = np.where(rng.random(X.shape[1]) < 0.6, rng.integers(-4, 2, X.shape[1]) / 4, -np.inf)
    upper = np.maximum(lower, -1) + rng.integers(0, 5, X.shape[1]) / 4
    upper = np.where(rng.random(X.shape[1]) < 0.5, upper, np.inf)
    reg = TorchLinearRegressor(bounds=(lower, upper)).fit(X, y)
    expected = truth(X, y, lower, upper)
    close = 1e-11 * max(1.0, offset / 1e6) * np.abs(expected).max()
    np.testing.assert_allclose(reg.coef_, expected, rtol=0, atol=close)


def dependent_of(X, moments=False, weight=None):
    problem = Problem(as_row_blocks(X, np.arange(len(X)) * 1.0, weight), ridge(0.0, X.shape[1]))
    return null_space(problem, np.arange(X.shape[1]), problem.exact_moments if moments else None)


@pytest.mark.parametrize("moments", [False, True])
class TestNullSpace:
    @pytest.mark.parametrize("offset", [1e7, 1e9, 1e12])
    def test_large_offsets_are_no_dependence(self, offset, moments):
        assert len(dependent_of(shifted(offset), moments).dependent) == 0

    @pytest.mark.parametrize(("degree", "rank"), [(5, 5), (6, 6), (7, 6), (8, 6)])
    def test_powers_of_years_up_to_the_rounding_of_the_data(self, degree, rank, moments):
        years = np.linspace(1950, 2020, 71)[:, None]
        assert degree - len(dependent_of(years ** np.arange(1, degree + 1), moments).dependent) == rank

    @pytest.mark.parametrize(
        ("noise", "n_dependent"), [(1e-6, 0), (1e-9, 0), (1e-12, 0), (1e-14, 0), (1e-15, 1)]
    )
    def test_columns_that_are_nearly_alike(self, noise, n_dependent, moments):
        X = np.random.default_rng(0).standard_normal((50, 4))
        X[:, 3] = X[:, 0] + noise * X[:, 3]
        if moments and noise == 1e-14:
            return  # 100 bits of the moments are 50 of the columns
        assert len(dependent_of(X, moments).dependent) == n_dependent

    def test_multipliers(self, moments):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((50, 3))
        X = np.column_stack([X, 3 * X[:, 0], X[:, 1] + X[:, 2], 1e100 * X[:, 1]])
        null = dependent_of(X, moments, rng.random(50))
        assert len(null.dependent) == 3
        assert np.abs(null.transfer).max() <= 2
        left = X[:, null.dependent] - X[:, null.others] @ null.transfer
        np.testing.assert_allclose(left / np.abs(X[:, null.dependent]).max(0), 0, atol=1e-15)


def exact_shortest(equations, right, lower, upper):
    """From all faces, as in `truth`."""
    best = None
    for sides in itertools.product((None, 0, 1), repeat=len(lower)):
        coef = np.array([0.0 if side is None else (lower, upper)[side][j] for j, side in enumerate(sides)])
        free = np.array([side is None for side in sides])
        if not np.isfinite(coef).all():
            continue
        if free.any():
            coef[free] = np.linalg.lstsq(equations[:, free], right - equations @ coef, rcond=1e-11)[0]
        inside = (coef >= lower - 1e-9).all() and (coef <= upper + 1e-9).all()
        if (
            inside
            and np.abs(equations @ coef - right).max() < 1e-9
            and (best is None or coef @ coef < best @ best - 1e-12)
        ):
            best = coef
    return best


@pytest.mark.parametrize("seed", range(40))
def test_shortest_within(seed):
    rng = np.random.default_rng(seed)
    n_features = rng.integers(2, 6)
    equations = rng.integers(-2, 3, (rng.integers(1, n_features), n_features)).astype(float)
    lower = np.where(rng.random(n_features) < 0.7, rng.integers(-2, 1, n_features), -np.inf)
    upper = np.where(rng.random(n_features) < 0.4, rng.integers(0, 3, n_features), np.inf)
    right = equations @ np.clip(rng.integers(-3, 4, n_features), lower, upper)
    found = shortest_within(equations, np.abs(equations), right, lower, upper)
    np.testing.assert_allclose(found, exact_shortest(equations, right, lower, upper), rtol=1e-11, atol=1e-12)


def test_shortest_within_of_one_point():
    """Equations that leave a single vector, at bounds: its zeros are exact."""
    equations = np.array([[1.0, 1, 1], [1, 2, 3]])
    found = shortest_within(equations, equations, np.array([1.0, 3.0]), np.zeros(3), np.full(3, np.inf))
    np.testing.assert_array_equal(found, [0, 0, 1])


@pytest.mark.parametrize("loss", ["squared_error", "huber"])
def test_a_constant_column_among_ill_conditioned_ones(loss):
    X = shifted(1e8)
    reg = TorchLinearRegressor(loss=loss, bounds=([-9, 0.5, -1], 9))
    with_constant = reg.fit(np.column_stack([X[:, 0], np.full(8, 3.0), X[:, 1]]), TARGET)
    alone = TorchLinearRegressor(loss=loss, bounds=([-9, -1], 9)).fit(X, TARGET)
    assert with_constant.coef_[1] == 0.5
    np.testing.assert_allclose(with_constant.coef_[[0, 2]], alone.coef_, rtol=1e-10)
    np.testing.assert_allclose(with_constant.intercept_, alone.intercept_ - 1.5, rtol=1e-6)


def test_a_robust_start_where_a_bounded_column_depends_on_others():
    """Where residuals begin so far off that the loss has no curvature, the least absolute error leads on."""
    X = np.array([[0.0, 1, -1], [3, -2, -2], [-1, 0, 2], [-1, -1, 0], [2, 1, -3], [2, -1, 3]])
    X[:3] += 1e7
    y = np.array([-4.8, -6.0, 5.9, -7.4, -0.6, 3.2])
    lower, upper = np.array([-0.75, -0.25, -0.25, -0.5]), [np.inf, 0.25, np.inf, np.inf]
    twice = np.column_stack([X, X[:, 0]])
    reg = TorchLinearRegressor(loss="log_cosh", bounds=(lower, upper)).fit(twice, y)
    once = TorchLinearRegressor(loss="log_cosh", bounds=(lower[:3] - [0.5, 0, 0], upper[:3])).fit(X, y)
    np.testing.assert_allclose(reg.predict(twice), once.predict(X), atol=1e-5)
    assert np.abs(reg.predict(twice) - y).max() < 10
