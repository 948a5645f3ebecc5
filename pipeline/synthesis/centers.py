"""Class centers: what the deep BatchNorm layers see when real images of one class pass."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fdda_deploy.errors import CalibrationError
from fdda_deploy.pipeline.network import StatisticsNetwork
from fdda_deploy.pipeline.synthesis.statistics import (
    PooledStatistics,
    deep_layer_indices,
    require_batch_norm,
)

DEVICE_SHARE = 0.25
"""How much of a GPU's free memory centers may take; larger ones are copied row by row."""
_HASHED_CLASSES = 256


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
        file_digest: SHA-256 hex of the file that the statistics are mapped from; None where they
            are in memory.
    """

    layer_indices: tuple[int, ...]
    means: tuple[Tensor, ...]
    variances: tuple[Tensor, ...]
    counts: Tensor
    correct: Tensor
    file_digest: str | None = None

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

    @property
    def num_bytes(self) -> int:
        """Bytes of all statistics."""
        return 2 * sum(4 * mean.numel() for mean in self.means)

    def near(self, device: torch.device, free_bytes: int | None = None) -> ClassCenters:
        """Returns the centers with their statistics on ``device`` where they fit, else as they are.

        On the CPU they stay where they are: a mapped file is not read. Counts stay on the CPU.

        Args:
            device: Where they are compared.
            free_bytes: Free memory there; None asks CUDA.
        """
        if device.type == "cpu":
            return self
        if free_bytes is None:
            free_bytes, _ = torch.cuda.mem_get_info(device)
        if self.num_bytes > DEVICE_SHARE * free_bytes:
            return self
        return ClassCenters(
            self.layer_indices,
            tuple(mean.to(device) for mean in self.means),
            tuple(variance.to(device) for variance in self.variances),
            self.counts,
            self.correct,
            self.file_digest,
        )

    def digest(self) -> str:
        """Returns a SHA-256 hex of all that decides what `of` returns."""
        if self.file_digest is not None:
            return self.file_digest
        digest = hashlib.sha256(repr(self.layer_indices).encode())
        for tensor in (self.counts, self.correct, *self.means, *self.variances):
            for rows in torch.split(tensor, _HASHED_CLASSES):
                digest.update(rows.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

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


def class_centers(
    network: StatisticsNetwork,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    *,
    device: torch.device,
) -> ClassCenters:
    """Returns the class centers of FDDA (arXiv 2109.04186) from one or more real images per class.

    One image: its spatial statistics. Several: pooled mean and variance, the between-image term
    included, as if the class's images were one batch. BatchNorm inputs without spatial axes have
    variance 0 for a single image.

    All of them are in memory; `center_writer.CenterWriter` has room for 21,000 classes.

    Args:
        network: Traced float network; moved to ``device``.
        batches: Pairs of images ``(N, C, H, W)`` as the network takes them and labels ``(N,)``.
        num_classes: Rows to make; classes without images keep count 0.
        device: Where to run the network.

    Raises:
        ModelError: The network has no BatchNorm layer.
        CalibrationError: A label is outside 0 to ``num_classes - 1``, or a statistic is not finite.
    """
    measure = CenterMeasure(network, num_classes, device)
    sizes = list(measure.channels)
    pooled = PooledStatistics(num_classes, sum(sizes), torch.device("cpu"))
    hits = torch.zeros(num_classes, dtype=torch.int64)
    for images, labels in batches:
        for label, mean, variance, hit in measure.of(images, labels):
            pooled.merge(label, mean, variance, 1)
            hits[label] += hit
    _require_finite(pooled)
    return ClassCenters(
        measure.layers,
        torch.split(pooled.means, sizes, dim=1),
        torch.split(pooled.variances, sizes, dim=1),
        pooled.counts,
        2 * hits > pooled.counts,
    )


class CenterMeasure:
    """Measures images one by one for the centers of their classes.

    Args:
        network: Traced float network; moved to ``device``.
        num_classes: Of its logits.
        device: Where to run it.

    Attributes:
        layers: The deep BatchNorm layers, by execution order.
        channels: Of each of them.

    Raises:
        ModelError: The network has no BatchNorm layer.
    """

    def __init__(self, network: StatisticsNetwork, num_classes: int, device: torch.device) -> None:
        require_batch_norm(network)
        self._network, self._device = network.to(device).eval(), device
        self._num_classes = num_classes
        self.layers = tuple(deep_layer_indices(len(network.layers)))
        self.channels = tuple(network.layers[index].num_channels for index in self.layers)

    @torch.no_grad()
    def of(self, images: Tensor, labels: Tensor) -> Iterator[tuple[int, Tensor, Tensor, int]]:
        """Yields label, mean and variance of each image, and 1 where the network is right, else 0.

        Statistics are ``(sum of channels,)`` float32 on the CPU, over the image's positions.

        Args:
            images: ``(N, C, H, W)`` as the network takes them.
            labels: ``(N,)``.

        Raises:
            CalibrationError: A label is outside the classes.
        """
        classes = _checked(labels, self._num_classes)
        logits, bn_inputs = self._network(images.to(self._device))
        mean, variance = _image_statistics([bn_inputs[index] for index in self.layers])
        guesses = logits.argmax(1).tolist()
        for row, (label, guess) in enumerate(zip(classes, guesses, strict=True)):
            yield label, mean[row], variance[row], int(label == guess)


def not_finite(label: int) -> CalibrationError:
    """Returns the error of a class whose statistics are not finite."""
    return CalibrationError(
        f"class centers: class {label} has statistics that are not "
        "finite. Check its calibration images and the network's weights."
    )


def _require_finite(pooled: PooledStatistics) -> None:
    finite = (pooled.means.isfinite() & pooled.variances.isfinite()).all(1)
    if not bool(finite.all()):
        raise not_finite(int((~finite).nonzero()[0]))


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
    return torch.cat([m for _, m in pairs], 1).cpu(), torch.cat([v for v, _ in pairs], 1).cpu()
