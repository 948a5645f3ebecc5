"""How far a quantized network is from the float one on images that judge it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fdda_deploy.pipeline.allocator import batch_that_fits_cache
from fdda_deploy.pipeline.quantization.distillation import distillation_loss


class Judge:
    """Measures KL(teacher || student) on one set of images; the teacher is asked once.

    Args:
        teacher: Float network from images to logits.
        images: ``(N, C, H, W)`` float32, preprocessed.
        device: Where to run.
    """

    def __init__(self, teacher: nn.Module, images: Tensor, device: torch.device) -> None:
        self._batches = torch.split(images, batch_that_fits_cache(images.shape))
        self._device = device
        with torch.no_grad():
            self._expected = [teacher(batch.to(device)) for batch in self._batches]

    @torch.no_grad()
    def __call__(self, student: nn.Module) -> float:
        """Returns the mean KL(teacher || student) at temperature 1 over the images, in nats."""
        total = 0.0
        for batch, expected in zip(self._batches, self._expected, strict=True):
            found = student(batch.to(self._device))
            total += float(distillation_loss(found, expected, 1.0)) * len(batch)
        return total / max(1, sum(map(len, self._batches)))
