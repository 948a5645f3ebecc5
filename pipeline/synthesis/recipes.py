"""Recipes: what a method is made of, as data over the one training loop in ``synthesize.py``.

``fdda`` is FDDA (arXiv 2109.04186) with the defects of its published code mended; ``fdda-paper``
puts the published values back; ``gdfq`` (arXiv 2003.03603) needs no real image. One published habit
has no option here: choosing the best epoch on the test set.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args, get_origin, get_type_hints

from fdda_deploy.errors import ConfigError


def _require(recipe: str, key: str, value: float, *, at_least: int) -> None:
    if not at_least <= value < math.inf:  # NaN compares false, and is refused too
        raise ConfigError(f"recipe {recipe}: {key} = {value}: want at least {at_least}, finite.")


@dataclass(frozen=True)
class Recipe:
    """One way to make images, and to fine-tune on them. Defaults are FDDA's published values.

    A field marked *mended* differs between ``fdda`` and ``fdda-paper``.

    Attributes:
        name: What ``--recipe`` calls it.
        uses_centers: Needs class centers, so at least one real image per class.
        ce_random_weight: Cross entropy of the batch with random labels; 0.5.
        ce_class_weight: Cross entropy of the one-class batch; 0.5.
        alignment_weight: L_BNS of the random batch; 0.2.
        distorted_weight: L_D of the one-class batch; 0.9.
        centralized_weight: L_C of the one-class batch; 0.01 in the published code, 0.05 in
            the paper.
        fallback_factor: What L_D's weight is multiplied by for a class that the network gets wrong,
            drawn before ``gate_epoch``: its targets are N(0, 1) over all layers; 2.
        noise: *Mended.* What the distorted targets' noise is measured in. ``absolute``, published:
            plain units, whatever a layer's scale. ``relative``, ours: the channel's own running
            standard deviation and variance. (Half of mobilenet_v2's deep channels have a variance
            under 0.03: absolute noise, clamped, asks them for 15 times that on average.)
        sigma_mean: Noise on mean targets; 0.5.
        sigma_variance: Noise on variance targets; 1.0.
        clamp_variance: *Mended.* Raise negative variance targets to 0; published: left negative.
        random_batch: Images with random labels per step; 16.
        class_batch: Images of one class per step; 16 (0 without centers).
        num_epochs: 400.
        steps_per_epoch: Generator steps in an epoch; 200.
        warmup_epochs: Epochs of the generator alone before the student trains; 50.
        gate_epoch: First epoch that draws only classes the network classifies correctly; 5.
        lr: Adam's; 1e-3.
        betas: Adam's; (0.5, 0.999).
        lr_milestones: Epochs that multiply the rate by ``lr_gamma``; 100, 200, 300.
        lr_gamma: 0.1.
        latent_dim: Length of z; 100.
        interleave_finetune: *Mended.* Published: the generator goes on training while the student
            trains on its latest images. Ours trains it to the end first: stages stay files, and the
            student sees the best images only.
        student_batch: Images of each kind, real and synthetic, per student step; 16.
        student_lr: SGD with Nesterov momentum; 1e-6.
        student_momentum: 0.9.
        student_weight_decay: 1e-4.
        student_alpha: Weight of the distillation term; 20 (GDFQ: 1).
        student_temperature: tau of both softmaxes; 20.
        student_cosine_period_steps: *Mended.* Steps from the peak rate to zero. Published: 20,000
            over 70,000 steps, so that the rate comes back up three times; ours: all 70,000.
        ranges_from: *Mended.* Which images set the activation ranges. ``untrained-generator``,
            published: frozen from noise; ``trained``, ours.
        quantize_everything: *Mended.* False, published: the network input, the last layer's
            input, residual and linear-bottleneck tensors stay in float; True: all that the engine
            executes.
    """

    name: str
    uses_centers: bool = True
    ce_random_weight: float = 0.5
    ce_class_weight: float = 0.5
    alignment_weight: float = 0.2
    distorted_weight: float = 0.9
    centralized_weight: float = 0.01
    fallback_factor: float = 2.0
    noise: Literal["absolute", "relative"] = "absolute"
    sigma_mean: float = 0.5
    sigma_variance: float = 1.0
    clamp_variance: bool = False
    random_batch: int = 16
    class_batch: int = 16
    num_epochs: int = 400
    steps_per_epoch: int = 200
    warmup_epochs: int = 50
    gate_epoch: int = 5
    lr: float = 1e-3
    betas: tuple[float, float] = (0.5, 0.999)
    lr_milestones: tuple[int, ...] = (100, 200, 300)
    lr_gamma: float = 0.1
    latent_dim: int = 100
    interleave_finetune: bool = True
    student_batch: int = 16
    student_lr: float = 1e-6
    student_momentum: float = 0.9
    student_weight_decay: float = 1e-4
    student_alpha: float = 20.0
    student_temperature: float = 20.0
    student_cosine_period_steps: int = 20_000
    ranges_from: Literal["untrained-generator", "trained"] = "untrained-generator"
    quantize_everything: bool = False

    def __post_init__(self) -> None:
        for key in _AT_LEAST_ONE:
            _require(self.name, key, getattr(self, key), at_least=1)
        for key in _NOT_NEGATIVE:
            _require(self.name, key, getattr(self, key), at_least=0)
        if self.random_batch < 2 or self.class_batch == 1:
            raise ConfigError(
                f"recipe {self.name}: got random_batch {self.random_batch} and class_batch "
                f"{self.class_batch}. Want at least 2 images in each (the generator's BatchNorm "
                "needs them), or class_batch 0."
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"recipe {self.name}: betas {list(self.betas)}: want 0 <= beta < 1.")
        if list(self.lr_milestones) != sorted(self.lr_milestones):
            raise ConfigError(
                f"recipe {self.name}: lr_milestones {list(self.lr_milestones)}: want rising epochs."
            )

    @property
    def num_steps(self) -> int:
        """Generator steps in total."""
        return self.num_epochs * self.steps_per_epoch

    def lr_at(self, epoch: int) -> float:
        """Returns the generator's learning rate in ``epoch``."""
        passed = sum(epoch >= milestone for milestone in self.lr_milestones)
        return float(self.lr * self.lr_gamma**passed)


