"""Training the neuron with an optimizer of torch, full batch or mini-batch.

Full-batch gradients of the squared error come from the moments of the rows, so that an epoch costs
O(n_features^2) whatever the number of rows; other losses and penalties than ridge read the rows. With an
automatic learning rate, training happens in whitened coordinates, where the objective is a sphere, or about
one near the optimum, and the gradients of mini-batches are corrected by the full gradient at the epoch's
start (Johnson, Zhang 2013, Accelerating stochastic gradient descent using predictive variance reduction), so
that their noise vanishes at the optimum.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from torchlinreg._data.rows import RowBlocks
from torchlinreg._objective.evaluate import mean_losses
from torchlinreg._objective.problem import Problem
from torchlinreg._objective.solution import Solution, Status
from torchlinreg._solvers import frame_of, refuse_extreme_units
from torchlinreg._solvers.best_constant import not_above_constant
from torchlinreg._solvers.least_squares.whitening import Geometry, geometry_of
from torchlinreg._training.coordinates import (
    Coordinates,
    Model,
    about_optimum,
    unit_sphere,
    users_units,
    users_units_without_optimum,
)
from torchlinreg._training.epochs import FullBatch, MiniBatches, Neuron, largest_curvature, stable_rate
from torchlinreg._training.optimizers import MakeScheduler, Recipe, kept_state, put_state
from torchlinreg._training.optimum import Landscape, is_quadratic, landscape_of
from torchlinreg._training.row_epochs import RowPasses, Terms
from torchlinreg.losses import CallableLoss, Loss

DEFAULT_MAX_ITER = 1000
# Epochs of full-batch training whose losses are evaluated at once: 2000 epochs of gradient descent at
# 10,000 x 10 take 32 ms so, and 107 ms one by one.
EPOCHS_AT_ONCE = 64
# The same of losses that need the rows, where an epoch too many costs more.
ROW_EPOCHS_AT_ONCE = 8
# A loss this many times that of the start, or of coefficients of 0, has no way back; one this many times as
# high at the end of training is no result (RAdam's first steps raise it by a fifth).
DIVERGED = 1e6
ENDED_HIGH = 10.0
# With an automatic rate, an epoch may not leave the objective this many times higher above its optimum than
# the highest of so many epochs before (Adam and momentum swing), but for rounding; the rate is halved where
# it does, at most so many times.
LARGEST_RISE = 4.0
RECENT = 16
ROUNDING = 1e-24
EPS = 2.0**-53
MAX_CUTS = 60
# Evaluations of a line search in an epoch, unless the user chose more. torch's L-BFGS makes a single one in
# one iteration, which is enough on a sphere only.
MAX_EVALUATIONS = 25
# The optimum of smooth losses is known to its solver's accuracy; at this distance it would not be one.
LEAST_ACCURACY = 1e-7
# Means and spreads that differ by more than this are those of other data.
SAME_DATA = 1e-9


class Epoch(NamedTuple):
    """What can be seen of training after an epoch."""

    number: int  # from 1 on
    loss: float
    validation_loss: float | None
    coef: np.ndarray  # shape: (n_targets, n_features)
    intercept: np.ndarray  # shape: (n_targets,)
    state: Callable[[], dict[str, Any]]  # what `Training.resume` takes, made on demand


@dataclass(frozen=True)
class Training:
    """How to train. `report` sees every epoch and may stop; None reports nothing, which is quicker."""

    recipe: Recipe
    make_scheduler: MakeScheduler | None
    batch_size: int | None
    max_iter: int
    tol: float
    n_iter_no_change: int
    shuffle: bool
    seed: int
    start: Model | None = None
    validation: RowBlocks | None = None
    early_stopping: bool = False  # by the validation loss, whose lowest point is then taken
    report: Callable[[Epoch], bool] | None = None
    resume: Mapping[str, Any] | None = None


def train(problem: Problem, training: Training) -> Solution:
    """Train on all rows until an end that `Status` names.

    Raises
    ------
    FloatingPointError
        The loss grew beyond all bounds with the user's learning rate.
    ValueError
        The state to resume from belongs to other data or settings, `Huber` estimates a scale of 0, or columns
        are in extreme units.
    """
    refuse_extreme_units(frame_of(problem))
    automatic = training.recipe.auto_rate is not None
    start = training.start if training.resume is None else _start_of(training.resume)
    landscape = None if is_quadratic(problem) else landscape_of(problem, tol=1e-12)
    geometry = geometry_of(problem, tol=1e-12) if landscape is None else landscape.geometry
    if not automatic:
        coordinates = users_units(geometry, start, problem.fit_intercept)
    elif landscape is None:
        coordinates = unit_sphere(geometry, start, problem.fit_intercept)
    else:
        coordinates = about_optimum(landscape, start, problem.fit_intercept)
    loop = _Loop(problem, replace(training, start=start), coordinates, landscape)
    if training.resume is not None:
        loop.load(training.resume)
    solution = _solution(loop, loop.run())
    return not_above_constant(problem, solution) if automatic else solution


def _start_of(state: Mapping[str, Any]) -> Model | None:
    """Where the training began that a state belongs to."""
    if state["start"] is None:
        return None
    coef, intercept = state["start"]
    return coef.numpy(), intercept.numpy()


def _name_of(loss: Loss) -> str:
    """The loss as it prints, but for the addresses of a user's functions, which change between processes."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(loss))


