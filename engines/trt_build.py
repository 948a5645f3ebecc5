"""ONNX -> plan: parse, one optimization profile for the batch, build; refusals name our node."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any, Protocol, Self

from fdda_deploy.engines.build_log import CHECK, advice
from fdda_deploy.engines.build_options import BuildOptions, Settled, settle
from fdda_deploy.engines.messages import one_line
from fdda_deploy.engines.onnx_gate import require_sound_onnx
from fdda_deploy.engines.timing_cache import TimingCache
from fdda_deploy.engines.trt_api import (
    LogRecord,
    TrtApi,
    collect_log,
    errors_in,
    without_driver_noise,
)
from fdda_deploy.errors import BuildError, MissingBackendError

__all__ = ["BuildOptions", "BuiltPlan", "Calibration", "build_plan"]


class Calibration(Protocol):
    """What measures INT8 ranges while TensorRT 10 builds (`engines.trt_calibrator`)."""

    @property
    def calibrator(self) -> Any:
        """The object that TensorRT calls."""
        ...

    def raise_last_error(self) -> None:
        """Raises what went wrong inside a call; TensorRT itself swallows it."""
        ...


@dataclass(frozen=True)
class BuiltPlan:
    """A plan and how it came about.

    Attributes:
        plan: The serialized engine.
        seconds: Parse and build together.
        backend: ``tensorrt`` or ``tensorrt_rtx``.
        version: The builder's; a plan runs on no other release of TensorRT.
        log: Warnings and errors, ``WARNING: text``.
        notes: What was asked for and not done, or done in another way; a sentence each.
    """

    plan: bytes
    seconds: float
    backend: str
    version: str
    log: tuple[str, ...]
    notes: tuple[str, ...] = ()


def build_plan(
    model: bytes, options: BuildOptions, api: TrtApi, calibration: Calibration | None = None
) -> BuiltPlan:
    """Returns the plan of a serialized ONNX graph, as strongly typed as its Q/DQ nodes make it.

    Args:
        model: A graph in one piece (`onnx_gate.load_onnx` joins one whose weights lie beside it).
        options: How.
        api: Which TensorRT.
        calibration: For a float graph on a TensorRT that has calibrators: it is then built in
            INT8 by implicit quantization, so not strongly typed.

    Raises:
        ConfigError: An option that this TensorRT cannot carry out (`build_options.settle`).
        MissingBackendError: This TensorRT builds on the GPU only, and there is none.
        BuildError: The graph was refused; the message names the ONNX node where TensorRT does,
            our rule and the repair.
    """
    settled = settle(options, api)
    require_sound_onnx(model)
    start = time.perf_counter()
    timings = _timings(options, api)
    notes = list(settled.notes)
    with collect_log(api) as (logger, records), _BuildSession(api, logger, calibration) as session:
        _parse(session, model, api)
        notes += _add_profile(session, options)
        _configure(session, options, settled, api)
        if timings is not None:
            timings.attach(session.config)
        plan = _build(session, records, options, api)
        if timings is not None:
            timings.keep(session.config)
            notes += timings.notes
    log = tuple(
        f"{record.severity}: {one_line(record.text)}"
        for record in records
        if record.severity != "INFO"
    )
    seconds = time.perf_counter() - start
    return BuiltPlan(plan, seconds, api.flavour, api.version, log, tuple(notes))


def _timings(options: BuildOptions, api: TrtApi) -> TimingCache | None:
    if options.timing_cache is None or not api.capabilities.has_timing_cache:
        return None
    return TimingCache(options.timing_cache, api)


class _BuildSession:
    """Builder, network, config and parser, released in the one order that leaves none dangling.

    The network points into the builder, and its weights into the parser, so both outlive the
    build; they go in reverse order of creation. An error's traceback keeps the variables of every
    function it passed, so those that raise below hold plain values, never a part of TensorRT.
    """

    def __init__(self, api: TrtApi, logger: Any, calibration: Calibration | None) -> None:
        module = api.module
        self.calibration = calibration
        try:
            self.builder = module.Builder(logger)
        except (TypeError, RuntimeError) as error:  # pybind11's ways to report a null builder
            raise MissingBackendError(
                f"{api.title} cannot start its builder: {one_line(str(error))}. "
                "Check the GPU driver with nvidia-smi."
            ) from error
        implicit = calibration is not None  # the builder chooses types, so none is binding
        self.network = self.builder.create_network(0 if implicit else api.network_flags)
        self.config = self.builder.create_builder_config()
        self.parser = module.OnnxParser(self.network, logger)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
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
            f"it: {_reason(refusal.text)}. {advice(_reason(refusal.text), refusal.operator)}"
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


def _configure(
    session: _BuildSession, options: BuildOptions, settled: Settled, api: TrtApi
) -> None:
    config, module = session.config, api.module
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.compute_capabilities:
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, number in enumerate(options.compute_capabilities):
            config.set_compute_capability(getattr(module.ComputeCapability, f"SM{number}"), index)
    for flag in settled.flags:
        config.set_flag(getattr(module.BuilderFlag, flag))
    if settled.hardware_level is not None:
        levels = module.HardwareCompatibilityLevel
        config.hardware_compatibility_level = getattr(levels, settled.hardware_level)
    if session.calibration is not None:
        config.set_flag(module.BuilderFlag.INT8)
        config.int8_calibrator = session.calibration.calibrator


def _add_profile(session: _BuildSession, options: BuildOptions) -> tuple[str, ...]:
    """Tells the builder which batches to expect; returns a note where a graph fixes its own."""
    shapes = _inputs(session.network)
    dynamic = {name: shape for name, shape in shapes.items() if -1 in shape}
    batches = (options.min_batch, options.opt_batch, options.max_batch)
    fixed = sorted({shape[0] for shape in shapes.values() if shape and shape[0] != -1})
    if not dynamic:
        default = (BuildOptions.min_batch, BuildOptions.opt_batch, BuildOptions.max_batch)
        if batches == default or not fixed:
            return ()
        wanted = f"batches {batches[0]} to {batches[2]} do not apply"
        return (f"the graph fixes its batch at {fixed[0]}: {wanted}. Export a dynamic batch.",)
    for name, shape in dynamic.items():
        if -1 in shape[1:]:
            raise BuildError(
                f"input {name}: shape {shape} is dynamic beyond the batch axis. "
                "Export with a fixed --input-size."
            )
    profile = session.builder.create_optimization_profile()
    for name, shape in dynamic.items():
        profile.set_shape(name, *[(batch, *shape[1:]) for batch in batches])
    session.config.add_optimization_profile(profile)
    if session.calibration is not None:
        session.config.set_calibration_profile(profile)
    return ()


def _inputs(network: Any) -> dict[str, tuple[int, ...]]:
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    return {tensor.name: tuple(tensor.shape) for tensor in tensors}


def _build(
    session: _BuildSession, records: list[LogRecord], options: BuildOptions, api: TrtApi
) -> bytes:
    memory = session.builder.build_serialized_network(session.network, session.config)
    if session.calibration is not None:
        session.calibration.raise_last_error()
    if memory is None:
        reason = errors_in(records) or "no reason given"
        name = _named_in(reason, session.network)
        where, help_text = name or "the graph", advice(reason)
        targets = ",".join(map(str, options.compute_capabilities))
        if help_text == CHECK and targets:
            help_text = f"Build without the GPU that it names (--sm {targets})."
        elif help_text != CHECK and name is None:
            help_text += " `fdda-deploy check` names the node."
        raise BuildError(
            f"{where}: {api.title} parsed it but cannot build it: {reason}. {help_text}"
        )
    return bytes(memory)  # a copy: the plan outlives the memory that TensorRT owns


def _named_in(reason: str, network: Any) -> str | None:
    """Returns the longest layer name in TensorRT's text: layers carry the names of our nodes.

    The compiler behind the builder appends ``_U`` and a number to the names it was given.
    """
    names = {network.get_layer(index).name for index in range(network.num_layers)} - {""}
    hits = [n for n in names if re.search(rf"(?<![\w/.]){re.escape(n)}(_U\d+)?(?![\w/.])", reason)]
    return max(hits, key=len, default=None)
