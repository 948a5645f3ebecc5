"""Mixed precision in the report: its part of report.json, its words and its chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, TypedDict

from fdda_deploy.pipeline.report.checking import Between
from fdda_deploy.pipeline.report.phrases import counted, decimal, points, size
from fdda_deploy.pipeline.report.svg import ACCENT, INK, LINE, MUTED, SOFT, WARM, inline_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Count = Annotated[int, Between(0)]
Size = Annotated[int, Between(0)]
Drop = Annotated[float, Between(-100, 100)]
FIGURE_INCHES = (4.6, 2.9)


class TuneData(TypedDict):
    """The images that chose; without labels, answers that change count as lost."""

    origin: str
    n: Count
    labelled: bool


class MixedPoint(TypedDict):
    """One measured assignment of widths.

    Attributes:
        grid_bytes: All weights on their grids: a 4-bit one takes half a byte.
        stored_bytes: The same as the plan holds them: a byte below 8 bits, unless stored as INT4.
        drop: Points lost on the tune images.
        layers_at: Layers by width: ``{"4": 12, "8": 3, "float": 1}``.
    """

    grid_bytes: Size
    stored_bytes: Size
    drop: Drop
    layers_at: dict[str, Count]
    chosen: bool


class RaisedLayer(TypedDict):
    """A layer that did not get the scheme's width; its damage there, quantized alone.

    Attributes:
        to_bits: None for float.
        kl: Of the logits, nats.
        sqnr_db: Of the logits.
    """

    name: str
    from_bits: Count
    to_bits: Count | None
    kl: float
    sqnr_db: float


class Mixed(TypedDict):
    """How ``--max-drop`` was met.

    Attributes:
        max_drop: The bound in points.
        drop: Of the chosen assignment on the tune images, rounded and ranged but not yet
            fine-tuned.
        metric: What a drop is, in words.
        float_bytes: Of all weights in float.
        points: The smallest first.
        raised: In graph order.
    """

    max_drop: Drop
    drop: Drop
    metric: str
    tune: TuneData
    float_bytes: Size
    num_layers: Count
    points: list[MixedPoint]
    raised: list[RaisedLayer]


def chosen_point(mixed: Mixed) -> MixedPoint:
    """Returns the assignment that the build took."""
    return next(point for point in mixed["points"] if point["chosen"])


def widths_in_words(layers_at: Mapping[str, int]) -> str:
    """Returns for instance ``12 layers at 4 bits, 3 at 8 bits, 1 in float``."""
    parts = []
    for index, (bits, count) in enumerate(layers_at.items()):
        number = f"{count:,}" if index else counted(count, "layer")
        parts.append(f"{number} in float" if bits == "float" else f"{number} at {bits} bits")
    return ", ".join(parts) or "no layer"


def mixed_summary(mixed: Mixed) -> str:
    """Returns one line for the table that a build prints last."""
    images = counted(mixed["tune"]["n"], "tune image")
    widths = widths_in_words(chosen_point(mixed)["layers_at"])
    return f"{points(mixed['max_drop'])} held: {decimal(mixed['drop'])} on {images}, {widths}"


def pareto_svg(mixed: Mixed) -> str:
    """Returns drop against bytes of weights: every measured assignment, the bound, the choice.

    The line joins the assignments that none of the others beats in both; the float network, which
    drops nothing by definition, ends it.
    """
    measured, taken = mixed["points"], chosen_point(mixed)
    efficient = [*efficient_points(measured), (float(mixed["float_bytes"]), 0.0)]

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes = figure.subplots()
        axes.plot(*zip(*efficient, strict=True), color=LINE, linewidth=1.2)
        axes.axhline(mixed["max_drop"], color=WARM, linestyle="--", linewidth=1.2)
        axes.plot(
            [point["grid_bytes"] for point in measured],
            [point["drop"] for point in measured],
            "o",
            color=SOFT,
            markersize=6,
        )
        axes.plot([mixed["float_bytes"]], [0], "s", color=MUTED, markersize=5)
        axes.plot([taken["grid_bytes"]], [taken["drop"]], "o", color=ACCENT, markersize=10)
        in_left_half = 2 * taken["grid_bytes"] < mixed["float_bytes"]
        axes.annotate(
            f"taken: {size(taken['grid_bytes'])}",
            (taken["grid_bytes"], taken["drop"]),
            (9 if in_left_half else -9, 6),
            textcoords="offset points",
            ha="left" if in_left_half else "right",
            color=INK,
        )
        axes.annotate(
            "float",
            (mixed["float_bytes"], 0),
            (0, -13),
            textcoords="offset points",
            ha="center",
            color=MUTED,
        )
        axes.set_xlabel("weights on their grids")
        axes.set_ylabel("drop on the tune images, points")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
        axes.margins(x=0.14, y=0.16)
        axes.grid(visible=True, axis="y")

    return inline_svg(
        draw, name="pareto", description=_description(mixed), size_inches=FIGURE_INCHES
    )


def efficient_points(measured: Sequence[MixedPoint]) -> list[tuple[float, float]]:
    """Returns (bytes, drop) of the assignments that no smaller one equals or beats, by bytes."""
    found: list[tuple[float, float]] = []
    for point in sorted(measured, key=lambda each: (each["grid_bytes"], each["drop"])):
        if not found or point["drop"] < found[-1][1]:
            found.append((float(point["grid_bytes"]), point["drop"]))
    return found


def _description(mixed: Mixed) -> str:
    taken = chosen_point(mixed)
    return (
        f"Points lost against bytes of weights, {counted(len(mixed['points']), 'assignment')} "
        f"measured; the one taken loses {decimal(taken['drop'])} with {size(taken['grid_bytes'])}, "
        f"float has {size(mixed['float_bytes'])}."
    )
