"""Rules on the numbers of Q and DQ: scales, zero-points, and their types."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto

from fdda_deploy.exporters.rules.finding import ERROR, Problem, Rule
from fdda_deploy.exporters.rules.graph import GraphView, Node, Operand, type_name

QUANTIZED_TYPES = (
    TensorProto.INT8,
    TensorProto.FLOAT8E4M3FN,
    TensorProto.INT4,
    TensorProto.FLOAT4E2M1,
)
SMALLEST_NORMAL = {
    TensorProto.FLOAT: 2.0**-126,
    TensorProto.BFLOAT16: 2.0**-126,
    TensorProto.FLOAT16: 2.0**-14,
    TensorProto.FLOAT8E4M3FN: 2.0**-6,
    TensorProto.FLOAT8E8M0: 2.0**-127,
}
"""Smallest normal number of each type of scale (the last two: scales of FP4 blocks)."""


def zero_point_is_zero(view: GraphView) -> Iterator[Problem]:
    """T003."""
    for node in view.qdq:
        zero_point = view.operand(node, 2)
        if zero_point is None:
            continue
        if zero_point.tensor is None:
            repair = "Store the zero-point as an initializer of zeros, or leave it out."
            yield Problem(node.name, zero_point.name, "computed while the network runs", repair)
        elif zero_point.values is None:
            yield Problem(node.name, zero_point.name, "cannot be read", _RELOAD)
        elif zero_point.values.any():
            first = zero_point.values[zero_point.values != 0][0]
            repair = "Quantize symmetrically: choose the scale as amax / 127."
            yield Problem(node.name, zero_point.name, f"zero-point {first:g}", repair)


def quantized_type(view: GraphView) -> Iterator[Problem]:
    """T004."""
    for node in view.qdq:
        found = view.quantized_type(node)
        if found is None or found in QUANTIZED_TYPES or _integer_bias(node, found):
            continue
        implied = node.op_type == "QuantizeLinear" and not node.input(2)
        if implied and not node.integer("output_dtype"):
            value = "no zero-point, which means UINT8 in ONNX and INT8 in TensorRT"
            repair = "Add an INT8 zero-point of zeros."
        else:
            value = f"quantized as {type_name(found)}"
            repair = "Quantize to INT8, FP8 (E4M3FN) or INT4."
        yield Problem(node.name, node.input(2) or node.output(), value, repair)


def scale_is_normal(view: GraphView) -> Iterator[Problem]:
    """T005."""
    for node in view.qdq:
        scale = view.operand(node, 1)
        if scale is None:
            yield Problem(node.name, "", "no scale", "Give the node a constant scale.")
        elif scale.tensor is not None:
            yield from _wrong_scale(node, scale)
        elif not _scale_of_scales(view, scale):
            repair = "Calibrate, and store the scale as an initializer."
            yield Problem(node.name, scale.name, "computed while the network runs", repair)


def _wrong_scale(node: Node, scale: Operand) -> Iterator[Problem]:
    smallest = SMALLEST_NORMAL.get(scale.dtype)
    if smallest is None:
        repair = "Store scales as FLOAT."
        yield Problem(node.name, scale.name, f"scale of type {type_name(scale.dtype)}", repair)
        return
    if scale.values is None:
        yield Problem(node.name, scale.name, "cannot be read", _RELOAD)
        return
    bad = np.flatnonzero(~np.isfinite(scale.values) | ~(scale.values >= smallest))
    if bad.size:
        value = f"scale[{bad[0]}] = {scale.values[bad[0]]:g}, {bad.size} of {scale.size} unusable"
        repair = "Recalibrate on images that excite this tensor, or leave it in float."
        yield Problem(node.name, scale.name, value, repair)


def _scale_of_scales(view: GraphView, scale: Operand) -> bool:
    """FP4 blocks keep their scales in FP8 behind a DQ of their own."""
    node = view.producer(scale.name)
    return node is not None and node.op_type == "DequantizeLinear" and view.rooted(node.input(0))


def scale_and_zero_point_agree(view: GraphView) -> Iterator[Problem]:
    """T006."""
    for node in view.qdq:
        scale, zero_point = view.operand(node, 1), view.operand(node, 2)
        if scale is None or zero_point is None:
            continue
        if None not in {scale.size, zero_point.size} and scale.size != zero_point.size:
            value = f"{zero_point.size} zero-points, {scale.size} scales"
            repair = "Give both one shape, or leave the zero-point out."
            yield Problem(node.name, zero_point.name, value, repair)
        quantize = node.op_type == "QuantizeLinear"
        want = node.integer("output_dtype") if quantize else view.type_of(node.input(0))
        if want and zero_point.dtype is not None and zero_point.dtype != want:
            value = f"zero-point {type_name(zero_point.dtype)}, tensor {type_name(want)}"
            repair = f"Store the zero-point as {type_name(want)}."
            yield Problem(node.name, zero_point.name, value, repair)


def integer_bias(view: GraphView) -> Iterator[Problem]:
    """T015."""
    for node in view.dequantizes:
        found = view.quantized_type(node)
        if _integer_bias(node, found):
            value = f"{type_name(found)} behind DequantizeLinear"
            repair = "Keep the bias as a float initializer (quantize_bias=False in ONNX Runtime)."
            yield Problem(node.name, node.input(0), value, repair)


def not_scalar(view: GraphView) -> Iterator[Problem]:
    """T018."""
    for node in view.qdq:
        if view.shape_of(node.input(0)) == ():
            repair = "Leave the scalar in float."
            yield Problem(node.name, node.input(0), "a scalar", repair)


def _integer_bias(node: Node, found: int | None) -> bool:
    return node.op_type == "DequantizeLinear" and found == TensorProto.INT32


_RELOAD = "Load the model with its data (onnx.load), or export it again."

RULES = (
    Rule("T003", ERROR, "Zero-points are constant zeros.",
         "TensorRT quantizes symmetrically and refuses any other zero-point.", zero_point_is_zero),
    Rule("T004", ERROR, "Quantized types are INT8, FP8 (E4M3FN), INT4 or FP4.",
         "Other types are refused, and UINT8 is silently imported as INT8.", quantized_type),
    Rule("T005", ERROR, "Scales are constant, finite, positive and normal in their own type.",
         "Computed scales crash the builder; infinite and subnormal ones give wrong numbers.",
         scale_is_normal),
    Rule("T006", ERROR, "Zero-point and scale agree in volume, zero-point and tensor in type.",
         "The parser refuses different volumes, and different types are not valid ONNX.",
         scale_and_zero_point_agree),
    Rule("T015", ERROR, "Biases stay in float.",
         "DequantizeLinear takes no INT32 in TensorRT.", integer_bias),
    Rule("T018", ERROR, "The input of Q and DQ is not a scalar.",
         "TensorRT has no quantized scalars.", not_scalar),
)  # fmt: skip
