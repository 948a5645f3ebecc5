from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.functional import cosine_similarity

from fdda_deploy.pipeline.network import StatisticsNetwork
from fdda_deploy.pipeline.synthesis.quality import (
    image_quality,
    in_batches,
    mean_cosine_distance,
    noise_distance,
    spread_within,
)
from fdda_deploy.pipeline.synthesis.statistics import batch_statistics

CPU = torch.device("cpu")


def test_mean_cosine_distance_is_the_mean_over_all_pairs() -> None:
    rows = torch.randn(7, 5)
    pairs = [1 - float(cosine_similarity(a, b, dim=0)) for a, b in itertools.combinations(rows, 2)]
    assert mean_cosine_distance(rows) == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)
    assert mean_cosine_distance(rows[:1]) is None


def test_spread_is_within_labels_that_have_two_images() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [5.0, 5.0], [0.0, 1.0]])
    labels = torch.tensor([0, 0, 1, 1, 2, -1])
    assert spread_within(rows, labels) == pytest.approx(0.5)
    assert spread_within(rows[4:], labels[4:]) is None


def test_quality_of_a_set_does_not_depend_on_its_batches(
    tiny: StatisticsNetwork, real_batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    whole = image_quality(tiny, [real_batch], CPU)
    parts = [(x, y) for x, y in zip(*(t.split(2) for t in real_batch), strict=True)]
    split = image_quality(tiny, parts, CPU)
    assert torch.equal(whole.predicted, split.predicted)
    assert (whole.top1, whole.confidence) == pytest.approx((split.top1, split.confidence))
    assert whole.bns_distance == pytest.approx(split.bns_distance, rel=1e-3)
    assert whole.diversity == pytest.approx(split.diversity, rel=1e-4)


def test_labels_by_network_are_all_right(
    tiny: StatisticsNetwork, real_batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    quality = image_quality(tiny, in_batches(*real_batch), CPU, labels_by_network=True)
    assert quality.top1 == 100.0
    assert 100 / 3 <= quality.confidence <= 100.0


def test_noise_is_farther_from_training_than_training_data(
    tiny: StatisticsNetwork, real_batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    noise = noise_distance(tiny, (3, 8, 8), CPU)
    assert len(noise) == len(tiny.layers)
    assert sum(noise) > sum(image_quality(tiny, [real_batch], CPU).bns_distance)
    images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mean, _ = batch_statistics(tiny(images)[1][0])
    assert float((mean - tiny.layers[0].running_mean).square().mean()) <= noise[0] * 1.001
