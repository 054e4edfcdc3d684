"""How a fit trains: what the estimator's parameters and the arguments of `fit` ask the training loop for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

from torchlinreg._data.rows import RowBlocks, as_row_blocks, check_features
from torchlinreg._objective.evaluate import split
from torchlinreg._objective.problem import Problem
from torchlinreg._objective.solution import Solution, Status
from torchlinreg._solvers import SOLVERS, able_solvers, named, refuse
from torchlinreg._solvers.least_squares.dual import is_wide
from torchlinreg._solvers.least_squares.whitening import Geometry
from torchlinreg._training.checkpoint import read_checkpoint
from torchlinreg._training.coordinates import Model
from torchlinreg._training.loop import DEFAULT_MAX_ITER, Epoch, Training, train_one_pass
from torchlinreg._training.optimizers import OPTIMIZERS, is_training, optimizer_recipe, scheduler_maker
from torchlinreg._training.report import EpochReport

# Optimizers of torch follow the gradients of these losses, and take a proximal step for penalties without.
TRAINED_LOSSES = ("quadratic", "smooth")


def check_solver(name: object) -> None:
    """Raise a ValueError that lists the solvers unless `name` is one or stands for an optimizer."""
    if is_training(name) or (isinstance(name, str) and name in ("auto", *SOLVERS)):
        return
    known = "; ".join(f"'{key}' ({solver.good_for})" for key, solver in SOLVERS.items())
    raise ValueError(
        f"solver={name!r} is not known; use 'auto', or one of {known}; or train with an optimizer of torch, "
        f"one of {', '.join(map(repr, sorted(OPTIMIZERS)))}, a subclass of torch.optim.Optimizer, or a "
        "callable params -> Optimizer."
    )


def check_trains(name: object, problem: Problem) -> None:
    """Raise a ValueError unless optimizers serve the loss."""
    if problem.loss.kind not in TRAINED_LOSSES:
        refuse(f"solver={name!r} follows gradients and", [named(problem.loss)], able_solvers(problem))


def n_epochs(estimator: Any) -> int:
    """The most epochs; 0 for solvers that do not train."""
    if not is_training(estimator.solver):
        return 0
    return DEFAULT_MAX_ITER if estimator.max_iter is None else int(estimator.max_iter)


def refuse_training(estimator: Any, **given: Any) -> None:
    """Raise a ValueError for arguments of `fit` that only training has use for."""
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise ValueError(
            f"{', '.join(names)} cannot be used by solver={estimator.solver!r}, which does not train. Use an "
            "optimizer, such as solver='adam'."
        )


def plan_training(
    estimator: Any,
    problem: Problem,
    start: Model | None,
    validation: RowBlocks | None,
    resume_from: str | Path | None,
    report: EpochReport,
    attributes_after: Callable[[Epoch, Problem], dict[str, Any]],
) -> tuple[Problem, Training]:
    """The problem of the rows to train on, and how to train."""
    resume = None if resume_from is None else read_checkpoint(resume_from)
    seed = _draw_seed(estimator) if resume is None else resume["seed"]
    given, blocks = problem, problem.blocks
    if estimator.early_stopping and validation is None:
        if is_wide(problem):
            blocks.raise_if_not_finite(problem.name)
        else:
            _ = problem.moments  # finds NaN, and is kept for partial_fit
        train_blocks, validation = split(blocks, float(estimator.validation_fraction), seed)
        problem = replace(problem, blocks=train_blocks)

    def report_epoch(epoch: Epoch) -> bool:
        return report.epoch(epoch, lambda: attributes_after(epoch, given))

    training = Training(
        recipe=optimizer_recipe(estimator.solver, estimator.learning_rate),
        make_scheduler=None if estimator.lr_scheduler is None else scheduler_maker(estimator.lr_scheduler),
        batch_size=None if estimator.batch_size is None else int(estimator.batch_size),
        max_iter=n_epochs(estimator),
        tol=float(estimator.tol),
        n_iter_no_change=int(estimator.n_iter_no_change),
        shuffle=bool(estimator.shuffle),
        seed=seed,
        start=start,
        validation=validation,
        early_stopping=bool(estimator.early_stopping),
        report=report_epoch if report.listens else None,
        resume=resume,
    )
    return problem, training


def _draw_seed(estimator: Any) -> int:
    return int(check_random_state(estimator.random_state).randint(np.iinfo(np.int32).max))


def earlier_model(estimator: Any) -> tuple[Any, Any] | None:
    """The fitted coefficients and intercept, if training shall start there."""
    if not (estimator.warm_start and is_training(estimator.solver) and hasattr(estimator, "coef_")):
        return None
    return estimator.coef_, estimator.intercept_


def initial_model(
    estimator: Any, blocks: RowBlocks, coef_init: Any, intercept_init: Any, earlier: tuple[Any, Any] | None
) -> Model | None:
    """Where training starts, if not at 0; float64, in the user's units."""
    if coef_init is None and intercept_init is None and earlier is None:
        return None
    shape = blocks.n_targets, blocks.n_features
    coef, intercept = np.zeros(shape), np.zeros(shape[:1])
    if earlier is not None:
        coef = np.atleast_2d(np.asarray(earlier[0], dtype=np.float64))
        intercept = np.atleast_1d(np.asarray(earlier[1], dtype=np.float64))
        if coef.shape != shape:
            raise ValueError(
                f"Training cannot go on from coef_ of shape {np.shape(earlier[0])}: there are {shape[1]} "
                f"features and {shape[0]} targets now. Use warm_start=False."
            )
        intercept = np.broadcast_to(intercept if estimator.fit_intercept else 0.0, shape[:1]).copy()
    if coef_init is not None:
        coef = _as_initial("coef_init", coef_init, shape)
    if intercept_init is not None:
        intercept = _as_initial("intercept_init", intercept_init, shape[:1])
        if not estimator.fit_intercept and intercept.any():
            raise ValueError("intercept_init is given, but fit_intercept=False; leave it out.")
    return coef, intercept


