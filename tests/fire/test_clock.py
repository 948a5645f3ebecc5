"""No decision asks the clock: times of files and of the day may be anything."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from commands import Commands, Undisturbed, digests

DAY = 86_400
YEARS = 10 * 365 * DAY


def restamp(folder: Path, shift: float) -> None:
    """Makes every file and folder so many seconds younger, in an order that says nothing."""
    for number, path in enumerate(sorted(folder.rglob("*"), key=lambda path: path.name)):
        at = path.stat().st_mtime + shift + number % 7 * DAY
        os.utime(path, (at, at), follow_symlinks=False)


@pytest.mark.parametrize("shift", [YEARS, -YEARS], ids=["from the future", "from the past"])
def test_results_with_wrong_times_are_used_as_they_are(
    commands: Commands, tmp_path: Path, undisturbed: Undisturbed, shift: float
) -> None:
    out = Path(shutil.copytree(undisturbed.out, tmp_path / "out"))
    restamp(out, shift)
    stages = {path: path.stat().st_mtime_ns for path in out.glob(".stages/*/*/stage.json")}
    assert commands.run(commands.build(out)).code == 0
    assert {path: path.stat().st_mtime_ns for path in stages} == stages  # none done again
    assert digests(out) == undisturbed.digests


def test_a_clock_that_runs_backwards_changes_nothing(
    commands: Commands, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    out = tmp_path / "out"
    for until in ("quantize", "export"):
        words = commands.build(out, until=until)
        assert commands.run(words, "turn_back_the_clock", seconds=DAY).code == 0
    assert digests(out) == undisturbed.digests
