"""The squared error as a quadratic in standardised coefficients, for many penalties; regularization paths."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch

from torchlinreg._checks import as_numbers, check_flag, check_number
from torchlinreg._data.rows import Block, RowBlocks, as_row_blocks, tensor_blocks
from torchlinreg._linalg.cholesky import TORCH_SIZE, cholesky, inverse_of_upper, solve_upper
from torchlinreg._linalg.threads import torch_first
from torchlinreg._moments.moments import Moments
from torchlinreg._moments.standardised import Standardised, standardised
from torchlinreg._objective.penalty import Penalty, penalty_of
from torchlinreg._objective.problem import Problem
from torchlinreg._objective.solution import Solution
from torchlinreg._solvers import solve
from torchlinreg._solvers.least_squares.dual import is_wide
from torchlinreg._solvers.penalised.quadratic import (
    QuadraticMinimum,
    error_of_rounding,
    first_order_gap,
    minimise_quadratic,
)
from torchlinreg._solvers.penalised.units import rounding_of_model
from torchlinreg.losses import Loss, as_loss

# Coefficients from moments that may move the predictions by more than this share of y are solved for anew,
# by a solver that refines them on the rows.
PREDICTION_ERROR = 1e-11
# Unit columns with a smaller eigenvalue depend on each other, or nearly so.
DEPENDENT = 1e-6
# Eigenvalues of the products below this many times their rounding may be rounding altogether.
RESOLVED = 4
# Where errors of the gradient reach predictions as less than this share of y, directions need no closer look.
NEGLIGIBLE = 1e-12
# The pull on each coefficient at the null model is known to so many digits, for the squared error and for
# other losses: a grid begins a little above.
ABOVE_EXACT_NULL, ABOVE_NULL = 1 + 1e-13, 1 + 1e-6
# A gap of this share of the objective of the best constant is one of rounding.
SMALL_GAP = 5e-13
# Smaller strengths have lost digits to underflow.
SMALLEST_STRENGTH = float(np.finfo(np.float64).tiny)
# A path through dependent columns has steps of at most this.
NEAR = 1.25
# Wide rows with an l1 penalty take the path by moments as long as these are not larger than this.
WIDE_MOMENTS_BYTES = 64 * 2**20
# Where ridge penalties of unit columns differ by more than the square of this, each strength is factorised.
LARGEST_SPREAD = 100.0


@dataclass(frozen=True)
class RegularizationPath:
    """Coefficients for falling strengths of a penalty.

    Parameters
    ----------
    alphas : ndarray of shape (n_alphas,)
        The strengths, falling.
    coefs : ndarray of shape (n_alphas, n_features) or (n_alphas, n_targets, n_features)
        The coefficients for each.
    intercepts : ndarray of shape (n_alphas,) or (n_alphas, n_targets)
        The intercepts for each.
    dual_gaps : ndarray of shape (n_alphas,)
        How far each objective may be above its optimum, relative to the objective of the best constant
        prediction; 0 for ridge fits that were refined on the rows.

    Examples
    --------
    >>> from torchlinreg import regularization_path
    >>> path = regularization_path([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0], alphas=[0.5, 0.0])
    >>> path.alphas, path.coefs.round(12)
    (array([0.5, 0. ]), array([[0.25], [1.  ]]))
    """

    alphas: np.ndarray
    coefs: np.ndarray
    intercepts: np.ndarray
    dual_gaps: np.ndarray


def regularization_path(
    X: Any,
    y: Any,
    *,
    alphas: int | Sequence[float] | np.ndarray = 100,
    l1_ratio: float = 1.0,
    eps: float = 1e-3,
    loss: str | Loss | Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = "squared_error",
    sample_weight: Any = None,
    penalty_factor: Any = None,
    positive: bool = False,
    bounds: Any = None,
    fit_intercept: bool = True,
    tol: float = 1e-12,
    device: str = "auto",
) -> RegularizationPath:
    """Fit the elastic net for many strengths of its penalty, from one pass over the rows.

    For each of the `alphas` it minimises, over `coef` and `intercept`, the objective of
    `TorchLinearRegressor`::

        sum_i w_i loss_i / sum_i w_i
            + alpha * sum_j penalty_factor_j (l1_ratio |coef_j| + (1 - l1_ratio) / 2 * coef_j^2)

    Parameters
    ----------
    X : array-like, data frame, sparse matrix or tensor of shape (n_samples, n_features)
        Rows in any units; they are never changed or scaled.
    y : array-like or tensor of shape (n_samples,) or (n_samples, n_targets)
        Targets.
    alphas : int or array-like of shape (n_alphas,), default=100
        The strengths, 0 or more; or how many, on a logarithmic grid. Its largest is the smallest `alpha` for
        which all penalised coefficients are 0 (for losses with kinks, one not much larger), and its least
        `eps` times that, as with `sklearn.linear_model.lasso_path`. A ridge penalty, ``l1_ratio=0``, makes no
        zeros: the largest is then the sum of the variances of the features (squares, without intercept), each
        over its penalty factor, which shrinks every direction to half or less, times the curvature of the
        loss, 1 for the squared error; the least is ``eps**2`` times that, as ridge acts on squares.
    l1_ratio : float, default=1.0
        The share of the l1 penalty, from 0 (ridge) to 1 (lasso).
    eps : float, default=1e-3
        The length of the grid; see `alphas`.
    loss : str, Loss or callable, default="squared_error"
        As for `TorchLinearRegressor`.
    sample_weight : float, array-like or tensor of shape (n_samples,), default=None
        Weights, 0 or more, not all 0.
    penalty_factor : array-like of shape (n_features,), default=None
        Multipliers of the penalty, 0 or more; 0 leaves a feature unpenalised, and infinity excludes it. None
        is 1 for all.
    positive : bool, default=False
        Whether coefficients must be 0 or more.
    bounds : pair, default=None
        ``(lower, upper)``, each a number, an array of shape (n_features,), or None for no bound.
    fit_intercept : bool, default=True
        Whether to fit an intercept, which is never penalised.
    tol : float, default=1e-12
        The accuracy asked for, as for `TorchLinearRegressor`.
    device : str, default="auto"
        Where to read the rows: ``"cpu"``, ``"cuda"``, ...; ``"auto"`` is where X is.

    Returns
    -------
    RegularizationPath
        `alphas` (falling), `coefs`, `intercepts` and `dual_gaps`.

    Raises
    ------
    ValueError
        A parameter out of its range, or data that `TorchLinearRegressor.fit` would refuse.

    See Also
    --------
    TorchLinearRegressorCV : Chooses among the strengths by cross-validation.
    sklearn.linear_model.enet_path : The same by coordinate descent, without intercept.

    Notes
    -----
    For the squared error, all of it follows from the second moments of one pass over the rows; each `alpha`
    starts at the coefficients of the one before. Where nearly dependent columns would cost digits that way,
    for other losses, and for fewer rows than features (with an l1 penalty, from 2900 features on), each
    `alpha` is a fit by itself.

    Examples
    --------
    >>> import numpy as np
    >>> from torchlinreg import regularization_path
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(100, 3))
    >>> path = regularization_path(X, X @ [3.0, 0.0, -1.0], alphas=4)
    >>> path.coefs.round(3)
    array([[ 0.   ,  0.   ,  0.   ],
           [ 2.699,  0.   , -0.61 ],
           [ 2.97 ,  0.   , -0.961],
           [ 2.997,  0.   , -0.996]])
    """
    check_number("l1_ratio", l1_ratio, "a number from 0 (ridge) to 1 (lasso)", lambda value: 0 <= value <= 1)
    check_number("tol", tol, "a positive number, such as 1e-12", lambda value: value > 0)
    check_flag("positive", positive)
    check_flag("fit_intercept", fit_intercept)
    check_grid(alphas, eps)
    blocks = as_row_blocks(X, y, sample_weight, device=device).with_ordinary_weights()
    if y is None:
        raise ValueError("regularization_path requires y, but the target y is None.")
    penalty = penalty_of(blocks.n_features, 1.0, float(l1_ratio), penalty_factor, bool(positive), bounds)
    problem = Problem(blocks, penalty, bool(fit_intercept), "regularization_path", as_loss(loss))
    small = l1_ratio > 0 and 8 * blocks.n_features**2 <= WIDE_MOMENTS_BYTES
    parts: list[tuple[Problem, Standardised | None]] = [(problem, None)]
    if problem.loss.kind == "quadratic" and (small or not is_wide(problem)):
        parts = [
            (part, quadratic_of(part.moments, blocks.n_features, problem.fit_intercept))
            for part in problem.by_targets
        ]
    else:
        blocks.raise_if_not_finite(problem.name)
    if isinstance(alphas, Integral):
        largest = max(largest_alpha(*part, float(l1_ratio)) for part in parts)
        strengths = alpha_grid(largest, float(l1_ratio), float(eps), int(alphas))
    else:
        strengths = np.sort(as_numbers(alphas))[::-1]
    penalties = [penalty.times(float(alpha)) for alpha in strengths]
    of_parts = [_fits(*part, penalties, float(tol)) for part in parts]
    coef, intercept = (np.concatenate([part[index] for part in of_parts], axis=-1) for index in (0, 1))
    gaps = np.max([part[2] for part in of_parts], axis=0)
    dtype = np.float32 if blocks.dtype is torch.float32 else np.float64
    coef = penalty.within_bounds(coef.transpose(0, 2, 1), dtype)
    if blocks.one_target:
        coef, intercept = coef[:, 0], intercept[:, 0]
    return RegularizationPath(strengths, coef, intercept.astype(dtype), gaps)


def check_grid(alphas: Any, eps: Any) -> None:
    """Raise a ValueError unless they tell which strengths to try."""
    check_number("eps", eps, "a number between 0 and 1", lambda value: 0 < value < 1)
    allowed = "a positive integer, how many to try, or a 1-D array of finite numbers, 0 or more"
    if isinstance(alphas, Integral) and not isinstance(alphas, (bool, np.bool_)):
        if alphas < 1:
            raise ValueError(f"alphas={alphas!r} must be {allowed}.")
        return
    try:
        array = as_numbers(alphas)
    except (TypeError, ValueError) as error:
        raise ValueError(f"alphas={alphas!r} must be {allowed}.") from error
    if array.ndim != 1 or len(array) == 0 or not (np.isfinite(array).all() and (array >= 0).all()):
        raise ValueError(f"alphas={alphas!r} must be {allowed}.")


def alpha_grid(largest: float, l1_ratio: float, eps: float, n_alphas: int) -> np.ndarray:
    """Falling strengths, even in their logarithm; over twice the range for ridge, which acts on squares."""
    if not math.isfinite(largest):
        raise ValueError(
            f"alphas={n_alphas} asks for a grid, but squares of the features exceed float64. Give the "
            "strengths themselves, or bring X to other units."
        )
    if not largest > 0:  # nothing to explain: all strengths give zeros
        largest = 1.0
    least = largest * (eps if l1_ratio > 0 else eps**2)
    if not least >= SMALLEST_STRENGTH:
        power = "eps" if l1_ratio > 0 else "eps**2, as ridge acts on squares,"
        raise ValueError(
            f"eps={eps!r} is too small: the grid falls from {largest:.3g} to {power} times that, which "
            "float64 does not hold. Use a larger one, such as 1e-3, or give the strengths as alphas."
        )
    return np.geomspace(largest, least, n_alphas)


def quadratic_of(moments: Moments, n_features: int, fit_intercept: bool) -> Standardised | None:
    """The quadratic of moments in a frame without scales, or None where columns cannot be standardised."""
    if moments.frame.scale is not None:
        return None
    quadratic = standardised(moments, n_features, fit_intercept)
    spread = np.concatenate([quadratic.spread, quadratic.target_spread])
    # A constant column equals its shift, which leaves exact zeros.
    return quadratic if ((spread > 0) | (quadratic.square == 0)).all() else None


@dataclass(frozen=True)
class Minima:
    """Standardised coefficients for several penalties, and how well they are known."""

    coef: np.ndarray  # shape: (n_penalties, n_features, n_targets)
    error: np.ndarray  # of the predictions of some rows, root mean square; shape: (n_penalties, n_targets)
    excess: np.ndarray  # of the objective above its minimum, summed over the targets; shape: (n_penalties,)


def minima_of(
    quadratic: Standardised, penalties: Sequence[Penalty], seen: np.ndarray | None = None
) -> Minima:
    """Minimise the quadratic with each of the penalties: of one shape, and neighbours alike.

    The error is infinite where no minimum was found. It comes from the rounding of the moments, which reaches
    predictions of the same rows magnified by the inverse smallest singular value, and those of other rows by
    how far they lie along directions in which the first hardly vary. `seen` holds second moments of the other
    rows, about the means and in the units of the quadratic; there only a unique minimum has a finite error.
    """
    with torch_first():
        return _minima_of(quadratic, [penalty.scaled(quadratic.unit) for penalty in penalties], seen)


def _minima_of(quadratic: Standardised, scaled: list[Penalty], seen: np.ndarray | None) -> Minima:
    """For penalties of standardised coefficients."""
    shape = (len(scaled), *quadratic.cross.shape)
    coef, excess, error = np.zeros(shape), np.zeros(len(scaled)), np.full(shape[::2], np.inf)
    by_ridge = np.array([penalty.is_ridge for penalty in scaled])
    ridges = by_ridge.nonzero()[0]
    if len(ridges):
        l2 = np.stack([scaled[index].l2 for index in ridges])
        coef[ridges], excess[ridges], gain = _ridges(quadratic, l2, seen)
        with np.errstate(invalid="ignore"):
            error[ridges] = _rounding(quadratic, coef[ridges]) * gain[:, None]
    others = (~by_ridge).nonzero()[0]
    # Of several minima the solvers, who read the rows, find the one of least norm.
    dependent = quadratic.smallest <= DEPENDENT
    has_ties = [not (penalty.l1.any() or penalty.l2.all()) for penalty in scaled]
    known = []
    for target in range(shape[2]):
        found = _along(quadratic, quadratic.cross[:, target], [scaled[index] for index in others])
        for index, minimum in zip(others, found, strict=True):
            coef[index, :, target] = minimum.coef
            excess[index] += minimum.optimality
            if minimum.converged and not (dependent and has_ties[index]):
                known.append((index, target, minimum))
    rounding = _rounding(quadratic, coef)
    for index, target, minimum in known:
        if seen is not None:
            error[index, target] = _error_elsewhere(
                quadratic, target, minimum, scaled[index], float(rounding[index, target]), seen
            )
        elif dependent:
            error[index, target], more = _known(quadratic, target, minimum, scaled[index])
            excess[index] += more
        else:
            error[index, target] = rounding[index, target] * quadratic.smallest**-0.5
    return Minima(coef, np.where(np.isfinite(coef).all(1) & ~np.isnan(error), error, np.inf), excess)


def _rounding(quadratic: Standardised, coef: np.ndarray) -> np.ndarray:
    """What rounding of the products makes of each entry of the gradient; shape (..., n_targets)."""
    size = np.sqrt((coef**2).sum(-2)) + quadratic.target_spread
    return quadratic.centred_roundoff * size


def _error_elsewhere(
    quadratic: Standardised,
    target: int,
    minimum: QuadraticMinimum,
    penalty: Penalty,
    rounding: float,
    seen: np.ndarray,
) -> float:
    """That of predictions for other rows, of a minimum within bounds or with an l1 penalty.

    Columns count if `rounding` of the gradient might let their coefficients move. Infinite where it hides
    whether there are other minima.
    """
    spread = float(quadratic.target_spread[target])
    error = rounding + max(float(minimum.pull.max()), 0.0)
    smallest = quadratic.smallest + float(penalty.l2.min())
    coarse = error * _coarse_gain(smallest, seen)
    if coarse <= NEGLIGIBLE * spread:
        return coarse
    # By how much predictions of its own rows may be off, and gradients of others with them.
    if smallest > max(DEPENDENT, 4 * len(seen) * quadratic.centred_roundoff):
        reach = error * math.sqrt(len(seen) / smallest)
    else:
        reach = error_of_rounding(quadratic.gram, penalty.l2, minimum, spread, quadratic.centred_roundoff)
    used = (minimum.pull >= -(error + reach)).nonzero()[0]
    among = used[:, None], used
    upper = cholesky(quadratic.gram[among] + np.diag(penalty.l2[used])) if reach < np.inf else None
    return np.inf if upper is None else error * _gain(quadratic, upper, np.ones(len(used)), seen[among])


def _coarse_gain(smallest: float, seen: np.ndarray) -> float:
    """A bound on `_gain`, from the smallest eigenvalue."""
    return math.hypot(1.0, math.sqrt(seen.trace()) / smallest) if smallest > 0 else np.inf


def _rounding_of_gram(quadratic: Standardised) -> float:
    """What rounding of the products may add to an eigenvalue."""
    return len(quadratic.gram) * quadratic.centred_roundoff


def _gain(quadratic: Standardised, upper: np.ndarray, norm: np.ndarray, seen: np.ndarray) -> float:
    """How errors of the gradient, alike and independent, reach predictions.

    That is ``|S^1/2 H^-1|_F`` for rows with second moments S and a Hessian H, of which `upper` is the factor
    in columns of unit norm; the intercept adds the error itself. Infinite where rounding of the products
    hides which columns depend on each other.
    """
    inverse = np.triu(inverse_of_upper(upper))
    if RESOLVED * _rounding_of_gram(quadratic) * float((inverse**2).sum()) >= 1:
        return np.inf
    inverse = (inverse @ inverse.T) / norm[:, None] / norm
    return math.sqrt(1 + max(float(((seen @ inverse) * inverse).sum()), 0.0))


def _known(
    quadratic: Standardised, target: int, minimum: QuadraticMinimum, penalty: Penalty
) -> tuple[float, float]:
    """How well a minimum over columns that depend on each other, or nearly so, is known.

    An error of the predictions, and how much more the objective may be above its minimum.
    """
    size = float(quadratic.target_spread[target])
    error = error_of_rounding(quadratic.gram, penalty.l2, minimum, size, quadratic.centred_roundoff)
    if error < np.inf:
        return error, 0.0
    # Others would do as well as some of these columns, or rounding of the moments hides that they would not.
    coef = minimum.coef
    square = size**2 - 2 * float(quadratic.cross[:, target] @ coef) + float(coef @ quadratic.gram @ coef)
    value = max(square, 0.0) / 2 + float(penalty.value(coef))
    more = first_order_gap(value, penalty, minimum, size, quadratic.centred_roundoff)
    if not more <= SMALL_GAP * size**2:
        return np.inf, 0.0
    used = coef.nonzero()[0]
    block = quadratic.gram[np.ix_(used, used)] + np.diag(penalty.l2[used])
    smallest = float(np.linalg.eigvalsh(block)[0]) if len(used) else 1.0
    rounding = float(_rounding(quadratic, coef[:, None])[target])
    return rounding * smallest**-0.5 if smallest > 0 else np.inf, more


def _along(
    quadratic: Standardised, linear: np.ndarray, penalties: Sequence[Penalty]
) -> Iterator[QuadraticMinimum]:
    """Minima with l1 penalties or bounds, each found from the one before.

    Where columns depend on each other, far steps lose their way among the many sets of coefficients that may
    be off zero (200 x 400: half a second for one, 5 ms in small steps).
    """
    start = None
    dependent = quadratic.smallest <= DEPENDENT
    before = 0.0
    if dependent and len(penalties):
        penalised = penalties[0].l1 > 0
        before = float((np.abs(linear[penalised]) / penalties[0].l1[penalised]).max(initial=0.0))
        before *= float(penalties[0].l1.max())
    for penalty in penalties:
        strength = float(penalty.l1.max())
        if dependent and before > strength > 0:
            n_steps = math.ceil(math.log(before / strength) / math.log(NEAR))
            for ratio in np.geomspace(before / strength, 1.0, n_steps + 1)[1:-1]:
                start = minimise_quadratic(quadratic.gram, linear, penalty.times(ratio), start).coef
        before = strength
        found = minimise_quadratic(quadratic.gram, linear, penalty, start)
        start = found.coef
        yield found


def _ridges(
    quadratic: Standardised, l2: np.ndarray, seen: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ridge coefficients for l2 penalties that differ by factors, shape (n_penalties, n_features).

    Beside them how far each objective may be above its minimum, and how errors of the gradient reach
    predictions, of other rows if their second moments are given as `seen`. Where the penalties of unit
    columns are alike, one eigendecomposition serves all (20 of 50 features: 0.3 ms, as 20 factorisations; 100
    of 200: 8 against 40 ms), and a refinement makes up for what it rounds.
    """
    strength = l2.max(1)
    root = np.sqrt(l2[strength.argmax()] / strength.max()) if strength.any() else np.ones(l2.shape[1])
    if not root.min() * LARGEST_SPREAD >= 1:
        return _ridges_by_factors(quadratic, l2, seen)
    values, vectors = _eigen(quadratic.gram / root[:, None] / root)
    values = np.maximum(values, 0.0)

    def solve(right: np.ndarray) -> np.ndarray:
        inside = vectors.T @ (right / root[:, None]) / (values + strength[:, None])[:, :, None]
        return (vectors @ inside) / root[:, None]

    with np.errstate(divide="ignore", invalid="ignore"):
        floor = (values[0] + strength) * root.min() ** 2
        floor = np.where(floor > RESOLVED * _rounding_of_gram(quadratic), floor, 0.0)
        coef = solve(quadratic.cross)
        coef += solve(_ridge_gradient(quadratic, l2, coef))
        gradient = _ridge_gradient(quadratic, l2, coef)
        gain = floor**-0.5
        if seen is not None:
            gain = np.array([_coarse_gain(smallest, seen) for smallest in floor])
            if quadratic.centred_roundoff * gain.max() > NEGLIGIBLE:
                along = vectors / root[:, None]
                reach = np.sqrt(np.maximum(((seen @ along) * along).sum(0), 0.0)) / root.min()
                closer = np.sqrt(1 + ((reach / (values + strength[:, None])) ** 2).sum(1))
                gain = np.where(floor > 0, closer, np.inf)
        return coef, (gradient**2).sum((1, 2)) / floor / 2, gain


