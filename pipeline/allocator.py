"""Memory on the CPU: freed memory stays for the next activation, and batches fit the cache."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_HEAP_FROM_BYTES = (2**30, 2**25)
"""Allocations below this come from the heap; older glibc refuses more than 32 MiB."""
_KEEP_BYTES = 2**31 - 1
"""Free memory at the heap's end goes back to the kernel above this: the largest C ``int``."""
_CACHE_PIXELS = 8 * 224 * 224
"""Of eight photographs: few enough that an activation is still warm when the next operator reads
it; with small images the calls would cost more than that saves."""


def batch_that_fits_cache(shape: Sequence[int]) -> int:
    """Returns how many images ``(N, C, H, W)`` to run at a time, without gradients.

    Example:
        >>> batch_that_fits_cache((500, 3, 224, 224)), batch_that_fits_cache((500, 3, 32, 32))
        (8, 128)
    """
    height, width = shape[-2:]
    return max(1, min(128, _CACHE_PIXELS // max(1, height * width)))


def keep_freed_memory() -> bool:
    """Makes this process keep freed memory for the next allocation; returns whether it now does.

    By default glibc maps each large activation afresh and gives it back to the kernel when it is
    freed, and the kernel clears every page again: often more time than the operator itself takes.
    Kept memory counts as resident, so the process stays near its peak. Where the C library is not
    glibc nothing is changed. Source: mallopt(3), ``M_MMAP_THRESHOLD`` and ``M_TRIM_THRESHOLD``;
    benchmarks/allocator.py measures the gain.
    """
    if not _has_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    # Only together: to set the second alone would fix the first at its small start value.
    if not any(mallopt(_M_MMAP_THRESHOLD, size) == 1 for size in _HEAP_FROM_BYTES):
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES) == 1)


def return_freed_memory() -> bool:
    """Gives freed memory back to the kernel, between phases whose peaks would else add up.

    What one phase freed is in pieces that the next one's larger activations do not fit. Returns
    whether there was any. Source: malloc_trim(3).
    """
    return _has_glibc() and bool(ctypes.CDLL(None).malloc_trim(0))


def return_freed_memory_above(resident_bytes: int) -> bool:
    """Does so where the process holds more than ``resident_bytes``; returns whether there was any.

    Cheap enough to be asked at every batch.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:  # no Linux
        return False
    return pages * resource.getpagesize() > resident_bytes and return_freed_memory()


def _has_glibc() -> bool:
    if sys.platform != "linux":
        return False
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (OSError, ValueError):
        return False
