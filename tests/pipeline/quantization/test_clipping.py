"""Where a channel is clipped best: least squared error, each value counting what it is worth."""

from __future__ import annotations

import pytest
import torch
from equalize_networks import Inverted, batches, uneven
from torch import Tensor

from fdda_deploy.pipeline.quantization import clipping
from fdda_deploy.pipeline.quantization.channel_groups import clip_bounds
from fdda_deploy.pipeline.quantization.clipping import worthwhile_clips
from fdda_deploy.pipeline.quantization.weighed_values import weighed_values


def drawn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def best_clips(values: Tensor, bits: int) -> Tensor:
    """Where all values are worth the same."""
    return clipping.best_clips(values, torch.ones_like(values), bits)


def error(values: Tensor, clip: Tensor, bits: int, signed: bool) -> Tensor:
    """Mean squared error by channel, written plainly in float64."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    step = clip.double()[:, None] / (high + (0.5 if signed else 0))
    return ((values / step).round().clamp(low, high) * step - values).square().mean(1)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_no_other_clip_is_much_better(bits, signed):
    values = drawn(6, 4000) * torch.tensor([0.1, 1, 3, 10, 100, 1e4])[:, None]
    values = values if signed else values.relu()
    found = error(values, best_clips(values, bits), bits, signed)
    for share in torch.linspace(0.05, 1.0, 200):
        other = error(values, values.abs().amax(1) * share, bits, signed)
        assert bool((found <= other * 1.05).all())


def test_a_half_normal_channel_is_clipped_where_theory_says():
    """ACIQ: a normal variable is best clipped at 2.93 deviations with 31 steps on both sides."""
    clip = best_clips(drawn(1, 200_000).relu(), 4)
    assert clip.item() == pytest.approx(2.93, rel=0.06)


def test_what_is_spread_evenly_is_not_clipped():
    values = torch.linspace(0, 5, 1001).expand(3, -1)
    assert best_clips(values, 4).tolist() == [5.0] * 3


def test_channels_do_not_look_at_each_other():
    values = drawn(4, 500).relu()
    apart = torch.cat([best_clips(channel[None], 4) for channel in values])
    assert torch.equal(best_clips(values, 4), apart)


def test_a_dead_channel_has_a_clip_of_nothing():
    assert best_clips(torch.zeros(2, 50), 4).tolist() == [0.0, 0.0]


def test_values_that_no_prediction_needs_do_not_decide():
    values = torch.cat([drawn(1, 4000).relu(), torch.full((1, 40), 50.0)], dim=1)
    weights = (values < 50).float()
    wanted = best_clips(values[:, :4000], 4)
    assert best_clips(values, 4).item() > 2 * wanted.item()
    found = clipping.best_clips(values, weights, 4)
    assert found.item() == pytest.approx(wanted.item(), rel=0.15)  # other candidates


def test_every_read_and_every_clipped_tensor_has_its_clips():
    graph = uneven(Inverted)
    found = worthwhile_clips(graph, batches(), 4)
    assert {node.name for node in graph.graph.nodes if clip_bounds(node) is not None} <= set(found)
    samples = weighed_values(graph, set(found), batches())
    for name, clips in found.items():
        sample = samples[name]
        wanted = clipping.best_clips(sample.values, sample.weights.float(), 4)
        assert torch.equal(clips, wanted)


def test_predictions_that_are_not_finite_give_no_clips():
    x = batches()
    x[0][0, 0, 0, 0] = float("nan")
    assert worthwhile_clips(uneven(Inverted), x, 4) == {}
