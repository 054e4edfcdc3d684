"""Losses of single rows at given predictions: values, first and second derivatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchlinreg.losses import Loss

ULP = 2.0**-52
# Curvatures beyond this, such as infinite ones, are as good as this.
LARGEST_CURVATURE = 1e200


@dataclass(frozen=True)
class Points:
    """Predictions of rows with the loss and its derivatives there."""

    numbers: Tensor  # prediction, value, first and second derivative; shape: (4, n)

    def __len__(self) -> int:
        return self.numbers.shape[1]

    def __getitem__(self, index: Tensor) -> Points:
        return Points(self.numbers[:, index])

    @property
    def prediction(self) -> Tensor:
        return self.numbers[0]

    @property
    def value(self) -> Tensor:
        return self.numbers[1]

    @property
    def first(self) -> Tensor:
        return self.numbers[2]

    @property
    def second(self) -> Tensor:
        return self.numbers[3]

    @property
    def is_finite(self) -> Tensor:
        """Whether value and slope are; shape: (n,)."""
        return torch.isfinite(self.numbers[1:3]).all(0)

    @staticmethod
    def where(condition: Tensor, one: Points, other: Points) -> Points:
        return Points(torch.where(condition, one.numbers, other.numbers))

    @staticmethod
    def joined(*parts: Points) -> Points:
        return Points(torch.cat([part.numbers for part in parts], 1))


@dataclass(frozen=True)
class RowLosses:
    """The loss of each row as a function of its prediction, and the units that errors are measured in."""

    loss: Loss
    y: Tensor  # shape: (n_rows,)
    spread: float  # a typical residual
    steep: float  # a typical difference of slopes between rows

    @staticmethod
    def about(loss: Loss, y: Tensor, share: Tensor, points: Points) -> RowLosses:
        """With the units that these points suggest."""
        slopes = points.first
        if not np.isfinite(float(slopes.sum())):
            slopes = slopes[torch.isfinite(slopes)]
        if not len(slopes):
            slopes = torch.zeros(1, dtype=y.dtype, device=y.device)
        least, most = torch.aminmax(slopes)
        return RowLosses(
            loss,
            y,
            _wide(float((share @ (y - points.prediction).square()).sqrt()), float(y.abs().max())),
            _wide(float(slopes.std(correction=0)), max(-float(least), float(most))),
        )

    @property
    def bend(self) -> float:
        """A typical curvature."""
        return self.steep / self.spread

    def of_rows(self, index: Tensor) -> RowLosses:
        """Those of some rows."""
        return RowLosses(self.loss, self.y[index], self.spread, self.steep)

    def sizes(self, prediction: Tensor) -> Tensor:
        """What the rounding of predictions is relative to."""
        return torch.maximum(self.y.abs(), prediction.abs()).clamp(min=self.spread)

    def at(self, prediction: Tensor) -> Points:
        """The points of all rows."""
        return expanded(self.loss, prediction, self.y)

    def lines(self, prediction: Tensor) -> Points:
        """The points of all rows, without curvatures."""
        return tangents(self.loss, prediction, self.y)


def expanded(loss: Loss, prediction: Tensor, y: Tensor) -> Points:
    """The points of rows at predictions; curvatures are at least 0, which rounding may not leave them."""
    value, first, second = loss.expand(prediction, y)
    second = second.nan_to_num(nan=0.0, posinf=LARGEST_CURVATURE).clamp(min=0.0, max=LARGEST_CURVATURE)
    return Points(torch.stack([prediction, value, first, second]))


def tangents(loss: Loss, prediction: Tensor, y: Tensor) -> Points:
    """The points of rows at predictions, without curvatures."""
    value, first = loss.tangent(prediction, y)
    return Points(torch.stack([prediction, value, first, torch.zeros_like(first)]))


def _wide(value: float, size: float) -> float:
    """The value, unless it is rounding of a size; then that, or 1."""
    return value if value > 1e-12 * size else (size or 1.0)
