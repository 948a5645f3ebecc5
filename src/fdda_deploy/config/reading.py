"""From a TOML file and flags to one valid configuration: flags win, unknown names are refused."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fdda_deploy.config.sections import SECTIONS, BuildConfig
from fdda_deploy.config.values import checked, near, plain_name, settings_of, short
from fdda_deploy.errors import ConfigError
from fdda_deploy.quant.scheme import scheme_from_bits, scheme_from_name

MAX_TOML_BYTES = 2**20
"""A configuration is a page of text; anything larger is another file by mistake."""

MAX_KEY_PARTS = 16
"""No key of ours has more than three. tomllib's time grows with the square of the parts, so that a
key of 20,000 would keep it busy for minutes."""
_KEY_PART = r'(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"|' r"'[^'\n]*+')"
_LONG_KEY = re.compile(rf"(?<![\w-]){_KEY_PART}(?:[ \t]*+\.[ \t]*+{_KEY_PART}){{{MAX_KEY_PARTS}}}")

SHORTHANDS = ("bits", "scheme")
"""Keys of [quantize], and flags, that stand for ``weight_bits`` and ``act_bits``."""

Tables = dict[str, dict[str, object]]


def config_from(toml_path: Path | None, flags: Mapping[str, object]) -> BuildConfig:
    """Returns the configuration that a TOML file and flags describe together.

    Args:
        toml_path: The ``--config`` file, or None. Paths inside it are relative to the working
            directory, as those of flags are.
        flags: Values by field name (``model`` for the model's name, plus ``bits`` and ``scheme``);
            None means not given. Text is split for fields that hold several numbers.

    Raises:
        ConfigError: An unreadable file, an unknown table or key, a value of another type or out of
            range, widths that contradict each other, or no model.
    """
    tables = {} if toml_path is None else _tables_from(_text_of(toml_path), str(toml_path))
    return _build(tables, flags)


def config_from_text(text: str, flags: Mapping[str, object], name: str = "TOML") -> BuildConfig:
    """Returns the same as :func:`config_from` for TOML text; ``name`` stands in messages.

    Raises:
        ConfigError: As :func:`config_from`.
    """
    return _build(_tables_from(text, name), flags)


def _build(tables: Tables, flags: Mapping[str, object]) -> BuildConfig:
    for title, values in _tables_from_flags(flags).items():
        tables.setdefault(title, {}).update(values)
    if "name" not in tables.get("model", {}):
        raise ConfigError(
            "no model named: give MODEL on the command line, or name = ... under [model] in "
            "--config. `fdda-deploy models` lists what can be named."
        )
    sections: dict[str, Any] = {title: SECTIONS[title](**tables[title]) for title in tables}
    return BuildConfig(**sections)


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TOML_BYTES + 1)
        text = data.decode()
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}. Want a TOML file.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {path}: not UTF-8 text at byte {error.start}.") from None
    if len(data) > MAX_TOML_BYTES:
        raise ConfigError(f"--config {path}: larger than 1 MiB; that is no configuration.")
    return text


def _tables_from(text: str, source: str) -> Tables:
    """Returns checked values by table and key."""
    deep = _LONG_KEY.search(text)
    if deep is not None:
        line = text.count("\n", 0, deep.start()) + 1
        raise ConfigError(
            f"{source}: not valid TOML: a key on line {line} has more than {MAX_KEY_PARTS} parts."
        )
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, and numbers without an end
        reason = str(error).splitlines()[0] if str(error) else "nested too deeply"
        raise ConfigError(f"{source}: not valid TOML: {reason}.") from None
    tables: Tables = {}
    for title, table in document.items():
        if title not in SECTIONS:
            known = ", ".join(f"[{name}]" for name in SECTIONS)
            raise ConfigError(
                f"{source}: unknown table [{plain_name(title)}].{near(title, SECTIONS)} "
                f"Known: {known}."
            )
        if not isinstance(table, dict):
            raise ConfigError(f"{source}: {title} is a value; want a table headed [{title}].")
        tables[title] = _checked_table(title, table, source)
    return tables


def _checked_table(title: str, table: dict[str, object], source: str) -> dict[str, object]:
    settings, where = settings_of(SECTIONS[title]), f"{source}: [{title}]"
    values: dict[str, object] = {}
    for key, value in table.items():
        if key in settings:
            values[key] = checked(settings[key], value, f"{where} {key}")
        elif title == "quantize" and key in SHORTHANDS:
            values[key] = value
        else:
            raise ConfigError(f"{where} {plain_name(key)}: unknown key.{_home_of(key, title)}")
    return values | _widths(values, {key: f"{where} {key}" for key in values})


def _home_of(key: str, title: str) -> str:
    """Returns where an unknown key belongs, or the keys of its table."""
    keys = {name: list(settings_of(section)) for name, section in SECTIONS.items()}
    keys["quantize"] += SHORTHANDS
    homes = [name for name, known in keys.items() if key in known]
    if homes:
        return f" It belongs under [{homes[0]}]."
    return f"{near(key, keys[title])} Known: {', '.join(keys[title])}."


def _tables_from_flags(flags: Mapping[str, object]) -> Tables:
    """Returns checked values by table and key, from flat names."""
    homes = {key: name for name, section in SECTIONS.items() for key in settings_of(section)}
    tables: Tables = {}
    quantize: dict[str, object] = {}
    for flag, value in flags.items():
        key, where = _names_of(flag)
        if value is None:
            continue
        if key in SHORTHANDS:
            quantize[key] = value
        elif key in homes:
            setting = settings_of(SECTIONS[homes[key]])[key]
            tables.setdefault(homes[key], {})[key] = checked(setting, value, where)
        else:
            raise ConfigError(f"{where}: unknown option.{near(key, homes)}")
    quantize |= tables.get("quantize", {})
    widths = _widths(quantize, {flag: _names_of(flag)[1] for flag in quantize})
    if widths:
        tables["quantize"] = quantize | widths
    return tables


def _names_of(flag: str) -> tuple[str, str]:
    """Returns the field that a flag sets, and what the user calls it."""
    if flag == "model":
        return "name", "MODEL"
    return flag, "--" + flag.replace("_", "-")


def _widths(values: dict[str, object], names: Mapping[str, str]) -> dict[str, object]:
    """Takes ``bits`` and ``scheme`` out of ``values`` and returns the widths that they mean.

    ``bits = N`` fixes the weights and leaves activations at 8 bits unless ``act_bits`` is there;
    ``scheme`` fixes both. Widths from flags replace those from TOML before they meet here.

    Raises:
        ConfigError: Two of them, from one source, name different widths.
    """
    bits, scheme = values.pop("bits", None), values.pop("scheme", None)
    claims: dict[str, list[tuple[str, object]]] = {"weight_bits": [], "act_bits": []}
    if bits is not None:
        if type(bits) is not int or bits.bit_length() > 16:
            raise ConfigError(f"{names['bits']}: got {short(bits)}, wanted an integer from 2 to 8.")
        claims["weight_bits"].append(("bits", scheme_from_bits(bits).weight_bits))
    if scheme is not None:
        if not isinstance(scheme, str):
            raise ConfigError(
                f"{names['scheme']}: got {short(scheme)}, wanted a string such as 'w4a8'."
            )
        named = scheme_from_name(scheme)
        claims["weight_bits"].append(("scheme", named.weight_bits))
        claims["act_bits"].append(("scheme", named.act_bits))
        claims["numbers"] = [("scheme", named.numbers)]
    for key, entries in claims.items():
        if key in values:
            entries.append((key, values[key]))
        if len({width for _, width in entries}) > 1:
            told = " and ".join(f"{names[name]} ({width})" for name, width in entries)
            raise ConfigError(f"{told} name different {key.replace('_', ' ')}: give one of them.")
    widths = {key: entries[0][1] for key, entries in claims.items() if entries}
    return widths if bits is None else {"act_bits": 8, "numbers": "integer"} | widths
