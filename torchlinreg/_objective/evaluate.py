"""Splitting rows for early stopping, and the loss on the rows that are left out of training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from torchlinreg._data.rows import Block, RowBlocks
from torchlinreg.losses import Loss

# Odd constants of the splitmix64 generator (Steele, Lea, Flood 2014).
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIXERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
# Residuals of many models at once are formed for so many bytes of rows at a time.
RESIDUAL_BYTES = 4 * 2**20


def split(blocks: RowBlocks, fraction: float, seed: int) -> tuple[RowBlocks, RowBlocks]:
    """Rows to train on and rows to validate on: `fraction` of the distinct rows, chosen by their values.

    A row's place, also in the order of the result, depends on its values and the seed alone, and copies of a
    row become one row of their total weight. So a weight of 2 is two copies, a weight of 0 is none, and the
    order of the rows does not matter.
    """
    weight = np.ones(blocks.n_samples) if blocks.weight is None else blocks.weight.cpu().numpy()
    rows = np.flatnonzero(weight > 0)
    hashes = _row_hashes(blocks, seed)[rows]
    distinct, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    total = torch.from_numpy(np.bincount(which, weight[rows])).to(blocks.device)
    index = torch.from_numpy(rows[first])
    n_validation = max(1, round(fraction * len(distinct)))
    if n_validation >= len(distinct):
        raise ValueError(
            f"early_stopping with validation_fraction={fraction} leaves no rows to train on: there are "
            f"n_samples={blocks.n_samples}, of which {len(distinct)} distinct with a positive weight. Give "
            "more rows or a smaller validation_fraction, give X_val and y_val, or use early_stopping=False."
        )
    train, validation = slice(n_validation, None), slice(0, n_validation)
    return blocks.select(index[train], total[train]), blocks.select(index[validation], total[validation])


def _row_hashes(blocks: RowBlocks, seed: int) -> np.ndarray:
    """A number in 0 to 2**64 - 1 of the values of x and y in each row."""
    parts = []
    for block in blocks.dense():
        assert block.X is not None
        columns = torch.cat([block.X.to(torch.float64), block.y], dim=1).cpu().numpy() + 0.0  # -0.0 is 0.0
        with np.errstate(over="ignore"):
            state = np.full(len(columns), np.uint64(seed) * GOLDEN)
            for column in columns.T:
                state = _mixed(state + GOLDEN ^ np.ascontiguousarray(column).view(np.uint64))
        parts.append(state)
    return np.concatenate(parts)


def _mixed(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * MIXERS[0]
    state = (state ^ (state >> np.uint64(27))) * MIXERS[1]
    return state ^ (state >> np.uint64(31))


def squared_losses(blocks: RowBlocks, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
    """Weighted means of the squared error / 2, summed over the targets, of several models; one pass.

    `coef` has shape (n_models, n_targets, n_features), `intercept` (n_models, n_targets).
    """

    def of(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        prediction -= target.repeat(1, prediction.shape[1] // target.shape[1])
        return prediction.square_()

    return _weighted_means(blocks, coef, intercept, of) / 2


def mean_losses(blocks: RowBlocks, loss: Loss, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
    """The same of any loss."""
    if loss.kind == "quadratic":
        return squared_losses(blocks, coef, intercept)

    def of(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        n_models = prediction.shape[1] // target.shape[1]
        models = prediction.view(len(target), n_models, -1)
        return loss.value(models, target[:, None].expand_as(models)).reshape(prediction.shape)

    return _weighted_means(blocks, coef, intercept, of)


def _weighted_means(
    blocks: RowBlocks,
    coef: np.ndarray,
    intercept: np.ndarray,
    of_predictions: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> np.ndarray:
    n_models, n_targets, n_features = coef.shape
    weights = torch.from_numpy(coef.reshape(-1, n_features).T.copy()).to(blocks.device)
    constant = torch.from_numpy(intercept.reshape(-1)).to(blocks.device)

    def of(block: Block) -> torch.Tensor:
        assert block.X is not None
        weight = torch.ones_like(block.y[:, 0]) if block.weight is None else block.weight
        sums = torch.cat([torch.zeros_like(constant), weight.sum()[None]])
        n_rows = max(1, RESIDUAL_BYTES // (8 * len(constant)))
        for first in range(0, len(weight), n_rows):
            part = slice(first, first + n_rows)
            prediction = torch.addmm(constant, block.X[part].to(torch.float64), weights)
            sums[:-1] += weight[part] @ of_predictions(prediction, block.y[part])
        return sums

    sums = blocks.map_reduce(of, torch.add, dense=True).cpu().numpy()
    return sums[:-1].reshape(n_models, n_targets).sum(1) / sums[-1]
