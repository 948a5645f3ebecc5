"""How each weight is stored: its width, INT8 or INT4, and along which axis its scales run."""

from __future__ import annotations

from collections import defaultdict

from fdda_deploy.exporters.float_view import WEIGHT_AXES, WeightedNode
from fdda_deploy.quant.points import WeightPoint
from fdda_deploy.quant.scheme import Scheme

INT4_BLOCKS = (128, 64)
"""Block lengths along K that TensorRT has INT4 kernels for, the cheapest in scales first."""


def weight_points(
    kept: list[WeightedNode], scheme: Scheme, target: str, ends: set[str]
) -> tuple[WeightPoint, ...]:
    """Returns one point per weight, in graph order.

    Args:
        kept: The nodes whose weights are quantized.
        scheme: Bit widths.
        target: ``trt``, ``rtx`` or ``ort-cpu``.
        ends: Names of the first and the last weighted node, which keep ``first_last_bits``.
    """
    by_weight: dict[str, list[WeightedNode]] = defaultdict(list)
    for entry in kept:
        by_weight[entry.weight].append(entry)
    points = []
    for weight, entries in by_weight.items():
        first = entries[0]
        bits = scheme.weight_bits
        if any(entry.node.name in ends for entry in entries):
            bits = max(bits, scheme.first_last_bits)
        if scheme.weight_only and first.depthwise:
            bits = 8
        axis, storage, block = first.axis, "int8", None
        if scheme.weight_only and bits == 4:
            axis, storage, block = _int4_layout(first, target)
        points.append(
            WeightPoint(
                weight,
                tuple(entry.node.name for entry in entries),
                axis,
                bits,
                storage,
                block,
                first.depthwise,
            )
        )
    return tuple(points)


def _int4_layout(entry: WeightedNode, target: str) -> tuple[int, str, int | None]:
    """Returns (axis, storage, block size) of a 4-bit weight in a weight-only scheme.

    Matrix products take blocks along K; convolutions take per-channel INT4 on RTX alone; where
    there is no INT4 kernel the 4-bit grid is carried in INT8.
    """
    even = entry.shape[-1] % 2 == 0
    if entry.node.op_type in WEIGHT_AXES:
        elements = 1
        for size in entry.shape:
            elements *= size
        return entry.axis, "int4" if target == "rtx" and elements % 2 == 0 else "int8", None
    k_axis = 1 - entry.axis
    for block in INT4_BLOCKS:
        if even and entry.shape[k_axis] % block == 0 and target != "ort-cpu":
            return k_axis, "int4", block
    return entry.axis, "int8", None
