"""Random crops and flips of a batch, drawn from one generator."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor


def augmented(images: Tensor, generator: torch.Generator, mode: str, min_crop: float) -> Tensor:
    """Returns a random crop of each image, resized back, flipped at random with ``crop-flip``.

    Args:
        images: ``(N, C, H, W)``.
        generator: Source of all randomness.
        mode: ``crop-flip``, ``crop`` or ``none``.
        min_crop: Smallest share of the side that a crop keeps, in (0, 1].
    """
    if mode == "none":
        return images
    count = len(images)
    side = min_crop + (1 - min_crop) * torch.rand(count, generator=generator)
    shift = (2 * torch.rand(count, 2, generator=generator) - 1) * (1 - side)[:, None]
    flip = torch.ones(count)
    if mode == "crop-flip":
        flip = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = side * flip, side
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