def open_validation(
    estimator: Any, blocks: RowBlocks, X_val: Any, y_val: Any, sample_weight_val: Any
) -> RowBlocks | None:
    """The user's own validation rows."""
    if X_val is None and y_val is None and sample_weight_val is None:
        return None
    if X_val is None or y_val is None:
        raise ValueError("X_val and y_val belong together; give both, or none of the validation data.")
    device = str(blocks.device)
    try:
        validation = as_row_blocks(X_val, y_val, sample_weight_val, device=device, estimator=estimator)
        check_features(estimator, X_val, reset=False)
        validation.raise_if_not_finite(type(estimator).__name__)
    except ValueError as error:
        raise ValueError(f"X_val, y_val or sample_weight_val: {error}") from error
    if validation.n_targets != blocks.n_targets:
        raise ValueError(f"y_val has {validation.n_targets} targets, but y has {blocks.n_targets}.")
    return validation.with_ordinary_weights()


def train_further(
    estimator: Any, problem: Problem, first: bool, geometry: Geometry | None
) -> tuple[Solution, dict[str, Any]]:
    """One pass of the optimizer over the rows, from the coefficients so far, and its state after that."""
    blocks = problem.blocks
    earlier = None if first else (estimator.coef_, estimator.intercept_)
    start = initial_model(estimator, blocks, None, None, earlier)
    if start is None:
        start = np.zeros((blocks.n_targets, blocks.n_features)), np.zeros(blocks.n_targets)
        if geometry is not None and estimator.fit_intercept:
            start = start[0], geometry.target_center
    model, distance, after = train_one_pass(
        problem,
        optimizer_recipe(estimator.solver, estimator.learning_rate),
        batch_size=None if estimator.batch_size is None else int(estimator.batch_size),
        shuffle=bool(estimator.shuffle),
        seed=_draw_seed(estimator),
        start=start,
        geometry=geometry,
        state=None if first else estimator._optimizer_state,
    )
    exact = None if geometry is None else geometry.solution
    solution = Solution(
        coef=model[0].T,
        intercept=model[1],
        rank=None if exact is None else exact.rank,
        condition_number=None if exact is None else exact.condition_number,
        solver=after["name"],
        status=Status.ONE_PASS,
        n_iter=1 if first else estimator.n_iter_ + 1,
        error=0.0,
        distance=distance,
    )
    return solution, after


def _as_initial(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """An array of that shape, (n_targets, ...), in float64; for one target without that dimension, too."""
    try:
        array = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
    except ValueError as error:  # ragged lists
        raise ValueError(f"{name} must be an array of real numbers: {error}") from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must hold real numbers; it has dtype {array.dtype}.")
    array = array.astype(np.float64)
    given = array.shape
    if array.ndim == len(shape) - 1 and shape[0] == 1:
        array = array[None]
    if array.shape != shape:
        wanted = f"{shape[1:]} or {shape}" if shape[0] == 1 else f"{shape} (targets first)"
        raise ValueError(f"{name} has shape {given}; it must have shape {wanted}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinity.")
    return array
