"""Compares plain JSON data with a tree of TypedDicts and names the first place that differs."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired

_NAMES = {str: "text", bool: "true or false", int: "an integer", float: "a finite number"}
_JSON: tuple[type, ...] = (str, bool, int, float, type(None))


@dataclass(frozen=True)
class Between:
    """A range that a number keeps, both ends included."""

    low: float
    high: float = math.inf

    def __str__(self) -> str:
        return f"{self.low} or more" if self.high == math.inf else f"{self.low} to {self.high}"


def problem_in(value: object, want: Any, path: str) -> str | None:
    """Returns one line on the first place where ``value`` is not a ``want``; None where it is.

    Args:
        value: What ``json.load`` could have given.
        want: A TypedDict, a plain type, ``list[X]``, ``dict[str, X]``, ``X | None``, ``Literal``,
            ``Annotated[X, Between(...)]``, or ``object`` for any JSON value.
        path: How the line calls ``value``, for instance ``report.bytes``.

    Example:
        >>> problem_in({"n": -1}, dict[str, Annotated[int, Between(0)]], "counts")
        'counts.n: got -1, wanted 0 or more.'
    """
    if typing.is_typeddict(want):
        return _in_record(value, want, path)
    if want is object:
        return _in_json(value, path)
    origin = typing.get_origin(want)
    return _BY_ORIGIN[origin](value, want, path) if origin else _in_plain(value, want, path)


def without_nonfinite(value: Any) -> Any:
    """Returns a copy of plain JSON data in which NaN and infinity are None: JSON has neither.

    Example:
        >>> without_nonfinite({"sqnr_db": [31.5, float("inf")]})
        {'sqnr_db': [31.5, None]}
    """
    if isinstance(value, dict):
        return {key: without_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nonfinite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _in_record(value: object, want: Any, path: str) -> str | None:
    if not isinstance(value, dict):
        return _line(path, value, "a table")
    # Resolved here, not read from __required_keys__: that misses NotRequired in postponed
    # annotations.
    for key, hint in typing.get_type_hints(want, include_extras=True).items():
        if key not in value:
            if typing.get_origin(hint) is NotRequired:
                continue
            return f"{path}.{key}: missing."
        problem = problem_in(value[key], hint, f"{path}.{key}")
        if problem is not None:
            return problem
    return None


def _in_range(value: object, want: Any, path: str) -> str | None:
    plain, limits = typing.get_args(want)
    problem = problem_in(value, plain, path)
    inside = not isinstance(value, int | float) or limits.low <= value <= limits.high
    return _line(path, value, str(limits)) if problem is None and not inside else problem


def _in_union(value: object, want: Any, path: str) -> str | None:
    choices = typing.get_args(want)
    if value is None and type(None) in choices:
        return None
    others = [choice for choice in choices if choice is not type(None)]
    problems = [problem_in(value, choice, path) for choice in others]
    if None in problems:
        return None
    if len(others) == 1:
        return problems[0]
    return _line(path, value, " or ".join(_NAMES.get(choice, str(choice)) for choice in others))


def _in_choices(value: object, want: Any, path: str) -> str | None:
    choices = typing.get_args(want)
    # 1 == True in Python, and not in JSON.
    good = any(value == choice and type(value) is type(choice) for choice in choices)
    return None if good else _line(path, value, " or ".join(map(repr, choices)))


def _in_wrapped(value: object, want: Any, path: str) -> str | None:
    return problem_in(value, typing.get_args(want)[0], path)


def _in_list(value: object, want: Any, path: str) -> str | None:
    if not isinstance(value, list):
        return _line(path, value, "a list")
    item = typing.get_args(want)[0]
    problems = (problem_in(each, item, f"{path}[{index}]") for index, each in enumerate(value))
    return next((problem for problem in problems if problem), None)


def _in_dict(value: object, want: Any, path: str) -> str | None:
    if not isinstance(value, dict):
        return _line(path, value, "a table")
    item = typing.get_args(want)[1]
    for key, each in value.items():
        if not isinstance(key, str):
            return _line(f"{path} key", key, "text")
        problem = problem_in(each, item, f"{path}.{key}")
        if problem is not None:
            return problem
    return None


def _in_json(value: object, path: str) -> str | None:
    if isinstance(value, dict):
        return _in_dict(value, dict[str, object], path)
    if isinstance(value, list):
        return _in_list(value, list[object], path)
    if not isinstance(value, _JSON):
        return _line(path, value, "something that JSON can hold")
    return _in_plain(value, float, path) if isinstance(value, float) else None


def _in_plain(value: object, want: type, path: str) -> str | None:
    if want is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        good = number and math.isfinite(typing.cast("float", value))
    else:
        good = type(value) is want
    return None if good else _line(path, value, _NAMES[want])


def _line(path: str, value: object, wanted: str) -> str:
    got = repr(value)
    return f"{path}: got {got if len(got) <= 60 else got[:57] + '...'}, wanted {wanted}."


_BY_ORIGIN: dict[Any, Callable[[object, Any, str], str | None]] = {
    Annotated: _in_range,
    NotRequired: _in_wrapped,
    Literal: _in_choices,
    list: _in_list,
    dict: _in_dict,
    types.UnionType: _in_union,
    typing.Union: _in_union,  # what X | None becomes when X is Annotated
}
"""How each kind of generic type is compared, by ``typing.get_origin``."""
