"""Strict reading of a calibration record's JSON: every refusal names the key."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from fdda_deploy.errors import CalibrationError
from fdda_deploy.quant.qparams import FloatArray

RECORD_TEXTS = (
    "model_digest",
    "data_digest",
    "scheme",
    "target",
    "algorithm",
    "tool_version",
)
TENSOR_KEYS = {
    "role",
    "algorithm",
    "amax",
    "scale",
    "zero_point",
    "qmin",
    "qmax",
    "axis",
    "block_size",
}
MAX_TENSORS = 100_000
MAX_NUMBERS = 2**24
MAX_TEXT = 4096
MAX_DEPTH = 4
"""A blocked scale has the rank of its weight: at most four for a convolution."""


def load(text_: str) -> dict[str, Any]:
    """Returns the JSON object in ``text_``.

    Raises:
        CalibrationError: Not JSON, not an object, a doubled key, NaN or Infinity.
    """
    try:
        plain = json.loads(text_, object_pairs_hook=_no_doubles, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CalibrationError(
            f"calibration record: not readable as JSON ({reason}). Recalibrate."
        ) from error
    if not isinstance(plain, dict):
        raise CalibrationError(
            f"calibration record: want a JSON object, got {_kind(plain)}. Recalibrate."
        )
    return plain


def check_keys(plain: dict[str, Any], wanted: set[str], where: str) -> None:
    """Refuses missing and unknown keys.

    Raises:
        CalibrationError: Names the keys.
    """
    unknown = sorted(set(plain) - wanted)
    if unknown:
        raise CalibrationError(f"{where}: unknown key {shown(unknown[0])}. Recalibrate.")
    missing = sorted(wanted - set(plain))
    if missing:
        raise CalibrationError(f"{where}: key {missing[0]} is missing. Recalibrate.")


def text(plain: dict[str, Any], key: str, where: str = "record") -> str:
    """Returns a text of at most `MAX_TEXT` characters.

    Raises:
        CalibrationError: Another type, or longer.
    """
    value = plain[key]
    if not isinstance(value, str):
        raise CalibrationError(f"{where}.{key}: want a text, got {_kind(value)}.")
    if len(value) > MAX_TEXT:
        raise CalibrationError(f"{where}.{key}: {len(value)} characters, at most {MAX_TEXT}.")
    return value


def whole(plain: dict[str, Any], key: str, bounds: tuple[int, int], where: str = "record") -> int:
    """Returns a whole number within ``bounds``, both included.

    Raises:
        CalibrationError: Another type, or outside.
    """
    value = plain[key]
    if not isinstance(value, int) or isinstance(value, bool):
        raise CalibrationError(f"{where}.{key}: want a whole number, got {_kind(value)}.")
    if not bounds[0] <= value <= bounds[1]:
        raise CalibrationError(
            f"{where}.{key}: got {shown(str(value))}, want {bounds[0]} to {bounds[1]}."
        )
    return value


def optional_whole(
    plain: dict[str, Any], key: str, bounds: tuple[int, int], where: str
) -> int | None:
    """Returns a whole number or None; raises like `whole`."""
    return None if plain[key] is None else whole(plain, key, bounds, where)


def number_or_list(plain: dict[str, Any], key: str, where: str) -> float | tuple[float, ...]:
    """Returns one finite number, or a flat list of them.

    Raises:
        CalibrationError: Anything else.
    """
    value = plain[key]
    if isinstance(value, list):
        _check_count(len(value), f"{where}.{key}")
        return tuple(_number(entry, f"{where}.{key}") for entry in value)
    return _number(value, f"{where}.{key}")


def float32_array(plain: dict[str, Any], key: str, where: str) -> FloatArray:
    """Returns a number or nested lists of numbers as float32; shape as nested.

    Raises:
        CalibrationError: Ragged lists, other types, too deep, too many, or not finite as float32.
    """
    with np.errstate(over="ignore", under="ignore"):
        array = float64_array(plain, key, where).astype(np.float32)
    if not np.isfinite(array).all():
        raise CalibrationError(f"{where}.{key}: a number is too large for float32.")
    return array


def float64_array(plain: dict[str, Any], key: str, where: str) -> npt.NDArray[np.float64]:
    """Returns a number or nested lists of numbers; shape as nested.

    Raises:
        CalibrationError: Ragged lists, other types, too deep, too many, or not finite.
    """
    named = f"{where}.{key}"
    shape: list[int] = []
    flat: list[Any] = [plain[key]]
    while flat and isinstance(flat[0], list):
        if len(shape) == MAX_DEPTH:
            raise CalibrationError(f"{named}: lists nested deeper than {MAX_DEPTH}.")
        length = len(flat[0])
        if length == 0:
            raise CalibrationError(f"{named}: an empty list; want one number or more.")
        if any(not isinstance(entry, list) or len(entry) != length for entry in flat):
            raise CalibrationError(f"{named}: lists of different lengths; want a rectangle.")
        _check_count(len(flat) * length, named)
        shape.append(length)
        flat = [value for entry in flat for value in entry]
    values = [_number(value, named) for value in flat]
    return np.asarray(values, dtype=np.float64).reshape(shape)


def tensor_entries(plain: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Returns the pairs under ``tensors``, each value an object.

    Raises:
        CalibrationError: Not objects, too many, or a name that is too long.
    """
    tensors = plain["tensors"]
    if not isinstance(tensors, dict):
        raise CalibrationError(f"record.tensors: want an object, got {_kind(tensors)}.")
    check_names(tensors, "record.tensors")
    for name, entry in tensors.items():
        if not isinstance(entry, dict):
            raise CalibrationError(f"tensors.{shown(name)}: want an object, got {_kind(entry)}.")
    return list(tensors.items())


