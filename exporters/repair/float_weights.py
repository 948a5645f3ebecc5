"""R06: a float constant with Q and DQ on it becomes integers behind one DQ.

1. On a symmetric grid the integers are those that the Q would compute: the same numbers.
2. On any other grid the float values are quantized anew, symmetrically, per output channel where
   one layer reads them: nearer to the float values than the grid that was there.
3. Who else reads the Q is left with its finding.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from fdda_deploy.exporters.repair import grids
from fdda_deploy.exporters.repair.editing import Array, GraphEdit
from fdda_deploy.exporters.repair.nodes import label
from fdda_deploy.exporters.repair.record import Change, Repair
from fdda_deploy.exporters.rules.graph import Request
from fdda_deploy.quant.affine import quantize


def _apply(graph: GraphEdit, request: Request) -> Iterator[Change]:
    del request  # the same for every target
    for node in graph.of_type("QuantizeLinear"):
        grid = grids.grid_of(graph, node)
        weight = graph.constant(node.input[0]) if grid is not None else None
        if grid is None or weight is None or not weight.ndim or weight.dtype.kind != "f":
            continue
        if not grids.fits(weight, grid) or not np.isfinite(weight).all():
            continue
        pair = _dequantizer(graph, node, grid)
        if pair is not None:
            yield _fold(graph, pair, weight, grid)


def _dequantizer(graph: GraphEdit, node: onnx.NodeProto, grid: grids.Grid) -> onnx.NodeProto | None:
    """Returns the one reader of a Q when it is a DQ on the same grid."""
    readers = graph.readers(node.output[0])
    if len(readers) != 1 or node.output[0] in graph.pinned:
        return None
    reader = readers[0][0]
    found = grids.grid_of(graph, reader) if reader.op_type == "DequantizeLinear" else None
    fits = found is not None and found.same_as(grid) and reader.output[0] not in graph.pinned
    return reader if fits else None


def _fold(graph: GraphEdit, pair: onnx.NodeProto, weight: Array, grid: grids.Grid) -> Change:
    output = pair.output[0]
    if grid.symmetric:
        x_int, scale, axis = grids.integers(weight, grid), grid.scale, grid.axis
        what = "float weight with Q and DQ to INT8"
    else:
        new = grids.per_axis(
            weight.astype(np.float32), grids.output_axis(graph, output, weight.ndim)
        )
        x_int, scale, axis = quantize(weight, new), new.scale.astype(weight.dtype), new.axis
        what = "float weight on an asymmetric grid to symmetric INT8"
    graph.redirect(output, grids.dequantized_constant(graph, pair, x_int, scale, axis))
    return Change(label(pair), output, what, grid.symmetric)


REPAIR = Repair(
    "R06",
    ("T010",),
    "Float weights with Q and DQ on them are stored as integers.",
    "On a symmetric grid these are the integers that the Q would compute.",
    _apply,
)