class _Result(NamedTuple):
    """What an epoch leads to: parameters, and the coefficients where those give them not exactly."""

    parameters: np.ndarray
    coef: np.ndarray | None = None

    def model(self, coordinates: Coordinates) -> Model:
        """In the user's units."""
        coef, intercept = coordinates.model(self.parameters)
        return (coef if self.coef is None else self.coef), intercept


class _Loop:
    """The state of training between epochs, and the steps that change it."""

    def __init__(
        self,
        problem: Problem,
        training: Training,
        coordinates: Coordinates,
        landscape: Landscape | None,
    ) -> None:
        self.training = training
        self.coordinates = coordinates
        self.landscape = landscape  # None for a quadratic objective
        self.problem = problem
        self.loss = problem.loss if landscape is None else landscape.loss
        self.l2 = problem.penalty.l2
        self.automatic = training.recipe.auto_rate is not None
        n_rows = problem.blocks.n_samples
        full = training.batch_size is None or training.batch_size >= n_rows
        self.generator = torch.Generator().manual_seed(training.seed)
        self.passes: FullBatch | MiniBatches | RowPasses
        if landscape is not None:
            self.passes = RowPasses(
                problem.blocks,
                coordinates,
                Terms(landscape.loss, problem.penalty, landscape.kappa),
                None if full else training.batch_size,
                self.generator if training.shuffle else None,
                corrected=self.automatic,
                settles=self.automatic and training.make_scheduler is None,
            )
        elif full:
            self.passes = FullBatch(coordinates, problem.penalty.l2)
        else:
            assert training.batch_size is not None
            self.passes = MiniBatches(
                problem.blocks,
                coordinates,
                problem.penalty.l2,
                training.batch_size,
                self.generator if training.shuffle else None,
                corrected=self.automatic,
                settles=self.automatic and training.make_scheduler is None,
            )
        self.full = full
        self.floor = coordinates.about.floor
        self.status: Status | None = None  # once training has ended
        self.epoch = 0
        self.loss_curve: list[float] = []
        self.validation_curve: list[float] = []
        self.cuts = 0
        # The lowest validation loss or, without early stopping, the last excess that moved; and epochs since.
        self.watched = np.inf
        self.idle = 0
        self.result = self.best = _Result(coordinates.start)
        self._start_neuron(coordinates.start)
        self.recent = [self._excess(coordinates.start)]
        self.first_loss = self.floor + self.recent[0]
        self.high = max(self.first_loss, self.floor + self._excess_of_constant())
        # Coefficients that nearly cancel are large, and so is their rounding.
        rounding = 16 * EPS * max(1.0, coordinates.about.largest_coefficient)
        if isinstance(self.passes, RowPasses) and self.automatic:
            off = 4 * float(coordinates.distance(self.passes.after_optimum()).max())
            rounding = max(rounding, min(off, LEAST_ACCURACY))
        if landscape is not None:
            rounding = max(rounding, min(4 * landscape.miss, LEAST_ACCURACY))
        self.near_enough = max(training.tol, rounding)

    def _excess_of_constant(self) -> float:
        """How much a prediction that does not depend on x, or is off by a unit of y, is above the optimum."""
        about, penalty = self.coordinates.about, self.problem.penalty
        if self.landscape is None:
            return float((about.target_unit**2).sum()) / 2
        optimum = self.landscape.optimum
        change = np.clip(np.zeros_like(optimum), penalty.lower, penalty.upper) - optimum
        models = np.stack([change, np.zeros_like(change)])
        mean_errors = np.stack([np.zeros_like(about.target_unit), about.target_unit])
        with np.errstate(over="ignore", invalid="ignore"):
            excess = self.landscape.excess(models, mean_errors).sum(1)
        return float(excess[np.isfinite(excess)].max(initial=0.0))

    def _start_neuron(self, parameters: np.ndarray) -> None:
        self.neuron = Neuron(
            parameters, self.coordinates.fit_intercept, self.passes.device, self.training.recipe
        )
        if self.automatic:
            self.neuron.set_rates([self._fair(rate) for rate in self.neuron.rates])
        if self.automatic and self.landscape is not None:
            self.neuron.let_search(MAX_EVALUATIONS)
        make = self.training.make_scheduler
        self.scheduler = None if make is None else make(self.neuron.optimizer)
        self.neuron.may_descend &= make is None  # schedulers warn where the optimizer made no step

    def run(self) -> Status:
        """Train until an end."""
        training = self.training
        while self.status is None and self.epoch < training.max_iter:
            self.status = self._some_epochs(min(self._epochs_at_once(), training.max_iter - self.epoch))
        if self.epoch == 0:  # no rate was small enough to stay at the optimum, where training began
            self._stay()
        if not self.automatic and self._is_high(self.loss_curve[-1], ENDED_HIGH):
            self._raise_diverged(self.loss_curve[-1])
        return self.status or Status.MAX_ITER

    def _stay(self) -> None:
        """Make an epoch of the start."""
        at = self.result.parameters[None]
        excess, distance = self.recent[-1], float(self._distances(at, self._excesses(at))[0])
        self.status = self._after_epoch(excess, distance, self._validation_losses(at)[0]) or self.status

    def _is_high(self, loss: float, factor: float) -> bool:
        """Whether a loss, or its excess where losses have any sign, is so many times that of the start."""
        floor = 0.0 if self.landscape is None else self.floor
        return not loss - floor <= factor * (self.high - floor)  # true for NaN, too

    def _epochs_at_once(self) -> int:
        watched = self.training.report is not None or isinstance(self.scheduler, ReduceLROnPlateau)
        if watched or not self.full:
            return 1
        return EPOCHS_AT_ONCE if self.landscape is None else ROW_EPOCHS_AT_ONCE

    def _some_epochs(self, n_epochs: int) -> Status | None:
        """Run epochs, then look at each; where one was the last, what came after is undone."""
        before = self.neuron.parameters()
        history = np.empty((n_epochs, *before.shape))
        seen = history if self.landscape is None else np.empty_like(history)
        coefs: list[np.ndarray | None] = [None] * n_epochs
        for index in range(n_epochs):
            self._set_rate(self.epoch + index)
            self.passes.run(self.neuron)
            history[index] = self.neuron.parameters()
            if isinstance(self.passes, RowPasses):
                seen[index], coefs[index] = self.passes.settled(self.neuron)
            if self.scheduler is not None and not isinstance(self.scheduler, ReduceLROnPlateau):
                self.scheduler.step()
        with np.errstate(over="ignore", invalid="ignore"):
            by_target = self._excesses(seen)
        excess, distance = by_target.sum(1), self._distances(seen, by_target)
        n_tame = self._count_tame(excess, distance) if self.automatic else n_epochs
        validation = self._validation_losses(seen[:n_tame])
        for index in range(n_tame):
            self.result = _Result(seen[index], coefs[index])
            status = self._after_epoch(float(excess[index]), float(distance[index]), validation[index])
            if status is not None:
                self.neuron.set_parameters(history[index])
                return status
        if n_tame < n_epochs:
            return self._cut(history[n_tame - 1] if n_tame else before)
        return None

    def _excess(self, parameters: np.ndarray) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            return float(self._excesses(parameters[None]).sum())

    def _excesses(self, history: np.ndarray) -> np.ndarray:
        if self.landscape is None:
            return self.coordinates.excess(history, self.l2)
        allowed = self.coordinates.within(history, self.problem.penalty)
        return self.landscape.excess(*self.coordinates.change(allowed))

    def _distances(self, history: np.ndarray, excess: np.ndarray) -> np.ndarray:
        """From the nearest optimum, of models whose excess is known per target."""
        with np.errstate(over="ignore", invalid="ignore"):
            distance = self.coordinates.distance(history)
            if self.landscape is not None:
                distance = self.landscape.nearest(distance, excess)
        return np.asarray(distance.max(1))

    def final_distance(self) -> float:
        """That of the result."""
        history = self.final_result.parameters[None]
        with np.errstate(over="ignore", invalid="ignore"):
            return float(self._distances(history, self._excesses(history))[0])

    def _set_rate(self, epoch: int) -> None:
        """With an automatic rate and no scheduler of the user's, the rate falls to 0 as a square."""
        if not self.automatic or self.training.make_scheduler is not None:
            return
        rate = self.training.recipe.auto_rate
        assert rate is not None
        left = 1.0 if self.neuron.searches_lines else (1 - epoch / self.training.max_iter) ** 2
        self.neuron.set_rates([self._fair(rate) * left] * len(self.neuron.rates))

    def _fair(self, rate: float) -> float:
        """An automatic rate, less for the noise of batches and what has been cut."""
        noise = 1.0 if self.neuron.searches_lines else self.passes.noise
        return rate / noise / 2**self.cuts

    def _count_tame(self, excess: np.ndarray, distance: np.ndarray) -> int:
        """How many epochs did not raise the excess much above that of the last ones, but for rounding.

        Training may start at the optimum, and near it the excess is all rounding.
        """
        at_start = self.first_loss - self.floor
        for index, (value, distant) in enumerate(zip(excess.tolist(), distance.tolist(), strict=True)):
            bound = LARGEST_RISE * min(max(self.recent), at_start) + ROUNDING * at_start
            if not (value <= bound or distant <= self.near_enough):
                return index
            self.recent = [*self.recent[1 - RECENT :], value]
        return len(excess)

    def _cut(self, parameters: np.ndarray) -> Status | None:
        """Go back, and on with half the rate and a fresh optimizer."""
        self.cuts += 1
        self._start_neuron(parameters)
        return Status.NO_PROGRESS if self.cuts > MAX_CUTS else None

    def _validation_losses(self, history: np.ndarray) -> list[float | None]:
        if self.training.validation is None or len(history) == 0:
            return [None] * len(history)
        with np.errstate(over="ignore", invalid="ignore"):
            coef, intercept = self.coordinates.model(history)
            return mean_losses(self.training.validation, self.loss, coef, intercept).tolist()

    def _after_epoch(self, excess: float, distance: float, validation: float | None) -> Status | None:
        """Record the epoch; the status if it was the last."""
        training = self.training
        self.epoch += 1
        loss = self.floor + excess
        if self._is_high(loss, DIVERGED):
            self._raise_diverged(loss)
        self.loss_curve.append(loss)
        if validation is not None:
            self.validation_curve.append(validation)
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(loss if validation is None else validation)
        self._watch(excess, validation)
        self.status = self._ending(distance)
        if training.report is not None:
            coef, intercept = self.result.model(self.coordinates)
            epoch = Epoch(self.epoch, loss, validation, coef, intercept, self.state)
            if training.report(epoch):
                return self.status or Status.CALLBACK
        return self.status

    def _ending(self, distance: float) -> Status | None:
        """The status if there is nothing more to do."""
        training = self.training
        is_idle = self.idle >= training.n_iter_no_change
        if training.early_stopping and is_idle:
            return Status.EARLY_STOPPED
        if training.tol == 0:
            return None
        if distance <= self.near_enough:
            return Status.OPTIMAL
        return Status.NO_PROGRESS if is_idle and not training.early_stopping else None

    def _watch(self, excess: float, validation: float | None) -> None:
        """Count the epochs without progress: no lower validation loss, or no change of the training loss.

        A training loss that rises is no reason to stop: momentum and Adam overshoot and come back.
        """
        tol = self.training.tol
        if self.training.early_stopping and validation is not None:
            latest = validation
            moved = validation < self.watched * (1 - tol if self.watched >= 0 else 1 + tol)
        else:
            latest = excess
            moved = abs(excess - self.watched) > tol * max(excess, self.watched)
        moved = moved or not np.isfinite(self.watched)  # in the first epoch
        self.idle = 0 if moved else self.idle + 1
        if moved:
            self.watched = latest
            self.best = self.result

    def _raise_diverged(self, loss: float) -> None:
        if isinstance(self.passes, RowPasses):
            stable = self.passes.stable_rate()
        else:
            stable = 2 / largest_curvature(self.coordinates, self.l2)
        raise FloatingPointError(
            f"Training diverged: after epoch {self.epoch} the loss is {loss:.2g}, from "
            f"{self.first_loss:.2g} at the start. The learning rate {self.neuron.rate:g} is too "
            "large for these data; gradient descent "
            f"on the full batch is stable below {stable:.2g}. Use a smaller learning_rate, or "
            "learning_rate='auto', which needs no tuning."
        )

    @property
    def final_result(self) -> _Result:
        """That of the lowest validation loss, else the last."""
        return self.best if self.training.early_stopping else self.result

    def state(self) -> dict[str, Any]:
        """All that `load` needs to go on as if nothing had happened; of tensors, numbers and lists."""
        start = self.training.start
        return {
            "seed": self.training.seed,
            "settings": self._settings(),
            "data": torch.from_numpy(self.coordinates.about.fingerprint),
            "start": None if start is None else [torch.from_numpy(np.array(part)) for part in start],
            "status": None if self.status is None else self.status.name,
            "parameters": torch.from_numpy(self.neuron.parameters()),
            "optimizer": kept_state(self.neuron.optimizer),
            "scheduler": None if self.scheduler is None else copy.deepcopy(self.scheduler.state_dict()),
            "generator": self.generator.get_state(),
            "epoch": self.epoch,
            "loss_curve": list(self.loss_curve),
            "validation_curve": list(self.validation_curve),
            "cuts": self.cuts,
            "watched": float(self.watched),
            "idle": self.idle,
            "recent": list(self.recent),
            "result": _kept_result(self.result),
            "best": _kept_result(self.best),
        }

    def _settings(self) -> dict[str, Any]:
        """What has to be the same to go on."""
        return {
            "solver": type(self.neuron.optimizer).__name__,
            "batch_size": self.training.batch_size,
            "shuffle": self.training.shuffle,
            "learning_rate": "auto" if self.automatic else self.training.recipe.rate,
            "options": self._options(),
            "lr_scheduler": None if self.scheduler is None else type(self.scheduler).__name__,
            "early_stopping": self.training.early_stopping,
            "loss": _name_of(self.problem.loss),
            "l1": self.problem.penalty.l1.tolist(),
            "l2": self.l2.tolist(),
            "bounds": [self.problem.penalty.lower.tolist(), self.problem.penalty.upper.tolist()],
            "shape": list(self.coordinates.start.shape),
        }

    def _options(self) -> list[dict[str, Any]]:
        """The optimizer's options, but for those that training itself or a scheduler moves."""
        if self.scheduler is not None:
            return []
        moved = ("params", "lr") if self.automatic else ("params",)
        return [
            {name: value for name, value in group.items() if name not in moved}
            for group in kept_state(self.neuron.optimizer)["param_groups"]
        ]

    def _check_belongs(self, state: Mapping[str, Any]) -> None:
        other = [
            f"{name}={state['settings'].get(name)!r}, not {value!r}"
            for name, value in self._settings().items()
            if state["settings"].get(name) != value
        ]
        if other:
            text = "; ".join(other)
            raise ValueError(f"The checkpoint was written with {text}. Give the same parameters.")
        if not np.allclose(state["data"].numpy(), self.coordinates.about.fingerprint, rtol=SAME_DATA, atol=0):
            raise ValueError(
                "The checkpoint belongs to other data: their means or spreads are others. Give the X, y and "
                "weights it was written with, or fit without resume_from."
            )

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a loop on the same data."""
        self._check_belongs(state)
        self.neuron.set_parameters(state["parameters"].numpy())
        put_state(self.neuron.optimizer, state["optimizer"]["state"])
        groups = state["optimizer"]["param_groups"]
        for group, saved in zip(self.neuron.optimizer.param_groups, groups, strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.generator.set_state(state["generator"])
        self.epoch = state["epoch"]
        self.status = None if state["status"] is None else Status[state["status"]]
        self.loss_curve, self.validation_curve = list(state["loss_curve"]), list(state["validation_curve"])
        self.cuts, self.watched, self.idle = state["cuts"], state["watched"], state["idle"]
        self.recent = list(state["recent"])
        self.result, self.best = _read_result(state["result"]), _read_result(state["best"])


def _kept_result(result: _Result) -> list[torch.Tensor]:
    return [torch.from_numpy(part.copy()) for part in result if part is not None]


def _read_result(kept: list[torch.Tensor]) -> _Result:
    return _Result(*(part.numpy().copy() for part in kept))


def _solution(loop: _Loop, status: Status) -> Solution:
    coordinates = loop.coordinates
    exact = coordinates.about.solution
    result = loop.final_result
    coef, intercept = result.model(coordinates)
    distance = loop.final_distance()
    if status is Status.OPTIMAL and loop.training.early_stopping and distance > loop.near_enough:
        status = Status.EARLY_STOPPED  # the lowest validation loss was on the way
    if status is Status.OPTIMAL and loop.automatic:
        status = exact.status  # which knows of dependent columns and lost digits
    endless = exact.status is Status.NO_FINITE_OPTIMUM
    if endless and status in (Status.OPTIMAL, Status.MAX_ITER, Status.NO_PROGRESS):
        status = exact.status
    return Solution(
        coef=np.array(coef.T),
        intercept=np.array(intercept),
        rank=exact.rank,
        condition_number=exact.condition_number,
        solver=type(loop.neuron.optimizer).__name__.lower(),
        status=status,
        n_iter=loop.epoch,
        error=exact.error,
        scale=exact.scale,
        distance=None if endless else distance,
        loss_curve=loop.loss_curve,
        validation_loss_curve=loop.validation_curve if loop.training.validation is not None else None,
    )


def check_one_pass(problem: Problem, learning_rate: object) -> None:
    """Raise a ValueError unless optimizers can go on from some rows to others with this objective."""
    if problem.loss.kind == "piecewise_linear":
        raise ValueError(
            f"Optimizers follow gradients, which loss={problem.loss!r} does not have everywhere. Use fit "
            "with solver='auto', or a smooth loss, such as LogCosh() or Huber with a small scale."
        )
    if problem.loss.estimates_scale:
        raise ValueError(
            f"partial_fit cannot estimate the scale of loss={problem.loss!r}, which needs all rows at once. "
            "Give Huber a number for scale, or use fit."
        )
    if learning_rate == "auto" and not is_quadratic(problem):
        extra = "" if problem.penalty.is_ridge else " with an l1 penalty, positive or bounds"
        raise ValueError(
            "partial_fit with learning_rate='auto' needs the squared error with a ridge penalty at most, "
            f"whose optimum moments tell; this is loss={problem.loss!r}{extra}. Give a number for "
            "learning_rate, or use fit."
        )


def train_one_pass(
    problem: Problem,
    recipe: Recipe,
    *,
    batch_size: int | None,
    shuffle: bool,
    seed: int,
    start: Model,
    geometry: Geometry | None,
    state: Mapping[str, Any] | None,
) -> tuple[Model, float | None, dict[str, Any]]:
    """One pass of the optimizer over rows, from `start` on: the model, its distance and the state.

    With a geometry, of all rows seen so far, training heads for their optimum, at an automatic rate and with
    a fresh optimizer, since the coordinates have changed. Else it is a pass of the user's own loop, and the
    optimizer goes on from `state`.

    Raises
    ------
    ValueError
        See `check_one_pass`.
    FloatingPointError
        The loss of these rows grew beyond all bounds.
    """
    check_one_pass(problem, "auto" if recipe.auto_rate is not None else recipe.rate)
    blocks, fit_intercept = problem.blocks, problem.fit_intercept
    if geometry is None:
        coordinates = users_units_without_optimum(start, fit_intercept)
    else:
        coordinates = unit_sphere(geometry, start, fit_intercept)
    generator = torch.Generator().manual_seed(seed)
    if state is not None:
        generator.set_state(state["generator"])
    size = min(batch_size or blocks.n_samples, blocks.n_samples)
    order = generator if shuffle else None
    passes: MiniBatches | RowPasses
    if is_quadratic(problem):
        automatic = geometry is not None
        passes = MiniBatches(
            blocks, coordinates, problem.penalty.l2, size, order, corrected=automatic, settles=automatic
        )
    else:
        if isinstance(problem.loss, CallableLoss):
            _check_callable(problem, start)
        terms = Terms(problem.loss, problem.penalty, np.ones(blocks.n_targets))
        passes = RowPasses(blocks, coordinates, terms, size, order, corrected=False, settles=False)
    neuron = Neuron(coordinates.start, fit_intercept, passes.device, recipe)
    if geometry is not None and not neuron.searches_lines:
        neuron.set_rates([rate / passes.noise for rate in neuron.rates])
    name = type(neuron.optimizer).__name__.lower()
    if state is not None and geometry is None and state["name"] == name:
        put_state(neuron.optimizer, state["optimizer"]["state"])
    passes.run(neuron)
    parameters = neuron.parameters()
    distance = None if geometry is None else float(coordinates.distance(parameters).max())
    after = {
        "name": name,
        "generator": generator.get_state(),
        "optimizer": kept_state(neuron.optimizer),
    }
    model = coordinates.model(parameters)
    if isinstance(passes, RowPasses):
        model = _Result(*passes.settled(neuron)).model(coordinates)
    _raise_if_diverged(problem, start, model, neuron.rate, passes)
    return model, distance, after


def _check_callable(problem: Problem, start: Model) -> None:
    """Raise an error unless a user's loss is elementwise, of the first rows at the start."""
    assert isinstance(problem.loss, CallableLoss)
    block = problem.blocks.head(problem.blocks.rows_per_block)
    assert block.X is not None
    coef, intercept = (torch.from_numpy(part).to(block.y.device) for part in start)
    # Not the predictions of the start alone, which may be all the same.
    problem.loss.check(block.X.to(torch.float64) @ coef.T + intercept + block.y / 2, block.y)


def _raise_if_diverged(
    problem: Problem, before: Model, after: Model, rate: float, passes: MiniBatches | RowPasses
) -> None:
    blocks = problem.blocks
    with np.errstate(over="ignore", invalid="ignore"):
        zero = np.zeros_like(before[0]), np.zeros_like(before[1])
        coef, intercept = (np.stack(three) for three in zip(zero, before, after, strict=True))
        of_zero, first, last = mean_losses(blocks, problem.loss, coef, intercept)
    # Losses may be negative, so that only their size tells how far is too far.
    if not last <= max(first, DIVERGED * abs(of_zero)):
        stable = passes.stable_rate() if isinstance(passes, RowPasses) else stable_rate(blocks)
        raise FloatingPointError(
            f"Training diverged: the loss on the rows of this call of partial_fit rose from {first:.2g} to "
            f"{last:.2g}. The learning rate {rate:g} is too large for these data; gradient descent on them "
            f"is stable below {stable:.2g}. Use a smaller learning_rate, or "
            "learning_rate='auto', which needs no tuning. The model is as it was before the call."
        )
