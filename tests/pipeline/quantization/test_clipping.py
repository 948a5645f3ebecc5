"""Where a channel is clipped best: least squared error, found on a fair sample of its values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fdda_deploy.pipeline.quantization.clipping import (
    SAMPLES_PER_IMAGE,
    ChannelSample,
    best_clips,
)


def drawn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.parametrize("shape", [(10, 3, 9, 7), (10, 3, 2, 2), (10, 3)])
@pytest.mark.parametrize("cut", [1, 3, 10])
def test_the_sample_does_not_depend_on_the_batches(shape, cut):
    x = drawn(*shape)
    whole, parts = ChannelSample(), ChannelSample()
    whole.add(x)
    for part in torch.split(x, cut):
        parts.add(part)
    assert torch.equal(whole.values(), parts.values())
    each = x[0, 0].numel()
    assert whole.values().shape == (3, 10 * min(SAMPLES_PER_IMAGE, each))


def test_every_place_of_an_image_is_sampled_sometimes():
    ramp = torch.arange(64.0).expand(200, 1, 64)
    sample = ChannelSample()
    sample.add(ramp)
    assert set(sample.values()[0].tolist()) == set(range(64))


def test_values_are_those_of_the_image_in_eight_bits():
    x = drawn(4, 2, 3, 3)
    sample = ChannelSample()
    sample.add(x)  # nine places: all are taken
    wanted = x.flatten(2).transpose(0, 1).flatten(1)
    torch.testing.assert_close(sample.values(), wanted, rtol=2**-8, atol=0)
