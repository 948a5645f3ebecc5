"""TensorRT's text table is read and written bit for bit, and its known damages are caught."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from fdda_deploy.calib_cache.record import CalibrationRecord, TensorCalibration
from fdda_deploy.calib_cache.trt_table import (
    TrtTable,
    parse,
    record_from_table,
    render,
    table_from_record,
)
from fdda_deploy.errors import CalibrationError
from fdda_deploy.quant.affine import qparams_from_amax
from fdda_deploy.quant.qparams import SMALLEST_SCALE, QParams

HEADER = "TRT-101601-EntropyCalibration2"
NAMES = st.text(min_size=1, max_size=20).filter(
    lambda name: "\n" not in name and not any("\ud800" <= letter <= "\udfff" for letter in name)
)
FLOATS = st.floats(0, float(np.finfo(np.float32).max), width=32).map(lambda x: np.float32(abs(x)))
TABLES = st.builds(
    TrtTable,
    st.from_regex(r"[0-9]{1,12}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9_]{1,64}", fullmatch=True),
    st.dictionaries(NAMES, FLOATS, max_size=6),
)


def table(**scales: float) -> TrtTable:
    return TrtTable("101601", "EntropyCalibration2", {k: np.float32(v) for k, v in scales.items()})


def test_nvidias_example_reads_as_documented() -> None:
    scale = parse(f"{HEADER}\ninput: 3caa54fc\n").scales["input"]
    assert float(scale) == pytest.approx(0.0207925, abs=5e-8)
    assert float(scale) * 127 == pytest.approx(2.6406, abs=5e-5)


@given(TABLES)
@example(TrtTable("1", "A", {"a: b\r :": np.float32(1e-45), " ": np.float32(0)}))
def test_a_table_read_back_is_the_same_bit_for_bit(original: TrtTable) -> None:
    again = parse(render(original))
    assert again == original
    assert list(again.scales) == list(original.scales)
    for name, scale in original.scales.items():
        assert again.scales[name].tobytes() == scale.tobytes()
    assert render(again) == render(original)


@given(TABLES)
def test_windows_line_ends_and_bytes_read_the_same(original: TrtTable) -> None:
    assume(not any(name.startswith("\ufeff") for name in original.scales))
    text = render(original).replace("\n", "\r\n")
    assert parse(text) == parse(text.encode()) == original


@given(FLOATS)
def test_stripped_leading_zeros_and_capitals_read_the_same(scale: np.float32) -> None:
    digits = np.float32(scale).view(np.uint32).item()
    for text in (f"{digits:x}", f"{digits:X}", f"{digits:08x}"):
        assert parse(f"{HEADER}\nt: {text}").scales["t"].tobytes() == scale.tobytes()


def test_a_bare_zero_is_a_tensor_that_was_never_excited() -> None:
    read = parse(f"{HEADER}\ndead: 0\nalive: 3caa54fc\n")
    assert read.scales["dead"] == 0
    found = record_from_table(read)
    assert (list(found.tensors), found.unexcited) == (["alive"], {"dead": 0.0})


@pytest.mark.parametrize("name", ["a:b", "a: b", "(Unnamed Layer* 3) [Conv]_output", "x:0", ": "])
def test_names_with_colons_and_spaces_split_from_the_right(name: str) -> None:
    assert list(parse(f"{HEADER}\n{name}: 3f800000\n").scales) == [name]


WRONG = {
    "empty": ("", "line 1 is '', want TRT-<digits>-<algorithm>"),
    "no digits": ("TRT-x-Entropy\n", "line 1 is 'TRT-x-Entropy'"),
    "another tool's header": ("TRT-8601\n", "line 1 is 'TRT-8601'"),
    "no colon": (f"{HEADER}\ninput 3f800000\n", "line 2 is 'input 3f800000'"),
    "no name": (f"{HEADER}\n: 3f800000\n", "line 2 is ': 3f800000'"),
    "nine digits": (f"{HEADER}\nt: 03f800000\n", "line 2 is"),
    "decimal": (f"{HEADER}\nt: 0.02\n", "line 2 is"),
    "hexadecimal prefix": (f"{HEADER}\nt: 0x3f8000\n", "line 2 is"),
    "not a number": (f"{HEADER}\nt: 7fc00000\n", r"'t' has scale nan.*\(line 2\)"),
    "infinite": (f"{HEADER}\n\nt: 7f800000\n", r"'t' has scale inf.*\(line 3\)"),
    "negative": (f"{HEADER}\nt: bf800000\n", "'t' has scale -1.0"),
    "two scales": (f"{HEADER}\nt: 3f800000\nt: 3f800001\n", "line 3: 't' has scale 1.0000001"),
    "flatbuffer": (b"\x10\x00\x00\x00\xff\xfe", "ONNX Runtime's flatbuffer"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_damaged_table_is_refused_by_line(text: str | bytes, message: str) -> None:
    with pytest.raises(CalibrationError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.fuzz
@given(st.text() | st.binary() | st.text().map(lambda rest: f"{HEADER}\n{rest}"))
@example(f"{HEADER}\n\ud800: 0")
def test_wild_text_gives_a_table_or_a_calibration_error(text: str | bytes) -> None:
    read = None
    with suppress(CalibrationError):
        read = parse(text)
    if read is not None:
        assert parse(render(read)) == read


@given(TABLES, st.data())
def test_a_doubled_line_is_harmless_only_with_the_same_scale(
    original: TrtTable, data: st.DataObject
) -> None:
    assume(original.scales)
    name = data.draw(st.sampled_from(sorted(original.scales)))
    scale = data.draw(FLOATS)
    text = f"{render(original)}{name}: {scale.view(np.uint32).item():08x}\n"
    if scale == original.scales[name]:
        assert parse(text) == original
    else:
        with pytest.raises(CalibrationError, match=r"an earlier line says"):
            parse(text)


@pytest.mark.parametrize("name", ["", "a\nb", "\ud800"], ids=["empty", "line break", "surrogate"])
def test_a_name_that_the_format_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(CalibrationError, match="calibration table: tensor name"):
        table(**{name: 1.0})


@pytest.mark.parametrize("scale", [-1.0, float("nan"), 1e300])
def test_a_scale_that_the_format_cannot_hold_is_refused(scale: float) -> None:
    with pytest.raises(CalibrationError, match="'t' has scale"):
        TrtTable("1", "A", {"t": scale})  # type: ignore[dict-item]  # a user's float, unconverted


def record(**tensors: TensorCalibration) -> CalibrationRecord:
    return CalibrationRecord(tensors, "m", "d", "w4a8", "rtx", "mse", "0.1.0")


def activation(qparams: QParams) -> TensorCalibration:
    return TensorCalibration(qparams, 1.0, "mse", "activation")


@given(st.floats(2.0**-100, 2.0**100, width=32))
def test_an_8_bit_grid_writes_its_own_scale(amax: float) -> None:
    qparams = qparams_from_amax(amax)
    made = table_from_record(record(t=activation(qparams)))
    assert made.scales["t"].tobytes() == qparams.scale.tobytes()
    assert float(made.scales["t"]) == pytest.approx(amax / 127, rel=1e-6)


@pytest.mark.parametrize(
    ("qmin", "qmax", "zero_point", "amax"),
    [(-8, 7, 0, 8.0), (0, 15, 0, 15.0), (-128, 127, -128, 255.0), (-4, 11, 0, 11.0)],
    ids=["signed 4-bit", "4-bit behind Relu", "asymmetric 8-bit", "shifted 4-bit"],
)
def test_another_grid_writes_the_8_bit_scale_of_its_range(
    qmin: int, qmax: int, zero_point: int, amax: float
) -> None:
    qparams = QParams(np.float32(0.5), qmin, qmax, zero_point=zero_point)
    made = table_from_record(record(t=activation(qparams)), "8601", "MinMaxCalibration")
    assert made.scales["t"] == np.float32(0.5 * amax / 127)
    assert render(made).startswith("TRT-8601-MinMaxCalibration\n")


def test_weights_have_no_place_in_a_table() -> None:
    weight = TensorCalibration(QParams(np.float32([1, 2]), -8, 7, axis=0), 1.0, "mse", "weight")
    made = table_from_record(record(w=weight, t=activation(qparams_from_amax(1.0))))
    assert list(made.scales) == ["t"]


def test_an_activation_with_two_scales_is_refused() -> None:
    per_channel = activation(QParams(np.float32([1, 2]), -128, 127, axis=0))
    with pytest.raises(CalibrationError, match=r"t: 2 scales, .* one per tensor"):
        table_from_record(record(t=per_channel))


@given(TABLES)
def test_a_table_that_went_through_a_record_and_its_json_is_the_same_bit_for_bit(
    original: TrtTable,
) -> None:
    kept = CalibrationRecord.from_json(record_from_table(original).to_json())
    again = table_from_record(kept, original.version_digits, original.algorithm)
    assert again == original
    assert kept.origin == f"TRT-{original.version_digits}-{original.algorithm}"
    for name, scale in original.scales.items():
        assert again.scales[name].tobytes() == scale.tobytes()


@given(TABLES)
def test_the_order_stays_but_for_tensors_that_no_image_excited(original: TrtTable) -> None:
    idle = [name for name, scale in original.scales.items() if scale < SMALLEST_SCALE]
    rest = [name for name in original.scales if name not in idle]
    kept = CalibrationRecord.from_json(record_from_table(original).to_json())
    assert list(table_from_record(kept).scales) == [*rest, *idle]
