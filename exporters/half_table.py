"""What stays FP32 in an FP16 graph, a reason in each row, and which numbers FP16 can hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

HALF_MAX = 65504.0
"""Largest finite FP16 number."""
HALF_TINY = 2.0**-14
"""Smallest normal FP16 number; TensorRT takes no scale below it (T005)."""
LOSS_LIMIT = 2.0**-10
"""Twice the relative error of rounding to FP16: more of it means that numbers underflowed."""
MAX_TERMS = 2048
"""A sum of equal FP16 terms stops growing here: the next one is half a unit in the last place."""

_SUMS_OF_EXPONENTIALS = "It sums exponentials, which leave FP16's range at e^11."
_VARIANCES = "It sums squares, which leave FP16's range at 256^2, and divides by their root."
_POWERS = "Its result leaves FP16's range for ordinary arguments."

FP32_OPS: dict[str, str] = {
    "Softmax": _SUMS_OF_EXPONENTIALS,
    "LogSoftmax": _SUMS_OF_EXPONENTIALS,
    "ReduceLogSumExp": _SUMS_OF_EXPONENTIALS,
    "ReduceLogSum": _SUMS_OF_EXPONENTIALS,
    "Softplus": _SUMS_OF_EXPONENTIALS,
    "LayerNormalization": _VARIANCES,
    "RMSNormalization": _VARIANCES,
    "GroupNormalization": _VARIANCES,
    "InstanceNormalization": _VARIANCES,
    "LpNormalization": _VARIANCES,
    "LRN": _VARIANCES,
    "ReduceL2": _VARIANCES,
    "ReduceSumSquare": _VARIANCES,
    "Exp": _POWERS,
    "Pow": _POWERS,
    "Log": "Near 1 its result is the small difference of numbers that FP16 rounds.",
    "CumSum": "A running sum of many terms loses the small ones.",
    "ReduceProd": _POWERS,
}
"""Operators that keep FP32 wherever they stand."""

SUMS = frozenset({"ReduceMean", "ReduceSum", "GlobalAveragePool", "ReduceL1"})
"""Operators that keep FP32 where they add more than `MAX_TERMS` elements."""

_FLOAT16, _FLOAT = "tensor(float16)", "tensor(float)"
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Signature:
    """Which inputs and outputs of a node FP16 may pass through.

    Attributes:
        inputs: By index, true where the operator takes FP16 there.
        outputs: By index, true where the operator may give FP16 there.
    """

    inputs: tuple[bool, ...]
    outputs: tuple[bool, ...]


def signature(node: onnx.NodeProto, opset: int) -> Signature:
    """Returns where ONNX's own definition of the operator allows FP16; nowhere if unknown."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return Signature((False,) * len(node.input), (False,) * len(node.output))
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}

    def halves(formals: list[onnx.defs.OpSchema.FormalParameter], count: int) -> tuple[bool, ...]:
        found = []
        for index in range(count):
            kind = formals[min(index, len(formals) - 1)].type_str  # the last may be variadic
            types = allowed.get(kind, {kind})
            found.append(_FLOAT16 in types and _FLOAT in types)
        return tuple(found)

    return Signature(
        halves(list(schema.inputs), len(node.input)),
        halves(list(schema.outputs), len(node.output)),
    )


def terms_of_sum(
    node: onnx.NodeProto,
    shape: tuple[int | None, ...] | None,
    initializers: dict[str, TensorProto],
) -> float:
    """Returns how many elements one of `SUMS` adds up; infinity where the graph does not say."""
    if shape is None:
        return math.inf
    axes: list[int] | None
    if node.op_type == "GlobalAveragePool":
        axes = list(range(2, len(shape)))
    elif len(node.input) > 1 and node.input[1]:
        held = initializers.get(node.input[1])
        if held is None:
            return math.inf
        axes = [int(axis) for axis in numpy_helper.to_array(held).reshape(-1)]
    else:
        axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
    sizes = [shape[axis] for axis in axes] if axes else list(shape)
    return math.prod(math.inf if size is None else size for size in sizes)


def survives(values: Array) -> bool:
    """Returns whether FP16 holds ``values``: none overflows, and few of what counts underflows."""
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16).astype(np.float32)
    finite = np.isfinite(values)
    if not np.isfinite(rounded[finite]).all():
        return False
    kept = values[finite].astype(np.float64)
    loss = np.linalg.norm(kept - rounded[finite])
    return bool(loss <= LOSS_LIMIT * np.linalg.norm(kept))


def scale_survives(scale: Array, largest: float) -> bool:
    """Returns whether FP16 holds a scale as a normal number, and its grid up to the end.

    Args:
        scale: Any shape.
        largest: Largest absolute value of the grid in steps, for instance 128 for INT8.
    """
    high = float(scale.max(initial=0.0)) * largest
    return bool(scale.min(initial=np.inf) >= HALF_TINY and high <= HALF_MAX)
