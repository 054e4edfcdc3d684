"""Users' losses with kinks: optimality by a bounded least squares, linear programs and fractions."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.optimize import linprog, lsq_linear
from sklearn.exceptions import ConvergenceWarning

from torchlinreg import TorchLinearRegressor, losses
from torchlinreg._solvers.proximal_newton.certificate import Guess, certify
from torchlinreg._solvers.proximal_newton.convex import Convex
from torchlinreg._solvers.proximal_newton.kinks import Kinks, find_kinks
from torchlinreg._solvers.proximal_newton.points import RowLosses


def pinball(p, t):
    return torch.maximum(0.9 * (t - p), 0.1 * (p - t))


def stairs(p, t):
    return sum(torch.relu(p - t - k) for k in (-1.0, 0.0, 0.5, 2.0)) - 2 * (p - t)


# Of each loss its kinks, as residuals p - t, and the derivative off the kinks.
LOSSES = {
    "pinball + square": (
        lambda p, t: pinball(p, t) + 0.01 * (p - t) ** 2,
        [0.0],
        lambda r: np.where(r < 0, -0.9, 0.1) + 0.02 * r,
    ),
    "absolute + square": (
        lambda p, t: (p - t).abs() + 0.1 * (p - t) ** 2,
        [0.0],
        lambda r: np.sign(r) + 0.2 * r,
    ),
    "relu + square": (
        lambda p, t: torch.relu(p - t) + 0.5 * (p - t) ** 2,
        [0.0],
        lambda r: (r > 0) + r,
    ),
    "absolute + log cosh": (
        lambda p, t: (p - t).abs() + torch.log(torch.cosh(p - t)),
        [0.0],
        lambda r: np.sign(r) + np.tanh(r),
    ),
    "tube + softplus": (
        lambda p, t: torch.relu((p - t).abs() - 0.5) + torch.nn.functional.softplus(p - t),
        [-0.5, 0.5],
        lambda r: np.sign(r) * (np.abs(r) > 0.5) + 1 / (1 + np.exp(-r)),
    ),
    "root of the square": (
        lambda p, t: ((p - t) ** 2).sqrt() + 0.1 * (p - t) ** 2,
        [0.0],
        lambda r: np.sign(r) + 0.2 * r,
    ),
    "stairs": (
        stairs,
        [-1.0, 0.0, 0.5, 2.0],
        lambda r: sum(1.0 * (r > k) for k in (-1.0, 0.0, 0.5, 2.0)) - 2,
    ),
    "pinball": (pinball, [0.0], lambda r: np.where(r < 0, -0.9, 0.1)),
}
PENALTIES = [
    {},
    {"alpha": 0.05},
    {"alpha": 0.05, "l1_ratio": 0.5},
    {"alpha": 0.1, "l1_ratio": 1.0},
    {"positive": True},
    {"alpha": 0.05, "l1_ratio": 0.3, "bounds": (-0.4, 0.4)},
    {"fit_intercept": False},
]
KINDS = ["normal", "tied", "few rows", "duplicated", "offset", "units"]


def data(kind, rng):
    n_samples = 5 if kind == "few rows" else 60
    X = rng.standard_normal((n_samples, 3))
    y = X @ [1.0, -2.0, 0.5] + 1 + rng.standard_t(3, n_samples)
    match kind:
        case "tied":
            X, y = np.rint(X), np.rint(y)
        case "duplicated":
            X[:, 1] = X[:, 0]
        case "offset":
            X, y = X + 100, y + 100
        case "units":
            X = X * [1e-6, 1.0, 1e6]
    return X, y


def violation(reg, X, y, weight, kinks, slope):
    """How far slopes of rows, each between those of its sides, are from adding up to 0 with the penalty."""
    share = weight / weight.sum()
    residual = X @ reg.coef_ + reg.intercept_ - y
    size = 1e-9 * (np.abs(y) + np.abs(X) @ np.abs(reg.coef_) + abs(reg.intercept_) + 1)
    at = np.abs(residual[:, None] - kinks).min(1) <= size
    low, high = (slope(residual + side * 2 * size) for side in (-1, 1))
    low, high = np.where(at, low, slope(residual)), np.where(at, high, slope(residual))
    center = share @ X if reg.fit_intercept else 0.0
    columns = X - center
    unit = np.sqrt(share @ columns**2) + 1e-300
    columns = np.column_stack([np.full(len(y), float(reg.fit_intercept)), columns / unit])
    alpha = np.r_[0.0, np.full(X.shape[1], reg.alpha)]
    coef, unit = np.r_[reg.intercept_, reg.coef_], np.r_[1.0, unit]
    l1 = alpha * reg.l1_ratio
    lower, upper = (-np.inf, np.inf) if reg.bounds is None else reg.bounds
    lower = 0.0 if reg.positive else lower
    assert (coef[1:] >= lower).all()
    assert (coef[1:] <= upper).all()
    least, most = (side * np.where(side * coef < 0, -l1, l1) / unit for side in (-1, 1))
    least[1:][coef[1:] == lower] = -1e6
    most[1:][coef[1:] == upper] = 1e6
    free = most > least
    rows = np.column_stack([columns[at].T * share[at], np.eye(len(unit))[:, free]])
    known = columns.T @ (share * np.where(at, 0.0, low)) + np.where(free, 0.0, least)
    known += alpha * (1 - reg.l1_ratio) * coef / unit
    bounds = np.r_[low[at], least[free]], np.r_[high[at], most[free]]
    if not rows.shape[1]:
        return np.abs(known).max()
    return np.abs(rows @ lsq_linear(rows, -known, bounds, method="bvls", tol=1e-15).x + known).max()


@pytest.mark.every(7)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
@pytest.mark.parametrize("name", LOSSES)
def test_conditions_of_optimality(name, penalty, kind):
    check_conditions(name, penalty, kind)


def check_conditions(name, penalty, kind, *seed):
    loss, kinks, slope = LOSSES[name]
    rng = np.random.default_rng([*seed, len(name), len(repr(penalty)), len(kind)])
    X, y = data(kind, rng)
    weight = rng.integers(0, 4, len(y)).astype(float)
    weight[0] = 1.0
    reg = TorchLinearRegressor(loss=loss, **penalty).fit(X, y, sample_weight=weight)
    assert reg.status_.name in ("OPTIMAL", "MINIMUM_NORM")
    assert 0 <= reg.status_.optimality <= 1e-10
    # Gradients are at most the root of twice the curvature times the gap: 1e-12 of the objective.
    assert violation(reg, X, y, weight, np.array(kinks), slope) < 1e-6


def exact_optimum(x, y):
    """Of ``sum |r| + r^2 / 10, r = x b - y``, in fractions: between two kinks, or at one."""
    x, y = [[Fraction(float(v)) for v in values] for values in (x, y)]
    kinks = sorted(b / a for a, b in zip(x, y, strict=True) if a)

    def slope(b, side):
        total = Fraction(0)
        for a, t in zip(x, y, strict=True):
            r = a * b - t
            total += a * ((r > 0) - (r < 0) + r / 5) + abs(a) * side * (r == 0)
        return total

    for low, high in zip([kinks[0] - 10**6, *kinks], [*kinks, kinks[-1] + 10**6], strict=True):
        if slope(low, -1) <= 0 <= slope(low, 1):
            return low
        rise, fall = slope(high, -1), slope(low, 1)
        if fall < 0 < rise:
            return low - fall * (high - low) / (rise - fall)
    raise AssertionError


@pytest.mark.parametrize("scale", [1e-100, 1e-6, 1.0, 1e6])
@pytest.mark.parametrize("seed", range(3))
def test_one_coefficient_is_that_of_fractions(seed, scale):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal(15) * scale, rng.standard_t(2, 15)
    if seed == 0:
        x, y = np.rint(x / scale) * scale, np.rint(y)
    exact = float(exact_optimum(x, y))
    reg = TorchLinearRegressor(loss=LOSSES["absolute + square"][0], fit_intercept=False)
    assert reg.fit(x[:, None], y).coef_[0] == pytest.approx(exact, rel=1e-13, abs=1e-14 / scale)


class TestPiecewiseLinear:
    def test_objective_is_that_of_a_linear_program(self):
        rng = np.random.default_rng(0)
        X, y = data("normal", rng)
        n, k = X.shape
        design = np.column_stack([np.ones(n), X])
        cost = np.r_[np.zeros(k + 1), np.full(n, 0.9), np.full(n, 0.1)] / n
        free = [(None, None)] * (k + 1) + [(0, None)] * (2 * n)
        best = linprog(cost, A_eq=np.hstack([design, np.eye(n), -np.eye(n)]), b_eq=y, bounds=free).fun
        reg = TorchLinearRegressor(loss=pinball).fit(X, y)
        value = pinball(torch.from_numpy(reg.predict(X)), torch.from_numpy(y)).mean()
        assert float(value) == pytest.approx(best, rel=1e-12)

    def test_coefficients_are_those_of_the_named_loss(self):
        X, y = data("normal", np.random.default_rng(1))
        named = TorchLinearRegressor(loss=losses.Quantile(0.9)).fit(X, y)
        own = TorchLinearRegressor(loss=pinball).fit(X, y)
        np.testing.assert_allclose(own.coef_, named.coef_, rtol=1e-12)


@pytest.mark.parametrize("kind", ["float32", "csr", "tensor", "targets"])
def test_kinds_of_data(kind):
    loss = LOSSES["absolute + square"][0]
    X, y = data("normal", np.random.default_rng(2))
    X, y = X.astype(np.float32), y.astype(np.float32)
    given = {"csr": sparse.csr_array(X), "tensor": torch.from_numpy(X)}.get(kind, X)
    reg = TorchLinearRegressor(loss=loss)
    if kind == "targets":
        both = reg.fit(X, np.column_stack([y, -2 * y]))
        first, second = both.coef_
        reg = TorchLinearRegressor(loss=loss).fit(X, -2 * y)
        np.testing.assert_allclose(second, reg.coef_, rtol=1e-6)
        reg.fit(X, y)
        np.testing.assert_allclose(first, reg.coef_, rtol=1e-6)
    else:
        reg.fit(given, y)
    residual = X.astype(float) @ reg.coef_.astype(float) + float(reg.intercept_) - y
    assert np.sort(np.abs(residual))[2] < 1e-5  # rows at their kinks, to the rounding of float32


def test_no_optimum_is_claimed_without_a_certificate():
    X, y = data("normal", np.random.default_rng(3))
    reg = TorchLinearRegressor(loss=LOSSES["pinball + square"][0], max_iter=1)
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        reg.fit(X, y)
    assert reg.status_.name == "ITERATIONS_USED"
    assert reg.status_.optimality > 1e-10


class Parts:
    """A problem of rows, for the parts of the solver."""

    def __init__(self, name, seed):
        from torchlinreg._data.rows import tensor_blocks
        from torchlinreg._solvers.interior_point.program import Rows

        rng = np.random.default_rng(seed)
        X, y = data("normal", rng)
        self.X, self.y, self.loss = np.column_stack([np.ones(len(y)), X]), y, LOSSES[name][0]
        t = torch.from_numpy(y)
        k = self.X.shape[1]
        wide = np.full(k, np.inf)
        self.losses = RowLosses(losses.CallableLoss(self.loss), t, 1.0, 1.0)
        self.convex = Convex(
            Rows(tensor_blocks(torch.from_numpy(self.X), t[:, None])),
            torch.full_like(t, 1 / len(y)),
            self.losses,
            np.zeros(k),
            -wide,
            wide,
            np.zeros((k, k)),
            np.ones(k, dtype=bool),
            self.X.T @ self.X / len(y),
        )


@pytest.mark.parametrize(
    ("name", "penalty", "kind"),
    [
        ("pinball + square", PENALTIES[5], "few rows"),  # columns at bounds that their units round
        ("pinball", PENALTIES[5], "normal"),
        ("root of the square", PENALTIES[4], "tied"),  # no slope by autograd at targets of 0
        ("root of the square", PENALTIES[6], "tied"),
        ("stairs", PENALTIES[4], "tied"),  # predictions of 0 at kinks at 0
        ("pinball", PENALTIES[6], "tied"),
    ],
)
def test_optimality_at_bounds_and_where_targets_are_0(name, penalty, kind):
    check_conditions(name, penalty, kind)


@pytest.mark.parametrize(
    ("name", "penalty", "kind", "seed"),
    [
        ("stairs", PENALTIES[5], "tied", 5),  # constants of equal objective between two kinks
        ("root of the square", PENALTIES[5], "tied", 11),  # rows that start at kinks and stay there
        ("root of the square", PENALTIES[1], "normal", 11),  # corrected interior point steps go in cycles
        ("tube + softplus", PENALTIES[5], "normal", 12),  # Newton steps end 4e-10 above
    ],
)
def test_optimality_of_single_fits(name, penalty, kind, seed):
    check_conditions(name, penalty, kind, seed)


@pytest.mark.parametrize("name", ["pinball + square", "tube + softplus", "absolute + log cosh"])
def test_the_bound_is_never_below_the_excess(name):
    parts = Parts(name, 4)
    reg = TorchLinearRegressor(loss=parts.loss).fit(parts.X[:, 1:], parts.y)
    best = float(parts.loss(torch.from_numpy(reg.predict(parts.X[:, 1:])), parts.losses.y).mean())
    rng = np.random.default_rng(5)
    for size in (1e-6, 1e-3, 0.1, 1.0):
        theta = np.r_[reg.intercept_, reg.coef_] + size * rng.standard_normal(4)
        points = parts.convex.at(theta)
        nowhere = torch.full_like(points.first, torch.nan)
        found = certify(parts.convex, Guess(theta, points.first, points.second.clamp(min=0.1), nowhere))
        assert found.gap >= (found.objective - best) * (1 - 1e-9)


@pytest.mark.parametrize("position", [0.0, 1.0, -3.7, 1e-9, 1e8])
@pytest.mark.parametrize("bend", [0.0, 0.01, 0.1])
def test_kinks_are_found_to_a_few_units_in_the_last_place(position, bend):
    def loss(p, t):
        return 0.5 * (p - position).abs() + bend * (p - t) ** 2

    y = torch.tensor([position + 0.3], dtype=torch.float64)
    rows = RowLosses(losses.CallableLoss(loss), y, 1.0, 1.0)
    low, high = rows.at(y - 5.1), rows.at(y + 7.3)
    found = find_kinks(rows, torch.tensor([0]), low, high)
    assert len(found) == 1
    assert abs(float(found.position) - position) <= 64 * 2.0**-52 * max(abs(position), 1.0)
    # Its sides are at most 64 units in the last place apart, between which the curvature 2 bend counts.
    assert float(found.jump) == pytest.approx(
        1.0, abs=1e-14 + 128 * bend * 2.0**-52 * max(abs(position), 1.0)
    )
    assert len(Kinks.none(y.device)) == 0
