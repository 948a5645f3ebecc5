"""How each weight is stored: its width, INT8 or INT4, and along which axis its scales run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from fdda_deploy.config.values import near
from fdda_deploy.errors import ExportError
from fdda_deploy.exporters.float_view import WEIGHT_AXES, WeightedNode
from fdda_deploy.quant.points import WeightPoint
from fdda_deploy.quant.scheme import Scheme

INT4_BLOCKS = (128, 64)
"""Block lengths along K that TensorRT has INT4 kernels for, the cheapest in scales first."""

Widths = Mapping[str, int | None]
"""Weight bits by node name, None for float; layers that are not named follow the scheme."""

LEFT_BY_CHOICE = "left in float to hold --max-drop"


def check_widths(weighted: list[WeightedNode], widths: Widths) -> None:
    """Checks that every name is a layer's and every width one that weights can take.

    Raises:
        ExportError: The first that is not, with the nearest name.
    """
    known = [entry.node.name for entry in weighted]
    for name, bits in widths.items():
        if name not in known:
            raise ExportError(
                f"{name}: no layer with weights has this name.{near(name, known)} "
                "`fdda-deploy sensitivity` lists them."
            )
        if bits is not None and not 2 <= bits <= 8:
            raise ExportError(f"{name}: {bits}-bit weights; want 2 to 8 bits, or None for float.")


def left_by_choice(weighted: list[WeightedNode], widths: Widths) -> dict[str, str]:
    """Returns why weights stay in float that ``widths`` leaves there, for at least one reader.

    A weight is stored once: where one reader wants it in float, all of them read the float.
    """
    return {
        entry.weight: LEFT_BY_CHOICE
        for entry in weighted
        if entry.node.name in widths and widths[entry.node.name] is None
    }


def input_bits(entry: WeightedNode, scheme: Scheme, ends: set[str], widths: Widths) -> int:
    """Returns the bits that a layer wants its input activation in.

    A layer that was raised above the scheme is a sensitive one: its input gets as many bits.
    """
    at_end = scheme.first_last_bits if entry.node.name in ends else 0
    return max(scheme.act_bits, at_end, raised_to(entry, scheme, ends, widths))


def raised_to(entry: WeightedNode, scheme: Scheme, ends: set[str], widths: Widths) -> int:
    """Returns the bits that ``widths`` raises a layer to, 0 where the scheme gives as many."""
    chosen = widths.get(entry.node.name)
    return chosen if chosen is not None and chosen > _scheme_bits(entry, scheme, ends) else 0


def weight_points(
    kept: list[WeightedNode], scheme: Scheme, target: str, ends: set[str], widths: Widths
) -> tuple[WeightPoint, ...]:
    """Returns one point per weight, in graph order.

    Args:
        kept: The nodes whose weights are quantized.
        scheme: Bit widths.
        target: ``trt``, ``rtx`` or ``ort-cpu``.
        ends: Names of the first and the last weighted node, which keep ``first_last_bits``.
        widths: Weight bits of layers that differ from the scheme; of several readers of one weight
            the widest counts.
    """
    by_weight: dict[str, list[WeightedNode]] = defaultdict(list)
    for entry in kept:
        by_weight[entry.weight].append(entry)
    points = []
    for weight, entries in by_weight.items():
        first = entries[0]
        bits = max(_wanted_bits(entry, scheme, ends, widths) for entry in entries)
        axis, storage, block = first.axis, scheme.storage, None
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


def _wanted_bits(entry: WeightedNode, scheme: Scheme, ends: set[str], widths: Widths) -> int:
    """Returns the weight bits that one reader of a weight wants."""
    chosen = widths.get(entry.node.name)
    return _scheme_bits(entry, scheme, ends) if chosen is None else chosen


def _scheme_bits(entry: WeightedNode, scheme: Scheme, ends: set[str]) -> int:
    """Returns the weight bits of a layer that nobody chose others for."""
    if scheme.weight_only and entry.depthwise:
        return 8
    return max(scheme.weight_bits, scheme.first_last_bits if entry.node.name in ends else 0)


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
