"""R11: no Q/DQ pair where nothing behind it runs in INT8.

1. A pair whose every reader has no INT8 kernel is bypassed: the readers get the float tensor.
2. A pair on a graph output is taken off; the output keeps its name.
3. A pair with at least one reader that has an INT8 kernel stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from fdda_deploy.exporters.repair.editing import GraphEdit
from fdda_deploy.exporters.repair.implied import float_source
from fdda_deploy.exporters.repair.nodes import label
from fdda_deploy.exporters.repair.record import Change, Repair
from fdda_deploy.exporters.repair.residuals import pair_before
from fdda_deploy.exporters.rules.fusion import USEFUL_READERS
from fdda_deploy.exporters.rules.graph import Request


def _apply(graph: GraphEdit, request: Request) -> Iterator[Change]:
    del request  # the same for every target
    outputs = {value.name for value in graph.model.graph.output}
    for node in graph.of_type("DequantizeLinear"):
        tensor = node.output[0]
        quantize = pair_before(graph, tensor)
        if quantize is None or graph.tensor(quantize.input[0]) is not None:
            continue
        readers = graph.readers(tensor)
        if tensor in outputs and not readers:
            _free_output(graph, node, float_source(graph, quantize))
            yield Change(label(node), tensor, "Q/DQ on a graph output off", False)
        elif readers and tensor not in graph.pinned:
            kinds = sorted({reader.op_type for reader, _ in readers})
            if not any(kind in USEFUL_READERS for kind in kinds):
                graph.redirect(tensor, float_source(graph, quantize))
                yield Change(label(node), quantize.input[0], f"Q/DQ before {kinds[0]} off", False)


def _free_output(graph: GraphEdit, dequantize: onnx.NodeProto, source: str) -> None:
    """Lets the float tensor carry the name of the graph output."""
    output = dequantize.output[0]
    graph.remove(dequantize)
    if source in graph.pinned or graph.producer(source) is None:
        graph.add_node("Identity", [source], output)
    else:
        graph.rename_output(source, output)


REPAIR = Repair(
    "R11",
    ("T021",),
    "Q/DQ pairs that no INT8 kernel reads are taken off.",
    "One rounding less, and a kernel less to run.",
    _apply,
)
