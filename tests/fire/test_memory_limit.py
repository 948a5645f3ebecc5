"""A process whose memory is limited ends in one line, and goes on where it may have more."""

from __future__ import annotations

from pathlib import Path

from commands import Commands, Undisturbed, digests

BEYOND_MIB = (0, 32, 96)
"""Address space beyond what a process with every library loaded has."""


def test_too_little_memory_is_told_in_one_line_at_every_limit_and_the_build_goes_on(
    commands: Commands, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    out = tmp_path / "out"
    lines = []
    for mib in BEYOND_MIB:
        ended = commands.run(commands.build(out), "limit_memory", beyond_now_mib=mib)
        if ended.code != 0:
            lines.append(ended.line)
        assert digests(out).items() <= undisturbed.digests.items()
    assert len(lines) >= 2
    for line in lines:
        assert "out of memory. " in line
        assert "then run " in line
    assert any("Lower --" in line for line in lines)
    assert commands.run(commands.build(out)).code == 0
    assert digests(out) == undisturbed.digests
