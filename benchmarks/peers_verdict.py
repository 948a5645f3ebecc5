"""Who is ahead in each column of benchmarks/peers.py, by a rule that looks at no figure of ours.

Of each other tool the best row of that column counts, whichever of its settings it is. Of ours the
row for the target that the other tool, or the column, is about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from peers_measure import drop_between, unpacked
from peers_tools import MODELOPT, ORT, OURS

Row = Mapping[str, Any]
Verdict = Literal["win", "tie", "loss", "not measured"]
SCHEME = "w8a8"
"""The scheme that all tools have."""
TIE = 0.05
"""Share by which figures may differ and still count as equal."""


REFUSED = math.inf
"""The plan of a file that the builder does not take: larger than any."""
PURPOSE = {ORT: "ort-cpu", MODELOPT: "trt"}
"""Our target that makes a file for what the other tool's is for."""


@dataclass(frozen=True)
class Column:
    """One thing that is compared; less is better in all of them.

    Attributes:
        name: Its head in a table.
        value: Its figure in a row; None where there is none.
        form: How a figure is written.
        target: Our target that it is about, whatever the other tool is for; None for `PURPOSE`.
    """

    name: str
    value: Callable[[Row], float | None]
    form: str
    target: str | None = None

    def shown(self, row: Row | None) -> str:
        """Returns a row's figure as a table has it."""
        value = None if row is None else self.value(row)
        if value is None:
            return "not measured"
        if self is REFUSAL:
            return "no" if value else "yes"
        return "refused" if value == REFUSED else self.form.format(value)


def _drop(row: Row) -> float | None:
    return None if "drop" not in row else float(row["drop"]["mean"])


def _latency(row: Row) -> float | None:
    return None if "latency" not in row else float(row["latency"]["ratio"])


def _refusal(row: Row) -> float | None:
    return None if "rtx_accepts" not in row else float(not row["rtx_accepts"])


def _plan(row: Row) -> float | None:
    if "rtx_accepts" not in row:
        return None
    return row["plan_bytes"] / row["float_plan_bytes"] if row["rtx_accepts"] else REFUSED


def _file(row: Row) -> float | None:
    return None if "model_bytes" not in row else row["model_bytes"] / row["float_bytes"]


DROP = Column("drop, points", _drop, "{:.1f}")
KL = Column("KL, nats", lambda row: row.get("kl_nats"), "{:.4f}")
CPU_SECONDS = Column("CPU s", lambda row: row.get("cpu_seconds"), "{:.0f}")
PEAK = Column("peak MiB", lambda row: row.get("peak_mib"), "{:.0f}")
REFUSAL = Column("RTX takes it", _refusal, "{}", target="rtx")
PLAN = Column("plan / fp32", _plan, "{:.2f}", target="rtx")
LATENCY = Column("CPU latency / float", _latency, "{:.2f}", target="ort-cpu")
FILE = Column("file / float", _file, "{:.2f}")
COLUMNS = (DROP, KL, CPU_SECONDS, PEAK, REFUSAL, PLAN, LATENCY, FILE)


def ours_in(rows: Sequence[Row], network: str, column: Column, peer: str) -> Row | None:
    """Returns our row that a column compares with a peer's; None where it has no figure."""
    target = column.target or PURPOSE[peer]
    return best([row for row in rows if row["variant"] == target], network, OURS, column)


def best(rows: Sequence[Row], network: str, tool: str, column: Column) -> Row | None:
    """Returns the row of a tool with the least figure in a column; None where it has none."""
    found = [
        row
        for row in rows
        if (row["network"], row["tool"], row["scheme"]) == (network, tool, SCHEME)
        and not row["failed"]  # one that was stopped has spent less than it takes
        and column.value(row) is not None
    ]
    return min(found, key=lambda row: column.value(row) or 0.0, default=None)


def verdict(column: Column, ours: Row | None, theirs: Row | None) -> Verdict:
    """Returns how our figure compares with theirs.

    The drop ties where the paired 95 % interval of the difference, on the same images, has zero in
    it; other figures within 5 %. A refused file has a larger plan than any other.
    """
    mine = None if ours is None else column.value(ours)
    other = None if theirs is None else column.value(theirs)
    if ours is None or theirs is None or mine is None or other is None:
        return "not measured"
    if column is DROP:
        sides = [unpacked(row["right"], row["n"]) for row in (ours, theirs)]
        ahead = drop_between(*sides)
        if ahead.low <= 0 <= ahead.high:
            return "tie"
        return "win" if ahead.mean > 0 else "loss"
    if mine == other or abs(mine - other) <= TIE * min(mine, other):
        return "tie"
    return "win" if mine < other else "loss"
