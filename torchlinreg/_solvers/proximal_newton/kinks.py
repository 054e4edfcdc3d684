"""Where the derivative of a row's loss jumps: brackets that shrink to a few units in the last place.

Between two points the derivative rises by what curvature explains and, if that is not all, by jumps. A kink
lies about where the tangents of both points meet; the half with the larger unexplained rise is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchlinreg._solvers.proximal_newton.points import ULP, Points, RowLosses, expanded
from torchlinreg.losses import Loss

# A bracket of so many units in the last place holds a kink; both of its ends are then so much further out,
# since the derivative at a kink itself may be any number between those of its sides.
WIDTH, OUTWARDS = 16, 8
# A rise beyond this share of what curvature makes is searched for a kink.
UNEXPLAINED = 0.3
# Jumps below this share of the typical slope do not matter.
NO_JUMP = 1e-11
# A bracket needs 4 to 8 probes; halving alone 50, or 100 where the kink is at 0.
MOST_PROBES, HALVED_EVERY = 120, 4
# Brackets this close to each other, in units in the last place, hold the same kink.
SAME = 64
# The rise is looked at in so many intervals of a row, finer near its target, and up to so many typical errors
# away. In wide intervals, curvature explains too much.
INTERVALS, REACH = 32, 8.0


@dataclass(frozen=True)
class Kinks:
    """Kinks of rows, sorted by row and position, as points next to them on both sides."""

    row: Tensor  # shape: (n,)
    low: Points
    high: Points

    @staticmethod
    def none(device: torch.device) -> Kinks:
        points = Points(torch.zeros((4, 0), dtype=torch.float64, device=device))
        return Kinks(torch.zeros(0, dtype=torch.long, device=device), points, points)

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, index: Tensor) -> Kinks:
        return Kinks(self.row[index], self.low[index], self.high[index])

    @property
    def position(self) -> Tensor:
        return (self.low.prediction + self.high.prediction) / 2

    @property
    def jump(self) -> Tensor:
        return self.high.first - self.low.first

    def holds(self, prediction: Tensor) -> Tensor:
        """Of each kink, whether the prediction of its row, shape (n_rows,), is at it up to rounding."""
        prediction = prediction[self.row]
        margin = 2 * (self.high.prediction - self.low.prediction)
        return (prediction >= self.low.prediction - margin) & (prediction <= self.high.prediction + margin)

    def with_new(self, other: Kinks, losses: RowLosses) -> Kinks:
        """These and others that are not among them."""
        row = torch.cat([self.row, other.row])
        both = Kinks(row, Points.joined(self.low, other.low), Points.joined(self.high, other.high))
        both = both[_order(row, both.low.prediction)]
        new = torch.ones(len(both), dtype=torch.bool, device=row.device)
        apart = both.low.prediction[1:] - both.high.prediction[:-1]
        size = losses.of_rows(both.row[1:]).sizes(both.low.prediction[1:])
        new[1:] = (both.row[1:] != both.row[:-1]) | (apart > SAME * ULP * size)
        return both[new]


def find_kinks(losses: RowLosses, row: Tensor, low: Points, high: Points) -> Kinks:
    """One kink in each bracket of the rows of these numbers, if there is any that matters."""
    found = Kinks.none(row.device)
    for probe in range(MOST_PROBES):
        part = losses.of_rows(row)
        width, jump = high.prediction - low.prediction, high.first - low.first
        curvature = torch.maximum(low.second, high.second)
        size = torch.minimum(part.sizes(low.prediction), part.sizes(high.prediction))
        tight = width <= WIDTH * ULP * size
        excess = jump - (low.second + high.second) / 2 * width
        open_ = ~tight & (excess > UNEXPLAINED * curvature * width + NO_JUMP * losses.steep)
        kink = tight & (jump > NO_JUMP * losses.steep)
        if kink.any():
            found = Kinks(
                torch.cat([found.row, row[kink]]),
                Points.joined(found.low, low[kink]),
                Points.joined(found.high, high[kink]),
            )
        if not open_.any():
            break
        row, low, high, part = row[open_], low[open_], high[open_], part.of_rows(open_)
        inside = _probe(low, high, size[open_], halved=probe % HALVED_EVERY == HALVED_EVERY - 1)
        new = part.at(inside)
        upper_half = _excess(new, high) > _excess(low, new)
        low, high = Points.where(upper_half, new, low), Points.where(upper_half, high, new)
    if not len(found):
        return found
    found = found[_order(found.row, found.low.prediction)]
    part = losses.of_rows(found.row)
    step = OUTWARDS * ULP * part.sizes(found.position)
    found = Kinks(found.row, part.at(found.low.prediction - step), part.at(found.high.prediction + step))
    return found[found.low.is_finite & found.high.is_finite & (found.jump > NO_JUMP * losses.steep)]


def _excess(low: Points, high: Points) -> Tensor:
    """What of the derivative's rise curvature does not explain."""
    return high.first - low.first - (low.second + high.second) / 2 * (high.prediction - low.prediction)


