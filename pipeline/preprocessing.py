"""One way from an image to a network's input, for every stage: orient, resize, crop, normalise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from fdda_deploy.errors import ConfigError, DataError

SMALL_IMAGE_PX = 64
"""Up to this side an image is small: methods take more of them, and longer schedules."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP_FRACTION = 0.875
"""The centre crop's share of the resized image: 224 of 256, as networks on ImageNet are tested."""
SMALLEST_CROPPED = 64
"""Inputs below this many pixels are thumbnails (CIFAR, digits): nothing is cropped off them."""
MAX_IMAGE_PIXELS = 64_000_000
"""A larger image is refused before it is decoded: 64 megapixels are 192 MB of RGB."""

Interpolation = Literal["bilinear", "bicubic"]
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image before a network sees it.

    An image of exactly ``height`` x ``width`` is never resized. Any other has its shorter side
    resized to ``resize`` (Pillow's filter, which averages when it shrinks) and its centre cropped;
    with ``resize=None`` it is squeezed to ``height`` x ``width`` whatever its shape. Then
    ``(pixel / 255 - mean) / std`` per channel.

    Attributes:
        height: Input height in pixels.
        width: Input width in pixels.
        channels: 3 (RGB) or 1 (grey).
        resize: Shorter side in pixels before the centre crop, at least both input sides; or None.
        mean: One value per channel, for pixels in [0, 1].
        std: One value per channel, positive.
        interpolation: ``bilinear`` or ``bicubic``.

    Raises:
        ConfigError: A field does not fit the others.

    >>> Preprocessing(224, 224, resize=256).shape
    (3, 224, 224)
    """

    height: int
    width: int
    channels: int = 3
    resize: int | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ConfigError(
                f"input size {self.height}x{self.width}: both sides must be 1 or more."
            )
        if self.channels not in _MODES:
            raise ConfigError(
                f"input has {self.channels} channels; images have 1 (grey) or 3 (RGB)."
            )
        if self.resize is not None and self.resize < max(self.height, self.width):
            raise ConfigError(
                f"resize {self.resize} is less than the input {self.height}x{self.width}: no crop "
                "of that size is left. Raise --resize or lower --input-size."
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels or not np.isfinite(values).all():
                raise ConfigError(
                    f"{name} {values}: wanted {self.channels} finite values, one per channel."
                )
        if min(self.std) <= 0:
            raise ConfigError(f"std {self.std}: every value must be above 0.")
        if self.interpolation not in _FILTERS:
            raise ConfigError(
                f"interpolation {self.interpolation!r}: choose one of {', '.join(_FILTERS)}."
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """One network input: ``(C, H, W)``."""
        return self.channels, self.height, self.width

    def describe(self) -> str:
        """Returns the whole chain as one line of prose for reports and records.

        >>> Preprocessing(32, 32, channels=1, mean=(0.5,), std=(0.25,)).describe()
        'grey 32x32, squeezed to size (bilinear), mean (0.5), std (0.25)'
        """
        colour = "RGB" if self.channels == 3 else "grey"
        if self.resize is None:
            geometry = f"squeezed to size ({self.interpolation})"
        else:
            geometry = f"centre crop of shorter side {self.resize} ({self.interpolation})"
        mean, std = (", ".join(f"{value:g}" for value in part) for part in (self.mean, self.std))
        return f"{colour} {self.height}x{self.width}, {geometry}, mean ({mean}), std ({std})"


def pixels_from_image(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Returns an opened image as pixels ``(H, W, C)`` uint8: oriented, converted, cropped.

    Raises:
        DataError: The image has more than ``MAX_IMAGE_PIXELS``, before or after the resize.
    """
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise DataError(
            f"{image.width}x{image.height} pixels, more than the {MAX_IMAGE_PIXELS:,} that are "
            "decoded. Scale the image down, or remove it."
        )
    _refuse_narrow(image.size, preprocessing)  # before the pixels are decoded
    upright = ImageOps.exif_transpose(image)
    cropped = _cropped(_converted(upright, _MODES[preprocessing.channels]), preprocessing)
    channels, height, width = preprocessing.shape
    return np.asarray(cropped, dtype=np.uint8).reshape(height, width, channels)


def normalized_from_uint8(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
    """Returns pixels ``(N, H, W, C)`` as network input ``(N, C, H, W)`` float32."""
    mean, std = _columns(preprocessing)
    planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    return planes.float().div_(255).sub_(mean).div_(std)


def uint8_from_normalized(images: Tensor, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Returns network input ``(N, C, H, W)`` as pixels ``(N, H, W, C)`` uint8.

    The inverse of :func:`normalized_from_uint8`; what no pixel can show is clamped to [0, 255].
    """
    mean, std = _columns(preprocessing)
    scaled = (images.detach().cpu().float() * std + mean) * 255
    pixels = scaled.round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()


def pixel_bounds(preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """Returns what black and white become as network input, each ``(C,)`` float32."""
    mean, std = (column.flatten() for column in _columns(preprocessing))
    return (0 - mean) / std, (1 - mean) / std


def default_resize(height: int, width: int) -> int | None:
    """Returns the shorter side before the crop where nothing is known about a network.

    >>> default_resize(224, 224), default_resize(32, 32), default_resize(32, 48)
    (256, 32, None)
    """
    longer = max(height, width)
    if longer >= SMALLEST_CROPPED:
        return round(longer / CROP_FRACTION)
    return longer if height == width else None


def per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Returns one value per channel; a single value stands for all channels."""
    given = tuple(float(value) for value in values)
    return given * channels if len(given) == 1 else given


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Returns the image in ``mode``; 16-bit greys keep their upper 8 bits, alpha is dropped."""
    if image.mode in {"I", "I;16", "I;16B", "I;16L"}:
        # Pillow would clip at 255: scans and depth maps would turn white.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode in {"P", "PA"}:
        image = image.convert("RGBA")  # the palette may hold transparency
    return image if image.mode == mode else image.convert(mode)


def _columns(preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    return mean.view(-1, 1, 1), std.view(-1, 1, 1)


def _refuse_narrow(size: tuple[int, int], preprocessing: Preprocessing) -> None:
    """Raises for an image so long and narrow that its resized form would fill the memory."""
    if preprocessing.resize is None or size == (preprocessing.width, preprocessing.height):
        return
    shorter = min(size)
    pixels = math.prod(preprocessing.resize * side // shorter for side in size)
    if pixels > MAX_IMAGE_PIXELS:
        raise DataError(
            f"{size[0]}x{size[1]} pixels: so narrow that its shorter side at "
            f"{preprocessing.resize} makes {pixels:,} pixels. Remove it."
        )


def _cropped(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Returns the image at the input's size: as it is, squeezed, or resized and centre-cropped."""
    wanted_width, wanted_height = preprocessing.width, preprocessing.height
    if image.size == (wanted_width, wanted_height):
        return image
    resampling = _FILTERS[preprocessing.interpolation]
    if preprocessing.resize is None:
        return image.resize((wanted_width, wanted_height), resampling)
    shorter = min(image.size)
    width, height = (preprocessing.resize * side // shorter for side in image.size)
    left, top = round((width - wanted_width) / 2), round((height - wanted_height) / 2)
    resized = image.resize((width, height), resampling)
    return resized.crop((left, top, left + wanted_width, top + wanted_height))
