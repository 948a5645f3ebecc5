"""Weights made easy to quantize while they train: Scale-Clip, and gradients scaled by position."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.fake_quant import WeightQuantizer
from fdda_deploy.quant.affine import qparams_from_amax
from fdda_deploy.quant.qparams import QParams

POSITION_FLOOR = 0.01
"""Share of its rate at which a weight on a grid point still moves."""


def clip_thresholds(weight: Tensor, qparams: QParams, k: float) -> Tensor:
    """Returns ``T = k mean|W|`` of each channel or block, the shape of ``qparams.scale``.

    GDRQ's Scale-Clip (arXiv 1908.01477); its groups are ours that share a scale.

    Args:
        weight: In torch layout.
        qparams: Its grid in torch layout, per channel or in blocks.
        k: 2 to 3 at low widths.
    """
    assert qparams.axis is not None
    size = weight.abs()
    if qparams.block_size is not None:
        shape = list(size.shape)
        shape[qparams.axis : qparams.axis + 1] = [-1, qparams.block_size]
        return size.reshape(shape).mean(dim=qparams.axis + 1).mul(k)
    return size.movedim(qparams.axis, 0).flatten(1).mean(dim=1).mul(k)


@torch.no_grad()
def scale_clip(weight: nn.Parameter, quantizer: WeightQuantizer, k: float) -> None:
    """Reshapes a weight in place, ``W <- clip(W, -T, T)``, and fits its grid to T.

    The scale becomes ``T / qmax``, so that the grid ends where the weights end: what is left is an
    ordinary scale per channel (or block), and running it costs nothing. Called after every step,
    T settles where ``T = k mean(min(|W|, T))``, above 0 for any k above 1. A weight that is not
    finite is left as it is, for the caller's check of the outcome to find.
    """
    qparams = quantizer.qparams
    assert qparams is not None
    threshold = clip_thresholds(weight, qparams, k)
    if not torch.isfinite(threshold).all():
        return
    amax = threshold.cpu().numpy()
    axis, block_size = qparams.axis, qparams.block_size
    fitted = qparams_from_amax(amax.ravel(), qparams.num_bits, axis=0).scale.reshape(amax.shape)
    grid = QParams(fitted, qparams.qmin, qparams.qmax, axis, block_size=block_size)
    quantizer.set_qparams(grid, tuple(weight.shape))
    limit = quantizer.scale * float(qparams.qmax)
    weight.copy_(torch.minimum(torch.maximum(weight, -limit), limit))


@torch.no_grad()
def position_scale(weight: Tensor, quantizer: WeightQuantizer) -> Tensor:
    """Returns what each weight's gradient is multiplied by, the shape of ``weight``.

    Position-scaled gradient (arXiv 2005.11035): ``s(w) = lambda |w - w_q| + epsilon`` with w_q the
    nearest grid point; descending with ``s(w) dL/dw`` is plain descent in a space warped so that
    weights settle near grid points. Here ``lambda = 2 (1 - epsilon) / scale`` and epsilon = 0.01: a
    weight half-way between two points moves at the full rate, one on a point at 1 % of it.
    """
    distance = torch.abs(weight - quantizer(weight)) * (2 / quantizer.scale)
    return distance * (1 - POSITION_FLOOR) + POSITION_FLOOR


class WeightReshaper:
    """Applies both to every quantized weight of a network that trains.

    Args:
        network: Calibrated.
        psg: Scale gradients by position.
        clip: k of Scale-Clip; None leaves the weights' shape alone.
    """

    def __init__(self, network: QuantNetwork, *, psg: bool, clip: float | None) -> None:
        self._pairs = [
            (network.weight(point), network.weight_quantizers[point.initializer])
            for point in network.placement.weights
        ]
        self._psg, self._clip = psg, clip

    def reshape(self) -> None:
        """Clips all weights and fits their grids: before the first step and after each."""
        if self._clip is not None:
            for weight, quantizer in self._pairs:
                scale_clip(weight, quantizer, self._clip)

    def scale_gradients(self) -> None:
        """Multiplies all gradients of weights: between backward and step."""
        if self._psg:
            for weight, quantizer in self._pairs:
                if weight.grad is not None:
                    weight.grad.mul_(position_scale(weight, quantizer))


def snapshot(network: QuantNetwork) -> tuple[dict[str, Tensor], dict[str, QParams]]:
    """Returns copies of all parameters and the grids of all weights."""
    values = {name: value.detach().clone() for name, value in network.named_parameters()}
    grids = {p.initializer: network.weight_qparams(p) for p in network.placement.weights}
    return values, grids


@torch.no_grad()
def restore(network: QuantNetwork, saved: tuple[dict[str, Tensor], dict[str, QParams]]) -> None:
    """Puts a `snapshot` back, to the bit."""
    for name, value in network.named_parameters():
        value.copy_(saved[0][name])
    for point in network.placement.weights:
        network.set_weight_qparams(point, saved[1][point.initializer])
