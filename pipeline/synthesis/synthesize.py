"""From a network and a recipe to a labelled set of images, judged by the network."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fdda_deploy.pipeline.distributed import ALONE, Ranks
from fdda_deploy.pipeline.network import Progress, StatisticsNetwork
from fdda_deploy.pipeline.synthesis.centers import ClassCenters
from fdda_deploy.pipeline.synthesis.checkpoint import CheckpointStore, run_identity
from fdda_deploy.pipeline.synthesis.dealt import DealtSet
from fdda_deploy.pipeline.synthesis.loop import SetInTheMaking
from fdda_deploy.pipeline.synthesis.precision import autocast_pays
from fdda_deploy.pipeline.synthesis.quality import (
    ImageQuality,
    image_quality,
    in_batches,
    noise_distance,
)
from fdda_deploy.pipeline.synthesis.recipe_fields import Recipe
from fdda_deploy.pipeline.synthesis.statistics import untrained_statistics
from fdda_deploy.pipeline.synthesis.synthesizer import (
    Bounds,
    StepRecord,
    Synthesizer,
)

__all__ = ["StepRecord", "Synthesizer", "SyntheticImages", "autocast_pays", "synthesize"]


@dataclass(frozen=True)
class SyntheticImages:
    """Images from a network, and how well they pass for its training data.

    Attributes:
        images: ``(n, C, H, W)`` float32 in normalized network-input space, on the CPU.
        labels: ``(n,)`` int64: spread evenly over the classes, or the network's prediction where no
            term of the recipe asks for a class.
        history: Loss curves over the same ``step`` axis, one per term that the recipe has; 0 where
            a step had no such term. Batches of learned images follow one another.
        quality: What the float network says of the set.
        noise_distance: `ImageQuality.bns_distance` of Gaussian noise, to set beside it.
        seconds: Wall time of this call, checkpointed earlier parts not included.
        steps: Steps behind the images, of all batches.
        diverged: Training stopped at a loss that was not finite; the images come from the last
            good state.
        warnings: Sentences for the report.
    """

    images: Tensor
    labels: Tensor
    history: dict[str, list[float]]
    quality: ImageQuality
    noise_distance: list[float]
    seconds: float
    steps: int
    diverged: bool = False
    warnings: tuple[str, ...] = ()


def synthesize(
    network: StatisticsNetwork,
    recipe: Recipe,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    centers: ClassCenters | None,
    num_images: int,
    device: torch.device,
    seed: int,
    checkpoint: Path | None = None,
    checkpoint_every_seconds: float = 20.0,
    autocast: bool | None = None,
    fast: bool = True,
    bounds: Bounds | None = None,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
    cuda_graphs: bool = False,
) -> SyntheticImages:
    """Makes a labelled set of images that ``network`` takes for its training data.

    Same arguments and same machine: identical images, also when the run was interrupted and
    continued from its checkpoint. A loss that is not finite stops the training of its batch: the
    state of the last look, at most 50 steps before, is put back and used, and a warning says so.

    Args:
        network: Traced float network; moved to ``device``.
        recipe: Source, loss weights, schedule.
        image_shape: (channels, height, width).
        num_classes: Classes of the network.
        centers: Class centers; needed by recipes with ``uses_centers``.
        num_images: Images to make.
        device: Where to train.
        seed: Of every random draw.
        checkpoint: File to save the state in and to continue from, with a file beside it for each
            finished batch (`discard_checkpoint` removes them); None keeps nothing.
        checkpoint_every_seconds: Least time between two writes.
        autocast: Train in bfloat16; None does so where it pays (`autocast_pays`) and ``fast``.
        fast: Use the shortcuts; False is the plain float32 loop that they are tested against.
        bounds: What learned pixels are held to; None for no bounds.
        progress: Called with (steps done, steps in total, text).
        ranks: Who shares the work: of a generator's batches each has a part, of learned images each
            makes whole batches. All get the result; rank 0 alone writes the checkpoint.
        cuda_graphs: On CUDA, replay the float network as graphs; a warning says where that fails.
            A continued run then agrees with an uninterrupted one to rounding alone.

    Raises:
        ModelError: The network has no BatchNorm layer, or the images are too small.
        ConfigError: The recipe needs class centers and there are none, or a batch has fewer images
            than there are ranks.
        RankError: Another rank stopped.
        CalibrationError: The centers do not fit the network.
    """
    start = time.monotonic()
    ranks.meet()  # from here on none is far behind the others
    learned = recipe.learns_images
    synthesizer = Synthesizer(
        network,
        recipe,
        image_shape=image_shape,
        num_classes=num_classes,
        centers=centers,
        device=device,
        seed=seed,
        autocast=fast and autocast_pays(device) if autocast is None else autocast,
        fast=fast,
        bounds=bounds,
        ranks=ALONE if learned else ranks,
        cuda_graphs=cuda_graphs,
    )
    store = None
    if checkpoint is not None and not ranks.follows:
        identity = run_identity(synthesizer, num_images, centers, ranks.size)
        store = CheckpointStore(checkpoint, identity, checkpoint_every_seconds)
    labels = balanced_labels(num_images, num_classes)
    run = (
        DealtSet(synthesizer, labels, store, progress, ranks)
        if learned and not ranks.alone
        else SetInTheMaking(synthesizer, labels, store, progress)
    )
    return _judged(run, run.images(), _warnings(network, recipe, centers), start)


def _judged(
    run: SetInTheMaking, images: Tensor, warnings: list[str], start: float
) -> SyntheticImages:
    """Returns the finished set with the float network's opinion of it."""
    made_by = run.synthesizer
    network, by_network = made_by.network, made_by.recipe.labels_by_network
    batches = in_batches(images, run.labels)
    quality = image_quality(network, batches, made_by.device, labels_by_network=by_network)
    return SyntheticImages(
        images=images,
        labels=quality.predicted if by_network else run.labels,
        history=run.history,
        quality=quality,
        noise_distance=noise_distance(network, made_by.image_shape, made_by.device),
        seconds=time.monotonic() - start,
        steps=run.steps,
        diverged=bool(run.warnings),
        warnings=(*warnings, *run.warnings, *_trouble(made_by)),
    )


