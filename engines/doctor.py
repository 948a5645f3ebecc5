"""Which backends work on this machine, the install line for those that do not, and the choice."""

from __future__ import annotations

from dataclasses import dataclass

from fdda_deploy.config.engine import TARGET_OF_BACKEND, Backend
from fdda_deploy.engines.device_memory import INSTALL as INSTALL_MEMORY
from fdda_deploy.engines.device_memory import device_memory_library
from fdda_deploy.engines.gpu import gpu_name, gpu_present
from fdda_deploy.engines.ort_run import INSTALL_CPU, INSTALL_GPU, import_onnxruntime
from fdda_deploy.engines.trt_api import INSTALL, TITLES, Flavour, load_api
from fdda_deploy.errors import ConfigError, MissingBackendError

FLAVOURS: dict[str, Flavour] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
NO_GPU = "no NVIDIA GPU is visible"


@dataclass(frozen=True)
class BackendReport:
    """What one backend can do here.

    Attributes:
        name: For people.
        version: None where it does not load.
        can_build: Makes a plan on this machine; ONNX Runtime has none to make.
        can_run: Runs a graph on this machine.
        detail: One line: what holds, or what is missing.
        install: The line that would mend it; None where nothing is missing, or only a GPU.
    """

    name: str
    version: str | None
    can_build: bool
    can_run: bool
    detail: str
    install: str | None


@dataclass(frozen=True)
class BackendChoice:
    """The backend that a build will use.

    Attributes:
        backend: ``tensorrt``, ``rtx`` or ``ort-cpu``.
        reason: One sentence for the report.
    """

    backend: Backend
    reason: str


def backend_reports() -> tuple[BackendReport, ...]:
    """Returns a report each for TensorRT, TensorRT-RTX, ONNX Runtime on the CPU and on CUDA."""
    return (
        _trt_report("tensorrt"),
        _trt_report("tensorrt_rtx"),
        _ort_cpu_report(),
        _ort_cuda_report(),
    )


def choose_backend(requested: str, target: str | None = None) -> BackendChoice:
    """Returns the backend for ``auto``, ``tensorrt``, ``rtx`` or ``ort-cpu``.

    ``auto`` takes TensorRT when it and a GPU are there, else TensorRT-RTX, which builds on the
    CPU, else ONNX Runtime on the CPU; for a graph that was placed for ONNX Runtime, that alone.

    Args:
        requested: As ``--backend`` says.
        target: As ``--target`` says; None follows the backend.

    Raises:
        ConfigError: Another name, or TensorRT for a graph placed for ONNX Runtime's CPU kernels.
        MissingBackendError: The one that was asked for does not work here; the message has the
            install line.
    """
    if requested == "auto" and target != "ort-cpu":
        return _automatic()
    if requested == "auto":
        import_onnxruntime()
        return BackendChoice("ort-cpu", "--target ort-cpu was asked for.")
    backend = next((name for name in TARGET_OF_BACKEND if name == requested), None)
    if backend is None:
        raise ConfigError(f"--backend {requested}: want auto, {', '.join(TARGET_OF_BACKEND)}.")
    if target == "ort-cpu" and backend != "ort-cpu":
        raise ConfigError(
            f"--target ort-cpu with --backend {requested}: its UINT8 activations, zero-points and "
            "INT32 biases are what TensorRT refuses (T003, T004, T015). Leave --backend out, or "
            f"take --target {TARGET_OF_BACKEND[backend]}."
        )
    if backend == "ort-cpu":
        import_onnxruntime()
    else:
        api = load_api(FLAVOURS[backend])
        if not api.capabilities.builds_without_gpu and not gpu_present():
            raise MissingBackendError(
                f"--backend {requested}: {api.title} builds on the GPU and {NO_GPU}. "
                "Use --backend rtx, which builds on the CPU."
            )
    return BackendChoice(backend, f"{requested} was asked for.")


def target_of(backend: Backend) -> str:
    """Returns the placement table that fits a backend: ``trt``, ``rtx`` or ``ort-cpu``."""
    return TARGET_OF_BACKEND[backend]


def flavour_of(backend: Backend) -> Flavour:
    """Returns the TensorRT that a backend loads, for ``load_api``.

    Raises:
        ConfigError: ``ort-cpu``, which builds no plan.
    """
    if backend not in FLAVOURS:
        raise ConfigError(f"--backend {backend} builds no plan. Use {' or '.join(FLAVOURS)}.")
    return FLAVOURS[backend]


def _automatic() -> BackendChoice:
    lacks = []
    if _loads("tensorrt"):
        if gpu_present():
            title = load_api("tensorrt").title
            return BackendChoice("tensorrt", f"{title} and a GPU ({gpu_name()}) are there.")
        lacks.append(NO_GPU)
    else:
        lacks.append("TensorRT is not installed")
    if _loads("tensorrt_rtx"):
        title = load_api("tensorrt_rtx").title
        return BackendChoice("rtx", f"{title} builds on the CPU; {', '.join(lacks)}.")
    import_onnxruntime()
    lacks.append("TensorRT-RTX is not installed")
    return BackendChoice("ort-cpu", f"ONNX Runtime runs the graph itself; {', '.join(lacks)}.")


def _loads(flavour: Flavour) -> bool:
    try:
        load_api(flavour)
    except MissingBackendError:
        return False
    return True


def _trt_report(flavour: Flavour) -> BackendReport:
    name = TITLES[flavour]
    try:
        api = load_api(flavour)
    except MissingBackendError as error:
        detail = str(error).partition(" Install it: ")[0]
        return BackendReport(name, None, False, False, detail, INSTALL[flavour])
    memory, gpu = device_memory_library(), gpu_name()
    can_build = api.capabilities.builds_without_gpu or gpu is not None
    if gpu is None:
        detail = f"builds on the CPU; {NO_GPU} to run on" if can_build else f"loads, but {NO_GPU}"
        return BackendReport(name, api.version, can_build, False, detail, None)
    if memory is None:
        detail = f"builds on {gpu}; running needs a library for device memory"
        return BackendReport(name, api.version, can_build, False, detail, INSTALL_MEMORY)
    return BackendReport(
        name, api.version, can_build, True, f"builds, and runs on {gpu} through {memory}", None
    )


def _ort_cpu_report() -> BackendReport:
    try:
        ort = import_onnxruntime()
    except MissingBackendError as error:
        detail = str(error).partition(" Install it: ")[0]
        return BackendReport("ONNX Runtime CPU", None, False, False, detail, INSTALL_CPU)
    detail = "runs the ONNX file itself; the accuracy of a plan is measured through it"
    return BackendReport("ONNX Runtime CPU", ort.__version__, False, True, detail, None)


def _ort_cuda_report() -> BackendReport:
    name = "ONNX Runtime CUDA"
    try:
        ort = import_onnxruntime()
    except MissingBackendError as error:
        detail = str(error).partition(" Install it: ")[0]
        return BackendReport(name, None, False, False, detail, INSTALL_GPU)
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        detail = "this ONNX Runtime was built without CUDA"
        return BackendReport(name, ort.__version__, False, False, detail, INSTALL_GPU)
    if not gpu_present():
        return BackendReport(name, ort.__version__, False, False, f"built in, but {NO_GPU}", None)
    detail = f"built in; runs on {gpu_name()} if its CUDA libraries load"
    return BackendReport(name, ort.__version__, False, True, detail, None)
