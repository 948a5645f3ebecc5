"""benchmarks/peers_child.py: a quantizer's process, its time, memory, limits and last words."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import peers_child
import peers_modelopt_venv
import pytest

LIMITS = {"threads": 1, "limit_seconds": 30.0, "limit_bytes": 4 * peers_child.GIB}


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def test_a_process_that_ends_well_has_no_words(tmp_path):
    log = tmp_path / "log"
    code = "import os; print(os.environ['OMP_NUM_THREADS'])"
    found = peers_child.run(python(code), log, **LIMITS)
    assert found.failed is None
    assert log.read_text(encoding="utf-8") == "1\n"
    assert found.cpu_seconds > 0
    assert 0 < found.seconds < 30


def test_the_peak_is_of_the_process_alone_and_not_of_the_one_that_started_it(tmp_path):
    ours = np.ones(100 * 2**20 // 8)  # touched: what this process holds must not count
    code = "import time; block = bytearray(40 * 2**20); del block; time.sleep(0.2)"
    found = peers_child.run(python(code), tmp_path / "log", **LIMITS)
    assert ours.sum() > 0
    assert 40 < found.peak_mib < 90


def test_a_process_beyond_its_memory_is_stopped_and_says_so(tmp_path):
    code = "import time; block = bytearray(80 * 2**20); time.sleep(20)"
    found = peers_child.run(
        python(code), tmp_path / "log", threads=1, limit_seconds=30, limit_bytes=60 * 2**20
    )
    assert found.failed == "stopped at 0 GiB of memory, the limit of this benchmark"
    assert found.seconds < 15


def test_a_process_beyond_its_time_is_stopped_and_says_so(tmp_path):
    found = peers_child.run(
        python("import time; time.sleep(20)"),
        tmp_path / "log",
        threads=1,
        limit_seconds=0.2,
        limit_bytes=peers_child.GIB,
    )
    assert found.failed == "stopped after 0 s, the limit of this benchmark"
    assert found.seconds < 15


def test_a_process_that_fails_is_quoted_by_its_last_line(tmp_path):
    found = peers_child.run(
        python("print('first'); raise SystemExit('no such method')"), tmp_path / "log", **LIMITS
    )
    assert found.failed == "exit code 1: no such method"


@pytest.mark.parametrize(
    ("code", "text", "words"),
    [
        (0, "all is well", None),
        (2, "a\n\nb \n", "exit code 2: b"),
        (3, "", "exit code 3"),
        (-9, "Killed", "SIGKILL: Killed"),
    ],
    ids=["well", "words", "silent", "killed"],
)
def test_last_words_are_the_code_and_the_last_line(code, text, words, tmp_path):
    log = tmp_path / "log"
    log.write_text(text, encoding="utf-8")
    assert peers_child.last_words(code, log) == words


def test_an_environment_that_cannot_be_made_says_why(tmp_path):
    place = tmp_path / "venv"
    place.write_text("a file, where a folder must go", encoding="utf-8")
    _, reason = peers_modelopt_venv.python_of(place)
    assert reason is not None
    assert reason.startswith("nvidia-modelopt[onnx] does not install: exit code 1: ")
    assert place.is_file()


def test_an_environment_that_is_ready_is_taken_as_it_is(tmp_path):
    (tmp_path / "ready").touch()
    assert peers_modelopt_venv.python_of(tmp_path) == (tmp_path / "bin" / "python", None)


def test_versions_are_those_that_an_environment_has():
    found = peers_modelopt_venv.versions(Path(sys.executable))
    assert found["numpy"] == np.__version__
    assert found.keys() <= set(peers_modelopt_venv.SHOWN)
