"""Quantizers in torch: the same integers as `quant.affine`, with straight-through gradients."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fdda_deploy.errors import CalibrationError
from fdda_deploy.quant.qparams import E4M3_MAX, QParams


class _E4M3StraightThrough(torch.autograd.Function):
    """Rounds to FP8 E4M3, half to even; its gradient is the identity, as below."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # noqa: ARG004  # torch passes it
        # Clamped first: torch's own conversion gives NaN beyond the range.
        return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(x.dtype)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # noqa: ARG004  # as above
        return grad


class _RoundStraightThrough(torch.autograd.Function):
    """Rounds half to even; its gradient is the identity (Bengio et al., arXiv 1308.3432)."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # noqa: ARG004  # torch passes it
        return torch.round(x)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # noqa: ARG004  # as above
        return grad


def quantize(x: Tensor, scale: Tensor, qmin: int, qmax: int) -> Tensor:
    """Returns the integers of ``x`` as float32, ``clip(round(x / scale), qmin, qmax)``.

    On an FP8 grid (`QParams.float8`) they are E4M3 numbers. ``scale`` broadcasts over ``x``. Equal
    to `fdda_deploy.quant.affine.quantize`, ties included.
    """
    rounding = _E4M3StraightThrough if qmax == E4M3_MAX else _RoundStraightThrough
    rounded: Tensor = rounding.apply(x / scale)
    return rounded.clamp(qmin, qmax)


def fake_quant(x: Tensor, scale: Tensor, qmin: int, qmax: int) -> Tensor:
    """Returns ``clip(round(x / scale), qmin, qmax) * scale``: ``x`` on its grid, in its dtype.

    ``scale`` broadcasts over ``x``; ``x`` is not written to. Where no gradient is recorded, the
    four steps share one new tensor, with the same bits: fresh memory costs more than arithmetic.
    """
    records = torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad)
    if records or qmax == E4M3_MAX:
        return quantize(x, scale, qmin, qmax) * scale
    return (x / scale).round_().clamp_(qmin, qmax).mul_(scale)


class Observer(Protocol):
    """Gathers the range of one tensor."""

    def observe(self, x: Tensor) -> None:
        """Takes in one batch of any shape."""


class ActivationQuantizer(nn.Module):
    """Rounds one activation tensor to its grid; until it has one, the float value passes.

    While ``observer`` is set, the float value is shown to it and passes unchanged.
    """

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(1.0))
        self.qparams: QParams | None = None
        self.observer: Observer | None = None

    def set_qparams(self, qparams: QParams) -> None:
        """Fixes the grid.

        Raises:
            CalibrationError: More than one scale.
        """
        if qparams.axis is not None:
            raise CalibrationError("an activation takes one scale, not one per channel (T007).")
        self.qparams = qparams
        self.scale.fill_(float(qparams.scale))

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``x`` on its grid, same shape and dtype."""
        if self.observer is not None:
            self.observer.observe(x)
            return x
        if self.qparams is None:
            return x
        return fake_quant(x, self.scale, self.qparams.first_step, self.qparams.last_step)


class WeightQuantizer(nn.Module):
    """Rounds one weight to its grid, with scales shaped to broadcast over it."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(1.0))
        self.qparams: QParams | None = None

    def set_qparams(self, qparams: QParams, shape: tuple[int, ...]) -> None:
        """Fixes the grid of a weight of ``shape``.

        Raises:
            CalibrationError: Scales that do not fit the shape.
        """
        self.qparams = qparams
        full = np.ascontiguousarray(qparams.scale_for(shape))
        self.scale = torch.from_numpy(full.copy()).to(self.scale.device)

    def forward(self, weight: Tensor) -> Tensor:
        """Returns ``weight`` on its grid, same shape and dtype."""
        if self.qparams is None:
            return weight
        return fake_quant(weight, self.scale, self.qparams.qmin, self.qparams.qmax)
