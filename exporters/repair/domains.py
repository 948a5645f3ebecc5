"""R02: Q and DQ of ONNX Runtime's own domain become those of ONNX.

1. `com.microsoft.QuantizeLinear` and `com.microsoft.DequantizeLinear` on 8-bit integers compute
   what ONNX's operators of the same name compute, so only the domain is taken off.
2. Types that ONNX knows at opset 21 only (16 bits) keep their domain, and their finding.
3. The import of `com.microsoft` goes with the last node that needs it.
"""

from __future__ import annotations

from collections.abc import Iterator

from fdda_deploy.exporters.repair.editing import GraphEdit, quantized_type
from fdda_deploy.exporters.repair.grids import RANGES
from fdda_deploy.exporters.repair.nodes import label
from fdda_deploy.exporters.repair.record import Change, Repair
from fdda_deploy.exporters.rules.graph import Request

DOMAIN = "com.microsoft"


def _apply(graph: GraphEdit, request: Request) -> Iterator[Change]:
    del request  # the same for every target
    found = [
        node
        for node in graph.nodes
        if node.domain == DOMAIN and node.op_type in {"QuantizeLinear", "DequantizeLinear"}
    ]
    for node in found:
        if quantized_type(graph, node) in RANGES:
            node.domain = ""
            graph.touch()
            yield Change(label(node), node.output[0], f"{DOMAIN} to ONNX", True)


REPAIR = Repair(
    "R02",
    ("T016",),
    "Q and DQ of com.microsoft become ONNX's own.",
    "On 8-bit integers both compute the same.",
    _apply,
)
