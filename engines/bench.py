"""Latency of a runner, measured: warm-up, percentiles, and whether the figure was stable."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from fdda_deploy.engines.runner import Feed, GpuTimed, TimedRunner
from fdda_deploy.errors import ConfigError

Progress = Callable[[int, int, str], None]
"""Called with (done, total, text) between two runs, never inside one."""
CONDITIONS = "one batch after the other, host clock, transfers included, no CUDA graph"
UNSTABLE_ABOVE_PERCENT = 2.5
PROGRESS_STEPS = 100
NS_PER_MS = 1e6


@dataclass(frozen=True)
class LatencySummary:
    """A distribution of latencies, in ms.

    Attributes:
        mean_ms: Arithmetic mean.
        median_ms: The middle, or the mean of the two middle ones.
        p90_ms: 90th percentile by trtexec's rule (``percentile``).
        p95_ms: 95th.
        p99_ms: 99th.
        min_ms: The fastest.
        max_ms: The slowest.
        variation_percent: Coefficient of variation, 100 * standard deviation / mean.
        unstable: ``variation_percent`` is above 2.5: measure again on a quiet machine.
    """

    mean_ms: float
    median_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    min_ms: float
    max_ms: float
    variation_percent: float
    unstable: bool


@dataclass(frozen=True)
class BenchRecord:
    """One measurement and the conditions it holds under.

    Attributes:
        what: Label of the thing measured.
        runs_on: ``CPU`` or ``GPU``.
        batch: Images per run.
        iterations: Timed runs.
        num_threads: CPU threads; None on a GPU.
        latency: Host latency of one batch, transfers included.
        queries_per_second: Batches per second of time spent in runs.
        images_per_second: ``queries_per_second * batch``.
        gpu_compute: Kernel time by CUDA events; None means "not measured".
        conditions: How the runs were made.
    """

    what: str
    runs_on: str
    batch: int
    iterations: int
    num_threads: int | None
    latency: LatencySummary
    queries_per_second: float
    images_per_second: float
    gpu_compute: LatencySummary | None
    conditions: str = CONDITIONS

    def to_json(self) -> dict[str, object]:
        """Returns the record as JSON-ready values; ``gpu_compute`` null means "not measured"."""
        return asdict(self)


def bench(
    runner: TimedRunner,
    feed: Feed,
    *,
    warmup_ms: float = 200.0,
    min_seconds: float = 3.0,
    min_iterations: int = 10,
    what: str | None = None,
    progress: Progress | None = None,
) -> BenchRecord:
    """Returns the latency of ``runner`` on ``feed``; Ctrl-C stops it between two runs.

    Args:
        runner: Entered already.
        feed: One batch, run again and again.
        warmup_ms: Untimed runs first, one at least.
        min_seconds: Time to measure for.
        min_iterations: Runs to measure, however long they take.
        what: Label; what the runner says of itself by default.
        progress: Told of every hundredth of the way.

    Raises:
        ConfigError: No iteration, or a negative time.
        EngineError: The runner failed.
    """
    if min_iterations < 1 or min_seconds < 0 or warmup_ms < 0:
        raise ConfigError(
            f"bench: {min_iterations} iterations, {min_seconds} s and {warmup_ms} ms of warm-up: "
            "want 1 or more iterations and no negative time."
        )
    _warm_up(runner, feed, warmup_ms)
    host_ms, gpu_ms = _measure(runner, feed, 1000 * min_seconds, min_iterations, progress)
    latency = summarize(host_ms)
    batch = int(feed[runner.input_names[0]].shape[0])
    queries_per_second = 1000 / latency.mean_ms
    return BenchRecord(
        what=what or runner.describe(),
        runs_on=runner.runs_on,
        batch=batch,
        iterations=len(host_ms),
        num_threads=runner.num_threads,
        latency=latency,
        queries_per_second=queries_per_second,
        images_per_second=queries_per_second * batch,
        gpu_compute=summarize(gpu_ms) if gpu_ms else None,
    )


def summarize(samples_ms: Sequence[float]) -> LatencySummary:
    """Returns the distribution of one or more latencies in ms.

    Example:
        >>> summarize([1.0, 1.0, 4.0]).median_ms
        1.0
    """
    ascending = sorted(samples_ms)
    array = np.asarray(ascending, dtype=np.float64)
    mean = float(array.mean())
    variation = 100 * float(array.std()) / mean if mean > 0 else 0.0
    return LatencySummary(
        mean_ms=mean,
        median_ms=float(np.median(array)),
        p90_ms=percentile(ascending, 90),
        p95_ms=percentile(ascending, 95),
        p99_ms=percentile(ascending, 99),
        min_ms=ascending[0],
        max_ms=ascending[-1],
        variation_percent=variation,
        unstable=variation > UNSTABLE_ABOVE_PERCENT,
    )


def percentile(ascending: Sequence[float], percent: int) -> float:
    """Returns the sample at ``max(n - 1 - floor((1 - percent / 100) * n), 0)``: trtexec's rule.

    It is always a sample, never an interpolation. Integer arithmetic, because in binary floating
    point ``(1 - 0.9) * 10`` falls short of 1.

    Example:
        >>> percentile([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0], 90)
        9.0
    """
    count = len(ascending)
    return float(ascending[max(count - 1 - (100 - percent) * count // 100, 0)])


def _warm_up(runner: TimedRunner, feed: Feed, warmup_ms: float) -> None:
    start = time.perf_counter_ns()
    runner.infer(feed)
    while (time.perf_counter_ns() - start) / NS_PER_MS < warmup_ms:
        runner.infer(feed)


def _measure(
    runner: TimedRunner, feed: Feed, min_ms: float, min_iterations: int, progress: Progress | None
) -> tuple[list[float], list[float]]:
    """Returns the host and the GPU times of every run; the GPU's are empty on a CPU runner."""
    host_ms: list[float] = []
    gpu_ms: list[float] = []
    spent_ms, told = 0.0, -1
    while spent_ms < min_ms or len(host_ms) < min_iterations:
        start = time.perf_counter_ns()
        runner.infer(feed)
        host_ms.append((time.perf_counter_ns() - start) / NS_PER_MS)
        spent_ms += host_ms[-1]
        if isinstance(runner, GpuTimed):
            gpu_ms.append(runner.last_gpu_compute_ms)
        if progress is None:
            continue
        share = min(spent_ms / min_ms if min_ms else 1.0, len(host_ms) / min_iterations, 1.0)
        step = int(PROGRESS_STEPS * share)
        if step > told:
            progress(step, PROGRESS_STEPS, f"{len(host_ms)} runs")
            told = step
    return host_ms, gpu_ms
