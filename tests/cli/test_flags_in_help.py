"""``--help`` shows a flag as its name alone, and beside any other option what it wants."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from fdda_deploy.cli import app, main
from fdda_deploy.cli.flags import with_bare_flags


def leaves(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields the words and the click command of every command that does something."""
    below = getattr(command, "commands", None)
    if below is None:
        yield words, command
    for name, child in (below or {}).items():
        yield from leaves(child, (*words, name))


COMMANDS = dict(leaves(with_bare_flags(typer.main.get_command(app))))


@pytest.mark.parametrize("words", [(), ("build",), ("cache", "diff")], ids=" ".join)
def test_no_flag_seems_to_want_a_value(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--help" in shown
    assert "bool" not in shown.lower()
    assert ("SIZE" in shown) == (words == ("build",))  # what --input-size wants is still told


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_its_flags_bare(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]
    shown = {
        parameter.name: parameter.metavar
        for parameter in command.get_params(typer.Context(command))
        if getattr(parameter, "is_flag", False)
    }
    assert shown == dict.fromkeys(shown, "")
    assert "help" in shown


def test_a_flag_still_takes_no_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json", "true"]) == 2
    assert "true" in capsys.readouterr().err
