"""Bounds of smooth fits hold: against optima in rational arithmetic, which start from the fit."""

from fractions import Fraction

import numpy as np
import pytest
from scipy.optimize import linprog
from sklearn.exceptions import ConvergenceWarning

from benchmarks.guards import make_trial
from torchlinreg import TorchLinearRegressor, losses


class ExactHuber:
    """Huber's loss of scale 1 with an intercept, an l1 penalty and equal weights, in rational arithmetic."""

    def __init__(self, X, y, alpha=0.0):
        self.rows = [[Fraction(x) for x in row] for row in X.tolist()]
        self.y = [Fraction(value) for value in y.tolist()]
        self.alpha, self.limit = Fraction(alpha), Fraction(losses.Huber().epsilon)

    def residual(self, coef, intercept):
        return [
            intercept + sum(c * x for c, x in zip(coef, row, strict=True)) - y
            for row, y in zip(self.rows, self.y, strict=True)
        ]

    def objective(self, coef, intercept):
        size = [abs(r) for r in self.residual(coef, intercept)]
        each = [r * r / 2 if r <= self.limit else self.limit * (r - self.limit / 2) for r in size]
        return sum(each) / len(each) + self.alpha * sum(map(abs, coef))

    def minimum(self, coef, intercept, features=None):
        """By Newton's method on the pieces, from a point near the minimum; of all features or some."""
        coef, n = list(coef), len(self.y)
        of_all = features is None
        features = [j for j, c in enumerate(coef) if c] if of_all else features
        for _ in range(30):
            residual = self.residual(coef, intercept)
            slope = [max(-self.limit, min(self.limit, r)) for r in residual]
            inside = [abs(r) <= self.limit for r in residual]
            columns = [[Fraction(1)] * n] + [[row[j] for row in self.rows] for j in features]
            gradient = [sum(s * x for s, x in zip(slope, column, strict=True)) / n for column in columns]
            for k, j in enumerate(features):
                gradient[1 + k] += self.alpha * (1 if coef[j] > 0 else -1)
            if not any(gradient):
                break
            matrix = [
                [sum(a * b for a, b, i in zip(one, other, inside, strict=True) if i) / n for other in columns]
                for one in columns
            ]
            step = solved(matrix, gradient)
            intercept -= step[0]
            for k, j in enumerate(features):
                coef[j] -= step[1 + k]
        assert not any(
            gradient
        )  # the minimum, if no coefficient has changed its sign and none wants to enter
        if not of_all:
            return self.objective(coef, intercept)
        others = [j for j in range(len(coef)) if j not in features]
        pulls = [abs(sum(s * row[j] for s, row in zip(slope, self.rows, strict=True)) / n) for j in others]
        assert all(pull <= self.alpha for pull in pulls)
        assert self.alpha == 0 or not any(coef[j] == 0 for j in features)
        return self.objective(coef, intercept)


def solved(matrix, right):
    """Gauss' elimination."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for k in range(len(rows)):
        pivot = next(i for i in range(k, len(rows)) if rows[i][k])
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [value / rows[k][k] for value in rows[k]]
        for i in range(len(rows)):
            if i != k and rows[i][k]:
                factor = rows[i][k]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[k], strict=True)]
    return [row[-1] for row in rows]


def relative_gap(exact, reg, features=None):
    """How far a fit is above the minimum, relative to the objective of the best constant."""
    coef, intercept = [Fraction(c) for c in reg.coef_.tolist()], Fraction(float(reg.intercept_))
    y = np.array([float(value) for value in exact.y])
    of_constant = TorchLinearRegressor(loss=reg.loss).fit(np.zeros((len(y), 1)), y)
    null = exact.objective([Fraction(0)] * len(coef), Fraction(float(of_constant.intercept_)))
    gap = exact.objective(coef, intercept) - exact.minimum(coef, intercept, features)
    return float(gap / null)


@pytest.mark.parametrize("shift", [1e6, 1e8, 1e9])
@pytest.mark.parametrize("alpha", [1e-7, 1e-3])
def test_l1_of_columns_that_are_far_off_in_half_of_the_rows(shift, alpha):
    """Products of such columns tell nothing: objectives were a tenth of the constant's too high."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((14, 3))
    y = X @ [1.0, -2.0, 0.5] + rng.standard_normal(14)
    X += np.outer(np.arange(14) % 2, shift * np.array([1.0, 2.0, 3.0]))
    reg = TorchLinearRegressor(loss=losses.Huber(scale=1.0), alpha=alpha, l1_ratio=1.0).fit(X, y)
    assert reg.status_.name == "OPTIMAL"
    assert relative_gap(ExactHuber(X, y, alpha), reg) <= reg.status_.optimality <= 1e-9


