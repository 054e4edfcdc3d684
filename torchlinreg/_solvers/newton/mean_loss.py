"""The mean loss at a point with its gradient and Hessian: one pass over the rows, additive over blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import block_diag

from torchlinreg._data.rows import Block
from torchlinreg._moments.moments import symmetric
from torchlinreg._solvers.coordinates import Design
from torchlinreg.losses import Loss, is_known

# Curvatures below this share of the largest, negatively, are more than rounding; differences of a derivative
# are taken so far apart, relative to the residual.
NEGATIVE = 1e-8
DIFFERENCE = 1e-4
ROUNDING = 1e-15
# Steps of a first guess of the scale, which is then one of the variables, and the rows it is made from.
SCALE_STEPS, SCALE_ROWS = 4, 4096
TINY = 1e-300


class Expansion(NamedTuple):
    """The mean loss about a point: its value, gradient and Hessian there, by the variables."""

    value: float
    gradient: np.ndarray  # shape: (n_variables,)
    hessian: np.ndarray  # shape: (n_variables, n_variables)
    variables: np.ndarray | None = None  # the point; None stands for one of curvature 1 in all rows
    gram: np.ndarray | None = None  # mean of the columns' products times the curvature, at a scale of 1
    root: np.ndarray | None = None  # of the Hessian, by QR decompositions, where its products are too rounded
    metric: np.ndarray | None = None  # with it, a root of the columns' own mean products

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are."""
        return bool(
            np.isfinite(self.value) and np.isfinite(self.gradient).all() and np.isfinite(self.hessian).all()
        )


# Where differences of Gram matrices fall below this share of what they are taken from, all rows are
# multiplied.
CANCELLED = 1e-6
NOTHING_NEAR = Expansion(0.0, np.empty(0), np.empty(0))


class _Derivatives(NamedTuple):
    """Of the rows of a block, times the weights and in units of the scale."""

    residual: torch.Tensor
    value: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor


