"""Builds that are killed, refused, repeated with other settings, or continued by a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from road_networks import own

from fdda_deploy.config import to_toml
from fdda_deploy.errors import DataError, WorkspaceError
from fdda_deploy.pipeline.report.manifest import verify
from fdda_deploy.pipeline.run import build
from fdda_deploy.pipeline.synthesis.synthesizer import StepRecord, Synthesizer

BUILD = """
import sys
from pathlib import Path
from fdda_deploy.config import config_from
from fdda_deploy.pipeline import workspace
from fdda_deploy.pipeline.run import build

workspace.code_digest = lambda: "fixed"  # as in the process that starts this one
build(config_from(Path(sys.argv[1]), {}), until="export", checkpoint_every_seconds=0.0)
"""
STEPS = 100


def visible_files(folder: Path) -> set[str]:
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return {p.as_posix() for p in found if not p.parts[0].startswith(".")}


@pytest.fixture(scope="module")
def killed(networks: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, int]:
    """A build killed in the middle of synthesis; what a second build was told before; its pid."""
    out = tmp_path_factory.mktemp("killed") / "out"
    config = own(networks, out, num_steps=STEPS)
    file = out.parent / "config.toml"
    file.write_text(to_toml(config))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BUILD, str(file)]
    with subprocess.Popen(command, env=environment) as process:
        try:
            deadline = time.monotonic() + 180
            while not list(out.glob(".stages/synthesize/*.partial/generator.ckpt")):
                assert process.poll() is None, "the build ended before it could be killed"
                assert time.monotonic() < deadline
                time.sleep(0.002)
            with pytest.raises(WorkspaceError) as refused:
                build(own(networks, out, num_steps=STEPS))
        finally:
            process.kill()
    assert process.returncode == -9
    return out, str(refused.value), process.pid


def test_a_second_build_is_refused_naming_the_first(killed: tuple[Path, str, int]) -> None:
    out, message, pid = killed
    assert message.startswith(f"{out}: process {pid} on ")
    assert message.endswith("is building into this folder. Wait for it, or choose another --out.")
    assert "\n" not in message


def test_a_killed_build_continues_its_training_and_ends_as_if_nothing_had_happened(
    killed: tuple[Path, str, int],
    networks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = killed[0]
    assert visible_files(out) == set()
    steps = 0
    step = Synthesizer.step

    def counted(synthesizer: Synthesizer) -> StepRecord:
        nonlocal steps
        steps += 1
        return step(synthesizer)

    monkeypatch.setattr(Synthesizer, "step", counted)
    build(own(networks, out, num_steps=STEPS), until="export")
    assert 0 < steps < STEPS
    steps = 0
    build(own(networks, tmp_path, num_steps=STEPS), until="export")
    assert steps == STEPS
    assert visible_files(out) == visible_files(tmp_path)
    for name in visible_files(out):
        assert (out / name).read_bytes() == (tmp_path / name).read_bytes(), name


@pytest.fixture
def finished(networks: Path, tmp_path: Path) -> Path:
    build(own(networks, tmp_path, backend="ort-cpu"))
    return tmp_path


def test_results_of_other_settings_replace_the_report_they_would_contradict(
    networks: Path, finished: Path
) -> None:
    everything = visible_files(finished)
    build(own(networks, finished, backend="ort-cpu"), until="export")
    assert visible_files(finished) == everything
    build(own(networks, finished, backend="ort-cpu", scheme="w8a8"), until="export")
    gone = {"manifest.json", "report.json", "report.html", "config.toml"}
    assert visible_files(finished) == everything - gone
    build(own(networks, finished, backend="ort-cpu"))
    assert visible_files(finished) == everything
    assert verify(json.loads((finished / "manifest.json").read_text()), finished) == []


def test_files_that_are_not_ours_stay(networks: Path, finished: Path) -> None:
    for name in ("notes.txt", "synthetic/mine.png"):
        (finished / name).write_text("mine")
    data = str(networks / "calib.npz")
    build(own(networks, finished, backend="ort-cpu", calib_data=data, recipe="none"))
    assert (finished / "notes.txt").exists()
    assert visible_files(finished / "synthetic") == {"mine.png"}


def test_a_build_that_fails_leaves_the_results_of_the_one_before(
    networks: Path, finished: Path
) -> None:
    before = {name: (finished / name).read_bytes() for name in visible_files(finished)}
    with pytest.raises(DataError, match="has no BatchNorm layer"):
        build(own(networks, finished, "plain", backend="ort-cpu"))
    assert {name: (finished / name).read_bytes() for name in visible_files(finished)} == before
    assert verify(json.loads(before["manifest.json"]), finished) == []
