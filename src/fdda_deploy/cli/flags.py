"""Flags in ``--help``: their names alone, for there is no value to give."""

from __future__ import annotations

from typing import Any

import typer


def with_bare_flags(command: Any) -> Any:
    """Returns the command, after telling every flag in and below it to show no type of a value.

    Typer's table of options has a column with the type of each value. It fills that column for
    flags too, as ``<bool>``, which reads as if ``--json`` wanted a word behind it; an empty metavar
    is what it shows instead.

    Args:
        command: What `typer.main.get_command` returns.
    """
    for parameter in command.get_params(typer.Context(command)):  # with the command's own --help
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    for below in getattr(command, "commands", {}).values():
        with_bare_flags(below)
    return command
