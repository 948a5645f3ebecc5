"""The contact sheet shows every pixel of small images, each class, and the same bytes each time."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_sample import sample_images

from fdda_deploy.errors import DataError
from fdda_deploy.pipeline.report.contact_sheet import contact_sheet_png

MARGIN, GAP, LABEL = 16, 8, 20


def opened(png: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def tile(sheet: np.ndarray[Any, Any], row: int, column: int, side: int) -> np.ndarray[Any, Any]:
    top, left = MARGIN + row * (side + LABEL + GAP), MARGIN + column * (side + GAP)
    return sheet[top : top + side, left : left + side]


def label_strip(sheet: np.ndarray[Any, Any], column: int, side: int) -> np.ndarray[Any, Any]:
    left = MARGIN + column * (side + GAP)
    return sheet[MARGIN + side : MARGIN + side + LABEL, left : left + side]


@pytest.mark.parametrize(("image_px", "side"), [(32, 96), (28, 112), (96, 96), (64, 128)])
def test_small_images_grow_by_a_whole_factor_and_keep_every_pixel(image_px: int, side: int) -> None:
    images = sample_images(3, image_px)
    sheet = opened(contact_sheet_png(images, [2, 0, 1], None))
    for column, index in enumerate([1, 2, 0]):
        factor = side // image_px
        np.testing.assert_array_equal(
            tile(sheet, 0, column, side)[::factor, ::factor], images[index]
        )


def test_large_and_oblong_images_shrink_into_their_tile() -> None:
    images = np.full((2, 224, 112, 3), 200, np.uint8)
    sheet = opened(contact_sheet_png(images, [0, 1], None))
    assert sheet.shape == (2 * MARGIN + 96 + LABEL, 2 * MARGIN + 2 * 96 + GAP, 3)
    middle = tile(sheet, 0, 0, 96)
    assert (middle[:, 24:72] == 200).all()
    assert (middle[:, :24] < 40).all()


def test_gray_images_are_shown_gray() -> None:
    images = sample_images(1)[..., :1]
    sheet = opened(contact_sheet_png(images, [0], None))
    np.testing.assert_array_equal(tile(sheet, 0, 0, 96)[::3, ::3], images[0].repeat(3, axis=2))


def test_equal_arguments_give_equal_bytes() -> None:
    arguments = sample_images(25), np.arange(25) % 10, ["a", "b"]
    assert contact_sheet_png(*arguments) == contact_sheet_png(*arguments)


def test_of_many_images_every_class_is_shown() -> None:
    """Each class is one gray level, so the tiles say which classes they come from."""
    labels = np.arange(1000) % 20
    images = np.broadcast_to(
        (labels * 10 + 30).astype(np.uint8)[:, None, None, None], (1000, 8, 8, 1)
    )
    sheet = opened(contact_sheet_png(images, labels, None, columns=5, max_tiles=40))
    shown = [int(tile(sheet, place // 5, place % 5, 96)[0, 0, 0]) for place in range(40)]
    assert shown == sorted(shown)
    assert set(shown) == set(range(30, 230, 10))


def test_labels_say_the_class_and_are_bright_enough_to_read() -> None:
    images = sample_images(2)
    sheet = opened(contact_sheet_png(images, [3, 4], ["a", "b", "c", "three"]))
    named, unnamed = label_strip(sheet, 0, 96), label_strip(sheet, 1, 96)
    assert named.max() > 200
    assert unnamed.max() > 200
    assert (named > 100).sum() > 2 * (unnamed > 100).sum()


@pytest.mark.parametrize(
    "name",
    ["x" * 5000, "", "a\nb\x00\x1b[2J", "<script>", "漢字 🐈", "\ud800", "tench, Tinca tinca"],
    ids=["long", "empty", "controls", "markup", "no-glyph", "surrogate", "synonyms"],
)
def test_no_class_name_breaks_the_sheet_or_leaves_its_tile(name: str) -> None:
    images = np.full((2, 32, 32, 3), 90, np.uint8)
    hostile = opened(contact_sheet_png(images, [0, 1], [name, "fine"]))
    gap = slice(MARGIN + 96, MARGIN + 96 + GAP)
    assert (hostile[MARGIN:, gap].reshape(-1, 3) == hostile[0, 0]).all()
    assert hostile.shape == (2 * MARGIN + 96 + LABEL, 2 * MARGIN + 2 * 96 + GAP, 3)


def test_a_label_without_a_class_is_a_question_mark_not_the_last_class() -> None:
    images = sample_images(1)
    unknown = contact_sheet_png(images, [-1], ["last"])
    assert unknown == contact_sheet_png(images, [-1], None)
    assert unknown != contact_sheet_png(images, [0], None)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            np.zeros((0, 4, 4, 3), np.uint8),
            [],
            r"shape \(0, 4, 4, 3\), wanted uint8 \(N, H, W, 3\)",
        ),
        (np.zeros((2, 3, 4, 4), np.uint8), [0, 1], r"got uint8 images of shape \(2, 3, 4, 4\)"),
        (np.zeros((2, 4, 4, 3), np.float32), [0, 1], "got float32 images"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0], r"labels of shape \(1,\) for 2 images"),
    ],
    ids=["none", "channels-first", "float", "labels"],
)
def test_what_is_not_a_batch_of_images_is_refused(images: Any, labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"contact sheet: .*{message}.*--no-cache"):
        contact_sheet_png(images, labels, None)
