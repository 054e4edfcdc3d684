"""The gradient pass: residuals of the rows and their products with the columns.

`Gradient` works in float64; `ExactGradient` forms the residuals of a double-double model to about 100
bits, from slices of the rows whose float64 products are exact, which is what iterative refinement needs
(Bjorck 1967, BIT 7, 1-21; Demmel, Hida, Li, Riedy 2009, ACM TOMS 35, 28).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse

from torchlinreg._data.rows import Block
from torchlinreg._linalg import double_double as dd
from torchlinreg._linalg.gram import EPS, RMS_ROUNDING, longest_sum
from torchlinreg._moments.exact import ExactRows, exact_product, exact_rows
from torchlinreg._moments.moments import Frame


class Depth(NamedTuple):
    """How finely an exact gradient pass slices, and the errors that leaves relative to the largest terms.

    An error of the residuals reaches the coefficients times the condition number, one of their products
    with the columns times its square.
    """

    residual_slices: int
    product_slices: int
    last_level: int
    residual_roundoff: float
    product_roundoff: float


# From the cheapest on; the last serves conditions up to 1e14 whatever the residuals.
DEPTHS = (
    Depth(2, 2, 2, 2.0**-72, 2.0**-72),
    Depth(3, 3, 4, 2.0**-95, 2.0**-95),
    Depth(3, 6, 6, 2.0**-95, 2.0**-145),
)


# Rows of a sparse block that are summed one after another: a few entries of each column.
SPARSE_STACK = 2048


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


class GradientSums(NamedTuple):
    """Sums over rows, and four standard deviations of their rounding errors in units of ``2^-53``.

    Adding to a sum rounds by up to half a unit in its last place, so that what matters is how large sums are
    on the way, while residuals of both signs may cancel in the end.
    """

    total: torch.Tensor  # shape: (1 + n_features, n_responses)
    deviation: torch.Tensor  # shape: (1 + n_features, n_responses)

    @staticmethod
    def merge(a: GradientSums, b: GradientSums) -> GradientSums:
        """Sums over the rows of both."""
        total = a.total + b.total
        merged = torch.hypot(a.deviation, b.deviation)
        return GradientSums(total, torch.hypot(merged, 4 * RMS_ROUNDING * total))


class GradientOf:
    """Sums of the weighted residuals, and of their products with X, in float64, over a block.

    X is read where it is, without the frame's shift and scale, which `finish` brings in: a call is two
    products of X with a vector and little else.

    Parameters
    ----------
    frame : Frame
    design, responses : ndarray of int
        Which of the frame's columns ``[1, x, y]`` explain, and which are explained.
    coef : ndarray of shape (n_design, n_responses)
    """

    def __init__(self, frame: Frame, design: np.ndarray, responses: np.ndarray, coef: np.ndarray) -> None:
        device = frame.shift.device
        self._shift = frame.shift
        self._scale = torch.ones_like(frame.shift) if frame.scale is None else frame.scale
        self._design = torch.from_numpy(design).to(device)
        contrast = np.zeros((len(frame.shift), len(responses)))
        contrast[responses, np.arange(len(responses))] = 1
        contrast[design] = -coef
        self._contrast = torch.from_numpy(contrast).to(device) * self._scale[:, None]
        # Elementwise: a product by torch, between two by BLAS, waited 8 ms for the threads.
        self._constant = self._contrast[0] - (self._shift[1:, None] * self._contrast[1:]).sum(0)

    def __call__(self, block: Block) -> GradientSums:
        n_features = block.n_features
        contrast = self._contrast[1 : 1 + n_features]
        residual = torch.addmm(self._constant, block.y, self._contrast[1 + n_features :])
        if block.csr is not None:
            X = block.csr.astype(np.float64, copy=False)
            residual += torch.from_numpy(X @ contrast.numpy())
        else:
            assert block.X is not None
            rows = block.X.to(torch.float64)
            residual += rows @ contrast
        if block.weight is not None:
            residual *= block.weight[:, None]
        return sums_over_csr(X, residual) if block.csr is not None else sums_over_rows(rows, residual)

    def finish(self, sums: GradientSums) -> tuple[np.ndarray, np.ndarray]:
        """The gradient with respect to the design's coefficients in the frame, and its rounding error."""
        total, deviation = sums
        shift, scale = self._shift[1 : len(total), None], self._scale[: len(total), None]
        gradient = scale * torch.cat([total[:1], total[1:] - shift * total[:1]])
        moved = torch.hypot(deviation[1:], shift * deviation[:1])
        error = EPS * scale * torch.cat([deviation[:1], moved])
        return gradient[self._design].cpu().numpy(), error[self._design].cpu().numpy()


def sums_over_rows(X: torch.Tensor, residual: torch.Tensor, *, sparse: bool = False) -> GradientSums:
    """Sums of the residuals and of their products with X, in stacks as short as a Gram matrix's.

    A stack of `length` products that sum to g in sequence, at worst at a steady rate, has a deviation of
    ``sqrt(length) |g|`` (see `roundoff_of_sums`), and adding up the stacks less than that.

    If columns may be `sparse`, all of what is not 0 may be in one stack, whose sum may then end near 0: there
    the norm of the products is how large sums are on the way, and only products that are not 0 are rounded.
    """
    n_rows = len(residual)
    length = longest_sum(n_rows)
    n_stacks = n_rows // length
    whole = n_stacks * length
    stacks, right = (part[:whole].view(n_stacks, length, part.shape[1]) for part in (X, residual))
    parts = [torch.cat([right.sum(1, keepdim=True), torch.bmm(right.mT, stacks).mT], dim=1)]
    if whole < n_rows:
        rest = residual[whole:]
        parts.append(torch.cat([rest.sum(0, keepdim=True), X[whole:].mT @ rest])[None])
    sums = torch.cat(parts)
    largest = sums.abs().amax(0)
    norm = largest * (sums / torch.where(largest > 0, largest, 1.0)).square().sum(0).sqrt()
    deviation = math.sqrt(2 * length) * norm
    if sparse:
        deviation[1:] = _deviation_of_sparse(X, residual, sums[:, 1:], length)
    return GradientSums(sums.sum(0), deviation)