def _probe(low: Points, high: Points, size: Tensor, *, halved: bool) -> Tensor:
    """Where the kink of a bracket seems to be, or beyond it on the longer side.

    The tangents ``low.first x + low.second x^2 / 2`` and that of the other end meet at a distance x from the
    lower one, by a step of Newton's method; its error is about curvature * width^2 / jump.
    """
    width, jump = high.prediction - low.prediction, high.first - low.first
    x = (low.value - high.value + high.first * width) / jump
    miss = (low.second * x.square() - high.second * (x - width).square()) / 2
    x = x + miss / (jump + high.second * (x - width) - low.second * x)
    margin = torch.maximum(low.second, high.second) * width.square() / (2 * jump) + 4 * ULP * size
    x = torch.where(x > width - x, x - margin, x + margin)
    usable = (x > 0) & (x < width) & (not halved)
    inside = low.prediction + torch.where(usable, x, width / 2)
    between = (inside > low.prediction) & (inside < high.prediction)
    return torch.where(between, inside, low.prediction + width / 2)


def brackets(kinks: Kinks, row: Tensor, low: Points, high: Points) -> tuple[Tensor, Points, Points]:
    """The ways from `low` to `high`, of rows in rising order, cut at the kinks that are known."""
    if not len(kinks) or not len(row):
        return row, low, high
    at = torch.searchsorted(row, kinks.row).clamp(max=len(row) - 1)
    between = (row[at] == kinks.row) & (kinks.high.prediction >= low.prediction[at])
    known = kinks[between & (kinks.low.prediction <= high.prediction[at])]
    rows = torch.cat([row, known.row])
    starts, ends = Points.joined(low, known.high), Points.joined(high, known.low)
    first, second = _order(rows, starts.prediction), _order(rows, ends.prediction)
    rows, starts, ends = rows[first], starts[first], ends[second]
    some = ends.prediction > starts.prediction
    return rows[some], starts[some], ends[some]


def has_kinks(loss: Loss, y: Tensor, spread: float) -> bool:
    """Whether a kink is found about these targets, with errors of this size; a few calls if there is none."""
    n_rows = len(y)
    steps = torch.linspace(-1, 1, INTERVALS + 1, dtype=torch.float64, device=y.device) ** 3
    targets = y.repeat(INTERVALS + 1)
    points = expanded(loss, targets + REACH * spread * steps.repeat_interleave(n_rows), targets)
    losses = RowLosses.about(loss, targets, torch.full_like(targets, 1 / len(targets)), points)
    low, high = Points(points.numbers[:, :-n_rows]), Points(points.numbers[:, n_rows:])
    usable = (low.is_finite & high.is_finite).nonzero()[:, 0]
    return len(find_kinks(losses, usable, low[usable], high[usable])) > 0


def _order(row: Tensor, position: Tensor) -> Tensor:
    """The order by row and position."""
    order = np.lexsort((position.cpu().numpy(), row.cpu().numpy()))
    return torch.from_numpy(order).to(row.device)
