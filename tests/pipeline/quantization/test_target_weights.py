"""What a layer should compute on damaged inputs: ridge regression, its limits, and the means."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from fdda_deploy.pipeline.quantization.moments import LayerMoments, Moments
from fdda_deploy.pipeline.quantization.second_order import mean_shift, target_weights


def random(seed: int, *size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def moments_of(x: Tensor, x_hat: Tensor) -> LayerMoments:
    moments = Moments()
    moments.add(x, x_hat)
    return moments.result()


X, WEIGHT = random(0, 2, 500, 6), random(1, 2, 4, 6)
DAMAGED = 0.7 * X + 0.3 * X.roll(1, dims=2) + 0.05 * random(2, 2, 500, 6) + 0.5


def test_a_halved_input_is_made_good() -> None:
    found = target_weights(WEIGHT, moments_of(X, 0.5 * X), ridge=0)
    assert torch.allclose(found, 2 * WEIGHT, atol=1e-3)


def test_an_undamaged_input_leaves_the_weights() -> None:
    for ridge in (0.0, 1.0):
        assert torch.allclose(target_weights(WEIGHT, moments_of(X, X), ridge), WEIGHT, atol=1e-5)


def test_a_large_ridge_leaves_the_weights() -> None:
    assert torch.allclose(target_weights(WEIGHT, moments_of(X, DAMAGED), 1e8), WEIGHT, atol=1e-6)


def test_the_result_is_where_the_gradient_vanishes() -> None:
    moments = moments_of(X, DAMAGED)
    found = target_weights(WEIGHT, moments, 0.3).double()
    size = moments.cov_xhat.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
    slope = found @ moments.cov_xhat - WEIGHT.double() @ moments.cov_x_xhat
    slope += 0.3 * size * (found - WEIGHT)
    assert slope.abs().max() < 1e-5


def test_less_ridge_follows_the_samples_closer() -> None:
    moments = moments_of(X, DAMAGED)

    def missed(weight: Tensor) -> float:
        wanted, found = WEIGHT @ X.mT, weight @ DAMAGED.mT
        return float((wanted - found).var(dim=2).sum())

    losses = [missed(target_weights(WEIGHT, moments, ridge)) for ridge in (0.0, 0.1, 1.0, 10.0)]
    assert losses == sorted(losses)
    assert losses[0] < 0.1 * missed(WEIGHT)


def test_groups_that_cannot_be_solved_keep_their_weights() -> None:
    moments = moments_of(X, DAMAGED)
    broken = moments.cov_xhat.clone()
    broken[1] = float("nan")
    found = target_weights(WEIGHT, dataclasses.replace(moments, cov_xhat=broken), 0.1)
    assert torch.equal(found[1], WEIGHT[1])
    assert torch.equal(found[0], target_weights(WEIGHT, moments, 0.1)[0])


def test_dead_inputs_keep_their_weights() -> None:
    dead = torch.zeros(2, 50, 6)
    for ridge in (0.0, 1.0):
        assert torch.allclose(target_weights(WEIGHT, moments_of(dead, dead), ridge), WEIGHT)


def test_the_shift_makes_the_means_equal() -> None:
    rounded = WEIGHT.round()
    moments = moments_of(X + 3, DAMAGED)
    shift = mean_shift(WEIGHT, rounded, moments)
    wanted = WEIGHT.double() @ moments.mean_x[:, :, None]
    found = rounded.double() @ moments.mean_xhat[:, :, None] + shift[:, :, None]
    assert torch.allclose(found, wanted, atol=1e-5)
    assert shift.abs().max() > 0.1
