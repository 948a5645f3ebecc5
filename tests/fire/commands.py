"""A command in a process of its own: started, waited for, and what it said and left."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

SHORT = "--num-steps 8 --num-images 16 --finetune-steps 4 --threads 1 --effort fast"
SHORT_RUN = f"{SHORT} --eval-limit 100 --device cpu --backend ort-cpu --quiet"

MOST_SECONDS = 120.0
"""Until a command has begun, on a machine that does much else."""


@dataclass(frozen=True)
class Ended:
    """What a command left: its exit code, or minus the signal that ended it; what it said."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of a failure, without its first word."""
        assert self.code == 1, (self.code, self.err)
        assert self.err.startswith("error: "), self.err
        assert self.err.count("\n") == 1, self.err
        return self.err.removeprefix("error: ").rstrip("\n")


@dataclass(frozen=True)
class Undisturbed:
    """A build that nothing befell: its folder, what it published, how long it took."""

    out: Path
    digests: dict[str, str]
    seconds: float


class Running:
    """A command that was started."""

    def __init__(self, commands: Commands, pid: int, files: tuple[Path, Path]) -> None:
        self.pid, self._commands, self._files = pid, commands, files

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal; one that has ended takes no notice."""
        os.kill(self.pid, number)

    def hold(self, out: Path) -> None:
        """Waits until it holds the lock of its result folder, so that it is well under way."""
        mine, deadline = f'"pid": {self.pid},', time.monotonic() + MOST_SECONDS
        while not ((out / ".lock").exists() and mine in (out / ".lock").read_text()):
            assert time.monotonic() < deadline, "the command does not begin"
            time.sleep(0.001)

    def wait(self) -> Ended:
        """Waits for its end."""
        code = self._commands.ask({"wait": self.pid})
        out, err = (path.read_text(encoding="utf-8") for path in self._files)
        return Ended(code, out, err)


class Commands:
    """Starts commands; ``folder`` holds nets.py and its weights."""

    def __init__(self, questions: TextIO, answers: TextIO, folder: Path) -> None:
        self._questions, self._answers, self.folder = questions, answers, folder
        self._started = 0

    def ask(self, question: dict[str, Any]) -> int:
        self._questions.write(f"{json.dumps(question)}\n")
        self._questions.flush()
        return int(self._answers.readline())

    def start(self, words: list[str], fault: str | None = None, **options: Any) -> Running:
        """Starts a command, befallen by a function of `faults` if one is named."""
        self._started += 1
        names = (self.folder / f"{self._started}.{stream}" for stream in ("out", "err"))
        files = (next(names), next(names))
        ask = {"start": words, "files": [str(path) for path in files]}
        pid = self.ask({**ask, "fault": fault, "options": options})
        return Running(self, pid, files)

    def run(self, words: list[str], fault: str | None = None, **options: Any) -> Ended:
        """Starts a command and waits for its end."""
        return self.start(words, fault, **options).wait()

    def build(self, out: Path, *more: str, until: str = "export") -> list[str]:
        """Returns the words of a short build of the tiny network."""
        network = [f"{self.folder / 'nets.py'}:tiny", "--weights"]
        weights = str(self.folder / "tiny.safetensors")
        return [until, *network, weights, *SHORT_RUN.split(), "--out", str(out), *more]


def digests(out: Path) -> dict[str, str]:
    """Returns the digest of every published file, by its name in the result folder."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not path.relative_to(out).parts[0].startswith(".")
    }


def litter(out: Path) -> list[str]:
    """Returns what no finished build leaves: files in the making and unfinished stages."""
    unfinished = [*out.rglob("*.fdda-temp"), *out.rglob("*.partial")]
    return sorted(path.relative_to(out).as_posix() for path in unfinished)
