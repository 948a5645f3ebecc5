"""Running out of memory, in the words of any library, as one line that says what to lower."""

from __future__ import annotations

import contextlib
import errno
import resource
from collections.abc import Iterator

from fdda_deploy.errors import DataError, FddaDeployError, MemoryShortageError

SAID = (
    "defaultcpuallocator",  # torch
    "can't allocate memory",
    "cannot allocate memory",  # the C library, and so the loader of libraries
    "failed to allocate memory",  # ONNX Runtime
    "failed to map segment",  # the loader of libraries
    "bad_alloc",  # C++
    "out of memory",  # CUDA
    "can't start new thread",  # a thread's stack did not fit
)
"""Parts of messages that mean one thing: there was not enough memory."""

SAID_UNDER_A_LIMIT = (
    "could not create a primitive",  # oneDNN maps memory for the code that it makes
    "could not execute a primitive",
    "resource temporarily unavailable",  # a thread of autograd's
)
"""Parts that can mean other things, but hardly in a process whose memory is limited."""

LOWER = {
    "statistics": "Lower --batch-size",
    "synthesize": "Lower --num-images, or the batch of the recipe under [synthesis.overrides]",
    "sensitivity": "Lower --batch-size",
    "assign": "Lower --batch-size",
    "quantize": "Lower --batch-size or --memory-limit, or take --effort fast",
    "engine": "Lower --max-batch or --workspace",
    "bench": "Lower --batch-size or --max-batch",
    "evaluate": "Lower --batch-size",
}
"""What makes a stage smaller; the others have nothing that could be lowered."""


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether ``error``, or what it was raised from, says that there was no memory.

    A `DataError` is not: an array's header that lies about its size is the file's fault.
    """
    if isinstance(error, DataError):
        return False
    seen: set[int] = set()
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        seen.add(id(now))
        if _says_so(now):
            return True
        now = now.__cause__ or now.__context__
    return False


@contextlib.contextmanager
def memory_explained(stage: str) -> Iterator[None]:
    """Turns what a lack of memory raises inside the block into a line that says what to lower.

    Args:
        stage: The stage of the road that runs in it.

    Raises:
        MemoryShortageError: In place of MemoryError, or of a library's own words for it.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        lower = LOWER.get(stage)
        first = f"{lower}, or close" if lower else "Close"
        raise MemoryShortageError(
            f"{stage}: out of memory. {first} other programs or raise the limit (ulimit -v); "
            "then run the same command to continue."
        ) from error


def _says_so(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if isinstance(error, FddaDeployError):  # its sentence is ours, and says what to do
        return False
    text = str(error).lower()
    limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    return any(words in text for words in (*SAID, *(SAID_UNDER_A_LIMIT if limited else ())))
