"""R13: for a compact plan, only layers read INT8: additions, pools and the like read floats.

1. Whoever reads a pair and is neither a layer nor on the way to one reads the float tensor. So a
   residual's skip is added in float: INT8 would be made a float again by a kernel of its own.
2. What the grid stood for, a ReLU or ReLU6, is put back in front of who reads in float.
3. A tensor that its grid cuts off at the lowest integer is left alone: a function may be hidden
   in that, whose zero biases have moved.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from fdda_deploy.exporters.repair.editing import GraphEdit
from fdda_deploy.exporters.repair.implied import CARRIERS, float_source
from fdda_deploy.exporters.repair.layers import is_multiplied
from fdda_deploy.exporters.repair.nodes import label
from fdda_deploy.exporters.repair.record import Change, Repair
from fdda_deploy.exporters.repair.residuals import pair_before
from fdda_deploy.exporters.rules.graph import WEIGHTED_OPS, Request


def _apply(graph: GraphEdit, request: Request) -> Iterator[Change]:
    if not request.rtx:
        return
    for end in graph.of_type("DequantizeLinear"):
        quantize = pair_before(graph, end.output[0])
        if quantize is None or end.output[0] in graph.pinned:
            continue
        if graph.tensor(quantize.input[0]) is not None or quantize.input[0] in graph.notes.bounded:
            continue
        for node, index in graph.readers(end.output[0]):
            if not _reads_integers(graph, node):
                source = float_source(graph, quantize)
                graph.rewire(node, index, source)
                yield Change(label(node), source, "reads the float tensor", False)
    graph.prune()


def _reads_integers(graph: GraphEdit, node: onnx.NodeProto) -> bool:
    if node.op_type in WEIGHTED_OPS:
        return True
    return node.op_type in CARRIERS and any(is_multiplied(graph, name) for name in node.output)


REPAIR = Repair(
    "R13",
    (),
    "Compact plan: skips, pools and whatever else is no layer read floats.",
    "One rounding less each; making floats of integers takes a kernel of its own.",
    _apply,
    compact=True,
)
