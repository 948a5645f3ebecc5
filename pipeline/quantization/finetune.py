"""Distillation into the quantized network: FDDA's student step on real and synthetic images."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fdda_deploy.errors import ConfigError
from fdda_deploy.pipeline.distributed import ALONE, Ranks
from fdda_deploy.pipeline.network import Progress
from fdda_deploy.pipeline.quantization.augmentation import augmented
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.distillation import LOSSES
from fdda_deploy.pipeline.quantization.fixed_integers import FixedIntegers
from fdda_deploy.pipeline.quantization.judge import Judge
from fdda_deploy.pipeline.quantization.micro_batches import backward_in_parts, images_at_once
from fdda_deploy.pipeline.quantization.same_start import start_alike
from fdda_deploy.pipeline.quantization.student_objective import student_objective
from fdda_deploy.pipeline.quantization.weight_reshaping import (
    WeightReshaper,
    restore,
    snapshot,
)

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""Gives (images, labels) of a batch; label -1 means unknown."""
TRAINABLE = ("all", "scales-and-biases")
CHECK_EVERY = 50
"""Steps between two looks at whether the loss is still a number."""
HISTORY_POINTS = 200
"""About how many points a loss curve keeps."""


@dataclass(frozen=True)
class FinetuneSettings:
    """One student schedule.

    Attributes:
        num_steps: Steps of the optimizer.
        batch_size: Images of each kind (real, synthetic) per step; FDDA: 16.
        optimizer: ``sgd`` (FDDA, Nesterov) or ``adam``.
        lr: Peak learning rate; FDDA: 1e-6 over 70,000 steps.
        momentum: Nesterov momentum; FDDA: 0.9.
        weight_decay: FDDA: 1e-4.
        alpha: Weight of the distillation term; FDDA: 20.
        temperature: Of both softmaxes; FDDA: 20.
        cosine_period_steps: Steps from the peak rate to zero; the published code uses 20,000 over
            70,000 steps, ours ``num_steps``.
        augment: ``crop-flip`` (random resized crop and flip, FDDA), ``crop`` or ``none``.
        min_crop: Smallest share of the image's side that a crop keeps.
        loss: ``fdda`` or ``dkd``, decoupled distillation (`distillation.student_loss`).
        psg: Scale each weight's gradient by its distance from the grid
            (`weight_reshaping.position_scale`); meant for ``sgd``, since Adam divides it out again.
        scale_clip: k of Scale-Clip (`weight_reshaping.scale_clip`); None keeps the weights' grids.
        trainable: ``all`` weights and biases, or ``scales-and-biases``: the integer weights stay,
            and Adam trains their scales, the activation steps and the biases (`fixed_integers`).
        scale_lr: Peak rate of the scales' logarithms, so a relative one: 1e-3 moves a scale by
            about 0.1 % a step. Deep networks want no more (mobilenet_v2: 1e-2 diverges), short ones
            bear ten times that.
        step_lr: Peak rate of the logarithms of the activation steps beside them.
        bias_lr: Peak rate of the biases beside them, in their own unit.
        memory_limit_bytes: A batch that does not fit is taken in parts; None for no limit.
        easy_confidence: CE only where the teacher gives the label this probability (SynQ); 0: all.
        cam_weight: Weight of the class activation maps' distance (SynQ); 0 for none.

    Raises:
        ConfigError: An unknown choice, or choices that exclude each other.
    """

    num_steps: int
    batch_size: int = 16
    optimizer: str = "sgd"
    lr: float = 1e-6
    momentum: float = 0.9
    weight_decay: float = 1e-4
    alpha: float = 20.0
    temperature: float = 20.0
    cosine_period_steps: int | None = None
    augment: str = "crop-flip"
    min_crop: float = 0.6
    loss: str = "fdda"
    psg: bool = False
    scale_clip: float | None = None
    trainable: str = "all"
    scale_lr: float = 1e-3
    step_lr: float = 2e-3
    bias_lr: float = 1e-3
    memory_limit_bytes: int | None = None
    easy_confidence: float = 0.0
    cam_weight: float = 0.0

    def __post_init__(self) -> None:
        for what, value, known in (
            ("loss", self.loss, LOSSES),
            ("trainable", self.trainable, TRAINABLE),
        ):
            if value not in known:
                raise ConfigError(f"finetune {what} {value!r}: want one of {', '.join(known)}.")
        if self.scale_clip is not None and not self.scale_clip > 1:
            raise ConfigError(
                f"finetune scale_clip {self.scale_clip}: want more than 1, for instance 2.5; at 1 "
                "or less every step would shrink the weights towards 0."
            )
        if self.trainable != "all" and (self.psg or self.scale_clip is not None):
            raise ConfigError(
                "finetune trainable 'scales-and-biases' keeps the integer weights, which psg and "
                "scale_clip move. Leave both out, or train 'all'."
            )


@dataclass(frozen=True)
class FinetuneResult:
    """What fine-tuning did.

    Attributes:
        kept: The fine-tuned weights are better on held-out images, and stay.
        before: Mean KL(teacher || student) on the held-out images before, in nats.
        after: The same afterwards.
        steps: Steps taken: all, unless the loss stopped being a number.
        history: Loss curves, one finite value per recorded step.
        history_every: Steps between two recorded ones.
        images_at_once: Images of a step that were in memory together.
    """

    kept: bool
    before: float
    after: float
    steps: int
    history: dict[str, list[float]] = field(default_factory=dict)
    history_every: int = 1
    images_at_once: int = 0


