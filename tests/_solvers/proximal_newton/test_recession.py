"""Objectives without a finite optimum, which linear programs over the directions of recession tell."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from sklearn.exceptions import ConvergenceWarning

from torchlinreg import TorchLinearRegressor


def logistic(p, t):
    return torch.nn.functional.softplus(p) - t * p


def exponential(p, t):
    return torch.exp(-(2 * t - 1) * p)


def poisson(p, t):
    return torch.exp(p) - t * p


def least_slope(X, y, loss):
    """Of the sum of the losses far out, the least of all directions; and the most that rows fall at slope 0.

    The slopes of each row far out are known: of the logistic loss 0 and 1 less y, of the exponential loss
    (at 0) 0 and infinity, of the Poisson loss -y and infinity.
    """
    A = np.column_stack([np.ones(len(y)), X])
    if loss is poisson:  # A d <= 0, slope -y
        slopes, sign = -y, -np.ones(len(y))
    else:  # (2 y - 1) A d >= 0, slope 0
        slopes, sign = np.zeros(len(y)), 2 * y - 1
    box = [(-1, 1)] * A.shape[1]
    least = linprog(slopes @ A, A_ub=-sign[:, None] * A, b_ub=np.zeros(len(y)), bounds=box)
    level = {"A_eq": (slopes @ A)[None], "b_eq": [0.0]} if slopes.any() else {}
    most = linprog(-sign @ A, A_ub=-sign[:, None] * A, b_ub=np.zeros(len(y)), bounds=box, **level)
    return least.fun, -most.fun


def rows(loss, seed):
    rng = np.random.default_rng(seed)
    X = rng.integers(-2, 3, (10, 2)).astype(float)
    X[:, 1] = rng.random(10) < 0.3  # a group
    mean = np.exp(X @ [0.5, -1.0] - 0.5)
    return X, rng.poisson(mean).astype(float) if loss is poisson else (
        rng.random(10) < mean / (1 + mean)
    ) * 1.0


# The status is compared, of which the warning is another form; see the tests below.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("loss", [logistic, exponential, poisson])
def test_finite_optimum_is_missed_where_a_linear_program_finds_a_direction(loss):
    told = {True: 0, False: 0}
    for seed in range(40):
        X, y = rows(loss, seed)
        least, most = least_slope(X, y, loss)
        assert least > -1e-9
        status = TorchLinearRegressor(loss=loss).fit(X, y).status_
        assert (status.name == "NO_FINITE_OPTIMUM") == (most > 1e-9), (seed, str(status))
        assert status.optimality < 1e-8
        told[most > 1e-9] += 1
    assert min(told.values()) >= 5


def counts(kind):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 4))
    X[:, 3] = rng.random(200) < 0.2
    y = rng.poisson(np.exp(0.3 * X[:, 0])).astype(float)
    match kind:
        case "group of 0":
            y[X[:, 3] > 0] = 0.0
        case "all 0":
            y[:] = 0.0
        case "group below 0":
            y[X[:, 3] > 0] = -1.0
        case "total below 0":
            y -= 5.0
    return X, y


@pytest.mark.parametrize("solver", ["auto", "adam", "lbfgs"])
def test_counts_of_0_have_no_finite_optimum(solver):
    X, y = counts("group of 0")
    reg = TorchLinearRegressor(loss=poisson, solver=solver, max_iter=None if solver == "auto" else 30)
    with pytest.warns(ConvergenceWarning, match=r"no finite optimum.*grow without bound.*alpha > 0"):
        reg.fit(X, y)
    assert reg.status_.name == "NO_FINITE_OPTIMUM"
    assert reg.status_.distance is None
    if solver == "auto":  # the rest is the optimum of the other rows
        others = TorchLinearRegressor(loss=poisson).fit(X[X[:, 3] == 0, :3], y[X[:, 3] == 0])
        np.testing.assert_allclose(reg.coef_[:3], others.coef_, rtol=1e-8)
        assert reg.coef_[3] < -20


def test_all_counts_0():
    with pytest.warns(ConvergenceWarning, match="no finite optimum"):
        reg = TorchLinearRegressor(loss=poisson).fit(*counts("all 0"))
    assert reg.intercept_ < -20


@pytest.mark.parametrize(
    "penalty", [{"alpha": 0.01}, {"alpha": 0.01, "l1_ratio": 1.0}, {"positive": True}], ids=repr
)
def test_penalties_and_bounds_make_the_optimum_finite(penalty):
    assert TorchLinearRegressor(loss=poisson, **penalty).fit(*counts("group of 0")).status_.name == "OPTIMAL"


def test_bounds_on_one_side_leave_the_other():
    X, y = counts("group of 0")
    reg = TorchLinearRegressor(loss=poisson, bounds=([-1, -1, -1, -np.inf], 5))
    with pytest.warns(ConvergenceWarning, match="no finite optimum"):
        reg.fit(X, y)


def linear(p, t):
    return p - t


def tilted(p, t):
    return (p - t).abs() - 2 * (p - t)


@pytest.mark.parametrize("solver", ["auto", "adam"])
@pytest.mark.parametrize(
    ("loss", "kind"),
    [(poisson, "group below 0"), (poisson, "total below 0"), (linear, "ordinary"), (tilted, "ordinary")],
)
def test_objectives_without_infimum_are_refused(loss, kind, solver):
    X, y = counts(kind)
    with pytest.raises(ValueError, match=r"unbounded below.*negative.*alpha > 0"):
        TorchLinearRegressor(loss=loss, solver=solver).fit(X, y)


def hinge(p, t):
    return torch.relu(1 - (2 * t - 1) * p)


@pytest.mark.parametrize("loss", [hinge, lambda p, t: hinge(p, t) ** 2])
def test_an_infimum_that_is_attained_is_an_optimum(loss):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 3))
    y = (X @ [1.0, -2.0, 0.5] > 0) * 1.0
    reg = TorchLinearRegressor(loss=loss).fit(X, y)
    assert reg.status_.name == "OPTIMAL"
    assert float(loss(torch.from_numpy(reg.predict(X)), torch.from_numpy(y)).mean()) < 1e-12
