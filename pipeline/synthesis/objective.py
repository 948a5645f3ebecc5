"""What images are made for: the recipe's weighted terms over one forward of one or two batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fdda_deploy.pipeline.distributed import ALONE, Ranks
from fdda_deploy.pipeline.synthesis import losses as terms
from fdda_deploy.pipeline.synthesis.centers import ClassCenters
from fdda_deploy.pipeline.synthesis.global_batch import mean_over_ranks, pooled
from fdda_deploy.pipeline.synthesis.recipe_fields import Recipe
from fdda_deploy.pipeline.synthesis.rewiring import SeeingNetwork, Seen
from fdda_deploy.pipeline.synthesis.statistics import (
    JointStatistics,
    grouped_statistics,
    image_statistics,
    plain_grouped_statistics,
)
from fdda_deploy.pipeline.synthesis.targets import AlignmentTargets, Row

TERMS = (
    "total",
    "cross_entropy_random",
    "cross_entropy_class",
    "bns_alignment",
    "bns_distorted",
    "bns_centralized",
    "margin",
    "image_prior",
)
"""Names of the losses: the weighted sum first, then each term without its weight."""

JOINT_BATCHES = 8
"""Past batches that a generator's joint statistics remember: its old images are gone."""


def active_terms(recipe: Recipe) -> tuple[str, ...]:
    """Returns those of `TERMS` that the recipe gives weight to."""
    weights = {
        "cross_entropy_random": recipe.ce_random_weight,
        "cross_entropy_class": recipe.ce_class_weight,
        "bns_alignment": recipe.alignment_weight,
        "bns_distorted": recipe.distorted_weight,
        "bns_centralized": recipe.centralized_weight,
        "margin": recipe.margin_weight,
        "image_prior": recipe.tv_weight + recipe.l2_weight,
    }
    return tuple(name for name in TERMS if weights.get(name, 1.0))


