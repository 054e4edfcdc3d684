"""An epoch of an optimizer: the full batch from moments, or mini-batches of the rows."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import nullcontext
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch.nn import Parameter
from torch.optim import LBFGS, SGD

from torchlinreg._data.rows import Block, RowBlocks
from torchlinreg._training.coordinates import Coordinates
from torchlinreg._training.objectives import Proximal
from torchlinreg._training.optimizers import Recipe

# Mini-batches are gathered so many bytes at a time, which stay in the cache.
CHUNK_BYTES = 4 * 2**20
# Below this many features, and a quarter of the batch, a batch is a Gram matrix and a step one product with
# it. The gain shrinks with the features: three epochs of gradient descent at 100,000 rows and batches of 256
# take 25 against 57 ms for 10 features, 59 against 89 for 31, 118 against 137 for 62.
GRAM_COORDINATES = 32
# Up to this condition Gram matrices are whitened rather than rows; at Filip's 1e10 that diverged.
GRAM_CONDITION = 1e5
# From so many rows the noise of batches is estimated, by so many steps of power iteration.
NOISE_ROWS, NOISE_STEPS = 2048, 10
# Steps of power iteration for the stable rate that an error names.
POWER_STEPS = 60


class Objective(Protocol):
    """A function of parameters, shape (n_targets, n_coordinates)."""

    def gradient(self, theta: torch.Tensor, out: torch.Tensor) -> None:
        """Write the gradient at `theta` to `out`."""

    def value(self, theta: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """The value at `theta`, up to a constant, given the gradient there."""


class Quadratic(NamedTuple):
    """``theta @ hessian @ theta.T / 2 + constant . theta``; None stands for the identity."""

    hessian: torch.Tensor | None  # shape: (n_coordinates, n_coordinates)
    constant: torch.Tensor  # shape: (n_targets, n_coordinates)

    def gradient(self, theta: torch.Tensor, out: torch.Tensor) -> None:
        """See `Objective`."""
        if self.hessian is None:
            torch.add(theta, self.constant, out=out)
        else:
            torch.addmm(self.constant, theta, self.hessian, out=out)

    def value(self, theta: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """See `Objective`."""
        return ((gradient + self.constant) * theta).sum() / 2


class RowsQuadratic(NamedTuple):
    """The same without a Hessian: ``(delta @ left.T) @ right + delta @ ridge + constant`` is the gradient.

    `delta` is ``theta - origin``, and a one-dimensional `ridge` a diagonal matrix.
    """

    left: torch.Tensor  # shape: (n_rows, n_coordinates)
    right: torch.Tensor  # shape: (n_rows, n_coordinates)
    ridge: torch.Tensor | None  # shape: (n_coordinates, n_coordinates) or (n_coordinates,)
    constant: torch.Tensor  # shape: (n_targets, n_coordinates)
    origin: torch.Tensor  # shape: (n_targets, n_coordinates)

    def gradient(self, theta: torch.Tensor, out: torch.Tensor) -> None:
        """See `Objective`."""
        delta = theta - self.origin
        torch.addmm(self.constant, delta @ self.left.T, self.right, out=out)
        if self.ridge is not None:
            out += delta * self.ridge if self.ridge.ndim == 1 else delta @ self.ridge

    def value(self, theta: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """See `Objective`."""
        return ((gradient + self.constant) * (theta - self.origin)).sum() / 2


class _Part(NamedTuple):
    """A parameter of torch, the view of all parameters that it shares memory with, and their gradients."""

    parameter: Parameter
    values: torch.Tensor
    gradient: torch.Tensor
    contiguous: torch.Tensor  # gradient itself, or a copy


class Neuron:
    """Parameters of shape (n_targets, n_coordinates), as an optimizer of torch sees them, and their gradient.

    The optimizer is given ``[coef, intercept]`` as `torch.nn.Linear` has them, views of `theta`, or `theta`
    itself where that makes no difference.
    """

    def __init__(
        self, parameters: np.ndarray, fit_intercept: bool, device: torch.device, recipe: Recipe
    ) -> None:
        self.theta = torch.tensor(parameters, dtype=torch.float64, device=device)
        self.gradient = torch.zeros_like(self.theta)
        if fit_intercept and not recipe.joins_parameters:
            parts = [(self.theta[:, :-1], self.gradient[:, :-1]), (self.theta[:, -1], self.gradient[:, -1])]
        else:
            parts = [(self.theta, self.gradient)]
        if self.theta.numel():  # no coefficients, of rows without spread, have no norm to divide by
            parts = [part for part in parts if part[0].numel()]
        # L-BFGS flattens gradients by view, so they are copied where they are not contiguous.
        self._parts = [
            _Part(Parameter(values), values, gradient, gradient.contiguous()) for values, gradient in parts
        ]
        for part in self._parts:
            part.parameter.grad = part.contiguous
        # Step counters of torch's optimizers are made on the default device, but belong on the CPU.
        is_default = torch.get_default_device() == torch.device("cpu")
        self._counting = nullcontext() if is_default else torch.device("cpu")
        with self._counting:
            self.optimizer = recipe.make([part.parameter for part in self._parts])
        self._is_foreign = not type(self.optimizer).__module__.startswith("torch.")
        # Without the optimizer, where a step is the gradient times the rate; a user's function may have put
        # hooks on it.
        self.may_descend = recipe.joins_parameters
        closure = inspect.signature(self.optimizer.step).parameters.get("closure")
        self.searches_lines = closure is not None and closure.default is closure.empty

    @property
    def rate(self) -> float:
        """The largest learning rate of the optimizer's groups."""
        return max(self.rates)

    @property
    def rates(self) -> list[float]:
        """The learning rates of the optimizer's groups."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def set_rates(self, rates: list[float]) -> None:
        """Set the learning rates of the optimizer's groups."""
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = float(rate)  # not NumPy's, which a checkpoint could not hold

    def let_search(self, max_evaluations: int) -> None:
        """Let torch's L-BFGS evaluate that often in an epoch, at least."""
        for group in self.optimizer.param_groups:
            if isinstance(self.optimizer, LBFGS):
                group["max_eval"] = max(group["max_eval"], max_evaluations)

    @property
    def is_plain_descent(self) -> bool:
        """Whether a step is the gradient times the rate, which needs no optimizer."""
        return self.may_descend and self.descends

    @property
    def descends(self) -> bool:
        """The same, but for what a user's hooks may do."""
        if type(self.optimizer) is not SGD or len(self.optimizer.param_groups) != 1:
            return False
        group = self.optimizer.param_groups[0]
        return not (group["momentum"] or group["weight_decay"] or group["maximize"])

    def parameters(self) -> np.ndarray:
        """A copy of the parameters."""
        return self.theta.numpy(force=True).copy()

    def set_parameters(self, parameters: np.ndarray) -> None:
        """Overwrite the parameters."""
        self.theta.copy_(torch.from_numpy(parameters))

    def step(self, objective: Objective) -> None:
        """One step of the optimizer."""
        if self.theta.numel() == 0:
            return
        if self.searches_lines:

            def closure() -> float:
                self._find_gradient(objective)
                return float(objective.value(self.theta, self.gradient))

            self.optimizer.step(closure)
        else:
            if self.is_plain_descent and isinstance(objective, Proximal):
                self.theta.copy_(objective.settled(self.theta, self.rate).theta)
                return
            self._find_gradient(objective)
            if self.is_plain_descent:
                self.theta.sub_(self.gradient, alpha=self.rate)
                return
            with self._counting:
                self.optimizer.step()
        if self._is_foreign:
            self._read_parameters()

    def _find_gradient(self, objective: Objective) -> None:
        if self._is_foreign:
            self._read_parameters()
        objective.gradient(self.theta, self.gradient)
        for part in self._parts:
            if part.contiguous is not part.gradient:
                part.contiguous.copy_(part.gradient)

    def _read_parameters(self) -> None:
        """Undo what a user's optimizer may do: put new memory under a parameter, drop its gradient."""
        for part in self._parts:
            if part.parameter.data_ptr() != part.values.data_ptr():
                part.values.copy_(part.parameter.detach())
                part.parameter.data = part.values
            part.parameter.grad = part.contiguous


