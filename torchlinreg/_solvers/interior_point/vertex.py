"""The optimum of a program of hinges as the point where some of them are at their kinks, exactly."""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import qr, solve_triangular

from torchlinreg._solvers.interior_point.program import Iterate, Program, State

# Of so many times as many hinges as columns, the first independent ones make a vertex.
CANDIDATES = 1.5
# Hinges so near their kinks are there as well, and duals may be so far outside of their range.
AT_KINK, OUTSIDE = 1e-13, 1e-9
# Duals this far inside of their range, relatively, hold their hinges at their kinks.
HELD = 1e-9
# Less of the largest dual is its rounding.
NO_DUAL = 1e-14
# Rows at kinks, times columns, up to which they are solved for.
LARGEST_VERTEX = 10**7
# A row at its kink is dependent on others if less than this share of it is not.
DEPENDENT = 1e-10


def vertex_of_weights(program: Program, state: State) -> Iterate | None:
    """Where the independent hinges of the largest weights meet, if it is the optimum of a linear program."""
    free, finite = program.free, slice(program.n_finite)
    index, kinks = _independent_hinges(program, state)
    if kinks.rank < free.sum():
        return None
    theta = state.theta.copy()
    theta[free] += kinks.onto(program.values(theta)[index].cpu().numpy())
    values = program.values(theta)
    at_kink = values.abs() <= AT_KINK * (1 + float(np.abs(theta).sum()))
    at_kink[index] = True
    beyond_bounds = (values[program.n_finite :] > 0) & ~at_kink[program.n_finite :]
    n_at_kink = int(at_kink.sum())
    if bool(beyond_bounds.any()) or n_at_kink * program.rows.n_columns > LARGEST_VERTEX:
        return None
    if n_at_kink > len(index):
        index = torch.nonzero(at_kink)[:, 0]
        kinks = Kinks(program.gradients(index)[:, free])
    dual = torch.zeros_like(state.d)
    dual[finite] = torch.where((values[finite] > 0) & ~at_kink[finite], program.cost, 0.0)
    pulled = program.linear - program.transposed(dual)
    dual[index] = torch.from_numpy(kinks.duals(pulled[free], state.d[index].cpu().numpy())).to(dual.device)
    inside = dual.clamp(min=0)
    torch.minimum(inside[finite], program.cost, out=inside[finite])
    if bool(((inside - dual).abs() > OUTSIDE * inside.max()).any()):
        return None
    columns = index[index >= program.n_row_hinges].cpu().numpy() - program.n_row_hinges
    theta[program.column[columns]] = program.sign[columns] * program.offset[columns]
    values = program.values(theta)
    objective, gap = program.objective(theta, values), program.gap(theta, values, inside)
    is_unique = len(index) == free.sum() and bool(holds(program, inside)[index].all())
    return Iterate(theta, inside, objective, gap, is_vertex=True, is_unique=is_unique)


def holds(program: Program, dual: torch.Tensor) -> torch.Tensor:
    """Whether each hinge's dual is inside its range, so that the hinge is at its kink in every optimum."""
    finite, least = slice(program.n_finite), NO_DUAL * float(dual.max())
    room = dual.clone()
    torch.minimum(dual[finite], program.cost - dual[finite], out=room[finite])
    result = room > max(least, 0.0)
    result[finite] &= room[finite] > HELD * program.cost
    return result


def _independent_hinges(program: Program, state: State) -> tuple[torch.Tensor, Kinks]:
    """As many of the hinges with the largest weights in a step as there are columns."""
    weight = state.v / state.d
    weight[: program.n_finite] += state.u / state.e
    weight.reciprocal_()
    n_columns = int(program.free.sum())
    largest = torch.topk(weight, min(len(weight), int(CANDIDATES * n_columns) + 1))
    rows = program.gradients(largest.indices)[:, program.free]
    root = largest.values.sqrt().cpu().numpy()[:, None]
    *_, order = qr((root * rows).T, mode="economic", pivoting=True, check_finite=False)
    order = order[:n_columns].astype(np.int64)
    return largest.indices[torch.from_numpy(order).to(weight.device)], Kinks(rows[order])


