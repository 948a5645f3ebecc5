"""An activation quantizer that learns its step and sometimes lets the float value pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fdda_deploy.pipeline.quantization.fake_quant import ActivationQuantizer, fake_quant
from fdda_deploy.quant.qparams import SMALLEST_SCALE


class _LsqRounding(torch.autograd.Function):
    """The round trip to the grid, with LSQ's gradient of the scale; keeps nothing but its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, qmin: int, qmax: int) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.range = qmin, qmax
        return fake_quant(x, scale, qmin, qmax)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, scale = ctx.saved_tensors
        u = x / scale
        bounded = u.clamp(*ctx.range)
        inside = u == bounded
        of_scale = torch.where(inside, u.round().sub_(u), bounded).mul_(grad).sum()
        return grad * inside, of_scale.to(scale.dtype), None, None


class LearnedStep(nn.Module):
    """Rounds an activation to its grid with a learned scale ``s exp(r)``, and drops the rounding.

    The gradient of the scale is that of LSQ (Esser et al., arXiv 1902.08153, eq. 3):
    ``round(x/s) - x/s`` inside the range, ``qmin`` or ``qmax`` outside. With ``drop`` each element
    keeps its float value with that probability (QDrop, Wei et al., arXiv 2203.05740).

    Stands in for an `ActivationQuantizer`.

    Args:
        quantizer: Calibrated.
        drop: Probability that an element stays in float.
        learn_scale: Let ``log_gain`` take a gradient.
        generator: Of the choice of elements, on the device of the activations.
    """

    start: Tensor

    def __init__(
        self,
        quantizer: ActivationQuantizer,
        *,
        drop: float,
        learn_scale: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        assert quantizer.qparams is not None
        self.qparams = quantizer.qparams
        self.drop = drop
        self._generator = generator
        self.register_buffer("start", quantizer.scale.detach().clone())
        self.log_gain = nn.Parameter(torch.zeros_like(self.start), requires_grad=learn_scale)

    @property
    def scale(self) -> Tensor:
        """The scale, ``()`` float32, positive and normal."""
        return (self.start * self.log_gain.exp()).clamp_min(SMALLEST_SCALE)

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``x`` on its grid, but for the dropped elements; same shape and dtype."""
        grid = self.qparams
        x_q: Tensor = _LsqRounding.apply(x, self.scale, grid.qmin, grid.qmax)
        return mixed(x_q, x, self.drop, self._generator)


def mixed(x_q: Tensor, x: Tensor, drop: float, generator: torch.Generator) -> Tensor:
    """Returns ``x_q`` with each element replaced by that of ``x`` with probability ``drop``."""
    if drop == 0:
        return x_q
    chosen = torch.rand(x.shape, generator=generator, device=x.device) < drop
    return torch.where(chosen, x, x_q)
