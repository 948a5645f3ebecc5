"""R07: UINT8 or asymmetric integer weights become INT8 with zero-point 0.

1. UINT8 with zero-point 128 everywhere is INT8 with zero-point 0, each integer 128 less: exact.
2. Other weights are dequantized and quantized anew on `amax / 127`, per output channel where one
   layer reads them. That moves each weight by at most half a step of the new grid; the proof
   measures what it does to the outputs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from fdda_deploy.exporters.repair import grids
from fdda_deploy.exporters.repair.editing import Array, GraphEdit
from fdda_deploy.exporters.repair.nodes import label
from fdda_deploy.exporters.repair.record import Change, Repair
from fdda_deploy.exporters.rules.graph import Request, type_name
from fdda_deploy.quant.affine import quantize


def _apply(graph: GraphEdit, request: Request) -> Iterator[Change]:
    del request  # the same for every target
    for node in graph.of_type("DequantizeLinear"):
        grid = grids.grid_of(graph, node)
        if grid is None or grid.repaired or node.output[0] in graph.pinned:
            continue
        held = graph.constant(node.input[0])
        if held is not None and held.ndim and held.dtype.kind in "iu" and grids.fits(held, grid):
            yield _symmetric(graph, node, held, grid)


def _symmetric(graph: GraphEdit, node: onnx.NodeProto, held: Array, grid: grids.Grid) -> Change:
    output = node.output[0]
    zeros = np.unique(grid.zero_point)
    was = f"{type_name(grid.dtype)}, zero-point {zeros[0]}{' and others' if zeros.size > 1 else ''}"
    if grid.symmetric:
        shifted = held.astype(np.int64) - grid.middle
        x_int, scale, axis = shifted.astype(np.int8), grid.scale, grid.axis
    else:
        weight = grids.values(held, grid)
        new = grids.per_axis(weight, grids.output_axis(graph, output, weight.ndim))
        x_int, scale, axis = quantize(weight, new), new.scale.astype(grid.scale.dtype), new.axis
    made = grids.dequantized_constant(graph, node, x_int, scale, axis)
    graph.redirect(output, made)
    return Change(label(node), node.input[0], f"{was} to INT8, zero-point 0", grid.symmetric)


REPAIR = Repair(
    "R07",
    ("T003", "T004"),
    "UINT8 and asymmetric weights become symmetric INT8.",
    "A zero-point of 128 only shifts the integers; others are quantized anew.",
    _apply,
)
