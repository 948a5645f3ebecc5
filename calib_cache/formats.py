"""Calibration files of any kind as a record and back; the content says which kind a file is."""

from __future__ import annotations

from fdda_deploy.calib_cache import modelopt_json, ort_table, record_json, trt_table
from fdda_deploy.calib_cache.record import CalibrationRecord
from fdda_deploy.errors import CalibrationError

FORMATS = {
    "record": "fdda-deploy calibration record",
    "trt": "TensorRT calibration table",
    "ort": "ONNX Runtime calibration table, flatbuffer",
    "ort-text": "ONNX Runtime calibration table, text",
    "ort-json": "ONNX Runtime calibration table, JSON",
    "json": "JSON table",
}
"""Each format that `read` knows, and what people call it."""

WRITTEN = ("trt", "ort", "ort-text", "json")
"""Formats that `write` knows; a record writes itself."""

MAX_BYTES = 64 * 2**20
"""A longer file is refused unread: the largest table seen is below a megabyte."""


def read(data: bytes) -> tuple[str, CalibrationRecord]:
    """Returns the format of a calibration file's bytes and what it holds.

    Raises:
        CalibrationError: None of `FORMATS`, or a damaged one; says what was taken for what.
    """
    if not data.strip():
        raise CalibrationError(f"the file is empty. {_wanted()}")
    if data[3:4] == b"\0":  # the root offset of a flatbuffer of less than 16 MB
        return "ort", ort_table.record_from_flatbuffer(data)
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"neither text nor a flatbuffer (byte {error.start} is not UTF-8). {_wanted()}"
        ) from error
    if text.startswith("TRT-"):
        return "trt", trt_table.record_from_table(trt_table.parse(text))
    if text.lstrip().startswith(("{", "[")):
        return _read_json(text)
    return "ort-text", ort_table.record_from_text(text)


def write(
    record: CalibrationRecord, form: str, version_digits: str = "", algorithm: str = ""
) -> bytes:
    """Returns the activations of ``record`` in another format; ``json`` has the weights too.

    Args:
        record: What to write.
        form: One of `WRITTEN`.
        version_digits: For ``trt``: the TensorRT release without dots, empty for that of the
            record's origin, or 101601.
        algorithm: For ``trt``: empty for that of the record's origin, or EntropyCalibration2.

    Raises:
        CalibrationError: An unknown format, or something that it cannot hold.
    """
    if form == "trt":
        old_digits, old_algorithm = _trt_origin(record.origin)
        table = trt_table.table_from_record(
            record, version_digits or old_digits, algorithm or old_algorithm
        )
        return trt_table.render(table).encode("utf-8")
    if form == "ort":
        return ort_table.flatbuffer_from_record(record)
    if form == "ort-text":
        return ort_table.text_from_record(record).encode("utf-8")
    if form == "json":
        return modelopt_json.json_from_record(record).encode("utf-8")
    raise CalibrationError(f"format {form!r}: want one of {', '.join(WRITTEN)}.")


def version_digits_of(version: str) -> str:
    """Returns a TensorRT release as a table's header has it, without dots.

    Raises:
        CalibrationError: Not a release.

    Example:
        >>> version_digits_of("10.16.1"), version_digits_of("8.6.1"), version_digits_of("101601")
        ('101601', '8601', '101601')
    """
    parts = version.split(".")
    if not all(part.isascii() and part.isdigit() and len(part) <= 6 for part in parts):
        raise CalibrationError(f"TensorRT version {version!r}: want a release such as 10.16.1.")
    if len(parts) == 1:
        return version
    major, minor, patch = (int(part) for part in [*parts, "0", "0"][:3])
    if major >= 10:
        return f"{major}{minor:02d}{patch:02d}"
    return f"{major}{minor}{patch:02d}"


def _read_json(text: str) -> tuple[str, CalibrationRecord]:
    plain = record_json.load(text)
    if {"schema", "tensors"} <= plain.keys():
        return "record", CalibrationRecord.from_json(text)
    entries = [entry for entry in plain.values() if isinstance(entry, dict)]
    if "CLS" in plain or any("CLS" in entry or "highest" in entry for entry in entries):
        return "ort-json", ort_table.record_from_json(plain)
    return "json", modelopt_json.record_from_plain(plain)


def _trt_origin(origin: str) -> tuple[str, str]:
    """Returns digits and algorithm of a record that came from a TensorRT table, else defaults."""
    parts = origin.split("-", 2)
    if len(parts) == 3 and parts[0] == "TRT":
        return parts[1], parts[2]
    return "101601", "EntropyCalibration2"


def _wanted() -> str:
    return (
        "Want a calibration table of TensorRT or ONNX Runtime, a JSON table, or calibration.json."
    )
