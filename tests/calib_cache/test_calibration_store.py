"""Calibration files are written whole or not at all, and unreadable ones are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fdda_deploy.calib_cache.record import CalibrationRecord
from fdda_deploy.calib_cache.store import (
    atomic_write_bytes,
    load_record,
    load_table,
    save_record,
)
from fdda_deploy.calib_cache.trt_table import TrtTable, render
from fdda_deploy.errors import CalibrationError

RECORD = CalibrationRecord({}, "m", "d", "w8a8", "rtx", "mse", "0.1.0")
TABLE = TrtTable("101601", "EntropyCalibration2", {"input": np.float32(0.02)})


def test_a_record_comes_back_from_disk(tmp_path: Path) -> None:
    save_record(tmp_path / "calibration.json", RECORD)
    assert load_record(tmp_path / "calibration.json") == RECORD


def test_a_table_comes_back_from_disk(tmp_path: Path) -> None:
    (tmp_path / "calibration.cache").write_text(render(TABLE), encoding="ascii")
    assert load_table(tmp_path / "calibration.cache") == TABLE


def test_writing_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write_bytes(path, b"old, and longer")
    atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    atomic_write_bytes(path, b"old")

    def disk_full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(CalibrationError, match=r"file: cannot be written \(No space left"):
        atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["missing/file", "nul\0"], ids=["no folder", "null character"])
def test_a_path_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(CalibrationError, match=r"cannot be written .* Choose a folder") as caught:
        atomic_write_bytes(tmp_path / name, b"x")
    assert "\n" not in str(caught.value)


def test_a_folder_in_the_way_is_named_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(CalibrationError, match="cannot be written"):
        atomic_write_bytes(tmp_path / "file", b"x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("load", [load_record, load_table], ids=["record", "table"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot be read \(No such file"),
        (b"\xff\xfe\x00", "not UTF-8|not text"),
        (b"hello", "not readable as JSON|line 1 is 'hello'"),
    ],
    ids=["missing", "bytes", "other text"],
)
def test_a_file_that_cannot_be_loaded_is_named(
    tmp_path: Path, load: object, content: bytes | None, message: str
) -> None:
    path = tmp_path / "calibration"
    if content is not None:
        path.write_bytes(content)
    assert callable(load)
    with pytest.raises(CalibrationError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_an_inverted_table_is_refused_when_loaded(tmp_path: Path) -> None:
    path = tmp_path / "calibration.cache"
    table = TrtTable("8601", "MinMaxCalibration", {"input": np.float32(127 / 2.64)})
    path.write_text(render(table), encoding="ascii")
    with pytest.raises(CalibrationError, match=r"127/amax where TensorRT wants amax/127"):
        load_table(path)
