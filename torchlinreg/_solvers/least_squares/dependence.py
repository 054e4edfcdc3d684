"""Which columns depend on others, and a basis of those that do not.

Of unit columns a float64 Gram matrix gives, by pivoted Cholesky, columns that are far from depending on each
other; the others are candidates. A pass over the rows forms what is left of each candidate x_c,
``z_c = x_c - [1, x_basis] @ b_c``, and its products with the basis. Where z is at the rounding of the data,
x_c depends on the basis, and ``[1, x] @ w_c = z_c`` gives a null vector w_c; the other z are new, well-scaled
basis columns, after which another pass shows what is left of the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg import lapack, solve_triangular

from torchlinreg._linalg.cholesky import cholesky
from torchlinreg._solvers.least_squares.basis import DEPENDENT, FLOOR, Basis, Columns, Level, Source

# Pivots of unit columns above this stay in the first level: its smallest singular value is above 1e-4, and
# projections on it are good to 1e-12.
LEAST_PIVOT = 1e-8
# Pivots are at least this many rounding errors of the Gram matrix: LEAST_PIVOT at ordinary sums' 4e-16.
PIVOT_PER_ROUNDOFF = 2.5e7
# Columns of which cancellation leaves so little that least pivots would be above this wait for a pass.
LARGEST_PIVOT = 1e-2
# Share of a square that the projection took away beyond which another pass is made ("twice is enough").
UNSETTLED = 0.5
# Pivots within this factor of what is dependent have the noise of the reduced columns computed afresh.
NEAR = 100.0
# The remainder of a Cholesky factor resolves columns that it shrinks by less than this.
SEEN = 1e6
# Columns this many times above their noise are factorised by one call of LAPACK, down to BULK_PIVOT of their
# squares.
CLEAR = 1.6e5
BULK_PIVOT = 1e-4
# Combinations in float64 must be this many units in the last place of their terms.
SHARP = 1e5
# Passes before what is undecided is taken for dependent; powers up to the 20th take 7 in order.
MAX_PASSES, MAX_PASSES_IN_ORDER = 40, 10


@dataclass(frozen=True)
class Search:
    """What a search found."""

    basis: Basis
    targets: Columns  # their residuals
    null: Columns  # combinations that are 0 but for rounding; each own column depends on the basis
    null_norm: np.ndarray  # of these combinations; shape: (n_null,)
    rss: np.ndarray | None  # of the targets, where a pass has measured it
    n_passes: int
    is_complete: bool  # whether all columns were decided, in time and above the errors of sums


def find_basis(
    source: Source,
    ridge: np.ndarray,
    *,
    fit_intercept: bool,
    in_order: bool = False,
    among: np.ndarray | None = None,
) -> Search:
    """Divide features, all or those `among`, into a basis and others; a pass for each level or so.

    With `in_order`, a column is judged by the columns before it alone, so that further columns never take
    one out of the basis. That costs more levels.
    """
    basis = Basis(source, ridge, fit_intercept=fit_intercept)
    p = basis.n_features
    candidates = _first_level(basis, np.arange(p) if among is None else among, in_order=in_order)
    first = basis.levels[0]
    targets = basis.centred(np.arange(p, len(basis.mean)))
    targets = basis.less(targets, first, first.solve(basis.scatter[first.own][:, p:]))
    n_slices = 3 if source.all_exact else 0
    null, null_norm = [candidates.take(slice(0))], [np.zeros(0)]
    rss = None
    n_passes, is_complete = 0, True
    while len(candidates.own):
        n_candidates = len(candidates.own)
        both, before, products, _ = basis.project(Columns.join([candidates, targets]), n_slices)
        n_passes += 1
        in_time = n_passes < (MAX_PASSES_IN_ORDER if in_order else MAX_PASSES)
        candidates, targets = both.take(slice(n_candidates)), both.take(slice(n_candidates, None))
        square, norm = before.diagonal()[:n_candidates], _norms(products)[:n_candidates]
        judged = _judge(basis, candidates, square, norm, n_slices, in_order=in_order)
        dependent = judged.dependent | judged.hidden | (not in_time)
        is_complete &= in_time and not judged.hidden.any()
        null.append(candidates.take(dependent))
        null_norm.append(norm[dependent])
        waiting = ~dependent
        able = (judged.able & waiting).nonzero()[0]
        if len(able):
            level, chosen, transfer = _accept(basis, candidates, products, able, n_slices, in_order=in_order)
            basis.with_level(level)
            candidates = _reduced(basis, candidates, level, chosen, transfer[:, :n_candidates])
            targets = basis.less(targets, level, transfer[:, n_candidates:])
            products = products - transfer.T @ products[chosen]
            left = _norms(products)[:n_candidates]
            waiting[chosen] = False
            limit = DEPENDENT * basis.noise(candidates.weights)
            seen = np.zeros(n_candidates, dtype=bool)
            seen[able] = waiting[able]
            seen &= (left <= limit) & (norm <= SEEN * limit)
            null.append(candidates.take(seen))
            null_norm.append(left[seen])
            waiting &= ~seen
        rss = _norms(products)[n_candidates:] ** 2
        candidates = candidates.take(waiting)
        if n_slices or judged.blurred:
            n_slices = 3 if n_slices else 2
    return Search(basis, targets, Columns.join(null), np.concatenate(null_norm), rss, n_passes, is_complete)


def _norms(products: np.ndarray) -> np.ndarray:
    """Norms of columns from their products."""
    norms: np.ndarray = np.sqrt(np.maximum(products.diagonal(), 0.0))
    return norms


class _Judged(NamedTuple):
    """What a pass tells of candidates."""

    dependent: np.ndarray
    able: np.ndarray  # to join the basis
    hidden: np.ndarray  # by errors of the most exact sums
    blurred: bool  # whether some are too near to their own rounding to be judged


def _judge(
    basis: Basis, candidates: Columns, square: np.ndarray, norm: np.ndarray, n_slices: int, *, in_order: bool
) -> _Judged:
    """Judge candidates by their squares before a projection and their norms after it."""
    noise = basis.noise(candidates.weights)
    settled = norm**2 > (1 - UNSETTLED) * square
    dependent = np.where(settled, norm, np.sqrt(np.maximum(square, 0.0))) <= DEPENDENT * noise
    error = basis.least_error(candidates.weights)
    hidden = settled & (norm <= FLOOR * error) & ~(dependent & (error <= DEPENDENT * noise))
    dependent &= ~hidden
    blurred = np.zeros(len(norm), dtype=bool)
    if not n_slices:
        blurred = norm < SHARP / 4 * basis.combination_error(candidates.weights, 0)
    elif n_slices < 3:
        blurred = hidden
    able = ~dependent & ~blurred & ~hidden & settled
    if in_order:  # none before it may be undecided
        able &= np.logical_and.accumulate(able | dependent)
    hidden &= n_slices == 3
    return _Judged(dependent, able, hidden, bool((blurred & settled & ~dependent).any()))


def _reduced(
    basis: Basis, candidates: Columns, level: Level, chosen: np.ndarray, transfer: np.ndarray
) -> Columns:
    """Candidates less what a level explains of them; those chosen for it stay as they are."""
    rest = np.setdiff1d(np.arange(len(candidates.own)), chosen)
    reduced = basis.less(candidates.take(rest), level, transfer[:, rest])
    weights = candidates.weights[0].copy(), candidates.weights[1].copy()
    for part, new in zip(weights, reduced.weights, strict=True):
        part[:, rest] = new
    return Columns(candidates.own, weights)


def _first_level(basis: Basis, among: np.ndarray, *, in_order: bool) -> Columns:
    """Take well-conditioned columns of the Gram matrix into the basis; what is left of the others."""
    p = basis.n_features
    norm, framed = np.sqrt(basis.square[:p]), basis.framed_norm[:p]
    cancellation = np.divide(framed, norm, out=np.full(p, np.inf), where=norm > 0) ** 2
    least = np.maximum(LEAST_PIVOT, PIVOT_PER_ROUNDOFF * basis.source.roundoff * cancellation)
    sound = least <= LARGEST_PIVOT
    alive = np.zeros(p, dtype=bool)
    unseen = norm <= np.sqrt(basis.source.roundoff) * framed
    alive[among] = ((norm > DEPENDENT * basis.noise_of_terms(basis.noisy_norm, framed)) | unseen)[among]
    alive &= (framed > 0) | (norm > 0)
    unsound = (alive & ~sound).nonzero()[0]
    alive = (alive & sound).nonzero()[0]
    least_pivot = float(least[alive].max(initial=LEAST_PIVOT))
    gram = basis.scatter[np.ix_(alive, alive)] / norm[alive][:, None] / norm[alive]
    np.fill_diagonal(gram, 1.0)
    upper = cholesky(gram)
    if upper is not None and (upper.diagonal() ** 2 > least_pivot).all():
        basis.with_level(Level(alive, None, norm[alive], upper, 0.0))
        return basis.centred(unsound)
    rank = _n_independent(gram, least_pivot) if in_order else len(gram)
    factor, order, rank, _ = lapack.dpstrf(np.asfortranarray(gram[:rank, :rank]), tol=least_pivot)
    inside = alive[order[:rank] - 1]
    outside = np.setdiff1d(alive, inside)
    level = Level(inside, None, norm[inside], np.triu(factor[:rank, :rank]), 0.0)
    basis.with_level(level)
    transfer = level.solve(basis.scatter[np.ix_(inside, outside)])
    rest = basis.less(basis.centred(outside), level, transfer)
    rest = Columns.join([rest, basis.centred(unsound)])
    return rest.take(np.argsort(rest.own))


def _n_independent(gram: np.ndarray, least_pivot: float) -> int:
    """How many of the first columns, which have unit norm, are far from depending on each other.

    Pivots in their order alone would not tell; those of pivoted Cholesky do.
    """
    size = len(gram)
    while size:
        rank = int(lapack.dpstrf(np.asfortranarray(gram[:size, :size]), tol=least_pivot)[2])
        if rank == size:
            break
        size = max(rank, size // 2) if rank < size - 1 else size - 1
    return size


def _accept(
    basis: Basis, columns: Columns, products: np.ndarray, able: np.ndarray, n_slices: int, *, in_order: bool
) -> tuple[Level, np.ndarray, np.ndarray]:
    """A level of candidates by Cholesky, the clearest signal first or in order.

    Returns it with the candidates chosen, and how the level explains all columns of `products`.
    """
    noise = basis.noise(columns.weights)
    error = basis.combination_error(columns.weights, n_slices)
    norm = _norms(products)[: len(noise)]
    clear = able[norm[able] > CLEAR * np.maximum(noise, FLOOR / CLEAR * error)[able]]
    if len(clear) and not in_order:
        unit = products[np.ix_(clear, clear)] / norm[clear][:, None] / norm[clear]
        _, order, rank, _ = lapack.dpstrf(np.asfortranarray(unit), tol=BULK_PIVOT)
        chosen = clear[order[:rank] - 1]
    else:
        chosen = _clearest(basis, columns, products, noise, error, able, in_order=in_order)
    length = norm[chosen]
    unit = products[np.ix_(chosen, chosen)] / length[:, None] / length
    np.einsum("ii->i", unit)[:] = 1.0
    n_chosen = _n_independent(unit, LEAST_PIVOT)
    chosen, length = chosen[:n_chosen], length[:n_chosen]
    upper = cholesky(unit[:n_chosen, :n_chosen])
    assert upper is not None
    blur = float((error[chosen] / length).max() / upper.diagonal().min())
    level = Level(
        columns.own[chosen],
        (columns.weights[0][:, chosen].copy(), columns.weights[1][:, chosen].copy()),
        length,
        upper,
        blur,
    )
    return level, chosen, level.solve(products[chosen])


def _clearest(
    basis: Basis,
    columns: Columns,
    products: np.ndarray,
    noise: np.ndarray,
    error: np.ndarray,
    able: np.ndarray,
    *,
    in_order: bool,
) -> np.ndarray:
    """Candidates whose signals stand out of the noise also when those chosen before are taken away.

    In order, the choice ends before a candidate that only another pass can tell from dependent ones.
    """
    n_candidates = len(noise)
    left = products[:n_candidates, :n_candidates] / noise[:, None] / noise
    rows: list[np.ndarray] = []
    chosen: list[int] = []
    start = left.diagonal().copy()
    floor = np.maximum(LEAST_PIVOT * start, (FLOOR * error / noise) ** 2)
    pool = np.zeros(n_candidates, dtype=bool)
    pool[able] = True
    level = np.ones(n_candidates)  # noise of the reduced columns, in units of `noise`
    while pool.any():
        square = np.where(pool, left.diagonal(), -1.0)
        if chosen and (square < (NEAR * DEPENDENT * level) ** 2)[pool].any():
            triangle = np.array(rows)
            transfer = solve_triangular(np.triu(triangle[:, chosen]), triangle)
            transfer *= noise / noise[chosen][:, None]
            high = columns.weights[0] - columns.weights[0][:, chosen] @ transfer
            level = np.where(pool, basis.noise((high, high)) / noise, 1.0)
        clearness = np.where(pool, square / level**2, -1.0)
        best = int(pool.argmax() if in_order else clearness.argmax())
        if in_order and chosen and square[best] <= floor[best]:
            if start[best] > (SEEN * DEPENDENT * level[best]) ** 2:
                break
            pool[best] = False
            continue
        if clearness[best] <= DEPENDENT**2:
            if in_order:
                pool[best] = False
                continue
            break
        rows.append(left[best] / np.sqrt(left[best, best]))
        chosen.append(best)
        left = left - np.outer(rows[-1], rows[-1])
        pool[best] = False
        if not in_order:
            pool &= left.diagonal() > floor
    return np.array(chosen)
