"""Quantize: place, calibrate, correct biases, fine-tune; integers and scales on disk."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fdda_deploy.exporters.placement import TABLE, place
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
from fdda_deploy.pipeline.quantization.layers import LayerError, correct_biases, layer_errors
from fdda_deploy.pipeline.quantization.ties import settle_ties
from fdda_deploy.pipeline.stages.context import Record, RunContext, Stage
from fdda_deploy.pipeline.stages.grids import RECORD, save_grids
from fdda_deploy.pipeline.stages.images import Pool
from fdda_deploy.pipeline.stages.interleaved import interleaved_draw, untrained_images
from fdda_deploy.pipeline.stages.searching import searched_scales
from fdda_deploy.pipeline.stages.synthesizing import synthetic_images
from fdda_deploy.pipeline.synthesis.recipes import recipe_named
from fdda_deploy.pipeline.workspace import Json
from fdda_deploy.quant.points import Placement

REDUCED_FINETUNE_STEPS = {"small": 300, "large": 40}
"""Student steps where the generator's schedule is reduced, up to 64 px and above."""
LAYER_IMAGES = 16
BIAS_IMAGES = 128
TIE_PIXELS = 2**19


def _inputs(context: RunContext) -> dict[str, Json]:
    images = context.calibration
    return {
        **context.keys("load", "synthesize", "assign"),
        "images": None if images is None else images.digest,
        "settings": json.loads(json.dumps(dataclasses.asdict(context.config.quantize))),
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


def converted(context: RunContext, placement: Placement) -> QuantNetwork:
    """Returns the float network with pass-through quantizers at every point."""
    graph = context.float_graph
    names = GraphMap(graph.fx_from_tensor, graph.fx_from_node, graph.parameter_from_initializer)
    return convert(graph.module, placement, names)


def finetune_settings(context: RunContext) -> FinetuneSettings:
    """Returns the student schedule: the recipe's, shortened where the generator's is."""
    recipe = context.recipe or recipe_named("fdda")
    published = context.published_recipe or recipe_named("fdda")
    full_steps = (published.num_epochs - published.warmup_epochs) * published.steps_per_epoch
    steps = full_steps
    if recipe.num_steps < published.num_steps or context.recipe is None:
        steps = REDUCED_FINETUNE_STEPS["small" if context.small_images else "large"]
    steps = context.config.quantize.finetune_steps or steps
    period = published.student_cosine_period_steps * steps / max(1, full_steps)
    return FinetuneSettings(
        num_steps=max(1, steps),
        batch_size=recipe.student_batch,
        lr=recipe.student_lr,
        momentum=recipe.student_momentum,
        weight_decay=recipe.student_weight_decay,
        alpha=recipe.student_alpha,
        temperature=recipe.student_temperature,
        cosine_period_steps=max(1, round(period)),
        loss=context.config.quantize.finetune_loss,
        psg=context.config.quantize.psg,
        scale_clip=context.config.quantize.scale_clip,
    )


def _run(context: RunContext, folder: Path, progress: Progress) -> Record:
    settings = context.config.quantize
    synthetic = _labelled_by_teacher(context, synthetic_images(context))
    pool = Pool(context.calibration, synthetic, context.config.run.seed)
    placement = placement_of(context)
    network = converted(context, placement)
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
    search = searched_scales(context, network, pool, progress)
    correction = None
    if recipe is None or recipe.quantize_everything:  # the published FDDA corrects nothing
        progress(0, 0, "correcting biases")
        correction = _correct_biases(context, network, pool)
    result = _finetune(context, network, pool, progress) if settings.finetune else None
    settle_ties(network, pool.sample(_tie_images(context)), context.device)
    progress(0, 0, "measuring layers")
    errors = layer_errors(
        network, context.float_graph.module, pool.sample(LAYER_IMAGES), context.device
    )
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
        "bias_correction": correction,
        "finetune": None if result is None else _finetune_record(result, pool.holds_out),
        "layers": _layers(placement, context, errors),
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


def _layers(placement: Placement, context: RunContext, errors: list[LayerError]) -> list[Json]:
    """Returns one row per weighted layer for the report, in graph order."""
    graph = context.float_graph.proto.graph
    weight_bits = {node: point for point in placement.weights for node in point.consumers}
    act_bits = {
        node: point.num_bits
        for point in placement.activations
        for node, i in point.consumers
        if i == 0
    }
    measured = {error.node: error for error in errors}
    left = dict(placement.left_float)
    rows: list[Json] = []
    for node in graph.node:
        point = weight_bits.get(node.name)
        if point is None and node.name not in left:
            continue
        error = measured.get(node.name)
        weights = None if point is None else point.num_bits
        acts = act_bits.get(node.name)
        rows.append(
            {
                "name": node.name,
                "op": node.op_type,
                "weight_bits": weights,
                "act_bits": acts,
                "precision": _precision(weights, acts, None if point is None else point.storage),
                "weight_sqnr_db": None if error is None else error.weight_sqnr_db,
                "output_sqnr_db": None if error is None else error.output_sqnr_db,
                "reason": left.get(node.name) or TABLE["weighted-weight"].reason,
            }
        )
    return rows


def _precision(weights: int | None, acts: int | None, storage: str | None) -> str:
    """Says in words what a layer runs in."""
    if weights is None:
        return "float"
    if acts is None:
        return f"float, {weights}-bit weights stored as {str(storage).upper()}"
    if (weights, acts) == (8, 8):
        return "INT8"
    grids = [
        f"{n}-bit {what} grid" for n, what in ((weights, "weight"), (acts, "activation")) if n < 8
    ]
    return f"INT8 ({', '.join(grids)})"


QUANTIZE = Stage("quantize", _inputs, _run, {RECORD: "calibration.json"})
