"""Scale-Clip ends in ordinary scales, and gradients follow each weight's place on the grid."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from quant_networks import CPU, Plain, float_graph, quant_network
from quant_networks import images as random_images
from torch import Tensor, nn

from fdda_deploy.errors import ConfigError
from fdda_deploy.pipeline.quantization.calibrate import calibrate
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.fake_quant import WeightQuantizer
from fdda_deploy.pipeline.quantization.finetune import (
    FinetuneResult,
    FinetuneSettings,
    finetune,
    frozen_copy,
)
from fdda_deploy.pipeline.quantization.weight_reshaping import (
    WeightReshaper,
    clip_thresholds,
    position_scale,
    scale_clip,
)
from fdda_deploy.quant.affine import dequantize
from fdda_deploy.quant.qparams import QParams

SETTINGS = FinetuneSettings(num_steps=8, batch_size=8, lr=1e-5, augment="none")


def quantizer_of(qparams: QParams, shape: tuple[int, ...]) -> WeightQuantizer:
    quantizer = WeightQuantizer()
    quantizer.set_qparams(qparams, shape)
    return quantizer


def student() -> QuantNetwork:
    network = quant_network(Plain, "w3a4")
    calibrate(network, [random_images(32)])
    return network


def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3, 8, 8, generator=generator), torch.full((count,), -1)


def run(network: QuantNetwork, **changes: object) -> FinetuneResult:
    changed = dataclasses.replace(SETTINGS, **changes)  # type: ignore[arg-type]
    teacher, held_out = frozen_copy(float_graph(Plain).module), random_images(48, seed=7)
    return finetune(network, teacher, [draw], held_out, changed, device=CPU, seed=0)


def test_thresholds_are_k_times_the_mean_size_of_each_channel_or_block() -> None:
    weight = torch.tensor([[1.0, -3.0, 2.0, 2.0], [0.0, 0.5, -0.5, 1.0]])
    channels = QParams(np.ones(2, np.float32), -8, 7, 0)
    assert clip_thresholds(weight, channels, 2.0).tolist() == [4.0, 1.0]
    columns = QParams(np.ones(4, np.float32), -8, 7, 1)
    assert clip_thresholds(weight, columns, 2.0).tolist() == [1.0, 3.5, 2.5, 3.0]
    blocks = QParams(np.ones((2, 2), np.float32), -8, 7, 1, block_size=2)
    assert clip_thresholds(weight, blocks, 2.0).tolist() == [[4.0, 4.0], [0.5, 1.5]]


@pytest.mark.parametrize("block_size", [None, 4])
def test_a_clipped_weight_spans_its_new_grid_exactly(block_size: int | None) -> None:
    weight = nn.Parameter(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)))
    before = weight.detach().clone()
    scale = np.ones(6 if block_size is None else (6, 2), np.float32)
    qparams = QParams(scale, -8, 7, 0 if block_size is None else 1, block_size=block_size)
    quantizer = quantizer_of(qparams, (6, 8))
    threshold = clip_thresholds(weight.detach(), qparams, 1.5)
    scale_clip(weight, quantizer, 1.5)
    assert quantizer.qparams is not None
    assert quantizer.qparams.scale == pytest.approx(threshold.numpy() / 7, rel=1e-6)
    full = threshold[:, None] if block_size is None else threshold.repeat_interleave(4, dim=1)
    wanted = torch.minimum(torch.maximum(before, -full), full)
    assert torch.allclose(weight.detach(), wanted, rtol=1e-6)
    assert not torch.equal(weight.detach(), before)
    assert int((quantizer(weight) / quantizer.scale).abs().max().round()) == 7


def test_clipping_again_and_again_settles_above_zero() -> None:
    weight = nn.Parameter(torch.randn(4, 4000, generator=torch.Generator().manual_seed(1)))
    quantizer = quantizer_of(QParams(np.ones(4, np.float32), -8, 7, 0), (4, 4000))
    sizes = []
    for _ in range(60):
        scale_clip(weight, quantizer, 2.0)
        sizes.append(float(weight.detach().abs().max()))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == pytest.approx(sizes[-2], rel=1e-4)
    assert sizes[-1] > 1.0


def test_a_dead_channel_and_a_nan_are_left_as_they_are() -> None:
    weight = nn.Parameter(torch.zeros(2, 3))
    quantizer = quantizer_of(QParams(np.ones(2, np.float32), -8, 7, 0), (2, 3))
    scale_clip(weight, quantizer, 2.0)
    assert not weight.any()
    assert quantizer.scale.flatten().tolist() == pytest.approx([1 / 7] * 2)
    broken = nn.Parameter(torch.tensor([[float("nan"), 1.0, 2.0]] * 2))
    grid = quantizer.qparams
    scale_clip(broken, quantizer, 2.0)
    assert quantizer.qparams is grid
    assert broken.detach()[0, 1:].tolist() == [1.0, 2.0]


def test_fine_tuning_with_scale_clip_merges_into_the_scales() -> None:
    network = student()
    result = run(network, scale_clip=1.8, num_steps=40, lr=1e-3)
    assert result.kept
    for point in network.placement.weights:
        x_int, qparams = network.integer_weights()[point.initializer]
        weight, quantizer = network.weight(point), network.weight_quantizers[point.initializer]
        transposed = network.names.parameter_from_initializer[point.initializer][1]
        reshaped = quantizer(weight).detach().numpy()
        assert np.array_equal(dequantize(x_int, qparams), reshaped.T if transposed else reshaped)
        assert float(weight.detach().abs().max()) <= float(qparams.high.max()) * (1 + 1e-6)
        assert np.abs(x_int).max() == qparams.qmax
        assert (qparams.zero_point, qparams.scale.ndim) == (0, 1)


def test_scale_clip_that_harms_leaves_grids_and_weights_as_they_were() -> None:
    network = student()
    values = {name: value.detach().clone() for name, value in network.named_parameters()}
    scales = [network.weight_qparams(p).scale.tolist() for p in network.placement.weights]
    result = run(network, scale_clip=1.01, lr=1e3)
    assert not result.kept
    assert [network.weight_qparams(p).scale.tolist() for p in network.placement.weights] == scales
    assert all(torch.equal(values[n], value) for n, value in network.named_parameters())


@pytest.mark.parametrize("changes", [{}, {"scale_clip": 2.0}, {"psg": True}], ids=str)
def test_a_run_that_blows_up_stops_early_and_is_undone(changes: dict[str, object]) -> None:
    network = student()
    answer = network(random_images(4)).detach()
    result = run(network, lr=1e30, num_steps=120, **changes)
    assert not result.kept
    assert result.steps == 50
    assert all(np.isfinite(result.history["student_loss"]))
    assert torch.equal(network(random_images(4)).detach(), answer)


def test_the_position_scale_is_the_distance_in_half_steps_above_a_floor() -> None:
    quantizer = quantizer_of(QParams(np.float32([0.5, 2.0]), -8, 7, 0), (2, 3))
    weight = torch.tensor([[0.5, 0.625, 0.7499], [2.0, 2.5, 3.0 - 4e-4]])
    wanted = torch.tensor([[0.01, 0.505, 1.0], [0.01, 0.505, 1.0]])
    assert torch.allclose(position_scale(weight, quantizer), wanted, atol=1e-3)


def test_gradients_of_weights_alone_are_scaled() -> None:
    network = student().requires_grad_(True)
    network(random_images(4)).square().sum().backward()
    plain = {name: value.grad.clone() for name, value in network.named_parameters()}
    WeightReshaper(network, psg=True, clip=None).scale_gradients()
    weights = {id(network.weight(p)): p for p in network.placement.weights}
    for name, value in network.named_parameters():
        point = weights.get(id(value))
        factor = 1.0
        if point is not None:
            factor = position_scale(value, network.weight_quantizers[point.initializer])
        assert torch.equal(value.grad, plain[name] * factor)
    WeightReshaper(network, psg=False, clip=None).scale_gradients()
    assert len(weights) == 4


def test_position_scaling_changes_the_course_and_still_helps() -> None:
    plain, scaled = student(), student()
    assert run(plain, num_steps=40, lr=1e-3).kept
    result = run(scaled, psg=True, num_steps=40, lr=1e-3)
    assert result.kept
    assert result.after < 0.8 * result.before
    point = plain.placement.weights[0]
    assert not torch.equal(plain.weight(point), scaled.weight(point))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "kd"}, r"^finetune loss 'kd': want one of fdda, dkd\.$"),
        ({"trainable": "some"}, r"^finetune trainable 'some': want one of all, scales-and-biases"),
        ({"scale_clip": 1.0}, r"^finetune scale_clip 1\.0: want more than 1, for instance 2\.5"),
        ({"scale_clip": float("nan")}, r"^finetune scale_clip nan: want more than 1"),
        ({"trainable": "scales-and-biases", "psg": True}, "keeps the integer weights, which psg"),
        ({"trainable": "scales-and-biases", "scale_clip": 2.0}, "Leave both out, or train 'all'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SETTINGS, **changes)  # type: ignore[arg-type]
