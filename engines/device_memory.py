"""Device memory behind one small protocol: cuda-bindings where it is installed, else pycuda.

Neither is imported before an engine is run. Host arrays are ordinary pageable memory.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, Protocol

from fdda_deploy.engines.messages import one_line
from fdda_deploy.engines.runner import Array
from fdda_deploy.errors import EngineError, MissingBackendError

INSTALL = "pip install cuda-bindings"
CUDA_SUCCESS = 0


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

    def new_event(self) -> Any:
        """Returns an event that can be recorded again and again."""
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


class CudaBindingsMemory:
    """Device memory through NVIDIA's ``cuda-bindings`` (the CUDA runtime).

    Raises:
        EngineError: A CUDA call failed; the message has its name and CUDA's.
    """

    name = "cuda-bindings"

    def __init__(self) -> None:
        self._cuda: Any = importlib.import_module("cuda.bindings.runtime")
        self._held: set[int] = set()
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

    def new_event(self) -> Any:
        """Returns an event that can be recorded again and again."""
        self._events.append(self._call("cudaEventCreate"))
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
        for event in self._events:
            self._cuda.cudaEventDestroy(event)
        self._held, self._events = set(), []
        self._cuda.cudaStreamDestroy(self._stream)

    def _call(self, function: str, *arguments: Any) -> Any:
        status, *values = getattr(self._cuda, function)(*arguments)
        if int(status) != CUDA_SUCCESS:
            raise EngineError(
                f"{function} failed: {status.name} ({int(status)}). Check the GPU with nvidia-smi: "
                "driver, free memory, and who else is using it."
            )
        return values[0] if values else None


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

    def new_event(self) -> Any:
        """Returns an event that can be recorded again and again."""
        return self._cuda.Event()

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
        self._held = {}
        self._context.pop()


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
