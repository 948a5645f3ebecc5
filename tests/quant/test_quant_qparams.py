"""QParams: what it refuses, and the sentence it refuses with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdda_deploy.errors import CalibrationError
from fdda_deploy.quant.qparams import SMALLEST_SCALE, QParams


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.float32(0), -8, 7), "1 of 1 scales are zero, subnormal or not finite"),
        ((np.float32(-1), -8, 7), "1 of 1 scales are zero"),
        ((np.float32(np.inf), -8, 7), "not finite. Calibrate on images that excite the layer"),
        ((np.float32(SMALLEST_SCALE / 2), -8, 7), "subnormal"),
        ((np.float32([1, np.nan, 0]), -8, 7, 0), "2 of 3 scales"),
        ((np.float32([1, 1]), -8, 7), r"shape \(2,\) but axis is None: want a scalar"),
        ((np.float32(1), -8, 7, 0), r"shape \(\) but axis is 0: want one value per channel"),
        ((np.float32(1), 3, 3), r"range \[3, 3\] must hold two values"),
        ((np.float32(1), 1, 15), "and the zero-point 0"),
        ((np.float32(1), -8, 7, None, 9), "and the zero-point 9"),
        ((np.float32(1), 0, 255), r"range \[0, 255\] does not fit INT8"),
        ((np.float32(1), -129, 0), r"range \[-129, 0\] does not fit INT8"),
        ((np.float32([[1]]), -8, 7, None, 0, 4), "block size 4 needs an axis"),
        ((np.float32([[1]]), -8, 7, 0, 0, 0), "block size 0 needs an axis and a length >= 1"),
    ],
    ids=lambda value: value.split(".")[0][:30] if isinstance(value, str) else "",
)
def test_bad_parameters_are_refused_with_their_numbers(arguments, message):
    with pytest.raises(CalibrationError, match=message) as caught:
        QParams(*arguments)
    assert "\n" not in str(caught.value)


def test_scale_becomes_float32_whatever_came_in():
    assert QParams(0.1, -8, 7).scale.dtype == np.float32


@given(st.integers(2, 8), st.data())
def test_num_bits_is_the_width_of_the_integer_run(num_bits, data):
    steps = 2**num_bits - 1
    qmin = data.draw(st.integers(max(-128, -steps), min(0, 127 - steps)))
    assert QParams(np.float32(1), qmin, qmin + steps).num_bits == num_bits


def test_low_and_high_are_the_ends_of_the_range_around_the_zero_point():
    grid = QParams(np.float32(0.5), -8, 7, zero_point=-8)
    assert (float(grid.low), float(grid.high)) == (0.0, 7.5)


@pytest.mark.parametrize(
    ("grid", "shape", "message"),
    [
        (QParams(np.ones(64), -8, 7, 1), (8, 128, 3, 3), "axis 1 has 128 channels. Recalibrate"),
        (QParams(np.ones(4), -8, 7, 2), (4, 4), r"axis 2 is outside a tensor of shape \(4, 4\)"),
        (
            QParams(np.ones((2, 3)), -8, 7, 0, block_size=64),
            (100, 3),
            r"blocks of 64 does not cover a tensor of shape \(100, 3\)",
        ),
    ],
    ids=["channels", "axis", "blocks"],
)
def test_tensor_that_does_not_fit_is_refused_with_both_shapes(grid, shape, message):
    with pytest.raises(CalibrationError, match=message):
        grid.scale_for(shape)


@given(st.integers(0, 3))
def test_scale_broadcasts_along_its_own_axis_alone(axis):
    shape = (2, 3, 4, 5)
    grid = QParams(np.arange(1, shape[axis] + 1), -8, 7, axis)
    full = np.broadcast_to(grid.scale_for(shape), shape)
    assert np.moveaxis(full, axis, 0).reshape(shape[axis], -1).std(axis=1).max() == 0
    np.testing.assert_array_equal(np.moveaxis(full, axis, 0)[:, 0, 0, 0], grid.scale)


@given(zero_point=st.integers(-128, 127))
def test_first_and_last_step_are_the_range_in_steps_from_zero(zero_point):
    grid = QParams(np.float32(0.5), -128, 127, zero_point=zero_point)
    assert (grid.first_step, grid.last_step) == (-128 - zero_point, 127 - zero_point)
    assert (float(grid.low), float(grid.high)) == (grid.first_step / 2, grid.last_step / 2)
