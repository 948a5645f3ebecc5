"""Tests over several processes: how many, which test goes where, and which one comes first.

pytest-xdist does the work where it is installed and nobody says otherwise (``-n 0``,
``-p no:xdist``). A file stays in one process, so its fixtures are made once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

MOST_PROCESSES = 8
"""Each imports torch, onnx and TensorRT for itself, and needs memory for them."""

if "PYTEST_XDIST_WORKER" in os.environ:  # the neighbours need the other cores; torch reads it once
    for library in ("OMP", "MKL", "OPENBLAS"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Decides before pytest-xdist does, in the process that was started."""
    option = config.option
    if not config.pluginmanager.hasplugin("xdist") or hasattr(config, "workerinput"):
        return
    if option.numprocesses is None and option.dist == "no" and not option.tx:
        watched = option.usepdb or option.trace or option.collectonly or option.capture == "no"
        cores = config.hook.pytest_xdist_auto_num_workers(config=config)
        option.numprocesses = 0 if watched else processes(config.args, cores)
    if option.numprocesses and option.dist == "no":
        # First come, first served: each process meets the files in the order of the collection.
        option.dist, option.loadscopereorder = "loadfile", False


def processes(arguments: Sequence[str], cores: int) -> int:
    """Returns how many to start; 0 runs the tests in this one, which costs no start.

    Args:
        arguments: Folders, files and node ids to be run.
        cores: That may be used.
    """
    folders = [argument for argument in arguments if not argument.split("::")[0].endswith(".py")]
    return min(cores, MOST_PROCESSES) if folders and cores > 1 else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts tests that fork ranks before those that start autograd's threads in their process."""
    items.sort(key=lambda item: item.get_closest_marker("forks_ranks") is None)
