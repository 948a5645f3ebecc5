"""Training what rounding left free: biases, activation steps, scales of fixed integer weights."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, fx, nn

from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.fake_quant import (
    ActivationQuantizer,
    WeightQuantizer,
    quantize,
)
from fdda_deploy.pipeline.quantization.learned_step import LearnedStep
from fdda_deploy.pipeline.quantization.shared_scales import sharing_tensors
from fdda_deploy.quant.qparams import QParams


class ScaledIntegers(nn.Module):
    """A weight as ``w = q s exp(r)``: integers q and scales s fixed, r learned, one per scale.

    Stands in for a `WeightQuantizer`; the float weight it is given is not read.

    Args:
        weight: Torch layout; its integers are taken once, here.
        quantizer: Calibrated.
    """

    integers: Tensor
    start: Tensor

    def __init__(self, weight: Tensor, quantizer: WeightQuantizer) -> None:
        super().__init__()
        assert quantizer.qparams is not None
        self.qparams = quantizer.qparams
        scale = quantizer.scale
        q = quantize(weight.detach(), scale, self.qparams.qmin, self.qparams.qmax)
        self.register_buffer("integers", q)
        start = torch.tensor(self.qparams.scale, device=scale.device)
        self.register_buffer("start", start)
        self.log_gain = nn.Parameter(torch.zeros_like(start))

    @property
    def scale(self) -> Tensor:
        """The scales, the shape of ``qparams.scale``."""
        return self.start * self.log_gain.exp()

    def forward(self, _weight: Tensor) -> Tensor:
        """Returns the weight, shaped as the integers."""
        return self.integers * spread(self.scale, self.qparams, self.integers.ndim)


class FixedIntegers:
    """A network whose integer weights stay while scales, activation steps and biases train.

    Takes the place of the quantizers until `remove`.

    Args:
        network: Calibrated, its weights rounded as they shall stay.
    """

    def __init__(self, network: QuantNetwork) -> None:
        self._network = network
        module = network.graph_module.requires_grad_(False)
        self._weights: dict[str, ScaledIntegers] = {}
        for point in network.placement.weights:
            quantizer = network.weight_quantizers[point.initializer]
            self._weights[point.initializer] = ScaledIntegers(network.weight(point), quantizer)
        unused = torch.Generator()  # nothing is dropped
        self._steps = {
            name: LearnedStep(quantizer, drop=0.0, learn_scale=True, generator=unused)
            for name, quantizer in network.activation_quantizers.items()
        }
        for tensors in sharing_tensors(network):  # one step for all: trained apart, they would part
            for tensor in tensors[1:]:
                self._steps[tensor].log_gain = self._steps[tensors[0]].log_gain
        originals: dict[str, WeightQuantizer | ActivationQuantizer] = {
            **network.weight_quantizers,
            **network.activation_quantizers,
        }
        keys = {id(child): key for key, child in module.named_children()}
        self._originals = {keys[id(child)]: child for child in originals.values()}
        for name, stand_in in {**self._weights, **self._steps}.items():
            module.add_module(keys[id(originals[name])], stand_in)
        self.gains = [stand_in.log_gain for stand_in in self._weights.values()]
        self.steps = list(dict.fromkeys(stand_in.log_gain for stand_in in self._steps.values()))
        self.biases = [module.get_parameter(name) for name in bias_names(module)]

    @property
    def trained(self) -> list[nn.Parameter]:
        """Everything that takes a gradient."""
        return [*self.gains, *self.steps, *self.biases]

    def remove(self) -> None:
        """Puts the quantizers back, as they were."""
        for key, quantizer in self._originals.items():
            self._network.graph_module.add_module(key, quantizer)

    @torch.no_grad()
    def write_back(self) -> None:
        """Puts the quantizers back with the learned scales, and weights of just those integers.

        Each float weight becomes ``q s`` in float32, whose quotient by s is off q by less than a
        thousandth and so rounds to it: `QuantNetwork.integer_weights` gives the very integers.

        Raises:
            CalibrationError: A scale that is not finite or too small.
        """
        self.remove()
        for point in self._network.placement.weights:
            stand_in = self._weights[point.initializer]
            quantizer = self._network.weight_quantizers[point.initializer]
            weight = self._network.weight(point)
            learned = dataclasses.replace(stand_in.qparams, scale=stand_in.scale.cpu().numpy())
            quantizer.set_qparams(learned, tuple(weight.shape))
            weight.copy_(stand_in.integers * quantizer.scale)
        for name, step in self._steps.items():
            grid = dataclasses.replace(step.qparams, scale=step.scale.cpu().numpy())
            self._network.activation_quantizers[name].set_qparams(grid)


def spread(scale: Tensor, qparams: QParams, ndim: int) -> Tensor:
    """Returns ``scale`` shaped to broadcast over the weight."""
    if qparams.axis is None:
        return scale
    if qparams.block_size is not None:
        return scale.repeat_interleave(qparams.block_size, dim=qparams.axis)
    return scale.reshape([-1 if d == qparams.axis else 1 for d in range(ndim)])


def bias_names(module: fx.GraphModule) -> list[str]:
    """Returns the parameters that convolutions and linear layers add, each once, in graph order."""
    calls = [node.args for node in module.graph.nodes if node.op == "call_function"]
    found = [
        str(bias.target)
        for weight, bias in (args[1:3] for args in calls if len(args) > 2)
        if isinstance(weight, fx.Node) and isinstance(bias, fx.Node)
        if weight.op in {"call_module", "get_attr"} and bias.op == "get_attr"
    ]
    parameters = dict(module.named_parameters())
    return [name for name in dict.fromkeys(found) if name in parameters]
