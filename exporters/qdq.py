"""Float ONNX plus grids gives Q/DQ ONNX: integers for weights, Q/DQ pairs for activations.

What TensorRT requires shapes the result (see `trt_rules`): zero-points are constant zeros (others
are taken up by biases first, `absorbed`), biases stay float, weights are stored as integers behind
one DequantizeLinear, one pair per tensor. A grid of fewer than 8 bits is carried in INT8 behind a
Clip. ONNX Runtime's CPU kernels want other storage of the same values (`onnx_runtime_cpu`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from fdda_deploy.errors import ExportError
from fdda_deploy.exporters import names
from fdda_deploy.exporters.absorbed import IntegerWeight, absorb_zero_points
from fdda_deploy.exporters.onnx_runtime_cpu import integer_biases, uint8_zero_point
from fdda_deploy.exporters.stored import stored
from fdda_deploy.quant.points import ActivationPoint, Placement, WeightPoint
from fdda_deploy.quant.qparams import QParams


@dataclass(frozen=True)
class Grids:
    """The numbers that fill a placement.

    Attributes:
        activations: Grid of each activation point, by tensor.
        weights: Integers and grid of each weight point, by initializer, in ONNX layout.
        parameters: New values of float initializers (corrected or fine-tuned biases), by name.
    """

    activations: Mapping[str, QParams]
    weights: Mapping[str, IntegerWeight]
    parameters: Mapping[str, npt.NDArray[np.float32]]


def insert_qdq(
    model: onnx.ModelProto, placement: Placement, grids: Grids, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """Returns the Q/DQ twin of a float graph; ``model`` is left as it is.

    Args:
        model: Float graph with the names that ``placement`` uses.
        placement: Where.
        grids: With which numbers.
        metadata: Written into the file (scheme, digests, versions).

    Raises:
        ExportError: A point names a tensor, an initializer or a grid that is not there, or the
            result is not a valid ONNX graph.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _set_parameters(result.graph, grids.parameters)
    for_cpu = placement.target == "ort-cpu"
    activations = grids.activations
    if not for_cpu:
        activations = absorb_zero_points(result.graph, placement, activations, grids.weights)
    insertion = _Insertion(result.graph, for_cpu)
    for point in placement.weights:
        if point.initializer not in grids.weights:
            raise ExportError(f"{point.initializer}: no integers for this weight. Quantize first.")
        insertion.weight(point, *grids.weights[point.initializer])
    for activation in placement.activations:
        if activation.name not in activations:
            raise ExportError(f"{activation.name}: no range for this tensor. Calibrate first.")
        insertion.activation(activation, activations[activation.name])
    if for_cpu:
        integer_biases(insertion.graph, insertion.before, placement, grids)
    insertion.finish()
    helper.set_model_props(result, dict(metadata))
    try:
        onnx.checker.check_model(result)
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"the Q/DQ graph is not valid ONNX: {str(error).splitlines()[0]}"
        ) from error
    return result


