"""Networks rounded in closed form come closer to the float network and stay on their grids."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from quant_networks import CPU, ChannelsLast, Plain, Sequence, Shared, float_graph, quant_network
from rounded_networks import (
    FIT,
    Alike,
    Grouped,
    Upsampled,
    Wide,
    calibrated,
    error,
    integers,
    rounded,
)
from torch import nn

from fdda_deploy.errors import CalibrationError
from fdda_deploy.pipeline.quantization import closed_form
from fdda_deploy.pipeline.quantization.closed_form import RoundingSettings, round_network
from fdda_deploy.pipeline.quantization.fisher import AT_ONCE
from fdda_deploy.quant.affine import dequantize

KINDS = [Plain, ChannelsLast, Sequence, Grouped, Wide, Upsampled, Shared]


@pytest.mark.parametrize("kind", KINDS)
def test_narrow_weights_come_much_closer(kind: type[nn.Module]) -> None:
    network = calibrated(kind, "w4a8")
    before = error(network, kind)
    result = rounded(network, kind)
    assert all(layer.after < layer.before for layer in result.layers)
    assert error(network, kind) < 0.7 * before


@pytest.mark.parametrize("kind", KINDS)
def test_wide_weights_lose_less_in_every_layer(kind: type[nn.Module]) -> None:
    network = calibrated(kind, "w8a8")
    before = error(network, kind)
    result = rounded(network, kind)
    assert all(layer.after < layer.before for layer in result.layers)
    assert error(network, kind) < 1.2 * before  # the activations' rounding is what is left


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_scales_times_integers_of_their_grid(kind: type[nn.Module]) -> None:
    network = calibrated(kind, "w4a8")
    start = integers(network)
    result = rounded(network, kind)
    left = {name for name, _ in result.left}
    for point in network.placement.weights:
        q, qparams = network.integer_weights()[point.initializer]
        assert q.min() >= qparams.qmin
        assert q.max() <= qparams.qmax
        assert qparams.num_bits == point.num_bits
        if point.initializer in left:
            assert q.tolist() == start[point.initializer]
            continue
        stored = network.weight_array(point)
        assert np.allclose(stored, dequantize(q, qparams), rtol=1e-6, atol=0)
    assert integers(network) != start


def test_every_layer_is_rounded_or_named() -> None:
    for kind, names in {Plain: [], Upsampled: ["up.weight"], Shared: ["twice.weight"]}.items():
        network = calibrated(kind, "w4a8")
        result = rounded(network, kind)
        every = [point.initializer for point in network.placement.weights]
        assert [name for name, _ in result.left] == names
        assert [x.initializer for x in result.layers] == [x for x in every if x not in names]


def test_reasons_say_why_a_weight_is_left() -> None:
    reasons = [rounded(calibrated(kind, "w4a8"), kind).left[0][1] for kind in (Upsampled, Shared)]
    assert reasons == ["layers of this kind are not sampled", "several layers read it"]
    wide = rounded(calibrated(Wide, "w4a8"), Wide, max_fan_in=100)
    assert dict(wide.left)["wide.weight"] == "it reads more than 100 inputs at once"


def test_what_is_left_keeps_weight_and_bias() -> None:
    network = calibrated(Upsampled, "w4a8")
    state = {name: value.clone() for name, value in network.named_parameters()}
    rounded(network, Upsampled)
    after = dict(network.named_parameters())
    unchanged = [name for name in state if torch.equal(state[name], after[name])]
    assert sorted(unchanged) == ["graph_module.up.bias", "graph_module.up.weight"]


def test_blocks_of_int4_keep_their_scales() -> None:
    network = calibrated(Wide, "w4a16", "rtx")
    points = [point for point in network.placement.weights if point.block_size is not None]
    assert points
    start = [network.weight_qparams(point) for point in points]
    before = error(network, Wide)
    rounded(network, Wide)
    for point, qparams in zip(points, start, strict=True):
        assert np.array_equal(network.weight_qparams(point).scale, qparams.scale)
        assert network.weight_qparams(point).block_size == point.block_size
    assert error(network, Wide) < 0.8 * before


def test_transposed_weights_keep_the_axis_of_their_file() -> None:
    network = calibrated(ChannelsLast, "w4a8")
    names = network.names.parameter_from_initializer
    turned = [p for p in network.placement.weights if names[p.initializer][1]]
    assert turned
    rounded(network, ChannelsLast)
    for point in turned:
        qparams = network.weight_qparams(point)
        assert qparams.axis == point.axis
        assert qparams.scale.shape == (network.weight_array(point).shape[point.axis],)


def test_rounding_twice_is_rounding_once() -> None:
    network = calibrated(Plain, "w4a8")
    rounded(network, Plain)
    once = integers(network)
    biases = network.float_parameters()
    rounded(network, Plain)
    assert integers(network) == once
    assert all(np.array_equal(biases[k], v) for k, v in network.float_parameters().items())


def test_the_seed_decides_the_positions_and_all_that_follows() -> None:
    found = []
    for seed in (0, 0, 1):
        network = calibrated(Plain, "w4a8")
        rounded(network, Plain, seed=seed, samples=640)
        found.append({k: v.tolist() for k, v in network.float_parameters().items()})
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_means_are_corrected_only_if_asked() -> None:
    network = calibrated(Plain, "w4a8")
    start = network.float_parameters()
    start = {name: value.copy() for name, value in start.items()}
    rounded(network, Plain, correct_means=False)
    assert all(np.array_equal(start[k], v) for k, v in network.float_parameters().items())
    rounded(network, Plain)
    assert all((start[k] != v).any() for k, v in network.float_parameters().items())


def test_earlier_losses_are_made_good_only_if_asked() -> None:
    together, alone = calibrated(Plain, "w4a4"), calibrated(Plain, "w4a4")
    rounded(together, Plain)
    rounded(alone, Plain, sequential=False)
    assert integers(together) != integers(alone)


def test_channels_make_good_each_others_errors_where_asked() -> None:
    together, alone = calibrated(Alike, "w4a8"), calibrated(Alike, "w4a8")
    rounded(together, Alike, sequential=False)  # else the head mends some of it
    rounded(alone, Alike, sequential=False, coupled=False)
    assert error(together, Alike) < 0.6 * error(alone, Alike)


@pytest.mark.parametrize(
    ("kind", "scheme", "importance", "alike"),
    [
        (Plain, "w8a8", True, True),
        (Plain, "w4a8", False, True),  # nothing says what channels cost
        (Plain, "w4a8", True, False),
        (Grouped, "w4a8", True, False),  # its first and last layer
    ],
)
def test_only_narrow_weights_of_known_cost_are_rounded_together(
    kind: type[nn.Module], scheme: str, importance: bool, alike: bool
) -> None:
    together, alone = calibrated(kind, scheme), calibrated(kind, scheme)
    rounded(together, kind, importance=importance)
    rounded(alone, kind, importance=importance, coupled=False)
    assert (integers(together) == integers(alone)) is alike


def test_layers_of_very_many_channels_round_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_form, "MOST_ROWS", 4)
    together, alone = calibrated(Plain, "w4a8"), calibrated(Plain, "w4a8")
    rounded(together, Plain)
    rounded(alone, Plain, coupled=False)
    assert integers(together) == integers(alone)


def test_progress_counts_images_then_layers() -> None:
    seen: list[tuple[int, int, str]] = []
    network = calibrated(Plain, "w4a8")
    round_network(
        network,
        float_graph(Plain).module,
        [FIT],
        settings=RoundingSettings(),
        device=CPU,
        progress=lambda *step: seen.append(step),
    )
    weighed = [step for step in seen if step[2] == "weighing positions"]
    counts = [0, *range(AT_ONCE, len(FIT), AT_ONCE), len(FIT)]
    assert weighed == [(count, len(FIT), "weighing positions") for count in counts]
    assert seen == weighed + [(n + 1, 4, "rounding weights") for n in range(4)]


def test_no_image_is_refused() -> None:
    network = calibrated(Plain, "w4a8")
    module = float_graph(Plain).module
    with pytest.raises(CalibrationError, match=re.escape("no image to round weights on. Give")):
        round_network(network, module, [], settings=RoundingSettings(), device=CPU)


def test_inputs_that_are_not_finite_are_named() -> None:
    network = calibrated(Plain, "w4a8")
    module = float_graph(Plain).module
    broken = FIT.clone()
    broken[3, 0, 2, 2] = float("nan")
    with pytest.raises(CalibrationError, match=r"^stem.weight: .* not finite\. Check"):
        round_network(network, module, [broken], settings=RoundingSettings(), device=CPU)


def test_a_network_that_is_not_calibrated_is_refused() -> None:
    network = quant_network(Plain, "w4a8")
    module = float_graph(Plain).module
    with pytest.raises(CalibrationError, match="Calibrate first"):
        round_network(network, module, [FIT], settings=RoundingSettings(), device=CPU)
