"""Which tensors get a Q/DQ pair: a table per target, each row with its reason, and its application.

The graph decides, never the module tree. Rows are data; `place` walks the float ONNX graph once and
names the points. The torch fake-quantized network and the exported graph both follow the result.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import onnx

from fdda_deploy.errors import ConfigError, ExportError
from fdda_deploy.quant.points import ActivationPoint, Placement, WeightPoint
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
INT4_BLOCKS = (128, 64)
_WEIGHT_AXES = {"Conv": 0, "ConvTranspose": 1}
_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "HardSwish", "Sigmoid", "HardSigmoid"})


@dataclass(frozen=True)
class _Weighted:
    """A node with a constant weight."""

    node: onnx.NodeProto
    weight: str
    shape: tuple[int, ...]
    axis: int
    depthwise: bool
    channels_per_group: int


@dataclass
class _Graph:
    """Look-ups over one float graph."""

    proto: onnx.GraphProto
    initializers: dict[str, tuple[int, ...]] = field(init=False)
    producer: dict[str, onnx.NodeProto] = field(init=False)
    consumers: dict[str, list[tuple[onnx.NodeProto, int]]] = field(init=False)

    def __post_init__(self) -> None:
        self.initializers = {t.name: tuple(t.dims) for t in self.proto.initializer}
        self.producer = {t: node for node in self.proto.node for t in node.output}
        self.consumers = defaultdict(list)
        for node in self.proto.node:
            for index, tensor in enumerate(node.input):
                self.consumers[tensor].append((node, index))

    def weighted(self) -> list[_Weighted]:
        """Returns the nodes that multiply an activation by a constant weight, in graph order."""
        found = (self._weighted(node) for node in self.proto.node)
        return [entry for entry in found if entry is not None]

    def _weighted(self, node: onnx.NodeProto) -> _Weighted | None:
        if node.op_type not in {"Conv", "ConvTranspose", "Gemm", "MatMul"}:
            return None
        weight = node.input[1]
        if weight not in self.initializers or node.input[0] in self.initializers:
            return None
        shape = self.initializers[weight]
        attributes = {a.name: a.i for a in node.attribute if a.name in {"group", "transB"}}
        groups = attributes.get("group", 1)
        axis = _WEIGHT_AXES.get(node.op_type, 0 if attributes.get("transB") else len(shape) - 1)
        convolution = node.op_type in _WEIGHT_AXES
        if not convolution and len(shape) != 2:
            return None
        per_group = shape[1] if node.op_type == "Conv" else shape[0] // groups
        return _Weighted(
            node, weight, shape, axis, convolution and groups > 1 and per_group == 1, per_group
        )


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
    graph = _Graph(model.graph)
    weighted = graph.weighted()
    if not weighted:
        raise ExportError("the network has no convolution or linear layer: nothing to quantize.")
    ends = {weighted[0].node.name, weighted[-1].node.name}
    left: list[tuple[str, str]] = []
    kept: list[_Weighted] = []
    for entry in weighted:
        reason = _reason_to_leave(entry, scheme, target, torch_tensors, parameters)
        if reason is None:
            kept.append(entry)
        else:
            left.append((entry.node.name, reason))
    weights = _weight_points(kept, scheme, target, ends)
    activations: tuple[ActivationPoint, ...] = ()
    if not scheme.weight_only:
        activations = _activation_points(graph, kept, scheme, target, ends, torch_tensors)
        if not everything:
            last = weighted[-1].node.input[0]
            activations = tuple(
                dataclasses.replace(
                    point,
                    consumers=tuple(edge for edge in point.consumers if not _is_add(graph, edge)),
                )
                for point in activations
                if point.tensor != last
                and getattr(graph.producer.get(point.tensor), "op_type", "") in _ACTIVATIONS
            )
    return Placement(target, scheme.name, activations, weights, tuple(left))


def _reason_to_leave(
    entry: _Weighted,
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


def _weight_points(
    kept: list[_Weighted], scheme: Scheme, target: str, ends: set[str]
) -> tuple[WeightPoint, ...]:
    by_weight: dict[str, list[_Weighted]] = defaultdict(list)
    for entry in kept:
        by_weight[entry.weight].append(entry)
    points = []
    for weight, entries in by_weight.items():
        first = entries[0]
        bits = scheme.weight_bits
        if any(entry.node.name in ends for entry in entries):
            bits = max(bits, scheme.first_last_bits)
        if scheme.weight_only and first.depthwise:
            bits = 8
        axis, storage, block = first.axis, "int8", None
        if scheme.weight_only and bits == 4:
            axis, storage, block = _int4_layout(first, target)
        points.append(
            WeightPoint(
                weight,
                tuple(entry.node.name for entry in entries),
                axis,
                bits,
                storage,
                block,
                first.depthwise,
            )
        )
    return tuple(points)


def _int4_layout(entry: _Weighted, target: str) -> tuple[int, str, int | None]:
    """Returns (axis, storage, block size) of a 4-bit weight in a weight-only scheme.

    Matrix products take blocks along K; convolutions take per-channel INT4 on RTX alone; where
    there is no INT4 kernel the 4-bit grid is carried in INT8.
    """
    even = entry.shape[-1] % 2 == 0
    if entry.node.op_type in _WEIGHT_AXES:
        elements = 1
        for size in entry.shape:
            elements *= size
        return entry.axis, "int4" if target == "rtx" and elements % 2 == 0 else "int8", None
    k_axis = 1 - entry.axis
    for block in INT4_BLOCKS:
        if even and entry.shape[k_axis] % block == 0 and target != "ort-cpu":
            return k_axis, "int4", block
    return entry.axis, "int8", None


def _activation_points(
    graph: _Graph,
    kept: list[_Weighted],
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


def _skip_input(graph: _Graph, node: onnx.NodeProto, quantized: set[str]) -> int | None:
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


def _is_add(graph: _Graph, edge: tuple[str, int]) -> bool:
    return any(node.name == edge[0] and node.op_type == "Add" for node in graph.proto.node)


def _add_outputs(
    graph: _Graph,
    kept: list[_Weighted],
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
