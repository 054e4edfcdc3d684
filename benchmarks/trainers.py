"""A linear neuron as each library trains it: one function per library, all of one signature.

A fit takes `Rows` and a number of epochs and returns the `Solution`. All start at zero and descend the
same objective, half the mean squared residual: a loop on `MSELoss`, which has no 1/2, takes half the
rate of ours for that with SGD; Adam does not see the factor. Float32 copies, which the libraries on
torch are usually given, are made beforehand and cost nobody time.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from sklearn.linear_model import SGDRegressor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.speed import Role
from benchmarks.synthetic import Data, Shape, Solution, make_data
from torchlinreg import TorchLinearRegressor

SEED = 0
# skorch takes 70 ms for a full batch of 10,000 rows: 2000 epochs of that would be minutes.
SKORCH_FULL_BATCH_EPOCHS = 20

Optimizer = Literal["sgd", "adam"]
Batches = Literal["slices", "loader"]


@dataclass(frozen=True, eq=False)
class Rows:
    """The same standardised rows in two types.

    Parameters
    ----------
    double : Data
        float64 arrays, y of shape (n_samples,).
    single : Data
        float32 arrays, y of shape (n_samples, 1), as modules of torch want it.
    """

    double: Data
    single: Data


Fit = Callable[[Rows, int], Solution]


@dataclass(frozen=True)
class Trainer:
    """A way to train a linear neuron.

    Parameters
    ----------
    name : str
        What tables call it.
    call : str
        The call that is made.
    role : {"ours", "variant", "estimator", "routine"}
        As in `benchmarks.speed.Contestant`.
    fit : callable of Rows and a number of epochs, returning Solution
        The fit.
    package : str, default="torch"
        The module that has to be installed.
    most_epochs : int, default=None
        It is timed with no more epochs than this, and the time is scaled.
    """

    name: str
    call: str
    role: Role
    fit: Fit
    package: str = "torch"
    most_epochs: int | None = None

    @property
    def missing(self) -> str | None:
        """Why it cannot take part; None if it can."""
        if importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        return None


class Neuron(torch.nn.Linear):
    """A linear layer with one output that starts at zero."""

    def reset_parameters(self) -> None:
        """Set weights and bias to 0."""
        torch.nn.init.zeros_(self.weight)
        torch.nn.init.zeros_(self.bias)

    def solution(self) -> Solution:
        """Give coefficients and intercept in float64.

        Returns
        -------
        Solution
            Copies.
        """
        coef = self.weight.detach()[0].double().numpy()
        return Solution(coef, float(self.bias.detach()))


def make_rows(shape: Shape) -> Rows:
    """Draw a problem of `make_data` and standardise X and y, which all but ours need.

    Parameters
    ----------
    shape : Shape
        Rows and columns of X.

    Returns
    -------
    Rows
        With mean 0 and standard deviation 1 in every column of X and in y.
    """
    raw = make_data(shape, seed=SEED)
    X = (raw.X - raw.X.mean(axis=0)) / raw.X.std(axis=0)
    y = (raw.y - raw.y.mean()) / raw.y.std()
    return Rows(Data(X, y), Data(X.astype(np.float32), y.astype(np.float32)[:, None]))


def ours(**parameters: Any) -> Fit:  # Any: parameters of all types
    """Make a fit by `TorchLinearRegressor` that runs all its epochs."""

    def fit(rows: Rows, n_epochs: int) -> Solution:
        estimator = TorchLinearRegressor(max_iter=n_epochs, tol=0, random_state=SEED, **parameters)
        return _solution(estimator.fit(rows.double.X, rows.double.y))

    return fit


def sgd_regressor(**parameters: Any) -> Fit:  # Any: parameters of all types
    """Make a fit by `SGDRegressor` that runs all its epochs."""

    def fit(rows: Rows, n_epochs: int) -> Solution:
        estimator = SGDRegressor(max_iter=n_epochs, tol=None, random_state=SEED, **parameters)
        return _solution(estimator.fit(rows.double.X, rows.double.y))

    return fit


def skorch_net(optimizer: Optimizer, lr: float, batch_size: int = -1) -> Fit:
    """Make a fit by skorch's `NeuralNetRegressor`, silent and without a validation split."""

    def fit(rows: Rows, n_epochs: int) -> Solution:
        net = importlib.import_module("skorch").NeuralNetRegressor(
            Neuron,
            module__in_features=rows.single.shape.n_features,
            module__out_features=1,
            optimizer=_OPTIMIZERS[optimizer],
            lr=lr,
            max_epochs=n_epochs,
            batch_size=batch_size,
            train_split=None,
            iterator_train__shuffle=batch_size > 0,
            iterator_train__generator=torch.Generator().manual_seed(SEED),
            verbose=0,
        )
        return net.fit(rows.single.X, rows.single.y).module_.solution()

    return fit


