"""A quantizer in a process of its own: its seconds, its peak memory, and its last words."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.02
GIB = 2**30
WORDS = 300
"""Characters of a failed process's last line that a row keeps."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Finished:
    """One process that has ended.

    Attributes:
        seconds: Wall time from its start to its end, its imports included.
        cpu_seconds: Processor time, user and system, of all its threads.
        peak_mib: Largest resident memory, in MiB: the kernel's high-water mark of the program.
        failed: Why it gave no result, one line; None where it did.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float
    failed: str | None


def run(
    command: Sequence[str],
    log: Path,
    *,
    threads: int,
    limit_seconds: float,
    limit_bytes: int,
) -> Finished:
    """Runs a command to its end, or to the first limit it passes.

    Args:
        command: Program and arguments.
        log: File that takes all it prints.
        threads: What the numeric libraries are told; CPUs are those of this process.
        limit_seconds: Wall time after which it is killed.
        limit_bytes: Resident memory beyond which it is killed.
    """
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    with log.open("wb") as out:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        stopped, peak = None, 0
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            seconds = time.perf_counter() - started
            if pid:
                break
            peak = max(peak, peak_bytes(process.pid))
            stopped = stopped or over_limit(seconds, peak, limit_seconds, limit_bytes)
            if stopped is not None:
                process.kill()
            time.sleep(POLL_SECONDS)
    process.returncode = os.waitstatus_to_exitcode(status)  # wait4 has told us, not Popen
    failed = stopped or last_words(process.returncode, log)
    cpu = usage.ru_utime + usage.ru_stime
    return Finished(seconds, cpu, peak / 2**20, failed)


def over_limit(seconds: float, peak: int, limit_seconds: float, limit_bytes: int) -> str | None:
    """Returns why a process is to be stopped, None where it may go on."""
    if seconds > limit_seconds:
        return f"stopped after {limit_seconds:.0f} s, the limit of this benchmark"
    if peak > limit_bytes:
        return f"stopped at {limit_bytes / GIB:.0f} GiB of memory, the limit of this benchmark"
    return None


def peak_bytes(pid: int) -> int:
    """Returns the most memory that a running program has held; 0 where it has just ended.

    The kernel's ``VmHWM``, which starts anew with the program. ``ru_maxrss`` does not: it begins at
    what the process that started it held.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(found[0]) if found else 0


def last_words(code: int, log: Path) -> str | None:
    """Returns None for exit code 0, else the code and the last line that was printed."""
    if code == 0:
        return None
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"{how}: {lines[-1][:WORDS]}" if lines else how
