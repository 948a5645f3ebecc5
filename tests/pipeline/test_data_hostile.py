"""Hostile files: nothing that reads images or weights runs code or writes outside its folder."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fdda_deploy.errors import DataError, ModelError
from fdda_deploy.pipeline import image_arrays
from fdda_deploy.pipeline.data import open_images
from fdda_deploy.pipeline.preprocessing import Preprocessing
from fdda_deploy.pipeline.weights import state_dict_from_file

SMALL = Preprocessing(8, 8, resize=8)


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "ran"


def listing_of(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_the_payload_would_run_if_it_were_unpickled(marker):
    pickle.loads(pickle.dumps(Payload(marker)))  # noqa: S301  # proves that the tests below can fail
    assert marker.exists()


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
@pytest.mark.parametrize("how", ["torch", "plain-2", "plain-5"])
def test_a_checkpoint_that_wants_to_run_code_is_refused(tmp_path, marker, suffix, how):
    path = tmp_path / f"weights{suffix}"
    if how == "torch":
        torch.save({"state_dict": {"w": torch.ones(2)}, "x": Payload(marker)}, path)
    else:
        path.write_bytes(pickle.dumps(Payload(marker), protocol=int(how[-1])))
    with pytest.raises(ModelError, match="refused, since loading it"):
        state_dict_from_file(path)
    assert not marker.exists()


def test_a_refused_checkpoint_says_what_it_asked_for(tmp_path, marker):
    torch.save({"x": Payload(marker)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"asks to run posix\.mkdir.*torch\.save\(network\.state"):
        state_dict_from_file(tmp_path / "w.pth")


def test_an_npz_with_pickled_objects_is_refused(tmp_path, marker):
    objects = np.array([Payload(marker)] * 2, dtype=object)
    np.savez(tmp_path / "x.npz", x=objects)
    with pytest.raises(DataError, match=r"refused: it holds Python objects \(pickle\)"):
        open_images(str(tmp_path / "x.npz"), SMALL)
    (tmp_path / "y.npz").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(DataError, match="damaged"):
        open_images(str(tmp_path / "y.npz"), SMALL)
    assert not marker.exists()


def test_an_npz_that_unpacks_without_bound_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(image_arrays, "MAX_ARRAY_BYTES", 1000)
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((100, 8, 8), np.uint8))
    with pytest.raises(DataError, match=r"x unpacks to 6,528 bytes, more than 1,000"):
        open_images(str(tmp_path / "x.npz"), SMALL)


def test_an_npz_whose_header_lies_about_its_size_is_damaged(tmp_path):
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        member, {"descr": "|u1", "fortran_order": False, "shape": (1 << 50, 8, 8)}
    )
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", member.getvalue())
    with pytest.raises(DataError, match="damaged"):
        open_images(str(tmp_path / "x.npz"), SMALL)


def member(name, kind=tarfile.REGTYPE, target="", content=b""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(content)
    return info, io.BytesIO(content)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


HOSTILE_MEMBERS = {
    "parent": (("a/../../ran.png",), "'a/../../ran.png' points outside"),
    "backslash parent": (("a\\..\\..\\ran.png",), "points outside"),
    "absolute": (("/var/ran.png",), "'/var/ran.png' has an absolute path"),
    "drive": (("C:\\ran.png",), "has an absolute path"),
    "symbolic link": (("a/1.png", tarfile.SYMTYPE, "/etc/passwd"), "is a link to '/etc/passwd'"),
    "hard link": (("a/1.png", tarfile.LNKTYPE, "a/0.png"), "is a link to 'a/0.png'"),
    "device": (("a/zero", tarfile.CHRTYPE), "neither a plain file nor a folder"),
    "pipe": (("a/pipe.png", tarfile.FIFOTYPE), "neither a plain file nor a folder"),
}


@pytest.mark.parametrize("case", HOSTILE_MEMBERS)
def test_an_archive_with_a_hostile_member_is_refused_whole(tmp_path, monkeypatch, case):
    arguments, message = HOSTILE_MEMBERS[case]
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(*member("a/0.png", content=png()))
        archive.addfile(*member(*arguments))
    monkeypatch.chdir(tmp_path)
    before = listing_of(tmp_path)
    with pytest.raises(DataError, match=r"x\.tar: member ") as raised:
        open_images("x.tar", SMALL)
    assert message in str(raised.value)
    assert listing_of(tmp_path) == before


def test_reading_an_archive_writes_nothing(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(*member("a/0.png", content=png()))
        archive.addfile(*member("a/run.py", content=b"raise SystemExit"))
        archive.addfile(*member("a/._0.png", content=b"a Mac's resource fork"))
    monkeypatch.chdir(tmp_path)
    images = open_images("x.tar", SMALL)
    assert images.load([0])[0].shape == (1, 3, 8, 8)
    assert [path.name for path in listing_of(tmp_path)] == ["x.tar"]


@pytest.mark.parametrize("mode", ["w:gz", "cut", "noise"])
def test_archives_that_are_no_plain_tar_are_refused(tmp_path, mode):
    path = tmp_path / "x.tar"
    with tarfile.open(path, mode if mode == "w:gz" else "w") as archive:
        archive.addfile(*member("a/0.png", content=png() * 100))
    if mode != "w:gz":
        path.write_bytes(path.read_bytes()[:2000] if mode == "cut" else b"\x01" * 4096)
    with pytest.raises(DataError, match=r"not a whole, plain tar|0\.png|damaged"):
        len(open_images(str(path), SMALL))


def test_postscript_under_an_image_name_never_reaches_an_interpreter(tmp_path, marker):
    script = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n({marker}) (w) file closefile\n"
    (tmp_path / "0.png").write_text(script)
    (tmp_path / "1.png").write_bytes(png())
    images = open_images(str(tmp_path), SMALL)
    assert len(images) == 1
    assert images.skipped[0].startswith("0.png (cannot identify image file")
    assert not marker.exists()


@pytest.mark.fuzz
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=400), st.sampled_from([".npz", ".tar"]), st.data())
def test_wild_bytes_end_in_a_data_error(tmp_path, noise, suffix, data):
    path = tmp_path / f"wild{suffix}"
    if suffix == ".npz":
        np.savez(path, x=np.zeros((2, 4, 4), np.uint8))
    else:
        with tarfile.open(path, "w") as archive:
            archive.addfile(*member("0.png", content=png()))
    good = path.read_bytes()
    at = data.draw(st.integers(0, len(good)))
    path.write_bytes(good[:at] + noise + good[at + len(noise) :])
    with contextlib.suppress(DataError):  # any other exception fails the test
        assert open_images(str(path), SMALL).load([0])[0].shape == (1, 3, 8, 8)
