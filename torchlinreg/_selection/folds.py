"""Moments of what the splits train and test on, each row read once where the test sets allow it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

from torchlinreg._data.rows import Block, RowBlocks
from torchlinreg._moments.moments import Frame, Moments, MomentsOf
from torchlinreg._objective.problem import rows_at_once

# Rows of up to so many runs are read as slices; a gather of 1e5 x 50 rows costs as much as their moments.
MOST_RUNS = 32
# Moments of the test sets of one partition that are held at once; more of them are formed in halves.
MOMENTS_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Rows:
    """Some rows: runs of neighbours ``(start, stop)`` or, where these would be many, indices."""

    n_rows: int
    runs: tuple[tuple[int, int], ...]
    index: torch.Tensor | None

    def blocks_of(self, blocks: RowBlocks, n_at_once: int) -> Iterator[Block]:
        """The rows, block by block; sparse ones stay sparse where they are read in runs and that pays.

        Runs are read `n_at_once` rows at a time, others copied block by block.
        """
        if self.index is not None:
            for start in range(0, self.n_rows, blocks.rows_per_block):
                yield blocks.gather(self.index[start : start + blocks.rows_per_block])
            return
        take = blocks.rows if blocks.is_sparse else blocks.dense_rows
        for first, last in self.runs:
            for start in range(first, last, n_at_once):
                yield take(start, min(start + n_at_once, last))


class Split(NamedTuple):
    """The indices of a split; `train` is None where it is all rows that are not tested, in sequence."""

    train: np.ndarray | None
    test: np.ndarray
    trains_on_rest: bool  # on all rows that are not tested, each once

    def train_index(self, n_samples: int) -> np.ndarray:
        """The rows to train on, in the splitter's order: rounding of a fit depends on it."""
        if self.train is not None:
            return self.train
        mask = np.ones(n_samples, dtype=bool)
        mask[self.test] = False
        return mask.nonzero()[0]


def splits_of(pairs: Iterable[tuple[Any, Any]], n_samples: int) -> list[Split]:
    """The splits of a splitter, with indices as sorted or not as they came.

    Raises
    ------
    ValueError
        There are no splits, or one has no rows to train or to test on, or others than there are.
    """
    splits = []
    every = np.arange(n_samples)
    for number, (train, test) in enumerate(pairs):
        train = _as_index(train, every, f"train rows of split {number} of cv")
        test = _as_index(test, every, f"test rows of split {number} of cv")
        rest = _is_complement(train, test, n_samples)
        in_sequence = rest and bool((np.diff(train) > 0).all())
        splits.append(Split(None if in_sequence else train, test, rest))
    if not splits:
        raise ValueError("cv gives no splits; use another splitter, such as cv=5.")
    return splits


def _as_index(index: Any, every: np.ndarray, name: str) -> np.ndarray:
    """Places of rows, counted from the first."""
    array = np.asarray(index)
    n_samples = len(every)
    if array.size == 0:
        raise ValueError(f"There are no {name}; use another splitter.")
    if array.ndim != 1 or array.dtype.kind not in "biu":
        raise ValueError(
            f"The {name} are an array of shape {array.shape} and dtype {array.dtype}; give a 1-D array of "
            "places of rows, from 0 on, or one boolean per row."
        )
    if array.dtype == bool:
        if len(array) != n_samples:
            raise ValueError(f"The {name} are {len(array)} booleans, but there are {n_samples} rows of X.")
        return _as_index(every[array], every, name)
    least, largest = int(array.min()), int(array.max())
    if least < -n_samples or largest >= n_samples:
        raise ValueError(
            f"The {name} reach from {least} to {largest}, but X has {n_samples} rows, 0 to {n_samples - 1}. "
            "Make the splits of the rows that are fitted."
        )
    return every[array] if least < 0 else array


def _is_complement(train: np.ndarray, test: np.ndarray, n_samples: int) -> bool:
    if len(train) + len(test) != n_samples:
        return False
    seen = np.zeros(n_samples, dtype=bool)
    seen[train] = True
    seen[test] = True
    return bool(seen.all())


