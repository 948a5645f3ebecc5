"""The learned activation step has LSQ's gradient, and QDrop its probability."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fdda_deploy.pipeline.quantization.fake_quant import ActivationQuantizer
from fdda_deploy.pipeline.quantization.learned_step import LearnedStep, mixed
from fdda_deploy.quant.qparams import SMALLEST_SCALE, QParams

SCALE = 0.25


def learned_step(drop: float = 0.0, *, learn_scale: bool = True) -> LearnedStep:
    quantizer = ActivationQuantizer()
    quantizer.set_qparams(QParams(np.float32(SCALE), -2, 5))
    generator = torch.Generator().manual_seed(0)
    return LearnedStep(quantizer, drop=drop, learn_scale=learn_scale, generator=generator)


def values() -> Tensor:
    return torch.randn(4000, generator=torch.Generator().manual_seed(1))


def test_the_start_is_the_quantizer() -> None:
    quantizer = ActivationQuantizer()
    quantizer.set_qparams(QParams(np.float32(SCALE), -2, 5))
    assert torch.equal(learned_step()(values()).detach(), quantizer(values()))


def test_the_gradient_of_the_scale_is_that_of_lsq() -> None:
    step, x = learned_step(), values()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    (step(x) * direction).sum().backward()
    u = x / SCALE
    inside = (u > -2) & (u < 5)
    per_element = torch.where(inside, u.round() - u, u.clamp(-2, 5))
    assert step.log_gain.grad is not None
    wanted = float((per_element * direction).sum()) * SCALE  # d s exp(r) / dr = s at r = 0
    assert float(step.log_gain.grad) == pytest.approx(wanted, rel=1e-4)


def test_outside_the_range_the_gradient_is_the_finite_difference() -> None:
    step, x = learned_step(), torch.tensor([3.0, 9.0, -4.0])
    step(x).sum().backward()

    def at(gain: float) -> float:
        other = learned_step()
        with torch.no_grad():
            other.log_gain.fill_(gain)
        return float(other(x).detach().double().sum())

    assert step.log_gain.grad is not None
    difference = (at(1e-3) - at(-1e-3)) / 2e-3
    assert float(step.log_gain.grad) == pytest.approx(difference, rel=1e-3)


def test_the_gradient_of_the_value_passes_inside_the_range_alone() -> None:
    step, x = learned_step(), torch.tensor([0.3, 3.0, -4.0, -0.1], requires_grad=True)
    step(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("drop", [0.25, 0.5, 0.9])
def test_elements_stay_in_float_with_the_given_probability(drop: float) -> None:
    x = values()
    step = learned_step(drop)
    x_q = learned_step()(x).detach()
    found = step(x).detach()
    stays = found == x
    assert float(stays.float().mean()) == pytest.approx(drop, abs=0.03)
    assert torch.equal(found[~stays], x_q[~stays])
    assert not torch.equal(step(x).detach() == x, stays)  # drawn afresh each time


def test_a_scale_stays_positive_and_normal() -> None:
    step = learned_step()
    with torch.no_grad():
        step.log_gain.fill_(-1000)
    assert float(step.scale.detach()) == pytest.approx(SMALLEST_SCALE)


def test_a_scale_that_is_not_learned_takes_no_gradient() -> None:
    assert not learned_step(learn_scale=False)(values()).requires_grad


def test_nothing_is_drawn_without_drop() -> None:
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert torch.equal(mixed(torch.zeros(3), torch.ones(3), 0.0, generator), torch.zeros(3))
    assert torch.equal(generator.get_state(), state)
