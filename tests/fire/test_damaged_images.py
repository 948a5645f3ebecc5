"""A thousand damaged images among a few good ones: skipped, counted, named, and quickly."""

from __future__ import annotations

import io
import json
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import Commands, Ended
from PIL import Image

from fdda_deploy.errors import DataError
from fdda_deploy.pipeline import pixel_store
from fdda_deploy.pipeline.data import open_images
from fdda_deploy.pipeline.preprocessing import Preprocessing

GOOD, BAD = 24, 1000
MOST_SECONDS = 10.0
"""Of the processor, for a thousand of them."""


def photo(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def giant(side: int) -> bytes:
    """A PNG of 100 bytes whose header asks for ``side`` x ``side`` pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(64)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


KINDS: tuple[Callable[[], bytes], ...] = (
    lambda: photo("JPEG")[:-400],
    lambda: b"",
    lambda: b"%PDF-1.7 not an image at all",
    lambda: photo("PNG")[:60],
    lambda: giant(9_000),  # more than we decode, less than Pillow refuses
    lambda: giant(60_000),
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of good images, and damaged ones of every kind between them."""
    folder = tmp_path_factory.mktemp("photos")
    contents = [kind() for kind in KINDS]
    good = photo("PNG")
    for number in range(GOOD + BAD):
        place = folder / f"class{number % 4}"
        place.mkdir(exist_ok=True)
        is_good = number < GOOD
        data = good if is_good else contents[number // 4 % len(contents)]
        (place / f"{number * 37 % 1024:04}.jpg").write_bytes(data)
    return folder


def report(commands: Commands, out: Path, photos: Path, limit: int) -> Ended:
    data = ["--calib-data", str(photos), "--recipe", "none", "--max-damaged", str(limit)]
    return commands.run(commands.build(out, *data, until="report"))


def test_a_thousand_damaged_images_are_skipped_quickly_and_each_is_told(photos: Path) -> None:
    start = time.process_time()
    images = open_images(str(photos), Preprocessing(16, 16, resize=16), max_damaged=BAD)
    assert len(images) == GOOD
    assert time.process_time() - start < MOST_SECONDS
    assert len(images.skipped) == BAD
    reasons = {line.partition("(")[2].split(" ")[0] for line in images.skipped}
    assert len(reasons) >= 4  # cut, no image, too large by our limit and by Pillow's


def test_a_build_goes_on_without_them_and_counts_them(
    commands: Commands, tmp_path: Path, photos: Path
) -> None:
    out = tmp_path / "out"
    ended = report(commands, out, photos, BAD)
    assert (ended.code, ended.err) == (0, "")
    found = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert found["data"]["calibration"]["n"] == GOOD
    (said,) = [line for line in found["warnings"] if "damaged" in line]
    assert said.startswith(f"{BAD} damaged calibration images were skipped: class0/")


def test_one_more_than_allowed_is_one_line(
    commands: Commands, tmp_path: Path, photos: Path
) -> None:
    line = report(commands, tmp_path / "out", photos, BAD - 1).line
    assert f"{photos}: {BAD} damaged images: class0/" in line
    assert f"at most {BAD - 1} are skipped. Replace them, or raise --max-damaged." in line
    assert len(line) < 1000


def test_too_many_of_them_are_refused_before_the_rest_is_read(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_images(str(photos), Preprocessing(16, 16, resize=16), max_damaged=10)
    decoded: list[object] = []
    decode = pixel_store._decoded
    monkeypatch.setattr(
        pixel_store, "_decoded", lambda *given: (decoded.append(1), decode(*given))[1]
    )
    with pytest.raises(DataError, match="11 damaged images"):
        len(images)
    assert len(decoded) < BAD / 2
