"""Which recipe makes the images, and on which schedule: by what the user has and asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fdda_deploy.config.sections import SynthesisConfig
from fdda_deploy.errors import ConfigError, DataError, ModelError
from fdda_deploy.pipeline.synthesis.recipes import Recipe, recipe_named
from fdda_deploy.pipeline.synthesis.schedules import reduced, reduced_schedule

ENOUGH_REAL = 1000
"""From this many real images on, ``auto`` makes none: reconstruction wants no more."""


@dataclass(frozen=True)
class Situation:
    """What there is to make images from.

    Attributes:
        model: The network's name, for messages.
        batchnorm_layers: How many it has.
        num_images: Images that were given; 0 for none.
        synthesized: They were made by a recipe before.
        labelled: Those have classes.
        biased_convolutions: Counts convolutions with a bias, asked only where there is no
            BatchNorm: it may have been folded into them.
    """

    model: str
    batchnorm_layers: int
    num_images: int
    labelled: bool
    synthesized: bool
    biased_convolutions: Callable[[], int]


@dataclass(frozen=True)
class RecipeChoice:
    """A recipe's name, ``none`` included, and why it was taken, in one sentence."""

    name: str
    reason: str


def choose_recipe(asked: str, situation: Situation) -> RecipeChoice:
    """Returns the recipe to take: as asked, or for ``auto`` by what there is.

    Raises:
        DataError: There is neither BatchNorm nor an image.
        ModelError: A recipe was asked for, and the network has no BatchNorm.
        ConfigError: It needs labelled real images and there are none, or ``none`` has no images.
    """
    given = situation.num_images
    if asked == "none" and not given:
        raise ConfigError("--recipe none makes no image: give real ones by --calib-data.")
    if situation.batchnorm_layers == 0 and asked != "none":
        if asked != "auto" or not given:
            raise _nothing_to_align(asked, situation)
        return RecipeChoice("none", "the network has no BatchNorm layer to make images from")
    if asked.startswith("fdda") and not situation.labelled:
        raise ConfigError(
            f"--recipe {asked} needs one labelled real image per class: give --calib-data with "
            "a folder per class, or take --recipe genie."
        )
    return RecipeChoice(asked, "as asked") if asked != "auto" else _chosen(situation)


def _chosen(situation: Situation) -> RecipeChoice:
    """Returns what ``auto`` takes where there is BatchNorm."""
    given = situation.num_images
    if situation.synthesized:
        return RecipeChoice("none", f"{given:,} synthetic images were given, so none are made")
    if given >= ENOUGH_REAL:
        return RecipeChoice("none", f"{given:,} real images are enough, so none are made")
    if situation.labelled:
        return RecipeChoice("fdda", f"{given:,} labelled real images give class centers")
    if given:
        return RecipeChoice("genie", f"{given:,} real images without labels give no class center")
    return RecipeChoice("genie", "there is no real image, and the network has BatchNorm layers")


def scheduled(published: Recipe, settings: SynthesisConfig, *, size: str, reduce: bool) -> Recipe:
    """Returns the recipe on the schedule that its settings, the images and the machine call for.

    Args:
        published: With the user's overrides, on its full schedule.
        settings: ``num_steps`` and ``overrides``.
        size: ``small`` or ``large`` images.
        reduce: Take the reduced schedule where no number of steps is given.
    """
    steps = settings.num_steps
    if steps is None and not reduce:
        return published
    short = reduced_schedule(published, size)
    steps = steps or short.num_steps
    if steps >= published.num_steps or published.name == "fdda-paper":
        return reduced(published, steps)  # the paper's values, only less or more of them
    overrides = {**short.overrides, **settings.overrides}
    return reduced(recipe_named(published.name, overrides), steps)


def _nothing_to_align(asked: str, situation: Situation) -> DataError | ModelError:
    folded = situation.biased_convolutions()
    why = (
        f" ({folded} convolutions have biases: BatchNorm may have been folded into them; then give "
        "the network from before)"
        if folded
        else ""
    )
    kind = DataError if asked == "auto" else ModelError
    return kind(
        f"{situation.model} has no BatchNorm layer: images cannot be synthesized from it{why}. "
        "Every recipe but none needs BatchNorm: give real images by --calib-data FOLDER and take "
        "--recipe none."
    )
