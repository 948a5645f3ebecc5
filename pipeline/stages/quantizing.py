"""Quantize: place, calibrate, round, reconstruct, fine-tune; integers and scales on disk."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, fx

from fdda_deploy.exporters.placement import place
from fdda_deploy.pipeline.evaluate import torch_predictor
from fdda_deploy.pipeline.progress import Progress
from fdda_deploy.pipeline.quantization.calibrate import calibrate
from fdda_deploy.pipeline.quantization.convert import GraphMap, QuantNetwork, convert
from fdda_deploy.pipeline.quantization.finetune import (
    Draw,
    FinetuneResult,
    FinetuneSettings,
    divergence,
    finetune,
    frozen_copy,
)
from fdda_deploy.pipeline.quantization.layers import correct_biases, layer_errors
from fdda_deploy.pipeline.quantization.ties import settle_ties
from fdda_deploy.pipeline.stages.context import Record, RunContext, Stage
from fdda_deploy.pipeline.stages.diagnosing import diagnosed
from fdda_deploy.pipeline.stages.grids import RECORD, save_grids
from fdda_deploy.pipeline.stages.images import Pool
from fdda_deploy.pipeline.stages.interleaved import interleaved_draw, untrained_images
from fdda_deploy.pipeline.stages.layer_rows import layer_rows
from fdda_deploy.pipeline.stages.rounding import effort_of, reference_of, rounded
from fdda_deploy.pipeline.stages.searching import searched_scales
from fdda_deploy.pipeline.stages.synthesizing import synthetic_images
from fdda_deploy.pipeline.synthesis.recipes import recipe_named
from fdda_deploy.pipeline.workspace import Json
from fdda_deploy.quant.points import Placement

REDUCED_FINETUNE_STEPS = {"small": 300, "large": 40}
"""Student steps where the generator's schedule is reduced, up to 64 px and above."""
SCALE_STEPS = {"small": 300, "large": 400}
"""The same where scales and biases alone are trained: Adam gets somewhere in fewer."""
SCALE_TEMPERATURE = 2.0
"""FDDA's 20 matches logits; what is judged is the KL of the prediction itself."""
LAYER_IMAGES = 16
BIAS_IMAGES = 128
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


def placement_of(context: RunContext) -> Placement:
    """Returns where this build quantizes."""
    return placement_with(context, context.record("assign")["assignment"])


def placement_with(context: RunContext, widths: Mapping[str, int | None] | None) -> Placement:
    """Returns where a build with these widths quantizes; None gives each layer the scheme's."""
    graph, recipe = context.float_graph, context.recipe
    return place(
        graph.proto,
        context.config.quantize.scheme,
        context.target,
        torch_tensors=graph.fx_from_tensor,
        parameters=graph.parameter_from_initializer,
        everything=recipe is None or recipe.quantize_everything,
        widths=widths,
    )


def converted(
    context: RunContext, placement: Placement, module: fx.GraphModule | None = None
) -> QuantNetwork:
    """Returns the float network, or its equalised twin, with pass-through quantizers."""
    graph = context.float_graph
    names = GraphMap(graph.fx_from_tensor, graph.fx_from_node, graph.parameter_from_initializer)
    return convert(graph.module if module is None else module, placement, names)


def finetune_settings(context: RunContext) -> FinetuneSettings:
    """Returns the student schedule: the recipe's, shortened where the generator's is."""
    recipe = context.recipe or recipe_named("fdda")
    published = context.published_recipe or recipe_named("fdda")
    full_steps = (published.num_epochs - published.warmup_epochs) * published.steps_per_epoch
    steps, trainable = full_steps, _trainable(context)
    if recipe.num_steps < published.num_steps or context.recipe is None:
        table = REDUCED_FINETUNE_STEPS if trainable == "all" else SCALE_STEPS
        steps = table["small" if context.small_images else "large"]
    steps = context.config.quantize.finetune_steps or steps
    period = published.student_cosine_period_steps * steps / max(1, full_steps)
    return FinetuneSettings(
        num_steps=max(1, steps),
        batch_size=recipe.student_batch,
        lr=recipe.student_lr,
        momentum=recipe.student_momentum,
        weight_decay=recipe.student_weight_decay,
        alpha=recipe.student_alpha,
        temperature=SCALE_TEMPERATURE if trainable != "all" else recipe.student_temperature,
        # Annealed once, to zero: the published restarts would end a short run at half the rate.
        cosine_period_steps=max(1, round(period)) if trainable == "all" else None,
        loss=context.config.quantize.finetune_loss,
        psg=context.config.quantize.psg,
        scale_clip=context.config.quantize.scale_clip,
        trainable=trainable,
    )


def _finetunes(context: RunContext) -> bool:
    """Whether to fine-tune: as asked, else with every effort but ``fast``."""
    asked = context.config.quantize.finetune
    return effort_of(context) != "fast" if asked is None else asked


