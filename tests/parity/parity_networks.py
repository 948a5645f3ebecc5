"""Three tiny networks, and the whole chain from module to Q/DQ graph on any network."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own convention

from fdda_deploy.exporters.float_onnx import FloatGraph, export_float
from fdda_deploy.exporters.placement import place
from fdda_deploy.exporters.qdq import Grids, insert_qdq
from fdda_deploy.pipeline.network import trace
from fdda_deploy.pipeline.quantization.calibrate import calibrate
from fdda_deploy.pipeline.quantization.convert import GraphMap, QuantNetwork, convert
from fdda_deploy.pipeline.quantization.fold import fold_batch_norm
from fdda_deploy.pipeline.quantization.layers import correct_biases
from fdda_deploy.pipeline.quantization.ties import settle_ties
from fdda_deploy.quant.scheme import scheme_from_name

SHAPE = (3, 8, 8)
SCHEMES = ("w8a8", "w6a6", "w4a8", "w4a4", "w5a5", "w4a16", "w8a16", "w2a8")
CPU = torch.device("cpu")


class ResidualNet(nn.Module):
    """BatchNorm, an identity skip around a depthwise filter, a projection shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.expand = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16)
        )
        self.project = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.down = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
        self.conv = nn.Sequential(nn.Conv2d(8, 16, 3, 2, padding=1, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        x = F.relu(self.conv(x) + self.down(x))
        return self.head(x.mean((2, 3)))


class SplitNet(nn.Module):
    """A one-sided pad, a channel split, a concatenation, tokens, a linear layer of 64 inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2)
        self.norm = nn.BatchNorm2d(8)
        self.left = nn.Conv2d(4, 8, 1)
        self.right = nn.Conv2d(4, 8, 3, padding=1)
        self.mix = nn.Linear(16, 4)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.stem(F.pad(x, (0, 1, 0, 1)))))
        x = torch.cat([self.left(x[:, :4]), self.right(x[:, 4:])], dim=1)
        tokens = F.relu(x).flatten(2).transpose(1, 2)
        return self.head(F.relu(self.mix(tokens)).flatten(1))


class SharedNet(nn.Module):
    """One convolution called twice, in place, on a BatchNorm before it; relu written twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 2, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.block = nn.Conv2d(12, 12, 3, padding=1)
        self.up = nn.ConvTranspose2d(12, 12, 2, 2)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.block(F.relu(self.norm(x)))
        y += x
        y = self.drop(self.block(F.relu(y)) + torch.sigmoid(y))
        y = F.relu(self.up(F.relu(y))) + F.relu(self.up(y))
        return self.head(y.mean((2, 3)))


NETWORKS = (ResidualNet, SplitNet, SharedNet)


@dataclass(frozen=True)
class Chain:
    """One network in every form it takes, on one scheme and target."""

    graph: FloatGraph
    network: QuantNetwork
    grids: Grids
    model: onnx.ModelProto


def images(count: int, seed: int, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    """Smooth random images: neighbours agree, as pixels do."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, shape[0], 4, 4, generator=generator)
    fine = torch.randn(count, *shape, generator=generator)
    return F.interpolate(coarse, shape[1:], mode="bilinear") + 0.3 * fine


@functools.cache
def float_graph(kind: type[nn.Module]) -> FloatGraph:
    """Returns the export of a network whose BatchNorms have seen images and whose logits differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        module = kind().train()
        with torch.no_grad():
            for child in module.modules():
                if isinstance(child, nn.BatchNorm2d):
                    nn.init.uniform_(child.weight, 0.5, 1.5)
                    nn.init.uniform_(child.bias, -0.3, 0.5)
            for seed in range(8):
                module(images(64, seed))
            module.head.weight *= 4
            module.head.bias -= module.eval()(images(256, 99)).mean(0)
    return export_float(fold_batch_norm(trace(module, SHAPE)), SHAPE)


@functools.cache
def chain(kind: type[nn.Module], scheme: str, target: str) -> Chain:
    """Returns the calibrated, bias-corrected network and the Q/DQ graph made from it."""
    return build_chain(float_graph(kind), scheme, target, images(64, 1), observer="minmax")


def build_chain(
    graph: FloatGraph,
    scheme: str,
    target: str,
    calibration: Tensor,
    observer: str,
    widths: Mapping[str, int | None] | None = None,
) -> Chain:
    """Returns the chain of any float graph."""
    placement = place(
        graph.proto,
        scheme_from_name(scheme),
        target,
        torch_tensors=graph.fx_from_tensor,
        parameters=graph.parameter_from_initializer,
        widths=widths,
    )
    names = GraphMap(graph.fx_from_tensor, graph.fx_from_node, graph.parameter_from_initializer)
    network = convert(graph.module, placement, names).eval()
    calibrate(network, calibration.split(64), observer=observer)
    correct_biases(network, graph.module, calibration[:64], CPU)
    settle_ties(network, calibration[:128], CPU)
    grids = Grids(
        network.activation_qparams(), network.integer_weights(), network.float_parameters()
    )
    return Chain(graph, network, grids, insert_qdq(graph.proto, placement, grids, {}))
