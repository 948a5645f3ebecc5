"""Float graph to fake-quantized graph: a quantizer wherever the placement names a point."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor, fx, nn

from fdda_deploy.errors import CalibrationError
from fdda_deploy.pipeline.quantization.fake_quant import ActivationQuantizer, WeightQuantizer
from fdda_deploy.quant.affine import quantize
from fdda_deploy.quant.points import Placement, WeightPoint
from fdda_deploy.quant.qparams import QParams


@dataclass(frozen=True)
class GraphMap:
    """Which torch node and parameter each ONNX name stands for (see `exporters.float_onnx`)."""

    fx_from_tensor: Mapping[str, str]
    fx_from_node: Mapping[str, str]
    parameter_from_initializer: Mapping[str, tuple[str, bool]]


class QuantNetwork(nn.Module):
    """A network on its integer grids, ready to calibrate, fine-tune and export.

    ``forward`` takes ``(N, C, H, W)`` float32 and returns the logits ``(N, classes)``.

    Attributes:
        graph_module: The graph with its quantizers.
        placement: The points it follows.
        activation_quantizers: By the point's name, in graph order.
        weight_quantizers: By ONNX initializer name, in graph order.
    """

    def __init__(self, graph_module: fx.GraphModule, placement: Placement, names: GraphMap) -> None:
        super().__init__()
        self.graph_module = graph_module
        self.placement = placement
        self.names = names
        self.activation_quantizers: dict[str, ActivationQuantizer] = {}
        self.weight_quantizers: dict[str, WeightQuantizer] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits ``(N, classes)`` of a batch ``(N, C, H, W)``."""
        logits: Tensor = self.graph_module(x)
        return logits

    def weight(self, point: WeightPoint) -> nn.Parameter:
        """Returns the torch parameter behind a weight point."""
        name, _ = self.names.parameter_from_initializer[point.initializer]
        return self.graph_module.get_parameter(name)

    def weight_array(self, point: WeightPoint) -> npt.NDArray[np.float32]:
        """Returns the float weight behind a point, in ONNX layout."""
        _, transposed = self.names.parameter_from_initializer[point.initializer]
        value = self.weight(point).detach().cpu().numpy()
        return np.ascontiguousarray(value.T if transposed else value)

    def set_weight_qparams(self, point: WeightPoint, qparams: QParams) -> None:
        """Fixes the grid of one weight; ``qparams`` are in ONNX layout."""
        _, transposed = self.names.parameter_from_initializer[point.initializer]
        shape = tuple(self.weight(point).shape)
        if transposed:
            qparams = _transposed(qparams)
        self.weight_quantizers[point.initializer].set_qparams(qparams, shape)

    def weight_qparams(self, point: WeightPoint) -> QParams:
        """Returns the grid of one weight in ONNX layout.

        Raises:
            CalibrationError: It has none yet.
        """
        qparams = self.weight_quantizers[point.initializer].qparams
        if qparams is None:
            raise CalibrationError(f"{point.initializer}: no scale yet. Calibrate first.")
        _, transposed = self.names.parameter_from_initializer[point.initializer]
        return _transposed(qparams) if transposed else qparams

    def activation_qparams(self) -> dict[str, QParams]:
        """Returns the grid of every activation point, by ONNX tensor name.

        Raises:
            CalibrationError: A point has none yet.
        """
        missing = [name for name, q in self.activation_quantizers.items() if q.qparams is None]
        if missing:
            raise CalibrationError(f"{missing[0]}: no range yet. Calibrate first.")
        return {
            name: quantizer.qparams
            for name, quantizer in self.activation_quantizers.items()
            if quantizer.qparams is not None
        }

    def integer_weights(self) -> dict[str, tuple[npt.NDArray[np.int8], QParams]]:
        """Returns integers and grid of every weight point, by initializer, in ONNX layout."""
        found = {}
        for point in self.placement.weights:
            qparams = self.weight_qparams(point)
            found[point.initializer] = (quantize(self.weight_array(point), qparams), qparams)
        return found

    def float_parameters(self) -> dict[str, npt.NDArray[np.float32]]:
        """Returns what stays in float (biases, some weights) by initializer, in ONNX layout."""
        weights = self.names.parameter_from_initializer
        quantized = {point.initializer for point in self.placement.weights}
        held_by_weights = {name for name, _ in weights.values()}
        found = {
            name: value.detach().cpu().numpy()
            for name, value in self.graph_module.named_parameters()
            if name not in held_by_weights
        }
        for initializer, (name, transposed) in weights.items():
            if initializer not in quantized:
                value = self.graph_module.get_parameter(name).detach().cpu().numpy()
                found[initializer] = np.ascontiguousarray(value.T if transposed else value)
        return found


