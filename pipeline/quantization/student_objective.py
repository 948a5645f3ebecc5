"""What a step of the student is taken for: its loss on a part of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from fdda_deploy.errors import ConfigError
from fdda_deploy.pipeline.quantization.activation_maps import class_maps, map_loss, with_features
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.distillation import student_loss

if TYPE_CHECKING:
    from fdda_deploy.pipeline.quantization.finetune import FinetuneSettings

LossOf = Callable[[Tensor, Tensor, tuple[float, float]], Tensor]
"""Of images, labels and the part that they are of all images and of the labelled ones."""


def student_objective(
    network: QuantNetwork, teacher: nn.Module, settings: FinetuneSettings
) -> LossOf:
    """Returns the loss of some images of a step; see `distillation.student_loss`.

    With ``cam_weight`` it has ``+ cam_weight map_loss`` (`activation_maps`), for each image's label
    or, where none is known, the teacher's class.

    Raises:
        ConfigError: ``cam_weight`` with a network that has no class activation maps.
    """
    if settings.cam_weight:
        return _with_maps(network, teacher, settings)

    def loss_of(x: Tensor, y: Tensor, parts: tuple[float, float]) -> Tensor:
        with torch.no_grad():
            target = teacher(x)
        return _distilled(network(x), target, y, parts, settings)

    return loss_of


def _with_maps(network: QuantNetwork, teacher: nn.Module, settings: FinetuneSettings) -> LossOf:
    if not isinstance(teacher, fx.GraphModule):
        raise ConfigError("student_cam_weight needs a traced teacher. Set it to 0.")
    ours = with_features(network.graph_module, "the quantized network")
    theirs = with_features(teacher, "the float network")

    def loss_of(x: Tensor, y: Tensor, parts: tuple[float, float]) -> Tensor:
        with torch.no_grad():
            target, features, weight = theirs(x)
            classes = torch.where(y >= 0, y, target.argmax(dim=1))
            wanted = class_maps(features, weight, classes)
        logits, features, weight = ours(x)
        apart = map_loss(class_maps(features, weight, classes), wanted)
        distilled = _distilled(logits, target, y, parts, settings)
        return distilled + settings.cam_weight * parts[0] * apart

    return loss_of


def _distilled(
    logits: Tensor,
    target: Tensor,
    labels: Tensor,
    parts: tuple[float, float],
    settings: FinetuneSettings,
) -> Tensor:
    return student_loss(
        logits,
        target,
        labels,
        loss=settings.loss,
        alpha=settings.alpha,
        temperature=settings.temperature,
        parts=parts,
        easy=settings.easy_confidence,
    )
