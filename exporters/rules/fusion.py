"""Rules on where Q/DQ pairs stand: what fuses, what INT8 kernels like, what is too small."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto

from fdda_deploy.exporters.rules.finding import NOTE, WARNING, Problem, Rule
from fdda_deploy.exporters.rules.graph import (
    COMMUTING,
    FOUR_BIT,
    RTX_MIN_CHANNELS_PER_GROUP,
    WEIGHTED_OPS,
    GraphView,
    Node,
    Operand,
)
from fdda_deploy.exporters.rules.readers import readers_behind

ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "HardSwish", "HardSigmoid", "Sigmoid", "Mul"})
POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize"})
TWO_SIDED = POOLS | {"Add", "Sub", "Mul", "Concat"}
USEFUL_READERS = WEIGHTED_OPS | TWO_SIDED | COMMUTING | {"LeakyRelu", "Clip", "QuantizeLinear"}
SMALL = 16
IMAGE_CHANNELS = 4


def both_operands(view: GraphView) -> Iterator[Problem]:
    """T019."""
    for node in view.weighted:
        first, second = (view.dequantizer(node.input(index)) for index in (0, 1))
        if first is not None and second is None:
            repair = "Quantize the weight as well, or take the Q/DQ off the input."
            yield Problem(node.name, node.input(1), "input quantized, weight in float", repair)
        elif second is not None and first is None:
            if view.quantized_type(second) in FOUR_BIT:
                continue  # weight-only: what INT4 is for
            why = "Weights only: RTX stores them as integers and computes in float."
            softer = (why, NOTE) if view.request.rtx else ("", "")
            repair = "Quantize the input as well, unless weight-only is what you want."
            yield Problem(
                node.name, node.input(0), "weight quantized, input in float", repair, *softer
            )


def residual_additions(view: GraphView) -> Iterator[Problem]:
    """T020."""
    for node in view.nodes:
        if node.op_type != "Add" or any(view.rooted(name) for name in node.inputs):
            continue
        direct = [
            name
            for name in node.inputs
            if _quantized_product(view, name) and len(view.consumers(name)) == 1
        ]  # with another reader the product is written out, and there is nothing to fuse
        quantized = [name for name in node.inputs if view.dequantizer(name) is not None]
        if direct:
            for name in node.inputs:
                if name not in direct and name not in quantized:
                    repair = "Put the skip's Q/DQ pair on this input."
                    yield Problem(node.name, name, "skip input in float", repair)
            continue
        products = [n for n in quantized if _quantized_product(view, _before_quantize(view, n))]
        if products:  # the skip is the one that others read as well
            name = min(products, key=lambda tensor: len(view.consumers(tensor)))
            source = _before_quantize(view, name)
            repair = "Take the Q/DQ pair off this input; keep the one on the skip."
            yield Problem(node.name, name, f"Q/DQ between {source} and the addition", repair)


def _quantized_product(view: GraphView, tensor: str) -> bool:
    node = view.producer(tensor)
    weighted = node is not None and node.op_type in WEIGHTED_OPS
    return weighted and node is not None and view.dequantizer(node.input(0)) is not None


def _before_quantize(view: GraphView, tensor: str) -> str:
    """Returns the float tensor that a Q/DQ pair behind ``tensor`` quantizes, or an empty name."""
    dequantize = view.dequantizer(tensor)
    quantize = None if dequantize is None else view.producer(dequantize.input(0))
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return ""
    return quantize.input(0)


def useless_pairs(view: GraphView) -> Iterator[Problem]:
    """T021."""
    repair = "Take this Q/DQ pair off."
    for node in view.qdq:
        if node.output() in view.outputs:
            yield Problem(node.name, node.output(), "quantized graph output", repair)
    for node in view.dequantizes:
        readers = view.consumers(node.output())
        useless = [reader for reader, _ in readers if reader.op_type not in USEFUL_READERS]
        if readers and len(useless) == len(readers) and not view.rooted(node.input(0)):
            value = f"read by {useless[0].op_type} only, which runs in float"
            yield Problem(node.name, node.output(), value, repair)


def concat_scales(view: GraphView) -> Iterator[Problem]:
    """T022."""
    for node in view.nodes:
        if node.op_type != "Concat":
            continue
        sources = [view.dequantizer(name) for name in node.inputs]
        scales = [view.operand(s, 1) for s in sources if s is not None]
        if any(not _same(scales[0], other) for other in scales[1:]):
            repair = "Calibrate all inputs of the concatenation with one range."
            yield Problem(node.name, node.output(), f"{len(scales)} inputs, scales differ", repair)


def one_scale_per_tensor(view: GraphView) -> Iterator[Problem]:
    """T023."""
    first: dict[str, Node] = {}
    for node in view.quantizes:
        other = first.setdefault(node.input(0), node)
        if not _same(view.operand(other, 1), view.operand(node, 1)):
            repair = "Quantize the tensor once and let all consumers read it."
            yield Problem(node.name, node.input(0), f"another scale than {other.name}", repair)
    for node in view.dequantizes:
        source = view.producer(node.input(0))
        pair = source is not None and source.op_type == "QuantizeLinear"
        if pair and source and not _same(view.operand(source, 1), view.operand(node, 1)):
            repair = "Give Q and DQ of a pair the same scale."
            why = "The pair multiplies its tensor by the ratio of the two scales."
            yield Problem(
                node.name, node.input(1), f"another scale than {source.name}", repair, why
            )


def _same(first: Operand | None, second: Operand | None) -> bool:
    """Returns whether two scales are known to be equal, or not known to differ."""
    if first is None or second is None or first.values is None or second.values is None:
        return True
    return bool(np.array_equal(first.values, second.values))


def quantized_on_both_sides(view: GraphView) -> Iterator[Problem]:
    """T024."""
    for node in view.nodes:
        if node.op_type not in TWO_SIDED:
            continue
        data = node.inputs[:1] if node.op_type in POOLS else node.inputs
        moving = [name for name in data if name and view.constant(name) is None]
        if not moving or any(view.dequantizer(name) is None for name in moving):
            continue
        if not _reaches_quantize(view, node.output()):
            repair = "Quantize its output too, or take the Q/DQ off its inputs."
            yield Problem(node.name, node.output(), f"{node.op_type} of INT8, output float", repair)


def _reaches_quantize(view: GraphView, tensor: str) -> bool:
    readers = readers_behind(view, tensor, COMMUTING | ACTIVATIONS)
    return any(node.op_type == "QuantizeLinear" for node, _ in readers)


def small_convolutions(view: GraphView) -> Iterator[Problem]:
    """T025."""
    for node in view.weighted:
        shape = view.shape_of(node.input(1))
        if node.op_type not in {"Conv", "ConvTranspose"} or shape is None or len(shape) < 3:
            continue
        if None in shape or not _int8_product(view, node):
            continue
        sizes = [size or 0 for size in shape]
        value, why = _too_small(view, node, sizes)
        if value:
            repair = "Leave this layer in float, or store its weights only as integers."
            yield Problem(node.name, node.input(1), value, repair, why)


def _too_small(view: GraphView, node: Node, sizes: list[int]) -> tuple[str, str]:
    """Returns (what is too small, why), both empty when nothing is."""
    groups = max(node.integer("group") or 1, 1)
    forward = node.op_type == "Conv"
    per_group = sizes[1] if forward else sizes[0] // groups
    cin, cout = per_group * groups, sizes[0] if forward else sizes[1] * groups
    if view.request.rtx and groups > 1 and per_group < RTX_MIN_CHANNELS_PER_GROUP:
        why = "RTX pads what such layers read, and the plan grows, with a fixed batch many times."
        return f"{per_group} channels per group", why
    if groups > 1 and per_group == 1:
        return (f"depthwise kernel {sizes[2:]}", "") if min(sizes[2:]) < 3 else ("", "")
    image = cin <= IMAGE_CHANNELS and cout >= SMALL
    if min(cin, cout) < SMALL and not image:
        return f"{cin} input and {cout} output channels", ""
    return "", ""


def small_products(view: GraphView) -> Iterator[Problem]:
    """T026."""
    for node in view.weighted:
        shape = view.shape_of(node.input(1))
        if node.op_type not in {"Gemm", "MatMul"} or shape is None or len(shape) < 2:
            continue
        if view.dequantizer(node.input(0)) is None and view.dequantizer(node.input(1)) is None:
            continue
        k, n = shape[-2:] if not node.integer("transB") else (shape[-1], shape[-2])
        repair = "Leave this layer in float; it is cheap."
        if min(size for size in (k or SMALL, n or SMALL)) < SMALL:
            yield Problem(node.name, node.input(1), f"K = {k}, N = {n}", repair)
        rows = view.shape_of(node.input(0))
        row_sizes = rows[:-1] if rows is not None else (None,)
        if row_sizes and all(size == 1 for size in row_sizes):
            why = "A matrix times one vector is bound by memory, not by arithmetic."
            yield Problem(node.name, node.input(0), "one row", repair, why)


def _int8_product(view: GraphView, node: Node) -> bool:
    sources = [view.dequantizer(node.input(index)) for index in (0, 1)]
    return all(s is not None and view.quantized_type(s) == TensorProto.INT8 for s in sources)


def interrupted(view: GraphView) -> Iterator[Problem]:
    """T028."""
    for node in view.weighted:
        for index in (0, 1):
            between = view.producer(node.input(index))
            if between is None or between.op_type in COMMUTING | WEIGHTED_OPS:
                continue
            if between.op_type in {"QuantizeLinear", "DequantizeLinear"}:
                continue
            moving = [name for name in between.inputs if name and view.constant(name) is None]
            if len(moving) == 1 and view.dequantizer(moving[0]) is not None:
                value = f"{between.op_type} stands between the DQ and {node.name}"
                repair = f"Put the Q/DQ pair behind {between.name}."
                yield Problem(between.name, node.input(index), value, repair)


RULES = (
    Rule("T019", WARNING, "A weighted layer has both operands quantized, or neither.",
         "With one operand in float the product runs in float, and the Q/DQ only costs.",
         both_operands),
    Rule("T020", WARNING, "A residual addition has a Q/DQ pair on its skip, none on the product.",
         "TensorRT adds inside the convolution's kernel only then.", residual_additions),
    Rule("T021", WARNING, "Q/DQ stands only where a consumer runs in INT8.",
         "Elsewhere it costs time and accuracy, and wins nothing.", useless_pairs),
    Rule("T022", WARNING, "Inputs of a concatenation share one scale.",
         "Otherwise each input is re-quantized, which costs a kernel.", concat_scales),
    Rule("T023", WARNING, "A tensor has one scale.",
         "Each further scale is one more kernel that writes the tensor again.",
         one_scale_per_tensor),
    Rule("T024", WARNING, "Layers without weights are quantized on both sides.",
         "With a float output they run in float.", quantized_on_both_sides),
    Rule("T025", WARNING, "INT8 convolutions are large enough.",
         "INT8 tiles are 16 channels wide and more: FP16 is as fast here.", small_convolutions),
    Rule("T026", WARNING, "INT8 matrix products are large enough.",
         "INT8 tiles are 16 wide and more: FP16 is as fast here.", small_products),
    Rule("T028", WARNING, "Nothing but moving operators stands between a DQ and its consumer.",
         "TensorRT cannot carry INT8 through this operator, so the layer runs in float.",
         interrupted),
)  # fmt: skip
