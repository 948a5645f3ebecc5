from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fdda_deploy.errors import CalibrationError, ModelError
from fdda_deploy.pipeline.network import StatisticsNetwork, statistics_network, trace
from fdda_deploy.pipeline.synthesis.centers import (
    ClassCenters,
    class_centers,
)
from fdda_deploy.pipeline.synthesis.statistics import (
    PooledStatistics,
    batch_statistics,
    deep_layer_indices,
    grouped_statistics,
    require_batch_norm,
    untrained_statistics,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(4, 5, 3, 2), (7, 5)], ids=["image", "vector"])
def test_batch_statistics_equal_numpy(shape: tuple[int, ...]) -> None:
    x = 3 + torch.randn(shape)
    axes = tuple(axis for axis in range(len(shape)) if axis != 1)
    mean, variance = batch_statistics(x)
    np.testing.assert_allclose(mean, x.numpy().mean(axes), rtol=1e-5)
    np.testing.assert_allclose(variance, x.numpy().var(axes), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(7, 5, 6, 4), (7, 5), (7, 5, 1, 1)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_grouped_statistics_equal_batch_statistics_of_each_group(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format
) -> None:
    x = (2 + 3 * torch.randn(shape)).to(dtype)
    x = x.contiguous(memory_format=layout) if len(shape) == 4 else x
    means, variances = grouped_statistics(x, (3, 4))
    for group, part in enumerate((x[:3], x[3:])):
        mean, variance = batch_statistics(part)
        torch.testing.assert_close(means[group], mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(variances[group], variance, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("sizes", [(2, 3), (3,)], ids=["two groups", "one group, two images left"])
def test_grouped_statistics_have_autograds_gradient(sizes: tuple[int, ...]) -> None:
    x = torch.randn(5, 4, 3, 3, requires_grad=True)
    weights = torch.randn(2, len(sizes), 4)

    def gradient(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        loss = sum(
            (weights[0, g] * mean + weights[1, g] * variance.square()).sum()
            for g, (mean, variance) in enumerate(pairs)
        )
        return torch.autograd.grad(loss, x)[0]

    fast = gradient(list(zip(*grouped_statistics(x, sizes), strict=True)))
    plain = gradient([batch_statistics(part) for part in torch.split(x[: sum(sizes)], list(sizes))])
    torch.testing.assert_close(fast, plain)


@settings(max_examples=30, deadline=None)
@given(
    parts=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    shift=st.floats(-1e3, 1e3),
    seed=st.integers(0, 99),
)
def test_pooling_parts_equals_the_statistics_of_the_whole(
    parts: list[int], shift: float, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    x = shift + torch.randn(sum(parts), 3, 4, 4, generator=random)
    x += 2 * torch.randn(sum(parts), 1, 1, 1, generator=random)
    pooled = PooledStatistics(2, 3, CPU)
    for part in torch.split(x, parts):
        pooled.merge(1, *batch_statistics(part), len(part))
    mean, variance = batch_statistics(x.double())
    assert pooled.counts.tolist() == [0, sum(parts)]
    torch.testing.assert_close(pooled.means[1], mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pooled.variances[1], variance, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("num_bn", "first"), [(20, 8), (52, 24), (1, 0), (2, 0), (3, 0), (7, 2)], ids=str
)
def test_deep_layers_start_where_the_paper_says(num_bn: int, first: int) -> None:
    assert deep_layer_indices(num_bn) == range(first, num_bn)


def test_center_of_one_image_is_its_spatial_statistics(tiny: StatisticsNetwork) -> None:
    image = torch.randn(1, 3, 8, 8)
    found = class_centers(tiny, [(image, torch.tensor([2]))], 3, device=CPU)
    _, bn_inputs = tiny(image)
    assert found.counts.tolist() == [0, 0, 1]
    for index, mean, variance in zip(
        found.layer_indices, found.means, found.variances, strict=True
    ):
        expected = batch_statistics(bn_inputs[index])
        torch.testing.assert_close(mean[2], expected[0])
        torch.testing.assert_close(variance[2], expected[1])


def test_center_of_several_images_is_the_statistics_of_their_batch(
    tiny: StatisticsNetwork, real_batch: tuple[Tensor, Tensor]
) -> None:
    images, labels = real_batch
    batches = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    found = class_centers(tiny, batches, 3, device=CPU)
    _, bn_inputs = tiny(images[labels == 1])
    assert found.counts.tolist() == [3, 3, 3]
    for index, mean, variance in zip(
        found.layer_indices, found.means, found.variances, strict=True
    ):
        expected = batch_statistics(bn_inputs[index])
        torch.testing.assert_close(mean[1], expected[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(variance[1], expected[1], rtol=1e-4, atol=1e-5)


def test_class_is_correct_when_most_of_its_images_are(tiny: StatisticsNetwork) -> None:
    images = 0.3 + 1.5 * torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    predicted = tiny(images)[0].argmax(1)
    favourite = int(predicted.mode().values)
    hit, miss = images[predicted == favourite][:2], images[predicted != favourite][:1]
    majority = (torch.cat([hit, miss]), torch.full((3,), favourite))
    tie = (torch.cat([hit[:1], miss]), torch.full((2,), favourite))
    assert class_centers(tiny, [majority], 3, device=CPU).correct[favourite]
    assert not class_centers(tiny, [tie], 3, device=CPU).correct[favourite]
    assert int(class_centers(tiny, [majority], 3, device=CPU).correct.sum()) == 1


def test_label_outside_the_classes_is_named(tiny: StatisticsNetwork) -> None:
    with pytest.raises(CalibrationError, match="got label 3, the network has classes 0 to 2"):
        class_centers(tiny, [(torch.randn(1, 3, 8, 8), torch.tensor([3]))], 3, device=CPU)


def test_statistics_that_are_not_finite_name_their_class(tiny: StatisticsNetwork) -> None:
    images = torch.full((1, 3, 8, 8), float("nan"))
    with pytest.raises(CalibrationError, match="class 1 has statistics that are not finite"):
        class_centers(tiny, [(images, torch.tensor([1]))], 3, device=CPU)


def test_network_without_batch_norm_is_refused_with_the_way_out() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    network = statistics_network(trace(plain, (3, 8, 8)))
    with pytest.raises(ModelError, match=r"squeezy has no BatchNorm layer.*--recipe none"):
        require_batch_norm(network, "squeezy")
    with pytest.raises(ModelError, match="has no BatchNorm layer"):
        class_centers(network, [], 2, device=CPU)
    assert not untrained_statistics(network)


def test_untrained_batch_norm_is_recognised(tiny: StatisticsNetwork) -> None:
    fresh = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert untrained_statistics(statistics_network(trace(fresh, (3, 8, 8))))
    assert not untrained_statistics(tiny)


def test_centers_of_another_network_are_refused(
    tiny: StatisticsNetwork, centers: ClassCenters
) -> None:
    centers.check_fits(tiny, 3)
    with pytest.raises(CalibrationError, match="got 3 classes, the network has 10"):
        centers.check_fits(tiny, 10)
    with pytest.raises(CalibrationError, match="not the network's deep BatchNorm layers 0 to 3"):
        dataclasses.replace(centers, layer_indices=(1, 2, 3, 4)).check_fits(tiny, 3)
    with pytest.raises(CalibrationError, match="no class has a calibration image"):
        dataclasses.replace(centers, counts=torch.zeros(3, dtype=torch.int64)).check_fits(tiny, 3)
