"""Ranges: histograms that grow like NumPy's, and grids that cover, clip and divide as they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fdda_deploy.errors import CalibrationError, ConfigError
from fdda_deploy.pipeline.quantization.observers import (
    HistogramObserver,
    weight_qparams,
)
from fdda_deploy.pipeline.quantization.ranges import (
    OBSERVERS,
    Histogram,
    activation_qparams,
    minmax_qparams,
    mse_qparams,
    percentile_qparams,
)
from fdda_deploy.quant.affine import dequantize, fake_quant, qparams_from_amax, quantize
from fdda_deploy.quant.qparams import SMALLEST_SCALE, QParams

BITS = range(2, 9)
SHAPES = ("bell", "one-sided", "negative", "outlier", "skewed", "three values")


def values_of(shape: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    bell = rng.normal(size=2000)
    found = {
        "bell": bell,
        "one-sided": np.maximum(bell, 0),
        "negative": -np.abs(bell),
        "outlier": np.append(bell, 60.0),
        "skewed": np.exp(bell) - 0.3,
        "three values": rng.choice([-1.0, 0.0, 2.0], size=2000),
    }
    return found[shape].astype(np.float32)


def seen(*batches: np.ndarray, num_bins: int = 2048) -> Histogram:
    observer = HistogramObserver(num_bins)
    for batch in batches:
        observer.observe(torch.from_numpy(batch))
    return observer.histogram()


def error_of(histogram: Histogram, qparams: QParams) -> float:
    """Sum of squared errors over the histogram, in float64."""
    scale = float(qparams.scale)
    x_int = np.clip(np.rint(histogram.centers / scale), qparams.qmin, qparams.qmax)
    return float(histogram.counts @ (histogram.centers - x_int * scale) ** 2)


def test_growing_histograms_merge_to_numpys() -> None:
    batches = [np.float32([-1.0, -0.4, 0.03, 0.9]), np.float32([3.9, -4.0, 0.1]), -np.ones(3)]
    found = seen(*(batch.astype(np.float32) for batch in batches), num_bins=16)
    wanted, edges = np.histogram(np.concatenate(batches), bins=16, range=(-4, 4))
    assert found.counts.tolist() == wanted.tolist()
    assert found.centers.tolist() == ((edges[1:] + edges[:-1]) / 2).tolist()
    assert (found.low, found.high) == (-4.0, np.float32(3.9))
    assert found.amax == 4.0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(
            st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False),
            min_size=1,
            max_size=30,
        ),
        min_size=1,
        max_size=6,
    )
)
def test_no_value_is_lost_however_the_range_grows(batches: list[list[float]]) -> None:
    found = seen(*(np.float32(batch) for batch in batches), num_bins=64)
    everything = np.concatenate([np.float32(batch) for batch in batches]).astype(np.float64)
    assert found.counts.sum() == len(everything)
    assert (found.low, found.high) == (everything.min(), everything.max())
    width = found.centers[1] - found.centers[0]
    binned = np.repeat(found.centers, found.counts.astype(int))
    assert np.abs(np.sort(everything) - binned).max() <= 1.01 * width


def test_the_order_of_batches_does_not_change_what_was_seen() -> None:
    small, large = values_of("bell"), 7 * values_of("bell", 1)
    one, other = seen(small, large), seen(large, small)
    assert (one.low, one.high) == (other.low, other.high)
    assert error_of(one, minmax_qparams(other, 8)) == pytest.approx(
        error_of(other, minmax_qparams(one, 8)), rel=0.02
    )


def test_halves_and_any_shape_are_counted_alike() -> None:
    values = torch.linspace(-1, 1, 24)
    flat, shaped = HistogramObserver(32), HistogramObserver(32)
    flat.observe(values.half().float())
    shaped.observe(values.half().reshape(2, 3, 2, 2))
    assert flat.histogram().counts.tolist() == shaped.histogram().counts.tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(CalibrationError, match=r"^conv1: NaN or infinite.*Check the weights and"):
        HistogramObserver(name="conv1").observe(torch.tensor([1.0, bad]))


def test_nothing_seen_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="no image reached this tensor"):
        HistogramObserver().histogram()


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("num_bits", BITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_grid_is_a_run_of_two_to_the_n_integers_around_zero(
    shape: str, num_bits: int, observer: str
) -> None:
    qparams = activation_qparams(seen(values_of(shape)), num_bits, observer)
    assert qparams.qmax - qparams.qmin == 2**num_bits - 1
    assert -128 <= qparams.qmin <= 0 <= qparams.qmax <= 127
    assert (qparams.zero_point, qparams.axis) == (0, None)
    if num_bits == 8:
        assert (qparams.qmin, qparams.qmax) == (-128, 127)
    elif shape == "one-sided":
        assert (qparams.qmin, qparams.qmax) == (0, 2**num_bits - 1)
    elif shape == "negative":
        assert (qparams.qmin, qparams.qmax) == (1 - 2**num_bits, 0)


@pytest.mark.parametrize("num_bits", BITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_minmax_covers_every_value(shape: str, num_bits: int) -> None:
    values = values_of(shape)
    qparams = minmax_qparams(seen(values), num_bits)
    assert float(qparams.low) <= values.min() * (1 - 1e-6)
    assert float(qparams.high) >= values.max() * (1 - 1e-6)
    assert np.abs(values - fake_quant(values, qparams)).max() <= 0.5001 * float(qparams.scale)


def test_eight_bits_divide_by_127() -> None:
    qparams = minmax_qparams(seen(np.float32([-2.54, 1.0])), 8)
    assert float(qparams.scale) == pytest.approx(0.02, rel=1e-6)


@pytest.mark.parametrize("num_bits", BITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_least_error_is_never_above_the_other_observers(shape: str, num_bits: int) -> None:
    histogram = seen(values_of(shape))
    least = error_of(histogram, mse_qparams(histogram, num_bits))
    covering = error_of(histogram, minmax_qparams(histogram, num_bits))
    assert least <= covering * (1 + 1e-4)  # scales are float32


def test_least_error_clips_an_outlier_that_minmax_keeps() -> None:
    many = [values_of("bell", seed) for seed in range(10)]
    histogram = seen(*many, values_of("outlier"))
    clipped, covering = mse_qparams(histogram, 4), minmax_qparams(histogram, 4)
    assert float(clipped.high) < 30 < float(covering.high)
    assert error_of(histogram, clipped) < 0.2 * error_of(histogram, covering)


def test_the_found_scale_is_as_good_as_a_dense_search() -> None:
    histogram = seen(values_of("one-sided"))
    found = error_of(histogram, mse_qparams(histogram, 4))
    dense = min(
        error_of(histogram, QParams(np.float32(scale), 0, 15))
        for scale in np.linspace(0.02, histogram.high / 15, 2000)
    )
    assert found <= 1.02 * dense


def test_percentile_covers_all_but_the_tails() -> None:
    values = np.concatenate([values_of("bell", seed) for seed in range(30)])
    spiked = np.append(values, np.float32([500, -400]))
    qparams = percentile_qparams(seen(spiked, num_bins=65536), 8)
    wanted = np.quantile(values, [0.00005, 0.99995])
    assert float(qparams.scale) * 127 == pytest.approx(np.abs(wanted).max(), rel=0.1)


def test_percentile_of_one_sided_values_keeps_zero_at_the_edge() -> None:
    qparams = percentile_qparams(seen(values_of("one-sided")), 4)
    assert (float(qparams.low), qparams.qmax) == (0.0, 15)


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("num_bits", [2, 4, 8])
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-37, 1e30])
def test_a_constant_tensor_is_kept_to_half_a_step(
    value: float, num_bits: int, observer: str
) -> None:
    values = np.full(50, value, np.float32)
    qparams = activation_qparams(seen(values, values), num_bits, observer)
    assert float(qparams.scale) >= SMALLEST_SCALE
    error = np.abs(fake_quant(values, qparams) - values).max()
    assert error <= 0.51 * float(qparams.scale)
    assert value != 0 or (error == 0 and quantize(values, qparams).max() == 0)


def test_an_unknown_observer_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="observer 'median': want one of mse, lp, minmax, p"):
        activation_qparams(seen(values_of("bell")), 8, "median")


WEIGHT = np.random.default_rng(2).normal(size=(6, 4, 3, 3)).astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("num_bits", BITS)
def test_a_weight_gets_one_symmetric_scale_per_channel(num_bits: int, axis: int) -> None:
    qparams = weight_qparams(WEIGHT, num_bits, axis)
    assert (qparams.qmin, qparams.qmax) == (-(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1)
    assert (qparams.scale.shape, qparams.axis) == ((WEIGHT.shape[axis],), axis)
    others = tuple(d for d in range(4) if d != axis)
    covering = qparams_from_amax(np.abs(WEIGHT).max(axis=others), num_bits, axis)
    assert (qparams.scale <= covering.scale).all()
    ours, plain = channel_errors(WEIGHT, qparams), channel_errors(WEIGHT, covering)
    assert all(one <= other * (1 + 1e-5) for one, other in zip(ours, plain, strict=True))
    if num_bits <= 4:
        assert sum(ours) < 0.8 * sum(plain)


def channel_errors(weight: np.ndarray, qparams: QParams) -> list[float]:
    """Sum of |error|^2.4 per channel."""
    powers = np.abs(weight - fake_quant(weight, qparams)).astype(np.float64) ** 2.4
    others = tuple(d for d in range(weight.ndim) if d != qparams.axis)
    return list(powers.sum(axis=others))


def test_permuted_channels_have_permuted_scales() -> None:
    order = np.random.default_rng(0).permutation(6)
    straight, permuted = weight_qparams(WEIGHT, 4, 0), weight_qparams(WEIGHT[order], 4, 0)
    assert permuted.scale.tolist() == straight.scale[order].tolist()


def test_scales_follow_the_weights_units() -> None:
    assert weight_qparams(WEIGHT * 4, 4, 0).scale.tolist() == pytest.approx(
        (4 * weight_qparams(WEIGHT, 4, 0).scale).tolist()
    )


@pytest.mark.parametrize("num_bits", [2, 4, 8])
def test_a_dead_channel_stays_zero(num_bits: int) -> None:
    weight = WEIGHT.copy()
    weight[3] = 0
    qparams = weight_qparams(weight, num_bits, 0)
    assert not fake_quant(weight, qparams)[3].any()
    others = [0, 1, 2, 4, 5]
    assert (
        qparams.scale[others].tolist()
        == (weight_qparams(WEIGHT, num_bits, 0).scale)[others].tolist()
    )


@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_are_scaled_one_by_one(axis: int) -> None:
    weight = np.random.default_rng(4).normal(size=(8, 12)).astype(np.float32)
    weight *= np.geomspace(1, 100, weight.size).reshape(weight.shape).astype(np.float32)
    qparams = weight_qparams(weight, 4, axis, block_size=4)
    assert qparams.scale.shape == ((2, 12) if axis == 0 else (8, 3))
    x_int = quantize(weight, qparams)
    first = weight[:4, :1] if axis == 0 else weight[:1, :4]
    alone = weight_qparams(first.reshape(1, 4), 4, 0)
    assert float(qparams.scale[0, 0]) == float(alone.scale[0])
    assert x_int.min() >= -8
    assert x_int.max() <= 7
    whole = weight_qparams(weight, 4, 1 - axis)
    blocked = float(((weight - dequantize(x_int, qparams)) ** 2).sum())
    assert blocked < 0.9 * float(((weight - fake_quant(weight, whole)) ** 2).sum())
