"""A strict reader of protobuf text, as far as Triton's config.pbtxt uses it, written for the tests.

Fields that the message does not know, values of another kind, and a singular field given twice are
errors, as they are for Triton. Field names and kinds: ModelConfig of Triton's model_config.proto.
"""

from __future__ import annotations

import re
from typing import Any

TOKEN = re.compile(
    r"""\s*(?:\#[^\n]*\n\s*)*(?:(?P<text>"(?:[^"\\\n]|\\.)*")|(?P<number>-?\d+)"""
    r"""|(?P<word>[A-Za-z_][A-Za-z0-9_]*)|(?P<mark>[][{}:,;]))"""
)
DYNAMIC_BATCHING = {"preferred_batch_size": ["int"], "max_queue_delay_microseconds": "int"}
ACCELERATOR = {"name": "text", "parameters": [{"key": "text", "value": "text"}]}
TENSOR = {"name": "text", "data_type": "word", "dims": ["int"], "label_filename": "text"}
MODEL_CONFIG: dict[str, Any] = {
    "name": "text",
    "platform": "text",
    "max_batch_size": "int",
    "input": [{key: kind for key, kind in TENSOR.items() if key != "label_filename"}],
    "output": [TENSOR],
    "instance_group": [{"count": "int", "kind": "word"}],
    "dynamic_batching": DYNAMIC_BATCHING,
    "optimization": {"execution_accelerators": {"gpu_execution_accelerator": [ACCELERATOR]}},
}
KINDS = {"text": "text", "int": "number", "word": "word"}


def read_config(text: str) -> dict[str, Any]:
    """Returns a ModelConfig as tables and lists.

    Raises:
        ValueError: Not such a message.
    """
    tokens = _tokens(text)
    message = _message(tokens, MODEL_CONFIG, end=None)
    if tokens:
        raise ValueError(f"left over: {tokens[-1]}")
    return message


def _tokens(text: str) -> list[tuple[str, str]]:
    """Returns kind and text of every token, the first one last."""
    found, place = [], 0
    rest = re.compile(r"\s*(?:#[^\n]*\n?\s*)*\Z")
    while not rest.match(text, place):
        match = TOKEN.match(text, place)
        if match is None:
            raise ValueError(f"not protobuf text at {text[place : place + 30]!r}")
        assert match.lastgroup is not None
        found.append((match.lastgroup, match[match.lastgroup]))
        place = match.end()
    return found[::-1]


def _message(tokens: list[tuple[str, str]], fields: dict[str, Any], end: str | None) -> Any:
    found: dict[str, Any] = {}
    while tokens and tokens[-1] != ("mark", end):
        kind, name = tokens.pop()
        if kind != "word" or name not in fields:
            raise ValueError(f"no such field: {name}")
        want = fields[name]
        values = _values(tokens, want[0] if isinstance(want, list) else want, name)
        if isinstance(want, list):
            found.setdefault(name, []).extend(values)
        elif name in found or len(values) != 1:
            raise ValueError(f"{name} is given more than once")
        else:
            found[name] = values[0]
    if end is not None and (not tokens or tokens.pop() != ("mark", end)):
        raise ValueError(f"{end} is missing")
    return found


def _values(tokens: list[tuple[str, str]], want: Any, name: str) -> list[Any]:
    colon = tokens[-1:] == [("mark", ":")]
    if colon:
        tokens.pop()
    elif not isinstance(want, dict):
        raise ValueError(f"{name}: a colon is missing")
    if tokens[-1:] != [("mark", "[")]:
        return [_value(tokens, want, name)]
    tokens.pop()
    values = []
    while tokens[-1:] != [("mark", "]")]:
        values.append(_value(tokens, want, name))
        if tokens[-1:] == [("mark", ",")]:
            tokens.pop()
        elif tokens[-1:] != [("mark", "]")]:
            raise ValueError(f"{name}: a comma is missing")
    tokens.pop()
    return values


def _value(tokens: list[tuple[str, str]], want: Any, name: str) -> Any:
    if not tokens:
        raise ValueError(f"{name}: a value is missing")
    kind, text = tokens.pop()
    if isinstance(want, dict):
        if (kind, text) != ("mark", "{"):
            raise ValueError(f"{name}: wanted a message")
        return _message(tokens, want, "}")
    if kind != KINDS[want]:
        raise ValueError(f"{name}: got {text}, wanted {want}")
    if want == "int":
        return int(text)
    return _unescaped(text[1:-1]) if want == "text" else text


def _unescaped(text: str) -> str:
    def byte(match: re.Match[str]) -> str:
        body = match[1]
        return chr(int(body, 8)) if body[0].isdigit() else body

    raw = re.sub(r"\\([0-7]{3}|[\\\"])", byte, text)
    return raw.encode("latin-1").decode("utf-8")
