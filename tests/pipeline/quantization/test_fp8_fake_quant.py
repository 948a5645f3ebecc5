"""FP8 in torch: the reference's numbers, gradients straight through, ranges by extremes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fdda_deploy.errors import CalibrationError
from fdda_deploy.pipeline.quantization.fake_quant import (
    ActivationQuantizer,
    WeightQuantizer,
    fake_quant,
)
from fdda_deploy.pipeline.quantization.fp8_ranges import Fp8Observer, fp8_weight_qparams
from fdda_deploy.quant import affine, fp8


@given(st.integers(0, 2**31), st.floats(np.float32(1e-3), np.float32(1e4), width=32))
def test_torch_and_numpy_find_the_same_numbers(seed, amax):
    x = np.random.default_rng(seed).standard_normal(256).astype(np.float32) * np.float32(amax)
    quantizer = ActivationQuantizer()
    quantizer.set_qparams(fp8.qparams_from_amax(np.float32(amax)))
    found = quantizer(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(found, affine.fake_quant(x, quantizer.qparams))


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_are_rounded_per_channel(axis):
    weight = np.random.default_rng(axis).standard_normal((4, 6, 3, 3)).astype(np.float32)
    grid = fp8_weight_qparams(weight, axis)
    assert grid.scale.shape == (weight.shape[axis],)
    quantizer = WeightQuantizer()
    quantizer.set_qparams(grid, weight.shape)
    found = quantizer(torch.from_numpy(weight)).numpy()
    np.testing.assert_array_equal(found, affine.fake_quant(weight, grid))
    assert np.abs(found - weight).max() <= np.abs(weight).max() * 2.0**-4


def test_gradients_pass_the_rounding_and_stop_at_the_end():
    x = torch.tensor([0.3, 500.0], requires_grad=True)
    fake_quant(x, torch.tensor(1.0), -448, 448).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 0]


def test_the_input_is_left_as_it_is():
    x = torch.tensor([0.3, 500.0])
    assert fake_quant(x, torch.tensor(1.0), -448, 448).tolist() == [0.3125, 448]
    assert x.tolist() == pytest.approx([0.3, 500])


def test_observer_covers_every_value_and_wants_one():
    observer = Fp8Observer("conv_output")
    with pytest.raises(CalibrationError, match="conv_output: no image reached"):
        observer.qparams(8)
    observer.observe(torch.tensor([-44.8, 1.0]))
    observer.observe(torch.tensor([2.0]))
    grid = observer.qparams(8)
    assert grid.float8
    assert float(grid.scale) == pytest.approx(0.1)
