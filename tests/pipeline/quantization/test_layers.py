"""Bias correction puts each layer's mean back, and the error of each layer is what it seems."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quant_networks import CPU, ChannelsLast, Plain, Sequence, Shared, float_graph, quant_network
from quant_networks import images as random_images
from torch import Tensor, fx, nn

from fdda_deploy.pipeline.quantization.calibrate import calibrate
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.layers import correct_biases, layer_errors
from fdda_deploy.quant.affine import fake_quant

KINDS = [Plain, ChannelsLast, Sequence]


def calibrated(kind: type[nn.Module], scheme: str = "w3a4") -> QuantNetwork:
    network = quant_network(kind, scheme)
    calibrate(network, [random_images(32)])
    return network


def layer_outputs(module: fx.GraphModule, names: set[str], x: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    class Walk(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            if n.name in names:
                found[n.name] = result
            return result

    with torch.no_grad():
        Walk(module).run(x)
    return found


def image_shifts(network: QuantNetwork, kind: type[nn.Module], x: Tensor) -> dict[str, Tensor]:
    """Mean of quantized minus mean of float, per image and output channel ``(N, C)``, by layer."""
    nodes = {n for p in network.placement.weights for n in p.consumers}
    linear = {network.names.fx_from_node[n]: "Conv" not in n for n in nodes}
    floats = layer_outputs(float_graph(kind).module, set(linear), x)
    rounded = layer_outputs(network.graph_module, set(linear), x)
    shifts = {}
    for name, is_linear in linear.items():
        difference = (rounded[name] - floats[name]).movedim(-1 if is_linear else 1, 1)
        shifts[name] = difference.flatten(2).mean(2) if difference.ndim > 2 else difference
    return shifts


def mean_shift(network: QuantNetwork, kind: type[nn.Module], x: Tensor) -> float:
    """Root mean square shift over all channels of all layers."""
    means = [shift.mean(0) for shift in image_shifts(network, kind, x).values()]
    return float(torch.cat(means).square().mean().sqrt())


@pytest.mark.parametrize("kind", KINDS)
def test_after_correction_every_mean_is_within_its_own_uncertainty(kind: type[nn.Module]) -> None:
    x = random_images(64)
    network = calibrated(kind)
    before = mean_shift(network, kind, x)
    found = correct_biases(network, float_graph(kind).module, x, CPU)
    assert found == len({n for p in network.placement.weights for n in p.consumers})
    for shifts in image_shifts(network, kind, x).values():
        standard_error = shifts.std(0) / len(x) ** 0.5
        assert (shifts.mean(0).abs() <= 1.001 * standard_error + 1e-6).all()
    assert mean_shift(network, kind, x) < 0.5 * before


def test_one_image_says_too_little_to_correct_by() -> None:
    network = calibrated(Plain)
    before = {name: value.clone() for name, value in network.named_parameters()}
    correct_biases(network, float_graph(Plain).module, random_images(1), CPU)
    assert all(torch.equal(before[name], value) for name, value in network.named_parameters())


def test_the_correction_carries_over_to_other_images() -> None:
    x, fresh = random_images(128), random_images(128, seed=9)
    network = calibrated(Plain)
    before = mean_shift(network, Plain, fresh)
    correct_biases(network, float_graph(Plain).module, x, CPU)
    assert mean_shift(network, Plain, fresh) < 0.5 * before


def test_a_bias_that_two_calls_share_is_left_alone() -> None:
    network = calibrated(Shared)
    shared = network.graph_module.get_parameter("twice.bias").clone()
    stem = network.graph_module.get_parameter("stem.bias").clone()
    assert correct_biases(network, float_graph(Shared).module, random_images(16), CPU) == 2
    assert torch.equal(network.graph_module.get_parameter("twice.bias"), shared)
    assert not torch.equal(network.graph_module.get_parameter("stem.bias"), stem)


def test_correction_changes_nothing_but_biases_and_the_float_network_not_at_all() -> None:
    network = calibrated(Plain)
    module = float_graph(Plain).module
    kept = {name: value.clone() for name, value in module.named_parameters()}
    before = {name: value.clone() for name, value in network.named_parameters()}
    correct_biases(network, module, random_images(16), CPU)
    assert all(torch.equal(kept[name], value) for name, value in module.named_parameters())
    changed = {n for n, value in network.named_parameters() if not torch.equal(before[n], value)}
    wanted = {f"graph_module.{n}.bias" for n in ("stem", "depthwise", "point", "head")}
    assert changed == wanted


@pytest.mark.parametrize("kind", [*KINDS, Shared])
def test_every_weighted_layer_has_its_error_in_graph_order(kind: type[nn.Module]) -> None:
    graph = float_graph(kind)
    network = calibrated(kind)
    errors = layer_errors(network, graph.module, random_images(8), CPU)
    wanted = {n for p in network.placement.weights for n in p.consumers}
    order = [node.name for node in graph.proto.graph.node if node.name in wanted]
    assert [error.node for error in errors] == order
    for point in network.placement.weights:
        weight = network.weight_array(point).astype(np.float64)
        noise = weight - fake_quant(weight, network.weight_qparams(point))
        sqnr = 10 * np.log10((weight**2).sum() / (noise**2).sum())
        for error in errors:
            if error.node in point.consumers:
                assert error.weight_sqnr_db == pytest.approx(sqnr, abs=0.01)
                assert 0 < error.output_sqnr_db < 60


def test_output_errors_are_measured_on_the_layers_own_output() -> None:
    x = random_images(8)
    network = calibrated(Plain)
    names = set(network.names.fx_from_node.values())
    floats = layer_outputs(float_graph(Plain).module, names, x)
    rounded = layer_outputs(network.graph_module, names, x)
    for error in layer_errors(network, float_graph(Plain).module, x, CPU):
        name = network.names.fx_from_node[error.node]
        wanted = floats[name].double()
        noise = (rounded[name] - wanted).pow(2).sum()
        ratio = 10 * float(torch.log10(wanted.pow(2).sum() / noise))
        assert error.output_sqnr_db == pytest.approx(ratio, abs=1e-3)


def test_each_bit_of_a_weight_is_worth_about_six_decibel() -> None:
    mean = []
    for scheme in ("w4a8", "w7a8"):
        network = quant_network(Plain, scheme)
        calibrate(network, [random_images(8)])
        inner = layer_errors(network, float_graph(Plain).module, random_images(8), CPU)[1:-1]
        mean.append(np.mean([error.weight_sqnr_db for error in inner]))
    assert 3 * 5 < mean[1] - mean[0] < 3 * 7


def test_a_network_without_rounding_has_no_measurable_error() -> None:
    network = calibrated(Plain, "w8a16")
    with torch.no_grad():
        for point in network.placement.weights:
            network.weight(point).zero_()
    errors = layer_errors(network, network.graph_module, random_images(4), CPU)
    assert {error.output_sqnr_db for error in errors} == {200.0}
    assert {error.weight_sqnr_db for error in errors} == {0.0}  # no signal at all
