"""Rounding in closed form: columns as the papers write them, and a descent that only descends."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fdda_deploy.pipeline.quantization.second_order import (
    NUM_SCALES,
    SCALE_RANGE,
    damped,
    descend,
    fitted_scale,
    inverse_factor,
    nearest,
    round_columns,
    row_loss,
    scale_search,
)

SEEDS = st.integers(0, 2**31)


def problem(seed: int, groups: int, rows: int, d: int) -> tuple[Tensor, Tensor]:
    """Random weights and the damped covariance of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups, rows, d, generator=generator)
    mix = torch.randn(groups, d, d, generator=generator) / d**0.5
    x = torch.randn(groups, 4 * d, d, generator=generator) @ (mix + 0.3 * torch.eye(d))
    return weight, damped(x.mT.double() @ x.double() / (4 * d), 0.01)


def test_row_loss_is_the_quadratic_form() -> None:
    error, hessian = problem(0, 2, 3, 4)
    wanted = [[float(e @ h @ e) for e in rows] for rows, h in zip(error, hessian, strict=True)]
    assert torch.allclose(row_loss(error, hessian), torch.tensor(wanted), rtol=1e-5)


def test_damping_is_a_share_of_the_mean_variance() -> None:
    covariance = torch.diag(torch.tensor([1.0, 3.0, 0.0, 4.0], dtype=torch.float64))[None]
    assert damped(covariance, 0.5)[0].diag().tolist() == [2, 4, 1, 5]
    assert covariance[0, 2, 2] == 0
    assert torch.equal(damped(torch.zeros(1, 3, 3), 0.01)[0], 0.01 * torch.eye(3))


def test_the_found_scale_is_the_best_candidate() -> None:
    weight, hessian = problem(1, 2, 4, 6)
    found = scale_search(weight, hessian, -8, 7)
    cover = weight.abs().amax(dim=2, keepdim=True) / 7
    candidates = [cover * f for f in torch.linspace(*SCALE_RANGE, NUM_SCALES)]
    losses = [row_loss(weight - nearest(weight, s, -8, 7) * s, hessian) for s in candidates]
    best = torch.stack(losses).amin(dim=0)
    assert torch.allclose(row_loss(weight - nearest(weight, found, -8, 7) * found, hessian), best)
    assert (best < losses[0]).any()


def test_rows_of_zeros_get_a_usable_scale() -> None:
    weight, hessian = torch.zeros(1, 2, 3), torch.eye(3)[None]
    scale = scale_search(weight, hessian, -8, 7)
    assert (scale > 1e-14).all()
    q = round_columns(weight, hessian, scale, -8, 7)
    assert descend(weight, hessian, q, scale, -8, 7)[0].abs().max() == 0


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_the_factor_is_upper_and_inverts_the_curvature(seed: int) -> None:
    _, hessian = problem(seed, 3, 1, 7)
    factor = inverse_factor(hessian)
    assert torch.equal(factor, factor.triu())
    assert (factor.diagonal(dim1=1, dim2=2) > 0).all()
    wanted = torch.eye(7).expand(3, 7, 7)
    assert torch.allclose(factor.mT @ factor @ hessian, wanted, atol=1e-2)


def test_more_damping_rescues_a_group_and_leaves_the_others() -> None:
    _, good = problem(0, 1, 1, 4)
    indefinite = torch.diag(torch.tensor([1.0, 1.0, 1.0, -0.02]))[None]
    hopeless = torch.diag(torch.tensor([1.0, 1.0, 1.0, -50.0]))[None]
    damaged = torch.full((1, 4, 4), float("nan"))
    factor = inverse_factor(torch.cat([good, indefinite, hopeless, damaged]))
    assert torch.allclose(factor[:1], inverse_factor(good))
    size = 2.98 / 4
    assert float(factor[1, 0, 0]) == pytest.approx((1 + 0.1 * size) ** -0.5, rel=1e-5)
    assert torch.equal(factor[2], torch.eye(4))
    assert torch.equal(factor[3], torch.eye(4))


def test_without_correlation_columns_round_to_nearest() -> None:
    weight, _ = problem(3, 2, 5, 130)
    hessian = torch.diag_embed(torch.rand(2, 130, generator=torch.Generator().manual_seed(1)) + 0.1)
    scale = scale_search(weight, hessian, -8, 7)
    found = round_columns(weight, hessian, scale, -8, 7)
    assert torch.equal(found, nearest(weight, scale, -8, 7))


