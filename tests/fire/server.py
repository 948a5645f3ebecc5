"""Runs commands in forks of one process that has imported everything: a build takes a second.

A line on stdin asks, a line on stdout answers, both JSON: ``{"start": words, ...}`` is answered by
the new process's id, ``{"wait": pid}`` by its exit code once it ended (minus the signal, where one
ended it).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import faults
from one_network import read_a_command, share_the_network
from road_networks import own, write_networks

from fdda_deploy.cli import main
from fdda_deploy.pipeline import workspace
from fdda_deploy.pipeline.run import build
from fdda_deploy.pipeline.stages import running


def warm_up(folder: Path) -> None:
    """Imports, traces and translates what every fork needs; trains nothing, so starts no thread."""
    workspace.code_digest = lambda: "fixed"  # sources may be edited meanwhile
    running.BENCH_SECONDS = 0.02
    read_a_command()
    share_the_network()
    if os.fork() == 0:  # settling BatchNorm's statistics is training
        write_networks(folder)
        os._exit(0)
    assert os.wait()[1] == 0
    build(own(folder, folder / "warm", backend="ort-cpu"), until="load")


def start(words: list[str], files: list[str], fault: str | None, options: dict[str, Any]) -> int:
    """Returns the id of a process that runs one command, its stdout and stderr in ``files``."""
    pid = os.fork()
    if pid:
        return pid
    code = 70  # what escapes `main` is a traceback in the file, and this
    try:
        for stream, path in enumerate(["/dev/null", *files]):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), stream)
        if fault is not None:
            getattr(faults, fault)(**options)
        code = main(words)
    except BaseException:  # noqa: BLE001  # the test is to read it
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    """Answers until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        ask = json.loads(line)
        if "wait" in ask:
            status = os.waitpid(ask["wait"], 0)[1]
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = start(ask["start"], ask["files"], ask["fault"], ask["options"])
        answers.write(f"{answer}\n")
        answers.flush()


if __name__ == "__main__":
    warm_up(Path(sys.argv[1]))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    serve()
