"""R05: INT32 biases behind DequantizeLinear become float initializers.

1. A constant INT32 tensor is multiplied by its scale once, here, in float32.
2. Whoever read the DequantizeLinear reads the float initializer.
3. A zero-point other than 0, or scales that do not fit, leave it with its finding.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto

from fdda_deploy.exporters.repair.editing import GraphEdit
from fdda_deploy.exporters.repair.grids import float_type
from fdda_deploy.exporters.repair.nodes import attribute, label, plain_name
from fdda_deploy.exporters.repair.record import Change, Repair
from fdda_deploy.exporters.rules.graph import Request


def _apply(graph: GraphEdit, request: Request) -> Iterator[Change]:
    del request  # the same for every target
    for node in graph.of_type("DequantizeLinear"):
        if len(node.input) < 2 or graph.integer_type(node.input[0]) != TensorProto.INT32:
            continue
        integers, scale = graph.constant(node.input[0]), graph.constant(node.input[1])
        zero = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if integers is None or scale is None or (zero is not None and zero.any()):
            continue
        shape = _along(integers.shape, scale, attribute(node, "axis"))
        if shape is None or node.output[0] in graph.pinned:
            continue
        value = integers.astype(np.float32) * scale.astype(np.float32).reshape(shape)
        kind = float_type(node, scale)
        name = graph.add_constant(plain_name(node.input[0]), value.astype(kind))
        graph.redirect(node.output[0], name)
        yield Change(label(node), node.input[0], "INT32 bias to float", True)


def _along(shape: tuple[int, ...], scale: np.ndarray, axis: int | None) -> tuple[int, ...] | None:
    """Returns the shape that lines ``scale`` up with the bias, None where it does not fit."""
    if scale.size == 1:
        return ()
    at = 1 if axis is None else axis
    at = 0 if len(shape) == 1 else at  # one axis leaves no choice
    if not -len(shape) <= at < len(shape) or shape[at] != scale.size:
        return None
    wanted = [1] * len(shape)
    wanted[at] = scale.size
    return tuple(wanted)


REPAIR = Repair(
    "R05",
    ("T015",),
    "INT32 biases become float initializers.",
    "The product of integer and scale is what DequantizeLinear would compute.",
    _apply,
)
