"""The plot of benchmarks/synthesis.py: how many times the plain loop's speed, by recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

WANTED = {"cpu": 1.5}
"""What is aimed at for ``fdda``, as a line."""


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes an SVG: a panel per network and device, a bar per recipe from least to greatest.

    Args:
        rows: As `synthesis.measured` returns them.
        path: File to write.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.fonttype"] = "none"  # text stays text, and the file small
    mpl.rcParams["svg.hashsalt"] = "synthesis"  # the same rows make the same file
    from matplotlib import pyplot

    panels = list(dict.fromkeys((row["network"], row["device"]) for row in rows))
    size = (3.4 * max(1, len(panels)), 2.8)
    figure, axes = pyplot.subplots(1, max(1, len(panels)), figsize=size, squeeze=False)
    for axis, (network, device) in zip(axes[0], panels, strict=False):
        shown = [row for row in rows if (row["network"], row["device"]) == (network, device)]
        middles = [row["speedup"]["median"] for row in shown]
        ends = [
            [m - row["speedup"]["low"] for m, row in zip(middles, shown, strict=True)],
            [row["speedup"]["high"] - m for m, row in zip(middles, shown, strict=True)],
        ]
        axis.bar([row["recipe"] for row in shown], middles, yerr=ends, capsize=3, color="tab:blue")
        axis.axhline(1, color="gray", linewidth=0.8)
        if device in WANTED:
            axis.axhline(WANTED[device], color="tab:orange", linewidth=0.8, linestyle="--")
        axis.set(title=f"{network}, {device}", ylabel="speed over the plain loop")
        axis.tick_params(axis="x", labelrotation=30)
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)
