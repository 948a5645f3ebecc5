"""The charts of the report: accuracy, bytes, losses, error per layer and time per stage.

Each takes one part of the report and returns an inline SVG, or None where there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from fdda_deploy.pipeline.report.parts import Accuracy, Curve, Layer, Sizes, Stage
from fdda_deploy.pipeline.report.phrases import decimal, duration, percent, plain, size
from fdda_deploy.pipeline.report.svg import ACCENT, INK, LINE, MUTED, SERIES, SOFT, WARM, inline_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_INCHES = 4.1
MAX_LAYERS = 24
"""More bars than this are a texture, not a chart; the table has every layer."""
NUM_HIGHLIGHTED = 3
_NAME_CHARS = 26
_ROW_INCHES = 0.24


def accuracy_svg(accuracy: Accuracy) -> str:
    """Returns top-1 before and after as points with their 95 % intervals, in percent.

    Points, not bars: the axis does not start at zero, and only a length from zero is honest.
    """
    named = [("float", accuracy["float"]), ("quantized", accuracy["quantized"])]
    colors = (SOFT, ACCENT)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for row, (_, part) in enumerate(named):
            top1, low, high = part["top1"], part["low"], part["high"]
            if low is not None and high is not None:
                axes.plot([low, high], [row, row], color=colors[row], linewidth=7, alpha=0.45)
            axes.plot([top1], [row], "o", color=colors[row], markersize=9)
            axes.annotate(
                percent(top1),
                (top1, row),
                (0, 11),
                textcoords="offset points",
                ha="center",
                color=INK,
            )
        axes.set_ylim(len(named) - 0.55, -0.75)
        axes.margins(x=0.12)
        _label_rows(axes, [name for name, _ in named])
        axes.set_xlabel("top-1 accuracy, %")
        axes.ticklabel_format(axis="x", useOffset=False)
        axes.grid(visible=True)

    text = ", ".join(f"{name} {percent(part['top1'])}" for name, part in named)
    description = f"Top-1 accuracy with 95 % intervals: {text}."
    return inline_svg(
        draw, name="accuracy", description=description, size_inches=(WIDTH_INCHES, 1.75)
    )


def bytes_svg(sizes: Sizes) -> str | None:
    """Returns one bar for each artefact that has a size, in bytes."""
    named = [
        ("float ONNX", sizes["fp32_onnx"], SOFT),
        ("Q/DQ ONNX", sizes["qdq_onnx"], ACCENT),
        ("float plan", sizes["fp32_plan"], SOFT),
        ("plan", sizes["plan"], ACCENT),
    ]
    bars = [(name, float(value), color) for name, value, color in named if value is not None]
    return _bars("bytes", "Size of each file", bars, size)


def stages_svg(stages: Sequence[Stage]) -> str | None:
    """Returns one bar for each stage, in seconds; stages that were cached are pale."""
    bars = [
        (stage["name"] + (" (cached)" if stage["cached"] else ""), stage["seconds"],
         SOFT if stage["cached"] else ACCENT)
        for stage in stages
    ]  # fmt: skip
    return _bars("stages", "Time of each stage", bars, duration)


def sqnr_svg(layers: Sequence[Layer]) -> str | None:
    """Returns the layers' signal-to-noise ratio in dB as bars, the worst first and marked."""
    worst = _worst_first(layers)[1]
    bars = [
        (name, sqnr_db, WARM if place < NUM_HIGHLIGHTED < len(worst) else ACCENT)
        for place, (name, sqnr_db) in enumerate(worst[:MAX_LAYERS])
    ]
    return _bars("sqnr", sqnr_caption(layers), bars, lambda sqnr_db: decimal(sqnr_db, 1))


def sqnr_caption(layers: Sequence[Layer]) -> str:
    """Returns what :func:`sqnr_svg` shows of these layers, in words."""
    what, worst = _worst_first(layers)
    shown = (
        f"the {MAX_LAYERS} worst of {len(worst)} layers"
        if len(worst) > MAX_LAYERS
        else "each layer"
    )
    marked = f" The worst {NUM_HIGHLIGHTED} stand out." if len(worst) > NUM_HIGHLIGHTED else ""
    return (
        f"Signal to quantization noise of the {what} of {shown}, in dB; more is better, and 20 dB "
        f"is 1 % of noise power.{marked}"
    )


