"""The manual quotes messages that the program can really say."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
FOLDERS = ("calib_cache", "engines", "exporters", "pipeline", "src/fdda_deploy")
GAP = "…"
FEWEST_LETTERS = 8


@cache
def _literals() -> str:
    """Every string of the source, one a line, with a gap for what is filled in at run time."""
    texts: set[str] = set()
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    texts.add("".join(_plain(part) for part in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.add(node.value)
    return "\n".join(sorted(texts))


def _plain(part: ast.expr) -> str:
    return part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else GAP


def _quoted() -> list[str]:
    """What stands between backticks in the first column of a table headed "it says"."""
    found, messages = [], False
    lines = [line for page in PAGES for line in [*page.read_text("utf-8").splitlines(), ""]]
    for line in lines:
        if line.startswith("| it says |"):
            messages = True
        elif not line.startswith("|"):
            messages = False
        elif messages:
            found.extend(re.findall(r"`([^`]+)`", line.split(" | ")[0]))
    return found


@pytest.mark.parametrize("message", _quoted())
def test_a_quoted_message_occurs_in_the_source(message: str) -> None:
    parts = [part.strip(" :;.,()") for part in message.split(GAP)]
    stable = max(parts, key=len)
    assert len(stable) >= FEWEST_LETTERS, "quote more of the message"
    assert stable in _literals()


def test_many_messages_are_quoted() -> None:
    assert len(_quoted()) > 30
