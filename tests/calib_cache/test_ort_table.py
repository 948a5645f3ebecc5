"""ONNX Runtime's three forms are read as it writes them, and ours are read by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fdda_deploy.calib_cache import formats
from fdda_deploy.calib_cache.flatbuffer import parse_pairs
from fdda_deploy.calib_cache.ort_table import (
    flatbuffer_from_record,
    record_from_amax,
    record_from_flatbuffer,
    record_from_json,
    record_from_text,
    text_from_record,
)
from fdda_deploy.calib_cache.record import CalibrationRecord, TensorCalibration
from fdda_deploy.errors import CalibrationError
from fdda_deploy.quant.qparams import QParams

TEXT = st.text(min_size=1, max_size=20).filter(
    lambda name: not any("\ud800" <= letter <= "\udfff" for letter in name)
)
AMAX = st.floats(0, 1e38)
RANGES = {"input": (-2.5, 2.0), "relu": (0.0, 3.25)}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what ONNX Runtime's own writers make of `RANGES`."""
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    utilities = pytest.importorskip("onnxruntime.quantization.quant_utils")
    pytest.importorskip("flatbuffers")
    folder = tmp_path_factory.mktemp("ort")
    data = {
        name: calibrate.TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in RANGES.items()
    }
    utilities.write_calibration_table(data, str(folder))
    if hasattr(calibrate, "save_tensors_data"):
        tensors = calibrate.TensorsData(calibrate.CalibrationMethod.Entropy, data)
        calibrate.save_tensors_data(tensors, folder / "saved.json")
    return folder


@pytest.mark.parametrize(
    ("file", "form"),
    [("calibration.flatbuffers", "ort"), ("calibration.cache", "ort-text")],
    ids=["flatbuffer", "text"],
)
def test_what_onnx_runtime_writes_holds_the_highest_values(
    written: Path, file: str, form: str
) -> None:
    found, record = formats.read((written / file).read_bytes())
    assert found == form
    assert {name: tensor.amax for name, tensor in record.tensors.items()} == {
        "input": 2.0,
        "relu": 3.25,
    }
    assert record.origin.startswith("onnxruntime (")


@pytest.mark.parametrize("file", ["calibration.json", "saved.json"])
def test_its_json_holds_both_ends_so_the_negative_one_counts(written: Path, file: str) -> None:
    if not (written / file).exists():
        pytest.skip("this ONNX Runtime has no save_tensors_data")
    found, record = formats.read((written / file).read_bytes())
    assert found == "ort-json"
    assert record.tensors["input"].amax == 2.5
    assert record.tensors["input"].qparams.scale == np.float32(2.5 / 127)
    assert record.algorithm == ("Entropy" if file == "saved.json" else "")


def test_onnx_runtime_reads_our_flatbuffer() -> None:
    reader = pytest.importorskip("onnxruntime.quantization.CalTableFlatBuffers.TrtTable")
    names = ["input", "ä/Relu:0", "x" * 50]
    data = flatbuffer_from_record(record_from_amax(dict.fromkeys(names, 2.5), "test"))
    table = reader.TrtTable.GetRootAs(data, 0)
    pairs = [(table.Dict(i).Key(), table.Dict(i).Value()) for i in range(table.DictLength())]
    assert pairs == [(name.encode(), b"2.5") for name in names]


@given(st.dictionaries(TEXT, AMAX, max_size=8))
@example({"tiny": 1e-45, "zero": 0.0})
def test_a_flatbuffer_read_back_has_the_same_scales_bit_for_bit(amax: dict[str, float]) -> None:
    record = record_from_amax(amax, "flatbuffer")
    again = record_from_flatbuffer(flatbuffer_from_record(record))
    assert again == record
    assert [*again.tensors, *again.unexcited] == [*record.tensors, *record.unexcited]


@given(st.dictionaries(TEXT.filter(lambda name: "\n" not in name and name.strip()), AMAX))
def test_a_text_table_read_back_has_the_same_scales_bit_for_bit(amax: dict[str, float]) -> None:
    names_kept = {n: v for n, v in amax.items() if not n.startswith("\ufeff")}
    record = record_from_amax(names_kept, "text")
    assert record_from_text(text_from_record(record)) == record


