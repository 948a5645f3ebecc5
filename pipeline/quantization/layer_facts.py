"""What a quantized layer's tensors look like, and which of its grids makes the noise: measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fdda_deploy.errors import CalibrationError
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.fact_totals import LayerNumbers, LayerTotals
from fdda_deploy.pipeline.quantization.fake_quant import ActivationQuantizer, WeightQuantizer
from fdda_deploy.pipeline.quantization.tensor_origin import is_rectifier, origin_of, source_of
from fdda_deploy.quant.points import WeightPoint


@dataclass(frozen=True)
class LayerFacts(LayerNumbers):
    """What one quantized layer is, with its numbers on a set of images.

    Attributes:
        node: ONNX node.
        initializer: ONNX name of its weight.
        tensor: ONNX name of its quantized input; None where that stays in float.
        weight_bits: Width of the weight's grid.
        act_bits: Width of the input's grid; None in float.
        depthwise: One input channel per group.
        weights_a_channel: Weights of one output channel.
        input_from: ``swish``, ``gate`` (a product with a sigmoid) or ``other``.
    """

    node: str
    initializer: str
    tensor: str | None
    weight_bits: int
    act_bits: int | None
    depthwise: bool
    weights_a_channel: int
    input_from: str

    @property
    def own(self) -> float:
        """Noise that the layer's own two grids make, as if they were independent."""
        return self.by_input + self.by_weight


@torch.no_grad()
def layer_facts(
    network: QuantNetwork,
    float_module: fx.GraphModule,
    images: Tensor,
    *,
    device: torch.device,
    batch_size: int = 8,
) -> list[LayerFacts]:
    """Returns the facts of every quantized layer, in graph order.

    Each batch runs through the float and then through the quantized network; every layer is also
    computed on the float network's input with one of its two grids, which says whose noise it is.

    Args:
        network: Calibrated; its rounding of weights may be any.
        float_module: The float graph that ``network`` was converted from.
        images: ``(N, C, H, W)`` float32, preprocessed.
        device: Where to run.
        batch_size: Images at a time; every float activation of a batch is held.

    Raises:
        CalibrationError: No image, or an activation without a range.
    """
    if not len(images):
        raise CalibrationError("no image to diagnose layers on. Give --calib-data.")
    network.activation_qparams()  # refuses a network that is not calibrated
    layers = _layers(network.to(device))
    walk = _QuantWalk(network, float_module.to(device), layers)
    for batch in torch.split(images, batch_size):
        walk.observe(batch.to(device))
    return [_facts(layer) for layer in layers.values()]


class _Layer:
    """One node that multiplies by a quantized weight: where its operands stand, and its sums.

    Attributes:
        name: ONNX node.
        point: Of its weight.
        weight_at: Which argument is the weight.
        input_at: Which one is the input.
        call: Torch node that the input comes from: the call of its quantizer, where it has one.
        quantizer: Of its input; None in float.
        tensor: ONNX name of the quantized input.
        input_from: As in :class:`LayerFacts`.
        totals: Sums over batches.
    """

    def __init__(
        self, network: QuantNetwork, node: fx.Node, point: WeightPoint, operands: tuple[int, int]
    ) -> None:
        emitted = set(network.names.fx_from_node.values())
        self.point = point
        self.weight_at, self.input_at = operands
        source = source_of(node.args[self.input_at], emitted)
        assert source is not None
        self.call = source.name
        found = _module(network, source)
        self.quantizer = found if isinstance(found, ActivationQuantizer) else None
        names = {id(module): tensor for tensor, module in network.activation_quantizers.items()}
        self.tensor = names.get(id(found))
        maker = source_of(source.all_input_nodes[0], emitted) if self.quantizer else source
        assert maker is not None
        self.input_from = origin_of(maker)
        self.totals = LayerTotals(
            1 if "conv" in str(node.target) else -1,
            self.quantizer,
            rectified=any(is_rectifier(user) for user in node.users),
        )
        weight = network.weight(point)
        self.weights_a_channel = weight.numel() // weight.shape[0]
        # One torch node may stand for two ONNX nodes (MatMul and Add): only one reads the weight.
        self.name = next(
            name for name in point.consumers if network.names.fx_from_node[name] == node.name
        )


