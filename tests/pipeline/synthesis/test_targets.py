from __future__ import annotations

import pytest
import torch

from fdda_deploy.pipeline.network import StatisticsNetwork
from fdda_deploy.pipeline.synthesis.losses import (
    bns_alignment_loss,
    layer_weights,
    margin_loss,
    slack_alignment_loss,
    total_variation_loss,
)
from fdda_deploy.pipeline.synthesis.recipes import recipe_named
from fdda_deploy.pipeline.synthesis.rewiring import SeeingNetwork
from fdda_deploy.pipeline.synthesis.statistics import batch_statistics
from fdda_deploy.pipeline.synthesis.targets import AlignmentTargets

CPU, SHAPE = torch.device("cpu"), (3, 8, 8)
ZERO = (torch.zeros(()), torch.zeros(()))


def targets(network: StatisticsNetwork, name: str, **overrides: object) -> AlignmentTargets:
    return AlignmentTargets(SeeingNetwork(network), recipe_named(name, overrides), SHAPE, CPU)


def test_without_slack_it_is_the_plain_alignment_loss() -> None:
    rows, weights = torch.randn(4, 6), layer_weights([2, 4])
    plain = bns_alignment_loss(*rows, weights)
    gaps = slack_alignment_loss(rows[0] - rows[2], rows[1] - rows[3], ZERO, weights)
    torch.testing.assert_close(plain, gaps)


def test_slack_forgives_what_lies_within_it() -> None:
    gap = torch.tensor([-3.0, 0.5, 2.0])
    slack = (torch.full((3,), 1.0), torch.full((3,), 2.0))
    assert float(slack_alignment_loss(gap, gap, slack, torch.ones(3))) == 4 + 1 + 1
    assert float(slack_alignment_loss(gap / 4, gap / 4, slack, torch.ones(3))) == 0


@pytest.mark.parametrize(("norm", "factor"), [("mean", 1 / 4), ("layers", 1.0)])
def test_norm_says_how_layers_add_up(tiny: StatisticsNetwork, norm: str, factor: float) -> None:
    goal = targets(tiny, "gdfq", norm=norm)
    gap = torch.ones(goal.num_channels)
    assert float(goal.loss(goal.mean + gap, goal.variance)) == pytest.approx(4 * factor)
    plain = targets(tiny, "gdfq", norm="channels")
    assert float(plain.loss(plain.mean + gap, plain.variance)) == pytest.approx(len(gap))


def test_deviation_compares_roots(tiny: StatisticsNetwork) -> None:
    goal = targets(tiny, "gdfq", statistic="deviation", norm="channels")
    variance = (goal.variance.sqrt() + 0.5).square()
    found = float(goal.loss(goal.mean, variance))
    assert found == pytest.approx(0.25 * len(variance), rel=1e-3)


def test_input_is_a_layer_with_mean_zero_and_variance_one(tiny: StatisticsNetwork) -> None:
    plain, more = targets(tiny, "zeroq"), targets(tiny, "zeroq", input_statistics=True)
    assert more.num_channels == plain.num_channels + 3
    assert more.mean[-3:].tolist() == [0.0] * 3
    assert more.variance[-3:].tolist() == [1.0] * 3


def test_each_image_doubles_its_own_layer(tiny: StatisticsNetwork) -> None:
    goal = targets(tiny, "dsg", slack_quantile=0.0, statistic="variance")
    sizes = [6, 8, 8, 8]
    rows = goal.mean.expand(6, -1) + 1.0
    one = [float(goal.loss(rows[:1], goal.variance.expand(1, -1), first)) for first in range(6)]
    base = sum(sizes)
    assert one == pytest.approx([base + sizes[i % 4] for i in range(6)])
    together = float(goal.loss(rows, goal.variance.expand(6, -1)))
    assert together == pytest.approx(sum(one) / 6)


def test_slack_is_the_quantile_of_the_gaps_of_noise(tiny: StatisticsNetwork) -> None:
    goal = targets(tiny, "gdfq", slack_quantile=0.9)
    network = SeeingNetwork(tiny)
    goal.measure_slack(network, 64, SHAPE, seed=3)
    noise = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(3))
    mean, variance = batch_statistics(network(noise).bn_inputs[1])
    layer, place = tiny.layers[1], slice(6, 14)
    for slack, gap in zip(
        goal.slack, (mean - layer.running_mean, variance - layer.running_var), strict=True
    ):
        torch.testing.assert_close(
            slack[place], torch.quantile(gap.abs(), 0.9).expand(8), rtol=1e-3, atol=1e-4
        )


def test_margin_pushes_only_images_inside_the_cone() -> None:
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])  # 0, 90 and 45 degrees away
    expected = ((1 - 0.5) + 0 + (2**-0.5 - 0.5)) / 3
    assert float(margin_loss(features, rows, 60.0)) == pytest.approx(expected, rel=1e-5)


def test_total_variation_counts_neighbours_both_ways() -> None:
    stripes = torch.tensor([0.0, 1.0, 0.0, 1.0]).expand(1, 1, 4, 4)
    assert float(total_variation_loss(stripes)) == 1.0
    assert float(total_variation_loss(stripes.transpose(2, 3))) == 1.0
    assert float(total_variation_loss(torch.ones(1, 3, 4, 4))) == 0.0
