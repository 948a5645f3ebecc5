"""Sources of images: a generator for the whole set, or what is learned for one batch of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fdda_deploy.pipeline.distributed import ALONE, Ranks
from fdda_deploy.pipeline.synthesis.generators import ClassConditionalGenerator
from fdda_deploy.pipeline.synthesis.recipe_fields import Recipe

_INDEX_STEP = 0x9E3779B97F4A7C15
"""An odd number whose multiples spread evenly over 64 bits: neighbours get unlike seeds."""


def seed_of(seed: int, index: int) -> int:
    """Returns the seed of batch or image ``index``; that of index 0 is ``seed`` itself."""
    return (seed + _INDEX_STEP * index) % 2**63


def normal_of(seed: int, indices: range, shape: Sequence[int]) -> Tensor:
    """Returns standard normal draws ``(len(indices), *shape)``, one stream for each index.

    Whoever holds image i draws the same numbers for it, however the set is divided.
    """
    draws = [
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed_of(seed, index)))
        for index in indices
    ]
    return torch.stack(draws)


class Source(nn.Module):
    """What images come from; its parameters are what a step trains."""

    def images(self, labels: Sequence[Tensor], random: torch.Generator) -> Tensor:
        """Returns the images of one step, ``(N, C, H, W)`` float32, with gradients.

        Args:
            labels: Of each whole batch of the step, on the device.
            random: CPU source of latent vectors; where ranks share the batches, each draws all of
                them and makes the images of its share.
        """
        raise NotImplementedError

    def harvest(self, labels: Tensor, random: torch.Generator) -> Tensor:
        """Returns finished images, one per label: ``(N, C, H, W)`` float32 on the device."""
        raise NotImplementedError

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """Returns parameters with the learning rate that each group starts from."""
        raise NotImplementedError

    def settle(self) -> None:
        """Puts the parameters back in bounds after a step."""


class GeneratedSource(Source):
    """One class-conditional generator, trained on fresh latent vectors, that draws the whole set.

    Harvested images do not depend on which others are drawn with them: the generator runs in eval
    mode then, with running statistics (momentum 0.1 over the training batches of all kinds).
    """

    def __init__(
        self,
        recipe: Recipe,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        fused: bool,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__()
        self.recipe, self.ranks = recipe, ranks
        self.generator = ClassConditionalGenerator(
            image_shape,
            num_classes,
            recipe.latent_dim,
            fused=fused,
            width=recipe.width,
            long_range=recipe.source == "long-range",
            ranks=ranks,
        )

    def images(self, labels: Sequence[Tensor], random: torch.Generator) -> Tensor:
        """Returns the batches, each through the generator by itself, as BatchNorm sees them."""
        self.generator.train()
        found = []
        for part in labels:
            mine, generator = self.ranks.share(len(part)), self.generator.of_batch(len(part))
            found.append(generator(self._latent(part, random)[mine], part[mine]))
        return torch.cat(found)

    def harvest(self, labels: Tensor, random: torch.Generator) -> Tensor:
        """Returns one fresh image per label."""
        self.generator.eval()
        batches = torch.split(labels, self.recipe.random_batch)
        return torch.cat([self.generator(self._latent(part, random), part) for part in batches])

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """Returns all parameters at the recipe's rate."""
        return [(list(self.generator.parameters()), self.recipe.lr)]

    def _latent(self, labels: Tensor, random: torch.Generator) -> Tensor:
        z = torch.randn(len(labels), self.recipe.latent_dim, generator=random)
        return z.to(labels.device, non_blocking=True)


class LatentSource(Source):
    """Learned latent vectors and a generator of their own, without classes (Genie, CVPR 2023)."""

    def __init__(
        self,
        recipe: Recipe,
        image_shape: tuple[int, int, int],
        indices: range,
        seed: int,
        *,
        fused: bool,
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.z = nn.Parameter(normal_of(seed, indices, (recipe.latent_dim,)))
        self.generator = ClassConditionalGenerator(
            image_shape, 1, recipe.latent_dim, fused=fused, width=recipe.width
        )

    def images(self, labels: Sequence[Tensor], random: torch.Generator) -> Tensor:
        """Returns the batch; ``labels`` and ``random`` change nothing here."""
        del labels, random
        images: Tensor = self.generator(self.z, self.z.new_zeros(len(self.z), dtype=torch.int64))
        return images

    def harvest(self, labels: Tensor, random: torch.Generator) -> Tensor:
        """Returns the batch as the last step left it, normalized by its own statistics."""
        return self.images((labels,), random)

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """Returns the latent vectors and the generator, each at its rate."""
        generator = list(self.generator.parameters())
        return [([self.z], self.recipe.latent_lr), (generator, self.recipe.lr)]


class PixelSource(Source):
    """The images themselves, from Gaussian noise (ZeroQ, DSG), kept within what a file can store.

    Args:
        recipe: Learning rate.
        image_shape: (channels, height, width).
        indices: Places of the images in the set.
        seed: Of the noise.
        bounds: Least and greatest value per channel, each ``(C,)``; None for no bounds.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        recipe: Recipe,
        image_shape: tuple[int, int, int],
        indices: range,
        seed: int,
        bounds: tuple[Tensor, Tensor] | None,
    ) -> None:
        super().__init__()
        self.recipe = recipe
        noise = normal_of(seed, indices, image_shape)
        self.pixels = nn.Parameter(noise.contiguous(memory_format=torch.channels_last))
        low, high = bounds or (torch.tensor([-torch.inf]), torch.tensor([torch.inf]))
        self.register_buffer("low", low.view(-1, 1, 1), persistent=False)
        self.register_buffer("high", high.view(-1, 1, 1), persistent=False)
        self.settle()

    def images(self, labels: Sequence[Tensor], random: torch.Generator) -> Tensor:
        """Returns the images; ``labels`` and ``random`` change nothing here."""
        del labels, random
        return self.pixels

    def harvest(self, labels: Tensor, random: torch.Generator) -> Tensor:
        """Returns the images as the last step left them."""
        return self.images((labels,), random)

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """Returns the pixels at the recipe's rate."""
        return [([self.pixels], self.recipe.lr)]

    @torch.no_grad()
    def settle(self) -> None:
        """Clips the pixels to their bounds."""
        self.pixels.clamp_(self.low, self.high)


def source_for(
    recipe: Recipe,
    image_shape: tuple[int, int, int],
    num_classes: int,
    indices: range,
    seed: int,
    *,
    bounds: tuple[Tensor, Tensor] | None,
    fused: bool,
    ranks: Ranks = ALONE,
) -> Source:
    """Returns a fresh source for the images at ``indices`` of the set.

    Args:
        recipe: ``source`` and its sizes.
        image_shape: (channels, height, width).
        num_classes: Of the network.
        indices: Places in the set; a generator serves any.
        seed: Of the set; initial weights take the process's default random state.
        bounds: What pixels are held to.
        fused: Use fused upsampling in generators.
        ranks: Who shares the batches of a generator.

    Raises:
        ModelError: The images are too small for a generator.
    """
    if recipe.source == "pixels":
        return PixelSource(recipe, image_shape, indices, seed, bounds)
    if recipe.source == "latent":
        return LatentSource(recipe, image_shape, indices, seed, fused=fused)
    return GeneratedSource(recipe, image_shape, num_classes, fused=fused, ranks=ranks)
