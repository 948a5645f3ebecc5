"""A flatbuffer that holds a list of (key, value) texts: read with bounds, and written.

The layout is ONNX Runtime's calibration table: the root table's first field is a vector of tables
whose first two fields are strings. All numbers are little-endian; an offset counts from where it
stands, and a table starts with the distance back to its vtable, which lists where its fields are.

Written here rather than with the ``flatbuffers`` package: that one is no dependency of ours, and
its reader follows offsets without looking whether they leave the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from fdda_deploy.calib_cache.record_json import MAX_TENSORS, MAX_TEXT
from fdda_deploy.errors import CalibrationError

MAX_TOTAL_BYTES = 64 * 2**20
"""Entries may share texts, so a small file can name much more text than it holds."""
_FIRST_FIELD, _SECOND_FIELD = 4, 6
"""Where a vtable keeps them: behind its own size and the table's, two bytes each."""
_VTABLE_OF_PAIR = struct.pack("<4H", 8, 12, 4, 8)
_VTABLE_OF_ROOT = struct.pack("<3H", 6, 8, 4)


def parse_pairs(data: bytes) -> list[tuple[str, str]]:
    """Returns the (key, value) texts in ``data``, in the order of the file.

    Raises:
        CalibrationError: An offset or a length that leaves the file, too many entries, a text that
            is too long or no UTF-8.
    """
    reader = _Reader(data)
    vector = reader.field(reader.follow(0), _FIRST_FIELD)
    if vector is None:
        return []
    count = reader.unsigned(vector)
    if count > MAX_TENSORS:
        raise CalibrationError(
            f"flatbuffer table: {count} entries, at most {MAX_TENSORS} are read."
        )
    pairs: list[tuple[str, str]] = []
    total = 0
    for index in range(count):
        table = reader.follow(vector + 4 + 4 * index)
        pairs.append((reader.text(table, _FIRST_FIELD), reader.text(table, _SECOND_FIELD)))
        total += sum(map(len, pairs[-1]))
        if total > MAX_TOTAL_BYTES:
            raise CalibrationError(
                f"flatbuffer table: more than {MAX_TOTAL_BYTES} characters of text in "
                f"{len(data)} bytes: no calibration table."
            )
    return pairs


def render_pairs(pairs: Iterable[tuple[str, str]]) -> bytes:
    """Returns a flatbuffer of ``pairs``, in their order, that any flatbuffer reader takes."""
    entries = list(pairs)
    head = struct.pack("<I", 12) + _VTABLE_OF_ROOT + b"\0\0"
    root = struct.pack("<iI", 8, 4)  # its vtable is 8 bytes back, its vector 4 bytes ahead
    vector = len(head) + len(root)
    body = bytearray(_VTABLE_OF_PAIR)
    start = vector + 4 + 4 * len(entries)
    offsets = []
    for key, value in entries:
        table = start + len(body)
        key_text, value_text = _string(key), _string(value)
        offsets.append(table)
        body += struct.pack("<iII", table - start, 8, 4 + len(key_text))
        body += key_text + value_text
    slots = [offset - (vector + 4 + 4 * index) for index, offset in enumerate(offsets)]
    listed = struct.pack(f"<I{len(slots)}I", len(slots), *slots)
    return bytes(head + root + listed + body)


@dataclass(frozen=True)
class _Reader:
    """Reads numbers at positions that were checked first."""

    data: bytes

    def unsigned(self, at: int, size: int = 4) -> int:
        self._require(at, size)
        return int.from_bytes(self.data[at : at + size], "little")

    def follow(self, at: int) -> int:
        """Returns where the offset at ``at`` points."""
        return at + self.unsigned(at)

    def field(self, table: int, slot: int) -> int | None:
        """Returns where a field's content is, None where the table leaves it out."""
        self._require(table, 4)
        vtable = table - int.from_bytes(self.data[table : table + 4], "little", signed=True)
        if slot + 2 > self.unsigned(vtable, 2):
            return None
        offset = self.unsigned(vtable + slot, 2)
        return self.follow(table + offset) if offset else None

    def text(self, table: int, slot: int) -> str:
        """Returns a string field; empty where the table leaves it out."""
        at = self.field(table, slot)
        if at is None:
            return ""
        length = self.unsigned(at)
        if length > MAX_TEXT:
            raise CalibrationError(
                f"flatbuffer table: a text of {length} bytes at byte {at}, at most {MAX_TEXT}."
            )
        self._require(at + 4, length)
        try:
            return self.data[at + 4 : at + 4 + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise CalibrationError(
                f"flatbuffer table: the text at byte {at} is not UTF-8. Is it a calibration table?"
            ) from error

    def _require(self, at: int, size: int) -> None:
        if at < 0 or at + size > len(self.data):
            raise CalibrationError(
                f"flatbuffer table: byte {at} is outside the file of {len(self.data)} bytes. "
                "It is truncated, or no calibration table."
            )


def _string(text: str) -> bytes:
    """Returns length, text, a zero, and padding to a multiple of four."""
    raw = text.encode("utf-8")
    return struct.pack("<I", len(raw)) + raw + b"\0" * (4 - len(raw) % 4)
