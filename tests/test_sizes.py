"""No file over 300 lines, no function over 50 lines of code: longer ones get parts, or a reason.

A line of code is one that is neither blank, nor a comment, nor of the docstring. A function that is
better whole says so in a comment of its own: ``# long: the reason``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = (
    *("pipeline", "exporters", "engines", "calib_cache"),
    *("src/fdda_deploy", "tests", "benchmarks", ".ci"),
)
MOST_LINES_OF_A_FILE = 300
MOST_LINES_OF_A_FUNCTION = 50
REASON = "# long: "  # a stripped line that starts so has something behind it

pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="needs the checkout beside the tests"
)


def _sources() -> dict[str, str]:
    """Every Python file of the checkout, its path first; links to folders are not followed."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT)
            if not any(parent.is_symlink() for parent in (ROOT / part for part in name.parents)):
                found[str(name)] = path.read_text(encoding="utf-8")
    return found


def _functions(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yields functions and methods; one inside another counts as a part of it."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _functions(node.body)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lengths(source: str) -> Iterator[tuple[str, int]]:
    """Yields (name, lines of code) of each function that gives no reason for its length."""
    lines = source.splitlines()
    for node in _functions(ast.parse(source).body):
        text = lines[node.lineno - 1 : node.end_lineno]
        if ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            del text[first.lineno - node.lineno : (first.end_lineno or 0) - node.lineno + 1]
        words = [line.strip() for line in text]
        if not any(word.startswith(REASON) for word in words):
            yield node.name, sum(bool(word) and not word.startswith("#") for word in words)


def test_no_file_is_longer_than_one_sits_down_to_read() -> None:
    sources = _sources()
    assert len(sources) > 400, "the walk lost the folders"
    longer = {name: len(text.splitlines()) for name, text in sources.items()}
    assert {n: count for n, count in longer.items() if count > MOST_LINES_OF_A_FILE} == {}


def test_no_function_is_longer_than_a_screen() -> None:
    longer = {
        f"{path}: {name}": count
        for path, text in _sources().items()
        for name, count in lengths(text)
        if count > MOST_LINES_OF_A_FUNCTION
    }
    assert longer == {}


LONG = "def f():\n" + "    x = 1\n" * 50


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (LONG, [("f", 51)]),
        ('def f():\n    """A.\n\n    B.\n    """\n\n    # why\n    return 1\n', [("f", 2)]),
        (LONG + "    # long: a table\n    x = 1\n", []),
        (LONG + "    # long:\n    x = 1\n", [("f", 52)]),
    ],
    ids=["code", "docstring and comment", "reason", "no reason"],
)
def test_only_code_counts_and_only_a_reason_excuses(
    source: str, found: list[tuple[str, int]]
) -> None:
    assert list(lengths(source)) == found
