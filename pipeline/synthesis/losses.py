"""The generator's losses, one function per term, each with its formula and paper.

Statistics of several layers stand in one row: a vector ``(sum C_l,)`` holds the channels of all
layers in execution order, and ``weights`` from `layer_weights` turns a plain sum over it into a
mean over layers of a mean over channels. No term loops over layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor


def layer_weights(sizes: Sequence[int]) -> Tensor:
    """Returns ``1 / (L C_l)`` for each channel of each layer: ``(sum C_l,)`` float32.

    Example:
        >>> layer_weights([1, 2])
        tensor([0.5000, 0.2500, 0.2500])
    """
    counts = torch.tensor(sizes)
    return torch.repeat_interleave(1.0 / (len(sizes) * counts), counts)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns ``CE(T(G(z, y)), y)``, mean over the batch: the network sees the class in its image.

    GDFQ (arXiv 2003.03603).

    Args:
        logits: ``(N, classes)``.
        labels: ``(N,)`` int64.
    """
    return F.cross_entropy(logits.float(), labels)


def bns_alignment_loss(
    mean: Tensor, variance: Tensor, running_mean: Tensor, running_var: Tensor, weights: Tensor
) -> Tensor:
    """Returns L_BNS: the batch has the statistics that training tracked.

    ``(1/L) sum_l [MSE(mu_l, mu_l^BN) + MSE(var_l, var_l^BN)]``; GDFQ (arXiv 2003.03603), FDDA
    (arXiv 2109.04186).

    Args:
        mean: ``(sum C_l,)`` of the batch with random labels.
        variance: ``(sum C_l,)``, biased.
        running_mean: ``(sum C_l,)``.
        running_var: ``(sum C_l,)``.
        weights: `layer_weights` of the same layers.
    """
    return _mean_square_gap(mean, variance, running_mean, running_var, weights)


def bns_centralized_loss(
    mean: Tensor, variance: Tensor, center_mean: Tensor, center_var: Tensor, weights: Tensor
) -> Tensor:
    """Returns L_C: a batch of one class has the statistics of that class's real images.

    ``mean over deep layers of MSE(mu_l, mu_l^c) + MSE(var_l, var_l^c)``; FDDA (arXiv 2109.04186).

    Args:
        mean: ``(sum C_l,)`` over the deep layers, of a batch of class c.
        variance: ``(sum C_l,)``, biased.
        center_mean: ``(sum C_l,)`` of class c.
        center_var: ``(sum C_l,)``.
        weights: `layer_weights` of the deep layers.
    """
    return _mean_square_gap(mean, variance, center_mean, center_var, weights)


def bns_distorted_loss(
    mean: Tensor, variance: Tensor, target_mean: Tensor, target_var: Tensor, weights: Tensor
) -> Tensor:
    """Returns L_D: as L_C, to targets drawn around the center, fresh at each step.

    ``mean over deep layers of MSE(mu_l, m_l) + MSE(var_l, v_l)`` with m_l, v_l from
    `distorted_targets`; FDDA (arXiv 2109.04186). It keeps one image from being copied.

    Args:
        mean: ``(sum C_l,)`` of a batch of class c.
        variance: ``(sum C_l,)``, biased.
        target_mean: ``(sum C_l,)``.
        target_var: ``(sum C_l,)``.
        weights: `layer_weights` of the same layers.
    """
    return _mean_square_gap(mean, variance, target_mean, target_var, weights)


def distorted_targets(
    center_mean: Tensor,
    center_var: Tensor,
    normal: Tensor,
    *,
    sigma_mean: float,
    sigma_variance: float,
    clamp_variance: bool,
    unit_var: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the targets of `bns_distorted_loss`.

    Absolute noise, as published: ``m ~ N(mu^c, 0.5)`` and ``v ~ N(var^c, 1.0)``, the second number
    read as a standard deviation. Absolute noise swamps layers whose variance is small. Relative
    noise (ours) measures it in units of what training tracked for the channel:
    ``m = mu^c + 0.5 sqrt(var^BN) e1`` and ``v = var^c + 1.0 var^BN e2``.

    Args:
        center_mean: ``(sum C_l,)``.
        center_var: ``(sum C_l,)``.
        normal: ``(2, sum C_l)`` standard normal draws e1, e2.
        sigma_mean: Width of the noise on means.
        sigma_variance: Width of the noise on variances.
        clamp_variance: Raise negative variance targets, which no image can reach, to 0.
        unit_var: ``(sum C_l,)`` running variances for relative noise; None for absolute noise.
    """
    noise_mean, noise_var = sigma_mean * normal[0], sigma_variance * normal[1]
    if unit_var is not None:
        noise_mean, noise_var = noise_mean * unit_var.sqrt(), noise_var * unit_var
    target_var = center_var + noise_var
    return center_mean + noise_mean, target_var.clamp(min=0) if clamp_variance else target_var


def slack_alignment_loss(
    gap_mean: Tensor, gap_spread: Tensor, slack: tuple[Tensor, Tensor], weights: Tensor
) -> Tensor:
    """Returns the alignment loss of which gaps within the slack are no part.

    ``sum w [max(|mu - mu^BN| - delta, 0)^2 + max(|s - s^BN| - gamma, 0)^2]``; DSG (arXiv
    2103.01049), where s is the standard deviation. Without slack it is `bns_alignment_loss`.

    Args:
        gap_mean: ``mu - mu^BN``: ``(sum C_l,)``, or ``(N, sum C_l)`` of single images.
        gap_spread: The same of variances or standard deviations.
        slack: delta and gamma, each ``(sum C_l,)`` or a scalar.
        weights: ``(sum C_l,)``, or ``(N, sum C_l)``; what the sum is weighted with.
    """
    over_mean = (gap_mean.abs() - slack[0]).clamp(min=0).square()
    over_spread = (gap_spread.abs() - slack[1]).clamp(min=0).square()
    return ((over_mean + over_spread) * weights).sum()


def margin_loss(features: Tensor, class_rows: Tensor, margin_degrees: float) -> Tensor:
    """Returns the adversarial margin: how far images intrude into the cone around their class.

    ``mean max(cos theta_y - cos m, 0)`` with theta_y between an image's penultimate features and
    the classifier's row of its class y. It opposes the cross entropy, so that the images of a class
    are not all its one purest example. LRQ (arXiv 2211.06816); the form is our reading.

    Args:
        features: ``(N, F)``.
        class_rows: ``(N, F)``, the classifier's weights of each image's class.
        margin_degrees: m.
    """
    cosine = F.cosine_similarity(features.float(), class_rows.float(), dim=1)
    return (cosine - math.cos(math.radians(margin_degrees))).clamp(min=0).mean()


def total_variation_loss(images: Tensor) -> Tensor:
    """Returns the mean squared difference between neighbouring pixels: noise is dear, edges cheap.

    Args:
        images: ``(N, C, H, W)`` in network-input space.
    """
    down = (images[:, :, 1:] - images[:, :, :-1]).square().mean()
    return down + (images[..., 1:] - images[..., :-1]).square().mean()


def _mean_square_gap(
    mean: Tensor, variance: Tensor, target_mean: Tensor, target_var: Tensor, weights: Tensor
) -> Tensor:
    gaps = (mean - target_mean).square() + (variance - target_var).square()
    return torch.dot(gaps, weights)
