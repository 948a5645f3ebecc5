"""Which tensors get a Q/DQ pair: a table per target, each row with its reason, and its application.

The graph decides, never the module tree. Rows are data; `place` walks the float ONNX graph once and
names the points. The torch fake-quantized network and the exported graph both follow the result.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx

from fdda_deploy.errors import ConfigError, ExportError
from fdda_deploy.exporters.float_view import FloatView, WeightedNode
from fdda_deploy.exporters.weight_layout import weight_points
from fdda_deploy.quant.points import ActivationPoint, Placement
from fdda_deploy.quant.scheme import Scheme


@dataclass(frozen=True)
class Row:
    """One line of the placement table.

    Attributes:
        name: What reports and points call it.
        targets: Where it applies.
        reason: Why it is right for those targets.
    """

    name: str
    targets: frozenset[str]
    reason: str


TARGETS = ("trt", "rtx", "ort-cpu")
_ALL = frozenset(TARGETS)

TABLE = {
    row.name: row
    for row in (
        Row(
            "weighted-input",
            _ALL,
            "INT8 kernels need both operands of a product quantized (T019).",
        ),
        Row(
            "weighted-weight",
            _ALL,
            "Weights are stored as integers: float weights with Q and DQ on them make a plan as "
            "large as the float one.",
        ),
        Row(
            "residual-skip",
            _ALL,
            "TensorRT fuses the addition into the convolution when the skip input is INT8 and the "
            "convolution's own output is not quantized again before it (T020).",
        ),
        Row(
            "depthwise-float",
            frozenset({"rtx"}),
            "TensorRT-RTX pads INT8 filters of fewer than 4 channels per group to dense tiles: the "
            "plan grows, so this layer stays in float (T025).",
        ),
        Row(
            "weighted-output",
            frozenset({"ort-cpu"}),
            "ONNX Runtime fuses a convolution to QLinearConv only when its output is quantized.",
        ),
        Row(
            "weight-only",
            _ALL,
            "Activations stay in floating point; the weight is dequantized before the product.",
        ),
        Row(
            "weight-only-depthwise",
            _ALL,
            "A depthwise filter is nine weights: few bytes, and much to lose. It keeps 8 bits in "
            "weight-only schemes.",
        ),
    )
}
"""The table. `place` looks reasons up here, so a row cannot be used without its explanation."""

RTX_MIN_CHANNELS_PER_GROUP = 4
_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "HardSwish", "Sigmoid", "HardSigmoid"})


def place(
    model: onnx.ModelProto,
    scheme: Scheme,
    target: str,
    *,
    torch_tensors: Collection[str],
    parameters: Mapping[str, object],
    everything: bool = True,
) -> Placement:
    """Returns every point of ``model`` that ``scheme`` quantizes on ``target``.

    Args:
        model: Float graph (`exporters.float_onnx`).
        scheme: Bit widths.
        target: ``trt``, ``rtx`` or ``ort-cpu``.
        torch_tensors: Tensors that have a torch twin; others cannot be calibrated and stay float.
        parameters: Weight initializers that have a torch parameter.
        everything: False leaves in float what the published FDDA code leaves: the network input,
            the last layer's input, skip inputs and tensors without an activation function.

    Raises:
        ConfigError: Unknown target.
        ExportError: The network has no layer that can be quantized.
    """
    if target not in TARGETS:
        raise ConfigError(f"--target {target}: want one of {', '.join(TARGETS)}.")
    graph = FloatView(model.graph)
    weighted = graph.weighted()
    if not weighted:
        raise ExportError("the network has no convolution or linear layer: nothing to quantize.")
    ends = {weighted[0].node.name, weighted[-1].node.name}
    left: list[tuple[str, str]] = []
    kept: list[WeightedNode] = []
    shared = _read_otherwise(graph, weighted)
    for entry in weighted:
        reason = shared.get(entry.weight) or _reason_to_leave(
            entry, scheme, target, torch_tensors, parameters
        )
        if reason is None:
            kept.append(entry)
        else:
            left.append((entry.node.name, reason))
    weights = weight_points(kept, scheme, target, ends)
    activations: tuple[ActivationPoint, ...] = ()
    if not scheme.weight_only:
        activations = _activation_points(graph, kept, scheme, target, ends, torch_tensors)
        if not everything:
            activations = _published_points(graph, activations, weighted[-1].node.input[0])
    return Placement(target, scheme.name, activations, weights, tuple(left))


def _published_points(
    graph: FloatView, points: tuple[ActivationPoint, ...], last: str
) -> tuple[ActivationPoint, ...]:
    """Returns the points that the published FDDA code has: behind activation functions alone."""
    found = []
    for point in points:
        producer = graph.producer.get(point.tensor)
        edges = tuple(edge for edge in point.consumers if not _is_add(graph, edge))
        if edges and point.tensor != last and producer and producer.op_type in _ACTIVATIONS:
            found.append(dataclasses.replace(point, consumers=edges))
    return tuple(found)


def _read_otherwise(graph: FloatView, weighted: list[WeightedNode]) -> dict[str, str]:
    """Returns why weights stay in float whose readers do not all multiply by them the same way."""
    axes: dict[str, set[int]] = defaultdict(set)
    products: dict[str, set[str]] = defaultdict(set)
    for entry in weighted:
        axes[entry.weight].add(entry.axis)
        products[entry.weight].add(entry.node.name)
    reasons = {}
    for weight, names in products.items():
        others = [
            node.name
            for node, index in graph.consumers[weight]
            if node.name not in names or index != 1
        ]
        if others:
            reasons[weight] = f"{others[0]} reads its weight in float too"
        elif len(axes[weight]) > 1:
            reasons[weight] = "its weight is read along two different output axes"
    return reasons


def _reason_to_leave(
    entry: WeightedNode,
    scheme: Scheme,
    target: str,
    torch_tensors: Collection[str],
    parameters: Mapping[str, object],
) -> str | None:
    if entry.weight not in parameters:
        return "its weight is computed inside the graph"
    if scheme.weight_only:
        return None
    if entry.node.input[0] not in torch_tensors:
        return "its input has no torch tensor to calibrate on"
    narrow = entry.channels_per_group < RTX_MIN_CHANNELS_PER_GROUP
    grouped = any(a.name == "group" and a.i > 1 for a in entry.node.attribute)
    if target in TABLE["depthwise-float"].targets and grouped and narrow:
        return TABLE["depthwise-float"].reason
    return None


def _activation_points(
    graph: FloatView,
    kept: list[WeightedNode],
    scheme: Scheme,
    target: str,
    ends: set[str],
    torch_tensors: Collection[str],
) -> tuple[ActivationPoint, ...]:
    consumers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    rows: dict[str, str] = {}
    bits: dict[str, int] = defaultdict(lambda: scheme.act_bits)
    for entry in kept:
        tensor = entry.node.input[0]
        consumers[tensor].append((entry.node.name, 0))
        rows.setdefault(tensor, "weighted-input")
        if entry.node.name in ends:
            bits[tensor] = max(bits[tensor], scheme.first_last_bits)
    quantized = {entry.node.name for entry in kept}
    for node in graph.proto.node:
        skip = _skip_input(graph, node, quantized)
        if skip is not None and node.input[skip] in torch_tensors:
            consumers[node.input[skip]].append((node.name, skip))
            rows.setdefault(node.input[skip], "residual-skip")
    if target in TABLE["weighted-output"].targets:
        _add_outputs(graph, kept, consumers, rows, torch_tensors)
    order = {t: index for index, t in enumerate(_tensors(graph.proto))}
    return tuple(
        ActivationPoint(tensor, tuple(consumers[tensor]), bits[tensor], rows[tensor])
        for tensor in sorted(consumers, key=lambda name: order[name])
    )


def _skip_input(graph: FloatView, node: onnx.NodeProto, quantized: set[str]) -> int | None:
    """Returns the input index of a residual addition that is the skip, None elsewhere.

    The other input comes straight from a quantized convolution or linear layer; when both do (a
    projection shortcut), the one computed last is the main branch that the addition fuses into.
    """
    if node.op_type != "Add" or any(t in graph.initializers for t in node.input):
        return None
    producers = [graph.producer.get(tensor) for tensor in node.input]
    fusable = [
        producer is not None and producer.name in quantized and len(graph.consumers[tensor]) == 1
        for producer, tensor in zip(producers, node.input, strict=True)
    ]
    if not any(fusable):
        return None
    if all(fusable):
        order = {entry.name: index for index, entry in enumerate(graph.proto.node)}
        first, second = (order[producer.name] for producer in producers if producer is not None)
        return 0 if first < second else 1
    return 1 if fusable[0] else 0


def _is_add(graph: FloatView, edge: tuple[str, int]) -> bool:
    return any(node.name == edge[0] and node.op_type == "Add" for node in graph.proto.node)


def _add_outputs(
    graph: FloatView,
    kept: list[WeightedNode],
    consumers: dict[str, list[tuple[str, int]]],
    rows: dict[str, str],
    torch_tensors: Collection[str],
) -> None:
    """Quantizes the outputs of weighted nodes, behind their activation, for ONNX Runtime."""
    outputs = {value.name for value in graph.proto.output}
    for entry in kept:
        tensor = entry.node.output[0]
        readers = graph.consumers[tensor]
        if len(readers) == 1 and readers[0][0].op_type in _ACTIVATIONS:
            tensor = readers[0][0].output[0]
        if tensor in outputs or tensor not in torch_tensors:
            continue
        known = set(consumers[tensor])
        wanted = [(node.name, index) for node, index in graph.consumers[tensor]]
        consumers[tensor].extend(edge for edge in wanted if edge not in known)
        rows.setdefault(tensor, "weighted-output")


def _tensors(graph: onnx.GraphProto) -> list[str]:
    return [value.name for value in graph.input] + [t for node in graph.node for t in node.output]
