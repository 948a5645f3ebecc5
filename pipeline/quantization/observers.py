"""Ranges: from the values of a tensor to its QParams, by min-max, percentile or least error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fdda_deploy.errors import CalibrationError, ConfigError
from fdda_deploy.quant.affine import qparams_from_amax, signed_range
from fdda_deploy.quant.qparams import SMALLEST_SCALE, QParams

Float64Array = npt.NDArray[np.float64]
NUM_BINS = 8192
PERCENTILE = 99.99
ACTIVATION_NORM = 2.0
WEIGHT_NORM = 2.4
"""L_p norms of the searches; p = 2.4 for weights is the value of the published reconstructions."""
_SHRINK_STEPS = 96


@dataclass(frozen=True)
class Histogram:
    """Distribution of a tensor's values.

    Attributes:
        centers: ``(bins,)`` float64, bin centers in ascending order.
        counts: ``(bins,)`` float64.
        low: Smallest value seen.
        high: Largest value seen.
    """

    centers: Float64Array
    counts: Float64Array
    low: float
    high: float

    @property
    def amax(self) -> float:
        """Largest absolute value seen."""
        return max(abs(self.low), abs(self.high))


class HistogramObserver:
    """Counts values on ``[-limit, limit]``; the limit doubles, and bins merge, as values grow.

    Args:
        num_bins: Bins over the whole range, a multiple of 4.
        name: What messages call the tensor.
    """

    def __init__(self, num_bins: int = NUM_BINS, name: str = "an activation") -> None:
        self._name = name
        self._counts = torch.zeros(num_bins, dtype=torch.float64)
        self._limit = 0.0
        self._low = float("inf")
        self._high = float("-inf")

    def observe(self, x: Tensor) -> None:
        """Takes in one batch of any shape.

        Raises:
            CalibrationError: A value that is not finite.
        """
        flat = x.detach().float().flatten()
        low, high = (float(value) for value in torch.aminmax(flat))
        if not np.isfinite(low) or not np.isfinite(high):
            raise CalibrationError(
                f"{self._name}: NaN or infinite while ranges are measured. Check the weights and "
                "the --mean/--std of the images."
            )
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._grow(max(abs(low), abs(high)))
        counts = torch.histc(flat, bins=self._counts.numel(), min=-self._limit, max=self._limit)
        self._counts += counts.double().cpu()

    def histogram(self) -> Histogram:
        """Returns what was seen.

        Raises:
            CalibrationError: Nothing was seen.
        """
        if self._limit == 0.0:
            raise CalibrationError(
                f"{self._name}: no image reached this tensor. Calibrate on one image or more."
            )
        bins = self._counts.numel()
        width = 2 * self._limit / bins
        centers = -self._limit + width * (np.arange(bins, dtype=np.float64) + 0.5)
        return Histogram(centers, self._counts.numpy().copy(), self._low, self._high)

    def _grow(self, amax: float) -> None:
        if self._limit == 0.0:
            self._limit = max(amax, SMALLEST_SCALE * 256)
        while amax > self._limit:
            quarter = self._counts.numel() // 4
            merged = self._counts.reshape(-1, 2).sum(dim=1)
            self._counts.zero_()
            self._counts[quarter : 3 * quarter] = merged
            self._limit *= 2


def minmax_qparams(histogram: Histogram, num_bits: int) -> QParams:
    """Returns the finest grid that covers every value seen."""
    return _covering(histogram.low, histogram.high, num_bits)


def percentile_qparams(histogram: Histogram, num_bits: int) -> QParams:
    """Returns the grid that covers the central 99.99 % of the values."""
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    tail = (1 - PERCENTILE / 100) / 2
    low_index = int(np.searchsorted(share, tail))
    high_index = int(np.searchsorted(share, 1 - tail))
    last = len(share) - 1
    low = max(histogram.low, histogram.centers[min(low_index, last)])
    high = min(histogram.high, histogram.centers[min(high_index, last)])
    return _covering(min(low, 0.0) if histogram.low < 0 else 0.0, max(high, 0.0), num_bits)


def mse_qparams(histogram: Histogram, num_bits: int) -> QParams:
    """Returns the grid of least expected squared rounding and clipping error.

    Searches the scale from 100 % of the covering one down to a few percent and, below 8 bits, also
    which run of ``2**num_bits`` integers around zero to use.
    """
    used = histogram.counts > 0
    centers, counts = histogram.centers[used], histogram.counts[used]
    best: tuple[float, QParams | None] = (np.inf, None)
    for qmin, qmax in _grids(histogram, num_bits):
        full = _covering_scale(histogram.low, histogram.high, qmin, qmax)
        for scale in full * _shrink_factors(num_bits):
            x_q = np.clip(np.rint(centers / scale), qmin, qmax) * scale
            error = float(counts @ np.abs(centers - x_q) ** ACTIVATION_NORM)
            if error < best[0]:
                best = (
                    error,
                    QParams(np.asarray(max(scale, SMALLEST_SCALE), np.float32), qmin, qmax),
                )
    assert best[1] is not None
    return best[1]


OBSERVERS: dict[str, Callable[[Histogram, int], QParams]] = {
    "mse": mse_qparams,
    "minmax": minmax_qparams,
    "percentile": percentile_qparams,
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


def weight_qparams(
    weight: npt.NDArray[np.float32], num_bits: int, axis: int, block_size: int | None = None
) -> QParams:
    """Returns symmetric scales of least L_2.4 error, per channel of ``axis`` or per block along it.

    Args:
        weight: Any shape, float32.
        num_bits: 2 to 8.
        axis: Output-channel axis, or the blocked axis with ``block_size``.
        block_size: Elements along ``axis`` that share a scale.
    """
    qmin, qmax = signed_range(num_bits)
    if block_size is None:
        rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    else:
        moved = np.moveaxis(weight, axis, -1)
        rows = moved.reshape(-1, block_size)
    amax = np.abs(rows).max(axis=1)
    start = qparams_from_amax(amax, num_bits, axis=0).scale
    best = np.full(len(rows), np.inf)
    scale = start.copy()
    for factor in _shrink_factors(num_bits):
        candidate = (start * np.float32(factor)).astype(np.float32)
        x_q = np.clip(np.rint(rows / candidate[:, None]), qmin, qmax) * candidate[:, None]
        error = (np.abs(rows - x_q) ** WEIGHT_NORM).sum(axis=1)
        better = (error < best) & (candidate >= SMALLEST_SCALE)
        best = np.where(better, error, best)
        scale = np.where(better, candidate, scale)
    if block_size is None:
        return QParams(scale, qmin, qmax, axis)
    shape = (*moved.shape[:-1], moved.shape[-1] // block_size)
    blocked = np.moveaxis(scale.reshape(shape), -1, axis)
    return QParams(np.ascontiguousarray(blocked), qmin, qmax, axis, block_size=block_size)


def _shrink_factors(num_bits: int) -> Float64Array:
    """Factors on the covering scale: clipping pays only a little at 8 bits, a lot at 2."""
    lowest = {8: 0.5, 7: 0.4, 6: 0.3}.get(num_bits, 0.15)
    return np.linspace(1.0, lowest, _SHRINK_STEPS)


def _grids(histogram: Histogram, num_bits: int) -> list[tuple[int, int]]:
    """Integer ranges to try: INT8 as it is, or any run of integers that INT8 can carry."""
    if num_bits == 8:
        return [signed_range(8)]
    steps = 2**num_bits - 1
    if histogram.low >= 0:
        return [(0, steps)]
    if histogram.high <= 0:
        return [(-steps, 0)]
    stride = max(1, steps // 16)
    return [(-down, steps - down) for down in range(stride, steps, stride)]


def _covering_scale(low: float, high: float, qmin: int, qmax: int) -> float:
    up = max(high, 0.0) / qmax if qmax else 0.0
    down = min(low, 0.0) / qmin if qmin else 0.0
    # INT8's extra negative step is left out of the scale: amax / 127, as TensorRT counts.
    if qmin == -128:
        up = down = max(abs(low), abs(high)) / 127
    scale = max(up, down)
    return scale if scale >= SMALLEST_SCALE else 1.0 / max(qmax, -qmin)


def _covering(low: float, high: float, num_bits: int) -> QParams:
    histogram = Histogram(np.zeros(0), np.zeros(0), low, high)
    options = [
        (_covering_scale(low, high, qmin, qmax), qmin, qmax)
        for qmin, qmax in _grids(histogram, num_bits)
    ]
    scale, qmin, qmax = min(options)
    return QParams(np.asarray(scale, np.float32), qmin, qmax)
