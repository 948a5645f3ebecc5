"""Keeping freed memory: warm pages are used again, and other C libraries are left alone."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable

import pytest

from fdda_deploy.config import BuildConfig, ModelConfig
from fdda_deploy.pipeline import allocator, run
from fdda_deploy.pipeline.allocator import batch_that_fits_cache, keep_freed_memory

PAGE_FAULTS_OF_REUSE = """
import ctypes, resource, sys
from fdda_deploy.pipeline.allocator import batch_that_fits_cache, keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
libc.free.argtypes = (ctypes.c_void_p,)
size = 2**26
def use():
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


class FakeLibrary:
    """A C library whose mallopt accepts what ``accepts`` says, and remembers what it was told."""

    def __init__(self, accepts: Callable[[int, int], bool]) -> None:
        self.told: list[tuple[int, int]] = []

        def mallopt(parameter: int, value: int) -> int:
            self.told.append((parameter, value))
            return int(accepts(parameter, value))

        self.mallopt = mallopt


def use_library(monkeypatch: pytest.MonkeyPatch, library: FakeLibrary) -> None:
    monkeypatch.setattr(allocator, "_has_glibc", lambda: True)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)


def page_faults(setting: str) -> int:
    command = [sys.executable, "-c", PAGE_FAULTS_OF_REUSE, setting]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not allocator._has_glibc(), reason="mallopt is glibc's")
def test_freed_memory_is_used_again_without_page_faults():
    assert page_faults("return") > 100
    assert page_faults("keep") < page_faults("return") / 10


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_left_alone(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("no library is to be opened"))
    assert keep_freed_memory() is False


@pytest.mark.parametrize("answer", [None, "", ValueError("unrecognized configuration name")])
def test_other_c_libraries_are_left_alone(monkeypatch, answer):
    def confstr(name: str) -> str | None:
        if isinstance(answer, ValueError):
            raise answer
        return answer

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(allocator.os, "confstr", confstr)
    assert keep_freed_memory() is False


def test_old_glibc_gets_the_threshold_that_it_takes(monkeypatch):
    library = FakeLibrary(lambda parameter, value: parameter == -1 or value <= 2**25)
    use_library(monkeypatch, library)
    assert keep_freed_memory() is True
    assert library.told == [(-3, 2**30), (-3, 2**25), (-1, 2**31 - 1)]


def test_trimming_is_not_touched_where_the_threshold_is_refused(monkeypatch):
    library = FakeLibrary(lambda parameter, _: parameter == -1)
    use_library(monkeypatch, library)
    assert keep_freed_memory() is False
    assert all(parameter == -3 for parameter, _ in library.told)


class KeptError(Exception):
    """Ends a run as soon as it has asked for its memory."""


def test_a_run_keeps_freed_memory(monkeypatch):
    def keep() -> bool:
        raise KeptError

    monkeypatch.setattr(run, "keep_freed_memory", keep)
    with pytest.raises(KeptError):
        run.build(BuildConfig(ModelConfig("digits")))


@pytest.mark.parametrize(
    ("size", "wanted"), [((224, 224), 8), ((32, 32), 128), ((448, 448), 2), ((2000, 2000), 1)]
)
def test_a_batch_has_about_the_pixels_of_eight_photographs(
    size: tuple[int, int], wanted: int
) -> None:
    assert batch_that_fits_cache((500, 3, *size)) == wanted


RESIDENT_AFTER_RETURN = """
import ctypes
from fdda_deploy.pipeline.allocator import keep_freed_memory, return_freed_memory_above
assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
libc.free.argtypes = (ctypes.c_void_p,)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
size, start = 2**24, resident()
blocks = [libc.malloc(size) for _ in range(8)]
for block in blocks:
    ctypes.memset(block, 1, size)
for block in blocks[:-1]:  # the last one holds the end of the heap
    libc.free(block)
kept = resident() - start
assert not return_freed_memory_above(resident() + size)
assert resident() - start > 6 * size
assert return_freed_memory_above(resident() - size)
print(kept / size, (resident() - start) / size)
"""


@pytest.mark.skipif(not allocator._has_glibc(), reason="malloc_trim is glibc's")
def test_what_is_kept_can_be_returned_though_the_end_of_the_heap_is_in_use():
    command = [sys.executable, "-c", RESIDENT_AFTER_RETURN]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    kept, left = map(float, done.stdout.split())
    assert (round(kept), round(left)) == (8, 1), "the kernel may take a few pages meanwhile"


def test_another_c_library_has_nothing_to_return(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(allocator, "_has_glibc", lambda: False)
    assert not allocator.return_freed_memory()
