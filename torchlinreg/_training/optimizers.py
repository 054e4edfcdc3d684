"""Optimizers and learning-rate schedulers of torch, by name, class or callable."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

Scheduler = LRScheduler | ReduceLROnPlateau
MakeOptimizer = Callable[[list[Parameter]], Optimizer]
MakeScheduler = Callable[[Optimizer], Scheduler]

# SparseAdam reads sparse gradients only.
OPTIMIZERS: dict[str, type[Optimizer]] = {
    name.lower(): value
    for name, value in vars(torch.optim).items()
    if isinstance(value, type) and issubclass(value, Optimizer) and name not in ("Optimizer", "SparseAdam")
}
SCHEDULERS: dict[str, type[Scheduler]] = {
    name.lower(): value
    for name, value in vars(torch.optim.lr_scheduler).items()
    if isinstance(value, type)
    and issubclass(value, Scheduler)
    and name not in ("LRScheduler", "_LRScheduler", "ChainedScheduler", "SequentialLR")  # need others
}
# With learning_rate="auto" the objective is a sphere of radius 1 around its optimum (see _coordinates.py).
# Steps along the gradient then halve the distance, or leave it to a line search; others move each coordinate
# by about the rate, whatever the gradient, and Adam was within 1e-12 of the optimum after 520 of 1000 epochs.
AUTO_RATES = {"sgd": 0.5, "asgd": 0.5, "lbfgs": 1.0, "adagrad": 0.5, "adadelta": 1.0}
AUTO_RATE_OF_OTHERS = 0.1
# What torch's L-BFGS needs: a line search, and that tol decides when to stop. One iteration is an epoch.
LBFGS_OPTIONS: dict[str, Any] = {
    "max_iter": 1,
    "line_search_fn": "strong_wolfe",
    "tolerance_grad": 0.0,
    "tolerance_change": 0.0,
}
# At an automatic rate, training ends at the optimum of the objective, whose penalty is alpha: the decay of
# the weights that these add unless told otherwise would keep them 1e-4 away.
WITHOUT_DECAY: dict[Any, dict[str, Any]] = {
    OPTIMIZERS[name]: {option: 0.0}
    for name, option in (("adamw", "weight_decay"), ("asgd", "lambd"), ("muon", "weight_decay"))
    if name in OPTIMIZERS
}


class Recipe(NamedTuple):
    """How to make an optimizer, and at which learning rate.

    `rate` is the user's number, None where the optimizer keeps its own or the rate is automatic; `auto_rate`
    is the rate on the unit sphere, None where the user chose one.
    """

    make: MakeOptimizer
    rate: float | None
    auto_rate: float | None
    joins_parameters: bool = False  # into one matrix: Muon takes no vectors, and one is less work than two


def is_training(solver: object) -> bool:
    """Whether a solver parameter stands for an optimizer."""
    if isinstance(solver, type):
        return issubclass(solver, Optimizer) and solver not in (Optimizer, torch.optim.SparseAdam)
    return callable(solver) or (isinstance(solver, str) and solver in OPTIMIZERS)


def optimizer_recipe(solver: Any, learning_rate: Any) -> Recipe:
    """The recipe for a name of `OPTIMIZERS`, a class, or a callable ``params -> Optimizer``."""
    if isinstance(solver, str):
        solver = functools.partial(OPTIMIZERS[solver], **(LBFGS_OPTIONS if solver == "lbfgs" else {}))
    keywords = solver.keywords if isinstance(solver, functools.partial) else {}
    function = solver.func if isinstance(solver, functools.partial) else solver
    rate = None if isinstance(learning_rate, str) else float(learning_rate)
    if "lr" in keywords and rate is not None:
        raise ValueError(
            f"learning_rate={learning_rate!r} and lr={keywords['lr']!r} in solver are both given; give one."
        )
    if "lr" in keywords or not isinstance(function, type):
        return Recipe(_checked(solver, rate), rate, None)
    auto_rate = None if rate is not None else _auto_rate(function)
    initial = auto_rate if rate is None else rate
    options = {} if auto_rate is None else WITHOUT_DECAY.get(function, {})
    if "lr" in inspect.signature(function).parameters:
        options = options | {"lr": initial}
    solver = functools.partial(solver, **(options | keywords))
    # Adafactor has norms of each parameter.
    joins = function in OPTIMIZERS.values() and function is not torch.optim.Adafactor
    return Recipe(_checked(solver, initial), rate, auto_rate, joins)


def _auto_rate(optimizer: type[Any]) -> float:
    for name, rate in AUTO_RATES.items():
        if issubclass(optimizer, OPTIMIZERS[name]):
            return rate
    return AUTO_RATE_OF_OTHERS


def _checked(make: Callable[[list[Parameter]], Any], rate: float | None) -> MakeOptimizer:
    def optimizer(params: list[Parameter]) -> Optimizer:
        result = make(params)
        if not isinstance(result, Optimizer):
            raise TypeError(
                f"solver={make!r} gave a {type(result).__name__}; a callable solver takes the parameters "
                "[coef, intercept] and gives a torch.optim.Optimizer."
            )
        if rate is not None:
            for group in result.param_groups:
                group["lr"] = rate
        return result

    return optimizer


def kept_state(optimizer: Optimizer) -> dict[str, Any]:
    """A copy on the CPU of the optimizer's state, of tensors, numbers and lists."""
    state: dict[str, Any] = _copied(optimizer.state_dict(), torch.device("cpu"))
    return state


