"""On a terminal there are colours, unless NO_COLOR says no; in a pipe there is nothing but text."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

MAIN = "import sys; from fdda_deploy.cli import main; sys.exit(main(sys.argv[1:]))"
COLOUR = re.compile(rb"\x1b\[[0-9;]*(?:3[0-7]|38|4[0-7]|48|9[0-7])[0-9;]*m")
SWITCHES = ("NO_COLOR", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TTY_COMPATIBLE")


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    return {**kept, "TERM": "xterm-256color", **changes}


def on_a_terminal(*words: str, **changes: str) -> bytes:
    """What a person at a terminal gets to see."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", MAIN, *words]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment(**changes)) as run:
        os.close(theirs)
        seen = b""
        while chunk := _read(ours):
            seen += chunk
    os.close(ours)
    assert run.returncode == 0
    return seen


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux's way to say that the other end is closed
        return b""


def test_help_is_coloured_on_a_terminal_and_plain_with_no_color() -> None:
    assert COLOUR.search(on_a_terminal("build", "--help"))
    assert not COLOUR.search(on_a_terminal("build", "--help", NO_COLOR="1"))


@pytest.mark.parametrize("words", [("--help",), ("build", "--help"), ("build", "--bit", "4")])
def test_a_pipe_gets_no_control_character(words: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", MAIN, *words]
    done = subprocess.run(command, capture_output=True, env=environment(), check=False, timeout=600)
    assert b"\x1b" not in done.stdout + done.stderr
    assert done.stdout + done.stderr
