"""Weights, images and archives that somebody damaged: read, skipped by name, or refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import SEEDS, damaged_bytes, fuzz, outcome
from PIL import Image
from safetensors.torch import save

from fdda_deploy.engines.feeds import load_feed
from fdda_deploy.engines.runner import InputSpec
from fdda_deploy.pipeline.data import open_images
from fdda_deploy.pipeline.preprocessing import Preprocessing
from fdda_deploy.pipeline.repairing import read_feed
from fdda_deploy.pipeline.weights import load_weights, state_dict_from_file

SMALL = Preprocessing(8, 8, resize=8)
PIXELS = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
STATE = {"weight": torch.arange(4.0).reshape(2, 2), "bias": torch.zeros(2)}
SPEC = (InputSpec("x", (None, 2), np.dtype("float32")),)


def image(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, kind)
    return stream.getvalue()


def archive() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a/0.png", f"b/{'x' * 120}.png"):  # the long name takes an extended header
            info = tarfile.TarInfo(name)
            info.size = len(image("PNG"))
            tar.addfile(info, io.BytesIO(image("PNG")))
    return stream.getvalue().rstrip(b"\0") + b"\0" * 600


def arrays(**named: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **named)
    return stream.getvalue()


def checkpoint(*, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(STATE, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


SOURCES = {
    "x.tar": archive(),
    "x.npz": arrays(x=np.stack([PIXELS, PIXELS]), y=np.array([0, 1])),
}
IMAGES = {f"1.{kind.lower()}": image(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM")}
IMAGES["1.tiff"] = image("TIFF")
WEIGHTS = {"w.pth": checkpoint(), "old.pt": checkpoint(legacy=True), "w.safetensors": save(STATE)}


def decoded(source: Path) -> None:
    """Opens a source and decodes every image of it."""
    images = open_images(str(source), SMALL, max_damaged=3)
    assert images.load(range(len(images)))[0].shape[1:] == (3, 8, 8)


@pytest.mark.parametrize("name", SOURCES)
@fuzz(400, seed=SEEDS)
def test_a_damaged_source_of_images_is_read_or_refused(
    tmp_path: Path, name: str, seed: int
) -> None:
    (tmp_path / name).write_bytes(damaged_bytes(SOURCES[name], seed))
    outcome(lambda: decoded(tmp_path / name))


@pytest.mark.parametrize("name", IMAGES)
@fuzz(60, seed=SEEDS)
def test_a_damaged_image_is_decoded_or_skipped(tmp_path: Path, name: str, seed: int) -> None:
    (tmp_path / "0.png").write_bytes(image("PNG"))
    (tmp_path / name).write_bytes(damaged_bytes(IMAGES[name], seed))
    outcome(lambda: decoded(tmp_path))


@pytest.mark.parametrize("name", WEIGHTS)
@fuzz(300, seed=SEEDS)
def test_damaged_weights_are_loaded_or_refused(tmp_path: Path, name: str, seed: int) -> None:
    path = tmp_path / name
    path.write_bytes(damaged_bytes(WEIGHTS[name], seed))

    def load() -> None:
        load_weights(torch.nn.Linear(2, 2), state_dict_from_file(path), "linear", str(path))

    outcome(load)


@fuzz(400, seed=SEEDS)
def test_a_damaged_feed_is_read_or_refused(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "feed.npz"
    path.write_bytes(damaged_bytes(arrays(x=np.ones((3, 2), np.float32)), seed))
    outcome(lambda: load_feed(path, SPEC))
    outcome(lambda: read_feed(path))
