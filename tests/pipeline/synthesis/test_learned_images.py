from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from synthesis_runs import run, small, synthesizer

from fdda_deploy.pipeline.network import StatisticsNetwork
from fdda_deploy.pipeline.synthesis.loop import even_parts
from fdda_deploy.pipeline.synthesis.objective import active_terms
from fdda_deploy.pipeline.synthesis.synthesizer import Synthesizer

LEARNED = ["zeroq", "dsg", "genie"]
LONG = {"zeroq": 40, "dsg": 40, "genie": 60}


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("name", LEARNED)
def test_statistics_come_closer_to_training_than_noise(tiny: StatisticsNetwork, name: str) -> None:
    # DSG stops within its slack, which noise sets: without it the aim is the statistics themselves.
    recipe = small(name, LONG[name], slack_quantile=0.0)
    result = run(tiny, recipe, None)
    assert sum(result.quality.bns_distance) < 0.5 * sum(result.noise_distance)
    first, last = result.history["total"][0], result.history["total"][LONG[name] - 1]
    assert last < 0.5 * first


@pytest.mark.parametrize("name", LEARNED)
def test_labels_are_what_the_network_predicts(tiny: StatisticsNetwork, name: str) -> None:
    result = run(tiny, small(name, 4), None)
    assert torch.equal(result.labels, tiny(result.images)[0].argmax(1))
    assert result.images.shape == (10, 3, 8, 8)


@pytest.mark.parametrize("name", LEARNED)
def test_same_seed_makes_identical_images(tiny: StatisticsNetwork, name: str) -> None:
    first, again = run(tiny, small(name, 5), None), run(tiny, small(name, 5), None)
    assert torch.equal(first.images, again.images)
    assert first.history == again.history
    assert not torch.equal(first.images, run(tiny, small(name, 5), None, seed=1).images)


def test_history_holds_the_terms_that_the_recipe_has(tiny: StatisticsNetwork) -> None:
    result = run(tiny, small("zeroq", 3), None)
    assert tuple(result.history) == ("step", "total", "bns_alignment")
    assert result.history["step"] == list(range(9)), "three batches of three steps in a row"
    assert result.steps == 9
    plain = small("zeroq", 3, tv_weight=0.1, ce_random_weight=0.5)
    assert active_terms(plain) == ("total", "cross_entropy_random", "bns_alignment", "image_prior")


@pytest.mark.parametrize("joint", [False, True], ids=["each batch", "joint statistics"])
@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("stop", [3, 9, 16, 23], ids=lambda step: f"killed at step {step}")
def test_killed_run_continues_to_the_same_images(
    tiny: StatisticsNetwork, tmp_path: Path, name: str, stop: int, *, joint: bool
) -> None:
    changes = {"joint_statistics": joint, "layer_enhancement": False, "flip": True, "shift_px": 1}
    recipe, checkpoint = small(name, 8, **changes), tmp_path / "generator.ckpt"
    whole = run(tiny, recipe, None)
    seen: list[int] = []

    def kill(done: int, _total: int, _text: str) -> None:
        seen.append(done)
        if done == stop:
            raise _KilledError

    with pytest.raises(_KilledError):
        run(tiny, recipe, None, checkpoint, progress=kill)
    resumed = run(tiny, recipe, None, checkpoint, progress=lambda d, _t, _s: seen.append(d))
    assert seen[stop] <= stop + 1
    assert stop < 2 or seen[stop] > 1, "it did not start over"
    assert torch.equal(whole.images, resumed.images)
    assert whole.history == resumed.history
    assert whole.steps == resumed.steps == 24


def test_a_lost_batch_is_made_again_with_all_after_it(
    tiny: StatisticsNetwork, tmp_path: Path
) -> None:
    recipe, checkpoint = small("zeroq", 4), tmp_path / "generator.ckpt"
    whole = run(tiny, recipe, None, checkpoint)
    parts = sorted(tmp_path.glob("generator.ckpt.batch*"))
    assert len(parts) == 3
    parts[0].write_bytes(b"PK\x03\x04 cut short")
    steps: list[int] = []
    again = run(tiny, recipe, None, checkpoint, progress=lambda d, _t, _s: steps.append(d))
    assert steps[0] == 1
    assert torch.equal(whole.images, again.images)


def test_diverging_batch_keeps_its_last_good_state_and_the_others_go_on(
    tiny: StatisticsNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_step = Synthesizer.step

    def poisoned(self: Synthesizer) -> object:
        if self.part == 1 and self.num_done == 4:
            with torch.no_grad():
                self.source.pixels.fill_(float("nan"))
        return real_step(self)

    monkeypatch.setattr(Synthesizer, "step", poisoned)
    result = run(tiny, small("zeroq", 6), None)
    assert result.diverged
    (warning,) = result.warnings
    assert warning.startswith("A batch of images diverged before step 5: training stopped, and the")
    assert warning.endswith("images come from step 4. A lower lr may help.")
    assert result.steps == 6 + 4 + 6
    assert bool(result.images.isfinite().all())
    assert all(math.isfinite(v) for curve in result.history.values() for v in curve)


def test_a_batch_depends_on_the_seed_and_its_place_alone(tiny: StatisticsNetwork) -> None:
    recipe = small("genie", 3)
    one, other = synthesizer(tiny, recipe, None), synthesizer(tiny, recipe, None)
    one.begin(0, range(4))
    one.step()
    for maker in (one, other):
        maker.begin(1, range(4, 8))
        maker.step()
    labels = torch.zeros(4, dtype=torch.int64)
    assert torch.equal(one.sample(labels), other.sample(labels))


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize("name", LEARNED)
def test_shortcuts_agree_with_the_plain_float32_loop(
    tiny: StatisticsNetwork, name: str, *, fast: bool
) -> None:
    losses = []
    for shortcut in (False, fast):
        maker = synthesizer(tiny, small(name, 400), None, fast=shortcut)
        losses.append([float(maker.step().losses["total"]) for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_learned_images_can_be_asked_for_a_class(tiny: StatisticsNetwork) -> None:
    recipe = small("zeroq", 60, ce_random_weight=1.0)
    result = run(tiny, recipe, None)
    assert result.labels.tolist() == [0, 1, 2] * 3 + [0]
    assert result.quality.top1 > 70


@pytest.mark.parametrize(
    ("num_images", "batch", "sizes"),
    [(10, 4, [3, 3, 4]), (8, 4, [4, 4]), (3, 128, [3]), (129, 128, [64, 65])],
)
def test_batches_of_a_set_are_alike_in_size(num_images: int, batch: int, sizes: list[int]) -> None:
    parts = even_parts(num_images, batch)
    assert [len(part) for part in parts] == sizes
    assert [index for part in parts for index in part] == list(range(num_images))
