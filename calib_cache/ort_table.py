"""ONNX Runtime's calibration table in its three forms: flatbuffer, plain text, JSON.

``onnxruntime.quantization.write_calibration_table`` writes all three: flatbuffer and text hold one
decimal number per tensor, JSON the lowest and the highest value. The number is **amax in real
units**, not a scale, so ``scale = amax / 127`` here, in double precision: a float32 scale times 127
is exact there, which is what makes round trips exact.

The number is the tensor's highest value. It is amax where calibration was symmetric; of a tensor
with a longer negative side the JSON form alone knows, so prefer it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fdda_deploy.calib_cache import record_json
from fdda_deploy.calib_cache.flatbuffer import parse_pairs, render_pairs
from fdda_deploy.calib_cache.record import (
    CalibrationRecord,
    TensorCalibration,
    foreign_record,
)
from fdda_deploy.calib_cache.trt_table import LEVELS, activation_scales
from fdda_deploy.errors import CalibrationError
from fdda_deploy.quant.qparams import SMALLEST_SCALE, QParams

ORIGIN = "onnxruntime"
_DECIMAL = re.compile(r"[+-]?(\d{1,400}(\.\d{0,400})?|\.\d{1,400})([eE][+-]?\d{1,4})?")
_NUMPY, _TENSORS = "numpy.array", "TensorsData"


def record_from_flatbuffer(data: bytes) -> CalibrationRecord:
    """Returns the flatbuffer table in ``data`` as a record.

    Raises:
        CalibrationError: Not such a file, or a value that is no range.
    """
    return _record(parse_pairs(data), "flatbuffer")


def record_from_text(text: str) -> CalibrationRecord:
    """Returns the plain table in ``text``, lines of ``name amax``, as a record.

    Raises:
        CalibrationError: A line of another form, by its number; a value that is no range.
    """
    pairs = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        if not line.strip():
            continue
        name, _, value = line.rstrip("\r ").rpartition(" ")
        if not name or _DECIMAL.fullmatch(value) is None:
            raise CalibrationError(
                f"calibration table: line {number} is {record_json.shown(ascii(line))}, want "
                "'tensor 2.64' as ONNX Runtime writes it, or TRT-<digits>-<algorithm> first."
            )
        pairs.append((name, value))
    return _record(pairs, "text")


def record_from_json(plain: Mapping[str, Any]) -> CalibrationRecord:
    """Returns ONNX Runtime's JSON table, parsed, as a record; amax = max(|lowest|, |highest|).

    Reads both what ``write_calibration_table`` and what ``save_tensors_data`` write. Of several
    values (one a channel) the widest counts, because an activation has one scale.

    Raises:
        CalibrationError: A tensor without a range, or with one that is no number.
    """
    method = ""
    if plain.get("CLS") == _TENSORS:
        method = _method(plain.get("calibration_method"))
        plain = plain.get("data", {})
    if not isinstance(plain, dict):
        raise CalibrationError(
            "calibration table: data: want an object of tensors. Write it again."
        )
    record_json.check_names(plain, "calibration table")
    return record_from_amax(
        {name: _amax_of(name, entry) for name, entry in plain.items()}, "json", method
    )


def record_from_amax(
    amax_by_tensor: Mapping[str, float], form: str, algorithm: str = ""
) -> CalibrationRecord:
    """Returns a record of signed 8-bit grids, one per tensor: ``scale = amax / 127``.

    Args:
        amax_by_tensor: In real units.
        form: Which of the three forms it came from, for the record's origin.
        algorithm: How it was found, if known.

    Raises:
        CalibrationError: A value that is negative, not finite, or too large for float32.
    """
    tensors: dict[str, TensorCalibration] = {}
    unexcited: dict[str, float] = {}
    for name, amax in amax_by_tensor.items():
        scale = _scale(name, amax)
        if scale < SMALLEST_SCALE:
            unexcited[name] = float(scale)
            continue
        qparams = QParams(np.asarray(scale, np.float32), -128, 127)
        tensors[name] = TensorCalibration(qparams, amax, algorithm, "activation")
    origin = f"{ORIGIN} ({form})"
    return foreign_record(tensors, origin=origin, algorithm=algorithm, unexcited=unexcited)


def flatbuffer_from_record(record: CalibrationRecord) -> bytes:
    """Returns the activations of ``record`` as the flatbuffer that ONNX Runtime reads.

    Raises:
        CalibrationError: An activation with more than one scale.
    """
    return render_pairs((name, repr(amax)) for name, amax in _amax_from_record(record).items())


def text_from_record(record: CalibrationRecord) -> str:
    """Returns the activations of ``record`` as lines of ``name amax``.

    Raises:
        CalibrationError: An activation with more than one scale, or a name with a line break.
    """
    lines = []
    for name, amax in _amax_from_record(record).items():
        if not name or "\n" in name:
            raise CalibrationError(
                f"calibration table: tensor name {name!a} is empty or has a line break, which "
                "a text table cannot hold. Export --format ort instead."
            )
        lines.append(f"{name} {amax!r}\n")
    return "".join(lines)


def _amax_from_record(record: CalibrationRecord) -> dict[str, float]:
    """Returns amax by tensor such that ``amax / 127`` is the 8-bit scale, bit for bit."""
    found = {}
    for name, scale in activation_scales(record).items():
        amax = record.tensors[name].amax
        exact = isinstance(amax, float) and _scale(name, amax) == scale
        found[name] = float(amax) if exact and isinstance(amax, float) else float(scale) * LEVELS
    return found | {name: float(scale) * LEVELS for name, scale in record.unexcited.items()}


def _record(pairs: Iterable[tuple[str, str]], form: str) -> CalibrationRecord:
    found: dict[str, float] = {}
    for name, text in pairs:
        if _DECIMAL.fullmatch(text) is None:
            raise CalibrationError(
                f"calibration table: {record_json.shown(name)} has {record_json.shown(text)!r}, "
                "want a finite decimal number. Write the table again."
            )
        value = float(text)
        if found.setdefault(name, value) != value:
            raise CalibrationError(
                f"calibration table: {record_json.shown(name)} has both {found[name]!r} and "
                f"{value!r}. Keep the right one."
            )
    record_json.check_names(found, "calibration table")
    return record_from_amax(found, form)


def _scale(name: str, amax: float) -> np.float32:
    with np.errstate(over="ignore", under="ignore"):
        scale = np.float32(np.float64(amax) / LEVELS)
    if not np.isfinite(scale) or np.signbit(scale):
        raise CalibrationError(
            f"calibration table: {record_json.shown(name)} has range {amax!r}, want a finite "
            "number that is not negative. Calibrate with symmetric ranges and write it again."
        )
    return scale


def _amax_of(name: str, entry: object) -> float:
    where = f"calibration table: {record_json.shown(name)}"
    if not isinstance(entry, dict) or not {"lowest", "highest"} <= entry.keys():
        raise CalibrationError(
            f"{where}: want an object with lowest and highest. Write the table again with ONNX "
            "Runtime's calibrator."
        )
    ends = [_unwrapped(entry[key]) for key in ("lowest", "highest")]
    arrays = [record_json.float64_array({"range": end}, "range", where) for end in ends]
    return max(float(np.abs(values).max()) for values in arrays)


def _unwrapped(value: object) -> object:
    """Returns the numbers of ``{"CLS": "numpy.array", "data": ...}``, or the value itself."""
    wrapped = isinstance(value, dict) and value.get("CLS") == _NUMPY
    return value.get("data") if wrapped and isinstance(value, dict) else value


def _method(value: object) -> str:
    text = value.get("value") if isinstance(value, dict) else value
    return text.rsplit(".", 1)[-1][: record_json.MAX_TEXT] if isinstance(text, str) else ""
