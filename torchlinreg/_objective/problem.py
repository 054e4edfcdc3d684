"""The problem that solvers are given, and the passes over the rows that they read.

The objective, with weights ``w``, is::

    sum_i w_i loss(x_i . coef + intercept, y_i) / sum_i w_i
        + sum_j (l1_j |coef_j| + l2_j / 2 * coef_j^2),   lower_j <= coef_j <= upper_j

so that, for half the squared error, ``Ridge(alpha=a)`` of scikit-learn is ``l2_j = a / sum(w)`` here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from torchlinreg._data.rows import WIDE_BLOCK_ROWS, RowBlocks
from torchlinreg._moments.accumulated import on_cpu
from torchlinreg._moments.exact import ExactMoments, ExactMomentsOf
from torchlinreg._moments.gradient import Depth, ExactGradientOf, Gradient, GradientOf, GradientSums
from torchlinreg._moments.moments import (
    Frame,
    Moments,
    MomentsOf,
    choose_frame,
    frame_of_all,
    recentred_shift,
)
from torchlinreg._moments.standardised import Standardised, standardised
from torchlinreg._objective.penalty import Penalty
from torchlinreg.losses import Loss, SquaredError

# A gradient reads rows twice, and wants them in the cores' common cache in between, but few blocks: 1e6 x 100
# takes 66 ms in these, 82 in blocks of 2 MiB.
GRADIENT_BLOCK_BYTES = 16 * 2**20
# Moments take rows that are read where they are this many blocks at a time: each sum costs a little.
BLOCKS_AT_ONCE = 16
# Up to so many numbers are few.
SMALL_DATA = 100_000
# Rows that are looked at to estimate how many different ones there are, and equal pairs that may have been
# missed.
SAMPLE_ROWS, UNSEEN_PAIRS = 512, 3
# So many targets are solved for at once, or as many as there are columns, since moments hold the products of
# all columns with each other. Each part costs about 1 ms beside its products.
TARGETS_AT_ONCE = 128
# Float64 moments leave fewer than 4 digits beyond this condition.
ILL_CONDITIONED = 1e6

SQUARED_ERROR = SquaredError()


@dataclass(frozen=True)
class Problem:
    """Rows, penalty and loss. `name` is the estimator's, for the errors of non-finite data."""

    blocks: RowBlocks
    penalty: Penalty
    fit_intercept: bool = True
    name: str = "TorchLinearRegressor"
    loss: Loss = SQUARED_ERROR

    @cached_property
    def moments(self) -> Moments:
        """Moments of all rows; one pass, the first time.

        A NaN or infinity in the data makes them non-finite, so clean data need no pass of their own
        for that check. Columns so large or small that squares over- or underflow cost three more passes, and
        columns far from their mean in the first rows, or sparse ones far from 0, two.

        Raises
        ------
        ValueError
            X or y holds NaN or infinity.
        """
        moments = self._sound_moments(choose_frame(self.blocks, fit_intercept=self.fit_intercept))
        shift = recentred_shift(moments, self.blocks) if self.fit_intercept else None
        return moments if shift is None else self._sound_moments(Frame(shift, moments.frame.scale))

    @cached_property
    def standardised(self) -> Standardised:
        """The moments as products of standardised columns."""
        return standardised(self.moments, self.blocks.n_features, self.fit_intercept)

    @property
    def by_targets(self) -> tuple[Problem, ...]:
        """The problem in parts of some of the targets each, whose moments are not much larger than X'X.

        Targets do not meet in the objective. Few make one part, the problem itself.
        """
        return (self,) if self._n_parts == 1 else self._parts_of_targets

    @property
    def _n_parts(self) -> int:
        return -(-self.blocks.n_targets // max(TARGETS_AT_ONCE, 1 + self.blocks.n_features))

    @cached_property
    def _parts_of_targets(self) -> tuple[Problem, ...]:
        parts = self.blocks.y.tensor_split(self._n_parts, dim=1)
        return tuple(replace(self, blocks=self.blocks.with_targets(part)) for part in parts)

    def with_moments(self, moments: Moments) -> Problem:
        """The same problem with these moments, of rows that may be gone."""
        other = replace(self)
        other.__dict__["moments"] = moments  # where the cached property looks first
        return other

    def _sound_moments(self, frame: Frame) -> Moments:
        """Moments in a frame, or in one of other scales if squares over- or underflow."""
        moments = self._moments_in(frame)
        if moments.is_sound:
            return moments
        self.blocks.raise_if_not_finite(self.name)
        return self._moments_in(frame_of_all(self.blocks, frame.shift))

    def _moments_in(self, frame: Frame) -> Moments:
        blocks = self.blocks
        return blocks.map_reduce(
            MomentsOf(frame),
            Moments.merge,
            dense=not blocks.is_sparse,
            rows_in_place=rows_at_once(blocks),
        )

    @cached_property
    def exact_moments(self) -> ExactMoments:
        """Moments of all rows to about 100 bits, in the frame of `moments`; one pass, the first time."""
        return self.blocks.map_reduce(ExactMomentsOf(self.moments.frame), ExactMoments.merge, dense=True)

    @property
    def is_small(self) -> bool:
        """Whether exact passes over the rows take no time to speak of."""
        return self.blocks.n_samples * (1 + self.blocks.n_features) <= SMALL_DATA

    @cached_property
    def n_distinct_rows(self) -> float:
        """How many different rows X has, as far as averages over rows are concerned, estimated from below.

        Predictions of equal rows are rounded alike, so that only different rows average rounding errors out.
        A pair of rows is equal with probability ``sum_r p_r^2`` for rows r of shares p_r, one over the number
        that counts; a sample of m rows has ``m (m - 1) / 2`` pairs.
        """
        n_samples = self.blocks.n_samples
        n_sampled = min(n_samples, SAMPLE_ROWS)
        index = (
            torch.linspace(0, n_samples - 1, n_sampled, dtype=torch.float64, device="cpu")
            .round()
            .to(torch.int64)
        )
        X = self.blocks.gather(index).X
        assert X is not None
        counts = Counter(row.tobytes() for row in X.cpu().numpy()).values()
        n_pairs = sum(count * (count - 1) for count in counts) / 2
        n_counted = float(n_samples)
        if self.blocks.weight is not None:
            share = self.blocks.share
            n_counted = 1 / float(share @ share)
        return max(1.0, min(n_counted, n_sampled * (n_sampled - 1) / 2 / (n_pairs + UNSEEN_PAIRS)))

    def moments_to_go_on_from(self, condition_number: float | None) -> Moments | ExactMoments:
        """Exact moments of few rows whose condition asks for them, else those that there are."""
        ill_conditioned = condition_number is not None and condition_number > ILL_CONDITIONED
        if "exact_moments" in self.__dict__ or (ill_conditioned and self.is_small):
            return self.exact_moments
        return self.moments

    def gradient(
        self, frame: Frame, design: np.ndarray, responses: np.ndarray, coef: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Gradient of the squared error in float64 and its rounding error; one pass.

        Both have shape (n_design, n_responses).
        """
        of = GradientOf(frame, design, responses, coef)
        sums = self.blocks.map_reduce(
            of,
            GradientSums.merge,
            dense=not self.blocks.is_sparse,
            rows_in_place=GRADIENT_BLOCK_BYTES // (8 * self.blocks.n_features),
            width=3 * len(responses),
        )
        return of.finish(sums)

    def exact_gradient(
        self,
        frame: Frame,
        design: np.ndarray,
        responses: np.ndarray,
        coef: tuple[np.ndarray, np.ndarray],
        depth: Depth,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same for a double-double model, as a double-double; one pass."""
        of = ExactGradientOf(frame, design, responses, coef, depth)
        return self.blocks.map_reduce(of, Gradient.merge, dense=True).total()


def moments_to_keep(
    parts: Iterable[Problem], condition_number: float | None
) -> tuple[Moments | ExactMoments, ...]:
    """Moments of problems, on the CPU, for a fitted model to go on from."""
    return tuple(on_cpu(part.moments_to_go_on_from(condition_number)) for part in parts)


def rows_at_once(blocks: RowBlocks) -> int:
    """How many rows of a user's memory moments take at once: many, unless the user wants small blocks."""
    large = blocks.in_place and blocks.rows_per_block >= WIDE_BLOCK_ROWS
    return blocks.rows_per_block * (BLOCKS_AT_ONCE if large else 1)
