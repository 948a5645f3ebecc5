"""Combinations that no recipe names work through overrides alone."""

from __future__ import annotations

import math

import pytest
import torch
from synthesis_runs import small, synthesizer
from torch import nn

from fdda_deploy.pipeline.network import StatisticsNetwork, statistics_network, trace
from fdda_deploy.pipeline.synthesis.centers import ClassCenters
from fdda_deploy.pipeline.synthesis.generators import (
    ClassConditionalGenerator,
    LargeKernelAttention,
)
from fdda_deploy.pipeline.synthesis.sources import GeneratedSource
from fdda_deploy.pipeline.synthesis.statistics import (
    JointStatistics,
    batch_statistics,
    biased_convolutions,
    image_statistics,
    plain_grouped_statistics,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("fdda", {"source": "long-range"}),
        ("fdda", {"slack_quantile": 0.9, "statistic": "deviation"}),
        ("fdda", {"layer_enhancement": True}),
        ("gdfq", {"joint_statistics": True, "swing": True}),
        ("lrq", {"flip": True, "shift_px": 2, "low_pass_px": 0.6}),
        ("zeroq", {"tv_weight": 0.1, "l2_weight": 0.01, "swing": True}),
        ("genie", {"slack_quantile": 0.5, "layer_enhancement": True}),
        ("dsg", {"source": "latent", "width": 8}),
    ],
    ids=str,
)
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
def test_overrides_combine_and_shortcuts_stay_equal(
    tiny: StatisticsNetwork,
    centers: ClassCenters,
    name: str,
    overrides: dict[str, object],
    *,
    fast: bool,
) -> None:
    values = []
    for shortcut in (False, fast):
        maker = synthesizer(tiny, small(name, 400, **overrides), centers, fast=shortcut)
        values.append([float(maker.step().losses["total"]) for _ in range(2)])
    assert all(math.isfinite(value) for value in values[0])
    assert values[1] == pytest.approx(values[0], rel=1e-3)


def test_long_range_generator_attends_on_both_coarse_grids() -> None:
    generator = ClassConditionalGenerator((3, 16, 16), 4, width=8, long_range=True)
    attentions = [m for m in generator.modules() if isinstance(m, LargeKernelAttention)]
    assert len(attentions) == 2
    x = torch.zeros(1, 8, 41, 41, requires_grad=True)
    attention = attentions[0]
    with torch.no_grad():
        for layer in (attention.near, attention.far, attention.mix):
            layer.weight.fill_(0.1)
    (attention.mix(attention.far(attention.near(x)))[0, 0, 20, 20]).backward()
    assert x.grad is not None
    reached = (x.grad[0].sum(0) != 0).nonzero()
    assert (reached.amin(0).tolist(), reached.amax(0).tolist()) == ([9, 9], [31, 31])


def test_width_sets_the_channels(tiny: StatisticsNetwork) -> None:
    source = synthesizer(tiny, small("gdfq", 2, width=24), None).source
    assert isinstance(source, GeneratedSource)
    assert source.generator.up1.conv.weight.shape == (24, 24, 3, 3)
    assert source.generator.to_image.weight.shape == (3, 12, 3, 3)


@pytest.mark.parametrize("shape", [(5, 4, 3, 2), (5, 4)], ids=["image", "vector"])
def test_statistics_of_each_image_equal_autograds_and_their_gradient(
    shape: tuple[int, ...],
) -> None:
    x = (2 + torch.randn(shape)).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    found, wanted = image_statistics(x), plain_grouped_statistics(twin, [1] * 5)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for pair in (found, wanted):
        (pair[0].square() + 3 * pair[1].square()).sum().backward()
    torch.testing.assert_close(x.grad, twin.grad, rtol=1e-3, atol=1e-5)


def test_joint_statistics_are_those_of_all_images_in_one_batch() -> None:
    x = torch.randn(12, 3, 4, 4) * torch.rand(12, 1, 1, 1) + torch.randn(12, 1, 1, 1)
    joint = JointStatistics(3, CPU)
    for part in x[:8].split(4):
        joint.add(*batch_statistics(part), 4)
    found = joint.with_batch(*batch_statistics(x[8:]), 4)
    for one, other in zip(found, batch_statistics(x), strict=True):
        torch.testing.assert_close(one, other)
    joint.clear()
    assert torch.equal(joint.with_batch(torch.ones(3), torch.ones(3), 2)[0], torch.ones(3))


def test_folded_batch_norm_shows_in_the_biases_of_convolutions() -> None:
    def network(*, bias: bool) -> StatisticsNetwork:
        convs = [nn.Conv2d(3, 3, 3, bias=bias), nn.Conv2d(3, 3, 1, bias=bias)]
        return statistics_network(trace(nn.Sequential(*convs, nn.Flatten()), (3, 8, 8)))

    assert (biased_convolutions(network(bias=True)), biased_convolutions(network(bias=False))) == (
        2,
        0,
    )
