from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from synthesis_runs import CPU, SHAPE, run, small, synthesizer
from torch import nn

from fdda_deploy.errors import ConfigError, ModelError
from fdda_deploy.pipeline.network import StatisticsNetwork, statistics_network, trace
from fdda_deploy.pipeline.synthesis.centers import ClassCenters
from fdda_deploy.pipeline.synthesis.objective import TERMS
from fdda_deploy.pipeline.synthesis.recipes import recipe_named
from fdda_deploy.pipeline.synthesis.statistics import batch_statistics
from fdda_deploy.pipeline.synthesis.synthesize import (
    Synthesizer,
    SyntheticImages,
    autocast_pays,
    balanced_labels,
    synthesize,
)


def test_step_makes_both_batches_and_reports_every_term(
    tiny: StatisticsNetwork, centers: ClassCenters
) -> None:
    record = synthesizer(tiny, small("fdda", 400), centers).step()
    assert record.images.shape == (11, *SHAPE)
    assert not record.images.requires_grad
    assert tuple(record.losses) == TERMS
    assert record.labels[6:].tolist() == [record.class_index] * 5
    assert all(math.isfinite(value) for value in record.losses.values())


def test_classes_are_gated_from_the_gate_epoch_on(
    tiny: StatisticsNetwork, centers: ClassCenters
) -> None:
    without_two = dataclasses.replace(centers, counts=torch.tensor([1, 1, 0]))
    recipe = small("fdda", 120)
    recipe = dataclasses.replace(recipe, gate_epoch=30)
    maker = synthesizer(tiny, recipe, without_two)
    drawn = [maker.step() for _ in range(60)]
    before, after = ({r.class_index for r in part} for part in (drawn[:30], drawn[30:]))
    assert before == {0, 1}, "all classes that have an image"
    assert after == {0}, "only those that the network gets right"
    fallback = [float(r.losses["bns_centralized"]) == 0 for r in drawn if r.class_index == 1]
    assert fallback
    assert all(fallback)


def test_no_correct_class_leaves_the_random_batch_alone(
    tiny: StatisticsNetwork, centers: ClassCenters
) -> None:
    none_right = dataclasses.replace(centers, correct=torch.zeros(3, dtype=torch.bool))
    recipe = dataclasses.replace(small("fdda", 20), gate_epoch=0)
    record = synthesizer(tiny, recipe, none_right).step()
    assert record.class_index is None
    assert len(record.images) == recipe.random_batch
    assert any("no class's calibration images" in w for w in run(tiny, recipe, none_right).warnings)


def test_learning_rate_follows_the_schedule(tiny: StatisticsNetwork) -> None:
    maker = synthesizer(tiny, small("gdfq", 8), None)
    rates = []
    for _ in range(8):
        maker.step()
        rates.append(maker.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-3] * 2 + [1e-4] * 2 + [1e-5] * 2 + [1e-6] * 2)


@pytest.mark.parametrize("name", ["fdda", "fdda-paper", "gdfq"])
def test_same_seed_makes_identical_images(
    tiny: StatisticsNetwork, centers: ClassCenters, name: str
) -> None:
    first = run(tiny, small(name, 6), centers)
    torch.rand(17)  # the process's own random state must not matter
    again, other = run(tiny, small(name, 6), centers), run(tiny, small(name, 6), centers, seed=1)
    assert torch.equal(first.images, again.images)
    assert first.history == again.history
    assert not torch.equal(first.images, other.images)


def test_building_a_synthesizer_leaves_the_global_random_state_alone(
    tiny: StatisticsNetwork,
) -> None:
    before = torch.get_rng_state()
    synthesizer(tiny, small("gdfq", 2), None).step()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ["fdda", "fdda-paper", "gdfq"])
def test_training_halves_the_statistics_loss_in_sixty_steps(
    tiny: StatisticsNetwork, centers: ClassCenters, name: str
) -> None:
    right = dataclasses.replace(centers, correct=torch.ones(3, dtype=torch.bool))
    maker = synthesizer(tiny, recipe_named(name), right)
    losses = [float(maker.step().losses["bns_alignment"]) for _ in range(60)]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_trained_images_look_more_like_their_class_and_like_training_data(
    tiny: StatisticsNetwork,
) -> None:
    def judged(num_steps: int) -> SyntheticImages:
        recipe = small("gdfq", num_steps, lr=5e-3)
        return synthesize(
            tiny,
            dataclasses.replace(recipe, lr_milestones=(), random_batch=16),
            image_shape=SHAPE,
            num_classes=3,
            centers=None,
            num_images=90,
            device=CPU,
            seed=0,
        )

    untrained, trained = judged(1), judged(100)
    assert untrained.quality.top1 < 50
    assert trained.quality.top1 > 70
    assert sum(trained.quality.bns_distance) < 0.5 * sum(untrained.quality.bns_distance)


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize("autocast", [True, False], ids=["bfloat16", "float32"])
def test_shortcuts_agree_with_the_plain_float32_step(
    tiny: StatisticsNetwork, centers: ClassCenters, *, autocast: bool, fast: bool
) -> None:
    """2 % in bfloat16 (8 bits of mantissa through some ten layers), 0.01 % for the fused form."""
    recipe = small("fdda", 400)
    plain = synthesizer(tiny, recipe, centers, fast=False).step().losses
    fast = synthesizer(tiny, recipe, centers, autocast=autocast, fast=fast).step().losses
    for key in TERMS:
        assert float(fast[key]) == pytest.approx(float(plain[key]), rel=2e-2 if autocast else 1e-4)