class FullBatch:
    """An epoch is one step with the gradient over all rows."""

    device = torch.device("cpu")  # small matrices, for which another device only costs transfers
    noise = 1.0

    def __init__(self, coordinates: Coordinates, l2: np.ndarray) -> None:
        self.objective = _full_objective(coordinates, l2)

    def run(self, neuron: Neuron) -> None:
        """An epoch."""
        neuron.step(self.objective)


def largest_curvature(coordinates: Coordinates, l2: np.ndarray) -> float:
    """The largest eigenvalue of the full objective's Hessian, by power iteration."""
    objective = _full_objective(coordinates, l2)
    at_zero = torch.zeros(coordinates.optimum.shape, dtype=torch.float64, device="cpu")
    constant = torch.empty_like(at_zero)
    objective.gradient(at_zero, constant)
    vector = torch.from_numpy(np.random.default_rng(0).standard_normal(at_zero.shape))
    size = torch.tensor(0.0, device="cpu")
    for _ in range(POWER_STEPS):
        product = torch.empty_like(vector)
        objective.gradient(vector / vector.norm(), product)
        vector = product - constant
        size = vector.norm()
        if size == 0:
            break
    return float(size)


def stable_rate(blocks: RowBlocks) -> float:
    """Below this rate gradient descent on some of the rows, with an intercept, is stable."""
    block = blocks.gather(torch.arange(min(NOISE_ROWS, blocks.n_samples), device="cpu"))
    assert block.X is not None
    rows = torch.cat([block.X.to(torch.float64), torch.ones_like(block.X[:, :1])], dim=1)
    return 2 * len(rows) / float(torch.linalg.matrix_norm(rows, 2)) ** 2


