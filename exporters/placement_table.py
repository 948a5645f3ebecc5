"""Which tensors get a Q/DQ pair: a table by target, each row with its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the placement table.

    Attributes:
        name: What reports and points call it.
        targets: Where it applies.
        reason: Why it is right for those targets.
    """

    name: str
    targets: frozenset[str]
    reason: str


TARGETS = ("trt", "rtx", "ort-cpu")
_ALL = frozenset(TARGETS)

TABLE = {
    row.name: row
    for row in (
        Row(
            "weighted-input",
            _ALL,
            "INT8 kernels need both operands of a product quantized (T019).",
        ),
        Row(
            "weighted-weight",
            _ALL,
            "Weights are stored as integers: float weights with Q and DQ on them make a plan as "
            "large as the float one.",
        ),
        Row(
            "residual-skip",
            _ALL,
            "TensorRT fuses the addition into the convolution when the skip input is INT8 and the "
            "convolution's own output is not quantized again before it (T020).",
        ),
        Row(
            "wide-skip",
            frozenset({"trt", "rtx"}),
            "Below 8 bits the skip keeps 8 of its own: it is added in INT8 and multiplies nothing, "
            "so fewer bits would save nothing, and what they lose adds up from block to block.",
        ),
        Row(
            "depthwise-float",
            frozenset({"rtx"}),
            "With fewer than 4 channels per group INT8 makes a plan of TensorRT-RTX larger than "
            "float, so this layer stays in float (T025).",
        ),
        Row(
            "weighted-output",
            frozenset({"ort-cpu"}),
            "ONNX Runtime fuses a convolution to QLinearConv only when its output is quantized.",
        ),
        Row(
            "residual-output",
            frozenset({"ort-cpu"}),
            "ONNX Runtime fuses an addition to QLinearAdd only when its inputs and its output are "
            "quantized.",
        ),
        Row(
            "fp8-shapes",
            _ALL,
            "FP8 kernels want channels in multiples of 16 and no groups (T027): this layer stays "
            "in float.",
        ),
        Row("float-only", _ALL, "The scheme quantizes nothing."),
        Row(
            "weight-only",
            _ALL,
            "Activations stay in floating point; the weight is dequantized before the product.",
        ),
        Row(
            "weight-only-depthwise",
            _ALL,
            "A depthwise filter is nine weights: few bytes, and much to lose. It keeps 8 bits in "
            "weight-only schemes.",
        ),
    )
}
"""The table. `place` looks reasons up here, so a row cannot be used without its explanation."""
