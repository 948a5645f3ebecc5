"""Rounding as something to learn: each weight between two neighbouring integers, driven to one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fdda_deploy.pipeline.quantization.fake_quant import WeightQuantizer, quantize
from fdda_deploy.pipeline.quantization.fixed_integers import spread
from fdda_deploy.quant.qparams import SMALLEST_SCALE

_STRETCH = 1.2
"""The sigmoid runs from -0.1 to 1.1, so that h reaches 0 and 1 at finite V (arXiv 2004.10568)."""
_UNDECIDED = 0.01
"""How far from 1/2 the start keeps h on the side of the present integer."""


class SoftRounding(nn.Module):
    """A weight ``w = s (b + h(V))``: base integers b fixed, h in [0, 1] and on request s learned.

    ``h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)`` (AdaRound, Nagel et al., arXiv 2004.10568, eq. 23);
    b and b + 1 both lie on the grid, so nothing is left to clip. The scale is learned with b held
    (Genie-M, Jeon et al., arXiv 2212.04780), as ``s exp(r)``, which stays positive.

    The start rounds to the integers q the weight has now. Where q is next to ``target / s``, b is
    its floor and h its fraction; where another method put q further away, b is q or q - 1,
    whichever leaves the target's side open. An h that would round away from q starts just on its
    side of 1/2.

    Stands in for a `WeightQuantizer`; the float weight it is given is not read.

    Args:
        weight: Present weight in torch layout; its integers are the start.
        quantizer: Calibrated.
        target: What the weight was before it was rounded, the shape of ``weight``.
        learn_scale: Let ``log_gain`` take a gradient.
    """

    base: Tensor
    start: Tensor

    def __init__(
        self, weight: Tensor, quantizer: WeightQuantizer, target: Tensor, *, learn_scale: bool
    ) -> None:
        super().__init__()
        assert quantizer.qparams is not None
        self.qparams = quantizer.qparams
        qmin, qmax = self.qparams.qmin, self.qparams.qmax
        with torch.no_grad():
            q = quantize(weight.detach(), quantizer.scale, qmin, qmax)
            steps = target.detach().to(q.device) / quantizer.scale
            base = torch.minimum(torch.maximum(steps.floor(), q - 1), q).clamp_(qmin, qmax - 1)
            h = (steps - base).clamp_(0, 1)
            up = q > base
            h = torch.where(up, h.clamp(min=0.5 + _UNDECIDED), h.clamp(max=0.5 - _UNDECIDED))
            logits = torch.logit((h + (_STRETCH - 1) / 2) / _STRETCH)
        self.register_buffer("base", base)
        self.register_buffer("start", torch.tensor(self.qparams.scale, device=q.device))
        self.logits = nn.Parameter(logits)
        self.log_gain = nn.Parameter(torch.zeros_like(self.start), requires_grad=learn_scale)

    @property
    def h(self) -> Tensor:
        """How far each weight is from its base to the next integer, 0 to 1."""
        stretched: Tensor = torch.sigmoid(self.logits) * _STRETCH - (_STRETCH - 1) / 2
        return stretched.clamp(0, 1)

    @property
    def scale(self) -> Tensor:
        """The scales, the shape of ``qparams.scale``."""
        return (self.start * self.log_gain.exp()).clamp_min(SMALLEST_SCALE)

    @torch.no_grad()
    def integers(self) -> Tensor:
        """Returns the decision: base or base + 1 as float32, the shape of the weight."""
        return self.base + (self.h >= 0.5)

    def undecided(self, beta: float) -> Tensor:
        """Returns ``sum(1 - |2h - 1|^beta)`` (eq. 24): 0 where every weight has decided."""
        return (1 - (2 * self.h - 1).abs().pow(beta)).sum()

    def forward(self, _weight: Tensor) -> Tensor:
        """Returns the weight between its integers, shaped as the weight."""
        return (self.base + self.h) * spread(self.scale, self.qparams, self.base.ndim)


def annealed_beta(step: int, num_steps: int, warmup: float) -> float | None:
    """Returns beta at one step, 20 falling linearly to 2; None in the warm-up, without pressure.

    Args:
        step: From 0.
        num_steps: In all.
        warmup: Share of the steps without pressure; 0.2 in the published schedules.
    """
    first = warmup * num_steps
    if step < first:
        return None
    return 20.0 - 18.0 * (step - first) / max(1.0, num_steps - 1 - first)
