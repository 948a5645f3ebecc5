"""One value of the configuration: its type, its limits, and the sentence that refuses it."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fdda_deploy.errors import ConfigError

_SCALARS: dict[object, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a finite number",
    str: "a string",
}


MAX_INTEGER_BITS = 128
"""Twice what TOML asks of a reader: a longer integer is no setting, and takes long to print."""

UNPRINTABLE = "a number of thousands of digits"


class _MismatchError(Exception):
    """A value is of another kind; the caller says which was wanted."""


@dataclass(frozen=True)
class Setting:
    """One field of a section.

    Attributes:
        name: As in TOML.
        hint: The field's resolved type.
        limits: May hold ``choices``, ``pattern`` (with ``wanted``), ``minimum`` and ``maximum``.
    """

    name: str
    hint: object
    limits: Mapping[str, object]


def limited(default: object = dataclasses.MISSING, **limits: object) -> typing.Any:
    """Returns a dataclass field whose metadata holds ``limits``; see :class:`Setting`."""
    return dataclasses.field(default=default, metadata=limits)


def settings_of(section: type) -> dict[str, Setting]:
    """Returns the settings of a dataclass by name, in order."""
    hints = typing.get_type_hints(section)
    return {f.name: Setting(f.name, hints[f.name], f.metadata) for f in dataclasses.fields(section)}


def near(word: str, known: Iterable[str]) -> str:
    """Returns `` Did you mean 'x'?`` for the known name nearest to ``word``, or nothing.

    Example:
        >>> near("fda", ("fdda", "gdfq"))
        " Did you mean 'fdda'?"
    """
    matches = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.5)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def plain_name(name: str) -> str:
    """Returns a key for a message: as it is, or quoted and cut where it would break the line."""
    return name if re.fullmatch(r"[\w.-]{1,60}", name) else short(name)


def checked(setting: Setting, value: object, where: str) -> object:
    """Returns ``value`` in the type and within the limits of ``setting``.

    Args:
        setting: What is wanted.
        value: What the user gave, from TOML or from a flag.
        where: How the user named it, for instance ``--batch-size`` or ``a.toml: [run] batch_size``.

    Raises:
        ConfigError: Another type, or outside the limits.
    """
    hint = setting.hint
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and types.NoneType in options:
        return None
    (kind,) = [option for option in options if option is not types.NoneType]
    try:
        result = _cast(value, kind)
    except _MismatchError:
        raise ConfigError(f"{where}: got {shown(value)}, wanted {_wanted(kind)}.") from None
    except UnicodeEncodeError:
        raise ConfigError(f"{where}: {value!r} is not UTF-8. Rename the file or folder.") from None
    _check_limits(setting.limits, result, where)
    return result


def _cast(value: object, kind: object) -> object:
    """Returns ``value`` as ``kind``."""
    if typing.get_origin(kind) is dict:
        return _cast_table(value)
    if typing.get_origin(kind) is tuple:
        return _cast_tuple(value, typing.get_args(kind))
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 2**53 else math.inf  # larger ones are no measure
    if kind not in _SCALARS or type(value) is not kind:
        raise _MismatchError
    if isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
        raise _MismatchError
    if isinstance(value, float) and not math.isfinite(value):
        raise _MismatchError
    if isinstance(value, str):
        value.encode()  # what cannot be encoded cannot stand in the resolved TOML file
        if "\0" in value:
            raise _MismatchError
    return value


def _cast_tuple(value: object, kinds: tuple[object, ...]) -> tuple[object, ...]:
    """Returns a tuple. Text is split at commas and at ``x`` (224x320); one number is a square."""
    if isinstance(value, str):
        value = _numbers(value, kinds[0])
    if kinds == (int, int):
        value = [value] if type(value) is int else value
        value = value * 2 if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(value, list | tuple):
        raise _MismatchError
    if kinds[-1] is not Ellipsis and len(value) != len(kinds):
        raise _MismatchError
    return tuple(_cast(item, kinds[0]) for item in value)


def _numbers(text: str, kind: object) -> list[int | float]:
    convert = int if kind is int else float
    try:
        return [convert(part) for part in re.split(r"[,x]", text)]
    except ValueError:
        raise _MismatchError from None


def _cast_table(value: object) -> dict[object, object]:
    """Returns a flat table of scalars and of tuples of scalars."""
    if not isinstance(value, Mapping):
        raise _MismatchError
    return {
        _cast(key, str): tuple(_cast(part, type(part)) for part in item)
        if isinstance(item, list | tuple)
        else _cast(item, type(item))
        for key, item in value.items()
    }


def _check_limits(limits: Mapping[str, object], value: object, where: str) -> None:
    choices, pattern = limits.get("choices"), limits.get("pattern")
    if isinstance(choices, tuple) and value not in choices:
        known = ", ".join(choices)
        raise ConfigError(
            f"{where}: unknown {short(value)}.{near(str(value), choices)} Known: {known}."
        )
    if isinstance(pattern, str) and not re.fullmatch(pattern, str(value), re.DOTALL):
        raise ConfigError(f"{where}: got {shown(value)}, wanted {limits['wanted']}.")
    low, high = limits.get("minimum"), limits.get("maximum")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(low, int | float) and isinstance(number, int | float) and number < low:
            raise ConfigError(f"{where}: got {number}, wanted {low} or more.")
        if isinstance(high, int | float) and isinstance(number, int | float) and number > high:
            raise ConfigError(f"{where}: got {number}, wanted {high} or less.")


def shown(value: object) -> str:
    """Returns ``value`` with its kind, cut to a length that fits a line of a message."""
    kinds: dict[type, str] = {str: "the string ", dict: "the table ", list: "the list "}
    text = short(value)
    return text if text == UNPRINTABLE else kinds.get(type(value), "") + text


def short(value: object) -> str:
    """Returns ``value`` as Python writes it, cut to a length that fits a line of a message."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits; TOML's 0x can say one
        return UNPRINTABLE
    return text if len(text) <= 60 else text[:57] + "..."


def _wanted(kind: object) -> str:
    """Returns the kind of value in words, for instance ``a list of integers``."""
    if typing.get_origin(kind) is dict:
        return "a flat table of numbers, strings, booleans and lists of them"
    if typing.get_origin(kind) is not tuple:
        return _SCALARS[kind]
    first, last = typing.get_args(kind)
    if last is not Ellipsis:
        return "a size: 224, or 224x320 as height x width ([224, 320] in TOML)"
    return f"a list of {'integers' if first is int else 'finite numbers'}"


class Section:
    """One table of the configuration; checks its values when it is made."""

    def __post_init__(self) -> None:
        for name, setting in settings_of(type(self)).items():
            value = checked(setting, getattr(self, name), f"[{title_of(type(self))}] {name}")
            object.__setattr__(self, name, value)


def title_of(section: type[Section]) -> str:
    """Returns the name of a section's TOML table: ``run`` for :class:`RunConfig`."""
    return section.__name__.removesuffix("Config").lower()
