"""How `TorchLinearRegressorCV` searches: by moments of the folds where they suffice, else by fits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import copy
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from sklearn.metrics import check_scoring
from sklearn.utils import _safe_indexing
from sklearn.utils.parallel import Parallel, delayed

from torchlinreg._data.rows import RowBlocks
from torchlinreg._linalg.threads import torch_first
from torchlinreg._moments.moments import Frame, Moments, choose_frame
from torchlinreg._moments.standardised import Standardised
from torchlinreg._objective.penalty import Penalty, penalty_of
from torchlinreg._objective.problem import Problem, moments_to_keep
from torchlinreg._objective.solution import Solution, Status
from torchlinreg._selection.folds import MOMENTS_BYTES, FoldMoments, Split, fold_moments, moments_of, rows_of
from torchlinreg._selection.path import (
    Minima,
    alpha_grid,
    largest_alpha,
    minima_of,
    quadratic_of,
    sharing_moments,
)
from torchlinreg._selection.scores import (
    Sums,
    rounding_of_predictions,
    seen_by,
    sums_of_moments,
    sums_of_rows,
)
from torchlinreg._solvers import choose_solver, solve
from torchlinreg.losses import as_loss

# What moments can score; everything else takes predictions.
MOMENT_SCORES = (None, "r2", "neg_mean_squared_error", "neg_root_mean_squared_error")
MOMENT_SOLVERS = ("auto", "cholesky", "active_set")
# A score from moments may be off by this: relatively for squared errors, absolutely for R2.
SCORE_ERROR = 1e-10
# Predictions for other scores may be off by this share of the residuals, and of y.
PREDICTION_ERROR = 3e-11
# Gram matrices of more columns than this many times the rows cost more than fits by the rows.
MOST_COLUMNS_PER_ROW = 2


class Candidate(NamedTuple):
    """A strength and kind of the penalty."""

    alpha: float
    l1_ratio: float


class Regressor(Protocol):
    """What a search copies, sets and fits: the parameters and methods of `TorchLinearRegressor` it needs."""

    loss: Any
    alpha: float
    l1_ratio: float
    penalty_factor: Any
    positive: bool
    bounds: Any
    fit_intercept: bool
    solver: Any
    max_iter: int | None
    tol: float
    _moments: Any
    _optimizer_state: Any

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit the model."""

    def predict(self, X: Any) -> Any:
        """Predict for rows."""

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R2 of the prediction."""

    def _keep(self, solution: Solution, problem: Problem, extra_frames: int = 0) -> None:
        """Set the fitted attributes."""


class SearchParameters(NamedTuple):
    """How `TorchLinearRegressorCV` searches."""

    name: str  # the estimator's, for the errors of non-finite data
    l1_ratios: list[float]
    scoring: str | Callable[..., float] | None
    n_jobs: int | None


class Scores(NamedTuple):
    """Test scores of candidates."""

    splits: np.ndarray  # NaN where test rows are pooled; shape: (n_candidates, n_splits)
    mean: np.ndarray  # or that of all test rows together; shape: (n_candidates,)


class Search:
    """Scores of candidates: from moments of the folds where they suffice, else from fits."""

    def __init__(
        self,
        template: Regressor,
        search: SearchParameters,
        X: Any,
        y: Any,
        sample_weight: Any,
        given: RowBlocks,
        splits: list[Split],
        score_params: dict[str, Any],
    ) -> None:
        self._template = template
        self._search = search
        blocks = given.with_ordinary_weights()
        self._is_given = blocks.weight is given.weight
        self._X = X
        self._y = y
        self._sample_weight = sample_weight
        self._splits = splits
        self._score_params = score_params
        self._penalty = penalty_of(
            blocks.n_features, 1.0, 0.0, template.penalty_factor, bool(template.positive), template.bounds
        )
        self._problem = Problem(
            blocks,
            self._penalty,
            bool(template.fit_intercept),
            search.name,
            as_loss(template.loss),
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
        if self._is_pooled and not self._pool[1].any():
            raise ValueError("All rows that the splits test have a sample_weight of zero. Use another cv.")
        for number, split in enumerate(self._splits):
            parts = {"trains on": split.train_index(len(counts))}
            if "sample_weight" in self._score_params and not self._is_pooled:
                parts["tests"] = split.test
            for what, index in parts.items():
                if not counts[index].any():
                    raise ValueError(
                        f"All rows that split {number} {what} have a sample_weight of zero. Use another cv."
                    )

    def grid(self, l1_ratio: float, eps: float, n_alphas: int) -> np.ndarray:
        """Falling strengths for an l1 ratio, from all rows."""
        problem = self._problem
        single = sharing_moments(problem, self._at(Candidate(1.0, l1_ratio)))
        quadratic = None
        if self._folds is not None:
            quadratic = quadratic_of(problem.moments, problem.blocks.n_features, problem.fit_intercept)
        return alpha_grid(largest_alpha(single, quadratic, l1_ratio), l1_ratio, eps, n_alphas)

    def scores(self, candidates: list[Candidate]) -> Scores:
        """Test scores of the candidates."""
        n_values = self._problem.blocks.n_targets if self._is_pooled else 1
        values = np.empty((len(candidates), len(self._splits), n_values))
        missing = np.ones(values.shape[:2], dtype=bool)
        # Neighbours in this order are alike, so that one is a good start for the next.
        order = sorted(range(len(candidates)), key=lambda i: (candidates[i].l1_ratio, -candidates[i].alpha))
        ordered = [candidates[index] for index in order]
        penalties = [self._at(candidate) for candidate in ordered]
        for penalty in (penalties[0], penalties[-1]):  # of the extreme l1 ratios: the solver must serve them
            choose_solver(self._template.solver, sharing_moments(self._problem, penalty))
        for fold in self._folds or ():
            is_found, column = self._scores_of(fold, ordered, penalties)
            values[order, fold.number] = column
            missing[order, fold.number] = ~is_found
        jobs = np.argwhere(missing.T)  # by split, then by candidate
        self.n_fits = len(jobs)
        if self.n_fits:
            fits = self._fits(candidates, jobs)
            found = Parallel(n_jobs=self._search.n_jobs, prefer="threads")(fits)
            values[jobs[:, 1], jobs[:, 0]] = np.reshape(found, (len(jobs), n_values))
        if not self._is_pooled:
            return Scores(values[:, :, 0], values[:, :, 0].mean(1))
        return Scores(np.full(values.shape[:2], np.nan), self._pooled_score(values.sum(1)))

    @cached_property
    def _is_pooled(self) -> bool:
        """Whether R2 is of the predictions for all test rows together: it is not defined for a single row."""
        return self._is_r2 and any(len(split.test) < 2 for split in self._splits)

    @cached_property
    def _pool(self) -> tuple[np.ndarray, np.ndarray]:
        """Targets of all test rows, and their weights in the score."""
        tested = np.concatenate([split.test for split in self._splits])
        return self._targets(tested), self._score_weights(tested)

    def _pooled_score(self, residual: np.ndarray) -> np.ndarray:
        """R2 from squared residuals of all test rows, shape (n_candidates, n_targets)."""
        y, weight = self._pool
        if len(y) < 2:
            return np.full(len(residual), np.nan)
        return Sums(residual, self._pooled_total, float(weight.sum()), 0.0, 0.0).score(None)

    @cached_property
    def _pooled_total(self) -> np.ndarray:
        """Squared deviations of all test targets from their means, shape (n_targets,)."""
        y, weight = self._pool
        return weight @ (y - np.average(y, 0, weight)) ** 2

    def _targets(self, index: np.ndarray) -> np.ndarray:
        """Targets of some rows, shape (n_rows, n_targets)."""
        y = self._problem.blocks.y
        return y[torch.from_numpy(index).to(y.device)].cpu().numpy()

    def _score_weights(self, index: np.ndarray) -> np.ndarray:
        """Weights of some rows in the scores."""
        weight = self._problem.blocks.weight
        if weight is None or not self._weighs_scores:
            return np.ones(len(index))
        return weight[torch.from_numpy(index).to(weight.device)].cpu().numpy()

    def _fits(self, candidates: list[Candidate], jobs: np.ndarray) -> Iterator[Any]:
        """Calls that fit and score, of candidates on splits; the rows of a split are copied once."""
        for number, of_split in groupby(jobs, key=lambda job: int(job[0])):
            data = self._data_of(number)
            test = self._splits[number].test
            for _, index in of_split:
                model = self._model(candidates[index])
                if self._is_pooled:
                    truth = self._targets(test), self._score_weights(test)
                    yield delayed(_fit_and_sum_squares)(model, data, *truth)
                else:
                    yield delayed(_fit_and_score)(model, data, self._search.scoring)

    def fitted(self, candidate: Candidate) -> Regressor:
        """A candidate fitted to all rows, from the moments if there are any."""
        model = self._model(candidate)
        if self._folds is None:
            return model.fit(self._X, self._y, self._sample_weight)
        problem = sharing_moments(self._problem, self._at(candidate))
        solution = solve(model.solver, problem, float(model.tol), model.max_iter)
        model._optimizer_state = None
        model._moments = None
        if self._is_given:
            model._moments = moments_to_keep((problem,), solution.condition_number)
        model._keep(solution, problem, extra_frames=1)
        return model

    def _model(self, candidate: Candidate) -> Regressor:
        """The estimator of a candidate, not fitted."""
        model = copy(self._template)
        model.alpha, model.l1_ratio = candidate
        return model

    def _at(self, candidate: Candidate) -> Penalty:
        """The penalty of a candidate."""
        whole = self._penalty.times(candidate.alpha)
        l1, l2 = whole.l2 * candidate.l1_ratio, whole.l2 * (1 - candidate.l1_ratio)
        return Penalty(l1, l2, whole.lower, whole.upper)

    def _open_folds(self) -> Iterable[FoldMoments] | None:
        """Moments of the folds, or None where they would not serve; sets those of all rows."""
        problem = self._problem
        blocks = problem.blocks
        n_train = min(
            blocks.n_samples - len(split.test) if split.train is None else len(split.train)
            for split in self._splits
        )
        if problem.loss.kind != "quadratic" or self._template.solver not in MOMENT_SOLVERS:
            return None
        if len(problem.by_targets) > 1:
            return None
        n_bytes = 16 * len(self._splits) * (1 + blocks.n_features + blocks.n_targets) ** 2
        sparse_and_small = n_bytes <= MOMENTS_BYTES and all(ratio > 0 for ratio in self._search.l1_ratios)
        if blocks.n_features > MOST_COLUMNS_PER_ROW * n_train and not sparse_and_small:
            return None
        frame = choose_frame(blocks, fit_intercept=problem.fit_intercept)
        if frame.scale is not None:
            return None
        is_small = n_bytes <= MOMENTS_BYTES
        folds = self._folds_in(frame, is_small)
        if is_small and self._splits[0].trains_on_rest:
            first = next(iter(folds))
            total = Moments.merge(first.train, first.test)
            if total.is_sound and not (problem.fit_intercept and len(total.far_columns)):
                problem.__dict__["moments"] = total
        found = problem.moments.frame
        if found.scale is not None:
            return None
        return folds if torch.equal(found.shift, frame.shift) else self._folds_in(found, is_small)

    def _folds_in(self, frame: Frame, is_small: bool) -> Iterable[FoldMoments]:
        """Moments of the folds in a frame; small ones are kept."""
        folds = fold_moments(self._problem.blocks, frame, self._splits)
        return list(folds) if is_small else folds

    def _scores_of(
        self, fold: FoldMoments, candidates: list[Candidate], penalties: list[Penalty]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which candidates were scored from the moments, and their scores on one split.

        These have shape (n_candidates, 1). If test rows are pooled, they are squared residuals of shape
        (n_candidates, n_targets).
        """
        blocks = self._problem.blocks
        none = np.zeros(len(candidates), dtype=bool), np.full((len(candidates), 1), np.nan)
        quadratic = quadratic_of(fold.train, blocks.n_features, self._problem.fit_intercept)
        if quadratic is None:
            return none
        test = self._scored(fold)
        if self._is_pooled and float(test.raw[0, 0]) == 0:
            return ~none[0], np.zeros((len(candidates), 1))  # rows without weight
        minima = minima_of(quadratic, penalties, seen_by(test, quadratic))
        scoring = self._search.scoring
        sums = self._sums(fold.number, test, quadratic, minima)
        # The estimator's own predictions are rounded as well.
        error = minima.error + rounding_of_predictions(test, quadratic, minima)
        if not (scoring is None or isinstance(scoring, str)) or scoring not in MOMENT_SCORES:
            size = np.minimum(sums.root_mean_square, quadratic.target_spread)
            found = np.all(error <= PREDICTION_ERROR * size, axis=1)
            scores = self._scores_of_models(fold.number, quadratic, minima, candidates, found)
            return found, scores[:, None]
        error = sums.rounding + sums.weight_sum * error * (2 * sums.root_mean_square + error)
        # Also false for NaN.
        found = np.all(error <= SCORE_ERROR * self._size(sums), axis=1)
        return found, sums.residual if self._is_pooled else sums.score(scoring)[:, None]

    @property
    def _weighs_scores(self) -> bool:
        """Whether weights of the rows, if there are any, count in the scores."""
        return self._problem.blocks.weight is None or "sample_weight" in self._score_params

    @property
    def _is_r2(self) -> bool:
        scoring = self._search.scoring
        return scoring is None or (isinstance(scoring, str) and scoring == "r2")

    def _scored(self, fold: FoldMoments) -> Moments:
        """Moments of the test rows as the scores weigh them."""
        if self._weighs_scores:
            return fold.test
        of_rows = moments_of(self._problem.blocks, fold.test.frame, weighted=False)
        return of_rows(rows_of(self._splits[fold.number].test))

    def _size(self, sums: Sums) -> np.ndarray:
        """What errors of the squared residuals are relative to."""
        if self._is_pooled:
            return np.maximum(sums.residual, self._pooled_total * sums.weight_sum / self._pool[1].sum())
        return np.maximum(sums.residual, sums.total) if self._is_r2 else sums.residual

    def _sums(self, number: int, test: Moments, quadratic: Standardised, minima: Minima) -> Sums:
        """Squared residuals and deviations of the test rows, from moments where they leave enough digits."""
        blocks = self._problem.blocks
        n_models = minima.coef.shape[0] * minima.coef.shape[2]
        if test.n_samples > min(n_models, blocks.n_features):
            with torch_first():
                sums = sums_of_moments(test, quadratic, minima)
            known = minima.error < np.inf
            enough = (sums.rounding <= SCORE_ERROR * self._size(sums)) | ~known
            if self._is_r2 and not self._is_pooled:
                enough &= sums.total_rounding <= SCORE_ERROR * sums.total
            if enough.all():
                return sums
        rows = rows_of(self._splits[number].test)
        return sums_of_rows(blocks, rows, quadratic, minima, weighted=self._weighs_scores)

    def _scores_of_models(
        self,
        number: int,
        quadratic: Standardised,
        minima: Minima,
        candidates: list[Candidate],
        found: np.ndarray,
    ) -> np.ndarray:
        """Scores that take predictions, of models made from coefficients that were found."""
        scores = np.full(len(candidates), np.nan)
        coef, intercept = quadratic.in_users_units(minima.coef)
        test = self._test_part(self._splits[number])
        scorer = check_scoring(self._template, scoring=self._search.scoring)
        for index in found.nonzero()[0]:
            model = self._model(candidates[index])
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
            model._keep(solution, self._problem)
            scores[index] = scorer(model, test.X, test.y, **test.score_params)
        return scores

    def _data_of(self, number: int) -> _SplitData:
        split = self._splits[number]
        train = self._part(split.train_index(self._problem.blocks.n_samples))
        return _SplitData(train, self._test_part(split))

    def _test_part(self, split: Split) -> _Part:
        """The test rows, of which tensors come to the CPU: scikit-learn's scorers read arrays."""
        X, y, weight, score_params = self._part(split.test)
        score_params = {name: _off_device(value) for name, value in score_params.items()}
        return _Part(_off_device(X), _off_device(y), weight, score_params)

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


def _fit_and_score(model: Regressor, data: _SplitData, scoring: Any) -> float:
    """Fit on the train rows and score on the test rows."""
    train, test = data
    model.fit(train.X, train.y, train.sample_weight)
    return float(check_scoring(model, scoring=scoring)(model, test.X, test.y, **test.score_params))


def _fit_and_sum_squares(model: Regressor, data: _SplitData, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Fit on the train rows and sum squared residuals of the test rows, for each target."""
    train, test = data
    model.fit(train.X, train.y, train.sample_weight)
    predicted = np.asarray(model.predict(test.X), dtype=np.float64)
    return weight @ (y - predicted.reshape(y.shape)) ** 2


def _taken(values: Any, index: np.ndarray) -> Any:
    """Rows of any data kind."""
    if isinstance(values, torch.Tensor):
        return values[torch.from_numpy(index).to(values.device)]
    return _safe_indexing(values, index)


def _off_device(values: Any) -> Any:
    return values.cpu() if isinstance(values, torch.Tensor) else values


def _n_rows(values: Any) -> int | None:
    if hasattr(values, "shape") and values.shape:
        return int(values.shape[0])
    return len(values) if isinstance(values, (list, tuple)) else None
