"""Stages of a result folder: a finished one is intact or done again, an unfinished one resumes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from fdda_deploy.durable import TEMP_SUFFIX
from fdda_deploy.pipeline.kept_results import KEPT_KEYS
from fdda_deploy.pipeline.workspace import (
    Json,
    StageResult,
    Workspace,
    atomic_write,
    digest_of_sources,
    stage_key,
)


def writes(name: str, content: str = "content") -> Callable[[Path], dict[str, Json]]:
    def action(folder: Path) -> dict[str, Json]:
        atomic_write(folder / name, content)
        return {"wrote": name}

    return action


def must_not_run(_folder: Path) -> dict[str, Json]:
    pytest.fail("a finished, intact stage was done again")


def test_a_finished_stage_is_not_done_again_and_answers_the_same(tmp_path: Path) -> None:
    with Workspace(tmp_path / "new" / "out") as workspace:
        first = workspace.run_stage("load", {"model": "digits"}, writes("sub/a.txt"))
    with Workspace(tmp_path / "new" / "out") as workspace:
        second = workspace.run_stage("load", {"model": "digits"}, must_not_run)
    assert (first.cached, second.cached) == (False, True)
    assert (first.folder, first.record, first.key) == (second.folder, second.record, second.key)
    assert second.work_seconds == first.seconds
    assert (second.folder / "sub/a.txt").read_text() == "content"


def test_the_record_is_the_same_json_before_and_after_the_disk(tmp_path: Path) -> None:
    def action(_folder: Path) -> Mapping[str, Json]:
        return {"pair": (1, 2), "nested": {"a": None}}

    with Workspace(tmp_path) as workspace:
        fresh = workspace.run_stage("load", {}, action).record
        assert fresh == workspace.run_stage("load", {}, must_not_run).record
        assert fresh == {"pair": [1, 2], "nested": {"a": None}}


@pytest.mark.parametrize(
    ("name", "inputs"),
    [("stats", {"a": 1}), ("load", {"a": 2}), ("load", {"a": "1"}), ("load", {"a": 1, "b": None})],
)
def test_another_name_or_input_is_another_key(name: str, inputs: dict[str, Json]) -> None:
    assert stage_key(name, inputs) != stage_key("load", {"a": 1})


def test_the_order_of_inputs_does_not_matter() -> None:
    assert stage_key("load", {"a": 1, "b": 2}) == stage_key("load", {"b": 2, "a": 1})


def test_a_checkout_and_a_wheel_have_one_digest_until_a_linked_source_changes(
    tmp_path: Path,
) -> None:
    (tmp_path / "pipeline").mkdir()
    source = tmp_path / "pipeline/run.py"
    source.write_text("a = 1")
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout/pipeline").symlink_to("../pipeline")
    shutil.copytree(tmp_path / "pipeline", tmp_path / "wheel/pipeline")
    (tmp_path / "wheel/pipeline/run.pyc").write_bytes(b"compiled")
    assert digest_of_sources(tmp_path / "checkout") == digest_of_sources(tmp_path / "wheel")
    source.write_text("a = 2")
    assert digest_of_sources(tmp_path / "checkout") != digest_of_sources(tmp_path / "wheel")


def flip_a_byte(stage: Path) -> None:
    (stage / "a.txt").write_text("Content")


def shorten(stage: Path) -> None:
    os.truncate(stage / "a.txt", 3)


def remove_a_file(stage: Path) -> None:
    (stage / "a.txt").unlink()


def remove_the_record(stage: Path) -> None:
    (stage / "stage.json").unlink()


def break_the_record(stage: Path) -> None:
    (stage / "stage.json").write_text("[" * 100_000)


def take_another_key(stage: Path) -> None:
    found = json.loads((stage / "stage.json").read_text())
    (stage / "stage.json").write_text(json.dumps(found | {"key": "0" * 64}))


def change_the_record(stage: Path) -> None:
    found = json.loads((stage / "stage.json").read_text())
    (stage / "stage.json").write_text(json.dumps(found | {"record": {"wrote": "b.txt"}}))


def no_object(stage: Path) -> None:
    (stage / "stage.json").write_text("[]")


def strange_types(stage: Path) -> None:
    found = json.loads((stage / "stage.json").read_text())
    (stage / "stage.json").write_text(json.dumps(found | {"files": {"a.txt": 3}}))


@pytest.mark.parametrize(
    "harm",
    [
        flip_a_byte,
        shorten,
        remove_a_file,
        remove_the_record,
        break_the_record,
        take_another_key,
        change_the_record,
        no_object,
        strange_types,
    ],
)
def test_a_damaged_stage_is_done_again_and_it_says_so(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    lines: list[str] = []
    with Workspace(tmp_path, say=lines.append) as workspace:
        stage = workspace.run_stage("load", {}, writes("a.txt")).folder
        harm(stage)
        again = workspace.run_stage("load", {}, writes("a.txt"))
        assert not again.cached
        assert again.repaired is not None
        assert lines == [f"load: {again.repaired}; doing this stage again."]
        assert str(stage) in lines[0]
        assert workspace.run_stage("load", {}, must_not_run).repaired is None
        assert (stage / "a.txt").read_text() == "content"


def test_no_cache_does_finished_and_unfinished_stages_from_nothing(tmp_path: Path) -> None:
    def fails(folder: Path) -> dict[str, Json]:
        (folder / "checkpoint").write_text("1")
        raise RuntimeError

    with Workspace(tmp_path) as workspace:
        workspace.run_stage("load", {}, writes("a.txt", "old"))
        with pytest.raises(RuntimeError):
            workspace.run_stage("train", {}, fails)
    with Workspace(tmp_path, no_cache=True) as workspace:
        result = workspace.run_stage("load", {}, writes("a.txt", "new"))
        assert (result.folder / "a.txt").read_text() == "new"
        trained = workspace.run_stage("train", {}, writes("b.txt"))
        assert not (trained.folder / "checkpoint").exists()


def test_a_failed_action_leaves_its_folder_for_the_next_attempt(tmp_path: Path) -> None:
    def fails(folder: Path) -> dict[str, Json]:
        atomic_write(folder / "checkpoint", "7")
        (folder / f".torn{TEMP_SUFFIX}").write_text("half")
        raise ValueError("not of the workspace")

    def resumes(folder: Path) -> dict[str, Json]:
        assert not list(folder.glob(f".*{TEMP_SUFFIX}"))
        return {"step": int((folder / "checkpoint").read_text())}

    with Workspace(tmp_path) as workspace:
        with pytest.raises(ValueError, match="not of the workspace"):
            workspace.run_stage("train", {}, fails)
        assert workspace.run_stage("train", {}, resumes).record == {"step": 7}


def test_a_kill_just_before_the_final_name_leaves_nothing_that_looks_damaged(
    tmp_path: Path,
) -> None:
    with Workspace(tmp_path) as workspace:
        done = workspace.run_stage("load", {}, writes("a")).folder
        done.rename(done.with_suffix(".partial"))
        assert not workspace.run_stage("load", {}, writes("a")).cached
        assert workspace.run_stage("load", {}, must_not_run).cached


def test_the_newest_keys_are_kept_and_foreign_files_too(tmp_path: Path) -> None:
    with Workspace(tmp_path) as workspace:
        results: list[StageResult] = []
        for seed in range(KEPT_KEYS):
            results.append(workspace.run_stage("load", {"seed": seed}, writes("a")))
            os.utime(results[-1].folder, (-seed, -seed))  # times of files decide nothing
        (tmp_path / ".stages/load/notes").mkdir()
        (tmp_path / ".stages/load/0123456789ab.partial").mkdir()
        workspace.run_stage("load", {"seed": 0}, must_not_run)  # used again, so it is new again
        last = workspace.run_stage("load", {"seed": 9}, writes("a"))
    kept = {path.name for path in (tmp_path / ".stages/load").iterdir()}
    assert kept == {"notes", ".used", results[0].key[:12], results[2].key[:12], last.key[:12]}
