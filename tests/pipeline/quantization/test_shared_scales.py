"""Tensors that share a scale have it after calibration, and still after scales are trained."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from compact_networks import Residuals, compact_network
from quant_networks import CPU, float_graph
from quant_networks import images as random_images

from fdda_deploy.pipeline.quantization.calibrate import calibrate
from fdda_deploy.pipeline.quantization.closed_form import RoundingSettings, round_network
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.fixed_integers import FixedIntegers
from fdda_deploy.pipeline.quantization.learned_step import LearnedStep
from fdda_deploy.pipeline.quantization.reconstruct import reconstruct
from fdda_deploy.pipeline.quantization.reconstruction_settings import ReconstructionSettings
from fdda_deploy.pipeline.quantization.shared_scales import share_scales, sharing_tensors
from fdda_deploy.quant.sharing import MOST_COARSENED


def calibrated() -> QuantNetwork:
    network = compact_network(Residuals)
    calibrate(network, [random_images(16)])
    return network


def scales(network: QuantNetwork) -> dict[str, float]:
    return {name: float(grid.scale) for name, grid in network.activation_qparams().items()}


def with_scales(network: QuantNetwork, *values: float) -> dict[str, float]:
    """Gives the tensors that share a shape these scales, then lets them share."""
    tensors = [point.tensor for point in network.placement.activations if point.shares]
    for tensor, value in zip(tensors, values, strict=True):
        grid = network.activation_qparams()[tensor]
        changed = dataclasses.replace(grid, scale=np.float32(value))
        network.activation_quantizers[tensor].set_qparams(changed)
    share_scales(network)
    found = scales(network)
    return {tensor: found[tensor] for tensor in tensors}


def test_calibration_gives_tensors_of_one_shape_the_largest_of_their_scales() -> None:
    network = calibrated()
    (tensors,) = sharing_tensors(network)
    assert len({scales(network)[tensor] for tensor in tensors}) == 1
    assert len(tensors) >= 2


def test_none_is_coarsened_beyond_the_bound() -> None:
    network = calibrated()
    found = list(
        with_scales(
            network, 0.9 / MOST_COARSENED, 1.0, 0.45 / MOST_COARSENED, 1 / MOST_COARSENED
        ).values()
    )
    assert found == pytest.approx([0.9 / MOST_COARSENED, 1.0, 0.9 / MOST_COARSENED, 1.0])
    assert len(sharing_tensors(network)) == 2


def test_sharing_twice_is_sharing_once() -> None:
    network = calibrated()
    once = with_scales(network, 1.0, 0.6, 0.4, 0.3)
    assert share_scales(network) == 0
    assert {tensor: scales(network)[tensor] for tensor in once} == once


def test_zero_points_and_ranges_of_integers_stay() -> None:
    network = calibrated()
    before = network.activation_qparams()
    with_scales(network, 1.0, 0.9, 0.8, 0.7)
    after = network.activation_qparams()
    for name, grid in before.items():
        assert (grid.qmin, grid.qmax, grid.zero_point) == (
            after[name].qmin,
            after[name].qmax,
            after[name].zero_point,
        )


def test_training_moves_a_shared_scale_as_one_and_keeps_one_scale_per_weight() -> None:
    network = calibrated()
    start = scales(network)
    (tensors,) = sharing_tensors(network)
    fixed = FixedIntegers(network)
    assert len(fixed.steps) == len(start) - len(tensors) + 1
    with torch.no_grad():
        for index, gain in enumerate(fixed.steps):
            gain.add_(0.1 * (index + 1))
    fixed.write_back()
    found = scales(network)
    assert len({found[tensor] for tensor in tensors}) == 1
    assert all(found[tensor] > start[tensor] for tensor in start)
    assert all(network.weight_qparams(point).axis is None for point in network.placement.weights)


def test_every_tensor_that_shares_a_scale_has_a_say_in_it() -> None:
    network = calibrated()
    (tensors,) = sharing_tensors(network)
    fixed = FixedIntegers(network)
    network(random_images(4)).square().sum().backward()
    shared = fixed.steps[list(scales(network)).index(tensors[0])]
    assert shared.grad is not None
    together = float(shared.grad)
    fixed.remove()
    apart = 0.0
    for tensor in tensors:  # the same gradient, tensor by tensor
        step = LearnedStep(
            network.activation_quantizers[tensor],
            drop=0.0,
            learn_scale=True,
            generator=torch.Generator(),
        )
        key = next(
            k
            for k, m in network.graph_module.named_children()
            if m is network.activation_quantizers[tensor]
        )
        network.graph_module.add_module(key, step)
        network(random_images(4)).square().sum().backward()
        network.graph_module.add_module(key, network.activation_quantizers[tensor])
        assert step.log_gain.grad is not None
        apart += float(step.log_gain.grad)
    assert together == pytest.approx(apart, rel=1e-3, abs=1e-4)


def test_reconstruction_leaves_a_shared_scale_where_it_is() -> None:
    network = calibrated()
    start = scales(network)
    (tensors,) = sharing_tensors(network)
    reconstruct(
        network,
        float_graph(Residuals).module,
        [random_images(16)],
        settings=ReconstructionSettings(num_steps=10, batch_size=16, step_lr=1e-2),
        device=CPU,
        seed=0,
        memory_limit_bytes=2**30,
    )
    found = scales(network)
    assert {found[tensor] for tensor in tensors} == {start[tensors[0]]}
    alone = found.keys() - set(tensors)
    assert any(found[tensor] != start[tensor] for tensor in alone)


def test_closed_form_keeps_one_scale_per_weight_and_lowers_the_error() -> None:
    network = calibrated()
    module = float_graph(Residuals).module
    images = random_images(64)
    found = round_network(
        network,
        module,
        [images],
        settings=RoundingSettings(sequential=False, importance=False),
        device=CPU,
    )
    assert [layer.initializer for layer in found.layers] == list(network.weight_quantizers)
    assert all(layer.after <= layer.before for layer in found.layers)
    assert sum(layer.after for layer in found.layers) < sum(layer.before for layer in found.layers)
    for point in network.placement.weights:
        assert network.weight_qparams(point).scale.shape == ()