def test_autocast_is_chosen_by_the_device() -> None:
    assert autocast_pays(torch.device("cuda"))
    assert not autocast_pays(torch.device("meta"))


def test_result_says_what_it_is(tiny: StatisticsNetwork, centers: ClassCenters) -> None:
    result = run(tiny, small("fdda", 6), centers)
    assert result.images.shape == (10, *SHAPE)
    assert (result.images.dtype, result.labels.dtype) == (torch.float32, torch.int64)
    assert (result.steps, result.diverged, result.warnings) == (6, False, ())
    assert result.history["step"] == [0, 1, 2, 3, 4, 5]
    assert {len(curve) for curve in result.history.values()} == {6}
    assert len(result.quality.bns_distance) == len(tiny.layers)
    _, bn_inputs = tiny(result.images)
    mean, variance = batch_statistics(bn_inputs[1])
    layer = tiny.layers[1]
    gap = (mean - layer.running_mean).square().mean() + (
        variance - layer.running_var
    ).square().mean()
    assert result.quality.bns_distance[1] == pytest.approx(float(gap), rel=1e-3)


def test_long_history_is_thinned(tiny: StatisticsNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fdda_deploy.pipeline.synthesis.loop.HISTORY_POINTS", 5)
    result = run(tiny, small("gdfq", 20), None)
    assert result.history["step"] == [0, 4, 8, 12, 16]


@pytest.mark.parametrize(
    ("num_images", "labels"),
    [(7, [0, 1, 2, 3, 0, 1, 2]), (2, [0, 2]), (8, [0, 1, 2, 3] * 2), (0, [])],
)
def test_labels_are_spread_evenly(num_images: int, labels: list[int]) -> None:
    assert balanced_labels(num_images, 4).tolist() == labels


def test_image_of_a_sample_does_not_depend_on_its_neighbours(tiny: StatisticsNetwork) -> None:
    makers = [synthesizer(tiny, small("gdfq", 5), None) for _ in range(2)]
    for maker in makers:
        maker.step()
    one = makers[0].sample(torch.tensor([2, 0, 1]))
    other = makers[1].sample(torch.tensor([2, 1, 1]))
    torch.testing.assert_close(one[[0, 2]], other[[0, 2]])
    assert not torch.allclose(one[1], other[1])


def test_divergence_stops_at_the_last_good_state(
    tiny: StatisticsNetwork, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real_step = Synthesizer.step
    weights: list[torch.Tensor] = []

    def poisoned(self: Synthesizer) -> object:
        record = real_step(self)
        if self.num_done == 20:
            weights[:] = [
                self.source.generator.linear.weight,
                self.source.generator.linear.weight.clone(),
            ]
        if self.num_done == 30:
            with torch.no_grad():
                self.source.generator.linear.weight.fill_(float("nan"))
        return record

    monkeypatch.setattr(Synthesizer, "step", poisoned)
    result = run(tiny, small("gdfq", 400), None, tmp_path / "generator.pt")
    assert result.diverged
    assert result.steps == 20, "losses are read every 20 steps of 400"
    assert torch.equal(*weights), "the generator is the one of step 20 again"
    assert "diverged before step 40" in result.warnings[0]
    assert bool(result.images.isfinite().all())
    assert all(math.isfinite(v) for curve in result.history.values() for v in curve)


def test_missing_classes_are_named_in_a_warning(
    tiny: StatisticsNetwork, centers: ClassCenters
) -> None:
    partly = dataclasses.replace(centers, counts=torch.tensor([1, 0, 1]))
    (warning,) = run(tiny, small("fdda", 2), partly).warnings
    assert "1 of 3 classes have no calibration image (1)" in warning


def test_untrained_network_is_a_warning() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    network = statistics_network(trace(module, SHAPE))
    (warning,) = run(network, small("gdfq", 2), None).warnings
    assert "the network was never trained" in warning


def test_fdda_without_centers_names_both_ways_out(tiny: StatisticsNetwork) -> None:
    with pytest.raises(ConfigError, match="--calib-data DIR, or --recipe genie"):
        synthesizer(tiny, small("fdda", 2), None)


def test_network_without_batch_norm_cannot_be_synthesized_from() -> None:
    network = statistics_network(trace(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), SHAPE))
    with pytest.raises(ModelError, match="has no BatchNorm layer"):
        run(network, small("gdfq", 2), None)
