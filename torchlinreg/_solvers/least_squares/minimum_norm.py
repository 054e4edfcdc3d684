"""The shortest of all coefficient vectors that differ by null vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.linalg import lu

from torchlinreg._linalg import double_double as dd
from torchlinreg._linalg.cholesky import DoubleDouble

# Each corrects 1e-10 or more of what the one before left.
N_REFINEMENTS = 4


def shortest(coef: DoubleDouble, null: DoubleDouble) -> tuple[DoubleDouble, DoubleDouble] | None:
    """The shortest vector ``coef + null @ amount`` for each column of `coef`, and the amounts.

    None where units are so far apart that null vectors cannot be told from each other.

    Rows D of the null vectors are chosen where they are largest, so that ``T = null[A] @ null[D]^-1``, with A
    the other rows, has entries near 1 whatever the units. Then vectors are ``[base + T d, d]``, of which the
    shortest has ``(I + T' T) d = -T' base``: a matrix as well-conditioned as T is small.
    """
    n_null = null[0].shape[1]
    scale = 1 / dd.slice_scale(np.abs(null[0]).max(0))
    scaled = null[0] * scale, null[1] * scale
    if not np.isfinite(scaled[0]).all() or ((scaled[0] == 0) & (null[0] != 0)).any():
        return None
    null = scaled
    chosen = np.argsort(lu(null[0], p_indices=True)[0])[:n_null]
    others = np.setdiff1d(np.arange(len(null[0])), chosen)
    pivots = _rows(null, chosen)
    try:
        inverse = np.linalg.inv(pivots[0])
    except np.linalg.LinAlgError:
        return None
    transfer = _refined(
        _rows(null, others), lambda x: dd.matmul(x, pivots), lambda residual: residual @ inverse
    )
    start = _rows(coef, chosen)
    base = dd.add(_rows(coef, others), dd.negative(dd.matmul(transfer, start)))
    found = shortest_of_transfer(base, transfer)
    if found is None:
        return None
    rest, end = found
    result = np.zeros_like(coef[0]), np.zeros_like(coef[0])
    for part, of_others, of_chosen in zip(result, rest, end, strict=True):
        part[others], part[chosen] = of_others, of_chosen
    amount = _refined(
        dd.add(end, dd.negative(start)), lambda x: dd.matmul(pivots, x), lambda residual: inverse @ residual
    )
    return result, (scale[:, None] * amount[0], scale[:, None] * amount[1])


def shortest_of_transfer(
    base: DoubleDouble, transfer: DoubleDouble
) -> tuple[DoubleDouble, DoubleDouble] | None:
    """The `a` and `d` for which ``a = base + transfer @ d`` and ``[a, d]`` is shortest.

    None where units are too far apart for float64.
    """
    turned = transfer[0].T, transfer[1].T
    n_rows, n_columns = transfer[0].shape
    by_columns = n_columns <= n_rows
    product = turned[0] @ transfer[0] if by_columns else transfer[0] @ turned[0]
    try:
        inverse = np.linalg.inv(np.eye(len(product)) + product)
    except np.linalg.LinAlgError:
        return None
    if by_columns:  # (I + T' T) d = -T' base
        end = _refined(
            dd.negative(dd.matmul(turned, base)),
            lambda d: dd.add(d, dd.matmul(turned, dd.matmul(transfer, d))),
            lambda residual: inverse @ residual,
        )
        return dd.add(base, dd.matmul(transfer, end)), end
    first = _refined(  # (I + T T') a = base
        base,
        lambda a: dd.add(a, dd.matmul(transfer, dd.matmul(turned, a))),
        lambda residual: inverse @ residual,
    )
    return first, dd.negative(dd.matmul(turned, first))


def _rows(matrix: DoubleDouble, index: np.ndarray) -> DoubleDouble:
    return matrix[0][index], matrix[1][index]


def _refined(
    right: DoubleDouble,
    apply: Callable[[DoubleDouble], DoubleDouble],
    solve: Callable[[np.ndarray], np.ndarray],
) -> DoubleDouble:
    """The x of ``apply(x) = right``, from solutions in float64."""
    x = np.zeros_like(right[0]), np.zeros_like(right[0])
    for _ in range(N_REFINEMENTS):
        residual = dd.add(right, dd.negative(apply(x)))
        change = solve(residual[0])
        x = dd.add(x, (change, np.zeros_like(change)))
    return x
