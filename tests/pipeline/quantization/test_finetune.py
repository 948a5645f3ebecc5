"""Fine-tuning: the loss is the paper's, and weights change only where held-out images gain."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_networks import CPU, Plain, float_graph, quant_network
from quant_networks import images as random_images
from torch import Tensor, nn

from fdda_deploy.pipeline.quantization.calibrate import calibrate
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.finetune import (
    Draw,
    FinetuneResult,
    FinetuneSettings,
    augmented,
    distillation_loss,
    divergence,
    finetune,
    frozen_copy,
    student_loss,
)

SETTINGS = FinetuneSettings(num_steps=6, batch_size=8, lr=1e-5, augment="none")


def logits(seed: int, count: int = 7, classes: int = 5) -> Tensor:
    return 6 * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))


def log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


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


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_distillation_loss_equals_numpy(temperature: float) -> None:
    ours, theirs = logits(1).double().numpy(), logits(2).double().numpy()
    log_p, log_q = log_softmax(theirs / temperature), log_softmax(ours / temperature)
    wanted = (np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()
    found = distillation_loss(logits(1), logits(2), temperature)
    assert float(found) == pytest.approx(wanted, rel=1e-4)


def test_distillation_loss_is_zero_for_twins_only_and_ignores_offsets() -> None:
    assert float(distillation_loss(logits(1), logits(1) + 3, 20.0)) == pytest.approx(0, abs=1e-6)
    assert float(distillation_loss(logits(1), logits(2), 20.0)) > 1e-3


def test_student_loss_is_the_papers_sum() -> None:
    ours, theirs, labels = logits(1), logits(2), torch.tensor([0, 4, 2, 1, 0, 3, 3])
    cross_entropy = -log_softmax(ours.double().numpy())[np.arange(7), labels.numpy()].mean()
    wanted = cross_entropy + 20 * 20**2 * float(distillation_loss(ours, theirs, 20.0))
    assert float(student_loss(ours, theirs, labels, SETTINGS)) == pytest.approx(wanted, rel=1e-4)


def test_images_of_unknown_class_count_in_the_distillation_alone() -> None:
    ours, theirs = logits(1), logits(2)
    unknown = torch.full((7,), -1)
    distilled = 20 * 20**2 * float(distillation_loss(ours, theirs, 20.0))
    assert float(student_loss(ours, theirs, unknown, SETTINGS)) == pytest.approx(distilled)
    some = torch.tensor([-1, 4, -1, -1, 0, -1, -1])
    cross_entropy = -log_softmax(ours.double().numpy())[[1, 4], [4, 0]].mean()
    assert float(student_loss(ours, theirs, some, SETTINGS)) == pytest.approx(
        distilled + cross_entropy, rel=1e-4
    )


def test_steps_that_help_are_kept_and_held_out_images_say_so() -> None:
    network = student()
    before = weights_of(network)
    result = run(network)
    assert result.kept
    assert result.after < result.before
    assert result.after == divergence(network, teacher(), random_images(48, seed=7), CPU)
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
    assert divergence(network, float_network, x, CPU) == pytest.approx(wanted, rel=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["crop-flip", "crop"]),
    st.floats(0.05, 1.0),
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(2, 9), st.integers(2, 9)),
    st.integers(0, 2**31),
)
def test_augmented_images_keep_shape_and_range_and_follow_the_seed(
    mode: str, min_crop: float, shape: tuple[int, ...], seed: int
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    one, two = (augmented(x, torch.Generator().manual_seed(seed), mode, min_crop) for _ in "12")
    assert one.shape == x.shape
    assert torch.equal(one, two)
    assert float(one.min()) >= float(x.min()) - 1e-5
    assert float(one.max()) <= float(x.max()) + 1e-5


def test_a_full_crop_is_the_image_or_its_mirror_image() -> None:
    x = random_images(64)
    whole = augmented(x, torch.Generator().manual_seed(0), "crop", 1.0)
    assert torch.allclose(whole, x, atol=1e-5)
    flipped = augmented(x, torch.Generator().manual_seed(0), "crop-flip", 1.0)
    same = torch.isclose(flipped, x, atol=1e-5).flatten(1).all(1)
    mirrored = torch.isclose(flipped, x.flip(3), atol=1e-5).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 16 < int(mirrored.sum()) < 48


def test_without_augmentation_images_are_left_alone() -> None:
    x = random_images(2)
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert augmented(x, generator, "none", 0.6) is x
    assert torch.equal(generator.get_state(), state)


def test_a_crop_keeps_at_least_the_share_it_is_told() -> None:
    ramp = torch.linspace(0, 1, 64).expand(1, 1, 64, 64).repeat(200, 1, 1, 1)
    cropped = augmented(ramp, torch.Generator().manual_seed(0), "crop", 0.6)
    width = (cropped[:, 0, 0, -1] - cropped[:, 0, 0, 0]).numpy()
    assert 0.57 < width.min() < 0.65
    assert 0.95 < width.max() <= 1.0


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
