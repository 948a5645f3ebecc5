"""A calibration record survives the disk bit for bit, and refuses what it does not know."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fdda_deploy.calib_cache.record import CalibrationRecord, TensorCalibration, staleness
from fdda_deploy.errors import CalibrationError
from fdda_deploy.quant.qparams import SMALLEST_SCALE, QParams

NORMAL_SCALES = st.floats(SMALLEST_SCALE, float(np.finfo(np.float32).max), width=32)


def record_of(**tensors: TensorCalibration) -> CalibrationRecord:
    return CalibrationRecord(tensors, "sha256:m", "sha256:d", "w4a8", "rtx", "mse", "0.1.0")


def example() -> CalibrationRecord:
    weight = QParams(np.float32([0.1, 0.2, 1 / 3]), -8, 7, axis=0)
    blocked = QParams(np.full((2, 3), 0.1, np.float32), -8, 7, axis=0, block_size=64)
    return record_of(
        input=TensorCalibration(
            QParams(np.float32(2.64 / 127), -128, 127), 2.64, "mse", "activation"
        ),
        weight=TensorCalibration(weight, [0.7, 1.4, 7 / 3], "minmax", "weight"),
        blocked=TensorCalibration(blocked, 0.7, "minmax", "weight"),
    )


@st.composite
def calibrations(draw: st.DrawFn) -> TensorCalibration:
    qmin = draw(st.integers(-128, 126))
    qmax = draw(st.integers(qmin + 1, 127))
    zero_point = draw(st.integers(qmin, qmax))
    rank = draw(st.integers(0, 4))
    shape = draw(hnp.array_shapes(min_dims=rank, max_dims=rank, max_side=3)) if rank else ()
    scale = draw(hnp.arrays(np.float32, shape, elements=NORMAL_SCALES))
    axis = None if rank == 0 else draw(st.integers(0, rank - 1))
    block = draw(st.integers(1, 512)) if rank > 1 else None
    qparams = QParams(scale, qmin, qmax, axis, zero_point, block)
    number = st.floats(0, 1e308)
    amax = draw(number | st.lists(number, min_size=scale.size, max_size=scale.size))
    return TensorCalibration(
        qparams, amax, draw(st.text(max_size=9)), draw(st.sampled_from(["activation", "weight"]))
    )


@given(st.dictionaries(st.text(max_size=20), calibrations(), max_size=4))
def test_a_record_read_back_is_the_same_bit_for_bit(tensors: dict[str, TensorCalibration]) -> None:
    record = CalibrationRecord(tensors, "m", "", "w8a8", "trt", "mse", "0.1.0")
    again = CalibrationRecord.from_json(record.to_json())
    assert again == record
    assert again.to_json() == record.to_json()
    for name, tensor in tensors.items():
        scale = again.tensors[name].qparams.scale
        assert scale.dtype == np.float32
        assert scale.shape == tensor.qparams.scale.shape
        assert scale.tobytes() == tensor.qparams.scale.tobytes()


def test_one_bit_of_one_scale_makes_two_records_differ() -> None:
    plain = json.loads(example().to_json())
    scale = np.nextafter(np.float32(plain["tensors"]["input"]["scale"]), np.float32(1))
    plain["tensors"]["input"]["scale"] = float(scale)
    assert CalibrationRecord.from_json(json.dumps(plain)) != example()


INPUT = ("tensors", "input")
WRONG = {
    "unknown key": (("colour",), "red", "record: unknown key colour"),
    "unknown tensor key": ((*INPUT, "delta"), 1, "tensors.input: unknown key delta"),
    "newer schema": (("schema",), 2, "schema: the record has 2, this version reads 1"),
    "schema is true": (("schema",), True, "record.schema: want a whole number, got true or false"),
    "digest is a number": (("model_digest",), 5, "record.model_digest: want a text, got a number"),
    "digest is long": (("data_digest",), "x" * 5000, "record.data_digest: 5000 characters"),
    "tensors is a list": (("tensors",), [], "record.tensors: want an object, got a list"),
    "tensor is null": (INPUT, None, "tensors.input: want an object, got null"),
    "scale is a text": ((*INPUT, "scale"), "0.1", "tensors.input.scale: want a number, got a text"),
    "scale is zero": ((*INPUT, "scale"), 0.0, "tensors.input: 1 of 1 scales are zero"),
    "scale is huge": ((*INPUT, "scale"), 1e300, "tensors.input.scale: a number is too large"),
    "scale is empty": ((*INPUT, "scale"), [], "tensors.input.scale: an empty list"),
    "scale is ragged": ((*INPUT, "scale"), [[1.0], [1.0, 2.0]], "lists of different lengths"),
    "scale is deep": ((*INPUT, "scale"), [[[[[1.0]]]]], "nested deeper than 4"),
    "scale lacks an axis": ((*INPUT, "scale"), [0.1, 0.2], "tensors.input: scale has shape (2,)"),
    "amax is negative": ((*INPUT, "amax"), -1.0, "tensors.input: amax has a value that is neg"),
    "amax has a wrong length": ((*INPUT, "amax"), [1.0, 2.0], "amax has 2 values, the scale 1"),
    "amax is true": ((*INPUT, "amax"), True, "tensors.input.amax: want a number, got true"),
    "amax overflows": ((*INPUT, "amax"), 10**400, "tensors.input.amax: a number is too large"),
    "qmin outside int8": ((*INPUT, "qmin"), -129, "tensors.input: integer range [-129, 127]"),
    "axis is negative": ((*INPUT, "axis"), -1, "tensors.input.axis: got -1, want 0 to 7"),
    "role is unknown": ((*INPUT, "role"), "bias", "tensors.input: role is 'bias'"),
}


@pytest.mark.parametrize(("path", "value", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_record_is_refused_by_key(path: tuple[str, ...], value: Any, message: str) -> None:
    plain = json.loads(example().to_json())
    place = plain
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(CalibrationError) as caught:
        CalibrationRecord.from_json(json.dumps(plain))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["data_digest", "tensors", "schema"])
def test_a_missing_key_is_named(key: str) -> None:
    plain = json.loads(example().to_json())
    del plain[key]
    with pytest.raises(CalibrationError, match=f"record: key {key} is missing"):
        CalibrationRecord.from_json(json.dumps(plain))


TEXTS = {
    "nothing": ("", "not readable as JSON"),
    "a list": ("[]", "want a JSON object, got a list"),
    "a bomb of brackets": ("[" * 100_000, "not readable as JSON"),
    "NaN": ('{"schema": NaN}', "NaN is not a finite number"),
    "an overflowing float": ('{"schema": 1e999}', "unknown|missing"),
    "a doubled key": ('{"schema": 1, "schema": 1}', "key schema stands twice"),
    "a name with a line break": ('{"a\\nb": 1}', r"unknown key 'a\\nb'"),
}


@pytest.mark.parametrize(("text", "message"), TEXTS.values(), ids=TEXTS.keys())
def test_text_that_is_no_record_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message) as caught:
        CalibrationRecord.from_json(text)
    assert "\n" not in str(caught.value)


def test_an_infinite_scale_is_refused_however_it_is_spelled() -> None:
    text = json.dumps(json.loads(example().to_json())).replace("2.64", "1e999", 1)
    with pytest.raises(CalibrationError, match=r"tensors\.input\.amax: a number is not finite"):
        CalibrationRecord.from_json(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
KEYS = st.sampled_from(sorted(json.loads(example().to_json())["tensors"]["input"]))


@given(KEYS, JSON)
def test_a_mangled_value_gives_a_record_or_a_calibration_error(key: str, value: Any) -> None:
    plain = json.loads(example().to_json())
    plain["tensors"]["input"][key] = value
    record = None
    with suppress(CalibrationError):
        record = CalibrationRecord.from_json(json.dumps(plain))
    if record is not None:
        assert CalibrationRecord.from_json(record.to_json()) == record


FRESH = {"model_digest": "sha256:m", "data_digest": "sha256:d", "scheme": "w4a8", "target": "rtx"}


def test_a_record_for_the_same_build_is_not_stale() -> None:
    assert staleness(example(), **FRESH) is None


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("model_digest", "the network changed from sha256:m to new"),
        ("data_digest", "the calibration images changed from sha256:d to new"),
        ("scheme", "the scheme changed from w4a8 to new"),
        ("target", "the target changed from rtx to new"),
    ],
)
def test_a_stale_record_says_what_changed(key: str, words: str) -> None:
    assert staleness(example(), **{**FRESH, key: "new"}) == words


def test_every_change_is_named() -> None:
    changed = staleness(example(), model_digest="a", data_digest="", scheme="w4a8", target="trt")
    assert changed is not None
    assert changed.count("changed") == 3
    assert "images changed from sha256:d to none" in changed


def test_half_of_a_surrogate_pair_is_no_name_in_a_record_or_its_file() -> None:
    tensor = example().tensors["input"]
    with pytest.raises(CalibrationError, match=r"tensor name 'a\\ud800' is not valid Unicode\."):
        record_of(**{"a\ud800": tensor})
    escaped = example().to_json().replace('"input"', r'"\udfff"')
    with pytest.raises(CalibrationError, match=r"tensor name '\\udfff' is not valid Unicode\."):
        CalibrationRecord.from_json(escaped)
