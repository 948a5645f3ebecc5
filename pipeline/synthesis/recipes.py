"""Recipes: what a method is made of, as data over the one loop in ``synthesize.py``.

A recipe names a source of images, weights of loss terms, a schedule and augmentations
(`Recipe`); any field can be overridden, so ``fdda`` from a long-range generator or with DSG's slack
is a line of configuration. Choosing the best epoch on the test set, as published code does, has no
option here.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args, get_origin, get_type_hints

from fdda_deploy.errors import ConfigError
from fdda_deploy.pipeline.synthesis.recipe_fields import Recipe

__all__ = ["RECIPES", "Recipe", "recipe_named"]

_FDDA_PAPER = Recipe("fdda-paper")
"""FDDA (arXiv 2109.04186) with every value of its published code."""

_FDDA = dataclasses.replace(
    _FDDA_PAPER,
    name="fdda",
    noise="relative",
    clamp_variance=True,
    interleave_finetune=False,
    student_cosine_period_steps=70_000,
    ranges_from="trained",
    quantize_everything=True,
)
"""FDDA with the defects of its published code mended; the mended fields say so."""

_GDFQ = dataclasses.replace(
    _FDDA,
    name="gdfq",
    uses_centers=False,
    ce_random_weight=1.0,  # L_G = CE + a L_BNS
    alignment_weight=0.1,  # a in GDFQ's published configuration
    ce_class_weight=0.0,
    distorted_weight=0.0,
    centralized_weight=0.0,
    class_batch=0,
    student_alpha=1.0,
)
"""GDFQ (arXiv 2003.03603): class-conditional generator, cross entropy and L_BNS; no real image."""

_LRQ = dataclasses.replace(
    _GDFQ,
    name="lrq",
    source="long-range",
    margin_weight=0.5,
    finetune_loss="dkd",
)
"""LRQ (arXiv 2211.06816), of which only the abstract was at hand.

The paper's: a generator with large-kernel attention, a margin against the class center, decoupled
distillation. Our reading: the attention's form (depthwise 5x5, dilated depthwise 7x7, 1x1, a field
of 21 x 21) and place, the margin as a hinge on the cosine to the classifier's row with 60 degrees
and weight 0.5, GDFQ's other losses and schedule. The paper's figures are not claimed.
"""

_ZEROQ = dataclasses.replace(
    _GDFQ,
    name="zeroq",
    source="pixels",
    set_batch=64,
    ce_random_weight=0.0,
    alignment_weight=1.0,
    num_epochs=500,
    steps_per_epoch=1,
    warmup_epochs=0,
    gate_epoch=0,
    lr=0.1,
    betas=(0.9, 0.999),
    lr_decay="cosine",
    lr_milestones=(),
)
"""ZeroQ: the images themselves are optimised on L_BNS, from Gaussian noise.

The paper's: source and loss. Ours: 500 steps of 64 images, Adam at 0.1 with cosine decay, pixels
held to what an image file can store, labels from the network's prediction.
"""

_DSG = dataclasses.replace(
    _ZEROQ,
    name="dsg",
    set_batch=0,
    statistic="deviation",
    norm="channels",
    slack_quantile=0.9,
    layer_enhancement=True,
)
"""DSG (arXiv 2103.01049): slack distribution alignment and layerwise sample enhancement.

The paper's: slack from the 0.9-quantile of the gaps of Gaussian noise images, means and standard
deviations, one image per layer with that layer's weight doubled, pixels optimised directly. Our
reading: each image has its own statistics (with those of the batch, doubling would only scale the
loss), the slack is measured on such statistics, image i of a larger set belongs to layer i mod L.
The optimizer and its schedule are `zeroq`'s, ours.
"""

_GENIE = dataclasses.replace(
    _ZEROQ,
    name="genie",
    source="latent",
    set_batch=128,
    latent_dim=256,
    latent_lr=0.1,
    lr=0.01,
    statistic="deviation",
    norm="layers",
    input_statistics=True,
    swing=True,
    num_epochs=4000,
)
"""Genie-D (CVPR 2023): learned latents and a fresh generator for each batch of the set.

The paper's: z in R^256, 128 images a generator, 4000 steps, rates 0.1 for z and 0.01 for the
generator, means and standard deviations summed over layers, the input as a layer, swing
convolution. Ours: FDDA's generator without classes, both rates falling along a cosine.
"""

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {recipe.name: recipe for recipe in (_FDDA, _FDDA_PAPER, _GDFQ, _LRQ, _ZEROQ, _DSG, _GENIE)}
)
"""Every recipe by name, with its full schedule."""


def recipe_named(name: str, overrides: Mapping[str, object] = MappingProxyType({})) -> Recipe:
    """Returns a recipe, with some fields replaced.

    Args:
        name: A key of `RECIPES`.
        overrides: Field names and values, as a TOML table gives them (lists for tuples).

    Raises:
        ConfigError: Unknown recipe or field (with near names), a value of another type or out of
            range.
    """
    if name not in RECIPES:
        raise ConfigError(f"--recipe {name}: {_instead(name, list(RECIPES))}")
    hints = get_type_hints(Recipe)
    fields = [key for key in hints if key != "name"]
    for key in overrides:
        if key not in fields:
            raise ConfigError(f"recipe {name}: there is no field {key}. {_instead(key, fields)}")
    values = {key: _typed(name, key, value, hints[key]) for key, value in overrides.items()}
    recipe = dataclasses.replace(RECIPES[name], **values)  # type: ignore[arg-type]  # checked by _typed
    if recipe.class_batch and not recipe.uses_centers:
        raise ConfigError(
            f"recipe {name}: class_batch {recipe.class_batch} needs class centers, which "
            "this recipe does not use. Want class_batch 0, or --recipe fdda."
        )
    return recipe


def _typed(recipe: str, key: str, value: object, hint: object) -> object:
    """Returns ``value`` as its field's type, or refuses it."""
    options = get_args(hint)
    if get_origin(hint) is Literal:
        if value not in options:
            raise ConfigError(f"recipe {recipe}: {key} = {value!r}: want {' or '.join(options)}.")
        return value
    if get_origin(hint) is tuple:
        repeated = options[-1] is Ellipsis
        if not isinstance(value, list | tuple) or (not repeated and len(value) != len(options)):
            count = "" if repeated else f"{len(options)} "
            raise ConfigError(f"recipe {recipe}: {key} = {value!r}: want a list of {count}numbers.")
        return tuple(_typed(recipe, key, entry, options[0]) for entry in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}
        text = wanted.get(hint, "text") if isinstance(hint, type) else "another type"
        raise ConfigError(f"recipe {recipe}: {key} = {value!r}: want {text}.")
    return value


def _instead(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(near)}?" if near else f"Want one of {', '.join(known)}."