def _trouble(made_by: Synthesizer) -> list[str]:
    trouble = None if made_by.graphed is None else made_by.graphed.trouble
    return [] if trouble is None else [f"{trouble}. The images are the same without."]


def balanced_labels(num_images: int, num_classes: int) -> Tensor:
    """Returns labels ``(num_images,)`` in rounds over all classes.

    A round that is not full picks classes at even distances: 4 images of 1000 classes are 0, 250,
    500 and 750, for neighbouring classes are often alike.
    """
    full = torch.arange(num_classes).repeat(num_images // num_classes)
    rest = num_images % num_classes
    return torch.cat([full, torch.arange(rest) * num_classes // max(1, rest)])


def _warnings(
    network: StatisticsNetwork, recipe: Recipe, centers: ClassCenters | None
) -> list[str]:
    found = []
    if untrained_statistics(network):
        found.append(
            "Every BatchNorm layer still has running mean 0 and variance 1: the network was never "
            "trained, or its BatchNorm was folded, and the images mean nothing."
        )
    if centers is None or not recipe.uses_centers:
        return found
    missing = (centers.counts == 0).nonzero().flatten().tolist()
    if missing:
        some = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        found.append(
            f"{len(missing)} of {centers.num_classes} classes have no calibration image ({some}): "
            "they get images, but no center."
        )
    if not bool((centers.correct & (centers.counts > 0)).any()):
        found.append(
            "The network classifies no class's calibration images correctly: centers are not used. "
            "Check --classes and the preprocessing."
        )
    return found