def convert(module: fx.GraphModule, placement: Placement, names: GraphMap) -> QuantNetwork:
    """Returns a copy of the float graph with a quantizer at every point of ``placement``.

    The quantizers pass values through until they are calibrated.

    Raises:
        CalibrationError: A point has no torch twin.
    """
    graph_module = copy.deepcopy(module)
    network = QuantNetwork(graph_module, placement, names)
    by_name = {node.name: node for node in graph_module.graph.nodes}
    emitted = set(names.fx_from_node.values())
    for index, point in enumerate(placement.activations):
        source = by_name.get(names.fx_from_tensor.get(point.tensor, ""))
        if source is None:
            raise CalibrationError(f"{point.tensor}: no torch tensor of that name to quantize.")
        wanted = {names.fx_from_node[node] for node, _ in point.consumers}
        quantizer = ActivationQuantizer()
        edges = _edges(source, wanted, emitted)
        _insert(graph_module, edges, f"activation_quantizer_{index}", quantizer, point.name)
        network.activation_quantizers[point.name] = quantizer
    for index, weight in enumerate(placement.weights):
        name, _ = names.parameter_from_initializer[weight.initializer]
        wanted = {names.fx_from_node[node] for node in weight.consumers}
        weight_quantizer = WeightQuantizer()
        edges = [
            edge
            for source in by_name.values()
            if source.op == "get_attr" and source.target == name
            for edge in _edges(source, wanted, emitted)
        ]
        _insert(
            graph_module, edges, f"weight_quantizer_{index}", weight_quantizer, weight.initializer
        )
        network.weight_quantizers[weight.initializer] = weight_quantizer
    graph_module.graph.lint()
    graph_module.recompile()
    return network


def _insert(
    graph_module: fx.GraphModule,
    edges: list[tuple[fx.Node, fx.Node]],
    key: str,
    module: nn.Module,
    tensor: str,
) -> None:
    """Puts ``module`` on each (producer, reader) edge, one call per producer."""
    if not edges:
        raise CalibrationError(f"{tensor}: no torch node reads the quantized value.")
    graph_module.add_submodule(key, module)
    calls: dict[fx.Node, fx.Node] = {}
    for source, reader in edges:
        if source not in calls:
            with graph_module.graph.inserting_after(source):
                calls[source] = graph_module.graph.call_module(key, (source,))
        reader.replace_input_with(source, calls[source])


def _edges(source: fx.Node, wanted: set[str], emitted: set[str]) -> list[tuple[fx.Node, fx.Node]]:
    """Returns the (producer, reader) edges by which the wanted consumers read ``source``.

    ONNX absorbed some torch nodes: a zero pad into the convolution behind it, a dropout into
    nothing. Quantizing before them is the same, because 0 is on every grid. Where such a node also
    feeds a reader that stays in float, the quantizer goes behind it.
    """
    edges = []
    for user in source.users:
        if user.name in wanted or _leads_only_to(user, wanted, emitted):
            edges.append((source, user))
        elif user.name not in emitted:
            edges += _edges(user, wanted, emitted)
    return edges


def _leads_only_to(node: fx.Node, wanted: set[str], emitted: set[str]) -> bool:
    """Whether ``node`` was absorbed and nothing but wanted consumers reads its result."""
    if node.name in emitted or node.op == "output" or not node.users:
        return False
    return all(user.name in wanted or _leads_only_to(user, wanted, emitted) for user in node.users)


def _transposed(qparams: QParams) -> QParams:
    """Returns the same grid for the transposed matrix."""
    if qparams.axis is None:
        return qparams
    scale = qparams.scale if qparams.block_size is None else np.ascontiguousarray(qparams.scale.T)
    return QParams(
        scale,
        qparams.qmin,
        qparams.qmax,
        1 - qparams.axis,
        qparams.zero_point,
        qparams.block_size,
    )