def numbers(plain: dict[str, Any], key: str) -> dict[str, float]:
    """Returns an object of finite numbers by tensor name.

    Raises:
        CalibrationError: Anything else, too many, or a name that is too long.
    """
    entries = plain[key]
    if not isinstance(entries, dict):
        raise CalibrationError(f"record.{key}: want an object, got {_kind(entries)}.")
    check_names(entries, f"record.{key}")
    return {name: _number(value, f"{key}.{shown(name)}") for name, value in entries.items()}


def check_names(names: Collection[str], where: str) -> None:
    """Refuses more names than any network has tensors, and names longer than any has.

    Raises:
        CalibrationError: Says which bound is broken.
    """
    if len(names) > MAX_TENSORS:
        raise CalibrationError(f"{where}: {len(names)} entries, at most {MAX_TENSORS}.")
    if any(len(name) > MAX_TEXT for name in names):
        raise CalibrationError(f"{where}: a name has more than {MAX_TEXT} characters.")


def shown(name: str) -> str:
    """Returns ``name`` as one line of at most 80 characters, for a message."""
    line = name if name.isprintable() else ascii(name)
    return line if len(line) <= 80 else f"{line[:77]}..."


def require_unicode(name: str, where: str = "") -> None:
    """Refuses a tensor name with half of a surrogate pair, which no ONNX file can hold.

    Args:
        name: Of a tensor.
        where: What the message begins with.

    Raises:
        CalibrationError: It has one.
    """
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CalibrationError(
            f"{where}tensor name {shown(name)} is not valid Unicode. Rename the tensor."
        ) from error


def _number(value: object, named: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise CalibrationError(f"{named}: want a number, got {_kind(value)}.")
    try:
        number = float(value)
    except OverflowError as error:
        raise CalibrationError(f"{named}: a number is too large.") from error
    if not math.isfinite(number):
        raise CalibrationError(f"{named}: a number is not finite.")
    return number


def _check_count(count: int, named: str) -> None:
    if count > MAX_NUMBERS:
        raise CalibrationError(f"{named}: {count} numbers, at most {MAX_NUMBERS}.")


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) != len(pairs):
        double = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {shown(double)} stands twice")
    return plain


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a finite number")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    if value is None:
        return "null"
    return names.get(type(value), "a number")
