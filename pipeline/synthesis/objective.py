"""What a generator is trained for: the recipe's weighted terms over one two-batch forward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fdda_deploy.pipeline.network import StatisticsNetwork
from fdda_deploy.pipeline.synthesis import losses as terms
from fdda_deploy.pipeline.synthesis.centers import ClassCenters
from fdda_deploy.pipeline.synthesis.recipes import Recipe
from fdda_deploy.pipeline.synthesis.statistics import grouped_statistics

TERMS = (
    "total",
    "cross_entropy_random",
    "cross_entropy_class",
    "bns_alignment",
    "bns_distorted",
    "bns_centralized",
)
"""Names of the losses: the weighted sum first, then each term without its weight."""


class Objective:
    """Turns a network's logits and BatchNorm inputs into loss terms.

    The batch holds the images with random labels first, then those of one class, or none of those.

    Args:
        network: The float network, on ``device``.
        recipe: Weights and noise.
        centers: Of the network's classes, where the recipe uses them.
        device: Where the statistics are compared.
    """

    def __init__(
        self,
        network: StatisticsNetwork,
        recipe: Recipe,
        centers: ClassCenters | None,
        device: torch.device,
    ) -> None:
        self.recipe, self.device = recipe, device
        self.centers = None if centers is None else centers.to(device)
        means, variances = network.running_statistics(device)
        self._running_mean, self._running_var = torch.cat(means), torch.cat(variances)
        sizes = [layer.num_channels for layer in network.layers]
        self._weights = terms.layer_weights(sizes).to(device)
        self._deep_layer = 0 if centers is None else centers.layer_indices[0]
        self._deep_start = sum(sizes[: self._deep_layer])
        self._deep_weights = terms.layer_weights(sizes[self._deep_layer :]).to(device)

    def losses(
        self,
        logits: Tensor,
        bn_inputs: Sequence[Tensor],
        labels: Sequence[Tensor],
        class_index: int | None,
        random: torch.Generator,
    ) -> dict[str, Tensor]:
        """Returns one scalar per key of `TERMS`, with gradients; 0 for a term that does not apply.

        ``L_G = w1 CE(R) + w2 CE(C) + w3 L_BNS(R) + w4 L_D(C) + w5 L_C(C)``; FDDA (arXiv
        2109.04186).

        Args:
            logits: ``(N, classes)`` of both batches in a row.
            bn_inputs: One per BatchNorm layer, ``(N, C_l, ...)``.
            labels: Of the random batch and, with ``class_index``, of the one-class batch.
            class_index: The class of the one-class batch.
            random: CPU source of the distorted targets' noise.
        """
        recipe, count = self.recipe, len(labels[0])
        wrong = self._wrongly_classified(class_index)
        first = 0 if wrong else self._deep_layer
        of_random, of_class = _rows(bn_inputs, [len(part) for part in labels], first)
        values = dict.fromkeys(TERMS, torch.zeros((), device=self.device))
        values["cross_entropy_random"] = terms.cross_entropy(logits[:count], labels[0])
        values["bns_alignment"] = terms.bns_alignment_loss(
            *of_random, self._running_mean, self._running_var, self._weights
        )
        total = recipe.ce_random_weight * values["cross_entropy_random"]
        total = total + recipe.alignment_weight * values["bns_alignment"]
        if class_index is not None and of_class is not None and self.centers is not None:
            values["cross_entropy_class"] = terms.cross_entropy(logits[count:], labels[1])
            total = total + recipe.ce_class_weight * values["cross_entropy_class"]
            normal = torch.randn(2, len(of_class[0]), generator=random).to(self.device)
            if wrong:
                values["bns_distorted"] = self._fallback(*of_class, normal)
                weight = recipe.fallback_factor * recipe.distorted_weight
                total = total + weight * values["bns_distorted"]
            else:
                center = self.centers.of(class_index)
                values["bns_distorted"] = self._distorted(*of_class, center, normal)
                values["bns_centralized"] = terms.bns_centralized_loss(
                    *of_class, *center, self._deep_weights
                )
                total = total + recipe.distorted_weight * values["bns_distorted"]
                total = total + recipe.centralized_weight * values["bns_centralized"]
        values["total"] = total
        return values

    def _wrongly_classified(self, class_index: int | None) -> bool:
        if self.centers is None or class_index is None:
            return False
        return not bool(self.centers.correct[class_index])

    def _distorted(
        self, mean: Tensor, variance: Tensor, center: tuple[Tensor, Tensor], normal: Tensor
    ) -> Tensor:
        recipe = self.recipe
        relative = self._running_var[self._deep_start :] if recipe.noise == "relative" else None
        targets = terms.distorted_targets(
            *center,
            normal,
            sigma_mean=recipe.sigma_mean,
            sigma_variance=recipe.sigma_variance,
            clamp_variance=recipe.clamp_variance,
            unit_var=relative,
        )
        return terms.bns_distorted_loss(mean, variance, *targets, self._deep_weights)

    def _fallback(self, mean: Tensor, variance: Tensor, normal: Tensor) -> Tensor:
        """Returns L_D for a class that the network gets wrong, whose center is not to be trusted.

        The targets are N(0, 1) over all layers, as published.
        """
        targets = terms.distorted_targets(
            torch.zeros_like(mean),
            torch.zeros_like(variance),
            normal,
            sigma_mean=1.0,
            sigma_variance=1.0,
            clamp_variance=self.recipe.clamp_variance,
        )
        return terms.bns_distorted_loss(mean, variance, *targets, self._weights)


_Row = tuple[Tensor, Tensor]


def _rows(bn_inputs: Sequence[Tensor], sizes: list[int], first: int) -> tuple[_Row, _Row | None]:
    """Returns (mean, variance) rows of the random batch and of the one-class batch.

    The random batch's rows hold all layers, those of the one-class batch the layers from ``first``
    on. Each activation is read once for both.
    """
    pairs = [
        grouped_statistics(x, sizes if index >= first else sizes[:1])
        for index, x in enumerate(bn_inputs)
    ]
    of_random = torch.cat([m[0] for m, _ in pairs]), torch.cat([v[0] for _, v in pairs])
    if len(sizes) == 1:
        return of_random, None
    deep = pairs[first:]
    return of_random, (torch.cat([m[1] for m, _ in deep]), torch.cat([v[1] for _, v in deep]))
