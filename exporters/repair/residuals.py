"""R09: no Q/DQ pair between a quantized product and the residual addition that reads it.

1. Of the inputs of an addition, one may be the float output of a convolution or matrix product:
   TensorRT then adds inside that kernel. The pair on that input is bypassed.
2. The other input, the skip, keeps its pair: the kernel reads it as INT8. Where both inputs are
   products, the one that nothing else reads is added in float: the other is wanted as INT8 anyway.
3. A ReLU between product and pair, also one that the grid stood for, leaves the addition as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from fdda_deploy.exporters.repair.editing import GraphEdit
from fdda_deploy.exporters.repair.grids import grid_of
from fdda_deploy.exporters.repair.implied import implies_relu
from fdda_deploy.exporters.repair.nodes import label
from fdda_deploy.exporters.repair.record import Change, Repair
from fdda_deploy.exporters.rules.graph import WEIGHTED_OPS, Request


def _apply(graph: GraphEdit, request: Request) -> Iterator[Change]:
    del request  # the same for every target
    for node in graph.of_type("Add"):
        pairs = [pair_before(graph, tensor) for tensor in node.input]
        if any(_product(graph, tensor) for tensor in node.input):
            continue  # fused already
        chosen = [i for i, pair in enumerate(pairs) if pair is not None and _linear(graph, pair)]
        if not chosen or None in pairs:
            continue  # a skip in float would gain nothing
        index = min(chosen, key=lambda at: len(graph.readers(node.input[at])))
        quantize = pairs[index]
        assert quantize is not None
        source = str(quantize.input[0])
        graph.rewire(node, index, source)
        yield Change(label(node), source, "Q/DQ between product and addition off", False)


def pair_before(graph: GraphEdit, tensor: str) -> onnx.NodeProto | None:
    """Returns the Q of the Q/DQ pair that makes ``tensor`` of a float one, None without one."""
    dequantize = graph.producer(tensor)
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    quantize = graph.producer(dequantize.input[0])
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return None
    return quantize


def _linear(graph: GraphEdit, quantize: onnx.NodeProto) -> bool:
    """Returns whether ``quantize`` reads a quantized product and does no more than round it."""
    grid = grid_of(graph, quantize)
    plain = grid is None or not implies_relu(graph, quantize.input[0], grid)
    return plain and _product(graph, quantize.input[0])


def _product(graph: GraphEdit, tensor: str) -> bool:
    node = graph.producer(tensor)
    if node is None or node.op_type not in WEIGHTED_OPS or not node.input:
        return False
    operand = graph.producer(node.input[0])
    return operand is not None and operand.op_type == "DequantizeLinear"


REPAIR = Repair(
    "R09",
    ("T020",),
    "The Q/DQ pair between a product and the residual addition is taken off.",
    "One rounding less; the sum is nearer to the float network's.",
    _apply,
)
