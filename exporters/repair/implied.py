"""The activation function that a grid stood for: quantizers drop a ReLU that a Q does anyway.

A grid whose smallest value is 0 maps everything negative to 0, as ReLU does, and everything above
its end to its end. Whoever reads the tensor in float, or on a symmetric grid, needs the function
back. Which one it was is gone: where the grid ends at 6 or before, ReLU6 is put back, which on the
grid's range agrees with ReLU too; where it ends later it was no ReLU6, and ReLU is put back.
"""

from __future__ import annotations

import numpy as np
import onnx

from fdda_deploy.exporters.repair.editing import GraphEdit
from fdda_deploy.exporters.repair.grids import Grid, grid_of
from fdda_deploy.exporters.repair.nodes import attribute
from fdda_deploy.exporters.rules.graph import MOVERS

CARRIERS = MOVERS | {"MaxPool"}
"""Operators that pass integers on unchanged, in order of size."""
NEVER_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "Abs", "Sqrt"})
POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax"})
PASSING = CARRIERS | POOLS | {"Dropout"}
RELU6 = 6.0
_SUFFIX = "_relu"
COMBINING = frozenset({"Add", "Mul", "Concat"})


def float_source(graph: GraphEdit, quantize: onnx.NodeProto) -> str:
    """Returns the float tensor to read in place of what ``quantize`` makes, rectified as it was."""
    source = str(quantize.input[0])
    grid = grid_of(graph, quantize)
    if grid is None or not implies_relu(graph, source, grid):
        return source
    return rectified(graph, source) or _rectify(graph, source, grid)


def implies_relu(graph: GraphEdit, source: str, grid: Grid) -> bool:
    """Returns whether quantizing ``source`` on ``grid`` also cuts off negative values."""
    one_scale = grid.axis is None and grid.starts_at_zero and not grid.symmetric
    return one_scale and not never_negative(graph, source)


def rectified(graph: GraphEdit, source: str) -> str:
    """Returns the output of a function of `float_source` that reads ``source``, empty without."""
    made = [
        node.output[0]
        for node, _ in graph.readers(source)
        if node.op_type in {"Relu", "Clip"} and node.name.startswith(f"{source}{_SUFFIX}")
    ]
    return str(made[0]) if made else ""


def put_back(graph: GraphEdit, tensor: str) -> bool:
    """Returns whether ``tensor`` is behind a ReLU that a repair put where a grid had stood for it.

    Such a grid also stood for ReLU6 where it ended at 6 or before.
    """
    node = graph.producer(tensor)
    if node is None or node.op_type != "Relu":
        return False
    return bool(node.name.startswith(f"{node.input[0]}{_SUFFIX}"))


def _rectify(graph: GraphEdit, source: str, grid: Grid) -> str:
    output = graph.fresh(f"{source}{_SUFFIX}")
    if float(grid.amax) > RELU6 * (1 + 1e-5):
        graph.add_node("Relu", [source], output)
        return output
    bounds = [
        graph.add_constant(f"{output}_{side}", np.asarray(bound, grid.scale.dtype))
        for side, bound in (("low", 0), ("high", RELU6))
    ]
    graph.add_node("Clip", [source, *bounds], output)
    return output


def never_negative(graph: GraphEdit, tensor: str, known: dict[str, bool] | None = None) -> bool:
    """Returns whether the graph shows that no value of ``tensor`` is below 0."""
    known = {} if known is None else known
    if tensor not in known:
        known[tensor] = False  # until shown, and for a circle
        node = graph.producer(tensor)
        known[tensor] = node is not None and _makes_no_negative(graph, node, known)
    return known[tensor]


def _makes_no_negative(graph: GraphEdit, node: onnx.NodeProto, known: dict[str, bool]) -> bool:
    if node.op_type in NEVER_NEGATIVE:
        return True
    if node.op_type == "Clip":
        low = graph.constant(node.input[1]) if len(node.input) > 1 and node.input[1] else None
        bound = float(low.min()) if low is not None and low.size else attribute(node, "min")
        return isinstance(bound, float) and bound >= 0
    if node.op_type == "DequantizeLinear":
        grid = grid_of(graph, node)
        if grid is not None and grid.starts_at_zero:
            return True
    through = list(node.input) if node.op_type in COMBINING else list(node.input[:1])
    passes = node.op_type in PASSING | COMBINING | {"QuantizeLinear", "DequantizeLinear"}
    return passes and all(never_negative(graph, name, known) for name in through)
