"""The manifest notices every changed byte, and a hostile one reads nothing outside its folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdda_deploy.pipeline.report.manifest import manifest, verify


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "out"
    (root / "synthetic").mkdir(parents=True)
    (root / "model.onnx").write_bytes(b"graph" * 1000)
    (root / "synthetic" / "images.npz").write_bytes(b"")
    return root


def manifest_of(root: Path) -> dict[str, Any]:
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return manifest(files, tool_version="0.1.0")


def test_every_file_has_its_sha256_and_bytes_sorted_by_name(folder: Path) -> None:
    got = manifest_of(folder)
    assert got == {
        "schema": 1,
        "tool_version": "0.1.0",
        "files": {
            "model.onnx": {"sha256": hashlib.sha256(b"graph" * 1000).hexdigest(), "bytes": 5000},
            "synthetic/images.npz": {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0},
        },
    }
    assert list(got["files"]) == sorted(got["files"])
    assert verify(json.loads(json.dumps(got)), folder) == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"graph" * 1000 + b"!", "'model.onnx': has 5001 bytes, the manifest says 5000"),
        (b"graph" * 999 + b"grapf", "'model.onnx': the sha256 differs"),
        (None, "'model.onnx': missing"),
    ],
    ids=["longer", "one-byte", "gone"],
)
def test_a_changed_file_is_named(folder: Path, content: bytes | None, problem: str) -> None:
    before = manifest_of(folder)
    if content is None:
        (folder / "model.onnx").unlink()
    else:
        (folder / "model.onnx").write_bytes(content)
    assert verify(before, folder) == [problem]


def test_files_the_manifest_does_not_name_are_left_alone(folder: Path) -> None:
    before = manifest_of(folder)
    (folder / "notes.txt").write_text("mine")
    assert verify(before, folder) == []


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../secret", "C:/x", "..\\secret", "", "a\0b"]
)
def test_names_that_leave_the_folder_are_refused(folder: Path, name: str) -> None:
    secret = folder.parent / "secret"
    secret.write_bytes(b"s")
    entry = {"sha256": hashlib.sha256(b"s").hexdigest(), "bytes": 1}
    problems = verify({"schema": 1, "files": {name: entry}}, folder)
    assert problems == [f"{name!r}: leads out of the folder"]
    with pytest.raises(ValueError, match="is not a name inside the folder"):
        manifest({name: secret}, tool_version="0")


def test_a_link_out_of_the_folder_is_not_followed(folder: Path) -> None:
    (folder.parent / "secret").write_bytes(b"s")
    (folder / "link").symlink_to(folder.parent / "secret")
    entry = {"sha256": hashlib.sha256(b"s").hexdigest(), "bytes": 1}
    problems = verify({"schema": 1, "files": {"link": entry}}, folder)
    assert problems == ["'link': leads out of the folder"]


def test_a_loop_of_links_is_a_problem_and_not_a_crash(folder: Path) -> None:
    (folder / "loop").symlink_to(folder / "loop")
    (problem,) = verify({"schema": 1, "files": {"loop": {"sha256": "", "bytes": 0}}}, folder)
    assert problem.startswith("'loop': ")


def test_another_schema_is_refused(folder: Path) -> None:
    problems = verify(manifest_of(folder) | {"schema": 2}, folder)
    assert problems == ["manifest: schema 2, this version reads 1"]


@pytest.mark.fuzz
@given(
    entries=st.dictionaries(
        st.text(max_size=8) | st.integers(),
        st.none()
        | st.integers()
        | st.fixed_dictionaries({"sha256": st.none(), "bytes": st.none()}),
        min_size=1,
        max_size=3,
    )
)
def test_no_manifest_crashes_the_check_or_passes_by_being_odd(entries: dict[Any, Any]) -> None:
    assert len(verify({"schema": 1, "files": entries}, Path("nowhere"))) == len(entries)


@pytest.mark.parametrize("value", [None, [], {}, {"files": []}, "text"])
def test_what_is_no_manifest_is_a_problem(value: object) -> None:
    assert verify(value, Path("nowhere")) == ["manifest: wanted a table with the key 'files'"]


def test_half_a_character_in_a_name_is_a_problem_and_not_a_crash(folder: Path) -> None:
    found = verify({"schema": 1, "files": {"a\ud800": {"sha256": "", "bytes": 0}}}, folder)
    assert found == ["'a\\ud800': cannot be read: UnicodeEncodeError"]
