"""Where accuracy goes, in the report: its part of report.json, and when the page shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from fdda_deploy.pipeline.report.parts import Accuracy

SMALL_DROP = 0.5
"""Points of top-1 up to which nobody looks for a culprit; half of what the verdict calls small."""
HIGH_KL = 0.1
"""Nats on held-out images above which predictions change, whatever few labelled images say."""


class LayerFinding(TypedDict):
    """A layer that makes much of the noise, a likely cause and what helps.

    Attributes:
        tensor: ONNX tensor or initializer that has the fault.
        evidence: The measured numbers, in words.
        option: As on the command line.
        output_sqnr_db: Of the layer, all before it quantized too.
        input_sqnr_db: Of what arrives at it.
    """

    node: str
    tensor: str
    cause: str
    evidence: str
    option: str
    output_sqnr_db: float | None
    input_sqnr_db: float | None


def worth_showing(
    findings: Sequence[LayerFinding], accuracy: Accuracy | None, kl: float | None
) -> bool:
    """Returns whether the page has the section: something was found, and accuracy may have fallen.

    Args:
        findings: Of the diagnosis.
        accuracy: None where nothing was measured on labelled images.
        kl: KL(float || quantized) on held-out images, nats; None if unknown.
    """
    if not findings:
        return False
    if accuracy is None or accuracy["drop"]["mean"] > SMALL_DROP:
        return True
    return kl is not None and kl > HIGH_KL
