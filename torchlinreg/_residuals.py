"""The gradient pass: residuals of the rows and their products with the columns.

`Gradient` works in float64; `ExactGradient` forms the residuals of a double-double model to about 100
bits, from slices of the rows whose float64 products are exact, which is what iterative refinement needs
(Bjorck 1967, BIT 7, 1-21; Demmel, Hida, Li, Riedy 2009, ACM TOMS 35, 28).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from torchlinreg import _compensated as dd
from torchlinreg._blocks import Block
from torchlinreg._moments import ExactRows, Frame, ShiftedRows, exact_product, exact_rows

# Residuals need about 90 bits: their error reaches the coefficients times the condition number.
N_SLICES = 3
# The gradient's own error reaches them times its square; levels to 2**-154 serve conditions up to 1e14.
GRADIENT_SLICES = 6
LAST_LEVEL = 6


class Gradient(NamedTuple):
    """``design.T @ (weight * residual)`` as a sum of levels of falling magnitude, each a double-double.

    Blocks' gradients cancel in their sum, so the levels are kept apart until all blocks are merged.
    """

    high: torch.Tensor  # shape: (n_levels, n_design, n_responses)
    low: torch.Tensor  # shape: (n_levels, n_design, n_responses)

    @staticmethod
    def merge(a: Gradient, b: Gradient) -> Gradient:
        """Gradient over the rows of both."""
        return Gradient(*dd.add((a.high, a.low), (b.high, b.low)))

    def total(self) -> tuple[np.ndarray, np.ndarray]:
        """The gradient as one double-double, shape (n_design, n_responses)."""
        high, low = self.high.cpu().numpy(), self.low.cpu().numpy()
        result = high[0], low[0]
        for level in zip(high[1:], low[1:], strict=True):
            result = dd.add(result, level)
        return result


class GradientOf:
    """Gradient of a block in float64: two products of the rows with a vector.

    Parameters
    ----------
    frame : Frame
    design, responses : ndarray of int
        Which of the frame's columns ``[1, x, y]`` explain, and which are explained.
    coef : ndarray of shape (n_design, n_responses)
    in_place : bool
        See `_moments.reads_in_place`.
    """

    def __init__(
        self,
        frame: Frame,
        design: np.ndarray,
        responses: np.ndarray,
        coef: np.ndarray,
        in_place: bool = False,
    ) -> None:
        self._rows = ShiftedRows(frame, in_place)
        device = frame.shift.device
        self._design = torch.from_numpy(design).to(device)
        contrast = np.zeros((len(frame.shift), len(responses)))
        contrast[responses, np.arange(len(responses))] = 1
        contrast[design] = -coef
        self._contrast = torch.from_numpy(contrast).to(device)

    def __call__(self, block: Block) -> Gradient:
        rows = self._rows(block)
        gradient = rows.transposed_times(rows.times(self._contrast))[None, self._design]
        return Gradient(gradient, torch.zeros_like(gradient))


class ExactGradientOf:
    """Gradient of a block to about 100 bits, for a double-double ``coef``; parameters as in `GradientOf`."""

    def __init__(
        self,
        frame: Frame,
        design: np.ndarray,
        responses: np.ndarray,
        coef: tuple[np.ndarray, np.ndarray],
    ) -> None:
        device = frame.shift.device
        self.frame = frame
        self._design = torch.from_numpy(design).to(device)
        self._responses = torch.from_numpy(responses).to(device)
        self._coef = (torch.from_numpy(coef[0]).to(device), torch.from_numpy(coef[1]).to(device))

    def __call__(self, block: Block) -> Gradient:
        rows = exact_rows(block, self.frame)
        design = columns_of(rows, self._design)
        residual = exact_residual(design, self._coef, columns_of(rows, self._responses))
        weighted = residual
        if rows.remainder_weight is not None:
            weight = rows.remainder_weight[:, None]
            weighted = dd.multiply(residual, (weight, torch.zeros_like(weight)))
        return Gradient(*exact_transposed_product(design, weighted))


def exact_residual(
    design: ExactRows, coef: tuple[torch.Tensor, torch.Tensor], responses: ExactRows
) -> tuple[torch.Tensor, torch.Tensor]:
    """``responses - design @ coef`` as a double-double; shape: (n_rows, n_responses)."""
    slices, scale = design.slices(N_SLICES), design.scale
    high = responses.high * responses.scale
    low = responses.low * responses.scale
    scaled = (coef[0] * scale[:, None], coef[1] * scale[:, None])
    coef_scale = dd.slice_scale(scaled[0].abs().amax(0))
    width = len(coef_scale)
    coef_slices = dd.slices(scaled[0] / coef_scale, scaled[1] / coef_scale, N_SLICES)
    stacked = torch.cat(coef_slices, dim=1)
    for start in range(0, len(scale), dd.EXACT_INNER_LENGTH):
        inner = slice(start, start + dd.EXACT_INNER_LENGTH)
        products = [(part[:, inner] @ stacked[inner]).split(width, dim=1) for part in slices]
        for level in (
            products[0][0],
            products[0][1] + products[1][0],
            products[0][2] + products[1][1] + products[2][0],
            products[1][2] + products[2][1] + products[2][2],
        ):
            high, error = dd.two_sum(high, -level * coef_scale)
            low = low + error
    return dd.two_sum(high, low)


def exact_transposed_product(
    design: ExactRows, values: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """``design.T @ values`` over the rows, by levels; values are a double-double of shape (n_rows, n_responses)."""
    scale = dd.slice_scale(values[0].abs().amax(0))
    right = dd.slices(values[0] / scale, values[1] / scale, GRADIENT_SLICES)
    high, low = exact_product(design.slices(GRADIENT_SLICES), right, LAST_LEVEL)
    factor = design.scale[:, None] * scale
    return high * factor, low * factor


def columns_of(rows: ExactRows, index: torch.Tensor) -> ExactRows:
    """Some of the columns."""
    return ExactRows(rows.high[:, index], rows.low[:, index], rows.scale[index], rows.remainder_weight)
