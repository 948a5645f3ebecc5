"""What several benchmarks keep: rows that are measured again, and processor time."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def merged(rows: Sequence[Row], new: Row, key: Sequence[str]) -> list[Row]:
    """Returns the rows with ``new`` in place of the one of its key, or behind the others."""
    same = [all(row[name] == new[name] for name in key) for row in rows]
    kept = [new if is_same else row for row, is_same in zip(rows, same, strict=True)]
    return kept if any(same) else [*kept, new]


def processor_seconds() -> float:
    """Returns the processor time of this process and of those it started and saw end."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)
