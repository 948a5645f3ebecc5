"""The shell completes commands, options and the values that an option can have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fdda_deploy.config.engine import BACKENDS, TARGETS
from fdda_deploy.config.sections import EFFORTS, RECIPES
from fdda_deploy.quant.scheme import PRESETS

MAIN = "import sys; from fdda_deploy.cli import main; sys.exit(main())"
HEAVY = ("torch", "numpy", "onnx", "onnxruntime")
LOADED = f"""
import atexit, sys
atexit.register(lambda: print([n for n in {HEAVY!r} if n in sys.modules], file=sys.stderr))
{MAIN}
"""


def completed(line: str, code: str = MAIN) -> subprocess.CompletedProcess[str]:
    """What bash would be offered at the end of ``line``."""
    words = line.split(" ")
    asked = {
        "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(len(words) - 1),
        "_FDDA_DEPLOY_COMPLETE": "complete_bash",
    }
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("fdda-deploy syn", ["synthesize"]),
        ("fdda-deploy cache ex", ["export"]),
        ("fdda-deploy build --calib-d", ["--calib-data"]),
        ("fdda-deploy build dig", ["digits"]),
        ("fdda-deploy build digits --scheme ", list(PRESETS)),
        ("fdda-deploy build digits --recipe ", list(RECIPES)),
        ("fdda-deploy build digits --effort ", list(EFFORTS)),
        ("fdda-deploy build digits --effort n", ["none", "normal"]),
        ("fdda-deploy build digits --target ", list(TARGETS)),
        ("fdda-deploy build digits --backend ", list(BACKENDS)),
        ("fdda-deploy check a.onnx --target trt1", ["trt11", "trt10.16"]),
        ("fdda-deploy check a.onnx --format s", ["sarif"]),
        ("fdda-deploy bench a.onnx --provider c", ["cpu", "cuda"]),
        ("fdda-deploy cache apply a b --missing ", ["error", "float"]),
        ("fdda-deploy cache export a --format o", ["ort", "ort-text"]),
        ("fdda-deploy build digits --weights ", []),  # left to the shell, which knows files
    ],
)
def test_what_can_stand_next_is_offered(line: str, offered: list[str]) -> None:
    assert completed(line).stdout.split() == offered


def test_completion_loads_no_heavy_library() -> None:
    assert completed("fdda-deploy build digits --effort ", LOADED).stderr.strip() == "[]"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_can_be_shown(shell: str) -> None:
    command = [sys.executable, "-c", MAIN, "--show-completion", shell]
    # Without this, typer looks which shell runs it, and takes no name.
    env = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=600)
    assert "_FDDA_DEPLOY_COMPLETE" in done.stdout


def test_installing_writes_into_the_home_folder_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAIN, "--install-completion", "bash"]
    env = {
        **os.environ,
        "HOME": str(tmp_path),
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=600)
    script = tmp_path / ".bash_completions" / "fdda-deploy.sh"
    assert "_FDDA_DEPLOY_COMPLETE" in script.read_text()
    assert str(script) in (tmp_path / ".bashrc").read_text()
