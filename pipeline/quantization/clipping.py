"""Where each channel of a tensor is best clipped: values count by what predictions owe to them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, fx

from fdda_deploy.pipeline.quantization.channel_groups import clip_bounds, is_layer
from fdda_deploy.pipeline.quantization.fisher import Done
from fdda_deploy.pipeline.quantization.weighed_values import weighed_values

_LOWEST_SHARE = 0.03
_CANDIDATES = 37
"""From 3 % of the largest value up to it, a tenth more each. Massive values may count little."""


def worthwhile_clips(
    module: fx.GraphModule,
    batches: Iterable[Tensor],
    bits: int,
    *,
    seed: int = 0,
    done: Done | None = None,
) -> dict[str, Tensor]:
    """Returns `best_clips` of what layers read and of what is clipped, by node name.

    Args:
        module: A float graph from images ``(N, C, H, W)`` to logits ``(N, classes)``.
        batches: Images on the device of the graph.
        bits: Of the grids to come.
        seed: Of the drawn classes behind the weights (`weighed_values`).
        done: Called as images are weighed, with how many were.

    Returns:
        ``(C,)`` each, on the device of the graph. Tensors that no prediction depends on are left
        out; where a prediction is not finite, all are.
    """
    names = {node.name for node in module.graph.nodes if is_worth_a_range(node)}
    device = next((value.device for value in module.parameters()), torch.device("cpu"))
    samples, clips = weighed_values(module, names, batches, seed=seed, done=done), {}
    while samples:
        name, sample = samples.popitem()  # hundreds of megabytes in all: freed one by one
        clips[name] = best_clips(sample.values, sample.weights.float(), bits).to(device)
    return clips


def is_worth_a_range(node: fx.Node) -> bool:
    """Whether equalisation asks for the range of a node: it is clipped, or a layer reads it."""
    if node.op == "get_attr":
        return False
    return clip_bounds(node) is not None or any(map(is_layer, node.users))


def best_clips(values: Tensor, weights: Tensor, bits: int) -> Tensor:
    """Returns for each channel the largest value worth its steps: that of least weighed error.

    Source: the optimal clipping of ACIQ (Banner et al., arXiv 1810.05723, section 3), found on the
    values themselves instead of a normal or Laplace variable that stands for them.

    Args:
        values: ``(C, samples)`` float32. Where none of the tensor's is below 0, the grid is
            ``0..2^bits - 1``; else ``-2^(bits-1)..2^(bits-1) - 1``, its outermost step halved
            between both ends.
        weights: ``(C, samples)`` float32: what a squared error counts at each.
        bits: Of the grid.

    Returns:
        ``(C,)``: between 3 % of the channel's largest absolute value and that value.
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
        error = error.square_().mul_(weights).sum(dim=1, keepdim=True)
        better = error < least
        best, least = torch.where(better, clip, best), torch.where(better, error, least)
    return best[:, 0]
