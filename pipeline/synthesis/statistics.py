"""What a network's BatchNorm layers saw: per batch, pooled over a set, and against training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fdda_deploy.errors import ModelError
from fdda_deploy.pipeline.network import StatisticsNetwork


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the per-channel mean and biased variance of a BatchNorm input.

    The plain float32 form that `grouped_statistics` is tested against.

    Args:
        x: ``(N, C, H, W)`` or ``(N, C)``, any floating dtype.

    Returns:
        ``(mean, variance)``, each ``(C,)`` float32, taken over every axis but the channels.
    """
    axes = [axis for axis in range(x.dim()) if axis != 1]
    variance, mean = torch.var_mean(x.float(), dim=axes, correction=0)
    return mean, variance


def grouped_statistics(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Returns `batch_statistics` of consecutive groups of images, in one pass over the activation.

    Several batches then share one network forward. Images after the last group are left out and
    get no gradient.

    Args:
        x: ``(N, C, H, W)`` or ``(N, C)`` with ``N >= sum(sizes)``.
        sizes: Images per group, each at least 1.

    Returns:
        ``(means, variances)``, each ``(len(sizes), C)`` float32.
    """
    means, variances = _GroupedStatistics.apply(x, tuple(sizes))
    return means, variances


class _GroupedStatistics(torch.autograd.Function):
    """`batch_statistics` of slices of a batch, with the gradient of all slices in one buffer.

    d mean / d x = 1 / n and d var / d x = 2 (x - mean) / n, so the gradient is ``a x + b`` with two
    numbers per channel: one fused pass. Autograd on slices would fill and add whole activations.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        pairs = [_one_pass(part) for part in torch.split(x[: sum(sizes)], list(sizes))]
        means = torch.stack([mean for mean, _ in pairs])
        ctx.save_for_backward(x, means)
        ctx.sizes = sizes
        return means, torch.stack([variance for _, variance in pairs])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        x, means = ctx.saved_tensors
        grad_means, grad_variances = grads
        grad = torch.empty_like(x)
        shape = (1, -1, *[1] * (x.dim() - 2))
        start = 0
        for group, size in enumerate(ctx.sizes):
            part = slice(start, start + size)
            count = x[part].numel() // x.shape[1]
            slope = 2 * grad_variances[group] / count
            offset = grad_means[group] / count - slope * means[group]
            slope, offset = slope.to(x.dtype).view(shape), offset.to(x.dtype).view(shape)
            torch.addcmul(offset, slope, x[part], out=grad[part])
            start += size
        grad[start:] = 0
        return grad, None


def _one_pass(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (mean, biased variance), float32, by the fastest exact kernel there is.

    On the CPU that is BatchNorm's own reduction, 4 to 40 times faster than ``var_mean`` over a
    channels_last activation. The running buffers are there to make it answer in float32 for
    bfloat16 input; with momentum 0 nothing is kept in them.
    """
    if x.device.type != "cpu":
        return batch_statistics(x)
    scratch = torch.zeros(2, x.shape[1])
    mean, variance = torch.batch_norm_update_stats(x, scratch[0], scratch[1], 0.0)
    return mean, variance


def image_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `batch_statistics` of each image by itself, in one pass over the activation.

    Args:
        x: ``(N, C, H, W)``, or ``(N, C)``, whose variances are 0.

    Returns:
        ``(means, variances)``, each ``(N, C)`` float32.
    """
    means, variances = _ImageStatistics.apply(x)
    return means, variances


def plain_grouped_statistics(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Returns the same as `grouped_statistics` by ``var_mean`` and autograd: the slow reference."""
    pairs = [batch_statistics(part) for part in torch.split(x[: sum(sizes)], list(sizes))]
    return torch.stack([mean for mean, _ in pairs]), torch.stack([var for _, var in pairs])


class _ImageStatistics(torch.autograd.Function):
    """`image_statistics`, with a gradient ``a x + b`` of two numbers per image and channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.device.type == "cpu":  # see `_one_pass`: faster than var_mean, though one by one
            pairs = [_one_pass(image) for image in torch.split(x, 1)]
            means, variances = (torch.stack([pair[kind] for pair in pairs]) for kind in (0, 1))
        else:
            flat = x.float().reshape(*x.shape[:2], -1)
            variances, means = torch.var_mean(flat, dim=2, correction=0)
        ctx.save_for_backward(x, means)
        return means, variances

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, means = ctx.saved_tensors
        count = x[0].numel() // x.shape[1]
        slope = 2 * grads[1] / count
        offset = grads[0] / count - slope * means
        shape = (*x.shape[:2], *[1] * (x.dim() - 2))
        return torch.addcmul(offset.to(x.dtype).view(shape), slope.to(x.dtype).view(shape), x)


class JointStatistics:
    """Statistics of the images made so far, for a batch to complete (DGH, WACV 2025).

    DGH aligns the statistics of the whole set at once. Here batches follow one another, and each is
    asked that the set so far, itself included, has the right statistics: memory for one batch does.

    Args:
        num_channels: Of all layers in a row.
        device: Where they are.
        most_images: Older images fade once more than this many count; None for no limit.
    """

    def __init__(
        self, num_channels: int, device: torch.device, most_images: int | None = None
    ) -> None:
        self.count, self.most_images = 0, most_images
        self.mean = torch.zeros(num_channels, device=device)
        self.variance = torch.zeros(num_channels, device=device)

    def clear(self) -> None:
        """Forgets all images."""
        self.count = 0

    def with_batch(self, mean: Tensor, variance: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Returns the statistics of all images and ``count`` more; gradients flow to the latter."""
        share = count / (self.count + count)
        gap = mean - self.mean
        between = gap.square() * (share * (1 - share))
        return (
            self.mean + gap * share,
            self.variance + (variance - self.variance) * share + between,
        )

    def add(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Counts a batch among the images made."""
        self.mean, self.variance = self.with_batch(mean.detach(), variance.detach(), count)
        self.count += count
        if self.most_images is not None:
            self.count = min(self.count, self.most_images)


class PooledStatistics:
    """Means and variances of growing sets of images, one set per row, merged without cancellation.

    Rows are classes, or a single row for one set of images. Two parts with n_a, n_b images of equal
    size pool to ``var = (n_a var_a + n_b var_b) / n + (mean_b - mean_a)^2 n_a n_b / n^2``; the last
    summand is the between-image term.

    Attributes:
        counts: ``(rows,)`` int64, images so far.
        means: ``(rows, C)`` float32.
        variances: ``(rows, C)`` float32, biased.
    """

    def __init__(self, num_rows: int, num_channels: int, device: torch.device) -> None:
        self.counts = torch.zeros(num_rows, dtype=torch.int64)
        self.means = torch.zeros(num_rows, num_channels, device=device)
        self.variances = torch.zeros(num_rows, num_channels, device=device)

    def merge(self, row: int, mean: Tensor, variance: Tensor, count: int) -> None:
        """Pools ``count`` more images with the given statistics ``(C,)`` into ``row``."""
        before = int(self.counts[row])
        merge_statistics(self.means[row], self.variances[row], before, mean, variance, count)
        self.counts[row] += count


def merge_statistics(
    into_mean: Tensor,
    into_variance: Tensor,
    before: int,
    mean: Tensor,
    variance: Tensor,
    count: int,
) -> None:
    """Pools ``count`` more images into the statistics of ``before`` images, in place.

    The formula is that of `PooledStatistics`. All tensors are ``(C,)``.
    """
    share = count / (before + count)
    gap = mean - into_mean
    into_mean += gap * share
    into_variance += (variance - into_variance) * share
    into_variance += gap.square() * (share * (1 - share))


def deep_layer_indices(num_bn: int) -> range:
    """Returns FDDA's deep layers: the BatchNorm indices that carry class information.

    From ``floor((num_bn + 1) / 2) - 2`` (at least 0) to the last, in execution order: the last 12
    of ResNet-18's 20, the last 28 of MobileNetV2's 52.

    Example:
        >>> deep_layer_indices(20)
        range(8, 20)
    """
    return range(max(0, (num_bn + 1) // 2 - 2), num_bn)


def require_batch_norm(network: StatisticsNetwork, name: str = "the network") -> None:
    """Checks that there is something to synthesize images from.

    Raises:
        ModelError: ``network`` has no BatchNorm layer.
    """
    if not network.layers:
        raise ModelError(
            f"{name} has no BatchNorm layer: images cannot be synthesized from it. "
            "Give --calib-data DIR and --recipe none."
        )


def untrained_statistics(network: StatisticsNetwork) -> bool:
    """Returns True where every running mean is still 0 and every running variance still 1.

    Such a network was never trained, or its BatchNorm was folded and put back empty: synthesis
    would aim at nothing.
    """
    return bool(network.layers) and all(
        bool((layer.running_mean == 0).all()) and bool((layer.running_var == 1).all())
        for layer in network.layers
    )


def biased_convolutions(network: StatisticsNetwork) -> int:
    """Returns how many convolutions have a bias: folding BatchNorm into them leaves one each."""
    operators = (torch.ops.aten.conv2d.default, torch.ops.aten.convolution.default)
    nodes = [n for n in network.graph_module.graph.nodes if n.target in operators]
    return sum(len(node.args) > 2 and node.args[2] is not None for node in nodes)
