"""When the parts of one run began and ended: enqueue, copy in, compute, copy out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunTimes:
    """One run, in ms since the measurement began; the names are those of trtexec's JSON.

    Attributes:
        start_enqueue_ms: The host begins to hand the work over.
        end_enqueue_ms: It has; on a CPU the work is done then.
        start_h2d_ms: The inputs begin to be copied to the device.
        end_h2d_ms: They are there.
        start_compute_ms: The network begins.
        end_compute_ms: It is done.
        start_d2h_ms: The outputs begin to be copied to the host.
        end_d2h_ms: They are there.
    """

    start_enqueue_ms: float
    end_enqueue_ms: float
    start_h2d_ms: float
    end_h2d_ms: float
    start_compute_ms: float
    end_compute_ms: float
    start_d2h_ms: float
    end_d2h_ms: float

    @property
    def enqueue_ms(self) -> float:
        """Time on the host to hand the work over."""
        return self.end_enqueue_ms - self.start_enqueue_ms

    @property
    def h2d_ms(self) -> float:
        """Time to copy the inputs to the device; 0 without transfers."""
        return self.end_h2d_ms - self.start_h2d_ms

    @property
    def compute_ms(self) -> float:
        """Time of the network alone."""
        return self.end_compute_ms - self.start_compute_ms

    @property
    def d2h_ms(self) -> float:
        """Time to copy the outputs to the host; 0 without transfers."""
        return self.end_d2h_ms - self.start_d2h_ms

    @property
    def latency_ms(self) -> float:
        """Host latency as trtexec counts it: copy in, compute and copy out."""
        return self.h2d_ms + self.compute_ms + self.d2h_ms


def times_on_host(start_ms: float, end_ms: float) -> RunTimes:
    """Returns the times of a run that the host computed itself, without a copy."""
    return RunTimes(start_ms, end_ms, start_ms, start_ms, start_ms, end_ms, end_ms, end_ms)


def times_on_device(
    enqueue: tuple[float, float], h2d_ms: float, compute_ms: float, d2h_ms: float
) -> RunTimes:
    """Returns the times of a run on a device, one part after the other from ``enqueue[0]`` on.

    Events give durations, and one stream does one thing at a time; when the device began is not
    known to the host, so the parts are laid out from the beginning of the enqueue.
    """
    start, end = enqueue
    computed = start + h2d_ms + compute_ms
    return RunTimes(
        start, end, start, start + h2d_ms, start + h2d_ms, computed, computed, computed + d2h_ms
    )
