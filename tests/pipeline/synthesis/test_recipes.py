from __future__ import annotations

import dataclasses
import re

import pytest

from fdda_deploy.errors import ConfigError
from fdda_deploy.pipeline.synthesis.recipes import RECIPES, Recipe, recipe_named
from fdda_deploy.pipeline.synthesis.schedules import SHORT_RUN, describe_schedule, reduced

PUBLISHED = {
    "ce_random_weight": 0.5,
    "ce_class_weight": 0.5,
    "alignment_weight": 0.2,
    "distorted_weight": 0.9,
    "centralized_weight": 0.01,
    "fallback_factor": 2.0,
    "noise": "absolute",
    "sigma_mean": 0.5,
    "sigma_variance": 1.0,
    "clamp_variance": False,
    "random_batch": 16,
    "class_batch": 16,
    "num_epochs": 400,
    "steps_per_epoch": 200,
    "warmup_epochs": 50,
    "gate_epoch": 5,
    "lr": 1e-3,
    "betas": (0.5, 0.999),
    "lr_milestones": (100, 200, 300),
    "lr_gamma": 0.1,
    "latent_dim": 100,
    "uses_centers": True,
    "interleave_finetune": True,
    "student_batch": 16,
    "student_lr": 1e-6,
    "student_momentum": 0.9,
    "student_weight_decay": 1e-4,
    "student_alpha": 20.0,
    "student_temperature": 20.0,
    "student_easy_confidence": 0.0,
    "student_cam_weight": 0.0,
    "student_cosine_period_steps": 20_000,
    "ranges_from": "untrained-generator",
    "quantize_everything": False,
    "finetune_loss": "fdda",
    "source": "generator",
    "set_batch": 128,
    "width": 128,
    "statistic": "variance",
    "norm": "mean",
    "per_image": False,
    "input_statistics": False,
    "slack_quantile": 0.0,
    "layer_enhancement": False,
    "joint_statistics": False,
    "swing": False,
    "margin_weight": 0.0,
    "margin_degrees": 60.0,
    "tv_weight": 0.0,
    "l2_weight": 0.0,
    "flip": False,
    "shift_px": 0,
    "low_pass_px": 0.0,
    "latent_lr": 0.1,
    "lr_decay": "milestones",
}
MENDED = {
    "noise": "relative",
    "clamp_variance": True,
    "interleave_finetune": False,
    "student_cosine_period_steps": 70_000,
    "ranges_from": "trained",
    "quantize_everything": True,
}


def test_paper_recipe_has_every_published_value() -> None:
    assert dataclasses.asdict(recipe_named("fdda-paper")) == PUBLISHED | {"name": "fdda-paper"}


def test_fdda_differs_from_the_paper_in_the_mended_defects_alone() -> None:
    assert dataclasses.asdict(recipe_named("fdda")) == PUBLISHED | MENDED | {"name": "fdda"}


def test_published_values_can_be_put_back_one_by_one() -> None:
    restored = recipe_named("fdda", {key: PUBLISHED[key] for key in MENDED})
    assert dataclasses.replace(restored, name="fdda-paper") == recipe_named("fdda-paper")


def test_gdfq_needs_no_centers() -> None:
    gdfq = recipe_named("gdfq")
    assert (gdfq.uses_centers, gdfq.class_batch) == (False, 0)
    assert (gdfq.ce_random_weight, gdfq.alignment_weight) == (1.0, 0.1)
    assert gdfq.ce_class_weight == gdfq.distorted_weight == gdfq.centralized_weight == 0


