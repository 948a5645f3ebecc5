"""What a graph alone says about how large its tensors can get: the bounds behind Clip and Softmax.

A calibrator never settles on more than the largest value it saw, so a table that says more about
one of these tensors is another network's table, or holds 127/amax (`calib_cache.inversion`).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

_ONE = frozenset(
    {"Sigmoid", "HardSigmoid", "Softmax", "Tanh", "Erf", "Softsign", "Sin", "Cos", "Hardmax"}
)
"""Operators whose outputs lie within [-1, 1] whatever goes in."""

VIEWS = frozenset(
    {"Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators that hand on every value: output and input have the same range."""

_SHRINKING = VIEWS | {
    *("Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Abs", "Neg"),
    *("Slice", "Gather", "Split", "Expand", "Tile", "DepthToSpace", "SpaceToDepth"),
    *("ReduceMean", "ReduceMax", "ReduceMin"),
}
"""Operators with no output larger than the largest value of their first input."""


def known_bounds(graph: onnx.GraphProto) -> dict[str, float]:
    """Returns the largest absolute value by tensor, for tensors that have a known one.

    Args:
        graph: Opset 13 or later: a Clip has its ends as inputs.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    bounds: dict[str, float] = {}
    for node in graph.node:
        bound = _bound(node, bounds, constants)
        if bound is not None:
            bounds.update(dict.fromkeys(filter(None, node.output), bound))
    return bounds


def _bound(
    node: onnx.NodeProto, bounds: dict[str, float], constants: dict[str, onnx.TensorProto]
) -> float | None:
    if node.op_type in _ONE:
        return 1.0
    if node.op_type in _SHRINKING:
        return bounds.get(node.input[0])
    if node.op_type == "Concat" and all(name in bounds for name in node.input):
        return max(bounds[name] for name in node.input)
    if node.op_type == "Clip" and len(node.input) == 3:
        ends = [constants.get(name) for name in node.input[1:]]
        values = [numpy_helper.to_array(end) for end in ends if end is not None]
        if len(values) == 2 and all(
            np.isfinite(value).all() and value.size == 1 for value in values
        ):
            return max(abs(float(value.reshape(()))) for value in values)
    return None