def put_state(optimizer: Optimizer, state: Mapping[int, Any]) -> None:
    """Give the optimizer a copy of the kept state of its parameters.

    `Optimizer.load_state_dict` would cast tensors to the parameters' dtype; NAdam has one of float32.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in state.items():
        parameter = parameters[index]
        optimizer.state[parameter] = {
            name: _copied(value, torch.device("cpu") if name == "step" else parameter.device)
            for name, value in values.items()
        }


def _copied(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone().to(device)
    if isinstance(value, dict):
        return {key: _copied(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(item, device) for item in value)
    return value


def scheduler_maker(lr_scheduler: Any) -> MakeScheduler:
    """The function that makes a scheduler from a name, class or callable.

    Raises
    ------
    ValueError
        There is no scheduler of that name, or it needs arguments.
    TypeError
        It is no name and cannot be called, or what it gives is no scheduler.
    """
    make = lr_scheduler
    if isinstance(lr_scheduler, str):
        if lr_scheduler not in SCHEDULERS:
            raise ValueError(
                f"lr_scheduler={lr_scheduler!r} is not known; use one of {sorted(SCHEDULERS)}, a class of "
                "torch.optim.lr_scheduler, or a callable optimizer -> scheduler."
            )
        make = SCHEDULERS[lr_scheduler]
    if not callable(make):
        raise TypeError(
            f"lr_scheduler={lr_scheduler!r} must be None, a name such as 'reducelronplateau', a class of "
            "torch.optim.lr_scheduler, or a callable optimizer -> scheduler."
        )
    if isinstance(make, type):
        missing = _required(make)
        if missing:
            raise ValueError(
                f"lr_scheduler={lr_scheduler!r} needs {', '.join(missing)}: use "
                f"functools.partial(torch.optim.lr_scheduler.{make.__name__}, {missing[0]}=...)."
            )

    def scheduler(optimizer: Optimizer) -> Scheduler:
        result = make(optimizer)
        if not isinstance(result, Scheduler):
            raise TypeError(
                f"lr_scheduler={lr_scheduler!r} gave a {type(result).__name__}, which is no scheduler of "
                "torch.optim.lr_scheduler."
            )
        return result

    return scheduler


def _required(scheduler: type[Any]) -> list[str]:
    """Names of the arguments without default, but for the optimizer."""
    parameters = list(inspect.signature(scheduler).parameters.values())[1:]
    return [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
