"""TrtRunner: runs a plan on the GPU without torch, any batch that the plan's profile allows."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import numpy as np

from fdda_deploy.engines.device_memory import DeviceMemory, open_device_memory
from fdda_deploy.engines.gpu import gpu_name, gpu_present
from fdda_deploy.engines.runner import Array, Feed, InputSpec, check_feed
from fdda_deploy.engines.trt_api import LogRecord, TrtApi, collect_log, errors_in
from fdda_deploy.errors import EngineError, MissingBackendError


class TrtRunner:
    """Runs one plan; engine, buffers and stream live from ``__enter__`` to ``__exit__``.

    Args:
        plan: What ``build_plan`` returned, from the same release of TensorRT.
        api: The TensorRT that built it.
    """

    runs_on = "GPU"
    num_threads = None

    def __init__(self, plan: bytes, api: TrtApi) -> None:
        self._plan = plan
        self._api = api
        self._open: _OpenEngine | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Loads the plan.

        Raises:
            MissingBackendError: There is no GPU, or no library for device memory.
            EngineError: The plan is of another release or for another GPU.
        """
        _require_gpu(self._api)
        with ExitStack() as stack:
            self._open = stack.enter_context(_OpenEngine(self._plan, self._api))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open = None
        self._stack.close()

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names that a feed must have, in graph order."""
        return tuple(spec.name for spec in self._engine().inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names that ``infer`` returns, in graph order."""
        return self._engine().output_names

    @property
    def last_gpu_compute_ms(self) -> float:
        """Time on the GPU of the last ``infer``, by CUDA events, without transfers."""
        return self._engine().last_gpu_compute_ms

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Returns every output for one batch.

        Raises:
            EngineError: The feed does not fit the inputs or the profile, or the run failed.
        """
        return self._engine().infer(feed)

    def describe(self) -> str:
        """Returns for instance ``TensorRT 10.13.2 on NVIDIA L4``."""
        return f"{self._api.title} on {gpu_name()}"

    def _engine(self) -> _OpenEngine:
        if self._open is None:
            raise EngineError("TrtRunner is closed: use it inside its with block.")
        return self._open


class _OpenEngine:
    """Everything that exists only while a plan is loaded, released in reverse order."""

    def __init__(self, plan: bytes, api: TrtApi) -> None:
        self._plan = plan
        self._api = api
        self._buffers: dict[str, tuple[int, int]] = {}  # name -> (device address, capacity)
        self.last_gpu_compute_ms = 0.0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            logger, self._records = stack.enter_context(collect_log(self._api))
            self._memory: DeviceMemory = open_device_memory()
            stack.callback(self._memory.close)
            stack.callback(self._drop)
            self._runtime: Any = self._api.module.Runtime(logger)
            self._engine: Any = self._runtime.deserialize_cuda_engine(self._plan)
            if self._engine is None:
                raise EngineError(_refused(self._api, self._records))
            self._context: Any = self._engine.create_execution_context()
            if self._context is None:
                raise EngineError(_refused(self._api, self._records))
            self._start, self._end = self._memory.new_event(), self._memory.new_event()
            self._read_tensors()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def infer(self, feed: Feed) -> dict[str, Array]:
        check_feed(feed, self.inputs)
        memory = self._memory
        arrays = {name: np.ascontiguousarray(array) for name, array in feed.items()}
        for name, array in arrays.items():
            self._set_shape(name, array.shape)
            memory.copy_to_device(self._bind(name, array.nbytes), array)
        outputs = {name: self._empty(name) for name in self.output_names}
        for name, array in outputs.items():
            self._bind(name, array.nbytes)
        memory.record(self._start)
        if not self._context.execute_async_v3(memory.stream):
            raise EngineError(f"{self._api.title} failed while it ran: {errors_in(self._records)}.")
        memory.record(self._end)
        for name, array in outputs.items():
            memory.copy_to_host(array, self._buffers[name][0])
        memory.synchronize()
        self.last_gpu_compute_ms = memory.elapsed_ms(self._start, self._end)
        return outputs

    def _read_tensors(self) -> None:
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        is_input = self._api.module.TensorIOMode.INPUT
        inputs = [name for name in names if engine.get_tensor_mode(name) == is_input]
        self.inputs = tuple(self._spec(name) for name in inputs)
        self.output_names = tuple(name for name in names if name not in inputs)

    def _spec(self, name: str) -> InputSpec:
        shape = tuple(self._engine.get_tensor_shape(name))
        return InputSpec(name, self._dtype(name), tuple(None if n < 0 else n for n in shape))

    def _dtype(self, name: str) -> np.dtype[Any]:
        dtype: np.dtype[Any] = np.dtype(
            self._api.module.nptype(self._engine.get_tensor_dtype(name))
        )
        return dtype

    def _empty(self, name: str) -> Array:
        return np.empty(tuple(self._context.get_tensor_shape(name)), self._dtype(name))

    def _set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if not self._context.set_input_shape(name, shape):
            low, _, high = self._engine.get_tensor_profile_shape(name, 0)
            raise EngineError(
                f"input {name}: shape {shape} is outside the plan's {tuple(low)} to {tuple(high)}. "
                "Run smaller batches, or build with a wider batch range."
            )

    def _bind(self, name: str, num_bytes: int) -> int:
        """Returns the tensor's device address, with room for ``num_bytes``; buffers only grow."""
        address, capacity = self._buffers.get(name, (0, 0))
        if num_bytes > capacity:
            if capacity:
                del self._buffers[name]
                self._memory.free(address)
            address = self._memory.allocate(num_bytes)
            self._buffers[name] = (address, num_bytes)
        self._context.set_tensor_address(name, address)
        return address

    def _drop(self) -> None:
        """Releases context, engine and runtime in this order: each points into the next."""
        self._context = None
        self._engine = None
        self._runtime = None


def _require_gpu(api: TrtApi) -> None:
    if not gpu_present():
        raise MissingBackendError(
            f"running a {api.title} plan needs an NVIDIA GPU, and none is visible. What works "
            "without one: building TensorRT-RTX plans, `fdda-deploy check`, and accuracy through "
            "ONNX Runtime (--backend ort-cpu). Check nvidia-smi if there should be a GPU."
        )


def _refused(api: TrtApi, records: list[LogRecord]) -> str:
    return (
        f"{api.title} on {gpu_name()} cannot load the plan: {errors_in(records) or 'no reason'}. "
        "A plan fits one TensorRT release and the GPUs it was built for: build it again here."
    )
