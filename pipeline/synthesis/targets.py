"""What a batch is aligned to: running statistics, with slack and weights, all layers in a row."""

from __future__ import annotations

import torch
from torch import Tensor

from fdda_deploy.pipeline.synthesis import losses as terms
from fdda_deploy.pipeline.synthesis.recipe_fields import Recipe
from fdda_deploy.pipeline.synthesis.rewiring import SeeingNetwork
from fdda_deploy.pipeline.synthesis.statistics import grouped_statistics, image_statistics

Row = tuple[Tensor, Tensor]
"""Means and variances of all layers' channels: each ``(sum C_l,)``, or ``(N, sum C_l)``."""
SLACK_IMAGES = 64
"""Gaussian noise images behind a slack: 0.9-quantiles of some thousand gaps are steady by then."""
_TINY = 1e-6
"""Added to variances under the root, whose slope at 0 is endless."""


class AlignmentTargets:
    """The recipe's alignment loss of a row of statistics.

    Args:
        network: The float network; its BatchNorm layers, then the input where the recipe counts it.
        recipe: Statistic, norm, slack and enhancement.
        image_shape: (channels, height, width).
        device: Where the statistics are.

    Attributes:
        mean: ``(sum C_l,)`` running means; 0 for the input.
        variance: ``(sum C_l,)`` running variances; 1 for the input.
        per_image: Rows are ``(N, sum C_l)``, one per image.
    """

    def __init__(
        self,
        network: SeeingNetwork,
        recipe: Recipe,
        image_shape: tuple[int, int, int],
        device: torch.device,
    ) -> None:
        self.recipe, self.per_image = recipe, recipe.per_image or recipe.layer_enhancement
        self._num_layers = len(network.layers)
        sizes = [layer.num_channels for layer in network.layers]
        means = [layer.running_mean for layer in network.layers]
        variances = [layer.running_var for layer in network.layers]
        if recipe.input_statistics:
            sizes.append(image_shape[0])
            means.append(torch.zeros(image_shape[0]))
            variances.append(torch.ones(image_shape[0]))
        self.mean, self.variance = torch.cat(means).to(device), torch.cat(variances).to(device)
        self.weights = _weights(sizes, recipe.norm).to(device)
        layers = torch.arange(len(sizes))
        self._layer_of = torch.repeat_interleave(layers, torch.tensor(sizes)).to(device)
        self._sizes = sizes
        self.slack: Row = (torch.zeros((), device=device), torch.zeros((), device=device))

    @property
    def num_channels(self) -> int:
        """Channels of all layers."""
        return len(self.mean)

    def gaps(self, mean: Tensor, variance: Tensor) -> Row:
        """Returns how far a row is from the targets, in means and in the recipe's spread."""
        if self.recipe.statistic == "deviation":
            spread = (variance + _TINY).sqrt() - (self.variance + _TINY).sqrt()
        else:
            spread = variance - self.variance
        return mean - self.mean, spread

    def loss(self, mean: Tensor, variance: Tensor, first_index: int = 0) -> Tensor:
        """Returns the alignment loss; of rows of single images, the mean over the images.

        Args:
            mean: ``(sum C_l,)``, or ``(N, sum C_l)``.
            variance: The same, biased.
            first_index: The first image's place in the set: image i is layer i mod L's.
        """
        return terms.slack_alignment_loss(
            *self.gaps(mean, variance), self.slack, self._weights_of(mean, first_index)
        )

    @torch.no_grad()
    def measure_slack(
        self, network: SeeingNetwork, batch_size: int, image_shape: tuple[int, int, int], seed: int
    ) -> None:
        """Sets the slack to the recipe's quantile, by layer, of the gaps of Gaussian noise images.

        DSG (arXiv 2103.01049). Statistics are taken as the loss takes them: of single images, or of
        batches of ``batch_size``.
        """
        quantile, device = self.recipe.slack_quantile, self.mean.device
        if not quantile:
            return
        random = torch.Generator().manual_seed(seed)
        found: list[Row] = []
        for _ in range(max(1, SLACK_IMAGES // batch_size)):
            noise = torch.randn(batch_size, *image_shape, generator=random).to(device)
            inputs = [*network(noise).bn_inputs, *([noise] if self.recipe.input_statistics else [])]
            pairs = [
                image_statistics(x) if self.per_image else grouped_statistics(x, [len(noise)])
                for x in inputs
            ]
            mean, variance = (torch.cat([pair[kind] for pair in pairs], 1) for kind in (0, 1))
            found.append(self.gaps(mean, variance))
        gaps = [torch.cat([row[kind] for row in found]).abs() for kind in (0, 1)]
        self.slack = (self._by_layer(gaps[0], quantile), self._by_layer(gaps[1], quantile))

    def _by_layer(self, gaps: Tensor, quantile: float) -> Tensor:
        """Returns each layer's quantile, repeated for its channels: ``(sum C_l,)``."""
        parts = torch.split(gaps, self._sizes, dim=1)
        level = [torch.quantile(part.flatten()[:_MOST], quantile) for part in parts]
        return torch.stack(level)[self._layer_of]

    def _weights_of(self, mean: Tensor, first_index: int) -> Tensor:
        if mean.dim() == 1:
            return self.weights
        weights = self.weights / len(mean)
        if not self.recipe.layer_enhancement:
            return weights
        index = torch.arange(first_index, first_index + len(mean), device=mean.device)
        own = (index % self._num_layers)[:, None] == self._layer_of
        return weights * (1 + own)


_MOST = 2**24
"""Elements that torch.quantile takes."""


def _weights(sizes: list[int], norm: str) -> Tensor:
    """Returns each channel's weight ``(sum C_l,)``: see the recipe's field ``norm``."""
    weights = terms.layer_weights(sizes)
    if norm == "layers":
        return weights * len(sizes)
    return torch.ones_like(weights) if norm == "channels" else weights
