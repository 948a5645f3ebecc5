"""How a plan is to be built, and what of that the TensorRT at hand can do."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from fdda_deploy.config.engine import HARDWARE_LEVELS, EngineConfig
from fdda_deploy.engines.trt_api import TrtApi, gpu_present
from fdda_deploy.errors import ConfigError, MissingBackendError

REPLACED_FLAGS = {
    **dict.fromkeys(("FP16", "BF16"), "types come from the graph: cast its float parts"),
    **dict.fromkeys(("INT8", "FP8", "INT4", "FP4"), "Q/DQ pairs in the graph say it"),
    **dict.fromkeys(
        ("OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"),
        "every tensor keeps the type that the graph states",
    ),
    "DIRECT_IO": "the graph's own input and output types hold",
    "REJECT_EMPTY_ALGORITHMS": "the algorithm selector is gone",
}
"""Flags that TensorRT 11 took away, and what does their work (NVIDIA's migration guide)."""


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
        hardware: One of `HARDWARE_LEVELS`: a plan for more GPUs than this one; None for this one.
        version_compatible: The plan also runs on later releases of the same TensorRT.
        strip: Leave out the weights that the ONNX file has; `engines.refit` puts them in again.
        refit: Weights can be replaced later.
        flags: Further builder flags, by name.
        timing_cache: Folder of kernel timings that are kept from build to build.

    Raises:
        ConfigError: Batches that are not ``1 <= min <= opt <= max``, a level outside 0 to 5,
            no workspace, or an unknown hardware level.
    """

    compute_capabilities: tuple[int, ...] = ()
    min_batch: int = 1
    opt_batch: int = 8
    max_batch: int = 64
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    hardware: str | None = None
    version_compatible: bool = False
    strip: bool = False
    refit: bool = False
    flags: tuple[str, ...] = ()
    timing_cache: Path | None = None

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
        if self.hardware is not None and self.hardware not in HARDWARE_LEVELS:
            raise ConfigError(
                f"--hardware-compatible {self.hardware}: want {' or '.join(HARDWARE_LEVELS)}."
            )


@dataclass(frozen=True)
class Settled:
    """Options as one TensorRT can carry them out.

    Attributes:
        flags: Builder flags to set, by name.
        hardware_level: Name in the bindings; None for none.
        notes: What was asked for and is left out, a sentence each (rule T035).
    """

    flags: tuple[str, ...]
    hardware_level: str | None
    notes: tuple[str, ...]


def options_from(engine: EngineConfig, batch_size: int) -> BuildOptions:
    """Returns how the configuration wants plans built.

    Args:
        engine: The section ``[engine]``.
        batch_size: A batch that the plan is to take where no largest one is asked for.
    """
    low, best, high = engine.batches(batch_size)
    return BuildOptions(
        compute_capabilities=engine.sm,
        min_batch=low,
        opt_batch=best,
        max_batch=high,
        workspace_bytes=engine.workspace_bytes,
        optimization_level=engine.opt_level,
        hardware=engine.hardware_compatible,
        version_compatible=engine.version_compatible,
        strip=engine.strip,
        timing_cache=None if engine.timing_cache is None else Path(engine.timing_cache),
    )


def settle(options: BuildOptions, api: TrtApi) -> Settled:
    """Returns what of ``options`` this TensorRT does, and a note for each thing that it lacks.

    Raises:
        ConfigError: It lacks what the plan would be useless without (other versions, stripped or
            replaceable weights, a compute capability), or no TensorRT has such a flag.
        MissingBackendError: It builds on a GPU only, or needs one for what is asked, and there
            is none.
    """
    _require_gpu(options, api)
    _require_compute_capabilities(options, api)
    can, notes = api.capabilities, []
    if options.version_compatible and not can.version_compatible:
        raise ConfigError(
            f"--version-compatible: {api.title} makes plans for its own release only. "
            "Leave it out and build again after an update, or use --backend tensorrt."
        )
    wanted = [*options.flags]
    wanted += ["VERSION_COMPATIBLE"] * options.version_compatible
    for name, flag in (("strip", "STRIP_PLAN"), ("refit", "REFIT")):
        if not getattr(options, name):
            continue
        if flag not in can.flags:
            raise ConfigError(f"--{name}: {api.title} has no flag {flag}. Leave it out.")
        wanted.append(flag)
    flags = []
    for flag in dict.fromkeys(wanted):
        if flag in can.flags:
            flags.append(flag)
        else:
            notes.append(_left_out(flag, api))
    if options.hardware is not None and _level(options.hardware) not in can.hardware_levels:
        notes.append(_hardware_note(options.hardware, api))
    if options.timing_cache is not None and not can.has_timing_cache:
        notes.append(
            f"T035: --timing-cache: {api.title} has none, because its builder times no kernel. "
            "What it compiles when a plan first runs belongs in its runtime cache."
        )
    level = _level(options.hardware) if options.hardware else None
    return Settled(tuple(flags), level if level in can.hardware_levels else None, tuple(notes))


def _level(hardware: str) -> str:
    return hardware.upper().replace("-", "_")


def _left_out(flag: str, api: TrtApi) -> str:
    """Returns the note for a flag that this TensorRT lacks, or refuses one that none has."""
    if flag in REPLACED_FLAGS:
        return f"T035: flag {flag}: {api.title} has none; {REPLACED_FLAGS[flag]}."
    near = difflib.get_close_matches(flag, {*api.capabilities.flags, *REPLACED_FLAGS}, n=1)
    hint = f"Did you mean {near[0]}?" if near else "Leave it out."
    raise ConfigError(f"flag {flag}: {api.title} has no such builder flag. {hint}")


def _hardware_note(hardware: str, api: TrtApi) -> str:
    targets = sorted(api.capabilities.compute_capabilities)
    instead = (
        f"Its plans run on all of {', '.join(f'SM{sm}' for sm in targets)} that --sm names, and "
        "without --sm on SM80 and later"
        if targets
        else "The plan is for the GPU it is built on"
    )
    return f"T035: --hardware-compatible {hardware}: {api.title} has no such level. {instead}."


def _require_gpu(options: BuildOptions, api: TrtApi) -> None:
    if gpu_present():
        return
    if not api.capabilities.builds_without_gpu:
        raise MissingBackendError(
            f"{api.title} builds on the GPU it builds for, and no NVIDIA GPU is visible. "
            "Use --backend rtx, which builds on the CPU."
        )
    if (options.strip or options.refit) and not api.capabilities.refits_without_gpu:
        raise MissingBackendError(
            f"--{'strip' if options.strip else 'refit'}: {api.title} loads compiled kernels on a "
            "GPU for such a plan, and no NVIDIA GPU is visible. Build where there is one, or leave "
            "it out: the whole plan builds here."
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
