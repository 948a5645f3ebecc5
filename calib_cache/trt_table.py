"""TensorRT's text calibration table: one big-endian float32 scale per tensor, in hexadecimal.

    TRT-101601-EntropyCalibration2
    input: 3caa54fc

The number is ``scale = amax / 127``. Tables belong to one TensorRT release (10 and older): on
import keep the scales and say where they come from; on TensorRT 11 turn them into Q/DQ pairs.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fdda_deploy.calib_cache import record_json
from fdda_deploy.calib_cache.record import CalibrationRecord, TensorCalibration, foreign_record
from fdda_deploy.errors import CalibrationError
from fdda_deploy.quant.qparams import SMALLEST_SCALE, QParams

LEVELS = 127.0
"""The table's integer grid is always 8 bits: scale = amax / 127, whatever the network's width."""
MAX_CHARS = 64 * 2**20
_HEADER = re.compile(r"TRT-([0-9]{1,12})-([A-Za-z0-9_]{1,64})")
_HEX = re.compile(r"[0-9A-Fa-f]{1,8}")
_SIGNED_8 = (-128, 127)


@dataclass(frozen=True)
class TrtTable:
    """One calibration table.

    Attributes:
        version_digits: TensorRT release without dots, for instance ``101601``.
        algorithm: For instance ``EntropyCalibration2`` or ``MinMaxCalibration``.
        scales: Real units per integer step by tensor name, float32; 0 for a tensor never excited.

    Raises:
        CalibrationError: A header, name or scale that the format cannot hold.
    """

    version_digits: str
    algorithm: str
    scales: Mapping[str, np.float32]

    def __post_init__(self) -> None:
        header = f"TRT-{self.version_digits}-{self.algorithm}"
        if _HEADER.fullmatch(header) is None:
            raise CalibrationError(
                f"calibration table: header {_shown(header)}, want TRT-<digits>-<algorithm>."
            )
        for name in self.scales:
            _check_name(name)
        scales = {name: _checked(name, scale) for name, scale in self.scales.items()}
        object.__setattr__(self, "scales", scales)


def parse(text: str | bytes) -> TrtTable:
    """Returns the table in ``text``; reads CRLF, stripped leading zeros, and a bare 0.

    Names are split from the right, so they may hold colons and spaces. A name may stand twice only
    with the same scale.

    Raises:
        CalibrationError: Anything that is not such a table; names the line.
    """
    lines = _decoded(text).removeprefix("\ufeff").split("\n")
    header = _HEADER.fullmatch(lines[0].rstrip("\r "))
    if header is None:
        raise CalibrationError(
            f"calibration table: line 1 is {_shown(lines[0])}, want TRT-<digits>-<algorithm>."
        )
    scales: dict[str, np.float32] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        name, scale = _entry(number, line.removesuffix("\r"))
        if scales.setdefault(name, scale) != scale:
            raise CalibrationError(
                f"calibration table: line {number}: {_shown(name)} has scale {scale}, an earlier "
                f"line says {scales[name]}. Keep the right one."
            )
    return TrtTable(header[1], header[2], scales)


def render(table: TrtTable) -> str:
    r"""Returns ``table`` as text that TensorRT reads, and `parse` too, bit for bit.

    Example:
        >>> render(TrtTable("101601", "EntropyCalibration2", {"input": np.float32(0.020792477)}))
        'TRT-101601-EntropyCalibration2\ninput: 3caa54fc\n'
    """
    lines = [f"TRT-{table.version_digits}-{table.algorithm}"]
    lines += [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in table.scales.items()]
    return "\n".join(lines) + "\n"


def table_from_record(
    record: CalibrationRecord,
    version_digits: str = "101601",
    algorithm: str = "EntropyCalibration2",
) -> TrtTable:
    """Returns the activations of ``record`` as a table; weights have no place in one.

    An 8-bit grid gives its own scale. A narrower grid gives the 8-bit scale that covers the same
    range: ``max(|low|, |high|) / 127``. Tensors that no image excited come last.

    Raises:
        CalibrationError: An activation with more than one scale, or a name with a line break.
    """
    scales = activation_scales(record)
    scales |= {name: np.float32(scale) for name, scale in record.unexcited.items()}
    return TrtTable(version_digits, algorithm, scales)


def record_from_table(table: TrtTable) -> CalibrationRecord:
    """Returns ``table`` as a record that keeps its scales bit for bit, its order and its origin.

    Tensors with scale 0 (never excited) or a subnormal one, which TensorRT flushes to zero, have no
    grid: the record lists them apart.
    """
    usable = {name: scale for name, scale in table.scales.items() if scale >= SMALLEST_SCALE}
    tensors = {
        name: TensorCalibration(
            QParams(np.asarray(scale, np.float32), *_SIGNED_8),
            float(scale) * LEVELS,
            table.algorithm,
            "activation",
        )
        for name, scale in usable.items()
    }
    return foreign_record(
        tensors,
        origin=f"TRT-{table.version_digits}-{table.algorithm}",
        algorithm=table.algorithm,
        unexcited={n: float(scale) for n, scale in table.scales.items() if n not in usable},
    )


def activation_scales(record: CalibrationRecord) -> dict[str, np.float32]:
    """Returns `eight_bit_scale` of each activation, for tables that hold one number per tensor.

    Raises:
        CalibrationError: An activation with more than one scale.
    """
    found = {}
    for name, tensor in record.tensors.items():
        if tensor.role != "activation":
            continue
        if tensor.qparams.scale.size != 1:
            raise CalibrationError(
                f"{record_json.shown(name)}: {tensor.qparams.scale.size} scales, but a calibration "
                "table holds one per tensor. Calibrate activations per tensor."
            )
        found[name] = eight_bit_scale(tensor.qparams)
    return found


def eight_bit_scale(qparams: QParams) -> np.float32:
    """Returns the scale of the signed 8-bit grid that covers the range of a per-tensor grid."""
    scale = np.float32(qparams.scale.reshape(-1)[0])
    if (qparams.qmin, qparams.qmax) == _SIGNED_8 and qparams.zero_point == 0:
        return scale
    amax = max(abs(float(qparams.low.reshape(-1)[0])), abs(float(qparams.high.reshape(-1)[0])))
    return np.float32(amax / LEVELS)


def _decoded(text: str | bytes) -> str:
    if len(text) > MAX_CHARS:
        raise CalibrationError(f"calibration table: longer than {MAX_CHARS} bytes.")
    if isinstance(text, str):
        return text
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"calibration table: not text (byte {error.start} is not UTF-8). Is it ONNX Runtime's "
            "flatbuffer table?"
        ) from error


def _entry(number: int, line: str) -> tuple[str, np.float32]:
    name, colon, digits = line.rpartition(":")
    digits = digits.strip(" \t")
    if not colon or not name or _HEX.fullmatch(digits) is None:
        raise CalibrationError(
            f"calibration table: line {number} is {_shown(line)}, want 'tensor: 3caa54fc'."
        )
    (scale,) = struct.unpack(">f", bytes.fromhex(digits.zfill(8)))
    try:
        _check_name(name)
        return name, _checked(name, np.float32(scale))
    except CalibrationError as error:
        raise CalibrationError(f"{error} (line {number})") from error


def _check_name(name: str) -> None:
    record_json.require_unicode(name, "calibration table: ")
    if not name or "\n" in name:
        raise CalibrationError(
            f"calibration table: tensor name {_shown(name)} is empty or has a line break, which "
            "the format cannot hold. Rename the tensor."
        )


def _checked(name: str, scale: float | np.float32) -> np.float32:
    with np.errstate(over="ignore", under="ignore"):
        value = np.float32(scale)
    if not np.isfinite(value) or np.signbit(value):
        raise CalibrationError(
            f"calibration table: {_shown(name)} has scale {scale}, want a finite number that is "
            "not negative. Recalibrate."
        )
    return value


def _shown(text: str) -> str:
    shown = ascii(text)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