def _trainable(context: RunContext) -> str:
    """Returns what the student trains: after rounding by images, scales and biases alone.

    Straight-through steps on weights would undo the rounding; who asks for a method that moves
    weights gets it all the same.
    """
    settings = context.config.quantize
    moves = settings.psg or settings.scale_clip is not None
    return "all" if moves or effort_of(context) == "none" else "scales-and-biases"


def _run(context: RunContext, folder: Path, progress: Progress) -> Record:
    settings = context.config.quantize
    synthetic = _labelled_by_teacher(context, synthetic_images(context))
    pool = Pool(context.calibration, synthetic, context.config.run.seed)
    placement = placement_of(context)
    reference = reference_of(context, pool, progress)
    network = converted(context, placement, reference)
    counts = pool.calibration_counts(settings.calibrate_on)
    batches = pool.calibration_batches(counts, context.config.run.batch_size)
    recipe = context.recipe
    untrained = recipe is not None and recipe.ranges_from == "untrained-generator"
    if untrained:
        counts = (0, sum(counts))
        images = untrained_images(context, counts[1])
        batches = iter(torch.split(images, context.config.run.batch_size))
    calibrate(
        network,
        batches,
        observer=settings.observer,
        device=context.device,
        num_images=sum(counts),
        progress=progress,
    )
    search = searched_scales(context, network, reference, pool, progress)
    rounding = rounded(context, network, reference, pool, progress)
    correction = None
    published = recipe is not None and not recipe.quantize_everything  # it corrects nothing
    if rounding["closed_form"] is None and not published:  # closed form corrects as it goes
        progress(0, 0, "correcting biases")
        correction = _correct_biases(context, network, pool)
    result = _finetune(context, network, pool, progress) if _finetunes(context) else None
    settle_ties(network, pool.sample(_tie_images(context)), context.device)
    progress(0, 0, "measuring layers")
    errors = layer_errors(network, reference, pool.sample(LAYER_IMAGES), context.device)
    findings = diagnosed(context, network, reference, pool.sample(LAYER_IMAGES), errors)
    network.to(torch.device("cpu"))
    save_grids(
        folder,
        network,
        model_digest=context.record("load")["digest"],
        data_digest="" if context.calibration is None else context.calibration.digest,
        observer=settings.observer,
    )
    return {
        "calibrated_on": {"real": counts[0], "synthetic": counts[1]},
        "ranges_from": "untrained-generator" if untrained else "images",
        "skipped": [] if context.calibration is None else list(context.calibration.skipped),
        "scale_search": search,
        "rounding": rounding,
        "bias_correction": correction,
        "finetune": None if result is None else _finetune_record(result, pool.holds_out),
        "diagnosis": findings,
        "layers": layer_rows(context, placement, errors),
    }


def _tie_images(context: RunContext) -> int:
    """Returns how many images show which values are common, about half a million pixels."""
    height, width = context.preprocessing.shape[1:]
    return min(BIAS_IMAGES, max(8, TIE_PIXELS // (height * width)))


def _correct_biases(context: RunContext, network: QuantNetwork, pool: Pool) -> dict[str, Json]:
    """Corrects the biases, and takes it back if held-out images disagree.

    Where a few outliers are clipped, their mean shift is no good correction for all the others.
    """
    teacher, device, held_out = context.float_graph.module, context.device, pool.held_out()
    teacher.to(device)
    network.to(device)
    start = {name: value.detach().clone() for name, value in network.named_parameters()}
    before = divergence(network, teacher, held_out, device)
    corrected = correct_biases(network, teacher, pool.sample(BIAS_IMAGES), device)
    after = divergence(network, teacher, held_out, device)
    kept = after < before
    if not kept:
        with torch.no_grad():
            for name, value in network.named_parameters():
                value.copy_(start[name])
    return {"biases": corrected, "kept": kept, "before": before, "after": after}


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


def _finetune(
    context: RunContext, network: QuantNetwork, pool: Pool, progress: Progress
) -> FinetuneResult:
    draws: list[Draw] = pool.draws()
    recipe = context.recipe
    if recipe is not None and recipe.interleave_finetune:
        draws[-1] = interleaved_draw(context, recipe)
    return finetune(
        network,
        frozen_copy(context.float_graph.module),
        draws,
        pool.held_out(),
        finetune_settings(context),
        device=context.device,
        seed=context.config.run.seed,
        progress=progress,
    )


def _finetune_record(result: FinetuneResult, holds_out: bool) -> dict[str, Json]:
    judges = "held-out images" if holds_out else "the images trained on, too few to hold any out"
    better = f"{result.before:.4g} to {result.after:.4g} nats on {judges}"
    reason = f"kept: KL fell from {better}" if result.kept else f"not kept: KL went from {better}"
    return {
        "steps": result.steps,
        "kept": result.kept,
        "metric": f"KL(float || quantized), nats, {judges}",
        "before": result.before,
        "after": result.after if result.after == result.after else None,
        "history": {name: list(values) for name, values in result.history.items()},
        "history_every": result.history_every,
        "reason": reason,
    }


QUANTIZE = Stage("quantize", _inputs, _run, {RECORD: "calibration.json"})
