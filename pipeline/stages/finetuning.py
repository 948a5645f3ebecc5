"""Distillation in the quantize stage: which schedule, on which images, and what came of it."""

from __future__ import annotations

from fdda_deploy.pipeline.progress import Progress
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.finetune import (
    Draw,
    FinetuneResult,
    FinetuneSettings,
    finetune,
    frozen_copy,
)
from fdda_deploy.pipeline.stages.context import RunContext
from fdda_deploy.pipeline.stages.images import Pool
from fdda_deploy.pipeline.stages.interleaved import interleaved_draw
from fdda_deploy.pipeline.stages.rounding import effort_of
from fdda_deploy.pipeline.synthesis.recipes import Recipe, recipe_named
from fdda_deploy.pipeline.workspace import Json

REDUCED_FINETUNE_STEPS = {"small": 300, "large": 40}
"""Student steps where the generator's schedule is reduced, up to 64 px and above."""
SCALE_STEPS = {"small": 300, "large": 800}
"""The same where scales and biases alone are trained: Adam gets somewhere in fewer."""
SCALE_RATE = {"below 8 bits": 2e-3, "8 bits": 1e-4}
"""Peak rate of scales and biases, by the width of activations; steps of activations take twice
that. With 8 bits little is wrong, and 5e-4 made mobilenet_v2 worse before it got better."""
SCALE_TEMPERATURE = 2.0
"""FDDA's 20 matches logits; what is judged is the KL of the prediction itself."""


def finetune_settings(context: RunContext) -> FinetuneSettings:
    """Returns the student schedule: the recipe's, shortened where the generator's is."""
    recipe = context.recipe or recipe_named("fdda")
    published = context.published_recipe or recipe_named("fdda")
    full_steps = published.student_steps
    steps, trainable = full_steps, _trainable(context)
    if recipe.num_steps < published.num_steps or context.recipe is None:
        table = REDUCED_FINETUNE_STEPS if trainable == "all" else SCALE_STEPS
        steps = table["small" if context.small_images else "large"]
    steps = context.config.quantize.finetune_steps or steps
    period = published.student_cosine_period_steps * steps / max(1, full_steps)
    on_cpu = context.device.type == "cpu"
    rate = SCALE_RATE["8 bits" if context.config.quantize.act_bits >= 8 else "below 8 bits"]
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
        loss=_finetune_loss(context, recipe),
        psg=context.config.quantize.psg,
        scale_clip=context.config.quantize.scale_clip,
        trainable=trainable,
        scale_lr=rate,
        step_lr=2 * rate,
        bias_lr=rate,
        easy_confidence=recipe.student_easy_confidence,
        cam_weight=recipe.student_cam_weight,
        memory_limit_bytes=int(context.config.quantize.memory_limit * 2**30) if on_cpu else None,
    )


def finetunes(context: RunContext) -> bool:
    """Whether to fine-tune: as asked, else with every effort but ``fast``; never FP8 and FP16."""
    if context.config.quantize.numbers != "integer":
        return False
    asked = context.config.quantize.finetune
    return effort_of(context) != "fast" if asked is None else asked


def _finetune_loss(context: RunContext, recipe: Recipe) -> str:
    """Returns the student's loss: the one asked for, else the recipe's (``dkd`` for ``lrq``)."""
    asked = context.config.quantize.finetune_loss
    return recipe.finetune_loss if asked == "fdda" else asked


def _trainable(context: RunContext) -> str:
    """Returns what the student trains: after rounding by images, scales and biases alone.

    Straight-through steps on weights would undo the rounding; who asks for a method that moves
    weights gets it all the same.
    """
    settings = context.config.quantize
    moves = settings.psg or settings.scale_clip is not None
    return "all" if moves or effort_of(context) == "none" else "scales-and-biases"


def finetuned(
    context: RunContext, network: QuantNetwork, pool: Pool, progress: Progress
) -> dict[str, Json] | None:
    """Distils into ``network`` where the build does so; returns what happened, None if it did not.

    Whatever was trained stays only if it helps on held-out images.
    """
    if not finetunes(context):
        return None
    draws: list[Draw] = pool.draws()
    recipe = context.recipe
    if recipe is not None and recipe.interleave_finetune:
        draws[-1] = interleaved_draw(context, recipe)
    result = finetune(
        network,
        frozen_copy(context.float_graph.module),
        draws,
        pool.held_out(),
        finetune_settings(context),
        device=context.device,
        seed=context.config.run.seed,
        progress=progress,
        ranks=context.ranks,
    )
    return _record(result, pool.holds_out)


def _record(result: FinetuneResult, holds_out: bool) -> dict[str, Json]:
    judges = "held-out images" if holds_out else "the images trained on, too few to hold any out"
    better = f"{result.before:.4g} to {result.after:.4g} nats on {judges}"
    reason = f"kept: KL fell from {better}" if result.kept else f"not kept: KL went from {better}"
    return {
        "steps": result.steps,
        "images_at_once": result.images_at_once,
        "kept": result.kept,
        "metric": f"KL(float || quantized), nats, {judges}",
        "before": result.before,
        "after": result.after if result.after == result.after else None,
        "history": {name: list(values) for name, values in result.history.items()},
        "history_every": result.history_every,
        "reason": reason,
    }