class _Insertion:
    """Collects new nodes by where they belong, then rebuilds the node list in order."""

    def __init__(self, graph: onnx.GraphProto, for_cpu: bool) -> None:
        self.graph = graph
        self.for_cpu = for_cpu
        self.nodes = {node.name: node for node in graph.node}
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.produced = {t for node in graph.node for t in node.output}
        self.produced |= {value.name for value in graph.input}
        self.after: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self.before: dict[str, list[onnx.NodeProto]] = defaultdict(list)

    def weight(self, point: WeightPoint, x_int: npt.NDArray[np.int8], qparams: QParams) -> None:
        """Replaces a float initializer by integers and a DequantizeLinear."""
        weight = point.initializer
        if weight not in self.initializers:
            raise ExportError(f"{weight}: the graph has no such initializer.")
        if tuple(self.initializers[weight].dims) != x_int.shape:
            raise ExportError(
                f"{weight}: integers have shape {x_int.shape}, the graph wants "
                f"{tuple(self.initializers[weight].dims)}."
            )
        self.graph.initializer.remove(self.initializers[weight])
        integers, scale = names.quantized(weight), names.scale(weight)
        self.graph.initializer.append(stored(integers, x_int, point.storage))
        self.graph.initializer.append(numpy_helper.from_array(qparams.scale, scale))
        inputs = [integers, scale]
        attributes = {} if qparams.axis is None else {"axis": point.axis}
        if point.block_size is not None:
            attributes["block_size"] = point.block_size
        if point.storage != "int4":
            zeros = np.zeros(qparams.scale.shape, np.int8)
            zero_point = stored(names.zero_point(weight), zeros, point.storage)
            self.graph.initializer.append(zero_point)
            inputs.append(names.zero_point(weight))
        node = helper.make_node(
            "DequantizeLinear",
            inputs,
            [names.dequantized(weight)],
            name=names.dequantize_node(weight),
            **attributes,
        )
        self.before[point.consumers[0]].append(node)
        for consumer in point.consumers:
            self._rewire(consumer, 1, names.dequantized(weight))

    def activation(self, point: ActivationPoint, qparams: QParams) -> None:
        """Puts a Q/DQ pair on a tensor and hands its output to the point's consumers."""
        tensor = point.tensor
        if tensor not in self.produced:
            raise ExportError(f"{tensor}: the graph has no such tensor.")
        if qparams.axis is not None:
            raise ExportError(f"{tensor}: activations take one scale (T007).")
        scale, zero = names.scale(point.name), names.zero_point(point.name)
        self._constant(scale, qparams.scale)
        if self.for_cpu:
            self._constant(zero, uint8_zero_point(qparams))
        else:
            self.graph.initializer.append(stored(zero, np.zeros((), np.int8), point.storage))
        source = tensor
        if (qparams.qmin, qparams.qmax) != (-128, 127) and not qparams.float8:
            source = self._clip(point, qparams)
        self.after[tensor] += [
            helper.make_node(
                "QuantizeLinear",
                [source, scale, zero],
                [names.quantized(point.name)],
                name=names.quantize_node(point.name),
            ),
            helper.make_node(
                "DequantizeLinear",
                [names.quantized(point.name), scale, zero],
                [names.dequantized(point.name)],
                name=names.dequantize_node(point.name),
            ),
        ]
        for consumer, index in point.consumers:
            self._rewire(consumer, index, names.dequantized(point.name))

    def finish(self) -> None:
        """Rebuilds the node list: producers before their Q/DQ, weight DQ before its consumer."""
        ordered = [node for value in self.graph.input for node in self.after[value.name]]
        for node in self.graph.node:
            ordered += self.before[node.name]
            ordered.append(node)
            for tensor in node.output:
                ordered += self.after[tensor]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
        del self.graph.node[:]
        self.graph.node.extend(copies)

    def _clip(self, point: ActivationPoint, qparams: QParams) -> str:
        low, high = names.bound(point.name, "low"), names.bound(point.name, "high")
        self._constant(low, qparams.low)
        self._constant(high, qparams.high)
        clipped = names.clipped(point.name)
        node = helper.make_node(
            "Clip", [point.tensor, low, high], [clipped], name=names.clip_node(point.name)
        )
        self.after[point.tensor].append(node)
        return clipped

    def _constant(self, name: str, value: npt.NDArray[np.generic]) -> None:
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))

    def _rewire(self, consumer: str, index: int, tensor: str) -> None:
        if consumer not in self.nodes:
            raise ExportError(f"{consumer}: the graph has no such node.")
        self.nodes[consumer].input[index] = tensor


def _set_parameters(
    graph: onnx.GraphProto, parameters: Mapping[str, npt.NDArray[np.float32]]
) -> None:
    """Writes new values into float initializers that are named like torch parameters."""
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    for name, value in parameters.items():
        tensor = initializers.get(name)
        if tensor is None:
            raise ExportError(f"{name}: the graph has no such initializer for the new value.")
        if tuple(tensor.dims) != value.shape:
            raise ExportError(
                f"{name}: new value has shape {value.shape}, the graph {tuple(tensor.dims)}."
            )
        tensor.CopyFrom(numpy_helper.from_array(value, name))
