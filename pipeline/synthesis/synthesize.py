"""The one training loop that all recipes share: train, guard, checkpoint, draw the final images."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fdda_deploy.pipeline.network import Progress, StatisticsNetwork
from fdda_deploy.pipeline.synthesis.centers import ClassCenters
from fdda_deploy.pipeline.synthesis.checkpoint import CheckpointStore, History, run_identity
from fdda_deploy.pipeline.synthesis.objective import TERMS
from fdda_deploy.pipeline.synthesis.recipes import Recipe
from fdda_deploy.pipeline.synthesis.statistics import (
    PooledStatistics,
    batch_statistics,
    untrained_statistics,
)
from fdda_deploy.pipeline.synthesis.synthesizer import (
    StepRecord,
    Synthesizer,
    autocast_pays,
)

__all__ = ["StepRecord", "Synthesizer", "SyntheticImages", "autocast_pays", "synthesize"]

READ_EVERY = 50
"""Steps between two looks at the losses: each look waits for the device."""
HISTORY_POINTS = 400
"""About how many points a loss curve keeps."""


@dataclass(frozen=True)
class SyntheticImages:
    """Images from a network, and how well they pass for its training data.

    Attributes:
        images: ``(n, C, H, W)`` float32 in normalized network-input space, on the CPU.
        labels: ``(n,)`` int64, spread evenly over the classes.
        history: Loss curves over the same ``step`` axis; 0 where a step had no such term.
        teacher_top1: Images that the float network gives their label, in percent.
        bns_distance: Per BatchNorm layer, MSE of means plus MSE of variances between the whole set
            and training (the layer's summand in L_BNS).
        seconds: Wall time of this call, checkpointed earlier parts not included.
        steps: Generator steps behind the images.
        diverged: Training stopped at a loss that was not finite; the images come from the last
            good state.
        warnings: Sentences for the report.
    """

    images: Tensor
    labels: Tensor
    history: dict[str, list[float]]
    teacher_top1: float
    bns_distance: list[float]
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
    progress: Progress | None = None,
) -> SyntheticImages:
    """Trains a generator against ``network`` and returns a labelled set of its images.

    Args:
        network: Traced float network; moved to ``device``.
        recipe: What to train for, and how long.
        image_shape: (channels, height, width).
        num_classes: Classes of the network.
        centers: Class centers, for recipes that use them.
        num_images: Size of the final set.
        device: Where to train.
        seed: Same seed, device and thread count: same images, interrupted or not.
        checkpoint: Where to keep the training state; a fitting one there is continued, any other is
            overwritten. The caller deletes it.
        checkpoint_every_seconds: Least time between two writes; a write that takes long is also
            followed by ten times its own duration without one.
        autocast: bfloat16 on or off; None: where it pays.
        progress: Called with (steps done, steps, text).

    Raises:
        ModelError: The network has no BatchNorm layer, or the images are too small.
        ConfigError: The recipe needs centers and there are none.
        CalibrationError: The centers do not fit the network.
    """
    start = time.monotonic()
    synthesizer = Synthesizer(
        network,
        recipe,
        image_shape=image_shape,
        num_classes=num_classes,
        centers=centers,
        device=device,
        seed=seed,
        autocast=autocast_pays(device) if autocast is None else autocast,
    )
    warnings = _warnings(network, recipe, centers)
    store = None
    if checkpoint is not None:
        identity = run_identity(synthesizer, image_shape, seed, centers)
        store = CheckpointStore(checkpoint, identity, checkpoint_every_seconds)
    history = store.load_into(synthesizer) if store is not None else None
    history = history or {"step": [], **{key: [] for key in TERMS}}
    diverged = _train(synthesizer, history, store, progress)
    if diverged:
        warnings.append(
            f"The generator diverged before step {diverged}: training stopped, and the images come "
            f"from step {synthesizer.num_done}. A lower lr may help."
        )
    labels = balanced_labels(num_images, num_classes)
    if progress is not None:
        progress(recipe.num_steps, recipe.num_steps, "drawing images")
    images = synthesizer.sample(labels)
    top1, distance = _judge(network, images, labels, device)
    return SyntheticImages(
        images=images,
        labels=labels,
        history=history,
        teacher_top1=top1,
        bns_distance=distance,
        seconds=time.monotonic() - start,
        steps=synthesizer.num_done,
        diverged=diverged is not None,
        warnings=tuple(warnings),
    )


def balanced_labels(num_images: int, num_classes: int) -> Tensor:
    """Returns labels ``(num_images,)`` in rounds over all classes.

    A round that is not full picks classes at even distances: 4 images of 1000 classes are 0, 250,
    500 and 750, for neighbouring classes are often alike.
    """
    full = torch.arange(num_classes).repeat(num_images // num_classes)
    rest = num_images % num_classes
    return torch.cat([full, torch.arange(rest) * num_classes // max(1, rest)])


def _train(
    synthesizer: Synthesizer,
    history: History,
    store: CheckpointStore | None,
    progress: Progress | None,
) -> int | None:
    """Trains to the end of the recipe; returns the step of divergence, None when all went well.

    Losses stay on the device between looks. A look that finds them all finite keeps the
    generator's weights as the last good ones.
    """
    num_steps = synthesizer.recipe.num_steps
    every = max(1, min(READ_EVERY, num_steps // 20))
    stride = max(1, num_steps // HISTORY_POINTS)
    good, good_step = _weights(synthesizer), synthesizer.num_done
    pending: list[Tensor] = []
    while synthesizer.num_done < num_steps:
        losses = synthesizer.step().losses
        pending.append(torch.stack([losses[key] for key in TERMS]))
        done = synthesizer.num_done
        if done % every and done < num_steps:
            continue
        values = torch.stack(pending).cpu()
        pending.clear()
        if not bool(values.isfinite().all()):
            synthesizer.generator.load_state_dict(good)
            synthesizer.num_done = good_step
            return done
        good, good_step = _weights(synthesizer), done
        for step, row in zip(range(done - len(values), done), values.tolist(), strict=True):
            if step % stride == 0:
                history["step"].append(float(step))
                for key, value in zip(TERMS, row, strict=True):
                    history[key].append(value)
        if store is not None and done < num_steps:
            store.save_if_due(synthesizer, history)
        if progress is not None:
            progress(done, num_steps, f"generator loss {values[-1, 0]:.3f}")
    if store is not None:
        store.save(synthesizer, history)
    return None


def _weights(synthesizer: Synthesizer) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in synthesizer.generator.state_dict().items()}


@torch.no_grad()
def _judge(
    network: StatisticsNetwork, images: Tensor, labels: Tensor, device: torch.device
) -> tuple[float, list[float]]:
    """Returns (teacher top-1 in percent, distance per BatchNorm layer) of a set, in float32."""
    sizes = [layer.num_channels for layer in network.layers]
    pooled = PooledStatistics(1, sum(sizes), device)
    hits = 0
    for batch, wanted in zip(torch.split(images, 32), torch.split(labels, 32), strict=True):
        logits, bn_inputs = network(batch.to(device))
        pairs = [batch_statistics(x) for x in bn_inputs]
        mean, variance = (torch.cat([pair[kind] for pair in pairs]) for kind in (0, 1))
        pooled.merge(0, mean, variance, len(batch))
        hits += int((logits.argmax(1).cpu() == wanted).sum())
    means, variances = torch.split(pooled.means[0], sizes), torch.split(pooled.variances[0], sizes)
    distance = [
        float(
            (mean - layer.running_mean.to(device)).square().mean()
            + (variance - layer.running_var.to(device)).square().mean()
        )
        for mean, variance, layer in zip(means, variances, network.layers, strict=True)
    ]
    return 100.0 * hits / max(1, len(labels)), distance


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
