"""Small networks with one fault each, quantized and diagnosed; and facts without any fault."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from quant_networks import CPU, SHAPE, float_graph, images, quant_network
from torch import Tensor, nn

from fdda_deploy.pipeline.quantization.calibrate import calibrate
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.diagnosis import Finding, diagnose
from fdda_deploy.pipeline.quantization.layer_facts import LayerFacts
from fdda_deploy.pipeline.quantization.layers import layer_errors
from fdda_deploy.quant.qparams import QParams


class Pair(nn.Module):
    """Two convolutions with ``act`` between them, and a linear layer."""

    act: nn.Module = nn.ReLU()

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.next = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.next(self.act(self.stem(x)))).mean((2, 3)))


class Uneven(Pair):
    """One channel in sixteen is 40 times as wide, and the layer behind it knows."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.stem.weight[3] *= 40
            self.stem.bias[3] *= 40
            self.next.weight[:, 3] /= 40


class Swish(Pair):
    """A swish between the convolutions, mostly in its negative lobe."""

    act = nn.SiLU()

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.stem.weight.mul_(4)
            self.stem.bias.sub_(2)


class ByHand(Swish):
    """The same swish, written as a product."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.relu(self.next(x * torch.sigmoid(x))).mean((2, 3)))


class Gated(Pair):
    """Squeeze-and-excite between the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.excite = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x * torch.sigmoid(self.excite(x.mean((2, 3), keepdim=True)))
        return self.head(torch.relu(self.next(x)).mean((2, 3)))


class Dead(Pair):
    """Four channels of the first convolution have no weights, one more is far below its ReLU."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.stem.weight[:4] = 0
            self.stem.bias[4] = -3


class Cancelling(Pair):
    """The second convolution takes away what all pixels share, which is most of the first's."""

    def __init__(self) -> None:
        super().__init__()
        self.next = nn.Conv2d(16, 16, 3)
        with torch.no_grad():
            self.stem.bias.add_(4)
            self.next.weight.sub_(self.next.weight.mean((2, 3), keepdim=True))
            self.next.bias.zero_()


class Narrow(nn.Module):
    """Nothing but a depthwise convolution between two wide ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.deep(torch.relu(self.stem(x)))).mean((2, 3)))


def calibrated(
    kind: type[nn.Module], scheme: str, x: Tensor | None = None, observer: str = "minmax"
) -> QuantNetwork:
    network = quant_network(kind, scheme)
    calibrate(network, [images(32) if x is None else x], observer=observer)
    return network


def with_wide_input(network: QuantNetwork) -> QuantNetwork:
    """Gives the images an 8-bit grid, so that the first layer is sound."""
    network.activation_quantizers["input"].set_qparams(QParams(np.float32(4 / 127), -128, 127))
    return network


def with_coarse_stem(network: QuantNetwork) -> QuantNetwork:
    """Gives the first layer's weights a grid of a few steps."""
    point = network.placement.weights[0]
    qparams = network.weight_qparams(point)
    coarse = dataclasses.replace(qparams, scale=qparams.scale * np.float32(40))
    network.set_weight_qparams(point, coarse)
    return network


def diagnosed(
    kind: type[nn.Module],
    network: QuantNetwork,
    x: Tensor | None = None,
    *,
    effort: str | None = "none",
) -> list[Finding]:
    module, x = float_graph(kind).module, images(16, seed=3) if x is None else x
    errors = layer_errors(network, module, x, CPU)
    return diagnose(network, module, x, errors, device=CPU, effort=effort)


def spiked() -> Tensor:
    """Images of which every eighth has one value far beyond all others."""
    x = images(16, seed=3)
    x[::8, 0, SHAPE[1] // 2, SHAPE[2] // 2] = 25
    return x


def healthy() -> LayerFacts:
    """A convolution at w4a4 that has no fault but its noise."""
    return LayerFacts(
        node="layer1/Conv",
        initializer="layer1.weight",
        tensor="Relu_output",
        weight_bits=4,
        act_bits=4,
        depthwise=False,
        weights_a_channel=144,
        input_from="other",
        noise=0.04,
        arrived=0.01,
        by_input=0.016,
        by_weight=0.018,
        peak=6.0,
        usual=4.0,
        rms=1.2,
        low=0.0,
        high=6.0,
        negative_share=0.0,
        clipped_share=0.0,
        clipping_noise=0.0,
        scale=0.4,
        channels=16,
        widest_channel=6.0,
        median_channel=4.0,
        lost_channels=0,
        out_channels=32,
        constant_channels=0,
        dead_channels=0,
    )
