from __future__ import annotations

import pytest
import torch
from synthesis_runs import SHAPE, small, synthesizer
from torch import Tensor, nn

from fdda_deploy.errors import ConfigError
from fdda_deploy.pipeline.network import StatisticsNetwork, statistics_network, trace
from fdda_deploy.pipeline.synthesis.rewiring import SeeingNetwork


class Strided(nn.Module):
    """Two strided convolutions, and a classifier of another kind if asked."""

    def __init__(self, *, linear: bool = True) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4))
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.third = nn.Sequential(nn.Conv2d(4, 6, 1, stride=2), nn.BatchNorm2d(6))
        self.head = nn.Linear(6, 3) if linear else nn.Conv2d(6, 3, 1)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.third(self.second(self.first(x))))
        if self.linear:
            return self.head(torch.dropout(x.mean((2, 3)), 0.5, train=False))
        return self.head(x).mean((2, 3))


def traced(*, linear: bool = True) -> StatisticsNetwork:
    return statistics_network(trace(Strided(linear=linear), SHAPE))


def test_features_are_what_the_classifier_reads() -> None:
    network = traced()
    seeing, x = SeeingNetwork(network), torch.randn(5, *SHAPE)
    seen = seeing(x)
    logits, bn_inputs = network(x)
    assert torch.equal(seen.logits, logits)
    assert all(torch.equal(a, b) for a, b in zip(seen.bn_inputs, bn_inputs, strict=True))
    head = network.graph_module.head
    assert isinstance(head, nn.Module)
    assert seen.features is not None
    torch.testing.assert_close(seen.features @ head.weight.T + head.bias, logits)
    assert torch.equal(seeing.rows_of(torch.tensor([2, 0]), "lrq"), head.weight[[2, 0]])


def test_swing_moves_the_inputs_of_strided_convolutions_alone() -> None:
    network = traced()
    swinging = SeeingNetwork(network, torch.Generator().manual_seed(0))
    assert len(swinging.swings) == 2
    x = torch.randn(2, *SHAPE)
    first = [swinging(x).bn_inputs[0] for _ in range(12)]
    assert len({float(y.sum()) for y in first}) > 3, "a new shift at each forward"
    for swing in swinging.swings:
        swing.active = False
    assert torch.equal(swinging(x).logits, network(x)[0])
    assert not hasattr(network.graph_module, "swing0"), "the network itself stays as it was"


def test_margin_wants_a_linear_classifier() -> None:
    network = traced(linear=False)
    assert SeeingNetwork(network)(torch.randn(2, *SHAPE)).features is None
    with pytest.raises(ConfigError, match=r"margin_weight needs a network that ends in a linear"):
        synthesizer(network, small("lrq", 2), None)
