"""Quantizers: without a gradient they work in place on one new tensor, to the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fdda_deploy.pipeline.quantization.fake_quant import (
    ActivationQuantizer,
    WeightQuantizer,
    fake_quant,
)
from fdda_deploy.quant.qparams import QParams


def bits(x: Tensor) -> Tensor:
    return x.detach().contiguous().view(torch.int32)


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20),
    st.floats(2.0**-20, 2.0**20, width=32),
    st.sampled_from([(-128, 127), (0, 15), (-8, 7), (-5, 10)]),
)
def test_no_gradient_gives_the_same_bits(values, scale, grid):
    x = torch.tensor(values, requires_grad=True)
    with_gradient = fake_quant(x, torch.tensor(scale), *grid)
    assert with_gradient.requires_grad
    with torch.no_grad():
        without = fake_quant(x, torch.tensor(scale), *grid)
    assert torch.equal(bits(with_gradient), bits(without))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), -0.0])
def test_special_values_give_the_same_bits(value):
    x, scale = torch.tensor([value]), torch.tensor(0.1)
    recorded = fake_quant(x.clone().requires_grad_(), scale, -8, 7)
    assert torch.equal(bits(recorded), bits(fake_quant(x, scale, -8, 7)))


def test_the_input_is_not_written_to():
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    quantizer = ActivationQuantizer()
    quantizer.set_qparams(QParams(np.float32(0.25), -8, 7))
    with torch.no_grad():
        result = quantizer(x)
    assert torch.equal(x, before)
    assert result.data_ptr() != x.data_ptr()


def test_weight_gives_the_same_bits_per_channel_and_is_not_written_to():
    weight = torch.nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    before = weight.detach().clone()
    quantizer = WeightQuantizer()
    scale = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    quantizer.set_qparams(QParams(scale, -8, 7, 0), (4, 3))
    recorded = quantizer(weight)
    with torch.no_grad():
        assert torch.equal(bits(recorded), bits(quantizer(weight)))
    assert torch.equal(weight, before)


def test_a_recorded_gradient_passes_inside_the_range_alone():
    x = torch.tensor([-3.0, 0.3, 3.0], requires_grad=True)
    fake_quant(x, torch.tensor(0.25), -8, 7).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 0.0]


def test_gradient_reaches_a_learned_scale_though_the_input_records_none():
    scale = torch.tensor(0.25, requires_grad=True)
    fake_quant(torch.tensor([3.0]), scale, -8, 7).sum().backward()
    assert scale.grad is not None
    assert scale.grad.item() == 7.0
