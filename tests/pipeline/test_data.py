"""Image sets: every source gives the same images, every disagreement is an error in words."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from fdda_deploy.errors import ConfigError, DataError
from fdda_deploy.pipeline import pixel_store
from fdda_deploy.pipeline.data import open_images
from fdda_deploy.pipeline.preprocessing import Preprocessing, normalized_from_uint8

SMALL = Preprocessing(8, 8, resize=8)


def pixels_of(seed: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def png(seed: int, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_of(seed, side)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def class_folder(tmp_path):
    """Three classes, two images each; image k of class c has seed 10 c + k."""
    root = tmp_path / "photos"
    for index, name in enumerate(["ant", "bee", "cat"]):
        (root / name).mkdir(parents=True)
        for k in range(2):
            (root / name / f"{k}.png").write_bytes(png(10 * index + k))
    return root


def packed(folder, tar_path, prefix="photos"):
    with tarfile.open(tar_path, "w") as archive:
        archive.add(folder, arcname=prefix)
    return tar_path


def wanted_images(seeds):
    return normalized_from_uint8(np.stack([pixels_of(seed) for seed in seeds]), SMALL)


def all_of(images):
    batches = list(images.batches(4))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


@pytest.mark.parametrize("source", ["folder", "tar", "tar-without-wrapper", "npz", "npz-part"])
def test_every_source_gives_the_same_images_and_labels(class_folder, tmp_path, source):
    seeds = [0, 1, 10, 11, 20, 21]
    x, y = np.stack([pixels_of(seed) for seed in seeds]), np.array([0, 0, 1, 1, 2, 2])
    np.savez(tmp_path / "a.npz", x=x, y=y)
    np.savez(tmp_path / "b.npz", test_x=x, test_y=y.astype(np.uint8), train_x=x[:1])
    name = {
        "folder": str(class_folder),
        "tar": str(packed(class_folder, tmp_path / "a.tar")),
        "tar-without-wrapper": str(packed(class_folder, tmp_path / "b.tar", "")),
        "npz": str(tmp_path / "a.npz"),
        "npz-part": f"{tmp_path / 'b.npz'}#test",
    }[source]
    images = open_images(name, SMALL, num_classes=3)
    assert len(images) == 6
    got, labels = all_of(images)
    torch.testing.assert_close(got, wanted_images(seeds))
    assert labels.tolist() == images.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert images.class_names == (None if "npz" in source else ("ant", "bee", "cat"))
    assert images.origin == name
    assert images.skipped == ()


def test_a_flat_folder_has_no_labels(tmp_path):
    for seed in range(3):
        (tmp_path / f"{seed}.png").write_bytes(png(seed))
    (tmp_path / "notes.txt").write_text("not an image")
    images = open_images(str(tmp_path), SMALL)
    got, labels = all_of(images)
    torch.testing.assert_close(got, wanted_images(range(3)))
    assert images.labels is None
    assert labels.tolist() == [-1, -1, -1]
    with pytest.raises(DataError, match="has no labels, so no image per class"):
        images.first_per_class(1)


def test_embedded_digits_have_names_and_fit_any_network():
    grey = Preprocessing(32, 32, channels=1, mean=(0.0,), std=(1.0,))
    images = open_images("digits:train", grey, num_classes=10)
    assert len(images) == 1200
    assert images.class_names == tuple("0123456789")
    colour, _ = open_images("digits:train", Preprocessing(16, 16)).load([0])
    assert colour.shape == (1, 3, 16, 16)


def test_class_list_gives_the_labels_not_the_alphabet(class_folder):
    images = open_images(str(class_folder), SMALL, classes=["cat", "dog", "ant", "bee"])
    assert images.labels.tolist() == [2, 2, 3, 3, 0, 0]
    assert images.class_names == ("cat", "dog", "ant", "bee")


def test_subsets_select_and_share_what_was_decoded(class_folder, monkeypatch):
    images = open_images(str(class_folder), SMALL)
    everything, _ = all_of(images)
    monkeypatch.setattr(pixel_store, "_decoded", None)  # nothing may be decoded again
    part = images.subset([4, 1])
    got, labels = part.load([1, 0])
    torch.testing.assert_close(got, everything[[1, 4]])
    assert labels.tolist() == [0, 2]
    assert images.first_per_class(1).labels.tolist() == [0, 1, 2]
    assert images.first_per_class(5).labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [len(x) for x, _ in images.batches(2, [5, 0, 3])] == [2, 1]
    assert images.load([])[0].shape == (0, 3, 8, 8)


def test_nothing_is_decoded_for_the_digest(class_folder, monkeypatch):
    monkeypatch.setattr(pixel_store, "_decoded", None)
    images = open_images(str(class_folder), SMALL)
    assert len(images.digest) == 64


def test_images_beyond_the_memory_budget_are_decoded_again(class_folder, monkeypatch):
    monkeypatch.setattr(pixel_store, "PIXEL_BUDGET_BYTES", 2 * 8 * 8 * 3)
    images = open_images(str(class_folder), SMALL)
    for _ in range(2):
        got, _ = all_of(images)
        torch.testing.assert_close(got, wanted_images([0, 1, 10, 11, 20, 21]))
    assert len(images._store._pixels) == 2


def test_digest_follows_contents_names_preprocessing_and_choice(class_folder):
    def digest(preprocessing=SMALL, **options):
        return open_images(str(class_folder), preprocessing, **options).digest

    first = digest()
    assert digest() == first
    others = [
        digest(Preprocessing(8, 8, resize=9)),
        digest(limit=3),
        digest(limit=3, seed=1),
        digest(classes=["cat", "bee", "ant"]),
        open_images(str(class_folder), SMALL).subset([0, 1]).digest,
    ]
    (class_folder / "ant" / "0.png").rename(class_folder / "ant" / "9.png")
    others.append(digest())
    (class_folder / "ant" / "9.png").write_bytes(png(99))
    others.append(digest())
    assert len({first, *others}) == len(others) + 1


def test_limit_draws_by_seed(class_folder):
    drawn = [open_images(str(class_folder), SMALL, limit=3, seed=seed) for seed in (0, 0, 1)]
    assert [len(images) for images in drawn] == [3, 3, 3]
    torch.testing.assert_close(all_of(drawn[0])[0], all_of(drawn[1])[0])
    assert not torch.equal(all_of(drawn[0])[0], all_of(drawn[2])[0])


def test_progress_reaches_the_number_of_images(class_folder):
    calls = []
    images = open_images(
        str(class_folder), SMALL, progress=lambda done, total, _: calls.append((done, total))
    )
    assert len(images) == 6
    assert calls[-1] == (6, 6)


DAMAGE = {
    "truncated": lambda good: good[: len(good) // 2],
    "empty": lambda _: b"",
    "text": lambda _: b"404 not found",
    "flipped": lambda good: good[:40] + bytes(255 - byte for byte in good[40:60]) + good[60:],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_images_are_named_and_skipped(class_folder, kind):
    victim = class_folder / "bee" / "0.png"
    victim.write_bytes(DAMAGE[kind](victim.read_bytes()))
    images = open_images(str(class_folder), SMALL)
    assert images.labels.tolist() == [0, 0, 1, 2, 2]
    assert len(images.skipped) == 1
    assert images.skipped[0].startswith("bee/0.png (")
    torch.testing.assert_close(all_of(images)[0], wanted_images([0, 1, 11, 20, 21]))


def test_too_many_damaged_images_are_an_error_with_the_first_three(class_folder):
    for name in ("ant/1", "bee/0", "bee/1", "cat/0", "cat/1"):
        (class_folder / f"{name}.png").write_bytes(b"gone")
    images = open_images(str(class_folder), SMALL, max_damaged=3)
    named = r"ant/1\.png \(cannot identify image file\); bee/0.*; bee/1"
    with pytest.raises(DataError, match=rf"4 damaged images: {named}.*at most 3 are skipped"):
        len(images)


def test_an_all_damaged_source_is_an_error_within_the_limit(tmp_path):
    (tmp_path / "0.png").write_bytes(b"gone")
    with pytest.raises(DataError, match="every image is damaged"):
        len(open_images(str(tmp_path), SMALL))


def test_a_decompression_bomb_is_a_damaged_image_and_never_decoded(class_folder):
    header = io.BytesIO()
    Image.new("1", (15_000, 15_000)).save(header, "PNG")  # 28 KB on disk, 225 megapixels
    (class_folder / "bee" / "0.png").write_bytes(header.getvalue())
    Image.new("1", (10_000, 10_000)).save(class_folder / "cat" / "0.png", "PNG")
    images = open_images(str(class_folder), SMALL)
    assert len(images) == 4
    assert images.skipped[0].startswith("bee/0.png (Image size (225000000 pixels) exceeds limit")
    assert images.skipped[1].startswith("cat/0.png (10000x10000 pixels, more than the 64,000,000")
    with pytest.raises(DataError, match=r"1 damaged images: bee/0\.png \(Image size"):
        len(open_images(str(class_folder), SMALL, max_damaged=0))


CLASS_ERRORS = {
    "unknown folder": (
        {"classes": ["ant", "bees", "cat"]},
        r"'bee' is not .*mean bees\?.*--classes",
    ),
    "list too short": ({"classes": ["ant", "bee"], "num_classes": 3}, r"has 2 classes, .* has 3"),
    "fewer folders": ({"num_classes": 10}, r"3 class folders \(ant \.\.\. cat\).* 10 .*--classes"),
    "twice in list": ({"classes": ["ant", "bee", "cat", "cat"]}, r"'cat' is twice"),
}


@pytest.mark.parametrize("case", CLASS_ERRORS)
def test_classes_that_do_not_fit_are_refused(class_folder, case):
    options, message = CLASS_ERRORS[case]
    with pytest.raises(DataError, match=message):
        open_images(str(class_folder), SMALL, **options)


def test_an_empty_class_folder_is_named(class_folder, tmp_path):
    (class_folder / "dog").mkdir()
    with pytest.raises(DataError, match=r"dog: a class folder without an image\. Remove it"):
        open_images(str(class_folder), SMALL)
    archive = packed(class_folder, tmp_path / "a.tar")
    with pytest.raises(DataError, match=r"class folder 'photos/dog' has no image"):
        open_images(str(archive), SMALL)


def test_a_level_too_high_says_so(class_folder):
    with pytest.raises(DataError, match=r"one level down: name .*photos"):
        open_images(str(class_folder.parent), SMALL)


def test_images_beside_class_folders_are_refused(class_folder, tmp_path):
    (class_folder / "stray.png").write_bytes(png(5))
    with pytest.raises(DataError, match=r"holds images \(stray\.png\) beside folders \(ant\)"):
        open_images(str(class_folder), SMALL)
    with pytest.raises(DataError, match=r"class folders stand under both '\.' and 'photos'"):
        open_images(str(packed(class_folder, tmp_path / "a.tar")), SMALL)
    with pytest.raises(DataError, match="loose images beside class folders"):
        open_images(str(packed(class_folder, tmp_path / "b.tar", "")), SMALL)


def test_sources_that_are_not_there_are_refused(class_folder, tmp_path):
    (tmp_path / "list.csv").write_text("a,b")
    (tmp_path / "nothing").mkdir()
    for source, message in [
        (str(tmp_path / "photo"), r"photo: no such folder or file \(did you mean photos\?\)"),
        (str(tmp_path / "list.csv"), r"a \.csv file is no image source"),
        (str(tmp_path / "nothing"), r"nothing: no image in it"),
        ("digits:val", r"digits:val: the embedded digits are digits:train and digits:test"),
    ]:
        with pytest.raises(DataError, match=message):
            open_images(source, SMALL)


@pytest.mark.parametrize("options", [{"limit": 0}, {"max_damaged": -1}])
def test_limits_below_their_floor_are_refused(class_folder, options):
    with pytest.raises(ConfigError, match="wanted at least 1 and 0"):
        open_images(str(class_folder), SMALL, **options)
    with pytest.raises(ConfigError, match="batch size 0"):
        next(open_images(str(class_folder), SMALL).batches(0))
