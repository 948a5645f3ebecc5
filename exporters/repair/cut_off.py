"""Where a symmetric grid cuts a tensor off at its lowest value: what to measure before pairs go.

Biases can take up a ReLU's zero-point (`zero_points`). What is left in the graph is a symmetric
grid whose lowest value does what the ReLU did, and nothing there says so: only that many of the
tensor's values lie below. `measuring` adds the share that does.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from fdda_deploy.exporters.repair.editing import GraphEdit
from fdda_deploy.exporters.repair.implied import never_negative
from fdda_deploy.exporters.repair.pairs import activation_pairs

CUT_OFF = 0.01
"""Share of a tensor's values below its grid from which on that is a function, and not an outlier.
Calibrators that cut ranges give up a few in a thousand on either side."""
_BELOW = -128.5
"""Steps: half of one below the lowest integer."""
_NODES = ("below", "counted", "share")


def measuring(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Returns a copy of ``model`` with more outputs, and the tensor that each of those is about.

    An output is the share of the tensor's values that its symmetric INT8 grid cuts off below. There
    is one for every such tensor that may be negative, and may have been moved.

    Args:
        model: Any Q/DQ graph.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = GraphEdit(copy)
    outputs: dict[str, str] = {}
    for pair in list(activation_pairs(graph)):
        grid = pair.grid
        if not grid.repaired or grid.axis is not None or graph.producer(pair.source) is None:
            continue
        if never_negative(graph, pair.source):
            continue
        lowest = np.asarray(_BELOW * float(grid.scale)).astype(grid.scale.dtype)
        below, counted, share = (graph.fresh(f"fdda_probe_{what}") for what in _NODES)
        graph.add_node("Less", [pair.source, graph.add_constant("fdda_low", lowest)], below)
        graph.add_node("Cast", [below], counted, to=TensorProto.FLOAT)
        graph.add_node("ReduceMean", [counted], share, keepdims=0)
        graph.pinned.add(share)
        outputs[share] = pair.source
    result = graph.finish()
    result.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs
    )
    return result, outputs
