"""Distillation into the quantized network: FDDA's student step on real and synthetic images."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor, nn

from fdda_deploy.pipeline.network import Progress
from fdda_deploy.pipeline.quantization.convert import QuantNetwork

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""Gives (images, labels) of a batch; label -1 means unknown."""


HISTORY_POINTS = 200
"""About how many points a loss curve keeps."""


@dataclass(frozen=True)
class FinetuneSettings:
    """One student schedule.

    Attributes:
        num_steps: SGD steps.
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


@dataclass(frozen=True)
class FinetuneResult:
    """What fine-tuning did.

    Attributes:
        kept: The fine-tuned weights are better on held-out images, and stay.
        before: Mean KL(teacher || student) on the held-out images before, in nats.
        after: The same afterwards.
        steps: SGD steps taken.
        history: Loss curves, one value per recorded step.
        history_every: Steps between two recorded ones.
    """

    kept: bool
    before: float
    after: float
    steps: int
    history: dict[str, list[float]] = field(default_factory=dict)
    history_every: int = 1


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Returns ``KL(softmax(teacher / tau) || softmax(student / tau))`` in nats, mean over images.

    Args:
        student: Logits ``(N, classes)``.
        teacher: Logits ``(N, classes)``.
        temperature: ``tau``.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def student_loss(student: Tensor, teacher: Tensor, labels: Tensor, s: FinetuneSettings) -> Tensor:
    """Returns FDDA's student loss (arXiv 2109.04186): ``CE + alpha tau^2 KL``.

    Unlabelled images (-1) count in the distillation term alone.
    """
    loss = s.alpha * s.temperature**2 * distillation_loss(student, teacher, s.temperature)
    known = labels >= 0
    if known.any():
        loss = loss + F.cross_entropy(student[known], labels[known])
    return loss


def augmented(images: Tensor, generator: torch.Generator, mode: str, min_crop: float) -> Tensor:
    """Returns a random crop of each image, resized back, flipped at random with ``crop-flip``.

    Args:
        images: ``(N, C, H, W)``.
        generator: Source of all randomness.
        mode: ``crop-flip``, ``crop`` or ``none``.
        min_crop: Smallest share of the side that a crop keeps, in (0, 1].
    """
    if mode == "none":
        return images
    count = len(images)
    side = min_crop + (1 - min_crop) * torch.rand(count, generator=generator)
    shift = (2 * torch.rand(count, 2, generator=generator) - 1) * (1 - side)[:, None]
    flip = torch.ones(count)
    if mode == "crop-flip":
        flip = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = side * flip, side
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


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
) -> FinetuneResult:
    """Trains weights and biases of ``network`` in place; keeps them only if they help.

    Help is measured without labels, as KL(teacher || student) on ``held_out``, images that no step
    sees. The integer grids stay as calibrated.

    Args:
        network: Calibrated.
        teacher: Float network.
        draws: One per kind of image (real, synthetic); each gives ``batch_size`` images a step.
        held_out: ``(N, C, H, W)``.
        settings: The schedule.
        device: Where to train.
        seed: Of batches and augmentation.
        progress: Called with (step, steps, text).
    """
    network.to(device)
    teacher = teacher.to(device).eval()
    start = {name: value.detach().clone() for name, value in network.named_parameters()}
    before = divergence(network, teacher, held_out, device)
    network.requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    losses = _train(network, teacher, draws, settings, generator, progress)
    network.requires_grad_(False)
    after = divergence(network, teacher, held_out, device)
    kept = after < before  # NaN compares false: a diverged student is never kept
    if not kept:
        with torch.no_grad():
            for name, value in network.named_parameters():
                value.copy_(start[name])
    every = max(1, len(losses) // HISTORY_POINTS)
    history = {"student_loss": [float(value) for value in losses[::every]]}
    return FinetuneResult(kept, before, after, settings.num_steps, history, every)


def _train(
    network: QuantNetwork,
    teacher: nn.Module,
    draws: list[Draw],
    settings: FinetuneSettings,
    generator: torch.Generator,
    progress: Progress | None,
) -> list[Tensor]:
    """Takes all steps; returns the loss of each, still on the device."""
    device = next(network.parameters()).device
    optimizer = _optimizer(network, settings)
    period = settings.cosine_period_steps or settings.num_steps
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=period)
    losses: list[Tensor] = []
    for step in range(settings.num_steps):
        images, labels = _batch(draws, settings, generator, device)
        with torch.no_grad():
            target = teacher(images)
        loss = student_loss(network(images), target, labels, settings)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        if progress is not None:
            progress(step + 1, settings.num_steps, "fine-tuning")
    return losses


@torch.no_grad()
def divergence(
    network: nn.Module, teacher: nn.Module, images: Tensor, device: torch.device
) -> float:
    """Returns the mean KL(teacher || student) at temperature 1 over ``images``, in nats."""
    total = 0.0
    for batch in torch.split(images, 32):
        x = batch.to(device)
        total += float(distillation_loss(network(x), teacher(x), 1.0)) * len(batch)
    return total / max(1, len(images))


def _batch(
    draws: list[Draw], settings: FinetuneSettings, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    parts = [draw(settings.batch_size, generator) for draw in draws]
    images = torch.cat([part[0] for part in parts]).to(device)
    labels = torch.cat([part[1] for part in parts]).to(device)
    return augmented(images, generator, settings.augment, settings.min_crop), labels


def _optimizer(network: nn.Module, settings: FinetuneSettings) -> torch.optim.Optimizer:
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
