"""Fine-tuning: weights change only where held-out images gain."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from quant_networks import CPU, Plain, float_graph, quant_network
from quant_networks import images as random_images
from torch import Tensor, nn

from fdda_deploy.pipeline.quantization.calibrate import calibrate
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.distillation import distillation_loss
from fdda_deploy.pipeline.quantization.finetune import (
    Draw,
    FinetuneResult,
    FinetuneSettings,
    finetune,
    frozen_copy,
)
from fdda_deploy.pipeline.quantization.judge import Judge

SETTINGS = FinetuneSettings(num_steps=6, batch_size=8, lr=1e-5, augment="none")


def student() -> QuantNetwork:
    network = quant_network(Plain, "w3a4")
    calibrate(network, [random_images(32)])
    return network


def teacher() -> nn.Module:
    return frozen_copy(float_graph(Plain).module)


def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3, 8, 8, generator=generator), torch.full((count,), -1)


def run(network: QuantNetwork, changes: FinetuneSettings = SETTINGS, seed: int = 0, **more: object):
    draws: list[Draw] = more.pop("draws", [draw])  # type: ignore[assignment]
    return finetune(
        network, teacher(), draws, random_images(48, seed=7), changes, device=CPU, seed=seed, **more
    )


def weights_of(network: QuantNetwork) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def test_steps_that_help_are_kept_and_held_out_images_say_so() -> None:
    network = student()
    before = weights_of(network)
    result = run(network)
    assert result.kept
    assert result.after < result.before
    assert result.after == Judge(teacher(), random_images(48, seed=7), CPU)(network)
    assert any(not torch.equal(before[name], value) for name, value in weights_of(network).items())
    assert (result.steps, len(result.history["student_loss"])) == (6, 6)
    assert not any(value.requires_grad for value in network.parameters())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("lr", [10.0, 1e30], ids=["worse", "not finite"])
def test_steps_that_harm_are_undone_to_the_bit(lr: float, optimizer: str) -> None:
    network = student()
    before, answer = weights_of(network), network(random_images(4)).detach()
    result = run(network, dataclasses.replace(SETTINGS, lr=lr, optimizer=optimizer))
    assert not result.kept
    assert not result.after < result.before
    assert all(torch.equal(before[name], value) for name, value in weights_of(network).items())
    assert torch.equal(network(random_images(4)).detach(), answer)


def test_grids_stay_as_calibrated_and_the_teacher_as_trained() -> None:
    network, float_network = student(), teacher()
    grids = {name: float(q.scale) for name, q in network.activation_qparams().items()}
    scales = [network.weight_qparams(p).scale.tolist() for p in network.placement.weights]
    kept = {name: value.clone() for name, value in float_network.named_parameters()}
    finetune(
        network,
        float_network,
        [draw],
        random_images(8),
        SETTINGS,
        device=CPU,
        seed=0,
        progress=None,
    )
    assert {name: float(q.scale) for name, q in network.activation_qparams().items()} == grids
    assert [network.weight_qparams(p).scale.tolist() for p in network.placement.weights] == scales
    assert all(torch.equal(kept[n], value) for n, value in float_network.named_parameters())


def outcome(seed: int) -> tuple[FinetuneResult, dict[str, Tensor]]:
    network = student()
    augmenting = dataclasses.replace(SETTINGS, augment="crop-flip")
    return run(network, augmenting, seed=seed), weights_of(network)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    (first, one), (second, two), (_, three) = outcome(3), outcome(3), outcome(4)
    assert first == second
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], three[name]) for name in one)


def test_every_source_gives_its_batch_to_every_step() -> None:
    asked: list[tuple[str, int]] = []

    def source(name: str) -> Draw:
        def from_it(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            asked.append((name, count))
            return draw(count, generator)

        return from_it

    said: list[tuple[int, int]] = []
    run(
        student(),
        dataclasses.replace(SETTINGS, num_steps=2),
        draws=[source("real"), source("synthetic")],
        progress=lambda done, total, _text: said.append((done, total)),
    )
    assert asked == [("real", 8), ("synthetic", 8)] * 2
    assert said == [(1, 2), (2, 2)]


def test_long_histories_are_thinned() -> None:
    network = student()
    result = run(network, dataclasses.replace(SETTINGS, num_steps=401, batch_size=1, lr=1e-9))
    assert len(result.history["student_loss"]) == 201
    assert result.history_every == 2


def test_divergence_is_the_mean_over_images_whatever_the_batches() -> None:
    network, float_network, x = student(), teacher(), random_images(45)
    with torch.no_grad():
        wanted = float(distillation_loss(network(x), float_network(x), 1.0))
    assert Judge(float_network, x, CPU)(network) == pytest.approx(wanted, rel=1e-4)


def test_a_frozen_copy_is_its_own() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    frozen, kept = frozen_copy(module), copy.deepcopy(module.state_dict())
    with torch.no_grad():
        module[0].weight += 1
    assert torch.equal(frozen.state_dict()["0.weight"], kept["0.weight"])
    assert not frozen.training
    assert not any(value.requires_grad for value in frozen.parameters())
    assert module.training
    assert all(value.requires_grad for value in module.parameters())