@pytest.mark.parametrize("offset", [2.0**20, 2.0**33, 2.0**40])
def test_rounding_of_the_intercept_counts(offset):
    rng = np.random.default_rng(1)
    X, y = rng.standard_normal((12, 1)), rng.standard_normal(12) + offset
    reg = TorchLinearRegressor(loss=losses.Huber(scale=1.0)).fit(X, y)
    gap = relative_gap(ExactHuber(X, y), reg)
    assert gap <= reg.status_.optimality <= 1e3 * gap + 1e-25


def test_powers_of_years_are_nearly_dependent_with_other_losses_too():
    x = np.linspace(1900, 2000, 20)
    X = x[:, None] ** np.arange(1, 15)
    y = np.random.default_rng(0).integers(-4, 5, 20).astype(float)
    with pytest.warns(ConvergenceWarning):
        reg = TorchLinearRegressor(loss=losses.Huber(scale=1.0)).fit(X, y)
    assert reg.status_.name == "NEARLY_DEPENDENT"
    assert relative_gap(ExactHuber(X, y), reg, features=[]) <= reg.status_.optimality < 1e-2


def test_a_small_scale_is_told_from_none():
    """Steps to a scale of 0 that end at the least absolute error pass by an optimum of 8e-6."""
    trial = make_trial(911479)
    share = trial.weight / trial.weight.sum()
    reg = TorchLinearRegressor(**trial.parameters).fit(trial.X, trial.targets, trial.weight)
    assert reg.status_.name == "OPTIMAL"
    slope = (trial.X @ reg.coef_ + reg.intercept_ - trial.targets) / reg.scale_
    slope = slope.clip(-losses.Huber().epsilon, losses.Huber().epsilon)
    assert share @ slope**2 == pytest.approx(1.0, rel=1e-6)
    assert share @ slope == pytest.approx(0.0, abs=1e-8)
    pulls = (share * slope) @ trial.X + trial.penalty.l1 * np.sign(reg.coef_)
    np.testing.assert_allclose(pulls, 0.0, atol=1e-7)


@pytest.mark.parametrize("loss", ["log_cosh", losses.Huber(scale=1.0)], ids=["log_cosh", "huber"])
def test_targets_far_beyond_the_units_of_a_loss(loss):
    """All rows are where it is a line, so that the least absolute error is the optimum."""
    t = np.linspace(-1, 1, 17)
    y = np.random.default_rng(0).standard_normal(17) * 1e100
    years = 1950 + 50 * t
    X = years[:, None] ** np.arange(1, 4)
    reg = TorchLinearRegressor(loss=loss).fit(X, y)
    design = t[:, None] ** np.arange(4)
    bounds = [(None, None)] * 4 + [(0, None)] * 34
    split = np.hstack([design, np.eye(17), -np.eye(17)])
    best = linprog([0] * 4 + [1] * 34, A_eq=split, b_eq=y / 1e100, bounds=bounds).fun
    assert np.abs(reg.predict(X) - y).sum() / 1e100 <= best * (1 + 1e-6)
    assert reg.status_.optimality < 1e-6


@pytest.mark.parametrize("constant", [0.1, 1e9, -3.0])
def test_a_constant_target_is_met_whatever_its_size(constant):
    X = np.random.default_rng(0).standard_normal((12, 2))
    reg = TorchLinearRegressor(loss="huber", alpha=1e-7, l1_ratio=1.0).fit(X, np.full(12, constant))
    assert reg.status_.name == "OPTIMAL"
    assert not reg.coef_.any()
    assert reg.intercept_ == constant
