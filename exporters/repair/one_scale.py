"""R15: for a compact plan, an INT8 weight has one scale, not one per channel.

1. Weights of layers in INT8 are quantized anew on the largest of their values over 127, so each
   moves by at most half a step of the new grid; the proof holds every weight to that.
2. A convolution, its bias and its activation function then run in one kernel of the library,
   while with a scale per channel a kernel is generated for its end.
3. A weight that somebody else reads as well is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fdda_deploy.exporters.repair import grids
from fdda_deploy.exporters.repair.editing import GraphEdit
from fdda_deploy.exporters.repair.layers import quantized_layers
from fdda_deploy.exporters.repair.nodes import label
from fdda_deploy.exporters.repair.record import Change, Repair
from fdda_deploy.exporters.rules.graph import Request
from fdda_deploy.quant.affine import quantize


def _apply(graph: GraphEdit, request: Request) -> Iterator[Change]:
    if not request.rtx:
        return
    layers = quantized_layers(graph)
    named = {layer.node.name for layer in layers}
    made: dict[str, tuple[str, float]] = {}
    for layer in layers:
        tensor = layer.node.input[1]
        dequantize = graph.producer(tensor)
        grid = None if dequantize is None else grids.grid_of(graph, dequantize)
        if dequantize is None or grid is None or grid.axis is None or tensor in graph.pinned:
            continue
        if tensor not in made:
            readers = graph.readers(tensor)
            if any(node.name not in named or index != 1 for node, index in readers):
                continue
            new = grids.per_axis(layer.weight.astype(np.float32), None)
            x_int, scale = quantize(layer.weight, new), new.scale.astype(grid.scale.dtype)
            name = grids.dequantized_constant(graph, dequantize, x_int, scale, None)
            made[tensor] = name, float(scale)
        name, step = made[tensor]
        graph.rewire(layer.node, 1, name)
        what = f"{grid.scale.size} scales of its weight to one, {step:.4g}"
        yield Change(label(layer.node), tensor, what, False)


REPAIR = Repair(
    "R15",
    (),
    "Compact plan: weights have one scale instead of one per channel.",
    "No weight moves by more than half a step; the convolution's end needs no kernel of its own.",
    _apply,
    compact=True,
)
