"""TrtRunner: runs a plan on the GPU without torch, any batch that the plan's profile allows."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self

from fdda_deploy.engines.device_memory import DeviceMemory, open_device_memory
from fdda_deploy.engines.gpu import gpu_name, gpu_present
from fdda_deploy.engines.runner import Array, Feed, InputSpec, RunParts, check_feed
from fdda_deploy.engines.trt_api import LogRecord, TrtApi, collect_log, errors_in
from fdda_deploy.engines.trt_buffers import TensorBuffers
from fdda_deploy.errors import EngineError, MissingBackendError

NS_PER_MS = 1e6


class TrtRunner:
    """Runs one plan; engine, buffers and stream live from ``__enter__`` to ``__exit__``.

    Needs NumPy, one TensorRT, and cuda-bindings or pycuda; no torch, and nothing else of this
    package's pipeline.

    Args:
        plan: What ``build_plan`` returned, from the same release of TensorRT.
        api: The TensorRT that built it.
        cuda_graph: Capture each shape's run once and launch it as one graph; a new shape is
            captured anew.
        spin_wait: Poll for the end of a run, which answers sooner and keeps a CPU core busy.
        open_memory: Gives the device memory.
    """

    runs_on = "GPU"
    num_threads = None

    def __init__(
        self,
        plan: bytes,
        api: TrtApi,
        *,
        cuda_graph: bool = False,
        spin_wait: bool = False,
        open_memory: Callable[[], DeviceMemory] = open_device_memory,
    ) -> None:
        self.cuda_graph = cuda_graph
        self.spin_wait = spin_wait
        self._plan = plan
        self._api = api
        self._open_memory = open_memory
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
            engine = _OpenEngine(self._plan, self._api, self._open_memory)
            engine.cuda_graph, engine.spin_wait = self.cuda_graph, self.spin_wait
            self._open = stack.enter_context(engine)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
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
    def inputs(self) -> tuple[InputSpec, ...]:
        """What each input accepts, in graph order."""
        return self._engine().inputs

    @property
    def loaded(self) -> tuple[TrtApi, Any, Any]:
        """TensorRT, the engine and its execution context, for `layer_times`; ours until closed."""
        return self._api, *self._engine().parts

    @property
    def last_parts(self) -> RunParts:
        """Where the time of the last run went; zeros before the first."""
        return self._engine().last_parts

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Returns every output for one batch; the arrays are the caller's own.

        Raises:
            EngineError: The feed does not fit the inputs or the profile, or the run failed.
        """
        return self._engine().infer(feed)

    def rerun(self) -> None:
        """Runs the last batch again where it lies on the device, without any copy.

        Raises:
            EngineError: Nothing was run yet, or the run failed.
        """
        self._engine().rerun()

    def describe(self) -> str:
        """Returns for instance ``TensorRT 10.13.2 on NVIDIA L4, CUDA graph``."""
        graph = ", CUDA graph" if self.cuda_graph else ""
        return f"{self._api.title} on {gpu_name()}{graph}"

    def _engine(self) -> _OpenEngine:
        if self._open is None:
            raise EngineError("TrtRunner is closed: use it inside its with block.")
        return self._open


class _OpenEngine:
    """Everything that exists only while a plan is loaded, released in reverse order."""

    def __init__(self, plan: bytes, api: TrtApi, open_memory: Callable[[], DeviceMemory]) -> None:
        self._plan, self._api, self._open_memory = plan, api, open_memory
        self.cuda_graph = self.spin_wait = False
        self._graph: Any = None
        self._bound: dict[str, tuple[int, ...]] | None = None
        self.last_parts = RunParts(0.0, 0.0, 0.0, 0.0)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            logger, self._records = stack.enter_context(collect_log(self._api))
            self._memory = self._open_memory()
            stack.callback(self._memory.close)
            stack.callback(self._drop)
            self._runtime: Any = self._api.module.Runtime(logger)
            self._engine: Any = self._runtime.deserialize_cuda_engine(self._plan)
            if self._engine is None:
                raise EngineError(_refused(self._api, self._records))
            self._context: Any = self._engine.create_execution_context()
            if self._context is None:
                raise EngineError(_refused(self._api, self._records))
            self._events = [self._memory.new_event() for _ in range(4)]
            self._buffers = TensorBuffers(self._api, self._engine, self._memory)
            self.inputs: tuple[InputSpec, ...] = self._buffers.inputs
            self.output_names = self._buffers.output_names
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def infer(self, feed: Feed) -> dict[str, Array]:
        check_feed(feed, self.inputs)
        shapes = {name: tuple(array.shape) for name, array in feed.items()}
        if shapes != self._bound:
            self._bind(shapes)
        self._buffers.fill(feed)
        self._execute(transfers=True)
        return self._buffers.outputs()

    @property
    def parts(self) -> tuple[Any, Any]:
        return self._engine, self._context

    def rerun(self) -> None:
        if self._bound is None:
            raise EngineError("TrtRunner: there is no batch to run again. Call infer first.")
        self._execute(transfers=False)

    def _bind(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Sets shapes and addresses; a graph of other shapes is dropped, for it would run those."""
        self._forget_graph()
        self._bound = None  # until all of it has succeeded
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                low, _, high = self._engine.get_tensor_profile_shape(name, 0)
                raise EngineError(
                    f"input {name}: shape {shape} is outside the plan's {tuple(low)} to "
                    f"{tuple(high)}. Run smaller batches, or build with a wider batch range."
                )
        self._buffers.bind(self._context, shapes)
        if self.cuda_graph:
            self._enqueue()  # once outside: the first run of a shape may allocate, a capture not
            self._memory.synchronize()
            self._graph = self._memory.capture(self._enqueue)
        self._bound = shapes

    def _execute(self, *, transfers: bool) -> None:
        memory = self._memory
        before, start, end, after = self._events
        begun = time.perf_counter_ns()
        memory.record(before)
        if transfers:
            self._buffers.copy_in()
        memory.record(start)
        if self._graph is None:
            self._enqueue()
        else:
            memory.launch(self._graph)
        memory.record(end)
        if transfers:
            self._buffers.copy_out()
        memory.record(after)
        enqueued = time.perf_counter_ns()
        self._wait(after)
        self.last_parts = RunParts(
            (enqueued - begun) / NS_PER_MS,
            memory.elapsed_ms(before, start) if transfers else 0.0,
            memory.elapsed_ms(start, end),
            memory.elapsed_ms(end, after) if transfers else 0.0,
        )

    def _wait(self, event: Any) -> None:
        if not self.spin_wait:
            self._memory.wait(event)
            return
        while not self._memory.is_done(event):
            pass

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._memory.stream):
            raise EngineError(f"{self._api.title} failed while it ran: {errors_in(self._records)}.")

    def _forget_graph(self) -> None:
        if self._graph is not None:
            self._memory.free_graph(self._graph)
            self._graph = None

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
