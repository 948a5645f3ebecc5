"""Writes docs/rules.md from the tables of rules and repairs and from the graphs of the tests.

python benchmarks/rules_page.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "exporters"))  # the graphs that break the rules live there
from rules_page_facts import page  # noqa: E402

if __name__ == "__main__":
    (ROOT / "docs" / "rules.md").write_text(page(), encoding="utf-8")
