"""A run's state as files: the batch in training, and those that are done; never trusted."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pickle
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fdda_deploy.durable import TEMP_SUFFIX
from fdda_deploy.errors import CalibrationError
from fdda_deploy.pipeline.synthesis.centers import ClassCenters
from fdda_deploy.pipeline.synthesis.synthesizer import Synthesizer

History = dict[str, list[float]]
"""Loss curves: one list per term, and ``step``."""


@dataclass(frozen=True)
class FinishedBatch:
    """One batch of a set, done.

    Attributes:
        images: ``(n, C, H, W)`` float32 on the CPU.
        steps: Steps behind them.
        diverged: The step before which training stopped, or None.
        history: Loss curves of the batch alone, where several ranks made the set; else empty.
    """

    images: Tensor
    steps: int
    diverged: int | None
    history: History = field(default_factory=dict)


_UNREADABLE = (
    OSError,
    EOFError,  # cut short
    RuntimeError,  # no archive
    pickle.UnpicklingError,
    CalibrationError,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
)
"""What a file that is missing, damaged or of another run can raise."""


class CheckpointStore:
    """Saves a run now and then, and continues it.

    Args:
        path: The file.
        identity: Digest of all that decides the run (`run_identity`); a file of another run is
            not continued.
        every_seconds: Least time between two writes. A write that takes long is also followed by
            ten times its own duration without one, so that writing costs a tenth at most.
    """

    def __init__(self, path: Path, identity: str, every_seconds: float) -> None:
        self.path, self.identity, self.every_seconds = path, identity, every_seconds
        self._next = time.monotonic() + every_seconds

    def save_if_due(self, synthesizer: Synthesizer, history: History) -> None:
        """Writes the state unless the last write was a moment ago."""
        if time.monotonic() >= self._next:
            self.save(synthesizer, history)

    def save(self, synthesizer: Synthesizer, history: History) -> None:
        """Writes the state beside its place and moves it there."""
        start = time.monotonic()
        state = {"history": history, "state": synthesizer.state()}
        self._write(self.path, state)
        now = time.monotonic()
        self._next = now + max(self.every_seconds, 10 * (now - start))

    def save_part(self, part: int, batch: FinishedBatch) -> None:
        """Writes a finished batch of images as a file of its own, once."""
        self._write(self._part_path(part), dataclasses.asdict(batch))

    def load_parts(self, count: int, shape: tuple[int, int, int]) -> list[FinishedBatch]:
        """Returns the first finished batches, up to the first that is missing or damaged.

        Args:
            count: Batches that the state in training stands behind.
            shape: (channels, height, width) of an image.
        """
        found: list[FinishedBatch] = []
        for part in range(count):
            try:
                content = self._read(self._part_path(part))
                batch = FinishedBatch(
                    content["images"], content["steps"], content["diverged"], content["history"]
                )
                fits = batch.images.dtype == torch.float32 and batch.images.shape[1:] == shape
            except _UNREADABLE:
                return found
            if not fits:
                return found
            found.append(batch)
        return found

    def _part_path(self, part: int) -> Path:
        return self.path.with_name(f"{self.path.name}.batch{part}")

    def _read(self, path: Path) -> Any:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
        if content["identity"] != self.identity:
            raise CalibrationError(f"{path}: of another run.")
        return content

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}{TEMP_SUFFIX}")
        buffer = io.BytesIO()  # torch would hide a full disk behind an error of its own
        torch.save({"identity": self.identity, **content}, buffer)
        try:
            with partial.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def load_into(self, synthesizer: Synthesizer) -> History | None:
        """Continues from the file; returns its history, or None where nothing there fits.

        A file that is missing, damaged or of another run is no error: the run starts over.
        """
        try:
            content = self._read(self.path)
            history = {str(k): [float(v) for v in vs] for k, vs in content["history"].items()}
            synthesizer.restore(content["state"])
        except _UNREADABLE:
            return None
        return history


def discard_checkpoint(path: Path) -> None:
    """Removes a run's state, and its finished batches with it."""
    path.unlink(missing_ok=True)
    for batch in path.parent.glob(f"{path.name}.batch*"):
        batch.unlink(missing_ok=True)


def run_identity(
    synthesizer: Synthesizer, num_images: int, centers: ClassCenters | None, num_ranks: int = 1
) -> str:
    """Returns a digest of all that decides a training run, the network's weights included.

    A generator's training does not depend on how many images it draws later.
    """
    facts = {
        "recipe": dataclasses.asdict(synthesizer.recipe),
        "image_shape": synthesizer.image_shape,
        "num_classes": synthesizer.num_classes,
        "num_images": num_images if synthesizer.recipe.learns_images else None,
        "seed": synthesizer.seed,
        "autocast": synthesizer.autocast,
        "fast": synthesizer.fast,
        "device": synthesizer.device.type,
        "torch": torch.__version__,
        "ranks": num_ranks,  # sums of shares differ in the last bits
        "centers": None if centers is None else centers.digest(),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    tensors = list(synthesizer.network.state_dict().values())
    tensors += list(synthesizer.bounds or ())
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
