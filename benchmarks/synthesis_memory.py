"""How much memory a piece of work needed at most: resident on Linux, allocated on CUDA."""

from __future__ import annotations

import ctypes
import platform
import re
from pathlib import Path

import torch

MIB = 1 << 20
_STATUS, _REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
"""What resets VmHWM when written to clear_refs: see proc_pid_clear_refs(5)."""


class PeakMemory:
    """Watches from now on.

    On CUDA the peak is the allocator's, elsewhere the process's resident set, from which freed
    pages are given back first, so that what was done before does not count.

    Args:
        device: Where the work is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self._before: int | None = torch.cuda.memory_allocated(device)
            return
        _give_back()
        self._before = None
        if _REFS.exists():
            _REFS.write_text(_RESET_PEAK, encoding="ascii")
            self._before = kib_of("VmRSS", _STATUS.read_text(encoding="utf-8")) * 1024

    def growth_bytes(self) -> int | None:
        """Returns the peak since the start, less what was held then; None where nobody counts."""
        if self._before is None:
            return None
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self._before
        peak = kib_of("VmHWM", _STATUS.read_text(encoding="utf-8")) * 1024
        return max(0, peak - self._before)


def kib_of(field: str, status: str) -> int:
    """Returns a size in KiB from the text of ``/proc/self/status``.

    Raises:
        ValueError: There is no such field.
    """
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise ValueError(f"/proc/self/status: no field {field}. Is this Linux?")
    return int(found.group(1))


def cpu_name() -> str:
    """Returns the processor's name as the system has it."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _give_back() -> None:
    """Asks the C library for freed pages, where it can give them back."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
