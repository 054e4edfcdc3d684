"""Moments that a fitted model keeps, to go on from."""

from __future__ import annotations

import torch

from torchlinreg._moments.exact import ExactMoments
from torchlinreg._moments.moments import Frame, Moments


def to_device(moments: ExactMoments, device: torch.device) -> ExactMoments:
    """The moments on a device."""
    shift, scale = moments.frame
    frame = Frame(shift.to(device), None if scale is None else scale.to(device))
    return ExactMoments(
        frame,
        moments.high.to(device),
        moments.low.to(device),
        moments.n_samples,
        moments.unit_roundoff,
    )


def on_cpu(moments: Moments | ExactMoments) -> Moments | ExactMoments:
    """The moments as a fitted model keeps them."""
    cpu = torch.device("cpu")
    if isinstance(moments, ExactMoments):
        return to_device(moments, cpu)
    shift, scale = moments.frame
    frame = Frame(shift.cpu(), None if scale is None else scale.cpu())
    return Moments(frame, moments.raw.cpu(), moments.n_samples, moments.roundoff)
