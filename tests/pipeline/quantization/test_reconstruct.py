"""Reconstruction brings a quantized network nearer to its float one, and only as far as it may."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from quant_networks import ChannelsLast, Plain, Sequence, Shared, images
from reconstruct_networks import drift, integer_moves, network_of, run, state_of
from torch import nn

KINDS = [Plain, ChannelsLast, Sequence]


@pytest.mark.parametrize("granularity", ["block", "layer"])
@pytest.mark.parametrize("kind", KINDS)
def test_errors_fall_and_no_integer_moves_by_more_than_one(
    kind: type[nn.Module], granularity: str
) -> None:
    network = network_of(kind)
    nearest = copy.deepcopy(network)
    result = run(network, kind, granularity=granularity)
    assert all(o.error_after < o.error_before for o in result.blocks if o.kept)
    assert all(o.error_after == o.error_before for o in result.blocks if not o.kept)
    assert sum(o.kept for o in result.blocks) >= len(result.blocks) / 2
    assert integer_moves(nearest, network) <= 1
    assert drift(network, kind, images(32)) < 0.8 * drift(nearest, kind, images(32))
    assert result.num_images == 32


def test_what_is_written_is_what_was_measured() -> None:
    network = network_of(Plain)
    result = run(network, Plain)
    again = run(copy.deepcopy(network), Plain)
    assert result.blocks[-1].kept
    # the first block's inputs are the images themselves: its error can be measured again
    assert again.blocks[0].error_before == pytest.approx(result.blocks[0].error_after, rel=1e-5)


def test_a_weight_whose_layer_has_a_block_of_its_own_ends_on_its_grid() -> None:
    network = network_of(Plain)
    run(network, Plain)
    for point in network.placement.weights:
        q, grid = network.integer_weights()[point.initializer]
        written = q * grid.scale_for(q.shape)
        np.testing.assert_allclose(network.weight_array(point), written, rtol=1e-6)


def test_units_name_the_layers_inside() -> None:
    blocks = run(network_of(Plain), Plain, num_steps=1).blocks
    layers = run(network_of(Plain), Plain, num_steps=1, granularity="layer").blocks
    assert [len(outcome.layers) for outcome in blocks] == [1, 2, 1]
    assert [len(outcome.layers) for outcome in layers] == [1, 1, 1, 1]
    assert [n for o in blocks for n in o.layers] == [n for o in layers for n in o.layers]


def test_the_float_network_stays_as_it_is_and_nothing_requires_a_gradient() -> None:
    network = network_of(Plain)
    run(network, Plain)
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())


def test_a_seed_fixes_the_result() -> None:
    found = []
    for seed in (0, 0, 1):
        network = network_of(Plain)
        result = run(network, Plain, seed=seed)
        found.append((result, state_of(network)))
    assert found[0] == found[1]
    assert found[0][1] != found[2][1]


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"scale_lr": 0.0}, "scales"),
        ({"step_lr": 0.0}, "steps"),
        ({"bias_lr": 0.0}, "biases"),
        ({"rounding_lr": 0.0}, "integers"),
    ],
    ids=["scales", "steps", "biases", "integers"],
)
def test_a_rate_of_zero_keeps_what_it_is_the_rate_of(changes: dict[str, float], same: str) -> None:
    network = network_of(Plain)
    before = state_of(network)
    run(network, Plain, **changes)
    after = state_of(network)
    assert [name for name in before if before[name] == after[name]] == [same]


@pytest.mark.parametrize("granularity", ["block", "layer"])
def test_weights_that_blocks_share_are_left_and_named(granularity: str) -> None:
    network = network_of(Shared)
    before = state_of(network)
    result = run(network, Shared, granularity=granularity)
    after = state_of(network)
    assert result.left == ("twice.weight",)
    for what in ("integers", "scales"):
        assert after[what]["twice.weight"] == before[what]["twice.weight"]
    assert after["biases"]["twice.bias"] == before["biases"]["twice.bias"]
    assert after["scales"] != before["scales"]


def test_int4_blocks_keep_their_layout() -> None:
    network = network_of(ChannelsLast, "w4a16", "rtx")
    before = state_of(network)
    result = run(network, ChannelsLast)
    after = state_of(network)
    assert before["integers"] != after["integers"]
    assert any(outcome.kept for outcome in result.blocks)


def test_the_prediction_term_changes_what_is_learned() -> None:
    with_term, without = network_of(Plain), network_of(Plain)
    run(with_term, Plain, predict=0.1)
    run(without, Plain)
    assert state_of(with_term) != state_of(without)
    assert drift(with_term, Plain, images(32)) < drift(network_of(Plain), Plain, images(32))


def test_progress_counts_every_step_once() -> None:
    seen: list[tuple[int, int, str]] = []
    run(network_of(Plain), Plain, num_steps=4, progress=lambda *now: seen.append(now))
    assert [done for done, _, _ in seen] == list(range(1, 13))
    assert set(seen[-1][1:]) == {12, "reconstructing blocks"}


def test_targets_say_what_the_integers_were_rounded_from() -> None:
    found = []
    for shift in (0.0, 0.4):
        network = network_of(Plain)
        steps = {name: q.scale for name, q in network.weight_quantizers.items()}
        targets = {
            point.initializer: network.weight(point).detach() + shift * steps[point.initializer]
            for point in network.placement.weights
        }
        run(network, Plain, targets=targets)
        found.append(state_of(network)["integers"])
    assert found[0] != found[1]
