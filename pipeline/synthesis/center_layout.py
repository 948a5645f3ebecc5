"""Where each class's center lies in a file of centers: a safetensors file whose shapes are known.

The classes' rows are of one length, so any row is read or written by itself: centers are made and
used with a few rows in memory, however many classes there are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

COUNTS, LAYERS, CHANNELS = "counts", "layers", "channels"
MEANS, VARIANCES, CORRECT = "means", "variances", "correct"
_LENGTH_BYTES = 8
_ALIGNMENT = 8


@dataclass(frozen=True)
class CenterLayout:
    """The tensors of a file of class centers, by name.

    ``counts`` int64 and ``correct`` bool, one per class; ``layers`` and ``channels`` int64, one per
    deep BatchNorm layer; ``means`` and ``variances`` float32 ``(classes, sum of channels)``.

    Attributes:
        num_classes: Rows.
        layers: Indices of the BatchNorm layers, in execution order.
        channels: Of each of them.
    """

    num_classes: int
    layers: tuple[int, ...]
    channels: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one class in ``means``, and in ``variances``."""
        return 4 * sum(self.channels)

    def tensors(self) -> dict[str, tuple[str, list[int], int]]:
        """Returns dtype as safetensors names it, shape and size in bytes of each, as they lie."""
        classes, layers = self.num_classes, len(self.layers)
        rows = ("F32", [classes, sum(self.channels)], classes * self.row_bytes)
        return {
            COUNTS: ("I64", [classes], 8 * classes),
            LAYERS: ("I64", [layers], 8 * layers),
            CHANNELS: ("I64", [layers], 8 * layers),
            MEANS: rows,
            VARIANCES: rows,
            CORRECT: ("BOOL", [classes], classes),
        }

    def header(self) -> bytes:
        """Returns the first bytes of the file: length, then JSON, padded so that data is aligned.

        The format is https://github.com/huggingface/safetensors#format.
        """
        entries, start = {}, 0
        for name, (dtype, shape, size) in self.tensors().items():
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}
            start += size
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return len(text).to_bytes(_LENGTH_BYTES, "little") + text

    def offsets(self) -> dict[str, int]:
        """Returns the place of each tensor's first byte in the file."""
        found, start = {}, len(self.header())
        for name, (_, _, size) in self.tensors().items():
            found[name] = start
            start += size
        return found

    def file_bytes(self) -> int:
        """Returns the size of the whole file."""
        return len(self.header()) + sum(size for _, _, size in self.tensors().values())
