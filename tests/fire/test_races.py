"""Two builds of one folder at once: one of them does it, the other says so or finds it done."""

from __future__ import annotations

import re
from pathlib import Path

from commands import Commands, Undisturbed, digests, litter

BUILDS = 3
BUSY = re.compile(r"process \d+ on .* is building into this folder\. Wait for it, or choose")


def test_builds_that_race_end_right_and_the_late_ones_say_who_is_at_work(
    commands: Commands, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    out = tmp_path / "out"
    racing = [commands.start(commands.build(out)) for _ in range(BUILDS)]
    ended = [running.wait() for running in racing]
    assert any(one.code == 0 for one in ended)
    for one in ended:
        assert one.code == 0 or BUSY.search(one.line)
    assert digests(out) == undisturbed.digests
    assert litter(out) == []


def test_builds_of_two_settings_that_race_leave_one_whole_result(
    commands: Commands, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    out = tmp_path / "out"
    other = commands.start(commands.build(out, "--scheme", "w8a8"))
    mine = commands.start(commands.build(out))
    first, second = other.wait(), mine.wait()
    assert sorted((first.code, second.code)) in ([0, 0], [0, 1])
    assert commands.run(commands.build(out)).code == 0
    assert digests(out) == undisturbed.digests
