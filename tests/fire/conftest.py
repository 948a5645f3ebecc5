"""Real commands in processes of their own, which tests stop, starve and race."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Commands, Undisturbed, digests

HERE = Path(__file__).parent
BENCHMARKS = HERE.parents[1] / "benchmarks"


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Starts commands in forks of a process that has imported everything."""
    folder = tmp_path_factory.mktemp("fire")
    places = [str(HERE), str(HERE.parent), str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, places)),
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
    }
    server = subprocess.Popen(
        [sys.executable, str(HERE / "server.py"), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    with server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield Commands(server.stdin, server.stdout, folder)


@pytest.fixture(scope="session")
def undisturbed(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """What the short build publishes where nothing befalls it."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    start = time.monotonic()
    assert commands.run(commands.build(out)).code == 0
    return Undisturbed(out, digests(out), time.monotonic() - start)