def sums_over_csr(X: sparse.csr_array, residual: torch.Tensor) -> GradientSums:
    """Sums as of `sums_over_rows`, in stacks of `SPARSE_STACK` rows, of their stored entries in sequence.

    Sums on the way are as large as their terms even where they end near 0.
    """
    ones = sums_over_rows(residual.new_empty((len(residual), 0)), residual)
    values = residual.numpy()
    n_rows, n_features = X.shape
    n_stacks = -(-n_rows // SPARSE_STACK)
    # The columns of each stack stand beside those of the one before.
    first = n_features * (np.arange(n_rows, dtype=X.indices.dtype) // SPARSE_STACK)
    columns = X.indices + np.repeat(first, np.diff(X.indptr))
    shape = (n_rows, n_features * n_stacks)
    in_stacks = (n_stacks, n_features, values.shape[1])
    total = (sparse.csr_array((X.data, columns, X.indptr), shape=shape).T @ values).reshape(in_stacks)
    squares = sparse.csr_array((X.data**2, columns, X.indptr), shape=shape).T @ values**2
    n_stored = np.bincount(columns, minlength=shape[1]).reshape(n_stacks, n_features, 1)
    variance = 2 * n_stored * np.maximum(total**2, squares.reshape(in_stacks))
    return GradientSums(
        torch.cat([ones.total, torch.from_numpy(total.sum(0))]),
        torch.cat([ones.deviation, torch.from_numpy(np.sqrt(variance.sum(0)))]),
    )


def _deviation_of_sparse(
    X: torch.Tensor, residual: torch.Tensor, sums: torch.Tensor, length: int
) -> torch.Tensor:
    """Deviation of sums of which few products are not 0; shape: (n_features, n_responses)."""
    square = torch.zeros(sums.shape[1:], dtype=torch.float64, device=X.device)
    for k, start in enumerate(range(0, len(X), length)):
        rows, of_rows = X[start : start + length], residual[start : start + length]
        on_the_way = torch.maximum(sums[k].square(), rows.square().mT @ of_rows.square())
        square += torch.count_nonzero(rows, dim=0)[:, None] * on_the_way
    return (2 * square).sqrt()


class ExactGradientOf:
    """Gradient of a block for a double-double ``coef``, to the given depth; else as `GradientOf`."""

    def __init__(
        self,
        frame: Frame,
        design: np.ndarray,
        responses: np.ndarray,
        coef: tuple[np.ndarray, np.ndarray],
        depth: Depth,
    ) -> None:
        device = frame.shift.device
        self.frame = frame
        self.depth = depth
        self._design = design
        self._responses = responses
        self._coef = (torch.from_numpy(coef[0]).to(device), torch.from_numpy(coef[1]).to(device))

    def __call__(self, block: Block) -> Gradient:
        rows = exact_rows(block, self.frame)
        design = rows.columns(self._design)
        residual_slices, product_slices = self.depth[:2]
        slices = design.slices(residual_slices)
        responses = rows.columns(self._responses)
        residual = exact_residual(slices, design.scale, self._coef, responses)
        if rows.remainder_weight is not None:
            residual = dd.times_float(*residual, rows.remainder_weight[:, None])
        if product_slices != residual_slices:
            slices = design.slices(product_slices)
        return Gradient(*exact_transposed_product(slices, design.scale, residual, self.depth.last_level))


def exact_residual(
    slices: list[torch.Tensor],
    scale: torch.Tensor,
    coef: tuple[torch.Tensor, torch.Tensor],
    responses: ExactRows,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``responses - (slices * scale) @ coef`` as a double-double; shape: (n_rows, n_responses)."""
    high = responses.high * responses.scale
    low = torch.zeros_like(high) if responses.low is None else responses.low * responses.scale
    scaled = coef[0] * scale[:, None], coef[1] * scale[:, None]
    coef_scale = dd.slice_scale(scaled[0].abs().amax(0))
    n_slices, width = len(slices), len(coef_scale)
    stacked = torch.cat(dd.slices(scaled[0] / coef_scale, scaled[1] / coef_scale, n_slices), dim=1)
    for start in range(0, len(scale), dd.EXACT_INNER_LENGTH):
        inner = slice(start, start + dd.EXACT_INNER_LENGTH)
        products = [torch.split(part[:, inner] @ stacked[inner], width, dim=1) for part in slices]
        for level in range(2 * n_slices - 1):
            pairs = range(max(0, level + 1 - n_slices), min(level + 1, n_slices))
            term = sum(products[i][level - i] for i in pairs)
            high, error = dd.two_sum(high, -term * coef_scale)
            low = low + error
    return dd.two_sum(high, low)


def exact_transposed_product(
    slices: list[torch.Tensor],
    scale: torch.Tensor,
    values: tuple[torch.Tensor, torch.Tensor],
    last_level: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(slices * scale).T @ values`` over the rows, by levels.

    The values are a double-double of shape (n_rows, n_responses).
    """
    value_scale = dd.slice_scale(values[0].abs().amax(0))
    right = dd.slices(values[0] / value_scale, values[1] / value_scale, len(slices))
    high, low = exact_product(slices, right, last_level)
    factor = scale[:, None] * value_scale
    return high * factor, low * factor
