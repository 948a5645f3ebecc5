"""Effort: how far the quantize stage goes beyond nearest rounding, and how it spends its images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from typing import TypedDict

import torch
from torch import Tensor, fx

from fdda_deploy.pipeline.allocator import return_freed_memory
from fdda_deploy.pipeline.progress import Progress
from fdda_deploy.pipeline.quantization.clipping import worthwhile_clips
from fdda_deploy.pipeline.quantization.closed_form import RoundingSettings, round_network
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.equalize import equalize
from fdda_deploy.pipeline.quantization.fisher import Done, counted
from fdda_deploy.pipeline.quantization.reconstruct import reconstruct
from fdda_deploy.pipeline.quantization.reconstruction_settings import RECONSTRUCTION
from fdda_deploy.pipeline.quantization.weighed_values import WeighedValues, weighed_values
from fdda_deploy.pipeline.stages.context import RunContext
from fdda_deploy.pipeline.stages.images import Pool
from fdda_deploy.pipeline.stages.judging import kept_if_better
from fdda_deploy.pipeline.stages.placing import compacts, placement_of
from fdda_deploy.pipeline.workspace import Json

NUM_IMAGES = {"small": 2048, "large": 1000}
"""Most images that rounding and reconstruction see, up to 64 px and above."""
ENOUGH_FOR_8_BITS = 128
"""The same above 64 px with 8-bit weights, whose rounding decides little. mobilenet_v2 w8a8, KL on
500 tune images by seed with 256 images: 0.0081, 0.0085; with 128, in 0.6 of the time: 0.0083,
0.0081; with 64: 0.0093 (one seed)."""
EQUALIZE_IMAGES = 256
CLIPS_BELOW = 6
"""Bits of activations below which a channel's largest values are not worth their steps."""
WEIGHED_IMAGES = 256
"""Images whose gradients say what values are worth; each takes three times an inference."""
ENOUGH_WEIGHED_FOR_8_BITS = 64
"""The same of real images above 64 px, where values are not clipped. mobilenet_v2 w8a8, KL on 500
tune images: 0.0072, 0.0074 with 128; of synthetic images 0.0165, but 0.0140 with 256."""
WEIGHING = "weighing values"
LEAST_ERROR = ("mse", "lp")
"""Observers whose errors can count what they cost."""
DENSE_EXPONENT = 0.25
"""For 8-bit weights, or activations below 8 bits. A 4-bit weight behind 8-bit activations has no
precision to give away: there dense layers keep their columns."""
_STREAM_SHARE = 0.25
"""Share of the memory limit for activations between blocks; images, weights and the network's own
temporaries need the rest."""
_RESIDENT_SHARE = 0.75
"""Above this share of the memory limit freed memory goes back, which costs time."""
_BATCH = 8


class _CompactPlan(TypedDict, total=False):
    floats: Collection[str]
    alike: Mapping[str, str]


def effort_of(context: RunContext) -> str:
    """Returns ``none``, ``fast``, ``normal`` or ``best``; ``auto`` depends on what is at hand.

    The published recipe rounds to nearest, so that its figures stay comparable.
    """
    asked = context.config.quantize.effort
    if context.config.quantize.numbers != "integer":
        return "none"
    if asked != "auto":
        return asked
    if context.recipe is not None and not context.recipe.quantize_everything:
        return "none"
    return "normal" if context.small_images or context.device.type == "cuda" else "fast"


