"""A build that must fail, and what every failure promises."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fdda_deploy.cli import main

CLASSES = ("ant", "bee", "cat", "dog")


class Refused:
    """What one failed command left: its exit code, its one line, and how long it took."""

    def __init__(self, code: int, line: str, seconds: float) -> None:
        self.code, self.line, self.seconds = code, line, seconds


class Shell:
    """Runs a build that must fail, and checks what every failure promises."""

    def __init__(self, folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.out, self._capsys = folder, out, capsys

    def words(self, words: str, network: str | None, weights: str | None) -> list[str]:
        found = words.split()
        if network is not None:
            weights = str(self.folder / f"{network}.safetensors") if weights is None else weights
            found = [f"{self.folder / 'nets.py'}:{network}", "--weights", weights, *found]
        short = "--num-steps 4 --num-images 8 --finetune-steps 2 --threads 1 --backend ort-cpu"
        return ["build", *found, *short.split(), "--out", str(self.out)]

    def refused(
        self, words: str = "", network: str | None = "tiny", weights: str | None = None
    ) -> Refused:
        start = time.monotonic()
        code = main(self.words(words, network, weights))
        seconds = time.monotonic() - start
        captured = self._capsys.readouterr()
        assert code in {1, 2}
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert self.published() == []
        return Refused(code, captured.err.removeprefix("error: ").rstrip("\n"), seconds)

    def published(self) -> list[str]:
        if not self.out.is_dir():
            return []
        return [path.name for path in self.out.iterdir() if path.name not in {".lock", ".stages"}]
