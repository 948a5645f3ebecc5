"""The fields of a recipe: what a method of making images is made of, and its limits."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

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
        student_easy_confidence: The student's cross entropy counts only images to whose label the
            float network gives at least this probability (SynQ); 0 counts all.
        student_cam_weight: Weight of the distance between the class activation maps of both
            networks (SynQ; `quantization.activation_maps`).
        student_cosine_period_steps: *Mended.* Steps from the peak rate to zero. Published: 20,000
            over 70,000 steps, so that the rate comes back up three times; ours: all 70,000.
        ranges_from: *Mended.* Which images set the activation ranges. ``untrained-generator``,
            published: frozen from noise; ``trained``, ours.
        quantize_everything: *Mended.* False, published: the network input, the last layer's
            input, residual and linear-bottleneck tensors stay in float; True: all that the engine
            executes.
        finetune_loss: The student's loss where the user names none: ``fdda`` or ``dkd`` (LRQ).
        source: What the images come from. ``generator``: FDDA's, conditioned on the class;
            ``long-range``: the same with large-kernel attention (LRQ); both are trained once and
            draw the whole set. ``latent``: learned latent vectors and a fresh generator for each
            batch of the set (Genie); ``pixels``: the images themselves (ZeroQ, DSG).
        set_batch: Images optimised together where they are learned; 0 takes as many as there
            are BatchNorm layers (DSG).
        width: Channels of the generator's first two stages; the last has half. 128.
        statistic: Second statistic that is aligned: the ``variance``, or its root, the
            ``deviation`` (Genie, DSG).
        norm: How L_BNS adds up: ``mean`` over layers of a mean over channels; ``layers``, sum
            over layers of a mean over channels (Genie); ``channels``, plain sum (DSG).
        per_image: Statistics of each image by itself instead of those of its batch.
        input_statistics: The image counts as one more layer, with mean 0 and variance 1 (Genie).
        slack_quantile: Gaps up to this quantile of those of Gaussian noise images cost
            nothing (DSG: 0.9); 0 for none.
        layer_enhancement: Image i gives layer ``i mod L`` double weight (DSG); implies
            ``per_image``.
        joint_statistics: The batch is pooled with the images before it, so that the whole set has
            the statistics (DGH).
        swing: Strided convolutions see their input shifted by up to one pixel (Genie).
        margin_weight: Adversarial margin (LRQ).
        margin_degrees: Its angle: closer to their class images are pushed away.
        tv_weight: Total variation: mean squared difference between neighbouring pixels.
        l2_weight: Mean square of the image.
        flip: The network sees each image flipped left to right half of the time.
        shift_px: It sees the batch shifted by up to this many pixels each way.
        low_pass_px: Standard deviation of a Gaussian blur between source and network, in pixels;
            the set that is kept has it too (SynQ).
        latent_lr: Adam's rate for learned latent vectors; ``lr`` is the generator's.
        lr_decay: ``milestones``, or ``cosine`` to zero over the run, or ``constant``.
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
    student_easy_confidence: float = 0.0
    student_cam_weight: float = 0.0
    student_cosine_period_steps: int = 20_000
    ranges_from: Literal["untrained-generator", "trained"] = "untrained-generator"
    quantize_everything: bool = False
    finetune_loss: Literal["fdda", "dkd"] = "fdda"
    source: Literal["generator", "long-range", "latent", "pixels"] = "generator"
    set_batch: int = 128
    width: int = 128
    statistic: Literal["variance", "deviation"] = "variance"
    norm: Literal["mean", "layers", "channels"] = "mean"
    per_image: bool = False
    input_statistics: bool = False
    slack_quantile: float = 0.0
    layer_enhancement: bool = False
    joint_statistics: bool = False
    swing: bool = False
    margin_weight: float = 0.0
    margin_degrees: float = 60.0
    tv_weight: float = 0.0
    l2_weight: float = 0.0
    flip: bool = False
    shift_px: int = 0
    low_pass_px: float = 0.0
    latent_lr: float = 0.1
    lr_decay: Literal["milestones", "cosine", "constant"] = "milestones"

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
        for key, limit in _AT_MOST.items():
            if getattr(self, key) > limit:
                raise ConfigError(
                    f"recipe {self.name}: {key} = {getattr(self, key)}: want at most {limit:g}."
                )
        _check_source(self)

    @property
    def num_steps(self) -> int:
        """Steps of one training: of the generator, or of each batch of learned images."""
        return self.num_epochs * self.steps_per_epoch

    @property
    def learns_images(self) -> bool:
        """Each batch of the set is optimised by itself; nothing is left that draws more."""
        return self.source in {"latent", "pixels"}

    @property
    def labels_by_network(self) -> bool:
        """No term asks for a class, so the float network's prediction labels the images."""
        return not self.ce_random_weight and not self.ce_class_weight

    @property
    def student_steps(self) -> int:
        """Steps of the student on the full schedule."""
        if self.learns_images:
            return self.student_cosine_period_steps
        return (self.num_epochs - self.warmup_epochs) * self.steps_per_epoch

    def lr_at(self, epoch: int) -> float:
        """Returns the generator's learning rate in ``epoch``."""
        return self.lr * self.lr_factor(epoch)

    def lr_factor(self, epoch: int) -> float:
        """Returns what every learning rate is multiplied by in ``epoch``."""
        if self.lr_decay == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * epoch / self.num_epochs))
        if self.lr_decay == "constant":
            return 1.0
        passed = sum(epoch >= milestone for milestone in self.lr_milestones)
        return float(self.lr_gamma**passed)


_AT_LEAST_ONE = (
    "num_epochs",
    "steps_per_epoch",
    "latent_dim",
    "student_batch",
    "student_cosine_period_steps",
    "width",
)
_AT_MOST = {
    "slack_quantile": 1.0,
    "margin_degrees": 90.0,
    "shift_px": 64,
    "low_pass_px": 16.0,
    "student_easy_confidence": 1.0,
}
_NOT_NEGATIVE = tuple(
    field.name
    for field in dataclasses.fields(Recipe)
    if field.type in {"float", "int"} and field.name not in _AT_LEAST_ONE
)


def _check_source(recipe: Recipe) -> None:
    """Checks that the source can do what the other fields ask of it.

    Raises:
        ConfigError: It cannot.
    """
    if recipe.width < 2 or recipe.set_batch == 1:
        raise ConfigError(
            f"recipe {recipe.name}: got width {recipe.width} and set_batch {recipe.set_batch}. "
            "Want at least 2 of each, or set_batch 0 for one image per BatchNorm layer."
        )
    if recipe.joint_statistics and (recipe.per_image or recipe.layer_enhancement):
        raise ConfigError(
            f"recipe {recipe.name}: joint_statistics pools images, and per_image and "
            "layer_enhancement take them one by one. Set one of them to false."
        )
    needs = {
        "class_batch": bool(recipe.class_batch),
        "interleave_finetune": recipe.interleave_finetune,
        "ranges_from": recipe.ranges_from == "untrained-generator",
    }
    wrong = [key for key, asked in needs.items() if asked]
    if recipe.learns_images and wrong:
        raise ConfigError(
            f"recipe {recipe.name}: source {recipe.source} learns the images of the set, and "
            f"{wrong[0]} = {getattr(recipe, wrong[0])!r} needs a generator. Take source generator "
            f"or long-range, or change {wrong[0]}."
        )
