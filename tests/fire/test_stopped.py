"""Ctrl-C and SIGTERM: one line, the signal's exit code, nothing half-written, and it goes on."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from commands import Commands, Undisturbed, digests

from fdda_deploy.cli.interruption import WORDS

SHARES = (0.15, 0.5, 0.8)
"""Of the length of a build: when the signal comes."""


@pytest.mark.parametrize("number", WORDS)
def test_a_build_that_is_stopped_says_so_in_one_line_and_goes_on_when_run_again(
    commands: Commands, tmp_path: Path, undisturbed: Undisturbed, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    for share in SHARES:
        running = commands.start(commands.build(out))
        running.hold(out)
        time.sleep(undisturbed.seconds * share)
        running.signal(number)
        ended = running.wait()
        if ended.code != 0:  # else it had just ended, on a machine that suddenly is quick
            assert (ended.code, ended.err) == (128 + number, f"{WORDS[number]}\n")
        assert ended.out == ""
        assert list(out.rglob("*.fdda-temp")) == []
        assert digests(out).items() <= undisturbed.digests.items()
    assert commands.run(commands.build(out)).code == 0
    assert digests(out) == undisturbed.digests
