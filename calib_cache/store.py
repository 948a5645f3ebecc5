"""Records and tables on disk: written whole or not at all, read with bounds, of any format."""

from __future__ import annotations

from pathlib import Path

from fdda_deploy.calib_cache import formats
from fdda_deploy.calib_cache.inversion import refuse_inverted
from fdda_deploy.calib_cache.record import MAX_TEXT_CHARS, CalibrationRecord
from fdda_deploy.calib_cache.trt_table import TrtTable, parse
from fdda_deploy.durable import write_whole
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


def load_table(path: Path) -> TrtTable:
    """Returns the TensorRT calibration table in ``path``.

    Raises:
        CalibrationError: The file cannot be read, is not such a table, or holds 127/amax.
    """
    try:
        table = parse(_read(path))
        refuse_inverted({name: float(scale) for name, scale in table.scales.items()})
    except CalibrationError as error:
        raise _located(path, error) from error
    return table


def load_any(path: Path) -> tuple[str, CalibrationRecord]:
    """Returns the format of ``path``, one of `formats.FORMATS`, and what it holds, as a record.

    Whether a table is inverted is not looked at: `inversion` knows more where a graph is at hand.

    Raises:
        CalibrationError: The file cannot be read, or is none of the formats; names the file.
    """
    try:
        return formats.read(_read(path, formats.MAX_BYTES))
    except CalibrationError as error:
        raise _located(path, error) from error


def atomic_write_text(path: Path, text: str) -> None:
    """Writes ``text`` as UTF-8; raises like `atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Writes ``data`` so that ``path`` holds either all of it or what it held before.

    The folder must exist.

    Raises:
        CalibrationError: The folder is missing, full, or not writable.
    """
    try:
        write_whole(path, data)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise CalibrationError(
            f"{path}: cannot be written ({_reason(error)}). Choose a folder that exists, with room."
        ) from error


def _read(path: Path, limit: int = MAX_TEXT_CHARS) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise CalibrationError(
            f"cannot be read ({_reason(error)}). Calibrate first, or correct the path."
        ) from error
    if len(data) > limit:
        raise CalibrationError(f"longer than {limit} bytes: not a calibration file.")
    return data


def _located(path: Path, error: CalibrationError) -> CalibrationError:
    message = str(error)
    return CalibrationError(message if message.startswith(f"{path}: ") else f"{path}: {message}")


def _reason(error: OSError | ValueError) -> str:
    text = error.strerror if isinstance(error, OSError) else str(error)
    return (text or type(error).__name__).splitlines()[0]
