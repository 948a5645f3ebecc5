"""Where a graph is quantized: the points that a placement table names, as plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ActivationPoint:
    """One activation tensor that gets a Q/DQ pair.

    Attributes:
        tensor: ONNX tensor name.
        consumers: Pairs of (node name, input index) that read the quantized value; other consumers
            keep reading the float tensor, or another point's value.
        num_bits: Width of the grid, 2 to 8.
        row: The placement row that put it here (``exporters.placement``).
        storage: ``int8``, or ``fp8`` for E4M3.
        shifted: An 8-bit grid may have any zero-point: the runtime takes it, or biases take it up.
        part: Which of two points of one tensor this is, for instance ``/skip``; empty for the
            tensor's own.
        shares: Points with the same name here take one scale; empty for a scale of its own.
    """

    tensor: str
    consumers: tuple[tuple[str, int], ...]
    num_bits: int
    row: str
    storage: str = "int8"
    shifted: bool = False
    part: str = ""
    shares: str = ""

    @property
    def name(self) -> str:
        """What grids, calibration records and Q/DQ nodes call it: the tensor's name and `part`."""
        return self.tensor + self.part


@dataclass(frozen=True)
class WeightPoint:
    """One weight initializer that is stored as integers behind a DequantizeLinear.

    Attributes:
        initializer: ONNX initializer name, which is also the torch parameter name.
        consumers: Names of the nodes that read it.
        axis: Output-channel axis (the blocked axis with ``block_size``).
        num_bits: Width of the integer grid, 2 to 8.
        storage: ``int8``, ``int4`` where the target has such kernels, or ``fp8`` for E4M3.
        block_size: Elements along ``axis`` that share a scale; None for one scale per channel.
        depthwise: One input channel per group.
        one_scale: One scale for all channels instead of one each.
    """

    initializer: str
    consumers: tuple[str, ...]
    axis: int
    num_bits: int
    storage: str = "int8"
    block_size: int | None = None
    depthwise: bool = False
    one_scale: bool = False


@dataclass(frozen=True)
class Placement:
    """Every point of one graph under one scheme and target, and what stays in float, with reasons.

    Attributes:
        target: ``trt``, ``rtx`` or ``ort-cpu``.
        scheme: Name of the scheme, for instance ``w4a8``.
        activations: In graph order.
        weights: In graph order.
        left_float: Pairs of (node name, reason) for weighted nodes that are not quantized.
    """

    target: str
    scheme: str
    activations: tuple[ActivationPoint, ...]
    weights: tuple[WeightPoint, ...]
    left_float: tuple[tuple[str, str], ...]
