"""The minimum of a small quadratic with an elastic net penalty and bounds, to rounding.

Each coefficient lies on one piece of the monotone graph of its optimality condition: at zero, free and
positive or negative, or at a bound. For given pieces the free coefficients solve a linear system; all that
leave their piece, or whose gradient does not suit it, move to the next one at once (block principal pivoting,
Portugal, Judice, Vicente 1994, Math. Comp. 63, 625-643; primal-dual active sets, Hintermuller, Ito, Kunisch
2003, SIAM J. Optim. 13, 865-888). That mostly ends after 3 to 10 factorisations, but may cycle: where the
number of misplaced coefficients stops falling, proximal point steps with ever less damping, each of which
pivoting solves, come near to the minimum; and a descent that moves along exact line searches from minimum to
minimum (feature-sign search, Lee, Battle, Raina, Ng 2006), and cannot cycle, ends there.

A float64 Gram matrix tells columns apart up to a condition of 1e8, a triangular root of it that comes from
the rows themselves up to 1e16 (Bjorck 1996, Numerical Methods for Least Squares Problems, section 2.4).
`minimum_about` measures coefficients from a point whose gradient is known, where they need not cancel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.linalg import lapack, qr

from torchlinreg._linalg.cholesky import cholesky, extreme_singular_values
from torchlinreg._objective.penalty import Penalty

EPS = 2.0**-52
# Pieces: at the lower bound, free below zero, at zero, free (above zero, where zero is a kink), at the upper.
LOWER, NEGATIVE, ZERO, FREE, UPPER = -2, -1, 0, 1, 2
# Rounds in which the number of misplaced coefficients may fail to reach a new low. It mostly falls from the
# first round to the last; 3 is what Kim and Park (2011, SIAM J. Sci. Comput. 33, 3261) use.
PATIENCE = 5
# A free column whose square, less what the columns before it explain, is below this share depends on them; or
# whose norm is, where a root of the Gram matrix is known.
DEPENDENT = 4 * EPS
# A violation of the optimality conditions by so many times their rounding is a failure.
FAILED = 1e4
# Damping of the first proximal point step, in units of the Hessian's diagonal, and steps. With as many free
# columns as rows, of 908, the descent takes 260 steps after them instead of 2200.
DAMPING = 1e-3
MAX_STEPS = 12
# SciPy's LAPACK factorises up to here in one thread. Where other processes keep the cores busy, waking others
# costs 8 ms, 50 times the factorisation of 100 columns.
UNTHREADED = 200
# Predictions from a root are corrected twice, since the first ones may be far larger than the last.
CORRECTIONS = 3
# Of a coefficient in so many that is not zero, products copy the rows: 30 of 2500 take 0.1 ms instead of 6.
FEW_ROWS = 4
# So few coefficients leave the descent little to do.
FEW = 32


@dataclass(frozen=True)
class QuadraticMinimum:
    """Coefficients that minimise a penalised quadratic, and how well they do.

    `optimality` is the violation of the optimality conditions in units of the objective: what a Newton step
    of the free coefficients would gain, and each other one by moving alone. `n_iter` counts factorisations,
    and `converged` tells whether the violations are of the size of rounding.
    """

    coef: np.ndarray  # shape: (n_features,)
    optimality: float
    n_iter: int
    converged: bool
    pull: np.ndarray  # of the gradient on each coefficient; by how much it falls short where one rests


def minimise_quadratic(
    gram: np.ndarray, linear: np.ndarray, penalty: Penalty, start: np.ndarray | None = None
) -> QuadraticMinimum:
    """Minimise ``c @ gram @ c / 2 - linear @ c + penalty(c)``; `gram` is positive semidefinite.

    Of several minima any one is given. A `start` near the minimum saves factorisations.
    """
    return _minimise(_task(gram, linear, penalty), start)


def _minimise(task: _Task, start: np.ndarray | None) -> QuadraticMinimum:
    point, factor, n_iter = _pivot(task, _first_pieces(task, start))
    if factor is None:
        point, n_steps = _approach(task, point if start is None else _point_of(task, start))
        n_iter += n_steps
        point, n_steps = _descend(task, point)
        free, factor = task.independent(point.free)
        point = _restricted(point, np.isin(point.free, free))
        n_iter += n_steps + 1
    coef, gradient, rounding = _refined(task, point, factor)
    pull = np.maximum(*task.pulls(coef, gradient))
    excess = np.maximum(pull, 0.0)
    misplaced = excess > FAILED * rounding
    alone = np.divide(excess, task.root, out=np.zeros_like(excess), where=task.root > 0)
    alone[point.free] = 0
    residual = gradient[point.free] - point.sign * task.kink[point.free]
    newton = residual @ _solve(factor, residual)
    return QuadraticMinimum(
        coef=coef,
        optimality=float(alone @ alone + newton) / 2,
        n_iter=n_iter,
        converged=not misplaced.any(),
        pull=pull,
    )


@dataclass(frozen=True)
class Descent:
    """A step to the minimum of a penalised quadratic, and how much lower that is."""

    step: np.ndarray  # shape: (n_features,)
    goal: np.ndarray  # where it ends, exactly at zero and at bounds; shape: (n_features,)
    gain: float  # by how much the objective falls
    converged: bool
    pull: np.ndarray  # that of `QuadraticMinimum`, at the goal


def minimum_about(
    origin: np.ndarray,
    gradient: np.ndarray,
    gram: np.ndarray,
    root: np.ndarray | None,
    penalty: Penalty,
    *,
    rounding: float = 0.0,
    unresolved: float = 0.0,
) -> Descent:
    """Minimise ``d @ gram @ d / 2 - gradient @ d + penalty(origin + d)``; `gradient` is without the penalty.

    `root`, with ``root.T @ root == gram + diag(l2)``, takes its place where `gram` is too inaccurate.
    Entries of the gradient may be off by `rounding`, and norms of combinations of columns of the root below
    the share `unresolved` of theirs are rounding: such columns depend on each other. What an error of `gram`
    by the share r, as seen in any direction, makes of the gain is a share r of it.
    """
    task = _task_about(origin, gradient, gram, root, penalty)
    task = replace(task, unit_rounding=task.unit_rounding + rounding, unresolved=unresolved)
    found = _minimise(task, np.zeros_like(origin))
    step = found.coef
    goal = np.where(step == task.zero, 0.0, origin + step)
    goal = np.where(step == task.upper, penalty.upper, np.where(step == task.lower, penalty.lower, goal))
    # On the piece of the origin the penalty's slope is taken off first: the rest is often far smaller.
    sign = np.where(origin > 0, 1.0, -1.0)
    along = (task.linear - sign * task.kink) * step
    across = task.linear * step - task.kink * (np.abs(goal) - np.abs(origin))
    gain = float(np.where((origin > 0) == (goal > 0), along, across).sum())
    gain = max(gain - float(step @ task.product(step)) / 2, 0.0) + found.optimality
    return Descent(step, goal, gain, found.converged, found.pull)


def error_of_rounding(
    gram: np.ndarray, l2: np.ndarray, minimum: QuadraticMinimum, size: float, roundoff: float
) -> float:
    """How far from those of the minimum predictions may be because the quadratic's products are rounded.

    That is a root mean square; half of its square is how far above the minimum the objective may be. `size`
    is the target's spread and `roundoff` the error of a product of unit columns. Infinite where rounding
    hides which columns depend on each other.

    With columns E of Gram matrix G_E, and an error e of the gradient, ``q = G_E^-1/2 e_E`` moves the
    residuals so that coefficients of E are stationary again; others stay where they rest if their slack is
    larger than ``|q|`` and their own error. Then the gap is at most ``|q|^2 / 2``.
    """
    error = roundoff * (size + float(np.abs(minimum.coef).sum()))
    reach = error
    n_used = 0
    moves = gram.diagonal() + l2 > 0  # what no coefficient changes has no error
    while True:
        used = (moves & (minimum.pull >= -(error + reach))).nonzero()[0]
        if len(used) == n_used:
            return reach if n_used else 0.0
        n_used = len(used)
        block = gram[used[:, None], used] + np.diag(l2[used])
        root = np.sqrt(block.diagonal())
        upper = _cholesky(block / root[:, None] / root)
        smallest = 0.0 if upper is None else _smallest_square(upper)
        if not smallest > 4 * n_used * roundoff:
            return np.inf
        reach = max(reach, error * math.sqrt(n_used / (smallest - n_used * roundoff)))


def _smallest_square(upper: np.ndarray) -> float:
    """The square of the smallest singular value of a triangular factor, at least about."""
    if len(upper) > UNTHREADED:
        return extreme_singular_values(np.triu(upper))[1] ** 2
    # One over the squared norm of the inverse, at most n times too small, in a tenth of the time of an SVD.
    inverse = np.triu(lapack.dtrtri(upper.T, lower=1)[0].T)
    return 1 / float((inverse**2).sum()) if len(upper) else 1.0


def first_order_gap(
    value: float, penalty: Penalty, minimum: QuadraticMinimum, size: float, roundoff: float
) -> float:
    """A bound as `error_of_rounding`'s, of the objective, that needs no independent columns but a penalty.

    It is the sum of what pulls each coefficient, rounding included, times how far it may be from that of the
    minimum, where no penalty is larger than the `value` of the objective found. Infinite for free
    unpenalised coefficients.
    """
    coef = minimum.coef
    error = roundoff * (size + float(np.abs(coef).sum()))
    pull = np.maximum(minimum.pull + error, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        largest = np.minimum(value / penalty.l1, np.sqrt(2 * value / penalty.l2))
        high, low = np.minimum(penalty.upper, largest), np.maximum(penalty.lower, -largest)
        return float(np.where(pull > 0, pull * np.maximum(high - coef, coef - low), 0.0).sum())


def duality_gap(
    coef: np.ndarray, gradient: np.ndarray, penalty: Penalty, largest: np.ndarray | float
) -> float:
    """A bound on how far a convex objective is above its minimum, from the gradient of its smooth part.

    It holds where no coefficient of the minimum is larger than `largest`, and is then Fenchel's: the sum of
    ``h(c) + h*(-gradient) + gradient c`` with ``h`` the penalty, within bounds that `largest` completes.
    """
    pull = -gradient
    shrunk = np.sign(pull) * np.maximum(np.abs(pull) - penalty.l1, 0.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        best = np.where(shrunk == 0, 0.0, shrunk / penalty.l2)
    best = np.clip(best, np.maximum(penalty.lower, -largest), np.minimum(penalty.upper, largest))
    change = best - coef
    size = np.abs(best) - np.abs(coef)
    gain = pull * change - penalty.l1 * size - penalty.l2 / 2 * (best + coef) * change
    return float(np.maximum(gain, 0.0).sum())


class _Factor(NamedTuple):
    """The Cholesky factor of a block of the Hessian and, of columns of its root, their orthonormal basis."""

    upper: np.ndarray  # shape: (n_free, n_free)
    basis: np.ndarray | None = None  # shape: (n_rows, n_free)


@dataclass(frozen=True)
class _Task:
    """The quadratic, with the part of the penalty that is smooth within the bounds taken in.

    Coefficients may be measured from an origin, where those of zero are at `zero`.
    """

    hessian: np.ndarray  # shape: (n_features, n_features)
    linear: np.ndarray  # shape: (n_features,)
    kink: np.ndarray  # l1 where zero is inside the bounds, else 0; shape: (n_features,)
    lower: np.ndarray
    upper: np.ndarray
    zero: np.ndarray  # the kinks
    root: np.ndarray  # of the Hessian's diagonal
    unit_rounding: np.ndarray  # of the gradient at zero
    triangle: np.ndarray | None = None  # a root of the Hessian; shape: (n_rows, n_features)
    unresolved: float = 0.0  # share of its columns' norms that is rounding

    def product(self, coef: np.ndarray) -> np.ndarray:
        """The Hessian times a vector."""
        if self.triangle is not None:
            return self.triangle.T @ (self.triangle @ coef)
        used = coef.nonzero()[0]
        if FEW_ROWS * len(used) < len(coef):
            return coef[used] @ self.hessian[used]
        return self.hessian @ coef

    def with_ridge(self, ridge: np.ndarray) -> _Task:
        """The quadratic with this added to its diagonal."""
        hessian = self.hessian.copy()
        hessian.ravel()[:: len(hessian) + 1] += ridge
        triangle = None if self.triangle is None else _root_with_ridge(self.triangle, ridge)
        return replace(self, hessian=hessian, triangle=triangle)

    @property
    def resting(self) -> np.ndarray:
        """The piece that each coefficient rests on when it is not free."""
        outside = np.where(self.lower >= self.zero, LOWER, UPPER)
        return np.where((self.lower < self.zero) & (self.upper > self.zero), ZERO, outside)

    def rounding(self, coef: np.ndarray) -> np.ndarray:
        """What rounding may make of the gradient."""
        return self._rounding(float(self.root @ np.abs(coef)))

    def _rounding(self, size: float) -> np.ndarray:
        """Of predictions of this size."""
        return self.unit_rounding + (4 + np.sqrt(len(self.root))) * EPS * self.root * size

    def stationary(
        self, coef: np.ndarray, free: np.ndarray, sign: np.ndarray, factor: _Factor
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The free coefficients beside these others, the gradient, and its rounding error.

        With a root R, rounding of large coefficients that cancel would hide the penalty's kinks. So the
        predictions ``w = R @ coef`` are made stationary, ``R_F' w = linear_F - sign kink_F``, to rounding of
        their own size; the gradient ``linear - R' w`` follows from them, as do the coefficients.
        """
        coef = coef.copy()
        coef[free] = 0.0
        right = self.linear[free] - sign * self.kink[free]
        if self.triangle is None:
            if coef.any():
                right -= self.product(coef)[free]
            coef[free] = _solve(factor, right)
            return coef, self.linear - self.product(coef), self.rounding(coef)
        predictions = self.triangle @ coef
        total = np.zeros(len(free))
        for _ in range(CORRECTIONS if len(free) else 0):
            left = right - self.triangle[:, free].T @ predictions
            part = lapack.dtrtrs(factor.upper.T, left, lower=1)[0]
            assert factor.basis is not None
            predictions += factor.basis @ part
            total += part
        if len(free):
            coef[free] = lapack.dtrtrs(factor.upper.T, total, lower=1, trans=1)[0]
        gradient = self.linear - self.triangle.T @ predictions
        return coef, gradient, self._rounding(float(np.linalg.norm(predictions)))

    def excess(self, coef: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """By how much the negative gradient pulls coefficients up, and down; 0 where it does not."""
        up, down = self.pulls(coef, gradient)
        return np.maximum(up, 0.0), np.maximum(down, 0.0)

    def pulls(self, coef: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same, negative by how much it falls short of that; without end at a bound."""
        kink = self.kink
        up = np.where(coef < self.upper, gradient - np.where(coef >= self.zero, kink, -kink), -np.inf)
        down = np.where(coef > self.lower, np.where(coef > self.zero, kink, -kink) - gradient, -np.inf)
        return up, down

    def ends(self, index: np.ndarray | slice, sign: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ends of the pieces of free coefficients of this sign."""
        kinked = self.kink[index] > 0
        low = np.where(kinked & (sign > 0), self.zero[index], self.lower[index])
        return low, np.where(kinked & (sign < 0), self.zero[index], self.upper[index])

    def factor(self, free: np.ndarray) -> _Factor | None:
        """The Cholesky factor of the free block, or None where its columns depend on each other."""
        if self.triangle is not None:
            return _factor_of_triangle(self.triangle[:, free], self.root[free], self._dependent(len(free)))
        block = self.hessian[free[:, None], free]
        upper = _cholesky(block)
        if upper is None:
            return None
        pivots = upper.diagonal() ** 2
        return _Factor(upper) if (pivots > len(free) * DEPENDENT * block.diagonal()).all() else None

    def _dependent(self, n_free: int) -> float:
        """Share of its norm that columns before it leave of a dependent column of the root."""
        return max(n_free * DEPENDENT, self.unresolved)

    def independent(self, free: np.ndarray) -> tuple[np.ndarray, _Factor]:
        """As many of these columns as do not depend on each other, and their factor."""
        factor = self.factor(free)
        if factor is not None:
            return free, factor
        free = free[self.root[free] > 0]
        root = self.root[free]
        if self.triangle is not None:
            # Pivots fall, so that each column is judged by what those before it leave of it.
            left, order = qr(self.triangle[:, free] / root, mode="r", pivoting=True)
            rank = int((np.abs(np.diagonal(left)) > self._dependent(len(free))).sum())
            return self._independent_of(free, order, rank)
        unit = self.hessian[free[:, None], free] / root[:, None] / root
        _, order, rank, _ = lapack.dpstrf(unit, tol=2 * len(free) * DEPENDENT, lower=1)
        return self._independent_of(free, order - 1, rank)

    def explained(self, free: np.ndarray, factor: _Factor, index: int) -> np.ndarray:
        """The combination of the free columns that is nearest to another one."""
        if self.triangle is None:
            return _solve(factor, self.hessian[free, index])
        assert factor.basis is not None
        part = factor.basis.T @ self.triangle[:, index]
        return lapack.dtrtrs(factor.upper.T, part, lower=1, trans=1)[0] if len(free) else part

    def _independent_of(self, free: np.ndarray, order: np.ndarray, rank: int) -> tuple[np.ndarray, _Factor]:
        """The first of the free columns in that order, and their factor."""
        free = free[np.sort(order[:rank])]
        factor = self.factor(free)
        # The two factors need not agree about the last column; fewer columns are safe.
        while factor is None:
            rank -= 1
            free = free[:rank]
            factor = self.factor(free)
        return free, factor


def _root_with_ridge(root: np.ndarray, ridge: np.ndarray) -> np.ndarray:
    """A root with the ridge, of columns in units of their norms: rows of very different size would mix."""
    norm = np.sqrt((root**2).sum(0) + ridge)
    norm = np.where(norm > 0, norm, 1.0)
    both = np.concatenate([root / norm, np.diag(np.sqrt(ridge) / norm)])
    return np.asarray(np.linalg.qr(both, mode="r")) * norm


def _factor_of_triangle(columns: np.ndarray, norm: np.ndarray, dependent: float) -> _Factor | None:
    """The QR decomposition of columns; None if those before one leave less than this share of its norm."""
    if columns.shape[1] > len(columns):
        return None
    basis, upper = np.linalg.qr(columns)
    independent = np.abs(upper.diagonal()) > dependent * norm
    return _Factor(upper, basis) if independent.all() else None


def _cholesky(matrix: np.ndarray) -> np.ndarray | None:
    """As `cholesky`, without waking threads for small matrices."""
    if len(matrix) == 0 or len(matrix) >= UNTHREADED:
        return cholesky(matrix)
    lower, info = lapack.dpotrf(matrix.T, lower=1, clean=0)
    return lower.T if info == 0 else None


def _solve(factor: _Factor, right: np.ndarray) -> np.ndarray:
    """Solve ``upper.T @ upper @ x = right`` for one right-hand side, which needs no threads."""
    return lapack.dpotrs(factor.upper.T, right, lower=1)[0] if len(right) else right


def _task(gram: np.ndarray, linear: np.ndarray, penalty: Penalty) -> _Task:
    hessian = gram
    if penalty.l2.any():
        hessian = gram.copy()
        hessian.ravel()[:: len(gram) + 1] += penalty.l2
    tilt = np.where(penalty.lower >= 0, penalty.l1, np.where(penalty.upper <= 0, -penalty.l1, 0.0))
    share = (4 + np.sqrt(len(gram))) * EPS
    return _Task(
        hessian=hessian,
        linear=linear - tilt,
        kink=np.where(tilt == 0, penalty.l1, 0.0),
        lower=penalty.lower,
        upper=penalty.upper,
        zero=np.zeros(len(gram)),
        root=np.sqrt(np.maximum(hessian.diagonal(), 0.0)),
        unit_rounding=share * (np.abs(linear) + penalty.l1),
    )


def _task_about(
    origin: np.ndarray, gradient: np.ndarray, gram: np.ndarray, root: np.ndarray | None, penalty: Penalty
) -> _Task:
    task = _task(gram, gradient - penalty.l2 * origin, penalty)
    return replace(task, lower=task.lower - origin, upper=task.upper - origin, zero=-origin, triangle=root)


@dataclass(frozen=True)
class _Point:
    """A point of the descent, and the coefficients that move."""

    coef: np.ndarray
    free: np.ndarray  # their indices
    sign: np.ndarray  # of what they are, or become; shape: (n_free,)


def _first_pieces(task: _Task, start: np.ndarray | None) -> np.ndarray:
    """The pieces of the start, or of one step from the point nearest to zero."""
    point = np.clip(task.zero if start is None else start, task.lower, task.upper)
    piece = np.where(point < task.zero, np.where(task.kink > 0, NEGATIVE, FREE), FREE)
    piece[(point == task.zero) & (task.kink > 0)] = ZERO
    piece[point >= task.upper] = UPPER
    piece[point <= task.lower] = LOWER
    if start is not None:
        return piece
    gradient = task.linear - task.product(point) if point.any() else task.linear
    return _moved(task, piece, point, gradient, task.rounding(point))


def _moved(
    task: _Task, piece: np.ndarray, coef: np.ndarray, gradient: np.ndarray, slack: np.ndarray
) -> np.ndarray:
    """The next piece of each coefficient: the same where the optimality condition holds to within `slack`."""
    slack = np.where(task.lower == task.upper, np.inf, slack)
    kinked = task.kink > 0
    moved = piece.copy()
    free = (piece == FREE) | (piece == NEGATIVE)
    low, high = task.ends(slice(None), piece)
    moved = np.where(free & (coef < low), np.where(kinked & (piece == FREE), ZERO, LOWER), moved)
    moved = np.where(free & (coef > high), np.where(piece == NEGATIVE, ZERO, UPPER), moved)
    at_zero = piece == ZERO
    up = (at_zero & (gradient - task.kink > slack)) | ((piece == LOWER) & (gradient + task.kink > slack))
    down = (at_zero & (-gradient - task.kink > slack)) | ((piece == UPPER) & (task.kink - gradient > slack))
    moved = np.where(up, np.where(kinked & ~at_zero, NEGATIVE, FREE), moved)
    return np.where(down, np.where(kinked & at_zero, NEGATIVE, FREE), moved)


def _pivot(task: _Task, piece: np.ndarray) -> tuple[_Point, _Factor | None, int]:
    """Move all misplaced coefficients at once, until none is left or there is no progress.

    Gives the free block's factor if none is left.
    """
    fewest, patience = len(piece) + 1, PATIENCE
    resting = task.resting
    n_iter = 0
    while True:
        n_iter += 1
        free = ((piece == FREE) | (piece == NEGATIVE)).nonzero()[0]
        kept, factor = task.independent(free)
        if len(kept) < len(free):
            dependent = np.setdiff1d(free, kept, assume_unique=True)
            piece[dependent] = resting[dependent]
            free = kept
        coef = np.where(piece == LOWER, task.lower, np.where(piece == UPPER, task.upper, task.zero))
        coef, gradient, rounding = task.stationary(coef, free, piece[free], factor)
        moved = _moved(task, piece, coef, gradient, rounding)
        n_misplaced = int((moved != piece).sum())
        if n_misplaced == 0:
            return _Point(coef, free, piece[free]), factor, n_iter
        if n_misplaced < fewest:
            fewest, patience = n_misplaced, PATIENCE
        else:
            patience -= 1
        if patience < 0:
            low, high = task.ends(slice(None), piece)
            coef = np.clip(coef, low, high)
            inside = (coef[free] > low[free]) & (coef[free] < high[free])
            return _restricted(_Point(coef, free, piece[free]), inside), None, n_iter
        piece = moved


def _refined(task: _Task, point: _Point, factor: _Factor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One step of iterative refinement, on the same pieces; the gradient, and its rounding error."""
    free = point.free
    low, high = task.ends(free, point.sign)
    if task.triangle is not None:
        coef, gradient, rounding = task.stationary(point.coef, free, point.sign, factor)
        coef[free] = np.clip(coef[free], low, high)
        return coef, gradient, rounding
    coef = point.coef.copy()
    if len(free):
        residual = (task.linear - task.product(coef))[free] - point.sign * task.kink[free]
        coef[free] = np.clip(coef[free] + _solve(factor, residual), low, high)
    return coef, task.linear - task.product(coef), task.rounding(coef)


def _point_of(task: _Task, coef: np.ndarray) -> _Point:
    """A point within the bounds, of which all coefficients at no bound or kink are free that may be."""
    coef = np.clip(coef, task.lower, task.upper)
    inside = (coef > task.lower) & (coef < task.upper) & ((coef != task.zero) | (task.kink == 0))
    free, _ = task.independent(inside.nonzero()[0])
    return _Point(coef, free, np.sign((coef - task.zero)[free]))


def _approach(task: _Task, point: _Point) -> tuple[_Point, int]:
    """Proximal point steps: minima of the quadratic plus the squared distance from the last one."""
    if len(task.linear) <= FEW:
        return point, 0
    coef, damping = point.coef, DAMPING
    n_iter = 0
    for _ in range(MAX_STEPS):
        added = damping * task.root**2
        damped = replace(task.with_ridge(added), linear=task.linear + added * coef)
        found, factor, n_steps = _pivot(damped, _first_pieces(damped, coef))
        n_iter += n_steps
        if factor is None:
            damping *= 10
            continue
        settled = n_steps == 1
        coef = found.coef
        if settled:
            break
        damping /= 3
    return _point_of(task, coef), n_iter + 1


def _descend(task: _Task, point: _Point) -> tuple[_Point, int]:
    """From minimum to minimum, each over the pieces of the last one and some that were misplaced there.

    The objective falls from each to the next, so that none comes twice; a coefficient that does not lower it,
    but for rounding, is let be. Of the misplaced ones, as many are taken as are independent of the free ones;
    one that is not moves in exchange for another.
    """
    let_be = np.zeros(len(task.linear), dtype=bool)
    lowest = np.inf
    tried = point.free[:0]
    most = len(let_be)
    n_iter = 0
    while n_iter < 50 * (len(let_be) + 10):
        point, n_steps = _minimum_over_pieces(task, point)
        n_iter += n_steps
        gradient, rounding = _gradient_over_pieces(task, point)
        size = np.abs(point.coef - task.zero) - np.abs(task.zero)
        value = float(size @ task.kink - point.coef @ (task.linear + gradient) / 2)
        if value >= lowest:
            let_be[tried] = True
        lowest = min(lowest, value)
        up, down = task.excess(point.coef, gradient)
        excess = np.maximum(up, down)
        misplaced = (excess > rounding) & ~let_be
        misplaced[point.free] = False
        candidates = misplaced.nonzero()[0]
        if len(candidates) == 0:
            break
        score = excess[candidates] / np.maximum(task.root[candidates], np.finfo(float).tiny)
        candidates = candidates[np.argsort(-score, kind="stable")]
        direction = np.where(up >= down, 1.0, -1.0)
        point, tried, n_steps, most = _with_misplaced(task, point, candidates[:most], direction, excess)
        n_iter += n_steps
    return point, n_iter


def _gradient_over_pieces(task: _Task, point: _Point) -> tuple[np.ndarray, np.ndarray]:
    """At a minimum over pieces, and its rounding error."""
    if task.triangle is not None:
        factor = task.factor(point.free)
        if factor is not None:
            return task.stationary(point.coef, point.free, point.sign, factor)[1:]
    return task.linear - task.product(point.coef), task.rounding(point.coef)


def _with_misplaced(
    task: _Task, point: _Point, candidates: np.ndarray, direction: np.ndarray, excess: np.ndarray
) -> tuple[_Point, np.ndarray, int, int]:
    """The point with more free coefficients; which ones, the factorisations, and how many to try next."""
    n_steps = 0
    n_taken = len(candidates)
    while n_taken:
        taken = candidates[:n_taken]
        free = np.concatenate([point.free, taken])
        n_steps += 1
        if task.factor(free) is not None:
            size = (point.coef - task.zero)[taken]
            sign = np.where(size == 0, direction[taken], np.sign(size))
            return _Point(point.coef, free, np.concatenate([point.sign, sign])), taken, n_steps, 4 * n_taken
        n_taken //= 2
    worst = candidates[:1]
    point = _exchanged(task, point, int(worst[0]), direction[worst[0]], excess[worst[0]])
    return point, worst, n_steps, 1


def _exchanged(task: _Task, point: _Point, index: int, direction: float, excess: float) -> _Point:
    """Move a coefficient whose column depends on the free ones, and them against it, to a kink or bound."""
    old = point.coef[index] - task.zero[index]
    sign_of_index = direction if old == 0 else np.sign(old)
    while True:
        free, sign = np.append(point.free, index), np.append(point.sign, sign_of_index)
        factor = task.factor(point.free)
        if factor is None:
            return point
        step = -direction * task.explained(point.free, factor, index)
        leaves = _leaves(task, point, step)
        if not leaves.any():
            break
        point = _restricted(point, ~leaves)
        if task.factor(np.append(point.free, index)) is not None:
            return _Point(point.coef, np.append(point.free, index), np.append(point.sign, sign_of_index))
    step = np.append(step, direction)
    change = np.zeros_like(point.coef)
    change[free] = step
    curvature = float(change @ task.product(change))
    if task.triangle is not None and curvature <= (len(free) * DEPENDENT * task.root @ np.abs(change)) ** 2:
        curvature = 0.0  # but for rounding
    moved = _line_search(task, _Point(point.coef, free, sign), step, -excess, max(curvature, 0.0))
    return point if moved is None else moved


def _minimum_over_pieces(task: _Task, point: _Point) -> tuple[_Point, int]:
    """Newton steps, cut at what they cross where going on does not pay, until one ends inside its pieces."""
    n_steps = 0
    limit = 10 * (len(point.free) + 10)  # mostly one to three; but rounding may undo steps across kinks
    while len(point.free) and n_steps < limit:
        n_steps += 1
        free, factor = task.independent(point.free)
        if len(free) < len(point.free):
            point = _restricted(point, np.isin(point.free, free))
        residual = (task.linear - task.product(point.coef))[free] - point.sign * task.kink[free]
        step = _solve(factor, residual)
        leaves = _leaves(task, point, step)
        if leaves.any():
            point = _restricted(point, ~leaves)
            continue
        slope = -float(residual @ step)
        moved = _line_search(task, point, step, slope, -slope)
        if moved is None:
            break
        settled = len(moved.free) == len(free) and bool((moved.sign == point.sign).all())
        point = moved
        if settled:
            break
    return point, n_steps


def _leaves(task: _Task, point: _Point, step: np.ndarray) -> np.ndarray:
    """Which free coefficients are at the end of their pieces and would step out."""
    here = point.coef[point.free]
    low, high = task.ends(point.free, point.sign)
    return ((here <= low) & (step < 0)) | ((here >= high) & (step > 0))


def _restricted(point: _Point, keep: np.ndarray) -> _Point:
    return _Point(point.coef, point.free[keep], point.sign[keep])


def _line_search(
    task: _Task, point: _Point, step: np.ndarray, slope: float, curvature: float
) -> _Point | None:
    """The minimum along a step, within the bounds; coefficients that end at a bound or zero are not free.

    The objective falls by `slope` at first, and its slope grows steadily with `curvature` and at once where a
    coefficient crosses a kink. None if it falls for ever.
    """
    free, here, kink = point.free, point.coef[point.free], task.kink[point.free]
    zero = task.zero[free]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        to_bound = np.where(step > 0, task.upper[free] - here, task.lower[free] - here) / step
        to_kink = (zero - here) / step
    to_bound = np.where(step == 0, np.inf, to_bound)
    to_kink = np.where((kink > 0) & (point.sign * step < 0), to_kink, np.inf)
    order = np.argsort(to_kink)
    at = to_kink[order]
    jump = np.cumsum(2 * (kink * np.abs(step))[order])
    before = slope + np.concatenate([[0.0], jump])
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        flat = np.where(before < 0, -before / curvature, 0.0)  # where the slope of each stretch vanishes
    ends = np.concatenate([at, [np.inf]])
    starts = np.concatenate([[0.0], at])
    stretch = int(np.argmax(flat <= ends))
    length = min(float(max(flat[stretch], starts[stretch])), float(to_bound.min(initial=np.inf)))
    if not length < np.inf:
        return None
    ends_at = here + length * step
    ends_at = np.where(to_kink == length, zero, ends_at)
    bound = to_bound == length
    ends_at[bound] = np.where(step > 0, task.upper[free], task.lower[free])[bound]
    landed = bound | (to_kink == length)
    ends_at = np.clip(ends_at, task.lower[free], task.upper[free])
    coef = point.coef.copy()
    coef[free] = ends_at
    sign = np.where(ends_at == zero, point.sign, np.sign(ends_at - zero))
    return _Point(coef, free[~landed], sign[~landed])
