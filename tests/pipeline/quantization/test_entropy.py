"""KL ranges: every candidate costs what a bin-by-bin reference says, and the best is taken."""

from __future__ import annotations

import numpy as np
import pytest

from fdda_deploy.pipeline.quantization.entropy import SMOOTHING, divergences
from fdda_deploy.pipeline.quantization.ranges import Histogram, entropy_qparams, minmax_qparams

NUM_BINS = 512


def histogram_of(values: np.ndarray, limit: float = 8.0) -> Histogram:
    counts, edges = np.histogram(values, bins=NUM_BINS, range=(-limit, limit))
    centers = (edges[1:] + edges[:-1]) / 2
    return Histogram(centers, counts.astype(float), float(values.min()), float(values.max()))


def slow_divergence(histogram: Histogram, scale: float, qmin: int, qmax: int) -> float:
    """KL(P || Q), written bin by bin."""
    counts = histogram.counts.copy()
    middle = NUM_BINS // 2
    counts[middle - 1], counts[middle] = counts[middle - 2], counts[middle + 1]
    floor = SMOOTHING * counts.sum() / np.count_nonzero(counts)
    cell = np.floor(histogram.centers / scale + 0.5)
    inside = np.flatnonzero((cell >= qmin) & (cell <= qmax))
    p, q = np.zeros(NUM_BINS), np.zeros(NUM_BINS)
    p[inside] = counts[inside]
    p[inside[0]] += counts[: inside[0]].sum()
    p[inside[-1]] += counts[inside[-1] + 1 :].sum()
    for integer in range(qmin, qmax + 1):
        bins = [b for b in inside if cell[b] == integer and p[b] > 0]
        mass = sum(counts[b] for b in bins)
        for b in bins:
            q[b] = mass / len(bins) + floor
    p, q = p / p.sum(), q / q.sum()
    return float(sum(p[b] * np.log(p[b] / q[b]) for b in range(NUM_BINS) if p[b] > 0))


RNG = np.random.default_rng(0)
DISTRIBUTIONS = {
    "bell": RNG.normal(size=4000),
    "one-sided": np.maximum(RNG.normal(size=4000), 0),
    "long tail": np.clip(RNG.standard_t(2, size=4000), -7.9, 7.9),
    "sparse": RNG.choice([-3.0, 0.0, 0.7, 5.0], size=4000),
}


@pytest.mark.parametrize("grid", [(-8, 7), (0, 15), (-3, 12), (-127, 127)], ids=str)
@pytest.mark.parametrize("shape", DISTRIBUTIONS)
def test_every_candidate_costs_what_the_reference_says(shape: str, grid: tuple[int, int]) -> None:
    histogram, (qmin, qmax) = histogram_of(DISTRIBUTIONS[shape]), grid
    scales = histogram.amax / qmax * np.array([1.0, 0.83, 0.61, 0.4, 0.23])
    found = divergences(histogram.centers, histogram.counts, scales, np.full(5, qmin), qmax - qmin)
    wanted = [slow_divergence(histogram, scale, qmin, qmax) for scale in scales]
    finite = np.isfinite(found)
    assert finite.any()
    assert found[finite] == pytest.approx(np.array(wanted)[finite], rel=1e-6, abs=1e-9)


def test_a_grid_that_holds_no_value_is_never_chosen() -> None:
    histogram = histogram_of(np.full(100, 5.0))
    scales = np.array([5.0 / 7, 0.1])
    found = divergences(histogram.centers, histogram.counts, scales, np.array([-8, -8]), 15)
    assert found[0] == pytest.approx(0, abs=1e-9)
    assert found[1] == np.inf


def test_an_empty_distribution_has_no_finite_cost() -> None:
    centers = histogram_of(np.ones(1)).centers
    found = divergences(centers, np.zeros(NUM_BINS), np.ones(3), np.full(3, -8), 15)
    assert (found == np.inf).all()
    zeros = Histogram(centers, np.zeros(NUM_BINS), 0.0, 0.0)
    assert entropy_qparams(zeros, 4) == minmax_qparams(zeros, 4)


@pytest.mark.parametrize("num_bits", [4, 8])
def test_entropy_clips_a_thin_tail_and_keeps_a_thick_one(num_bits: int) -> None:
    bell = np.random.default_rng(1).normal(size=20000)
    thin, thick = np.append(bell, 7.9), np.linspace(-7.9, 7.9, 20000)
    shares = []
    for values in (thin, thick):
        histogram = histogram_of(values)
        grid = entropy_qparams(histogram, num_bits)
        shares.append(float(grid.scale) * min(grid.qmax, 127) / histogram.amax)
    assert shares[0] < 0.85
    assert shares[1] > 0.8


def test_eight_bits_treat_both_signs_alike() -> None:
    values = np.exp(np.random.default_rng(4).normal(size=5000)) * 0.2 - 0.5
    histogram = histogram_of(np.clip(values, -7.9, 7.9))
    mirrored = Histogram(
        histogram.centers, histogram.counts[::-1].copy(), -histogram.high, -histogram.low
    )
    scales = histogram.amax / 127 * np.linspace(1, 0.1, 40)
    costs = [
        divergences(h.centers, h.counts, scales, np.full(40, -127), 254)
        for h in (histogram, mirrored)
    ]
    assert costs[0] == pytest.approx(costs[1], rel=1e-6)
    assert entropy_qparams(histogram, 8) == entropy_qparams(mirrored, 8)


def test_one_sided_values_take_a_one_sided_grid() -> None:
    grid = entropy_qparams(histogram_of(DISTRIBUTIONS["one-sided"]), 4)
    assert (grid.qmin, grid.qmax) == (0, 15)
