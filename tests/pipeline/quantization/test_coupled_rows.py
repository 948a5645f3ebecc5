"""Rows rounded together: never worse than each by itself, and better where errors can cancel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fdda_deploy.pipeline.quantization.coupled_rows import couple_rows, coupled_loss
from fdda_deploy.pipeline.quantization.integer_weights import can_couple, fewest_lost, keeps_old
from fdda_deploy.pipeline.quantization.second_order import damped, row_loss
from fdda_deploy.quant.qparams import QParams

ROWS, D = 24, 20


def drawn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def curvature(rank: int, own: float, seed: int = 3) -> Tensor:
    """Few directions that matter, and what every channel costs besides."""
    directions = drawn(rank, ROWS, seed=seed)
    return directions.mT @ directions / rank + own * torch.eye(ROWS)


def problem(seed: int) -> tuple[Tensor, Tensor, QParams]:
    """Weights, the curvature of what they read, and a 4-bit grid for each row."""
    weight, x = drawn(1, ROWS, D, seed=seed), drawn(1, 200, D, seed=seed + 100)
    x = x @ drawn(D, D, seed=seed + 200) / D**0.5
    scale = weight[0].abs().amax(dim=1) / 7
    return weight, damped(x.mT @ x / 200, 0.01), QParams(scale.numpy(), -7, 7, axis=0)


def solved(seed: int, g: Tensor | None) -> tuple[Tensor, Tensor]:
    """The error of each row, and the curvature of the inputs."""
    weight, hessian, qparams = problem(seed)
    scale = torch.from_numpy(qparams.scale)[None, :, None].expand_as(weight)
    found = fewest_lost(weight, hessian, g, scale, qparams, sweeps=4)
    assert found.after <= found.before
    assert torch.equal(found.integers, found.integers.round().clamp(-7, 7))
    assert bool((found.step > 0).all())
    return weight - found.integers * found.step, hessian


def test_a_loss_without_curvature_is_that_of_each_row():
    error, hessian = solved(0, None)
    torch.testing.assert_close(coupled_loss(error, hessian, None), row_loss(error, hessian))
    torch.testing.assert_close(
        coupled_loss(error, hessian, torch.eye(ROWS)), row_loss(error, hessian)
    )


def test_the_loss_of_all_rows_is_the_trace():
    error, hessian = solved(0, None)
    g = curvature(3, 0.1)
    wanted = torch.trace(g @ error[0] @ hessian[0] @ error[0].mT)
    torch.testing.assert_close(coupled_loss(error, hessian, g).sum(), wanted)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("rank", "own", "share"), [(2, 0.05, 0.35), (6, 0.2, 0.8), (24, 0.2, 1.0)])
def test_errors_that_can_cancel_do(seed: int, rank: int, own: float, share: float) -> None:
    g = curvature(rank, own)
    alone, hessian = solved(seed, None)
    together, _ = solved(seed, g)
    cost = [float(coupled_loss(error, hessian, g).sum()) for error in (alone, together)]
    assert 0 < cost[1] < share * cost[0]


def test_where_no_row_touches_another_each_keeps_to_itself():
    alone, hessian = solved(1, None)
    together, _ = solved(1, torch.diag(torch.rand(ROWS) + 0.1))
    assert bool((row_loss(together, hessian) <= row_loss(alone, hessian) * (1 + 1e-4)).all())


def test_a_row_that_nothing_depends_on_harms_none():
    g = curvature(2, 0.05)
    g[5], g[:, 5] = 0, 0
    (alone, hessian), (together, _) = solved(2, None), solved(2, g)
    losses = [coupled_loss(error, hessian, g).sum() for error in (alone, together)]
    assert losses[1] < 0.6 * losses[0]
    torch.testing.assert_close(together[:, 5], alone[:, 5])


@pytest.mark.parametrize("rank", [2, 16])
def test_rows_of_one_part_do_not_all_make_good_the_same_error(rank: int) -> None:
    rows, d = 512, 8
    weight, x, directions = drawn(1, rows, d), drawn(1, 64, d, seed=1), drawn(rank, rows, seed=2)
    g, hessian = directions.mT @ directions / rank + 0.02 * torch.eye(rows), x.mT @ x / 64
    scale = weight.abs().amax(dim=2, keepdim=True) / 7
    start = (weight / scale).round()
    q, step = couple_rows(weight, hessian, g, start, scale, -7, 7)
    before, after = (
        coupled_loss(weight - integers * by, hessian, g).sum()
        for integers, by in ((start, scale), (q, step))
    )
    assert after < 0.4 * before


def test_few_rows_are_as_good_as_many():
    weight, hessian, _ = problem(3)
    weight = weight[:, :3]
    scale = weight.abs().amax(dim=2, keepdim=True) / 7
    start = (weight / scale).round()
    g = curvature(1, 0.05)[:3, :3]
    q, step = couple_rows(weight, hessian, g, start, scale, -7, 7)
    losses = [
        coupled_loss(weight - a * b, hessian, g).sum() for a, b in ((start, scale), (q, step))
    ]
    assert losses[1] < losses[0]
    assert (q.shape, step.shape) == (start.shape, scale.shape)


def test_only_narrow_grids_with_a_scale_for_each_row_are_coupled():
    rows = torch.ones(ROWS).numpy()
    assert can_couple(QParams(rows, -7, 7, axis=0))
    assert not can_couple(QParams(rows, -127, 127, axis=0))
    assert not can_couple(QParams(rows[:1].reshape(()), -7, 7))
    blocks = torch.ones(ROWS, 2).numpy()
    assert not can_couple(QParams(blocks, -7, 7, axis=1, block_size=D // 2))


def test_rows_that_share_a_scale_or_a_loss_are_given_up_together() -> None:
    before, after = torch.tensor([[1.0, 4.0]]), torch.tensor([[2.0, 1.0]])
    assert keeps_old(before, after, together=False).tolist() == [[True, False]]
    assert keeps_old(before, after, together=True).tolist() == [[False, False]]
    assert keeps_old(after, before, together=True).all()
    assert keeps_old(before, after / 0, together=True).all()
