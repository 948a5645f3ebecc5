"""A generator's training state as one file: replaced as a whole, never trusted."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pickle
import time
from pathlib import Path
from typing import Any

import torch

from fdda_deploy.errors import CalibrationError
from fdda_deploy.pipeline.synthesis.centers import ClassCenters
from fdda_deploy.pipeline.synthesis.synthesizer import Synthesizer

History = dict[str, list[float]]
"""Loss curves: one list per term, and ``step``."""


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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f"{self.path.name}.part")
        content = {"identity": self.identity, "history": history, "state": synthesizer.state()}
        buffer = io.BytesIO()  # torch would hide a full disk behind an error of its own
        torch.save(content, buffer)
        try:
            with partial.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)
        now = time.monotonic()
        self._next = now + max(self.every_seconds, 10 * (now - start))

    def load_into(self, synthesizer: Synthesizer) -> History | None:
        """Continues from the file; returns its history, or None where nothing there fits.

        A file that is missing, damaged or of another run is no error: the run starts over.
        """
        try:
            content: Any = torch.load(self.path, map_location="cpu", weights_only=True)
            if content["identity"] != self.identity:
                return None
            history = {str(k): [float(v) for v in vs] for k, vs in content["history"].items()}
            synthesizer.restore(content["state"])
        except (
            OSError,
            EOFError,
            RuntimeError,
            pickle.UnpicklingError,
        ):  # no archive, or cut short
            return None
        except (CalibrationError, KeyError, TypeError, ValueError, AttributeError):  # other content
            return None
        return history


def run_identity(
    synthesizer: Synthesizer,
    image_shape: tuple[int, int, int],
    seed: int,
    centers: ClassCenters | None,
) -> str:
    """Returns a digest of all that decides a training run, the network's weights included."""
    facts = {
        "recipe": dataclasses.asdict(synthesizer.recipe),
        "image_shape": image_shape,
        "num_classes": synthesizer.num_classes,
        "seed": seed,
        "autocast": synthesizer.autocast,
        "device": synthesizer.device.type,
        "torch": torch.__version__,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    tensors = list(synthesizer.network.state_dict().values())
    if centers is not None:
        tensors += [centers.counts, centers.correct, *centers.means, *centers.variances]
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
