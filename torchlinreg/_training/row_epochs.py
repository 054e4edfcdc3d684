"""An epoch of an optimizer on the rows themselves, where moments do not suffice for the loss or penalty."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from torchlinreg._data.rows import Block, RowBlocks
from torchlinreg._objective.penalty import Penalty
from torchlinreg._solvers.coordinates import KEPT_BYTES
from torchlinreg._training.coordinates import Coordinates
from torchlinreg._training.epochs import CHUNK_BYTES, NOISE_ROWS, NOISE_STEPS, Neuron, Objective, shuffled
from torchlinreg._training.objectives import LossRows, Prox, Proximal, RowSet, Settled
from torchlinreg.losses import Loss

# A proximal step of 1 over the largest curvature is the longest that is sure to descend; at a rate of 0.5, so
# that is what gradient descent takes.
STEEPEST = 2.0


@dataclass(frozen=True)
class Terms:
    """What is minimised: the loss and the penalty. `kappa` is the curvature that automatic rates count on."""

    loss: Loss
    penalty: Penalty
    kappa: np.ndarray  # shape: (n_targets,)


class _Remembered(LossRows):
    """Keeps the last gradient, which is asked for after an epoch and before the next one."""

    def gradient(self, theta: torch.Tensor, out: torch.Tensor) -> None:
        """See `Objective`."""
        last: tuple[torch.Tensor, torch.Tensor] | None = self.__dict__.get("_last")
        if last is None or not torch.equal(last[0], theta):
            super().gradient(theta, out)
            self.__dict__["_last"] = theta.clone(), out.clone()
        else:
            out.copy_(last[1])


class _Rows:
    """Rows in an optimizer's coordinates, and objectives made of them."""

    def __init__(self, blocks: RowBlocks, coordinates: Coordinates, terms: Terms) -> None:
        self.blocks = blocks
        self.coordinates = coordinates
        self.loss = terms.loss
        self.penalty = terms.penalty
        self.device = blocks.device
        self.is_anchored = coordinates.transform is not None
        self.zero = torch.zeros((), dtype=torch.float64, device=self.device)
        self._affine = None if coordinates.affine is None else coordinates.affine.to(self.device)
        self.scale = torch.from_numpy(coordinates.scale).to(self.device)[:, None]
        self.ridge = self._ridge(terms.penalty.l2)
        self._kept: list[RowSet] | None = None
        n_targets, n_coordinates = coordinates.optimum.shape
        self._keeps = 8 * blocks.n_samples * n_coordinates <= KEPT_BYTES
        self.full = LossRows(
            sets=self._sets,
            loss=terms.loss,
            ridge=self.ridge,
            scale=self.scale,
            unit=torch.ones((n_targets, 1), dtype=torch.float64, device=self.device),
            origin=self._origin(),
            at_origin=torch.zeros((n_targets, n_coordinates), dtype=torch.float64, device=self.device),
            is_anchored=self.is_anchored,
        )
        self.remembered = _Remembered(**vars(self.full))
        self.set_kappa(terms.kappa)

    def set_kappa(self, kappa: np.ndarray) -> None:
        """Divide the objective of automatic coordinates by that curvature and the squared scale."""
        if not self.is_anchored:
            return
        unit = 1 / (torch.from_numpy(kappa).to(self.device)[:, None] * self.scale.square())
        at_origin = torch.zeros_like(self.full.origin)
        for some in self._sets():
            at_origin += (some.slope * some.share).T @ some.rows
        at_origin += self._ridge_at_optimum()
        self.full = replace(self.full, unit=unit, at_origin=at_origin * unit * self.scale)
        self.remembered = _Remembered(**vars(self.full))

    def _origin(self) -> torch.Tensor:
        optimum = torch.from_numpy(self.coordinates.optimum).to(self.device)
        return optimum if self.is_anchored else torch.zeros_like(optimum)

    def _ridge(self, l2: np.ndarray) -> torch.Tensor | None:
        """The Hessian of the ridge penalty by ``change * scale``, or its diagonal."""
        if not l2.any():
            return None
        n_coordinates = self.coordinates.optimum.shape[1]
        transform = self.coordinates.transform
        if transform is None or transform.ndim == 1:
            diagonal = torch.zeros(n_coordinates, dtype=torch.float64, device="cpu")
            diagonal[: len(l2)] = torch.from_numpy(l2 if transform is None else l2 * transform**2)
            return diagonal.to(self.device)
        square = torch.from_numpy((transform.T * l2) @ transform)
        padding = n_coordinates - len(square)
        return torch.nn.functional.pad(square, (0, padding, 0, padding)).to(self.device)

    def _ridge_at_optimum(self) -> torch.Tensor:
        """The gradient of the ridge penalty there, by ``change * scale``."""
        by_coef = self.penalty.l2 * self.coordinates.about.solution.coef.T
        transform = self.coordinates.transform
        assert transform is not None
        inside = by_coef * transform if transform.ndim == 1 else by_coef @ transform
        padding = self.coordinates.optimum.shape[1] - inside.shape[1]
        return torch.from_numpy(np.pad(inside, ((0, 0), (0, padding)))).to(self.device)

    def _sets(self) -> Iterable[RowSet]:
        if not self._keeps:
            return self._all()
        if self._kept is None:
            self._kept = list(self._all())
        return self._kept

    def _all(self) -> Iterator[RowSet]:
        n_rows = self.blocks.n_samples
        weight_sum = n_rows if self.blocks.weight is None else float(self.blocks.weight.sum())
        for block in self.blocks.dense():
            rows, prediction = self.in_coordinates(block)
            slope = self.loss.derivative(prediction, block.y) if self.is_anchored else self.zero
            yield RowSet(rows, prediction, slope, block.y, shares(block, 1 / weight_sum))

    def in_coordinates(self, block: Block) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows in coordinates, and their predictions at the anchor, which are 0 in the user's units."""
        assert block.X is not None
        centred = self.coordinates.centred(block.X)
        if self._affine is None:
            return centred, torch.zeros_like(block.y)
        coef, mean_prediction = self._at_anchor
        prediction = torch.addmm(mean_prediction, centred[:, : len(coef)], coef)
        rows = centred * self._affine if self._affine.ndim == 1 else centred @ self._affine
        return rows, prediction

    @cached_property
    def _at_anchor(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The coefficients of the optimum, and its predictions at the center."""
        solution, center = self.coordinates.about.solution, self.coordinates.about.center
        coef = np.ascontiguousarray(solution.coef)
        mean_prediction = torch.from_numpy(solution.intercept + center @ coef)
        return torch.from_numpy(coef).to(self.device), mean_prediction.to(self.device)


def shares(block: Block, share: float) -> torch.Tensor:
    """The shares of rows in a mean, of a row of weight 1 that given; shape: (n_rows, 1)."""
    if block.weight is None:
        return torch.full_like(block.y[:, :1], share)
    return block.weight[:, None] * share


class RowPasses:
    """Epochs of any smooth loss, with proximal steps for penalties without a gradient.

    An epoch is a step with the gradient over all rows or, with a `batch_size`, one per batch, as in
    `MiniBatches`: `corrected` gradients are those of the batch relative to the epoch's start, plus the full
    gradient there, and where training `settles`, the rate falls within the epoch.
    """

    def __init__(
        self,
        blocks: RowBlocks,
        coordinates: Coordinates,
        terms: Terms,
        batch_size: int | None,
        generator: torch.Generator | None,
        *,
        corrected: bool,
        settles: bool,
    ) -> None:
        self._rows = _Rows(blocks, coordinates, terms)
        self._blocks = blocks
        self._batch_size = batch_size
        self._generator = generator
        self._corrected = corrected
        self._settles = settles
        self.device = blocks.device
        self._positive = None if blocks.weight is None else torch.nonzero(blocks.weight > 0)[:, 0].cpu()
        self._n_rows = blocks.n_samples if self._positive is None else len(self._positive)
        self._mean_weight = 1.0 if blocks.weight is None else float(blocks.weight.sum()) / self._n_rows
        self._has_prox = not terms.penalty.is_ridge
        self.largest_curvature: float | None = None  # of the whole objective, once it was needed
        self._kappa = terms.kappa
        if self._has_prox and coordinates.transform is not None and coordinates.transform.ndim == 1:
            self._kappa = terms.kappa * self._steepest() / STEEPEST
            self._rows.set_kappa(self._kappa)
            self.largest_curvature = STEEPEST
        self._prox = Prox(terms.penalty, coordinates, self._rows.full.unit) if self._has_prox else None
        self.noise = 1.0
        if corrected and batch_size is not None:
            self.noise += self._kurtosis() / batch_size

    def _steepest(self) -> np.ndarray:
        """The largest curvature, per target, at the optimum and at the start."""
        coordinates = self._rows.coordinates
        points = [torch.from_numpy(at).to(self.device) for at in (coordinates.optimum, coordinates.start)]
        largest = self._rows.full.steepest(*(at for at in points if bool(at.isfinite().all())))
        return np.where(largest > 0, largest, 1.0)

    def stable_rate(self) -> float:
        """Below this rate gradient descent is stable, in the user's units, near the optimum and the start."""
        return 2 / float(self._steepest().max())

    def _kurtosis(self) -> float:
        """As for `MiniBatches`, with rows weighted by the loss's curvature at the optimum."""
        sample = shuffled(self._n_rows, torch.Generator().manual_seed(0))[:NOISE_ROWS]
        block = self._gather(sample)
        rows, prediction = self._rows.in_coordinates(block)
        kappa = torch.from_numpy(self._kappa).to(self.device)
        weight = (self._rows.loss.curvature(prediction, block.y) / kappa).max(1).values
        if block.weight is not None:
            weight = weight * (block.weight / self._mean_weight)
        weight = weight.square() * rows.square().sum(1)
        vector = torch.ones(rows.shape[1], dtype=torch.float64, device=rows.device)
        for _ in range(NOISE_STEPS):
            vector = (weight * (rows @ (vector / vector.norm()))) @ rows / len(rows)
            if not vector.any():
                break
        return float(vector.norm())

    def run(self, neuron: Neuron) -> None:
        """An epoch."""
        if self._batch_size is None:
            neuron.step(self._proximal(neuron, self._rows.remembered))
            return
        start = neuron.theta.clone()
        at_start = (
            self._rows.remembered.slope(start) if self._corrected and not neuron.searches_lines else None
        )
        rates = neuron.rates
        settles = self._settles and not neuron.searches_lines
        for step, block in enumerate(self._batches()):
            if settles:
                neuron.set_rates([rate / (1 + rates[0] / 2 * step) for rate in rates])
            objective = self._of_batch(neuron, block, start, at_start)
            neuron.step(self._proximal(neuron, objective))

    def _proximal(self, neuron: Neuron, objective: LossRows) -> Objective:
        if self._prox is None:
            return objective
        if neuron.descends:
            return Proximal(objective, self._prox, neuron.rate)
        proximal = Proximal(objective, self._prox, self._safe_step())
        return proximal.for_search(neuron.theta) if neuron.searches_lines else proximal

    def _safe_step(self) -> float:
        """A step at which a proximal step descends, wherever training is."""
        if self.largest_curvature is None:
            self.largest_curvature = float(self._steepest().max())
        return 1 / (self.largest_curvature * self.noise)

    def _batches(self) -> Iterator[Block]:
        """Batches, gathered several at a time."""
        assert self._batch_size is not None
        size = self._batch_size
        order = torch.arange(self._n_rows, device="cpu")
        if self._generator is not None:
            order = shuffled(self._n_rows, self._generator)
        row_bytes = 8 * (self._blocks.n_features + self._blocks.n_targets + 1)
        at_once = max(1, CHUNK_BYTES // (row_bytes * size)) * size
        for begin in range(0, self._n_rows, at_once):
            index = order[begin : begin + at_once]
            some = self._gather(index)
            assert some.X is not None
            for first in range(0, len(index), size):
                part = slice(first, first + size)
                yield Block(some.X[part], some.y[part], None if some.weight is None else some.weight[part])

    def _gather(self, index: torch.Tensor) -> Block:
        return self._blocks.gather(index if self._positive is None else self._positive[index])

    def _of_batch(
        self, neuron: Neuron, block: Block, start: torch.Tensor, at_start: torch.Tensor | None
    ) -> LossRows:
        rows, prediction = self._rows.in_coordinates(block)
        full = self._rows.full
        share = shares(block, 1 / (len(block.y) * self._mean_weight))
        if not self._corrected:
            one = [RowSet(rows, prediction, self._rows.zero, block.y, share)]
            return replace(full, sets=lambda: one)
        # A batch of few rows alone would have no curvature along some lines, and a line search no end: it
        # gets half of its own and half of what is usual, about a point whose full gradient is known.
        searches = at_start is None
        origin = neuron.theta.clone() if searches else start
        prediction = torch.addmm(prediction, rows, ((origin - full.origin) * self._rows.scale).T)
        slope = self._rows.loss.derivative(prediction, block.y)
        one = [RowSet(rows, prediction, slope, block.y, share / 2 if searches else share)]
        ridge = full.ridge
        return replace(
            full,
            sets=lambda: one,
            origin=origin,
            at_origin=self._rows.remembered.slope(origin) if at_start is None else at_start,
            ridge=ridge / 2 if searches and ridge is not None else ridge,
            damping=0.5 if searches else 0.0,
        )

    def after_optimum(self) -> np.ndarray:
        """Parameters after a step of automatic coordinates from the optimum, which may be a little off it."""
        optimum = self._rows.full.origin
        if self._prox is not None:
            return self._settled(optimum).theta.cpu().numpy()
        return (optimum - self._rows.remembered.slope(optimum)).cpu().numpy()

    def settled(self, neuron: Neuron) -> tuple[np.ndarray, np.ndarray | None]:
        """The parameters after one more proximal step, and their coefficients with exact zeros and bounds.

        Without penalties that need it, and where plain gradient descent in the user's units has just made
        one, they are the neuron's own.
        """
        in_users_units = self._rows.coordinates.transform is None
        if (
            self._prox is None
            or (in_users_units and neuron.descends)
            or not bool(neuron.theta.isfinite().all())
        ):
            return neuron.parameters(), None
        settled = self._settled(neuron.theta)
        return settled.theta.cpu().numpy(), settled.coef

    def _settled(self, theta: torch.Tensor) -> Settled:
        assert self._prox is not None
        return Proximal(self._rows.remembered, self._prox, self._safe_step()).settled(
            theta, self._safe_step()
        )
