"""A build that is killed at a random moment ends, when it is run again, with the same bytes."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
from commands import Commands, Undisturbed, digests, litter

POINTS = 8  # benchmarks/kill_points.py tries 50


@pytest.mark.parametrize("point", range(POINTS))
def test_killed_at_a_random_moment_the_next_run_ends_with_the_same_bytes(
    commands: Commands, tmp_path: Path, undisturbed: Undisturbed, point: int
) -> None:
    dice = random.Random(point)  # noqa: S311 - a moment to kill at, not a secret
    out = tmp_path / "out"
    running = commands.start(commands.build(out))
    running.hold(out)
    time.sleep(undisturbed.seconds * (point + dice.random()) / POINTS)
    running.signal(signal.SIGKILL)
    assert running.wait().code in {-9, 0}  # it may just have ended
    assert digests(out).items() <= undisturbed.digests.items()
    assert commands.run(commands.build(out)).code == 0
    assert digests(out) == undisturbed.digests
    assert litter(out) == []
