"""Scales and biases train while the integers stay, and the network ends as one that has both."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from quant_networks import CPU, ChannelsLast, Plain, Shared, float_graph, quant_network
from quant_networks import images as random_images
from torch import Tensor, nn

from fdda_deploy.pipeline.quantization.calibrate import calibrate
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.fake_quant import WeightQuantizer
from fdda_deploy.pipeline.quantization.finetune import (
    FinetuneResult,
    FinetuneSettings,
    finetune,
    frozen_copy,
)
from fdda_deploy.pipeline.quantization.fixed_integers import FixedIntegers, ScaledIntegers
from fdda_deploy.pipeline.quantization.judge import Judge
from fdda_deploy.quant.qparams import QParams

SETTINGS = FinetuneSettings(
    num_steps=40,
    batch_size=8,
    augment="none",
    trainable="scales-and-biases",
    scale_lr=3e-3,
    bias_lr=3e-3,
)
HELD_OUT = random_images(48, seed=7)


def student(kind: type[nn.Module] = Plain) -> QuantNetwork:
    network = quant_network(kind, "w3a4")
    calibrate(network, [random_images(32)])
    return network


def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3, 8, 8, generator=generator), torch.full((count,), -1)


def run(network: QuantNetwork, kind: type[nn.Module] = Plain, **changes: object) -> FinetuneResult:
    changed = dataclasses.replace(SETTINGS, **changes)  # type: ignore[arg-type]
    teacher = frozen_copy(float_graph(kind).module)
    return finetune(network, teacher, [draw], HELD_OUT, changed, device=CPU, seed=0)


@pytest.mark.parametrize("kind", [Plain, Shared, ChannelsLast])
def test_integers_stay_scales_and_biases_move_and_the_loss_falls(kind: type[nn.Module]) -> None:
    network = student(kind)
    before = network.integer_weights()
    floats = {name: value.copy() for name, value in network.float_parameters().items()}
    result = run(network, kind)
    assert result.kept
    assert result.after < 0.9 * result.before
    after = network.integer_weights()
    assert all(np.array_equal(before[name][0], after[name][0]) for name in before)
    assert any((before[name][1].scale != after[name][1].scale).any() for name in before)
    changed = [n for n, value in network.float_parameters().items() if (value != floats[n]).any()]
    assert len(changed) == len(floats)


def test_what_was_measured_is_what_is_left() -> None:
    network = student()
    result = run(network)
    teacher = frozen_copy(float_graph(Plain).module)
    assert Judge(teacher, HELD_OUT, CPU)(network) == pytest.approx(result.after, rel=1e-6)
    stand_ins = [m for m in network.modules() if isinstance(m, ScaledIntegers)]
    quantizers = [m for m in network.modules() if isinstance(m, WeightQuantizer)]
    assert (len(stand_ins), len(quantizers)) == (0, len(network.placement.weights))
    assert not any(value.requires_grad for value in network.parameters())


@pytest.mark.parametrize("rate", [10.0, 1e30], ids=["worse", "not finite"])
def test_steps_that_harm_are_undone_to_the_bit(rate: float) -> None:
    network = student()
    values = {name: value.detach().clone() for name, value in network.named_parameters()}
    answer = network(random_images(4)).detach()
    assert not run(network, scale_lr=rate, bias_lr=rate).kept
    assert values.keys() == dict(network.named_parameters()).keys()
    assert all(torch.equal(values[n], value) for n, value in network.named_parameters())
    assert torch.equal(network(random_images(4)).detach(), answer)


@pytest.mark.parametrize("frozen", ["scale_lr", "bias_lr"])
def test_each_rate_moves_its_own(frozen: str) -> None:
    network = student()
    scales = [network.weight_qparams(p).scale.copy() for p in network.placement.weights]
    biases = {name: value.copy() for name, value in network.float_parameters().items()}
    assert run(network, **{frozen: 0.0}).kept
    same_scales = all(
        np.allclose(old, network.weight_qparams(point).scale, rtol=1e-7)
        for old, point in zip(scales, network.placement.weights, strict=True)
    )
    found = network.float_parameters()
    same_biases = all((biases[name] == found[name]).all() for name in biases)
    assert (same_scales, same_biases) == (frozen == "scale_lr", frozen == "bias_lr")


def test_an_error_on_the_way_leaves_the_quantizers_in_place() -> None:
    network = student()

    def broken(_count: int, _generator: torch.Generator) -> tuple[Tensor, Tensor]:
        raise KeyboardInterrupt

    teacher = frozen_copy(float_graph(Plain).module)
    with pytest.raises(KeyboardInterrupt):
        finetune(network, teacher, [broken], HELD_OUT, SETTINGS, device=CPU, seed=0)
    assert not any(isinstance(module, ScaledIntegers) for module in network.modules())


def test_a_scale_learns_by_the_sum_over_its_integers() -> None:
    weight = nn.Parameter(torch.tensor([[1.0, -2.0, 3.0], [0.4, 0.8, 0.0]]))
    quantizer = WeightQuantizer()
    quantizer.set_qparams(QParams(np.float32([1.0, 0.2]), -8, 7, 0), (2, 3))
    stand_in = ScaledIntegers(weight, quantizer)
    assert torch.equal(stand_in(weight), quantizer(weight))
    pull = torch.tensor([[1.0, 1.0, 2.0], [1.0, -1.0, 5.0]])
    (stand_in(weight) * pull).sum().backward()
    assert stand_in.log_gain.grad is not None
    assert stand_in.log_gain.grad.tolist() == pytest.approx([5.0, -0.4], rel=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_share_their_scale(axis: int) -> None:
    weight = nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    scale = np.full((2, 4) if axis == 0 else (4, 2), 0.3, np.float32)
    quantizer = WeightQuantizer()
    quantizer.set_qparams(QParams(scale, -8, 7, axis, block_size=2), (4, 4))
    stand_in = ScaledIntegers(weight, quantizer)
    assert torch.equal(stand_in(weight), quantizer(weight))
    with torch.no_grad():
        stand_in.log_gain[0, 0] = np.log(2.0)
        grown = (stand_in(weight) / quantizer(weight)).nan_to_num(1.0)
    block = grown[:2, 0] if axis == 0 else grown[0, :2]
    assert block.tolist() == pytest.approx([2.0, 2.0])
    assert float(grown.sum()) == pytest.approx(18.0)


def test_every_bias_trains_once_and_nothing_else_that_is_float() -> None:
    network = quant_network(Plain, "w8a8")
    calibrate(network, [random_images(8)])
    names = list(network.float_parameters())
    fixed = FixedIntegers(network)
    assert fixed.biases == [network.graph_module.get_parameter(name) for name in names]
    fixed.remove()
