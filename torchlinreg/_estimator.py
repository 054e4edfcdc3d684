"""`TorchLinearRegressor`: parameters, validation and attributes."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import r2_score
from sklearn.utils import Tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from torchlinreg._checks import as_numbers, check_flag, check_number, check_strengths
from torchlinreg._data.rows import RowBlocks, as_row_blocks, check_features
from torchlinreg._moments.accumulated import to_device
from torchlinreg._moments.exact import ExactMoments, ExactMomentsOf
from torchlinreg._moments.moments import Moments, choose_frame, frame_of_all
from torchlinreg._objective.penalty import penalty_of
from torchlinreg._objective.problem import Problem, moments_to_keep
from torchlinreg._objective.solution import FitStatus, Solution, Status, of_all_targets
from torchlinreg._parameters import LossParametersMixin
from torchlinreg._solvers import choose_solver, refuse_extreme_units, solve, solve_of_moments
from torchlinreg._solvers.least_squares.dual import is_wide
from torchlinreg._solvers.least_squares.whitening import geometry_of_accumulated
from torchlinreg._training.loop import Epoch, train
from torchlinreg._training.optimizers import is_training, optimizer_recipe
from torchlinreg._training.plan import (
    check_solver,
    check_trains,
    earlier_model,
    initial_model,
    n_epochs,
    open_validation,
    plan_training,
    refuse_training,
    train_further,
)
from torchlinreg._training.report import DECORATOR_FRAMES, CallbackSupportMixin, EpochReport, with_callbacks
from torchlinreg.losses import Loss, as_loss

# From so many numbers on, float64 predictions are a product of torch's, as the moments are.
LARGE_PRODUCT = 10**5
# What solvers that do not train have no use for, with the values that say nothing.
TRAINING_PARAMETERS = {
    "learning_rate": "auto",
    "lr_scheduler": None,
    "batch_size": None,
    "early_stopping": False,
}


def _can_go_on(estimator: TorchLinearRegressor) -> bool:
    """Whether rows can come in pieces: moments suffice for the squared error, optimizers take any."""
    loss = as_loss(estimator.loss)
    if loss.kind == "quadratic" or is_training(estimator.solver):
        return True
    raise AttributeError(
        f"partial_fit cannot be used with loss={estimator.loss!r} and solver={estimator.solver!r}, which "
        "needs all rows at once. Use the squared error, or an optimizer, such as solver='adam'."
    )


class TorchLinearRegressor(
    LossParametersMixin, CallbackSupportMixin, MultiOutputMixin, RegressorMixin, BaseEstimator
):
    """A linear neuron of any convex loss and elastic net penalty, at its optimum at once or trained.

    Minimises, over `coef` and `intercept`, with ``p_i = x_i . coef + intercept``::

        sum_i w_i loss(p_i, y_i) / sum_i w_i
            + alpha * sum_j factor_j * (l1_ratio * |coef_j| + (1 - l1_ratio) / 2 * coef_j^2)

    summed over the targets, subject to `bounds`. The squared error is ``(p - y)^2 / 2``. The intercept is
    neither penalised nor bounded. Weights act as repetition of rows. Rows of any units and offsets are
    fitted as they are; the penalty is in the units given.

    Parameters
    ----------
    loss : str, Loss or callable, default="squared_error"
        ``"squared_error"``; ``"huber"`` for data with outliers; ``"absolute_error"`` for the median,
        ``"quantile"`` for quantiles; ``"epsilon_insensitive"`` and ``"squared_epsilon_insensitive"``, which
        ignore small errors; ``"log_cosh"``; an object of `torchlinreg.losses`, such as
        ``losses.Quantile(0.9)``; or a function ``(prediction, target) -> losses`` of tensors, elementwise
        and convex in the prediction, which autograd differentiates. Parameters of an object are set as
        ``loss__quantile``.
    alpha : float or array-like of shape (n_targets,), default=0.0
        Strength of the penalty, 0 or more, as in ``sklearn.linear_model.ElasticNet``: one for all targets or,
        for solvers that do not train, one for each. ``Ridge(alpha=a)`` and ``HuberRegressor(alpha=a)``, which
        do not divide by the weight sum, are ``alpha = a / sum(sample_weight)`` here (``a / n_samples``
        without weights).
    l1_ratio : float, default=0.0
        The share of the l1 penalty, from 0 (ridge) to 1 (lasso). With more than 0, coefficients that do not
        pay are exactly 0.
    penalty_factor : float or array-like of shape (n_features,), default=None
        Multiplies the penalty of each feature, 0 or more; 0 leaves a feature unpenalised, and infinity
        excludes it: its coefficient is 0 at any `alpha`. None is 1 for all. It is not rescaled.
    positive : bool, default=False
        Whether coefficients must be 0 or more.
    bounds : pair (lower, upper), default=None
        Bounds of the coefficients, each a number, an array of shape (n_features,), or None for none, such as
        ``(None, 1.0)``; they apply to every target.
    fit_intercept : bool, default=True
        Whether to fit an intercept. Without one, the model goes through the origin.
    solver : str, Optimizer class or callable, default="auto"
        How to find the coefficients.
        ``"cholesky"``: normal equations from one pass over the rows, refined with residuals of the rows
        as far as `tol` asks for; where the condition it measures is beyond about 1e6, it hands over to
        ``"exact"``: normal equations accumulated to about 100 bits, for conditions up to 1e14 and for
        dependent columns. ``"dual"``: an ``n_samples x n_samples`` system, for fewer rows than features.
        These three are for the squared error with at most a ridge penalty.
        ``"active_set"``: the squared error with an l1 penalty, `positive` or `bounds`, on moments or, for
        fewer rows than features, on working sets of columns. ``"newton"``: smooth losses, with any penalty.
        ``"interior_point"``: piecewise linear losses (absolute, quantile, epsilon-insensitive), with any
        penalty, down to the vertex of the linear program.
        ``"auto"`` takes what suits loss, penalty and shape; `solver_` says what was used.
        Training is asked for with the name of an optimizer of `torch.optim` in lower case (``"sgd"``,
        ``"adam"``, ``"lbfgs"``, ...), with a subclass of `torch.optim.Optimizer`, or with a callable that
        takes the parameters ``[coef, intercept]``, as `torch.nn.Linear` has them, and gives an optimizer,
        such as ``functools.partial(torch.optim.SGD, momentum=0.9)``. A callable that sets ``lr`` itself
        keeps it.
    learning_rate : float or "auto", default="auto"
        A number means what it means in a loop of PyTorch on the raw data with the objective above, from
        coefficients and intercept of 0 on. `torch.nn.MSELoss` has no 1/2, so a rate for it is twice as
        much here; a rate for a sum of squares over n rows is ``2 * n`` times as much.
        ``"auto"`` needs no tuning: it trains in coordinates in which the objective is a sphere, at a rate
        that suits the optimizer and falls to 0 at `max_iter` unless there is an `lr_scheduler`, corrects
        mini-batch gradients by the full gradient at the epoch's start [4]_, halves the rate if the
        loss rises, and ends at the optimum of raw data of any scale and offset.
        Both cost an exact fit first, which `status_` and the automatic coordinates are made from.
    lr_scheduler : str, class or callable, default=None
        A scheduler of `torch.optim.lr_scheduler`, by its name in lower case if it needs no arguments, its
        class, or a callable that takes the optimizer, such as ``functools.partial(StepLR, step_size=10)``.
        It steps once per epoch; `ReduceLROnPlateau` is given the validation loss, else the training loss.
        Where an automatic rate is cut, its schedule starts anew.
    batch_size : int or None, default=None
        Rows per step of an optimizer. None is the full batch: one step per epoch, on moments of the rows,
        which take one pass over them. The gradient of a batch is its mean over its rows, also if it is the
        last and shorter; weights are divided by their mean, and rows of weight 0 are left out.
    max_iter : int or None, default=None
        For optimizers the most epochs, 1000 if None. For least squares and ridge the most refinement passes
        over the rows, 0 for none; else the most steps. None leaves it to the solver.
    tol : float, default=1e-12
        For least squares and ridge the relative accuracy asked for in every coefficient and intercept, as far
        as the solver can estimate it. A larger one saves passes over the rows; a fit that cannot reach it
        warns. For other losses and penalties, how far the objective may be above its optimum, relatively
        (see ``status_.optimality``; Newton steps end at the square of it, where coefficients have that
        accuracy). They mostly end far below it, and warn above ``sqrt(tol)``.
        Optimizers stop at a distance of `tol` from the optimum, in standardised units (see `FitStatus`), or
        where only rounding is left; 0 runs all epochs. They warn if they end at more than ``sqrt(tol)``.
    n_iter_no_change : int, default=10
        With `early_stopping`, training stops when the validation loss has not fallen below its lowest, by
        more than `tol` of it, for so many epochs. Otherwise it stops when the training loss above its
        optimum has changed by no more than `tol` of it in so many epochs: a loss that rises for a while, as
        with momentum, does not stop it.
    early_stopping : bool, default=False
        Whether to stop by the loss on rows left out of training, and to take the coefficients of its lowest.
    validation_fraction : float, default=0.1
        The share of the distinct rows left out for `early_stopping`, if `fit` is given no `X_val`. Which
        rows depends on their values and `random_state` only: copies of a row stay together, so that a weight
        of 2 remains the same as two copies.
    shuffle : bool, default=True
        Whether mini-batches are drawn in a new order in each epoch.
    warm_start : bool, default=False
        Whether `fit` with an optimizer starts at the coefficients of the fit before.
    random_state : int, RandomState or None, default=None
        Seeds the order of mini-batches and the choice of validation rows; with None, two fits differ. No
        global state is seeded.
    device : str, default="auto"
        Where to compute: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...; ``"auto"`` is where X is.
    verbose : int, default=0
        1 prints a line about each fit, and while training after epochs 1, 2, 5, 10, 20, 50, ...; 2 a line per
        epoch.

    Attributes
    ----------
    coef_ : ndarray of shape (n_features,) or (n_targets, n_features)
        Coefficients in the units of X and y; 1-D if y was. float32 if X was float32, else float64. Where
        columns of X depend on each other, the coefficients of least norm, unless there is an l1 penalty.
    intercept_ : float or ndarray of shape (n_targets,)
        Intercept; 0.0 if ``fit_intercept=False``.
    n_features_in_ : int
        Number of features seen in `fit`.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, if X had names that are all strings.
    rank_ : int or None
        Rank of X to the rounding of its numbers, centred if ``fit_intercept=True``; with ``alpha > 0``, of
        the penalised system.
    condition_number_ : float or None
        Condition number (2-norm) of X, centred and with columns of unit norm, as the solver saw it: the
        independent columns and the ridge penalty; for ``solver_ == "dual"``, of the matrix of that system. An
        estimate to about 30 % from 33 columns on.
        Both None after `partial_fit` with a number for `learning_rate`.
    solver_ : str
        The solver that was used.
    status_ : FitStatus
        How the fit ended: ``status_.kind`` is a `Status`, ``status_.message`` says what that means and, after
        training, how far it ended from the optimum, ``status_.distance``; for losses and penalties beyond
        least squares and ridge, how far the objective is above its optimum at most, ``status_.optimality``.
    scale_ : float or ndarray of shape (n_targets,)
        The scale of the residuals, in units of y, that a loss with ``scale="auto"`` estimates; 0 where so
        many rows are fitted exactly that the absolute error is the limit. Only for such losses.
    n_iter_ : int
        Passes over the rows; for ``solver_ == "dual"``, those of refinement; for ``"newton"`` and
        ``"interior_point"``, steps; for optimizers, epochs.
    loss_curve_ : ndarray of shape (n_iter_,)
        The objective over all training rows after each epoch. Only after training.
    validation_loss_curve_ : ndarray of shape (n_iter_,)
        The mean loss over the validation rows after each epoch, summed over the targets. Only after training
        with validation rows.

    Raises
    ------
    ValueError
        In `fit`: a parameter out of its range or without meaning for the solver; a solver that does not serve
        the loss or penalty (the message names those that do); a loss that is not convex or elementwise; NaN,
        infinity, complex numbers or text in X or y; wrong shapes or lengths; negative or all-zero weights; a
        device that is not there.
    TypeError
        In `fit`: a `solver`, `lr_scheduler` or `loss` that gives no optimizer, scheduler or tensor of losses;
        a lazy frame or collection (collect or compute it), a data set or loader of torch (see `partial_fit`).
    FloatingPointError
        In `fit`: training diverged with the number given for `learning_rate`; the message names a stable one.

    See Also
    --------
    sklearn.linear_model.LinearRegression : Least squares by singular values.
    sklearn.linear_model.Ridge : Least squares with a ridge penalty.
    sklearn.linear_model.SGDRegressor : Stochastic gradient descent.
    TorchLinearRegressorCV : The same with `alpha` and `l1_ratio` chosen by cross-validation.
    torchlinreg.losses : The losses.
    torchlinreg.callbacks : Callbacks for training, beside those of `sklearn.callback`.

    Notes
    -----
    A fit of well-conditioned data is one pass over the rows that costs about one product ``X.T @ X``, and a
    few blocks of memory; X is never copied whole, except for wide data that an optimizer trains on or whose
    rows depend on each other, and for sparse formats other than CSR, which are converted.
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
    .. [4] Johnson, Zhang (2013), Accelerating stochastic gradient descent using predictive variance
       reduction, NeurIPS 26.

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

    The same by training:

    >>> trained = TorchLinearRegressor(solver="adam").fit(X, y)
    >>> trained.coef_.round(9), round(float(trained.intercept_), 9)
    (array([2.]), 1.0)
    >>> bool(trained.loss_curve_[-1] < 1e-20)
    True

    An outlier that least squares follows and the Huber loss does not:

    >>> X, y = [[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]], [1.0, 3.0, 5.0, 7.0, 900.0, 11.0]
    >>> TorchLinearRegressor().fit(X, y).coef_.round(), TorchLinearRegressor(loss="huber").fit(X, y).coef_
    (array([78.]), array([2.]))
    """

    _doc_link_module = "torchlinreg"
    _doc_link_template = (
        "https://torchlinreg.readthedocs.io/en/stable/{estimator_module}.{estimator_name}.html"
    )

    def __init__(
        self,
        *,
        loss: str | Loss | Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = "squared_error",
        alpha: float = 0.0,
        l1_ratio: float = 0.0,
        penalty_factor: Any = None,
        positive: bool = False,
        bounds: Any = None,
        fit_intercept: bool = True,
        solver: str | Callable[..., torch.optim.Optimizer] = "auto",
        learning_rate: float | str = "auto",
        lr_scheduler: str | Callable[..., Any] | None = None,
        batch_size: int | None = None,
        max_iter: int | None = None,
        tol: float = 1e-12,
        n_iter_no_change: int = 10,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        shuffle: bool = True,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.loss = loss
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.penalty_factor = penalty_factor
        self.positive = positive
        self.bounds = bounds
        self.fit_intercept = fit_intercept
        self.solver = solver
        self.learning_rate = learning_rate
        self.lr_scheduler = lr_scheduler
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.shuffle = shuffle
        self.warm_start = warm_start
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    @with_callbacks  # type: ignore[untyped-decorator]
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        coef_init: Any = None,
        intercept_init: Any = None,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
        resume_from: str | Path | None = None,
    ) -> Self:
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
        coef_init : array-like of shape (n_features,) or (n_targets, n_features), default=None
            Coefficients to start training at; None stands for 0, or the fitted ones with `warm_start`.
        intercept_init : float or array-like of shape (n_targets,), default=None
            Intercept to start training at. None stands for 0 or, with ``learning_rate="auto"`` and no
            `coef_init`, for the one that fits best.
        X_val : like X, default=None
            Rows whose loss is recorded after each epoch, in `validation_loss_curve_`; with
            ``early_stopping=True`` they decide when to stop.
        y_val : like y, default=None
            Their targets.
        sample_weight_val : like sample_weight, default=None
            Their weights.
        resume_from : path, default=None
            A file that `torchlinreg.callbacks.Checkpoint` wrote while training on the same data with
            the same parameters. Training goes on from there as if it had never been interrupted.

        Returns
        -------
        self : TorchLinearRegressor
            The fitted estimator.

        Raises
        ------
        ValueError, TypeError, FloatingPointError
            See the class.
        """
        start = time.perf_counter()
        self._check_parameters()
        report = EpochReport(self, X, y, sample_weight, n_epochs(self))
        earlier = earlier_model(self)
        with _features_kept_on_failure(self):
            given = self._open(X, y, sample_weight, reset=True)
            blocks = given.with_ordinary_weights()
            problem = self._problem_of(blocks)
            if is_training(self.solver):
                initial = initial_model(self, blocks, coef_init, intercept_init, earlier)
                check_trains(self.solver, problem)
                validation = open_validation(self, blocks, X_val, y_val, sample_weight_val)
                to_train_on, training = plan_training(
                    self, problem, initial, validation, resume_from, report, self._attributes_after
                )
                solution = train(to_train_on, training)
            else:
                refuse_training(
                    self,
                    coef_init=coef_init,
                    intercept_init=intercept_init,
                    X_val=X_val,
                    y_val=y_val,
                    sample_weight_val=sample_weight_val,
                    resume_from=resume_from,
                )
                problems = self._by_strength(problem)
                solution = of_all_targets(
                    [solve(self.solver, each, float(self.tol), self.max_iter) for each in problems]
                )
        self._optimizer_state: dict[str, Any] | None = None
        self._moments: tuple[Moments | ExactMoments, ...] | None = None
        if problem.loss.kind == "quadratic" and not is_wide(problem) and blocks.weight is given.weight:
            self._moments = moments_to_keep(self._parts(problem), solution.condition_number)
        self._keep(solution, problem, extra_frames=DECORATOR_FRAMES)
        report.end()
        if self.verbose:
            seconds = time.perf_counter() - start
            condition = "unknown" if self.condition_number_ is None else f"{self.condition_number_:.3g}"
            print(
                f"TorchLinearRegressor: {blocks.n_samples} x {blocks.n_features} rows in {seconds:.3g} s, "
                f"solver {self.solver_}, n_iter {self.n_iter_}, condition {condition}, rank {self.rank_}, "
                f"{self.status_.name.lower()}"
            )
        return self

    @available_if(_can_go_on)  # type: ignore[untyped-decorator]
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit on these rows and all rows given before, exactly or by one pass of the optimizer.

        Solvers that do not train give the exact least squares of all rows. The rows themselves are not kept,
        only their second moments, to about 100 bits: any split of the rows into calls gives the model of one
        `fit`, with 12 digits up to a condition of about 1e9, and a warning beyond. After `fit`, its rows
        count as well, with moments in float64.

        Optimizers make one pass over these rows, in batches of `batch_size` (None: one step), from the
        coefficients so far. With a number for `learning_rate` it is a pass of the user's own loop, and the
        optimizer's state goes on from call to call; with ``"auto"`` it heads for the optimum of all rows so
        far, whose moments are kept. `lr_scheduler`, `max_iter`, `tol`, `early_stopping` and callbacks are of
        `fit` only; `n_iter_` counts on.

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
        FloatingPointError
            Training diverged with the number given for `learning_rate`; the model is as before.
        """
        self._check_parameters()
        first = not hasattr(self, "coef_")
        blocks = self._open(X, y, sample_weight, reset=first)
        if is_training(self.solver) and optimizer_recipe(self.solver, self.learning_rate).auto_rate is None:
            return self._partial_fit_in_users_units(blocks, first)
        if blocks.with_ordinary_weights() is not blocks:
            raise ValueError(
                "The largest sample_weight of a call of partial_fit must lie between 1e-100 and 1e100. "
                "Multiply the weights of all calls by one constant."
            )
        problem = self._problem_of(blocks)
        parts = self._parts(problem)
        before = [None] * len(parts) if first else self._accumulated(blocks, len(parts))
        moments = [self._merged(*pair) for pair in zip(before, parts, strict=True)]
        state = getattr(self, "_optimizer_state", None)
        if is_training(self.solver):
            arguments = (moments[0], blocks.n_features, problem.penalty.l2, bool(self.fit_intercept))
            refuse_extreme_units(moments[0].frame)
            geometry = geometry_of_accumulated(*arguments, tol=1e-12)
            solution, state = train_further(self, problem, first, geometry)
        else:
            choose_solver(self.solver, problem)  # or its refusal
            tol = float(self.tol)
            solution = of_all_targets(
                [solve_of_moments(*pair, tol) for pair in zip(parts, moments, strict=True)]
            )
        self._representable(solution, problem)  # or its refusal, before anything is kept
        self._moments = tuple(to_device(part, torch.device("cpu")) for part in moments)
        self._optimizer_state = state
        self._keep(solution, problem)
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
        check_features(self, X, reset=False)
        single = blocks.dtype is torch.float32 and self.coef_.dtype == np.float32
        dtype = np.float32 if single else np.float64
        coef = self.coef_.reshape(-1, blocks.n_features).T.astype(dtype, copy=False)
        intercept = np.asarray(self.intercept_, dtype=dtype)
        predict = _predict_on_cpu if blocks.device.type == "cpu" else _predict_on_device
        result = predict(blocks, coef, intercept)
        with np.errstate(over="ignore"):
            total = result.sum()
        if not math.isfinite(total):
            blocks.raise_if_not_finite(type(self).__name__)
        result = result[:, 0] if self.coef_.ndim == 1 else result
        return torch.as_tensor(result, device=blocks.device) if isinstance(X, torch.Tensor) else result

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
        if isinstance(self.loss, Loss) and not self.loss.is_central:
            tags.regressor_tags.poor_score = True  # R2 is about the mean, a quantile far from it
        return tags

    def _check_parameters(self) -> None:
        trains = is_training(self.solver)
        check_solver(self.solver)
        as_loss(self.loss)
        check_strengths(self.alpha, one_each=not trains)
        check_number(
            "l1_ratio", self.l1_ratio, "a number from 0 (ridge) to 1 (lasso)", lambda value: 0 <= value <= 1
        )
        if trains:
            check_number("tol", self.tol, "a number, 0 or more; 0 runs all epochs", lambda value: value >= 0)
        else:
            check_number("tol", self.tol, "a positive number, such as 1e-12", lambda value: value > 0)
        least = 1 if trains else 0
        if self.max_iter is not None:
            _check_integer("max_iter", self.max_iter, least, "None or ")
        if self.batch_size is not None:
            _check_integer("batch_size", self.batch_size, 1, "None (the full batch) or ")
        _check_integer("n_iter_no_change", self.n_iter_no_change, 1)
        _check_integer("verbose", int(self.verbose) if isinstance(self.verbose, bool) else self.verbose, 0)
        for name in ("fit_intercept", "positive", "early_stopping", "shuffle", "warm_start"):
            check_flag(name, getattr(self, name))
        if not (isinstance(self.learning_rate, str) and self.learning_rate == "auto"):
            check_number(
                "learning_rate", self.learning_rate, "'auto' or a positive number", lambda value: value > 0
            )
        check_number(
            "validation_fraction",
            self.validation_fraction,
            "a number between 0 and 1",
            lambda value: 0 < value < 1,
        )
        if trains:
            return
        for name, silent in TRAINING_PARAMETERS.items():
            value = getattr(self, name)
            if value is not silent and value != silent:
                raise ValueError(
                    f"{name}={value!r} has no meaning for solver={self.solver!r}, which does not train. Use "
                    f"an optimizer, such as solver='adam', or leave {name} at {silent!r}."
                )

    def _problem_of(self, blocks: RowBlocks, alpha: float | None = None) -> Problem:
        """The objective of the parameters for these rows; of the largest of several `alpha`."""
        penalty = penalty_of(
            blocks.n_features,
            float(as_numbers(self.alpha).max()) if alpha is None else alpha,
            float(self.l1_ratio),
            self.penalty_factor,
            bool(self.positive),
            self.bounds,
        )
        return Problem(blocks, penalty, bool(self.fit_intercept), type(self).__name__, as_loss(self.loss))

    def _attributes_after(self, epoch: Epoch, problem: Problem) -> dict[str, Any]:
        """What a copy of the estimator needs to predict as if training had ended here."""
        coef, intercept = self._fitted(epoch.coef, epoch.intercept, problem)
        return {
            "coef_": coef,
            "intercept_": intercept,
            "n_iter_": epoch.number,
            "_training_state": epoch.state,
        }

    def _fitted(self, coef: np.ndarray, intercept: np.ndarray, problem: Problem) -> tuple[np.ndarray, Any]:
        """`coef_` and `intercept_` in the dtype of X and the form of y."""
        one_target = problem.blocks.one_target
        coef = np.array(problem.penalty.within_bounds(coef, _dtype_of(problem.blocks)), order="C")
        with np.errstate(over="ignore"):
            intercept = np.array(intercept, dtype=coef.dtype)
        if not self.fit_intercept:
            return coef[0] if one_target else coef, 0.0
        return (coef[0], intercept[0]) if one_target else (coef, intercept)

    def _representable(self, solution: Solution, problem: Problem) -> tuple[np.ndarray, Any]:
        """`coef_` and `intercept_`; a ValueError where their dtype does not hold them."""
        coef, intercept = self._fitted(solution.coef.T, solution.intercept, problem)
        if not (np.isfinite(coef).all() and np.isfinite(intercept).all()):
            raise ValueError(
                f"The coefficients or the intercept exceed {coef.dtype}. Bring X and y to similar "
                "units, or give them as float64."
            )
        return coef, intercept

    def _open(self, X: Any, y: Any, sample_weight: Any, *, reset: bool) -> RowBlocks:
        blocks = as_row_blocks(X, y, sample_weight, device=self.device, estimator=self)
        if y is None:
            raise ValueError(
                f"This {type(self).__name__} estimator requires y to be passed, but the target y is None."
            )
        check_features(self, X, reset=reset)
        return blocks

    def _partial_fit_in_users_units(self, blocks: RowBlocks, first: bool) -> Self:
        blocks.raise_if_not_finite(type(self).__name__)
        blocks = blocks.with_ordinary_weights()
        if not first:
            self._check_targets(blocks)
        problem = self._problem_of(blocks)
        solution, state = train_further(self, problem, first, None)
        self._representable(solution, problem)
        self._moments, self._optimizer_state = None, state
        self._keep(solution, problem)
        return self

    def _parts(self, problem: Problem) -> tuple[Problem, ...]:
        """The problem in the parts that moments are kept of; training is of all targets together."""
        if is_training(self.solver):
            return (problem,)
        return tuple(part for each in self._by_strength(problem) for part in each.by_targets)

    def _by_strength(self, problem: Problem) -> tuple[Problem, ...]:
        """Problems of neighbouring targets that have the same `alpha`."""
        if isinstance(self.alpha, Real):
            return (problem,)
        blocks, strengths = problem.blocks, as_numbers(self.alpha)
        if len(strengths) != blocks.n_targets:
            raise ValueError(
                f"alpha holds {len(strengths)} numbers, but y has {blocks.n_targets} targets. Give one "
                "number for each, or one for all."
            )
        starts = [0, *(np.flatnonzero(np.diff(strengths)) + 1).tolist(), len(strengths)]
        return tuple(
            self._problem_of(blocks.with_targets(blocks.y[:, start:stop]), float(strengths[start]))
            for start, stop in pairwise(starts)
        )

    def _accumulated(self, blocks: RowBlocks, n_parts: int) -> list[ExactMoments]:
        """Moments of the rows given before, of each part of the targets."""
        self._check_targets(blocks)
        if self._moments is None or len(self._moments) != n_parts:
            raise ValueError(
                "partial_fit cannot go on: no moments were kept, since the model comes from fewer rows than "
                "features, weights beyond 1e-100 to 1e100, or partial_fit with a number for learning_rate, "
                "or many targets were trained before that are not now, or the other way round. Start anew, "
                "with partial_fit and these parameters from the first rows on."
            )
        if not self.fit_intercept and any(part.frame.shift.any() for part in self._moments):
            raise ValueError(
                "fit_intercept was True in the calls before and is False now; keep to one value."
            )
        return [
            ExactMoments.from_moments(part) if isinstance(part, Moments) else part for part in self._moments
        ]

    def _check_targets(self, blocks: RowBlocks) -> None:
        before = None if self.coef_.ndim == 1 else len(self.coef_)
        now = None if blocks.one_target else blocks.n_targets
        if now != before:
            old, new = ("1-D" if n is None else f"2-D with {n} columns" for n in (before, now))
            raise ValueError(f"y is {new}, but it was {old} in the calls before; keep to one form.")

    def _merged(self, before: ExactMoments | None, problem: Problem) -> ExactMoments:
        """Moments of the rows before and these, about the shift that the first rows chose."""
        blocks = problem.blocks
        if before is None:
            frame = choose_frame(blocks, fit_intercept=bool(self.fit_intercept))
        else:
            before = to_device(before, blocks.device)
            frame = before.frame
        moments = blocks.map_reduce(ExactMomentsOf(frame), ExactMoments.merge, dense=True)
        if not moments.is_sound:
            blocks.raise_if_not_finite(type(self).__name__)
            of = ExactMomentsOf(frame_of_all(blocks, frame.shift))
            moments = blocks.map_reduce(of, ExactMoments.merge, dense=True)
        return moments if before is None else ExactMoments.merge(before, moments)

    def _keep(self, solution: Solution, problem: Problem, extra_frames: int = 0) -> None:
        """Set the fitted attributes, and warn if digits were lost."""
        self.coef_, self.intercept_ = self._representable(solution, problem)
        self.rank_ = solution.rank
        self.condition_number_ = solution.condition_number
        self.solver_ = solution.solver
        self.status_ = FitStatus(solution.status, solution.distance, solution.optimality)
        self.n_iter_ = solution.n_iter
        for name in ("scale_", "loss_curve_", "validation_loss_curve_"):
            self.__dict__.pop(name, None)  # of an earlier fit
        if solution.scale is not None:
            self.scale_ = float(solution.scale[0]) if problem.blocks.one_target else solution.scale
        if solution.loss_curve is not None:
            self.loss_curve_ = np.array(solution.loss_curve)
        if solution.validation_loss_curve is not None:
            self.validation_loss_curve_ = np.array(solution.validation_loss_curve)
        self._warn_about(solution, stacklevel=4 + extra_frames)

    def _warn_about(self, solution: Solution, stacklevel: int) -> None:
        """One warning where the result is less than was asked for."""
        ended_early = solution.status in (Status.MAX_ITER, Status.NO_PROGRESS)
        if ended_early and (solution.distance or 0) > math.sqrt(self.tol or 1e-12):
            warnings.warn(
                f"After {solution.n_iter} epochs of {solution.solver!r}: {self.status_.message}",
                ConvergenceWarning,
                stacklevel=stacklevel,
            )
        unfinished = solution.status in (Status.ITERATIONS_USED, Status.STUCK)
        if unfinished and (solution.optimality or 0) > math.sqrt(self.tol):
            warnings.warn(
                f"After {solution.n_iter} iterations of {solution.solver!r}: {self.status_.message}",
                ConvergenceWarning,
                stacklevel=stacklevel,
            )
        if solution.status in (Status.CONSTANT, Status.NO_FINITE_OPTIMUM):
            warnings.warn(
                f"Solver {solution.solver!r}: {self.status_.message}",
                ConvergenceWarning,
                stacklevel=stacklevel,
            )
        if solution.status is Status.NEARLY_DEPENDENT:
            rank = "" if solution.rank is None else f"Rank {solution.rank} of "
            warnings.warn(
                f"{rank}{len(solution.coef)} columns: {self.status_.message}",
                ConvergenceWarning,
                stacklevel=stacklevel,
            )
        if solution.status is Status.DIGITS_LOST:
            digits = max(0, math.floor(-math.log10(min(1.0, solution.error))))
            warnings.warn(
                f"Only about {digits} digits of some coefficients are certain (tol={self.tol:g} was asked "
                f"for; solver {solution.solver!r}, condition number {solution.condition_number:.2g}). "
                "Remove nearly dependent columns, use alpha > 0, or accept it with a larger tol.",
                ConvergenceWarning,
                stacklevel=stacklevel,
            )


@contextmanager
def _features_kept_on_failure(estimator: TorchLinearRegressor) -> Iterator[None]:
    """Put back the names and number of features of an earlier fit, whose coefficients are still there."""
    names = ("n_features_in_", "feature_names_in_")
    before = {name: getattr(estimator, name) for name in names if hasattr(estimator, name)}
    try:
        yield
    except Exception:
        for name in names:
            estimator.__dict__.pop(name, None)
        estimator.__dict__.update(before)
        raise


def _dtype_of(blocks: RowBlocks) -> type[np.floating[Any]]:
    return np.float32 if blocks.dtype is torch.float32 else np.float64


def _check_integer(name: str, value: Any, least: int, otherwise: str = "") -> None:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}={value!r} must be {otherwise}an integer, {least} or more.")


def _predict_on_cpu(blocks: RowBlocks, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
    """``X @ coef + intercept`` of all rows; shape: (n_samples, n_targets)."""
    result = np.empty((blocks.n_samples, coef.shape[1]), dtype=coef.dtype)
    weights = torch.from_numpy(np.array(coef))  # a copy: torch takes no memory that is read-only or reversed
    start = 0
    # Rows of another dtype are converted, so block by block.
    same_dtype = (blocks.dtype is torch.float32) == (coef.dtype == np.float32)
    for block in blocks.large(blocks.n_samples) if same_dtype else blocks:
        part = result[start : start + len(block.y)]
        with np.errstate(invalid="ignore"):  # infinity times a coefficient of 0, found out by its NaN
            if block.X is None:
                part[...] = block.csr @ coef
            elif block.X.numpy().dtype != coef.dtype:
                part[...] = block.X.numpy() @ coef
            elif coef.dtype == np.float64 and block.X.numel() >= LARGE_PRODUCT:
                torch.mm(block.X, weights, out=torch.from_numpy(part))
            else:  # in float32 torch might take bfloat16 for it; for little, its threads need not wake
                np.matmul(block.X.numpy(), coef, out=part)
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