def full_batch_loop(optimizer: Optimizer, lr: float, dtype: torch.dtype = torch.float32) -> Fit:
    """Make a fit by the loop of the tutorials on all rows at once."""

    def fit(rows: Rows, n_epochs: int) -> Solution:
        X, y = _tensors(rows, dtype)
        model, loss, steps = _loop_parts(X, optimizer, lr)
        for _ in range(n_epochs):
            steps.zero_grad()
            loss(model(X), y).backward()
            steps.step()
        return model.solution()

    return fit


def mini_batch_loop(batches: Batches, lr: float, batch_size: int) -> Fit:
    """Make a fit by the loop of the tutorials with SGD, on slices of shuffled rows or a DataLoader."""
    make_batches = functools.partial(_BATCHES[batches], batch_size=batch_size)

    def fit(rows: Rows, n_epochs: int) -> Solution:
        X, y = _tensors(rows, torch.float32)
        model, loss, steps = _loop_parts(X, "sgd", lr)
        epoch = make_batches(X, y, generator=torch.Generator().manual_seed(SEED))
        for _ in range(n_epochs):
            for batch_X, batch_y in epoch():
                steps.zero_grad()
                loss(model(batch_X), batch_y).backward()
                steps.step()
        return model.solution()

    return fit


def full_batch_trainers(optimizer: Optimizer, rate: float) -> tuple[Trainer, ...]:
    """List who takes full-batch steps of a given rate.

    Parameters
    ----------
    optimizer : {"sgd", "adam"}
        The optimizer.
    rate : float
        The rate in our objective.

    Returns
    -------
    tuple of Trainer
        Ours first.
    """
    name = _OPTIMIZERS[optimizer].__name__
    lr = rate / 2 if optimizer == "sgd" else rate
    loop = f"zero_grad, MSELoss, backward, step; torch.optim.{name}(lr={lr:g})"
    net = f"NeuralNetRegressor(nn.Linear, optimizer={name}, lr={lr:g}, batch_size=-1, train_split=None)"
    return (
        Trainer(
            "TorchLinearRegressor",
            f'TorchLinearRegressor(solver="{optimizer}", learning_rate={rate:g}, tol=0)',
            "ours",
            ours(solver=optimizer, learning_rate=rate),
        ),
        Trainer("PyTorch loop, float32", loop, "routine", full_batch_loop(optimizer, lr)),
        Trainer("PyTorch loop, float64", loop, "routine", full_batch_loop(optimizer, lr, torch.float64)),
        Trainer("skorch", net, "estimator", skorch_net(optimizer, lr), "skorch", SKORCH_FULL_BATCH_EPOCHS),
    )


def mini_batch_trainers(rate: float, batch_size: int) -> tuple[Trainer, ...]:
    """List who takes a few epochs of mini-batches.

    Parameters
    ----------
    rate : float
        The rate in our objective, for all but ours with "auto" and `SGDRegressor`, which takes one row
        at a time with its own schedule.
    batch_size : int
        Rows in a batch.

    Returns
    -------
    tuple of Trainer
        Ours first.
    """
    own = f'TorchLinearRegressor(solver="sgd", batch_size={batch_size}, learning_rate={{}}, tol=0)'
    constant = ours(solver="sgd", batch_size=batch_size, learning_rate=rate)
    return (
        Trainer('ours, "auto"', own.format('"auto"'), "ours", ours(solver="sgd", batch_size=batch_size)),
        Trainer(f"ours, rate {rate:g}", own.format(f"{rate:g}"), "variant", constant),
        Trainer("SGDRegressor", "SGDRegressor(tol=None)", "estimator", sgd_regressor(), "sklearn"),
        Trainer(
            "SGDRegressor, averaged",
            "SGDRegressor(tol=None, average=True)",
            "estimator",
            sgd_regressor(average=True),
            "sklearn",
        ),
        *_mini_batch_rivals(rate / 2, batch_size),
        _loop_trainer("loader", rate / 2, batch_size),
    )


def reach_trainers(batch_size: int) -> tuple[Trainer, ...]:
    """List who races to a stated distance from OLS, each in a good way of its own.

    Parameters
    ----------
    batch_size : int
        Rows in a mini-batch.

    Returns
    -------
    tuple of Trainer
        Ours first, without tuning; the rates of the loops and of skorch were the best of several.
    """
    own = 'TorchLinearRegressor(solver="{}"{}, tol=0)'
    loop = f"zero_grad, MSELoss, backward, step; torch.optim.SGD(lr={REACH_FULL_BATCH_LR:g})"
    return (
        Trainer("ours, full batch", own.format("sgd", ""), "ours", ours(solver="sgd")),
        Trainer(
            f"ours, batches of {batch_size}",
            own.format("sgd", f", batch_size={batch_size}"),
            "variant",
            ours(solver="sgd", batch_size=batch_size),
        ),
        Trainer("ours, Adam, full batch", own.format("adam", ""), "variant", ours(solver="adam")),
        Trainer(
            "SGDRegressor", "SGDRegressor(alpha=0, tol=None)", "estimator", sgd_regressor(alpha=0), "sklearn"
        ),
        Trainer(
            "SGDRegressor, averaged",
            "SGDRegressor(alpha=0, average=True, tol=None)",
            "estimator",
            sgd_regressor(alpha=0, average=True),
            "sklearn",
        ),
        *_mini_batch_rivals(REACH_MINI_BATCH_LR, batch_size),
        Trainer("PyTorch loop, full batch", loop, "routine", full_batch_loop("sgd", REACH_FULL_BATCH_LR)),
    )


