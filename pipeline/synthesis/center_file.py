"""Class centers as a file: mapped, so that only the rows that are used come into memory.

The file is not trusted: all of it is checked in pieces before the first row is used.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fdda_deploy.errors import CalibrationError
from fdda_deploy.pipeline.synthesis.center_layout import (
    CHANNELS,
    CORRECT,
    COUNTS,
    LAYERS,
    MEANS,
    VARIANCES,
    CenterLayout,
)
from fdda_deploy.pipeline.synthesis.centers import ClassCenters

MAX_FILE_BYTES = 8 << 30
"""Refuse larger center files: 21,000 classes of a ResNet-50 need about 3 GB."""
MAX_CLASSES, MAX_LAYERS = 1 << 22, 1 << 16
CHECKED_BYTES = 4 << 20
"""How much of the file is in memory while it is checked."""


def load_class_centers(path: Path) -> ClassCenters:
    """Returns the centers that `CenterWriter` wrote, their statistics mapped from the file.

    The file must stay as it is while they are used.

    Raises:
        CalibrationError: The file is missing, damaged, too large, or not a set of class centers.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise _damaged(path, f"{size} bytes are more than {MAX_FILE_BYTES}")
        with safe_open(path, framework="pt") as file:
            tensors = _tensors(path, file)
            layout = _layout(path, tensors)
        digest = _checked_digest(path, layout, size)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, str(error).splitlines()[0][:200]) from error
    return ClassCenters(
        layout.layers,
        torch.split(tensors[MEANS], list(layout.channels), dim=1),
        torch.split(tensors[VARIANCES], list(layout.channels), dim=1),
        tensors[COUNTS],
        tensors[CORRECT],
        digest,
    )


def _tensors(path: Path, file: Any) -> dict[str, Tensor]:
    """Returns the file's tensors; float statistics stay in the file until they are read."""
    wanted = {COUNTS, LAYERS, CHANNELS, MEANS, VARIANCES, CORRECT}
    if set(file.keys()) != wanted:
        raise _damaged(path, f"its tensors are not {', '.join(sorted(wanted))}")
    return {key: file.get_tensor(key) for key in wanted}


def _layout(path: Path, tensors: dict[str, Tensor]) -> CenterLayout:
    """Returns what the tensors' shapes and the small tensors say, once they agree."""
    counts, layers, channels = tensors[COUNTS], tensors[LAYERS], tensors[CHANNELS]
    if counts.numel() > MAX_CLASSES:
        raise _damaged(path, f"{counts.numel()} classes are more than {MAX_CLASSES}")
    if counts.dim() != 1 or counts.dtype != torch.int64 or bool((counts < 0).any()):
        raise _damaged(path, "counts must be non-negative int64, one per class")
    if tensors[CORRECT].shape != counts.shape or tensors[CORRECT].dtype != torch.bool:
        raise _damaged(path, "correct must be bool, one per class")
    alike = layers.dim() == 1 and layers.shape == channels.shape and 0 < len(layers) <= MAX_LAYERS
    if not alike or {layers.dtype, channels.dtype} != {torch.int64}:
        raise _damaged(path, "layers and channels must be int64, one per BatchNorm layer")
    if int(layers[0]) < 0 or bool((layers.diff() <= 0).any()) or bool((channels < 1).any()):
        raise _damaged(path, "layers must rise from 0 or more, and each has at least one channel")
    width = sum(channels.tolist())  # Python's integers: a sum of hostile ones does not wrap around
    for key in (MEANS, VARIANCES):
        if tensors[key].dtype != torch.float32 or tensors[key].shape != (len(counts), width):
            raise _damaged(path, f"{key} must be float32 (classes, channels)")
    return CenterLayout(len(counts), tuple(layers.tolist()), tuple(channels.tolist()))


def _checked_digest(path: Path, layout: CenterLayout, size: int) -> str:
    """Checks every statistic; returns the sha256 of the file. Reads a piece at a time.

    Plain reads, where looking through the mapping would fill memory with all of it.
    """
    digest = hashlib.sha256()
    header = layout.header()
    with path.open("rb") as file:
        if file.read(len(header)) != header or size != layout.file_bytes():
            raise _damaged(path, "it was not written by this tool")
        digest.update(header)
        for name, (_, _, total) in layout.tensors().items():
            for start in range(0, total, CHECKED_BYTES):
                wanted = min(CHECKED_BYTES, total - start)
                piece = file.read(wanted)
                if len(piece) < wanted:
                    raise _damaged(path, "it became shorter while it was read")
                digest.update(piece)
                if name in {MEANS, VARIANCES}:
                    _check_values(path, name, np.frombuffer(piece, "<f4"))
    return digest.hexdigest()


def _check_values(path: Path, name: str, values: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    sound = np.isfinite(values).all() and (name != VARIANCES or (values >= 0).all())
    if not bool(sound):
        raise _damaged(path, f"{name} has values that no image can give")


def _damaged(path: Path, what: str) -> CalibrationError:
    return CalibrationError(
        f"{path}: not usable as class centers: {what}. Delete it and run again to recompute."
    )
