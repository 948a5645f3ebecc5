"""Batches of activations within a bound of memory; what does not fit waits in a temporary file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from fdda_deploy.errors import CalibrationError


@dataclass(frozen=True)
class _Spilled:
    """Where in the file a batch lies, and how its elements are ordered there."""

    offset: int
    shape: tuple[int, ...]
    channels_last: bool


class ActivationStore:
    """Batches in order, the first ``limit_bytes`` of them in RAM, the others on disk.

    The file has no name where the system allows it, so that nothing is left behind however the
    process ends; elsewhere `close` removes it. It is read and written, not mapped: mapped pages
    would count as resident memory. Use as a context manager::

        with ActivationStore(2**30) as store:
            store.append(x)

    Args:
        limit_bytes: RAM for batches; 0 puts all on disk. The batch that is handed out comes on top.
        folder: Where the file lies; the system's temporary folder when not given. A folder in RAM
            (tmpfs) bounds nothing.
    """

    def __init__(self, limit_bytes: int, folder: Path | None = None) -> None:
        self._limit = limit_bytes
        self._folder = folder
        self._entries: list[Tensor | _Spilled] = []
        self._file: IO[bytes] | None = None
        self.num_samples = 0
        self.bytes_in_memory = 0
        self.bytes_spilled = 0

    def append(self, x: Tensor) -> None:
        """Keeps a copy of one batch, samples along axis 0, as float32 on the CPU.

        A 4-D tensor that is laid out channels_last stays so, others become row-major.

        Raises:
            CalibrationError: The file cannot be written; says where and how much it needs.
        """
        last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        size = x.numel() * 4
        if self.bytes_in_memory + size <= self._limit:
            layout = torch.channels_last if last else torch.contiguous_format
            self._entries.append(_copied(x, layout))
            self.bytes_in_memory += size
        else:
            rows = x.detach().permute(0, 2, 3, 1) if last else x.detach()
            self._write(rows.to("cpu", torch.float32).contiguous())
            self._entries.append(_Spilled(self.bytes_spilled, tuple(rows.shape), last))
            self.bytes_spilled += size
        self.num_samples += len(x)

    def batch(self, index: int) -> Tensor:
        """Returns one batch as it was appended, float32 on the CPU; never write to it.

        Raises:
            IndexError: No batch of that number, for instance after `close`.
        """
        if not 0 <= index < len(self._entries):
            raise IndexError(f"batch {index} of {len(self._entries)}")
        entry = self._entries[index]
        return entry if isinstance(entry, Tensor) else self._read(entry)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Tensor]:
        return (self.batch(index) for index in range(len(self)))

    def close(self) -> None:
        """Forgets all batches and removes the file; may be called twice."""
        self._entries.clear()
        self.num_samples = self.bytes_in_memory = self.bytes_spilled = 0
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def __enter__(self) -> ActivationStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, rows: Tensor) -> None:
        """Puts the elements at the end of the file."""
        try:
            if self._file is None:
                # The file lives as long as the store, so `close` ends it and not a block here.
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
            self._file.seek(self.bytes_spilled)
            self._file.write(rows.numpy().data)
            self._file.flush()
        except OSError as error:
            where = self._folder or tempfile.gettempdir()
            needed = self.bytes_spilled + rows.numel() * 4
            raise CalibrationError(
                f"{where}: cannot hold {needed} bytes of activations ({error.strerror}). Free the "
                "space, give fewer images, or allow more memory."
            ) from error

    def _read(self, entry: _Spilled) -> Tensor:
        assert self._file is not None
        rows = np.empty(entry.shape, dtype=np.float32)
        self._file.seek(entry.offset)
        count = self._file.readinto(rows.reshape(-1).view(np.uint8))  # type: ignore[attr-defined]  # a buffered file
        if count != rows.nbytes:
            raise CalibrationError(
                f"the temporary file of activations ends {rows.nbytes - count} bytes early. "
                "Check the disk and run again."
            )
        x = torch.from_numpy(rows)
        return x.permute(0, 3, 1, 2) if entry.channels_last else x


def _copied(x: Tensor, layout: torch.memory_format) -> Tensor:
    """Returns a copy of its own: a view would hold on to all that it is a view of."""
    kept = torch.empty(x.shape, dtype=torch.float32, memory_format=layout)
    return kept.copy_(x.detach())
