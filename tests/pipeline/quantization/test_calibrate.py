"""Calibration: every point gets its grid from what reaches it, and messages name the tensor."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from quant_networks import (
    CPU,
    ChannelsLast,
    Plain,
    Sequence,
    Shared,
    activations_of,
    float_graph,
    quant_network,
)
from quant_networks import images as random_images
from torch import Tensor, nn

from fdda_deploy.errors import CalibrationError, ConfigError
from fdda_deploy.pipeline.quantization.calibrate import calibrate, calibrate_weights
from fdda_deploy.pipeline.quantization.observers import HistogramObserver, weight_qparams
from fdda_deploy.pipeline.quantization.ranges import mse_qparams
from fdda_deploy.pipeline.quantization.weighed_values import WeighedValues, weighed_values
from fdda_deploy.quant.affine import quantize


@pytest.mark.parametrize("kind", [Plain, Shared, ChannelsLast, Sequence])
@pytest.mark.parametrize("batch_size", [3, 16])
def test_each_range_is_that_of_its_own_tensor_behind_rounded_weights(
    kind: type[nn.Module], batch_size: int
) -> None:
    x = random_images(16)
    network, unrounded = quant_network(kind, "w4a8"), quant_network(kind, "w4a8")
    calibrate(network, torch.split(x, batch_size), observer="minmax")
    calibrate_weights(unrounded)
    values = activations_of(unrounded.graph_module, x)
    twin = float_graph(kind).fx_from_tensor
    grids = network.activation_qparams()
    assert grids.keys() == {point.name for point in network.placement.activations}
    for point in network.placement.activations:
        value, grid = values[twin[point.tensor]], grids[point.name]
        wanted = float(value.abs().max()) / 127
        if point.shifted:  # any run of 256 steps around zero
            wanted = (max(float(value.max()), 0.0) - min(float(value.min()), 0.0)) / 255
        assert grid.num_bits == 8
        assert float(grid.scale) == pytest.approx(wanted, rel=5e-3 if grid.zero_point else 1e-5)


def test_a_calibrated_network_rounds_and_an_uncalibrated_one_does_not() -> None:
    x = random_images(8)
    network = quant_network(Plain, "w4a4").requires_grad_(False)
    wanted = float_graph(Plain).module(x).detach()
    assert torch.equal(network(x), wanted)
    calibrate(network, [x])
    error = float((network(x) - wanted).norm() / wanted.norm())
    assert 0.01 < error < 1.0
    assert all(quantizer.observer is None for quantizer in network.activation_quantizers.values())


@torch.no_grad()
def test_more_bits_are_closer() -> None:
    x = random_images(16)
    wanted = float_graph(Plain).module(x)
    errors = []
    for scheme in ("w3a3", "w5a5", "w7a7"):
        network = quant_network(Plain, scheme)
        calibrate(network, [x])
        errors.append(float((network(x) - wanted).norm()))
    assert errors[0] > 1.3 * errors[1] > 1.3 * errors[2]


def test_weights_alone_need_no_image() -> None:
    network = quant_network(Plain, "w4a16")
    calibrate(network, [])
    assert network.activation_qparams() == {}
    for point in network.placement.weights:
        weight = network.weight_array(point)
        wanted = weight_qparams(weight, point.num_bits, point.axis, point.block_size)
        x_int, qparams = network.integer_weights()[point.initializer]
        assert qparams.scale.tolist() == wanted.scale.tolist()
        assert np.array_equal(x_int, quantize(weight, wanted))


def test_progress_ends_at_the_number_of_images() -> None:
    said: list[tuple[int, int]] = []
    calibrate(
        quant_network(Plain, "w8a8"),
        torch.split(random_images(10), 4),
        num_images=10,
        device=CPU,
        progress=lambda done, total, _text: said.append((done, total)),
    )
    assert said == [(4, 10), (8, 10), (10, 10)]


def test_no_image_is_an_error_that_says_where_images_come_from() -> None:
    network = quant_network(Plain, "w8a8")
    with pytest.raises(CalibrationError, match=r"no calibration image\. Give --calib-data"):
        calibrate(network, [])


def test_a_nan_activation_is_named_and_leaves_no_observer_behind() -> None:
    network = quant_network(Plain, "w8a8")
    with torch.no_grad():
        network.graph_module.get_parameter("stem.bias")[2] = float("nan")
    with pytest.raises(CalibrationError, match="Relu_output: NaN or infinite while ranges"):
        calibrate(network, [random_images(2)])
    assert all(quantizer.observer is None for quantizer in network.activation_quantizers.values())


def test_a_nan_weight_is_named_and_counted() -> None:
    network = quant_network(Plain, "w8a8")
    with torch.no_grad():
        network.graph_module.get_parameter("point.weight")[:2, 1] = float("inf")
    with pytest.raises(CalibrationError, match=r"point\.weight: 2 of 64 weights are NaN or inf"):
        calibrate_weights(network)


def test_an_unknown_observer_is_refused() -> None:
    with pytest.raises(ConfigError, match="observer 'median'"):
        calibrate(quant_network(Plain, "w8a8"), [random_images(2)], observer="median")


def test_an_observer_that_saw_nothing_names_its_tensor() -> None:
    with pytest.raises(CalibrationError, match="Relu_output: no image reached this tensor"):
        HistogramObserver(name="Relu_output").histogram()


def weighed(x: Tensor) -> dict[str, WeighedValues]:
    graph = float_graph(Plain)
    return weighed_values(graph.module, set(graph.fx_from_tensor.values()), [x])


def unread() -> Iterator[Tensor]:
    raise AssertionError("images were read")
    yield


def test_where_all_values_were_weighed_no_image_is_read() -> None:
    network, found = quant_network(Plain, "w4a4"), weighed(random_images(8))
    assert calibrate(network, unread(), weighed=found) == 0
    nodes = network.names.fx_from_tensor
    for point in network.placement.activations:
        sample = found[nodes[point.tensor]]
        wanted = mse_qparams(sample.histogram(point.shifted), point.num_bits)
        assert network.activation_qparams()[point.name] == wanted


def test_a_tensor_that_was_not_weighed_is_observed_in_float() -> None:
    x = random_images(8)
    network, usual, found = quant_network(Plain, "w4a4"), quant_network(Plain, "w4a4"), weighed(x)
    calibrate(usual, [x])
    missing = network.placement.activations[-1]
    del found[network.names.fx_from_tensor[missing.tensor]]
    for _ in range(2):  # the second time grids are there, and must not round what is observed
        assert calibrate(network, [x], weighed=found) == len(x)
        grid = network.activation_qparams()[missing.name]
        assert float(grid.scale) == float(usual.activation_qparams()[missing.name].scale)