_AT_LEAST_ONE = (
    "num_epochs",
    "steps_per_epoch",
    "latent_dim",
    "student_batch",
    "student_cosine_period_steps",
)
_NOT_NEGATIVE = tuple(
    field.name
    for field in dataclasses.fields(Recipe)
    if field.type in {"float", "int"} and field.name not in _AT_LEAST_ONE
)

_FDDA_PAPER = Recipe("fdda-paper")
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

SHORT_RUN: Mapping[str, object] = MappingProxyType({"lr": 1e-2, "lr_milestones": (200, 300, 360)})
"""Overrides for `reduced` runs of some hundred steps, where the published rate gets nowhere.

cifar_resnet20, ``fdda``, one seed: 240 steps at 1e-3 give images of which the network recognises
12 %, at 1e-2 50 %. 400 steps at 1e-2 give 66 % with the published milestones, 86 % with these.
"""

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {recipe.name: recipe for recipe in (_FDDA, _FDDA_PAPER, _GDFQ)}
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


def reduced(recipe: Recipe, num_steps: int) -> Recipe:
    """Returns the recipe scaled to ``num_steps`` generator steps in total, proportions kept.

    Epochs become one step long, and every epoch field moves to the same share of the run: FDDA's
    gate at epoch 5 of 400 becomes step 15 of 1,200. The student's cosine period scales alike.
    Learning rates stay: see `SHORT_RUN`.

    Raises:
        ConfigError: ``num_steps`` is under 1.
    """
    if num_steps < 1:
        raise ConfigError(f"synthesis steps: got {num_steps}, want at least 1.")
    share = num_steps / recipe.num_epochs

    def scaled(epoch: int) -> int:
        return round(epoch * share)

    return dataclasses.replace(
        recipe,
        num_epochs=num_steps,
        steps_per_epoch=1,
        warmup_epochs=scaled(recipe.warmup_epochs),
        gate_epoch=scaled(recipe.gate_epoch),
        lr_milestones=tuple(scaled(epoch) for epoch in recipe.lr_milestones),
        student_cosine_period_steps=max(
            1, round(recipe.student_cosine_period_steps * num_steps / recipe.num_steps)
        ),
    )


def describe_schedule(recipe: Recipe, published: Recipe) -> str:
    """Returns one line for reports: how much of the published schedule a run has.

    Example:
        >>> describe_schedule(reduced(RECIPES["fdda"], 1200), RECIPES["fdda"])
        'reduced schedule: 1,200 of 80,000 generator steps'
    """
    if recipe.num_steps == published.num_steps:
        text = f"full schedule: {recipe.num_steps:,} generator steps"
    else:
        word = "reduced" if recipe.num_steps < published.num_steps else "extended"
        text = f"{word} schedule: {recipe.num_steps:,} of {published.num_steps:,} generator steps"
    ours = (recipe.random_batch, recipe.class_batch)
    theirs = (published.random_batch, published.class_batch)
    if ours != theirs:
        text += f", {ours[0]} + {ours[1]} images a step instead of {theirs[0]} + {theirs[1]}"
    if recipe.lr != published.lr:
        text += f", learning rate {recipe.lr:g} instead of {published.lr:g}"
    return text


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