def finetune(
    network: QuantNetwork,
    teacher: nn.Module,
    draws: list[Draw],
    held_out: Tensor,
    settings: FinetuneSettings,
    *,
    device: torch.device,
    seed: int,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> FinetuneResult:
    """Trains weights and biases of ``network`` in place; keeps them only if they help.

    Help is measured without labels, as KL(teacher || student) on ``held_out``, images that no step
    sees. Grids stay as calibrated unless ``scale_clip`` or ``trainable`` says otherwise.

    Args:
        network: Calibrated.
        teacher: Float network.
        draws: One per kind of image (real, synthetic); each gives ``batch_size`` images a step.
        held_out: ``(N, C, H, W)``.
        settings: The schedule.
        device: Where to train.
        seed: Of batches and augmentation.
        progress: Called with (step, steps, text).
        ranks: Who takes a share of each batch; all start from the same network and end with it.
    """
    network.to(device)
    teacher = teacher.to(device).eval()
    start_alike(network, ranks)
    start = snapshot(network)
    judge = Judge(teacher, held_out, device)
    before = judge(network)
    generator = torch.Generator().manual_seed(seed)
    fixed = FixedIntegers(network) if settings.trainable == "scales-and-biases" else None
    try:
        for parameter in network.parameters() if fixed is None else fixed.trained:
            parameter.requires_grad_(True)
        losses, at_once = _train(
            network, teacher, draws, settings, generator, fixed, progress, ranks
        )
        after = judge(network)
    finally:
        network.requires_grad_(False)
        if fixed is not None:
            fixed.remove()
    kept = after < before  # NaN compares false: a diverged student is never kept
    if not kept:
        restore(network, start)  # the steps were never written
    elif fixed is not None:
        fixed.write_back()
    curve = [value for value in map(float, losses) if math.isfinite(value)]
    every = max(1, len(losses) // HISTORY_POINTS)
    history = {"student_loss": curve[::every]}
    return FinetuneResult(kept, before, after, len(losses), history, every, at_once)


def _train(
    network: QuantNetwork,
    teacher: nn.Module,
    draws: list[Draw],
    settings: FinetuneSettings,
    generator: torch.Generator,
    fixed: FixedIntegers | None,
    progress: Progress | None,
    ranks: Ranks,
) -> tuple[list[Tensor], int]:
    """Takes all steps, or those until a check, every 50, finds one that is not finite.

    Returns the loss of each, on the device, and how many images were in memory together.
    """
    device = next(network.parameters()).device
    optimizer = _optimizer(network, settings, fixed)
    reshaper = WeightReshaper(network, psg=settings.psg, clip=settings.scale_clip)
    period = settings.cosine_period_steps or settings.num_steps
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=period)
    losses: list[Tensor] = []
    loss_of = student_objective(network, teacher, settings)
    at_once, text = 0, "fine-tuning"
    reshaper.reshape()
    for step in range(settings.num_steps):
        images, labels = _batch(draws, settings, generator, device)
        mine = ranks.share(len(images))
        if not at_once:
            size, limit = len(images[mine]), settings.memory_limit_bytes
            at_once = images_at_once(network, images[:1], size, limit)
            text += f", {at_once} images at a time" if at_once < size else ""
        optimizer.zero_grad(set_to_none=True)
        loss = backward_in_parts(loss_of, images, labels, mine, at_once)
        ranks.add_gradients(p for group in optimizer.param_groups for p in group["params"])
        reshaper.scale_gradients()
        optimizer.step()
        reshaper.reshape()
        schedule.step()
        losses.append(ranks.add_up(loss))
        if progress is not None:
            progress(step + 1, settings.num_steps, text)
        if step % CHECK_EVERY == CHECK_EVERY - 1 and not math.isfinite(float(losses[-1])):
            break
    return losses, at_once


def _batch(
    draws: list[Draw], settings: FinetuneSettings, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    parts = [draw(settings.batch_size, generator) for draw in draws]
    images = torch.cat([part[0] for part in parts]).to(device)
    labels = torch.cat([part[1] for part in parts]).to(device)
    return augmented(images, generator, settings.augment, settings.min_crop), labels


def _optimizer(
    network: nn.Module, settings: FinetuneSettings, fixed: FixedIntegers | None
) -> torch.optim.Optimizer:
    if fixed is not None:
        return torch.optim.Adam(
            [
                {"params": fixed.gains, "lr": settings.scale_lr},
                {"params": fixed.steps, "lr": settings.step_lr},
                {"params": fixed.biases, "lr": settings.bias_lr},
            ]
        )
    if settings.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), lr=settings.lr)
    return torch.optim.SGD(
        network.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=True,
    )


def frozen_copy(module: nn.Module) -> nn.Module:
    """Returns a copy that takes no gradient: the teacher beside a student that trains."""
    return copy.deepcopy(module).requires_grad_(False).eval()
