"""R04: a weight's scales per channel get the axis that they fit.

1. Without the attribute `axis` ONNX says 1. Where the scales fit axis 1, that is written down.
2. Where they do not fit the axis that stands there, but do fit the output channels of the layer
   that reads the weight, that axis is written: the file was not valid before.
"""

from __future__ import annotations

from collections.abc import Iterator

from fdda_deploy.exporters.repair.editing import GraphEdit
from fdda_deploy.exporters.repair.grids import output_axis
from fdda_deploy.exporters.repair.nodes import attribute, label, set_integer
from fdda_deploy.exporters.repair.record import Change, Repair
from fdda_deploy.exporters.rules.graph import Request


def _apply(graph: GraphEdit, request: Request) -> Iterator[Change]:
    del request  # the same for every target
    for node in graph.of_type("DequantizeLinear", "QuantizeLinear"):
        if len(node.input) < 2 or attribute(node, "block_size"):
            continue
        data, scale = graph.tensor(node.input[0]), graph.tensor(node.input[1])
        stated = attribute(node, "axis")
        if data is None or scale is None or len(scale.dims) != 1 or scale.dims[0] == 1:
            continue
        axis = 1 if stated is None else int(stated)
        inside = -len(data.dims) <= axis < len(data.dims)
        if inside and data.dims[axis] == scale.dims[0]:
            if stated is None:
                set_integer(node, "axis", axis)
                graph.touch()
                yield Change(label(node), node.input[1], "no axis to axis=1, which it means", True)
            continue
        wanted = output_axis(graph, _dequantized(graph, node.output[0]), len(data.dims))
        if wanted is not None and data.dims[wanted] == scale.dims[0]:
            set_integer(node, "axis", wanted)
            graph.touch()
            was = "no axis" if stated is None else f"axis={axis}"
            yield Change(label(node), node.input[1], f"{was} to axis={wanted}", False)


def _dequantized(graph: GraphEdit, tensor: str) -> str:
    """Returns what the DQ behind a Q makes, or ``tensor`` itself."""
    readers = graph.readers(tensor)
    if len(readers) == 1 and readers[0][0].op_type == "DequantizeLinear":
        return str(readers[0][0].output[0])
    return tensor


REPAIR = Repair(
    "R04",
    ("T008",),
    "Weight scales get the axis that they fit.",
    "A file whose scales do not fit its axis cannot be run by anyone.",
    _apply,
    restores=True,
)
