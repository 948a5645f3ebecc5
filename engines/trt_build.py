"""ONNX -> plan: parse, one optimization profile for the batch, build; refusals name our node."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from fdda_deploy.engines.messages import one_line
from fdda_deploy.engines.onnx_gate import require_sound_onnx
from fdda_deploy.engines.trt_api import (
    LogRecord,
    TrtApi,
    collect_log,
    errors_in,
    gpu_present,
    without_driver_noise,
)
from fdda_deploy.errors import BuildError, ConfigError, MissingBackendError

CHECK = "Run `fdda-deploy check` on the ONNX file: it names the rule and the repair."


@dataclass(frozen=True)
class BuildOptions:
    """How a plan is built.

    Attributes:
        compute_capabilities: GPU generations the plan is for, 86 for SM86; empty for a plan that
            any supported GPU takes (TensorRT-RTX), or for the GPU at hand (TensorRT).
        min_batch: Smallest batch the plan accepts.
        opt_batch: The batch that kernels are chosen for.
        max_batch: Largest batch the plan accepts.
        workspace_bytes: Scratch memory the builder may plan with; None leaves TensorRT's default,
            the whole device.
        optimization_level: 0 (quick build) to 5 (quick plan); None leaves TensorRT's default.

    Raises:
        ConfigError: Batches that are not ``1 <= min <= opt <= max``, a level outside 0 to 5, or
            no workspace.
    """

    compute_capabilities: tuple[int, ...] = ()
    min_batch: int = 1
    opt_batch: int = 8
    max_batch: int = 64
    workspace_bytes: int | None = None
    optimization_level: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise ConfigError(
                f"batches min {self.min_batch}, opt {self.opt_batch}, max {self.max_batch}: "
                "want 1 <= min <= opt <= max."
            )
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise ConfigError(f"workspace of {self.workspace_bytes} bytes: want 1 or more.")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise ConfigError(f"optimization level {self.optimization_level}: want 0 to 5.")


@dataclass(frozen=True)
class BuiltPlan:
    """A plan and how it came about.

    Attributes:
        plan: The serialized engine.
        seconds: Parse and build together.
        backend: ``tensorrt`` or ``tensorrt_rtx``.
        version: The builder's; a plan runs on no other release of TensorRT.
        log: Warnings and errors, ``WARNING: text``.
    """

    plan: bytes
    seconds: float
    backend: str
    version: str
    log: tuple[str, ...]


def build_plan(model: bytes, options: BuildOptions, api: TrtApi) -> BuiltPlan:
    """Returns the plan of a serialized ONNX graph, as strongly typed as its Q/DQ nodes make it.

    Raises:
        ConfigError: A compute capability that this TensorRT does not know.
        MissingBackendError: This TensorRT builds on the GPU only, and there is none.
        BuildError: The graph was refused; the message names the ONNX node where TensorRT does.
    """
    _require_gpu(api)
    _require_compute_capabilities(options, api)
    require_sound_onnx(model)
    start = time.perf_counter()
    with collect_log(api) as (logger, records), _BuildSession(api, logger) as session:
        _parse(session, model, api)
        _add_profile(session, options)
        _configure(session, options, api)
        plan = _build(session, records, options, api)
    log = tuple(
        f"{record.severity}: {one_line(record.text)}"
        for record in records
        if record.severity != "INFO"
    )
    return BuiltPlan(plan, time.perf_counter() - start, api.flavour, api.version, log)


class _BuildSession:
    """Builder, network, config and parser, released in the one order that leaves none dangling.

    The network points into the builder, and its weights into the parser, so both outlive the
    build; they go in reverse order of creation. An error's traceback keeps the variables of every
    function it passed, so those that raise below hold plain values, never a part of TensorRT.
    """

    def __init__(self, api: TrtApi, logger: Any) -> None:
        module = api.module
        try:
            self.builder = module.Builder(logger)
        except (TypeError, RuntimeError) as error:  # pybind11's ways to report a null builder
            raise MissingBackendError(
                f"{api.title} cannot start its builder: {one_line(str(error))}. "
                "Check the GPU driver with nvidia-smi."
            ) from error
        self.network = self.builder.create_network(api.network_flags)
        self.config = self.builder.create_builder_config()
        self.parser = module.OnnxParser(self.network, logger)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.parser = None
        self.config = None
        self.network = None
        self.builder = None


@dataclass(frozen=True)
class _Refusal:
    """What the parser objected to, as plain values: its own error object would outlive it."""

    node: int
    name: str
    operator: str
    text: str


def _parse(session: _BuildSession, model: bytes, api: TrtApi) -> None:
    if not session.parser.parse(model):
        refusal = _first_refusal(session.parser)
        if refusal.node < 0:
            raise BuildError(
                f"{api.title} cannot read the {len(model):,} bytes as an ONNX model: "
                f"{one_line(refusal.text)}. Export it again."
            )
        raise BuildError(
            f"{refusal.name or f'node {refusal.node}'} ({refusal.operator}): {api.title} refuses "
            f"it: {_reason(refusal.text)}. {CHECK}"
        )
    num_inputs, num_outputs = session.network.num_inputs, session.network.num_outputs
    if num_inputs == 0 or num_outputs == 0:
        raise BuildError(
            f"the ONNX model has {num_inputs} inputs and {num_outputs} outputs: "
            "want one of each or more. Export it again."
        )


def _first_refusal(parser: Any) -> _Refusal:
    if parser.num_errors == 0:
        return _Refusal(-1, "", "", "no reason given")
    error = parser.get_error(0)
    return _Refusal(error.node(), error.node_name(), error.node_operator(), error.desc())


def _reason(text: str) -> str:
    lines = without_driver_noise(text).splitlines()
    reasons = [line for line in lines if not line.startswith("Invalid Node")] or lines
    return one_line("\n".join(reasons))


def _configure(session: _BuildSession, options: BuildOptions, api: TrtApi) -> None:
    config, module = session.config, api.module
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.compute_capabilities:
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, number in enumerate(options.compute_capabilities):
            config.set_compute_capability(getattr(module.ComputeCapability, f"SM{number}"), index)


def _add_profile(session: _BuildSession, options: BuildOptions) -> None:
    """Tells the builder which batches to expect; a graph with a fixed batch needs no profile."""
    dynamic = {name: shape for name, shape in _inputs(session.network).items() if -1 in shape}
    if not dynamic:
        return
    for name, shape in dynamic.items():
        if -1 in shape[1:]:
            raise BuildError(
                f"input {name}: shape {shape} is dynamic beyond the batch axis. "
                "Export with a fixed --input-size."
            )
    batches = (options.min_batch, options.opt_batch, options.max_batch)
    profile = session.builder.create_optimization_profile()
    for name, shape in dynamic.items():
        profile.set_shape(name, *[(batch, *shape[1:]) for batch in batches])
    session.config.add_optimization_profile(profile)


def _inputs(network: Any) -> dict[str, tuple[int, ...]]:
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    return {tensor.name: tuple(tensor.shape) for tensor in tensors}


def _build(
    session: _BuildSession, records: list[LogRecord], options: BuildOptions, api: TrtApi
) -> bytes:
    memory = session.builder.build_serialized_network(session.network, session.config)
    if memory is None:
        reason = errors_in(records) or "no reason given"
        where = _named_in(reason, session.network) or "the graph"
        targets = ",".join(map(str, options.compute_capabilities))
        advice = f"Build without the GPU that it names (--sm {targets})." if targets else CHECK
        raise BuildError(f"{where}: {api.title} parsed it but cannot build it: {reason}. {advice}")
    return bytes(memory)  # a copy: the plan outlives the memory that TensorRT owns


def _named_in(reason: str, network: Any) -> str | None:
    """Returns the longest layer name in TensorRT's text: layers carry the names of our nodes.

    The compiler behind the builder appends ``_U`` and a number to the names it was given.
    """
    names = {network.get_layer(index).name for index in range(network.num_layers)} - {""}
    hits = [n for n in names if re.search(rf"(?<![\w/.]){re.escape(n)}(_U\d+)?(?![\w/.])", reason)]
    return max(hits, key=len, default=None)


def _require_gpu(api: TrtApi) -> None:
    if not api.capabilities.builds_without_gpu and not gpu_present():
        raise MissingBackendError(
            f"{api.title} builds on the GPU it builds for, and no NVIDIA GPU is visible. "
            "Use --backend rtx, which builds on the CPU."
        )


def _require_compute_capabilities(options: BuildOptions, api: TrtApi) -> None:
    known = api.capabilities.compute_capabilities
    unknown = [str(sm) for sm in options.compute_capabilities if sm not in known]
    if unknown and not known:
        raise ConfigError(
            f"--sm {','.join(unknown)}: {api.title} builds for the GPU it runs on. "
            "Leave --sm out, or use --backend rtx."
        )
    if unknown:
        raise ConfigError(
            f"--sm {','.join(unknown)}: {api.title} knows {', '.join(map(str, sorted(known)))}."
        )
    if len(set(options.compute_capabilities)) < len(options.compute_capabilities):
        raise ConfigError("--sm names the same compute capability twice.")