SCALES = st.floats(2.0**-126, 2.0**126, width=32)


@given(st.dictionaries(TEXT, SCALES, max_size=6))
def test_any_float32_scale_survives_as_a_decimal_range(scales: dict[str, float]) -> None:
    tensors = {
        name: TensorCalibration(QParams(np.float32(scale), -128, 127), 0.1, "mse", "activation")
        for name, scale in scales.items()
    }
    record = CalibrationRecord(tensors, "m", "d", "w8a8", "trt", "mse", "0.1.0")
    again = record_from_flatbuffer(flatbuffer_from_record(record))
    for name, scale in scales.items():
        assert again.tensors[name].qparams.scale.tobytes() == np.float32(scale).tobytes()


def test_the_range_of_a_narrow_grid_is_written_as_8_bits_cover_it() -> None:
    grid = QParams(np.float32(0.5), 0, 15)
    tensors = {"t": TensorCalibration(grid, 7.5, "mse", "activation")}
    record = CalibrationRecord(tensors, "m", "d", "w4a4", "trt", "mse", "0.1.0")
    ((_, value),) = parse_pairs(flatbuffer_from_record(record))
    assert float(value) == 7.5


WRONG_TEXT = {
    "no number": ("input\n", "line 1 is"),
    "not a number": ("a 1.5\nb nan\n", "line 2 is"),
    "hexadecimal": ("input: 3caa54fc\n", "line 1 is"),
    "infinite": ("t 1e400\n", "t has range inf"),
    "too large for float32": ("t 1e42\n", "t has range 1e[+]42"),
    "negative": ("t -0.5\n", "t has range -0.5, .* symmetric"),
    "two values": ("t 1.0\nt 2.0\n", "t has both 1.0 and 2.0"),
}


@pytest.mark.parametrize(("text", "message"), WRONG_TEXT.values(), ids=WRONG_TEXT.keys())
def test_a_wrong_text_table_is_refused(text: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message) as caught:
        record_from_text(text)
    assert "\n" not in str(caught.value)


WRONG_JSON = {
    "no range": ({"t": {"CLS": "TensorData"}}, "t: want an object with lowest and highest"),
    "a number": ({"t": 1.0, "CLS": "x"}, "want an object with lowest and highest"),
    "a text": ({"t": {"lowest": "0", "highest": 1}}, "t.range: want a number, got a text"),
    "wrapped nothing": (
        {"t": {"lowest": {"CLS": "numpy.array"}, "highest": 1}},
        "t.range: want a number, got null",
    ),
    "data is a list": ({"CLS": "TensorsData", "data": []}, "data: want an object of tensors"),
}


@pytest.mark.parametrize(("plain", "message"), WRONG_JSON.values(), ids=WRONG_JSON.keys())
def test_a_wrong_json_table_is_refused(plain: dict[str, object], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        record_from_json(plain)


def test_of_several_channels_the_widest_counts() -> None:
    ends = {"lowest": {"CLS": "numpy.array", "data": [-4.0, -1.0]}, "highest": [[3.0], [2.0]]}
    assert record_from_json({"t": ends}).tensors["t"].amax == 4.0


def test_an_activation_per_channel_has_no_place_in_a_table() -> None:
    grid = QParams(np.float32([1, 2]), -128, 127, axis=0)
    tensors = {"t": TensorCalibration(grid, 1.0, "mse", "activation")}
    record = CalibrationRecord(tensors, "m", "d", "w8a8", "trt", "mse", "0.1.0")
    with pytest.raises(CalibrationError, match=r"t: 2 scales, .* one per tensor"):
        flatbuffer_from_record(record)


def test_a_line_break_in_a_name_fits_the_flatbuffer_alone() -> None:
    record = record_from_amax({"a\nb": 1.0}, "flatbuffer")
    assert record_from_flatbuffer(flatbuffer_from_record(record)) == record
    with pytest.raises(CalibrationError, match="Export --format ort instead"):
        text_from_record(record)
