"""Which tensors get a Q/DQ pair: the application of the placement table to a graph.

The graph decides, never the module tree. Rows are data; `place` walks the float ONNX graph once and
names the points. The torch fake-quantized network and the exported graph both follow the result.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

import onnx

from fdda_deploy.errors import ConfigError, ExportError
from fdda_deploy.exporters.float_formats import row_to_leave
from fdda_deploy.exporters.float_view import FloatView, WeightedNode
from fdda_deploy.exporters.placement_table import TABLE, TARGETS
from fdda_deploy.exporters.weight_layout import (
    Widths,
    check_widths,
    input_bits,
    left_by_choice,
    raised_to,
    weight_points,
)
from fdda_deploy.exporters.zero_points import Absorbers
from fdda_deploy.quant.points import ActivationPoint, Placement
from fdda_deploy.quant.scheme import Scheme

RTX_MIN_CHANNELS_PER_GROUP = 4
SKIP_BITS = 8
"""Of a skip whose addition is INT8 arithmetic whatever the scheme. mobilenet_v2 w4a4, closed form,
256 images, KL on 500 tune images, one seed: 0.54 with 4 bits, 0.46 in float."""
_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "HardSwish", "Sigmoid", "HardSigmoid"})


def place(
    model: onnx.ModelProto,
    scheme: Scheme,
    target: str,
    *,
    torch_tensors: Collection[str],
    parameters: Mapping[str, object],
    everything: bool = True,
    widths: Widths | None = None,
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
        widths: Weight bits by node name for layers that differ from ``scheme``; None leaves the
            layer in float, and so does None for one of several readers of a weight. The input of a
            layer raised above ``scheme`` gets as many bits, and so do the skip that is added to it
            and, where outputs are quantized, its output; a tensor the most that is wanted.

    Raises:
        ConfigError: Unknown target, or FP8 for a CPU.
        ExportError: The network has no layer that can be quantized; ``widths`` names no layer of
            it, or a width outside 2 to 8.
    """
    if target not in TARGETS:
        raise ConfigError(f"--target {target}: want one of {', '.join(TARGETS)}.")
    if target == "ort-cpu" and scheme.numbers == "fp8":
        raise ConfigError(
            "--scheme fp8: no CPU multiplies FP8. Take --target rtx, or --scheme w8a8."
        )
    graph = FloatView(model.graph)
    weighted = graph.weighted()
    if not weighted:
        raise ExportError("the network has no convolution or linear layer: nothing to quantize.")
    chosen = widths or {}
    check_widths(weighted, chosen)
    ends = {weighted[0].node.name, weighted[-1].node.name}
    left: list[tuple[str, str]] = []
    kept: list[WeightedNode] = []
    shared, by_choice = _read_otherwise(graph, weighted), left_by_choice(weighted, chosen)
    for entry in weighted:
        reason = (
            shared.get(entry.weight)
            or _reason_to_leave(entry, scheme, target, torch_tensors, parameters)
            or by_choice.get(entry.weight)
        )
        if reason is None:
            kept.append(entry)
        else:
            left.append((entry.node.name, reason))
    weights = weight_points(kept, scheme, target, ends, chosen)
    activations: tuple[ActivationPoint, ...] = ()
    if not scheme.weight_only:
        activations = _activation_points(graph, kept, scheme, target, ends, torch_tensors, chosen)
        if not everything:
            activations = _published_points(graph, activations, weighted[-1].node.input[0])
        activations = tuple(_shiftable(graph, activations, kept, target, everything))
    return Placement(target, scheme.name, activations, weights, tuple(left))


def _shiftable(
    graph: FloatView,
    points: tuple[ActivationPoint, ...],
    kept: list[WeightedNode],
    target: str,
    everything: bool,
) -> Iterator[ActivationPoint]:
    """Yields the points, marked where an 8-bit grid may have any zero-point.

    ONNX Runtime's CPU kernels take them all. TensorRT takes none: there biases must take it up.
    """
    absorbers = Absorbers(graph, {entry.node.name for entry in kept})
    for point in points:
        integers = point.num_bits == 8 and point.storage == "int8"
        shifted = target == "ort-cpu" or (
            integers and everything and absorbers.of(point.tensor, point.consumers) is not None
        )
        yield dataclasses.replace(point, shifted=shifted)


