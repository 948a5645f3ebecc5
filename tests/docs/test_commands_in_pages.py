"""Every command that the manual shows is one that the program takes."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from fdda_deploy.cli import CLICK_ERROR, app
from fdda_deploy.cli.options import Options, UsageFaultError

ROOT = Path(__file__).parents[2]
_SETTINGS = {field.name for field in dataclasses.fields(Options)}
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


def _words(line: str) -> list[str]:
    """Returns what the shell hands to the program: no comment, no redirection, no ellipsis."""
    typed = re.split(r" >{1,2} | \| | && ", line)[0]
    return [word for word in shlex.split(typed, comments=True)[1:] if word != "..."]


def _is_network(model: str | None) -> bool:
    """Whether the settings can be resolved: a configuration file and ONNX files are not there."""
    return model is not None and not model.endswith(".onnx")


@pytest.mark.parametrize(("page", "line"), sorted(set(_shown())))
def test_a_command_of_the_manual_is_taken_by_the_parser(page: str, line: str) -> None:
    command, rest = _command(_words(line))
    if "--help" in rest:
        rest.remove("--help")
    try:
        given = command.make_context(command.name, rest).params
        if set(given) >= _SETTINGS and _is_network(given["model"]):
            Options(**{name: given[name] for name in _SETTINGS}).build_config()
    except typer.Exit:  # an option that prints and ends, like --version
        return
    except UsageFaultError as error:
        pytest.fail(f"{page}: {error}")
    except Exception as error:
        if not isinstance(error, CLICK_ERROR):
            raise
        pytest.fail(f"{page}: {error.format_message()}")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("fdda-deploy build digits --bits four", "Invalid value for '--bits'"),
        ("fdda-deploy build digits --bitz 4", "No such option"),
        ("fdda-deploy build digits --effort norml", "unknown 'norml'"),
        ("fdda-deploy cache export a.cache", "Missing option"),
        ("fdda-deploy verify", "Missing argument"),
        ("fdda-deploy compare a.onnx", "Missing argument"),
    ],
)
def test_the_parser_refuses_what_a_page_must_not_show(line: str, reason: str) -> None:
    with pytest.raises(pytest.fail.Exception, match=reason):
        test_a_command_of_the_manual_is_taken_by_the_parser("page", line)


def test_many_commands_are_shown() -> None:
    assert len(set(_shown())) > 60
