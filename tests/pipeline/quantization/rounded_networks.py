"""Networks for closed-form rounding: calibrated, rounded, and what that did to their outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from quant_networks import CPU, float_graph, images, quant_network
from torch import Tensor, nn

from fdda_deploy.pipeline.quantization.calibrate import calibrate
from fdda_deploy.pipeline.quantization.closed_form import (
    RoundingResult,
    RoundingSettings,
    round_network,
)
from fdda_deploy.pipeline.quantization.convert import QuantNetwork

FIT, HELD_OUT = images(400), images(96, seed=9)


class Grouped(nn.Module):
    """Groups with several channels each, stride, dilation, a 5 x 1 kernel and no biases."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.pairs = nn.Conv2d(8, 12, 3, 2, padding=2, dilation=2, groups=4, bias=False)
        self.tall = nn.Conv2d(12, 12, (5, 1), padding=(2, 0), groups=12, bias=False)
        self.head = nn.Linear(12, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.pairs(torch.relu(self.stem(x))))
        return self.head((x + self.tall(x)).mean((2, 3)))


class Upsampled(nn.Module):
    """A transposed convolution between two plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.up(torch.relu(self.stem(x))))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


class Wide(nn.Module):
    """A linear layer long enough for blocks of INT4."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, padding=1)
        self.wide, self.head = nn.Linear(128, 128), nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.wide(torch.relu(self.stem(x)).flatten(1))))


class Alike(nn.Module):
    """Channels that the last layer adds up in two sums: their errors can undo each other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 32, 3, padding=1)
        self.head = nn.Linear(32, 5)
        self.head.weight.data = self.head.weight.data[:, :2].repeat(1, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.wide(torch.relu(self.stem(x))).mean((2, 3)))


def calibrated(kind: type[nn.Module], scheme: str, target: str = "trt") -> QuantNetwork:
    network = quant_network(kind, scheme, target)
    calibrate(network, [FIT])
    return network


def rounded(
    network: QuantNetwork,
    kind: type[nn.Module],
    *,
    seed: int = 0,
    memory_limit_bytes: int = 2**30,
    folder: Path | None = None,
    **settings: Any,
) -> RoundingResult:
    return round_network(
        network,
        float_graph(kind).module,
        [FIT[:150], FIT[150:]],
        settings=RoundingSettings(**settings),
        device=CPU,
        seed=seed,
        memory_limit_bytes=memory_limit_bytes,
        folder=folder,
    )


@torch.no_grad()
def error(network: QuantNetwork, kind: type[nn.Module]) -> float:
    """Mean squared error of the logits on held-out images."""
    return float((network(HELD_OUT) - float_graph(kind).module(HELD_OUT)).square().mean())


def integers(network: QuantNetwork) -> dict[str, list[Any]]:
    return {name: q.tolist() for name, (q, _) in network.integer_weights().items()}
