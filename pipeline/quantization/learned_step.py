"""An activation quantizer that learns its step and sometimes lets the float value pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fdda_deploy.pipeline.quantization.fake_quant import ActivationQuantizer, fake_quant
from fdda_deploy.quant.qparams import SMALLEST_SCALE


class _LsqRounding(torch.autograd.Function):
    """The round trip to the grid, with LSQ's gradient of the scale.

    Keeps its input, and its output, which the layer behind keeps anyway.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, qmin: int, qmax: int) -> Tensor:
        x_q = fake_quant(x, scale, qmin, qmax)
        ctx.save_for_backward(x, x_q, scale)
        ctx.range = qmin, qmax
        return x_q

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, x_q, scale = ctx.saved_tensors
        inside = _inside(grad, x, scale, *ctx.range)
        # sum grad (round(u) - u) inside, sum grad q outside: two products that read each value once
        of_scale = (_dot(grad, x_q) - _dot(inside, x)) / scale
        return inside, of_scale, None, None


def _inside(grad: Tensor, x: Tensor, scale: Tensor, qmin: int, qmax: int) -> Tensor:
    """Returns ``grad`` where ``x`` lies inside the range, else 0."""
    if x.device.type == "cpu":  # one pass over memory, where masks take four
        step = float(scale)
        return torch.ops.aten.hardtanh_backward(grad, x, qmin * step, qmax * step)  # type: ignore[no-any-return]  # untyped operator
    return grad * ((x > qmin * scale) & (x < qmax * scale))  # does not wait for the device


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Returns the sum of products, without a copy where both lie in memory alike."""
    if a.ndim == 4 and a.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.reshape(-1), b.reshape(-1))


class LearnedStep(nn.Module):
    """Rounds an activation to its grid with a learned scale ``s exp(r)``, and drops the rounding.

    The gradient of the scale is that of LSQ (Esser et al., arXiv 1902.08153, eq. 3):
    ``round(x/s) - x/s`` inside the range, its first or last step outside. With ``drop`` each
    element keeps its float value with that probability (QDrop, Wei et al., arXiv 2203.05740).

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
        x_q: Tensor = _LsqRounding.apply(x, self.scale, grid.first_step, grid.last_step)
        return mixed(x_q, x, self.drop, self._generator)


def mixed(x_q: Tensor, x: Tensor, drop: float, generator: torch.Generator) -> Tensor:
    """Returns ``x_q`` with each element replaced by that of ``x`` with probability ``drop``."""
    if drop == 0:
        return x_q
    chosen = torch.rand(x.shape, generator=generator, device=x.device) < drop
    return torch.where(chosen, x, x_q)
