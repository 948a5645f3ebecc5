"""What may befall a build: each function is called in its process before the command starts."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import time
from collections import Counter
from pathlib import Path

from fdda_deploy.durable import TEMP_SUFFIX

MIB = 1 << 20


def die() -> None:
    """Ends this process as ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_next_write(journal: str) -> None:
    """Kills at the first durable step that the journal does not name yet, and names it there.

    A durable step is a file that gets its name, or one that is brought to the disk; this one is
    cut to half its length before the kill, as a torn write leaves it. (A folder is brought to the
    disk right after a name was given in it: a kill there leaves what the next one leaves.)
    """
    seen = set(Path(journal).read_text(encoding="utf-8").splitlines())
    met: Counter[str] = Counter()

    def meet(kind: str, path: str) -> None:
        known = path if not path.endswith(TEMP_SUFFIX) else f"{Path(path).parent}/*"
        met[known] += 1
        name = f"{kind} {known} {met[known]}"
        if name in seen:
            return
        with Path(journal).open("a", encoding="utf-8") as file:
            file.write(f"{name}\n")
        if kind == "fsync":
            os.truncate(path, Path(path).stat().st_size // 2)
        die()

    replace, fsync = os.replace, os.fsync

    def watched_replace(source: str, target: str) -> None:
        meet("replace", str(target))
        replace(source, target)

    def watched_fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_file():
            meet("fsync", str(path))
        fsync(descriptor)

    os.replace, os.fsync = watched_replace, watched_fsync  # type: ignore[assignment]


def limit_memory(beyond_now_mib: int) -> None:
    """Lets this process have so much more address space than it has now, as ``ulimit -v`` does."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + beyond_now_mib * MIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def turn_back_the_clock(seconds: float) -> None:
    """Makes the wall clock of this process late, and later still each time it is read."""
    real, reads = time.time, itertools.count()
    time.time = lambda: real() - seconds * (1 + next(reads))
