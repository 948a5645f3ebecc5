"""FP8 and FP16 as schemes: which layers they leave in float."""

from __future__ import annotations

from fdda_deploy.exporters.float_view import WeightedNode
from fdda_deploy.quant.scheme import Scheme

FP8_CHANNELS = 16
"""FP8 kernels want input and output channels in multiples of this (T027)."""


def row_to_leave(entry: WeightedNode, scheme: Scheme) -> str | None:
    """Returns the placement row that leaves a layer in float for its number format, or None."""
    if scheme.numbers == "fp16":
        return "float-only"
    if scheme.numbers == "fp8":
        grouped = any(a.name == "group" and a.i > 1 for a in entry.node.attribute)
        if grouped or any(size % FP8_CHANNELS for size in entry.shape[:2]):
            return "fp8-shapes"
    return None
