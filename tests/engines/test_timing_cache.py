"""Kernel timings are used again for the same GPU, driver and release, and for no other."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from engine_graphs import residual_float
from hypothesis import given, settings
from hypothesis import strategies as st

from fdda_deploy.engines.build_options import BuildOptions
from fdda_deploy.engines.gpu import gpu_present
from fdda_deploy.engines.timing_cache import (
    TimingKey,
    driver_release,
    load_timings,
    save_timings,
    timing_key,
)
from fdda_deploy.engines.trt_api import load_api
from fdda_deploy.engines.trt_build import build_plan
from fdda_deploy.errors import EngineError

KEY = TimingKey("NVIDIA L4", 89, "580.65.06", "TensorRT 11.4.1")


def test_what_was_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    path = save_timings(tmp_path / "new" / "folder", KEY, b"timings")
    assert path.name == f"{KEY.digest}.timing"
    found = load_timings(tmp_path / "new" / "folder", KEY)
    assert (found.timings, found.note) == (b"timings", None)


def test_an_empty_folder_is_no_fault(tmp_path: Path) -> None:
    found = load_timings(tmp_path / "none", KEY)
    assert (found.timings, found.note) == (b"", None)


@pytest.mark.parametrize("field", ["gpu", "compute_capability", "driver", "tensorrt"])
def test_another_gpu_driver_or_release_has_a_file_of_its_own(tmp_path: Path, field: str) -> None:
    save_timings(tmp_path, KEY, b"timings")
    value = 120 if field == "compute_capability" else "another"
    other = dataclasses.replace(KEY, **{field: value})
    assert other.digest != KEY.digest
    assert load_timings(tmp_path, other).timings == b""
    save_timings(tmp_path, other, b"others")
    assert load_timings(tmp_path, KEY).timings == b"timings"


@pytest.mark.parametrize(
    "damage",
    ["timings cut", "timings gone", "note gone", "note no json", "note a list", "other schema"],
)
def test_damaged_timings_are_measured_again_and_said_so(tmp_path: Path, damage: str) -> None:
    path = save_timings(tmp_path, KEY, b"timings")
    beside = path.with_suffix(".json")
    note = json.loads(beside.read_text())
    match damage:
        case "timings cut":
            path.write_bytes(b"timin")
        case "timings gone":
            path.unlink()
        case "note gone":
            beside.unlink()
        case "note no json":
            beside.write_text("{")
        case "note a list":
            beside.write_text("[]")
        case _:
            beside.write_text(json.dumps(note | {"schema": 2}))
    found = load_timings(tmp_path, KEY)
    assert found.timings == b""
    assert found.note is not None
    assert "damaged" in found.note
    assert found.note.endswith("they are measured again.")


def test_a_folder_that_cannot_be_made_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="Give --timing-cache a folder that can be written"):
        save_timings(tmp_path / "file" / "folder", KEY, b"timings")


@pytest.mark.fuzz
@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=50))
def test_any_note_beside_any_timings_is_a_note_and_no_error(
    tmp_path_factory: pytest.TempPathFactory, note: bytes, timings: bytes
) -> None:
    folder = tmp_path_factory.mktemp("timings", numbered=True)
    path = save_timings(folder, KEY, b"timings")
    path.with_suffix(".json").write_bytes(note)
    path.write_bytes(timings)
    assert load_timings(folder, KEY).note is not None


@pytest.mark.skipif(gpu_present(), reason="the claim is about a machine without a GPU")
def test_without_a_driver_the_key_is_still_one() -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="has wheels for Linux x86-64 only")
    key = timing_key(load_api("tensorrt_rtx"))
    assert (key.gpu, key.compute_capability, key.driver) == ("", 0, "")
    assert driver_release() is None
    assert key.tensorrt.startswith("TensorRT-RTX 1.")


@contextmanager
def _deprecations_allowed() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def test_a_builder_with_a_timing_cache_fills_it_and_takes_it_again(tmp_path: Path) -> None:
    """TensorRT-RTX has the calls of full TensorRT, though they do nothing: the same road."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="has wheels for Linux x86-64 only")
    api = load_api("tensorrt_rtx")
    able = dataclasses.replace(api.capabilities, has_timing_cache=True)
    timed = dataclasses.replace(api, capabilities=able)
    options, model = BuildOptions(timing_cache=tmp_path), residual_float().SerializeToString()
    with _deprecations_allowed():
        first = build_plan(model, options, timed)
        second = build_plan(model, options, timed)
    assert first.notes == second.notes == ()
    assert first.plan == second.plan == build_plan(model, BuildOptions(), api).plan
