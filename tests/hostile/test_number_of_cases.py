"""How many damaged inputs the tests try: summed from the settings of tests marked as fuzzing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

WANTED = 20_000
"""Cases in one run of the whole suite."""
TESTS = Path(__file__).parents[1]
MARKS = ("@fuzz(", "pytest.mark.fuzz")


def test_the_suite_tries_twenty_thousand_damaged_inputs(request: pytest.FixtureRequest) -> None:
    marked = [item for item in request.session.items if item.get_closest_marker("fuzz")]
    holding = {path for path in TESTS.rglob("test_*.py") if _fuzzes(path)}
    unseen = holding - {item.path for item in marked}
    if unseen:
        pytest.skip(f"counts the whole suite, and {min(unseen).name} is not in this run")
    cases: Counter[str] = Counter()
    for item in marked:
        cases[item.path.name] += item.obj._hypothesis_internal_use_settings.max_examples
    assert cases.total() >= WANTED, cases


def _fuzzes(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    return path != Path(__file__) and any(mark in text for mark in MARKS)
