"""Programs of hinges, which piecewise linear losses, l1 penalties and bounds are made of.

A loss of ``t = y - prediction`` is a slope times t plus hinges ``jump * max(0, t - position)``. So are
``l1 |theta|`` and, with an infinite jump, a bound. The problem is then::

    minimise  linear . theta + theta . ridge . theta / 2 + sum_h cost_h max(0, s_h),   s_h = b_h - a_h . theta

a linear program, or with the ridge a quadratic one. With a dual ``d`` in [0, cost] of each hinge, an optimum
is where ``linear + ridge theta = sum_h d_h a_h``, and d = cost where s > 0, d = 0 where s < 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from torchlinreg._data.rows import RowBlocks
from torchlinreg._linalg.gram import UpperGram
from torchlinreg.losses import PiecewiseLinear


class Rows:
    """Rows of a design, as one tensor or block by block.

    With `keeps_columns` a copy makes their products with vectors faster, if there are more than a few.
    """

    def __init__(self, blocks: RowBlocks, *, keeps_columns: bool = True) -> None:
        self.n_samples, self.n_columns = blocks.n_samples, blocks.n_features
        self.device = blocks.device
        self._blocks = blocks
        self._whole: torch.Tensor | None = None
        if blocks.in_place:
            self._whole = next(blocks.large(blocks.n_samples)).X
            assert self._whole is not None
            self._columns = self._whole.T.contiguous() if keeps_columns else self._whole.T
        self._upper_gram = UpperGram(self.n_columns, self.device)

    def _parts(self) -> Iterator[tuple[slice, torch.Tensor]]:
        if self._whole is not None:
            yield slice(None), self._whole
            return
        start = 0
        for block in self._blocks.dense():
            assert block.X is not None
            yield slice(start, start + len(block.y)), block.X
            start += len(block.y)

    def gram(self, weight: torch.Tensor) -> np.ndarray:
        """The weighted Gram matrix, of which the upper triangle counts."""
        root = weight.sqrt()
        total: torch.Tensor | None = None
        for part, X in self._parts():
            gram = self._upper_gram.of_scaled(X, root[part])
            total = gram if total is None else total.add_(gram)
        assert total is not None
        return total.cpu().numpy()

    def times(self, theta: np.ndarray) -> torch.Tensor:
        """Rows times a vector."""
        vector = torch.from_numpy(theta).to(self.device)
        if self._whole is not None:
            return self._whole @ vector
        return torch.cat([X @ vector for _, X in self._parts()])

    def transposed(self, vector: torch.Tensor) -> np.ndarray:
        """The transposed rows times a vector."""
        if self._whole is not None:
            result = self._columns @ vector if vector.ndim == 1 else (self._columns @ vector.T).T
            return result.cpu().numpy()
        zero = torch.zeros((), device="cpu")
        return sum((vector[..., part] @ X for part, X in self._parts()), zero).cpu().numpy()

    def take(self, index: torch.Tensor) -> torch.Tensor:
        """Some rows."""
        if self._whole is not None:
            return self._whole.index_select(0, index)
        X = self._blocks.gather(index.cpu()).X
        assert X is not None
        return X


@dataclass(frozen=True)
class Program:
    """The problem of one target; hinges are those of rows, position by position, l1 penalties, and bounds."""

    rows: Rows
    y: torch.Tensor  # shape: (n_samples,)
    weight: torch.Tensor  # shape: (n_samples,)
    pieces: PiecewiseLinear
    l1: np.ndarray  # shape: (n_columns,)
    lower: np.ndarray  # shape: (n_columns,)
    upper: np.ndarray  # shape: (n_columns,)
    ridge: np.ndarray  # shape: (n_columns,) or (n_columns, n_columns)
    free: np.ndarray  # columns that are not held where they are; shape: (n_columns,)
    by_rows: bool  # whether the columns are too dependent for a Gram matrix
    n_all: int  # rows, before those whose side of all kinks is known were replaced by their mean
    tilt: np.ndarray | None = None  # a linear term beside the losses; shape: (n_columns,)

    @cached_property
    def n_row_hinges(self) -> int:
        return len(self.y) * len(self.pieces.positions)

    @cached_property
    def column(self) -> np.ndarray:
        """Of each hinge of columns, the column."""
        kinds = (self.l1 > 0, np.isfinite(self.lower), np.isfinite(self.upper))
        return np.concatenate([np.flatnonzero(kind & self.free) for kind in kinds])

    @cached_property
    def n_finite(self) -> int:
        """Hinges of finite cost, which come first."""
        return self.n_row_hinges + int(((self.l1 > 0) & self.free).sum())

    def finite(self, hinges: torch.Tensor) -> torch.Tensor:
        """Those of finite cost; a view."""
        return hinges if self.n_finite == len(hinges) else hinges[: self.n_finite]

    @cached_property
    def n_lower(self) -> int:
        """Lower bounds."""
        return int((np.isfinite(self.lower) & self.free).sum())

    @cached_property
    def sign(self) -> np.ndarray:
        """Of each hinge of columns, what it is of the column."""
        sign = np.ones(len(self.column))
        sign[self.n_finite - self.n_row_hinges + self.n_lower :] = -1
        return sign

    @cached_property
    def offset(self) -> np.ndarray:
        """Of each hinge of columns, its value at 0."""
        n_l1 = self.n_finite - self.n_row_hinges
        offset = np.zeros(len(self.column))
        offset[n_l1 : n_l1 + self.n_lower] = self.lower[self.column[n_l1 : n_l1 + self.n_lower]]
        offset[n_l1 + self.n_lower :] = -self.upper[self.column[n_l1 + self.n_lower :]]
        return offset

    @cached_property
    def has_ridge(self) -> bool:
        return bool(self.ridge.any())

    @cached_property
    def cost(self) -> torch.Tensor:
        """Of each hinge of finite cost."""
        n_l1 = self.n_finite - self.n_row_hinges
        l1 = torch.from_numpy(2 * self.l1[self.column[:n_l1]]).to(self.weight.device)
        return torch.cat([*(jump * self.weight for jump in self.pieces.jumps), l1])

    @cached_property
    def linear(self) -> np.ndarray:
        linear = self.l1 - self.pieces.slope * self.rows.transposed(self.weight)
        return linear if self.tilt is None else linear + self.tilt

    def values(self, theta: np.ndarray) -> torch.Tensor:
        """``s`` of all hinges."""
        residual = self.y - self.rows.times(theta)
        others = torch.from_numpy(self.offset - self.sign * theta[self.column]).to(residual.device)
        return torch.cat([*(residual - position for position in self.pieces.positions), others])

    def change(self, step: np.ndarray, out: torch.Tensor) -> torch.Tensor:
        """The change of ``s`` by a step of theta."""
        if len(out) == len(self.weight):
            return torch.neg(self.rows.times(step), out=out)
        by_position = out[: self.n_row_hinges].view(-1, len(self.y))
        torch.neg(self.rows.times(step), out=by_position[0])
        by_position[1:] = by_position[0]
        if len(self.column):
            out[self.n_row_hinges :] = torch.from_numpy(-self.sign * step[self.column])
        return out

    def _of_rows(self, hinges: torch.Tensor) -> torch.Tensor:
        if len(hinges) == len(self.weight):
            return hinges
        by_position = hinges[: self.n_row_hinges].view(-1, len(self.y))
        return by_position[0] if len(by_position) == 1 else by_position.sum(0)

    def transposed(self, hinges: torch.Tensor) -> np.ndarray:
        """``sum_h a_h x_h``."""
        result = self.rows.transposed(self._of_rows(hinges))
        if len(self.column):
            others = self.sign * hinges[self.n_row_hinges :].cpu().numpy()
            result = result + np.bincount(self.column, others, len(result))
        return result

    def gradients(self, index: torch.Tensor) -> np.ndarray:
        """``a_h`` of some hinges, a row for each."""
        is_row = index < self.n_row_hinges
        result = np.zeros((len(index), self.rows.n_columns))
        rows, columns = is_row.cpu().numpy(), (index[~is_row] - self.n_row_hinges).cpu().numpy()
        result[rows] = self.rows.take(index[is_row] % len(self.y)).cpu().numpy()
        result[np.flatnonzero(~rows), self.column[columns]] = self.sign[columns]
        return result

    def newton_matrix(self, hinges: torch.Tensor) -> np.ndarray:
        """``ridge + sum_h x_h a_h a_h'``, of which the upper triangle counts."""
        result = self.rows.gram(self._of_rows(hinges))
        diagonal = result.reshape(-1)[:: len(result) + 1]
        if len(self.column):
            diagonal += np.bincount(self.column, hinges[self.n_row_hinges :].cpu().numpy(), len(result))
        if self.ridge.ndim == 1:
            diagonal += self.ridge
        else:
            result += self.ridge
        return result

    def bent(self, theta: np.ndarray) -> np.ndarray:
        """The gradient of the ridge penalty."""
        return self.ridge * theta if self.ridge.ndim == 1 else self.ridge @ theta

    def stationarity(self, theta: np.ndarray, dual: torch.Tensor) -> np.ndarray:
        """``linear + ridge theta - sum_h d_h a_h``, 0 for columns that are held."""
        missing = self.linear - self.transposed(dual)
        if self.has_ridge:
            missing += self.bent(theta)
        missing[~self.free] = 0
        return missing

    def objective(self, theta: np.ndarray, values: torch.Tensor) -> float:
        """What is minimised, with the least loss taken from each row's: never below 0 if there is no tilt."""
        loss = self.pieces.slope * torch.dot(self.weight, values[: len(self.y)])
        loss += torch.dot(self.cost[: self.n_row_hinges], values[: self.n_row_hinges].clamp(min=0))
        penalty = float(self.l1 @ np.abs(theta)) + float(theta @ self.bent(theta)) / 2
        tilt = 0.0 if self.tilt is None else float(self.tilt @ theta)
        return float(loss) - self.least + penalty + tilt

    def unit(self, objective: float) -> float:
        """What gaps are relative to: the objective, up to its typical size of 1."""
        return min(objective, 1.0) if self.tilt is None else 1.0

    def most_above(self, objective: float) -> float:
        """How far this objective may be above its optimum, for its sign."""
        return max(objective, 0.0) if self.tilt is None else np.inf

    @cached_property
    def least(self) -> float:
        """The sum of the losses of rows that are predicted best."""
        return self.pieces.least * float(self.weight.sum())

    def gap(self, theta: np.ndarray, values: torch.Tensor, dual: torch.Tensor) -> float:
        """A bound on the objective above its optimum.

        What is missing of stationarity counts times the distance of the optimum, for which the size of
        theta is taken, in which y has residuals of size 1.
        """
        finite = values[: self.n_finite]
        at_kinks = torch.dot(self.cost, finite.clamp(min=0)) - torch.dot(dual, values)
        return max(float(at_kinks), 0.0) + self.slack(theta, self.stationarity(theta, dual))

    def slack(self, theta: np.ndarray, missing: np.ndarray) -> float:
        """What a lack of stationarity may cost."""
        cost = np.abs(missing) * (1 + np.abs(theta))
        if self.has_ridge and self.ridge.ndim == 1:
            cost = np.minimum(cost, missing**2 / (2 * self.ridge + 1e-300))
        return float(cost.sum())

    def weighted_rows(self, hinges: torch.Tensor) -> np.ndarray:
        """Rows whose Gram matrix is `newton_matrix`, the longest first."""
        root = self._of_rows(hinges).sqrt().cpu().numpy()[:, None]
        rows = root * self.rows.take(torch.arange(len(root), device=hinges.device)).cpu().numpy()
        others = np.zeros((len(self.column), rows.shape[1]))
        others[np.arange(len(others)), self.column] = hinges[self.n_row_hinges :].sqrt().cpu().numpy()
        if self.ridge.ndim == 1:
            ridge = np.diag(np.sqrt(self.ridge))
        else:
            values, vectors = np.linalg.eigh(self.ridge)
            ridge = (vectors * np.sqrt(values.clip(min=0))).T
        every = np.concatenate([rows, others, ridge])
        return every[np.argsort(-np.abs(every).max(1, initial=0.0))]


@dataclass
class State:
    """An interior point; `u` and `e` are of hinges of finite cost only. Steps change it in place."""

    theta: np.ndarray
    s: torch.Tensor
    u: torch.Tensor
    v: torch.Tensor
    d: torch.Tensor
    e: torch.Tensor

    def complementarity(self) -> float:
        """What the gap is where the duals are stationary."""
        return float(torch.dot(self.u, self.e) + torch.dot(self.v, self.d))


@dataclass(frozen=True)
class Iterate:
    """A point with its duals, and how far it may be above the optimum."""

    theta: np.ndarray
    dual: torch.Tensor
    objective: float
    gap: float
    is_vertex: bool
    is_unique: bool = False  # known to be the only optimum
    n_iter: int = 0
    out_of_steps: bool = False
