"""A build that is killed at each durable write in turn arrives all the same."""

from __future__ import annotations

from pathlib import Path

from commands import Commands, Undisturbed, digests, litter

MOST_WRITES = 200
STAGES = ("load", "statistics", "synthesize", "quantize", "export")


def test_killed_at_each_durable_write_in_turn_a_build_ends_with_the_same_bytes(
    commands: Commands, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    out, journal = tmp_path / "out", tmp_path / "journal"
    journal.touch()
    for _ in range(MOST_WRITES):
        ended = commands.run(commands.build(out), "kill_at_next_write", journal=str(journal))
        if ended.code == 0:
            break
        assert ended.code == -9, ended.err
        assert digests(out).items() <= undisturbed.digests.items()  # whole, or not there
    assert digests(out) == undisturbed.digests
    assert litter(out) == []
    steps = journal.read_text(encoding="utf-8")
    assert steps.count("\n") > 30
    for stage in STAGES:
        assert f"/.stages/{stage}/" in steps
