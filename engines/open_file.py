"""The runner for a file: ONNX Runtime for .onnx, TensorRT for a plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fdda_deploy.engines.gpu import gpu_compute_capability
from fdda_deploy.engines.ort_run import Optimizations, OrtRunner
from fdda_deploy.engines.plan_header import load_plan, read_header, require_plan
from fdda_deploy.engines.trt_api import Flavour, load_api
from fdda_deploy.engines.trt_run import TrtRunner
from fdda_deploy.errors import ConfigError, EngineError

PLAN_SUFFIXES = (".plan", ".engine", ".trt")
SUFFIXES = (".onnx", *PLAN_SUFFIXES)


@dataclass(frozen=True)
class OpenOptions:
    """How a file is run.

    Attributes:
        provider: ONNX Runtime's: ``cpu``, ``cuda`` or ``tensorrt``.
        optimizations: ONNX Runtime's graph rewriting.
        num_threads: CPU threads; None takes all.
        flavour: The TensorRT of plans; None takes the one that the plan is of.
        cuda_graph: Launch plans as CUDA graphs.
        spin_wait: Poll for the end of a plan's run.
    """

    provider: str = "cpu"
    optimizations: Optimizations = "all"
    num_threads: int | None = None
    flavour: Flavour | None = None
    cuda_graph: bool = False
    spin_wait: bool = False


def runner_for(path: Path, options: OpenOptions) -> OrtRunner | TrtRunner:
    """Returns a runner that is not entered yet.

    Raises:
        ConfigError: Another kind of file.
        EngineError: No such file, no plan, or one of another release or for other GPUs.
        MissingBackendError: A plan, and the TensorRT it is of is not installed.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"{path}: want a file that ends in {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise EngineError(f"{path}: no such file. Write it with `fdda-deploy build`.")
    if suffix == ".onnx":
        return OrtRunner(
            path,
            optimizations=options.optimizations,
            provider=options.provider,
            num_threads=options.num_threads,
        )
    plan = load_plan(path)
    api = load_api(options.flavour or read_header(plan, str(path)).flavour)
    require_plan(plan, api, gpu_compute_capability(), str(path))
    return TrtRunner(plan, api, cuda_graph=options.cuda_graph, spin_wait=options.spin_wait)
