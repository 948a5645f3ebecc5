"""FDDA as its authors ran it: the generator trains on while the student learns from it."""

from __future__ import annotations

import torch
from torch import Tensor

from fdda_deploy.errors import CalibrationError
from fdda_deploy.pipeline.quantization.finetune import Draw
from fdda_deploy.pipeline.stages.context import RunContext
from fdda_deploy.pipeline.stages.synthesizing import CHECKPOINT, centers_of
from fdda_deploy.pipeline.synthesis.precision import autocast_pays
from fdda_deploy.pipeline.synthesis.recipes import Recipe
from fdda_deploy.pipeline.synthesis.synthesize import balanced_labels
from fdda_deploy.pipeline.synthesis.synthesizer import Synthesizer


def interleaved_draw(context: RunContext, recipe: Recipe) -> Draw:
    """Returns a batch source that takes one generator step per call and gives its images."""
    synthesizer = _synthesizer(context, recipe)
    _continue(context, synthesizer)

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        record = synthesizer.step()
        picked = torch.randperm(len(record.images), generator=generator)[:count]
        return record.images.cpu()[picked], record.labels.cpu()[picked]

    return draw


def untrained_images(context: RunContext, count: int) -> Tensor:
    """Returns images ``(count, C, H, W)`` of a generator before its first step.

    The published code freezes activation ranges on such images (recipe field ``ranges_from``).
    """
    assert context.recipe is not None
    synthesizer = _synthesizer(context, context.recipe)
    return synthesizer.sample(balanced_labels(count, context.record("load")["classes"]))


def _synthesizer(context: RunContext, recipe: Recipe) -> Synthesizer:
    return Synthesizer(
        context.statistics,
        recipe,
        image_shape=context.preprocessing.shape,
        num_classes=context.record("load")["classes"],
        centers=centers_of(context),
        device=context.device,
        seed=context.config.run.seed,
        autocast=context.config.synthesis.fast and autocast_pays(context.device),
        fast=context.config.synthesis.fast,
    )


def _continue(context: RunContext, synthesizer: Synthesizer) -> None:
    """Picks the generator up where the synthesize stage left it, its random state included.

    Raises:
        CalibrationError: It diverged there, and left nothing to go on from.
    """
    path = context.file("synthesize", CHECKPOINT)
    if not path.is_file():
        raise CalibrationError(
            f"--recipe {synthesizer.recipe.name}: the generator diverged before the student began. "
            "Lower lr under [synthesis.overrides], or take --recipe fdda."
        )
    content = torch.load(path, map_location="cpu", weights_only=True)
    synthesizer.restore(content["state"])
