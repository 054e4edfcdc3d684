"""Rows in coordinates that suit the solvers of losses other than the squared error.

The coordinates have an intercept's column of ones first, then columns of mean 0 and mean square 1 or, where
columns nearly depend on each other or are more than the rows, orthonormal ones that span the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from torchlinreg._data.rows import Block, RowBlocks, Source, tensor_blocks
from torchlinreg._linalg.gram import UpperGram
from torchlinreg._objective.penalty import Penalty
from torchlinreg._objective.problem import Problem
from torchlinreg._objective.solution import Status
from torchlinreg._solvers.least_squares.dual import is_wide
from torchlinreg._solvers.least_squares.whitening import Geometry, geometry_of
from torchlinreg._solvers.null_space import MOST_WIDE_FEATURES, null_space
from torchlinreg._solvers.penalised.nearest import MixedBounds

# Rows in coordinates of up to so many bytes are kept; larger ones are made anew in each pass.
KEPT_BYTES = 64 * 2**20
# Up to this condition of unit columns, a Newton or interior point step needs no other coordinates.
DIAGONAL_CONDITION = 1e4


@dataclass(frozen=True)
class Design:
    """A problem in coordinates `theta`, shape (n_columns, n_targets): ``coef = transform @ theta[features]``.

    `penalty` is that of the coordinates, if they belong to single features; `ridge` is the matrix of its
    quadratic part in any case.
    """

    blocks: RowBlocks  # dense, in the coordinates, float64; without rows of weight 0
    share: torch.Tensor  # weights over their sum; shape: (n_samples,)
    fit_intercept: bool
    center: np.ndarray  # shape: (n_features,)
    transform: np.ndarray  # shape: (n_features, n_coordinates), or (n_features,) for a diagonal one
    penalty: (
        Penalty | None
    )  # None where the coordinates mix features; there are then a ridge and bounds at most
    bounds: MixedBounds | None  # of coef, where the coordinates mix features
    ridge: np.ndarray  # shape: (n_columns, n_columns), or (n_columns,) for a diagonal one
    gram: np.ndarray | None  # mean products of the columns, where known; shape: (n_columns, n_columns)
    start: np.ndarray  # the least squares solution or zero; shape: (n_columns, n_targets)
    rank: int | None
    condition_number: float | None
    spread: np.ndarray  # root mean squares of x about its center, about; shape: (n_features,)
    is_nearly_dependent: bool = False  # up to rounding of the columns, which a basis leaves out

    @cached_property
    def amplification(self) -> np.ndarray:
        """How much larger than a column of mean square 1 its terms are; shape (n_columns,)."""
        inside = np.ones(self.n_columns - int(self.fit_intercept))
        if self.transform.ndim > 1:
            inside = np.maximum(self.spread @ np.abs(self.transform), 1.0)
        return np.concatenate([np.ones(int(self.fit_intercept)), inside])

    @property
    def n_columns(self) -> int:
        """Coordinates, the intercept included."""
        return self.blocks.n_features

    def about(self, shift: np.ndarray) -> Design:
        """The same with targets less these, shape (n_targets,), and intercepts accordingly."""
        start = self.start.copy()
        start[: int(self.fit_intercept)] -= shift
        y = self.blocks.y - torch.from_numpy(shift).to(self.blocks.device)
        return replace(self, blocks=self.blocks.with_targets(y), start=start)

    @cached_property
    def upper_gram(self) -> UpperGram:
        """Of the columns; one for all passes of a solver, since it keeps its buffer."""
        return UpperGram(self.n_columns, self.blocks.device)

    @property
    def features(self) -> slice:
        """The coordinates without the intercept's."""
        return slice(int(self.fit_intercept), None)

    def in_users_units(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients, shape (n_features, n_targets), and intercepts, shape (n_targets,)."""
        inside = theta[self.features]
        coef = self.transform[:, None] * inside if self.transform.ndim == 1 else self.transform @ inside
        if not self.fit_intercept:
            return coef, np.zeros(theta.shape[1])
        return coef, theta[0] - self.center @ coef

    def coordinates_of(self, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
        """Coordinates of coefficients and intercepts in the user's units, the inverse of the above."""
        if self.transform.ndim == 1:
            theta = coef / self.transform[:, None]
        elif self.bounds is not None:
            theta = self.bounds.mixing @ coef
        else:
            theta = np.linalg.lstsq(self.transform, coef)[0]
        if not self.fit_intercept:
            return theta
        return np.concatenate([(intercept + self.center @ coef)[None], theta])


def design_of(problem: Problem, *, mixing_bounded: bool = False) -> Design:
    """The rows of a problem in good coordinates; costs a pass over the rows or two.

    Features that have bounds are mixed only with `mixing_bounded`.
    """
    penalty = problem.penalty
    if not penalty.is_ridge:
        narrow = problem.blocks.n_features <= MOST_WIDE_FEATURES or not is_wide(problem)
        mixing = mixing_bounded and not penalty.l1.any() and narrow
        return _bounded(problem) if mixing else _standardised(problem)
    geometry = geometry_of(problem, tol=1e-6)
    exact = geometry.solution
    well_conditioned = exact.condition_number is not None and exact.condition_number <= DIAGONAL_CONDITION
    if well_conditioned and exact.rank == len(geometry.center) and geometry.rows is None:
        design = _standardised(problem)
        theta = exact.coef / design.transform[:, None]
    else:
        design = _orthonormal(problem, geometry)
        theta = geometry.inverse @ exact.coef
    if problem.fit_intercept:
        theta = np.concatenate([(exact.intercept + geometry.center @ exact.coef)[None], theta])
    return replace(
        design,
        start=theta,
        rank=exact.rank,
        condition_number=exact.condition_number,
        is_nearly_dependent=exact.status is Status.NEARLY_DEPENDENT,
    )


def _bounded(problem: Problem) -> Design:
    """Orthonormal coordinates with bounds of what they mix, if columns are ill-conditioned."""
    penalty, columns = problem.penalty, problem.standardised
    kept = columns.spread.nonzero()[0]
    null = null_space(problem, kept)
    independent = np.setdiff1d(kept, null.dependent)
    if columns.is_conditioned(DIAGONAL_CONDITION**-2, independent) or (
        len(null.dependent) and penalty.l2.any()
    ):
        return _standardised(problem)
    free = np.full(len(independent), np.inf)
    unbounded = replace(penalty.part(independent), lower=-free, upper=free)
    blocks = problem.blocks.columns(torch.from_numpy(independent))
    geometry = geometry_of(replace(problem, blocks=blocks, penalty=unbounded), tol=1e-6)
    if len(geometry.inverse) < len(independent):
        return _standardised(problem)
    transform = np.zeros((len(columns.unit), len(independent)))
    transform[independent] = geometry.transform
    ridge = np.zeros((len(independent) + problem.fit_intercept,) * 2)
    inside = slice(int(problem.fit_intercept), None)
    ridge[inside, inside] = (transform.T * penalty.l2) @ transform
    exact = geometry.solution
    start = geometry.inverse @ exact.coef
    if problem.fit_intercept:
        start = np.concatenate([(exact.intercept + geometry.center @ exact.coef)[None], start])
    bounds = MixedBounds.of(geometry.inverse, independent, null, penalty.lower, penalty.upper)
    design = _design(problem, columns.center, columns.spread, transform, None, ridge)
    nearly_dependent = exact.status is Status.NEARLY_DEPENDENT
    return replace(design, start=start, bounds=bounds, is_nearly_dependent=nearly_dependent)


def _standardised(problem: Problem) -> Design:
    """Columns of mean 0 and mean square 1; those that are constant become 0."""
    columns = problem.standardised
    penalty = problem.penalty.scaled(columns.unit)
    ridge = np.concatenate([np.zeros(int(problem.fit_intercept)), penalty.l2])
    design = _design(problem, columns.center, columns.spread, 1 / columns.unit, penalty, ridge)
    gram = np.eye(design.n_columns)
    gram[design.features, design.features] = columns.gram - np.diag(columns.spread == 0)
    return replace(design, gram=gram)


def _orthonormal(problem: Problem, geometry: Geometry) -> Design:
    """Columns in which the weighted Gram matrix, ridge penalty included, is the identity."""
    transform = geometry.transform
    n_columns = transform.shape[1] + problem.fit_intercept
    ridge = np.zeros((n_columns, n_columns))
    inside = slice(int(problem.fit_intercept), None)
    ridge[inside, inside] = (transform.T * problem.penalty.l2) @ transform
    return _design(problem, geometry.center, geometry.spread, transform, None, ridge)


def _design(
    problem: Problem,
    center: np.ndarray,
    spread: np.ndarray,
    transform: np.ndarray,
    penalty: Penalty | None,
    ridge: np.ndarray,
) -> Design:
    blocks = problem.blocks.weighted_rows()
    return Design(
        blocks=_in_coordinates(blocks, center, transform, problem.fit_intercept),
        share=blocks.share,
        fit_intercept=problem.fit_intercept,
        center=center,
        transform=transform,
        penalty=penalty,
        bounds=None,
        ridge=ridge,
        gram=None,
        start=np.zeros((len(ridge), blocks.n_targets)),
        rank=None,
        condition_number=None,
        spread=spread,
    )


def _in_coordinates(
    blocks: RowBlocks, center: np.ndarray, transform: np.ndarray, fit_intercept: bool
) -> RowBlocks:
    """The rows as ``[1, (x - center) @ transform]``: all at once if they are small, else block by block."""
    shift = torch.from_numpy(center).to(blocks.device)
    matrix = torch.from_numpy(transform).to(blocks.device)
    n_columns = transform.shape[-1] + fit_intercept
    first = int(fit_intercept)

    def write(block: Block, out: torch.Tensor) -> torch.Tensor:
        assert block.X is not None
        out[:, :first] = 1
        inside = out[:, first:]
        if matrix.ndim == 1:
            torch.sub(block.X, shift, out=inside)
            inside *= matrix
        else:
            torch.matmul(block.X.to(torch.float64) - shift, matrix, out=inside)
        return out

    if 8 * blocks.n_samples * n_columns <= KEPT_BYTES:
        rows = torch.empty((blocks.n_samples, n_columns), dtype=torch.float64, device=blocks.device)
        start = 0
        for block in blocks.dense():
            write(block, rows[start : start + len(block.y)])
            start += len(block.y)
        return tensor_blocks(rows, blocks.y, blocks.weight)
    buffer = torch.empty((0, n_columns), dtype=torch.float64, device=blocks.device)

    def take(start: int, stop: int) -> torch.Tensor:
        nonlocal buffer
        if len(buffer) < stop - start:
            # One buffer for all blocks: a fresh one for each costs more in page faults than the arithmetic.
            buffer = torch.empty((stop - start, n_columns), dtype=torch.float64, device=blocks.device)
        return write(blocks.dense_rows(start, stop), buffer[: stop - start])

    def gather(index: torch.Tensor) -> torch.Tensor:
        block = blocks.gather(index)
        return write(block, torch.empty((len(index), n_columns), dtype=torch.float64, device=blocks.device))

    source = Source(blocks.n_samples, n_columns, torch.float64, take, gather)
    return RowBlocks(source, blocks.y, blocks.weight)
