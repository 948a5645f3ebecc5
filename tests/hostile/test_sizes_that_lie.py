"""Archives, checkpoints and images that lie about their size: refused before memory is full."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from fdda_deploy.errors import DataError, ModelError
from fdda_deploy.pipeline.data import open_images
from fdda_deploy.pipeline.preprocessing import Preprocessing
from fdda_deploy.pipeline.tar_members import members_of
from fdda_deploy.pipeline.weights import load_weights, state_dict_from_file

SMALL = Preprocessing(8, 8, resize=8)
HEADER, SIZE, CHECKSUM = 512, slice(124, 136), slice(148, 156)


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return stream.getvalue()


def tar(path: Path, size: int, kind: bytes = tarfile.REGTYPE, /, **pax: str) -> Path:
    """Writes a sound member, and one whose header says ``size``, or its extension in ``pax``."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        sound, liar = tarfile.TarInfo("a/0.png"), tarfile.TarInfo("a/1.png")
        sound.size = len(png())
        liar.type, liar.pax_headers = kind, pax
        archive.addfile(sound, io.BytesIO(png()))
        archive.addfile(liar)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"a/1.png")
    head = data[at : at + HEADER]
    head[SIZE] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)  # type: ignore[attr-defined]
    head[CHECKSUM] = b" " * 8
    head[CHECKSUM] = b"%06o\0 " % sum(head)
    data[at : at + HEADER] = head
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("size", [-1, -512, -1024, 2**40, 2**62, 2**80])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_member_of_any_size_but_its_own_is_refused(
    tmp_path: Path, kind: bytes, size: int
) -> None:
    with pytest.raises(DataError, match=r"not a whole, plain tar \(a member of"):
        members_of(tar(tmp_path / "x.tar", size, kind))


@pytest.mark.parametrize("size", ["-512", "-1024", "-1536", "99999999999999"])
def test_an_extended_header_that_leads_back_is_refused(tmp_path: Path, size: str) -> None:
    with pytest.raises(DataError, match="a member whose size leads back"):
        members_of(tar(tmp_path / "x.tar", 0, size=size))


@pytest.mark.parametrize(
    "pax",
    [{"GNU.sparse.map": "a,b"}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}],
    ids=["map", "version 1"],
)
def test_a_damaged_map_of_holes_is_refused(tmp_path: Path, pax: dict[str, str]) -> None:
    with pytest.raises(DataError, match="not a whole, plain tar"):
        members_of(tar(tmp_path / "x.tar", 0, **pax))


def test_a_damaged_header_does_not_end_the_list_unseen(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", 0)
    data = bytearray(path.read_bytes())
    data[data.rindex(b"a/1.png")] ^= 1  # the checksum no longer fits: Python would stop there
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged header at byte 1,\d{3}"):
        members_of(path)


def test_a_checkpoint_that_unpacks_to_more_than_itself_is_refused_unread(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(100_000)}, tmp_path / "w.pth")
    packed = tmp_path / "packed.pth"
    with (
        zipfile.ZipFile(tmp_path / "w.pth") as plain,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for entry in plain.infolist():
            archive.writestr(entry.filename, plain.read(entry))
    assert state_dict_from_file(tmp_path / "w.pth")["weight"].numel() == 100_000
    with pytest.raises(ModelError, match=r"bytes unpack to 400,\d{3}\. Save it again"):
        state_dict_from_file(packed)


TENSORS: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "sparse": (lambda: torch.eye(2).to_sparse(), "'weight' is a sparse tensor"),
    "complex": (lambda: torch.eye(2).to(torch.complex64), "'weight' is a complex tensor"),
    "without numbers": (lambda: torch.empty(2, 2, device="meta"), "a tensor without numbers"),
    "one number for a terabyte": (lambda: torch.ones(1).expand(2**40, 2), "1099511627776x2"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_that_is_no_plain_one_is_named(tmp_path: Path, kind: str) -> None:
    make, message = TENSORS[kind]
    torch.save({"weight": make(), "bias": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=message):
        load_weights(torch.nn.Linear(2, 2), state_dict_from_file(tmp_path / "w.pth"), "n", "w.pth")


def test_a_key_of_ten_million_letters_is_cut_in_the_message(tmp_path: Path) -> None:
    torch.save({"k" * 10**6: torch.ones(2), "\x1b[2J": torch.ones(2)}, tmp_path / "w.pth")
    with pytest.raises(ModelError) as caught:
        load_weights(torch.nn.Linear(2, 2), state_dict_from_file(tmp_path / "w.pth"), "n", "w.pth")
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


def bomb(width: int, height: int, *extra: bytes) -> bytes:
    """Returns a grey PNG whose header says that size, with few pixels behind it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", head), *(chunk(b"zTXt", text) for text in extra)]
    parts += [chunk(b"IDAT", zlib.compress(b"\0" * 100)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((50_000, 50_000), "2500000000 pixels"),
        ((2**31 - 1, 2**31 - 1), "exceeds limit"),
        ((9_000, 9_000), "more than the 64,000,000 that are decoded"),
        ((1, 60_000_000), "so narrow that its shorter side at 8 makes 3,840,000,000 pixels"),
        ((60_000_000, 1), "so narrow"),
    ],
    ids=["bomb", "largest", "large", "narrow", "wide"],
)
def test_an_image_of_too_many_pixels_is_refused_undecoded(
    tmp_path: Path, size: tuple[int, int], message: str
) -> None:
    (tmp_path / "b.png").write_bytes(bomb(*size))  # decoding it would say that pixels are missing
    with pytest.raises(DataError, match=message):
        len(open_images(str(tmp_path), SMALL))


def test_a_text_that_unpacks_without_end_is_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png())
    text = b"a\0\0" + zlib.compress(b"x" * 20_000_000)
    (tmp_path / "1.png").write_bytes(bomb(8, 8, text))
    images = open_images(str(tmp_path), SMALL)
    assert [name.split()[0] for name in images.skipped] == ["1.png"]


def test_links_to_devices_pipes_and_themselves_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png())
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "words.png").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe.png")  # a reader would wait for ever
    images = open_images(str(tmp_path), SMALL)
    assert len(images) == 1
    assert images.skipped == ("words.png (cannot identify image file)",)


def test_class_folders_that_lead_to_themselves_are_listed_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(png())
    (tmp_path / "b").symlink_to("b")
    (tmp_path / "a" / "up").symlink_to("..")
    assert len(open_images(str(tmp_path), SMALL)) == 1
