"""Of several optima of a program of hinges the one of least norm, whatever the order or number of rows.

With the duals of one optimum, all optima are known: hinges with a dual inside its range are at their kinks,
and others stay on the side that theirs tells. A ridge holds what it bends. That is a face of a polyhedron.
In coordinates z of the directions that these leave free, the shortest coefficients are those of::

    minimise  |x|^2 / 2,  C x <= h,   where x = R z + x0 has the norm of the coefficients

C has the rows whose side is known. The dual, ``min |C' v|^2 / 2 + h . v`` with ``v >= 0``, needs only rows
that keep x from being shorter. They are found by adding those that are violated until none is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.linalg import solve_triangular

from torchlinreg._objective.penalty import Penalty
from torchlinreg._solvers.interior_point.program import Iterate, Program
from torchlinreg._solvers.interior_point.vertex import AT_KINK, DEPENDENT, LARGEST_VERTEX, Kinks, holds
from torchlinreg._solvers.penalised.quadratic import minimise_quadratic

# Of the longest unit of a coordinate, the shortest that counts as its own: norms of units further apart would
# leave predictions too few digits.
SHORTEST_UNIT = 1e-6
# What holds the intercept where nothing else does, relative to the norm, and solutions about the last one,
# each of which shrinks what is left of that by its square.
PROXIMAL, N_PROXIMAL = 1e-4, 3
# Violated rows that join at once, for each direction, and rounds: 3 to 12 for 15 x 30 to 2000 x 3000.
JOINING, MAX_ROUNDS = 2, 200
# Directions with a smaller share of the largest ridge are not bent by it.
UNBENT = 1e-13
# Objectives, in units of the typical target and of the coordinates, that are higher by this are higher.
ROUNDING = 1e-14


def root_of_norm(transform: np.ndarray, n_intercepts: int) -> np.ndarray:
    """The square matrix M with ``|M theta| = |coef|`` for ``coef = transform theta[n_intercepts:]``."""
    if transform.ndim == 1:
        unit, vectors = np.abs(transform), np.eye(len(transform))
    else:
        _, unit, vectors = np.linalg.svd(transform, full_matrices=False)
    largest = unit.max(initial=0.0) or 1.0
    root = np.maximum(unit / largest, SHORTEST_UNIT)[:, None] * vectors
    return np.pad(root, ((n_intercepts, 0), (n_intercepts, 0)))


@dataclass(frozen=True)
class Face:
    """All optima: ``theta + directions z``, with hinges on their side."""

    program: Program
    theta: np.ndarray
    held: torch.Tensor  # indices of hinges at their kinks
    directions: np.ndarray  # orthonormal; shape: (n_columns, n_directions)
    side: torch.Tensor  # of each hinge: 1 where it is not below its kink, -1 where not above, 0 where held

    @staticmethod
    def of(program: Program, theta: np.ndarray, is_held: torch.Tensor, is_above: torch.Tensor) -> Face | None:
        """The face about an optimum, by its hinges; None where too many are held."""
        if int(is_held.sum()) * program.rows.n_columns > LARGEST_VERTEX:
            return None
        side = torch.where(is_above, 1.0, -1.0).masked_fill(is_held, 0.0)
        held = torch.nonzero(is_held)[:, 0]
        theta, kinks = theta.copy(), Kinks(program.gradients(held)[:, program.free])
        theta[program.free] += kinks.onto(program.values(theta)[held].cpu().numpy())
        return Face(program, theta, held, _directions(program, held), side)

    def moves(self, hinges: torch.Tensor) -> torch.Tensor:
        """Whether hinges differ between points of the face by more than rounding."""
        rows = self.program.gradients(hinges)
        along = np.linalg.norm(rows @ self.directions, axis=1)
        return torch.from_numpy(along > DEPENDENT * np.linalg.norm(rows, axis=1)).to(hinges.device)

    def held_at(self, theta: np.ndarray, active: torch.Tensor) -> Face:
        """The part of the face where more hinges are at their kinks."""
        held = torch.cat([self.held, active])
        directions = _directions(self.program, held)
        return replace(self, theta=theta, held=held, directions=directions)

    @property
    def holds_rows(self) -> bool:
        """Whether rows are among the hinges at their kinks."""
        return bool((self.held < self.program.n_row_hinges).any())

    def placed(self, theta: np.ndarray, active: torch.Tensor) -> np.ndarray:
        """Coordinates with the hinges that hold them exactly at their kinks."""
        program = self.program
        index = torch.cat([self.held, active])
        theta = theta.copy()
        kinks = Kinks(program.gradients(index)[:, program.free])
        theta[program.free] += kinks.onto(program.values(theta)[index].cpu().numpy())
        columns = index[index >= program.n_row_hinges].cpu().numpy() - program.n_row_hinges
        theta[program.column[columns]] = program.sign[columns] * program.offset[columns]
        return theta


def shortest_optimum(
    program: Program, found: Iterate, root: np.ndarray, n_intercepts: int, median: float
) -> Iterate:
    """The optimum of least norm, ``|root @ theta|``, with the intercept nearest to the median.

    If rounding leaves its objective above that of the optimum that was found, that one is given.
    """
    if found.is_unique:
        return found
    found = replace(found, dual=_best_dual(program, found))
    finite, bounds = slice(program.n_finite), slice(program.n_finite, None)
    is_held = holds(program, found.dual)
    # Of interior points, all duals of bounds are above 0.
    is_held[bounds] &= -program.values(found.theta)[bounds] <= found.dual[bounds]
    is_above = torch.zeros_like(is_held)
    is_above[finite] = found.dual[finite] > program.cost / 2
    face = Face.of(program, found.theta, is_held, is_above)
    if face is None or not face.directions.shape[1]:
        return found
    theta = np.clip(shortest_of(face, root, n_intercepts, median), program.lower, program.upper)
    values = program.values(theta)
    objective = program.objective(theta, values)
    risen = objective - program.objective(found.theta, program.values(found.theta))
    if not risen <= max(found.gap, ROUNDING * (1 + float(np.abs(theta).sum()))):
        return found
    gap = min(found.gap + max(risen, 0.0), program.gap(theta, values, found.dual))
    return replace(found, theta=theta, objective=objective, gap=gap)


def _best_dual(program: Program, found: Iterate) -> torch.Tensor:
    """The dual found or, if it is better, the one of rows that are all predicted best.

    Where next to no loss is left, steps end whatever their duals.
    """
    slope, _, jumps = program.pieces
    dual = torch.zeros_like(found.dual)
    by_position = dual[: program.n_row_hinges].view(len(jumps), -1)
    for position, jump in zip(by_position, jumps, strict=True):
        torch.mul(program.weight, min(max(-slope, 0.0), jump), out=position)
        slope += jump
    dual[program.n_row_hinges : program.n_finite] = program.cost[program.n_row_hinges :] / 2
    values = program.values(found.theta)
    return min(found.dual, dual, key=lambda each: program.gap(found.theta, values, each))


def _directions(program: Program, held: torch.Tensor) -> np.ndarray:
    """Those that hinges at their kinks, and a ridge, leave free."""
    rows = np.concatenate([program.gradients(held), _bent(program)])
    across = Kinks(rows[:, program.free]).across
    directions = np.zeros((rows.shape[1], across.shape[1]))
    directions[program.free] = across
    return directions


def _bent(program: Program) -> np.ndarray:
    """Rows that a ridge keeps as they are."""
    if program.ridge.ndim == 1:
        return np.eye(len(program.ridge))[(program.ridge > 0) & program.free]
    values, vectors = np.linalg.eigh(program.ridge)
    return vectors[:, values > UNBENT * values.max(initial=0.0)].T


def shortest_of(face: Face, root: np.ndarray, n_intercepts: int, median: float) -> np.ndarray:
    """The coordinates of least norm on a face, with the intercept nearest to the median."""
    goal = np.zeros(len(face.theta))
    goal[:n_intercepts] = median
    if not n_intercepts or face.holds_rows:  # which the intercept alone cannot leave
        theta, active = _nearest(face, root, goal, face.held[:0])
    else:
        near, active = root + PROXIMAL * np.diag(np.arange(len(goal)) < n_intercepts), face.held[:0]
        for _ in range(N_PROXIMAL):
            theta, active = _nearest(face, near, goal, active)
            goal[:n_intercepts] = theta[:n_intercepts]
    theta = _settled(face.held_at(theta, active), root)
    if n_intercepts and not face.holds_rows:
        theta[0] = _nearest_intercept(face, theta, median)
    return theta


def _settled(face: Face, root: np.ndarray) -> np.ndarray:
    """The coordinates of least norm on a face whose sides do not matter, without the rounding of duals."""
    has_kernel = not face.holds_rows and not root[:, 0].any()  # that of the intercept
    if has_kernel or not face.directions.shape[1]:
        return face.theta
    away = np.linalg.lstsq(root @ face.directions, root @ face.theta)[0]
    theta = face.placed(face.theta - face.directions @ away, face.held[:0])
    excess = -face.side * face.program.values(theta)
    excess[face.held] = 0.0
    return theta if float(excess.amax()) <= AT_KINK * (1 + float(np.abs(theta).sum())) else face.theta


def _nearest(
    face: Face, root: np.ndarray, goal: np.ndarray, working: torch.Tensor
) -> tuple[np.ndarray, torch.Tensor]:
    """The point of a face with the least ``|root @ (theta - goal)|``, and the hinges that keep it away.

    `working` are hinges that are likely to.
    """
    program, n_directions = face.program, face.directions.shape[1]
    orthonormal, upper = np.linalg.qr(root @ face.directions)
    mapping = solve_triangular(upper, face.directions.T, trans=1, check_finite=False).T
    origin = face.theta - mapping @ (orthonormal.T @ (root @ (face.theta - goal)))
    at_origin, theta, active = program.values(origin), origin, working[:0]
    fixed = working[:0]
    for _ in range(MAX_ROUNDS):
        if len(working):
            side = face.side[working].cpu().numpy()
            rows = side[:, None] * (program.gradients(working) @ mapping)
            dual = _least_dual(rows, side * at_origin[working].cpu().numpy())
            active = working[torch.from_numpy(dual > 0).to(working.device)]
            theta = face.placed(origin - mapping @ (rows.T @ dual), active)
        violation = -face.side * program.values(theta)
        violation[torch.cat([working, fixed])] = 0.0
        worst = torch.topk(violation, min(JOINING * (1 + n_directions), len(violation)))
        joining = worst.indices[worst.values > AT_KINK * (1 + float(np.abs(theta).sum()))]
        if not len(joining):
            break
        moves = face.moves(joining)
        working, fixed = torch.cat([working, joining[moves]]), torch.cat([fixed, joining[~moves]])
    return theta, active


def _least_dual(rows: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """The v >= 0 of the least ``|rows' v|^2 / 2 + limits . v``."""
    norm = np.sqrt((rows**2).sum(1))
    norm = np.where(norm > 0, norm, 1.0)
    rows, limits = rows / norm[:, None], limits / norm
    nothing = np.zeros_like(limits)
    penalty = Penalty(nothing, nothing, lower=nothing, upper=np.full_like(limits, np.inf))
    return minimise_quadratic(rows @ rows.T, -limits, penalty).coef / norm


def _nearest_intercept(face: Face, theta: np.ndarray, median: float) -> float:
    """The optimal intercept nearest to the median, where no row holds it."""
    slack = face.program.values(theta)[: face.program.n_row_hinges]
    side = face.side[: face.program.n_row_hinges]
    lower = float((slack[side < 0]).amax()) if bool((side < 0).any()) else -np.inf
    upper = float((slack[side > 0]).amin()) if bool((side > 0).any()) else np.inf
    return float(np.clip(median, theta[0] + min(lower, 0.0), theta[0] + max(upper, 0.0)))
