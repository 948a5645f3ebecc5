"""How well a set of images passes for the network's training data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor

from fdda_deploy.pipeline.network import StatisticsNetwork
from fdda_deploy.pipeline.synthesis.rewiring import SeeingNetwork
from fdda_deploy.pipeline.synthesis.statistics import PooledStatistics, batch_statistics

NOISE_IMAGES = 64
"""Gaussian noise images that the distances are set beside."""
_BATCH = 32


@dataclass(frozen=True)
class ImageQuality:
    """What the float network says of a set of images.

    Attributes:
        predicted: ``(n,)`` int64, the network's classes.
        top1: Images that get their label, in percent.
        confidence: Mean probability of the predicted class, in percent.
        bns_distance: Per BatchNorm layer, MSE of means plus MSE of variances between the whole set
            and training (the layer's summand in L_BNS).
        diversity: Mean cosine distance between the penultimate features of two images, 0 to 2;
            None for fewer than two images. Logits stand in where no linear layer is last.
        class_spread: The same between two images of one label, mean over labels that have two.
    """

    predicted: Tensor
    top1: float
    confidence: float
    bns_distance: list[float]
    diversity: float | None
    class_spread: float | None


@torch.no_grad()
def image_quality(
    network: StatisticsNetwork,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    *,
    labels_by_network: bool = False,
) -> ImageQuality:
    """Returns the quality of a set, judged in float32.

    Args:
        network: Traced float network, on ``device``.
        batches: Images ``(N, C, H, W)`` as the network takes them and labels ``(N,)``; at least
            one batch.
        device: Where to run the network.
        labels_by_network: The labels mean nothing: those the network predicts take their place.
    """
    seeing = SeeingNetwork(network)
    sizes = [layer.num_channels for layer in network.layers]
    pooled = PooledStatistics(1, sum(sizes), device)
    labels, predicted, sureness, features = [], [], [], []
    for images, wanted in batches:
        seen = seeing(images.to(device))
        pairs = [batch_statistics(x) for x in seen.bn_inputs]
        mean, variance = (torch.cat([pair[kind] for pair in pairs]) for kind in (0, 1))
        pooled.merge(0, mean, variance, len(images))
        probability, guess = seen.logits.softmax(1).max(1)
        labels.append(wanted)
        predicted.append(guess.cpu())
        sureness.append(probability.cpu())
        features.append((seen.logits if seen.features is None else seen.features).cpu())
    label, guess, rows = torch.cat(labels), torch.cat(predicted), torch.cat(features)
    if labels_by_network:
        label = guess
    return ImageQuality(
        predicted=guess,
        top1=100.0 * float((guess == label).float().mean()),
        confidence=100.0 * float(torch.cat(sureness).mean()),
        bns_distance=_distances(network, pooled, sizes),
        diversity=mean_cosine_distance(rows),
        class_spread=spread_within(rows, label),
    )


def noise_distance(
    network: StatisticsNetwork, image_shape: tuple[int, int, int], device: torch.device
) -> list[float]:
    """Returns the `ImageQuality.bns_distance` of Gaussian noise images: where learned images start.

    Args:
        network: Traced float network, on ``device``.
        image_shape: (channels, height, width).
        device: Where to run it.
    """
    noise = torch.randn(NOISE_IMAGES, *image_shape, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros(_BATCH, dtype=torch.int64)
    batches = ((part, nothing[: len(part)]) for part in torch.split(noise, _BATCH))
    return image_quality(network, batches, device).bns_distance


def in_batches(images: Tensor, labels: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Yields images and labels in batches that fit in memory."""
    return zip(torch.split(images, _BATCH), torch.split(labels, _BATCH), strict=True)


def mean_cosine_distance(features: Tensor) -> float | None:
    """Returns the mean of ``1 - cos`` over all pairs of rows; None for fewer than two.

    The sum of all pairs' cosines is ``(|sum of unit rows|^2 - n) / 2``: no pair is visited.

    Args:
        features: ``(n, F)``.

    Example:
        >>> mean_cosine_distance(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        1.0
    """
    count = len(features)
    if count < 2:
        return None
    unit = F.normalize(features.double(), dim=1)
    total = float(unit.sum(0).square().sum()) - float(unit.square().sum())
    return 1.0 - total / (count * (count - 1))


def spread_within(features: Tensor, labels: Tensor) -> float | None:
    """Returns the mean over labels of `mean_cosine_distance` of that label's rows.

    Args:
        features: ``(n, F)``.
        labels: ``(n,)``; negative ones are not known and left out.

    Returns:
        None where no label has two rows.
    """
    spreads = [
        spread
        for label in sorted(set(labels[labels >= 0].tolist()))
        if (spread := mean_cosine_distance(features[labels == label])) is not None
    ]
    return sum(spreads) / len(spreads) if spreads else None


def _distances(
    network: StatisticsNetwork, pooled: PooledStatistics, sizes: list[int]
) -> list[float]:
    means, variances = torch.split(pooled.means[0], sizes), torch.split(pooled.variances[0], sizes)
    return [
        float(
            (mean - layer.running_mean.to(mean.device)).square().mean()
            + (variance - layer.running_var.to(mean.device)).square().mean()
        )
        for mean, variance, layer in zip(means, variances, network.layers, strict=True)
    ]
