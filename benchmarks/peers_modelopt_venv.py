"""The virtual environment that ModelOpt lives in: its pins clash with this project's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from peers_child import last_words

REQUIREMENT = "nvidia-modelopt[onnx]"
SHOWN = ("nvidia-modelopt", "onnx", "onnxruntime-gpu", "onnxruntime", "numpy", "torch")
"""Distributions whose versions the results name."""
PROBE = (
    "import importlib.metadata as m, json, sys\n"
    "found = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
    "print(json.dumps({n: found[n] for n in sys.argv[1:] if n in found}))"
)


def python_of(folder: Path, requirement: str = REQUIREMENT) -> tuple[Path, str | None]:
    """Returns the Python of an environment with ModelOpt, and why there is none.

    The environment is made and filled where it is not there; ``PIP_*`` variables hold, for
    instance a constraint that picks torch without CUDA. One that failed is tried again.
    """
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if ready.is_file():
        return python, None
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.parent / f"{folder.name}.log"
    commands = (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", requirement],
    )
    with log.open("wb") as out:
        for command in commands:
            code = subprocess.run(command, stdout=out, stderr=out, check=False).returncode
            if code:
                return python, f"{requirement} does not install: {last_words(code, log)}"
    ready.touch()
    return python, None


def versions(python: Path) -> dict[str, str]:
    """Returns the versions of `SHOWN` in an environment, those that are there."""
    command = [str(python), "-c", PROBE, *SHOWN]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    parsed: dict[str, str] = json.loads(found.stdout)
    return parsed
