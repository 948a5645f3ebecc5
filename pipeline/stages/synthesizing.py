"""Synthesize: a labelled set of images from the network, as files that any tool can use."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from fdda_deploy.errors import CalibrationError
from fdda_deploy.pipeline.preprocessing import pixel_bounds, uint8_from_normalized
from fdda_deploy.pipeline.progress import Progress
from fdda_deploy.pipeline.report.contact_sheet import contact_sheet_png
from fdda_deploy.pipeline.report.schema import without_nonfinite
from fdda_deploy.pipeline.stages.context import Record, RunContext, Stage
from fdda_deploy.pipeline.stages.reading import CENTERS
from fdda_deploy.pipeline.synthesis.center_file import load_class_centers
from fdda_deploy.pipeline.synthesis.centers import ClassCenters
from fdda_deploy.pipeline.synthesis.checkpoint import discard_checkpoint
from fdda_deploy.pipeline.synthesis.quality import image_quality
from fdda_deploy.pipeline.synthesis.recipes import Recipe
from fdda_deploy.pipeline.synthesis.schedules import describe_schedule
from fdda_deploy.pipeline.synthesis.synthesize import SyntheticImages, synthesize
from fdda_deploy.pipeline.workspace import Json, atomic_write

CHECKPOINT = "generator.ckpt"
IMAGES = "images.safetensors"
SUMMARY = "synthesis.json"
REAL_JUDGED = 256
"""Most real images whose spread is set beside the synthetic ones'."""
NUM_IMAGES = {"small": 512, "large": 128}
"""Default size of the synthetic set, up to 64 px and above."""


def _inputs(context: RunContext) -> dict[str, Json]:
    recipe = context.recipe
    return {
        **context.keys("load", "statistics"),
        "recipe": None if recipe is None else _plain(dataclasses.asdict(recipe)),
        "num_images": num_images(context),
        "fast": context.config.synthesis.fast,
        "cuda_graphs": context.config.synthesis.cuda_graphs,
        "choice": context.recipe_choice.reason,
        "seed": context.config.run.seed,
        "device": context.device.type,
    }


def num_images(context: RunContext) -> int:
    """Returns how many synthetic images the build keeps."""
    if context.config.synthesis.num_images is not None:
        return context.config.synthesis.num_images
    return NUM_IMAGES["small" if context.small_images else "large"]


def centers_of(context: RunContext) -> ClassCenters | None:
    """Returns the class centers that the statistics stage measured, if it did."""
    if not context.record("statistics")["centers"]:
        return None
    return load_class_centers(context.file("statistics", CENTERS))


def generator_recipe(recipe: Recipe) -> Recipe:
    """Returns the part of the schedule before any student trains.

    A recipe that trains both at once (`interleave_finetune`) leaves the rest to fine-tuning.
    """
    if not recipe.interleave_finetune:
        return recipe
    return dataclasses.replace(recipe, num_epochs=max(1, recipe.warmup_epochs))


def _run(context: RunContext, folder: Path, progress: Progress) -> Record:
    recipe, published = context.recipe, context.published_recipe
    reason = context.recipe_choice.reason
    if recipe is None or published is None:
        return {"recipe": None, "reason": reason}
    progress(0, 0, f"recipe {recipe.name}: {reason}")
    result = synthesize(
        context.statistics,
        generator_recipe(recipe),
        image_shape=context.preprocessing.shape,
        num_classes=context.record("load")["classes"],
        centers=centers_of(context),
        num_images=num_images(context),
        device=context.device,
        seed=context.config.run.seed,
        checkpoint=folder / CHECKPOINT,
        checkpoint_every_seconds=context.checkpoint_every_seconds,
        fast=context.config.synthesis.fast,
        bounds=pixel_bounds(context.preprocessing),
        progress=progress,
        ranks=context.ranks,
        cuda_graphs=context.config.synthesis.cuda_graphs,
    )
    if not bool(result.images.isfinite().all()):
        what = "images" if recipe.learns_images else "generator"
        raise CalibrationError(
            f"--recipe {recipe.name}: the {what} diverged at once, its images are not finite. "
            "Lower lr under [synthesis.overrides]."
        )
    if context.ranks.follows:
        return {}
    if not recipe.interleave_finetune:
        discard_checkpoint(folder / CHECKPOINT)
    record = _record(context, recipe, published, result)
    _write_images(context, folder, result)
    summary = {"model": context.config.model.name, "seed": context.config.run.seed, **record}
    del summary["seconds"]  # the same images make the same file
    summary["layer_names"] = context.record("load")["layer_names"]
    (folder / SUMMARY).write_text(json.dumps(_finite(summary), indent=1), encoding="utf-8")
    return record


