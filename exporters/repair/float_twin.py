"""The float network that a Q/DQ graph stands for, and how well its grids fit that network's values.

A repair may change roundings, never the network. Roundings hide it, though: on a deep network two
right graphs are far apart. So the pairs on activations are taken out of both graphs:

1. Integers between Q and DQ become floats; what only moves them (MaxPool, Reshape) moves floats.
2. A grid that stood for a ReLU or ReLU6 leaves that function behind, as in `implied`.
3. Weights and biases stay as each graph has them, behind their own DequantizeLinear: the runtime
   computes them, not this package, so that a fault in a repair cannot repeat itself here.
4. What is not an 8-bit pair with constant operands stays as it is, in both.
5. Where biases took a zero-point up, INT8's lowest value is what cuts off below, and the mean of
   the tensor has moved by exactly that.

6. A tensor that layers multiplied is as many times as large in the second.

The two twins then compute the same, to float rounding. And because the first twin has the values
that every grid was made for, the old and the new grid of a tensor are probed on those.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from fdda_deploy.exporters.repair.editing import Array, GraphEdit
from fdda_deploy.exporters.repair.grids import grid_of
from fdda_deploy.exporters.repair.implied import RELU6, float_source, implies_relu
from fdda_deploy.exporters.repair.notes import Notes
from fdda_deploy.exporters.repair.pairs import Match, Pair, activation_pairs, matched
from fdda_deploy.exporters.repair.probes import (
    Probe,
    add_mean,
    add_raised,
    add_relu,
    add_squared_error,
)
from fdda_deploy.exporters.rules.graph import WEIGHTED_OPS


@dataclass(frozen=True)
class Rounded:
    """A layer's weight that was quantized anew, in both twins.

    Attributes:
        layer: Its node's name.
        before: Output of the old twin with the weight.
        after: Output of the new one with it.
        factor: How many times as large it is there.
        step: Of its new grid.
    """

    layer: str
    before: str
    after: str
    factor: float
    step: float


@dataclass(frozen=True)
class Twins:
    """Two graphs without their pairs on activations.

    Attributes:
        before: Of the graph as it was, with the outputs that the probes name.
        after: Of the repaired graph; computes what ``before`` does.
        probes: One per tensor whose grid changed.
        weights: One per layer whose weight was quantized anew.
    """

    before: onnx.ModelProto
    after: onnx.ModelProto
    probes: tuple[Probe, ...]
    weights: tuple[Rounded, ...]


def with_weights(model: onnx.ModelProto, weights: Mapping[str, Array]) -> onnx.ModelProto:
    """Returns a copy of ``model`` in which layers have other weights.

    Args:
        model: For instance `Twins.before`.
        weights: By the name of the layer's node.
    """
    graph = _editable(model)
    for node in graph.of_type(*WEIGHTED_OPS):
        if node.name in weights:
            weight = graph.add_constant(f"{node.input[1]}_given", weights[node.name])
            graph.rewire(node, 1, weight)
    return graph.finish()


def float_twins(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    notes: Notes | None = None,
    rounded: Collection[str] = (),
) -> Twins:
    """Returns what ``before`` and its repaired form ``after`` compute without rounding activations.

    Args:
        before: Written with Q and DQ of ONNX's domain (`repairing.NOTATION`), else as it was.
        after: The repaired graph.
        notes: Which tensors the repair moved and scaled; what it did to them is not taken from it.
        rounded: Names of the layers whose weight the repair quantized anew.
    """
    old, new, notes = _editable(before), _editable(after), notes or Notes()
    old_pairs, new_pairs = list(activation_pairs(old)), list(activation_pairs(new))
    matches = [matched(new, pair, old_pairs, notes) for pair in new_pairs]
    made_of = [(match.new, _read_as(new, match, old)) for match in matches]
    floats = {id(pair): (pair, float_source(old, pair.quantize)) for pair in old_pairs}
    weights = tuple(_rounded(old, new, name, notes) for name in rounded)
    probes = [
        _probe(old, match, match.old, (new, floats[id(match.old)][1], read))
        for match, (_, read) in zip(matches, made_of, strict=True)
        if match.old is not None and not match.old.grid.same_as(match.new.grid)
    ]
    for graph, pairs in ((old, floats.values()), (new, made_of)):
        for pair, name in pairs:
            _bypass(graph, pair, name)
    before, after = old.finish(), new.finish()
    for probe in probes:
        _show(before, probe.old, probe.new, probe.means[0])
        _show(after, probe.means[1])
    _show(before, *dict.fromkeys(weight.before for weight in weights))
    _show(after, *dict.fromkeys(weight.after for weight in weights))
    return Twins(before, after, tuple(probes), weights)


def _rounded(old: GraphEdit, new: GraphEdit, name: str, notes: Notes) -> Rounded:
    """Returns where both twins have the weight of a layer."""
    nodes = [
        next(node for node in graph.of_type(*WEIGHTED_OPS) if node.name == name)
        for graph in (old, new)
    ]
    dequantize = new.producer(nodes[1].input[1])
    grid = None if dequantize is None else grid_of(new, dequantize)
    step = 0.0 if grid is None else float(grid.scale.max())
    for graph, node in zip((old, new), nodes, strict=True):
        graph.pinned.add(node.input[1])
    factor = notes.multiplied.get(name, 1.0)
    return Rounded(name, nodes[0].input[1], nodes[1].input[1], factor, step)


def _show(model: onnx.ModelProto, *names: str) -> None:
    for name in filter(None, names):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def _editable(model: onnx.ModelProto) -> GraphEdit:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return GraphEdit(copy)


def _is_relu6(graph: GraphEdit, pair: Pair) -> bool:
    """Returns whether the grid stood for a ReLU6, as `implied.float_source` judges it."""
    stands_for_relu = implies_relu(graph, pair.source, pair.grid)
    return stands_for_relu and float(pair.grid.amax) <= RELU6 * (1 + 1e-5)


def _read_as(graph: GraphEdit, match: Match, origin: GraphEdit) -> str:
    """Returns the pair's source with the ends that its new grid has to stand for.

    Cut off at 6 and not at 0, so that a ReLU that a repair forgot shows; but where biases moved the
    tensor, what INT8 itself cuts off was the ReLU. And only where the new grid ends there too.
    """
    pair, known = match.new, match.old
    if known is None:
        return pair.source
    shift = match.shift(known)
    ends_there = 127 * match.scale - shift <= RELU6 * (1 + 1e-4)
    capped = _is_relu6(origin, known) and ends_there
    low = -128 * float(pair.grid.scale) if shift and known.grid.starts_at_zero else None
    node = graph.producer(pair.source)
    if low is None and (not capped or (node is not None and node.op_type == "Clip")):
        return pair.source
    output = graph.fresh(f"{pair.source}_capped")
    bounds = [
        ""
        if bound is None
        else graph.add_constant(output, np.asarray(bound, pair.grid.scale.dtype))
        for bound in (low, (RELU6 + shift) * match.factor if capped else None)
    ]
    graph.add_node("Clip", [pair.source, *bounds], output)
    return output


def _bypass(graph: GraphEdit, pair: Pair, source: str) -> None:
    for node, read in ((pair.quantize, source), *((end, end.input[0]) for end in pair.ends)):
        graph.remove(node)
        graph.add_node("Identity", [read], node.output[0])


def _probe(graph: GraphEdit, match: Match, pair: Pair, origin: tuple[GraphEdit, str, str]) -> Probe:
    """Adds to ``graph`` the mean squared errors of the old and the new grid on one tensor."""
    new, wanted, read_as = origin
    shift, means = match.shift(pair), ("", "")
    read = add_relu(graph, pair.source) if match.rectified else pair.source
    old = add_squared_error(graph, (graph, pair), pair.source, wanted)
    if shift:
        means = add_mean(graph, wanted), add_mean(new, read_as)
        read, wanted = (add_raised(graph, name, shift) for name in (read, wanted))
    after = add_squared_error(graph, (new, match.new), read, wanted, match.factor)
    return Probe(
        pair.source,
        old,
        after,
        step=float(pair.grid.scale.max()),
        widening=match.widening(pair),
        widened=match.widened(pair),
        coarsened=match.coarsened,
        factor=match.factor,
        shift=shift,
        means=means,
    )
