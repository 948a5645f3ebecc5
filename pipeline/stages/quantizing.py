"""Quantize: place, calibrate, round, reconstruct, fine-tune; integers and scales on disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from torch import Tensor, fx

from fdda_deploy.pipeline.allocator import return_freed_memory
from fdda_deploy.pipeline.evaluate import torch_predictor
from fdda_deploy.pipeline.progress import Progress
from fdda_deploy.pipeline.quantization.calibrate import calibrate
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.fisher import counted
from fdda_deploy.pipeline.quantization.layers import correct_biases, layer_errors
from fdda_deploy.pipeline.quantization.ties import settle_ties
from fdda_deploy.pipeline.quantization.weighed_values import WeighedValues
from fdda_deploy.pipeline.stages.context import Record, RunContext, Stage
from fdda_deploy.pipeline.stages.diagnosing import diagnosed
from fdda_deploy.pipeline.stages.finetuning import finetune_settings, finetuned, finetunes
from fdda_deploy.pipeline.stages.grids import RECORD, save_grids
from fdda_deploy.pipeline.stages.images import Pool
from fdda_deploy.pipeline.stages.interleaved import untrained_images
from fdda_deploy.pipeline.stages.judging import kept_if_better
from fdda_deploy.pipeline.stages.layer_rows import layer_rows
from fdda_deploy.pipeline.stages.placing import converted, placement_of
from fdda_deploy.pipeline.stages.rounding import (
    WEIGHING,
    effort_of,
    num_weighed,
    reference_of,
    rounded,
    weighed_tensors,
)
from fdda_deploy.pipeline.stages.searching import searched_scales
from fdda_deploy.pipeline.stages.synthesizing import synthetic_images
from fdda_deploy.pipeline.workspace import Json

LAYER_IMAGES = {"small": 16, "large": 8}
"""Images that layers are measured on, up to 64 px and above."""
BIAS_IMAGES = {"small": 128, "large": 64}
"""Images behind the mean shift of a layer, up to 64 px and above: there each has many positions."""
TIE_PIXELS = 2**19


def _inputs(context: RunContext) -> dict[str, Json]:
    images = context.calibration
    return {
        **context.keys("load", "synthesize", "assign"),
        "images": None if images is None else images.digest,
        "settings": json.loads(json.dumps(dataclasses.asdict(context.config.quantize))),
        "effort": effort_of(context),
        "finetune": json.loads(json.dumps(dataclasses.asdict(finetune_settings(context)))),
        "target": context.target,
        "seed": context.config.run.seed,
        "device": context.device.type,
    }


def _run(context: RunContext, folder: Path, progress: Progress) -> Record:
    settings = context.config.quantize
    synthetic = _labelled_by_teacher(context, synthetic_images(context))
    pool = Pool(context.calibration, synthetic, context.config.run.seed)
    placement = placement_of(context)
    reference = reference_of(context, pool, progress)
    network = converted(context, placement, reference)
    counts, untrained = _calibrated(context, network, reference, pool, progress)
    return_freed_memory()
    search = searched_scales(context, network, reference, pool, progress)
    rounding = rounded(context, network, reference, pool, progress)
    return_freed_memory()
    correction = None
    recipe = context.recipe
    published = recipe is not None and not recipe.quantize_everything  # it corrects nothing
    if rounding["closed_form"] is None and not published:  # closed form corrects as it goes
        progress(0, 0, "correcting biases")
        correction = _correct_biases(context, network, pool)
    finetuning = finetuned(context, network, pool, progress)
    if context.ranks.follows:
        return {}
    settle_ties(network, pool.sample(_tie_images(context)), context.device)
    progress(0, 0, "measuring layers")
    images = pool.sample(LAYER_IMAGES["small" if context.small_images else "large"])
    errors = layer_errors(network, reference, images, context.device)
    findings = diagnosed(context, network, reference, images, errors)
    network.to(torch.device("cpu"))
    save_grids(
        folder,
        network,
        model_digest=context.record("load")["digest"],
        data_digest="" if context.calibration is None else context.calibration.digest,
        observer="minmax" if settings.numbers == "fp8" else settings.observer,
    )
    return {
        "calibrated_on": dict(zip(("real", "synthetic"), pool.by_kind(counts), strict=True)),
        "ranges_from": "untrained-generator" if untrained else "images",
        "skipped": [] if context.calibration is None else list(context.calibration.skipped),
        "scale_search": search,
        "rounding": rounding,
        "bias_correction": correction,
        "finetune": finetuning,
        "diagnosis": findings,
        "layers": layer_rows(context, placement, errors),
    }


def _calibrated(
    context: RunContext,
    network: QuantNetwork,
    reference: fx.GraphModule,
    pool: Pool,
    progress: Progress,
) -> tuple[tuple[int, int], bool]:
    """Fixes all ranges; returns how many images (given, made), and whether untrained ones."""
    settings, batch_size = context.config.quantize, context.config.run.batch_size
    counts = pool.calibration_counts(settings.calibrate_on)
    recipe = context.recipe
    untrained = recipe is not None and recipe.ranges_from == "untrained-generator"
    weighed: dict[str, WeighedValues] = {}
    if untrained:
        counts = (0, sum(counts))
        batches = iter(torch.split(untrained_images(context, counts[1]), batch_size))
    else:
        few = pool.fewer(counts, num_weighed(context, pool.by_kind(counts)[1]))
        weighed = weighed_tensors(
            context,
            network,
            reference,
            pool.calibration_batches(few, batch_size),
            lambda: counted(progress, sum(few), WEIGHING),
        )
        batches = pool.calibration_batches(counts, batch_size)
    seen = calibrate(
        network,
        batches,
        observer=settings.observer,
        device=context.device,
        num_images=sum(counts),
        weighed=weighed,
        progress=progress,
    )
    return counts if seen or not weighed else few, untrained


def _tie_images(context: RunContext) -> int:
    """Returns how many images show which values are common, about half a million pixels."""
    height, width = context.preprocessing.shape[1:]
    return min(BIAS_IMAGES["small"], max(8, TIE_PIXELS // (height * width)))


def _correct_biases(context: RunContext, network: QuantNetwork, pool: Pool) -> dict[str, Json]:
    """Corrects the biases where held-out images agree.

    Where a few outliers are clipped, their mean shift is no good correction for all the others.
    """
    teacher, device = context.float_graph.module.to(context.device), context.device

    def correction() -> dict[str, Json]:
        images = pool.sample(BIAS_IMAGES["small" if context.small_images else "large"])
        return {"biases": correct_biases(network, teacher, images, device)}

    return kept_if_better(context, network, pool.held_out(), correction)


def _labelled_by_teacher(
    context: RunContext, images: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor] | None:
    """Returns the synthetic images with label -1 where the float network sees another class.

    A short schedule teaches the generator few classes; its wrong labels would teach the student.
    """
    if images is None:
        return None
    predict = torch_predictor(context.float_graph.module, context.device)
    batches = torch.split(images[0], context.config.run.batch_size)
    seen = torch.cat([torch.from_numpy(predict(batch.numpy()).argmax(axis=1)) for batch in batches])
    return images[0], torch.where(seen == images[1], images[1], -1)


QUANTIZE = Stage("quantize", _inputs, _run, {RECORD: "calibration.json"}, shared=finetunes)