def reference_of(context: RunContext, pool: Pool, progress: Progress) -> fx.GraphModule:
    """Returns the float graph to quantize: the network's own, or with its channels equalised."""
    if effort_of(context) == "none":
        return context.float_graph.module
    progress(0, 0, "equalising channels")
    scheme = context.config.quantize.scheme
    weights_pay = scheme.weight_bits < 8 and scheme.act_bits >= 8
    module = copy.deepcopy(context.float_graph.module).to(context.device)
    images = pool.sample(EQUALIZE_IMAGES)
    batches = [batch.to(context.device) for batch in torch.split(images, _BATCH)]
    clips = None
    if scheme.act_bits < CLIPS_BELOW:
        few = batches[: num_weighed(context) // _BATCH]
        told = counted(progress, sum(map(len, few)), WEIGHING)
        clips = worthwhile_clips(module, few, scheme.act_bits, seed=pool.seed, done=told)
        return_freed_memory()
    equalize(
        module,
        batches,
        dense=0.0 if weights_pay else DENSE_EXPONENT,
        clips=clips,
        center=scheme.act_bits >= 8 and not weights_pay,
        **_of_compact_plan(context),
    )
    return module


def weighed_tensors(
    context: RunContext,
    network: QuantNetwork,
    reference: fx.GraphModule,
    batches: Iterable[Tensor],
    told: Callable[[], Done],
) -> dict[str, WeighedValues]:
    """Returns, by node name, values of what is quantized and what each is worth; maybe none.

    For observers of least error, whose errors then count what the prediction loses by them.
    ``told`` begins to tell how many images are done.
    """
    if effort_of(context) == "none" or context.config.quantize.observer not in LEAST_ERROR:
        return {}
    tensors = {point.tensor for point in network.placement.activations}
    return weighed_values(
        reference.to(context.device),
        {network.names.fx_from_tensor[tensor] for tensor in tensors},
        (batch.to(context.device) for batch in batches),
        seed=context.config.run.seed,
        done=told(),
    )


def num_weighed(context: RunContext, num_synthetic: int = 0) -> int:
    """Returns how many images say what values are worth, if so many of them are synthetic."""
    many_steps = context.config.quantize.scheme.act_bits >= CLIPS_BELOW
    enough = many_steps and not context.small_images and not num_synthetic
    return ENOUGH_WEIGHED_FOR_8_BITS if enough else WEIGHED_IMAGES


def _of_compact_plan(context: RunContext) -> _CompactPlan:
    """Returns what equalisation does about one scale per weight and scales that are shared."""
    if not compacts(context):
        return {}
    placement, graph = placement_of(context), context.float_graph
    return {
        "floats": {graph.fx_from_node[node] for node, _ in placement.left_float},
        "alike": {
            graph.fx_from_tensor[point.tensor]: point.shares
            for point in placement.activations
            if point.shares
        },
    }


def rounded(
    context: RunContext,
    network: QuantNetwork,
    reference: fx.GraphModule,
    pool: Pool,
    progress: Progress,
) -> dict[str, Json]:
    """Rounds in closed form and, with effort ``best``, reconstructs; returns what happened.

    Either is kept only if KL(float || quantized) of held-out images falls. A short reconstruction
    is in no effort: from a closed-form start it lowered the error of hardly any block in the time
    that distillation needs (benchmarks/ablation.py).
    """
    effort = effort_of(context)
    if effort == "none":
        return {"effort": effort, "closed_form": None, "reconstruction": None}
    progress(0, 0, "loading images")
    images = pool.sample(_num_images(context))
    held_out = pool.held_out()
    parts = context, network, reference, images, progress
    record: dict[str, Json] = {"effort": effort, "images": len(images), "reconstruction": None}
    record["closed_form"] = kept_if_better(
        context, network, held_out, lambda: _in_closed_form(*parts)
    )
    if effort == "best":
        record["reconstruction"] = kept_if_better(
            context, network, held_out, lambda: _reconstructed(*parts)
        )
    return record


def _num_images(context: RunContext) -> int:
    if context.small_images:
        return NUM_IMAGES["small"]
    wide = context.config.quantize.scheme.weight_bits >= 8 and effort_of(context) != "best"
    return ENOUGH_FOR_8_BITS if wide else NUM_IMAGES["large"]


def _in_closed_form(
    context: RunContext,
    network: QuantNetwork,
    reference: fx.GraphModule,
    images: Tensor,
    progress: Progress,
) -> dict[str, Json]:
    found = round_network(
        network,
        reference,
        torch.split(images, _BATCH),
        settings=RoundingSettings(),
        device=context.device,
        seed=context.config.run.seed,
        memory_limit_bytes=int(_limit_bytes(context) * _STREAM_SHARE),
        resident_limit_bytes=int(_limit_bytes(context) * _RESIDENT_SHARE),
        progress=progress,
    )
    return {"left": [list(pair) for pair in found.left], "seconds": found.seconds}


def _reconstructed(
    context: RunContext,
    network: QuantNetwork,
    reference: fx.GraphModule,
    images: Tensor,
    progress: Progress,
) -> dict[str, Json]:
    settings = RECONSTRUCTION[effort_of(context)]
    found = reconstruct(
        network,
        reference,
        torch.split(images, _BATCH),
        settings=settings,
        device=context.device,
        seed=context.config.run.seed,
        memory_limit_bytes=_limit_bytes(context) // 2,
        progress=progress,
    )
    return {
        "settings": dict(asdict(settings)),
        "blocks": len(found.blocks),
        "blocks_kept": sum(block.kept for block in found.blocks),
        "warnings": list(found.warnings),
        "seconds": found.seconds,
    }


def _limit_bytes(context: RunContext) -> int:
    return int(context.config.quantize.memory_limit * 2**30)
