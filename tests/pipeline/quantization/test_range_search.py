"""Range searches: what the running sums find is what trying every candidate by hand finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fdda_deploy.pipeline.quantization.observers import weight_qparams
from fdda_deploy.pipeline.quantization.ranges import (
    Histogram,
    lp_qparams,
    minmax_qparams,
    mse_qparams,
    shrink_factors,
)
from fdda_deploy.quant.affine import fake_quant, qparams_from_amax
from fdda_deploy.quant.qparams import QParams

RNG = np.random.default_rng(3)
DISTRIBUTIONS = {
    "bell": RNG.normal(size=3000),
    "one-sided": np.maximum(RNG.normal(size=3000), 0),
    "skewed": np.exp(RNG.normal(size=3000)) - 0.3,
    "negative": -np.abs(RNG.normal(size=3000)),
}


def histogram_of(values: np.ndarray) -> Histogram:
    limit = float(np.abs(values).max())
    counts, edges = np.histogram(values, bins=4096, range=(-limit, limit))
    centers = (edges[1:] + edges[:-1]) / 2
    return Histogram(centers, counts.astype(float), float(values.min()), float(values.max()))


def power_error(histogram: Histogram, qparams: QParams, norm: float) -> float:
    scale = float(qparams.scale)
    x_q = np.clip(np.rint(histogram.centers / scale), qparams.qmin, qparams.qmax) * scale
    return float(histogram.counts @ np.abs(histogram.centers - x_q) ** norm)


def brute_force(histogram: Histogram, num_bits: int, norm: float) -> float:
    """Least error over every run of integers and every share of its covering scale."""
    steps, least = 2**num_bits - 1, np.inf
    runs = [-128] if num_bits == 8 else range(-steps, 1)
    for qmin in runs:
        qmax = qmin + steps
        up = max(histogram.high, 0) / qmax if qmax else 0.0
        down = min(histogram.low, 0) / qmin if qmin else 0.0
        full = histogram.amax / 127 if num_bits == 8 else max(up, down)
        if (qmin == 0 and histogram.low < 0) or (qmax == 0 and histogram.high > 0):
            continue
        for factor in shrink_factors(num_bits):
            grid = QParams(np.float32(full * factor), qmin, qmax)
            least = min(least, power_error(histogram, grid, norm))
    return least


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", DISTRIBUTIONS)
def test_the_squared_error_is_the_least_there_is(shape: str, num_bits: int) -> None:
    histogram = histogram_of(DISTRIBUTIONS[shape])
    found = power_error(histogram, mse_qparams(histogram, num_bits), 2.0)
    assert found <= brute_force(histogram, num_bits, 2.0) * (1 + 1e-4)


@pytest.mark.parametrize("norm", [1.0, 2.0, 2.4, 4.0])
@pytest.mark.parametrize("num_bits", [3, 8])
@pytest.mark.parametrize("shape", ["bell", "one-sided"])
def test_any_power_of_the_error_is_the_least_there_is(
    shape: str, num_bits: int, norm: float
) -> None:
    histogram = histogram_of(DISTRIBUTIONS[shape])
    found = power_error(histogram, lp_qparams(histogram, num_bits, norm), norm)
    assert found <= brute_force(histogram, num_bits, norm) * 1.01


def test_a_higher_power_clips_less() -> None:
    histogram = histogram_of(DISTRIBUTIONS["bell"])
    spans = [
        float(lp_qparams(histogram, 4, norm).scale) / float(minmax_qparams(histogram, 4).scale)
        for norm in (1.0, 2.0, 4.0, 16.0)
    ]
    assert spans == sorted(spans)
    assert spans[0] < 0.75 < spans[3]


@pytest.mark.parametrize("num_bits", [2, 4, 8])
@pytest.mark.parametrize("length", [9, 128, 129, 700], ids=lambda n: f"{n} a row")
def test_weight_scales_are_as_good_as_trying_all(length: int, num_bits: int) -> None:
    weight = np.random.default_rng(length).standard_t(4, size=(24, length)).astype(np.float32)
    start = qparams_from_amax(np.abs(weight).max(axis=1), num_bits, axis=0)
    errors = []
    for factor in shrink_factors(num_bits):
        grid = QParams(start.scale * np.float32(factor), start.qmin, start.qmax, 0)
        errors.append((np.abs(weight - fake_quant(weight, grid)).astype(float) ** 2.4).sum(axis=1))
    least = np.min(errors, axis=0)
    found = np.abs(weight - fake_quant(weight, weight_qparams(weight, num_bits, 0))).astype(float)
    assert ((found**2.4).sum(axis=1) <= least * (1.03 if num_bits < 8 else 1.003)).all()
    if length <= 128:
        assert (found**2.4).sum(axis=1) == pytest.approx(least, rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 8), st.floats(0.6, 8.0), st.integers(129, 400))
@example(259, 7, 3.689453125, 181)  # its histogram preferred a scale that was 1.7 % worse
def test_long_rows_are_never_worse_off_than_on_their_covering_grid(
    seed: int, num_bits: int, freedom: float, length: int
) -> None:
    weight = np.random.default_rng(seed).standard_t(freedom, size=(6, length)).astype(np.float32)
    covering = qparams_from_amax(np.abs(weight).max(axis=1), num_bits, axis=0)
    plain, found = (
        (np.abs(weight - fake_quant(weight, grid)).astype(float) ** 2.4).sum(axis=1)
        for grid in (covering, weight_qparams(weight, num_bits, 0))
    )
    assert (found <= plain * (1 + 1e-5)).all()
