"""Parameters of a loss object, set through the estimator that holds it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

from sklearn.base import BaseEstimator

from torchlinreg.losses import Loss


class LossParametersMixin(BaseEstimator):
    """`set_params` for estimators with a `loss`, which it replaces; `BaseEstimator` changes it in place."""

    loss: Any

    def set_params(self, **params: Any) -> Self:
        """Set parameters, also those of a loss object, as in ``loss__quantile=0.9``.

        Parameters
        ----------
        **params : dict
            Parameters by name. Since losses are immutable, `loss` becomes a new object.

        Returns
        -------
        self : estimator
            The estimator.

        Raises
        ------
        ValueError
            There is no such parameter.
        """
        of_loss = {name: value for name, value in params.items() if name.startswith("loss__")}
        super().set_params(**{name: value for name, value in params.items() if name not in of_loss})
        if not of_loss:
            return self
        known = self.loss.get_params() if isinstance(self.loss, Loss) else {}
        unknown = [name for name in of_loss if name.removeprefix("loss__") not in known]
        if unknown:
            hint = (
                f"has {sorted(known)}" if known else "has none; objects of torchlinreg.losses may have some"
            )
            raise ValueError(f"Invalid parameter {unknown[0]!r}: loss={self.loss!r} {hint}.")
        assert isinstance(self.loss, Loss)
        self.loss = replace(self.loss, **{k.removeprefix("loss__"): value for k, value in of_loss.items()})
        return self