def _ridge_gradient(quadratic: Standardised, l2: np.ndarray, coef: np.ndarray) -> np.ndarray:
    return quadratic.cross - quadratic.gram @ coef - l2[:, :, None] * coef


def _eigen(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, rising, and eigenvectors, by the library that has just made the moments."""
    if len(matrix) >= TORCH_SIZE:
        values, vectors = torch.linalg.eigh(torch.from_numpy(matrix))
        return values.numpy(), vectors.numpy()
    values, vectors = np.linalg.eigh(matrix)
    return values, vectors


def _ridges_by_factors(
    quadratic: Standardised, l2: np.ndarray, seen: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same with a factorisation for each, which keeps its accuracy in columns of any units."""
    coef = np.full((len(l2), *quadratic.cross.shape), np.nan)
    excess, gain = np.zeros(len(l2)), np.full(len(l2), np.inf)
    for index, penalty in enumerate(l2):
        norm = np.sqrt(1 + penalty)
        matrix = quadratic.gram / norm[:, None] / norm
        np.fill_diagonal(matrix, 1.0)
        upper = cholesky(matrix)
        if upper is not None:
            coef[index] = solve_upper(upper, quadratic.cross / norm[:, None]) / norm[:, None]
            gradient = _ridge_gradient(quadratic, penalty[None], coef[index])[0] / norm[:, None]
            excess[index] = float((gradient * solve_upper(upper, gradient)).sum()) / 2
            smallest = quadratic.smallest + penalty.min()
            if seen is not None:
                gain[index] = _coarse_gain(smallest, seen)
                if quadratic.centred_roundoff * gain[index] > NEGLIGIBLE:
                    gain[index] = _gain(quadratic, upper, norm, seen)
            elif smallest > 0:
                gain[index] = smallest**-0.5
    return coef, excess, gain


def largest_alpha(problem: Problem, quadratic: Standardised | None, l1_ratio: float) -> float:
    """Where a grid of strengths begins; `problem` has the penalty at strength 1."""
    penalty = problem.penalty
    strength = penalty.l1 if l1_ratio > 0 else penalty.l2
    if quadratic is None:
        gradient, square, curvature = _without_penalised(problem)
    else:
        square, curvature = quadratic.unit**2, 1.0
        gradient = _gradient_without_penalised(quadratic, penalty)
    penalised = strength > 0
    if l1_ratio == 0:
        return float((square[penalised] / strength[penalised]).sum()) * curvature
    # A coefficient that may not move up or down from 0 is not pulled that way.
    up = np.where(penalty.upper > 0, gradient.max(1), 0.0)
    down = np.where(penalty.lower < 0, -gradient.min(1), 0.0)
    pull = np.where((penalty.lower <= 0) & (penalty.upper >= 0), np.maximum(up, down), 0.0)
    largest = float((pull[penalised] / strength[penalised]).max(initial=0.0))
    return largest * (ABOVE_EXACT_NULL if problem.loss.kind == "quadratic" else ABOVE_NULL)


def _gradient_without_penalised(quadratic: Standardised, penalty: Penalty) -> np.ndarray:
    """The pull on each coefficient where the penalised ones are as near 0 as they may be."""
    free = (penalty.l1 == 0) & (penalty.l2 == 0)
    held = np.clip(0.0, penalty.lower, penalty.upper) * quadratic.unit
    held[free] = 0.0
    gradient = quadratic.cross - (quadratic.gram @ held)[:, None]
    if free.any():
        columns = free.nonzero()[0]
        block = quadratic.gram[np.ix_(columns, columns)]
        inside = penalty.part(columns).scaled(quadratic.unit[columns])
        for target in range(gradient.shape[1]):
            coef = minimise_quadratic(block, gradient[columns, target], inside).coef
            gradient[:, target] -= quadratic.gram[:, columns] @ coef
    return gradient * quadratic.unit[:, None]


def _without_penalised(problem: Problem) -> tuple[np.ndarray, np.ndarray, float]:
    """The pull on each coefficient, its feature's variance, and the loss's curvature, without moments.

    All at the best model of the unpenalised features. Where a residual lies at a kink of the loss, the pull
    is the largest that it may have, for any subgradient there.
    """
    penalty = problem.penalty
    free = np.flatnonzero((penalty.l1 == 0) & (penalty.l2 == 0))
    null = _null_model(problem, free)
    head = problem.blocks.head(1).X
    assert head is not None
    shift = head[0].to(torch.float64) if problem.fit_intercept else torch.zeros_like(head[0]).double()
    sums = _null_sums(problem, null, free, shift)
    if problem.fit_intercept and float(sums.slack_sum) > 0:
        # About a row at a kink, its own subgradient, which the intercept leaves open, does not count.
        sums = _null_sums(problem, null, free, shift + sums.slack_mean)
    total = sums.weight_sum
    mean = sums.first / total if problem.fit_intercept else torch.zeros_like(sums.first)
    variance = (sums.second / total - mean**2).cpu().numpy()
    pull = (sums.pull + sums.pull.sign() * sums.slack) / total
    curvature = float(sums.work / sums.square) if float(sums.square) > 0 else 1.0
    return pull.cpu().numpy(), variance, curvature


class _NullSums(NamedTuple):
    """Sums over the rows at a null model, with features about a shift."""

    weight_sum: torch.Tensor
    pull: torch.Tensor  # minus the gradient; shape: (n_features, n_targets)
    slack: torch.Tensor  # by how much that may be off at kinks; shape: (n_features, n_targets)
    first: torch.Tensor  # shape: (n_features,)
    second: torch.Tensor  # shape: (n_features,)
    work: torch.Tensor
    square: torch.Tensor
    slack_first: torch.Tensor  # shape: (n_features,)
    slack_sum: torch.Tensor

    @property
    def slack_mean(self) -> torch.Tensor:
        """The mean of the rows at kinks, about the shift."""
        return self.slack_first / self.slack_sum

    def __add__(self, other: Any) -> _NullSums:
        return _NullSums(*(a + b for a, b in zip(self, other, strict=True)))


def _null_sums(problem: Problem, null: Solution, free: np.ndarray, shift: torch.Tensor) -> _NullSums:
    blocks, loss = problem.blocks, problem.loss
    coef = torch.from_numpy(null.coef[: len(free)]).to(blocks.device)
    intercept = torch.from_numpy(null.intercept).to(blocks.device)
    scale = torch.ones_like(intercept) if null.scale is None else torch.from_numpy(null.scale).to(intercept)
    columns = torch.from_numpy(free).to(blocks.device)

    def of(block: Block) -> _NullSums:
        assert block.X is not None
        rows = block.X.to(torch.float64)
        weight = torch.ones_like(block.y[:, 0]) if block.weight is None else block.weight
        weighted = weight[:, None]
        prediction = rows[:, columns] @ coef + intercept
        residual = block.y - prediction
        pull = -loss.derivative(prediction / scale, block.y / scale)
        slack = weighted * _slack_at_kinks(loss, residual)
        rows = rows - shift
        return _NullSums(
            weight_sum=weight.sum(),
            pull=rows.T @ (weighted * pull),
            slack=rows.abs().T @ slack,
            first=weight @ rows,
            second=weight @ rows.square(),
            work=(weighted * pull * residual).sum(),
            square=(weighted * residual.square()).sum(),
            slack_first=slack.sum(1) @ rows,
            slack_sum=slack.sum(),
        )

    return blocks.map_reduce(of, _NullSums.__add__, dense=True)


def _slack_at_kinks(loss: Loss, residual: torch.Tensor) -> torch.Tensor:
    """The jump of the derivative where a residual is at a kink, whose side rounding decides; else 0."""
    slack = torch.zeros_like(residual)
    if loss.kind != "piecewise_linear":
        return slack
    _, positions, jumps = loss.pieces()
    nearly = 1e-9 * residual.abs().mean()
    for position, jump in zip(positions, jumps, strict=True):
        slack += torch.where((residual - position).abs() <= nearly, jump, 0.0)
    return slack


def _null_model(problem: Problem, free: np.ndarray) -> Solution:
    """The best model of the unpenalised features alone."""
    blocks = problem.blocks
    columns = torch.from_numpy(free).to(blocks.device)
    if len(free):
        parts = [block.X[:, columns].to(torch.float64) for block in blocks.dense() if block.X is not None]
        rows, penalty = torch.cat(parts), problem.penalty.part(free)
    else:
        rows = torch.zeros((blocks.n_samples, 1), dtype=torch.float64, device=blocks.device)
        penalty = penalty_of(1, 1.0, 0.0, None, False, None)
    null = replace(problem, blocks=tensor_blocks(rows, blocks.y, blocks.weight), penalty=penalty)
    return solve("auto", null, 1e-12, None)


def _fits(
    problem: Problem, quadratic: Standardised | None, penalties: Sequence[Penalty], tol: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients, shape (n_penalties, n_features, n_targets), intercepts and gaps, for each penalty."""
    blocks: RowBlocks = problem.blocks
    shape = (len(penalties), blocks.n_features, blocks.n_targets)
    coef, intercept, gaps = np.empty(shape), np.empty(shape[::2]), np.zeros(len(penalties))
    unsolved = np.ones(len(penalties), dtype=bool)
    if quadratic is not None:
        minima = minima_of(quadratic, penalties)
        coef[:], intercept[:] = quadratic.in_users_units(minima.coef)
        null = float((quadratic.target_spread**2).sum()) / 2
        rounding = rounding_of_model(quadratic.center, quadratic.spread, coef, intercept)
        distance = np.sqrt(2 * minima.excess) + np.linalg.norm(minima.error + rounding, axis=1)
        gaps = np.divide(distance**2 / 2, null, out=gaps, where=null > 0)
        unsolved = np.any(minima.error > PREDICTION_ERROR * quadratic.target_spread, axis=1)
        penalised = np.stack([each.value(one.T) for each, one in zip(penalties, coef, strict=True)])
        unsolved |= ~_are_below_constants(quadratic, minima.coef, penalised, rounding)
    for index in map(int, unsolved.nonzero()[0]):
        solution = solve("auto", sharing_moments(problem, penalties[index]), tol, None)
        coef[index], intercept[index] = solution.coef, solution.intercept
        gaps[index] = solution.optimality or 0.0
    return coef, intercept, gaps


def _are_below_constants(
    quadratic: Standardised, coef: np.ndarray, penalised: np.ndarray, rounding: np.ndarray
) -> np.ndarray:
    """Whether objectives fall by more than rounding of the predictions adds; not for coefficients of 0.

    Of standardised coefficients, shape (n_penalties, n_features, n_targets), and their penalties.
    """
    change = (coef * (quadratic.gram @ coef / 2 - quadratic.cross)).sum(1) + penalised
    change += rounding * (quadratic.target_spread + rounding / 2)
    return np.all((change <= 0) | (coef == 0).all(1), axis=1)


def sharing_moments(problem: Problem, penalty: Penalty) -> Problem:
    """The same rows with another penalty, and the moments if they have been formed."""
    other = replace(problem, penalty=penalty)
    for name in ("moments", "exact_moments"):
        if name in problem.__dict__:
            other.__dict__[name] = problem.__dict__[name]
    return other