def exact_trajectory(data: Data, optimizer: Optimizer, rate: float, n_epochs: int) -> Solution:
    """Take full-batch steps in float64 with gradients written out, to check others by.

    Parameters
    ----------
    data : Data
        NumPy data.
    optimizer : {"sgd", "adam"}
        The optimizer.
    rate : float
        The rate for half the mean squared residual.
    n_epochs : int
        The number of steps.

    Returns
    -------
    Solution
        Where training from zero stands after them.
    """
    design = np.column_stack([data.X, np.ones(len(data.y))])
    gram, moment = design.T @ design / len(design), design.T @ data.y / len(design)
    # scikit-learn's and torch's optimizers stay out of it: the textbook's recursions.
    model, mean, square = np.zeros(len(gram)), np.zeros(len(gram)), np.zeros(len(gram))
    for epoch in range(1, n_epochs + 1):
        gradient = gram @ model - moment
        if optimizer == "adam":
            mean = 0.9 * mean + 0.1 * gradient
            square = 0.999 * square + 0.001 * gradient**2
            gradient = (mean / (1 - 0.9**epoch)) / (np.sqrt(square / (1 - 0.999**epoch)) + 1e-8)
        model = model - rate * gradient
    return Solution(model[:-1], float(model[-1]))


# The best of 0.03, 0.1, 0.3 and, for mini-batches of 256, of 0.0003, 0.001 (torch's default), 0.003
# and 0.01: the fewest epochs to 1e-3 at 200,000 x 10. 0.5 would be Newton's step on columns that are
# as good as independent; nobody knows that beforehand.
REACH_FULL_BATCH_LR = 0.3
REACH_MINI_BATCH_LR = 0.001

_OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


def _mini_batch_rivals(lr: float, batch_size: int) -> tuple[Trainer, ...]:
    """Trainers on skorch and on slices of shuffled rows."""
    net = f"NeuralNetRegressor(nn.Linear, lr={lr:g}, batch_size={batch_size}, train_split=None)"
    return (
        Trainer("skorch", net, "estimator", skorch_net("sgd", lr, batch_size), "skorch"),
        _loop_trainer("slices", lr, batch_size),
    )


def _loop_trainer(batches: Batches, lr: float, batch_size: int) -> Trainer:
    """A trainer on the loop of the tutorials."""
    name = "PyTorch loop, slices" if batches == "slices" else "PyTorch loop, DataLoader"
    source = "slices of shuffled rows" if batches == "slices" else "DataLoader(TensorDataset(X, y))"
    call = f"{source}; zero_grad, MSELoss, backward, step; torch.optim.SGD(lr={lr:g})"
    return Trainer(name, call, "routine", mini_batch_loop(batches, lr, batch_size))


def _loop_parts(
    X: torch.Tensor, optimizer: Optimizer, lr: float
) -> tuple[Neuron, torch.nn.Module, torch.optim.Optimizer]:
    """Module, loss and optimizer of a loop."""
    model = Neuron(X.shape[1], 1, dtype=X.dtype)
    return model, torch.nn.MSELoss(), _OPTIMIZERS[optimizer](model.parameters(), lr=lr)


def _tensors(rows: Rows, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """X and y as a column, of a type."""
    if dtype is torch.float32:
        return torch.from_numpy(rows.single.X), torch.from_numpy(rows.single.y)
    return torch.from_numpy(rows.double.X), torch.from_numpy(rows.double.y)[:, None]


def _slices(X: torch.Tensor, y: torch.Tensor, *, batch_size: int, generator: torch.Generator) -> Any:
    """Epochs over slices of shuffled rows; Any: an iterator of pairs, when called."""

    def epoch() -> Any:
        order = torch.randperm(len(X), generator=generator)
        return ((X[some], y[some]) for some in torch.split(order, batch_size))

    return epoch


def _loader(X: torch.Tensor, y: torch.Tensor, *, batch_size: int, generator: torch.Generator) -> Any:
    """Epochs over a DataLoader; Any: an iterator of pairs, when called."""
    dataset = TensorDataset(X, y)
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=True, generator=generator)
    return lambda: iter(loader)


_BATCHES: dict[Batches, Callable[..., Any]] = {"slices": _slices, "loader": _loader}


def _solution(estimator: Any) -> Solution:  # Any: scikit-learn's estimators are untyped
    """Coefficients and intercept of a fitted estimator."""
    return Solution(estimator.coef_, float(np.ravel(estimator.intercept_)[0]))
