"""R10: on TensorRT-RTX, filters of fewer than 4 channels per group run in float.

1. RTX spends more of the plan on depthwise and narrow grouped convolutions in INT8 than in float
   (with a fixed batch it even pads their input with zeros in the plan). So the input's Q/DQ pair
   is bypassed for such a layer.
2. Its integer weights become float: RTX's plan for float filters is smaller than for integers
   that are dequantized, because nothing is left to compute on the way. Same numbers.
3. Other targets have INT8 kernels for depthwise filters and are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from fdda_deploy.exporters.repair import grids
from fdda_deploy.exporters.repair.editing import Array, GraphEdit
from fdda_deploy.exporters.repair.implied import float_source
from fdda_deploy.exporters.repair.nodes import attribute, label
from fdda_deploy.exporters.repair.record import Change, Repair
from fdda_deploy.exporters.repair.residuals import pair_before
from fdda_deploy.exporters.rules.graph import RTX_MIN_CHANNELS_PER_GROUP, Request


def _apply(graph: GraphEdit, request: Request) -> Iterator[Change]:
    if not request.rtx:
        return
    for node in graph.of_type("Conv"):
        if (attribute(node, "group") or 1) == 1 or len(node.input) < 2:
            continue
        quantize, weight = pair_before(graph, node.input[0]), weight_values(graph, node.input[1])
        if quantize is None or weight is None or weight.ndim < 2:
            continue
        if weight.shape[1] < RTX_MIN_CHANNELS_PER_GROUP:
            source = float_source(graph, quantize)
            graph.rewire(node, 0, source)
            graph.rewire(node, 1, graph.add_constant(f"{node.input[1]}_float", weight))
            yield Change(
                label(node), source, f"to float, {weight.shape[1]} channels per group", False
            )


def weight_values(graph: GraphEdit, tensor: str) -> Array | None:
    """Returns the float values of an 8-bit constant behind a DQ, None for anything else."""
    node: onnx.NodeProto | None = graph.producer(tensor)
    if node is None or node.op_type != "DequantizeLinear":
        return None
    grid, held = grids.grid_of(graph, node), graph.constant(node.input[0])
    if grid is None or held is None or held.dtype.kind not in "iu" or not grids.fits(held, grid):
        return None
    return np.asarray(grids.values(held, grid).astype(grids.float_type(node, grid.scale)))


REPAIR = Repair(
    "R10",
    ("T025",),
    "On RTX, depthwise and narrow grouped layers run in float.",
    "One rounding less, and a plan many times smaller.",
    _apply,
)
