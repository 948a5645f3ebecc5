"""The NumPy arithmetic: every property that the other implementations are held to."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fdda_deploy.errors import CalibrationError
from fdda_deploy.exporters import int4, names
from fdda_deploy.quant import affine
from fdda_deploy.quant.affine import (
    dequantize,
    fake_quant,
    qparams_from_amax,
    quantize,
    signed_range,
)
from fdda_deploy.quant.qparams import SMALLEST_SCALE, QParams

SCALES = st.floats(float(np.float32(1e-30)), float(np.float32(1e30)), width=32)
ANY_FLOAT = st.floats(width=32, allow_nan=False, allow_infinity=True)


@st.composite
def grids(draw: st.DrawFn) -> QParams:
    """Any per-tensor grid that INT8 carries, zero-points and lopsided ranges included."""
    steps = 2 ** draw(st.integers(2, 8)) - 1
    qmin = draw(st.integers(-128, 127 - steps))
    zero_point = draw(st.integers(qmin, qmin + steps))
    return QParams(np.float32(draw(SCALES)), qmin, qmin + steps, zero_point=zero_point)


def values(shape: tuple[int, ...] = (17,), elements: st.SearchStrategy[float] = ANY_FLOAT):
    return npst.arrays(np.float32, shape, elements=elements)


@given(values(), grids())
def test_fake_quant_twice_is_fake_quant_once(x, grid):
    once = fake_quant(x, grid)
    np.testing.assert_array_equal(fake_quant(once, grid), once)


@given(values(), grids())
def test_integers_come_back_from_their_own_values(x, grid):
    x_int = quantize(x, grid)
    np.testing.assert_array_equal(quantize(dequantize(x_int, grid), grid), x_int)


@given(grids(), npst.arrays(np.float64, 33, elements=st.floats(0, 1)))
def test_error_inside_the_range_is_at_most_half_a_step(grid, shares):
    low, high = float(grid.low), float(grid.high)
    x = (low + (high - low) * shares).astype(np.float32)
    error = np.abs(x.astype(np.float64) - fake_quant(x, grid).astype(np.float64))
    # The quotient and the product are rounded to float32 once each: 2^-23 of the range on top.
    slack = 2.0**-23 * max(abs(low), abs(high))
    assert (error <= float(grid.scale) / 2 + slack).all()


@given(values(), grids())
def test_values_outside_the_range_saturate(x, grid):
    x_int = quantize(x, grid)
    assert x_int.min() >= grid.qmin
    assert x_int.max() <= grid.qmax
    far = np.float32([-np.inf, np.inf])
    assert quantize(far, grid).tolist() == [grid.qmin, grid.qmax]


@given(values(), grids())
def test_zero_is_on_every_grid(x, grid):
    assert fake_quant(np.zeros(3, np.float32), grid).tolist() == [0.0, 0.0, 0.0]


@given(values((4, 3, 5)), st.integers(0, 2), st.randoms(use_true_random=False))
def test_permuting_channels_permutes_scales_and_integers(x, axis, random):
    finite = np.nan_to_num(x, posinf=1e30, neginf=-1e30)
    order = list(range(x.shape[axis]))
    random.shuffle(order)
    others = tuple(d for d in range(3) if d != axis)
    grid = qparams_from_amax(np.abs(finite).max(axis=others), 8, axis)
    shuffled = np.take(finite, order, axis)
    shuffled_grid = qparams_from_amax(np.abs(shuffled).max(axis=others), 8, axis)
    np.testing.assert_array_equal(shuffled_grid.scale, grid.scale[order])
    np.testing.assert_array_equal(
        quantize(shuffled, shuffled_grid), np.take(quantize(finite, grid), order, axis)
    )


@given(st.integers(-7, 6), st.sampled_from([2.0**-10, 1.0, 2.0**9]))
def test_ties_go_to_the_even_integer(k, scale):
    tie = np.float32([(k + 0.5) * scale])
    (x_int,) = quantize(tie, QParams(np.float32(scale), -8, 7)).tolist()
    assert x_int % 2 == 0
    assert abs(x_int - (k + 0.5)) == 0.5


def test_division_is_by_the_scale_never_by_its_reciprocal():
    scale = np.float32(0.03)
    x = (np.arange(-127, 127, dtype=np.float32) + np.float32(0.5)) * scale
    by_reciprocal = np.rint(x * (np.float32(1) / scale))
    x_int = quantize(x, QParams(scale, -128, 127))
    np.testing.assert_array_equal(x_int, np.rint(x / scale))
    assert (x_int != by_reciprocal).any(), "the two must differ for the claim to mean anything"


@pytest.mark.parametrize(("num_bits", "divisor"), [(8, 127), (6, 31), (4, 7), (2, 1)])
def test_scale_is_amax_over_the_largest_integer(num_bits, divisor):
    grid = qparams_from_amax(np.float32(2.54), num_bits)
    assert grid.scale == np.float32(2.54) / np.float32(divisor)
    assert grid.scale != np.float32(2.54) / np.float32(divisor + 0.5)
    assert quantize([2.54, -2.54], grid).tolist() == [divisor, -divisor]


@given(st.integers(2, 8), st.floats(float(np.float32(1e-30)), float(np.float32(1e30)), width=32))
def test_amax_itself_is_represented_to_one_rounding(num_bits, amax):
    grid = qparams_from_amax(amax, num_bits)
    assert float(grid.high) == pytest.approx(amax, rel=2.0**-22)


@pytest.mark.parametrize("amax", [0.0, 1e-44, SMALLEST_SCALE])
def test_dead_channel_gets_a_scale_that_keeps_its_zeros(amax):
    grid = qparams_from_amax([amax, 1.0], 8, axis=0)
    assert (grid.scale >= SMALLEST_SCALE).all()
    assert fake_quant(np.zeros((2, 3), np.float32), grid).tolist() == np.zeros((2, 3)).tolist()


def test_amax_that_is_not_a_number_is_refused():
    with pytest.raises(CalibrationError, match=r"1 of 2 scales are zero, subnormal or not finite"):
        qparams_from_amax([np.nan, 1.0], 8, axis=0)


@settings(max_examples=30)
@given(st.integers(2, 8))
def test_signed_range_has_all_integers_of_the_width(num_bits):
    qmin, qmax = signed_range(num_bits)
    assert qmax - qmin + 1 == 2**num_bits
    assert qmin == -qmax - 1


@pytest.mark.parametrize("num_bits", [1, 0, 9, 16])
def test_widths_without_an_integer_grid_are_refused(num_bits):
    with pytest.raises(CalibrationError, match=f"{num_bits} bits: an integer grid has 2 to 8"):
        signed_range(num_bits)


def test_blocks_share_one_scale_each():
    weight = np.float32([[1, 2], [3, 4], [50, 60], [70, 80]])
    grid = QParams(np.float32([[1, 1], [10, 10]]), -8, 7, axis=0, block_size=2)
    assert quantize(weight, grid).tolist() == [[1, 2], [3, 4], [5, 6], [7, 7]]
    assert dequantize(quantize(weight, grid), grid)[2:].tolist() == [[50, 60], [70, 70]]


@pytest.mark.parametrize("module", [affine, int4, names], ids=lambda module: module.__name__)
def test_examples_in_the_docstrings_run(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
