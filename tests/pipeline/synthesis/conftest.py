"""A tiny trained-looking network with BatchNorm, traced, for every test in this folder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fdda_deploy.pipeline.network import StatisticsNetwork, statistics_network, trace
from fdda_deploy.pipeline.synthesis.centers import ClassCenters, class_centers

SHAPE = (3, 8, 8)
NUM_CLASSES = 3


class TinyNet(nn.Module):
    """Three convolutions with BatchNorm, a fourth BatchNorm on the pooled features."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 6), (6, 8), (8, 8))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in (6, 8, 8))
        self.last = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.relu(norm(conv(x)))
        return self.head(self.last(x.mean((2, 3))))


def gray_images(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Images whose channels are equal: a structure that an untrained generator does not have."""
    return torch.randn(count, 1, *SHAPE[1:], generator=generator).repeat(1, 3, 1, 1)


@pytest.fixture
def tiny() -> StatisticsNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module = TinyNet().train()
        with torch.no_grad():
            for layer in (*module.convs, module.head):
                layer.weight *= (
                    4  # statistics of order 1 and sure answers, as trained networks have
                )
            for _ in range(60):
                module(gray_images(32))
        return statistics_network(trace(module, SHAPE))


@pytest.fixture
def real_batch(tiny: StatisticsNetwork) -> tuple[Tensor, Tensor]:
    """Nine images, three per class."""
    images = gray_images(9, torch.Generator().manual_seed(1))
    return images, torch.arange(9) % NUM_CLASSES


@pytest.fixture
def centers(tiny: StatisticsNetwork, real_batch: tuple[Tensor, Tensor]) -> ClassCenters:
    """Centers of all classes; the network is taken to be right on classes 0 and 2 alone."""
    found = class_centers(tiny, [real_batch], NUM_CLASSES, device=torch.device("cpu"))
    return ClassCenters(
        found.layer_indices,
        found.means,
        found.variances,
        found.counts,
        torch.tensor([True, False, True]),
    )
