"""Device memory through ``pycuda``, in the primary context that TensorRT uses too."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from fdda_deploy.engines.cuda_bindings_memory import INSTALL
from fdda_deploy.engines.messages import one_line
from fdda_deploy.engines.runner import Array
from fdda_deploy.errors import EngineError


class PyCudaMemory:
    """Device memory through ``pycuda``, in the primary context that TensorRT uses too.

    Raises:
        EngineError: The driver does not start. Later failures are pycuda's own exceptions.
    """

    name = "pycuda"

    def __init__(self) -> None:
        self._cuda: Any = importlib.import_module("pycuda.driver")
        try:
            self._cuda.init()
            self._context = self._cuda.Device(0).retain_primary_context()
        except self._cuda.Error as error:
            raise EngineError(
                f"pycuda cannot start: {one_line(str(error))}. Check the GPU with nvidia-smi."
            ) from error
        self._context.push()
        self._held: dict[int, Any] = {}
        self._pinned: dict[int, Any] = {}
        self._stream = self._cuda.Stream()

    @property
    def stream(self) -> int:
        """Handle of the one stream, as TensorRT takes it."""
        return int(self._stream.handle)

    def allocate(self, num_bytes: int) -> int:
        """Returns the device address of ``num_bytes`` bytes."""
        allocation = self._cuda.mem_alloc(num_bytes)
        self._held[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        """Gives an allocation back."""
        self._held.pop(address).free()

    def copy_to_device(self, address: int, array: Array) -> None:
        """Queues a copy of a contiguous array; it must live until ``synchronize``."""
        self._cuda.memcpy_htod_async(address, array, self._stream)

    def copy_to_host(self, array: Array, address: int) -> None:
        """Queues a copy into a contiguous array; its values are there after ``synchronize``."""
        self._cuda.memcpy_dtoh_async(array, address, self._stream)

    def pinned(self, num_bytes: int) -> Array:
        """Returns page-locked host memory, ``(num_bytes,)`` uint8, that lives until ``close``."""
        array: Array = self._cuda.pagelocked_empty(num_bytes, np.uint8)
        self._pinned[array.ctypes.data] = array.base
        return array

    def free_pinned(self, array: Array) -> None:
        """Gives one array of ``pinned`` back."""
        self._pinned.pop(array.ctypes.data).free()

    def capture(self, enqueue: Callable[[], None]) -> Any:  # noqa: ARG002  # the protocol's
        """Raises an EngineError: pycuda has no CUDA graphs."""
        raise EngineError(
            "pycuda captures no CUDA graph. Install the other library, which does "
            f"({INSTALL}), or run without a CUDA graph."
        )

    def launch(self, graph: Any) -> None:
        """Never called: `capture` hands out no graph."""
        raise AssertionError(graph)

    def free_graph(self, graph: Any) -> None:
        """Never called, as above."""
        raise AssertionError(graph)

    def is_done(self, event: Any) -> bool:
        """Returns whether ``event`` has passed, without waiting."""
        return bool(event.query())

    def wait(self, event: Any) -> None:
        """Sleeps until ``event`` has passed."""
        event.synchronize()

    def new_event(self) -> Any:
        """Returns an event that can be recorded again and again; waiting for it sleeps."""
        return self._cuda.Event(self._cuda.event_flags.BLOCKING_SYNC)

    def record(self, event: Any) -> None:
        """Queues ``event`` behind everything queued so far."""
        event.record(self._stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Returns the device time between two events that have passed, in ms."""
        return float(start.time_till(end))

    def synchronize(self) -> None:
        """Waits until everything queued is done."""
        self._stream.synchronize()

    def close(self) -> None:
        """Frees all that is still held, and leaves the context."""
        for allocation in self._held.values():
            allocation.free()
        for pages in self._pinned.values():
            pages.free()
        self._held, self._pinned = {}, {}
        self._context.pop()
