"""Settling ties: a common value on a knife's edge is moved off it, and nothing else is touched."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from quant_networks import CPU, Plain, images, quant_network
from torch import Tensor

from fdda_deploy.pipeline.quantization.calibrate import calibrate
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.fake_quant import ActivationQuantizer
from fdda_deploy.pipeline.quantization.ties import NUDGE, NUM_CANDIDATES, settle_ties


def flat_images(count: int) -> Tensor:
    """Images of few colours, as skies and white backgrounds are: the same sums at most pixels."""
    return images(count)[:, :, :1, :1].expand(-1, -1, 8, 8).contiguous()


def calibrated(scheme: str, batch: Tensor) -> QuantNetwork:
    network = quant_network(Plain, scheme)
    calibrate(network, [batch], observer="minmax")
    return network


def input_of(network: QuantNetwork, quantizer: ActivationQuantizer, batch: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = quantizer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        network(batch)
    handle.remove()
    return seen[0]


def put_on_a_tie(network: QuantNetwork, batch: Tensor) -> ActivationQuantizer:
    """Moves one scale so that the most common positive value rounds on the edge of 6.5 steps."""
    narrow = [p.name for p in network.placement.activations if p.row == "weighted-input"]
    quantizer = network.activation_quantizers[narrow[2]]
    x = input_of(network, quantizer, batch)
    values, counts = torch.unique(x[x > 0.1], return_counts=True)
    common = float(values[counts.argmax()])
    assert quantizer.qparams is not None
    scale = np.asarray(common / 6.5, np.float32)
    quantizer.set_qparams(dataclasses.replace(quantizer.qparams, scale=scale))
    return quantizer


def flips(network: QuantNetwork, quantizer: ActivationQuantizer, batch: Tensor) -> int:
    """How many integers change when sums are added up in another order, give or take one ulp."""
    x = input_of(network, quantizer, batch)
    up, down = x * (1 + 2.0**-22), x * (1 - 2.0**-22)
    return int((quantizer(up) != quantizer(down)).sum())


def test_common_value_on_a_tie_is_moved_off_it():
    batch = flat_images(32)
    network = calibrated("w4a4", batch)
    quantizer = put_on_a_tie(network, batch)
    before = quantizer.qparams
    assert flips(network, quantizer, batch) >= 8
    assert settle_ties(network, batch, CPU) >= 1
    assert flips(network, quantizer, batch) == 0
    assert before is not None
    assert quantizer.qparams is not None
    growth = float(quantizer.qparams.scale) / float(before.scale)
    assert 1 < growth <= 1 + NUM_CANDIDATES * NUDGE
    assert (quantizer.qparams.qmin, quantizer.qparams.qmax) == (before.qmin, before.qmax)
    assert quantizer.scale.item() == quantizer.qparams.scale


def test_settled_network_is_left_alone():
    batch = flat_images(32)
    network = calibrated("w4a4", batch)
    put_on_a_tie(network, batch)
    settle_ties(network, batch, CPU)
    settled = network.activation_qparams()
    assert settle_ties(network, batch, CPU) == 0
    assert network.activation_qparams() == settled


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w4a16"])
def test_eight_bits_and_floats_keep_their_scales(scheme):
    batch = flat_images(8)
    network = calibrated(scheme, batch)
    before = network.activation_qparams()
    assert settle_ties(network, batch, CPU) == 0
    assert all(network.activation_qparams()[name] is grid for name, grid in before.items())


def test_weights_and_biases_are_not_touched():
    batch = flat_images(8)
    network = calibrated("w4a4", batch)
    put_on_a_tie(network, batch)
    before = {name: value.clone() for name, value in network.named_parameters()}
    settle_ties(network, batch, CPU)
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())
