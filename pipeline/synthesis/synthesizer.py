"""One generator and the step that trains it: two batches, one network forward, one update."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fdda_deploy.errors import CalibrationError, ConfigError
from fdda_deploy.pipeline.network import StatisticsNetwork
from fdda_deploy.pipeline.synthesis.centers import ClassCenters
from fdda_deploy.pipeline.synthesis.generators import ClassConditionalGenerator
from fdda_deploy.pipeline.synthesis.objective import Objective
from fdda_deploy.pipeline.synthesis.recipes import Recipe
from fdda_deploy.pipeline.synthesis.statistics import require_batch_norm


@dataclass(frozen=True)
class StepRecord:
    """What one generator step made and measured; nothing here waits for the device.

    Attributes:
        images: ``(N, C, H, W)`` float32, the random batch, then the one-class batch; detached.
        labels: ``(N,)`` int64.
        losses: One detached scalar per key of `TERMS`; 0 for a term that this step did not have.
        class_index: The class of the one-class batch; None without such a batch.
    """

    images: Tensor
    labels: Tensor
    losses: dict[str, Tensor]
    class_index: int | None


def autocast_pays(device: torch.device) -> bool:
    """Returns True where bfloat16 products are faster than float32: CUDA, AMX, AVX-512 BF16."""
    if device.type == "cuda":
        return True
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


class Synthesizer:
    """A class-conditional generator in training against a float network.

    All randomness comes from one CPU generator of its own: the same seed draws the same numbers on
    any device, and nothing else in the process disturbs them.

    Args:
        network: Traced float network; moved to ``device``.
        recipe: Loss weights, noise, schedule.
        image_shape: (channels, height, width).
        num_classes: Classes of the network.
        centers: Class centers, for recipes that use them; ignored by others.
        device: Where to train.
        seed: Of the initial weights and of every draw.
        autocast: Run generator and network in bfloat16; statistics, losses and the optimizer stay
            in float32.
        fused: Use the generator's fused upsampling; False is the plain reference.

    Raises:
        ModelError: The network has no BatchNorm layer, or the images are too small.
        ConfigError: The recipe needs centers and there are none.
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
        fused: bool = True,
    ) -> None:
        require_batch_norm(network)
        if recipe.uses_centers and centers is None:
            raise ConfigError(
                f"--recipe {recipe.name} needs at least one real image per class. "
                "Give --calib-data DIR, or --recipe gdfq."
            )
        self.network, self.recipe, self.device = network.to(device), recipe, device
        self.num_classes, self.autocast = num_classes, autocast
        self._classes = self._correct_classes = torch.zeros(0, dtype=torch.int64)
        used = centers if recipe.uses_centers else None
        if used is not None:
            used.check_fits(network, num_classes)
            self._classes = (used.counts > 0).nonzero().flatten()
            self._correct_classes = ((used.counts > 0) & used.correct).nonzero().flatten()
        self.objective = Objective(network, recipe, used, device)
        self._random = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            generator = ClassConditionalGenerator(
                image_shape, num_classes, recipe.latent_dim, fused=fused
            )
        self.generator = generator.to(device)
        self.optimizer = torch.optim.Adam(
            self.generator.parameters(), lr=recipe.lr, betas=recipe.betas, fused=True
        )
        self.num_done = 0
        """Generator steps taken."""

    @property
    def epoch(self) -> int:
        """The epoch that the next step belongs to."""
        return self.num_done // self.recipe.steps_per_epoch

    def step(self) -> StepRecord:
        """Draws both batches, updates the generator once, and returns what happened."""
        self.generator.train()
        class_index = self._draw_class()
        labels = [
            torch.randint(self.num_classes, (self.recipe.random_batch,), generator=self._random)
        ]
        if class_index is not None:
            labels.append(torch.full((self.recipe.class_batch,), class_index))
        parts = [part.to(self.device, non_blocking=True) for part in labels]
        with self._precision():
            images = torch.cat([self.generator(self._latent(len(y)), y) for y in parts])
            images = images.contiguous(memory_format=torch.channels_last)
            logits, bn_inputs = self.network(images)
        values = self.objective.losses(logits, bn_inputs, parts, class_index, self._random)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr_at(self.epoch)
        self.optimizer.zero_grad(set_to_none=True)
        values["total"].backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.optimizer.step()
        self.num_done += 1
        detached = {key: value.detach() for key, value in values.items()}
        return StepRecord(images.detach(), torch.cat(parts), detached, class_index)

    @torch.no_grad()
    def sample(self, labels: Tensor) -> Tensor:
        """Returns one fresh image per label: ``(N, C, H, W)`` float32 on the CPU, contiguous.

        The generator runs in eval mode: its BatchNorm layers use their running statistics (momentum
        0.1 over the training batches of both kinds), so an image does not depend on which others
        are drawn with it.

        Args:
            labels: ``(N,)`` int64, any order.
        """
        self.generator.eval()
        batches = []
        for part in torch.split(labels, self.recipe.random_batch):
            with self._precision():
                images = self.generator(self._latent(len(part)), part.to(self.device))
            batches.append(images.float().cpu().contiguous())
        return torch.cat(batches)

    def state(self) -> dict[str, Any]:
        """Returns all that a later `restore` needs to go on."""
        return {
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": self._random.get_state(),
            "num_done": self.num_done,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state`; the next step equals that of the uninterrupted run, to the bit.

        Raises:
            CalibrationError: The state is of another generator or damaged.
        """
        try:
            self.generator.load_state_dict(state["generator"])
            self.optimizer.load_state_dict(state["optimizer"])
            self._random.set_state(state["random"].cpu())
            self.num_done = int(state["num_done"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise CalibrationError(
                f"synthesis checkpoint does not fit: {str(error).splitlines()[0][:160]}. "
                "Delete it to start over."
            ) from error

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

    def _latent(self, count: int) -> Tensor:
        z = torch.randn(count, self.recipe.latent_dim, generator=self._random)
        return z.to(self.device, non_blocking=True)

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        if not self.autocast:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)
