"""One build per folder: a lock that names its holder and vanishes with its process."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from fdda_deploy.errors import WorkspaceError


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Holds ``root/.lock`` inside the block; the kernel releases it when the process dies.

    The file stays: who removed it could remove the one that the next build has just locked.

    Raises:
        WorkspaceError: Another process, or another block of this one, holds it.
        OSError: The file cannot be made or locked.
    """
    lock = os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkspaceError(
                f"{root}: {_words(os.read(lock, 4096))} is building into this folder. "
                "Wait for it, or choose another --out."
            ) from None
        os.ftruncate(lock, 0)
        os.write(lock, json.dumps(_holder()).encode())
        yield
    finally:
        os.close(lock)


def _holder() -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "command": shlex.join(sys.argv)[:200],
    }


def _words(content: bytes) -> str:
    """Returns the holder in words; it may be just about to write its name."""
    try:
        words = "process {pid} on {host} since {started} ({command})".format(**json.loads(content))
    except (ValueError, TypeError, KeyError):
        return "another process"
    return "".join(letter if letter.isprintable() else "?" for letter in words)
