"""Results are published whole, inside the folder, and only where they differ."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fdda_deploy.errors import WorkspaceError
from fdda_deploy.pipeline.workspace import Workspace


def test_publishing_replaces_what_differs_and_leaves_what_is_the_same(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("new")
    out = tmp_path / "out"
    with Workspace(out) as workspace:
        (out / "sub").mkdir()
        (out / "sub/old.txt").write_text("old")
        (out / "copy.txt").write_text("new")
        before = (out / "copy.txt").stat()
        names = ["sub/old.txt", "copy.txt", "fresh/deep/a.txt"]
        workspace.publish(dict.fromkeys(names, source))
        workspace.publish(dict.fromkeys(names, source))
        after = (out / "copy.txt").stat()
        assert [(out / name).read_text() for name in names] == ["new"] * 3
        assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
        assert list((out / ".stages/.temp").iterdir()) == []


@pytest.mark.parametrize("precious", ["precious", "new"], ids=["other bytes", "the same bytes"])
def test_publishing_over_a_link_replaces_the_link_not_what_it_points_to(
    tmp_path: Path, precious: str
) -> None:
    (tmp_path / "precious").write_text(precious)
    (tmp_path / "source").write_text("new")
    with Workspace(tmp_path / "out") as workspace:
        (tmp_path / "out/a.txt").symlink_to(tmp_path / "precious")
        workspace.publish({"a.txt": tmp_path / "source"})
    assert (tmp_path / "precious").read_text() == precious
    assert not (tmp_path / "out/a.txt").is_symlink()
    assert (tmp_path / "out/a.txt").read_text() == "new"


def test_publishing_crosses_file_systems_by_copying(tmp_path: Path) -> None:
    memory = Path("/dev/shm")  # noqa: S108 - another file system is the point
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    source = memory / f"fdda-deploy-test-{os.getpid()}"
    source.write_text("new")
    try:
        with Workspace(tmp_path) as workspace:
            workspace.publish({"a.txt": source})
    finally:
        source.unlink()
    assert (tmp_path / "a.txt").read_text() == "new"


@pytest.mark.parametrize(
    "name",
    ["../a", "sub/../../a", "/tmp/a", "link/a", ".stages/a", ".lock", ""],  # noqa: S108 - a name to refuse
)
def test_nothing_is_published_outside_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "source").write_text("x")
    with Workspace(tmp_path / "out") as workspace:
        (tmp_path / "out/link").symlink_to(tmp_path / "outside")
        with pytest.raises(WorkspaceError, match="a result file must stay inside"):
            workspace.publish({name: tmp_path / "source"})
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_folder_in_the_way_of_a_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    (tmp_path / "source").write_text("x")
    with (
        Workspace(tmp_path) as workspace,
        pytest.raises(WorkspaceError, match=r"report\.json: a folder stands where a result goes"),
    ):
        workspace.publish({"report.json": tmp_path / "source"})
