"""The plot of benchmarks/peers.py: a row of panels per network, a bar per way to quantize."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers_tools import MODELOPT, ORT, OURS
from peers_verdict import (
    COLUMNS,
    DROP,
    FILE,
    LATENCY,
    PLAN,
    REFUSAL,
    REFUSED,
    Column,
    Row,
)

COLORS = {ORT: "tab:gray", MODELOPT: "tab:green", OURS: "tab:blue"}
PANELS = tuple(column for column in COLUMNS if column is not REFUSAL)
SHARES = (PLAN, LATENCY, FILE)
"""Columns whose figure is a share of the float graph's, which is 1."""


def draw(rows: Sequence[Row], path: Path) -> None:
    """Writes an SVG; what has no figure says so in its place.

    Args:
        rows: As benchmarks/peers.py measures them.
        path: File to write.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.fonttype"] = "none"  # text stays text, and the file small
    mpl.rcParams["svg.hashsalt"] = "peers"  # the same rows make the same file
    from matplotlib import pyplot

    networks = list(dict.fromkeys(row["network"] for row in rows))
    shape = (max(1, len(networks)), len(PANELS))
    size = (2.1 * shape[1] + 1.6, 2.6 * shape[0])
    figure, axes = pyplot.subplots(*shape, figsize=size, squeeze=False)
    for line, network in zip(axes, networks, strict=False):
        own = [row for row in rows if row["network"] == network]
        labels = [f"{row['tool']}, {row['variant']}, {row['scheme']}" for row in own]
        for axis, column in zip(line, PANELS, strict=True):
            _bars(axis, own, column)
            axis.set_yticks(range(len(own)), labels if column is PANELS[0] else [""] * len(own))
            axis.set_ylim(len(own) - 0.5, -0.5)
            axis.set_title(column.name, fontsize=9)
            axis.tick_params(labelsize=7)
        line[0].set_ylabel(network, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def _bars(axis: Any, rows: Sequence[Row], column: Column) -> None:
    for place, row in enumerate(rows):
        value = column.value(row)
        if value is None or value == REFUSED:
            across = axis.get_yaxis_transform()
            said = column.shown(row)
            axis.text(0.02, place, said, fontsize=6, va="center", color="tab:red", transform=across)
            continue
        ends = None
        if column is DROP:
            drop = row["drop"]
            ends = [[value - drop["low"]], [drop["high"] - value]]
        axis.barh(place, value, xerr=ends, color=COLORS[row["tool"]], height=0.7)
    if column in SHARES:
        axis.axvline(1, color="tab:orange", linewidth=0.8, linestyle="--")