class _QuantWalk(fx.Interpreter):
    """Runs the quantized graph beside the float network's numbers and adds up the differences."""

    def __init__(
        self, network: QuantNetwork, float_module: fx.GraphModule, layers: dict[str, _Layer]
    ) -> None:
        super().__init__(network.graph_module)
        self._floats = fx.Interpreter(float_module, garbage_collect_values=False)
        self._float_nodes = {node.name: node for node in float_module.graph.nodes}
        self._layers = layers
        self._calls = {layer.call: layer for layer in layers.values() if layer.quantizer}

    def observe(self, batch: Tensor) -> None:
        """Takes in one batch ``(N, C, H, W)``."""
        self._floats.run(batch)
        self.run(batch)
        self._floats.env.clear()

    def run_node(self, n: fx.Node) -> Any:  # the interpreter's own signature
        result = super().run_node(n)
        if n.op == "call_module" and n.name in self._calls:
            source = n.all_input_nodes[0]
            wanted = self._floats.env[self._float_nodes[source.name]]
            for layer in self._layers.values():
                if layer.call == n.name:
                    layer.totals.add_arrived(wanted, self.env[source])
        layer_here = self._layers.get(n.name)
        if layer_here is not None:
            self._observe(layer_here, n, result)
        return result

    def _observe(self, layer: _Layer, node: fx.Node, result: Tensor) -> None:
        """Computes the layer again on float operands, one of them at a time on its grid."""
        twin = self._float_nodes[node.name]
        args, kwargs = self._floats.fetch_args_kwargs_from_env(twin)
        quantized, _ = self.fetch_args_kwargs_from_env(node)
        wanted = self._floats.env[twin]
        x = args[layer.input_at]
        if layer.quantizer is None:
            layer.totals.add_arrived(x, quantized[layer.input_at])
        on_grid = x if layer.quantizer is None else layer.quantizer(x)

        def output(position: int, operand: Tensor) -> Tensor:
            operands = [*args[:position], operand, *args[position + 1 :]]
            computed: Tensor = self.call_function(node.target, tuple(operands), kwargs)
            return computed

        by_weight = output(layer.weight_at, quantized[layer.weight_at])
        by_input = wanted if layer.quantizer is None else output(layer.input_at, on_grid)
        layer.totals.add_input(x, on_grid)
        layer.totals.add_output(wanted, result, by_input, by_weight)


def _layers(network: QuantNetwork) -> dict[str, _Layer]:
    """Returns every layer by its torch node, in graph order."""
    points = {
        network.names.fx_from_node[name]: point
        for point in network.placement.weights
        for name in point.consumers
    }
    found = {}
    for node in network.graph_module.graph.nodes:
        operands = _operands(network, node) if node.name in points else None
        if operands is not None:
            found[node.name] = _Layer(network, node, points[node.name], operands)
    return found


def _operands(network: QuantNetwork, node: fx.Node) -> tuple[int, int] | None:
    """Returns which arguments are the weight and the input; None where no input is computed.

    A bias is a parameter as it stands, so it is neither.
    """
    emitted = set(network.names.fx_from_node.values())
    sources = [source_of(each, emitted) for each in node.args]
    places = [(i, source) for i, source in enumerate(sources) if source is not None]
    is_weight = {i: isinstance(_module(network, s), WeightQuantizer) for i, s in places}
    weights = [i for i, _ in places if is_weight[i]]
    inputs = [i for i, source in places if not is_weight[i] and source.op != "get_attr"]
    return (weights[0], inputs[0]) if weights and inputs else None


def _module(network: QuantNetwork, node: fx.Node) -> nn.Module | None:
    """Returns the module that a node calls."""
    if node.op != "call_module":
        return None
    return network.graph_module.get_submodule(str(node.target))


def _facts(layer: _Layer) -> LayerFacts:
    qparams = None if layer.quantizer is None else layer.quantizer.qparams
    return LayerFacts(
        node=layer.name,
        initializer=layer.point.initializer,
        tensor=layer.tensor,
        weight_bits=layer.point.num_bits,
        act_bits=None if qparams is None else qparams.num_bits,
        depthwise=layer.point.depthwise,
        weights_a_channel=layer.weights_a_channel,
        input_from=layer.input_from,
        **asdict(layer.totals.numbers()),
    )
