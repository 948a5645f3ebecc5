"""Generators: from a latent vector and a class label to an image in network-input space."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor, nn

from fdda_deploy.errors import ModelError
from fdda_deploy.pipeline.distributed import ALONE, Ranks
from fdda_deploy.pipeline.synthesis.global_batch import GlobalBatchNorm

MIN_SIDE = 8
"""Smallest image side in pixels: two cells before the two upsamplings."""


class ClassConditionalBatchNorm(nn.Module):
    """BatchNorm whose scale and shift belong to the image's class, at the start 1 and 0 for all."""

    def __init__(self, num_channels: int, num_classes: int, ranks: Ranks = ALONE) -> None:
        super().__init__()
        self.norm = GlobalBatchNorm(num_channels, ranks)
        self.scale = nn.Embedding(num_classes, num_channels)
        self.shift = nn.Embedding(num_classes, num_channels)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Returns ``scale[y] * (x - mean) / std + shift[y]``, in the dtype of ``x``."""
        scale = self.scale(labels).to(x.dtype)[:, :, None, None]
        shift = self.shift(labels).to(x.dtype)[:, :, None, None]
        return torch.addcmul(shift, scale, self.norm(x))


class UpsampledConv(nn.Module):
    """Nearest-neighbour upsampling by 2, then a 3x3 convolution.

    No bias: the BatchNorm behind it would subtract it again. ``fused`` computes both at once as a
    4x4 transposed convolution of stride 2, the same function at 4/9 of the multiplications and
    without the large intermediate: repeating each pixel is a 2x2 box of ones, and a box followed
    by the filter is their convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, *, fused: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``(N, out_channels, 2 H, 2 W)``."""
        if not self.fused:
            up: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
            return up
        taps = self.conv.weight.flip(2, 3).transpose(0, 1)
        rows = F.pad(taps, (0, 0, 0, 1)) + F.pad(taps, (0, 0, 1, 0))
        kernel = F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))
        return F.conv_transpose2d(x, kernel, stride=2, padding=1)


class LargeKernelAttention(nn.Module):
    """``x * conv1x1(dilated depthwise 7x7 (depthwise 5x5 (x)))``: a field of 21 x 21 pixels.

    The known form of large-kernel attention; LRQ (arXiv 2211.06816) names it without its details.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.near = nn.Conv2d(num_channels, num_channels, 5, padding=2, groups=num_channels)
        self.far = nn.Conv2d(
            num_channels, num_channels, 7, padding=9, dilation=3, groups=num_channels
        )
        self.mix = nn.Conv2d(num_channels, num_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``(N, C, H, W)``, as it came."""
        attended: Tensor = x * self.mix(self.far(self.near(x)))
        return attended


class ClassConditionalGenerator(nn.Module):
    """FDDA's generator (arXiv 2109.04186), for any class count, channels and image size.

    z -> linear to 128 x H/4 x W/4 -> class-conditional BatchNorm -> upsample, conv 128, ccBN,
    LeakyReLU 0.2 -> upsample, conv 64, ccBN, LeakyReLU 0.2 -> conv to the image channels -> tanh ->
    BatchNorm without affine. Where H or W is no multiple of 4 it makes the next larger multiple and
    cuts the middle out. The images come in normalized network-input space, about mean 0 and
    variance 1 per channel.

    Args:
        image_shape: (channels, height, width).
        num_classes: Rows of the conditional scales and shifts.
        latent_dim: Length of z.
        fused: Use the fused upsampling (see `UpsampledConv`).
        width: Channels of the first two stages; FDDA's 128.
        ranks: Who has a share of each batch in training; see `of_batch`.
        long_range: Put `LargeKernelAttention` before the two class-conditional BatchNorms on the
            coarser grids, where its field reaches farthest (LRQ; the place is our reading).

    Raises:
        ModelError: Height or width is under 8 pixels.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        latent_dim: int = 100,
        *,
        fused: bool = True,
        width: int = 128,
        long_range: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__()
        channels, height, width_px = image_shape
        if min(height, width_px) < MIN_SIDE:
            raise ModelError(
                f"images of {height}x{width_px} pixels are too small to synthesize: want at least "
                f"{MIN_SIDE}x{MIN_SIDE}. Check --input-size, or use --recipe none."
            )
        self.image_shape, self.num_classes, self.latent_dim = image_shape, num_classes, latent_dim
        self.grid, self.width = (-(-height // 4), -(-width_px // 4)), width
        self.linear = nn.Linear(latent_dim, width * self.grid[0] * self.grid[1])
        self.norm0 = ClassConditionalBatchNorm(width, num_classes, ranks)
        self.up1 = UpsampledConv(width, width, fused=fused)
        self.norm1 = ClassConditionalBatchNorm(width, num_classes, ranks)
        self.up2 = UpsampledConv(width, width // 2, fused=fused)
        self.norm2 = ClassConditionalBatchNorm(width // 2, num_classes, ranks)
        self.to_image = nn.Conv2d(width // 2, channels, 3, padding=1)
        self.final_norm = GlobalBatchNorm(channels, ranks)
        self.attend0: nn.Module = LargeKernelAttention(width) if long_range else nn.Identity()
        self.attend1: nn.Module = LargeKernelAttention(width) if long_range else nn.Identity()

    def of_batch(self, size: int) -> ClassConditionalGenerator:
        """Returns the generator itself, told that what comes is a share of ``size`` images."""
        for norm in (self.norm0.norm, self.norm1.norm, self.norm2.norm, self.final_norm):
            norm.size = size
        return self

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Returns images ``(N, C, H, W)`` float32.

        Args:
            z: ``(N, latent_dim)``, standard normal.
            labels: ``(N,)`` int64.
        """
        x = self.linear(z).view(-1, self.width, *self.grid)
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.norm0(self.attend0(x), labels)
        x = F.leaky_relu(self.norm1(self.attend1(self.up1(x)), labels), 0.2)
        x = F.leaky_relu(self.norm2(self.up2(x), labels), 0.2)
        x = self._middle(self.to_image(x))
        images: Tensor = self.final_norm(torch.tanh(x.float()))
        return images

    def _middle(self, x: Tensor) -> Tensor:
        _, height, width = self.image_shape
        top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
        return x[:, :, top : top + height, left : left + width]
