"""How good a network is: top-1, top-5 and agreement, with the uncertainty that few images leave.

One image set judges every network alike, whether it runs in PyTorch or in an engine: both are a
``Predictor`` here. Accuracies are in percent, differences in percent points, intervals at 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fdda_deploy.errors import DataError, ModelError
from fdda_deploy.pipeline.data import ImageSet
from fdda_deploy.pipeline.distributed import ALONE, Ranks
from fdda_deploy.pipeline.network import Progress

Z_95 = 1.959963984540054
"""The standard normal's 97.5 % point: two-sided 95 %."""
TOP_K = 5

Predictor = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Images ``(n, C, H, W)`` float32 to logits ``(n, classes)``."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one network answered on one image set.

    Attributes:
        predictions: ``(n,)`` int64, the class of the largest logit.
        labels: ``(n,)`` int64.
        top1: Percent of images whose label is the prediction.
        top5: Percent of images whose label is among the five largest logits; None where there are
            five classes or fewer.
        n: Number of images.
        low: Lower end of top1's Wilson interval, in percent.
        high: Its upper end.
    """

    predictions: NDArray[np.int64]
    labels: NDArray[np.int64]
    top1: float
    top5: float | None
    n: int
    low: float
    high: float


@dataclass(frozen=True)
class Drop:
    """Accuracy lost between two networks on the same images, in percent points.

    Attributes:
        mean: First network's top-1 minus the second's; negative where the second is better.
        low: Lower end of the paired interval.
        high: Its upper end.
    """

    mean: float
    low: float
    high: float


def evaluate(
    predict: Predictor,
    images: ImageSet,
    batch_size: int,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Returns how a network does on labelled images.

    Args:
        predict: Images ``(n, C, H, W)`` float32 to logits ``(n, classes)``.
        images: Images with labels.
        batch_size: Images per call; the last call may get fewer.
        progress: Told how many images are done.
        ranks: Who takes a share of the batches; every rank gets the whole result, the same as one
            rank alone.

    Raises:
        RankError: Another rank stopped.
        DataError: The images have no labels, or a label is beyond the network's classes.
        ModelError: The logits have NaN in them or the wrong shape.
    """
    labels = images.labels
    if labels is None:
        raise DataError(
            f"{images.origin}: has no labels, so no accuracy can be measured. Give --eval-data a "
            "folder per class, or an .npz with y."
        )
    size = max(1, batch_size)
    mine = ranks.share(-(-len(labels) // size))  # whole batches: the same arithmetic
    chosen = np.arange(len(labels))[mine.start * size : mine.stop * size]
    found = _answers(predict, images, chosen, batch_size, progress)
    gathered = [part for part in ranks.gathered(found) if len(part[0])]
    predictions = np.concatenate([part[0] for part in gathered])
    places = np.concatenate([part[1] for part in gathered])
    num_classes = gathered[0][2]
    correct = int((predictions == labels).sum())
    low, high = wilson_interval(correct, len(labels))
    top5 = 100 * float((places < TOP_K).mean()) if num_classes > TOP_K else None
    top1 = 100 * correct / len(labels)
    return Evaluation(predictions, labels, top1, top5, len(labels), low, high)


def _answers(
    predict: Predictor,
    images: ImageSet,
    chosen: NDArray[np.int64],
    batch_size: int,
    progress: Progress | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Returns predictions, the label's place in each answer, and the number of classes."""
    predictions, places = np.zeros_like(chosen), np.zeros_like(chosen)
    num_classes = done = 0
    for batch, labels in images.batches(batch_size, chosen):
        here = slice(done, done + len(batch))
        logits = _checked(predict(batch.numpy()), int(chosen[done]), len(batch), images)
        num_classes, done = logits.shape[1], here.stop
        predictions[here] = logits.argmax(axis=1)
        places[here] = _places(logits, labels.numpy(), images)
        if progress is not None:
            progress(done, len(chosen), "evaluating")
    return predictions, places, num_classes


def torch_predictor(module: nn.Module, device: torch.device | str = "cpu") -> Predictor:
    """Returns ``module`` as a function from image arrays to logit arrays.

    The module is moved to ``device`` and put in eval mode; a network that returns several outputs
    is judged by the first.
    """
    module = module.to(device).eval()

    def predict(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits = module(torch.from_numpy(images).to(device))
        while isinstance(logits, tuple | list):
            logits = logits[0]
        array: NDArray[np.float32] = logits.float().cpu().numpy()
        return array

    return predict


def agreement(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Returns the percent of images on which two networks predict the same class.

    >>> agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 0]))
    75.0
    """
    if a.shape != b.shape or not a.size:
        raise DataError(f"predictions of shape {a.shape} and {b.shape} cannot be compared.")
    return 100 * float((a == b).mean())


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Returns the 95 % interval of a proportion, in percent.

    Wilson's score interval (J. Am. Stat. Assoc. 22, 1927): the proportions whose own standard error
    is compatible with the observed one. It stays inside [0, 100] and has a width at 100 %.

    >>> [round(end, 2) for end in wilson_interval(590, 597)]
    [97.6, 99.43]
    """
    share, squared = successes / n, Z_95**2
    centre = (share + squared / (2 * n)) / (1 + squared / n)
    spread = Z_95 / (1 + squared / n) * math.sqrt(share * (1 - share) / n + squared / (4 * n * n))
    return 100 * max(centre - spread, 0.0), 100 * min(centre + spread, 1.0)


def paired_drop(first: Evaluation, second: Evaluation) -> Drop:
    """Returns ``first.top1 - second.top1`` with its paired 95 % interval.

    On the same images only those count that one network gets right and the other wrong (b and c),
    so the interval is far narrower than two separate ones suggest. Agresti and Min (Statistics in
    Medicine 24, 2005) add half an image to each of the four cells before the usual formula, which
    keeps the promised coverage when b and c are few, and a width when both are zero:
    with n' = n + 2, d = (b - c) / n', the interval is d +- z sqrt(((b + c + 1) / n' - d^2) / n').

    Raises:
        DataError: The two were not measured on the same labelled images.
    """
    if not np.array_equal(first.labels, second.labels):
        raise DataError(
            f"the networks were evaluated on different images ({first.n} and {second.n}); a paired "
            "difference needs the same ones in the same order."
        )
    first_right = first.predictions == first.labels
    second_right = second.predictions == second.labels
    lost = int((first_right & ~second_right).sum())
    gained = int((second_right & ~first_right).sum())
    padded = first.n + 2
    centre = (lost - gained) / padded
    spread = Z_95 * math.sqrt(((lost + gained + 1) / padded - centre**2) / padded)
    low, high = max(centre - spread, -1.0), min(centre + spread, 1.0)
    return Drop(100 * (lost - gained) / first.n, 100 * low, 100 * high)


def _checked(
    logits: NDArray[np.float32], done: int, count: int, images: ImageSet
) -> NDArray[np.float32]:
    if logits.ndim != 2 or len(logits) != count:
        raise ModelError(
            f"the network returned shape {logits.shape} for {count} images, wanted ({count}, "
            "classes) logits."
        )
    broken = int(np.isnan(logits).any(axis=1).sum())
    if broken:
        raise ModelError(
            f"{images.origin}: the logits of {broken} of images {done} to {done + count - 1} are "
            "NaN. Check the weights, and the scales of the quantized network."
        )
    return logits


def _places(
    logits: NDArray[np.float32], labels: NDArray[np.int64], images: ImageSet
) -> NDArray[np.int64]:
    """Returns how many classes come before the label; of equal logits the lower index is first."""
    if labels.max() >= logits.shape[1]:
        raise DataError(
            f"{images.origin}: has label {labels.max()}, but the network has {logits.shape[1]} "
            "classes. Give the data it was trained for."
        )
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    before: NDArray[np.int64] = ((logits > own) | ((logits == own) & earlier)).sum(axis=1)
    return before
