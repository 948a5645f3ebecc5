"""The committed table of engines: the page says what the JSON says, which meets the targets."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENT = json.loads((ROOT / "benchmarks/results/engine_table.json").read_text())
ROWS = {(row["network"], row["precision"]): row for row in DOCUMENT["rows"]}


def page_module() -> ModuleType:
    path = ROOT / "benchmarks" / "engine_table_page.py"
    spec = importlib.util.spec_from_file_location("engine_table_page", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ratio(network: str, precision: str) -> float:
    return float(ROWS[network, precision]["plan_bytes"] / ROWS[network, "fp32"]["plan_bytes"])


def test_the_page_is_what_the_figures_make():
    wanted = page_module().page(DOCUMENT)
    assert (ROOT / "docs" / "engine_table.md").read_text() == wanted


def test_what_builds_breaks_no_rule_and_what_does_not_says_why():
    for row in ROWS.values():
        if row["builds"]:
            assert row["errors"] == [], row
        else:
            assert len(row["words"]) > 20, row


def test_resnet50_meets_its_targets():
    assert ratio("resnet50", "w8a8") <= 0.35
    assert ROWS["resnet50", "w8a8"]["export_cpu_seconds"] < 10
    assert ROWS["resnet50", "w8a8"]["export_peak_mib"] < 2.5 * 1024


@pytest.mark.parametrize("precision", ["fp16", "w8a8", "w4a16", "fp8"])
def test_plans_of_resnet50_shrink(precision):
    assert ratio("resnet50", precision) < {"fp16": 0.55, "w4a16": 0.2}.get(precision, 0.4)


def test_a_refused_row_shows_the_words():
    rows: list[dict[str, Any]] = [
        {"network": "n", "precision": "fp32", "weights": "random", "builds": False, "words": "No."}
    ]
    text = page_module().page({"rows": rows, "builder": "B", "machine": "M"})
    assert "- fp32: No." in text
    assert "0 of 1 graphs build" in text
