"""Each promise of the manual names tests that exist, and each test under fire is promised."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs/promises.md"
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")
PROMISED_FOLDERS = ("fire", "hostile")
"""Folders whose every test is a promise."""


def _tests_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def _promised() -> list[tuple[str, str]]:
    return sorted(set(NAMED.findall(PAGE.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("file", sorted({file for file, _ in _promised()}))
def test_every_test_that_the_page_names_exists(file: str) -> None:
    assert (TESTS / file).is_file(), file
    named = {name for path, name in _promised() if path == file}
    assert named <= _tests_in(TESTS / file), named - _tests_in(TESTS / file)


@pytest.mark.parametrize("folder", PROMISED_FOLDERS)
def test_every_test_under_fire_stands_in_the_page(folder: str) -> None:
    held = {
        (path.relative_to(TESTS).as_posix(), name)
        for path in (TESTS / folder).rglob("test_*.py")
        for name in _tests_in(path)
    }
    assert held <= set(_promised()), sorted(held - set(_promised()))


def test_every_row_of_the_page_names_a_test() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    promises = [row for row in rows if not row.startswith("| promise |")]
    assert promises
    assert [row for row in promises if not NAMED.search(row)] == []
