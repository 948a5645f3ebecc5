"""All roundings of a short filter are tried: the result is the best of brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fdda_deploy.pipeline.quantization import second_order
from fdda_deploy.pipeline.quantization.second_order import (
    EXACT_SCALE_RANGE,
    NUM_EXACT_SCALES,
    damped,
    nearest,
    round_exact,
    row_loss,
)


def problem(groups: int, d: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(d)
    x = torch.randn(groups, 60, d, generator=generator).cumsum(dim=2)
    weight = torch.randn(groups, 1, d, generator=generator)
    return weight, damped(x.mT.double() @ x.double() / 60, 0.01)


def brute_force(weight: Tensor, hessian: Tensor, qmin: int, qmax: int) -> float:
    """The least loss of one filter over scales and roundings, in float64."""
    w, h = weight.double(), hessian.double()
    best = float("inf")
    for factor in torch.linspace(*EXACT_SCALE_RANGE, NUM_EXACT_SCALES).tolist():
        scale = float(w.abs().max()) / qmax * factor
        for ups in itertools.product((0, 1), repeat=len(w)):
            q = (torch.floor(w / scale) + torch.tensor(ups)).clamp(qmin, qmax)
            error = w - q * scale
            best = min(best, float(error @ h @ error))
    return best


@pytest.mark.parametrize(("qmin", "qmax"), [(-8, 7), (-2, 1), (-128, 127)])
def test_result_equals_brute_force(qmin: int, qmax: int) -> None:
    weight, hessian = problem(4, 4)
    q, scale = round_exact(weight, hessian, qmin, qmax)
    assert q.shape == (4, 1, 4)
    assert scale.shape == (4, 1, 1)
    assert q.min() >= qmin
    assert q.max() <= qmax
    assert torch.equal(q, q.round())
    found = row_loss(weight - q * scale, hessian)[:, 0].tolist()
    wanted = [brute_force(w[0], h, qmin, qmax) for w, h in zip(weight, hessian, strict=True)]
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-6)


def test_nine_inputs_beat_nearest_in_every_group() -> None:
    weight, hessian = problem(40, 9)
    q, scale = round_exact(weight, hessian, -8, 7)
    cover = weight.abs().amax(dim=2, keepdim=True) / 7
    tried = [cover * f for f in torch.linspace(*EXACT_SCALE_RANGE, NUM_EXACT_SCALES)]
    losses = [row_loss(weight - nearest(weight, s, -8, 7) * s, hessian) for s in tried]
    plain = torch.stack(losses).amin(dim=0)
    found = row_loss(weight - q * scale, hessian)
    assert (found <= plain * (1 + 1e-3)).all()
    assert found.sum() < 0.9 * plain.sum()


def test_groups_at_a_time_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = problem(7, 9)
    whole = round_exact(weight, hessian, -8, 7)
    monkeypatch.setattr(second_order, "_CHUNK", 2 * NUM_EXACT_SCALES * 512)
    parts = round_exact(weight, hessian, -8, 7)
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])


def test_a_filter_of_zeros_stays() -> None:
    q, scale = round_exact(torch.zeros(2, 1, 9), torch.eye(9).expand(2, 9, 9), -8, 7)
    assert q.abs().max() == 0
    assert (scale > 0).all()
