"""Losses of a prediction against a target: value, derivative and curvature, elementwise.

A loss is given to `TorchLinearRegressor` by its name in `LOSSES`, with default parameters, as an object of
this module, or as any function ``(prediction, target) -> losses`` made of torch operations. The objects are
immutable, compare by value, and give ``loss__epsilon`` and the like to searches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "LOSSES",
    "AbsoluteError",
    "EpsilonInsensitive",
    "Huber",
    "LogCosh",
    "Loss",
    "Quantile",
    "SquaredEpsilonInsensitive",
    "SquaredError",
]


# The next predictions are so much larger, relatively to themselves and to typical targets. Much closer to 0,
# second derivatives are rounding over the distance, and squares underflow.
_NEXT, _SMALLEST = 8 * 2.0**-52, 1e-100
# Second derivatives are compared with slopes so far beside that they would change by this share; those of so
# many rows farthest from their targets are tried first.
_BESIDE, _FARTHEST = 0.1, 16

Kind = Literal["quadratic", "smooth", "piecewise_linear"]


@dataclass(frozen=True)
class Loss:
    """What all losses share: parameters that searches can read, and what the solvers ask for.

    A loss of one's own is a frozen dataclass with `value`, `derivative` and `curvature`, all of tensors of
    one shape and elementwise, and convex in the prediction. It may say ``of_residual = True`` if only
    ``prediction - target`` counts, and ``curvature_is_stepwise = True`` if the curvature takes few values.

    Examples
    --------
    >>> from torchlinreg.losses import Huber
    >>> Huber(epsilon=2.0) == Huber(epsilon=2.0), Huber()
    (True, Huber(epsilon=1.35, scale='auto'))
    """

    kind: ClassVar[Kind] = "smooth"
    # Whether the curvature takes few values, as that of squares and lines put together; saves work.
    curvature_is_stepwise: ClassVar[bool] = False
    # Whether only ``prediction - target`` counts; targets far from 0 then cost no digits.
    of_residual: ClassVar[bool] = False

    def value(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss of each element.

        Parameters
        ----------
        prediction : Tensor
            Predictions.
        target : Tensor
            Targets, of the same shape.

        Returns
        -------
        Tensor
            Of that shape.
        """
        raise NotImplementedError

    def derivative(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The derivative by the prediction; where there is none, one between those of both sides.

        Parameters
        ----------
        prediction : Tensor
            Predictions.
        target : Tensor
            Targets, of the same shape.

        Returns
        -------
        Tensor
            Of that shape.
        """
        raise NotImplementedError

    def curvature(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The second derivative by the prediction; where there is none, one between those of both sides.

        Parameters
        ----------
        prediction : Tensor
            Predictions.
        target : Tensor
            Targets, of the same shape.

        Returns
        -------
        Tensor
            Of that shape.
        """
        raise NotImplementedError

    def expand(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value, derivative and curvature of each element.

        Parameters
        ----------
        prediction : Tensor
            Predictions.
        target : Tensor
            Targets, of the same shape.

        Returns
        -------
        tuple of Tensor
            Three, of that shape.
        """
        return (
            self.value(prediction, target),
            self.derivative(prediction, target),
            self.curvature(prediction, target),
        )

    def tangent(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Value and derivative of each element.

        Parameters
        ----------
        prediction : Tensor
            Predictions.
        target : Tensor
            Targets, of the same shape.

        Returns
        -------
        tuple of Tensor
            Two, of that shape.
        """
        return self.value(prediction, target), self.derivative(prediction, target)

    def derivative_by_scale(self, residual: Tensor) -> Tensor:
        """The derivative of ``s * loss(residual / s)`` by `s`, at 1, for losses that estimate a scale.

        Parameters
        ----------
        residual : Tensor
            ``prediction - target``.

        Returns
        -------
        Tensor
            Of that shape.
        """
        zero = torch.zeros_like(residual)
        return self.value(residual, zero) - residual * self.derivative(residual, zero)

    def pieces(self) -> PiecewiseLinear:
        """The slopes of a piecewise linear loss, and where they change.

        Returns
        -------
        PiecewiseLinear
            The slope on the left, the positions where it rises, and by how much.
        """
        raise NotImplementedError

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name, as scikit-learn's searches and `sklearn.base.clone` read them.

        Parameters
        ----------
        deep : bool, default=True
            Without meaning here; a loss holds no other objects.

        Returns
        -------
        dict
            Of what the loss was made with.
        """
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def estimates_scale(self) -> bool:
        """Whether a scale of the residuals is estimated together with the coefficients."""
        return False

    @property
    def is_central(self) -> bool:
        """Whether the optimum is in the middle of the targets, as a mean or median, and not a quantile."""
        if self.kind != "piecewise_linear":
            return True
        slope, _, jumps = self.pieces()
        return slope + sum(jumps) == -slope


class PiecewiseLinear(NamedTuple):
    """A convex piecewise linear function of ``t = target - prediction``, which is 0 at the first position.

    ``slope * (t - positions[0]) + sum_k jumps[k] * max(0, t - positions[k])``.
    """

    slope: float  # left of all positions; negative
    positions: tuple[float, ...]  # rising
    jumps: tuple[float, ...]  # of the slope; positive

    @property
    def least(self) -> float:
        """Its minimum, which is at one of the positions; at most 0."""
        return min(
            self.slope * (at - self.positions[0])
            + sum(jump * max(0.0, at - p) for p, jump in zip(self.positions, self.jumps, strict=True))
            for at in self.positions
        )


@dataclass(frozen=True)
class _Polyhedral(Loss):
    """A piecewise linear loss, all of which follows from its pieces."""

    of_residual: ClassVar[bool] = True
    kind: ClassVar[Kind] = "piecewise_linear"

    def value(self, prediction: Tensor, target: Tensor) -> Tensor:
        """See `Loss`."""
        slope, positions, jumps = self.pieces()
        residual = target - prediction
        result = slope * (residual - positions[0])
        for position, jump in zip(positions, jumps, strict=True):
            result += jump * (residual - position).clamp(min=0)
        return result

    def derivative(self, prediction: Tensor, target: Tensor) -> Tensor:
        """See `Loss`."""
        slope, positions, jumps = self.pieces()
        residual = target - prediction
        result = torch.full_like(residual, -slope)
        for position, jump in zip(positions, jumps, strict=True):
            result -= jump * ((residual > position) + 0.5 * (residual == position))
        return result

    def curvature(self, prediction: Tensor, target: Tensor) -> Tensor:
        """See `Loss`; 0."""
        return torch.zeros_like(prediction)


@dataclass(frozen=True)
class SquaredError(Loss):
    """Half the squared residual, ``(prediction - target)^2 / 2``, as in scikit-learn's `ElasticNet`.

    Examples
    --------
    >>> from torchlinreg import TorchLinearRegressor, losses
    >>> TorchLinearRegressor(loss=losses.SquaredError()).fit([[0.0], [1.0]], [1.0, 3.0]).coef_
    array([2.])
    """

    of_residual: ClassVar[bool] = True
    kind: ClassVar[Kind] = "quadratic"

    def value(self, prediction: Tensor, target: Tensor) -> Tensor:
        """See `Loss`."""
        return (prediction - target).square() / 2

    def derivative(self, prediction: Tensor, target: Tensor) -> Tensor:
        """See `Loss`."""
        return prediction - target

    def curvature(self, prediction: Tensor, target: Tensor) -> Tensor:
        """See `Loss`; 1."""
        return torch.ones_like(prediction)


@dataclass(frozen=True)
class Huber(Loss):
    """Squared near 0 and linear beyond, so that outliers pull with a bounded force.

    With the residual ``r`` and a scale ``s``, ``r^2 / 2`` up to ``|r| = epsilon * s``, and beyond
    ``epsilon * s * |r| - (epsilon * s)^2 / 2``. With ``scale="auto"`` the scale is estimated jointly, as
    `sklearn.linear_model.HuberRegressor` does: the objective's loss is then ``s / 2 + huber(r / s) * s`` and
    is minimised over `s` as well, which makes the fit independent of the units of y.
    ``HuberRegressor(alpha=a)``, which penalises ``a * ||coef||^2`` beside twice the sum of these losses, is
    ``alpha = a / sum(sample_weight)`` here.

    Parameters
    ----------
    epsilon : float, default=1.35
        Where the loss turns linear, in units of the scale; positive, with ``scale="auto"`` more than 1. For
        normal errors and their standard deviation as a fixed scale, 1.35 keeps 95 % of the efficiency of
        least squares. An estimated scale is 0.68 of that, since ``mean(min(|r| / s, epsilon)^2) = 1``, so
        that 1.35 keeps 89 % and 1.6 keeps 95 %.
    scale : float or "auto", default="auto"
        The scale of the residuals, in units of y, or ``"auto"`` to estimate it; `scale_` is then the
        estimate.

    References
    ----------
    Huber, Ronchetti (2009), Robust Statistics, 2nd edition, section 7.7 (the joint estimate).

    Examples
    --------
    >>> from torchlinreg import TorchLinearRegressor
    >>> X, y = [[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]], [0.0, 1.1, 1.9, 400.0, 4.0, 5.1]
    >>> TorchLinearRegressor(loss="huber").fit(X, y).coef_.round(1)
    array([1.])
    """

    of_residual: ClassVar[bool] = True
    curvature_is_stepwise: ClassVar[bool] = True
    epsilon: float = 1.35
    scale: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        least = 1 if self.scale == "auto" else 0
        _check(self, "epsilon", f"a number above {least}", lambda value: value > least)
        if not (isinstance(self.scale, str) and self.scale == "auto"):
            _check(self, "scale", "'auto' or a positive number", lambda value: value > 0)

    @property
    def estimates_scale(self) -> bool:
        """See `Loss`."""
        return self.scale == "auto"

    @property
    def threshold(self) -> float:
        """Where the loss turns linear, in units of y; of the scale, where that is estimated."""
        return self.epsilon * (1.0 if isinstance(self.scale, str) else self.scale)

    def value(self, prediction: Tensor, target: Tensor) -> Tensor:
        """See `Loss`; at a scale of 1, if that is estimated."""
        residual = (prediction - target).abs()
        inside = residual.clamp(max=self.threshold)
        return inside * (residual - inside / 2)

    def derivative(self, prediction: Tensor, target: Tensor) -> Tensor:
        """See `Loss`."""
        return (prediction - target).clamp(-self.threshold, self.threshold)

    def curvature(self, prediction: Tensor, target: Tensor) -> Tensor:
        """See `Loss`."""
        return ((prediction - target).abs() <= self.threshold).to(prediction.dtype)

    def derivative_by_scale(self, residual: Tensor) -> Tensor:
        """See `Loss`; without the difference of large numbers that it is for outliers."""
        if type(self).derivative is not Huber.derivative:
            return super().derivative_by_scale(residual)
        return residual.clamp(-self.threshold, self.threshold).square() / -2


@dataclass(frozen=True)
class AbsoluteError(_Polyhedral):
    """The absolute residual, ``|prediction - target|``, whose optimum is the conditional median.

    Examples
    --------
    >>> from torchlinreg import TorchLinearRegressor
    >>> X, y = [[0.0], [1.0], [2.0], [3.0], [4.0]], [0.0, 1.0, 200.0, 3.0, 4.0]
    >>> TorchLinearRegressor(loss="absolute_error").fit(X, y).coef_
    array([1.])
    """

    def pieces(self) -> PiecewiseLinear:
        """See `Loss`."""
        return PiecewiseLinear(-1.0, (0.0,), (2.0,))


@dataclass(frozen=True)
class Quantile(_Polyhedral):
    """The pinball loss, whose optimum is the conditional quantile.

    ``quantile * (target - prediction)`` where the prediction is too low, and
    ``(1 - quantile) * (prediction - target)`` where it is too high.

    Parameters
    ----------
    quantile : float, default=0.5
        The quantile, between 0 and 1, both excluded. 0.5 is half of `AbsoluteError`.

    Examples
    --------
    >>> from torchlinreg import TorchLinearRegressor, losses
    >>> X, y = [[0.0], [0.0], [0.0], [1.0], [1.0], [1.0]], [0.0, 1.0, 2.0, 3.0, 5.0, 7.0]
    >>> upper = TorchLinearRegressor(loss=losses.Quantile(0.9)).fit(X, y)
    >>> upper.predict([[0.0], [1.0]]).round(6)
    array([2., 7.])
    """

    quantile: float = 0.5

    def __post_init__(self) -> None:
        _check(self, "quantile", "a number between 0 and 1, both excluded", lambda value: 0 < value < 1)

    def pieces(self) -> PiecewiseLinear:
        """See `Loss`."""
        return PiecewiseLinear(float(self.quantile) - 1.0, (0.0,), (1.0,))


@dataclass(frozen=True)
class EpsilonInsensitive(_Polyhedral):
    """The absolute residual beyond a tube, ``max(0, |prediction - target| - epsilon)``.

    Parameters
    ----------
    epsilon : float, default=0.1
        Half the width of the tube, in units of y; 0 or more.

    Examples
    --------
    >>> from torchlinreg import TorchLinearRegressor, losses
    >>> X, y = [[0.0], [1.0], [2.0], [3.0]], [0.0, 1.5, 1.5, 3.0]
    >>> reg = TorchLinearRegressor(loss=losses.EpsilonInsensitive(0.5)).fit(X, y)
    >>> bool((abs(reg.predict(X) - y) <= 0.5 + 1e-9).all())
    True
    """

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        _check(self, "epsilon", "a number, 0 or more", lambda value: value >= 0)

    def pieces(self) -> PiecewiseLinear:
        """See `Loss`."""
        if self.epsilon == 0:
            return PiecewiseLinear(-1.0, (0.0,), (2.0,))
        return PiecewiseLinear(-1.0, (-float(self.epsilon), float(self.epsilon)), (1.0, 1.0))


@dataclass(frozen=True)
class SquaredEpsilonInsensitive(Loss):
    """Half the squared residual beyond a tube, ``max(0, |prediction - target| - epsilon)^2 / 2``.

    `sklearn.linear_model.SGDRegressor` has no 1/2 here.

    Parameters
    ----------
    epsilon : float, default=0.1
        Half the width of the tube, in units of y; 0 or more.

    Examples
    --------
    >>> from torchlinreg.losses import SquaredEpsilonInsensitive
    >>> SquaredEpsilonInsensitive(0.5)
    SquaredEpsilonInsensitive(epsilon=0.5)
    """

    of_residual: ClassVar[bool] = True
    curvature_is_stepwise: ClassVar[bool] = True
    epsilon: float = 0.1

    def __post_init__(self) -> None:
        _check(self, "epsilon", "a number, 0 or more", lambda value: value >= 0)

    def value(self, prediction: Tensor, target: Tensor) -> Tensor:
        """See `Loss`."""
        return self.derivative(prediction, target).square() / 2

    def derivative(self, prediction: Tensor, target: Tensor) -> Tensor:
        """See `Loss`."""
        return torch.nn.functional.softshrink(prediction - target, float(self.epsilon))

    def curvature(self, prediction: Tensor, target: Tensor) -> Tensor:
        """See `Loss`."""
        return ((prediction - target).abs() >= self.epsilon).to(prediction.dtype)


@dataclass(frozen=True)
class LogCosh(Loss):
    """``log(cosh(prediction - target))``: half the squared error near 0, about the absolute error far off.

    Examples
    --------
    >>> from torchlinreg.losses import LogCosh
    >>> LogCosh()
    LogCosh()
    """

    of_residual: ClassVar[bool] = True

    def value(self, prediction: Tensor, target: Tensor) -> Tensor:
        """See `Loss`."""
        residual = (prediction - target).abs()
        # -expm1 and log1p keep the digits of small residuals: log(cosh(r)) = r + log1p(expm1(-2 r) / 2).
        large = residual + torch.log1p(torch.expm1(-2 * residual) / 2)
        return torch.where(residual > 1e-4, large, residual.square() / 2)

    def derivative(self, prediction: Tensor, target: Tensor) -> Tensor:
        """See `Loss`."""
        return torch.tanh(prediction - target)

    def curvature(self, prediction: Tensor, target: Tensor) -> Tensor:
        """See `Loss`."""
        return torch.cosh((prediction - target).clamp(-350, 350)).square().reciprocal()


@dataclass(frozen=True, repr=False)
class CallableLoss(Loss):
    """A user's function of prediction and target, differentiated by autograd.

    Parameters
    ----------
    function : callable
        ``function(prediction, target)`` gives the loss of each element, of tensors of one shape, by torch
        operations; elementwise, finite, and convex in the prediction.

    Examples
    --------
    >>> import torch
    >>> from torchlinreg import TorchLinearRegressor
    >>> poisson = lambda prediction, target: torch.exp(prediction) - target * prediction
    >>> TorchLinearRegressor(loss=poisson).fit([[0.0], [1.0]], [1.0, 2.0]).coef_.round(6)
    array([0.693147])
    """

    function: Callable[[Tensor, Tensor], Tensor]

    def __repr__(self) -> str:
        return repr(self.function)

    def value(self, prediction: Tensor, target: Tensor) -> Tensor:
        """See `Loss`."""
        return self._called(prediction, target).detach()

    def derivative(self, prediction: Tensor, target: Tensor) -> Tensor:
        """See `Loss`."""
        return self._traced(prediction, target)[1]

    def curvature(self, prediction: Tensor, target: Tensor) -> Tensor:
        """See `Loss`."""
        return self.expand(prediction, target)[2]

    def expand(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Loss`; from one call of the function."""
        value, first, second = self._traced(prediction, target, twice=True)
        farthest = (prediction - target).abs().flatten()
        farthest = farthest.topk(min(_FARTHEST, len(farthest))).indices
        parts = (part.flatten() for part in (prediction, target, first, second))
        if not bool(self._lost_curvature(*(part[farthest] for part in parts))[0].any()):
            return value, first, second
        is_lost, of_slopes = self._lost_curvature(prediction, target, first, second)
        return value, first, torch.where(is_lost, of_slopes, second)

    def _lost_curvature(
        self, prediction: Tensor, target: Tensor, first: Tensor, second: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Where slopes beside do not bear the second derivative out, and what they say instead.

        Autograd loses it where a part of the loss overflows: of ``log(cosh(r))`` it makes 1 for r beyond 400.
        """
        step = (_BESIDE * first.abs() / second).nan_to_num(0.0, 0.0, 0.0)
        higher, lower = (self.derivative(prediction + sign * step, target) for sign in (1, -1))
        of_slopes = torch.where(step > 0, (higher - lower) / (2 * step), second)
        return of_slopes < second / 4, of_slopes

    def check(self, prediction: Tensor, target: Tensor) -> None:
        """Raise an error unless the function is elementwise and differentiable, on these elements.

        Parameters
        ----------
        prediction, target : Tensor of the same shape

        Raises
        ------
        TypeError
            It gives no tensor, or one that does not depend on the prediction by operations of torch.
        ValueError
            It gives another shape, or losses that depend on more than their own element.
        """
        with torch.enable_grad():
            inside = prediction.detach().requires_grad_()
            untraced = (
                f"loss={self!r} gives losses that autograd cannot trace to the prediction. Use "
                "operations of torch on the prediction, without detach(), item() or NumPy."
            )
            try:
                losses = self._called(inside, target)
            except RuntimeError as error:
                if "numpy()" not in str(error):
                    raise
                raise TypeError(untraced) from error
            if not losses.requires_grad:
                raise TypeError(untraced)
        alone = torch.cat(
            [self._called(part, of) for part, of in zip(_parts(prediction), _parts(target), strict=True)]
        )
        if not torch.allclose(losses, alone, rtol=1e-9, atol=0, equal_nan=True):
            raise ValueError(
                f"loss={self!r} is not elementwise: the losses of a third of the rows change "
                "with the others. Each loss may depend on its own prediction and target only; leave sums and "
                "means to the estimator."
            )

    def tangent(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """See `Loss`; from one call of the function."""
        value, first = self._traced(prediction, target)
        return value, first

    def _traced(self, prediction: Tensor, target: Tensor, *, twice: bool = False) -> list[Tensor]:
        """Value and derivative, and `twice` the curvature.

        Where autograd gives NaN for the slope of a finite loss, as for ``sqrt(residual^2)`` at 0, slope and
        curvature are those of the next predictions.
        """
        with torch.enable_grad():
            inside = prediction.detach().requires_grad_()
            result = [self._called(inside, target)]
            result.append(self._gradient(result[0], inside, create_graph=twice))
            if twice:
                zero = torch.zeros_like(prediction)
                result.append(self._gradient(result[1], inside) if result[1].requires_grad else zero)
        result = [each.detach() for each in result]
        if math.isnan(float(result[1].sum())):
            lost = torch.isnan(result[1]) & torch.isfinite(result[0])
            if not lost.any():
                return result
            size = torch.maximum(prediction.abs(), target.abs())
            size = size[lost].clamp(min=float(size.mean()) or 1.0, max=1 / _SMALLEST).clamp(min=_SMALLEST)
            beside = self._traced(prediction[lost] + _NEXT * size, target[lost], twice=twice)
            for each, near in zip(result[1:], beside[1:], strict=True):
                each[lost] = near
        return result

    def _called(self, prediction: Tensor, target: Tensor) -> Tensor:
        losses = self.function(prediction, target)
        if not isinstance(losses, Tensor):
            raise TypeError(
                f"loss={self!r} gives a {type(losses).__name__}; it must give a tensor of losses."
            )
        if losses.shape != prediction.shape:
            raise ValueError(
                f"loss={self!r} gives a tensor of shape {tuple(losses.shape)} for predictions of "
                f"shape {tuple(prediction.shape)}; it must give one loss per element, without a sum or mean "
                "(reduction='none')."
            )
        return losses

    def _gradient(self, losses: Tensor, inside: Tensor, create_graph: bool = False) -> Tensor:
        (gradient,) = torch.autograd.grad(
            losses.sum(), inside, create_graph=create_graph, materialize_grads=True
        )
        return gradient


def is_known(loss: Loss) -> bool:
    """Whether it is one of the library's, which need no check.

    Parameters
    ----------
    loss : Loss

    Returns
    -------
    bool
    """
    return type(loss) in LOSSES.values()


def check_convex(loss: Loss, target: Tensor, spread: float) -> None:
    """Raise an error where the derivative falls as the prediction rises.

    Parameters
    ----------
    loss : Loss
        A loss with a derivative.
    target : Tensor
        Targets about which to look, shape (n,).
    spread : float
        The size of errors to look at; up to 8 times that.

    Raises
    ------
    ValueError
        The loss is not convex.
    """
    steps = torch.linspace(-8, 8, 65, dtype=target.dtype, device=target.device)
    prediction = (target + spread * steps[:, None]).flatten()
    of = target.repeat(len(steps))
    value, slope = loss.tangent(prediction, of)
    slope = slope.masked_fill(~torch.isfinite(value), torch.nan)
    slope, prediction = slope.view(len(steps), -1), prediction.view(len(steps), -1)
    fall = slope[:-1] - slope[1:]
    slack = 1e-9 * (slope[:-1].abs() + slope[1:].abs())
    where = (torch.isfinite(fall) & (fall > slack)).nonzero()
    if len(where):
        step, row = where[0].tolist()
        raise ValueError(
            f"loss={loss!r} is not convex: its derivative falls from {float(slope[step, row]):.6g} to "
            f"{float(slope[step + 1, row]):.6g} as the prediction rises from "
            f"{float(prediction[step, row]):.6g} to {float(prediction[step + 1, row]):.6g}, at target "
            f"{float(target[row]):.6g}. Only convex losses have one optimum; use one of torchlinreg.losses, "
            "such as Huber() for data with outliers."
        )


def _parts(values: Tensor) -> tuple[Tensor, Tensor]:
    """A third and the rest; halves of periodic values could be alike."""
    third = (len(values) + 2) // 3
    return values[:third], values[third:]


# What `TorchLinearRegressor(loss=...)` takes by name.
LOSSES: dict[str, type[Loss]] = {
    "squared_error": SquaredError,
    "huber": Huber,
    "absolute_error": AbsoluteError,
    "quantile": Quantile,
    "epsilon_insensitive": EpsilonInsensitive,
    "squared_epsilon_insensitive": SquaredEpsilonInsensitive,
    "log_cosh": LogCosh,
}


def as_loss(loss: object) -> Loss:
    """The loss of a name, object or callable.

    Parameters
    ----------
    loss : str, Loss or callable
        As for `TorchLinearRegressor`.

    Returns
    -------
    Loss

    Raises
    ------
    ValueError
        There is no loss of that name.
    TypeError
        It is a class, or nothing that stands for a loss.
    """
    if isinstance(loss, Loss):
        if type(loss).value is Loss.value:
            raise TypeError(
                f"loss={loss!r} has no value; a loss of one's own defines value, derivative and curvature."
            )
        return loss
    known = ", ".join(map(repr, LOSSES))
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(
                f"loss={loss!r} is not known; use one of {known}, an object of torchlinreg.losses, or a "
                "function (prediction, target) -> losses."
            )
        return LOSSES[loss]()
    if isinstance(loss, type) and issubclass(loss, Loss):
        raise TypeError(f"loss={loss.__name__} is a class; give an object, such as {loss.__name__}().")
    if isinstance(loss, torch.nn.Module):
        if getattr(loss, "reduction", "none") != "none":
            raise ValueError(
                f"loss={loss!r} sums up its losses; give it reduction='none'. The estimator takes the mean."
            )
        return CallableLoss(loss)
    if callable(loss) and not isinstance(loss, type):
        return CallableLoss(loss)
    raise TypeError(
        f"loss={loss!r} is no loss; use one of {known}, an object of torchlinreg.losses, or a function "
        "(prediction, target) -> losses."
    )


def _check(loss: Loss, name: str, allowed: str, holds: Callable[[Any], bool]) -> None:
    value = getattr(loss, name)
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not holds(value):
        raise ValueError(f"{type(loss).__name__}({name}={value!r}): {name} must be {allowed}.")
