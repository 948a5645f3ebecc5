"""Where each channel of a tensor is best clipped, from a sample of its values."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SAMPLES_PER_IMAGE = 16
_GOLDEN = 0.6180339887498949
_LOWEST_SHARE = 0.1
_CANDIDATES = 25
"""From a tenth of the largest value up to it, a tenth more each."""


class ChannelSample:
    """Values of each channel of one tensor, as many of every image, at spread-out positions.

    Which values of an image are kept depends on how many images came before, not on the batches.
    """

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._images = 0

    def add(self, x: Tensor) -> None:
        """Takes in a batch ``(N, C, ...)``."""
        flat = x.flatten(2) if x.ndim > 2 else x[:, :, None]
        count, each = len(flat), flat.shape[2]
        wanted = min(SAMPLES_PER_IMAGE, each)
        index = torch.arange(self._images, self._images + count, device=x.device)
        offset = (index * _GOLDEN).frac()[:, None]  # equidistributed, so that no place is missed
        spread = torch.arange(wanted, device=x.device)
        position = ((spread + offset) * (each / wanted)).long().clamp_max(each - 1)
        taken = flat.gather(2, position[:, None, :].expand(-1, flat.shape[1], -1))
        # bfloat16's eight bits tell which of sixteen steps a value falls on.
        self._parts.append(taken.transpose(0, 1).flatten(1).bfloat16())
        self._images += count

    def values(self) -> Tensor:
        """Returns ``(C, samples)`` float32."""
        return torch.cat(self._parts, dim=1).float()


def best_clips(values: Tensor, bits: int) -> Tensor:
    """Returns for each channel the largest value worth its steps: that of least squared error.

    Source: the optimal clipping of ACIQ (Banner et al., arXiv 1810.05723, section 3), found on the
    values themselves instead of a normal or Laplace variable that stands for them.

    Args:
        values: ``(C, samples)`` float32. Where none of the tensor's is below 0, the grid is
            ``0..2^bits - 1``; else ``-2^(bits-1)..2^(bits-1) - 1``, its outermost step halved
            between both ends.
        bits: Of the grid.

    Returns:
        ``(C,)``: between a tenth of the channel's largest absolute value and that value.
    """
    signed = bool((values < 0).any())
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    steps = high + 0.5 if signed else float(high)
    largest = values.abs().amax(dim=1, keepdim=True)
    best, least = largest, torch.full_like(largest, torch.inf)
    for share in torch.logspace(0, math.log10(_LOWEST_SHARE), _CANDIDATES).tolist():
        clip = largest * share
        step = (clip / steps).clamp_min(torch.finfo(torch.float32).tiny)
        error = (values / step).round_().clamp_(low, high).mul_(step).sub_(values)
        error = error.square_().sum(dim=1, keepdim=True)
        better = error < least
        best, least = torch.where(better, clip, best), torch.where(better, error, least)
    return best[:, 0]
