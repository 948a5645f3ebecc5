"""How much each layer costs: its damage to the logits when it alone is quantized."""

from __future__ import annotations

from collections import ChainMap
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor, fx, nn

from fdda_deploy.errors import CalibrationError
from fdda_deploy.pipeline.network import Progress
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.fake_quant import ActivationQuantizer, WeightQuantizer
from fdda_deploy.pipeline.quantization.layers import decibel
from fdda_deploy.quant.points import WeightPoint

BATCH = 8
"""Images at a time: every float activation of a batch is held while its layers are measured."""


@dataclass(frozen=True)
class LayerSensitivity:
    """What one layer does to the logits when it alone is quantized.

    Attributes:
        nodes: ONNX nodes that read the weight, in graph order; more than one where it is shared.
        weight_bits: Width of the weight's grid.
        act_bits: Width of the grid at the layer's input; None where that stays in float.
        kl: Mean ``KL(softmax(float) || softmax(quantized))`` of the logits, nats.
        sqnr_db: ``10 log10(sum float^2 / sum (float - quantized)^2)`` of the logits.
        num_weights: Elements of the weight.
        grid_bytes: Bytes of the weight on its grid, ``weight_bits / 8`` each, without scales.
        stored_bytes: Bytes that the exported graph and the plan hold: a grid below 8 bits takes one
            byte a weight, unless it is stored as INT4.
    """

    nodes: tuple[str, ...]
    weight_bits: int
    act_bits: int | None
    kl: float
    sqnr_db: float
    num_weights: int
    grid_bytes: int
    stored_bytes: int

    @property
    def name(self) -> str:
        """The first node, which names the layer."""
        return self.nodes[0]