def rows_of(index: np.ndarray) -> Rows:
    """Rows of these indices."""
    breaks = (np.diff(index) != 1).nonzero()[0]
    if len(breaks) >= MOST_RUNS:
        return Rows(len(index), (), torch.from_numpy(np.ascontiguousarray(index, dtype=np.int64)))
    starts = [0, *(int(place) + 1 for place in breaks), len(index)]
    runs = tuple((int(index[start]), int(index[stop - 1]) + 1) for start, stop in pairwise(starts))
    return Rows(len(index), runs, None)


class FoldMoments(NamedTuple):
    """Moments of what a split trains and tests on."""

    number: int  # of the split
    train: Moments
    test: Moments


def fold_moments(blocks: RowBlocks, frame: Frame, splits: list[Split]) -> Iterator[FoldMoments]:
    """Moments of each split's rows, in one frame.

    Splits whose test sets share out all rows, each trained on all rows that it does not test, take one pass
    together; their training moments are sums of the others' test moments, never differences, which would
    cancel. Other splits read what they train and test on.
    """
    of_rows = moments_of(blocks, frame)
    for first, last in _partitions(splits, blocks.n_samples):
        group = range(first, last)
        if last - first > 1:
            parts = [rows_of(splits[number].test) for number in group]
            moments = leave_one_out(parts, of_rows, max(2, MOMENTS_BYTES // (8 * len(frame.shift) ** 2)))
            yield from (FoldMoments(number, *pair) for number, pair in zip(group, moments, strict=True))
        else:
            split = splits[first]
            train = of_rows(rows_of(np.sort(split.train_index(blocks.n_samples))))
            yield FoldMoments(first, train, of_rows(rows_of(split.test)))


def _partitions(splits: list[Split], n_samples: int) -> Iterator[tuple[int, int]]:
    """Ranges of splits whose test sets share out all rows, and single splits."""
    first = 0
    while first < len(splits):
        tested = np.zeros(n_samples, dtype=bool)
        last, n_tested = first, 0
        while last < len(splits) and n_tested < n_samples:
            split = splits[last]
            if not split.trains_on_rest or tested[split.test].any():
                break
            tested[split.test] = True
            n_tested += len(split.test)
            last += 1
        if n_tested < n_samples:
            last = first + 1
        yield first, last
        first = last


def moments_of(blocks: RowBlocks, frame: Frame, *, weighted: bool = True) -> Callable[[Rows], Moments]:
    """What forms the moments of some rows."""
    each = MomentsOf(frame)

    def of(block: Block) -> Moments:
        return each(block if weighted else block._replace(weight=None))

    n_at_once = rows_at_once(blocks)

    def moments_of_rows(rows: Rows) -> Moments:
        parts = rows.blocks_of(blocks, n_at_once)
        total = of(next(parts))
        for block in parts:
            total = Moments.merge(total, of(block))
        return total

    return moments_of_rows


def leave_one_out(
    parts: list[Rows],
    moments_of_rows: Callable[[Rows], Moments],
    n_at_once: int,
    others: Moments | None = None,
) -> Iterator[tuple[Moments, Moments]]:
    """Moments of all parts but one, and `others`, beside those of that one; for each part in turn."""
    if len(parts) > n_at_once:
        half = len(parts) // 2
        for here, there in ((parts[:half], parts[half:]), (parts[half:], parts[:half])):
            total = others
            for rows in there:
                total = _merged(total, moments_of_rows(rows))
            yield from leave_one_out(here, moments_of_rows, n_at_once, total)
        return
    each = [moments_of_rows(rows) for rows in parts]
    after: list[Moments | None] = [others]
    for moments in each[:0:-1]:
        after.append(_merged(after[-1], moments))
    before: Moments | None = None
    for moments, rest in zip(each, reversed(after), strict=True):
        train = rest if before is None else _merged(rest, before)
        assert train is not None
        yield train, moments
        before = _merged(before, moments)


def _merged(a: Moments | None, b: Moments) -> Moments:
    return b if a is None else Moments.merge(a, b)
