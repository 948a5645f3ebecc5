"""From the distribution of a tensor's values to its grid: min-max, percentile, least error, KL."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fdda_deploy.errors import ConfigError
from fdda_deploy.pipeline.quantization.entropy import divergences
from fdda_deploy.quant.affine import signed_range
from fdda_deploy.quant.qparams import SMALLEST_SCALE, QParams

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
PERCENTILE = 99.99
LP_NORM = 2.4
"""The p of published block reconstructions (Genie, arXiv 2212.04780)."""
_SHRINK_STEPS = 96
_LOWEST_WEIGHED = 0.03
_ENTROPY_STEPS = 128
_BINS_PER_LEVEL = 64
_CHUNK = 2**20
"""Candidates x bins that are held at a time."""


@dataclass(frozen=True)
class Histogram:
    """Distribution of a tensor's values.

    Attributes:
        centers: ``(bins,)`` float64, bin centers in ascending order, evenly spaced around 0.
        counts: ``(bins,)`` float64.
        low: Smallest value seen.
        high: Largest value seen.
        shifted: 8-bit grids may have any zero-point, as ONNX Runtime executes them on the CPU.
        weighed: Counts are weights, so that even the largest values may count little.
    """

    centers: Float64Array
    counts: Float64Array
    low: float
    high: float
    shifted: bool = False
    weighed: bool = False

    @property
    def amax(self) -> float:
        """Largest absolute value seen."""
        return max(abs(self.low), abs(self.high))


@dataclass(frozen=True)
class _Candidates:
    """Grids to choose from: ``scales`` and ``qmins``, both ``(candidates,)``, and their length."""

    scales: Float64Array
    qmins: Int64Array
    steps: int

    def grid(self, index: int) -> QParams:
        """Returns one of them."""
        scale = max(float(self.scales[index]), SMALLEST_SCALE)
        qmin = int(self.qmins[index])
        return _grid(scale, qmin, qmin + self.steps)


def covering_qparams(low: float, high: float, num_bits: int, shifted: bool = False) -> QParams:
    """Returns the finest grid that covers ``[low, high]``; ``shifted`` as in `Histogram`."""
    options = [
        (_covering_scale(low, high, qmin, qmax, shifted), qmin, qmax)
        for qmin, qmax in _grids(low, high, num_bits, shifted)
    ]
    return _grid(*min(options))


def minmax_qparams(histogram: Histogram, num_bits: int) -> QParams:
    """Returns the finest grid that covers every value seen."""
    return covering_qparams(histogram.low, histogram.high, num_bits, histogram.shifted)


def percentile_qparams(histogram: Histogram, num_bits: int) -> QParams:
    """Returns the grid that covers the central 99.99 % of the values."""
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    tail = (1 - PERCENTILE / 100) / 2
    low_index = int(np.searchsorted(share, tail))
    high_index = int(np.searchsorted(share, 1 - tail))
    last = len(share) - 1
    low = max(histogram.low, histogram.centers[min(low_index, last)])
    high = min(histogram.high, histogram.centers[min(high_index, last)])
    low = min(low, 0.0) if histogram.low < 0 else 0.0
    return covering_qparams(low, max(high, 0.0), num_bits, histogram.shifted)


def mse_qparams(histogram: Histogram, num_bits: int) -> QParams:
    """Returns the grid of least expected squared rounding and clipping error.

    Searches the scale from 100 % of the covering one down to a few percent and, below 8 bits, also
    which run of ``2**num_bits`` integers around zero to use. With the running sums of count, count
    x value and count x value squared, each cell of a grid costs three look-ups, whatever the bins.
    """
    candidates = _candidates(histogram, num_bits, _factors(histogram, num_bits))
    levels = candidates.qmins[:, None] + np.arange(candidates.steps + 1)
    borders = (levels[:, :-1] + 0.5) * candidates.scales[:, None]
    index = np.searchsorted(histogram.centers, borders)
    x, weight = histogram.centers, histogram.counts
    mass, first = _cells(weight, index), _cells(weight * x, index)
    x_q = levels * candidates.scales[:, None]
    # sum of w (x - q)^2 over the cell of q, less the sum of w x^2, which is the same for all grids
    error = (x_q * (x_q * mass - 2 * first)).sum(axis=1)
    return candidates.grid(int(error.argmin()))


def lp_qparams(histogram: Histogram, num_bits: int, norm: float = LP_NORM) -> QParams:
    """Returns the grid of least expected ``|error|**norm``; the search of `mse_qparams`.

    Neighbouring bins are pooled to 64 or more per level of the grid, far below a step.

    Args:
        histogram: What was seen.
        num_bits: 2 to 8.
        norm: p > 0; 2.4 punishes clipping more than 2 does.
    """
    candidates = _candidates(histogram, num_bits, _factors(histogram, num_bits))
    centers, counts = _pooled(histogram, num_bits)
    errors = np.concatenate(
        [
            _power_errors(candidates.scales[part], candidates.qmins[part], candidates.steps)(
                centers, counts, norm
            )
            for part in _chunks(len(candidates.scales), len(centers))
        ]
    )
    return candidates.grid(int(errors.argmin()))


def entropy_qparams(histogram: Histogram, num_bits: int) -> QParams:
    """Returns the grid of least Kullback-Leibler divergence from float to quantized values.

    TensorRT's criterion (Migacz, "8-bit inference with TensorRT", GTC 2017), on the grids that are
    executed: 8 symmetric bits are 255 levels, one-sided ones below 8 bits are [0, 2^n - 1], and
    other tensors may use any run of integers around zero. See `entropy.divergences`.
    """
    factors = np.linspace(1.0, 1 / 16, _ENTROPY_STEPS)
    candidates = _candidates(histogram, num_bits, factors)
    if (
        num_bits == 8 and not histogram.shifted
    ):  # amax / 127 leaves -128 without values; the criterion counts 255 levels
        qmins, steps = candidates.qmins + 1, candidates.steps - 1
    else:
        qmins, steps = candidates.qmins, candidates.steps
    cost = divergences(histogram.centers, histogram.counts, candidates.scales, qmins, steps)
    if not np.isfinite(cost).any():  # all values are zero: nothing to lose information about
        return minmax_qparams(histogram, num_bits)
    return candidates.grid(int(cost.argmin()))


OBSERVERS: dict[str, Callable[[Histogram, int], QParams]] = {
    "mse": mse_qparams,
    "lp": lp_qparams,
    "minmax": minmax_qparams,
    "percentile": percentile_qparams,
    "entropy": entropy_qparams,
}
"""Activation ranges by name, as ``--observer`` takes them."""


def activation_qparams(histogram: Histogram, num_bits: int, observer: str) -> QParams:
    """Returns the grid of an activation tensor by a named method.

    Raises:
        ConfigError: Unknown observer.
    """
    if observer not in OBSERVERS:
        raise ConfigError(f"observer {observer!r}: want one of {', '.join(OBSERVERS)}.")
    return OBSERVERS[observer](histogram, num_bits)


def shrink_factors(num_bits: int) -> Float64Array:
    """Factors on the covering scale: clipping pays only a little at 8 bits, a lot at 2."""
    lowest = {8: 0.5, 7: 0.4, 6: 0.3}.get(num_bits, 0.15)
    return np.linspace(1.0, lowest, _SHRINK_STEPS)


def _factors(histogram: Histogram, num_bits: int) -> Float64Array:
    if histogram.weighed:
        return np.geomspace(1.0, _LOWEST_WEIGHED, _SHRINK_STEPS)
    return shrink_factors(num_bits)


def _candidates(histogram: Histogram, num_bits: int, factors: Float64Array) -> _Candidates:
    """Returns each run of integers at each share of its covering scale, the largest first."""
    low, high, shifted = histogram.low, histogram.high, histogram.shifted
    grids = _grids(low, high, num_bits, shifted)
    full = np.asarray([_covering_scale(low, high, qmin, qmax, shifted) for qmin, qmax in grids])
    qmins = np.repeat(np.asarray([qmin for qmin, _ in grids]), len(factors))
    return _Candidates((full[:, None] * factors).ravel(), qmins, 2**num_bits - 1)


def _grid(scale: float, first: int, last: int) -> QParams:
    """Returns the grid of the steps ``first`` to ``last``, shifted where INT8 cannot hold them."""
    lowest, highest = signed_range(8)
    shift = max(0, lowest - first) - max(0, last - highest)
    return QParams(np.asarray(scale, np.float32), first + shift, last + shift, zero_point=shift)


def _grids(low: float, high: float, num_bits: int, shifted: bool) -> list[tuple[int, int]]:
    """Integer ranges to try: INT8 as it is, or any run of integers that INT8 can carry."""
    if num_bits == 8 and not shifted:
        return [signed_range(8)]
    steps = 2**num_bits - 1
    if low >= 0:
        return [(0, steps)]
    if high <= 0:
        return [(-steps, 0)]
    stride = max(1, steps // 16)
    downs = set(range(stride, steps, stride))
    if num_bits == 8:  # the finest that covers both ends lies between two strides
        exact = -low / (high - low) * steps
        downs |= {min(max(1, math.floor(exact)), steps - 1), min(math.ceil(exact), steps - 1)}
    return [(-down, steps - down) for down in sorted(downs)]


def _covering_scale(low: float, high: float, qmin: int, qmax: int, shifted: bool) -> float:
    up = max(high, 0.0) / qmax if qmax else 0.0
    down = min(low, 0.0) / qmin if qmin else 0.0
    # INT8's extra negative step is left out of the scale: amax / 127, as TensorRT counts.
    if qmin == -128 and not shifted:
        up = down = max(abs(low), abs(high)) / 127
    scale = max(up, down)
    return scale if scale >= SMALLEST_SCALE else 1.0 / max(qmax, -qmin)


def _cells(values: Float64Array, borders: Int64Array) -> Float64Array:
    """Returns sums of ``values`` between borders: ``(n, cells - 1)`` to ``(n, cells)``."""
    running = np.concatenate([[0.0], np.cumsum(values)])
    inner = running[borders]
    ends = np.zeros((len(borders), 1)), np.full((len(borders), 1), running[-1])
    return np.diff(np.concatenate([ends[0], inner, ends[1]], axis=1), axis=1)


def _pooled(histogram: Histogram, num_bits: int) -> tuple[Float64Array, Float64Array]:
    """Returns mean value and count of pools of neighbouring bins, empty ones left out."""
    used = np.flatnonzero(histogram.counts)
    span = slice(int(used[0]), int(used[-1]) + 1)
    centers, counts = histogram.centers[span], histogram.counts[span]
    starts = np.arange(0, len(counts), max(1, len(counts) // (_BINS_PER_LEVEL * 2**num_bits)))
    mass = np.add.reduceat(counts, starts)
    first = np.add.reduceat(counts * centers, starts)
    full = mass > 0
    return first[full] / mass[full], mass[full]


def _chunks(count: int, width: int) -> list[slice]:
    size = max(1, _CHUNK // width)
    return [slice(start, start + size) for start in range(0, count, size)]


def _power_errors(
    scales: Float64Array, qmins: Int64Array, steps: int
) -> Callable[[Float64Array, Float64Array, float], Float64Array]:
    """Returns the function from (values, counts, p) to each candidate's sum of ``|error|^p``."""
    scale = torch.from_numpy(scales)[:, None]
    qmin = torch.from_numpy(qmins)[:, None]

    def errors(centers: Float64Array, counts: Float64Array, norm: float) -> Float64Array:
        x = torch.from_numpy(centers)
        x_int = torch.clamp(torch.round(x / scale), qmin, qmin + steps)
        found = (x - x_int * scale).abs_().pow_(norm) @ torch.from_numpy(counts)
        return np.asarray(found.numpy(), np.float64)

    return errors
