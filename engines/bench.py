"""Latency of runners, measured: warm-up, rounds that alternate, percentiles, stability."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from fdda_deploy.engines.bench_statistics import LatencySummary, summarize
from fdda_deploy.engines.run_times import RunTimes, times_on_device, times_on_host
from fdda_deploy.engines.runner import DeviceTimed, Feed, TimedRunner
from fdda_deploy.errors import ConfigError

Progress = Callable[[int, int, str], None]
"""Called with (done, total, text) between two runs, never inside one."""
PROGRESS_STEPS = 100
NS_PER_MS = 1e6
ROUND_MS = 50.0
"""With several subjects each takes turns of this length, so that drift hits all alike."""


@dataclass(frozen=True)
class BenchOptions:
    """How to measure.

    Attributes:
        warmup_ms: Untimed runs first, one at least; trtexec's 200 ms.
        min_seconds: Time to measure each subject for.
        min_iterations: Runs to measure, however long they take.
        transfers: Copy inputs in and outputs out in every run; on a GPU alone this is a choice.
    """

    warmup_ms: float = 200.0
    min_seconds: float = 3.0
    min_iterations: int = 10
    transfers: bool = True

    def __post_init__(self) -> None:
        if self.min_iterations < 1 or self.min_seconds < 0 or self.warmup_ms < 0:
            raise ConfigError(
                f"bench: {self.min_iterations} iterations, {self.min_seconds} s and "
                f"{self.warmup_ms} ms of warm-up: want 1 or more iterations and no negative time."
            )


@dataclass(frozen=True)
class Subject:
    """One thing to measure.

    Attributes:
        what: Its label.
        runner: Entered already.
        feed: One batch, run again and again.
    """

    what: str
    runner: TimedRunner
    feed: Feed


@dataclass(frozen=True)
class BenchRecord:
    """One measurement and the conditions it holds under.

    Attributes:
        what: Label of the thing measured.
        runs_on: ``CPU`` or ``GPU``.
        batch: Images per run.
        iterations: Timed runs.
        num_threads: CPU threads; None on a GPU.
        latency: Host latency of one batch: copy in, compute and copy out.
        enqueue: Host time to hand a run over; None on a CPU, as the rest below.
        h2d: Copy of the inputs to the device, by CUDA events.
        gpu_compute: Kernel time, by CUDA events; None means "not measured".
        d2h: Copy of the outputs to the host, by CUDA events.
        queries_per_second: Batches per second of time spent in runs.
        images_per_second: ``queries_per_second * batch``.
        cuda_graph: Launched as a CUDA graph; None on a CPU.
        spin_wait: The host polled for the end; None on a CPU.
        transfers: Every run copied in and out; None on a CPU, where there is nothing to copy.
        warmup_ms: Untimed runs before.
        interleaved_with: Labels of the subjects measured in turns with it.
        times: Every run, for `trtexec_json.times_to_json`.
    """

    what: str
    runs_on: str
    batch: int
    iterations: int
    num_threads: int | None
    latency: LatencySummary
    enqueue: LatencySummary | None
    h2d: LatencySummary | None
    gpu_compute: LatencySummary | None
    d2h: LatencySummary | None
    queries_per_second: float
    images_per_second: float
    cuda_graph: bool | None
    spin_wait: bool | None
    transfers: bool | None
    warmup_ms: float
    interleaved_with: tuple[str, ...]
    times: tuple[RunTimes, ...]

    def to_json(self) -> dict[str, object]:
        """Returns the record as JSON-ready values without the single runs; null: not measured."""
        return {name: value for name, value in asdict(self).items() if name != "times"}


def bench(
    runner: TimedRunner,
    feed: Feed,
    *,
    options: BenchOptions | None = None,
    what: str | None = None,
    progress: Progress | None = None,
) -> BenchRecord:
    """Returns the latency of ``runner`` on ``feed``; Ctrl-C stops it between two runs.

    Args:
        runner: Entered already.
        feed: One batch, run again and again.
        options: How to measure.
        what: Label; what the runner says of itself by default.
        progress: Told of every hundredth of the way.

    Raises:
        ConfigError: ``transfers=False`` where there are none to leave out.
        EngineError: The runner failed.
    """
    subject = Subject(what or runner.describe(), runner, feed)
    return bench_together([subject], options or BenchOptions(), progress=progress)[0]


def bench_together(
    subjects: Sequence[Subject], options: BenchOptions, *, progress: Progress | None = None
) -> list[BenchRecord]:
    """Returns one record per subject, measured in short turns in one session.

    Turns of 50 ms go round all subjects, so that a machine that grows hot or busy slows all of
    them, and their ratios hold.

    Raises:
        ConfigError: No subject, or ``transfers=False`` on a runner of the CPU.
        EngineError: A runner failed.
    """
    if not subjects:
        raise ConfigError("bench: nothing to measure. Name a model or a plan.")
    for subject in subjects:
        if not options.transfers and not isinstance(subject.runner, DeviceTimed):
            raise ConfigError(
                f"{subject.what}: runs on the {subject.runner.runs_on} without transfers of its "
                "own to leave out. Bench it with transfers, or give a TensorRT plan."
            )
    clock = time.perf_counter_ns()
    measurements = [_Measurement(subject, options, clock) for subject in subjects]
    for measurement in measurements:
        measurement.warm_up()
    told = -1
    while any(measurement.share < 1 for measurement in measurements):
        for measurement in measurements:
            if measurement.share < 1:
                measurement.take_turn(len(measurements) > 1)
        if progress is not None:
            share = sum(measurement.share for measurement in measurements) / len(measurements)
            step = int(PROGRESS_STEPS * share)
            if step > told:
                told = step
                runs = sum(len(measurement.times) for measurement in measurements)
                progress(step, PROGRESS_STEPS, f"{runs} runs")
    names = [subject.what for subject in subjects]
    return [
        measurement.record(tuple(names[:index] + names[index + 1 :]))
        for index, measurement in enumerate(measurements)
    ]


class _Measurement:
    """The runs of one subject so far."""

    def __init__(self, subject: Subject, options: BenchOptions, clock_ns: int) -> None:
        self._subject, self._options, self._clock = subject, options, clock_ns
        self._device = subject.runner if isinstance(subject.runner, DeviceTimed) else None
        self.times: list[RunTimes] = []
        self._spent_ms = 0.0

    @property
    def share(self) -> float:
        """How much of the way is done, 0 to 1."""
        options = self._options
        of_time = self._spent_ms / (1000 * options.min_seconds) if options.min_seconds else 1.0
        return min(of_time, len(self.times) / options.min_iterations, 1.0)

    def warm_up(self) -> None:
        start = time.perf_counter_ns()
        self._subject.runner.infer(self._subject.feed)
        while (time.perf_counter_ns() - start) / NS_PER_MS < self._options.warmup_ms:
            self._run()

    def take_turn(self, short: bool) -> None:
        """Runs once, and with ``short`` on until 50 ms are over."""
        before = self._spent_ms
        while True:
            start = time.perf_counter_ns()
            self._run()
            end = time.perf_counter_ns()
            self._spent_ms += (end - start) / NS_PER_MS
            self.times.append(self._times(start, end))
            if not short or self.share >= 1 or self._spent_ms - before >= ROUND_MS:
                return

    def _run(self) -> None:
        if self._device is not None and not self._options.transfers:
            self._device.rerun()
        else:
            self._subject.runner.infer(self._subject.feed)

    def _times(self, start_ns: int, end_ns: int) -> RunTimes:
        start, end = ((ns - self._clock) / NS_PER_MS for ns in (start_ns, end_ns))
        if self._device is None:
            return times_on_host(start, end)
        parts = self._device.last_parts
        return times_on_device(
            (start, start + parts.enqueue_ms), parts.h2d_ms, parts.compute_ms, parts.d2h_ms
        )

    def record(self, others: tuple[str, ...]) -> BenchRecord:
        subject, runner, times = self._subject, self._subject.runner, self.times
        device = self._device
        per_second = 1000 * len(times) / self._spent_ms
        batch = int(subject.feed[runner.input_names[0]].shape[0])

        def of_device(part: str) -> LatencySummary | None:
            return None if device is None else summarize([getattr(t, part) for t in times])

        return BenchRecord(
            what=subject.what,
            runs_on=runner.runs_on,
            batch=batch,
            iterations=len(times),
            num_threads=runner.num_threads,
            latency=summarize([run.latency_ms for run in times]),
            enqueue=of_device("enqueue_ms"),
            h2d=of_device("h2d_ms"),
            gpu_compute=of_device("compute_ms"),
            d2h=of_device("d2h_ms"),
            queries_per_second=per_second,
            images_per_second=per_second * batch,
            cuda_graph=None if device is None else device.cuda_graph,
            spin_wait=None if device is None else device.spin_wait,
            transfers=None if device is None else self._options.transfers,
            warmup_ms=self._options.warmup_ms,
            interleaved_with=others,
            times=tuple(times),
        )
