"""Every command that the manual shows is one that the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from fdda_deploy.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _shown() -> list[tuple[str, str]]:
    """Returns (page, command line) of every line of a block that starts the program."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        lines = re.findall(r"^(?: {4}| {0,3})(?:pip install \. && )?(fdda-deploy .*)$", text, re.M)
        found.extend((str(page.relative_to(ROOT)), line.strip()) for line in lines)
    return found


def _command(words: list[str]) -> tuple[Any, list[str]]:
    """Returns the command that the first words name, and the words behind them."""
    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize(("page", "line"), sorted(set(_shown())))
def test_a_command_of_the_manual_exists_with_its_options(page: str, line: str) -> None:
    command, rest = _command(shlex.split(line, comments=True)[1:])
    assert not hasattr(command, "commands"), f"{page}: no such command"
    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    given = {word.split("=")[0] for word in rest if word.startswith("--")} - {"--help"}
    assert given <= known, f"{page}: {', '.join(sorted(given - known))}"


def test_many_commands_are_shown() -> None:
    assert len(set(_shown())) > 60
