"""scikit-learn's callback protocol, where the installed version has it, and what is told of an epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sklearn

from torchlinreg._training.loop import Epoch

__all__ = ["DECORATOR_FRAMES", "CallbackSupportMixin", "EpochReport", "with_callbacks"]

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks

    DECORATOR_FRAMES = 1  # that with_callbacks puts between a caller and the method
except ImportError:  # before scikit-learn 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands in for scikit-learn's."""

        def set_callbacks(self, *callbacks: Any) -> None:
            """Refuse callbacks."""
            raise NotImplementedError(
                f"Callbacks need scikit-learn 1.9 or later; {sklearn.__version__} is installed."
            )

    def with_callbacks(method: Callable[..., Any]) -> Callable[..., Any]:
        """Leave the method as it is."""
        return method

    DECORATOR_FRAMES = 0


class EpochReport:
    """Tells scikit-learn's callbacks, and with `verbose` the user, about each epoch of a fit.

    Parameters
    ----------
    estimator : TorchLinearRegressor
        Whose `fit` begins.
    X, y, sample_weight : object
        What `fit` was given.
    max_iter : int
        The most epochs; 0 for solvers that do not train.
    """

    def __init__(self, estimator: Any, X: Any, y: Any, sample_weight: Any, max_iter: int) -> None:
        self._estimator = estimator
        self._data: dict[str, Any] = {"X": X, "y": y}
        if sample_weight is not None:
            self._data["metadata"] = {"sample_weight": sample_weight}
        self._context = None
        if hasattr(estimator, "_skl_callbacks") or hasattr(estimator, "_parent_callback_ctx"):
            self._context = estimator._init_callback_context(max_subtasks=max_iter)
            self._context.call_on_fit_task_begin(estimator=estimator, **self._data)
        self._verbose = int(estimator.verbose)

    @property
    def listens(self) -> bool:
        """Whether anyone wants to know of single epochs."""
        return self._context is not None or self._verbose > 0

    def epoch(self, epoch: Epoch, fitted: Callable[[], dict[str, Any]]) -> bool:
        """Report an epoch, of which `fitted` makes the attributes; whether a callback asks to stop."""
        if self._verbose > 1 or (self._verbose and str(epoch.number).rstrip("0") in ("1", "2", "5")):
            validation = "" if epoch.validation_loss is None else f", validation {epoch.validation_loss:.6g}"
            print(f"TorchLinearRegressor: epoch {epoch.number}, loss {epoch.loss:.6g}{validation}")
        if self._context is None:
            return False
        task = self._context.subcontext(task_name="epoch")
        task.call_on_fit_task_begin(estimator=self._estimator, **self._data)
        return bool(
            task.call_on_fit_task_end(
                estimator=self._estimator, reconstruction_attributes=fitted, **self._data
            )
        )

    def end(self) -> None:
        """Report that the estimator is fitted."""
        if self._context is not None:
            fitted = {key: value for key, value in vars(self._estimator).items() if key.endswith("_")}
            self._context.call_on_fit_task_end(
                estimator=self._estimator, reconstruction_attributes=fitted, **self._data
            )
