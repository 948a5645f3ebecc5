"""Class centers made class by class, straight into their file: memory for one class and a batch."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fdda_deploy.durable import sync
from fdda_deploy.pipeline.distributed import ALONE, Ranks
from fdda_deploy.pipeline.network import StatisticsNetwork
from fdda_deploy.pipeline.synthesis.center_layout import (
    CHANNELS,
    CORRECT,
    COUNTS,
    LAYERS,
    MEANS,
    VARIANCES,
    CenterLayout,
)
from fdda_deploy.pipeline.synthesis.centers import CenterMeasure, not_finite
from fdda_deploy.pipeline.synthesis.statistics import merge_statistics

UNFINISHED = ".unfinished"
"""Ends the name of the file while classes are missing; a run that is killed goes on with it."""
NOTED_EVERY_SECONDS = 5.0
"""How much work a kill or a power failure may cost: rows count once they are on the disk."""


class CenterWriter:
    """Writes the centers of FDDA (arXiv 2109.04186) as they are measured; see `class_centers`.

    A class's row goes to the file when the first image of a later class comes. Several ranks write
    their own classes into one file, so all of them must see the folder of rank 0.

    Example:
        with CenterWriter(network, 1000, path, device=device) as writer:
            for images, labels in batches:  # of the classes that are not writer.done, in order
                writer.add(images, labels)
            writer.finish()

    Args:
        network: Traced float network; moved to ``device``.
        num_classes: Rows to make; classes without images keep count 0.
        path: The file to make; rank 0's counts.
        device: Where to run the network.
        ranks: Who measures other classes. Collective: all ranks make, finish and leave alike.

    Attributes:
        done: ``(num_classes,)`` bool: classes that a run before this one measured.

    Raises:
        ModelError: The network has no BatchNorm layer.
        OSError: The file cannot be made.
    """

    def __init__(
        self,
        network: StatisticsNetwork,
        num_classes: int,
        path: Path,
        *,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        self._measure = CenterMeasure(network, num_classes, device)
        self._layout = CenterLayout(num_classes, self._measure.layers, self._measure.channels)
        self._at, self._ranks = self._layout.offsets(), ranks
        self._path: Path = ranks.told(path.resolve())
        self._unfinished = self._path.with_name(self._path.name + UNFINISHED)
        if not ranks.follows:
            self._continue_or_start()
        ranks.meet()
        self._file = self._unfinished.open("r+b", buffering=0)
        self.done = torch.from_numpy(self._counts() > 0)
        self._label, self._count, self._hits = -1, 0, 0
        self._rows: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))
        self._unnoted: list[tuple[int, int, bool]] = []
        self._next_note = time.monotonic() + NOTED_EVERY_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, images: Tensor, labels: Tensor) -> None:
        """Measures some images.

        Args:
            images: ``(N, C, H, W)`` as the network takes them.
            labels: ``(N,)``; over all calls classes rise, so that each is whole at some time.

        Raises:
            CalibrationError: A label is outside the classes, or a statistic is not finite.
            OSError: The disk is full.
        """
        for label, mean, variance, hit in self._measure.of(images, labels):
            if label != self._label:
                assert label > self._label, "images must come class by class"
                self._close_class()
                self._label, self._count, self._hits = label, 0, 0
                self._rows = mean, variance
            else:
                merge_statistics(*self._rows, self._count, mean, variance, 1)
            self._count += 1
            self._hits += hit

    def finish(self) -> None:
        """Gives the file its name: all classes are in it, of every rank.

        Raises:
            CalibrationError: A statistic is not finite.
            RankError: Another rank stopped.
            OSError: The disk is full.
        """
        self._close_class()
        self._note()
        self._ranks.meet()
        if not self._ranks.follows:
            os.fsync(self._file.fileno())
            self._unfinished.replace(self._path)
            sync(self._path.parent)
        self._ranks.meet()

    def _continue_or_start(self) -> None:
        """Leaves a file of the right shape: that of a run before this one, or an empty one."""
        header, size = self._layout.header(), self._layout.file_bytes()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        found = self._unfinished
        ours = found.is_file() and not found.is_symlink()  # a link could lead out of the folder
        if ours and found.stat().st_size == size:
            with found.open("rb") as file:
                if file.read(len(header)) == header:
                    return
        self._unfinished.unlink(missing_ok=True)
        with self._unfinished.open("xb") as file:
            file.truncate(size)  # zeros that take no room until they are written
            file.seek(self._at[LAYERS])
            file.write(np.array(self._layout.layers, "<i8").tobytes())
            file.seek(self._at[CHANNELS])
            file.write(np.array(self._layout.channels, "<i8").tobytes())
            file.seek(0)
            file.write(header)

    def _counts(self) -> NDArray[np.int64]:
        self._file.seek(self._at[COUNTS])
        found = self._file.read(8 * self._layout.num_classes)
        return np.frombuffer(found, "<i8").astype(np.int64)

    def _close_class(self) -> None:
        """Writes the row of the class that is whole."""
        if not self._count:
            return
        for key, row in zip((MEANS, VARIANCES), self._rows, strict=True):
            values = row.numpy()
            if not bool(np.isfinite(values).all()):
                raise not_finite(self._label)
            self._write(self._at[key] + self._label * self._layout.row_bytes, values)
        self._unnoted.append((self._label, self._count, 2 * self._hits > self._count))
        self._count = 0
        if time.monotonic() >= self._next_note:
            self._note()

    def _note(self) -> None:
        """Counts the rows written so far as done, once they are on the disk."""
        os.fsync(self._file.fileno())
        for label, count, correct in self._unnoted:
            self._write(self._at[CORRECT] + label, np.array([correct]))
            self._write(self._at[COUNTS] + 8 * label, np.array([count], "<i8"))
        self._unnoted.clear()
        self._next_note = time.monotonic() + NOTED_EVERY_SECONDS

    def _write(self, offset: int, values: NDArray[np.generic]) -> None:
        data = memoryview(values.tobytes())
        self._file.seek(offset)
        while data:  # an unbuffered file may take less than it is given
            data = data[self._file.write(data) :]
