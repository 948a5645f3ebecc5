"""Builds of the embedded network, each killed at a random moment and run again: do they end alike?

    python benchmarks/kill_points.py --points 50 --out benchmarks/results/kill_points.json

Every build is a fork of this process, which has imported everything, traced and translated the
network, and trained nothing. It runs the real command from a loaded network on, so the moments fall
into the stages behind that: synthesize, quantize and export. A moment is one of the build's own
processor time, so that a busy machine moves none. Then the same command runs again, undisturbed,
and every file that it publishes must have the bytes of a build that nothing disturbed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from one_network import read_a_command, share_the_network

from fdda_deploy.cli import main as run_command
from fdda_deploy.config import config_from
from fdda_deploy.durable import write_whole
from fdda_deploy.pipeline import workspace
from fdda_deploy.pipeline.run import build

SHORT = "--num-steps 24 --num-images 32 --finetune-steps 12 --effort fast --finetune"
POLL_SECONDS = 0.002
TICKS = os.sysconf("SC_CLK_TCK")
WORDS = f"{SHORT} --threads 1 --device cpu --backend ort-cpu --quiet".split()


def start(out: Path) -> int:
    """Starts the command in a fork of this process; returns its id."""
    pid = os.fork()
    if pid == 0:
        os._exit(run_command(["export", "digits", *WORDS, "--out", str(out)]))
    return pid


def wait(pid: int) -> int:
    """Returns the exit code of a process, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def spent(pid: int) -> float | None:
    """Returns the processor seconds of a process that we started; None where it has ended."""
    state, *fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(") ")[2].split()
    return None if state == "Z" else sum(map(int, fields[10:12])) / TICKS


def digests(out: Path) -> dict[str, str]:
    """Returns the SHA-256 of every published file by its name."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not path.relative_to(out).parts[0].startswith(".")
    }


def at_work(out: Path) -> str:
    """Returns the stage that a kill left unfinished; ``between`` where there is none."""
    unfinished = [path.parent.name for path in out.glob(".stages/*/*.partial")]
    return unfinished[0] if unfinished else "between"


def killed_once(prepared: Path, out: Path, seconds: float) -> dict[str, Any] | None:
    """Kills a build after ``seconds`` of its own, runs it again; None where it had ended before.

    Returns:
        The stage at work, whether a file was in the making or a checkpoint there, the exit code of
        the second run, and the digests that it published.
    """
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(prepared, out)
    pid = start(out)
    while (so_far := spent(pid)) is not None and so_far < seconds:
        time.sleep(POLL_SECONDS)
    os.kill(pid, signal.SIGKILL)
    if wait(pid) != -signal.SIGKILL:
        return None
    found = {
        "cpu_seconds": round(seconds, 3),
        "stage": at_work(out),
        "torn_write": any(out.rglob("*.fdda-temp")),
        "published_before": len(digests(out)),
    }
    return {**found, "code": wait(start(out)), "digests": digests(out)}


def rows_of(points: int, dice: random.Random, folder: Path) -> Iterator[dict[str, Any]]:
    """Yields what each of ``points`` kills found, and how long a build takes that is left alone."""
    workspace.code_digest = lambda: "fixed"  # an edit meanwhile is no fault of the build's
    read_a_command()
    share_the_network()
    prepared, undisturbed = folder / "prepared", folder / "undisturbed"
    settings = {"model": "digits", "backend": "ort-cpu", "threads": 1, "device": "cpu"}
    build(config_from(None, {**settings, "out": str(prepared)}), until="load")
    shutil.copytree(prepared, undisturbed)
    _, status, usage = os.wait4(start(undisturbed), 0)
    if status != 0:
        raise SystemExit("the undisturbed build failed")
    length = usage.ru_utime + usage.ru_stime
    wanted = digests(undisturbed)
    while points:
        row = killed_once(prepared, folder / "killed", dice.uniform(0.0, length))
        if row is not None:
            row["same"] = row.pop("digests") == wanted and row["code"] == 0
            points -= 1
            yield {**row, "undisturbed_cpu_seconds": round(length, 2), "files": len(wanted)}


def summary(rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Returns what the kills so far found, as JSON values."""
    return {
        "points": len(rows),
        "same": sum(row["same"] for row in rows),
        "by_stage": dict(Counter(row["stage"] for row in rows)),
        "torn_writes": sum(row["torn_write"] for row in rows),
        "seed": seed,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "rows": rows,
    }


def main() -> None:
    """Runs the kills, writes the JSON after each; exit code 1 where a build did not end alike."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    dice = random.Random(arguments.seed)  # noqa: S311 - moments to kill at, not a secret
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="kill-points-") as folder:
        for row in rows_of(arguments.points, dice, Path(folder)):
            rows.append(row)
            print(
                f"{len(rows):3}  {row['cpu_seconds']:6.2f} s  {row['stage']:10} same: {row['same']}"
            )
            if arguments.out is not None:  # so that a run that is cut short keeps what it found
                text = json.dumps(summary(rows, arguments.seed), indent=1) + "\n"
                write_whole(arguments.out, text.encode())
    found = summary(rows, arguments.seed)
    print(f"{found['same']} of {found['points']} ended with the same bytes: {found['by_stage']}")
    raise SystemExit(found["same"] != found["points"])


if __name__ == "__main__":
    main()
