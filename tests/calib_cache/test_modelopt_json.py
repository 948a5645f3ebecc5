"""Plain JSON tables: every spelling in use is read, our own reads back bit for bit."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdda_deploy.calib_cache import formats
from fdda_deploy.calib_cache.modelopt_json import json_from_record, record_from_plain
from fdda_deploy.calib_cache.record import CalibrationRecord, TensorCalibration
from fdda_deploy.errors import CalibrationError
from fdda_deploy.quant.qparams import SMALLEST_SCALE, QParams

SCALES = st.floats(SMALLEST_SCALE, 2.0**120, width=32)


def only(entry: dict[str, Any]) -> TensorCalibration:
    return record_from_plain({"t": entry}).tensors["t"]


@pytest.mark.parametrize(
    "entry",
    [
        *({"amax": 2.54}, {"_amax": 2.54}, {"scale": 0.02}, {"_scale": 0.02, "zero_point": 0}),
        *({"amax": [[[2.54]]]}, {"scale": 0.02, "amax": 2.54, "num_bits": 8}),
    ],
    ids=["amax", "_amax", "scale", "_scale", "nested", "both"],
)
def test_every_spelling_of_one_8_bit_grid_is_read_alike(entry: dict[str, Any]) -> None:
    found = only(entry)
    assert float(found.qparams.scale) == pytest.approx(0.02, rel=1e-7)
    assert (found.qparams.qmin, found.qparams.qmax, found.role) == (-128, 127, "activation")
    assert found.amax == pytest.approx(2.54)


def test_nested_lists_are_a_weights_scales_along_their_one_wide_dimension() -> None:
    found = only({"_amax": [[[1.27]], [[2.54]]], "num_bits": 4})
    assert found.qparams.axis == 0
    assert (found.qparams.qmin, found.qparams.qmax, found.role) == (-8, 7, "weight")
    assert np.array_equal(found.qparams.scale, np.float32([1.27 / 7, 2.54 / 7]))
    assert only({"amax": [[1.0, 2.0, 3.0]]}).qparams.axis == 1
    assert only({"amax": [1.0, 2.0], "axis": 1}).qparams.axis == 1


def test_asymmetric_grids_keep_their_zero_point() -> None:
    assert only({"scale": 0.1, "zero_point": -128}).qparams.zero_point == -128


def test_an_fp8_grid_reads_back() -> None:
    grid = QParams(np.float32(0.5), -448, 448)
    tensors = {"t": TensorCalibration(grid, 224.0, "mse", "activation")}
    record = CalibrationRecord(tensors, "m", "", "fp8", "trt", "mse", "0.1.0")
    assert dict(record_from_plain(json.loads(json_from_record(record))).tensors) == tensors


def test_a_scale_of_zero_is_a_tensor_that_was_never_excited() -> None:
    assert record_from_plain({"t": {"amax": 0.0}}).unexcited == {"t": 0.0}


WRONG = {
    "bare number": (2.64, "want an object such as"),
    "empty": ({}, "neither amax nor scale"),
    "unknown key": ({"amax": 1.0, "colour": 1}, "unknown key colour"),
    "both spellings": ({"amax": 1.0, "_amax": 1.0}, "a key stands twice"),
    "negative amax": ({"amax": -1.0}, "amax is negative"),
    "negative scale": ({"scale": -0.1}, "scale -0.1.* is negative"),
    "huge": ({"scale": 1e39}, "too large for float32"),
    "two dimensions": ({"amax": [[1, 2], [3, 4]]}, "want one value, or one a channel"),
    "other lengths": ({"amax": [1, 2], "scale": 0.1}, "1 scales but 2 values of amax"),
    "inverted": ({"amax": 2.54, "scale": 50.0}, "scale is 127/amax where amax/127 belongs"),
    "dead channel": ({"amax": [1.0, 0.0]}, "t: 1 of 2 scales are zero"),
    "nine bits": ({"amax": 1.0, "num_bits": 9}, "num_bits: got 9, want 2 to 8"),
    "no positive integers": ({"amax": 1.0, "qmax": 0}, "qmax is 0, want 1 or more"),
    "axis is a text": ({"amax": 1.0, "axis": "0"}, "axis: want a whole number"),
    "unknown role": ({"amax": 1.0, "role": "bias"}, "role is 'bias'"),
}


@pytest.mark.parametrize(("entry", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_entry_is_refused_by_name(entry: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message) as caught:
        record_from_plain({"t": entry})
    assert str(caught.value).startswith("calibration table: t")
    assert "\n" not in str(caught.value)


@st.composite
def calibrations(draw: st.DrawFn) -> TensorCalibration:
    channels = draw(st.integers(0, 3))
    scale = np.float32(draw(st.lists(SCALES, min_size=channels, max_size=channels) | SCALES))
    if scale.ndim and not scale.size:
        scale = np.float32(0.5)
    qmin = draw(st.integers(-128, 0))
    qmax = draw(st.integers(1, 127))
    axis = draw(st.integers(0, 7)) if np.ndim(scale) else None
    grid = QParams(scale, qmin, qmax, axis, draw(st.integers(qmin, qmax)))
    amax = tuple((grid.scale.reshape(-1).astype(float) * qmax).tolist())
    role = draw(st.sampled_from(["activation", "weight"]))
    return TensorCalibration(grid, amax if axis is not None else amax[0], "mse", role)


@given(st.dictionaries(st.text(max_size=9), calibrations(), max_size=4))
def test_a_json_table_read_back_has_the_same_grids_bit_for_bit(
    tensors: dict[str, TensorCalibration],
) -> None:
    record = CalibrationRecord(
        tensors, "m", "", "w8a8", "trt", "mse", "0.1.0", unexcited={"idle tensor": 0.0}
    )
    again = record_from_plain(json.loads(json_from_record(record)))
    assert dict(again.tensors) == tensors
    assert again.unexcited == {"idle tensor": 0.0}


def test_blocks_have_no_place_in_a_plain_table() -> None:
    grid = QParams(np.ones((2, 3), np.float32), -8, 7, axis=0, block_size=64)
    tensors = {"w": TensorCalibration(grid, 1.0, "mse", "weight")}
    record = CalibrationRecord(tensors, "m", "", "w4a16", "trt", "mse", "0.1.0")
    with pytest.raises(CalibrationError, match="w: scales of blocks have no place"):
        json_from_record(record)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)
ENTRIES = st.dictionaries(
    st.sampled_from(["amax", "_amax", "scale", "zero_point", "axis", "role", "qmin", "lowest"])
    | st.sampled_from(["highest", "CLS", "num_bits", "algorithm", "data"]),
    JSON,
)


@pytest.mark.fuzz
@given(st.dictionaries(st.sampled_from(["t", "CLS", "data", "schema", "tensors"]), ENTRIES | JSON))
def test_wild_json_gives_a_record_or_a_calibration_error(plain: dict[str, Any]) -> None:
    with suppress(CalibrationError):
        form, _ = formats.read(json.dumps(plain).encode())
        assert form in formats.FORMATS
