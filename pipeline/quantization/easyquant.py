"""EasyQuant: weight and activation scales by what they do to each layer's output.

For every layer the weight's scales and the input's scale are searched by turns in [0.5, 2] x the
calibrated ones, 100 candidates each, for the largest cosine similarity between the layer's output
and the float network's, both on the float network's input (arXiv 2006.16669). Inputs that carry the
errors of the layers before were tried and are worse: at 8 bits those errors are larger than what a
scale decides, and the search fits them (mobilenet_v2 w8a8: KL 0.03 to 0.24).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fdda_deploy.pipeline.network import Progress
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.fake_quant import ActivationQuantizer, WeightQuantizer
from fdda_deploy.pipeline.quantization.judge import Judge
from fdda_deploy.pipeline.quantization.patches import (
    LayerShape,
    input_rows,
    layer_shape,
    output_rows,
    sampled_positions,
)
from fdda_deploy.pipeline.quantization.scale_search import (
    LayerSample,
    layer_cosine,
    on_grid,
    search_activation_scale,
    search_weight_scales,
)

NUM_IMAGES = 50
"""Images of the search, as in the paper."""
_ROUNDS = 2


@dataclass(frozen=True)
class ScaleSearch:
    """What the search did.

    Attributes:
        kept: The found scales are better on held-out images, and stay.
        before: Mean KL(float || quantized) on the held-out images before, in nats.
        after: The same afterwards.
        cosines: By torch node name, the cosine of the layer's output before and after its search,
            on the sampled positions.
    """

    kept: bool
    before: float
    after: float
    cosines: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class _Layer:
    """A weighted node, the nodes it reads, and what its weight is."""

    node: fx.Node
    source: fx.Node
    shape: LayerShape
    quantizer: WeightQuantizer
    parameter: str
    searchable: bool


@torch.no_grad()
def search_scales(
    network: QuantNetwork,
    float_module: fx.GraphModule,
    images: Tensor,
    held_out: Tensor,
    *,
    device: torch.device,
    seed: int = 0,
    progress: Progress | None = None,
) -> ScaleSearch:
    """Searches all scales of a calibrated network in place; keeps them only if they help.

    Help is a lower KL(float || quantized) on ``held_out``. Convolutions over one or two axes and
    linear layers are searched; a weight that several layers share, or that is scaled in blocks,
    keeps its scales, and so does a tensor that no such layer reads directly. What else reads a
    tensor, a residual addition for instance, has its say on ``held_out`` alone.

    Args:
        network: Calibrated.
        float_module: The float graph that ``network`` was converted from.
        images: ``(N, C, H, W)`` float32, preprocessed; about 50.
        held_out: ``(N, C, H, W)``, other images.
        device: Where to run.
        seed: Of the sampled positions.
        progress: Called with (layers done, layers, text).
    """
    network.to(device)
    float_module.to(device)
    judge = Judge(float_module, held_out, device)
    before = judge(network)
    acts = network.activation_qparams()
    weights = {point: network.weight_qparams(point) for point in network.placement.weights}
    x, generator = images.to(device), torch.Generator().manual_seed(seed)
    search = _Search(network.graph_module, _layers(network), generator, progress)
    search.run(x)
    after = judge(network)
    kept = after < before
    if not kept:
        for name, qparams in acts.items():
            network.activation_quantizers[name].set_qparams(qparams)
        for point, qparams in weights.items():
            network.set_weight_qparams(point, qparams)
    return ScaleSearch(kept, before, after, search.cosines)


def _layers(network: QuantNetwork) -> dict[str, _Layer]:
    """Returns the layers that the search knows how to evaluate, by torch node name."""
    module, found = network.graph_module, {}
    modules = dict(module.named_modules())
    points = {network.weight_quantizers[p.initializer]: p for p in network.placement.weights}
    for node in module.graph.nodes:
        source, call = node.args[:2] if len(node.args) > 1 else (None, None)
        if not isinstance(source, fx.Node) or not isinstance(call, fx.Node):
            continue
        quantizer = modules.get(str(call.target)) if call.op == "call_module" else None
        held = call.args[0] if isinstance(quantizer, WeightQuantizer) else None
        if not isinstance(quantizer, WeightQuantizer) or not isinstance(held, fx.Node):
            continue
        if held.op != "get_attr":
            continue
        parameter, qparams = str(held.target), quantizer.qparams
        shape = layer_shape(node, tuple(module.get_parameter(parameter).shape))
        if shape is None or qparams is None or qparams.axis != 0 or qparams.block_size is not None:
            continue
        alone = len(points[quantizer].consumers) == 1
        found[node.name] = _Layer(node, source, shape, quantizer, parameter, alone)
    return found


class _Search(fx.Interpreter):
    """Runs the network in float, and searches a tensor's scales once all its layers have run."""

    def __init__(
        self,
        module: fx.GraphModule,
        layers: Mapping[str, _Layer],
        generator: torch.Generator,
        progress: Progress | None,
    ) -> None:
        super().__init__(module)
        self._layers, self._generator, self._progress = layers, generator, progress
        self._waiting: dict[fx.Node, list[tuple[_Layer, LayerSample]]] = {}
        self._readers: dict[fx.Node, int] = {}
        for layer in layers.values():
            self._readers[layer.source] = self._readers.get(layer.source, 0) + 1
        self.cosines: dict[str, tuple[float, float]] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Lets the float value through every quantizer."""
        if isinstance(self.fetch_attr(target), ActivationQuantizer | WeightQuantizer):
            return args[0]
        return super().call_module(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:  # the interpreter's own signature
        """Runs the node; a layer's inputs and outputs are sampled."""
        result = super().run_node(n)
        layer = self._layers.get(n.name)
        if layer is not None:
            group = self._waiting.setdefault(layer.source, [])
            group.append((layer, self._sample(layer, result)))
            if len(group) == self._readers[layer.source]:
                self._search(self._waiting.pop(layer.source), layer.source)
        return result

    def _sample(self, layer: _Layer, output: Tensor) -> LayerSample:
        shape, groups = layer.shape, layer.shape.groups
        positions = sampled_positions(output, shape, self._generator)
        x = input_rows(self.env[layer.source], output.shape, shape, positions)
        wanted = output_rows(output, shape, positions)
        bias = layer.node.args[2] if len(layer.node.args) > 2 else None
        if isinstance(bias, fx.Node):
            wanted = wanted - self.env[bias].reshape(groups, 1, -1)
        weight = self.fetch_attr(layer.parameter).detach().flatten(1)
        qparams = layer.quantizer.qparams
        assert qparams is not None
        scale = torch.tensor(qparams.scale, device=x.device).reshape(groups, -1, 1)
        return LayerSample(
            x,
            wanted,
            weight.reshape(groups, -1, weight.shape[1]),
            scale,
            scale,
            qparams.qmin,
            qparams.qmax,
            layer.searchable,
        )

    def _search(self, group: list[tuple[_Layer, LayerSample]], source: fx.Node) -> None:
        samples = [sample for _, sample in group]
        quantizer = self._free_quantizer(source)
        qparams = None if quantizer is None else quantizer.qparams
        start = scale = 0.0 if qparams is None else float(qparams.scale)

        def inputs(sample: LayerSample) -> Tensor:
            if qparams is None:
                return sample.x
            return on_grid(sample.x, scale, qparams.first_step, qparams.last_step)

        before = [layer_cosine(sample, inputs(sample)) for sample in samples]
        for _ in range(_ROUNDS):
            for sample in samples:
                search_weight_scales(sample, inputs(sample))
            if qparams is None:
                break
            was, grid = scale, (qparams.first_step, qparams.last_step)
            scale = search_activation_scale(samples, start, scale, *grid)
            if scale == was:
                break
        for (layer, sample), cosine_before in zip(group, before, strict=True):
            self.cosines[layer.node.name] = cosine_before, layer_cosine(sample, inputs(sample))
            _set_weight_scale(layer, sample)
        if quantizer is not None and qparams is not None:
            found = np.asarray(scale, np.float32)
            quantizer.set_qparams(dataclasses.replace(qparams, scale=found))
        if self._progress is not None:
            self._progress(len(self.cosines), len(self._layers), "searching scales")

    def _free_quantizer(self, source: fx.Node) -> ActivationQuantizer | None:
        """Returns the quantizer whose value ``source`` is, unless it stands elsewhere as well."""
        if source.op != "call_module":
            return None
        quantizer = self.fetch_attr(str(source.target))
        calls = [node for node in source.graph.nodes if node.target == source.target]
        return quantizer if isinstance(quantizer, ActivationQuantizer) and len(calls) == 1 else None


def _set_weight_scale(layer: _Layer, sample: LayerSample) -> None:
    qparams = layer.quantizer.qparams
    assert qparams is not None
    scale = sample.scale.flatten().cpu().numpy()
    layer.quantizer.set_qparams(dataclasses.replace(qparams, scale=scale), layer.shape.weight)
