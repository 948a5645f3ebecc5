"""Synthesis in the report: what the network says of its images, in words and as a chart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fdda_deploy.pipeline.report.figures import WIDTH_INCHES, set_log_scale
from fdda_deploy.pipeline.report.parts import Synthesis
from fdda_deploy.pipeline.report.phrases import counted, percent, significant
from fdda_deploy.pipeline.report.svg import ACCENT, INK, MUTED, inline_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def synthesis_sentences(synthesis: Synthesis) -> list[str]:
    """Returns what was measured of the images, one sentence each; nothing of what was not."""
    top1, images = synthesis["teacher_top1"], counted(synthesis["num_images"], "image")
    said = [
        f"The float network's prediction labels the {images}."
        if top1 is None
        else f"The float network names the wanted class on {percent(top1)} of {images}."
    ]
    confidence = synthesis.get("teacher_confidence")
    if confidence is not None:
        said.append(f"Its mean confidence is {percent(confidence)}.")
    distances = (
        ("Two images", synthesis.get("diversity"), synthesis.get("real_diversity")),
        ("Two of one class", synthesis.get("class_spread"), synthesis.get("real_class_spread")),
    )
    for who, made, real in distances:
        if made is not None:
            beside = "" if real is None else f" (real images: {significant(real)})"
            said.append(f"{who} are {significant(made)} apart in cosine distance{beside}.")
    return said


def distances_svg(synthesis: Synthesis) -> str | None:
    """Returns each layer's distance from training's statistics, beside that of Gaussian noise."""
    made, noise = synthesis["bns_distance"], synthesis.get("noise_distance") or []
    if not made or len(noise) != len(made):
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        curves = (("Gaussian noise", noise, MUTED), ("made images", made, ACCENT))
        for label, values, color in curves:
            heights = [float("nan") if value is None else value for value in values]
            axes.plot(range(len(heights)), heights, "o-", color=color, markersize=3, label=label)
        known = [value for value in (*noise, *made) if value is not None]
        if known and min(known) > 0:
            set_log_scale(axes)
        axes.set_xlabel("BatchNorm layer")
        axes.grid(visible=True, axis="y")
        figure.legend(loc="outside upper left", ncols=2, labelcolor=INK)

    return inline_svg(
        draw,
        name="bns_distance",
        description="Distance of BatchNorm statistics by layer: noise, and the images made",
        size_inches=(WIDTH_INCHES, 2.6),
    )
