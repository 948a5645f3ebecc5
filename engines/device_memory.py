"""Device memory behind one small protocol: cuda-bindings where it is installed, else pycuda.

Neither is imported before an engine is run. Copies to and from the device are only asynchronous
where the host memory is pinned, so `pinned` hands out such arrays.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, Protocol

from fdda_deploy.engines.cuda_bindings_memory import INSTALL, CudaBindingsMemory
from fdda_deploy.engines.pycuda_memory import PyCudaMemory
from fdda_deploy.engines.runner import Array
from fdda_deploy.errors import MissingBackendError

__all__ = ["INSTALL", "MEMORIES", "DeviceMemory", "device_memory_library", "open_device_memory"]


class DeviceMemory(Protocol):
    """Memory, one stream and events on the first GPU; ``close`` gives all of it back."""

    name: str

    @property
    def stream(self) -> int:
        """Handle of the one stream, as TensorRT takes it."""
        ...

    def allocate(self, num_bytes: int) -> int:
        """Returns the device address of ``num_bytes`` bytes."""
        ...

    def free(self, address: int) -> None:
        """Gives an allocation back."""
        ...

    def copy_to_device(self, address: int, array: Array) -> None:
        """Queues a copy of a contiguous array; it must live until ``synchronize``."""
        ...

    def copy_to_host(self, array: Array, address: int) -> None:
        """Queues a copy into a contiguous array; its values are there after ``synchronize``."""
        ...

    def pinned(self, num_bytes: int) -> Array:
        """Returns page-locked host memory, ``(num_bytes,)`` uint8, that lives until ``close``."""
        ...

    def free_pinned(self, array: Array) -> None:
        """Gives one array of ``pinned`` back."""
        ...

    def capture(self, enqueue: Callable[[], None]) -> Any:
        """Returns what ``enqueue`` queues on the stream as a CUDA graph; nothing runs yet."""
        ...

    def launch(self, graph: Any) -> None:
        """Queues a captured graph."""
        ...

    def free_graph(self, graph: Any) -> None:
        """Gives a captured graph back."""
        ...

    def is_done(self, event: Any) -> bool:
        """Returns whether ``event`` has passed, without waiting."""
        ...

    def wait(self, event: Any) -> None:
        """Sleeps until ``event`` has passed."""
        ...

    def new_event(self) -> Any:
        """Returns an event that can be recorded again and again; waiting for it sleeps."""
        ...

    def record(self, event: Any) -> None:
        """Queues ``event`` behind everything queued so far."""
        ...

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Returns the device time between two events that have passed, in ms."""
        ...

    def synchronize(self) -> None:
        """Waits until everything queued is done."""
        ...

    def close(self) -> None:
        """Frees all that is still held."""
        ...


MEMORIES: dict[str, type[CudaBindingsMemory] | type[PyCudaMemory]] = {
    "cuda.bindings": CudaBindingsMemory,
    "pycuda": PyCudaMemory,
}
"""By import name, NVIDIA's own first: its samples moved from pycuda to it."""


def device_memory_library() -> str | None:
    """Returns the name of the library that would be used, without importing it; None if none."""
    for package, memory in MEMORIES.items():
        if _installed(package):
            return memory.name
    return None


def open_device_memory() -> DeviceMemory:
    """Returns device memory from the first library that is installed.

    Raises:
        MissingBackendError: Neither is installed; the message has the install line.
        EngineError: CUDA does not start.
    """
    for package, memory in MEMORIES.items():
        if _installed(package):
            return memory()
    raise MissingBackendError(
        f"running a plan needs cuda-bindings or pycuda for device memory. Install one: {INSTALL}"
    )


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # the parent package is missing, or was blocked
        return False
