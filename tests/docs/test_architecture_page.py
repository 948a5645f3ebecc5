"""docs/architecture.md draws the floors that lint-imports checks, and the stages that run."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from fdda_deploy.pipeline.run import ROAD

ROOT = Path(__file__).parents[2]


def _drawn(title: str) -> str:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return page.split(f"## {title}\n")[1].split("```")[1]


def test_the_floors_drawn_are_those_that_are_checked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = project["tool"]["importlinter"]["contracts"]
    checked = [[room.strip() for room in floor.split("|")] for floor in contract["layers"]]
    floors = re.findall(
        r"^\| ([a-z_]+) +[^|]*(?:\| ([a-z_]+) )?", _drawn("The floors"), re.MULTILINE
    )
    assert [[room for room in floor if room] for floor in floors] == checked


def test_the_stages_drawn_are_those_of_the_road() -> None:
    drawing = _drawn("Stages")
    words = re.findall(r"^      ([a-z]+(?:, [a-z]+)*)", drawing, re.MULTILINE)
    assert ", ".join(words).split(", ") == [stage.name for stage in ROAD]
