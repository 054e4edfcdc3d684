"""The loop of a PyTorch tutorial, in float64, that training has to follow; and distances from the optimum."""

import inspect
import warnings
from typing import NamedTuple

import numpy as np
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning


class Trajectory(NamedTuple):
    coef: np.ndarray  # shape: (n_epochs, n_targets, n_features)
    intercept: np.ndarray  # shape: (n_epochs, n_targets)
    loss: np.ndarray  # of all rows, after each epoch; shape: (n_epochs,)


def plain_loop(
    make_optimizer,
    X,
    y,
    n_epochs,
    *,
    weight=None,
    alpha=0.0,
    fit_intercept=True,
    batch_size=None,
    seed=None,
    make_scheduler=None,
    start=None,
):
    """`torch.nn.Linear` from zero, with autograd; shuffled if there is a seed, as `torch.randperm` does."""
    X, y = torch.tensor(X, dtype=torch.float64), torch.tensor(y, dtype=torch.float64).reshape(len(X), -1)
    weight = torch.ones(len(X)) if weight is None else torch.tensor(weight)
    relative = (weight / weight.double().mean()).double()
    linear = torch.nn.Linear(X.shape[1], y.shape[1], bias=fit_intercept, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.zeros(linear.weight.shape) if start is None else torch.tensor(start[0]))
        if fit_intercept:
            linear.bias.copy_(torch.zeros(y.shape[1]) if start is None else torch.tensor(start[1]))
    optimizer = make_optimizer(list(linear.parameters()))
    scheduler = None if make_scheduler is None else make_scheduler(optimizer)
    generator = None if seed is None else torch.Generator().manual_seed(seed)

    def loss_of(rows):
        error = (relative[rows, None] * (linear(X[rows]) - y[rows]) ** 2 / 2).sum() / len(rows)
        return error + alpha / 2 * linear.weight.square().sum()

    everything = torch.arange(len(X))
    coefs, intercepts, losses = [], [], []
    for _ in range(n_epochs):
        order = everything if seed is None else torch.randperm(len(X), generator=generator)
        for rows in order.split(batch_size or len(X)):

            def closure(rows=rows):
                optimizer.zero_grad()
                loss = loss_of(rows)
                loss.backward()
                return loss

            if needs_closure(optimizer):
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
        with torch.no_grad():
            loss = float(loss_of(everything))
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            scheduler.step(loss)
        elif scheduler is not None:
            scheduler.step()
        coefs.append(linear.weight.detach().numpy().copy())
        intercepts.append(linear.bias.detach().numpy().copy() if fit_intercept else np.zeros(y.shape[1]))
        losses.append(loss)
    return Trajectory(np.array(coefs), np.array(intercepts), np.array(losses))


def needs_closure(optimizer):
    """Whether an optimizer asks for gradients itself."""
    return inspect.signature(optimizer.step).parameters["closure"].default is inspect.Parameter.empty


def seed_of_shuffles(random_state):
    """The seed that the generator of shuffles has for an integer `random_state`."""
    return int(np.random.RandomState(random_state).randint(np.iinfo(np.int32).max))


def fit_quietly(reg, *args, **kwargs):
    """Fit, where it is no matter that the optimum is far."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return reg.fit(*args, **kwargs)


def model_of(reg):
    """Coefficients of shape (n_targets, n_features) and intercepts of shape (n_targets,)."""
    coef = np.atleast_2d(reg.coef_)
    return coef, np.broadcast_to(reg.intercept_, len(coef))


def assert_follows(reg, expected, X, y, *, epochs=(1, 2, 5), rtol=1e-10, **fit):
    """The model after some epochs and the last, and the losses of all, are those of the plain loop."""
    n_epochs = len(expected.loss)
    sizes = np.abs(expected.coef).max(), max(np.abs(expected.intercept).max(), 1e-300)
    for n in sorted({min(n, n_epochs) for n in (*epochs, n_epochs)}):
        fitted = fit_quietly(clone(reg).set_params(max_iter=n, tol=0), X, y, **fit)
        coef, intercept = model_of(fitted)
        np.testing.assert_allclose(coef, expected.coef[n - 1], rtol=0, atol=rtol * sizes[0])
        np.testing.assert_allclose(intercept, expected.intercept[n - 1], rtol=0, atol=rtol * sizes[1])
        np.testing.assert_allclose(fitted.loss_curve_, expected.loss[:n], rtol=rtol)
        assert fitted.n_iter_ == n


def distance(reg, coef, intercept, X, y, weight=None):
    """The largest difference from a model, in units of the standard deviations of the columns and of y."""
    coef, y = np.atleast_2d(coef), np.reshape(y, (len(y), -1))
    X = np.asarray(X, dtype=np.float64)
    weight = np.ones(len(X)) if weight is None else weight
    mean, mean_y = np.average(X, axis=0, weights=weight), np.average(y, axis=0, weights=weight)
    spread = np.sqrt(np.average((X - mean) ** 2, axis=0, weights=weight))
    unit = np.sqrt(np.average((y - mean_y) ** 2, axis=0, weights=weight))
    unit = np.where(unit > 0, unit, np.maximum(np.abs(mean_y), 1e-300))
    found, found_intercept = model_of(reg)
    change = found - coef
    mean_error = found_intercept - intercept + change @ mean
    return float(np.max(np.maximum(np.abs(change * spread).max(1), np.abs(mean_error)) / unit))
