"""E4M3 arithmetic, bit by bit against torch's own conversion."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fdda_deploy.errors import CalibrationError
from fdda_deploy.quant import affine, fp8
from fdda_deploy.quant.qparams import QParams

CODES = np.arange(256, dtype=np.uint8)
GRID = QParams(np.float32(0.5), -448, 448)


def torch_values(codes: np.ndarray) -> np.ndarray:
    return torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()


def torch_codes(x: np.ndarray) -> np.ndarray:
    clamped = torch.from_numpy(x).clamp(-448, 448)
    return clamped.to(torch.float8_e4m3fn).view(torch.uint8).numpy()


def test_every_code_means_what_torch_says():
    np.testing.assert_array_equal(fp8.decode(CODES), torch_values(CODES))
    assert np.isnan(fp8.decode([0x7F, 0xFF])).all()


def test_every_number_is_its_own_code():
    numbers = CODES[(CODES & 0x7F) != 0x7F]
    np.testing.assert_array_equal(fp8.encode(fp8.decode(numbers)), numbers)


def test_ties_and_their_neighbours_round_as_in_torch():
    positive = fp8.decode(np.arange(0x7F, dtype=np.uint8))
    ties = (positive[:-1] + positive[1:]) / 2
    near = [ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(1e3))]
    x = np.concatenate([*near, *(-values for values in near)]).astype(np.float32)
    np.testing.assert_array_equal(fp8.encode(x), torch_codes(x))
    even = fp8.encode(ties)
    assert not (even & 1).any()


@given(st.floats(width=32, allow_nan=False))
def test_any_number_rounds_as_in_torch(x):
    values = np.float32([x])
    np.testing.assert_array_equal(fp8.encode(values), torch_codes(values))
    np.testing.assert_array_equal(fp8.decode(fp8.encode(values)), fp8.round_to_e4m3(values))


def test_what_is_too_large_saturates_and_nan_stays_nan():
    assert fp8.round_to_e4m3([1e30, -np.inf, 464.0]).tolist() == [448, -448, 448]
    assert fp8.encode([np.nan]).tolist() == [0x7F]


@given(st.floats(np.float32(1e-6), np.float32(1e6), width=32))
def test_the_largest_value_of_a_tensor_is_on_its_grid(amax):
    grid = fp8.qparams_from_amax(np.float32(amax))
    assert float(grid.scale) >= 2.0**-14
    found = affine.fake_quant(np.float32([amax]), grid)
    assert found == pytest.approx([amax], rel=2**-4, abs=2.0**-24)
    if amax > 448 * 2.0**-14:
        assert found == pytest.approx([amax], rel=1e-6)


def test_a_grid_of_448_is_float_and_has_8_bits():
    assert GRID.float8
    assert GRID.num_bits == 8
    assert (float(GRID.low), float(GRID.high)) == (-224, 224)
    assert not QParams(np.float32(1), -128, 127).float8


@pytest.mark.parametrize(("qmin", "qmax"), [(-448, 447), (-128, 448), (0, 448), (-448, 127)])
def test_no_other_range_beyond_int8_is_taken(qmin, qmax):
    with pytest.raises(CalibrationError, match="does not fit INT8"):
        QParams(np.float32(1), qmin, qmax)


def test_quantize_gives_codes_and_dequantize_takes_them():
    x = np.float32([0.5, -224, 1e9, 0.03])
    codes = affine.quantize(x, GRID)
    assert codes.dtype == np.int8
    np.testing.assert_array_equal(codes.view(np.uint8), fp8.encode(x / np.float32(0.5)))
    assert affine.dequantize(codes, GRID).tolist() == [0.5, -224, 224, 0.029296875]


def test_channels_have_scales_of_their_own():
    grid = fp8.qparams_from_amax(np.float32([448, 896]), axis=0)
    assert grid.scale.tolist() == [1, 2]
    x = np.float32([[1.0625], [1.0625]])
    assert affine.fake_quant(x, grid).tolist() == [[1.0], [1.0]]
