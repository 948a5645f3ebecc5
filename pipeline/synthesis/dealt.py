"""A set of learned images made by several ranks: whole batches are dealt out, round by round."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from fdda_deploy.pipeline.distributed import Ranks
from fdda_deploy.pipeline.network import Progress
from fdda_deploy.pipeline.synthesis.checkpoint import CheckpointStore, FinishedBatch
from fdda_deploy.pipeline.synthesis.loop import SetInTheMaking
from fdda_deploy.pipeline.synthesis.synthesizer import Synthesizer


class DealtSet(SetInTheMaking):
    """The same images as one rank makes, each batch by one of several.

    A batch's randomness depends on the seed and its place alone, so it does not matter who makes
    it. Statistics over the whole set do go from batch to batch: rank 0 makes such a set by itself.
    After each round rank 0 writes the round's batches; a run that is killed loses one round.

    Args:
        synthesizer: Makes one batch, alone.
        labels: ``(n,)`` classes of the images.
        store: Where rank 0 keeps finished batches; None elsewhere, or to keep nothing.
        progress: Called with (steps done, steps in total, text).
        ranks: Who takes part.
    """

    def __init__(
        self,
        synthesizer: Synthesizer,
        labels: Tensor,
        store: CheckpointStore | None,
        progress: Progress | None,
        ranks: Ranks,
    ) -> None:
        super().__init__(synthesizer, labels, None, progress)
        self._kept, self._ranks = store, ranks

    def images(self) -> Tensor:
        """Returns all images, on every rank."""
        ranks, shape = self._ranks, self.synthesizer.image_shape
        if self.synthesizer.recipe.joint_statistics:
            return self._by_the_leader()
        found = None if self._kept is None else self._kept.load_parts(len(self.parts), shape)
        done: list[FinishedBatch] = list(ranks.told(found) or [])
        for first in range(len(done), len(self.parts), ranks.size):
            mine = first + ranks.rank
            batch = self._made(mine) if mine < len(self.parts) else None
            made = [other for other in ranks.gathered(batch) if other is not None]
            if self._kept is not None:
                for part, other in enumerate(made, start=first):
                    self._kept.save_part(part, other)
            done += made
        for batch in done:
            self._note(batch.diverged, batch.steps)
        self.history = {
            key: list(itertools.chain.from_iterable(batch.history[key] for batch in done))
            for key in self.history
        }
        return torch.cat([batch.images for batch in done])

    def _made(self, part: int) -> FinishedBatch:
        """Trains one batch; returns it."""
        indices = self.parts[part]
        labels = self.labels[indices.start : indices.stop]
        self.history = {key: [] for key in self.history}
        self.synthesizer.begin(part, indices, labels)
        diverged = self._train(part)
        steps, images = self.synthesizer.num_done, self.synthesizer.sample(labels)
        return FinishedBatch(images, steps, diverged, self.history)

    def _by_the_leader(self) -> Tensor:
        """Returns the images that rank 0 makes one batch after another, as it would alone."""
        made = None
        if not self._ranks.follows:
            self.store = self._kept
            images = super().images()
            made = images, self.history, self.steps, self.warnings
        found = self._ranks.told(made)
        self.history, self.steps, self.warnings = found[1:]
        return torch.as_tensor(found[0])