def test_columns_equal_the_method_written_out() -> None:
    """Column by column without blocks, the inverse updated after each (arXiv 2208.11580, eq. 3)."""
    weight, hessian = problem(4, 1, 3, 70)
    scale = scale_search(weight, hessian, -8, 7)
    left, inverse = weight[0].double(), torch.linalg.inv(hessian[0].double())
    wanted = torch.zeros_like(left)
    for column in hessian[0].diagonal().argsort(descending=True).tolist():
        wanted[:, column] = (left[:, column] / scale[0, :, 0]).round().clamp(-8, 7)
        error = left[:, column] - wanted[:, column] * scale[0, :, 0]
        left = left - error[:, None] * (inverse[column] / inverse[column, column])
        outer = inverse[:, column, None] * inverse[column]
        inverse = inverse - outer / inverse[column, column]
    found = round_columns(weight, hessian, scale, -8, 7)
    assert (found[0].double() == wanted).float().mean() > 0.98


@pytest.mark.parametrize("d", [24, 64, 150])
def test_columns_beat_nearest(d: int) -> None:
    weight, hessian = problem(d, 2, 16, d)
    scale = scale_search(weight, hessian, -8, 7)
    found = round_columns(weight, hessian, scale, -8, 7)
    plain = row_loss(weight - nearest(weight, scale, -8, 7) * scale, hessian).sum()
    assert row_loss(weight - found * scale, hessian).sum() < 0.95 * plain
    assert found.min() >= -8
    assert found.max() <= 7
    assert torch.equal(found, found.round())


def test_each_input_may_have_a_scale_of_its_own() -> None:
    weight, hessian = problem(2, 1, 6, 32)
    scale = (weight.abs().reshape(1, 6, 4, 8).amax(dim=3) / 7).repeat_interleave(8, dim=2)
    q = round_columns(weight, hessian, scale, -8, 7)
    q, after = descend(weight, hessian, q, scale, -8, 7, learn_scale=False)
    assert torch.equal(after, scale)
    plain = row_loss(weight - nearest(weight, scale, -8, 7) * scale, hessian).sum()
    assert row_loss(weight - q * scale, hessian).sum() < 0.9 * plain


@given(
    seed=SEEDS,
    bits=st.sampled_from([2, 4, 8]),
    d=st.sampled_from([1, 6, 70]),
    learn=st.booleans(),
    coarse=st.floats(0.2, 3),
)
@settings(max_examples=60, deadline=None)
def test_descent_never_raises_the_loss(
    seed: int, bits: int, d: int, learn: bool, coarse: float
) -> None:
    weight, hessian = problem(seed, 2, 3, d)
    qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = coarse * weight.abs().amax(dim=2, keepdim=True) / qmax
    start = nearest(weight, scale, qmin, qmax)
    kept = start.clone()
    found, after = descend(weight, hessian, start, scale, qmin, qmax, learn_scale=learn)
    before = row_loss(weight - start * scale, hessian)
    assert (row_loss(weight - found * after, hessian) <= before).all()
    assert found.min() >= qmin
    assert found.max() <= qmax
    assert (after > 0).all()
    assert torch.equal(start, kept)


def test_descent_ends_where_no_single_integer_helps() -> None:
    weight, hessian = problem(6, 1, 4, 12)
    scale = scale_search(weight, hessian, -8, 7)
    start = nearest(weight, scale, -8, 7)
    found, after = descend(weight, hessian, start, scale, -8, 7, sweeps=100)
    reached = row_loss(weight - found * after, hessian)
    for column, change in itertools.product(range(12), (-1, 1)):
        moved = found.clone()
        moved[:, :, column] = (moved[:, :, column] + change).clamp(-8, 7)
        assert (row_loss(weight - moved * after, hessian) >= reached * (1 - 1e-5)).all()


def test_the_fitted_scale_has_no_better_neighbour() -> None:
    weight, hessian = problem(8, 2, 3, 5)
    scale = scale_search(weight, hessian, -8, 7)
    q = nearest(weight, scale, -8, 7)
    fitted = fitted_scale(weight, hessian, q, scale)
    reached = row_loss(weight - q * fitted, hessian)
    for factor in (0.99, 1.01):
        assert (row_loss(weight - q * fitted * factor, hessian) > reached).all()
    opposite = fitted_scale(weight, hessian, -q, scale)
    assert torch.equal(opposite, scale)
