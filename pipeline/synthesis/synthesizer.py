"""One source of images and the step that trains it: one network forward, one update."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fdda_deploy.errors import CalibrationError, ConfigError
from fdda_deploy.pipeline.distributed import ALONE, Ranks
from fdda_deploy.pipeline.network import StatisticsNetwork
from fdda_deploy.pipeline.synthesis.augmentation import augmented, low_passed
from fdda_deploy.pipeline.synthesis.centers import ClassCenters
from fdda_deploy.pipeline.synthesis.global_batch import require_shares
from fdda_deploy.pipeline.synthesis.graphed import GraphedNetwork
from fdda_deploy.pipeline.synthesis.objective import Objective
from fdda_deploy.pipeline.synthesis.recipe_fields import Recipe
from fdda_deploy.pipeline.synthesis.rewiring import SeeingNetwork
from fdda_deploy.pipeline.synthesis.sources import Source, seed_of, source_for
from fdda_deploy.pipeline.synthesis.statistics import require_batch_norm
from fdda_deploy.pipeline.synthesis.targets import AlignmentTargets

Bounds = tuple[Tensor, Tensor]
"""Least and greatest pixel value per channel, each ``(C,)``, in network-input space."""


@dataclass(frozen=True)
class StepRecord:
    """What one step made and measured; nothing here waits for the device.

    Attributes:
        images: ``(N, C, H, W)`` float32, the random batch, then the one-class batch; detached. Of
            several ranks each has its share of both; the losses are of all.
        labels: ``(N,)`` int64.
        losses: One detached scalar per key of `TERMS`; 0 for a term that this step did not have.
        class_index: The class of the one-class batch; None without such a batch.
    """

    images: Tensor
    labels: Tensor
    losses: dict[str, Tensor]
    class_index: int | None


class Synthesizer:
    """A source of images in training against a float network.

    A generator is trained once and draws the whole set. Where the images themselves are learned,
    `begin` starts each batch of the set, by itself: its randomness depends on the seed and its
    place alone.

    All randomness comes from one CPU generator of its own: the same seed draws the same numbers on
    any device, and nothing else in the process disturbs them.

    Args:
        network: Traced float network; moved to ``device``.
        recipe: Source, loss weights, schedule.
        image_shape: (channels, height, width).
        num_classes: Classes of the network.
        centers: Class centers, for recipes that use them; ignored by others.
        device: Where to train.
        seed: Of the initial weights and of every draw.
        autocast: Run source and network in bfloat16; statistics, losses and the optimizer stay
            in float32.
        fast: Use every shortcut in float32: fused upsampling, statistics in one pass with their
            gradient. False is the plain reference.
        bounds: What learned pixels are held to; None for no bounds.
        ranks: Who shares each batch of a generator; for learned images always one alone.
        cuda_graphs: On CUDA and with ``fast``, replay the float network as graphs (`graphed`); with
            swing convolutions, which draw random numbers, it is run as ever.

    Raises:
        ModelError: The network has no BatchNorm layer, or the images are too small.
        ConfigError: The recipe needs centers and there are none, or another kind of network; or
            there are more ranks than images in a batch.
        CalibrationError: The centers do not fit the network.
    """

    def __init__(
        self,
        network: StatisticsNetwork,
        recipe: Recipe,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        centers: ClassCenters | None,
        device: torch.device,
        seed: int,
        autocast: bool,
        fast: bool = True,
        bounds: Bounds | None = None,
        ranks: Ranks = ALONE,
        cuda_graphs: bool = False,
    ) -> None:
        require_batch_norm(network)
        require_shares(recipe, ranks)
        if recipe.uses_centers and centers is None:
            raise ConfigError(
                f"--recipe {recipe.name} needs at least one real image per class. "
                "Give --calib-data DIR, or --recipe genie."
            )
        self.network, self.recipe, self.device = network.to(device), recipe, device
        self.image_shape, self.num_classes, self.seed = image_shape, num_classes, seed
        self.autocast, self.fast, self.bounds, self.ranks = autocast, fast, bounds, ranks
        self._classes = self._correct_classes = torch.zeros(0, dtype=torch.int64)
        used = centers if recipe.uses_centers else None
        if used is not None:
            used.check_fits(network, num_classes)
            self._classes = (used.counts > 0).nonzero().flatten()
            self._correct_classes = ((used.counts > 0) & used.correct).nonzero().flatten()
        self._random = torch.Generator().manual_seed(seed)
        plain = self._plain = SeeingNetwork(network)
        targets = AlignmentTargets(plain, recipe, image_shape, device)
        targets.measure_slack(plain, min(self.batch_size, 16), image_shape, seed_of(seed, 2**32))
        if recipe.margin_weight:
            plain.rows_of(torch.zeros(0, dtype=torch.int64), recipe.name)  # refuses at once
        self.seeing = SeeingNetwork(network, self._random) if recipe.swing else plain
        wanted = cuda_graphs and fast and device.type == "cuda" and not recipe.swing
        self.graphed = GraphedNetwork(plain) if wanted else None
        self.objective = Objective(plain, recipe, used, device, targets, fast=fast, ranks=ranks)
        self.begin(0, range(self.batch_size))

    @property
    def batch_size(self) -> int:
        """Images with random labels per step, or learned together."""
        if not self.recipe.learns_images:
            return self.recipe.random_batch
        return self.recipe.set_batch or max(2, len(self.network.layers))

    @property
    def epoch(self) -> int:
        """The epoch that the next step belongs to."""
        return self.num_done // self.recipe.steps_per_epoch

    def begin(self, part: int, indices: range, labels: Tensor | None = None) -> None:
        """Starts batch ``part`` of the set anew: source, optimizer, schedule and randomness.

        Args:
            part: Number of the batch; a generator has only batch 0.
            indices: Places of its images in the set.
            labels: Classes that learned images are to have, ``(N,)``; None for all in turn.
        """
        self.part, self.indices = part, indices
        turn = torch.arange(indices.start, indices.stop) % self.num_classes
        self._learned_labels = turn if labels is None else labels
        self.num_done = 0
        self._random.manual_seed(seed_of(self.seed, part))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(self.seed, part))
            source = source_for(
                self.recipe,
                self.image_shape,
                self.num_classes,
                indices,
                self.seed,
                bounds=self.bounds,
                fused=self.fast,
                ranks=self.ranks,
            )
        self.source: Source = source.to(self.device)
        groups = [{"params": found, "lr": lr} for found, lr in self.source.rates()]
        self._rates = [lr for _, lr in self.source.rates()]
        self.optimizer = torch.optim.Adam(groups, betas=self.recipe.betas, fused=True)

    def step(self) -> StepRecord:
        """Draws the step's batches, updates the source once, and returns what happened."""
        class_index, labels = self._labels()
        whole = [part.to(self.device, non_blocking=True) for part in labels]
        with self._precision():
            images = self.source.images(whole, self._random)
        images = images.contiguous(memory_format=torch.channels_last)
        parts = [part[self.ranks.share(len(part))] for part in whole]
        sizes = [len(part) for part in whole]
        share = None if self.ranks.alone else (sum(sizes), self.ranks.places(sizes))
        shown = augmented(images, self.recipe, self._random, share)  # float32: a blur's small taps
        with self._precision():
            seen = (self.graphed or self.seeing)(shown)
        values = self.objective.losses(
            seen, shown, parts, class_index, self._random, first_index=self.indices.start
        )
        self._update(values["total"])
        if self.objective.joint is not None and not self.recipe.learns_images:
            count = len(parts[0])
            self.objective.remember(seen.first(count), shown[:count])
        self.num_done += 1
        detached = {key: value.detach() for key, value in values.items()}
        return StepRecord(images.detach(), torch.cat(parts), detached, class_index)

    def _update(self, loss: Tensor) -> None:
        """Takes one step down the loss, the same on every rank."""
        factor = self.recipe.lr_factor(self.epoch)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.ranks.add_gradients(self.source.parameters())
        self.optimizer.step()
        self.source.settle()

    @torch.no_grad()
    def sample(self, labels: Tensor) -> Tensor:
        """Returns one finished image per label: ``(N, C, H, W)`` float32 on the CPU, contiguous.

        A generator draws fresh ones, every rank all of them; learned images are those of this
        batch, in order.

        Args:
            labels: ``(N,)`` int64, any order; of learned images as many as the batch has.
        """
        with self._precision():
            images = self.source.harvest(labels.to(self.device), self._random)
        images = low_passed(images.float(), self.recipe.low_pass_px)
        joint = self.objective.joint
        if self.recipe.learns_images and joint is not None:
            self.objective.remember(self._plain(images), images)
        return images.cpu().contiguous()

    def start_over(self) -> None:
        """Forgets the images made before; `begin` is to follow."""
        if self.objective.joint is not None:
            self.objective.joint.clear()

    def state(self) -> dict[str, Any]:
        """Returns all that a later `restore` needs to go on."""
        joint = self.objective.joint
        return {
            "part": self.part,
            "indices": [self.indices.start, self.indices.stop],
            "labels": self._learned_labels,
            "source": self.source.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": self._random.get_state(),
            "num_done": self.num_done,
            "joint": None if joint is None else [joint.count, joint.mean, joint.variance],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state`; the next step equals that of the uninterrupted run, to the bit.

        Raises:
            CalibrationError: The state is of another source or damaged.
        """
        try:
            start, stop = state["indices"]
            self.begin(int(state["part"]), range(int(start), int(stop)), state["labels"])
            self.source.load_state_dict(state["source"])
            self.optimizer.load_state_dict(state["optimizer"])
            self._random.set_state(state["random"].cpu())
            self.num_done = int(state["num_done"])
            joint = self.objective.joint
            if joint is not None:
                count, mean, variance = state["joint"]
                joint.count = int(count)
                joint.mean, joint.variance = mean.to(self.device), variance.to(self.device)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise CalibrationError(
                f"synthesis checkpoint does not fit: {str(error).splitlines()[0][:160]}. "
                "Delete it to start over."
            ) from error

    def _labels(self) -> tuple[int | None, list[Tensor]]:
        """Returns the class of the one-class batch, and the labels of each batch of a step."""
        if self.recipe.learns_images:
            return None, [self._learned_labels]
        class_index = self._draw_class()
        count = self.recipe.random_batch
        labels = [torch.randint(self.num_classes, (count,), generator=self._random)]
        if class_index is not None:
            labels.append(torch.full((self.recipe.class_batch,), class_index))
        return class_index, labels

    def _draw_class(self) -> int | None:
        """Returns the class of the one-class batch.

        From ``gate_epoch`` on only classes that the network gets right are drawn; if it gets none
        right, the step has no such batch.
        """
        gated = self.epoch >= self.recipe.gate_epoch
        allowed = self._correct_classes if gated else self._classes
        if not len(allowed) or not self.recipe.class_batch:
            return None
        return int(allowed[torch.randint(len(allowed), (), generator=self._random)])

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        if not self.autocast:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)
