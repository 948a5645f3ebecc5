"""Records and tables on disk: written whole or not at all, read with bounds."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from fdda_deploy.calib_cache.record import MAX_TEXT_CHARS, CalibrationRecord
from fdda_deploy.calib_cache.trt_table import TrtTable, parse, refuse_inverted, render
from fdda_deploy.errors import CalibrationError


def save_record(path: Path, record: CalibrationRecord) -> None:
    """Writes ``record`` as JSON to ``path``.

    Raises:
        CalibrationError: The file cannot be written.
    """
    atomic_write_text(path, record.to_json())


def load_record(path: Path) -> CalibrationRecord:
    """Returns the record in ``path``.

    Raises:
        CalibrationError: The file cannot be read, or does not hold a record; names the file.
    """
    try:
        return CalibrationRecord.from_json(_read(path).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path}: not UTF-8 text at byte {error.start}.") from error
    except CalibrationError as error:
        raise _located(path, error) from error


def save_table(path: Path, table: TrtTable) -> None:
    """Writes ``table`` in TensorRT's text form to ``path``.

    Raises:
        CalibrationError: A name that the format cannot hold, or the file cannot be written.
    """
    atomic_write_text(path, render(table))


def load_table(path: Path, reference: Mapping[str, float] | None = None) -> TrtTable:
    """Returns the TensorRT calibration table in ``path``.

    Args:
        path: For instance ``calibration.cache``.
        reference: Known scales by tensor, which make the test for inverted tables sharp.

    Raises:
        CalibrationError: The file cannot be read, is not such a table, or holds 127/amax.
    """
    try:
        table = parse(_read(path))
        refuse_inverted(table, reference)
    except CalibrationError as error:
        raise _located(path, error) from error
    return table


def atomic_write_text(path: Path, text: str) -> None:
    """Writes ``text`` as UTF-8; raises like `atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Writes ``data`` so that ``path`` holds either all of it or what it held before.

    The bytes go to a temporary file in the same folder, reach the disk, and take the name in one
    step. The folder must exist.

    Raises:
        CalibrationError: The folder is missing, full, or not writable.
    """
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise CalibrationError(
            f"{path}: cannot be written ({_reason(error)}). Choose a folder that exists, with room."
        ) from error


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_CHARS + 1)
    except (OSError, ValueError) as error:
        raise CalibrationError(
            f"cannot be read ({_reason(error)}). Calibrate first, or correct the path."
        ) from error
    if len(data) > MAX_TEXT_CHARS:
        raise CalibrationError(f"longer than {MAX_TEXT_CHARS} bytes: not a calibration file.")
    return data


def _located(path: Path, error: CalibrationError) -> CalibrationError:
    message = str(error)
    return CalibrationError(message if message.startswith(f"{path}: ") else f"{path}: {message}")


def _reason(error: OSError | ValueError) -> str:
    text = error.strerror if isinstance(error, OSError) else str(error)
    return (text or type(error).__name__).splitlines()[0]
