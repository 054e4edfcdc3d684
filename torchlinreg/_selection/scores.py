"""Squared residuals of many models on rows that they were not fitted to, and the scores made of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from torchlinreg._data.rows import Block, RowBlocks
from torchlinreg._linalg.gram import EPS
from torchlinreg._moments.moments import Moments, symmetric
from torchlinreg._moments.standardised import Standardised
from torchlinreg._selection.folds import Rows
from torchlinreg._selection.path import Minima


class Sums(NamedTuple):
    """Weighted sums over test rows, for each candidate and target."""

    residual: np.ndarray  # squared residuals; shape: (n_candidates, n_targets)
    total: np.ndarray  # squared deviations from the mean; shape: (n_targets,)
    weight_sum: float
    rounding: np.ndarray | float  # of `residual`
    total_rounding: np.ndarray | float  # of `total`

    @property
    def root_mean_square(self) -> np.ndarray:
        """Of the residuals."""
        return np.sqrt(np.maximum(self.residual, 0.0) / self.weight_sum)

    def score(self, scoring: str | None) -> np.ndarray:
        """The scores of scikit-learn's metrics, shape (n_candidates,)."""
        if scoring == "neg_mean_squared_error":
            return -(self.residual / self.weight_sum).mean(1)
        if scoring == "neg_root_mean_squared_error":
            return -self.root_mean_square.mean(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = self.residual / self.total
        # Of a constant target, R2 is 1 for a perfect prediction and 0 for any other.
        return 1 - np.where(self.total > 0, share, np.where(self.residual > 0, 1.0, 0.0)).mean(1)


def seen_by(test: Moments, quadratic: Standardised) -> np.ndarray:
    """Second moments of test rows about the means and in the units of the quadratic, as `minima_of` asks for.

    Rounding of the moments may hide how far rows lie along a direction, and is added to all.
    """
    raw = symmetric(test.raw).cpu().numpy()
    inside = slice(1, 1 + len(quadratic.unit))
    seen = raw[inside, inside] / raw[0, 0] / quadratic.unit[:, None] / quadratic.unit
    rounding = test.roundoff * seen.trace()
    mean, center = raw[0, inside] / raw[0, 0] / quadratic.unit, quadratic.mean[: len(seen)] / quadratic.unit
    seen -= np.outer(mean, mean)
    seen += np.outer(mean - center, mean - center)
    seen.ravel()[:: len(seen) + 1] += rounding
    return seen


def rounding_of_predictions(test: Moments, quadratic: Standardised, minima: Minima) -> np.ndarray:
    """What a model's own rounding makes of its predictions for the test rows; (n_candidates, n_targets).

    Sums of up to some hundred products, in the lanes of a processor, mostly round by less.
    """
    raw = test.raw.diagonal().cpu().numpy()[1 : 1 + len(quadratic.unit)] / float(test.raw[0, 0])
    size = np.sqrt(raw) + np.abs(quadratic.shift[: len(raw)])
    coef, intercept = quadratic.in_users_units(minima.coef)
    return EPS * (np.einsum("j,ajk->ak", size, np.abs(coef)) + np.abs(intercept))


def sums_of_moments(test: Moments, quadratic: Standardised, minima: Minima) -> Sums:
    """From the second moments of the test rows."""
    raw = symmetric(test.raw).cpu().numpy()
    weight_sum = float(raw[0, 0])
    n_features = len(quadratic.unit)
    mean = raw[0, 1:] / weight_sum
    scatter = raw[1:, 1:] - weight_sum * np.outer(mean, mean)
    inside, targets = slice(0, n_features), slice(n_features, None)
    unit = quadratic.unit[:, None]
    coef = minima.coef / unit
    apart = mean - quadratic.mean
    mean_residual = apart[targets] - np.einsum("j,ajk->ak", apart[inside], coef)
    cross = np.einsum("jk,ajk->ak", scatter[inside, targets], coef)
    flat = coef.transpose(0, 2, 1).reshape(-1, n_features)
    explained = ((flat @ scatter[inside, inside]) * flat).sum(1).reshape(cross.shape)
    total = scatter.diagonal()[targets]
    residual = total - 2 * cross + explained + weight_sum * mean_residual**2
    root = np.sqrt(raw.diagonal()[1:])
    size = root[targets] + np.einsum("j,ajk->ak", root[inside], np.abs(coef))
    rounding = test.roundoff * size**2
    return Sums(residual, total, weight_sum, rounding, test.roundoff * root[targets] ** 2)


def sums_of_rows(
    blocks: RowBlocks, rows: Rows, quadratic: Standardised, minima: Minima, *, weighted: bool
) -> Sums:
    """The same from residuals of the rows."""
    n_features = len(quadratic.unit)
    flat, _ = quadratic.in_users_units(minima.coef)
    flat = flat.transpose(1, 0, 2).reshape(n_features, -1)
    shape = minima.coef.shape[::2]
    coef = torch.from_numpy(np.ascontiguousarray(flat)).to(blocks.device)
    center = torch.from_numpy(quadratic.shift + quadratic.mean).to(blocks.device)
    parts = []
    for block in rows.blocks_of(blocks, blocks.rows_per_block):
        parts.append(_residuals(block, coef, center, shape[0]))
    residual = torch.cat([part[0] for part in parts])
    y = torch.cat([part[1] for part in parts])
    weight = torch.ones_like(y[:, 0])
    if weighted and parts[0][2] is not None:
        weight = torch.cat([part[2] for part in parts if part[2] is not None])
    weight_sum = float(weight.sum())
    deviation = y - (weight @ y) / weight_sum
    return Sums(
        (weight @ residual.square_()).cpu().numpy().reshape(shape),
        (weight @ deviation.square()).cpu().numpy(),
        weight_sum,
        0.0,
        0.0,
    )


def _residuals(
    block: Block, coef: torch.Tensor, center: torch.Tensor, n_candidates: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Residuals of all candidates and targets, y, and the weights."""
    n_features = len(coef)
    X = torch.from_numpy(block.csr.toarray()) if block.csr is not None else block.X
    assert X is not None
    prediction = (X.to(torch.float64) - center[:n_features]) @ coef
    y = block.y - center[n_features:]
    return y.repeat(1, n_candidates) - prediction, y, block.weight
