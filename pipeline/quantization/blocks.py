"""A graph as a chain of blocks, one live tensor between two of them, each a function of its own.

Reconstruction works block by block (BRECQ, Li et al., arXiv 2102.05426, section 3.2): a residual
branch and its shortcut form one block, a plain layer is a block by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import fx

from fdda_deploy.errors import CalibrationError

_ATEN = torch.ops.aten
_WEIGHTED: frozenset[object] = frozenset(
    {
        _ATEN.conv1d,
        _ATEN.conv2d,
        _ATEN.conv3d,
        _ATEN.conv_transpose1d,
        _ATEN.conv_transpose2d,
        _ATEN.conv_transpose3d,
        _ATEN.convolution,
        _ATEN.linear,
    }
)
_BATCH_SIZE = _ATEN.sym_size.int


@dataclass(frozen=True)
class Block:
    """A part of a graph that reads one tensor and hands on one tensor.

    Attributes:
        source: Name of the node whose value it reads.
        result: Name of the node whose value it hands on.
        layers: Names of the convolutions and linear layers inside, in graph order.
    """

    source: str
    result: str
    layers: tuple[str, ...]


def find_blocks(graph_module: fx.GraphModule) -> list[Block]:
    """Returns the graph as a chain of blocks from its input to the node that feeds its output.

    A cut lies after every node that leaves one live tensor alone: nothing else that depends on the
    input is read later. Of the parts between two cuts, each with a weighted layer opens a block;
    the others (activation, pooling, flattening) end the block before them. A graph without an inner
    cut is one block. A tensor whose first axis is not the batch is no cut.
    """
    nodes = list(graph_module.graph.nodes)
    order = {node: index for index, node in enumerate(nodes)}
    cuts = _cuts(nodes, order)
    chain: list[Block] = []
    source, layers = cuts[0], list[str]()
    for before, after in pairwise(cuts):
        inside = nodes[order[before] + 1 : order[after] + 1]
        weighted = [node.name for node in inside if _is_weighted(node)]
        if weighted and layers:
            chain.append(Block(source.name, before.name, tuple(layers)))
            source, layers = before, []
        layers = layers + weighted
    chain.append(Block(source.name, cuts[-1].name, tuple(layers)))
    return chain


def extract(graph_module: fx.GraphModule, source: str, result: str) -> fx.GraphModule:
    """Returns the part of a graph that computes ``result`` from the value of ``source``.

    It shares every parameter, buffer and submodule with ``graph_module``: what is changed there in
    place, or by a quantizer there, is seen here. The tensor it is given is never written to. Node
    names stay; with ``source == result`` it is the identity. A batch size that the whole graph took
    from a tensor before ``source`` is read from axis 0 of the tensor given.

    Args:
        graph_module: A float graph, or that of a `QuantNetwork`. There the quantizer of a tensor
            comes right behind it, so it belongs to the part that reads the tensor.
        source: Node name; its value is the argument, batch first.
        result: Node name; its value is returned.

    Raises:
        CalibrationError: No node of that name, or ``result`` needs more than ``source``.
    """
    by_name = {node.name: node for node in graph_module.graph.nodes}
    for name in (source, result):
        if name not in by_name:
            raise CalibrationError(f"{name}: no node of that name in the graph. See find_blocks.")
    start, end = by_name[source], by_name[result]
    inside = depending_on([start], graph_module.graph.nodes)
    needed = _needed(start, end, inside)
    graph = fx.Graph()
    given = graph.placeholder(f"{source}_value")
    copies = {start: given}
    if _writes_to(start, [node for node in graph_module.graph.nodes if node in needed]):
        copies[start] = graph.call_function(_ATEN.clone.default, (given,))
    for node in graph_module.graph.nodes:
        if node not in needed:
            continue
        if node.target is _BATCH_SIZE and node.args[0] not in inside:
            copies[node] = graph.call_function(_BATCH_SIZE, (given, 0))
        else:
            copies[node] = graph.node_copy(node, lambda old: copies[old])
    graph.output(copies[end])
    return fx.GraphModule(graph_module, graph)


def _cuts(nodes: list[fx.Node], order: dict[fx.Node, int]) -> list[fx.Node]:
    """Returns the input node, every inner cut, and the node that feeds the output."""
    first = next(node for node in nodes if node.op == "placeholder")
    final = nodes[-1].all_input_nodes[0]
    variable = depending_on([first], nodes)
    batch = _batch_axis(first)
    found = [first]
    live: set[fx.Node] = set()
    for node in nodes[:-1]:
        if node not in variable:
            continue
        live = {other for other in (*live, node) if _last_reader(other, order) > order[node]}
        alone = live == {node} and node not in (first, final)
        if alone and _batch_axis(node) == batch and not _is_tuple(node):
            found.append(node)
    return [*found, final]


def _last_reader(node: fx.Node, order: dict[fx.Node, int]) -> int:
    """Returns the place of the last node that reads the value of ``node``, not just its size."""
    return max((order[u] for u in node.users if u.target is not _BATCH_SIZE), default=-1)


def depending_on(starts: Iterable[fx.Node], nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Returns ``starts`` and all whose value depends on theirs; sizes do not count as values."""
    found = set(starts)
    for node in nodes:
        if node.target is not _BATCH_SIZE and not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _needed(start: fx.Node, end: fx.Node, inside: set[fx.Node]) -> set[fx.Node]:
    """Returns the nodes that compute ``end`` from ``start``."""
    needed: set[fx.Node] = set()
    stack = [end]
    while stack:
        node = stack.pop()
        if node is start or node in needed:
            continue
        if node.op == "placeholder":
            raise CalibrationError(
                f"{end.name}: needs more than the value of {start.name}. "
                "Take source and result from find_blocks."
            )
        needed.add(node)
        if node.target is not _BATCH_SIZE or node.args[0] in inside:
            stack.extend(node.all_input_nodes)
    return needed


def _writes_to(start: fx.Node, nodes: list[fx.Node]) -> bool:
    """Whether one of ``nodes`` works in place on the memory of ``start``, or on a view of it."""
    views = {start}
    for node in nodes:
        for alias, argument in _aliased(node):
            if argument in views:
                if alias:
                    return True
                views.add(node)
    return False


def _aliased(node: fx.Node) -> Iterator[tuple[bool, object]]:
    """Yields (is written to, argument) for each argument whose memory the result shares."""
    if isinstance(node.target, torch._ops.OpOverload):
        for declared, argument in zip(node.target._schema.arguments, node.args, strict=False):
            if declared.alias_info is not None:
                yield declared.alias_info.is_write, argument


def _is_weighted(node: fx.Node) -> bool:
    return getattr(node.target, "overloadpacket", None) in _WEIGHTED


def _is_tuple(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), tuple | list)


def _batch_axis(node: fx.Node) -> str | None:
    """Returns the traced size of axis 0 as text; None where the graph carries no shapes."""
    value = node.meta.get("val")
    return str(value.shape[0]) if isinstance(value, torch.Tensor) and value.ndim else None
