"""A small part of JSON Schema 2020-12, enough to check a manifest that came from anywhere.

Known keywords are those of `KEYWORDS`; a schema with another one is a mistake of ours and refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

KEYWORDS = frozenset(
    {
        *("$schema", "$id", "$defs", "$ref", "title", "description"),
        *("type", "enum", "const", "anyOf", "pattern", "minLength", "maxLength"),
        *("minimum", "maximum", "exclusiveMinimum", "items", "minItems", "maxItems"),
        *("properties", "required", "additionalProperties", "propertyNames", "maxProperties"),
    }
)


def problem_in(value: object, schema: Schema, path: str = "manifest") -> str | None:
    """Returns the first thing about ``value`` that ``schema`` does not allow, or None.

    Args:
        value: What ``json.loads`` gave.
        schema: The whole schema; ``$ref`` may point to its ``$defs``.
        path: How the value is called in the answer.

    Raises:
        ValueError: The schema itself uses a keyword outside `KEYWORDS`.

    Example:
        >>> problem_in({"n": -1}, {"properties": {"n": {"type": "integer", "minimum": 0}}})
        'manifest.n: got -1, wanted 0 or more'
    """
    return next(_problems(value, schema, path, schema), None)


def _problems(value: object, schema: Schema, path: str, root: Schema) -> Iterator[str]:
    unknown = schema.keys() - KEYWORDS
    if unknown:
        raise ValueError(f"schema at {path}: keyword {min(unknown)!r} is not supported.")
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        yield from _problems(value, root["$defs"][name], path, root)
    wrong_kind = next(_kind_problems(value, schema, path), None)
    if wrong_kind is not None:
        yield wrong_kind
        return
    if "anyOf" in schema:
        branches = [next(_problems(value, one, path, root), None) for one in schema["anyOf"]]
        if None not in branches:
            yield f"{path}: got {_shown(value)}, which fits none of the forms allowed"
    if isinstance(value, str):
        yield from _text_problems(value, schema, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _number_problems(value, schema, path)
    elif isinstance(value, list):
        yield from _list_problems(value, schema, path, root)
    elif isinstance(value, dict):
        yield from _object_problems(value, schema, path, root)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


_TYPES: Mapping[str, Callable[[object], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": _is_integer,
    "number": _is_number,
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


def _kind_problems(value: object, schema: Schema, path: str) -> Iterator[str]:
    if "type" in schema:
        wanted = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not any(_TYPES[name](value) for name in wanted):
            yield f"{path}: got {_shown(value)}, wanted {' or '.join(wanted)}"
    # 1 == True in Python, so the type counts too
    if "const" in schema and (type(value), value) != (type(schema["const"]), schema["const"]):
        yield f"{path}: got {_shown(value)}, wanted {_shown(schema['const'])}"
    if "enum" in schema and value not in schema["enum"]:
        choices = ", ".join(_shown(choice) for choice in schema["enum"])
        yield f"{path}: got {_shown(value)}, wanted one of {choices}"


def _text_problems(value: str, schema: Schema, path: str) -> Iterator[str]:
    low, high = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    if not low <= len(value) <= high:
        yield f"{path}: got {len(value)} characters, wanted {low} to {high}"
    # fullmatch: "$" alone would let a line break follow; every pattern of ours is anchored
    if "pattern" in schema and not re.fullmatch(schema["pattern"], value):
        yield f"{path}: got {_shown(value)}, wanted text like {schema['pattern']}"


def _number_problems(value: float, schema: Schema, path: str) -> Iterator[str]:
    if value < schema.get("minimum", -math.inf):
        yield f"{path}: got {_shown(value)}, wanted {schema['minimum']} or more"
    if value > schema.get("maximum", math.inf):
        yield f"{path}: got {_shown(value)}, wanted {schema['maximum']} or less"
    if value <= schema.get("exclusiveMinimum", -math.inf):
        yield f"{path}: got {_shown(value)}, wanted more than {schema['exclusiveMinimum']}"


def _list_problems(value: list[Any], schema: Schema, path: str, root: Schema) -> Iterator[str]:
    low, high = schema.get("minItems", 0), schema.get("maxItems", math.inf)
    if not low <= len(value) <= high:
        yield f"{path}: got {len(value)} items, wanted {low} to {high}"
        return
    for index, item in enumerate(value):
        yield from _problems(item, schema.get("items", {}), f"{path}[{index}]", root)


def _object_problems(
    value: dict[str, Any], schema: Schema, path: str, root: Schema
) -> Iterator[str]:
    if len(value) > schema.get("maxProperties", math.inf):
        yield f"{path}: got {len(value)} entries, wanted at most {schema['maxProperties']}"
        return
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{path}.{name}: missing"
    known = schema.get("properties", {})
    for name, part in value.items():
        where = f"{path}.{name}" if name.isidentifier() else f"{path}[{_shown(name)}]"
        yield from _problems(name, schema.get("propertyNames", {}), f"{where}, its name", root)
        rest = schema.get("additionalProperties", {})
        if name in known:
            yield from _problems(part, known[name], where, root)
        elif rest is False:
            yield f"{where}: not a field of this format"
        else:
            yield from _problems(part, {} if rest is True else rest, where, root)


def _shown(value: object) -> str:
    """Returns ``value`` in one short line, whatever is in it."""
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'a table'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
