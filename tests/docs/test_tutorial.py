"""docs/tutorial.md works: its files are written and its commands run, as a reader would."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fdda_deploy.cli import main
from fdda_deploy.pipeline.stages import running

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
BLOCK = re.compile(r"(?:<!-- ([\w:. ]+) -->\n)?```(\w+)\n(.*?)```", flags=re.DOTALL)
NOT_RUN = {"install", "long"}


def _blocks() -> list[tuple[str, str]]:
    """Returns the mark and the text of every block of the page, in order."""
    return [(mark, text) for mark, _, text in BLOCK.findall(PAGE.read_text(encoding="utf-8"))]


def _run(line: str) -> None:
    program, *words = shlex.split(line)
    if program == "fdda-deploy":
        assert main(words) == 0, line
        return
    assert program == "python", f"{line}: a command that this test does not know"
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}: {done.stderr}"


def test_every_block_says_whether_it_is_run() -> None:
    marks = [mark for mark, _ in _blocks()]
    assert set(marks) - NOT_RUN == {"runs", "file: quick.toml"}
    assert marks.count("runs") > 5


def test_the_commands_of_the_tutorial_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "BENCH_SECONDS", 0.02)
    threads = torch.get_num_threads()
    try:
        for mark, text in _blocks():
            if mark.startswith("file: "):
                (tmp_path / mark.removeprefix("file: ")).write_text(text, encoding="utf-8")
            elif mark == "runs":
                for line in text.splitlines():
                    _run(line)
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    assert "0 of them errors" in said
    assert "deploy/digits: loads" in said
    for name in re.findall(r"`([\w.]+\.(?:html|onnx|json|cache|toml))`", PAGE.read_text("utf-8")):
        places = ("out/quick", "out/quick/synthetic", "deploy/digits", ".")
        assert any((tmp_path / place / name).is_file() for place in places), name
