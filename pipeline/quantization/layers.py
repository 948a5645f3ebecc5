"""Float and quantized network side by side: bias correction, and how far each layer drifts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.quant.affine import dequantize

Visit = Callable[[fx.Node, Tensor], Tensor]


@dataclass(frozen=True)
class LayerError:
    """How well one quantized layer follows its float twin.

    Attributes:
        node: ONNX node name.
        weight_sqnr_db: ``10 log10(sum w^2 / sum (w - w_q)^2)``.
        output_sqnr_db: The same of the layer's output, with everything before it quantized too.
    """

    node: str
    weight_sqnr_db: float
    output_sqnr_db: float


class _Walk(fx.Interpreter):
    """Runs a graph node by node and shows each output of interest to ``visit``."""

    def __init__(self, module: fx.GraphModule, names: set[str], visit: Visit) -> None:
        super().__init__(module)
        self._names = names
        self._visit = visit

    def run_node(self, n: fx.Node) -> Any:  # the interpreter's own signature
        result = super().run_node(n)
        if n.name in self._names and isinstance(result, Tensor):
            return self._visit(n, result)
        return result


@torch.no_grad()
def correct_biases(
    network: QuantNetwork, float_module: fx.GraphModule, images: Tensor, device: torch.device
) -> int:
    """Adds to each bias what quantization shifted its layer's mean output by; returns how many.

    One walk from input to output (Nagel et al., arXiv 1906.04721, section 4.2, with measured rather
    than predicted means): each layer sees the already corrected layers before it.

    Args:
        network: Calibrated; its biases are changed in place.
        float_module: The float graph that `network` was converted from.
        images: ``(N, C, H, W)`` float32, preprocessed.
        device: Where to run.
    """
    weighted = _weighted_nodes(network)
    means: dict[str, Tensor] = {}

    def remember(node: fx.Node, output: Tensor) -> Tensor:
        means[node.name] = _channel_means(node, output)
        return output

    corrected = 0
    biases = _bias_names(network, weighted)

    def correct(node: fx.Node, output: Tensor) -> Tensor:
        nonlocal corrected
        name = biases.get(node.name)
        if name is None:
            return output
        delta = _certain_shift(means[node.name] - _channel_means(node, output))
        network.graph_module.get_parameter(name).add_(delta)
        corrected += 1
        behind = output.ndim - 1 - _channel_axis(node, output)
        return output + delta.reshape([-1] + [1] * behind)

    x = images.to(device)
    float_module.to(device)
    network.to(device)
    _Walk(float_module, set(weighted), remember).run(x)
    _Walk(network.graph_module, set(weighted), correct).run(x)
    return corrected


@torch.no_grad()
def layer_errors(
    network: QuantNetwork, float_module: fx.GraphModule, images: Tensor, device: torch.device
) -> list[LayerError]:
    """Returns how far each quantized layer drifts on ``images``, in graph order."""
    weighted = _weighted_nodes(network)
    outputs: dict[str, Tensor] = {}
    ratios: dict[str, float] = {}

    def remember(node: fx.Node, output: Tensor) -> Tensor:
        outputs[node.name] = output
        return output

    def measure(node: fx.Node, output: Tensor) -> Tensor:
        reference = outputs.pop(node.name)
        noise = float((reference - output).double().pow(2).sum())
        ratios[node.name] = decibel(float(reference.double().pow(2).sum()), noise)
        return output

    x = images.to(device)
    _Walk(float_module.to(device), set(weighted), remember).run(x)
    _Walk(network.to(device).graph_module, set(weighted), measure).run(x)
    weights = _weight_sqnr(network)
    return [
        LayerError(onnx_name, weights[onnx_name], ratios[fx_name])
        for fx_name, onnx_name in weighted.items()
        if fx_name in ratios
    ]


def _weighted_nodes(network: QuantNetwork) -> dict[str, str]:
    """Returns torch node name to ONNX node name of every quantized weighted layer."""
    names = [node for point in network.placement.weights for node in point.consumers]
    by_torch = {network.names.fx_from_node[name]: name for name in names}
    order = [node.name for node in network.graph_module.graph.nodes]
    return {name: by_torch[name] for name in order if name in by_torch}


def _bias_names(network: QuantNetwork, weighted: dict[str, str]) -> dict[str, str]:
    """Returns torch node name to bias parameter name, for biases that one layer alone reads."""
    found: dict[str, str] = {}
    readers: dict[str, int] = {}
    for node in network.graph_module.graph.nodes:
        if node.op == "get_attr":
            readers[str(node.target)] = readers.get(str(node.target), 0) + len(node.users)
    for node in network.graph_module.graph.nodes:
        if node.name not in weighted or len(node.args) < 3:
            continue
        bias = node.args[2]
        if isinstance(bias, fx.Node) and bias.op == "get_attr" and readers[str(bias.target)] == 1:
            found[node.name] = str(bias.target)
    return found


def _weight_sqnr(network: QuantNetwork) -> dict[str, float]:
    ratios: dict[str, float] = {}
    integers = network.integer_weights()
    for point in network.placement.weights:
        weight = network.weight_array(point).astype(np.float64)
        noise = float(((weight - dequantize(*integers[point.initializer])) ** 2).sum())
        for node in point.consumers:
            ratios[node] = decibel(float((weight**2).sum()), noise)
    return ratios


def _channel_axis(node: fx.Node, output: Tensor) -> int:
    """Returns the axis of the output channels: a linear layer's last, a convolution's second."""
    return output.ndim - 1 if node.target is torch.ops.aten.linear.default else 1


def _channel_means(node: fx.Node, output: Tensor) -> Tensor:
    """Returns each image's channel means ``(N, C)``."""
    channel = _channel_axis(node, output)
    rest = [d for d in range(1, output.ndim) if d != channel]
    return output.mean(dim=rest) if rest else output


def _certain_shift(shifts: Tensor) -> Tensor:
    """Returns the mean shift ``(C,)`` of ``(N, C)``, shrunk by how uncertain it is.

    The mean of N noisy shifts has a variance of its own; what it explains of the square is taken
    off (the positive-part James-Stein factor), so that few images do not add noise to a bias.
    """
    mean = shifts.mean(dim=0)
    if len(shifts) < 2:
        return torch.zeros_like(mean)
    variance = shifts.var(dim=0) / len(shifts)
    return mean * (1 - variance / mean.square().clamp_min(1e-30)).clamp_min(0)


def decibel(signal: float, noise: float) -> float:
    """Signal to noise in dB, held within 0 noise = 200 dB."""
    if noise <= 0 or signal <= 0:
        return 200.0 if signal > 0 else 0.0
    return min(200.0, 10 * float(np.log10(signal / noise)))
