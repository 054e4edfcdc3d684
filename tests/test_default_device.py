"""A default device that the user has set for torch changes nothing: tensors are made where the rows are."""

import ast
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from torch.utils._device import _device_constructors

import torchlinreg
from torchlinreg import TorchLinearRegressor, TorchLinearRegressorCV, regularization_path
from torchlinreg._solvers import SOLVERS
from torchlinreg._training.optimizers import OPTIMIZERS
from torchlinreg.losses import LOSSES

PACKAGE = Path(torchlinreg.__file__).parent
FACTORIES = {factory.__name__ for factory in _device_constructors()}

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def factories_without_device(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
        keywords = {keyword.arg for keyword in node.keywords}
        if of_torch and node.func.attr in FACTORIES and not keywords & {"device", "out"}:
            yield f"{path.relative_to(PACKAGE)}:{node.lineno} torch.{node.func.attr}"


def test_factories_name_their_device():
    assert {"tensor", "zeros", "arange", "randperm"} <= FACTORIES
    assert [found for path in PACKAGE.rglob("*.py") for found in factories_without_device(path)] == []


@pytest.fixture
def on_meta():
    """Run with a default device whose tensors have no values, and without."""

    def both(call):
        before = call()
        torch.set_default_device("meta")
        try:
            return before, call()
        finally:
            torch.set_default_device(None)

    return both


def rows(n_samples=40, n_features=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, n_features))
    return X, X @ np.arange(1.0, n_features + 1) + rng.standard_t(3, n_samples)


def wide():
    return rows(10, 20)


def dependent():
    X, y = rows()
    return X[:, [0, 1, 2, 0]], y


def two_targets():
    X, y = rows()
    return X, np.column_stack([y, 2 * y])


def single():
    X, y = rows()
    return X.astype(np.float32), y


def many():
    return rows(600, 40)


def thin_csr():
    return sparse.random(300, 40, 0.02, format="csr", random_state=0), np.arange(300.0)


def power(prediction, target):
    return (prediction - target).abs() ** 1.5 + (prediction - target) ** 2


def assert_same(fits):
    found, expected = ((reg.coef_, reg.intercept_) for reg in fits)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


DATA = [rows, wide, dependent, two_targets, single, many, thin_csr]
PENALTIES = [{}, {"alpha": 0.1, "l1_ratio": 0.5}, {"positive": True}]


@pytest.mark.every(11)
@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("loss", [*sorted(LOSSES), power])
def test_losses(on_meta, loss, data, penalty):
    X, y = data()
    assert_same(on_meta(lambda: TorchLinearRegressor(loss=loss, **penalty).fit(X, y)))


@pytest.mark.parametrize("solver", ["cholesky", "exact", "dual"])
def test_solvers_of_least_squares(on_meta, solver):
    assert {"cholesky", "exact", "dual", "active_set", "newton", "interior_point"} == set(SOLVERS)
    X, y = rows()
    reg = TorchLinearRegressor(solver=solver)
    assert_same(on_meta(lambda: reg.fit(X, y)))
    torch.testing.assert_close(*on_meta(lambda: reg.predict(torch.from_numpy(X))), rtol=0, atol=0)


@pytest.mark.every(11)
@pytest.mark.parametrize("batch_size", [None, 7, 39, 20])
@pytest.mark.parametrize("learning_rate", ["auto", 1e-3])
@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
@pytest.mark.parametrize("loss", ["squared_error", "huber", power])
@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
def test_training(on_meta, solver, loss, penalty, learning_rate, batch_size):
    X, y = rows()
    reg = TorchLinearRegressor(
        solver=solver,
        loss=loss,
        learning_rate=learning_rate,
        batch_size=batch_size,
        max_iter=3,
        random_state=0,
        **penalty,
    )
    assert_same(on_meta(lambda: reg.fit(X, y)))


@pytest.mark.every(3)
@pytest.mark.parametrize("options", [{}, {"early_stopping": True, "lr_scheduler": "reducelronplateau"}])
@pytest.mark.parametrize("solver", sorted(OPTIMIZERS))
def test_optimizers(on_meta, solver, options):
    X, y = rows()
    reg = TorchLinearRegressor(solver=solver, max_iter=3, random_state=0, **options)
    assert_same(on_meta(lambda: reg.fit(X, y)))


def test_optimizers_of_the_user(on_meta):
    X, y = rows()
    make = functools.partial(torch.optim.Adam, amsgrad=True)
    assert_same(on_meta(lambda: TorchLinearRegressor(solver=make, max_iter=3).fit(X, y)))


@pytest.mark.parametrize("learning_rate", ["auto", 1e-3])
@pytest.mark.parametrize("solver", ["adam", "sgd", "auto"])
def test_partial_fit(on_meta, solver, learning_rate):
    X, y = rows()
    rate = {} if solver == "auto" else {"learning_rate": learning_rate}

    def fit():
        reg = TorchLinearRegressor(solver=solver, random_state=0, **rate)
        return reg.partial_fit(X, y).partial_fit(X, y)

    assert_same(on_meta(fit))


@pytest.mark.parametrize(
    "options", [{}, {"loss": "log_cosh", "alphas": 3}, {"l1_ratio": 1.0, "alphas": 5}], ids=str
)
def test_cross_validation(on_meta, options):
    X, y = rows()
    assert_same(on_meta(lambda: TorchLinearRegressorCV(**options).fit(X, y)))


@pytest.mark.parametrize("loss", ["squared_error", "absolute_error", "log_cosh"])
def test_paths(on_meta, loss):
    X, y = rows()
    found, expected = on_meta(lambda: regularization_path(X, y, loss=loss, l1_ratio=1.0, alphas=5))
    np.testing.assert_array_equal(found.coefs, expected.coefs)
