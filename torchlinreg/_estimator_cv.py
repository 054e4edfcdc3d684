"""`TorchLinearRegressorCV`: chooses the penalty's strength by cross-validation, from moments of the folds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from inspect import signature
from itertools import groupby
from numbers import Integral, Real
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn import get_config
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.metrics import check_scoring
from sklearn.model_selection import check_cv
from sklearn.utils import Tags, _safe_indexing, indexable
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_is_fitted, validate_data

from torchlinreg._blocks import Block, RowBlocks, as_row_blocks
from torchlinreg._checks import as_numbers, check_number
from torchlinreg._estimator import TorchLinearRegressor, _on_cpu
from torchlinreg._folds import MOMENTS_BYTES, FoldMoments, Rows, Split, fold_moments, rows_of, splits_of
from torchlinreg._loss_parameters import LossParametersMixin
from torchlinreg._moments import Moments, choose_frame, symmetric
from torchlinreg._path import (
    PREDICTION_ERROR,
    Minima,
    alpha_grid,
    check_grid,
    largest_alpha,
    minima_of,
    quadratic_of,
    sharing_moments,
)
from torchlinreg._penalty import Penalty, penalty_of
from torchlinreg._problem import Problem
from torchlinreg._solution import Solution, Status
from torchlinreg._standardised import Standardised
from torchlinreg._threads import torch_first
from torchlinreg.losses import Loss, as_loss
from torchlinreg.solvers import choose_solver, is_training, solve
from torchlinreg.solvers._exact import GRAM_ROUNDOFF

# What moments can score; everything else takes predictions.
MOMENT_SCORES = (None, "r2", "neg_mean_squared_error", "neg_root_mean_squared_error")
MOMENT_SOLVERS = ("auto", "cholesky", "active_set")
# A score from moments may be off by this: relatively for squared errors, absolutely for R2.
SCORE_ERROR = 1e-10
# Gram matrices of more columns than this many times the rows cost more than fits by the rows.
MOST_COLUMNS_PER_ROW = 2


class Candidate(NamedTuple):
    """A strength and kind of the penalty."""

    alpha: float
    l1_ratio: float


class TorchLinearRegressorCV(LossParametersMixin, MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Linear regression whose penalty is chosen by cross-validation, from one pass over the rows.

    Scores every `alpha` and `l1_ratio` of `TorchLinearRegressor` as
    ``GridSearchCV(TorchLinearRegressor(...), {"alpha": alphas, "l1_ratio": l1_ratio})`` does, and fits all
    rows with the best.

    Parameters
    ----------
    loss : str, Loss or callable, default="squared_error"
        As for `TorchLinearRegressor`.
    alphas : int or array-like of shape (n_alphas,), default=100
        The strengths of the penalty to try, 0 or more; or how many, on a grid that `regularization_path`
        describes, one for each `l1_ratio`. As the objective has a mean over the rows, a strength means the
        same for folds of any size.
    l1_ratio : float or array-like of shape (n_l1_ratio,), default=0.0
        The shares of the l1 penalty to try, from 0 (ridge) to 1 (lasso).
    eps : float, default=1e-3
        The length of the grid, if `alphas` is an int; see `regularization_path`.
    cv : int, splitter or iterable, default=None
        How to split the rows: any splitter of `sklearn.model_selection`, the number of folds of a `KFold`
        (None: 5), or an iterable of pairs of train and test indices.
    scoring : str or callable, default=None
        A scorer of scikit-learn, or ``callable(estimator, X, y)``; larger is better. None is R2, as `score`
        gives it. Scorers that take weights are given `sample_weight`, as by `GridSearchCV` of scikit-learn
        1.9; with metadata routing enabled, those that request it, and R2 for None.
    penalty_factor : array-like of shape (n_features,), default=None
        As for `TorchLinearRegressor`.
    positive : bool, default=False
        Whether coefficients must be 0 or more.
    bounds : pair, default=None
        As for `TorchLinearRegressor`.
    fit_intercept : bool, default=True
        Whether to fit an intercept, which is never penalised.
    solver : str, default="auto"
        As for `TorchLinearRegressor`, without the optimizers.
    max_iter : int or None, default=None
        As for `TorchLinearRegressor`.
    tol : float, default=1e-12
        As for `TorchLinearRegressor`.
    n_jobs : int or None, default=None
        How many fits run at once, as threads, where fits are needed; see Notes.
    device : str, default="auto"
        Where to compute: ``"cpu"``, ``"cuda"``, ...; ``"auto"`` is where X is.
    verbose : int, default=0
        1 prints a line about each fit.

    Attributes
    ----------
    alpha_ : float
        The strength with the best mean score; the first such in `cv_results_`.
    l1_ratio_ : float
        The l1 ratio that goes with it.
    alphas_ : ndarray of shape (n_alphas,) or (n_l1_ratio, n_alphas)
        The strengths that were tried, in that order; 2-D where a grid was made for each of several l1 ratios.
    cv_results_ : dict of ndarray
        As of `GridSearchCV`: ``params``, ``param_alpha``, ``param_l1_ratio``, ``split0_test_score`` and so
        on, ``mean_test_score``, ``std_test_score`` and ``rank_test_score``. Given `alphas` come in the order
        of that search; grids come one after the other.
    best_score_ : float
        The mean score of the best.
    best_index_ : int
        Its place in `cv_results_`.
    n_splits_ : int
        How many splits there were.
    best_estimator_ : TorchLinearRegressor
        The best, fitted to all rows.
    coef_ : ndarray of shape (n_features,) or (n_targets, n_features)
        Its coefficients. All other attributes of `TorchLinearRegressor` are here as well.
    intercept_ : float or ndarray of shape (n_targets,)
        Its intercept.
    n_features_in_ : int
        Number of features seen in `fit`.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, if X had names that are all strings.

    Raises
    ------
    ValueError
        In `fit`: as for `TorchLinearRegressor`; or `alphas`, `l1_ratio`, `eps`, `cv` or `scoring` are not as
        above.

    See Also
    --------
    regularization_path : Coefficients for many strengths.
    sklearn.linear_model.RidgeCV : Ridge regression by leave-one-out or a grid search.
    sklearn.linear_model.ElasticNetCV : The elastic net along a path.

    Notes
    -----
    For the squared error, the second moments of every test set come from one pass over the rows, those of a
    training set are sums of the others', and coefficients and scores follow from them: R2, and mean squared
    errors with and without root. Splits whose test sets do not share out the rows are read split by split.
    Other scorers see predictions of the coefficients so found. Wherever moments would leave fewer than ten
    digits of a score (nearly dependent columns, nearly perfect fits), for other losses, and for more than
    twice as many features as rows (with an l1 penalty, from about 1800 features on), combinations are fitted
    and scored as by `GridSearchCV`, on `n_jobs`.

    Examples
    --------
    >>> import numpy as np
    >>> from torchlinreg import TorchLinearRegressorCV
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(60, 4))
    >>> y = X @ [2.0, 0.0, 0.0, -1.0] + rng.normal(size=60)
    >>> reg = TorchLinearRegressorCV(alphas=[1.0, 0.1, 0.01], l1_ratio=[0.5, 1.0]).fit(X, y)
    >>> reg.alpha_, reg.l1_ratio_
    (0.1, 0.5)
    >>> reg.predict(X[:2]).shape
    (2,)
    """

    _doc_link_module = "torchlinreg"
    _doc_link_template = (
        "https://torchlinreg.readthedocs.io/en/stable/{estimator_module}.{estimator_name}.html"
    )

    def __init__(
        self,
        *,
        loss: str | Loss | Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = "squared_error",
        alphas: int | Sequence[float] | np.ndarray = 100,
        l1_ratio: float | Sequence[float] | np.ndarray = 0.0,
        eps: float = 1e-3,
        cv: Any = None,  # whatever check_cv of scikit-learn takes
        scoring: str | Callable[..., float] | None = None,
        penalty_factor: Any = None,
        positive: bool = False,
        bounds: Any = None,
        fit_intercept: bool = True,
        solver: str = "auto",
        max_iter: int | None = None,
        tol: float = 1e-12,
        n_jobs: int | None = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.loss = loss
        self.alphas = alphas
        self.l1_ratio = l1_ratio
        self.eps = eps
        self.cv = cv
        self.scoring = scoring
        self.penalty_factor = penalty_factor
        self.positive = positive
        self.bounds = bounds
        self.fit_intercept = fit_intercept
        self.solver = solver
        self.max_iter = max_iter
        self.tol = tol
        self.n_jobs = n_jobs
        self.device = device
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None, **params: Any) -> Self:
        """Score all candidates by cross-validation, and fit all rows with the best.

        Parameters
        ----------
        X : array-like, data frame, sparse matrix or tensor of shape (n_samples, n_features)
            Rows, which the splits must be able to index.
        y : array-like or tensor of shape (n_samples,) or (n_samples, n_targets)
            Targets.
        sample_weight : float, array-like or tensor of shape (n_samples,), default=None
            Weights, 0 or more. They count in all fits; in the scores see `scoring`.
        **params : dict
            ``groups`` for the splitter; with metadata routing enabled, whatever the splitter and the scorer
            request.

        Returns
        -------
        self : TorchLinearRegressorCV
            The fitted estimator.

        Raises
        ------
        ValueError
            See the class.
        """
        self._check_parameters()
        if y is None:
            raise ValueError(
                f"This {type(self).__name__} estimator requires y to be passed, but the target y is None."
            )
        given = as_row_blocks(X, y, sample_weight, device=self.device, estimator=self)
        validate_data(self, X, skip_check_array=True)
        if isinstance(sample_weight, Real) or getattr(sample_weight, "ndim", 1) == 0:
            sample_weight = np.full(given.n_samples, float(sample_weight))
        X, y, sample_weight = indexable(X, y, sample_weight)
        split_params, score_params = self._routed(sample_weight, params)
        cv = check_cv(self.cv, y)
        splits = splits_of(cv.split(X, y, **split_params), given.n_samples)
        search = _Search(self, X, y, sample_weight, given, splits, score_params)
        candidates, self.alphas_ = self._candidates(search)
        scores = search.scores(candidates)
        self._keep_scores(candidates, scores)
        best = candidates[self.best_index_]
        self.alpha_, self.l1_ratio_ = best
        self.n_splits_ = len(splits)
        self.best_estimator_ = search.fitted(best)
        for name, value in vars(self.best_estimator_).items():
            if name.endswith("_") and not name.startswith("_"):
                setattr(self, name, value)
        if self.verbose:
            print(
                f"TorchLinearRegressorCV: {len(candidates)} candidates on {len(splits)} splits, of which "
                f"{search.n_fits} fits; best mean score {self.best_score_:.6g} with alpha {self.alpha_:.4g}, "
                f"l1_ratio {self.l1_ratio_:g}"
            )
        return self

    def predict(self, X: Any) -> Any:
        """Predict with the best model.

        Parameters
        ----------
        X : array-like, data frame, sparse matrix or tensor of shape (n_samples, n_features)
            Rows to predict for.

        Returns
        -------
        y_pred : ndarray or tensor of shape (n_samples,) or (n_samples, n_targets)
            As of `TorchLinearRegressor`.

        Raises
        ------
        NotFittedError
            `fit` was not called before.
        ValueError
            Other features than in `fit`, or NaN or infinity in X.
        """
        check_is_fitted(self, "best_estimator_")
        return self.best_estimator_.predict(X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Coefficient of determination R2 of the prediction, whatever `scoring` is.

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
        check_is_fitted(self, "best_estimator_")
        return self.best_estimator_.score(X, y, sample_weight)

    def get_metadata_routing(self) -> MetadataRouter:
        """What metadata `fit` hands on, for scikit-learn's metadata routing.

        Returns
        -------
        MetadataRouter
            The splitter and the scorer.
        """
        router = (
            MetadataRouter(owner=self)
            .add_self_request(self)
            .add(splitter=check_cv(self.cv), method_mapping=MethodMapping().add(caller="fit", callee="split"))
        )
        if self.scoring is None:
            return router
        mapping = MethodMapping().add(caller="fit", callee="score")
        return router.add(scorer=self._scorer(), method_mapping=mapping)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _check_parameters(self) -> None:
        check_grid(self.alphas, self.eps)
        if np.ndim(self.l1_ratio) > 1 or np.size(self.l1_ratio) == 0:
            raise ValueError(f"l1_ratio={self.l1_ratio!r} must be a number or a 1-D array of numbers.")
        for value in self._l1_ratios():
            check_number(
                "l1_ratio", value, "numbers from 0 (ridge) to 1 (lasso)", lambda number: 0 <= number <= 1
            )
        if is_training(self.solver):
            raise ValueError(
                f"solver={self.solver!r} trains, which TorchLinearRegressorCV does not. Use solver='auto' or "
                f"GridSearchCV(TorchLinearRegressor(solver={self.solver!r}), ...)."
            )
        if isinstance(self.scoring, (list, tuple, set, dict)):
            raise ValueError(f"scoring={self.scoring!r} must be one scorer, by which the best is chosen.")
        self._model(Candidate(0.0, 0.0))._check_parameters()
        self._scorer()

    def _l1_ratios(self) -> list[Any]:
        ratios = self.l1_ratio.tolist() if isinstance(self.l1_ratio, torch.Tensor) else self.l1_ratio
        return [ratios] if np.ndim(ratios) == 0 else list(ratios)  # type: ignore[arg-type]

    def _scorer(self) -> Callable[..., float]:
        return check_scoring(TorchLinearRegressor(), scoring=self.scoring)

    def _model(self, candidate: Candidate) -> TorchLinearRegressor:
        """The estimator of a candidate, not fitted."""
        return TorchLinearRegressor(
            loss=self.loss,
            alpha=candidate.alpha,
            l1_ratio=candidate.l1_ratio,
            penalty_factor=self.penalty_factor,
            positive=self.positive,
            bounds=self.bounds,
            fit_intercept=self.fit_intercept,
            solver=self.solver,
            max_iter=self.max_iter,
            tol=self.tol,
            device=self.device,
        )

    def _routed(self, sample_weight: Any, params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the splitter and the scorer are given, as by `GridSearchCV`."""
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        if get_config()["enable_metadata_routing"]:
            bunch = process_routing(self, "fit", **params, **weights)
            return dict(bunch.splitter.split), weights if self.scoring is None else dict(bunch.scorer.score)
        others = sorted(set(params) - {"groups"})
        if others:
            raise ValueError(
                f"fit was given {', '.join(others)}, which only metadata routing hands on: enable it with "
                "sklearn.set_config(enable_metadata_routing=True). Without it, only 'groups' is known."
            )
        if weights and not _takes_weights(self._scorer()):
            warnings.warn(
                f"scoring={self.scoring!r} has no use for sample_weight, which then counts in the fits only.",
                UserWarning,
                stacklevel=3,
            )
            weights = {}
        return {"groups": params.get("groups")}, weights

    def _candidates(self, search: _Search) -> tuple[list[Candidate], np.ndarray]:
        """All candidates in the order of their scores, and `alphas_`."""
        ratios = [float(value) for value in self._l1_ratios()]
        if not isinstance(self.alphas, Integral):
            alphas = as_numbers(self.alphas).copy()
            return [Candidate(float(alpha), ratio) for alpha in alphas for ratio in ratios], alphas
        grids = np.stack([search.grid(ratio, float(self.eps), int(self.alphas)) for ratio in ratios])
        candidates = [
            Candidate(float(alpha), ratio)
            for ratio, grid in zip(ratios, grids, strict=True)
            for alpha in grid
        ]
        return candidates, grids if len(ratios) > 1 else grids[0]

    def _keep_scores(self, candidates: list[Candidate], scores: np.ndarray) -> None:
        """Set `cv_results_` and what is best in it, as `GridSearchCV` does."""
        mean, deviation = scores.mean(1), scores.std(1)
        unknown = ~np.isfinite(mean)
        if unknown.any():
            warnings.warn(
                f"The mean test scores of {unknown.sum()} of {len(mean)} candidates are not finite; R2 needs "
                "two test rows at least, for example.",
                UserWarning,
                stacklevel=3,
            )
        ranked = mean if np.isnan(mean).all() else np.where(np.isnan(mean), np.nanmin(mean) - 1, mean)
        rank = rankdata(-np.nan_to_num(ranked), method="min").astype(np.int32)
        self.cv_results_ = {
            "params": [candidate._asdict() for candidate in candidates],
            "param_alpha": np.array([candidate.alpha for candidate in candidates]),
            "param_l1_ratio": np.array([candidate.l1_ratio for candidate in candidates]),
            **{f"split{number}_test_score": column for number, column in enumerate(scores.T)},
            "mean_test_score": mean,
            "std_test_score": deviation,
            "rank_test_score": rank,
        }
        self.best_index_ = int(rank.argmin())
        self.best_score_ = float(mean[self.best_index_])


class _Search:
    """Scores of candidates: from moments of the folds where they suffice, else from fits."""

    def __init__(
        self,
        estimator: TorchLinearRegressorCV,
        X: Any,
        y: Any,
        sample_weight: Any,
        given: RowBlocks,
        splits: list[Split],
        score_params: dict[str, Any],
    ) -> None:
        self._estimator = estimator
        blocks = given.with_ordinary_weights()
        self._is_given = blocks.weight is given.weight
        self._X = X
        self._y = y
        self._sample_weight = sample_weight
        self._splits = splits
        self._score_params = score_params
        self._penalty = penalty_of(
            blocks.n_features, 1.0, 0.5, estimator.penalty_factor, bool(estimator.positive), estimator.bounds
        )
        self._problem = Problem(
            blocks,
            self._penalty,
            bool(estimator.fit_intercept),
            type(estimator).__name__,
            as_loss(estimator.loss),
        )
        self._check_weights()
        self.n_fits = 0
        self._folds = self._open_folds()
        if self._folds is None:
            blocks.raise_if_not_finite(self._problem.name)

    def _check_weights(self) -> None:
        """Raise a ValueError where a split has no weight to train on, or to score with."""
        if self._problem.blocks.weight is None:
            return
        counts = (self._problem.blocks.weight > 0).cpu().numpy()
        for number, split in enumerate(self._splits):
            parts = {"trains on": split.train_index(len(counts))}
            if "sample_weight" in self._score_params:
                parts["tests"] = split.test
            for what, index in parts.items():
                if not counts[index].any():
                    raise ValueError(
                        f"All rows that split {number} {what} have a sample_weight of zero. Use another cv."
                    )

    def grid(self, l1_ratio: float, eps: float, n_alphas: int) -> np.ndarray:
        """Falling strengths for an l1 ratio, from all rows."""
        problem = self._problem
        single = Problem(
            problem.blocks,
            self._at(Candidate(1.0, l1_ratio)),
            problem.fit_intercept,
            problem.name,
            problem.loss,
        )
        quadratic = None
        if self._folds is not None:
            quadratic = quadratic_of(problem.moments, problem.blocks.n_features, problem.fit_intercept)
        return alpha_grid(largest_alpha(single, quadratic, l1_ratio), l1_ratio, eps, n_alphas)

    def scores(self, candidates: list[Candidate]) -> np.ndarray:
        """Test scores, shape (n_candidates, n_splits)."""
        scores = np.empty((len(candidates), len(self._splits)))
        missing = np.ones(scores.shape, dtype=bool)
        # Neighbours in this order are alike, so that one is a good start for the next.
        order = sorted(range(len(candidates)), key=lambda i: (candidates[i].l1_ratio, -candidates[i].alpha))
        ordered = [candidates[index] for index in order]
        penalties = [self._at(candidate) for candidate in ordered]
        for penalty in (penalties[0], penalties[-1]):  # of the extreme l1 ratios: the solver must serve them
            choose_solver(self._estimator.solver, sharing_moments(self._problem, penalty))
        for fold in self._folds or ():
            found, column = self._scores_of(fold, ordered, penalties)
            scores[order, fold.number] = column
            missing[order, fold.number] = ~found
        jobs = np.argwhere(missing.T)  # by split, then by candidate
        self.n_fits = len(jobs)
        if self.n_fits:
            fits = self._fits(candidates, jobs)
            scores[jobs[:, 1], jobs[:, 0]] = Parallel(n_jobs=self._estimator.n_jobs, prefer="threads")(fits)
        return scores

    def _fits(self, candidates: list[Candidate], jobs: np.ndarray) -> Iterator[Any]:
        """Calls that fit and score, of candidates on splits; the rows of a split are copied once."""
        for number, of_split in groupby(jobs, key=lambda job: int(job[0])):
            data = self._data_of(number)
            for _, index in of_split:
                yield delayed(_fit_and_score)(
                    self._estimator._model(candidates[index]), data, self._estimator.scoring
                )

    def fitted(self, candidate: Candidate) -> TorchLinearRegressor:
        """A candidate fitted to all rows, from the moments if there are any."""
        model = self._estimator._model(candidate)
        if self._folds is None:
            return model.fit(self._X, self._y, self._sample_weight)
        problem = sharing_moments(self._problem, self._at(candidate))
        solution = solve(model.solver, problem, float(model.tol), model.max_iter)
        self._name_features(model)
        model._optimizer_state = None
        model._moments = _on_cpu(problem.best_moments) if self._is_given else None
        model._keep(solution, problem.blocks, extra_frames=1)
        return model

    def _name_features(self, model: TorchLinearRegressor) -> None:
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(self._estimator, name):
                setattr(model, name, getattr(self._estimator, name))

    def _at(self, candidate: Candidate) -> Penalty:
        """The penalty of a candidate."""
        strength = self._penalty.times(2 * candidate.alpha)
        return Penalty(
            strength.l1 * candidate.l1_ratio,
            strength.l2 * (1 - candidate.l1_ratio),
            strength.lower,
            strength.upper,
        )

    def _open_folds(self) -> Iterable[FoldMoments] | None:
        """Moments of the folds, or None where they would not serve; sets those of all rows."""
        estimator, problem = self._estimator, self._problem
        blocks = problem.blocks
        n_train = min(
            blocks.n_samples - len(split.test) if split.train is None else len(split.train)
            for split in self._splits
        )
        if problem.loss.kind != "quadratic" or estimator.solver not in MOMENT_SOLVERS:
            return None
        n_bytes = 16 * len(self._splits) * (1 + blocks.n_features + blocks.n_targets) ** 2
        sparse_and_small = n_bytes <= MOMENTS_BYTES and all(ratio > 0 for ratio in estimator._l1_ratios())
        if blocks.n_features > MOST_COLUMNS_PER_ROW * n_train and not sparse_and_small:
            return None
        frame = choose_frame(blocks, fit_intercept=problem.fit_intercept)
        if frame.scale is not None:
            return None
        folds: Iterable[FoldMoments] = fold_moments(blocks, frame, self._splits)
        if n_bytes <= MOMENTS_BYTES:
            folds = list(folds)
            if self._splits[0].train is None:
                total = Moments.merge(folds[0].train, folds[0].test)
                if total.is_sound:
                    problem.__dict__["moments"] = total
        return folds if problem.moments.frame.scale is None else None

    def _scores_of(
        self, fold: FoldMoments, candidates: list[Candidate], penalties: list[Penalty]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which candidates were scored from the moments, and their scores on one split."""
        blocks = self._problem.blocks
        none = np.zeros(len(candidates), dtype=bool), np.full(len(candidates), np.nan)
        quadratic = quadratic_of(fold.train, blocks.n_features, self._problem.fit_intercept)
        if quadratic is None:
            return none
        minima = minima_of(quadratic, penalties)
        scoring = self._estimator.scoring
        if not (scoring is None or isinstance(scoring, str)) or scoring not in MOMENT_SCORES:
            return self._scores_of_models(fold, quadratic, minima, candidates)
        if scoring in (None, "r2") and fold.test.n_samples < 2:
            return ~none[0], none[1]  # not defined
        sums = self._sums(fold, quadratic, minima)
        error = sums.rounding + sums.weight_sum * minima.error * (2 * sums.root_mean_square + minima.error)
        size = np.broadcast_to(sums.total, sums.residual.shape) if scoring in (None, "r2") else sums.residual
        # Also false for NaN.
        found = np.all(error <= SCORE_ERROR * size, axis=1)
        return found, sums.score(scoring)

    def _sums(self, fold: FoldMoments, quadratic: Standardised, minima: Minima) -> _Sums:
        """Squared residuals and deviations of the test rows, from moments where they leave enough digits."""
        blocks = self._problem.blocks
        weight = blocks.weight
        scored_weight = weight if "sample_weight" in self._score_params else None
        n_models = minima.coef.shape[0] * minima.coef.shape[2]
        n_test = fold.test.n_samples
        if scored_weight is weight and n_test > min(n_models, blocks.n_features):
            with torch_first():
                sums = _sums_of_moments(fold.test, quadratic, minima)
            size = sums.total if self._estimator.scoring in (None, "r2") else sums.residual
            if (sums.rounding <= SCORE_ERROR * size).all():
                return sums
        rows = rows_of(self._splits[fold.number].test)
        return _sums_of_rows(blocks, rows, quadratic, minima, weighted=scored_weight is not None)

    def _scores_of_models(
        self, fold: FoldMoments, quadratic: Standardised, minima: Minima, candidates: list[Candidate]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores that take predictions, of models made from the coefficients."""
        found = np.all(minima.error <= PREDICTION_ERROR * quadratic.target_spread, axis=1)
        scores = np.full(len(candidates), np.nan)
        coef, intercept = quadratic.in_users_units(minima.coef)
        test = self._part(self._splits[fold.number].test)
        scorer = self._estimator._scorer()
        for index in found.nonzero()[0]:
            model = self._estimator._model(candidates[index])
            self._name_features(model)
            solution = Solution(
                coef=coef[index],
                intercept=intercept[index],
                rank=None,
                condition_number=None,
                solver="moments",
                status=Status.OPTIMAL,
                n_iter=1,
                error=0.0,
            )
            model._keep(solution, self._problem.blocks)
            scores[index] = scorer(model, test.X, test.y, **test.score_params)
        return found, scores

    def _data_of(self, number: int) -> _SplitData:
        split = self._splits[number]
        train = self._part(split.train_index(self._problem.blocks.n_samples))
        return _SplitData(train, self._part(split.test))

    def _part(self, index: np.ndarray) -> _Part:
        """Some rows of the user's data."""
        n_samples = self._problem.blocks.n_samples
        score_params = {
            name: _taken(value, index) if _n_rows(value) == n_samples else value
            for name, value in self._score_params.items()
        }
        weight = None if self._sample_weight is None else _taken(self._sample_weight, index)
        return _Part(_taken(self._X, index), _taken(self._y, index), weight, score_params)


class _Part(NamedTuple):
    """Rows in the user's own kind, and what their scorer is given."""

    X: Any
    y: Any
    sample_weight: Any
    score_params: dict[str, Any]


class _SplitData(NamedTuple):
    train: _Part
    test: _Part


def _fit_and_score(model: TorchLinearRegressor, data: _SplitData, scoring: Any) -> float:
    """Fit on the train rows and score on the test rows."""
    train, test = data
    model.fit(train.X, train.y, train.sample_weight)
    return float(check_scoring(model, scoring=scoring)(model, test.X, test.y, **test.score_params))


def _takes_weights(scorer: Any) -> bool:
    """Whether a scorer, or a function in its place, has a use for weights."""
    if hasattr(scorer, "_accept_sample_weight"):  # since scikit-learn 1.8
        return bool(scorer._accept_sample_weight())
    return "sample_weight" in signature(getattr(scorer, "_score_func", scorer)).parameters


def _taken(values: Any, index: np.ndarray) -> Any:
    """Rows of any data kind."""
    if isinstance(values, torch.Tensor):
        return values[torch.from_numpy(index).to(values.device)]
    return _safe_indexing(values, index)


def _n_rows(values: Any) -> int | None:
    if hasattr(values, "shape") and values.shape:
        return int(values.shape[0])
    return len(values) if isinstance(values, (list, tuple)) else None


class _Sums(NamedTuple):
    """Weighted sums over test rows, for each candidate and target."""

    residual: np.ndarray  # squared residuals; shape: (n_candidates, n_targets)
    total: np.ndarray  # squared deviations from the mean; shape: (n_targets,)
    weight_sum: float
    rounding: np.ndarray | float  # of `residual`

    @property
    def root_mean_square(self) -> np.ndarray:
        """Of the residuals."""
        return np.sqrt(np.maximum(self.residual, 0.0) / self.weight_sum)

    def score(self, scoring: str | None) -> np.ndarray:
        """The scores of scikit-learn's metrics, shape (n_candidates,)."""
        if scoring == "neg_mean_squared_error":
            return -(self.residual / self.weight_sum).mean(1)
        if scoring == "neg_root_mean_squared_error":
            return -self.root_mean_square.mean(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = self.residual / self.total
        # Of a constant target, R2 is 1 for a perfect prediction and 0 for any other.
        return 1 - np.where(self.total > 0, share, np.where(self.residual > 0, 1.0, 0.0)).mean(1)


def _sums_of_moments(test: Moments, quadratic: Standardised, minima: Minima) -> _Sums:
    raw = symmetric(test.raw).cpu().numpy()
    weight_sum = float(raw[0, 0])
    n_features = len(quadratic.unit)
    mean = raw[0, 1:] / weight_sum
    scatter = raw[1:, 1:] - weight_sum * np.outer(mean, mean)
    inside, targets = slice(0, n_features), slice(n_features, None)
    unit = quadratic.unit[:, None]
    coef = minima.coef / unit
    apart = mean - quadratic.mean
    mean_residual = apart[targets] - np.einsum("j,ajk->ak", apart[inside], coef)
    cross = np.einsum("jk,ajk->ak", scatter[inside, targets], coef)
    flat = coef.transpose(0, 2, 1).reshape(-1, n_features)
    explained = ((flat @ scatter[inside, inside]) * flat).sum(1).reshape(cross.shape)
    total = scatter.diagonal()[targets]
    residual = total - 2 * cross + explained + weight_sum * mean_residual**2
    root = np.sqrt(raw.diagonal()[1:])
    size = root[targets] + np.einsum("j,ajk->ak", root[inside], np.abs(coef))
    return _Sums(residual, total, weight_sum, GRAM_ROUNDOFF * size**2)


def _sums_of_rows(
    blocks: RowBlocks, rows: Rows, quadratic: Standardised, minima: Minima, *, weighted: bool
) -> _Sums:
    """The same from residuals of the rows."""
    n_features = len(quadratic.unit)
    flat, _ = quadratic.in_users_units(minima.coef)
    flat = flat.transpose(1, 0, 2).reshape(n_features, -1)
    shape = minima.coef.shape[::2]
    coef = torch.from_numpy(np.ascontiguousarray(flat)).to(blocks.device)
    center = torch.from_numpy(quadratic.shift + quadratic.mean).to(blocks.device)
    parts = []
    for block in rows.blocks_of(blocks, blocks.rows_per_block):
        parts.append(_residuals(block, coef, center, shape[0]))
    residual = torch.cat([part[0] for part in parts])
    y = torch.cat([part[1] for part in parts])
    weight = torch.ones_like(y[:, 0])
    if weighted and parts[0][2] is not None:
        weight = torch.cat([part[2] for part in parts if part[2] is not None])
    weight_sum = float(weight.sum())
    deviation = y - (weight @ y) / weight_sum
    return _Sums(
        (weight @ residual.square_()).cpu().numpy().reshape(shape),
        (weight @ deviation.square()).cpu().numpy(),
        weight_sum,
        0.0,
    )


def _residuals(
    block: Block, coef: torch.Tensor, center: torch.Tensor, n_candidates: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Residuals of all candidates and targets, y, and the weights."""
    n_features = len(coef)
    X = torch.from_numpy(block.csr.toarray()) if block.csr is not None else block.X
    assert X is not None
    prediction = (X.to(torch.float64) - center[:n_features]) @ coef
    y = block.y - center[n_features:]
    return y.repeat(1, n_candidates) - prediction, y, block.weight
