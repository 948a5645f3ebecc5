"""How a command's process ends: with its exit code, nothing lost, and no module taken apart."""

from __future__ import annotations

import subprocess
import sys

import pytest

ENDED = """
import atexit, sys, types
import fdda_deploy.__main__ as process

class Slow:
    def __del__(self):
        print("taken apart")

def main():
    print("said")
    return {code}

process.main = main
atexit.register(print, "at the end")
if {torch}:
    sys.modules["torch"] = types.ModuleType("torch")
slow = Slow()
process.run()
"""


@pytest.mark.parametrize("code", [0, 3, 130])
@pytest.mark.parametrize("torch", [True, False])
def test_a_process_ends_with_its_code_and_after_what_is_to_be_done(code: int, torch: bool) -> None:
    program = ENDED.format(code=code, torch=torch)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (code, "")
    # With torch there are too many objects to take apart: seconds for nothing.
    assert done.stdout.split("\n")[:-1] == ["said", "at the end", *["taken apart"] * (not torch)]
