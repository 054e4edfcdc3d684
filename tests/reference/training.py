"""Data, optimizers and helpers that several tests of training share."""

import functools

import numpy as np
import torch
from reference.problems import three_features
from torch.optim import SGD, Adam, Optimizer

from torchlinreg._training.optimizers import OPTIMIZERS

# Rates at which the problem below is stable; of the others, 0.05.
RATES = {"sgd": 1e-3, "asgd": 1e-3, "lbfgs": 1.0}


LBFGS = functools.partial(
    torch.optim.LBFGS,
    max_iter=1,
    line_search_fn="strong_wolfe",
    tolerance_grad=0,
    tolerance_change=0,
)


problem = functools.partial(three_features, std=[1, 8, 0.3], mean=[3, 0, 1])


def at_rate(name):
    """The optimizer class of a name with its rate, for the plain loop, and that rate."""
    rate = RATES.get(name, 0.05)
    return functools.partial(LBFGS if name == "lbfgs" else OPTIMIZERS[name], lr=rate), rate


class Lion(Optimizer):
    """An optimizer that torch does not have, as its users write them."""

    def __init__(self, params, lr=1e-4, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                average.mul_(group["beta"]).add_(p.grad, alpha=1 - group["beta"])
                p.add_(average.sign(), alpha=-group["lr"])


class Rebinding(Optimizer):
    """Gives parameters new memory, as some tutorials do."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr})

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data = p.data - group["lr"] * p.grad


class Midpoint(Optimizer):
    """Asks for gradients of its own, and clears them in between."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            closure()
        before = [p.clone() for group in self.param_groups for p in group["params"]]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"] / 2)
        self.zero_grad()
        with torch.enable_grad():
            closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(before.pop(0)).sub_(p.grad, alpha=group["lr"])
        self.zero_grad()


OWN = {
    "momentum": (functools.partial(SGD, momentum=0.9), 1e-3),
    "nesterov": (functools.partial(SGD, momentum=0.9, nesterov=True), 1e-3),
    "dampening": (functools.partial(SGD, momentum=0.5, dampening=0.3), 1e-3),
    "weight decay": (functools.partial(SGD, weight_decay=0.5), 1e-3),
    "class": (torch.optim.NAdam, 0.05),
    "adam with options": (functools.partial(Adam, betas=(0.5, 0.9), amsgrad=True, eps=1e-4), 0.05),
    "rmsprop with options": (functools.partial(torch.optim.RMSprop, centered=True, momentum=0.5), 0.01),
    "own class": (Lion, 0.05),
    "own class with options": (functools.partial(Lion, beta=0.5), 0.05),
    "new memory": (Rebinding, 1e-3),
    "own closure": (Midpoint, 1e-3),
}


# Solvers that promise the optimum without tuning.
PROMISED = ["sgd", "adam", "lbfgs"]


def overfitting(n_samples=40, seed=0):
    """Few rows of many columns, so that the validation loss rises again."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, 25))
    return X, X[:, 0] + 2 * rng.standard_normal(n_samples)
