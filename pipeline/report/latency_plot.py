"""Throughput against latency over a batch sweep, as one SVG or PNG file."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fdda_deploy.durable import write_whole
from fdda_deploy.errors import ConfigError
from fdda_deploy.pipeline.report.svg import SERIES, inline_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fdda_deploy.pipeline.report.parts import Timing

SIZE_INCHES = (6.4, 4.0)
PNG_COLOURS = ("#3d7ea6", "#c0652d", "#4f8f5b", "#8a63a8", "#b08a1e", "#767676")
Point = tuple[int, float, float]
"""(batch, median latency in ms, images per second)."""


def write_latency_plot(path: Path, sweeps: Mapping[str, Sequence[Point]]) -> None:
    """Writes the chart of one line per model, its points in order of batch.

    Args:
        path: Ends in .svg or .png.
        sweeps: Points by the model's label.

    Raises:
        ConfigError: Another ending, or nothing to draw.
        OSError: The folder is missing, full, or not writable.
    """
    suffix = path.suffix.lower()
    if suffix not in (".svg", ".png"):
        raise ConfigError(f"--plot {path}: want a file that ends in .svg or .png.")
    if not any(sweeps.values()):
        raise ConfigError(f"--plot {path}: no measurement to draw. Bench a model first.")
    if suffix == ".png":
        write_whole(path, _png(sweeps))
        return
    page = latency_svg(sweeps).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    write_whole(path, page.encode())


def sweep_svg(timings: Sequence[Timing]) -> str | None:
    """Returns the chart of a report's sweep for its page; None without one."""
    sweeps: dict[str, list[Point]] = defaultdict(list)
    for timing in timings:
        point = (timing["batch"], timing["latency_ms"]["median"], timing["images_per_s"] or 0.0)
        sweeps[timing["what"]].append(point)
    return latency_svg(sweeps) if sweeps else None


def latency_svg(sweeps: Mapping[str, Sequence[Point]]) -> str:
    """Returns the chart as one SVG element to stand in a page."""
    text = "; ".join(
        f"{label}: "
        + ", ".join(f"batch {n} {rate:.0f} images/s at {ms:.3f} ms" for n, ms, rate in s)
        for label, s in sweeps.items()
    )
    return inline_svg(
        lambda figure: _draw(figure, sweeps, SERIES),
        name="latency-throughput",
        description=f"Throughput by latency. {text}",
        size_inches=SIZE_INCHES,
    )


def _png(sweeps: Mapping[str, Sequence[Point]]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    _draw(figure, sweeps, PNG_COLOURS)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=144)
    return stream.getvalue()


def _draw(figure: Figure, sweeps: Mapping[str, Sequence[Point]], colours: Sequence[str]) -> None:
    axes = figure.subplots()
    for index, (label, points) in enumerate(sweeps.items()):
        ordered = sorted(points)
        times, rates = [ms for _, ms, _ in ordered], [rate for _, _, rate in ordered]
        axes.plot(times, rates, "o-", color=colours[index % len(colours)], label=label)
        for batch, ms, rate in ordered:
            axes.annotate(str(batch), (ms, rate), textcoords="offset points", xytext=(4, 4))
    axes.set_xlabel("median latency of a batch, ms (its size beside each point)")
    axes.set_ylabel("images per second")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend()
