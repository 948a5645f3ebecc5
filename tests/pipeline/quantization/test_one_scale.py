"""Weights with one scale for all channels: as good as every scale that could be tried."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fdda_deploy.pipeline.quantization.observers import weight_qparams
from fdda_deploy.pipeline.quantization.one_scale import (
    grid_with,
    one_scale_qparams,
    round_with_one_scale,
)
from fdda_deploy.pipeline.quantization.second_order import nearest, row_loss
from fdda_deploy.quant.affine import fake_quant
from fdda_deploy.quant.qparams import QParams


def problem(seed: int, groups: int = 1, rows: int = 5, d: int = 12) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, 4 * d, d, generator=random)
    weight = torch.randn(groups, rows, d, generator=random)
    return weight, x.mT @ x / len(x[0])


def loss(weight: Tensor, hessian: Tensor, integers: Tensor, step: Tensor) -> float:
    return float(row_loss(weight - integers * step, hessian).sum())


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([(-8, 7), (-128, 127)]))
def test_no_nearest_rounding_to_one_scale_is_better(seed: int, ends: tuple[int, int]) -> None:
    weight, hessian = problem(seed, groups=2)
    integers, step = round_with_one_scale(weight, hessian, *ends, sweeps=4)
    assert step.ndim == 0
    assert torch.equal(integers, integers.round().clamp(*ends))
    found = loss(weight, hessian, integers, step)
    for factor in np.linspace(0.3, 1.2, 30):
        scale = weight.abs().amax() / ends[1] * float(factor)
        other = loss(weight, hessian, nearest(weight, scale, *ends), scale)
        assert found <= other * (1 + 1e-5)


def test_more_turns_are_never_worse() -> None:
    weight, hessian = problem(3)
    losses = [
        loss(weight, hessian, *round_with_one_scale(weight, hessian, -8, 7, sweeps=sweeps))
        for sweeps in (0, 1, 4)
    ]
    assert losses == sorted(losses, reverse=True)


def test_weights_of_zero_stay_zero() -> None:
    weight, hessian = problem(0)
    integers, step = round_with_one_scale(weight * 0, hessian, -128, 127, sweeps=4)
    assert not integers.any()
    assert float(step) > 0


def test_one_scale_is_that_of_least_error_over_the_whole_weight() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 4, 3, 3)).astype(np.float32)
    weight[2] *= 9
    grid = one_scale_qparams(weight, 8)
    assert (grid.axis, grid.scale.shape) == (None, ())
    row = weight_qparams(weight.reshape(1, -1), 8, axis=0)
    assert grid.scale == row.scale[0]
    # a channel of small weights pays: with scales of their own none would be off so far
    own = weight_qparams(weight, 8, axis=0)
    errors = [np.abs(fake_quant(weight[0], g) - weight[0]).max() for g in (grid, scale_of(own, 0))]
    assert errors[0] > 2 * errors[1]


def scale_of(grid: QParams, row: int) -> QParams:
    return QParams(grid.scale[row], grid.qmin, grid.qmax)


def test_a_grid_takes_new_scales_in_the_form_it_has() -> None:
    step = torch.tensor([[[0.5, 0.5], [0.25, 0.25]]])
    channels = grid_with(QParams(np.ones(2), -8, 7, 0), step)
    assert channels.scale.tolist() == [0.5, 0.25]
    one = grid_with(QParams(np.float32(1), -8, 7), step)
    assert (one.scale.shape, float(one.scale), one.axis) == ((), 0.5, None)
