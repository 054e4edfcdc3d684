"""`TorchLinearRegressor`: parameters, validation and attributes; the only file with scikit-learn classes."""

from __future__ import annotations

import math
import time
import warnings
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import r2_score
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from torchlinreg._blocks import RowBlocks, as_row_blocks
from torchlinreg._exact_moments import ExactMoments, ExactMomentsOf
from torchlinreg._moments import LARGEST_MOMENT, Frame, Moments, choose_frame, largest_magnitudes
from torchlinreg._problem import Problem
from torchlinreg._solution import Solution, Status
from torchlinreg.solvers import check_solver, choose_solver, is_wide, solve_accumulated


class TorchLinearRegressor(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Linear least squares with an optional ridge penalty, exact on raw data.

    Minimises, over `coef` and `intercept`, with ``r_i = y_i - x_i . coef - intercept``::

        sum_i w_i r_i^2 / 2 / sum_i w_i  +  alpha / 2 * ||coef||^2

    The intercept is not penalised. Weights act as repetition of rows.

    Parameters
    ----------
    alpha : float, default=0.0
        Strength of the ridge penalty, 0 or more. ``sklearn.linear_model.Ridge(alpha=a)``, which does not
        divide by the weight sum, is ``alpha = a / sum(sample_weight)`` here (``a / n_samples`` without
        weights).
    fit_intercept : bool, default=True
        Whether to fit an intercept. Without one, the model goes through the origin.
    solver : {"auto", "cholesky", "exact", "dual"}, default="auto"
        ``"cholesky"``: normal equations from one pass over the rows, refined with residuals of the rows
        as far as `tol` asks for; where the condition it measures is beyond about 1e6, it hands over to
        ``"exact"``: normal equations accumulated to about 100 bits, for conditions up to 1e14 and for
        dependent columns. ``"dual"``: an ``n_samples x n_samples`` system, for fewer rows than features.
        ``"auto"`` takes ``"dual"`` for such data, else ``"cholesky"``; `solver_` says what was used.
    tol : float, default=1e-12
        The relative accuracy asked for in every coefficient and intercept, as far as the solver can
        estimate it. A larger one saves passes over the rows; a fit that cannot reach it warns.
    max_iter : int or None, default=None
        The most refinement passes over the rows, 0 for none. None leaves it to the solver.
    device : str, default="auto"
        Where to compute: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...; ``"auto"`` is where X is.
    verbose : int, default=0
        1 or more prints a line about each fit.

    Attributes
    ----------
    coef_ : ndarray of shape (n_features,) or (n_targets, n_features)
        Coefficients in the units of X and y; 1-D if y was. float32 if X was float32, else float64. Where
        columns of X depend on each other, the coefficients of least norm.
    intercept_ : float or ndarray of shape (n_targets,)
        Intercept; 0.0 if ``fit_intercept=False``.
    n_features_in_ : int
        Number of features seen in `fit`.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, if X had names that are all strings.
    rank_ : int
        Rank of X, centred if ``fit_intercept=True``; with ``alpha > 0``, of the penalised system.
    condition_number_ : float
        Condition number (2-norm) of X, centred and with columns of unit norm, as the solver saw it: the
        independent columns and the ridge penalty; for ``solver_ == "dual"``, of the matrix of that system. An
        estimate to about 30 % from 33 columns on.
    solver_ : str
        The solver that was used.
    status_ : Status
        How the fit ended; ``status_.message`` says what that means.
    n_iter_ : int
        Passes over the rows; for ``solver_ == "dual"``, those of refinement.

    Raises
    ------
    ValueError
        In `fit`: a parameter out of its range; NaN, infinity, complex numbers or text in X or y; wrong
        shapes or lengths; negative or all-zero weights; a device that is not there.

    See Also
    --------
    sklearn.linear_model.LinearRegression : Least squares by singular values.
    sklearn.linear_model.Ridge : Least squares with a ridge penalty.

    Notes
    -----
    A fit of well-conditioned data is one pass over the rows that costs about one product ``X.T @ X``, and a
    few blocks of memory; X is never copied whole, except for wide data whose rows depend on each other and
    for sparse formats other than CSR, which are converted.
    Accumulation is float64 for every dtype of X. Whenever the estimated error exceeds `tol`, the solution
    is refined with residuals computed to about 100 bits [1]_ [2]_, from an error-free splitting of the
    rows [3]_.

    References
    ----------
    .. [1] Bjorck (1967), Iterative refinement of linear least squares solutions I, BIT 7, 257-278.
    .. [2] Demmel, Hida, Li, Riedy (2009), Extra-precise iterative refinement for overdetermined least
       squares problems, ACM TOMS 35(4), 28.
    .. [3] Ozaki, Ogita, Oishi, Rump (2012), Error-free transformations of matrix multiplication by using
       fast routines of matrix multiplication, Numerical Algorithms 59, 95-118.

    Examples
    --------
    >>> from torchlinreg import TorchLinearRegressor
    >>> X = [[0.0], [1.0], [2.0], [3.0]]
    >>> y = [1.0, 3.0, 5.0, 7.0]
    >>> reg = TorchLinearRegressor().fit(X, y)
    >>> reg.coef_, float(reg.intercept_)
    (array([2.]), 1.0)
    >>> reg.predict([[10.0]])
    array([21.])
    """

    _doc_link_module = "torchlinreg"
    _doc_link_template = (
        "https://torchlinreg.readthedocs.io/en/stable/{estimator_module}.{estimator_name}.html"
    )

    def __init__(
        self,
        *,
        alpha: float = 0.0,
        fit_intercept: bool = True,
        solver: str = "auto",
        tol: float = 1e-12,
        max_iter: int | None = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.device = device
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit the model, forgetting any earlier fit.

        Parameters
        ----------
        X : array-like, data frame, sparse matrix or tensor of shape (n_samples, n_features)
            Lists, NumPy arrays of any order and dtype, pandas or polars frames, any scipy.sparse format,
            torch tensors on any device. Never changed.
        y : array-like or tensor of shape (n_samples,) or (n_samples, n_targets)
            Targets.
        sample_weight : float, array-like or tensor of shape (n_samples,), default=None
            Weights, 0 or more, not all 0. None weighs all rows alike.

        Returns
        -------
        self : TorchLinearRegressor
            The fitted estimator.

        Raises
        ------
        ValueError
            See the class.
        """
        start = time.perf_counter()
        self._check_parameters()
        given = self._open(X, y, sample_weight, reset=True)
        blocks = given.with_ordinary_weights()
        problem = Problem(blocks, float(self.alpha), bool(self.fit_intercept), type(self).__name__)
        solve = choose_solver(self.solver, problem)
        solution = solve(problem, float(self.tol), self.max_iter)
        self._moments: Moments | ExactMoments | None = None
        if not is_wide(problem) and blocks.weight is given.weight:
            self._moments = _on_cpu(problem.best_moments)
        self._keep(solution, blocks)
        if self.verbose:
            seconds = time.perf_counter() - start
            print(
                f"TorchLinearRegressor: {blocks.n_samples} x {blocks.n_features} rows in {seconds:.3g} s, "
                f"solver {self.solver_}, {self.n_iter_} passes, condition {self.condition_number_:.3g}, "
                f"rank {self.rank_}, {self.status_.name.lower()}"
            )
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit on these rows and all rows given before: the exact least squares of them all.

        The rows themselves are not kept, only their second moments, to about 100 bits: any split of
        the rows into calls gives the model of one `fit`, with 12 digits up to a condition of about
        1e9, and a warning beyond. After `fit`, its rows count as well, with moments in float64.

        Parameters
        ----------
        X : array-like, data frame, sparse matrix or tensor of shape (n_samples, n_features)
            Further rows, with the features of the first call; at least one with a positive weight.
        y : array-like or tensor of shape (n_samples,) or (n_samples, n_targets)
            Their targets.
        sample_weight : float, array-like or tensor of shape (n_samples,), default=None
            Their weights.

        Returns
        -------
        self : TorchLinearRegressor
            The fitted estimator.

        Raises
        ------
        ValueError
            As in `fit`; other features or another number of targets than before; or `fit` was called
            before on data with fewer rows than features, of which no moments are kept.
        """
        self._check_parameters()
        check_solver(self.solver)
        first = not hasattr(self, "coef_")
        blocks = self._open(X, y, sample_weight, reset=first)
        if blocks.with_ordinary_weights() is not blocks:
            raise ValueError(
                "The largest sample_weight of a call of partial_fit must lie between 1e-100 and 1e100. "
                "Multiply the weights of all calls by one constant."
            )
        before = None if first else self._accumulated(blocks)
        moments = self._merged(before, blocks)
        solution = solve_accumulated(
            moments, blocks.n_features, float(self.alpha), bool(self.fit_intercept), float(self.tol)
        )
        self._moments = _to_device(moments, torch.device("cpu"))
        self._keep(solution, blocks)
        return self

    def predict(self, X: Any) -> Any:
        """Predict ``X @ coef_.T + intercept_``.

        Parameters
        ----------
        X : array-like, data frame, sparse matrix or tensor of shape (n_samples, n_features)
            Rows to predict for.

        Returns
        -------
        y_pred : ndarray or tensor of shape (n_samples,) or (n_samples, n_targets)
            A tensor on the device of X if X is a tensor, else an array. float32 if X and the fitted
            coefficients are, else float64.

        Raises
        ------
        NotFittedError
            `fit` was not called before.
        ValueError
            Other features than in `fit`, or NaN or infinity in X.
        """
        check_is_fitted(self, "coef_")
        blocks = as_row_blocks(X, estimator=self)
        validate_data(self, X, reset=False, skip_check_array=True)
        single = blocks.dtype is torch.float32 and self.coef_.dtype == np.float32
        dtype = np.float32 if single else np.float64
        coef = self.coef_.reshape(-1, blocks.n_features).T.astype(dtype, copy=False)
        intercept = np.asarray(self.intercept_, dtype=dtype)
        predict = _predict_on_cpu if blocks.device.type == "cpu" else _predict_on_device
        result = predict(blocks, coef, intercept)
        if not math.isfinite(result.sum()):
            blocks.raise_if_not_finite(type(self).__name__)
        result = result[:, 0] if self.coef_.ndim == 1 else result
        return torch.as_tensor(result) if isinstance(X, torch.Tensor) else result

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Coefficient of determination R2 of the prediction, also for tensors.

        Parameters
        ----------
        X : array-like, data frame, sparse matrix or tensor of shape (n_samples, n_features)
            Rows to predict for.
        y : array-like or tensor of shape (n_samples,) or (n_samples, n_targets)
            True targets.
        sample_weight : array-like or tensor of shape (n_samples,), default=None
            Weights.

        Returns
        -------
        score : float
            R2; the mean over several targets.
        """
        predicted = self.predict(X)
        return float(r2_score(_on_host(y), _on_host(predicted), sample_weight=_on_host(sample_weight)))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _check_parameters(self) -> None:
        if not isinstance(self.alpha, Real) or not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha={self.alpha!r} must be a finite number, 0 or more.")
        if not isinstance(self.tol, Real) or not 0 < self.tol < math.inf:
            raise ValueError(f"tol={self.tol!r} must be a positive number, such as 1e-12.")
        if self.max_iter is not None and (not isinstance(self.max_iter, Integral) or self.max_iter < 0):
            raise ValueError(f"max_iter={self.max_iter!r} must be None or an integer, 0 or more.")
        if not isinstance(self.fit_intercept, (bool, np.bool_)):
            raise ValueError(f"fit_intercept={self.fit_intercept!r} must be True or False.")

    def _open(self, X: Any, y: Any, sample_weight: Any, *, reset: bool) -> RowBlocks:
        if y is None:
            raise ValueError(
                f"This {type(self).__name__} estimator requires y to be passed, but the target y is None."
            )
        blocks = as_row_blocks(X, y, sample_weight, device=self.device, estimator=self)
        validate_data(self, X, reset=reset, skip_check_array=True)
        return blocks

    def _accumulated(self, blocks: RowBlocks) -> ExactMoments:
        """Moments of the rows given before."""
        before = None if self.coef_.ndim == 1 else len(self.coef_)
        now = None if blocks.one_target else blocks.n_targets
        if now != before:
            old, new = ("1-D" if n is None else f"2-D with {n} columns" for n in (before, now))
            raise ValueError(f"y is {new}, but it was {old} in the calls before; keep to one form.")
        if self._moments is None:
            raise ValueError(
                "partial_fit cannot go on after fit on fewer rows than features, or with weights beyond "
                "1e-100 to 1e100, which keeps no moments. Use partial_fit from the first rows on."
            )
        if not self.fit_intercept and self._moments.frame.shift.any():
            raise ValueError(
                "fit_intercept was True in the calls before and is False now; keep to one value."
            )
        if isinstance(self._moments, Moments):
            return ExactMoments.from_moments(self._moments)
        return self._moments

    def _merged(self, before: ExactMoments | None, blocks: RowBlocks) -> ExactMoments:
        """Moments of the rows before and these; rescaled if the squares of these overflow."""
        of = ExactMomentsOf(_frame_for(before, blocks, bool(self.fit_intercept)))
        moments = blocks.map_reduce(of, ExactMoments.merge, dense=True)
        if not float(moments.high.abs().max()) < LARGEST_MOMENT:
            blocks.raise_if_not_finite(type(self).__name__)
            largest = largest_magnitudes(blocks, of.frame)
            frame = choose_frame(blocks, fit_intercept=bool(self.fit_intercept), largest=largest)
            of = ExactMomentsOf(Frame(of.frame.shift, frame.scale))
            moments = blocks.map_reduce(of, ExactMoments.merge, dense=True)
        if before is None:
            return moments
        before = _to_device(before, blocks.device)
        if moments.frame.scale is not None:
            before = before.with_scale(moments.frame.scale)
        return ExactMoments.merge(before, moments)

    def _keep(self, solution: Solution, blocks: RowBlocks) -> None:
        """Set the fitted attributes, and warn if digits were lost."""
        numpy_dtype = np.float32 if blocks.dtype is torch.float32 else np.float64
        with np.errstate(over="ignore"):
            coef = np.ascontiguousarray(solution.coef.T, dtype=numpy_dtype)
            intercept = solution.intercept.astype(numpy_dtype)
        if not (np.isfinite(coef).all() and np.isfinite(intercept).all()):
            raise ValueError(
                f"The coefficients or the intercept exceed {np.dtype(numpy_dtype)}. Bring X and y to similar "
                "units, or give them as float64."
            )
        self.coef_ = coef[0] if blocks.one_target else coef
        self.intercept_: Any = intercept[0] if blocks.one_target else intercept
        if not self.fit_intercept:
            self.intercept_ = 0.0
        self.rank_ = solution.rank
        self.condition_number_ = solution.condition_number
        self.solver_ = solution.solver
        self.status_ = solution.status
        self.n_iter_ = solution.n_iter
        if solution.status is Status.DIGITS_LOST:
            digits = max(0, math.floor(-math.log10(min(1.0, solution.error))))
            warnings.warn(
                f"Only about {digits} digits of some coefficients are certain (tol={self.tol:g} was asked "
                f"for; solver {solution.solver!r}, condition number {solution.condition_number:.2g}). "
                "Remove nearly dependent columns, use alpha > 0, or accept it with a larger tol.",
                ConvergenceWarning,
                stacklevel=3,
            )


def _predict_on_cpu(blocks: RowBlocks, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
    """``X @ coef + intercept`` of all rows; shape: (n_samples, n_targets)."""
    result = np.empty((blocks.n_samples, coef.shape[1]), dtype=coef.dtype)
    start = 0
    # Rows of another dtype are converted, so block by block.
    same_dtype = (blocks.dtype is torch.float32) == (coef.dtype == np.float32)
    for block in blocks.large(blocks.n_samples) if same_dtype else blocks:
        part = result[start : start + len(block.y)]
        if block.X is not None and block.X.numpy().dtype == coef.dtype:
            np.matmul(block.X.numpy(), coef, out=part)
        else:
            part[...] = (block.csr if block.X is None else block.X.numpy()) @ coef
        part += intercept
        start += len(part)
    return result


def _predict_on_device(blocks: RowBlocks, coef: np.ndarray, intercept: np.ndarray) -> torch.Tensor:
    """The same on a GPU, in float64 also for float32 data: no TF32 setting of the user's costs digits."""
    weights = torch.from_numpy(coef.astype(np.float64)).to(blocks.device)
    constant = torch.from_numpy(intercept.astype(np.float64)).to(blocks.device)
    parts = [
        block.X.to(torch.float64) @ weights + constant for block in blocks.dense() if block.X is not None
    ]
    return torch.cat(parts).to(torch.float32 if coef.dtype == np.float32 else torch.float64)


def _on_host(values: Any) -> Any:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values


def _frame_for(before: ExactMoments | None, blocks: RowBlocks, fit_intercept: bool) -> Frame:
    if before is None:
        return choose_frame(blocks, fit_intercept=fit_intercept)
    shift, scale = before.frame
    return Frame(shift.to(blocks.device), None if scale is None else scale.to(blocks.device))


def _to_device(moments: ExactMoments, device: torch.device) -> ExactMoments:
    shift, scale = moments.frame
    frame = Frame(shift.to(device), None if scale is None else scale.to(device))
    return ExactMoments(
        frame,
        moments.high.to(device),
        moments.low.to(device),
        moments.n_samples,
        moments.unit_roundoff,
    )


def _on_cpu(moments: Moments | ExactMoments) -> Moments | ExactMoments:
    cpu = torch.device("cpu")
    if isinstance(moments, ExactMoments):
        return _to_device(moments, cpu)
    shift, scale = moments.frame
    frame = Frame(shift.cpu(), None if scale is None else scale.cpu())
    return Moments(frame, moments.raw.cpu(), moments.n_samples)
