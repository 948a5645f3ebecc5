"""EasyQuant on networks: layers come closer to the float ones, or everything stays as it was."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from quant_networks import CPU, ChannelsLast, Plain, Sequence, Shared, float_graph, quant_network
from quant_networks import images as random_images
from torch import nn

from fdda_deploy.pipeline.quantization import easyquant
from fdda_deploy.pipeline.quantization.calibrate import calibrate
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.easyquant import ScaleSearch, search_scales
from fdda_deploy.pipeline.quantization.judge import Judge

HELD_OUT = random_images(64, seed=9)


def calibrated(kind: type[nn.Module], scheme: str) -> QuantNetwork:
    network = quant_network(kind, scheme)
    calibrate(network, [random_images(32)], observer="minmax")
    return network


def searched(network: QuantNetwork, kind: type[nn.Module], seed: int = 0) -> ScaleSearch:
    module = float_graph(kind).module
    return search_scales(network, module, random_images(50), HELD_OUT, device=CPU, seed=seed)


def grids(network: QuantNetwork) -> list[list[float]]:
    acts = [q.scale.ravel().tolist() for q in network.activation_qparams().values()]
    return acts + [network.weight_qparams(p).scale.tolist() for p in network.placement.weights]


@pytest.mark.parametrize("scheme", ["w8a8", "w4a4"])
@pytest.mark.parametrize("kind", [Plain, Shared, ChannelsLast, Sequence])
def test_no_layers_cosine_falls_and_a_better_network_is_kept(
    kind: type[nn.Module], scheme: str
) -> None:
    network = calibrated(kind, scheme)
    start = grids(network)
    result = searched(network, kind)
    nodes = {network.names.fx_from_node[n] for p in network.placement.weights for n in p.consumers}
    assert set(result.cosines) == nodes
    assert all(after >= before - 1e-6 for before, after in result.cosines.values())
    assert any(after > before + 1e-7 for before, after in result.cosines.values())
    assert result.kept == (result.after < result.before) == (grids(network) != start)
    found = Judge(float_graph(kind).module, HELD_OUT, CPU)(network)
    assert found == pytest.approx(min(result.before, result.after))


def test_narrow_minmax_grids_are_much_improved() -> None:
    network = calibrated(Plain, "w4a4")
    result = searched(network, Plain)
    assert result.kept
    assert result.after < 0.9 * result.before


def test_scales_that_do_not_help_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    network = calibrated(Plain, "w4a4")
    start, answer = grids(network), network(HELD_OUT).detach()
    worse = iter([0.1, 0.2])
    monkeypatch.setattr(easyquant, "Judge", lambda *_: lambda _: next(worse))
    result = searched(network, Plain)
    assert not result.kept
    assert grids(network) == start
    assert torch.equal(network(HELD_OUT).detach(), answer)


def test_weights_alone_are_searched_where_activations_stay_float() -> None:
    network = calibrated(Plain, "w3a16")
    start = grids(network)
    result = searched(network, Plain)
    assert all(after >= before - 1e-6 for before, after in result.cosines.values())
    assert result.kept
    assert grids(network) != start


def test_a_weight_with_two_readers_keeps_its_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    better = iter([0.2, 0.1])
    monkeypatch.setattr(easyquant, "Judge", lambda *_: lambda _: next(better))
    network = calibrated(Shared, "w4a4")
    point = next(p for p in network.placement.weights if len(p.consumers) == 2)
    start, everything = network.weight_qparams(point).scale.tolist(), grids(network)
    assert searched(network, Shared).kept
    assert grids(network) != everything
    assert network.weight_qparams(point).scale.tolist() == start


def test_a_quantizer_that_stands_in_two_places_keeps_its_scale(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = calibrated(Plain, "w4a8")
    graph = network.graph_module.graph
    call = next(
        n
        for n in graph.nodes
        if n.op == "call_module" and "activation" in str(n.target) and len(n.users) > 1
    )
    with graph.inserting_after(call):
        second = graph.call_module(call.target, call.args)
    next(reversed(call.users)).replace_input_with(call, second)
    network.graph_module.recompile()
    quantizer = network.graph_module.get_submodule(str(call.target))
    better = iter([0.2, 0.1])
    monkeypatch.setattr(easyquant, "Judge", lambda *_: lambda _: next(better))
    start, everything = float(quantizer.scale), grids(network)
    assert searched(network, Plain).kept
    assert grids(network) != everything
    assert float(quantizer.scale) == start


def test_weights_scaled_in_blocks_are_left_alone() -> None:
    network = calibrated(Plain, "w4a8")
    for quantizer in network.weight_quantizers.values():
        assert quantizer.qparams is not None
        blocked = dataclasses.replace(quantizer.qparams)
        object.__setattr__(blocked, "block_size", 4)
        quantizer.qparams = blocked
    assert easyquant._layers(network) == {}


def test_the_same_seed_gives_the_same_scales_and_progress_counts_layers() -> None:
    one, two = calibrated(Plain, "w4a4"), calibrated(Plain, "w4a4")
    said: list[tuple[int, int]] = []
    first = searched(one, Plain, seed=3)
    second = search_scales(
        two,
        float_graph(Plain).module,
        random_images(50),
        HELD_OUT,
        device=CPU,
        seed=3,
        progress=lambda done, total, _text: said.append((done, total)),
    )
    assert first == second
    assert grids(one) == grids(two)
    assert said[-1] == (4, 4)
