"""Class activation maps: what they are made of, alike for twins, part of the student's loss."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from quant_networks import CPU, Plain, Shared, float_graph, images, quant_network
from torch import Tensor, fx, nn

from fdda_deploy.errors import ConfigError
from fdda_deploy.pipeline.quantization.activation_maps import class_maps, map_loss, with_features
from fdda_deploy.pipeline.quantization.calibrate import calibrate
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.finetune import FinetuneSettings, finetune, frozen_copy
from fdda_deploy.pipeline.quantization.student_objective import student_objective

SETTINGS = FinetuneSettings(num_steps=2, batch_size=4, lr=1e-4, augment="none", cam_weight=3.0)
LABELS = torch.tensor([0, 4, -1, 2])


def student(scheme: str = "w3a4") -> QuantNetwork:
    network = quant_network(Plain, scheme)
    calibrate(network, [images(16)])
    return network


def teacher() -> fx.GraphModule:
    module = frozen_copy(float_graph(Plain).module)
    assert isinstance(module, fx.GraphModule)
    return module


@pytest.mark.parametrize("network", [Plain, Shared], ids=lambda kind: kind.__name__)
def test_the_mean_of_a_map_is_the_logit_less_the_bias(network: type[nn.Module]) -> None:
    module = float_graph(network).module
    logits, features, weight = with_features(module, "it")(images(4))
    bias = next(value for value in module.parameters() if value.shape == (5,))
    classes = torch.tensor([0, 1, 4, 4])
    means = class_maps(features, weight, classes).mean((1, 2))
    torch.testing.assert_close(means, (logits - bias)[torch.arange(4), classes])


def test_the_quantized_networks_maps_are_of_its_quantized_values() -> None:
    network = student()
    logits, features, weight = with_features(network.graph_module, "it")(images(4))
    torch.testing.assert_close(logits, network(images(4)))
    assert features.shape == (4, 8, 8, 8)
    head = network.placement.weights[-1]
    quantizer = network.weight_quantizers[head.initializer]
    assert torch.equal(weight, quantizer(network.weight(head)))
    assert not torch.equal(weight, network.weight(head))


def test_twins_have_no_distance_and_the_measure_does_not_depend_on_scale() -> None:
    ours, theirs = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    assert float(map_loss(ours, ours)) == 0
    assert float(map_loss(7 * ours, 7 * theirs)) == pytest.approx(float(map_loss(ours, theirs)))
    wanted = ((ours - theirs) ** 2).mean((1, 2)) / (theirs**2).mean((1, 2))
    assert float(map_loss(ours, theirs)) == pytest.approx(float(wanted.mean()))
    assert torch.isfinite(map_loss(ours, torch.zeros_like(theirs)))


def test_the_students_loss_has_the_maps_distance_with_its_weight() -> None:
    network, theirs, x = student(), teacher(), images(4)
    plain = dataclasses.replace(SETTINGS, cam_weight=0.0)
    losses = [
        float(student_objective(network, theirs, settings)(x, LABELS, (0.5, 0.25)).detach())
        for settings in (SETTINGS, plain)
    ]
    target, features, weight = with_features(theirs, "it")(x)
    classes = torch.where(LABELS >= 0, LABELS, target.argmax(1))
    _, own_features, own_weight = with_features(network.graph_module, "it")(x)
    wanted = class_maps(features, weight, classes), class_maps(own_features, own_weight, classes)
    apart = float(map_loss(wanted[1], wanted[0]).detach())
    assert apart > 0
    assert losses[0] - losses[1] == pytest.approx(3.0 * 0.5 * apart, rel=1e-3)


@pytest.mark.parametrize("trainable", ["all", "scales-and-biases"])
def test_fine_tuning_brings_the_maps_closer(trainable: str) -> None:
    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        picked = torch.randint(32, (count,), generator=generator)
        return images(32)[picked], torch.full((count,), -1)

    def apart() -> float:
        x = images(32)
        target, features, weight = with_features(teacher(), "it")(x)
        _, ours, own = with_features(network.graph_module, "it")(x)
        classes = target.argmax(1)
        maps = class_maps(ours, own, classes), class_maps(features, weight, classes)
        return float(map_loss(*maps).detach())

    network = student()
    before = apart()
    settings = dataclasses.replace(
        SETTINGS, num_steps=8, cam_weight=1e3, lr=1e-5, trainable=trainable
    )
    result = finetune(network, teacher(), [draw], images(32), settings, device=CPU, seed=0)
    assert result.kept
    assert apart() < before


def test_a_network_without_pooling_and_a_linear_end_is_refused() -> None:
    module = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))
    with pytest.raises(ConfigError, match=r"student_cam_weight needs a network that ends in .*= 0"):
        with_features(module, "net")
    with pytest.raises(ConfigError, match="needs a traced teacher"):
        student_objective(student(), nn.Identity(), SETTINGS)
