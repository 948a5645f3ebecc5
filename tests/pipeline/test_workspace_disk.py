"""One build per folder, and every disk error in one line that says what to do."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fdda_deploy.durable import TEMP_SUFFIX
from fdda_deploy.errors import WorkspaceError
from fdda_deploy.pipeline.workspace import Json, Workspace, atomic_write


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Gives up root's right to write everywhere, where the tests run as root."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def writes_a_file(folder: Path) -> dict[str, Json]:
    atomic_write(folder / "a", "content")
    return {}


HOLD = """
import sys
from pathlib import Path
from fdda_deploy.pipeline.workspace import Workspace
with Workspace(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_build_is_refused_naming_the_holder_until_that_one_dies(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        year = time.strftime("%Y", time.gmtime())
        with pytest.raises(WorkspaceError) as caught, Workspace(tmp_path):
            pass
        process.kill()
        process.wait()
    assert f"{tmp_path}: process {process.pid} on " in str(caught.value)
    assert f" since {year}-" in str(caught.value)
    assert str(caught.value).endswith("Wait for it, or choose another --out.")
    with Workspace(tmp_path) as workspace:
        assert not workspace.run_stage("load", {}, writes_a_file).cached


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_lock_without_a_readable_holder_still_refuses(tmp_path: Path, content: str) -> None:
    with Workspace(tmp_path):
        (tmp_path / ".lock").write_text(content)
        with (
            pytest.raises(WorkspaceError, match="another process is building into this folder"),
            Workspace(tmp_path),
        ):
            pass


def test_foreign_files_are_left_alone_and_torn_writes_of_ours_are_swept(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / f".0123{TEMP_SUFFIX}").write_text("x")
    with Workspace(tmp_path) as workspace:
        workspace.run_stage("load", {}, writes_a_file)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"thesis.tex", ".hidden", ".lock", ".stages"}


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(WorkspaceError, match="a part of this path is a file, not a folder"),
        Workspace(tmp_path / "file" / "out"),
    ):
        pass
    with (
        pytest.raises(WorkspaceError, match="this is a file, not a folder"),
        Workspace(tmp_path / "file"),
    ):
        pass
    with (
        pytest.raises(WorkspaceError, match="the name is too long"),
        Workspace(tmp_path / ("x" * 300)),
    ):
        pass


def test_a_folder_without_write_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sealed").mkdir(mode=0o555)
    with (
        as_nobody(),
        pytest.raises(WorkspaceError, match=r"no permission to write\. Choose another --out"),
        Workspace(tmp_path / "sealed/out"),
    ):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_an_action_says_how_to_continue(tmp_path: Path) -> None:
    def fills_the_disk(folder: Path) -> dict[str, Json]:
        atomic_write(folder / "checkpoint", "1")
        Path("/dev/full").write_text("x")
        return {}

    with Workspace(tmp_path) as workspace:
        with pytest.raises(WorkspaceError) as caught:
            workspace.run_stage("train", {}, fills_the_disk)
        assert str(caught.value) == (
            f"{tmp_path}: the disk is full. Free some space, then run the same command to continue."
        )
        assert list((tmp_path / ".stages/train").glob("*.partial/checkpoint"))


def test_an_action_that_misses_the_users_file_is_not_blamed_on_the_folder(tmp_path: Path) -> None:
    def reads(_folder: Path) -> dict[str, Json]:
        (tmp_path / "absent").read_bytes()
        return {}

    with Workspace(tmp_path / "out") as workspace, pytest.raises(FileNotFoundError):
        workspace.run_stage("load", {}, reads)


TOO_LARGE = """
import resource, sys
from pathlib import Path
from fdda_deploy.errors import WorkspaceError
from fdda_deploy.pipeline.workspace import Workspace, atomic_write
target = Path(sys.argv[1]) / "a.bin"
atomic_write(target, b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for write in (
    lambda: atomic_write(target, bytes(10_000)),
    lambda: Workspace(target.parent / "out").__enter__().run_stage(
        "load", {}, lambda folder: {"long": "x" * 10_000}
    ),
):
    try:
        write()
    except WorkspaceError as error:
        print(error)
"""


def test_a_write_that_does_not_fit_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TOO_LARGE, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    first, second = run.stdout.splitlines()
    assert first == (
        f"{tmp_path}/a.bin: a file exceeds the size allowed (ulimit -f). "
        "Raise it, or choose another --out."
    )
    assert "a file exceeds the size allowed" in second
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert not list(tmp_path.rglob(f"*{TEMP_SUFFIX}"))
    assert not list(tmp_path.glob("out/.stages/load/*/stage.json"))


def test_atomic_write_respects_the_umask_and_makes_folders(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        atomic_write(tmp_path / "new/a.txt", "ä")
    finally:
        os.umask(old)
    assert (tmp_path / "new/a.txt").read_bytes() == b"\xc3\xa4"
    assert (tmp_path / "new/a.txt").stat().st_mode & 0o777 == 0o640


def test_atomic_write_makes_a_new_file_so_that_a_hard_link_keeps_the_old_one(
    tmp_path: Path,
) -> None:
    atomic_write(tmp_path / "stage", "old")
    (tmp_path / "published").hardlink_to(tmp_path / "stage")
    atomic_write(tmp_path / "published", "new")
    assert (tmp_path / "stage").read_text() == "old"
    assert (tmp_path / "published").read_text() == "new"
