"""Batches reach the device in order and whole; a table is used again for its own network only."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_gpu import SimulatedMemory
from trt_members import members_10, members_11

from fdda_deploy.engines.calibration_feed import BatchFeed, TableFile
from fdda_deploy.engines.trt_api import TrtApi
from fdda_deploy.engines.trt_calibrator import TrtCalibration, make_calibrator, record_of, told
from fdda_deploy.engines.trt_capabilities import capabilities_of
from fdda_deploy.errors import CalibrationError, ConfigError

TABLE = b"TRT-101601-EntropyCalibration2\ninput: 3caa54fc\n"
IMAGE = (3, 4, 4)


def batches(*sizes: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(size, *IMAGE)).astype(np.float32) for size in sizes]


def on_device(memory: SimulatedMemory, address: int, like: np.ndarray) -> np.ndarray:
    back = memory.pinned(like.nbytes)
    memory.copy_to_host(back, address)
    memory.synchronize()
    return back.view(like.dtype).reshape(like.shape)


class Base:
    """What TensorRT's abstract class is to ours: something whose constructor must run."""

    def __init__(self) -> None:
        self.ready = True


def api_of(members: SimpleNamespace, version: str) -> TrtApi:
    return TrtApi(members, "tensorrt", version, capabilities_of(members, "tensorrt"))


def api_10() -> TrtApi:
    members = members_10()
    members.IInt8EntropyCalibrator2 = members.IInt8MinMaxCalibrator = Base
    return api_of(members, "10.16.1")


def calibration(cache: Path | None = None, **options: Any) -> TrtCalibration:
    images = options.pop("images", batches(4, 4))
    return make_calibrator(api_10(), images, SimulatedMemory(), cache=cache, key="k", **options)


def test_every_batch_stands_on_the_device_in_turn_at_one_address() -> None:
    memory, images = SimulatedMemory(), batches(4, 4, 4)
    feed = BatchFeed(images, memory)
    addresses = []
    for batch in images:
        address = feed.next_address()
        assert address is not None
        addresses.append(address)
        np.testing.assert_array_equal(on_device(memory, address, batch), batch)
    assert feed.next_address() is None
    assert len(set(addresses)) == 1
    assert (feed.batch_size, feed.num_fed) == (4, 3)


def test_a_smaller_last_batch_is_left_out() -> None:
    feed = BatchFeed(batches(4, 3), SimulatedMemory())
    assert feed.next_address() is not None
    assert feed.next_address() is None
    assert feed.num_fed == 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (np.zeros((4, 3, 5, 4), np.float32), r"batch 2 is float32 \(4, 3, 5, 4\), want float32"),
        (np.zeros((5, *IMAGE), np.float32), r"batch 2 is float32 \(5, 3, 4, 4\)"),
        (np.zeros((4, *IMAGE)), "batch 2 is float64"),
        (np.full((4, *IMAGE), np.nan, np.float32), "batch 2 has values that are not finite"),
    ],
    ids=["size", "larger batch", "type", "nan"],
)
def test_a_batch_that_does_not_fit_is_refused(wrong: np.ndarray, words: str) -> None:
    feed = BatchFeed([*batches(4), wrong], SimulatedMemory())
    feed.next_address()
    with pytest.raises(CalibrationError, match=words):
        feed.next_address()


def test_no_images_are_refused_with_the_way_out() -> None:
    with pytest.raises(CalibrationError, match=r"no images\. Give --calib-data"):
        BatchFeed([], SimulatedMemory())


def test_the_digest_is_of_the_images() -> None:
    one, same, other = (
        BatchFeed(b, SimulatedMemory()) for b in (batches(2), batches(2), [-x for x in batches(2)])
    )
    for feed in (one, same, other):
        feed.next_address()
    assert one.digest == same.digest != other.digest


def test_a_table_is_read_back_for_the_same_key_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.cache"
    TableFile(path, "entropy2", "net-images").write(TABLE)
    same = TableFile(path, "entropy2", "net-images")
    assert same.read() == TABLE
    assert same.was_reused
    for kind, key, what in (
        ("entropy2", "other", "network or images"),
        ("minmax", "net-images", "algorithm"),
    ):
        other = TableFile(path, kind, key)
        assert other.read() is None
        assert not other.was_reused
        assert other.notes == [f"{path}: of another {what}; calibrated anew."]


@pytest.mark.fuzz
@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100))
def test_a_damaged_table_is_calibrated_anew_and_said_so(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("table", numbered=True) / "c.cache"
    TableFile(path, "entropy2", "k").write(TABLE)
    path.write_bytes(data)
    table = TableFile(path, "entropy2", "k")
    assert table.read() is None
    assert table.notes[0].endswith("calibrated anew.")


def test_what_is_no_table_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="line 1"):
        TableFile(tmp_path / "c.cache", "entropy2", "k").write(b"nonsense")
    assert not (tmp_path / "c.cache").exists()


@pytest.mark.parametrize("kind", ["entropy2", "minmax"])
def test_the_class_is_tensorrt_s_and_asks_ours(tmp_path: Path, kind: str) -> None:
    made = calibration(tmp_path / "c.cache", kind=kind)
    calibrator = made.calibrator
    assert calibrator.ready
    assert calibrator.get_batch_size() == 4
    assert calibrator.read_calibration_cache() is None
    assert len(calibrator.get_batch(["input"])) == 1
    assert calibrator.get_batch(["input"]) is not None
    assert calibrator.get_batch(["input"]) is None
    table = (
        TABLE if kind == "entropy2" else TABLE.replace(b"EntropyCalibration2", b"MinMaxCalibration")
    )
    calibrator.write_calibration_cache(memoryview(table))
    made.raise_last_error()
    again = calibration(tmp_path / "c.cache", kind=kind)
    assert again.calibrator.read_calibration_cache() == table
    assert record_of(again, api_10(), kind)["table_reused"] is True
    assert record_of(made, api_10(), kind)["images"] == 8


def test_what_a_call_raises_is_kept_and_raised_after_the_build() -> None:
    made = calibration(images=[*batches(4), np.full((4, *IMAGE), np.inf, np.float32)])
    assert made.calibrator.get_batch(["input"]) is not None
    assert made.calibrator.get_batch(["input"]) is None
    assert made.calibrator.get_batch(["input"]) is None  # and nothing is fed after it
    made.calibrator.write_calibration_cache(b"nonsense")
    with pytest.raises(CalibrationError, match="batch 2 has values that are not finite"):
        made.raise_last_error()


def test_where_there_are_no_calibrators_the_way_out_is_told() -> None:
    api = api_of(members_11(), "11.4.1")
    with pytest.raises(ConfigError, match=r"TensorRT 11\.4\.1 has no IInt8EntropyCalibrator2"):
        make_calibrator(api, batches(4), SimulatedMemory())
    assert told(api).endswith("so our calibration record went in as Q/DQ pairs.")
    assert told(api_10()).startswith("TensorRT 10.16.1 calibrated the float network itself")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="calibrator legacy: want entropy2 or minmax"):
        calibration(kind="legacy")
