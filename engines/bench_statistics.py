"""What a list of latencies says: mean, median, trtexec's percentiles, and whether it was stable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

UNSTABLE_ABOVE_PERCENT = 2.5


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
