"""Short runs on the tiny network, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import torch

from fdda_deploy.pipeline.distributed import ALONE, Ranks
from fdda_deploy.pipeline.network import StatisticsNetwork
from fdda_deploy.pipeline.synthesis.centers import ClassCenters
from fdda_deploy.pipeline.synthesis.recipes import RECIPES, Recipe, recipe_named
from fdda_deploy.pipeline.synthesis.schedules import reduced
from fdda_deploy.pipeline.synthesis.synthesize import Synthesizer, SyntheticImages, synthesize

CPU = torch.device("cpu")
SHAPE = (3, 8, 8)


def synthesizer(
    network: StatisticsNetwork,
    recipe: Recipe,
    centers: ClassCenters | None,
    seed: int = 0,
    *,
    autocast: bool = False,
    fast: bool = True,
    ranks: Ranks = ALONE,
) -> Synthesizer:
    return Synthesizer(
        network,
        recipe,
        image_shape=SHAPE,
        num_classes=3,
        centers=centers,
        device=CPU,
        seed=seed,
        autocast=autocast,
        fast=fast,
        ranks=ranks,
    )


def run(
    network: StatisticsNetwork,
    recipe: Recipe,
    centers: ClassCenters | None,
    checkpoint: Path | None = None,
    seed: int = 0,
    progress: object = None,
    num_images: int = 10,
) -> SyntheticImages:
    return synthesize(
        network,
        recipe,
        image_shape=SHAPE,
        num_classes=3,
        centers=centers,
        num_images=num_images,
        device=CPU,
        seed=seed,
        checkpoint=checkpoint,
        checkpoint_every_seconds=0.0,
        progress=progress,  # type: ignore[arg-type]  # a callable or None
    )


def small(name: str, num_steps: int, **overrides: object) -> Recipe:
    sizes: dict[str, object] = {"random_batch": 6}
    if RECIPES[name].uses_centers:
        sizes["class_batch"] = 5
    if RECIPES[name].learns_images:
        sizes = {"set_batch": 4, "width": 16}
    return reduced(recipe_named(name, {**sizes, **overrides}), num_steps)
