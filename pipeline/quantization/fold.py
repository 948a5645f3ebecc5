"""BatchNorm folding on the traced graph: a weighted layer and its BatchNorm become one."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, fx, nn

from fdda_deploy.pipeline.network import BATCH_NORM, graph_module_from, parameter_of

_ATEN = torch.ops.aten
OUTPUT_AXIS: dict[object, int] = {
    _ATEN.conv1d.default: 0,
    _ATEN.conv2d.default: 0,
    _ATEN.conv2d.padding: 0,
    _ATEN.conv3d.default: 0,
    _ATEN.linear.default: 0,
    _ATEN.conv_transpose2d.input: 1,
}
"""Weighted operators that a BatchNorm can fold into, with the output-channel axis of the weight."""

_GROUPS_ARGUMENT: dict[object, int] = {_ATEN.conv_transpose2d.input: 6}


def fold_batch_norm(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """Returns the network with each foldable BatchNorm merged into the layer before it.

    ``w' = w * gamma / sqrt(var + eps)`` per output channel and
    ``b' = (b - mean) * gamma / sqrt(var + eps) + beta``, computed in float64. A BatchNorm that does
    not follow a weighted layer of its own (pre-activation networks) stays as it is. Parameters keep
    their names; a weight that two different BatchNorms follow is split into two.
    """
    graph_module = graph_module_from(program)
    with torch.no_grad():
        _fold_all(graph_module)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    graph_module.delete_all_unused_submodules()
    return graph_module


def _fold_all(graph_module: fx.GraphModule) -> None:
    pairs = [
        (node.args[0], node)
        for node in graph_module.graph.nodes
        if node.target is BATCH_NORM and _foldable(node)
    ]
    keys_of_weight: dict[str, set[tuple[object, ...]]] = defaultdict(set)
    readers_of_weight: dict[str, int] = defaultdict(int)
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            readers_of_weight[str(node.target)] += len(node.users)
    for layer, norm in pairs:
        keys_of_weight[str(layer.args[1].target)].add(_key(layer, norm))
    folded_readers: dict[str, int] = defaultdict(int)
    for layer, _ in pairs:
        folded_readers[str(layer.args[1].target)] += 1
    names: dict[tuple[object, ...], tuple[str, str]] = {}
    for layer, norm in pairs:
        key = _key(layer, norm)
        weight_name = str(layer.args[1].target)
        if key not in names:
            private = len(keys_of_weight[weight_name]) > 1 or (
                readers_of_weight[weight_name] > folded_readers[weight_name]
            )
            names[key] = _store_folded(graph_module, layer, norm, private, len(names))
        _rewire(graph_module, layer, norm, *names[key])


def _foldable(norm: fx.Node) -> bool:
    layer = norm.args[0]
    if not isinstance(layer, fx.Node) or layer.target not in OUTPUT_AXIS or len(layer.users) != 1:
        return False
    groups_index = _GROUPS_ARGUMENT.get(layer.target)
    if (
        groups_index is not None
        and len(layer.args) > groups_index
        and layer.args[groups_index] != 1
    ):
        return False  # grouped transposed convolutions interleave output channels over two axes
    reads = [layer.args[1], *(layer.args[2:3])]
    return all(read is None or getattr(read, "op", "") == "get_attr" for read in reads)


def _key(layer: fx.Node, norm: fx.Node) -> tuple[object, ...]:
    """Identifies one (weight, bias, BatchNorm) combination: shared modules fold once."""
    bias = layer.args[2] if len(layer.args) > 2 else None
    return (
        str(getattr(layer.args[1], "target", None)),
        str(getattr(bias, "target", None)),
        *(str(getattr(argument, "target", argument)) for argument in norm.args[1:5]),
        norm.args[7],
    )


def _store_folded(
    graph_module: fx.GraphModule, layer: fx.Node, norm: fx.Node, private: bool, index: int
) -> tuple[str, str]:
    """Stores the folded weight and bias; returns their names."""
    weight = parameter_of(graph_module, layer.args[1]).double()
    bias_node = layer.args[2] if len(layer.args) > 2 else None
    gamma, beta, mean, var = (
        None if node is None else parameter_of(graph_module, node).double()
        for node in norm.args[1:5]
    )
    assert mean is not None
    assert var is not None
    eps = norm.args[7]
    assert isinstance(eps, float)
    factor = (var + eps).rsqrt() * (1.0 if gamma is None else gamma)
    bias = torch.zeros_like(mean) if bias_node is None else parameter_of(graph_module, bias_node)
    axis = OUTPUT_AXIS[layer.target]
    shape = [-1 if d == axis else 1 for d in range(weight.ndim)]
    new_weight = weight * factor.reshape(shape)
    new_bias = (bias.double() - mean) * factor + (0.0 if beta is None else beta)
    stem = str(layer.args[1].target).removesuffix(".weight")  # type: ignore[union-attr]  # a get_attr node
    if private:
        stem = f"{stem}_folded{index}"
    _set_parameter(graph_module, f"{stem}.weight", new_weight.float())
    _set_parameter(graph_module, f"{stem}.bias", new_bias.float())
    return f"{stem}.weight", f"{stem}.bias"


def _rewire(
    graph_module: fx.GraphModule, layer: fx.Node, norm: fx.Node, weight: str, bias: str
) -> None:
    graph = graph_module.graph
    with graph.inserting_before(layer):
        weight_node, bias_node = graph.get_attr(weight), graph.get_attr(bias)
    layer.args = (layer.args[0], weight_node, bias_node, *layer.args[3:])
    norm.replace_all_uses_with(layer)
    graph.erase_node(norm)


def _set_parameter(graph_module: fx.GraphModule, name: str, value: Tensor) -> None:
    """Stores ``value`` under a dotted name, making plain modules on the way."""
    *path, leaf = name.split(".")
    owner: nn.Module = graph_module
    for part in path:
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    if leaf in owner._buffers:
        del owner._buffers[leaf]
    owner._parameters[leaf] = nn.Parameter(value)
