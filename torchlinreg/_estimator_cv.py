"""`TorchLinearRegressorCV`: chooses the penalty's strength by cross-validation, from moments of the folds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from inspect import signature
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn import get_config
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.metrics import check_scoring
from sklearn.model_selection import check_cv
from sklearn.utils import Tags, indexable
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.validation import check_is_fitted

from torchlinreg._checks import as_numbers, check_number
from torchlinreg._data.rows import as_row_blocks, check_features
from torchlinreg._estimator import TorchLinearRegressor
from torchlinreg._parameters import LossParametersMixin
from torchlinreg._selection.folds import splits_of
from torchlinreg._selection.path import check_grid
from torchlinreg._selection.search import Candidate, Scores, Search, SearchParameters
from torchlinreg._training.optimizers import is_training
from torchlinreg.losses import Loss


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
        1.9; with metadata routing enabled, those that request it, and R2 for None. If a split tests a single
        row, as those of `LeaveOneOut`, of which R2 is not defined, None and ``"r2"`` give R2 of the
        predictions for the test rows of all splits together, as `RidgeCV` does. R2 is about the mean:
        for quantiles, use `sklearn.metrics.mean_pinball_loss` in `make_scorer`.
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
        on, ``mean_test_score``, ``std_test_score`` and ``rank_test_score``. If R2 is pooled (see `scoring`),
        the scores of single splits and their deviation are NaN. Given `alphas` come in the order
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
    digits of a score (test rows far along directions in which the training rows hardly vary, several optima,
    nearly perfect fits), for other losses, and for more than twice as many features as rows (with an l1
    penalty, from about 1800 features on), combinations are fitted and scored as by `GridSearchCV`, on
    `n_jobs`. float32 data are scored in float64, without the rounding of a float32 model.

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
        given = as_row_blocks(X, y, sample_weight, device=self.device, estimator=self)
        if y is None:
            raise ValueError(
                f"This {type(self).__name__} estimator requires y to be passed, but the target y is None."
            )
        check_features(self, X, reset=True)
        if isinstance(sample_weight, Real) or getattr(sample_weight, "ndim", 1) == 0:
            sample_weight = np.full(given.n_samples, float(sample_weight))
        X, y, sample_weight = indexable(X, y, sample_weight)
        split_params, score_params = self._routed(sample_weight, params)
        cv = check_cv(self.cv, y)
        splits = splits_of(cv.split(X, y, **split_params), given.n_samples)
        template = self._model(Candidate(0.0, 0.0))
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(self, name):
                setattr(template, name, getattr(self, name))
        ratios = [float(value) for value in self._l1_ratios()]
        search = Search(
            template,
            SearchParameters(type(self).__name__, ratios, self.scoring, self.n_jobs),
            X,
            y,
            sample_weight,
            given,
            splits,
            score_params,
        )
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
        if np.ndim(self.l1_ratio) > 1 or not self._l1_ratios():
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
        ratios: Any = self.l1_ratio  # anything, until it is checked
        if isinstance(ratios, torch.Tensor):
            ratios = ratios.tolist()
        return [ratios] if np.ndim(ratios) == 0 else list(ratios)

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
        if weights and not (self.scoring is None or _takes_weights(self._scorer())):
            warnings.warn(
                f"scoring={self.scoring!r} has no use for sample_weight, which then counts in the fits only.",
                UserWarning,
                stacklevel=3,
            )
            weights = {}
        return {"groups": params.get("groups")}, weights

    def _candidates(self, search: Search) -> tuple[list[Candidate], np.ndarray]:
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

    def _keep_scores(self, candidates: list[Candidate], scores: Scores) -> None:
        """Set `cv_results_` and what is best in it, as `GridSearchCV` does."""
        mean, deviation = scores.mean, scores.splits.std(1)
        unknown = ~np.isfinite(mean)
        if unknown.any():
            warnings.warn(
                f"The mean test scores of {unknown.sum()} of {len(mean)} candidates are not finite; R2 needs "
                "two test rows at least, for example. The first of the best others, if any, is taken.",
                UserWarning,
                stacklevel=3,
            )
        ranked = mean if np.isnan(mean).all() else np.where(np.isnan(mean), np.nanmin(mean) - 1, mean)
        rank = rankdata(-np.nan_to_num(ranked), method="min").astype(np.int32)
        self.cv_results_ = {
            "params": [candidate._asdict() for candidate in candidates],
            "param_alpha": np.array([candidate.alpha for candidate in candidates]),
            "param_l1_ratio": np.array([candidate.l1_ratio for candidate in candidates]),
            **{f"split{number}_test_score": column for number, column in enumerate(scores.splits.T)},
            "mean_test_score": mean,
            "std_test_score": deviation,
            "rank_test_score": rank,
        }
        self.best_index_ = int(rank.argmin())
        self.best_score_ = float(mean[self.best_index_])


def _takes_weights(scorer: Any) -> bool:
    """Whether a scorer, or a function in its place, has a use for weights."""
    if hasattr(scorer, "_accept_sample_weight"):  # since scikit-learn 1.8
        return bool(scorer._accept_sample_weight())
    return "sample_weight" in signature(getattr(scorer, "_score_func", scorer)).parameters
