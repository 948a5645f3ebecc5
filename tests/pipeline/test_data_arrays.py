"""Arrays and class lists: what could be read two ways is refused, with the way it should be."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import torch

from fdda_deploy.errors import DataError
from fdda_deploy.pipeline.data import open_images, read_classes
from fdda_deploy.pipeline.preprocessing import Preprocessing, normalized_from_uint8

SMALL = Preprocessing(8, 8, resize=8)


def test_float_pixels_are_rounded_to_255_steps(tmp_path):
    x = np.arange(3 * 8 * 8 * 3).astype(np.uint8).reshape(3, 8, 8, 3)
    np.savez(tmp_path / "x.npz", x=x.astype(np.float64) / 255)
    got, _ = open_images(str(tmp_path / "x.npz"), SMALL).load([0, 1, 2])
    assert torch.equal(got, normalized_from_uint8(x, SMALL))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (np.str_("genie"), "genie"),
        (np.str_("<b>genie</b>"), None),
        (np.str_("a" * 33), None),
        (np.array(["genie"]), None),
        (np.bytes_(b"genie"), None),
        (np.arange(4), None),
        (np.array({"lr": 1}, dtype=object), None),
    ],
)
def test_only_a_recipes_name_says_that_images_were_synthesized(tmp_path, name, wanted):
    x = np.zeros((2, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "made.npz", x=x, recipe=name)
    np.savez(tmp_path / "real.npz", x=x)
    made, real = (open_images(str(tmp_path / f"{of}.npz"), SMALL) for of in ("made", "real"))
    assert (made.recipe, real.recipe) == (wanted, None)
    assert (made.digest == real.digest) == (wanted is None)


def test_a_recipe_that_is_no_array_says_nothing(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 8, 8, 3), np.uint8))
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive:
        archive.writestr("recipe", b"genie")
    assert open_images(str(tmp_path / "x.npz"), SMALL).recipe is None


def test_images_that_are_no_array_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x", b"abc")
    with pytest.raises(DataError, match=r"x has shape \(\), wanted"):
        open_images(str(tmp_path / "x.npz"), SMALL)


@pytest.mark.parametrize(("labels", "num_classes"), [([0, 3], 3), ([-1, 0], None)])
def test_labels_out_of_range_are_refused(tmp_path, labels, num_classes):
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 8, 8, 3), np.uint8), y=np.array(labels))
    with pytest.raises(DataError, match=rf"labels run from {labels[0]} to {labels[1]}"):
        open_images(str(tmp_path / "x.npz"), SMALL, num_classes=num_classes)


NPZ_ERRORS = {
    "channels first": ({"x": np.zeros((2, 3, 8, 8), np.uint8)}, r"shape \(2, 3, 8, 8\), wanted"),
    "no image": ({"x": np.zeros((0, 8, 8), np.uint8)}, r"shape \(0, 8, 8\)"),
    "wide integers": ({"x": np.zeros((2, 8, 8), np.int32)}, r"x is int32, wanted uint8"),
    "normalized": ({"x": np.full((2, 8, 8), -1.5)}, r"values from -1\.5 to -1\.5, wanted"),
    "nan": ({"x": np.full((2, 8, 8), np.nan)}, r"values from nan to nan"),
    "other names": ({"test_x": np.zeros((2, 8, 8), np.uint8)}, r"no array 'x'.*Name .*npz#test"),
    "no array": ({"z": np.zeros(2)}, r"no array 'x' in it \(it holds z\)"),
    "labels short": (
        {"x": np.zeros((2, 8, 8), np.uint8), "y": np.zeros(3, int)},
        r"y is int64 of shape \(3,\), wanted 2 class indices",
    ),
    "float labels": (
        {"x": np.zeros((2, 8, 8), np.uint8), "y": np.zeros(2)},
        r"y is float64 of shape",
    ),
}


@pytest.mark.parametrize("case", NPZ_ERRORS)
def test_arrays_that_are_no_images_are_refused(tmp_path, case):
    arrays, message = NPZ_ERRORS[case]
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message):
        open_images(str(tmp_path / "x.npz"), SMALL)


def test_class_lists_keep_their_order(tmp_path):
    (tmp_path / "classes.txt").write_text("﻿n2\r\n n1 \nn3\n\n", encoding="utf-8")
    assert read_classes(tmp_path / "classes.txt") == ("n2", "n1", "n3")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"a\nb\na\n", "'a' stands on lines 1 and 3"),
        (b"a\n\nb\n", "line 2 is blank"),
        (b"a\n\xff\n", r"not UTF-8 text \(byte 2\)"),
        (None, "cannot be read"),
    ],
    ids=["empty", "duplicate", "gap", "binary", "missing"],
)
def test_class_lists_that_would_mislabel_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_classes(tmp_path / "classes.txt")