def test_overrides_take_what_toml_gives() -> None:
    recipe = recipe_named(
        "fdda", {"lr": 1, "betas": [0.9, 0.99], "lr_milestones": [1, 2], "clamp_variance": False}
    )
    assert recipe.lr == 1.0
    assert isinstance(recipe.lr, float)
    assert (recipe.betas, recipe.lr_milestones) == ((0.9, 0.99), (1, 2))
    assert recipe.clamp_variance is False


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("fda", {}, "--recipe fda: Did you mean fdda"),
        ("xyz", {}, "Want one of fdda, fdda-paper, gdfq, lrq, zeroq, dsg, genie"),
        ("fdda", {"num_epoch": 3}, "there is no field num_epoch. Did you mean num_epochs"),
        ("fdda", {"name": "mine"}, "there is no field name"),
        ("fdda", {"num_epochs": 2.5}, "num_epochs = 2.5: want a whole number"),
        ("fdda", {"num_epochs": True}, "num_epochs = True: want a whole number"),
        ("fdda", {"lr": "fast"}, "lr = 'fast': want a number"),
        ("fdda", {"lr": float("nan")}, "lr = nan: want at least 0, finite"),
        ("fdda", {"lr": -1.0}, "lr = -1.0: want at least 0"),
        ("fdda", {"clamp_variance": 1}, "clamp_variance = 1: want true or false"),
        ("fdda", {"noise": "loud"}, "noise = 'loud': want absolute or relative"),
        ("fdda", {"betas": [0.5]}, "betas = .0.5.: want a list of 2 numbers"),
        ("fdda", {"betas": [0.5, 1.0]}, "want 0 <= beta < 1"),
        ("fdda", {"lr_milestones": 100}, "lr_milestones = 100: want a list of numbers"),
        ("fdda", {"lr_milestones": [3, 1]}, "want rising epochs"),
        ("fdda", {"steps_per_epoch": 0}, "steps_per_epoch = 0: want at least 1"),
        ("fdda", {"random_batch": 1}, "at least 2 images in each"),
        ("fdda", {"class_batch": 1}, "at least 2 images in each"),
        ("gdfq", {"class_batch": 16}, "needs class centers"),
    ],
)
def test_wrong_overrides_say_what_is_wanted(
    name: str, overrides: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe_named(name, overrides)


@pytest.mark.parametrize("num_steps", [1, 7, 60, 1200, 80_000, 160_000])
@pytest.mark.parametrize("name", RECIPES)
def test_reduced_schedule_keeps_every_proportion(name: str, num_steps: int) -> None:
    full = recipe_named(name)
    short = reduced(full, num_steps)
    assert short.num_steps == num_steps
    share = num_steps / full.num_epochs
    for before, after in zip(
        (*full.lr_milestones, full.gate_epoch, full.warmup_epochs),
        (*short.lr_milestones, short.gate_epoch, short.warmup_epochs),
        strict=True,
    ):
        assert abs(after * short.steps_per_epoch - before * share) <= 0.5
    unchanged = {"name", "noise", "lr", "random_batch", "distorted_weight"}
    assert all(getattr(short, key) == getattr(full, key) for key in unchanged)


def test_reducing_to_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="got 0, want at least 1"):
        reduced(recipe_named("fdda"), 0)


def test_learning_rate_falls_at_its_milestones() -> None:
    recipe = recipe_named("fdda")
    rates = [recipe.lr_at(epoch) for epoch in (0, 99, 100, 200, 399)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5, 1e-6])


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        (reduced(RECIPES["fdda"], 1200), "reduced schedule: 1,200 of 80,000 generator steps"),
        (RECIPES["fdda"], "full schedule: 80,000 generator steps"),
        (reduced(RECIPES["fdda"], 90_000), "extended schedule: 90,000 of 80,000 generator steps"),
        (
            reduced(recipe_named("fdda", {"random_batch": 8, "class_batch": 8}), 60),
            "reduced schedule: 60 of 80,000 generator steps, 8 \\+ 8 images a step instead of 16",
        ),
        (
            reduced(recipe_named("fdda", SHORT_RUN), 60),
            "reduced schedule: 60 of 80,000 .* steps, learning rate 0.01 instead of 0.001$",
        ),
    ],
    ids=["reduced", "full", "extended", "smaller batches", "higher rate"],
)
def test_schedule_is_named_for_the_report(recipe: Recipe, text: str) -> None:
    assert re.match(text, describe_schedule(recipe, RECIPES["fdda"]))
