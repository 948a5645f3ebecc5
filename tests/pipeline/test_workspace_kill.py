"""A build that is killed anywhere continues, and ends with the bytes of one that was not."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

BUILD = """
import hashlib, os, signal, sys, time
from pathlib import Path

from fdda_deploy.pipeline import workspace as module
from fdda_deploy.pipeline.workspace import Workspace, atomic_write

module.code_digest = lambda: "fixed"  # so that editing a source while the tests run spoils nothing
root, kill_at, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
events = 0
steps_done = 0

def watch(event, _arguments):
    global events
    if event in ("open", "fcntl.flock") or event.startswith(("os.", "shutil.")):
        events += 1
        if events == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

def train(folder):
    global steps_done
    checkpoint = folder / "checkpoint"
    state = checkpoint.read_bytes() if checkpoint.exists() else b"0"
    for step in range(int(state), 4):
        time.sleep(pause)
        atomic_write(checkpoint, str(step + 1))
        steps_done += 1
    for part in range(2):  # written in place: torn by a kill, so written again when resumed
        with (folder / f"part{part}.bin").open("wb") as file:
            for chunk in range(3):
                file.write(bytes([part, chunk]) * 50_000)
                time.sleep(pause)
    checkpoint.unlink()
    return {"steps": 4}

def derive(folder, source):
    content = (source / "part1.bin").read_bytes()
    time.sleep(pause)
    atomic_write(folder / "derived.txt", hashlib.sha256(content).hexdigest())
    return {"bytes": len(content)}

hashlib.sha256(b"").hexdigest()
print("ready", flush=True)
sys.addaudithook(watch)
with Workspace(root) as workspace:
    trained = workspace.run_stage("train", {"seed": 1}, train)
    source = trained.folder
    derived = workspace.run_stage("derive", {"of": trained.key}, lambda f: derive(f, source))
    workspace.publish({"deep/part0.bin": trained.folder / "part0.bin",
                       "derived.txt": derived.folder / "derived.txt"})
    atomic_write(root / "report.json", f"{trained.record} {derived.record}")
count = events
files = sorted(p for p in root.rglob("*") if p.is_file() and p.name not in (".lock", "stage.json"))
for path in files:
    print(path.relative_to(root), hashlib.sha256(path.read_bytes()).hexdigest())
print("events", count, "steps", steps_done)
"""


def start(root: Path, kill_at: int = 0, pause: float = 0.0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD, str(root), str(kill_at), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(root: Path) -> tuple[list[str], int, int]:
    """Returns the digests of every file, the file events and the training steps of a whole run."""
    process = start(root)
    lines = process.communicate(timeout=600)[0].splitlines()
    assert process.returncode == 0
    _, events, _, steps = lines[-1].split()
    return lines[1:-1], int(events), int(steps)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], int, int]:
    return finish(tmp_path_factory.mktemp("undisturbed"))


POINTS = 16


@pytest.mark.parametrize("point", range(POINTS))
def test_killed_before_a_file_operation_the_next_run_ends_the_same(
    tmp_path: Path, undisturbed: tuple[list[str], int, int], point: int
) -> None:
    digests, events, _ = undisturbed
    process = start(tmp_path, kill_at=1 + point * (events - 1) // (POINTS - 1))
    process.communicate(timeout=600)
    assert process.returncode == -9
    assert finish(tmp_path)[0] == digests


def test_killed_again_and_again_at_random_times_it_still_arrives(
    tmp_path: Path, undisturbed: tuple[list[str], int, int]
) -> None:
    dice = random.Random(20)  # noqa: S311 - times to kill at, not a secret
    for _ in range(6):
        with start(tmp_path, pause=0.02) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(dice.uniform(0.0, 0.15))
            process.kill()
    assert finish(tmp_path)[0] == undisturbed[0]


def test_training_continues_from_its_checkpoint(tmp_path: Path) -> None:
    with start(tmp_path, pause=0.2) as process:
        while not list(tmp_path.glob(".stages/train/*.partial/checkpoint")):
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    assert 0 < finish(tmp_path)[2] < 4
