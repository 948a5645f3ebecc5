"""A network with exactly one fault is told which, where, and what helps; a sound one nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from faulty_networks import (
    ByHand,
    Cancelling,
    Dead,
    Gated,
    Narrow,
    Pair,
    Swish,
    Uneven,
    calibrated,
    diagnosed,
    healthy,
    spiked,
    with_coarse_stem,
    with_wide_input,
)
from quant_networks import CPU, Plain, float_graph, images
from torch import nn

from fdda_deploy.errors import CalibrationError
from fdda_deploy.pipeline.quantization.causes import causes_of
from fdda_deploy.pipeline.quantization.diagnosis import (
    MOST_FINDINGS,
    SOUND_DB,
    Finding,
    diagnose,
    select,
    worst_layers,
)
from fdda_deploy.pipeline.quantization.layers import LayerError

NO_FAULT = {"accumulated", "coarse grid"}


def faults(findings: list[Finding]) -> list[tuple[str, str, str]]:
    """Returns (node, tensor, cause) of what is wrong with a tensor."""
    return [(f.node, f.tensor, f.cause) for f in findings if f.cause not in NO_FAULT]


@pytest.mark.parametrize("kind", [Pair, Plain, Gated, Swish])
def test_at_eight_bits_nothing_is_wrong(kind: type[nn.Module]) -> None:
    assert diagnosed(kind, calibrated(kind, "w8a8")) == []


@pytest.mark.parametrize("scheme", ["w3a8", "w8a3", "w3a3"])
def test_few_bits_alone_are_no_fault_of_a_tensor(scheme: str) -> None:
    found = diagnosed(Pair, calibrated(Pair, scheme))
    assert found
    assert faults(found) == []


def test_outliers_are_named_at_the_tensor_that_has_them() -> None:
    x = spiked()
    found = diagnosed(Pair, calibrated(Pair, "w8a4", x), x)
    assert faults(found)[0] == ("stem/Conv", "input", "range outliers")
    assert found[0].option.startswith("--observer percentile or entropy, or --effort fast")
    assert "times the 99.9th percentile" in found[0].evidence


def test_channels_of_unequal_range_are_named_with_what_is_lost() -> None:
    found = diagnosed(Uneven, calibrated(Uneven, "w8a4"))
    assert ("next/Conv", "Relu_output", "uneven channels") in faults(found)
    (one,) = [f for f in found if f.cause == "uneven channels"]
    assert "widest of 16 channels" in one.evidence
    assert "--effort fast" in one.option


def test_what_was_done_already_is_not_advised_again() -> None:
    found = diagnosed(Uneven, calibrated(Uneven, "w8a4"), effort="fast")
    (one,) = [f for f in found if f.cause == "uneven channels"]
    assert one.option == "--act-bits 8, or --max-drop (8 bits for this layer)"


@pytest.mark.parametrize("kind", [Swish, ByHand])
def test_the_lobe_of_a_swish_is_named_however_it_is_written(kind: type[nn.Module]) -> None:
    found = diagnosed(kind, calibrated(kind, "w8a3"))
    assert [cause for node, _, cause in faults(found) if node == "next/Conv"] == [
        "skewed range behind a swish"
    ]
    (one,) = [f for f in found if f.cause == "skewed range behind a swish"]
    assert "of its values lie below 0" in one.evidence
    assert one.option.startswith("--act-bits 8")


def test_a_gate_is_named_at_the_layer_behind_it() -> None:
    found = diagnosed(Gated, with_wide_input(calibrated(Gated, "w8a3")))
    assert [(node, cause) for node, _, cause in faults(found)] == [
        ("next/Conv", "skewed range behind a gate")
    ]


def test_a_grid_that_is_too_tight_is_named() -> None:
    network = calibrated(Pair, "w8a8")
    quantizer = network.activation_quantizers["Relu_output"]
    assert quantizer.qparams is not None
    tight = dataclasses.replace(quantizer.qparams, scale=quantizer.qparams.scale * np.float32(0.3))
    quantizer.set_qparams(tight)
    assert faults(diagnosed(Pair, network)) == [("next/Conv", "Relu_output", "clipping")]


def test_tiny_filters_are_named_below_eight_bits_alone() -> None:
    found = diagnosed(Narrow, calibrated(Narrow, "w2a8"))
    assert ("deep/Conv", "deep.weight", "tiny depthwise filters") in faults(found)
    assert diagnosed(Narrow, calibrated(Narrow, "w8a8")) == []


def test_dead_channels_are_counted_by_kind() -> None:
    found = diagnosed(Dead, calibrated(Dead, "w2a8"))
    assert faults(found) == [("stem/Conv", "stem.weight", "dead channels")]
    (one,) = [f for f in found if f.cause == "dead channels"]
    assert "5 of 16 output channels" in one.evidence
    assert "4 never change" in one.evidence
    assert "1 never pass the ReLU" in one.evidence


def test_noise_that_a_layer_was_given_is_told_from_noise_that_it_makes() -> None:
    (one,) = diagnosed(Cancelling, with_coarse_stem(calibrated(Cancelling, "w8a8")))
    assert (one.node, one.cause) == ("next/Conv", "accumulated")
    assert one.input_sqnr_db > SOUND_DB > one.output_sqnr_db


def test_the_loudest_entry_comes_first_and_the_noisiest_layer_is_always_explained() -> None:
    given = dataclasses.replace(healthy(), node="given", by_input=0.001, by_weight=0.001)
    entry = dataclasses.replace(healthy(), node="entry", by_input=0.03)
    small = dataclasses.replace(healthy(), node="small", by_weight=0.0)
    passes = dataclasses.replace(given, node="passes")
    sqnr = {"given": 10.6, "entry": 12.0, "small": 14.0, "passes": 15.0, "absent": 3.0}
    layers = [given, small, entry, passes, dataclasses.replace(healthy(), node="unknown")]
    assert [each.node for each in worst_layers(layers, sqnr)] == ["entry", "small", "given"]
    sqnr |= {"given": 13.0}
    assert [each.node for each in worst_layers(layers, sqnr)] == ["entry", "small"]
    assert worst_layers(layers, dict.fromkeys(sqnr, SOUND_DB)) == []


def test_every_layer_has_its_say_before_any_has_a_second() -> None:
    double = dataclasses.replace(healthy(), dead_channels=32, constant_channels=32)
    layers = [dataclasses.replace(double, node=str(index)) for index in range(6)]
    found = [(layer.node, cause.name) for layer, cause in select(layers, "none")]
    assert len(causes_of(double, "none")) == 2
    assert len(found) == MOST_FINDINGS
    assert [node for node, _ in found] == ["0", "0", "1", "1", "2", "3", "4", "5"]
    assert len(select(layers * 3, "none")) == MOST_FINDINGS


def test_no_image_is_said_so() -> None:
    network, module = calibrated(Pair, "w3a8"), float_graph(Pair).module
    errors = [LayerError("stem/Conv", 9.0, 9.0)]
    with pytest.raises(CalibrationError, match=r"^no image to diagnose layers on\. Give --calib"):
        diagnose(network, module, images(0), errors, device=CPU, effort="fast")


def test_the_network_is_left_as_it_was() -> None:
    network = calibrated(Pair, "w3a4")
    x = images(8, seed=5)
    before = network(x)
    diagnosed(Pair, network)
    assert torch.equal(network(x), before)
