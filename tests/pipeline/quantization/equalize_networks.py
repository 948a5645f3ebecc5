"""Small networks with channels of very different ranges, and the graph of each."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from fdda_deploy.pipeline.network import graph_module_from, trace

SHAPE = (3, 8, 8)


class Inverted(nn.Module):
    """Two inverted residual blocks, as MobileNetV2 has them, pooled into a linear layer."""

    def __init__(self, act: type[nn.Module] = nn.ReLU6) -> None:
        super().__init__()
        self.act = act()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.grow, self.grow2 = nn.Conv2d(6, 12, 1), nn.Conv2d(6, 12, 1)
        self.deep = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.deep2 = nn.Conv2d(12, 12, 3, padding=1, stride=2, groups=12, bias=False)
        self.shrink, self.shrink2 = nn.Conv2d(12, 6, 1), nn.Conv2d(12, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.shrink(self.act(self.deep(self.act(self.grow(x)))))
        x = self.shrink2(self.act(self.deep2(self.act(self.grow2(x)))))
        return self.head(nn.functional.dropout(x.mean((2, 3)), training=self.training))


class Residual(nn.Module):
    """Two ReLU blocks with shortcuts, max pooling before and a flattened average behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding="same")
        self.convs = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(4))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.stem(x)), 3, 2, 1)
        for one, two in zip(self.convs[::2], self.convs[1::2], strict=True):
            x = torch.relu(x + two(torch.relu(one(x))))
        return self.head(torch.flatten(self.pool(x), 1))


class Multilayer(nn.Module):
    """Linear layers over (N, C), with a leaky activation."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(192, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.leaky_relu(self.one(x.flatten(1)), 0.1)
        return self.head(torch.relu(self.two(x)))


def uneven(kind: type[nn.Module], seed: int = 0) -> fx.GraphModule:
    """The graph of a network whose output channels differ by up to a factor of 50."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = kind().eval()
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                rows = 50 ** -torch.rand(layer.weight.shape[0], generator=generator)
                layer.weight.mul_(rows.reshape(-1, *[1] * (layer.weight.ndim - 1)) * 6)
                if layer.bias is not None:
                    layer.bias.mul_(rows)
    return graph_module_from(trace(module, SHAPE))


def batches(count: int = 2, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, *SHAPE, generator=generator) for _ in range(count)]


def channel_ranges(graph: fx.GraphModule, images: list[Tensor]) -> dict[str, Tensor]:
    """The largest absolute value of each channel of each tensor with channels, by node name."""
    found: dict[str, Tensor] = {}

    class Walk(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            if isinstance(result, Tensor) and n.op == "call_function":
                found[n.name] = result.detach().abs().transpose(0, 1).flatten(1).amax(1)
            return result

    Walk(copy.deepcopy(graph)).run(torch.cat(images))
    return found
