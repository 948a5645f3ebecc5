"""OrtRunner: runs an ONNX graph with ONNX Runtime, by default exactly as it is written.

Accuracy is measured with optimizations off: ONNX Runtime's default level rewrites quantized
patterns into kernels of its own, and the numbers would be of another graph.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from fdda_deploy.engines.gpu import gpu_name, gpu_present
from fdda_deploy.engines.messages import one_line
from fdda_deploy.engines.runner import Array, Feed, InputSpec, check_feed
from fdda_deploy.errors import ConfigError, EngineError, MissingBackendError

Optimizations = Literal["none", "basic", "extended", "all"]
LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
INSTALL_CPU = "pip install onnxruntime"
INSTALL_GPU = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
FATAL = 4
"""Log severity: every error reaches Python as an exception, so its copy on stderr is noise."""
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


class OrtRunner:
    """Runs one ONNX graph; the session lives from ``__enter__`` to ``__exit__``.

    Args:
        model: The serialized graph, or its path.
        optimizations: Graph rewriting before the run: ``none`` for accuracy, ``all`` for latency;
            ``basic`` and ``extended`` are ONNX Runtime's levels between.
        provider: ``cpu``, ``cuda`` or ``tensorrt``.
        num_threads: CPU threads for one operator; None takes every CPU this process may use.
        io_binding: Keep inputs and outputs where the provider computes and copy each once; None
            does so on a GPU.

    Raises:
        ConfigError: An unknown level or provider, or fewer than one thread.
    """

    def __init__(
        self,
        model: bytes | Path,
        *,
        optimizations: Optimizations = "none",
        provider: str = "cpu",
        num_threads: int | None = None,
        io_binding: bool | None = None,
    ) -> None:
        if optimizations not in LEVELS:
            raise ConfigError(f"optimizations {optimizations}: want {', '.join(LEVELS)}.")
        if provider not in PROVIDERS:
            raise ConfigError(f"provider {provider}: want {', '.join(PROVIDERS)}.")
        if num_threads is not None and num_threads < 1:
            raise ConfigError(f"{num_threads} threads: want 1 or more.")
        self._model = model
        self._optimizations = optimizations
        self._provider = provider
        self._threads = num_threads or _usable_cpus()
        self._io_binding = provider != "cpu" if io_binding is None else io_binding
        self._session: Any = None
        self._specs: tuple[InputSpec, ...] = ()
        self._outputs: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        ort = import_onnxruntime()
        _require_provider(ort, self._provider)
        self._session = self._open(ort)
        self._specs = tuple(_spec(node) for node in self._session.get_inputs())
        self._outputs = tuple(node.name for node in self._session.get_outputs())
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names that a feed must have, in graph order."""
        return tuple(spec.name for spec in self._specs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names that ``infer`` returns, in graph order."""
        return self._outputs

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """What each input accepts, in graph order."""
        return self._specs

    @property
    def runs_on(self) -> str:
        """``CPU`` or ``GPU``."""
        return "CPU" if self._provider == "cpu" else "GPU"

    @property
    def num_threads(self) -> int | None:
        """CPU threads for one operator; None where the GPU computes."""
        return self._threads if self._provider == "cpu" else None

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Returns every output for one batch.

        Raises:
            EngineError: The feed does not fit the inputs, or ONNX Runtime failed; the message
                has its reason.
        """
        if self._session is None:
            raise EngineError("OrtRunner is closed: call infer inside its with block.")
        check_feed(feed, self._specs)
        try:
            arrays = self._bound_run(feed) if self._io_binding else self._plain_run(feed)
        except Exception as error:  # ORT's exceptions have no root of their own
            raise EngineError(
                f"{self._label()}: ONNX Runtime failed while it ran: {one_line(str(error))}. "
                "Try a smaller batch, or run `fdda-deploy check` on the file."
            ) from error
        return dict(zip(self._outputs, arrays, strict=True))

    def describe(self) -> str:
        """Returns for instance ``ONNX Runtime 1.31.1, CPU, 2 threads, optimizations none``."""
        where = f"CPU, {self._threads} thread{'s' if self._threads > 1 else ''}"
        if self._provider != "cpu":
            where = f"{self._provider} provider on {gpu_name()}"
        version = import_onnxruntime().__version__
        return f"ONNX Runtime {version}, {where}, optimizations {self._optimizations}"

    def _plain_run(self, feed: Feed) -> list[Array]:
        arrays: list[Array] = self._session.run(list(self._outputs), dict(feed))
        return arrays

    def _bound_run(self, feed: Feed) -> list[Array]:
        """Runs with inputs and outputs bound to the provider's memory."""
        ort, device = import_onnxruntime(), "cpu" if self._provider == "cpu" else "cuda"
        binding = self._session.io_binding()
        for name, array in feed.items():
            value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device, 0)
            binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            binding.bind_output(name, device)
        self._session.run_with_iobinding(binding)
        return [np.array(array) for array in binding.copy_outputs_to_cpu()]

    def _open(self, ort: Any) -> Any:
        if isinstance(self._model, Path) and not self._model.is_file():
            raise EngineError(f"{self._model}: no such file. Run `fdda-deploy export` first.")
        options = ort.SessionOptions()
        options.log_severity_level = FATAL
        options.graph_optimization_level = getattr(
            ort.GraphOptimizationLevel, LEVELS[self._optimizations]
        )
        options.intra_op_num_threads = self._threads
        model = str(self._model) if isinstance(self._model, Path) else self._model
        wanted = list(PROVIDERS[self._provider])
        try:
            session = ort.InferenceSession(model, options, providers=wanted, enable_fallback=0)
        except Exception as error:  # ORT's exceptions have no root of their own
            raise EngineError(
                f"{self._label()}: ONNX Runtime {ort.__version__} cannot load it: "
                f"{one_line(str(error))}. Export it again, at opset 21 and IR 10."
            ) from error
        if session.get_providers()[0] != wanted[0]:  # ORT falls back without a word
            raise MissingBackendError(
                f"ONNX Runtime {ort.__version__} lists {wanted[0]} but its CUDA libraries do not "
                f"load. Install them: {INSTALL_GPU}"
            )
        return session

    def _label(self) -> str:
        return str(self._model) if isinstance(self._model, Path) else "the ONNX model"