def _record(
    context: RunContext, recipe: Recipe, published: Recipe, result: SyntheticImages
) -> dict[str, Json]:
    size = published.set_batch or len(context.statistics.layers)
    parts = -(-len(result.images) // size)
    return {
        "recipe": recipe.name,
        "reason": context.recipe_choice.reason,
        "schedule": describe_schedule(recipe, published),
        "steps": result.steps,
        "published_steps": published.num_steps * (parts if recipe.learns_images else 1),
        "num_images": len(result.images),
        "seconds": result.seconds,
        "history": _plain({k: v for k, v in result.history.items() if k != "step"}),
        "history_every": _spacing(result.history.get("step", [])),
        **_judged(context, recipe, result),
        "warnings": list(result.warnings),
    }


def _judged(context: RunContext, recipe: Recipe, result: SyntheticImages) -> dict[str, Json]:
    """Returns what the float network says of the images, and of real ones beside them."""
    quality = result.quality
    real, found = context.calibration, None
    if real is not None and real.recipe is None and real.labelled:
        chosen = np.arange(min(len(real), REAL_JUDGED))
        batches = real.batches(context.config.run.batch_size, chosen)
        found = image_quality(context.statistics, batches, context.device)
    return {
        "teacher_top1": None if recipe.labels_by_network else quality.top1,
        "teacher_confidence": quality.confidence,
        "bns_distance": list(quality.bns_distance),
        "noise_distance": list(result.noise_distance),
        "diversity": quality.diversity,
        "class_spread": quality.class_spread,
        "real_diversity": None if found is None else found.diversity,
        "real_class_spread": None if found is None else found.class_spread,
    }


def _write_images(context: RunContext, folder: Path, result: SyntheticImages) -> None:
    tensors = {"images": result.images, "labels": result.labels}
    (folder / IMAGES).write_bytes(save(tensors))  # a full disk is then an OSError
    pixels = uint8_from_normalized(result.images, context.preprocessing)
    labels = result.labels.numpy()
    with (folder / "images.npz").open("wb") as file:
        classes = np.int64(context.record("load")["classes"])
        name = np.str_(context.recipe_choice.name)  # read back, they are no real images
        np.savez_compressed(file, x=pixels, y=labels, num_classes=classes, recipe=name)
    atomic_write(
        folder / "contact_sheet.png", contact_sheet_png(pixels, labels, context.class_names)
    )


def synthetic_images(context: RunContext) -> tuple[Tensor, Tensor] | None:
    """Returns (images ``(n, C, H, W)`` float32 as the network takes them, labels ``(n,)``)."""
    if context.record("synthesize")["recipe"] is None:
        return None
    stored = load_file(context.file("synthesize", IMAGES))
    return stored["images"], stored["labels"].to(torch.int64)


def _spacing(steps: list[Any]) -> int:
    return int(steps[1] - steps[0]) if len(steps) > 1 else 1


def _finite(value: object) -> Json:
    """Returns JSON without numbers that JSON does not have."""
    finite: Json = without_nonfinite(_plain(value))
    return finite


def _plain(value: object) -> Json:
    plain: Json = json.loads(json.dumps(value))
    return plain


SYNTHESIZE = Stage(
    "synthesize",
    _inputs,
    _run,
    {
        "images.npz": "synthetic/images.npz",
        "contact_sheet.png": "synthetic/contact_sheet.png",
        SUMMARY: "synthetic/synthesis.json",
    },
    shared=lambda context: context.recipe is not None,
)
