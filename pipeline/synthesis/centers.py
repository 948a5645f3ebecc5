"""Class centers: what the deep BatchNorm layers see when real images of one class pass."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fdda_deploy.durable import TEMP_SUFFIX
from fdda_deploy.errors import CalibrationError
from fdda_deploy.pipeline.distributed import ALONE, Ranks
from fdda_deploy.pipeline.network import Progress, StatisticsNetwork
from fdda_deploy.pipeline.synthesis.statistics import (
    PooledStatistics,
    deep_layer_indices,
    require_batch_norm,
)

MAX_FILE_BYTES = 8 << 30
"""Refuse larger center files: 21,000 classes of a ResNet-50 need about 5 GB."""


@dataclass(frozen=True)
class ClassCenters:
    """BatchNorm-input statistics of each class's calibration images, in the deep layers.

    Attributes:
        layer_indices: Which BatchNorm layers, by execution order.
        means: One ``(num_classes, C_l)`` float32 tensor per entry of ``layer_indices``.
        variances: The same for the biased variance.
        counts: ``(num_classes,)`` int64, calibration images per class; 0 where there was none.
        correct: ``(num_classes,)`` bool: the float network classifies more than half of the class's
            calibration images as that class (with one image, as published: that image).
    """

    layer_indices: tuple[int, ...]
    means: tuple[Tensor, ...]
    variances: tuple[Tensor, ...]
    counts: Tensor
    correct: Tensor

    @property
    def num_classes(self) -> int:
        """Rows of every center."""
        return len(self.counts)

    def of(self, class_index: int) -> tuple[Tensor, Tensor]:
        """Returns one class's (means, variances), all layers in a row: each ``(sum C_l,)``."""
        return (
            torch.cat([mean[class_index] for mean in self.means]),
            torch.cat([variance[class_index] for variance in self.variances]),
        )

    def to(self, device: torch.device) -> ClassCenters:
        """Returns the centers with their statistics on ``device``; counts stay on the CPU."""
        return ClassCenters(
            self.layer_indices,
            tuple(mean.to(device) for mean in self.means),
            tuple(variance.to(device) for variance in self.variances),
            self.counts,
            self.correct,
        )

    def check_fits(self, network: StatisticsNetwork, num_classes: int) -> None:
        """Checks that these centers belong to ``network``.

        Raises:
            CalibrationError: Another class count, other layers or channels, or no image at all.
        """
        wanted = deep_layer_indices(len(network.layers))
        if self.num_classes != num_classes:
            raise CalibrationError(
                f"class centers: got {self.num_classes} classes, the network has {num_classes}. "
                "Compute them again from --calib-data."
            )
        channels = [network.layers[index].num_channels for index in wanted]
        if self.layer_indices != tuple(wanted) or [m.shape[1] for m in self.means] != channels:
            raise CalibrationError(
                "class centers: their layers are not the network's deep BatchNorm layers "
                f"{wanted.start} to {wanted.stop - 1}. Compute them again from --calib-data."
            )
        if not bool((self.counts > 0).any()):
            raise CalibrationError(
                "class centers: no class has a calibration image. Give --calib-data with at least "
                "one image, or --recipe gdfq."
            )