def bytes_of(num_weights: int, bits: int) -> int:
    """Returns the whole bytes that hold ``num_weights`` numbers of ``bits`` each.

    >>> bytes_of(9, 4)
    5
    """
    return -(-num_weights * bits // 8)


@torch.no_grad()
def layer_sensitivity(
    network: QuantNetwork,
    float_module: fx.GraphModule,
    images: Tensor,
    *,
    device: torch.device,
    batch_size: int = BATCH,
    progress: Progress | None = None,
) -> list[LayerSensitivity]:
    """Returns the damage of every quantized layer, in graph order.

    A layer is quantized alone: its weight as ``network`` rounds it, and its input activation; all
    else computes in float. The float network runs once a batch; for each layer only what lies
    behind it is computed again.

    Args:
        network: Calibrated; its rounding of weights may be any.
        float_module: The float graph that ``network`` was converted from.
        images: ``(N, C, H, W)`` float32, preprocessed. No labels are needed.
        device: Where to run.
        batch_size: Images at a time; bounds the memory.
        progress: Called with (layers done, layers in all, text), counted over the batches.

    Raises:
        CalibrationError: No image, a grid that is missing, or logits that are not finite.
    """
    if not len(images):
        raise CalibrationError("no image to measure layers on. Give --calib-data.")
    network.activation_qparams()  # refuses a network that is not calibrated
    layers = [_Layer(network.to(device), point) for point in network.placement.weights]
    replay = _Replay(network, float_module.to(device))
    totals = torch.zeros(len(layers), 3, dtype=torch.float64)
    batches = torch.split(images, batch_size)
    for number, batch in enumerate(batches):
        logits = replay.start(batch.to(device))
        for index, layer in enumerate(layers):
            totals[index] += _damage(logits, replay.logits_with(layer), layer)
            if progress is not None:
                done = number * len(layers) + index + 1
                progress(done, len(batches) * len(layers), "measuring layers")
    return [
        _sensitivity(network, layer, *sums, n=len(images))
        for layer, sums in zip(layers, totals.tolist(), strict=True)
    ]


def _damage(wanted: Tensor, found: Tensor, layer: _Layer) -> Tensor:
    """Returns the sums over images of KL, squared logits and squared error, ``(3,)`` float64."""
    reference, other = wanted.double().flatten(1), found.double().flatten(1)
    if not bool(other.isfinite().all() & reference.isfinite().all()):
        raise CalibrationError(
            f"{layer.point.consumers[0]}: the logits are not finite with this layer quantized. "
            "Check the weights and the images."
        )
    log_p, log_q = F.log_softmax(reference, dim=1), F.log_softmax(other, dim=1)
    kl = (log_p.exp() * (log_p - log_q)).sum(dim=1).clamp_min(0).sum()
    return torch.stack([kl, reference.square().sum(), (reference - other).square().sum()]).cpu()


def _sensitivity(
    network: QuantNetwork, layer: _Layer, kl: float, signal: float, noise: float, *, n: int
) -> LayerSensitivity:
    point = layer.point
    count = network.weight(point).numel()
    return LayerSensitivity(
        nodes=point.consumers,
        weight_bits=point.num_bits,
        act_bits=layer.act_bits,
        kl=kl / n,
        sqnr_db=decibel(signal, noise),
        num_weights=count,
        grid_bytes=bytes_of(count, point.num_bits),
        stored_bytes=bytes_of(count, 4 if point.storage == "int4" else 8),
    )


class _Layer:
    """One weight, the torch nodes that multiply by it, and what is quantized before each.

    Attributes:
        point: The weight's point.
        act_bits: Widest grid among the inputs of its readers; None in float.
        before: By reader, in graph order: its quantizer calls, and the nodes between them and it
            that ONNX absorbed (a pad, for instance), which other readers may share.
        held: Nodes whose values the readers need, whenever they come.
    """

    def __init__(self, network: QuantNetwork, point: WeightPoint) -> None:
        self.point = point
        readers = set(point.consumers)
        inputs = [
            activation
            for activation in network.placement.activations
            if any(node in readers and index == 0 for node, index in activation.consumers)
        ]
        self.act_bits = max((activation.num_bits for activation in inputs), default=None)
        weight = network.weight_quantizers[point.initializer]
        network.weight_qparams(point)  # refuses a weight without a grid
        self._rounded: Tensor = weight(network.weight(point))
        own: list[nn.Module] = [network.activation_quantizers[each.name] for each in inputs]
        self._quantizers = {
            name: module
            for name, module in network.graph_module.named_modules()
            if any(module is each for each in (*own, weight))
        }
        emitted = set(network.names.fx_from_node.values())
        wanted = {network.names.fx_from_node[node] for node in readers}
        self.before: dict[fx.Node, list[fx.Node]] = {
            node: _between(node, set(self._quantizers), emitted)
            for node in network.graph_module.graph.nodes
            if node.name in wanted
        }
        inner = {node for nodes in self.before.values() for node in nodes}
        self.held = inner | {source for node in inner for source in node.all_input_nodes}

    def quantized(self, target: object, value: Tensor) -> Tensor:
        """Returns what the layer's quantizer ``target`` makes of a float tensor."""
        quantizer = self._quantizers[str(target)]
        if isinstance(quantizer, WeightQuantizer):
            return self._rounded
        on_grid: Tensor = quantizer(value)
        return on_grid


def _between(reader: fx.Node, quantizers: set[str], emitted: set[str]) -> list[fx.Node]:
    """Returns the nodes from the quantizer calls up to ``reader``, which is not among them."""
    found: dict[fx.Node, bool] = {}

    def leads(node: fx.Node) -> bool:
        if node.op == "call_module":
            found[node] = node.target in quantizers
        elif node.op != "call_function" or node.name in emitted:
            found[node] = False
        else:
            leading = [leads(source) for source in node.all_input_nodes]  # visits every one
            found[node] = any(leading)
        return found[node]

    for source in reader.all_input_nodes:
        leads(source)
    return [node for node in reader.graph.nodes if found.get(node)]


class _Replay(fx.Interpreter):
    """Runs a quantized graph on the float network's numbers, then again behind single layers.

    Quantizers pass values; those of the layer in hand are applied for its readers alone.
    """

    def __init__(self, network: QuantNetwork, float_module: fx.GraphModule) -> None:
        super().__init__(network.graph_module)
        self._float_module = float_module
        self._order = list(network.graph_module.graph.nodes)
        self._floats: dict[fx.Node, Any] = {}

    def start(self, images: Tensor) -> Tensor:
        """Runs the float network on ``(N, C, H, W)``, keeps every value; returns the logits."""
        self._floats.clear()
        for node in self._order:
            self._floats[node] = images if node.op == "placeholder" else self._run(node)
        return _single(self._floats[self._order[-1]])

    def logits_with(self, layer: _Layer) -> Tensor:
        """Returns the logits of the batch in hand with one layer quantized."""
        changed: dict[fx.Node, Any] = {}
        for node in self._order:
            if node in layer.before:
                changed[node] = self._quantized_reader(node, layer, changed)
            elif any(source in changed for source in node.all_input_nodes):
                changed[node] = self._run(node, changed)
            for used in self.user_to_last_uses.get(node, ()):
                if used not in layer.held:
                    changed.pop(used, None)
        return _single(changed.get(self._order[-1], self._floats[self._order[-1]]))

    def _quantized_reader(self, node: fx.Node, layer: _Layer, changed: dict[fx.Node, Any]) -> Any:
        """Returns the output of one of the layer's nodes, its operands on their grids."""
        local: dict[fx.Node, Any] = {}
        for inner in layer.before[node]:
            if inner.op == "call_module":
                value = changed.get(inner, self._floats[inner])  # as it passed the quantizer
                local[inner] = layer.quantized(inner.target, value)
            else:
                local[inner] = self._run(inner, local, changed)
        return self._run(node, local, changed)

    def _run(self, node: fx.Node, *newer: dict[fx.Node, Any]) -> Any:
        self.env = cast("dict[fx.Node, Any]", ChainMap(*newer, self._floats))
        return self.run_node(node)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:  # noqa: ARG002  # fx passes them
        """Returns the float network's own parameter or constant."""
        value: Any = self._float_module
        for part in str(target).split("."):
            value = getattr(value, part)
        return value

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Lets quantizers pass their input."""
        if isinstance(self.submodules[str(target)], ActivationQuantizer | WeightQuantizer):
            return args[0]
        return super().call_module(target, args, kwargs)


def _single(result: object) -> Tensor:
    """Returns the logits of a network that returns them alone or first."""
    while isinstance(result, tuple | list):
        result = result[0]
    assert isinstance(result, Tensor)
    return result
