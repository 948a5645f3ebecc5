"""Several ranks' shares of one batch, reduced so that they behave as the whole batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fdda_deploy.errors import ConfigError
from fdda_deploy.pipeline.distributed import ALONE, Ranks
from fdda_deploy.pipeline.synthesis.recipe_fields import Recipe
from fdda_deploy.pipeline.synthesis.statistics import batch_statistics


def pooled(
    mean: Tensor, variance: Tensor, count: int, ranks: Ranks, *, shared: bool = False
) -> tuple[Tensor, Tensor]:
    """Returns mean and biased variance of the whole batch from those of each rank's share.

    Every rank's row is gathered and merged in the same order, so all ranks get the same bits:
    ``mean = sum w_r mean_r`` and ``var = sum w_r (var_r + (mean_r - mean)^2)``, where w_r is the
    rank's part of the batch. No sum of squares is ever subtracted.

    Args:
        mean: ``(C,)`` of this rank's share.
        variance: ``(C,)``, biased.
        count: Images of the whole batch, shared as `Ranks.share` does.
        ranks: Who takes part.
        shared: What follows differs by rank (a normalization), so gradients are added up. Where
            every rank computes the same loss from the result, each has the whole gradient already.
    """
    if ranks.alone:
        return mean, variance
    found: tuple[Tensor, Tensor] = _Pooled.apply(mean, variance, count, ranks, shared)
    return found


class _Pooled(torch.autograd.Function):
    """`pooled`; d mean / d mean_r = w_r and d var / d mean_r = 2 w_r (mean_r - mean)."""

    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, variance: Tensor, count: int, ranks: Ranks, shared: bool
    ) -> tuple[Tensor, Tensor]:
        rows = ranks.gathered_rows(torch.stack([mean, variance]))
        weights = ranks.weights(count).to(mean.device)[:, None]
        of_all = (weights * rows[:, 0]).sum(0)
        gaps = rows[:, 0] - of_all
        ctx.save_for_backward(gaps[ranks.rank], weights[ranks.rank])
        ctx.ranks, ctx.shared = ranks, shared
        return of_all, (weights * (rows[:, 1] + gaps.square())).sum(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        gap, weight = ctx.saved_tensors
        of_mean, of_variance = grads
        if ctx.shared:
            of_mean, of_variance = ctx.ranks.add_up(torch.stack(grads))
        return weight * (of_mean + 2 * gap * of_variance), weight * of_variance, None, None, None


def mean_over_ranks(value: Tensor, count: int, ranks: Ranks) -> Tensor:
    """Returns the whole batch's mean from this rank's, a scalar, the same bits on all ranks.

    The gradient of each rank's value is its part of the batch: gradients of parameters are to be
    added up (`Ranks.add_gradients`).
    """
    if ranks.alone:
        return value
    part: Tensor = _Sum.apply(value * ranks.weights(count)[ranks.rank].item(), ranks)
    return part


class _Sum(torch.autograd.Function):
    """The sum over ranks of a loss that all of them then have: its gradient is theirs, once."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, ranks: Ranks) -> Tensor:  # noqa: ARG004  # torch passes it
        return ranks.add_up(value.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004  # torch passes it
        return grad, None


class GlobalBatchNorm(nn.BatchNorm2d):
    """BatchNorm without affine that normalizes by the statistics of all ranks' shares.

    `size` is the whole batch's; a layer with `ranks` alone is torch's own. torch's SyncBatchNorm
    runs on GPUs only.
    """

    def __init__(self, num_channels: int, ranks: Ranks = ALONE) -> None:
        super().__init__(num_channels, affine=False)
        self.ranks, self.size = ranks, 0

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``(x - mean) / std`` of a share ``(N, C, H, W)``, in the dtype of ``x``."""
        if self.ranks.alone or not self.training:
            normalized: Tensor = super().forward(x)
            return normalized
        mean, variance = pooled(*batch_statistics(x), self.size, self.ranks, shared=True)
        with torch.no_grad():
            count = self.size * x.shape[2] * x.shape[3]
            self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr,arg-type]  # both are there
            unbiased = variance * (count / max(1, count - 1))
            self.running_var.lerp_(unbiased, self.momentum)  # type: ignore[union-attr,arg-type]  # both are there
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]  # the same
        scale = (variance + self.eps).rsqrt()
        shape = (1, -1, 1, 1)
        return ((x.float() - mean.view(shape)) * scale.view(shape)).to(x.dtype)


def require_shares(recipe: Recipe, ranks: Ranks) -> None:
    """Checks that every rank gets an image of every batch.

    Raises:
        ConfigError: There are more ranks than images in a batch.
    """
    sizes = [size for size in (recipe.random_batch, recipe.class_batch) if size]
    if min(sizes) < ranks.size:
        raise ConfigError(
            f"recipe {recipe.name}: {ranks.size} processes cannot share a batch of {min(sizes)} "
            f"images. Start at most {min(sizes)}, or raise random_batch and class_batch under "
            "[synthesis.overrides]."
        )
