"""What a Q or DQ node says about its grid, and the symmetric INT8 grid that can stand for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from fdda_deploy.errors import ExportError
from fdda_deploy.exporters.repair.editing import Array, GraphEdit, quantized_type
from fdda_deploy.exporters.repair.nodes import attribute, plain_name
from fdda_deploy.exporters.rules.graph import WEIGHTED_OPS
from fdda_deploy.quant.affine import dequantize, qparams_from_amax, quantize
from fdda_deploy.quant.qparams import SMALLEST_SCALE, FloatArray, QParams

RANGES = {TensorProto.INT8: (-128, 127), TensorProto.UINT8: (0, 255)}
"""Integer ranges of the types that these repairs read; others are left with their finding."""
SCALE_TYPES = (np.float32, np.float16)


@dataclass(frozen=True)
class Grid:
    """The grid of one Q or DQ node with constant operands.

    Attributes:
        scale: ``()`` or ``(C,)``, float32 or float16, finite and normal.
        zero_point: As many as scales, int64.
        dtype: ``TensorProto.INT8`` or ``UINT8``.
        axis: Channel axis as the node states it (default 1), None for one scale.
    """

    scale: Array
    zero_point: npt.NDArray[np.int64]
    dtype: int
    axis: int | None

    @property
    def middle(self) -> int:
        """The zero-point that makes this grid symmetric: 0 of INT8, 128 of UINT8."""
        return RANGES[self.dtype][0] + 128

    @property
    def symmetric(self) -> bool:
        """Whether INT8 with zero-point 0 is this very grid."""
        return bool(np.all(self.zero_point == self.middle))

    @property
    def repaired(self) -> bool:
        """Whether nothing is left to do: INT8 with zero-point 0."""
        return self.dtype == TensorProto.INT8 and self.symmetric

    @property
    def starts_at_zero(self) -> bool:
        """Whether the smallest value of the grid is 0, as behind a ReLU."""
        return bool(np.all(self.zero_point == RANGES[self.dtype][0]))

    @property
    def amax(self) -> FloatArray:
        """The largest magnitude of each scale's grid, float32, the shape of ``scale``."""
        low, high = RANGES[self.dtype]
        steps = np.maximum(self.zero_point - low, high - self.zero_point)
        return (steps.reshape(self.scale.shape) * self.scale.astype(np.float32)).astype(np.float32)

    def same_as(self, other: Grid) -> bool:
        """Returns whether both quantize alike."""
        return (self.dtype, self.axis) == (other.dtype, other.axis) and all(
            np.array_equal(a, b)
            for a, b in ((self.scale, other.scale), (self.zero_point, other.zero_point))
        )

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for grids that quantize alike."""
        scale = (self.scale.dtype.str, self.scale.shape, self.scale.tobytes())
        return (*scale, self.zero_point.tobytes(), self.dtype, self.axis)


def grid_of(graph: GraphEdit, node: onnx.NodeProto) -> Grid | None:
    """Returns the grid of a Q or DQ node; None unless it is 8-bit, constant and without blocks."""
    if len(node.input) < 2 or attribute(node, "block_size"):
        return None
    scale, dtype = graph.constant(node.input[1]), quantized_type(graph, node)
    if (
        scale is None
        or dtype is None
        or dtype not in RANGES
        or scale.dtype not in SCALE_TYPES
        or scale.ndim > 1
    ):
        return None
    if not scale.size or not np.all(np.isfinite(scale) & (scale >= SMALLEST_SCALE)):
        return None
    zero: Array | None = np.full(scale.shape, 0)
    if len(node.input) > 2 and node.input[2]:
        zero = graph.constant(node.input[2])
    if zero is None or zero.size != scale.size:
        return None
    axis = attribute(node, "axis")
    axis = (1 if axis is None else int(axis)) if scale.size > 1 else None
    scale = scale if scale.size > 1 else scale.reshape(())
    return Grid(scale, zero.astype(np.int64).reshape(scale.shape), dtype, axis)


def output_axis(graph: GraphEdit, tensor: str, rank: int) -> int | None:
    """Returns the output-channel axis of a weight that Conv, ConvTranspose or Gemm reads."""
    found = set()
    for node, index in graph.readers(tensor):
        if node.op_type not in WEIGHTED_OPS or index != 1:
            return None
        found.add(axis_of_reader(node))
    axis = found.pop() if len(found) == 1 else None
    return axis if axis is not None and axis < rank else None


def axis_of_reader(node: onnx.NodeProto) -> int | None:
    """Returns the output-channel axis of the weight that a Conv, ConvTranspose or Gemm reads."""
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB") else 1
    if node.op_type == "ConvTranspose":  # groups share this axis, so one scale a channel of each
        return 1 if (attribute(node, "group") or 1) == 1 else None
    return 0 if node.op_type == "Conv" else None


def per_axis(weight: Array, axis: int | None) -> QParams:
    """Returns the symmetric INT8 grid of a float weight, per channel of ``axis``."""
    others = tuple(index for index in range(weight.ndim) if index != axis)
    amax = np.abs(weight).max(axis=None if axis is None else others, initial=0.0)
    return qparams_from_amax(amax, 8, axis)


def values(x_int: Array, grid: Grid) -> FloatArray:
    """Returns the float32 values of integers on ``grid``."""
    shape = _along(x_int, grid)
    return dequantize(
        x_int.astype(np.int64) - grid.zero_point.reshape(shape), _qparams(x_int, grid)
    )


def integers(weight: Array, grid: Grid) -> npt.NDArray[np.int8]:
    """Returns the INT8 integers of a float weight on a symmetric ``grid``."""
    return quantize(weight, _qparams(weight, grid))


def float_type(node: onnx.NodeProto, scale: Array) -> np.dtype[Any]:
    """Returns what a DequantizeLinear makes: the type of its scale, or what opset 23 states.

    Raises:
        ExportError: What is stated is no element type.
    """
    stated = attribute(node, "output_dtype")
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(stated)) if stated else scale.dtype
    except (KeyError, TypeError):
        raise ExportError(
            f"node {node.name!r}: output_dtype {stated!r} is no element type of ONNX. "
            "Export it again."
        ) from None


def fits(tensor: Array, grid: Grid) -> bool:
    """Returns whether the scales of ``grid`` lie along an axis of ``tensor``."""
    if grid.axis is None:
        return True
    inside = -tensor.ndim <= grid.axis < tensor.ndim
    return inside and tensor.shape[grid.axis] == grid.scale.size


def _qparams(tensor: Array, grid: Grid) -> QParams:
    axis = None if grid.axis is None else grid.axis % tensor.ndim
    return QParams(grid.scale.astype(np.float32), -128, 127, axis)


def _along(tensor: Array, grid: Grid) -> tuple[int, ...]:
    if grid.axis is None:
        return ()
    shape = [1] * tensor.ndim
    shape[grid.axis] = grid.scale.size
    return tuple(shape)


def dequantized_constant(
    graph: GraphEdit,
    old: onnx.NodeProto,
    x_int: npt.NDArray[np.int8],
    scale: Array,
    axis: int | None,
) -> str:
    """Adds integers behind a DequantizeLinear with zero-point 0; returns the float tensor.

    Args:
        graph: Where to.
        old: The DequantizeLinear that the new one stands for.
        x_int: The integers.
        scale: ``()`` or ``(C,)``.
        axis: Of the channels, None for one scale.
    """
    hint = plain_name(old.input[0]).removesuffix("_int8")
    operands = [
        graph.add_constant(f"{hint}_int8", x_int),
        graph.add_constant(f"{hint}_int8_scale", scale),
        graph.add_constant(f"{hint}_int8_zero_point", np.zeros(scale.shape, np.int8)),
    ]
    output = graph.fresh(f"{hint}_dq")
    stated = {"axis": axis, "output_dtype": attribute(old, "output_dtype")}
    kept = {name: value for name, value in stated.items() if value is not None}
    graph.add_node("DequantizeLinear", operands, output, **kept)
    return output


def scaled_integers(graph: GraphEdit, tensor: str, factor: float) -> str:
    """Adds the same integers behind a DequantizeLinear of ``factor`` times the scale.

    Args:
        graph: Where to.
        tensor: What a DequantizeLinear on a symmetric grid makes of an INT8 constant.
        factor: Positive.

    Returns:
        The name of the float tensor.
    """
    node = graph.producer(tensor)
    assert node is not None, tensor
    grid, held = grid_of(graph, node), graph.constant(node.input[0])
    assert grid is not None, tensor
    assert held is not None, tensor
    scale = (grid.scale.astype(np.float64) * factor).astype(grid.scale.dtype)
    return dequantized_constant(graph, node, held, scale, grid.axis)
