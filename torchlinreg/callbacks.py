"""Callbacks of our own on scikit-learn's protocol: the history of the coefficients, and checkpoints.

They are set with ``TorchLinearRegressor(...).set_callbacks(...)``, beside those of `sklearn.callback`, and
need scikit-learn 1.9 or later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from torchlinreg._training.checkpoint import write_atomically

__all__ = ["Checkpoint", "CoefficientHistory"]


class _EpochCallback:
    """What both callbacks need of the protocol: the end of every `every`-th epoch."""

    def __init__(self, every: int) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every={every!r} must be an integer, 1 or more: a number of epochs.")
        self.every = every

    def setup(self, estimator: Any, context: Any) -> None:
        """Do nothing before the fit."""

    def teardown(self, estimator: Any, context: Any) -> None:
        """Do nothing after the fit."""

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        """Do nothing before an epoch."""

    def on_fit_task_end(self, estimator: Any, context: Any, *, fitted_estimator: Any = None) -> None:
        """Record the epoch, if it is one and its turn has come."""
        if context.task_name == "epoch" and fitted_estimator.n_iter_ % self.every == 0:
            self._record(fitted_estimator)

    def _record(self, fitted_estimator: Any) -> None:
        raise NotImplementedError


class CoefficientHistory(_EpochCallback):
    """Keep the coefficients after each epoch, or every so many.

    Parameters
    ----------
    every : int, default=1
        Keep those of every `every`-th epoch.

    Attributes
    ----------
    epochs_ : list of int
        The epochs kept, from 1 on, of the last fit.
    coef_ : ndarray of shape (n_kept, n_features) or (n_kept, n_targets, n_features)
        Coefficients after each of these epochs, in the user's units.
    intercept_ : ndarray of shape (n_kept,) or (n_kept, n_targets)
        Intercepts after each of these epochs.

    Raises
    ------
    ValueError
        `every` is not a positive integer.

    See Also
    --------
    Checkpoint : Keeps all of the training state, in a file.

    Examples
    --------
    >>> from torchlinreg import TorchLinearRegressor
    >>> from torchlinreg.callbacks import CoefficientHistory
    >>> history = CoefficientHistory()
    >>> reg = TorchLinearRegressor(solver="sgd", learning_rate=0.1, max_iter=3, tol=0)
    >>> reg = reg.set_callbacks(history).fit([[1.0], [-1.0]], [2.0, -2.0])  # doctest: +SKIP
    >>> history.coef_[:, 0]  # doctest: +SKIP
    array([0.2  , 0.38 , 0.542])
    """

    def __init__(self, every: int = 1) -> None:
        super().__init__(every)
        self._forget()

    def _forget(self) -> None:
        self.epochs_: list[int] = []
        self._coefs: list[np.ndarray] = []
        self._intercepts: list[Any] = []

    def setup(self, estimator: Any, context: Any) -> None:
        """Forget the fit before.

        Parameters
        ----------
        estimator : TorchLinearRegressor
            Whose fit begins.
        context : sklearn.callback.CallbackContext
            The root of its tasks.
        """
        self._forget()

    @property
    def coef_(self) -> np.ndarray:
        """Coefficients after each epoch kept."""
        return np.array(self._coefs)

    @property
    def intercept_(self) -> np.ndarray:
        """Intercepts after each epoch kept."""
        return np.array(self._intercepts)

    def _record(self, fitted_estimator: Any) -> None:
        self.epochs_.append(fitted_estimator.n_iter_)
        self._coefs.append(fitted_estimator.coef_)
        self._intercepts.append(fitted_estimator.intercept_)


class Checkpoint(_EpochCallback):
    """Write the state of training to a file every so many epochs, from which `fit` can go on.

    The file is replaced at once: whenever the process is killed, the file holds the last state that was
    written in full. ``fit(X, y, resume_from=path)`` with the same data and parameters then follows the
    trajectory that an uninterrupted fit would have followed, bit by bit on the same machine.

    Parameters
    ----------
    path : str or path
        The file; its folder has to exist.
    every : int, default=100
        Write after every `every`-th epoch.

    Raises
    ------
    ValueError
        `every` is not a positive integer.

    See Also
    --------
    CoefficientHistory : Keeps the coefficients only, in memory.

    Notes
    -----
    The file holds a format number, a checksum, and tensors, numbers and lists as `torch.save` writes them; it
    is read without running code from it.

    Examples
    --------
    >>> from torchlinreg import TorchLinearRegressor
    >>> from torchlinreg.callbacks import Checkpoint
    >>> reg = TorchLinearRegressor(solver="adam", batch_size=64, random_state=0)
    >>> reg = reg.set_callbacks(Checkpoint("training.pt", every=10))  # doctest: +SKIP
    >>> reg.fit(X, y)  # killed half-way  # doctest: +SKIP
    >>> reg.fit(X, y, resume_from="training.pt")  # doctest: +SKIP
    """

    def __init__(self, path: str | Path, every: int = 100) -> None:
        super().__init__(every)
        self.path = path

    def _record(self, fitted_estimator: Any) -> None:
        write_atomically(fitted_estimator._training_state(), Path(self.path))
