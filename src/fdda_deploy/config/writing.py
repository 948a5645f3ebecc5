"""The resolved configuration as a dict and as TOML: ``config_from_text(to_toml(c)) == c``."""

from __future__ import annotations

import dataclasses
import re

import fdda_deploy
from fdda_deploy.config.sections import BuildConfig


def to_dict(config: BuildConfig) -> dict[str, object]:
    """Returns nested dicts and lists of JSON values, ``{"model": {"name": ...}, ...}``."""
    return {name: _plain(table) for name, table in dataclasses.asdict(config).items()}


def to_toml(config: BuildConfig) -> str:
    """Returns TOML text that reads back as an equal configuration; unset values are left out."""
    lines = [
        f"# The resolved configuration of one build by fdda-deploy {fdda_deploy.__version__}.",
        "# Build it again with: fdda-deploy build --config THIS_FILE",
    ]
    for title, table in dataclasses.asdict(config).items():
        nested = {key: value for key, value in table.items() if isinstance(value, dict)}
        lines += _table_lines(title, {k: v for k, v in table.items() if k not in nested})
        for key, value in nested.items():
            if value:
                lines += _table_lines(f"{title}.{key}", value)
    return "\n".join(lines) + "\n"


def _table_lines(title: str, table: dict[str, object]) -> list[str]:
    rows = [f"{_key(k)} = {_literal(v)}" for k, v in table.items() if v is not None]
    return ["", f"[{title}]", *rows]


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _string(key)


def _literal(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(_literal(item) for item in value)}]"
    return _string(value) if isinstance(value, str) else repr(value)


def _string(text: str) -> str:
    """Returns a TOML basic string: quotes, backslashes and control characters escaped."""
    return '"' + re.sub(r'["\\\x00-\x1f\x7f]', lambda m: f"\\u{ord(m[0]):04x}", text) + '"'


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
