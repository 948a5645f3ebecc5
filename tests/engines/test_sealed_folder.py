"""What was changed in a folder, found without leaving it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdda_deploy.engines.sealed_folder import added_files, changed_files, entry_of, read_inside
from fdda_deploy.errors import EngineError


@pytest.fixture
def sealed(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    root = tmp_path / "package"
    (root / "deep").mkdir(parents=True)
    (root / "a.txt").write_text("first")
    (root / "deep" / "b.txt").write_text("second")
    (tmp_path / "secret").write_text("first")
    return root, {name: entry_of(root / name) for name in ("a.txt", "deep/b.txt")}


def test_a_folder_as_it_was_sealed_has_no_problem(sealed: tuple[Path, dict[str, Any]]) -> None:
    root, files = sealed
    assert changed_files(root, files) == []
    assert added_files(root, files) == []


def test_changed_missing_and_added_files_are_each_named(
    sealed: tuple[Path, dict[str, Any]],
) -> None:
    root, files = sealed
    (root / "a.txt").write_text("fires")
    (root / "deep" / "b.txt").unlink()
    (root / "deep" / "new").touch()
    assert changed_files(root, files) == [
        "a.txt: changed: its sha256 differs",
        "deep/b.txt: missing",
    ]
    assert added_files(root, files) == ["deep/new: not in the manifest"]


def test_a_file_of_another_size_is_not_read_to_the_end(
    sealed: tuple[Path, dict[str, Any]],
) -> None:
    root, files = sealed
    (root / "a.txt").write_text("longer than first")
    assert changed_files(root, files) == ["a.txt: changed: 17 bytes, the manifest says 5"]


def test_what_a_machine_makes_for_itself_is_no_part_of_the_folder(
    sealed: tuple[Path, dict[str, Any]],
) -> None:
    root, files = sealed
    for name in ("local/engine.plan", "__pycache__/x.pyc"):
        (root / name).parent.mkdir()
        (root / name).touch()
    assert added_files(root, files) == []
    (root / "deep" / "local").mkdir()
    (root / "deep" / "local" / "x").touch()
    assert added_files(root, files) == ["deep/local/x: not in the manifest"]


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "deep/../../secret", "", "..", "a\\b", "C:x", "x\0y"]
)
def test_a_name_that_leads_out_is_neither_checked_nor_read(
    sealed: tuple[Path, dict[str, Any]], name: str
) -> None:
    root, _ = sealed
    entry = entry_of(root.parent / "secret")
    assert changed_files(root, {name: entry}) == [f"{name}: leads out of the folder"]
    with pytest.raises(EngineError, match="leads out of the folder"):
        read_inside(root, name)


def test_links_are_followed_neither_to_files_nor_to_folders(
    sealed: tuple[Path, dict[str, Any]],
) -> None:
    root, files = sealed
    (root / "link").symlink_to(root.parent / "secret")
    (root / "folder").symlink_to(root.parent)
    entry = entry_of(root.parent / "secret")
    assert changed_files(root, {"link": entry, "folder/secret": entry}) == [
        "link: leads out of the folder",
        "folder/secret: leads out of the folder",
    ]
    assert added_files(root, files) == [
        "folder: not in the manifest",
        "link: not in the manifest",
    ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_file_and_is_not_waited_for(sealed: tuple[Path, dict[str, Any]]) -> None:
    root, _ = sealed
    os.mkfifo(root / "pipe")
    problem = changed_files(root, {"pipe": {"sha256": "0" * 64, "bytes": 0}})
    assert problem == ["pipe: not a file"]


def test_a_file_larger_than_allowed_or_not_there_is_refused_with_its_path(
    sealed: tuple[Path, dict[str, Any]],
) -> None:
    root, _ = sealed
    with pytest.raises(EngineError, match=r"a\.txt: 5 bytes, at most 4 are read"):
        read_inside(root, "a.txt", limit=4)
    with pytest.raises(EngineError, match=r"none: cannot be read \(No such file"):
        read_inside(root, "none")
    assert read_inside(root, "deep/b.txt") == b"second"


@pytest.mark.fuzz
@given(st.text(max_size=30))
def test_no_name_at_all_reads_outside(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    root = tmp_path_factory.getbasetemp() / "empty-package"
    root.mkdir(exist_ok=True)
    assert changed_files(root, {name: {"sha256": "0" * 64, "bytes": 0}})
    with pytest.raises(EngineError):
        read_inside(root, name)
