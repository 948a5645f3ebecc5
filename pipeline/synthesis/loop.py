"""The one loop that all recipes share: batch after batch, train, guard, checkpoint, harvest."""

from __future__ import annotations

import io
import itertools

import torch
from torch import Tensor

from fdda_deploy.pipeline.network import Progress
from fdda_deploy.pipeline.synthesis.checkpoint import CheckpointStore, FinishedBatch, History
from fdda_deploy.pipeline.synthesis.objective import active_terms
from fdda_deploy.pipeline.synthesis.synthesizer import Synthesizer

READ_EVERY = 50
"""Steps between two looks at the losses: each look waits for the device."""
HISTORY_POINTS = 400
"""About how many points a loss curve keeps."""


def even_parts(num_images: int, batch_size: int) -> list[range]:
    """Returns the places of each batch of a set, as many as needed, as alike in size as can be.

    Example:
        >>> even_parts(10, 4)
        [range(0, 3), range(3, 6), range(6, 10)]
    """
    count = max(1, -(-num_images // batch_size))
    edges = [num_images * part // count for part in range(count + 1)]
    return [range(low, high) for low, high in itertools.pairwise(edges)]


class SetInTheMaking:
    """A set of images, batch after batch: each is trained, guarded, checkpointed, harvested.

    Args:
        synthesizer: Makes one batch; a generator makes the whole set as one.
        labels: ``(n,)`` classes of the images.
        store: Where the state is saved and continued from; None keeps nothing.
        progress: Called with (steps done, steps in total, text).

    Attributes:
        history: Loss curves by term, and ``step``.
        steps: Steps behind the images, of all batches.
        warnings: One for each batch that diverged.
    """

    def __init__(
        self,
        synthesizer: Synthesizer,
        labels: Tensor,
        store: CheckpointStore | None,
        progress: Progress | None,
    ) -> None:
        self.synthesizer, self.labels = synthesizer, labels
        self.store, self.progress = store, progress
        recipe = synthesizer.recipe
        size = synthesizer.batch_size if recipe.learns_images else max(1, len(labels))
        self.parts = even_parts(len(labels), size)
        self.terms = active_terms(recipe)
        self.history: History = {"step": [], **{key: [] for key in self.terms}}
        self.num_steps = recipe.num_steps * len(self.parts)
        self.steps = 0
        self.warnings: list[str] = []

    def images(self) -> Tensor:
        """Returns all images, what a checkpoint has of them taken from there."""
        done = self._continued()
        for part, indices in enumerate(self.parts[len(done) :], start=len(done)):
            if self.synthesizer.part != part or self.synthesizer.indices != indices:
                self.synthesizer.begin(part, indices, self.labels[indices.start : indices.stop])
            diverged = self._train(part)
            steps = self.synthesizer.num_done
            self._note(diverged, steps)
            if self.progress is not None and part + 1 == len(self.parts):
                self.progress(self.num_steps, self.num_steps, "drawing images")
            done.append(self.synthesizer.sample(self.labels[indices.start : indices.stop]))
            if self.store is not None and len(self.parts) > 1:
                self.store.save_part(part, FinishedBatch(done[-1], steps, diverged))
        return torch.cat(done)

    def _continued(self) -> list[Tensor]:
        """Puts the checkpoint's state in place; returns the batches that were finished before."""
        synthesizer, found = self.synthesizer, []
        history = None if self.store is None else self.store.load_into(synthesizer)
        if not synthesizer.ranks.alone:
            history = _as_rank_0(synthesizer, history)
        if history is not None:
            if self.store is not None:
                found = self.store.load_parts(synthesizer.part, synthesizer.image_shape)
            if len(found) == synthesizer.part:
                self.history = history
                for batch in found:
                    self._note(batch.diverged, batch.steps)
                return [batch.images for batch in found]
        first = self.parts[0]  # nothing there, or a batch is lost and all after it with it
        synthesizer.start_over()
        synthesizer.begin(0, first, self.labels[first.start : first.stop])
        return []

    def _note(self, diverged: int | None, num_done: int) -> None:
        self.steps += num_done
        if diverged is not None:
            learned = self.synthesizer.recipe.learns_images
            what = "A batch of images" if learned else "The generator"
            self.warnings.append(
                f"{what} diverged before step {diverged}: training stopped, and the images come "
                f"from step {num_done}. A lower lr may help."
            )

    def _train(self, part: int) -> int | None:
        """Trains to the end of the batch; returns the step of divergence, None when all went well.

        Losses stay on the device between looks. A look that finds them all finite keeps the
        source's parameters as the last good ones.
        """
        synthesizer, num_steps = self.synthesizer, self.synthesizer.recipe.num_steps
        every = max(1, min(READ_EVERY, num_steps // 20))
        good, good_step = _weights(synthesizer), synthesizer.num_done
        pending: list[Tensor] = []
        while synthesizer.num_done < num_steps:
            losses = synthesizer.step().losses
            pending.append(torch.stack([losses[key] for key in self.terms]))
            done = synthesizer.num_done
            if done % every and done < num_steps:
                continue
            values = torch.stack(pending).cpu()
            pending.clear()
            if not bool(values.isfinite().all()):
                synthesizer.source.load_state_dict(good)
                synthesizer.num_done = good_step
                return done
            good, good_step = _weights(synthesizer), done
            self._keep(part * num_steps + done, values)
            if self.store is not None and done < num_steps:
                self.store.save_if_due(synthesizer, self.history)
            if self.progress is not None:
                said = f"loss {float(values[-1, 0]):.3f}"
                self.progress(part * num_steps + done, self.num_steps, said)
        if self.store is not None:
            self.store.save(synthesizer, self.history)
        return None

    def _keep(self, done: int, values: Tensor) -> None:
        """Adds the last steps' losses to the history, thinned."""
        stride = max(1, self.num_steps // HISTORY_POINTS)
        for step, row in zip(range(done - len(values), done), values.tolist(), strict=True):
            if step % stride == 0:
                self.history["step"].append(float(step))
                for key, value in zip(self.terms, row, strict=True):
                    self.history[key].append(value)


def _as_rank_0(synthesizer: Synthesizer, history: History | None) -> History | None:
    """Puts rank 0's state in place where it continued one; returns its history."""
    ranks, buffer = synthesizer.ranks, io.BytesIO()
    if history is not None:
        torch.save(synthesizer.state(), buffer)  # not as it is: each rank has its own device
    history, state = ranks.told((history, buffer.getvalue()))
    if history is not None and ranks.follows:
        content = torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)
        synthesizer.restore(content)
    return history


def _weights(synthesizer: Synthesizer) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in synthesizer.source.state_dict().items()}
