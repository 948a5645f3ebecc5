"""A lack of memory is known by any library's words, and told with what to lower."""

from __future__ import annotations

import errno
import resource

import pytest

from fdda_deploy.errors import BuildError, DataError, MemoryShortageError, ModelError
from fdda_deploy.pipeline import memory
from fdda_deploy.pipeline.memory import LOWER, is_out_of_memory, memory_explained
from fdda_deploy.pipeline.run import ROAD

SAID = [
    MemoryError("Unable to allocate 2 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    type("OutOfMemoryError", (RuntimeError,), {})("CUDA"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("Failed to allocate memory for requested buffer of size 8"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("can't start new thread"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
]


def raised_from(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize("error", SAID, ids=str)
def test_each_librarys_words_become_one_line_that_names_the_stage(error: Exception) -> None:
    with pytest.raises(MemoryShortageError) as told, memory_explained("quantize"):
        raise error
    assert str(told.value) == (
        "quantize: out of memory. Lower --batch-size or --memory-limit, or take --effort fast, or "
        "close other programs or raise the limit (ulimit -v); then run the same command to "
        "continue."
    )
    assert told.value.__cause__ is error


def test_a_stage_with_nothing_to_lower_says_what_is_left() -> None:
    told = pytest.raises(MemoryShortageError, match=r"^load: out of memory\. Close other programs")
    with told, memory_explained("load"):
        raise MemoryError


def test_every_stage_with_advice_is_one_of_the_road() -> None:
    assert set(LOWER) <= {stage.name for stage in ROAD}


def test_an_error_of_ours_that_a_lack_of_memory_caused_is_one() -> None:
    assert is_out_of_memory(raised_from(ModelError("cannot be traced"), MemoryError()))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a wrong value"),
        BuildError("the GPU ran out of memory while timing kernels. Lower --workspace."),
        raised_from(DataError("x.npz: damaged"), MemoryError("Unable to allocate 64 PiB")),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
    ids=["value", "own words", "a header that lies", "disk"],
)
def test_other_failures_are_left_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as passed, memory_explained("engine"):
        raise error
    assert passed.value is error


def test_words_that_can_mean_other_things_count_where_memory_is_limited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = RuntimeError("could not create a primitive")
    limit = resource.RLIM_INFINITY
    monkeypatch.setattr(memory.resource, "getrlimit", lambda _which: (limit, limit))
    assert not is_out_of_memory(error)
    limit = 1 << 32
    assert is_out_of_memory(error)


def test_a_circle_of_causes_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert not is_out_of_memory(first)
