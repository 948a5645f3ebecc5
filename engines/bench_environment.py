"""Where a figure was measured: processor, GPU, driver, CUDA, libraries and clocks."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from fdda_deploy.engines.gpu import gpu_name

CPU_INFO = Path("/proc/cpuinfo")
CLOCKS = "clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,driver_version"
SECONDS_FOR_CLOCKS = 10
LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13-bindings")


@dataclass(frozen=True)
class BenchEnvironment:
    """The machine a measurement holds for; None is "not known here".

    Attributes:
        cpu: Name of the processor.
        platform: Operating system and architecture.
        gpu: Name of the first NVIDIA GPU; None without one, and GPU figures are not measured.
        driver: Its driver's version.
        cuda: CUDA version of the runtime library in use.
        sm_clock_mhz: Clock of the multiprocessors now.
        memory_clock_mhz: Clock of the GPU's memory now.
        max_sm_clock_mhz: The highest it may have.
        max_memory_clock_mhz: The highest it may have.
        libraries: Versions of the installed runtimes, by distribution.
    """

    cpu: str
    platform: str
    gpu: str | None
    driver: str | None
    cuda: str | None
    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    max_sm_clock_mhz: int | None
    max_memory_clock_mhz: int | None
    libraries: dict[str, str]


def bench_environment() -> BenchEnvironment:
    """Returns what this machine is; asks ``nvidia-smi`` for clocks where there is a GPU."""
    gpu = gpu_name()
    sm, memory, max_sm, max_memory, driver = _clocks() if gpu else (None,) * 5
    return BenchEnvironment(
        cpu=cpu_name(),
        platform=f"{platform.system()} {platform.machine()}",
        gpu=gpu,
        driver=driver,
        cuda=_version("nvidia-cuda-runtime") or _version("nvidia-cuda-runtime-cu12"),
        sm_clock_mhz=_whole(sm),
        memory_clock_mhz=_whole(memory),
        max_sm_clock_mhz=_whole(max_sm),
        max_memory_clock_mhz=_whole(max_memory),
        libraries={name: found for name in LIBRARIES if (found := _version(name))},
    )


def cpu_name() -> str:
    """Returns the processor's name, or its architecture where the system does not tell."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), platform.processor() or platform.machine())


def _clocks() -> tuple[str | None, ...]:
    """Returns the fields of `CLOCKS` for the first GPU; None each where nvidia-smi is silent."""
    nothing = (None,) * len(CLOCKS.split(","))
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return nothing
    command = [tool, f"--query-gpu={CLOCKS}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        answer = subprocess.run(  # noqa: S603  # fixed words, a tool of the driver
            command, capture_output=True, text=True, timeout=SECONDS_FOR_CLOCKS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return nothing
    return clocks_from_csv(answer.stdout)


def clocks_from_csv(text: str) -> tuple[str | None, ...]:
    """Returns the fields of nvidia-smi's first line, None for those it does not know.

    Example:
        >>> clocks_from_csv("1980, 2619, 1980, 2619, 570.86.15")[:2]
        ('1980', '2619')
    """
    count = len(CLOCKS.split(","))
    lines = text.splitlines() or [""]
    fields = [field.strip() for field in lines[0].split(",")][:count]
    known = [field if field and "N/A" not in field else None for field in fields]
    return tuple(known + [None] * (count - len(known)))


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
