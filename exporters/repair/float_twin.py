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

The two twins then compute the same, to float rounding. And because the first twin has the values
that every grid was made for, the old and the new grid of a tensor are probed on those.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from fdda_deploy.exporters.repair.editing import GraphEdit
from fdda_deploy.exporters.repair.grids import Grid, grid_of
from fdda_deploy.exporters.repair.implied import CARRIERS, RELU6, float_source, implies_relu

_PROBE = "fdda_probe"


@dataclass(frozen=True)
class Probe:
    """One tensor whose grid a repair changed, measured on the float network's values.

    Attributes:
        tensor: What both graphs quantize.
        old: Output of the twin with the old grid's mean squared error.
        new: Output of the twin with the new grid's.
        step: The old grid's.
        widening: What keeping the range around zero-point 0 costs, in steps of the old grid: 1 to
            255 / 127.
        widened: A step of the new grid over what ``widening`` makes of one of the old.
        shift: What biases added to the tensor, 0 where they took up no zero-point.
        means: Where there is a shift, outputs with the tensor's mean: of the old twin, and the new.
    """

    tensor: str
    old: str
    new: str
    step: float
    widening: float
    widened: float
    shift: float = 0.0
    means: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Twins:
    """Two graphs without their pairs on activations.

    Attributes:
        before: Of the graph as it was, with the outputs that the probes name.
        after: Of the repaired graph; computes what ``before`` does.
        probes: One per tensor whose grid changed.
    """

    before: onnx.ModelProto
    after: onnx.ModelProto
    probes: tuple[Probe, ...]


@dataclass(frozen=True)
class _Pair:
    quantize: onnx.NodeProto
    ends: tuple[onnx.NodeProto, ...]
    grid: Grid
    source: str


def float_twins(before: onnx.ModelProto, after: onnx.ModelProto) -> Twins:
    """Returns what ``before`` and its repaired form ``after`` compute without rounding activations.

    Args:
        before: Written with Q and DQ of ONNX's domain (`repairing.NOTATION`), else as it was.
        after: The repaired graph.
    """
    old, new = _editable(before), _editable(after)
    old_pairs, new_pairs = list(_pairs(old)), list(_pairs(new))
    matched = [(pair, *_matched(new, pair, old_pairs)) for pair in new_pairs]
    made_of = [(pair, _read_as(new, pair, old, known)) for pair, known, _ in matched]
    floats = {id(pair): (pair, float_source(old, pair.quantize)) for pair in old_pairs}
    probes = [
        _probe(old, known, (pair, rectified), (new, floats[id(known)][1], read))
        for (pair, known, rectified), (_, read) in zip(matched, made_of, strict=True)
        if known is not None and not known.grid.same_as(pair.grid)
    ]
    for graph, pairs in ((old, floats.values()), (new, made_of)):
        for pair, name in pairs:
            _bypass(graph, pair, name)
    before, after = old.finish(), new.finish()
    for probe in probes:
        _show(before, probe.old, probe.new, probe.means[0])
        _show(after, probe.means[1])
    return Twins(before, after, tuple(probes))


def _show(model: onnx.ModelProto, *names: str) -> None:
    for name in filter(None, names):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def _editable(model: onnx.ModelProto) -> GraphEdit:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return GraphEdit(copy)


def _pairs(graph: GraphEdit) -> Iterator[_Pair]:
    """Yields every Q on an activation whose integers all end in a DQ, with those."""
    for node in graph.of_type("QuantizeLinear"):
        grid = grid_of(graph, node)
        ends = None if graph.tensor(node.input[0]) is not None else _ends(graph, node)
        if grid is not None and ends:
            yield _Pair(node, tuple(ends), grid, str(node.input[0]))


