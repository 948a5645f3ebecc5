"""The command line answers at once and needs no heavy library until a stage runs."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

HEAVY = [
    *("torch", "torchvision", "numpy", "onnx", "onnxscript", "onnxruntime", "sklearn", "PIL"),
    *("matplotlib", "safetensors", "jinja2", "timm", "pycuda", "cuda"),
    *("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "tensorrt_rtx_libs"),
]
MOST_SECONDS = 2.0
"""Of CPU time: whatever else the machine is doing."""

IN_A_BARE_ENVIRONMENT = f"""
import sys

HEAVY = {HEAVY!r}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ModuleNotFoundError("not installed here: " + name)

sys.meta_path.insert(0, Absent())
from fdda_deploy.cli import main
sys.exit(main(sys.argv[1:]))
"""

LOADED = f"""
import json, sys
from fdda_deploy.cli import main
code = main(sys.argv[1:])
print("\\n" + json.dumps([code, [name for name in {HEAVY!r} if name in sys.modules]]))
"""


def run(code: str, line: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *line.split()]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.parametrize(
    ("line", "code"),
    [("--help", 0), ("build --help", 0), ("--version", 0), ("build digits --bits 99", 2)],
)
def test_without_any_heavy_library_help_and_wrong_flags_still_answer(line: str, code: int) -> None:
    done = run(IN_A_BARE_ENVIRONMENT, line)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("line", ["--help", "build --help", "build digits --bits 99"])
def test_no_heavy_library_is_loaded_for_help_and_wrong_flags(line: str) -> None:
    code, loaded = json.loads(run(LOADED, line).stdout.splitlines()[-1])
    assert code == (2 if "99" in line else 0)
    assert loaded == []


def test_help_answers_within_the_bound_even_on_a_busy_machine() -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run(LOADED, "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < MOST_SECONDS
