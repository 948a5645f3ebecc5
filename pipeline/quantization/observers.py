"""Ranges: what a tensor's values, or a weight's, say about the grid to round them to."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fdda_deploy.errors import CalibrationError, ConfigError
from fdda_deploy.pipeline.quantization.ranges import (
    LP_NORM,
    OBSERVERS,
    Float64Array,
    Histogram,
    activation_qparams,
    covering_qparams,
    shrink_factors,
)
from fdda_deploy.quant.affine import qparams_from_amax, signed_range
from fdda_deploy.quant.qparams import SMALLEST_SCALE, QParams

NUM_BINS = 8192
SAMPLE_SIZE = 2**16
"""Values that a histogram takes of one batch of one tensor."""
WEIGHT_NORM = LP_NORM
_ROW_BINS = 4096
"""Bins over a row of weights: 16 to a step of the finest 8-bit grid."""
_SHORT_ROW = 128
"""Rows up to this length are searched exactly; longer ones by their histograms first."""
_ROWS_AT_ONCE = 1024


class RangeObserver(Protocol):
    """Gathers the range of one activation tensor, batch by batch."""

    def observe(self, x: Tensor) -> None:
        """Takes in one batch of any shape."""

    def qparams(self, num_bits: int) -> QParams:
        """Returns the grid for what was seen."""


class MinMaxObserver:
    """Keeps the exact smallest and largest of all values: one pass over each batch.

    Args:
        name: What messages call the tensor.
        shifted: 8-bit grids may have any zero-point.
    """

    def __init__(self, name: str = "an activation", shifted: bool = False) -> None:
        self._name = name
        self._shifted = shifted
        self.low = math.inf
        self.high = -math.inf

    def observe(self, x: Tensor) -> None:
        """Takes in one batch of any shape.

        Raises:
            CalibrationError: A value that is not finite.
        """
        low, high = torch.stack(torch.aminmax(x.detach())).tolist()
        if not math.isfinite(low) or not math.isfinite(high):
            raise CalibrationError(
                f"{self._name}: NaN or infinite while ranges are measured. Check the weights and "
                "the --mean/--std of the images."
            )
        self.low, self.high = min(self.low, low), max(self.high, high)

    def qparams(self, num_bits: int) -> QParams:
        """Returns the finest grid that covers every value seen.

        Raises:
            CalibrationError: Nothing was seen.
        """
        self.require_images()
        return covering_qparams(self.low, self.high, num_bits, self._shifted)

    def require_images(self) -> None:
        """Raises a CalibrationError unless a batch was seen."""
        if self.low > self.high:
            raise CalibrationError(
                f"{self._name}: no image reached this tensor. Calibrate on one image or more."
            )


class HistogramObserver:
    """Counts values on ``[-limit, limit]``; the limit doubles, and bins merge, as values grow.

    Smallest and largest value are exact. The counts are those of a sample where a batch has more
    than ``SAMPLE_SIZE`` values: each image's values are cut into equal runs and one value is drawn
    from each run, at new seeded positions in every batch, and counts for its whole run. A share p
    of all values is so estimated with a standard error of at most ``sqrt(p (1 - p) / n)`` over n
    samples: with 500 images in batches of 32, n is a million, and the 0.005 % beyond a 99.99 %
    percentile's edge are known to 14 % of themselves.

    Args:
        num_bins: Bins over the whole range, a multiple of 4.
        name: What messages call the tensor.
        method: How `qparams` chooses (`ranges.OBSERVERS`).
        shifted: 8-bit grids may have any zero-point.
    """

    def __init__(
        self,
        num_bins: int = NUM_BINS,
        name: str = "an activation",
        method: str = "mse",
        shifted: bool = False,
    ) -> None:
        self._range = MinMaxObserver(name)
        self._counts = torch.zeros(num_bins, dtype=torch.float64)
        self._limit = 0.0
        self._method = method
        self._shifted = shifted
        self._generator = torch.Generator().manual_seed(0)

    def observe(self, x: Tensor) -> None:
        """Takes in one batch of any shape.

        Raises:
            CalibrationError: A value that is not finite.
        """
        self._range.observe(x)
        self._grow(max(abs(self._range.low), abs(self._range.high)))
        sample, weight = sampled(x.detach().float(), SAMPLE_SIZE, self._generator)
        counts = binned(sample, self._limit, self._counts.numel())
        self._counts.add_(counts.cpu(), alpha=weight)

    def histogram(self) -> Histogram:
        """Returns what was seen; the counts add up to the number of all values.

        Raises:
            CalibrationError: Nothing was seen.
        """
        self._range.require_images()
        counts = self._counts.numpy().copy()
        centers = bin_centers(self._limit, len(counts))
        return Histogram(centers, counts, self._range.low, self._range.high, self._shifted)

    def qparams(self, num_bits: int) -> QParams:
        """Returns the grid that the observer's method chooses.

        Raises:
            CalibrationError: Nothing was seen.
        """
        return activation_qparams(self.histogram(), num_bits, self._method)

    def _grow(self, amax: float) -> None:
        if self._limit == 0.0:
            self._limit = max(amax, SMALLEST_SCALE * 256)
        while amax > self._limit:
            quarter = self._counts.numel() // 4
            merged = self._counts.reshape(-1, 2).sum(dim=1)
            self._counts.zero_()
            self._counts[quarter : 3 * quarter] = merged
            self._limit *= 2


def binned(
    values: Tensor, limit: float, num_bins: int = NUM_BINS, weights: Tensor | None = None
) -> Tensor:
    """Returns how many values, or what sum of weights, fall into each bin of ``[-limit, limit]``.

    Float64, ``(num_bins,)``; what lies outside counts in the outermost bins.
    """
    index = (values / limit).add_(1).mul_(num_bins / 2).int().clamp_(0, num_bins - 1)
    each = None if weights is None else weights.flatten().double()
    return torch.bincount(index.flatten(), each, minlength=num_bins).double()


def bin_centers(limit: float, num_bins: int = NUM_BINS) -> Float64Array:
    """Returns the centers of those bins."""
    return -limit + 2 * limit / num_bins * (np.arange(num_bins, dtype=np.float64) + 0.5)


def range_observer(method: str, name: str, shifted: bool = False) -> RangeObserver:
    """Returns the cheapest observer that knows what ``method`` needs.

    Args:
        method: A key of `ranges.OBSERVERS`.
        name: What messages call the tensor.
        shifted: 8-bit grids may have any zero-point (`ranges.Histogram`).

    Raises:
        ConfigError: Unknown method.
    """
    if method not in OBSERVERS:
        raise ConfigError(f"observer {method!r}: want one of {', '.join(OBSERVERS)}.")
    if method == "minmax":
        return MinMaxObserver(name, shifted)
    return HistogramObserver(NUM_BINS, name, method, shifted)


def sampled(x: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, float]:
    """Returns about ``size`` values of ``x`` and how many values each stands for.

    Args:
        x: ``(N, ...)``, or a scalar; every one of the N gives the same number of values.
        size: Values wanted, ``N`` or more; all are taken where there are no more.
        generator: Of the positions, on the CPU.
    """
    rows = x.reshape(len(x), -1) if x.ndim else x.reshape(1, 1)
    count, length = rows.shape
    wanted = max(1, size // max(1, count))
    if length <= wanted:
        return rows.flatten(), 1.0
    run = length / wanted
    # image i takes u_j + v_i (mod 1) of run j: uniform, and independent from image to image
    share = torch.rand(wanted, generator=generator) + torch.rand(count, 1, generator=generator)
    first = (torch.arange(wanted, dtype=torch.float64) * run).long()
    place = share.frac_().mul_(run).long().add_(first).clamp_(max=length - 1)
    return rows.gather(1, place.to(x.device)).flatten(), run


def weight_qparams(
    weight: npt.NDArray[np.float32], num_bits: int, axis: int, block_size: int | None = None
) -> QParams:
    """Returns symmetric scales of least L_2.4 error, per channel of ``axis`` or per block along it.

    Long rows are compared by histogram, all rows and candidates in one product of matrices; the
    best candidate, its two neighbours and the covering scale are then measured on the weights.

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
    start = qparams_from_amax(np.abs(rows).max(axis=1), num_bits, axis=0).scale
    factors = shrink_factors(num_bits)
    if rows.shape[1] <= _SHORT_ROW:
        shortlist = np.broadcast_to(np.arange(len(factors)), (len(rows), len(factors)))
    else:
        best = _best_by_histogram(rows / start[:, None], factors, qmin, qmax)
        near = np.clip(best[:, None] + np.arange(-1, 2), 0, len(factors) - 1)
        # The covering scale stands for election too: a histogram's error is off by its bins.
        shortlist = np.hstack([near, np.zeros_like(best)[:, None]])
    candidates = (start[:, None] * factors.astype(np.float32)[shortlist]).astype(np.float32)
    scale = _best_by_value(rows, candidates, qmin, qmax)
    if block_size is None:
        return QParams(scale, qmin, qmax, axis)
    shape = (*moved.shape[:-1], moved.shape[-1] // block_size)
    blocked = np.moveaxis(scale.reshape(shape), -1, axis)
    return QParams(np.ascontiguousarray(blocked), qmin, qmax, axis, block_size=block_size)


def _best_by_histogram(
    steps: npt.NDArray[np.float32], factors: Float64Array, qmin: int, qmax: int
) -> npt.NDArray[np.int64]:
    """Returns each row's best factor, ``(rows,)``, for weights in units of their covering scale.

    In these units all rows share the candidates, so ``counts (rows, bins) @ error (bins, factors)``
    is the error of every row under every candidate.
    """
    width = 2.0 * qmax / _ROW_BINS
    centers = torch.from_numpy(-qmax + width * (np.arange(_ROW_BINS) + 0.5))[:, None]
    factor = torch.from_numpy(factors)
    x_q = torch.clamp(torch.round(centers / factor), qmin, qmax) * factor
    error = (centers - x_q).abs_().pow_(WEIGHT_NORM)
    found = []
    for part in torch.split(torch.from_numpy(steps), _ROWS_AT_ONCE):
        bins = ((part + qmax) * (1 / width)).long().clamp_(0, _ROW_BINS - 1)
        counts = torch.zeros(len(part), _ROW_BINS, dtype=torch.float64)
        counts.scatter_add_(1, bins, torch.ones((), dtype=torch.float64).expand_as(bins))
        found.append((counts @ error).argmin(dim=1))
    return np.asarray(torch.cat(found).numpy(), np.int64)


def _best_by_value(
    rows: npt.NDArray[np.float32], candidates: npt.NDArray[np.float32], qmin: int, qmax: int
) -> npt.NDArray[np.float32]:
    """Returns the scale ``(rows,)`` of least error among each row's ``(rows, candidates)``."""
    x, scales = torch.tensor(rows), torch.from_numpy(candidates)
    scales = scales.clamp_min(SMALLEST_SCALE)
    columns = max(1, 2**20 // max(1, rows.size))
    errors = []
    for part in torch.split(scales, columns, dim=1):
        step = part[:, :, None]
        x_q = torch.clamp(torch.round(x[:, None] / step), qmin, qmax).mul_(step)
        power = x_q.sub_(x[:, None]).abs_().pow_(WEIGHT_NORM)
        errors.append(power.sum(dim=2, dtype=torch.float64))
    index = torch.cat(errors, dim=1).argmin(dim=1, keepdim=True)
    return np.asarray(scales.gather(1, index)[:, 0].numpy(), np.float32)
