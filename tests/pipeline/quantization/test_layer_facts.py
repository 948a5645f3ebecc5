"""The facts of a layer are what its tensors hold, and add up over batches."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from faulty_networks import Dead, Gated, Pair, Swish, calibrated
from quant_networks import CPU, ChannelsLast, Plain, Sequence, Shared, float_graph, images
from torch import Tensor, nn

from fdda_deploy.errors import CalibrationError
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.layer_facts import LayerFacts, layer_facts
from fdda_deploy.pipeline.quantization.layers import layer_errors


class Padded(nn.Module):
    """A swish behind which a zero pad and a dropout stand that ONNX absorbs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.next = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(F.dropout(F.silu(self.stem(x)), training=self.training), (1, 1, 1, 1))
        return self.head(F.relu(self.next(x)).mean((2, 3)))


def measured(
    kind: type[nn.Module], network: QuantNetwork, x: Tensor, batch_size: int = 8
) -> dict[str, LayerFacts]:
    module = float_graph(kind).module
    found = layer_facts(network, module, x, device=CPU, batch_size=batch_size)
    return {facts.node: facts for facts in found}


@pytest.mark.parametrize("kind", [Plain, Shared, ChannelsLast, Sequence, Padded])
@pytest.mark.parametrize("scheme", ["w3a4", "w4a16"])
def test_every_layer_is_measured_and_its_noise_is_the_report_s(
    kind: type[nn.Module], scheme: str
) -> None:
    x = images(8, seed=4)
    network = calibrated(kind, scheme)
    found = measured(kind, network, x)
    errors = layer_errors(network, float_graph(kind).module, x, CPU)
    assert {error.node for error in errors} == set(found)
    for error in errors:
        assert found[error.node].noise == pytest.approx(10 ** (-error.output_sqnr_db / 10), 1e-5)


def test_the_first_layer_s_noise_is_all_its_own() -> None:
    first = measured(Pair, calibrated(Pair, "w3a4"), images(16, seed=4))["stem/Conv"]
    assert first.arrived == 0
    assert first.own == pytest.approx(first.noise, rel=0.1)
    assert min(first.by_input, first.by_weight) > 0


def test_an_operand_in_float_makes_no_noise() -> None:
    for facts in measured(Pair, calibrated(Pair, "w4a16"), images(8)).values():
        assert (facts.tensor, facts.act_bits, facts.by_input, facts.scale) == (None, None, 0, 0)
        assert facts.by_weight > 0


def test_the_input_is_described_as_it_is() -> None:
    x = images(8, seed=4)
    facts = measured(Pair, calibrated(Pair, "w4a4", x), x)["stem/Conv"]
    values = x.abs().flatten()
    channels = x.abs().amax((0, 2, 3))
    assert facts.tensor == "input"
    assert (facts.weight_bits, facts.act_bits, facts.weights_a_channel) == (4, 4, 27)
    assert (facts.low, facts.high) == (float(x.min()), float(x.max()))
    assert facts.peak == float(values.max())
    assert facts.usual == pytest.approx(float(values.double().quantile(0.999)))
    assert facts.rms == pytest.approx(float(x.square().mean().sqrt()))
    assert facts.negative_share == pytest.approx(float((x < 0).float().mean()))
    assert (facts.channels, facts.out_channels) == (3, 16)
    assert facts.widest_channel == float(channels.max())
    assert facts.median_channel == float(channels.median())


def test_what_lies_beyond_the_grid_is_counted_with_its_error() -> None:
    x = images(8, seed=4)
    network = calibrated(Pair, "w8a8", x)
    quantizer = network.activation_quantizers["input"]
    assert quantizer.qparams is not None
    assert measured(Pair, network, x)["stem/Conv"].clipped_share == 0
    tight = dataclasses.replace(quantizer.qparams, scale=quantizer.qparams.scale / 4)
    quantizer.set_qparams(tight)
    steps = x / float(tight.scale)
    beyond = (steps > tight.qmax + 0.5) | (steps < tight.qmin - 0.5)
    facts = measured(Pair, network, x)["stem/Conv"]
    assert facts.clipped_share == pytest.approx(float(beyond.float().mean()))
    assert 0.9 < facts.clipping_noise <= 1


def test_batches_add_up() -> None:
    network, x = calibrated(Plain, "w3a4"), images(7, seed=4)
    one, other = measured(Plain, network, x, 7), measured(Plain, network, x, 2)
    for node, facts in one.items():
        for name, value in dataclasses.asdict(facts).items():
            again = getattr(other[node], name)
            assert again == (pytest.approx(value, 1e-4) if isinstance(value, float) else value)


@pytest.mark.parametrize(
    ("kind", "origin"), [(Pair, "other"), (Swish, "swish"), (Padded, "swish"), (Gated, "gate")]
)
def test_where_an_input_comes_from_is_seen_through_what_onnx_absorbs(
    kind: type[nn.Module], origin: str
) -> None:
    found = measured(kind, calibrated(kind, "w8a8"), images(4))
    assert found["next/Conv"].input_from == origin
    assert found["stem/Conv"].input_from == "other"


def test_silent_channels_are_counted() -> None:
    found = measured(Dead, calibrated(Dead, "w8a8"), images(16))
    assert (found["stem/Conv"].constant_channels, found["stem/Conv"].dead_channels) == (4, 5)
    assert found["head/Gemm"].dead_channels == 0


@pytest.mark.parametrize(("act", "dead"), [(nn.ReLU6, 5), (nn.Hardtanh, 4), (nn.SiLU, 4)])
def test_what_lies_below_zero_is_dead_behind_a_clip_at_zero_alone(
    act: type[nn.Module], dead: int
) -> None:
    clipped = type("Clipped", (Dead,), {"act": act()})
    found = measured(clipped, calibrated(clipped, "w8a8"), images(8))
    assert found["stem/Conv"].dead_channels == dead


def test_a_network_without_ranges_is_refused() -> None:
    network = calibrated(Pair, "w8a8")
    network.activation_quantizers["input"].qparams = None
    with pytest.raises(CalibrationError, match=r"^input: no range yet\. Calibrate first\.$"):
        measured(Pair, network, images(2))


def test_no_gradient_is_kept() -> None:
    with torch.enable_grad():
        network = calibrated(Pair, "w8a8")
        measured(Pair, network, images(2))
    assert all(parameter.grad is None for parameter in network.parameters())
