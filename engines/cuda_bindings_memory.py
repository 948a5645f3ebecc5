"""Device memory through NVIDIA's ``cuda-bindings``: the CUDA runtime, called by name."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from fdda_deploy.engines.runner import Array
from fdda_deploy.errors import EngineError

INSTALL = "pip install cuda-bindings"
CUDA_SUCCESS = 0


class CudaBindingsMemory:
    """Device memory through NVIDIA's ``cuda-bindings`` (the CUDA runtime).

    Raises:
        EngineError: A CUDA call failed; the message has its name and CUDA's.
    """

    name = "cuda-bindings"

    def __init__(self) -> None:
        self._cuda: Any = importlib.import_module("cuda.bindings.runtime")
        self._held: set[int] = set()
        self._pinned: set[int] = set()
        self._graphs: list[Any] = []
        self._events: list[Any] = []
        self._stream = self._call("cudaStreamCreate")

    @property
    def stream(self) -> int:
        """Handle of the one stream, as TensorRT takes it."""
        return int(self._stream)

    def allocate(self, num_bytes: int) -> int:
        """Returns the device address of ``num_bytes`` bytes."""
        address = int(self._call("cudaMalloc", num_bytes))
        self._held.add(address)
        return address

    def free(self, address: int) -> None:
        """Gives an allocation back."""
        self._held.remove(address)
        self._call("cudaFree", address)

    def copy_to_device(self, address: int, array: Array) -> None:
        """Queues a copy of a contiguous array; it must live until ``synchronize``."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        size, host = array.nbytes, array.ctypes.data
        self._call("cudaMemcpyAsync", address, host, size, kind, self._stream)

    def copy_to_host(self, array: Array, address: int) -> None:
        """Queues a copy into a contiguous array; its values are there after ``synchronize``."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        size, host = array.nbytes, array.ctypes.data
        self._call("cudaMemcpyAsync", host, address, size, kind, self._stream)

    def pinned(self, num_bytes: int) -> Array:
        """Returns page-locked host memory, ``(num_bytes,)`` uint8, that lives until ``close``."""
        address = int(self._call("cudaMallocHost", num_bytes))
        self._pinned.add(address)
        block = (ctypes.c_ubyte * num_bytes).from_address(address)
        array: Array = np.ctypeslib.as_array(block)
        return array

    def free_pinned(self, array: Array) -> None:
        """Gives one array of ``pinned`` back."""
        self._pinned.remove(array.ctypes.data)
        self._call("cudaFreeHost", array.ctypes.data)

    def capture(self, enqueue: Callable[[], None]) -> Any:
        """Returns what ``enqueue`` queues on the stream as a CUDA graph; nothing runs yet."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            enqueue()
        except BaseException:
            self._cuda.cudaStreamEndCapture(self._stream)  # or the stream stays in capture mode
            raise
        recorded = self._call("cudaStreamEndCapture", self._stream)
        try:
            self._graphs.append(self._call("cudaGraphInstantiate", recorded, 0))
        finally:
            self._cuda.cudaGraphDestroy(recorded)
        return self._graphs[-1]

    def launch(self, graph: Any) -> None:
        """Queues a captured graph."""
        self._call("cudaGraphLaunch", graph, self._stream)

    def free_graph(self, graph: Any) -> None:
        """Gives a captured graph back."""
        self._graphs.remove(graph)
        self._call("cudaGraphExecDestroy", graph)

    def is_done(self, event: Any) -> bool:
        """Returns whether ``event`` has passed, without waiting."""
        (status,) = self._cuda.cudaEventQuery(event)
        if int(status) == int(self._cuda.cudaError_t.cudaErrorNotReady):
            return False
        self._require("cudaEventQuery", status)
        return True

    def wait(self, event: Any) -> None:
        """Sleeps until ``event`` has passed."""
        self._call("cudaEventSynchronize", event)

    def new_event(self) -> Any:
        """Returns an event that can be recorded again and again; waiting for it sleeps."""
        flags = self._cuda.cudaEventBlockingSync
        self._events.append(self._call("cudaEventCreateWithFlags", flags))
        return self._events[-1]

    def record(self, event: Any) -> None:
        """Queues ``event`` behind everything queued so far."""
        self._call("cudaEventRecord", event, self._stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Returns the device time between two events that have passed, in ms."""
        return float(self._call("cudaEventElapsedTime", start, end))

    def synchronize(self) -> None:
        """Waits until everything queued is done."""
        self._call("cudaStreamSynchronize", self._stream)

    def close(self) -> None:
        """Frees all that is still held; a call that fails does not keep the others from it."""
        for address in self._held:
            self._cuda.cudaFree(address)
        for address in self._pinned:
            self._cuda.cudaFreeHost(address)
        for graph in self._graphs:
            self._cuda.cudaGraphExecDestroy(graph)
        for event in self._events:
            self._cuda.cudaEventDestroy(event)
        self._held, self._pinned, self._graphs, self._events = set(), set(), [], []
        self._cuda.cudaStreamDestroy(self._stream)

    def _call(self, function: str, *arguments: Any) -> Any:
        status, *values = getattr(self._cuda, function)(*arguments)
        self._require(function, status)
        return values[0] if values else None

    def _require(self, function: str, status: Any) -> None:
        if int(status) != CUDA_SUCCESS:
            raise EngineError(
                f"{function} failed: {status.name} ({int(status)}). Check the GPU with nvidia-smi: "
                "driver, free memory, and who else is using it."
            )
