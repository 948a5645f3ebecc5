"""Rules on blocks and on INT4 weights."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import TensorProto

from fdda_deploy.exporters.rules.finding import ERROR, WARNING, Problem, Rule
from fdda_deploy.exporters.rules.graph import FOUR_BIT, MOVERS, GraphView, Node, Operand, type_name
from fdda_deploy.exporters.rules.readers import readers_behind

BLOCKED_TYPES = (TensorProto.INT4, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1)
FAST_BLOCKS = (64, 128)
_INT4 = (TensorProto.INT4, TensorProto.UINT4)


def block_layout(view: GraphView) -> Iterator[Problem]:
    """T011."""
    for node in view.qdq:
        block = node.integer("block_size")
        scale = view.operand(node, 1)
        if not block or scale is None:
            continue
        found = view.quantized_type(node)
        if found is not None and found not in BLOCKED_TYPES:
            why = "RTX 1.7 builds it, but keeps the weights in float." if view.request.rtx else ""
            severity = WARNING if view.request.rtx else ERROR
            value = f"blocks of {type_name(found)}"
            repair = "Use one scale per channel for this type."
            yield Problem(node.name, node.input(0), value, repair, why, severity)
        shape = view.shape_of(node.input(0))
        if shape is not None and scale.dims is not None:
            yield from _wrong_blocks(view, node, scale, shape, block)


def _wrong_blocks(
    view: GraphView, node: Node, scale: Operand, shape: tuple[int | None, ...], block: int
) -> Iterator[Problem]:
    axis = view.axis_of(node, len(shape))
    dims = scale.dims or ()
    repair = "Divide one of the last two axes into whole blocks, one scale each."
    if axis is None or axis < len(shape) - 2:
        value = f"blocks along axis {node.integer('axis')} of {len(shape)}"
        yield Problem(node.name, node.input(0), value, repair)
        return
    length = shape[axis]
    if length is not None and (block < 0 or length % block):
        value = f"blocks of {block} on an axis of {length}"
        yield Problem(node.name, node.input(0), value, repair)
        return
    want = tuple(
        size // block if size is not None and index == axis else size
        for index, size in enumerate(shape)
    )
    fits = len(dims) == len(want) and all(w in {None, d} for w, d in zip(want, dims, strict=True))
    if not fits:
        value = f"scale of shape {'x'.join(map(str, dims))}, want {'x'.join(map(str, want))}"
        yield Problem(node.name, scale.name, value, repair)


def int4_readers(view: GraphView) -> Iterator[Problem]:
    """T013."""
    for node in view.qdq:
        if view.quantized_type(node) not in _INT4:
            continue
        if not view.rooted(node.input(0)):
            repair = "Quantize activations to INT8; a Clip carries a narrower grid."
            yield Problem(node.name, node.input(0), "a 4-bit activation", repair)
        elif node.op_type == "DequantizeLinear":
            for reader, index in readers_behind(view, node.output(), (*MOVERS, "Cast")):
                yield from _wrong_reader(view, node, reader, index)


def _wrong_reader(view: GraphView, node: Node, reader: Node, index: int) -> Iterator[Problem]:
    other = view.dequantizer(reader.input(0)) if index == 1 else None
    convolution = reader.op_type in {"Conv", "ConvTranspose"} and index == 1
    if convolution and other is not None:
        repair = "Store these weights as INT8; the 4-bit grid fits into it."
        value = "INT4 weights beside quantized activations in a convolution"
        yield Problem(reader.name, node.name, value, repair)
    elif convolution and view.request.rtx:
        why = "RTX stores them in 4 bits and computes in float; other TensorRTs refuse them."
        repair = "Keep it for RTX only."
        yield Problem(reader.name, node.name, "INT4 convolution weights", repair, why, WARNING)
    elif reader.op_type in {"Gemm", "MatMul"} and index == 1:
        if other is not None:
            why = "INT4 weights are dequantized to float: the activation's Q/DQ only costs."
            repair = "Leave the activation in float, or store the weights as INT8."
            value = "INT4 weights beside quantized activations"
            yield Problem(reader.name, node.name, value, repair, why, WARNING)
    else:
        repair = "Store this tensor as INT8 or in float."
        yield Problem(reader.name, node.name, f"INT4 values read by {reader.op_type}", repair)


def int4_block_sizes(view: GraphView) -> Iterator[Problem]:
    """T014."""
    for node in view.dequantizes:
        shape = view.shape_of(node.input(0))
        if view.quantized_type(node) not in _INT4 or shape is None:
            continue
        for reader, index in readers_behind(view, node.output(), ()):
            if reader.op_type not in {"Gemm", "MatMul"} or index != 1:
                continue
            block = node.integer("block_size")
            k_axis = len(shape) - (1 if reader.integer("transB") else 2)
            axis = view.axis_of(node, len(shape))
            if block not in FAST_BLOCKS or axis != k_axis:
                value = f"blocks of {block} along axis {axis}" if block else "no blocks"
                repair = f"Quantize in blocks of 64 or 128 along K (axis {k_axis})."
                yield Problem(reader.name, node.name, value, repair)


def four_bit_counts(view: GraphView) -> Iterator[Problem]:
    """T012."""
    for node in view.qdq:
        data = view.operand(node, 0)
        if data is not None and data.dtype in FOUR_BIT and (data.size or 0) % 2:
            value = f"{data.size} elements of {type_name(data.dtype)}"
            repair = "Store this tensor as INT8; the 4-bit grid fits into it."
            yield Problem(node.name, data.name, value, repair)


RULES = (
    Rule("T011", ERROR, "Blocks are INT4, FP8 or FP4, along one of the last two axes, and whole.",
         "TensorRT divides one axis only, and no block may be cut.", block_layout),
    Rule("T012", ERROR, "4-bit tensors have an even element count.",
         "Two values share a byte, and the parser cannot import half of one.", four_bit_counts),
    Rule("T013", ERROR, "INT4 feeds the weights of matrix products only.",
         "TensorRT has no INT4 activations and no INT4 convolutions.", int4_readers),
    Rule("T014", WARNING, "INT4 weights come in blocks of 64 or 128 along K.",
         "These are the layouts that NVIDIA's weight-only kernels document.", int4_block_sizes),
)  # fmt: skip
