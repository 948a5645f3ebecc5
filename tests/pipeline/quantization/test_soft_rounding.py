"""Soft rounding starts at the present integers, stays on the grid, and ends decided."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fdda_deploy.pipeline.quantization.fake_quant import WeightQuantizer, quantize
from fdda_deploy.pipeline.quantization.soft_rounding import SoftRounding, annealed_beta
from fdda_deploy.quant.qparams import QParams


def quantizer(num_rows: int, qmin: int = -8, qmax: int = 7) -> WeightQuantizer:
    scale = np.linspace(0.05, 0.2, num_rows, dtype=np.float32)
    found = WeightQuantizer()
    found.set_qparams(QParams(scale, qmin, qmax, 0), (num_rows, 6))
    return found


def normal(seed: int, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))


def present(weight: Tensor, grid: WeightQuantizer) -> Tensor:
    assert grid.qparams is not None
    return quantize(weight, grid.scale, grid.qparams.qmin, grid.qparams.qmax)


@given(seed=st.integers(0, 10_000), far=st.sampled_from([0.0, 0.05, 0.3, 3.0]))
def test_the_start_rounds_to_the_present_integers_wherever_the_target_is(
    seed: int, far: float
) -> None:
    grid, weight = quantizer(4), normal(seed)
    rounding = SoftRounding(weight, grid, weight + normal(seed + 1, far), learn_scale=False)
    assert torch.equal(rounding.integers(), present(weight, grid))


def test_the_start_is_the_target_where_nearest_rounding_was_taken() -> None:
    grid, target = quantizer(4, -128, 127), normal(0)
    soft = SoftRounding(target, grid, target, learn_scale=False)(target)
    near_a_tie = ((target / grid.scale).frac().abs() - 0.5).abs() < 0.02
    torch.testing.assert_close(soft[~near_a_tie], target[~near_a_tie], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("now", "target", "base"),
    [(2.0, 2.3, 2.0), (3.0, 2.3, 2.0), (2.0, 4.6, 2.0), (5.0, 2.3, 4.0), (7.0, 9.4, 6.0)],
    ids=["floor", "ceiling", "target above", "target below", "target above the grid"],
)
def test_the_base_leaves_the_targets_side_open(now: float, target: float, base: float) -> None:
    grid = quantizer(4)
    shape = torch.ones(4, 6) * grid.scale
    rounding = SoftRounding(shape * now, grid, shape * target, learn_scale=False)
    assert torch.equal(rounding.base, torch.full((4, 6), base))


@given(seed=st.integers(0, 10_000), size=st.sampled_from([1.0, 100.0, 1e4]))
def test_whatever_is_learned_stays_on_the_grid_and_moves_by_one_at_most(
    seed: int, size: float
) -> None:
    grid, weight = quantizer(4, 0, 3), normal(seed)
    rounding = SoftRounding(weight, grid, weight, learn_scale=False)
    with torch.no_grad():
        rounding.logits.add_(normal(seed + 1).mul(size))
    q = rounding.integers()
    assert int(q.min()) >= 0
    assert int(q.max()) <= 3
    assert float((q - present(weight, grid)).abs().max()) <= 1


def test_pressure_drives_every_weight_to_one_integer() -> None:
    grid, weight = quantizer(4), normal(3, 0.3)
    rounding = SoftRounding(weight, grid, weight, learn_scale=False)
    optimizer = torch.optim.Adam([rounding.logits], lr=0.1)
    assert float(rounding.undecided(2).detach()) > 1
    for step in range(200):
        beta = annealed_beta(step, 200, 0.2)
        if beta is not None:
            optimizer.zero_grad()
            rounding.undecided(beta).backward()
            optimizer.step()
    assert float(rounding.undecided(2).detach()) == 0
    assert torch.equal(rounding.h, (rounding.h > 0.5).float())
    torch.testing.assert_close(rounding(weight), rounding.integers() * grid.scale)


def test_pressure_rises_after_the_warm_up() -> None:
    betas = [annealed_beta(step, 100, 0.2) for step in range(100)]
    assert betas[:20] == [None] * 20
    assert betas[20] == 20
    assert betas[-1] == pytest.approx(2)
    assert all(a > b for a, b in itertools.pairwise(betas) if a and b)


def test_a_learned_scale_multiplies_the_weight_with_the_integers_held() -> None:
    grid, weight = quantizer(4), normal(5)
    rounding = SoftRounding(weight, grid, weight, learn_scale=True)
    before, integers = rounding(weight).detach(), rounding.integers()
    with torch.no_grad():
        rounding.log_gain.fill_(float(np.log(1.5)))
    torch.testing.assert_close(rounding(weight).detach(), before * 1.5)
    assert torch.equal(rounding.integers(), integers)
    rounding(weight).sum().backward()
    assert rounding.log_gain.grad is not None


def test_scales_in_blocks_are_spread_over_their_elements() -> None:
    grid, weight = WeightQuantizer(), normal(6)
    scale = np.float32([[0.1, 0.2], [0.3, 0.1], [0.2, 0.2], [0.1, 0.4]])
    grid.set_qparams(QParams(scale, -8, 7, 1, block_size=3), (4, 6))
    rounding = SoftRounding(weight, grid, weight, learn_scale=True)
    assert torch.equal(rounding.integers(), present(weight, grid))
    assert rounding(weight).shape == weight.shape
    assert rounding.scale.shape == (4, 2)
