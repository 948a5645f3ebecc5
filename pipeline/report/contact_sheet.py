"""The contact sheet: many small images with their class, as one PNG that people can look at."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fdda_deploy.errors import DataError
from fdda_deploy.pipeline.report.phrases import plain

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
TILE_PX = 96
LABEL_PX = 13
_GAP = 8
_MARGIN = 16
_LABEL_HEIGHT = LABEL_PX + 7
_PAPER = (22, 24, 29)
_ID_COLOR = (236, 238, 242)
_NAME_COLOR = (158, 165, 176)


def contact_sheet_png(
    images: npt.NDArray[np.uint8],
    labels: npt.ArrayLike,
    class_names: Sequence[str] | None,
    *,
    columns: int = 10,
    tile_px: int = TILE_PX,
    max_tiles: int = 200,
) -> bytes:
    """Returns a PNG of ``images`` in order of class, each with its class id and short name below.

    Small images grow by a whole factor without smoothing, so that every pixel stays visible; large
    ones shrink. Equal arguments give equal bytes.

    Args:
        images: ``(N, H, W, 3)`` or ``(N, H, W, 1)`` uint8.
        labels: ``(N,)`` class ids; a negative one is shown as ``?``.
        class_names: Names by class id; None, or an id beyond the end, shows the id alone.
        columns: Tiles in a row.
        tile_px: Side of a tile in pixels; small images round it up to a multiple of their side.
        max_tiles: Of more images, this many are taken, evenly over the classes.

    Raises:
        DataError: No images, another shape or dtype, or another number of labels.
    """
    labels_array = np.asarray(labels)
    _require_images(images, labels_array)
    shown = _evenly_by_class(labels_array, max_tiles)
    side = _tile_side(max(images.shape[1:3]), tile_px)
    width = min(columns, len(shown))
    rows = -(-len(shown) // width)
    sheet = Image.new("RGB", _sheet_size(width, rows, side), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=LABEL_PX)
    for place, index in enumerate(shown):
        left = _MARGIN + place % width * (side + _GAP)
        top = _MARGIN + place // width * (side + _LABEL_HEIGHT + _GAP)
        tile = _fitted(_image_from(images[index]), side)
        sheet.paste(tile, (left + (side - tile.width) // 2, top + (side - tile.height) // 2))
        _write_label(
            draw, font, (left, top + side + 3), side, int(labels_array[index]), class_names
        )
    stream = io.BytesIO()
    sheet.save(stream, format="PNG", compress_level=9)
    return stream.getvalue()


def _require_images(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.generic]) -> None:
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) != 4 or shape[3] not in {1, 3} or 0 in shape:
        raise DataError(
            f"contact sheet: got {images.dtype} images of shape {shape}, wanted uint8 (N, H, W, 3) "
            "or (N, H, W, 1) with N >= 1. Make the synthetic images again with --no-cache."
        )
    if labels.shape != shape[:1]:
        raise DataError(
            f"contact sheet: got labels of shape {labels.shape} for {shape[0]} images. "
            "Make the synthetic images again with --no-cache."
        )


def _evenly_by_class(labels: npt.NDArray[np.generic], max_tiles: int) -> list[int]:
    """Returns at most ``max_tiles`` indices, sorted by class, evenly spaced over all images."""
    order = np.argsort(labels, kind="stable")
    picks = np.linspace(0, len(order) - 1, min(max_tiles, len(order))).round().astype(int)
    return [int(index) for index in order[picks]]


def _tile_side(image_px: int, tile_px: int) -> int:
    return -(-tile_px // image_px) * image_px if image_px < tile_px else tile_px


def _sheet_size(columns: int, rows: int, side: int) -> tuple[int, int]:
    width = 2 * _MARGIN + columns * (side + _GAP) - _GAP
    return width, 2 * _MARGIN + rows * (side + _LABEL_HEIGHT + _GAP) - _GAP


def _image_from(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    flat = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    return Image.fromarray(np.ascontiguousarray(flat)).convert("RGB")


def _fitted(image: Image.Image, side: int) -> Image.Image:
    longest = max(image.size)
    if longest <= side:
        grow = side // longest
        return image.resize((image.width * grow, image.height * grow), Image.Resampling.NEAREST)
    width, height = (max(1, round(edge * side / longest)) for edge in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _write_label(
    draw: ImageDraw.ImageDraw,
    font: Font,
    corner: tuple[int, int],
    width: int,
    label: int,
    class_names: Sequence[str] | None,
) -> None:
    number = str(label) if label >= 0 else "?"
    draw.text(corner, number, fill=_ID_COLOR, font=font)
    if class_names is None or not 0 <= label < len(class_names):
        return
    # ImageNet names list synonyms: the first one is the short name.
    name = plain(class_names[label]).split(",")[0].strip()
    if name == number:
        return
    left = corner[0] + int(font.getlength(number)) + 6
    text = _shortened(name, font, corner[0] + width - left)
    draw.text((left, corner[1]), text, fill=_NAME_COLOR, font=font)


def _shortened(name: str, font: Font, width: int) -> str:
    """Returns as much of ``name`` as ``width`` pixels hold, with an ellipsis where it is cut."""
    name = name[:80]
    if font.getlength(name) <= width:
        return name
    while name and font.getlength(f"{name}…") > width:
        name = name[:-1]
    return f"{name.rstrip()}…" if name else ""
