"""The content tells the format; what one tool wrote another reads, scale for scale."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fdda_deploy.calib_cache import formats
from fdda_deploy.calib_cache.record import CalibrationRecord
from fdda_deploy.calib_cache.trt_table import TrtTable, record_from_table, render
from fdda_deploy.errors import CalibrationError
from fdda_deploy.quant.qparams import SMALLEST_SCALE

TABLE = TrtTable("8601", "MinMaxCalibration", {"input": np.float32(0.02), "b: c": np.float32(0.5)})
NAMES = st.text("abc/:._ ä0", min_size=1, max_size=12).filter(lambda name: name.strip() == name)
SCALES = st.floats(SMALLEST_SCALE, 2.0**119, width=32)


def test_each_format_is_told_by_its_content() -> None:
    record = record_from_table(TABLE)
    files = {form: formats.write(record, form) for form in formats.WRITTEN}
    files["record"] = record.to_json().encode()
    files["ort-json"] = b'{"t": {"lowest": -1.0, "highest": 2.0, "CLS": "TensorData"}}'
    assert {form: formats.read(data)[0] for form, data in files.items()} == {
        form: form for form in formats.FORMATS
    }


@given(st.dictionaries(NAMES, SCALES, min_size=1, max_size=6), st.sampled_from(formats.WRITTEN))
def test_scales_cross_every_format_bit_for_bit(scales: dict[str, float], form: str) -> None:
    table = TrtTable("101601", "X", {name: np.float32(s) for name, s in scales.items()})
    _, again = formats.read(formats.write(record_from_table(table), form))
    for name, scale in scales.items():
        assert again.tensors[name].qparams.scale.tobytes() == np.float32(scale).tobytes()
    back = formats.write(again, "trt", "101601", "X")
    assert back.decode() == render(table)


def test_a_table_keeps_its_release_and_algorithm_through_a_record() -> None:
    _, record = formats.read(record_from_table(TABLE).to_json().encode())
    assert record.origin == "TRT-8601-MinMaxCalibration"
    assert record.algorithm == "MinMaxCalibration"
    assert formats.write(record, "trt").startswith(b"TRT-8601-MinMaxCalibration\n")
    assert formats.write(record, "trt", "101601", "EntropyCalibration2").startswith(
        b"TRT-101601-EntropyCalibration2\n"
    )


def test_our_own_record_is_written_for_the_newest_release_that_reads_tables() -> None:
    own = CalibrationRecord({}, "m", "d", "w8a8", "rtx", "mse", "0.1.0")
    assert formats.write(own, "trt") == b"TRT-101601-EntropyCalibration2\n"


@pytest.mark.parametrize(
    ("version", "digits"),
    [
        *(("10.16.1", "101601"), ("10.13.3.9", "101303"), ("8.6.1", "8601")),
        *(("8.2.5", "8205"), ("7.0", "7000"), ("101601", "101601")),
    ],
)
def test_releases_become_the_digits_of_the_header(version: str, digits: str) -> None:
    assert formats.version_digits_of(version) == digits


@pytest.mark.parametrize("version", ["", "ten", "10..1", "10.x", "-1.2", "٣.1"])
def test_what_is_no_release_is_refused(version: str) -> None:
    with pytest.raises(CalibrationError, match=r"want a release such as 10\.16\.1"):
        formats.version_digits_of(version)


WRONG = {
    "empty": (b"", "the file is empty"),
    "blank": (b" \n\n", "the file is empty"),
    "binary": (b"\x89PNG\r\n\x1a\n", "neither text nor a flatbuffer"),
    "prose": (b"hello", "line 1 is 'hello'"),
    "a list": (b"[1, 2]", "want a JSON object"),
    "torn JSON": (b'{"input": {"amax": 2.', "not readable as JSON"),
    "half a header": (b"TRT-8601\ninput: 3caa54fc\n", "line 1 is 'TRT-8601'"),
    "UTF-16": ("TRT-8601-X\n".encode("utf-16-le"), "flatbuffer table: byte"),
    "deep JSON": (b'{"a":' * 5000, "not readable as JSON"),
}


@pytest.mark.parametrize(("data", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_no_calibration_is_refused_in_one_line(data: bytes, message: str) -> None:
    with pytest.raises(CalibrationError, match=message) as caught:
        formats.read(data)
    assert "\n" not in str(caught.value)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(CalibrationError, match="format 'npz': want one of trt, ort"):
        formats.write(record_from_table(TABLE), "npz")


STARTS = [b"TRT-8601-X\n", b"{", b'{"t":', b"\x10\0\0\0", b"a 1.5\n", b"\xef\xbb\xbfTRT-1-A\n"]


@pytest.mark.fuzz
@given(st.binary(max_size=80) | st.builds(bytes.__add__, st.sampled_from(STARTS), st.binary()))
@example(b'{"t": {"amax": ' + b"9" * 5000 + b"}}")
def test_wild_bytes_give_a_record_that_can_be_kept_or_a_calibration_error(data: bytes) -> None:
    with suppress(CalibrationError):
        form, record = formats.read(data)
        assert form in formats.FORMATS
        assert CalibrationRecord.from_json(record.to_json()) == record