def import_onnxruntime() -> Any:
    """Returns the ``onnxruntime`` module, silenced.

    Raises:
        MissingBackendError: It is not installed, or does not load.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingBackendError(
            f"ONNX Runtime cannot be imported ({one_line(str(error))}). Install it: {INSTALL_CPU}"
        ) from error
    ort.set_default_logger_severity(FATAL)
    return ort


def _require_provider(ort: Any, provider: str) -> None:
    if provider == "cpu":
        return
    name = PROVIDERS[provider][0]
    installed = ort.get_available_providers()
    if name not in installed:
        raise MissingBackendError(
            f"this ONNX Runtime {ort.__version__} was built without {name}; it has "
            f"{', '.join(installed)}. Replace it: pip uninstall onnxruntime && {INSTALL_GPU}"
        )
    if not gpu_present():
        raise MissingBackendError(
            f"provider {provider}: no NVIDIA GPU is visible on this machine; ONNX Runtime "
            f"{ort.__version__} has {', '.join(installed)}. "
            f"Use the cpu provider, or run on a GPU machine after {INSTALL_GPU}"
        )
    ort.preload_dlls()


def _spec(node: Any) -> InputSpec:
    dtype = DTYPES.get(node.type)
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return InputSpec(node.name, None if dtype is None else np.dtype(dtype), shape)


def _usable_cpus() -> int:
    """Returns how many CPUs this process may run on, which a container often limits."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
