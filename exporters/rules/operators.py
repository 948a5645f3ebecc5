"""Rules on operators and float types: what the parser cannot import, and what runs badly."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from fdda_deploy.exporters.rules.finding import ERROR, NOTE, WARNING, Problem, Rule
from fdda_deploy.exporters.rules.graph import (
    FLOATS,
    RTX_MIN_CHANNELS_PER_GROUP,
    GraphView,
    Node,
    type_name,
)
from fdda_deploy.quant.element_types import TENSORRT_TYPES

INTEGER_OPS = frozenset(
    {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"}
)
SENSITIVE_OPS = frozenset(
    {"Softmax", "LogSoftmax", "LayerNormalization", "InstanceNormalization", "GroupNormalization",
     "RMSNormalization"}
)  # fmt: skip
ONE_TYPE_OPS = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div", "Max", "Min", "Concat"}
)
FP8_CAPABILITY = 89
_FP8 = (TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2)
_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def not_importable(view: GraphView) -> Iterator[Problem]:
    """T016."""
    yield from _foreign_operators(view)
    ends = (("input", view.inputs), ("output", view.model.graph.output))
    for kind, values in ends:
        for value in values:
            number = value.type.tensor_type.elem_type
            name = type_name(number) if value.type.HasField("tensor_type") else "no tensor"
            if number and name not in TENSORRT_TYPES:
                why = "TensorRT has no such element type, and its parser refuses the network."
                repair = "Export it in float32, or cut off what makes or reads it."
                yield Problem("", value.name, f"{kind} of type {name}", repair, why)


def _foreign_operators(view: GraphView) -> Iterator[Problem]:
    for node in view.nodes:
        label = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        if node.domain.startswith(("com.microsoft", "com.ms.")):
            repair = "Export without ONNX Runtime's optimizer."
            if onnx.defs.has(node.op_type):
                why = f"The parser ignores the domain and reads it as ONNX {node.op_type}."
                yield Problem(node.name, node.output(), label, repair, why, WARNING)
            else:
                yield Problem(node.name, node.output(), label, repair)
        elif node.op_type in INTEGER_OPS or node.op_type.startswith("QLinear"):
            repair = "Export Q/DQ pairs around the float operator."
            yield Problem(node.name, node.output(), label, repair)
        elif not _of_onnx(view, node):
            plugin = node.op_type.endswith("_TRT")  # how NVIDIA names the plugins that it ships
            why = "ONNX has no such operator; TensorRT takes it only with a plugin of this name."
            if onnx.defs.has(node.op_type):
                why = f"The parser ignores the domain and reads it as ONNX {node.op_type}."
            repair = "Export it as ONNX operators, or load the plugin where you build."
            severity = WARNING if plugin and not view.request.rtx else ERROR
            value = f"unknown operator {label}"
            yield Problem(node.name, node.output(), value, repair, why, severity)


def _of_onnx(view: GraphView, node: Node) -> bool:
    """Returns whether ONNX, or a function in the model itself, defines the operator."""
    local = {(function.domain, function.name) for function in view.model.functions}
    standard = node.domain in {"", "ai.onnx"} and onnx.defs.has(node.op_type)
    return standard or (node.domain, node.op_type) in local


def float_types_agree(view: GraphView) -> Iterator[Problem]:
    """T017."""
    for node in view.quantizes:
        found = view.type_of(node.input(0))
        scale = view.type_of(node.input(1))
        if found in FLOATS and scale in FLOATS and scale != found:
            value = f"{type_name(scale)} scale on a {type_name(found)} tensor"
            why = "Before opset 23 this is not valid ONNX; readers disagree on the rounding."
            repair = f"Store the scale as {type_name(found)}."
            yield Problem(node.name, node.input(1), value, repair, why)
    for node in view.nodes:
        if node.op_type in ONE_TYPE_OPS:
            types = {view.type_of(name) for name in node.inputs} & set(FLOATS)
            if len(types) > 1:
                value = " and ".join(sorted(type_name(found) for found in types))
                repair = "Export all operands, and the scales of their DQ nodes, in one type."
                yield Problem(node.name, node.output(), f"operands of {value}", repair)


def fp8_limits(view: GraphView) -> Iterator[Problem]:
    """T027."""
    fp8 = [node for node in view.qdq if view.quantized_type(node) in _FP8]
    if not fp8:
        return
    for capability in view.request.compute_capabilities:
        if capability < FP8_CAPABILITY:
            value = f"FP8 on compute capability {capability / 10:.1f}"
            repair = "Build for 8.9 or later, or export INT8."
            why = "FP8 tensor cores start with compute capability 8.9."
            severity = ERROR if view.request.rtx else WARNING
            yield Problem(fp8[0].name, fp8[0].output(), value, repair, why, severity)
    for node in view.weighted:
        source = view.dequantizer(node.input(1))
        shape = view.shape_of(node.input(1))
        if source is None or view.quantized_type(source) not in _FP8 or shape is None:
            continue
        uneven = [size for size in shape[:2] if size is not None and size % 16]
        if uneven:
            repair = "Leave this layer in FP16, or use INT8."
            yield Problem(node.name, node.input(1), f"{uneven[0]} channels in FP8", repair)


def float32_left(view: GraphView) -> Iterator[Problem]:
    """T029."""
    weights = {node.name: view.type_of(node.input(1)) for node in view.weighted}
    if not any(found in _HALF for found in weights.values()):
        return
    for node in view.weighted:
        if weights[node.name] == TensorProto.FLOAT:
            repair = "Convert its weights and inputs to the type of the rest."
            yield Problem(node.name, node.input(1), "FLOAT among 16-bit layers", repair)


def one_quantized_type(view: GraphView) -> Iterator[Problem]:
    """T030."""
    for node in view.weighted:
        sources = [view.dequantizer(node.input(index)) for index in (0, 1)]
        found = {view.quantized_type(s) for s in sources if s is not None}
        if found & set(_FP8) and TensorProto.INT8 in found:
            why = "No kernel multiplies INT8 by FP8; the builder refuses."
            repair = "Quantize both operands to one type."
            yield Problem(node.name, node.output(), "INT8 times FP8", repair, why, ERROR)
    int8 = [node for node in view.qdq if view.quantized_type(node) == TensorProto.INT8]
    fp8 = [node for node in view.qdq if view.quantized_type(node) in _FP8]
    if int8 and fp8:
        value = f"INT8 here, FP8 at {fp8[0].name}"
        yield Problem(int8[0].name, "", value, "Choose one of the two for the whole network.")


def sensitive_in_int8(view: GraphView) -> Iterator[Problem]:
    """T031."""
    for node in view.nodes:
        if node.op_type in SENSITIVE_OPS and _int8(view, node.input(0)):
            repair = "Leave its input in float."
            yield Problem(node.name, node.input(0), f"{node.op_type} reads INT8", repair)
        elif node.op_type == "MatMul" and _moving_product(view, node):
            value = "a product of two activations in INT8"
            yield Problem(node.name, node.output(), value, "Leave attention products in float.")


def _moving_product(view: GraphView, node: Node) -> bool:
    """Neither operand is constant, and one of them is INT8."""
    constant = any(view.rooted(_source(view, name)) for name in node.inputs)
    return not constant and any(_int8(view, name) for name in node.inputs)


def _source(view: GraphView, tensor: str) -> str:
    """Returns what a DQ behind ``tensor`` reads, or ``tensor`` itself."""
    node = view.dequantizer(tensor)
    return tensor if node is None else node.input(0)


def _int8(view: GraphView, tensor: str) -> bool:
    node = view.dequantizer(tensor)
    return node is not None and view.quantized_type(node) == TensorProto.INT8


def left_in_float(view: GraphView) -> Iterator[Problem]:
    """T034."""
    floats = [n for n in view.weighted if not any(view.dequantizer(i) for i in n.inputs[:2])]
    repair = "Quantize it if it is slow and accuracy allows."
    if floats and not view.qdq:
        value = f"no Q/DQ at all: {len(floats)} layers run in float"
        yield Problem("", "", value, "Quantize the network, or ignore this for a float build.")
        return
    for node in floats:
        value, why = _reason_for_float(view, node)
        advice = "Nothing to do." if why else repair
        yield Problem(node.name, node.input(1), f"in float; {value}", advice, why)


def _reason_for_float(view: GraphView, node: Node) -> tuple[str, str]:
    """Returns what the graph says about a float ``node``, and why that is right where it is."""
    shape = view.shape_of(node.input(1))
    groups = node.integer("group") or 1
    if not view.rooted(node.input(1)):
        return "its second operand is computed while the network runs", ""
    if node.op_type == "Conv" and groups > 1 and shape is not None and len(shape) > 1:
        narrow = view.request.rtx and (shape[1] or 0) < RTX_MIN_CHANNELS_PER_GROUP
        why = "INT8 makes RTX's plan of such a layer larger: float is right here." if narrow else ""
        return f"a grouped convolution with {shape[1]} channels per group", why
    return "neither operand is quantized", ""


RULES = (
    Rule("T016", ERROR, "No QLinear, Integer, com.microsoft or unknown operators and types.",
         "TensorRT's parser has no importer for it.", not_importable),
    Rule("T017", ERROR, "The scale of Q has its input's type; float operands share one type.",
         "Strongly typed networks do not convert between float types on their own.",
         float_types_agree),
    Rule("T027", WARNING, "FP8 runs on 8.9 and later, with channels in multiples of 16.",
         "FP8 kernels take channels in multiples of 16; others fall back to float.", fp8_limits),
    Rule("T029", WARNING, "A 16-bit model has no layer left in FP32.",
         "It runs at half speed or less, with conversions around it.", float32_left),
    Rule("T030", WARNING, "INT8 and FP8 do not meet in one graph.",
         "Every border between them costs a conversion.", one_quantized_type),
    Rule("T031", WARNING, "Softmax, normalization and attention products stay in float.",
         "Their values span many magnitudes: INT8 costs accuracy and wins no time.",
         sensitive_in_int8),
    Rule("T034", NOTE, "Layers that INT8 could run are not left in float unnoticed.",
         "TensorRT has INT8 kernels for this operator.", left_in_float),
)  # fmt: skip