def vertex_of_kinks(program: Program, state: State) -> Iterate | None:
    """Where the hinges that seem to be at their kinks are so exactly; for a ridge, the optimum there.

    A hinge counts whose dual is farther inside its range than the hinge is from its kink, where typical
    residuals next to it differ by one over the number of rows.
    """
    cost, n_rows = program.cost, len(program.y)
    n_row_hinges, n_finite = program.n_row_hinges, program.n_finite
    distance = program.n_all * state.s.abs()
    if program.ridge.ndim == 1 and len(program.column):
        distance[n_row_hinges:] *= torch.from_numpy(1 + program.ridge[program.column]).to(distance.device)
    room = state.d.clone()
    torch.minimum(state.d[:n_finite], state.e, out=room[:n_finite])
    room[:n_finite] /= cost
    active = room > distance
    index = torch.nonzero(active[:n_row_hinges])[:, 0]
    if len(index) * program.rows.n_columns > LARGEST_VERTEX:
        return None
    fixed = active[n_row_hinges:].cpu().numpy()
    columns = program.column[fixed]
    theta = state.theta.copy()
    theta[columns] = program.sign[fixed] * program.offset[fixed]
    moving = program.free.copy()
    moving[columns] = False
    kinks = Kinks(program.rows.take(index % n_rows).cpu().numpy()[:, moving])
    values = program.values(theta)
    theta[moving] += kinks.onto(values[index].cpu().numpy())

    dual = torch.zeros_like(state.d)
    dual[:n_finite] = torch.where(state.d[:n_finite] > cost / 2, cost, 0.0)
    dual[index] = 0
    dual[n_row_hinges:][torch.from_numpy(fixed)] = 0
    pulled = program.linear - program.transposed(dual)
    if program.has_ridge:
        bend = program.ridge[moving] if program.ridge.ndim == 1 else program.ridge[np.ix_(moving, moving)]
        theta[moving] += kinks.along((pulled + program.bent(theta))[moving], bend)
    at_kinks = state.d[index].cpu().numpy()
    at_kinks = kinks.duals((pulled + program.bent(theta))[moving], at_kinks)
    dual[index] = torch.from_numpy(at_kinks).to(dual.device)
    pull = program.stationarity(theta, dual)[columns] * program.sign[fixed]
    dual[n_row_hinges:][torch.from_numpy(fixed)] = torch.from_numpy(pull).to(dual.device)
    dual.clamp_(min=0)
    torch.minimum(dual[:n_finite], cost, out=dual[:n_finite])
    values = program.values(theta)
    if bool((values[n_finite:] > 0).any()):
        return None
    return Iterate(theta, dual, program.objective(theta, values), program.gap(theta, values, dual), True)


class Kinks:
    """Rows that are to be met exactly, by a pivoted QR of their transpose: dependent ones are left out."""

    def __init__(self, rows: np.ndarray) -> None:
        norm = np.sqrt((rows**2).sum(1))
        self._norm = np.where(norm > 0, norm, 1.0)
        self._rows = rows / self._norm[:, None]
        n_columns = rows.shape[1]
        if not rows.size:
            self.rank = 0
            self._index, self._upper = np.arange(0), np.zeros((0, 0))
            self._along, self.across = np.zeros((n_columns, 0)), np.eye(n_columns)
            return
        basis, upper, pivots = qr(self._rows.T, pivoting=True, check_finite=False)
        diagonal = np.abs(upper.diagonal())
        self.rank = rank = int((diagonal > DEPENDENT * diagonal[:1]).sum())
        self._index = pivots[:rank]
        self._upper = upper[:rank, :rank]
        self._along, self.across = basis[:, :rank], basis[:, rank:]

    def onto(self, values: np.ndarray) -> np.ndarray:
        """The least step by which the rows change by these values."""
        right = (values / self._norm)[self._index]
        return self._along @ solve_triangular(self._upper, right, trans=1, check_finite=False)

    def along(self, gradient: np.ndarray, curvature: np.ndarray) -> np.ndarray:
        """The step to the minimum of a quadratic among those that do not change the rows."""
        if not self.across.shape[1]:
            return np.zeros_like(gradient)
        bent = curvature[:, None] * self.across if curvature.ndim == 1 else curvature @ self.across
        inverse = np.linalg.pinv(self.across.T @ bent, rcond=1e-13, hermitian=True)
        return -self.across @ (inverse @ (self.across.T @ gradient))

    def duals(self, pulled: np.ndarray, near: np.ndarray) -> np.ndarray:
        """Duals near those given by which the rows balance the gradient."""
        missing = pulled - self._rows.T @ (near * self._norm)
        change = solve_triangular(self._upper, self._along.T @ missing, check_finite=False)
        result = near.copy()
        result[self._index] += change / self._norm[self._index]
        return result
