"""Runs a function in forked processes that are ranks of one group.

A fork takes closures along and costs no new start of Python, but a child of a process in which
autograd has started its threads cannot use autograd. So these tests run before all others
(conftest.py looks for the mark).
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import socket
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fdda_deploy.exporters.float_onnx import export_float
from fdda_deploy.pipeline.distributed import Ranks, joined
from fdda_deploy.pipeline.network import trace
from fdda_deploy.pipeline.quantization.fold import fold_batch_norm

Work = Callable[[Ranks], Any]
RANKS = [
    pytest.mark.forks_ranks,
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="this torch was built without torch.distributed and gloo",
    ),
]
"""``pytestmark`` of a file that uses what is here."""


@functools.cache
def import_what_tracing_takes() -> None:
    """Traces a layer in this process: the imports take every child four seconds otherwise.

    Nothing is trained, so children can still use autograd.
    """
    shape = (3, 8, 8)
    export_float(fold_batch_norm(trace(torch.nn.Conv2d(3, 4, 3), shape)), shape)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in names.items()}}


def _child(work: Callable[[], Any], rank: int, size: int, port: int, answers: Any) -> None:
    os.environ.update(environment(rank, size, port))
    torch.set_num_threads(1)  # threads of the parent do not survive the fork
    try:
        answer = work()
    except BaseException as error:  # noqa: BLE001  # whatever it is, the test is to see it
        answer = error.with_traceback(None)
        if not isinstance(error, Exception):
            traceback.print_exc()
    answers.send(answer)
    answers.close()


def outcomes(work: Callable[[], Any], size: int = 2, limit_s: float = 600) -> list[Any]:
    """Returns what ``work`` returns or raises in each of ``size`` ranks; None of a killed one."""
    context, port = multiprocessing.get_context("fork"), free_port()
    children, pipes = [], []
    for rank in range(size):
        here, there = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(work, rank, size, port, there), daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of any fork
            child.start()
        there.close()
        children.append(child)
        pipes.append(here)
    found: list[Any] = []
    end = time.monotonic() + limit_s
    try:
        for pipe in pipes:
            assert pipe.poll(max(0.0, end - time.monotonic())), "a rank still runs"
            try:
                found.append(pipe.recv())
            except EOFError:
                found.append(None)
    finally:
        for child, pipe in zip(children, pipes, strict=True):
            child.join(5 if len(found) == size else 0)
            child.kill()
            pipe.close()
    return found


def joined_outcomes(work: Work, size: int = 2) -> list[Any]:
    """Returns the same of a function of the `Ranks` that were joined."""

    def run() -> Any:
        with joined() as ranks:
            return work(ranks)

    return outcomes(run, size)
