"""README.md: its commands exist, its links lead somewhere, its marked commands can be taken out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from fdda_deploy.cli import app

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
MOST_IMAGE_BYTES = 200_000


def _table_of_commands() -> set[str]:
    section = TEXT.split("## Commands\n")[1].split("\n## ")[0]
    cells = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([a-z]+)`", cell)}


def test_the_table_of_commands_is_complete() -> None:
    root = typer.main.get_command(app)
    commands = root.commands  # type: ignore[attr-defined]  # click's group
    assert _table_of_commands() == set(commands)


@pytest.mark.parametrize("mark", ["main job", "tests"])
def test_a_marked_command_is_one_line_that_ci_can_take_out(mark: str) -> None:
    block = TEXT.split(f"<!-- {mark} -->\n")[1].split("```\n")[0]
    commands = [line for line in block.splitlines() if line.startswith("pip")]
    assert len(commands) == 1


def test_every_link_into_the_repository_leads_to_a_file() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", TEXT)
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


def test_images_are_small_and_described() -> None:
    for description, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", TEXT):
        assert description, target
        assert (ROOT / target).stat().st_size <= MOST_IMAGE_BYTES, target
