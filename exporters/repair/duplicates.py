"""R08: one Q/DQ pair per tensor and grid, however many layers read it.

1. Q nodes that quantize one tensor on one grid are one node; the first stays.
2. So are DQ nodes of the same integers on one grid.
3. Pairs on different grids stay, with their finding (T023): merging them would change a layer's
   numbers, and which grid is right is the quantizer's choice.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from fdda_deploy.exporters.repair.editing import GraphEdit
from fdda_deploy.exporters.repair.grids import grid_of
from fdda_deploy.exporters.repair.nodes import label
from fdda_deploy.exporters.repair.record import Change, Repair
from fdda_deploy.exporters.rules.graph import Request


def _apply(graph: GraphEdit, request: Request) -> Iterator[Change]:
    del request  # the same for every target
    for op_type in ("QuantizeLinear", "DequantizeLinear"):
        first: dict[tuple[object, ...], onnx.NodeProto] = {}
        for node in graph.of_type(op_type):
            grid = grid_of(graph, node)
            if grid is None:
                continue
            kept = first.setdefault((node.input[0], *grid.key), node)
            if kept is not node and node.output[0] not in graph.pinned:
                graph.redirect(node.output[0], kept.output[0])
                yield Change(label(node), node.input[0], f"merged into {label(kept)}", True)


REPAIR = Repair(
    "R08",
    ("T023",),
    "Pairs that quantize one tensor on one grid become one pair.",
    "They compute the same integers.",
    _apply,
)
