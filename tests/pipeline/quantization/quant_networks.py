"""Small networks, with all that layers share, split and permute, on their way to integer grids."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, fx, nn

from fdda_deploy.exporters.float_onnx import FloatGraph, export_float
from fdda_deploy.exporters.placement import place
from fdda_deploy.pipeline.network import trace
from fdda_deploy.pipeline.quantization.convert import GraphMap, QuantNetwork, convert
from fdda_deploy.pipeline.quantization.fold import fold_batch_norm
from fdda_deploy.quant.scheme import scheme_from_name

SHAPE = (3, 8, 8)
CPU = torch.device("cpu")


class Plain(nn.Module):
    """Convolutions with BatchNorm, one of them depthwise, a skip, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.point = nn.Conv2d(8, 8, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norms[0](self.stem(x)))
        y = torch.relu(self.norms[1](self.depthwise(x)))
        x = torch.relu(x + self.norms[2](self.point(y)))
        return self.head(x.mean((2, 3)))


class Shared(nn.Module):
    """One convolution, bias and all, called twice, between two of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.twice(torch.relu(self.twice(x))))
        return self.head(x.mean((2, 3)))


class ChannelsLast(nn.Module):
    """Linear layers over (N, H, W, C), as ConvNeXt and Swin have them, and over (N, tokens, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grow, self.shrink = nn.Linear(8, 16), nn.Linear(16, 8)
        self.tokens, self.head = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x)).permute(0, 2, 3, 1)
        x = torch.relu(self.shrink(torch.relu(self.grow(x))))
        return self.head(torch.relu(self.tokens(x.flatten(1, 2))).mean(1))


class Sequence(nn.Module):
    """A convolution along one axis of (N, C, length)."""

    def __init__(self) -> None:
        super().__init__()
        self.along, self.head = nn.Conv1d(3, 7, 3, padding=1), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.along(x.flatten(2))).mean(2))


class Corner(nn.Module):
    """A prediction that depends on the upper left quarter alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.stem(x))[:, :, :2, :2].mean((2, 3)))


def activations_of(module: fx.GraphModule, x: Tensor) -> dict[str, Tensor]:
    """Every tensor of a graph by its torch name."""
    found: dict[str, Tensor] = {}

    class Walk(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            found[n.name] = result = super().run_node(n)
            return result

    with torch.no_grad():
        Walk(module).run(x)
    return found


def images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


@functools.cache
def float_graph(kind: type[nn.Module]) -> FloatGraph:
    """The folded graph of a network with seeded weights and BatchNorm statistics of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        module = kind().train()
        for _ in range(20):
            module(torch.randn(16, *SHAPE))
        return export_float(fold_batch_norm(trace(module.eval(), SHAPE)), SHAPE)


def quant_network(kind: type[nn.Module], scheme: str, target: str = "trt") -> QuantNetwork:
    """A fresh network with pass-through quantizers."""
    graph = float_graph(kind)
    placement = place(
        graph.proto,
        scheme_from_name(scheme, first_last_bits=2),
        target,
        torch_tensors=graph.fx_from_tensor,
        parameters=graph.parameter_from_initializer,
    )
    names = GraphMap(graph.fx_from_tensor, graph.fx_from_node, graph.parameter_from_initializer)
    return convert(graph.module, placement, names)