class Objective:
    """Turns what a network shows into loss terms.

    The batch holds the images with random labels first, then those of one class, or none of those.

    Args:
        network: The float network, on ``device``.
        recipe: Weights and noise.
        centers: Of the network's classes, where the recipe uses them.
        device: Where the statistics are compared.
        targets: What the batch with random labels is aligned to.
        fast: Read each activation once, with a gradient in one pass; False is ``var_mean`` and
            autograd, for tests to compare with.
        ranks: Who has a share of each batch; losses are those of the whole batch, on every rank.
    """

    def __init__(
        self,
        network: SeeingNetwork,
        recipe: Recipe,
        centers: ClassCenters | None,
        device: torch.device,
        targets: AlignmentTargets,
        *,
        fast: bool = True,
        ranks: Ranks = ALONE,
    ) -> None:
        self.network, self.recipe, self.device, self.targets = network, recipe, device, targets
        self.fast, self.ranks = fast, ranks
        self.centers = None if centers is None else centers.near(device)
        sizes = [layer.num_channels for layer in network.layers]
        self._num_layers, self._num_channels = len(sizes), sum(sizes)
        self._weights = terms.layer_weights(sizes).to(device)
        self._deep_layer = 0 if centers is None else centers.layer_indices[0]
        self._deep_start = sum(sizes[: self._deep_layer])
        self._deep_weights = terms.layer_weights(sizes[self._deep_layer :]).to(device)
        most = None if recipe.learns_images else JOINT_BATCHES * recipe.random_batch
        self.joint = (
            JointStatistics(targets.num_channels, device, most) if recipe.joint_statistics else None
        )

    def losses(
        self,
        seen: Seen,
        images: Tensor,
        labels: Sequence[Tensor],
        class_index: int | None,
        random: torch.Generator,
        *,
        first_index: int = 0,
    ) -> dict[str, Tensor]:
        """Returns one scalar per key of `TERMS`, with gradients; 0 for a term that does not apply.

        ``L_G = w1 CE(R) + w2 CE(C) + w3 L_BNS(R) + w4 L_D(C) + w5 L_C(C)``; FDDA (arXiv
        2109.04186). Other recipes add a margin and priors on the images of R.

        Args:
            seen: What the network shows of both batches in a row.
            images: Both batches, ``(N, C, H, W)``.
            labels: Of the random batch and, with ``class_index``, of the one-class batch.
            class_index: The class of the one-class batch.
            random: CPU source of the distorted targets' noise.
            first_index: The first image's place in the whole set.
        """
        recipe, count = self.recipe, len(labels[0])
        whole = self._whole_sizes([len(part) for part in labels])
        wrong = self._wrongly_classified(class_index)
        first = 0 if wrong else self._deep_layer
        of_random, of_class = self._rows(seen, images, [len(part) for part in labels], first)
        values = dict.fromkeys(TERMS, torch.zeros((), device=self.device))
        if self.joint is not None:
            of_random = self.joint.with_batch(*of_random, whole[0])
        values["bns_alignment"] = self._aligned(of_random, whole[0], first_index)
        total = recipe.alignment_weight * values["bns_alignment"]
        if recipe.ce_random_weight:
            cross = terms.cross_entropy(seen.logits[:count], labels[0])
            values["cross_entropy_random"] = mean_over_ranks(cross, whole[0], self.ranks)
            total = total + recipe.ce_random_weight * values["cross_entropy_random"]
        total = total + self._extras(values, seen, images[:count], labels[0], whole[0])
        if class_index is not None and of_class is not None and self.centers is not None:
            cross = terms.cross_entropy(seen.logits[count:], labels[1])
            values["cross_entropy_class"] = mean_over_ranks(cross, whole[1], self.ranks)
            total = total + recipe.ce_class_weight * values["cross_entropy_class"]
            total = total + self._class_terms(values, of_class, class_index, random, wrong=wrong)
        values["total"] = total
        return values

    @torch.no_grad()
    def remember(self, seen: Seen, images: Tensor) -> None:
        """Counts a batch among the images made, where statistics are joint.

        Args:
            seen: What the network shows of the batch alone.
            images: The batch, ``(N, C, H, W)``.
        """
        if self.joint is not None:
            row, _ = self._rows(seen, images, [len(images)], 0)
            self.joint.add(*row, self._whole_sizes([len(images)])[0])

    def _whole_sizes(self, sizes: list[int]) -> list[int]:
        """Returns the images of each whole batch, given those of this rank's shares."""
        if self.ranks.alone:
            return sizes
        return [self.recipe.random_batch, self.recipe.class_batch][: len(sizes)]

    def _aligned(self, row: Row, whole: int, first_index: int) -> Tensor:
        """Returns the alignment loss of the whole batch."""
        first_index += self.ranks.share(whole).start
        loss = self.targets.loss(*row, first_index)
        return mean_over_ranks(loss, whole, self.ranks) if self.targets.per_image else loss

    def _extras(
        self, values: dict[str, Tensor], seen: Seen, images: Tensor, labels: Tensor, whole: int
    ) -> Tensor:
        """Fills in the margin and the priors; returns their weighted sum."""
        recipe, total = self.recipe, torch.zeros((), device=self.device)
        if recipe.margin_weight:
            rows = self.network.rows_of(labels, recipe.name)
            assert seen.features is not None  # as rows_of found a classifier
            features = seen.features[: len(labels)]
            margin = terms.margin_loss(features, rows, recipe.margin_degrees)
            values["margin"] = mean_over_ranks(margin, whole, self.ranks)
            total = total + recipe.margin_weight * values["margin"]
        if recipe.tv_weight or recipe.l2_weight:
            prior = recipe.tv_weight * terms.total_variation_loss(images)
            prior = prior + recipe.l2_weight * images.square().mean()
            values["image_prior"] = mean_over_ranks(prior, whole, self.ranks)
            total = total + values["image_prior"]
        return total

    def _class_terms(
        self,
        values: dict[str, Tensor],
        row: Row,
        class_index: int,
        random: torch.Generator,
        *,
        wrong: bool,
    ) -> Tensor:
        """Fills in L_D and L_C of the one-class batch; returns their weighted sum."""
        recipe = self.recipe
        normal = torch.randn(2, len(row[0]), generator=random).to(self.device)
        if wrong:
            values["bns_distorted"] = self._fallback(*row, normal)
            return recipe.fallback_factor * recipe.distorted_weight * values["bns_distorted"]
        assert self.centers is not None  # as the caller checked
        mean, variance = self.centers.of(class_index)
        center = mean.to(self.device), variance.to(self.device)  # there already where they fitted
        values["bns_distorted"] = self._distorted(*row, center, normal)
        values["bns_centralized"] = terms.bns_centralized_loss(*row, *center, self._deep_weights)
        total = recipe.distorted_weight * values["bns_distorted"]
        return total + recipe.centralized_weight * values["bns_centralized"]

    def _rows(
        self, seen: Seen, images: Tensor, sizes: list[int], first: int
    ) -> tuple[Row, Row | None]:
        """Returns (mean, variance) rows of the random batch and of the one-class batch.

        Rows are of whole batches, except those of single images.

        The random batch's rows hold all that it is aligned in, those of the one-class batch the
        BatchNorm layers from ``first`` on. Each activation is read once for both.
        """
        inputs, recipe = list(seen.bn_inputs), self.recipe
        if recipe.input_statistics:
            inputs.append(images)
        grouped: Callable[[Tensor, Sequence[int]], Row] = (
            grouped_statistics if self.fast else plain_grouped_statistics
        )
        if self.targets.per_image:
            of_random = _joined([self._each_image(x[: sizes[0]]) for x in inputs])
            if len(sizes) == 1:
                return of_random, None
            pairs = [grouped(x[sizes[0] :], sizes[1:]) for x in inputs[first : self._num_layers]]
            of_class = _joined([(mean[0], var[0]) for mean, var in pairs])
            return of_random, pooled(*of_class, recipe.class_batch, self.ranks)
        pairs = [
            grouped(x, sizes if first <= index < self._num_layers else sizes[:1])
            for index, x in enumerate(inputs)
        ]
        of_random = _joined([(mean[0], var[0]) for mean, var in pairs])
        of_random = pooled(*of_random, recipe.random_batch, self.ranks)
        if len(sizes) == 1:
            return of_random, None
        deep = pairs[first : self._num_layers]
        of_class = _joined([(mean[1], var[1]) for mean, var in deep])
        return of_random, pooled(*of_class, recipe.class_batch, self.ranks)

    def _each_image(self, x: Tensor) -> Row:
        return image_statistics(x) if self.fast else plain_grouped_statistics(x, [1] * len(x))

    def _wrongly_classified(self, class_index: int | None) -> bool:
        if self.centers is None or class_index is None:
            return False
        return not bool(self.centers.correct[class_index])

    def _distorted(
        self, mean: Tensor, variance: Tensor, center: tuple[Tensor, Tensor], normal: Tensor
    ) -> Tensor:
        recipe = self.recipe
        relative = self._running_var() if recipe.noise == "relative" else None
        targets = terms.distorted_targets(
            *center,
            normal,
            sigma_mean=recipe.sigma_mean,
            sigma_variance=recipe.sigma_variance,
            clamp_variance=recipe.clamp_variance,
            unit_var=relative,
        )
        return terms.bns_distorted_loss(mean, variance, *targets, self._deep_weights)

    def _running_var(self) -> Tensor:
        """Returns the deep layers' running variances."""
        return self.targets.variance[self._deep_start : self._num_channels]

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


def _joined(pairs: Sequence[Row]) -> Row:
    """Returns the rows of several layers as one, channels last."""
    return torch.cat([mean for mean, _ in pairs], -1), torch.cat([var for _, var in pairs], -1)
