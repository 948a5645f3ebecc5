"""How ONNX Runtime's CPU kernels want a Q/DQ graph stored; TensorRT refuses all of it.

Read off the optimized graphs of ONNX Runtime 1.31 on x86-64: with INT8 activations it converts some
pairs to UINT8 and not others, and a convolution between the two kinds stays in float; with UINT8
throughout every convolution becomes a QLinearConv. A ReLU folds into the pair behind it only where
the grid begins at zero, which takes a zero-point of 0 in UINT8. Convolution biases are converted
when the graph is loaded; those of Gemm have to come as INT32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from fdda_deploy.exporters import names
from fdda_deploy.quant.points import Placement
from fdda_deploy.quant.qparams import QParams

if TYPE_CHECKING:
    from fdda_deploy.exporters.qdq import Grids

INT8_TO_UINT8 = 128
INT32_MAX = 2**31 - 1


def uint8_zero_point(qparams: QParams) -> npt.NDArray[np.uint8]:
    """Returns the zero-point of the same grid with every integer 128 higher: UINT8, ``()``.

    Example:
        >>> int(uint8_zero_point(QParams(np.float32(0.1), -128, 127, zero_point=-128)))
        0
    """
    return np.asarray(qparams.zero_point + INT8_TO_UINT8, np.uint8)


def integer_biases(
    graph: onnx.GraphProto,
    before: dict[str, list[onnx.NodeProto]],
    placement: Placement,
    grids: Grids,
) -> None:
    """Stores the biases of quantized Gemm nodes as INT32, in place.

    The step is that of the accumulator, input scale times weight scale, so the kernel adds the
    integers as they are. A bias beyond INT32 stays in float, and its Gemm with it.

    Args:
        graph: With the weights and activations of ``placement`` quantized already.
        before: Collects the new nodes by the name of the node that they go before.
        placement: Where the graph is quantized.
        grids: With which numbers.
    """
    inputs = {
        name: grids.activations[point.name].scale
        for point in placement.activations
        for name, index in point.consumers
        if index == 0
    }
    weights = {
        name: grids.weights[point.initializer][1].scale
        for point in placement.weights
        for name in point.consumers
    }
    held = {tensor.name: tensor for tensor in graph.initializer}
    replaced = set()
    for node in graph.node:
        plain = not any(a.name == "beta" and a.f != 1 for a in node.attribute)
        if node.op_type != "Gemm" or len(node.input) != 3 or not plain:
            continue
        if node.name in inputs and node.name in weights and node.input[2] in held:
            scale = (inputs[node.name] * weights[node.name]).astype(np.float32)
            bias = numpy_helper.to_array(held[node.input[2]])
            name = node.input[2]
            added = _integer_bias(graph, node, bias, scale)
            if added is not None:
                before.setdefault(node.name, []).append(added)
                replaced.add(name)
    for name in replaced - {tensor for node in graph.node for tensor in node.input}:
        graph.initializer.remove(held[name])


def _integer_bias(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    bias: npt.NDArray[np.float32],
    scale: npt.NDArray[np.float32],
) -> onnx.NodeProto | None:
    """Makes ``node`` read its bias through a DequantizeLinear; None where INT32 cannot hold it."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        steps = np.rint(bias.astype(np.float64) / scale)
    if bias.ndim != 1 or not np.isfinite(steps).all() or np.abs(steps).max() > INT32_MAX:
        return None
    stem = f"{node.name}.bias"  # by node: a bias that two nodes share has two steps
    full = np.broadcast_to(scale, bias.shape).copy()
    for name, value in (
        (names.quantized(stem), steps.astype(np.int32)),
        (names.scale(stem), full),
        (names.zero_point(stem), np.zeros(bias.shape, np.int32)),
    ):
        graph.initializer.append(numpy_helper.from_array(value, name))
    node.input[2] = names.dequantized(stem)
    return helper.make_node(
        "DequantizeLinear",
        [names.quantized(stem), names.scale(stem), names.zero_point(stem)],
        [names.dequantized(stem)],
        name=names.dequantize_node(stem),
        axis=0,
    )
