"""The verdict: what a build achieved, in one headline and a few sentences that claim no more."""

from __future__ import annotations

from dataclasses import dataclass

from fdda_deploy.pipeline.report.parts import Accuracy
from fdda_deploy.pipeline.report.phrases import (
    change_of_size,
    counted,
    interval,
    percent,
    points,
    size,
)
from fdda_deploy.pipeline.report.schema import Report

SMALL_POINTS = 1.0
"""An interval that ends below this is called small; the project's own bar for real networks."""


@dataclass(frozen=True)
class Verdict:
    """What the reader should take home.

    Attributes:
        tone: ``good``, ``caution``, ``bad`` or ``unknown``.
        headline: A few words, without a full stop.
        sentences: Whole sentences: accuracy, size, then what went wrong.
    """

    tone: str
    headline: str
    sentences: tuple[str, ...]


def verdict(report: Report) -> Verdict:
    """Returns the verdict on a report that :func:`schema.validate` has passed."""
    tone, words, accuracy = _on_accuracy(report["accuracy"])
    smaller, sizes = _on_size(report)
    faults = _faults(report)
    headline = ", ".join(part for part in (words, smaller) if part)
    if faults:
        tone, headline = "bad", f"{headline}, but not ready to ship"
    return Verdict(tone, headline, tuple(text for text in (accuracy, sizes, *faults) if text))


def _on_accuracy(accuracy: Accuracy | None) -> tuple[str, str, str]:
    """Returns the tone, the words of the headline and the sentence."""
    if accuracy is None:
        text = "Nothing was measured on labelled images, so what quantization costs is unknown."
        return "unknown", "Accuracy not measured", text
    before, after, drop = accuracy["float"], accuracy["quantized"], accuracy["drop"]
    mean, low, high = drop["mean"], drop["low"], drop["high"]
    change = "a drop" if mean > 0 else "a gain" if mean < 0 else "a change"
    bounds = "" if low is None else f" (95 % interval of the drop {interval(low, high)}, paired)"
    images = counted(after["n"], "image")
    text = (
        f"Top-1 goes from {percent(before['top1'])} to {percent(after['top1'])} on {images}: "
        f"{change} of {points(mean)}{bounds}."
    )
    if low is None or high is None:
        return "caution", f"Top-1 changes by {points(mean)}", text
    if high < 0:
        return "good", f"Top-1 rises by {points(mean)}", text
    if low > 0:
        tone = "good" if high <= SMALL_POINTS else "caution" if mean <= SMALL_POINTS else "bad"
        return tone, f"Top-1 falls by {points(mean)}", text
    if high <= SMALL_POINTS:
        return "good", "No measurable loss", text
    text += f" {images[0].upper() + images[1:]} cannot rule out a loss of {points(high)}."
    return "caution", "No loss shown", text


def _on_size(report: Report) -> tuple[str, str]:
    """Returns the words of the headline and the sentence on bytes."""
    sizes = report["bytes"]
    before, after, plan = sizes["fp32_onnx"], sizes["qdq_onnx"], sizes["plan"]
    if not before or not after:
        return "", "" if plan is None else f"The plan has {size(plan)}."
    text = f"The ONNX graph goes from {size(before)} to {size(after)}"
    text += "" if plan is None else f"; the plan has {size(plan)}"
    return change_of_size(before, after), f"{text}."


def _faults(report: Report) -> list[str]:
    """Returns a sentence for everything that speaks against shipping the result."""
    check, faults = report["check"], []
    if check is not None and check["errors"]:
        where = counted(check["errors"], "place")
        faults.append(f"The exported graph breaks TensorRT's rules at {where}.")
    if report["engine"] is not None and report["engine"]["status"] == "failed":
        faults.append("No plan: the builder refused the graph.")
    return faults
