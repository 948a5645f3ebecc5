"""Which weights can be rounded for what their layer reads, and where that is in both graphs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.patches import LayerShape, layer_shape
from fdda_deploy.quant.points import WeightPoint


@dataclass(frozen=True)
class RoundingLayer:
    """A weighted node in both graphs.

    Attributes:
        point: Its weight.
        shape: How it reads its input.
        source: Name of the node it reads in the float graph.
        source_hat: The same in the quantized graph.
        parameter: Name of the weight in both.
        bias: Name of its bias in both; None without one of its own.
    """

    point: WeightPoint
    shape: LayerShape
    source: str
    source_hat: str
    parameter: str
    bias: str | None


def rounding_layers(
    network: QuantNetwork, float_module: fx.GraphModule, max_fan_in: int
) -> tuple[dict[str, RoundingLayer], list[tuple[str, str]]]:
    """Returns the layers to round by torch node name, and the other weights with the reason."""
    nodes = {node.name: node for node in float_module.graph.nodes}
    nodes_hat = {node.name: node for node in network.graph_module.graph.nodes}
    found: dict[str, RoundingLayer] = {}
    left: list[tuple[str, str]] = []
    for point in network.placement.weights:
        parameter, _ = network.names.parameter_from_initializer[point.initializer]
        if len(point.consumers) > 1 or _num_readers(float_module, parameter) > 1:
            left.append((point.initializer, "several layers read it"))
            continue
        name = network.names.fx_from_node[point.consumers[0]]
        node, node_hat = nodes[name], nodes_hat[name]
        weight = node.args[1] if len(node.args) > 1 else None
        size = tuple(network.weight(point).shape)
        shape = layer_shape(node, size)
        if shape is None or not isinstance(weight, fx.Node) or weight.target != parameter:
            left.append((point.initializer, "layers of this kind are not sampled"))
        elif shape.fan_in > max_fan_in:
            left.append((point.initializer, f"it reads more than {max_fan_in} inputs at once"))
        else:
            source, source_hat = node.all_input_nodes[0].name, node_hat.all_input_nodes[0].name
            bias = _own_bias(float_module, node)
            found[name] = RoundingLayer(point, shape, source, source_hat, parameter, bias)
    return found, left


def _own_bias(module: fx.GraphModule, node: fx.Node) -> str | None:
    """Returns the parameter that this node alone adds; None where there is none."""
    bias = node.args[2] if len(node.args) > 2 else None
    if not isinstance(bias, fx.Node) or bias.op != "get_attr":
        return None
    name = str(bias.target)
    alone = name in dict(module.named_parameters()) and _num_readers(module, name) == 1
    return name if alone else None


def _num_readers(module: fx.GraphModule, name: str) -> int:
    """Returns how many nodes read a parameter."""
    nodes = module.graph.nodes
    return sum(len(node.users) for node in nodes if node.op == "get_attr" and node.target == name)
