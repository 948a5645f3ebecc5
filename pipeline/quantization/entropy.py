"""How much a grid blurs a distribution: TensorRT's KL criterion, for every candidate at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
SMOOTHING = 1e-4
"""Share of an average bin's count that every bin of the blurred distribution has at least."""


def divergences(
    centers: Float64Array,
    counts: Float64Array,
    scales: Float64Array,
    qmins: npt.NDArray[np.int64],
    steps: int,
) -> Float64Array:
    """Returns ``KL(P || Q)`` in nats of each candidate grid, ``(candidates,)``.

    P is the histogram inside the grid's cells, ``[(qmin - 1/2) scale, (qmax + 1/2) scale]``, with
    what lies outside added to the outermost bins. Q is the same without what lies outside, merged
    to one sum per cell and spread evenly over the cell's bins that are not empty in P. Both are
    normalised; Q is smoothed by 1e-4 of an average bin, so that it is 0 nowhere where P is not.
    (Migacz, "8-bit inference with TensorRT", GTC 2017; the two bins next to 0, where a ReLU heaps
    exact zeros that every grid holds, count as much as their outer neighbours.)

    Every sum runs over whole cells, so running sums over the bins give each in a few look-ups, and
    the cost is candidates x cells. A grid that all values lie outside of has divergence infinity.

    Args:
        centers: ``(bins,)``, ascending, evenly spaced around 0.
        counts: ``(bins,)``.
        scales: ``(candidates,)``, real units per step.
        qmins: ``(candidates,)``, smallest integer of each grid.
        steps: ``qmax - qmin`` of all of them.
    """
    counts = _without_zeros(centers, counts)
    total = float(counts.sum())
    if total == 0:
        return np.full(len(scales), np.inf)
    borders = (qmins[:, None] + np.arange(steps + 2) - 0.5) * scales[:, None]
    index = np.searchsorted(centers, borders)
    cell_mass = np.diff(_running(counts)[index], axis=1)
    p_mass, p_bins, p_log_p = _with_tails(counts, index)
    q_mass = cell_mass + SMOOTHING * total / np.count_nonzero(counts) * p_bins
    log_q = np.log(np.where(p_bins > 0, q_mass, 1.0) / np.maximum(p_bins, 1))
    inside = cell_mass.sum(axis=1) > 0
    q_total = np.log(np.where(inside, q_mass.sum(axis=1), 1.0))
    cost = (p_log_p - (p_mass * log_q).sum(axis=1)) / total + q_total - np.log(total)
    return np.where(inside, cost, np.inf)


def _with_tails(
    counts: Float64Array, index: npt.NDArray[np.int64]
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Returns P's count and filled bins of each cell, and its sum of ``x log x`` over all bins.

    Args:
        counts: ``(bins,)``, not all 0.
        index: ``(candidates, cells + 1)``, the first bin of each cell and the end of the last.
    """
    mass, log_sum = _running(counts), _running(_x_log_x(counts))
    p_mass, p_bins = np.diff(mass[index], axis=1), np.diff(_running(counts > 0)[index], axis=1)
    p_log_p = log_sum[index[:, -1]] - log_sum[index[:, 0]]
    below, above = mass[index[:, 0]], mass[-1] - mass[index[:, -1]]
    first = np.minimum(index[:, 0], len(counts) - 1)
    last = np.maximum(index[:, -1] - 1, 0)
    rows = np.arange(len(index))
    # one bin alone takes both tails: the second finds there what the first left
    for end, tail, before in ((first, below, 0.0), (last, above, below * (first == last))):
        was = counts[end] + before
        cell = np.clip((index <= end[:, None]).sum(axis=1) - 1, 0, p_mass.shape[1] - 1)
        p_log_p += _x_log_x(was + tail) - _x_log_x(was)
        p_mass[rows, cell] += tail
        p_bins[rows, cell] += (was == 0) & (tail > 0)
    return p_mass, p_bins, p_log_p


def _without_zeros(centers: Float64Array, counts: Float64Array) -> Float64Array:
    """Returns the counts with the two bins next to 0 as full as their outer neighbours."""
    middle = int(np.searchsorted(centers, 0.0))
    changed = counts.copy()
    changed[middle - 1], changed[middle] = counts[middle - 2], counts[middle + 1]
    return changed


def _running(values: npt.NDArray[np.generic]) -> Float64Array:
    """Returns running sums with a 0 in front: ``running[j] - running[i]`` sums bins i to j - 1."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _x_log_x(x: Float64Array) -> Float64Array:
    """Returns ``x log x``, 0 at 0."""
    return np.asarray(x * np.log(np.where(x > 0, x, 1.0)), np.float64)