@dataclass(frozen=True)
class Objective:
    """The mean loss of one target: variables are the coordinates and, if it is estimated, the scale.

    With a scale ``s`` the loss is ``s / 2 + s * loss(residual / s)``, jointly convex.
    """

    design: Design
    loss: Loss
    target: int
    decomposes: bool = False  # rows, for a root of the Hessian: two passes in place of one

    def expand(self, variables: np.ndarray, near: Expansion | None = None) -> Expansion:
        """Value, gradient and Hessian; one pass over the rows, and another for a root."""
        here = self._expand(variables, near)
        if not (self.decomposes and here.is_finite):
            return here
        metric = self.root_of_columns
        if self.loss.estimates_scale:
            metric = block_diag(metric, np.ones((1, 1)))
        return here._replace(root=self._root(variables), metric=metric)

    def _root(self, variables: np.ndarray) -> np.ndarray:
        """Of the Hessian: the triangular factor of the rows, each times the root of its curvature."""
        thetas, scales = self._points(variables, None)

        def of(block: Block) -> torch.Tensor:
            assert block.X is not None
            there = self._derivatives(block, block.X @ thetas[0], scales[0])
            columns = [block.X, -there.residual[:, None]] if self.loss.estimates_scale else [block.X]
            return torch.linalg.qr(torch.cat(columns, dim=1) * there.second.sqrt()[:, None], mode="r").R

        return self._merged_root(of) / np.sqrt(scales[0])

    @cached_property
    def root_of_columns(self) -> np.ndarray:
        """The triangular factor of the rows."""

        def of(block: Block) -> torch.Tensor:
            assert block.X is not None
            rows = block.X if block.weight is None else block.X * block.weight.sqrt()[:, None]
            return torch.linalg.qr(rows, mode="r").R

        return self._merged_root(of)

    def _merged_root(self, of: Callable[[Block], torch.Tensor]) -> np.ndarray:
        blocks = self.design.blocks
        total = blocks.n_samples if blocks.weight is None else float(blocks.weight.sum())
        root = blocks.map_reduce(of, _merged_roots, dense=True).cpu().numpy()
        return np.asarray(root / np.sqrt(total))

    def _expand(self, variables: np.ndarray, near: Expansion | None) -> Expansion:
        """Value, gradient and Hessian.

        Where the curvature takes few values, only rows are multiplied whose curvature is another one than at
        the point of `near`; without that than 1, whose products come with the design.
        """
        blocks, has_scale = self.design.blocks, self.loss.estimates_scale
        if not self.loss.curvature_is_stepwise or near is NOTHING_NEAR:
            near = None
        elif near is None and self.design.gram is not None:
            near = Expansion(0.0, np.empty(0), np.empty(0), None, self.design.gram)
        thetas, scales = self._points(variables, near)
        n_columns, scale = self.design.n_columns, scales[0]

        def of(block: Block) -> torch.Tensor:
            rows = block.X
            assert rows is not None
            # Both predictions, and below both products, in one reading of the rows.
            predictions = thetas @ rows.T
            here = self._derivatives(block, predictions[0], scale)
            result = torch.zeros((n_columns + 5, max(1, n_columns)), dtype=torch.float64, device=rows.device)
            if near is None:
                result[:n_columns, :n_columns] = self.design.upper_gram.of_scaled(rows, here.second.sqrt())
            else:
                before = self._curvature_before(block, predictions[1:], scales[1:])
                result[:n_columns, :n_columns] = _gram_of_change(rows, here.second - before)
            if not has_scale:
                result[n_columns, :n_columns] = here.first @ rows
            else:
                pull = here.second * here.residual
                result[n_columns : n_columns + 2, :n_columns] = torch.stack([here.first, pull]) @ rows
                by_scale = self.loss.derivative_by_scale(here.residual)
                result[n_columns + 3, 0] = (
                    by_scale if block.weight is None else by_scale * block.weight
                ).sum()
                result[n_columns + 4, 0] = pull @ here.residual
            result[n_columns + 2, 0] = here.value.sum()
            return result

        total = blocks.map_reduce(of, torch.add, dense=True).cpu()
        total /= blocks.n_samples if blocks.weight is None else float(blocks.weight.sum())
        gram = symmetric(total[:n_columns, :n_columns]).numpy()
        if near is not None and near.gram is not None:
            gram += near.gram
            if (gram.diagonal() < CANCELLED * near.gram.diagonal()).any():
                return self._expand(variables, NOTHING_NEAR)
        gradient, border = total[n_columns, :n_columns].numpy(), -total[n_columns + 1, :n_columns].numpy()
        value, by_scale, bend = total[n_columns + 2 :, 0].tolist()
        if not has_scale:
            return Expansion(value, gradient, gram, variables, gram)
        hessian = np.block([[gram, border[:, None]], [border[None], np.array([[bend]])]]) / scale
        gradient = np.append(gradient, 0.5 + by_scale)
        return Expansion(scale / 2 + scale * value, gradient, hessian, variables, gram)

    def value(self, variables: np.ndarray) -> float:
        """The value alone."""
        scale = float(variables[-1]) if self.loss.estimates_scale else 1.0
        target = self.design.blocks.y[:, self.target] / scale
        mean = float(self.design.share @ self.loss.value(self.predict(variables) / scale, target))
        return scale / 2 + scale * mean if self.loss.estimates_scale else mean

    def scale_at(self, theta: np.ndarray) -> float:
        """About the scale that suits these coordinates, from the residuals of some rows."""
        residual, share = self.predict(theta) - self.design.blocks.y[:, self.target], self.design.share
        scale = float((share @ residual.square()).sqrt())
        thinned = slice(None, None, max(1, len(residual) // SCALE_ROWS))
        residual, share = residual[thinned], share[thinned] / max(float(share[thinned].sum()), TINY)
        zero = torch.zeros_like(residual)
        for _ in range(SCALE_STEPS if scale > 0 else 0):
            inside = residual / scale
            slope = 0.5 + float(share @ self.loss.derivative_by_scale(inside))
            bend = float(share @ (self.loss.curvature(inside, zero) * inside.square()))
            if bend == 0:
                break
            scale *= max(1 - slope / bend, 0.5)
        return scale

    def predict(self, variables: np.ndarray) -> torch.Tensor:
        """The predictions of all rows, which a constant needs no pass for."""
        theta = torch.from_numpy(variables[: self.design.n_columns]).to(self.design.blocks.device)
        if not variables[: self.design.n_columns][self.design.features].any() and self.design.fit_intercept:
            return theta[:1].expand(self.design.blocks.n_samples)
        return torch.cat([block.X @ theta for block in self.design.blocks.dense() if block.X is not None])

    def _points(self, variables: np.ndarray, near: Expansion | None) -> tuple[torch.Tensor, list[float]]:
        """Coordinates on the device, a row for each point, and the scales there."""
        points = [variables] if near is None or near.variables is None else [variables, near.variables]
        thetas = torch.from_numpy(np.stack([point[: self.design.n_columns] for point in points]))
        scales = [float(point[-1]) if self.loss.estimates_scale else 1.0 for point in points]
        return thetas.to(self.design.blocks.device), scales

    def _derivatives(self, block: Block, prediction: torch.Tensor, scale: float) -> _Derivatives:
        prediction, target = self._in_scales(block, prediction, scale)
        value, first, second = self.loss.expand(prediction, target)
        if not is_known(self.loss):
            second = _convex_curvature(self.loss, prediction, target, second)
        if block.weight is not None:
            value, first, second = value * block.weight, first * block.weight, second * block.weight
        return _Derivatives(prediction - target, value, first, second)

    def _curvature_before(
        self, block: Block, predictions: torch.Tensor, scales: list[float]
    ) -> torch.Tensor | float:
        """At the other point, if there is one; else 1, times the weights."""
        if not scales:
            return 1.0 if block.weight is None else block.weight
        second = self.loss.curvature(*self._in_scales(block, predictions[0], scales[0]))
        return second if block.weight is None else second * block.weight

    def _in_scales(
        self, block: Block, prediction: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions and targets."""
        target = block.y[:, self.target]
        return (prediction, target) if scale == 1 else (prediction / scale, target / scale)


def _merged_roots(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The triangular factor of the rows of both."""
    return torch.linalg.qr(torch.cat([a, b]), mode="r").R


def _gram_of_change(rows: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Products of the columns times a change of the rows' weights, of which most are 0."""
    index = change.nonzero()[:, 0]
    picked = rows.index_select(0, index)
    return picked.T @ (picked * change.index_select(0, index)[:, None])


def _convex_curvature(
    loss: Loss, prediction: torch.Tensor, target: torch.Tensor, curvature: torch.Tensor
) -> torch.Tensor:
    """A curvature without negative numbers, if differences of the derivative show that they are rounding.

    ``log(cosh(r))`` is convex, but at r = 370 its second derivative by autograd is -0.01.
    """
    doubtful = ~(curvature >= 0)
    if not doubtful.any():
        return curvature
    at, of = prediction[doubtful], target[doubtful]
    step = DIFFERENCE * (1 + (at - of).abs())
    before, after = loss.derivative(at - step, of), loss.derivative(at + step, of)
    slope = (after - before) / (2 * step)
    slope[slope.abs() * step <= ROUNDING * (before.abs() + after.abs())] = 0.0
    lowest, where = slope.min(0)
    if lowest < -NEGATIVE * curvature.nan_to_num().abs().max():
        raise ValueError(
            f"loss={loss!r} is not convex: its second derivative is {float(lowest):.3g} at "
            f"prediction {float(at[where]):.6g} and target {float(of[where]):.6g}. Only convex losses have "
            "one optimum; use one of torchlinreg.losses, such as Huber() for data with outliers."
        )
    return curvature.masked_scatter(doubtful, slope.clamp(min=0.0))
