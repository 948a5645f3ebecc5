"""Channels of linear tensors moved so that each one's range is centered on zero.

All channels of a tensor share one symmetric grid, and one whose values lie between 2 and 4 uses a
quarter of its range. Where a layer makes a tensor without an activation function (a bottleneck of
inverted residuals), its bias moves a channel, and the biases of those that read it move it back.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import Tensor, fx

from fdda_deploy.pipeline.quantization.channel_groups import (
    ChannelGroup,
    is_depthwise,
    is_layer,
    is_padded,
    parameter_of,
)

Span = tuple[Tensor, Tensor]
"""Smallest and largest value of each channel, both ``(C,)``."""
_SUMS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor, operator.add)


@torch.no_grad()
def center_channels(
    graph_module: fx.GraphModule, groups: Iterable[ChannelGroup], spans: dict[str, Span]
) -> None:
    """Centers the channels that layers read, in place.

    In a residual chain each sum is centered by the layer that was added last. The network computes
    what it did, up to rounding. Left alone are groups with anything but layers and sums, with a
    layer that has no bias, or with a reader that pads: its border reads 0.

    Args:
        graph_module: A float graph with BatchNorm folded. Its biases are changed.
        groups: Its `ChannelGroup` objects.
        spans: Range of each tensor that a layer reads, by node name; updated for those that move.
    """
    for group in groups:
        if not _movable(group):
            continue
        offsets = _offsets(group, spans)
        for layer in group.producers:
            parameter_of(graph_module, layer, 2).sub_(offsets[layer])
        for layer in group.consumers:
            source = layer.args[0]
            assert isinstance(source, fx.Node)
            weight, offset = parameter_of(graph_module, layer, 1), offsets[source]
            total = weight.reshape(*weight.shape[:2], -1).sum(2)
            columns = total[:, 0] * offset if is_depthwise(layer) else total @ offset
            parameter_of(graph_module, layer, 2).add_(columns)
        for node in group.tensors:
            if node.name in spans:
                low, high = spans[node.name]
                spans[node.name] = low - offsets[node], high - offsets[node]


def _movable(group: ChannelGroup) -> bool:
    layers = (*group.producers, *group.consumers)
    linear = all(is_layer(node) or _is_plain_sum(node) for node in group.tensors)
    biased = all(len(layer.args) > 2 and layer.args[2] is not None for layer in layers)
    return linear and biased and not any(map(is_padded, group.consumers))


def _is_plain_sum(node: fx.Node) -> bool:
    two = len(node.args) == 2 and all(isinstance(term, fx.Node) for term in node.args)
    return node.target in _SUMS and two and not node.kwargs


def _offsets(group: ChannelGroup, spans: dict[str, Span]) -> dict[fx.Node, Tensor]:
    """Returns what is taken off each tensor, ``(C,)``."""
    offsets: dict[fx.Node, Tensor] = {}
    for node in group.tensors:
        if is_layer(node):
            # a layer that only feeds a sum has no grid of its own: the sum decides
            offsets[node] = _middle(node, spans)
            continue
        first, second = node.args
        assert isinstance(first, fx.Node)
        assert isinstance(second, fx.Node)
        last = next((term for term in (second, first) if _feeds_only(term, node)), None)
        if last is not None and first is not second:
            other = first if last is second else second
            offsets[last] = _middle(node, spans) - offsets[other]
        offsets[node] = offsets[first] + offsets[second]
    return offsets


def _feeds_only(term: fx.Node, node: fx.Node) -> bool:
    return is_layer(term) and list(term.users) == [node]


def _middle(node: fx.Node, spans: dict[str, Span]) -> Tensor:
    span = spans.get(node.name)
    return torch.zeros(()) if span is None else (span[0] + span[1]) / 2
