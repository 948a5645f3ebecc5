"""Scale search: it finds what an exhaustive search finds, and the cosine never falls."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fdda_deploy.pipeline.quantization.scale_search import (
    NUM_CANDIDATES,
    SEARCH_RANGE,
    LayerSample,
    cosine,
    layer_cosine,
    on_grid,
    search_activation_scale,
    search_weight_scales,
)


def sample_of(
    seed: int, groups: int = 1, positions: int = 40, channels: int = 3, fan_in: int = 8
) -> LayerSample:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, positions, fan_in, generator=generator)
    weight = torch.randn(groups, channels, fan_in, generator=generator)
    weight[:, :, 0] *= 4
    start = weight.abs().amax(dim=2, keepdim=True) / 7
    return LayerSample(x, x @ weight.mT, weight, start, start, -8, 7)


def candidate_outputs(layer: LayerSample, x_q: Tensor, channel: int) -> list[Tensor]:
    """One channel's outputs under every candidate, computed one by one."""
    found = []
    start = layer.start[0, channel]
    for factor in [1.0, *torch.linspace(*SEARCH_RANGE, NUM_CANDIDATES).tolist()]:
        weight_q = on_grid(layer.weight[0, channel], start * factor, layer.qmin, layer.qmax)
        found.append(x_q[0] @ weight_q)
    return found


@pytest.mark.parametrize("positions", [5, 40], ids=["by outputs", "by gram matrix"])
@pytest.mark.parametrize("seed", range(4))
def test_two_channels_get_the_best_of_all_pairs(seed: int, positions: int) -> None:
    layer = sample_of(seed, positions=positions, channels=2)
    first, second = (candidate_outputs(layer, layer.x, channel) for channel in (0, 1))
    best = max(
        cosine(layer.wanted[0], torch.stack(pair, dim=1))
        for pair in itertools.product(first, second)
    )
    search_weight_scales(layer, layer.x)
    assert layer_cosine(layer, layer.x) == pytest.approx(best, abs=2e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 4]), st.integers(1, 20), st.integers(1, 12))
def test_the_cosine_never_falls(seed: int, groups: int, positions: int, fan_in: int) -> None:
    layer = sample_of(seed, groups, positions, 3, fan_in)
    x_q = on_grid(layer.x, 0.3, -8, 7)
    before = layer_cosine(layer, x_q)
    search_weight_scales(layer, x_q)
    searched = layer_cosine(layer, x_q)
    assert searched >= before - 1e-6
    share = layer.scale / layer.start
    assert float(share.min()) >= SEARCH_RANGE[0] * 0.999
    assert float(share.max()) <= SEARCH_RANGE[1] * 1.001
    scale = search_activation_scale([layer], 0.3, 0.3, -8, 7)
    assert layer_cosine(layer, on_grid(layer.x, scale, -8, 7)) >= searched - 1e-6


def test_poor_scales_are_much_improved() -> None:
    layer = sample_of(3, positions=200, channels=16)
    layer.start = layer.scale = layer.start * 1.9
    before = layer_cosine(layer, layer.x)
    search_weight_scales(layer, layer.x)
    assert 1 - layer_cosine(layer, layer.x) < 0.5 * (1 - before)


def test_the_input_scale_is_the_best_of_all_for_the_mean_of_its_readers() -> None:
    layers = [sample_of(1), sample_of(2)]
    layers[1].x = layers[0].x
    layers[1].wanted = layers[1].x @ layers[1].weight.mT

    def quality(scale: float) -> float:
        return sum(layer_cosine(layer, on_grid(layer.x, scale, -8, 7)) for layer in layers)

    found = search_activation_scale(layers, 0.8, 0.8, -8, 7)
    candidates = [0.8, *(0.8 * torch.linspace(*SEARCH_RANGE, NUM_CANDIDATES)).tolist()]
    assert quality(found) == pytest.approx(max(map(quality, candidates)), abs=1e-7)
    assert quality(found) > quality(0.8)


def test_a_shared_weight_and_a_dead_layer_keep_their_scales() -> None:
    shared, dead = sample_of(1), sample_of(2)
    shared.searchable = False
    dead.wanted = torch.zeros_like(dead.wanted)
    for layer in (shared, dead):
        search_weight_scales(layer, layer.x)
        assert torch.equal(layer.scale, layer.start)
    assert layer_cosine(dead, dead.x) == 0.0