def shuffled(n_rows: int, generator: torch.Generator) -> torch.Tensor:
    """Indices of rows in random order, on the CPU."""
    return torch.randperm(n_rows, generator=generator, device="cpu")


def _full_objective(coordinates: Coordinates, l2: np.ndarray) -> Objective:
    optimum = torch.from_numpy(coordinates.optimum)
    if coordinates.transform is not None:
        return Quadratic(None, -optimum)
    geometry = coordinates.about
    center = torch.from_numpy(geometry.center)
    target_center = geometry.target_center
    n_features = len(center)
    one = torch.ones(1, dtype=torch.float64, device="cpu")
    mean = torch.cat([center, one]) if coordinates.fit_intercept else None
    penalty = torch.zeros(optimum.shape[1], dtype=torch.float64, device="cpu")
    penalty[:n_features] = torch.from_numpy(l2)
    # From the moments, not from the optimum, whose coefficients may be large and nearly cancel.
    constant = torch.empty_like(optimum)
    constant[:, :n_features] = -torch.from_numpy(geometry.cross + np.outer(geometry.center, target_center)).T
    constant[:, n_features:] = -torch.from_numpy(target_center)[:, None]
    if geometry.scatter is not None:
        hessian = torch.diag(penalty)
        hessian[:n_features, :n_features] += torch.from_numpy(geometry.scatter)
        if mean is not None:
            hessian += torch.outer(mean, mean)
        return Quadratic(hessian, constant)
    assert geometry.rows is not None
    rows = torch.zeros((len(geometry.rows) + 1, optimum.shape[1]), dtype=torch.float64, device="cpu")
    rows[:-1, :n_features] = torch.from_numpy(geometry.rows)
    if mean is not None:
        rows[-1] = mean
    return RowsQuadratic(rows, rows, penalty if l2.any() else None, constant, torch.zeros_like(optimum))


class _Chunk(NamedTuple):
    """Some batches of one size."""

    rows: torch.Tensor  # in coordinates, or centred ones; shape: (n_batches, batch_size, n_columns)
    weighted: torch.Tensor  # the same times the weights
    y: torch.Tensor  # shape: (n_batches, batch_size, n_targets)
    share: float  # of a row of weight 1 in the mean over the batch


