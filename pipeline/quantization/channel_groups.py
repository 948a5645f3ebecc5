"""Tensors whose channels can be rescaled only together, and the layers that pay for it.

A channel of a convolution's output can be multiplied by any ``a > 0`` if whoever reads it divides
by ``a``. Operators that are positively homogeneous (ReLU, pooling, addition) hand the factor on, so
the tensors they join share one factor per channel; any other operator holds its tensors at 1.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn

from fdda_deploy.pipeline.quantization.blocks import depending_on

_ATEN = torch.ops.aten
_LAYER_NDIM: dict[object, int] = {
    _ATEN.linear.default: 2,
    _ATEN.conv1d.default: 3,
    _ATEN.conv2d.default: 4,
    _ATEN.conv2d.padding: 4,
    _ATEN.conv3d.default: 5,
}
"""Layers whose weight is (C_out, C_in, ...), with the axes of a tensor that has channels on 1."""

_ELEMENTWISE: frozenset[object] = frozenset(
    {
        *(_ATEN.relu, _ATEN.relu_, _ATEN.leaky_relu, _ATEN.leaky_relu_),
        *(_ATEN.dropout, _ATEN.dropout_, _ATEN.clone, _ATEN.contiguous),
    }
)
_SUMS: frozenset[object] = frozenset({_ATEN.add, _ATEN.add_, _ATEN.sub, _ATEN.sub_})
_ROW_MAJOR: frozenset[object] = frozenset(
    {_ATEN.view, _ATEN.reshape, _ATEN.flatten, _ATEN.squeeze, _ATEN.unsqueeze}
)
_POOLING_NDIM: dict[object, int] = {
    **dict.fromkeys((_ATEN.max_pool1d, _ATEN.avg_pool1d, _ATEN.adaptive_avg_pool1d), 3),
    **dict.fromkeys((_ATEN.max_pool2d, _ATEN.avg_pool2d, _ATEN.adaptive_avg_pool2d), 4),
    **dict.fromkeys((_ATEN.max_pool3d, _ATEN.avg_pool3d, _ATEN.adaptive_avg_pool3d), 5),
}
"""Pooling operators, with the number of axes a batch has: without a batch axis, 1 is no channel."""

Shapes = Mapping[str, torch.Size]
"""The shape of each tensor of a graph by node name, as one batch gave it."""


@dataclass(frozen=True)
class ChannelGroup:
    """Tensors of C channels each that are rescaled together.

    Attributes:
        tensors: All of them, in graph order; channels on axis 1.
        producers: The layers among them: their rows (C of them) and biases are multiplied.
        consumers: The layers that read one of them: their columns are divided.
        clips: The tensors among them that an operator clipped to ``[0, upper]``, with ``upper``.
    """

    tensors: tuple[fx.Node, ...]
    producers: tuple[fx.Node, ...]
    consumers: tuple[fx.Node, ...]
    clips: tuple[tuple[fx.Node, float], ...]


def is_layer(node: fx.Node) -> bool:
    """Whether the node is a convolution or a linear layer."""
    return node.target in _LAYER_NDIM


def is_depthwise(node: fx.Node) -> bool:
    """Whether a layer of a `ChannelGroup` has channel groups: then it has one for each channel."""
    return _groups(node) != 1


def clip_bounds(node: fx.Node) -> tuple[float, float] | None:
    """Returns the bounds of a clipping operator (ReLU6, hardtanh, clamp); None for any other."""
    if node.target in (_ATEN.relu6.default, _ATEN.relu6_.default):
        return 0.0, 6.0
    if node.target in (_ATEN.hardtanh.default, _ATEN.hardtanh_.default):
        lower = _argument(node, 1, "min_val", -1.0)
        upper = _argument(node, 2, "max_val", 1.0)
    elif node.target in (_ATEN.clamp.default, _ATEN.clamp_.default):
        lower, upper = _argument(node, 1, "min", None), _argument(node, 2, "max", None)
    else:
        return None
    return (
        float(lower) if isinstance(lower, int | float) else -math.inf,
        float(upper) if isinstance(upper, int | float) else math.inf,
    )


def parameter_of(graph_module: fx.GraphModule, layer: fx.Node, index: int) -> nn.Parameter:
    """Returns the weight (index 1) or the bias (2) of a layer whose parameters are its own."""
    node = layer.args[index]
    assert isinstance(node, fx.Node)
    return graph_module.get_parameter(str(node.target))


def is_padded(node: fx.Node) -> bool:
    """Whether a layer reads zeros that are not in its input."""
    if node.target is _ATEN.linear.default:
        return False
    padding = _argument(node, 4, "padding", 0)
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, list | tuple) else bool(padding)


def find_channel_groups(graph_module: fx.GraphModule, shapes: Shapes) -> list[ChannelGroup]:
    """Returns the groups that may be rescaled, in graph order.

    Left out is every group with a tensor that the network takes or returns, that another operator
    makes or reads, or that a layer touches whose weight or bias is read a second time, is computed,
    or has channel groups that are neither one nor one per channel; also a linear layer over more
    than ``(N, C)``, and a clip whose lower bound is not 0.

    Args:
        graph_module: A float graph; BatchNorm folded, or it stands between and holds its tensors.
        shapes: Of every tensor in it, from a run on any batch.
    """
    nodes = list(graph_module.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    variable = depending_on(inputs, nodes)
    values = [node for node in nodes if node in variable and node.op != "output"]
    private = _private_parameters(graph_module)
    ties = _Ties(values)
    for node in values:
        if is_layer(node):
            if not _scalable(node, shapes, private):
                ties.freeze(node, *node.all_input_nodes)
        elif (tied := _tied_inputs(node, shapes)) is not None:
            ties.join(node, *tied)
        else:
            ties.freeze(node, *node.all_input_nodes)
    ties.freeze(*nodes[-1].all_input_nodes)
    return [group for members in ties.groups() if (group := _group(members)) is not None]


class _Ties:
    """Disjoint sets of tensors (union-find), some of them frozen."""

    def __init__(self, values: list[fx.Node]) -> None:
        self._parent = {node: node for node in values}
        self._frozen: set[fx.Node] = set()

    def _root(self, node: fx.Node) -> fx.Node:
        while self._parent[node] is not node:
            self._parent[node] = node = self._parent[self._parent[node]]
        return node

    def join(self, node: fx.Node, *others: fx.Node) -> None:
        """Puts ``others`` into the set of ``node``."""
        for other in others:
            self._parent[self._root(other)] = self._root(node)

    def freeze(self, *nodes: fx.Node) -> None:
        """Takes the sets of ``nodes`` out; constants among them are in no set."""
        self._frozen.update(node for node in nodes if node in self._parent)

    def groups(self) -> list[list[fx.Node]]:
        """Returns the sets without a frozen tensor, each in graph order."""
        members: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        for node in self._parent:
            members[self._root(node)].append(node)
        frozen = {self._root(node) for node in self._frozen}
        return [nodes for root, nodes in members.items() if root not in frozen]


def _group(members: list[fx.Node]) -> ChannelGroup | None:
    """Returns the group of these tensors; None where no layer is there to take the inverse."""
    readers = dict.fromkeys(user for node in members for user in node.users if is_layer(user))
    clips = [
        (node, bounds[1])
        for node in members
        if (bounds := clip_bounds(node)) is not None and math.isfinite(bounds[1])
    ]
    producers = tuple(node for node in members if is_layer(node))
    if not readers or not producers:
        return None
    return ChannelGroup(tuple(members), producers, tuple(readers), tuple(clips))


def _private_parameters(graph_module: fx.GraphModule) -> set[str]:
    """Returns the names of the parameters whose memory one node alone reads."""
    parameters = dict(graph_module.named_parameters(remove_duplicate=False))
    reads = [
        (node, _memory(parameters[node.target]))
        for node in graph_module.graph.nodes
        if node.op == "get_attr" and node.target in parameters
    ]
    readers: Counter[int] = Counter()
    for node, memory in reads:
        readers[memory] += len(node.users)
    return {str(node.target) for node, memory in reads if readers[memory] == 1}


def _memory(parameter: nn.Parameter) -> int:
    return parameter.untyped_storage().data_ptr()


def _scalable(node: fx.Node, shapes: Shapes, private: set[str]) -> bool:
    """Whether the rows, bias and columns of a layer can be multiplied without touching another."""
    x, held = node.args[0], [argument for argument in node.args[1:3] if argument is not None]
    if node.kwargs or not isinstance(x, fx.Node) or x.name not in shapes:
        return False
    if any(str(getattr(parameter, "target", None)) not in private for parameter in held):
        return False
    shape, shape_in = shapes[node.name], shapes[x.name]
    if {len(shape), len(shape_in)} != {_LAYER_NDIM[node.target]}:
        return False
    return not is_depthwise(node) or _groups(node) == shape_in[1] == shape[1]


def _tied_inputs(node: fx.Node, shapes: Shapes) -> list[fx.Node] | None:
    """Returns the inputs that share each channel's factor with ``node``; None where none can."""
    is_sum = _packet(node) in _SUMS
    terms = node.args[: 2 if is_sum else 1]
    inputs = [term for term in terms if isinstance(term, fx.Node)]
    tensors = [node, *inputs]
    if not inputs or len(inputs) != len(terms) or any(t.name not in shapes for t in tensors):
        return None
    leading = {shapes[tensor.name][:2] for tensor in tensors}
    if len(leading) != 1 or len(leading.pop()) != 2:
        return None
    if is_sum:  # numbers of axes that differ are aligned from behind: channels meet other axes
        return inputs if len({len(shapes[tensor.name]) for tensor in tensors}) == 1 else None
    return inputs if _hands_on(node, len(shapes[inputs[0].name])) else None


def _hands_on(node: fx.Node, ndim: int) -> bool:
    """Whether a positive factor on a channel of the input comes out as it went in."""
    packet = _packet(node)
    bounds = clip_bounds(node)
    if bounds is not None:
        return bounds[0] == 0 < bounds[1]
    if packet in _POOLING_NDIM:
        return ndim == _POOLING_NDIM[packet]
    if packet is _ATEN.mean:
        return _keeps_channels(node, ndim)
    return packet in _ELEMENTWISE or packet in _ROW_MAJOR


def _keeps_channels(mean: fx.Node, ndim: int) -> bool:
    """Whether a mean runs over axes behind the channels only."""
    axes = _argument(mean, 1, "dim", None)
    return isinstance(axes, list | tuple) and all(
        isinstance(axis, int) and axis % ndim >= 2 for axis in axes
    )


def _groups(layer: fx.Node) -> object:
    return 1 if layer.target is _ATEN.linear.default else _argument(layer, 6, "groups", 1)


def _packet(node: fx.Node) -> object:
    return getattr(node.target, "overloadpacket", None)


def _argument(node: fx.Node, index: int, name: str, default: object) -> object:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)
