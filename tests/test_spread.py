"""A test run takes the cores that are there: each file in one process, ranks forked first."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from spread import MOST_PROCESSES, processes

TESTS = Path(__file__).parent
RANKS = "import pytest\npytestmark = pytest.mark.forks_ranks\n"
BODY = """\
import os, pytest
@pytest.mark.parametrize("n", range(3))
def test_it(n):
    with open("journal", "a") as file:
        name = os.path.basename(__file__)
        file.write(f"{os.environ.get('PYTEST_XDIST_WORKER', 'alone')} {name}\\n")
"""


@pytest.mark.parametrize(
    ("arguments", "cores", "wanted"),
    [
        (["tests"], 2, 2),
        (["tests/quant", "tests/cli"], 4, 4),
        (["tests/quant", "tests/test_cli.py"], 2, 2),
        (["tests"], 64, MOST_PROCESSES),
        (["tests"], 1, 0),
        (["tests/test_cli.py"], 8, 0),
        (["tests/test_cli.py::test_help", "tests/test_durable.py::test_it[a/b]"], 8, 0),
    ],
    ids=["all", "folders", "mixed", "many cores", "one core", "a file", "single tests"],
)
def test_folders_are_spread_over_the_cores_and_single_files_are_not(
    arguments: list[str], cores: int, wanted: int
) -> None:
    assert processes(arguments, cores) == wanted


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Six files, of which the last two in the alphabet fork ranks."""
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -q\nmarkers = forks_ranks\n")
    hooks = "pytest_cmdline_main, pytest_collection_modifyitems"
    (tmp_path / "conftest.py").write_text(f"from spread import {hooks}\n")
    for name in "abcdyz":
        (tmp_path / f"test_{name}.py").write_text((RANKS if name in "yz" else "") + BODY)
    return tmp_path


def run(suite: Path, *words: str, **environment: str) -> dict[str, list[str]]:
    """Runs it; returns the files that each process ran, in order."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=suite,
        env={**kept, "PYTHONPATH": str(TESTS), **environment},
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "18 passed in " in done.stdout.splitlines()[-1]
    ran = defaultdict(list)
    for line in (suite / "journal").read_text().splitlines():
        process, name = line.split()
        ran[process].append(name)
    return ran


def test_each_file_stays_in_one_process_and_ranks_are_forked_first(suite: Path) -> None:
    pytest.importorskip("xdist")
    ran = run(suite, PYTEST_XDIST_AUTO_NUM_WORKERS="2")
    assert set(ran) == {"gw0", "gw1"}
    for names in ran.values():
        order = list(dict.fromkeys(names))
        assert names == [name for name in order for _ in range(3)]  # whole files
        forking = [name in {"test_y.py", "test_z.py"} for name in order]
        assert forking == sorted(forking, reverse=True)
    assert sum(map(len, ran.values())) == 18


@pytest.mark.parametrize("words", [("-p", "no:xdist"), ("-s",)], ids=" ".join)
def test_they_run_in_one_process_where_that_is_asked_for(
    suite: Path, words: tuple[str, ...]
) -> None:
    if words[0] != "-p":
        pytest.importorskip("xdist")
    ran = run(suite, *words, PYTEST_XDIST_AUTO_NUM_WORKERS="2")
    assert set(ran) == {"alone"}
    assert list(dict.fromkeys(ran["alone"])) == [f"test_{name}.py" for name in "yzabcd"]