def _worst_first(layers: Sequence[Layer]) -> tuple[str, list[tuple[str, float]]]:
    """Returns what was measured, outputs before weights, and (layer, dB) in rising order."""
    what, measured = "output", [(layer["name"], layer["output_sqnr_db"]) for layer in layers]
    if all(sqnr_db is None for _, sqnr_db in measured):
        what, measured = "weights", [(layer["name"], layer["weight_sqnr_db"]) for layer in layers]
    known = [(name, sqnr_db) for name, sqnr_db in measured if sqnr_db is not None]
    return what, sorted(known, key=lambda pair: pair[1])


def losses_svg(
    history: Mapping[str, Curve], every: int, *, name: str, description: str
) -> str | None:
    """Returns the loss curves over steps; gaps where a loss was not finite.

    Args:
        history: Loss name to its values.
        every: Steps between two values.
        name: Unique on the page.
        description: For readers who cannot see the figure.
    """
    curves = {label: curve for label, curve in history.items() if any(v is not None for v in curve)}
    if not curves:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for index, (label, curve) in enumerate(curves.items()):
            steps = [position * every for position in range(len(curve))]
            values = [float("nan") if value is None else value for value in curve]
            color, dash = SERIES[index % len(SERIES)], ("-", "--", ":")[index // len(SERIES) % 3]
            marker = "o" if len(curve) == 1 else None
            axes.plot(
                steps,
                values,
                dash,
                color=color,
                linewidth=1.4,
                marker=marker,
                label=_legend_label(label),
            )
        if all(value is None or value > 0 for curve in curves.values() for value in curve):
            set_log_scale(axes)
        axes.set_xlabel("step")
        axes.grid(visible=True, axis="y")
        figure.legend(loc="outside upper left", ncols=2, labelcolor=INK, handlelength=1.4)

    rows = (len(curves) + 1) // 2
    return inline_svg(
        draw, name=name, description=description, size_inches=(WIDTH_INCHES, 2.5 + 0.16 * rows)
    )


def _bars(
    name: str, description: str, bars: Sequence[tuple[str, float, str]], say: Callable[[float], str]
) -> str | None:
    """Returns horizontal bars from zero, each with its value in words at the end."""
    if not bars:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        rows = range(len(bars))
        values = [value for _, value, _ in bars]
        axes.barh(rows, values, height=0.62, color=[color for *_, color in bars])
        for row, value in zip(rows, values, strict=True):
            end = (max(value, 0.0), row)
            axes.annotate(
                say(value), end, (4, 0), textcoords="offset points", va="center", color=MUTED
            )
        axes.set_ylim(len(bars) - 0.45, -0.55)
        longest, shortest = max(*values, 0.0), min(*values, 0.0)
        axes.set_xlim(shortest * 1.05, (longest * 1.22) or 1.0)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        _label_rows(axes, [label for label, *_ in bars])

    height = 0.2 + _ROW_INCHES * len(bars)
    return inline_svg(draw, name=name, description=description, size_inches=(WIDTH_INCHES, height))


def _legend_label(label: str) -> str:
    """A space in front of an underscore: matplotlib hides labels that begin with one."""
    return f" {_short(label)}" if label.startswith("_") else _short(label)


def set_log_scale(axes: Axes) -> None:
    """Labels 1, 2 and 5 of each decade in digits: matplotlib's own labels are formulas."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _label_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), [_short(label) for label in labels])
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", color=LINE)
    axes.spines["left"].set_visible(False)


def _short(label: str) -> str:
    """Returns a label that fits: a long one loses its middle, which says least in a module path."""
    text = plain(label)
    if len(text) <= _NAME_CHARS:
        return text
    keep = _NAME_CHARS - 1
    return f"{text[: keep // 3]}…{text[-(keep - keep // 3) :]}"
