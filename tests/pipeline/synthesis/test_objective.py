from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from fdda_deploy.pipeline.network import StatisticsNetwork, statistics_network, trace
from fdda_deploy.pipeline.synthesis.centers import ClassCenters
from fdda_deploy.pipeline.synthesis.objective import Objective
from fdda_deploy.pipeline.synthesis.recipes import recipe_named
from fdda_deploy.pipeline.synthesis.rewiring import SeeingNetwork, Seen
from fdda_deploy.pipeline.synthesis.statistics import batch_statistics
from fdda_deploy.pipeline.synthesis.targets import AlignmentTargets

CPU = torch.device("cpu")
Pairs = list[tuple[Tensor, Tensor]]


def gap(stats: Pairs, targets: Pairs) -> float:
    """The papers' loop over layers: mean of two mean squared errors."""
    pairs = zip(stats, targets, strict=True)
    return float(sum(mse_loss(s[0], t[0]) + mse_loss(s[1], t[1]) for s, t in pairs)) / len(stats)


def targets_by_hand(
    name: str, center: Pairs, running: Pairs, noise: Pairs, *, right: bool
) -> Pairs:
    """The distorted targets, layer by layer."""
    layers = zip(center, running, noise, strict=True)
    if not right:
        targets = noise
    elif name == "fdda-paper":
        targets = [(m + 0.5 * a, v + b) for (m, v), _, (a, b) in layers]
    else:
        targets = [(m + 0.5 * u.sqrt() * a, v + u * b) for (m, v), (_, u), (a, b) in layers]
    return targets if name == "fdda-paper" else [(m, v.clamp(min=0)) for m, v in targets]


@pytest.mark.parametrize("class_index", [0, 1], ids=["right class", "wrong class: fallback"])
@pytest.mark.parametrize("name", ["fdda", "fdda-paper"])
def test_one_forward_gives_the_papers_sum_over_two_forwards(
    tiny: StatisticsNetwork, centers: ClassCenters, name: str, class_index: int
) -> None:
    images = torch.randn(11, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    labels = [torch.arange(6) % 3, torch.full((5,), class_index)]
    seeing, recipe = SeeingNetwork(tiny), recipe_named(name)
    goal = AlignmentTargets(seeing, recipe, (3, 8, 8), CPU)
    found = Objective(seeing, recipe, centers, CPU, goal).losses(
        seeing(images), images, labels, class_index, torch.Generator().manual_seed(5)
    )
    (logits_r, inputs_r), (logits_c, inputs_c) = tiny(images[:6]), tiny(images[6:])
    stats_r, stats_c = ([batch_statistics(x) for x in inputs] for inputs in (inputs_r, inputs_c))
    assert centers.layer_indices == (0, 1, 2, 3), "all four layers of the tiny network are deep"
    running = [(layer.running_mean, layer.running_var) for layer in tiny.layers]
    center = [
        (m[class_index], v[class_index])
        for m, v in zip(centers.means, centers.variances, strict=True)
    ]
    sizes = [layer.num_channels for layer in tiny.layers]
    normal = torch.randn(2, sum(sizes), generator=torch.Generator().manual_seed(5))
    noise = list(zip(*(torch.split(row, sizes) for row in normal), strict=True))
    right = class_index == 0
    distorted = gap(stats_c, targets_by_hand(name, center, running, noise, right=right))
    centralized = gap(stats_c, center) if right else 0.0
    total = 0.5 * float(cross_entropy(logits_r, labels[0]) + cross_entropy(logits_c, labels[1]))
    total += 0.2 * gap(stats_r, running) + (0.9 if right else 1.8) * distorted + 0.01 * centralized
    assert float(found["bns_distorted"]) == pytest.approx(distorted, rel=1e-3)
    assert float(found["bns_centralized"]) == pytest.approx(centralized, rel=1e-3)
    assert float(found["total"]) == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize(("right", "reached"), [(True, range(2, 8)), (False, range(8))], ids=str)
def test_class_batch_reaches_deep_layers_and_in_the_fallback_all(
    *, right: bool, reached: range
) -> None:
    blocks = [nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(8)]
    module = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = statistics_network(trace(module, (3, 8, 8)))
    rows = tuple(torch.zeros(3, 3) for _ in range(6))
    counts = torch.ones(3, dtype=torch.int64)
    centers = ClassCenters((2, 3, 4, 5, 6, 7), rows, rows, counts, torch.full((3,), right))
    bn_inputs = [torch.randn(4, 3, 8, 8, requires_grad=True) for _ in range(8)]
    labels = [torch.zeros(2, dtype=torch.int64)] * 2
    seeing, recipe = SeeingNetwork(network), recipe_named("fdda")
    seen = Seen(torch.randn(4, 3), tuple(bn_inputs), None)
    goal = AlignmentTargets(seeing, recipe, (3, 8, 8), CPU)
    values = Objective(seeing, recipe, centers, CPU, goal).losses(
        seen, torch.zeros(4, 3, 8, 8), labels, 0, torch.Generator()
    )
    values["total"].backward()
    grads = [x.grad for x in bn_inputs if x.grad is not None]
    assert [bool((grad[:2] != 0).any()) for grad in grads] == [True] * 8
    assert [bool((grad[2:] != 0).any()) for grad in grads] == [i in reached for i in range(8)]
