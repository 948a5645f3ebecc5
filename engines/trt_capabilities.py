"""What one TensorRT can do, read off its Python module by name: never by version, never by number.

TensorRT 10 and 11 number their flags differently and TensorRT-RTX drops some of both, so every
entry is a member's name or whether a member is there. Where a member exists and does nothing
(TensorRT-RTX keeps several for source compatibility), the row says what was seen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

Flavour = Literal["tensorrt", "tensorrt_rtx"]
CALIBRATORS = {"entropy2": "IInt8EntropyCalibrator2", "minmax": "IInt8MinMaxCalibrator"}
"""Calibrator classes by the name that our options use."""
IO_FIELDS = ("I/O Tensors", "Bindings")
"""The inspector's list of inputs and outputs: TensorRT 11's name, then TensorRT 10's."""
_SM = re.compile(r"SM(\d+)")


@dataclass(frozen=True)
class Capabilities:
    """What one TensorRT can do, read off its module.

    Attributes:
        builds_without_gpu: The builder works on a machine without a driver.
        refits_without_gpu: So do stripped and refittable plans. TensorRT-RTX loads compiled kernels
            on the GPU for those, and its builder fails without one.
        has_calibrator: INT8 calibrator classes exist; without them Q/DQ is the only way.
        calibrators: Which of `CALIBRATORS` there are, by our names.
        has_strongly_typed_flag: A network must be asked to keep the types that ONNX states.
        has_explicit_batch_flag: The flag exists; it has meant nothing since 10.0.
        compute_capabilities: GPU generations a plan can be aimed at, 86 for SM86; empty where
            the builder aims at the GPU it runs on.
        flags: Names of the builder flags.
        has_timing_cache: The builder times kernels and can keep the timings. TensorRT-RTX has the
            class, but times nothing: its calls are no-ops that ask for a GPU.
        has_runtime_cache: Kernels compiled when a plan first runs can be kept.
        hardware_levels: Names that a plan for several GPUs can be asked for with; empty where the
            builder ignores them.
        version_compatible: Plans for other releases can be built. TensorRT-RTX has the flag and
            lacks the library behind it.
        runtime_platforms: Operating systems that a plan can be built for, by name.
        can_stream_weights: Weights can stay on the host and stream in.
        inspector_io_field: Which of `IO_FIELDS` the engine inspector writes; readers take both.
    """

    builds_without_gpu: bool
    refits_without_gpu: bool
    has_calibrator: bool
    calibrators: frozenset[str]
    has_strongly_typed_flag: bool
    has_explicit_batch_flag: bool
    compute_capabilities: frozenset[int]
    flags: frozenset[str]
    has_timing_cache: bool
    has_runtime_cache: bool
    hardware_levels: frozenset[str]
    version_compatible: bool
    runtime_platforms: frozenset[str]
    can_stream_weights: bool
    inspector_io_field: str


def capabilities_of(module: Any, flavour: Flavour) -> Capabilities:
    """Returns what the bindings ``module`` can do, by what it has and not by its version."""
    network_flags = _members(module, "NetworkDefinitionCreationFlag")
    flags = frozenset(_members(module, "BuilderFlag"))
    is_rtx = flavour == "tensorrt_rtx"
    names = _members(module, "ComputeCapability") if is_rtx else ()
    calibrators = frozenset(ours for ours, name in CALIBRATORS.items() if hasattr(module, name))
    levels = frozenset(_members(module, "HardwareCompatibilityLevel")) - {"NONE"}
    return Capabilities(
        builds_without_gpu=is_rtx,
        refits_without_gpu=False,
        has_calibrator=bool(calibrators),
        calibrators=calibrators,
        has_strongly_typed_flag="STRONGLY_TYPED" in network_flags,
        has_explicit_batch_flag="EXPLICIT_BATCH" in network_flags,
        compute_capabilities=frozenset(int(m[1]) for n in names if (m := _SM.fullmatch(n))),
        flags=flags,
        has_timing_cache=hasattr(module, "ITimingCache") and not is_rtx,
        has_runtime_cache=hasattr(module, "IRuntimeCache"),
        hardware_levels=frozenset() if is_rtx else levels,
        version_compatible="VERSION_COMPATIBLE" in flags and not is_rtx,
        runtime_platforms=frozenset(_members(module, "RuntimePlatform")),
        can_stream_weights="WEIGHT_STREAMING" in flags,
        # one release took away both the calibrators and the inspector's old list
        inspector_io_field=IO_FIELDS[1] if calibrators else IO_FIELDS[0],
    )


def targets_in_order(module: Any) -> tuple[int, ...]:
    """Returns the GPU generations that a plan can be aimed at, in the bindings' own order.

    A plan's header has one bit for each in this order.
    """
    names = _members(module, "ComputeCapability")
    return tuple(int(match[1]) for name in names if (match := _SM.fullmatch(name)))


def _members(module: Any, enum_name: str) -> tuple[str, ...]:
    return tuple(getattr(getattr(module, enum_name, None), "__members__", ()))
