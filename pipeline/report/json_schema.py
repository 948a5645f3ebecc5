"""JSON Schema of what we write, made from the types that the code is checked against."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, NotRequired

from fdda_deploy.pipeline.report.checking import Between

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PLAIN: dict[Any, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
}
Schema = dict[str, Any]
Arguments = tuple[Any, ...]


def schema_of(want: Any, title: str) -> Schema:
    """Returns the JSON Schema (2020-12) that fits what ``want`` describes.

    Each record stands once under ``$defs``, with the first line of its docstring. Keys that are not
    named are allowed: a later version may add some.

    Args:
        want: A TypedDict or dataclass of plain types, lists, tables, unions, literals, other such
            records, and ``Annotated[X, Between(...)]``.
        title: What a reader calls the document.

    Example:
        >>> schema_of(list[Annotated[int, Between(0)]], "counts")["items"]
        {'type': 'integer', 'minimum': 0}
    """
    records: dict[str, Schema] = {}
    body = _of(want, records)
    found = {"$schema": DIALECT, "title": title, **body}
    return found | ({"$defs": dict(sorted(records.items()))} if records else {})


def _of(want: Any, records: dict[str, Schema]) -> Schema:
    if want is object:
        return {}
    if want in _PLAIN:
        return {"type": _PLAIN[want]}
    if typing.is_typeddict(want) or dataclasses.is_dataclass(want):
        return _record(want, records)
    return _BY_ORIGIN[typing.get_origin(want)](typing.get_args(want), records)


def _annotated(arguments: Arguments, records: dict[str, Schema]) -> Schema:
    limits: Between = arguments[1]
    bounds = {"minimum": limits.low, "maximum": limits.high}
    ends = {key: bound for key, bound in bounds.items() if not math.isinf(bound)}
    return _of(arguments[0], records) | ends


def _literal(arguments: Arguments, _records: dict[str, Schema]) -> Schema:
    return {"const": arguments[0]} if len(arguments) == 1 else {"enum": list(arguments)}


def _list(arguments: Arguments, records: dict[str, Schema]) -> Schema:
    return {"type": "array", "items": _of(arguments[0], records)}


def _table(arguments: Arguments, records: dict[str, Schema]) -> Schema:
    return {"type": "object", "additionalProperties": _of(arguments[1], records)}


def _one_of(arguments: Arguments, records: dict[str, Schema]) -> Schema:
    """Returns one of several; null beside one plain type is a list of two types."""
    parts = [_of(argument, records) for argument in arguments]
    if all(set(part) == {"type"} for part in parts):
        return {"type": [part["type"] for part in parts]}
    rest = [part for part in parts if part != {"type": "null"}]
    if len(rest) == 1 and isinstance(rest[0].get("type"), str):
        return rest[0] | {"type": [rest[0]["type"], "null"]}
    return {"anyOf": parts}


def _record(want: Any, records: dict[str, Schema]) -> Schema:
    """Notes a record under its name and returns a reference to it."""
    name = want.__name__
    if name not in records:
        records[name] = {}  # before its fields, which may hold it again
        hints = typing.get_type_hints(want, include_extras=True)
        needed = [key for key, hint in hints.items() if typing.get_origin(hint) is not NotRequired]
        records[name] |= {
            "description": (want.__doc__ or "").strip().splitlines()[0],
            "type": "object",
            "required": needed,
            "properties": {key: _of(hint, records) for key, hint in hints.items()},
        }
    return {"$ref": f"#/$defs/{name}"}


_BY_ORIGIN: dict[Any, Callable[[Arguments, dict[str, Schema]], Schema]] = {
    NotRequired: lambda arguments, records: _of(arguments[0], records),
    Annotated: _annotated,
    Literal: _literal,
    list: _list,
    tuple: _list,
    dict: _table,
    types.UnionType: _one_of,
    typing.Union: _one_of,  # what X | None becomes when X is Annotated
}
"""How each kind of generic type is said, by ``typing.get_origin``."""
