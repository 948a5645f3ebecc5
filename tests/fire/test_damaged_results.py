"""Finished stages that the disk or a person damaged: noticed by their digests, said, done again."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Commands, Undisturbed, digests, litter


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


HARMS = (flip_a_bit, cut, empty)


@pytest.mark.parametrize("harm", HARMS)
def test_every_damaged_stage_is_noticed_and_done_again_with_the_same_bytes(
    commands: Commands, tmp_path: Path, undisturbed: Undisturbed, harm: Callable[[Path], None]
) -> None:
    out = Path(shutil.copytree(undisturbed.out, tmp_path / "out"))
    harmed = set()
    for stage in out.glob(".stages/*/*/stage.json"):
        files = [path for path in sorted(stage.parent.rglob("*")) if path.is_file()]
        harm(max(files, key=lambda path: path.stat().st_size))
        harmed.add(stage.parent.parent.name)
    words = commands.build(out)
    words.remove("--quiet")
    ended = commands.run(words)
    assert ended.code == 0
    said = {line.partition(":")[0] for line in ended.err.splitlines() if "stage again" in line}
    assert said == harmed
    assert digests(out) == undisturbed.digests
    assert litter(out) == []


def test_a_damaged_result_in_the_users_folder_is_put_right(
    commands: Commands, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    out = Path(shutil.copytree(undisturbed.out, tmp_path / "out"))
    for harm, name in zip(itertools.cycle(HARMS), undisturbed.digests, strict=False):
        harm(out / name)
    assert commands.run(commands.build(out)).code == 0
    assert digests(out) == undisturbed.digests