def _ends(graph: GraphEdit, quantize: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    found, pending = [], [quantize.output[0]]
    while pending:
        tensor = pending.pop()
        if tensor in graph.pinned:
            return None
        for node, index in graph.readers(tensor):
            if node.op_type == "DequantizeLinear" and index == 0:
                found.append(node)
            elif node.op_type in CARRIERS and index == 0 and not node.domain:
                pending += [name for name in node.output if name]
            else:
                return None
    return found


def _matched(graph: GraphEdit, pair: _Pair, old_pairs: list[_Pair]) -> tuple[_Pair | None, bool]:
    """Returns the old pair of a new one's tensor, and whether a ReLU came in between.

    Of several pairs on one tensor it is the one whose steps the new grid fits best.
    """
    node = graph.producer(pair.source)
    found, rectified = [old for old in old_pairs if old.source == pair.source], False
    if not found and node is not None and node.op_type in {"Relu", "Clip"}:
        found, rectified = [old for old in old_pairs if old.source == node.input[0]], True
    best = min(found, key=lambda old: abs(np.log(_widened(old, pair))), default=None)
    return best, rectified


def _shift(old: _Pair, new: _Pair) -> float:
    """Returns what biases added so that a grid of the same steps needs no zero-point, else 0."""
    kept = old.grid.axis is None and float(old.grid.scale) == float(new.grid.scale.max())
    if not kept or old.grid.symmetric or not new.grid.repaired:
        return 0.0
    return (int(old.grid.zero_point) - old.grid.middle) * float(old.grid.scale)


def _widening(old: _Pair, new: _Pair) -> float:
    if _shift(old, new):
        return 1.0
    return float(old.grid.amax.max() / 127 / old.grid.scale.max())


def _widened(old: _Pair, new: _Pair) -> float:
    return float(new.grid.scale.max() / old.grid.scale.max()) / _widening(old, new)


def _is_relu6(graph: GraphEdit, pair: _Pair) -> bool:
    """Returns whether the grid stood for a ReLU6, as `implied.float_source` judges it."""
    stands_for_relu = implies_relu(graph, pair.source, pair.grid)
    return stands_for_relu and float(pair.grid.amax) <= RELU6 * (1 + 1e-5)


def _read_as(graph: GraphEdit, pair: _Pair, origin: GraphEdit, known: _Pair | None) -> str:
    """Returns the pair's source with the ends that its new grid has to stand for.

    Cut off at 6 and not at 0, so that a ReLU that a repair forgot shows; but where biases moved the
    tensor, what INT8 itself cuts off was the ReLU.
    """
    if known is None:
        return pair.source
    shift, capped = _shift(known, pair), _is_relu6(origin, known)
    low = -128 * float(pair.grid.scale) if shift and known.grid.starts_at_zero else None
    node = graph.producer(pair.source)
    if low is None and (not capped or (node is not None and node.op_type == "Clip")):
        return pair.source
    output = graph.fresh(f"{pair.source}_capped")
    bounds = [
        ""
        if bound is None
        else graph.add_constant(output, np.asarray(bound, pair.grid.scale.dtype))
        for bound in (low, RELU6 + shift if capped else None)
    ]
    graph.add_node("Clip", [pair.source, *bounds], output)
    return output


def _bypass(graph: GraphEdit, pair: _Pair, source: str) -> None:
    for node, read in ((pair.quantize, source), *((end, end.input[0]) for end in pair.ends)):
        graph.remove(node)
        graph.add_node("Identity", [read], node.output[0])


def _probe(
    graph: GraphEdit,
    pair: _Pair,
    repaired: tuple[_Pair, bool],
    origin: tuple[GraphEdit, str, str],
) -> Probe:
    """Adds to ``graph`` the mean squared errors of the old and the new grid on one tensor."""
    (other, rectified), (new, wanted, read_as) = repaired, origin
    read, shift, means = pair.source, _shift(pair, other), ("", "")
    if rectified:
        read = graph.fresh(f"{_PROBE}_relu")
        graph.add_node("Relu", [pair.source], read)
    old = _squared_error(graph, graph, pair, pair.source, wanted)
    if shift:
        means = _mean(graph, wanted), _mean(new, read_as)
        read, wanted = (_raised(graph, name, shift) for name in (read, wanted))
    after = _squared_error(graph, new, other, read, wanted)
    step = float(pair.grid.scale.max())
    steps = _widening(pair, other), _widened(pair, other)
    return Probe(pair.source, old, after, step, *steps, shift, means)


def _mean(graph: GraphEdit, tensor: str) -> str:
    mean = graph.fresh(f"{_PROBE}_mean")
    graph.add_node("ReduceMean", [tensor], mean, keepdims=0)
    graph.pinned.add(mean)
    return mean


def _raised(graph: GraphEdit, tensor: str, shift: float) -> str:
    output = graph.fresh(f"{_PROBE}_raised")
    amount = graph.add_constant(f"{output}_by", np.asarray(shift, np.float32))
    graph.add_node("Add", [tensor, amount], output)
    return output


def _squared_error(graph: GraphEdit, owner: GraphEdit, pair: _Pair, read: str, wanted: str) -> str:
    """Adds ``mean((DQ(Q(read)) - wanted)^2)`` with the nodes of ``pair``; returns its name."""
    for node in (pair.quantize, pair.ends[0]):
        held = [owner.constant(name) for name in node.input[1:] if name]
        names = [graph.add_constant(_PROBE, value) for value in held if value is not None]
        made = graph.fresh(f"{_PROBE}_{node.op_type}")
        graph.add_node(node.op_type, [read, *names], made).attribute.extend(node.attribute)
        read = made
    error, single, squared = (
        graph.fresh(f"{_PROBE}_{what}") for what in ("error", "single", "squared")
    )
    graph.add_node("Sub", [read, wanted], error)
    graph.add_node("Cast", [error], single, to=TensorProto.FLOAT)
    graph.add_node("Mul", [single, single], squared)
    return _mean(graph, squared)
