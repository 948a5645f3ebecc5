"""The section of the configuration that says what runs the graph, and how its plan is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fdda_deploy.config.values import Section, limited
from fdda_deploy.errors import ConfigError

BACKENDS = ("auto", "tensorrt", "rtx", "ort-cpu")
TARGETS = ("trt", "rtx", "ort-cpu")
Backend = Literal["tensorrt", "rtx", "ort-cpu"]
TARGET_OF_BACKEND: dict[Backend, str] = {"tensorrt": "trt", "rtx": "rtx", "ort-cpu": "ort-cpu"}
HARDWARE_LEVELS = ("ampere-plus", "same-compute-capability")
CALIBRATORS = ("own", "trt")
USUAL_BATCHES = (1, 8, 64)
"""Smallest, best and largest batch where none is asked for: a service that gathers requests."""
MIB = 2**20


@dataclass(frozen=True)
class EngineConfig(Section):
    """What runs the graph.

    Attributes:
        backend: ``auto`` is TensorRT where it and a GPU are there, else a TensorRT-RTX plan built
            on the CPU.
        target: Whose placement table decides where Q/DQ pairs go; None follows the backend.
        sm: Compute capabilities of the plan, for instance (86, 89); empty is a portable plan.
        min_batch: Smallest batch the plan takes; None is 1.
        opt_batch: Batch that kernels are chosen for; None is 8, within the other two.
        max_batch: Largest batch the plan takes; None is 64, or ``--batch-size`` if that is more.
        opt_level: 0 (quick build) to 5 (quick plan); None leaves TensorRT's default.
        workspace: Scratch memory in MiB that kernels may use; None allows the whole GPU.
        hardware_compatible: A plan for more GPUs than the one at hand; None is for that one.
        version_compatible: A plan that later releases of the same TensorRT load too.
        strip: Leave the weights out of the plan; they are put in again where it runs.
        timing_cache: Folder for kernel timings, which make the next build quicker; None keeps none.
        bench_batches: Batches to time, for the report's curve of throughput by latency; empty times
            one image at a time.
        calibrator: ``trt`` lets TensorRT 10 calibrate the float network itself; where it cannot,
            and with ``own``, our record goes in as Q/DQ pairs.
    """

    backend: str = limited("auto", choices=BACKENDS)
    target: str | None = limited(None, choices=TARGETS)
    sm: tuple[int, ...] = limited((), minimum=50, maximum=199)
    min_batch: int | None = limited(None, minimum=1, maximum=65536)
    opt_batch: int | None = limited(None, minimum=1, maximum=65536)
    max_batch: int | None = limited(None, minimum=1, maximum=65536)
    opt_level: int | None = limited(None, minimum=0, maximum=5)
    workspace: int | None = limited(None, minimum=1, maximum=2**20)
    hardware_compatible: str | None = limited(None, choices=HARDWARE_LEVELS)
    version_compatible: bool = False
    strip: bool = False
    timing_cache: str | None = limited(None, pattern=r"[^\0]+", wanted="a folder")
    bench_batches: tuple[int, ...] = limited((), minimum=1, maximum=65536)
    calibrator: str = limited("own", choices=CALIBRATORS)

    def __post_init__(self) -> None:
        super().__post_init__()
        low, best, high = self.batches(1)
        if not low <= best <= high:
            raise ConfigError(
                f"--min-batch {low}, --opt-batch {best}, --max-batch {high}: want each at least "
                "as large as the one before."
            )
        for batch in self.bench_batches:
            self.require_batch(batch, "--bench-batches")

    def batches(self, batch_size: int) -> tuple[int, int, int]:
        """Returns the smallest, best and largest batch of the plan.

        Args:
            batch_size: A batch it is to take where ``max_batch`` is not given.

        Example:
            >>> EngineConfig(max_batch=4).batches(4)
            (1, 4, 4)
        """
        usual_low, usual_best, usual_high = USUAL_BATCHES
        low = self.min_batch or usual_low
        asked = (batch_size, low, self.opt_batch or 1, *self.bench_batches)
        high = self.max_batch or max(usual_high, *asked)
        return low, self.opt_batch or max(low, min(usual_best, high)), high

    @property
    def stated_target(self) -> str | None:
        """Whose placement table was asked for, by name or by backend; None leaves it open."""
        named = next((name for name in TARGET_OF_BACKEND if name == self.backend), None)
        return self.target or (None if named is None else TARGET_OF_BACKEND[named])

    @property
    def workspace_bytes(self) -> int | None:
        """``workspace`` in bytes."""
        return None if self.workspace is None else MIB * self.workspace

    def require_batch(self, batch: int, what: str) -> None:
        """Refuses a batch that the plan's profile would exclude.

        Args:
            batch: Images at a time.
            what: Who wants it, for instance ``--batch-size``.

        Raises:
            ConfigError: It is smaller than ``min_batch`` or larger than ``max_batch``.
        """
        if self.max_batch is not None and batch > self.max_batch:
            raise ConfigError(
                f"{what} {batch}: the plan takes at most {self.max_batch} images (--max-batch). "
                f"Give {what} {self.max_batch}, or raise --max-batch."
            )
        if self.min_batch is not None and batch < self.min_batch:
            raise ConfigError(
                f"{what} {batch}: the plan takes {self.min_batch} images or more (--min-batch). "
                f"Give {what} {self.min_batch}, or lower --min-batch."
            )
