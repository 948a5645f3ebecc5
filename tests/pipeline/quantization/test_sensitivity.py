"""A layer's sensitivity is what the network loses when that layer alone is on its grid."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from quant_networks import (
    CPU,
    SHAPE,
    ChannelsLast,
    Plain,
    Sequence,
    Shared,
    float_graph,
    images,
    quant_network,
)
from torch import Tensor, nn

from fdda_deploy.errors import CalibrationError
from fdda_deploy.pipeline.quantization.calibrate import calibrate
from fdda_deploy.pipeline.quantization.convert import QuantNetwork, convert
from fdda_deploy.pipeline.quantization.sensitivity import (
    LayerSensitivity,
    bytes_of,
    layer_sensitivity,
)
from fdda_deploy.quant.points import WeightPoint


class Padded(nn.Module):
    """A zero pad that ONNX absorbs into one convolution, and whose input another one reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.left, self.right = nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.left(F.pad(x, (1, 1, 1, 1))) + self.right(x))
        return self.head(x.mean((2, 3)))


KINDS = [Plain, Shared, ChannelsLast, Sequence, Padded]


def calibrated(kind: type[nn.Module], scheme: str, target: str = "trt") -> QuantNetwork:
    network = quant_network(kind, scheme, target)
    calibrate(network, [images(32)])
    return network


def measured(
    network: QuantNetwork, kind: type[nn.Module], x: Tensor, batch_size: int = 8
) -> list[LayerSensitivity]:
    module = float_graph(kind).module
    return layer_sensitivity(network, module, x, device=CPU, batch_size=batch_size)


def with_one_layer(network: QuantNetwork, kind: type[nn.Module], point: WeightPoint) -> nn.Module:
    """The float network with the quantizers of one layer, made by `convert` from fewer points."""
    readers = set(point.consumers)
    activations = []
    for each in network.placement.activations:
        edges = tuple(edge for edge in each.consumers if edge[0] in readers and edge[1] == 0)
        if edges:
            activations.append(dataclasses.replace(each, consumers=edges))
    placement = dataclasses.replace(
        network.placement, weights=(point,), activations=tuple(activations)
    )
    alone = convert(float_graph(kind).module, placement, network.names)
    alone.set_weight_qparams(point, network.weight_qparams(point))
    for name, grid in network.activation_qparams().items():
        if name in alone.activation_quantizers:
            alone.activation_quantizers[name].set_qparams(grid)
    return alone


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("scheme", "target"), [("w3a4", "trt"), ("w4a8", "ort-cpu"), ("w4a16", "rtx")]
)
@torch.no_grad()
def test_it_is_the_damage_of_a_network_with_this_layer_alone_quantized(
    kind: type[nn.Module], scheme: str, target: str
) -> None:
    x = images(10, seed=4)
    network = calibrated(kind, scheme, target)
    wanted = float_graph(kind).module(x).double()
    for found, point in zip(measured(network, kind, x), network.placement.weights, strict=True):
        got = with_one_layer(network, kind, point)(x).double()
        kl = F.kl_div(got.log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="sum")
        noise = (wanted - got).square().sum()
        assert found.nodes == point.consumers
        assert found.kl == pytest.approx(float(kl) / len(x), rel=1e-3, abs=1e-9)
        ratio = 10 * float(torch.log10(wanted.square().sum() / noise))
        assert found.sqnr_db == pytest.approx(ratio, abs=0.01)


def test_batches_add_up() -> None:
    network, x = calibrated(Plain, "w3a4"), images(7, seed=4)
    for one, other in zip(
        measured(network, Plain, x, 7), measured(network, Plain, x, 2), strict=True
    ):
        assert one.kl == pytest.approx(other.kl, rel=1e-4)
        assert one.sqnr_db == pytest.approx(other.sqnr_db, abs=1e-3)


def test_rounding_of_any_kind_is_what_is_measured() -> None:
    network, x = calibrated(Plain, "w4a16", "trt"), images(8, seed=4)
    point = network.placement.weights[2]
    with torch.no_grad():
        network.weight(point).zero_()
    found = measured(network, Plain, x)
    exact = float_graph(Plain).module
    with torch.no_grad():
        emptied = with_one_layer(network, Plain, point)
        assert isinstance(emptied, QuantNetwork)
        emptied.weight(point).zero_()
        noise = (exact(x) - emptied(x)).double().square().sum()
        ratio = 10 * float(torch.log10(exact(x).double().square().sum() / noise))
    assert found[2].sqnr_db == pytest.approx(ratio, abs=0.01)
    assert min(found, key=lambda layer: layer.sqnr_db) is found[2]


def test_bytes_are_those_of_the_grid_and_of_what_the_plan_stores() -> None:
    (stem, *_, head) = measured(calibrated(Plain, "w4a16", "rtx"), Plain, images(2))
    assert (stem.num_weights, stem.grid_bytes, stem.stored_bytes) == (216, 108, 108)
    assert (head.num_weights, head.grid_bytes, head.stored_bytes) == (40, 20, 40)
    (stem, depthwise, *_) = measured(calibrated(Plain, "w3a8"), Plain, images(2))
    assert (stem.weight_bits, stem.act_bits) == (3, 8)
    assert (stem.grid_bytes, stem.stored_bytes) == (81, 216)
    assert (depthwise.name, depthwise.grid_bytes) == ("depthwise/Conv", 27)


def test_whole_bytes_are_counted() -> None:
    assert [bytes_of(9, bits) for bits in (2, 4, 8, 32)] == [3, 5, 9, 36]


def test_wider_grids_do_less_damage() -> None:
    narrow, wide = (measured(calibrated(Plain, s), Plain, images(8)) for s in ("w3a8", "w8a8"))
    for one, other in zip(narrow, wide, strict=True):
        assert other.sqnr_db > one.sqnr_db + 10
        assert other.kl < one.kl


def test_nothing_is_changed_by_measuring() -> None:
    network, x = calibrated(Plain, "w3a4"), images(4)
    with torch.no_grad():
        before, exact = network(x), float_graph(Plain).module(x)
        measured(network, Plain, x)
        assert torch.equal(network(x), before)
        assert torch.equal(float_graph(Plain).module(x), exact)


def test_progress_counts_layers_over_all_batches() -> None:
    network, seen = calibrated(Plain, "w4a8"), []
    layer_sensitivity(
        network,
        float_graph(Plain).module,
        images(4),
        device=CPU,
        batch_size=2,
        progress=lambda done, total, text: seen.append((done, total, text)),
    )
    assert seen == [(n, 8, "measuring layers") for n in range(1, 9)]


def test_without_images_or_grids_it_says_what_is_missing() -> None:
    with pytest.raises(CalibrationError, match=r"no image to measure layers on. Give --calib-data"):
        measured(calibrated(Plain, "w4a8"), Plain, torch.zeros(0, *SHAPE))
    with pytest.raises(CalibrationError, match=r"no range yet. Calibrate first"):
        measured(quant_network(Plain, "w4a8"), Plain, images(2))
    with pytest.raises(CalibrationError, match=r"no scale yet. Calibrate first"):
        measured(quant_network(Plain, "w4a16"), Plain, images(2))


def test_logits_that_are_not_finite_name_the_layer() -> None:
    with pytest.raises(CalibrationError, match=r"stem/Conv: the logits are not finite with this"):
        measured(calibrated(Plain, "w4a16"), Plain, images(2) * float("inf"))