class MiniBatches:
    """An epoch is a step per batch, in an order that is shuffled anew for each epoch.

    The gradient of a batch is the mean over its own rows, as in a loop over a `DataLoader`. Weights are
    divided by their mean over the rows of positive weight; the other rows are left out. `corrected` gradients
    are those of the batch relative to the epoch's start, plus the full gradient there; their mean over full
    batches is the full gradient wherever they are taken, and at the optimum each of them is 0. Where training
    `settles`, the rate falls within the epoch, in the end as 2 / step, which averages the noise out: at
    50,000 x 10 and batches of 256 an epoch divides the distance from the optimum by 100, against 5 at a
    constant rate.
    """

    def __init__(
        self,
        blocks: RowBlocks,
        coordinates: Coordinates,
        l2: np.ndarray,
        batch_size: int,
        generator: torch.Generator | None,
        *,
        corrected: bool,
        settles: bool,
    ) -> None:
        self._settles = settles
        self._blocks = blocks
        self._coordinates = coordinates
        self._batch_size = batch_size
        self._generator = generator
        self._corrected = corrected
        self._rows = None if blocks.weight is None else torch.nonzero(blocks.weight > 0)[:, 0].cpu()
        n_rows = blocks.n_samples if self._rows is None else len(self._rows)
        self._n_rows = n_rows
        self._mean_weight = 1.0 if blocks.weight is None else float(blocks.weight.sum()) / n_rows
        n_targets, n_coordinates = coordinates.optimum.shape
        self._by_gram = blocks.n_features < min(GRAM_COORDINATES, batch_size // 4)
        self._affine = None if coordinates.affine is None else coordinates.affine.to(blocks.device)
        self._transforms_grams = self._by_gram and self._is_well_conditioned()
        self.device = torch.device("cpu") if self._by_gram else blocks.device
        row_bytes = 8 * (n_coordinates + n_targets)
        self._batches_at_once = max(1, CHUNK_BYTES // (row_bytes * batch_size))
        self._ridge = self._penalty(l2)
        self._optimum = torch.from_numpy(coordinates.optimum).to(self.device)
        self.noise = 1 + self._kurtosis() / batch_size if corrected else 1.0

    def _is_well_conditioned(self) -> bool:
        """Whether Gram matrices may be transformed in place of rows, which squares the condition."""
        if self._affine is None:
            return True
        condition = self._coordinates.about.solution.condition_number
        return condition is not None and condition <= GRAM_CONDITION

    def _penalty(self, l2: np.ndarray) -> torch.Tensor | None:
        """The Hessian of the ridge penalty, or its diagonal."""
        if not l2.any():
            return None
        transform = self._coordinates.transform
        n_coordinates = self._coordinates.optimum.shape[1]
        if transform is None:
            ridge = torch.zeros(n_coordinates, dtype=torch.float64, device="cpu")
            ridge[: len(l2)] = torch.from_numpy(l2)
            return ridge.to(self.device)
        square = torch.from_numpy((transform.T * l2) @ transform).to(self.device)
        padding = n_coordinates - len(square)
        return torch.nn.functional.pad(square, (0, padding, 0, padding))

    def _kurtosis(self) -> float:
        """The largest eigenvalue of the mean of ``weight^2 |row|^2 row row.T`` over some rows.

        A batch's Hessian scatters about the full one, the identity, by this over the batch size.
        """
        sample = shuffled(self._n_rows, torch.Generator().manual_seed(0))[:NOISE_ROWS]
        block = self._gather(sample)
        assert block.X is not None
        rows = self._in_coordinates(self._coordinates.centred(block.X))
        weight = rows.square().sum(1)
        if block.weight is not None:
            weight *= (block.weight / self._mean_weight).square()
        vector = torch.ones(rows.shape[1], dtype=torch.float64, device=rows.device)
        for _ in range(NOISE_STEPS):
            vector = (weight * (rows @ (vector / vector.norm()))) @ rows / len(rows)
            if not vector.any():  # the rows that matter are elsewhere; the rate will be cut
                break
        return float(vector.norm())

    def run(self, neuron: Neuron) -> None:
        """An epoch."""
        start = neuron.theta.clone()
        rates = neuron.rates
        settles = self._settles and not neuron.searches_lines
        n_steps = 0
        for chunk in self._chunks():
            steps = np.arange(n_steps, n_steps + len(chunk.rows))
            n_steps += len(chunk.rows)
            fall = 1 / (1 + rates[0] / 2 * steps) if settles else np.ones(len(steps))
            if self._by_gram and neuron.is_plain_descent:
                _descend(neuron, *self._gram_matrices(chunk, start), rates[0] * fall)
                continue
            for objective, share in zip(self._objectives(neuron, chunk, start), fall, strict=True):
                if settles:
                    neuron.set_rates([rate * share for rate in rates])
                neuron.step(objective)

    def _chunks(self) -> Iterator[_Chunk]:
        order = None if self._generator is None else shuffled(self._n_rows, self._generator)
        n_full = self._n_rows // self._batch_size * self._batch_size
        step = self._batches_at_once * self._batch_size
        for first in range(0, n_full, step):
            yield self._chunk(order, first, min(first + step, n_full), self._batch_size)
        if n_full < self._n_rows:
            yield self._chunk(order, n_full, self._n_rows, self._n_rows - n_full)

    def _chunk(self, order: torch.Tensor | None, first: int, last: int, batch_size: int) -> _Chunk:
        index = torch.arange(first, last, device="cpu") if order is None else order[first:last]
        block = self._gather(index)
        assert block.X is not None
        rows = self._coordinates.centred(block.X)
        if not self._transforms_grams:
            rows = self._in_coordinates(rows)
        weighted = rows if block.weight is None else rows * block.weight[:, None]
        shape = len(index) // batch_size, batch_size, -1
        share = 1 / (batch_size * self._mean_weight)
        return _Chunk(rows.view(shape), weighted.view(shape), block.y.view(shape), share)

    def _in_coordinates(self, rows: torch.Tensor) -> torch.Tensor:
        return rows if self._affine is None else rows @ self._affine

    def _gather(self, index: torch.Tensor) -> Block:
        return self._blocks.gather(index if self._rows is None else self._rows[index])

    def _constants(self, chunk: _Chunk) -> torch.Tensor:
        """Gradients of the batches at 0 in the user's units, shape (n_batches, n_targets, n_coordinates)."""
        return (torch.bmm(chunk.y.mT, chunk.weighted) * -chunk.share).to(self.device)

    def _objectives(self, neuron: Neuron, chunk: _Chunk, start: torch.Tensor) -> Iterator[Objective]:
        """The objective of each batch, made in its turn: a corrected line search asks where it starts."""
        searches = self._corrected and neuron.searches_lines
        if self._by_gram:
            for hessian, constant in zip(*self._gram_matrices(chunk, start), strict=True):
                yield self._search(neuron, hessian) if searches else Quadratic(hessian, constant)
            return
        lefts = chunk.rows
        rights = chunk.weighted * chunk.share
        if self._corrected:
            constants = (start - self._optimum).expand(len(lefts), *start.shape)
            origin = start
        else:
            constants = self._constants(chunk)
            origin = torch.zeros_like(start)
        for left, right, constant in zip(lefts, rights, constants, strict=True):
            if searches:
                yield self._search_by_rows(neuron, left, right)
            else:
                yield RowsQuadratic(left, right, self._ridge, constant, origin)

    def _gram_matrices(self, chunk: _Chunk, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hessians of the batches, and their gradients at 0."""
        hessians = torch.bmm(chunk.rows.mT, chunk.weighted) * chunk.share
        if self._affine is not None and self._transforms_grams:
            hessians = self._affine.T @ hessians @ self._affine
        hessians = hessians.to(self.device)
        if self._ridge is not None:
            hessians += torch.diag(self._ridge) if self._ridge.ndim == 1 else self._ridge
        if self._corrected:
            return hessians, start - self._optimum - start @ hessians
        return hessians, self._constants(chunk)

    def _search(self, neuron: Neuron, hessian: torch.Tensor) -> Objective:
        """The full gradient here, and curvature that is half the batch's and half the full one, the identity.

        A batch of few rows alone would have no curvature along some lines, and the search no end.
        """
        half = (hessian + torch.eye(len(hessian), dtype=torch.float64, device=self.device)) / 2
        return Quadratic(half, neuron.theta - self._optimum - neuron.theta @ half)

    def _search_by_rows(self, neuron: Neuron, left: torch.Tensor, right: torch.Tensor) -> Objective:
        """The same from the rows of the batch."""
        here = neuron.theta.clone()
        half = torch.full((here.shape[1],), 0.5, dtype=torch.float64, device=self.device)
        ridge = half if self._ridge is None else torch.diag(half) + self._ridge / 2
        return RowsQuadratic(left, right / 2, ridge, here - self._optimum, here)


def _descend(neuron: Neuron, hessians: torch.Tensor, constants: torch.Tensor, rates: np.ndarray) -> None:
    """Plain gradient steps, each one product of small matrices, without the optimizer's overhead."""
    one = torch.eye(hessians.shape[1], dtype=torch.float64, device="cpu")
    factor_of = torch.from_numpy(rates)[:, None, None]
    factors = (one - factor_of * hessians).numpy()
    summands = (-factor_of * constants).numpy()
    theta = neuron.theta.numpy()
    product = np.empty_like(theta)
    with np.errstate(over="ignore", invalid="ignore"):  # found out after the epoch
        for factor, summand in zip(factors, summands, strict=True):
            np.dot(theta, factor, out=product)
            np.add(product, summand, out=theta)
