"""What lies between a source of images and the network: flips, shifts, a Gaussian low-pass."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor

from fdda_deploy.pipeline.synthesis.recipe_fields import Recipe

Share = tuple[int, Tensor]
"""Images of a whole batch, and which of them are here."""


def low_passed(images: Tensor, sigma_px: float) -> Tensor:
    """Returns the images behind a Gaussian low-pass (SynQ, ICLR 2025), edges mirrored.

    SynQ filters images when they are made; here the network sees them filtered while they are being
    made too, so that their statistics are those that were aimed at (our choice).

    Args:
        images: ``(N, C, H, W)``.
        sigma_px: Standard deviation of the blur in pixels; 0 changes nothing.
    """
    radius = math.ceil(3 * sigma_px)
    if not radius:
        return images
    radius = min(radius, images.shape[2] - 1, images.shape[3] - 1)  # what mirroring can fill
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    taps = torch.exp(-0.5 * (offsets / sigma_px) ** 2)
    taps = taps / taps.sum()
    channels = images.shape[1]
    rows = taps.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    columns = taps.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    padded = F.pad(images, (radius, radius, radius, radius), mode="reflect")
    return F.conv2d(F.conv2d(padded, rows, groups=channels), columns, groups=channels)


def augmented(
    images: Tensor, recipe: Recipe, random: torch.Generator, share: Share | None = None
) -> Tensor:
    """Returns the images as the network is to see them in one step (DGH: crop and flip).

    Each image is flipped or not; one shift, edges mirrored, holds for the whole batch: drawing one
    for each image would copy them one by one.

    Args:
        images: ``(N, C, H, W)``, as the source made them.
        recipe: ``low_pass_px``, ``flip`` and ``shift_px``.
        random: CPU source of the draws.
        share: Images of the whole batch, and the places of ``images`` among them; None where they
            are all. Draws are made for all.
    """
    images = low_passed(images, recipe.low_pass_px)
    if recipe.flip:
        turned = torch.rand(len(images) if share is None else share[0], generator=random) < 0.5
        turned = turned if share is None else turned[share[1]]
        turned = turned.to(images.device, non_blocking=True)
        images = torch.where(turned[:, None, None, None], images.flip(3), images)
    if recipe.shift_px:
        images = shifted(images, recipe.shift_px, random)
    return images


def shifted(x: Tensor, reach_px: int, random: torch.Generator) -> Tensor:
    """Returns ``x`` moved by up to ``reach_px`` pixels each way, edges mirrored.

    Args:
        x: ``(N, C, H, W)``.
        reach_px: At least 1; less where the image is too small to mirror that far.
        random: CPU source of the draws.
    """
    height, width = x.shape[2:]
    reach = min(reach_px, height - 1, width - 1)
    top, left = torch.randint(2 * reach + 1, (2,), generator=random).tolist()
    if reach == 0 or (top, left) == (reach, reach):
        return x
    padded = F.pad(x, (reach, reach, reach, reach), mode="reflect")
    return padded[:, :, top : top + height, left : left + width]