def _published_points(
    graph: FloatView, points: tuple[ActivationPoint, ...], last: str
) -> tuple[ActivationPoint, ...]:
    """Returns the points that the published FDDA code has: behind activation functions alone."""
    found = []
    for point in points:
        producer = graph.producer.get(point.tensor)
        edges = tuple(edge for edge in point.consumers if not graph.is_add(edge))
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
    row = row_to_leave(entry, scheme)
    if row is not None:
        return TABLE[row].reason
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
    widths: Widths,
) -> tuple[ActivationPoint, ...]:
    consumers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    rows: dict[str, str] = {}
    bits: dict[str, int] = defaultdict(lambda: scheme.act_bits)
    for entry in kept:
        tensor = entry.node.input[0]
        consumers[tensor].append((entry.node.name, 0))
        rows.setdefault(tensor, "weighted-input")
        bits[tensor] = max(bits[tensor], input_bits(entry, scheme, ends, widths))
    raised = {entry.node.name: raised_to(entry, scheme, ends, widths) for entry in kept}
    skips: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for tensor, edge, fused in _skips(graph, raised, torch_tensors):
        if target in TABLE["wide-skip"].targets and scheme.act_bits < SKIP_BITS:
            skips[tensor].append(edge)
            continue
        consumers[tensor].append(edge)
        rows.setdefault(tensor, "residual-skip")
        bits[tensor] = max(bits[tensor], raised[fused])
    if target in TABLE["weighted-output"].targets:
        left = widths.keys() - raised.keys()
        for node, tensor, edges in _outputs(graph, kept, raised, torch_tensors, left):
            known = set(consumers[tensor])
            consumers[tensor].extend(edge for edge in edges if edge not in known)
            rows.setdefault(tensor, "weighted-output" if node in raised else "residual-output")
            bits[tensor] = max(bits[tensor], raised.get(node, 0))
    order = {t: index for index, t in enumerate(graph.tensors())}
    for tensor in [t for t in skips if bits.get(t, SKIP_BITS) >= SKIP_BITS]:
        consumers[tensor] += skips.pop(tensor)  # one pair does for both
        rows.setdefault(tensor, "wide-skip")
        bits[tensor] = SKIP_BITS
    points = [
        ActivationPoint(tensor, tuple(edges), bits[tensor], rows[tensor], scheme.storage)
        for tensor, edges in consumers.items()
    ]
    points += [
        ActivationPoint(tensor, tuple(edges), SKIP_BITS, "wide-skip", part="/skip")
        for tensor, edges in skips.items()
    ]
    return tuple(sorted(points, key=lambda point: order[point.tensor]))


def _skips(
    graph: FloatView, raised: Mapping[str, int], torch_tensors: Collection[str]
) -> Iterator[tuple[str, tuple[str, int], str]]:
    """Yields each skip: its tensor, where an addition reads it, and the layer that this joins."""
    for node in graph.proto.node:
        skip = graph.skip_input(node, raised)
        if skip is not None and node.input[skip] in torch_tensors:
            yield node.input[skip], (node.name, skip), graph.producer[node.input[1 - skip]].name


def _outputs(
    graph: FloatView,
    kept: list[WeightedNode],
    raised: Mapping[str, int],
    torch_tensors: Collection[str],
    left: Collection[str],
) -> Iterator[tuple[str, str, list[tuple[str, int]]]]:
    """Yields weighted nodes and residual additions with their output, behind its activation.

    ONNX Runtime wants it quantized. With each comes who reads the value: all but layers that were
    ``left`` in float by choice.
    """
    outputs = {value.name for value in graph.proto.output}
    sums = [node for node in graph.proto.node if graph.skip_input(node, raised) is not None]
    for node in [*(entry.node for entry in kept), *sums]:
        tensor = node.output[0]
        readers = graph.consumers[tensor]
        if len(readers) == 1 and readers[0][0].op_type in _ACTIVATIONS:
            tensor = readers[0][0].output[0]
        edges = [(n.name, index) for n, index in graph.consumers[tensor] if n.name not in left]
        if edges and tensor not in outputs and tensor in torch_tensors:
            yield node.name, tensor, edges
