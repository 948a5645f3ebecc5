"""Schedules: a recipe's full length, and the shorter ones that a CPU gets done in minutes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from fdda_deploy.errors import ConfigError
from fdda_deploy.pipeline.synthesis.recipe_fields import Recipe

SHORT_RUN: Mapping[str, object] = MappingProxyType({"lr": 1e-2, "lr_milestones": (200, 300, 360)})
"""Overrides for `reduced` runs of some hundred steps, where the published rate gets nowhere.

cifar_resnet20, ``fdda``, one seed: 240 steps at 1e-3 give images of which the network recognises
12 %, at 1e-2 50 %. 400 steps at 1e-2 give 66 % with the published milestones, 86 % with these.
"""


@dataclasses.dataclass(frozen=True)
class ReducedSchedule:
    """What a recipe becomes on a CPU.

    Attributes:
        num_steps: Steps of one training: of the generator, or of each batch of learned images.
        overrides: Fields that change with it.
    """

    num_steps: int
    overrides: Mapping[str, object]


_HALF_BATCHES = {"random_batch": 8, "class_batch": 8}
"""Above 64 px both batches are halved, for time and for memory."""

REDUCED: Mapping[tuple[str, str], ReducedSchedule] = MappingProxyType(
    {
        ("generator", "small"): ReducedSchedule(500, SHORT_RUN),
        ("generator", "large"): ReducedSchedule(100, {**SHORT_RUN, **_HALF_BATCHES}),
        ("pixels", "small"): ReducedSchedule(150, {}),
        ("pixels", "large"): ReducedSchedule(50, {"set_batch": 16}),
        ("latent", "small"): ReducedSchedule(150, {"width": 32}),
        ("latent", "large"): ReducedSchedule(40, {"width": 16, "set_batch": 32}),
    }
)
"""By source and image size, ``small`` up to 64 px: minutes on two CPU cores."""


def reduced_schedule(recipe: Recipe, size: str) -> ReducedSchedule:
    """Returns the CPU schedule of ``recipe`` for ``small`` or ``large`` images."""
    source = recipe.source if recipe.learns_images else "generator"
    found = REDUCED[source, size]
    overrides = dict(found.overrides)
    if not recipe.uses_centers:
        overrides.pop("class_batch", None)
    return ReducedSchedule(found.num_steps, overrides)


def reduced(recipe: Recipe, num_steps: int) -> Recipe:
    """Returns the recipe scaled to ``num_steps`` steps of one training, proportions kept.

    Epochs become one step long, and every epoch field moves to the same share of the run: FDDA's
    gate at epoch 5 of 400 becomes step 15 of 1,200. The student's cosine period scales alike.
    Learning rates stay: see `SHORT_RUN`.

    Raises:
        ConfigError: ``num_steps`` is under 1.
    """
    if num_steps < 1:
        raise ConfigError(f"synthesis steps: got {num_steps}, want at least 1.")
    share = num_steps / recipe.num_epochs

    def scaled(epoch: int) -> int:
        return round(epoch * share)

    return dataclasses.replace(
        recipe,
        num_epochs=num_steps,
        steps_per_epoch=1,
        warmup_epochs=scaled(recipe.warmup_epochs),
        gate_epoch=scaled(recipe.gate_epoch),
        lr_milestones=tuple(scaled(epoch) for epoch in recipe.lr_milestones),
        student_cosine_period_steps=max(
            1, round(recipe.student_cosine_period_steps * num_steps / recipe.num_steps)
        ),
    )


def describe_schedule(recipe: Recipe, published: Recipe) -> str:
    """Returns one line for reports: how much of the published schedule a run has.

    Example:
        >>> describe_schedule(reduced(RECIPES["fdda"], 1200), RECIPES["fdda"])
        'reduced schedule: 1,200 of 80,000 generator steps'
    """
    what = "steps for each batch of images" if recipe.learns_images else "generator steps"
    if recipe.num_steps == published.num_steps:
        text = f"full schedule: {recipe.num_steps:,} {what}"
    else:
        word = "reduced" if recipe.num_steps < published.num_steps else "extended"
        text = f"{word} schedule: {recipe.num_steps:,} of {published.num_steps:,} {what}"
    if recipe.learns_images:
        for field, unit in (("set_batch", "images a batch"), ("width", "generator channels")):
            if getattr(recipe, field) != getattr(published, field):
                text += f", {getattr(recipe, field)} {unit} instead of {_said(published, field)}"
        return text
    ours = (recipe.random_batch, recipe.class_batch)
    theirs = (published.random_batch, published.class_batch)
    if ours != theirs:
        text += f", {ours[0]} + {ours[1]} images a step instead of {theirs[0]} + {theirs[1]}"
    if recipe.lr != published.lr:
        text += f", learning rate {recipe.lr:g} instead of {published.lr:g}"
    return text


def _said(recipe: Recipe, field: str) -> str:
    value = getattr(recipe, field)
    return "one a BatchNorm layer" if field == "set_batch" and value == 0 else str(value)
