"""Member names of TensorRT's Python bindings by release, as NVIDIA documents them: data, not code.

10: the list of ``BuilderFlag`` in the Python reference of 10.13 to 10.16, and its "Int8" chapter.
11: that list less the "Removed Python APIs" of the migration guide from 10.x to 11.x, which 11.4's
own reference confirms; ``NetworkDefinitionCreationFlag`` is that of 11.0's reference.
The tests make plain namespaces of them, because neither release can be installed here.
"""

from __future__ import annotations

from enum import IntEnum
from types import SimpleNamespace

FLAGS_10 = (
    *("FP16", "INT8", "DEBUG", "GPU_FALLBACK", "REFIT", "DISABLE_TIMING_CACHE", "TF32"),
    *("SPARSE_WEIGHTS", "SAFETY_SCOPE", "OBEY_PRECISION_CONSTRAINTS"),
    *("PREFER_PRECISION_CONSTRAINTS", "DIRECT_IO", "REJECT_EMPTY_ALGORITHMS"),
    *("VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME", "FP8", "ERROR_ON_TIMING_CACHE_MISS", "BF16"),
    *("DISABLE_COMPILATION_CACHE", "STRIP_PLAN", "REFIT_IDENTICAL", "WEIGHT_STREAMING", "INT4"),
    *("REFIT_INDIVIDUAL", "STRICT_NANS", "MONITOR_MEMORY", "FP4", "EDITABLE_TIMING_CACHE"),
    "DISTRIBUTIVE_INDEPENDENCE",
)
REMOVED_IN_11 = (
    *("FP16", "INT8", "FP8", "BF16", "INT4", "FP4", "OBEY_PRECISION_CONSTRAINTS"),
    *("PREFER_PRECISION_CONSTRAINTS", "DIRECT_IO", "REJECT_EMPTY_ALGORITHMS"),
)
LEVELS = ("NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY")
PLATFORMS = ("SAME_AS_BUILD", "WINDOWS_AMD64")
NETWORK_10 = ("EXPLICIT_BATCH", "STRONGLY_TYPED", "PREFER_AOT_PYTHON_PLUGINS")
NETWORK_11 = ("STRONGLY_TYPED", "PREFER_AOT_PYTHON_PLUGINS", "PREFER_JIT_PYTHON_PLUGINS")


def members_10() -> SimpleNamespace:
    """The names of TensorRT 10 that capabilities are read off."""
    return SimpleNamespace(
        **_enums(FLAGS_10, NETWORK_10),
        IInt8EntropyCalibrator2=object,
        IInt8MinMaxCalibrator=object,
        ITimingCache=object,
    )


def members_11() -> SimpleNamespace:
    """The same of TensorRT 11."""
    kept = tuple(flag for flag in FLAGS_10 if flag not in REMOVED_IN_11)
    return SimpleNamespace(**_enums(kept, NETWORK_11), ITimingCache=object)


def _enums(flags: tuple[str, ...], network: tuple[str, ...]) -> dict[str, object]:
    return {
        "BuilderFlag": IntEnum("BuilderFlag", flags, start=0),
        "NetworkDefinitionCreationFlag": IntEnum("Network", network, start=0),
        "HardwareCompatibilityLevel": IntEnum("Level", LEVELS, start=0),
        "RuntimePlatform": IntEnum("Platform", PLATFORMS, start=0),
    }
