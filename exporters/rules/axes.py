"""Rules on scales per channel: where they may stand, along which axis, over which tensors."""

from __future__ import annotations

from collections.abc import Iterator

from fdda_deploy.exporters.rules.finding import ERROR, WARNING, Problem, Rule
from fdda_deploy.exporters.rules.graph import MOVERS, WEIGHTED_OPS, GraphView, Node


def activations_per_tensor(view: GraphView) -> Iterator[Problem]:
    """T007."""
    for node in view.quantizes:
        scale = view.operand(node, 1)
        if scale is None or (scale.size or 0) <= 1 or view.rooted(node.input(0)):
            continue
        repair = "Calibrate this activation with one scale."
        yield Problem(
            node.name, scale.name, f"{scale.size} scales on an activation", repair, *_softer(view)
        )


def channel_scale_fits(view: GraphView) -> Iterator[Problem]:
    """T008."""
    for node in view.qdq:
        scale = view.operand(node, 1)
        if scale is None or scale.dims is None or node.integer("block_size"):
            continue
        if len(scale.dims) > 1:
            shape = "x".join(map(str, scale.dims))
            repair = "Store the scales as a vector and set axis, or set block_size."
            yield Problem(node.name, scale.name, f"scale of shape {shape}", repair)
        elif scale.size != 1:
            yield from _wrong_axis(view, node, scale.name, scale.size or 0)


def _wrong_axis(view: GraphView, node: Node, scale: str, count: int) -> Iterator[Problem]:
    shape = view.shape_of(node.input(0))
    if shape is None:
        return
    axis = view.axis_of(node, len(shape))
    if axis is None:
        value = f"axis {node.integer('axis')} of a tensor with {len(shape)} axes"
        yield Problem(node.name, node.input(0), value, "Set axis to the output channel.")
    elif shape[axis] not in {None, count}:
        value = f"{count} scales, axis {axis} has {shape[axis]} channels"
        yield Problem(node.name, scale, value, "Recalibrate, or set axis to the output channel.")
    elif node.integer("axis") is None:
        value = "no axis, so the default 1 applies"
        why = "It fits here, but most weights have their output channel on axis 0."
        yield Problem(node.name, scale, value, "Write axis=1.", why, WARNING)


def output_channel_axis(view: GraphView) -> Iterator[Problem]:
    """T009."""
    for node in view.dequantizes:
        scale = view.operand(node, 1)
        shape = view.shape_of(node.input(0))
        if scale is None or (scale.size or 0) <= 1 or node.integer("block_size") or shape is None:
            continue
        axis = view.axis_of(node, len(shape))
        if axis is None or not view.rooted(node.input(0)):
            continue
        for reader, found, want in _weight_readers(view, node.output(), axis, len(shape)):
            if found != want:
                value = f"scales along axis {found} of the weight, output channels on {want}"
                repair = "Quantize the weight per output channel."
                yield Problem(reader.name, node.name, value, repair, *_softer(view))


def _weight_readers(
    view: GraphView, tensor: str, axis: int, rank: int
) -> Iterator[tuple[Node, int, int]]:
    """Yields (node, axis of the scales, axis of the output channels) for each product."""
    seen: set[str] = set()
    pending = [(tensor, axis)]
    while pending:
        tensor, axis = pending.pop()
        if tensor in seen:
            continue
        seen.add(tensor)
        for node, index in view.consumers(tensor):
            if node.op_type in WEIGHTED_OPS and index == 1:
                yield node, axis, _output_axis(node, rank)
            elif node.op_type == "Identity":
                pending.append((node.output(), axis))
            elif node.op_type == "Transpose":
                order = node.integers("perm") or tuple(reversed(range(rank)))
                if axis in order:
                    pending.append((node.output(), order.index(axis)))


def _output_axis(node: Node, rank: int) -> int:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if node.integer("transB") else 1
    return rank - 1


def rooted_at_constant(view: GraphView) -> Iterator[Problem]:
    """T010."""
    for node in view.dequantizes:
        data = node.input(0)
        if _moved_constant(view, data):
            value = "a quantized constant behind another operator"
            why = "TensorRT takes a quantized constant directly at a DequantizeLinear only."
            repair = "Fold the operator into the constant."
            yield Problem(node.name, data, value, repair, why)
            continue
        scale = view.operand(node, 1)
        if scale is not None and (scale.size or 0) > 1 and not view.rooted(data):
            repair = "Dequantize this activation with one scale."
            value = f"{scale.size} scales on integers that are not constant"
            yield Problem(node.name, scale.name, value, repair, *_softer(view))


def _moved_constant(view: GraphView, tensor: str) -> bool:
    """Integers that reach the DQ through Identity, Reshape, Transpose ..."""
    if view.constant(tensor, direct=True) is not None or not view.rooted(tensor):
        return False
    node = view.producer(tensor)
    return node is not None and node.op_type in MOVERS


def _softer(view: GraphView) -> tuple[str, str]:
    """Returns (why, severity) where TensorRT-RTX builds, but runs the product in float."""
    if not view.request.rtx:
        return "", ""
    return "RTX 1.7 builds this, but no INT8 kernel takes it: the product runs in float.", WARNING


RULES = (
    Rule("T007", ERROR, "Activations have one scale per tensor.",
         "TensorRT's INT8 kernels take per-channel scales for weights only.",
         activations_per_tensor),
    Rule("T008", ERROR, "Per-channel scales are a vector that fits an explicit axis.",
         "The parser counts scales against the channels of that axis.", channel_scale_fits),
    Rule("T009", ERROR, "The axis of weight scales is the output channel.",
         "Only scales of output channels can be taken out of the integer sum.",
         output_channel_axis),
    Rule("T010", ERROR, "DequantizeLinear per channel starts at a constant.",
         "Per-channel dequantization is folded into constant weights only.", rooted_at_constant),
)  # fmt: skip
