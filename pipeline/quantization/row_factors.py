"""Factors that cost nothing: on rows whose outputs stay in float, and on whole tensors.

Where one scale serves all rows of a weight, a row of small weights has few steps. If whoever reads
the row's channel is left in float, the row may be multiplied until it is as large as the largest,
and the float weight divided: one scale then rounds it as finely as a scale of its own would. And
tensors that share a scale want one range: each is multiplied as a whole until it reaches the
largest, which moves no weight against another that has the same scale.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from fdda_deploy.pipeline.quantization.channel_groups import ChannelGroup, parameter_of

MOST = 1000.0
"""No factor of any equalisation is larger: a rounding error is not a signal."""
_CLIPPED = 0.999
"""Share of a clip's bound from which on a channel counts as clipped."""


def row_factors(
    graph_module: fx.GraphModule, group: ChannelGroup, amax: Mapping[str, Tensor]
) -> Tensor:
    """Returns ``a_c`` ``(C,)`` that brings the rows behind a group to one size, if clips let it.

    A channel that reaches the bound of its clip keeps its size. Any other may grow up to the bound,
    and shrink to the size of the largest row that is held: ``a_c = min(size / row_c, upper /
    max_c)``, where ``row_c`` is the largest weight behind it, in parts of its tensor's largest.
    Only on an image that exceeds ``max_c`` can what is computed change.

    Args:
        graph_module: It has the weights.
        group: Tensors that no layer reads through a quantizer.
        amax: Largest value of each channel ``(C,)`` by node name, at least for clips.
    """
    rows = torch.stack([_row_sizes(graph_module, layer) for layer in group.producers]).amax(dim=0)
    held, bound = torch.zeros_like(rows, dtype=torch.bool), torch.full_like(rows, MOST)
    for node, upper in group.clips:
        held |= amax[node.name] >= _CLIPPED * upper
        bound = bound.minimum(upper / amax[node.name].clamp_min(upper / MOST))
    size = rows[held].amax() if bool(held.any()) else rows.amax()
    factors = (size / rows.clamp_min(float(rows.amax()) / MOST)).minimum(bound)
    return torch.where(held | (rows == 0), 1.0, factors)


def tensor_factors(
    groups: Sequence[ChannelGroup], amax: Mapping[str, Tensor], alike: Mapping[str, str]
) -> dict[int, Tensor]:
    """Returns by index the factor ``(1,)`` of each group that takes its tensors to one range.

    No clip is taken past its bound, as far as ``amax`` goes. Left out are groups with tensors of
    two sets.

    Args:
        groups: Tensors that are rescaled together.
        amax: Largest value of each channel ``(C,)`` by node name.
        alike: The set that a tensor shares its scale with, by node name.
    """
    largest: dict[str, float] = defaultdict(float)
    for name, key in alike.items():
        if name in amax:
            largest[key] = max(largest[key], float(amax[name].max()))
    factors: dict[int, Tensor] = {}
    for index, group in enumerate(groups):
        named = [node.name for node in group.tensors if node.name in alike and node.name in amax]
        keys = {alike[name] for name in named}
        reached = max((float(amax[name].max()) for name in named), default=0.0)
        if len(keys) == 1 and reached > 0:
            clips = [(upper, float(amax[node.name].max())) for node, upper in group.clips]
            bounds = [upper / max(seen, upper / MOST) for upper, seen in clips]
            factor = min(largest[keys.pop()] / reached, MOST, *bounds)
            factors[index] = amax[named[0]].new_full((1,), max(1.0, factor))
    return factors


def _row_sizes(graph_module: fx.GraphModule, layer: fx.Node) -> Tensor:
    """Returns the largest weight of each row ``(C,)``, in parts of the tensor's largest."""
    sizes = parameter_of(graph_module, layer, 1).detach().abs().flatten(1).amax(dim=1)
    return sizes / sizes.amax().clamp_min(torch.finfo(sizes.dtype).tiny)
