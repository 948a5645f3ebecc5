"""docs/rules.md says what the code says."""

from __future__ import annotations

from pathlib import Path

from rules_page_facts import page

from fdda_deploy.exporters.repair.repairing import REPAIRS
from fdda_deploy.exporters.trt_rules import RULES

COMMITTED = Path(__file__).parents[2] / "docs" / "rules.md"


def test_the_committed_page_is_what_the_code_generates() -> None:
    assert COMMITTED.read_text(encoding="utf-8") == page(), "run benchmarks/rules_page.py"


def test_every_rule_and_every_repair_has_one_row() -> None:
    rows = [line.split(" | ")[0] for line in page().splitlines() if line.startswith("| ")]
    for entry in (*RULES, *REPAIRS):
        assert rows.count(f"| {entry.id}") == 1
