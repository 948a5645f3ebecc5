"""What is reconstructed at a time: a block of the graph, or a layer with its activation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import fx

from fdda_deploy.pipeline.quantization.blocks import Block, extract

_ATEN = torch.ops.aten
_ACTIVATIONS: frozenset[object] = frozenset(
    {
        _ATEN.relu,
        _ATEN.relu_,
        _ATEN.relu6,
        _ATEN.relu6_,
        _ATEN.hardtanh,
        _ATEN.hardtanh_,
        _ATEN.clamp,
        _ATEN.clamp_,
        _ATEN.silu,
        _ATEN.silu_,
        _ATEN.hardswish,
        _ATEN.hardswish_,
        _ATEN.gelu,
    }
)


@dataclass(frozen=True)
class Unit:
    """A part of a block that is learned by itself.

    Attributes:
        source: Node whose value it reads.
        result: Node whose value it shall match.
        layers: Weighted nodes inside, in graph order.
        channel_axis: Of the result; the other axes are positions.
    """

    source: str
    result: str
    layers: tuple[str, ...]
    channel_axis: int


def units_of(float_module: fx.GraphModule, block: Block, granularity: str) -> tuple[Unit, ...]:
    """Returns the units of one block; none where it has no weighted layer.

    With ``layer`` each weighted node is one, together with the activation function that alone reads
    it (AdaRound, arXiv 2004.10568, eq. 25).
    """
    by_name = {node.name: node for node in float_module.graph.nodes}
    if not block.layers:
        return ()
    if granularity == "block":
        axis = _channel_axis(by_name[block.layers[-1]])
        return (Unit(block.source, block.result, block.layers, axis),)
    found = []
    for name in block.layers:
        node = by_name[name]
        given = node.all_input_nodes[0]
        end = _with_activation(node).name if name != block.result else name
        found.append(Unit(given.name, end, (name,), _channel_axis(node)))
    return tuple(found)


def exclusive_targets(module: fx.GraphModule, units: list[Unit]) -> set[str]:
    """Returns the submodules and parameters that just one of ``units`` uses.

    What two of them share cannot follow both: the second would undo what the first relied on.

    Args:
        module: Of the quantized network.
        units: All of them.
    """
    used: Counter[str] = Counter()
    for unit in units:
        graph = extract(module, unit.source, unit.result).graph
        used.update({str(n.target) for n in graph.nodes if n.op in {"call_module", "get_attr"}})
    return {name for name, count in used.items() if count == 1}


def _with_activation(node: fx.Node) -> fx.Node:
    """Returns the activation function that is the only reader of ``node``, else ``node``."""
    readers = [user for user in node.users if user.target is not _ATEN.sym_size.int]
    if len(readers) == 1 and getattr(readers[0].target, "overloadpacket", None) in _ACTIVATIONS:
        return readers[0]
    return node


def _channel_axis(node: fx.Node) -> int:
    """Returns the channel axis behind a layer: a linear layer's last, a convolution's second."""
    return -1 if node.target is _ATEN.linear.default else 1
