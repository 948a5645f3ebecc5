"""A disk that fills up: one line, nothing half-written, and with some space more it goes on."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Commands, Undisturbed, digests, litter

from fdda_deploy.pipeline.durable import STORAGE_ADVICE

SIZES_KIB = [4 << doubled for doubled in range(0, 16, 2)]


def mount(folder: Path, options: str) -> bool:
    """Returns whether a file system in memory could be put there."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for nothing much."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount(folder, f"size={SIZES_KIB[0]}k"):
        pytest.skip("needs the right to mount a file system (root)")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_again_and_again_is_told_each_time_and_the_build_arrives(
    commands: Commands, small_disk: Path, undisturbed: Undisturbed
) -> None:
    out = small_disk / "out"
    refusals = 0
    for size in SIZES_KIB:
        remount(small_disk, f"size={size}k")
        ended = commands.run(commands.build(out))
        assert digests(out).items() <= undisturbed.digests.items()
        assert list(out.rglob("*.fdda-temp")) == []
        if ended.code == 0:
            break
        assert "Free some space, then run the same command to continue." in ended.line
        refusals += 1
    assert digests(out) == undisturbed.digests
    assert litter(out) == []
    assert refusals > 2


def test_a_read_only_file_system_is_told_and_left_as_it_is(
    commands: Commands, small_disk: Path, undisturbed: Undisturbed
) -> None:
    out = small_disk / "out"
    remount(small_disk, "size=16m")
    assert commands.run(commands.build(out, until="synthesize")).code == 0
    before = {path: path.stat().st_mtime_ns for path in small_disk.rglob("*")}
    remount(small_disk, "ro")
    for more in ((), ("--no-cache",)):
        line = commands.run(commands.build(out, *more)).line
        assert line == f"{out}: {STORAGE_ADVICE[errno.EROFS]}"
    assert {path: path.stat().st_mtime_ns for path in small_disk.rglob("*")} == before
    remount(small_disk, "rw")
    assert commands.run(commands.build(out)).code == 0
    assert undisturbed.digests.items() <= digests(out).items()
