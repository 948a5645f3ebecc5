# ruff: noqa: ARG002, ARG005  # signatures are TensorRT's
"""A GPU in host memory, for what surrounds TensorRT on one: addresses, streams, events, graphs.

Work is queued and done at the first wait, as on a device, so a runner that reads too early reads
zeros. The engine doubles its input, and its profile allows batches of 1 to 8.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from fdda_deploy.engines.trt_api import TrtApi, capabilities_of

PLAN = b"doubles"
SHAPE = (-1, 2, 3)


class SimulatedMemory:
    """`DeviceMemory` over ctypes; ``log`` tells what was asked of it, in order."""

    name = "simulated"
    stream = 77

    def __init__(self) -> None:
        self.log: list[str] = []
        self.held: dict[int, Any] = {}
        self.pages: dict[int, Any] = {}
        self.graphs: list[Any] = []
        self.queue: list[Callable[[], None]] = []
        self.recording: list[Callable[[], None]] | None = None
        self.clock_ms = 0.0
        self.closed = False

    def put(self, work: Callable[[], None], cost_ms: float = 0.0) -> None:
        def done() -> None:
            work()
            self.clock_ms += cost_ms

        (self.queue if self.recording is None else self.recording).append(done)

    def allocate(self, num_bytes: int) -> int:
        block = ctypes.create_string_buffer(num_bytes)
        self.held[ctypes.addressof(block)] = block
        self.log.append(f"allocate {num_bytes}")
        return ctypes.addressof(block)

    def free(self, address: int) -> None:
        del self.held[address]
        self.log.append("free")

    def pinned(self, num_bytes: int) -> np.ndarray:
        array = np.zeros(num_bytes, np.uint8)
        self.pages[array.ctypes.data] = array
        return array

    def free_pinned(self, array: np.ndarray) -> None:
        del self.pages[array.ctypes.data]

    def copy_to_device(self, address: int, array: np.ndarray) -> None:
        assert any(self._inside(array, pages) for pages in self.pages.values()), "not pinned"
        self.put(lambda: ctypes.memmove(address, array.ctypes.data, array.nbytes) and None, 2.0)

    def copy_to_host(self, array: np.ndarray, address: int) -> None:
        assert any(self._inside(array, pages) for pages in self.pages.values()), "not pinned"
        self.put(lambda: ctypes.memmove(array.ctypes.data, address, array.nbytes) and None, 3.0)

    def capture(self, enqueue: Callable[[], None]) -> list[Callable[[], None]]:
        self.recording = []
        try:
            enqueue()
            graph = self.recording
        finally:
            self.recording = None
        self.graphs.append(graph)
        self.log.append("capture")
        return graph

    def launch(self, graph: list[Callable[[], None]]) -> None:
        self.log.append("launch")
        self.queue.extend(graph)

    def free_graph(self, graph: Any) -> None:
        self.graphs.remove(graph)
        self.log.append("free graph")

    def new_event(self) -> SimpleNamespace:
        return SimpleNamespace(at_ms=None)

    def record(self, event: SimpleNamespace) -> None:
        event.at_ms = None
        self.put(lambda: setattr(event, "at_ms", self.clock_ms))

    def is_done(self, event: SimpleNamespace) -> bool:
        self.log.append("poll")
        if self.queue:  # one step at a time: the first polls are too early
            self.queue.pop(0)()
        return event.at_ms is not None

    def wait(self, event: SimpleNamespace) -> None:
        self.log.append("wait")
        self.synchronize()
        assert event.at_ms is not None

    def elapsed_ms(self, start: SimpleNamespace, end: SimpleNamespace) -> float:
        return end.at_ms - start.at_ms

    def synchronize(self) -> None:
        while self.queue:
            self.queue.pop(0)()

    def close(self) -> None:
        self.held, self.pages, self.graphs = {}, {}, []
        self.closed = True

    @staticmethod
    def _inside(array: np.ndarray, pages: np.ndarray) -> bool:
        first = pages.ctypes.data
        return first <= array.ctypes.data and array.ctypes.data + array.nbytes <= first + len(pages)


class _Context:
    def __init__(self, memory: SimulatedMemory) -> None:
        self.memory = memory
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.fails = False
        self.profiler: Any = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = tuple(shape)
        return 1 <= shape[0] <= 8

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == self.memory.stream
        count = int(np.prod(self.shape))
        source, target = self.addresses["x"], self.addresses["y"]

        def double() -> None:
            x = np.ctypeslib.as_array((ctypes.c_float * count).from_address(source))
            y = np.ctypeslib.as_array((ctypes.c_float * count).from_address(target))
            y[:] = 2 * x

        self.memory.log.append("execute")
        self.memory.put(double, 5.0)
        if self.profiler is not None:
            profiler = self.profiler
            self.memory.put(lambda: profiler.report_layer_time("double", 5.0))
        return not self.fails


class _Engine:
    num_io_tensors = 2

    def __init__(self, memory: SimulatedMemory) -> None:
        self.memory = memory
        self.context: _Context | None = None

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "x" else "out"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return SHAPE

    def get_tensor_dtype(self, name: str) -> str:
        return "float"

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(1, 2, 3), (4, 2, 3), (8, 2, 3)]

    def create_engine_inspector(self) -> SimpleNamespace:
        layer = {"Name": "double", "LayerType": "PointWise", "Inputs": [{"Datatype": "FP32"}]}
        told = json.dumps({"Layers": [layer], "I/O Tensors": []})
        return SimpleNamespace(get_engine_information=lambda form: told if form == "json" else "")

    def create_execution_context(self) -> _Context:
        self.context = _Context(self.memory)
        return self.context


def simulated_api(memory: SimulatedMemory) -> TrtApi:
    """A TensorRT whose one plan is `PLAN`; anything else does not load."""

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> _Engine | None:
            return _Engine(memory) if plan == PLAN else None

    module = SimpleNamespace(
        Runtime=Runtime,
        IProfiler=type("IProfiler", (), {}),
        LayerInformationFormat=SimpleNamespace(JSON="json"),
        TensorIOMode=SimpleNamespace(INPUT="in"),
        nptype=lambda name: np.float32,
    )
    return TrtApi(module, "tensorrt_rtx", "9.9.9", capabilities_of(module, "tensorrt_rtx"))