@torch.no_grad()
def class_centers(
    network: StatisticsNetwork,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    *,
    device: torch.device,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> ClassCenters:
    """Returns the class centers of FDDA (arXiv 2109.04186) from one or more real images per class.

    One image: its spatial statistics. Several: pooled mean and variance, the between-image term
    included, as if the class's images were one batch. BatchNorm inputs without spatial axes have
    variance 0 for a single image.

    Args:
        network: Traced float network; moved to ``device``.
        batches: Pairs of images ``(N, C, H, W)`` as the network takes them and labels ``(N,)``.
        num_classes: Rows to make; classes without images keep count 0.
        device: Where to run the network.
        progress: Called with (images done, 0, text); the total is not known here.
        ranks: Who measures other classes; each is given all images of its own, and gets all.

    Raises:
        ModelError: The network has no BatchNorm layer.
        CalibrationError: A label is outside 0 to ``num_classes - 1``, or a statistic is not finite.
    """
    require_batch_norm(network)
    network = network.to(device).eval()
    deep = deep_layer_indices(len(network.layers))
    sizes = [network.layers[index].num_channels for index in deep]
    pooled = PooledStatistics(num_classes, sum(sizes), device)
    hits = torch.zeros(num_classes, dtype=torch.int64)
    for images, labels in batches:
        classes = _checked(labels, num_classes)
        logits, bn_inputs = network(images.to(device))
        mean, variance = _image_statistics([bn_inputs[index] for index in deep])
        predicted = logits.argmax(1).tolist()
        for row, (label, guess) in enumerate(zip(classes, predicted, strict=True)):
            pooled.merge(label, mean[row], variance[row], 1)
            hits[label] += int(label == guess)
        if progress is not None:
            progress(int(pooled.counts.sum()), 0, "class centers")
    _with_other_classes(pooled, hits, ranks)
    finite = (pooled.means.isfinite() & pooled.variances.isfinite()).all(1)
    if not bool(finite.all()):
        raise CalibrationError(
            f"class centers: class {int((~finite).nonzero()[0])} has statistics that are not "
            "finite. Check its calibration images and the network's weights."
        )
    return ClassCenters(
        tuple(deep),
        torch.split(pooled.means, sizes, dim=1),
        torch.split(pooled.variances, sizes, dim=1),
        pooled.counts,
        2 * hits > pooled.counts,
    )


def _with_other_classes(pooled: PooledStatistics, hits: Tensor, ranks: Ranks) -> None:
    """Adds the rows that other ranks measured; no class is measured by two."""
    if ranks.alone:
        return
    rows = pooled.counts.nonzero().flatten()
    mine = [rows, pooled.counts, hits, pooled.means, pooled.variances]
    for theirs in ranks.gathered([rows, *(part[rows.to(part.device)].cpu() for part in mine[1:])]):
        for part, found in zip(mine[1:], theirs[1:], strict=True):
            part[theirs[0].to(part.device)] = found.to(part.device)


def save_class_centers(centers: ClassCenters, path: Path) -> None:
    """Writes ``centers`` as a safetensors file, whole or not at all.

    Raises:
        CalibrationError: It cannot be written: the disk is full, for instance.
    """
    tensors = {"counts": centers.counts, "correct": centers.correct}
    for index, mean, variance in zip(
        centers.layer_indices, centers.means, centers.variances, strict=True
    ):
        tensors[f"mean.{index}"] = mean.cpu().contiguous()
        tensors[f"variance.{index}"] = variance.cpu().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}{TEMP_SUFFIX}")
    try:
        save_file(tensors, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except SafetensorError as error:
        reason = " ".join(str(error).split())[:120]
        raise CalibrationError(
            f"{path}: the class centers cannot be written ({reason}). Free some space, then run "
            "the same command to continue."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def load_class_centers(path: Path) -> ClassCenters:
    """Returns the centers that `save_class_centers` wrote; the file is not trusted.

    Raises:
        CalibrationError: The file is missing, damaged, too large, or not a set of class centers.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise _damaged(path, f"{size} bytes are more than {MAX_FILE_BYTES}")
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError) as error:
        raise _damaged(path, str(error).splitlines()[0][:200]) from error
    indices = sorted(
        int(key.removeprefix("mean."))
        for key in tensors
        if key.startswith("mean.") and key.removeprefix("mean.").isdecimal()
    )
    names = {f"{kind}.{index}" for kind in ("mean", "variance") for index in indices}
    if not indices or tensors.keys() != names | {"counts", "correct"}:
        raise _damaged(path, "its tensors are not counts, correct, mean.N and variance.N")
    _check_values(path, tensors, indices)
    return ClassCenters(
        tuple(indices),
        tuple(tensors[f"mean.{index}"] for index in indices),
        tuple(tensors[f"variance.{index}"] for index in indices),
        tensors["counts"],
        tensors["correct"],
    )


def _check_values(path: Path, tensors: dict[str, Tensor], indices: list[int]) -> None:
    counts, correct = tensors["counts"], tensors["correct"]
    if counts.dim() != 1 or counts.dtype != torch.int64 or bool((counts < 0).any()):
        raise _damaged(path, "counts must be non-negative int64, one per class")
    if correct.shape != counts.shape or correct.dtype != torch.bool:
        raise _damaged(path, "correct must be bool, one per class")
    for index in indices:
        mean, variance = tensors[f"mean.{index}"], tensors[f"variance.{index}"]
        fits = mean.dim() == 2 and mean.shape == variance.shape and len(mean) == len(counts)
        if not fits or {mean.dtype, variance.dtype} != {torch.float32}:
            raise _damaged(path, f"layer {index} must have float32 (classes, channels) statistics")
        if not bool(mean.isfinite().all() and variance.isfinite().all() and (variance >= 0).all()):
            raise _damaged(path, f"layer {index} has values that no image can give")


def _damaged(path: Path, what: str) -> CalibrationError:
    return CalibrationError(
        f"{path}: not usable as class centers: {what}. Delete it and run again to recompute."
    )


def _checked(labels: Tensor, num_classes: int) -> list[int]:
    classes: list[int] = labels.tolist()
    wrong = next((label for label in classes if not 0 <= label < num_classes), None)
    if wrong is not None:
        raise CalibrationError(
            f"class centers: got label {wrong}, the network has classes 0 to {num_classes - 1}. "
            "Check --classes."
        )
    return classes


def _image_statistics(bn_inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns each image's spatial mean and variance, all layers in a row: ``(N, sum C_l)``."""
    pairs = [
        torch.var_mean(x.float().reshape(*x.shape[:2], -1), dim=2, correction=0) for x in bn_inputs
    ]
    return torch.cat([m for _, m in pairs], 1), torch.cat([v for v, _ in pairs], 1)
