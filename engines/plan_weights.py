"""The weights of an ONNX graph as a plan may store them: integers with their scale, or floats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Weight:
    """A weight as the graph has it.

    Attributes:
        name: Of the initializer.
        values: Integers (8 and 4 bits as int8, FP8 as its bytes), or floats.
        stored: ``int8``, ``int4``, ``fp8``, or NumPy's name of a float type.
        real: What the integers stand for, float32; None for floats, FP8 and blocks.
    """

    name: str
    values: npt.NDArray[Any]
    stored: str
    real: npt.NDArray[np.float32] | None

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(self.values.size)


def weights_of(graph: Any) -> Iterator[tuple[str, Weight]]:
    """Yields (node, weight) for each weighted node whose weight is in the file."""
    held = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type not in WEIGHTED:
            continue
        for read in node.input[:2]:
            name, path = read, []
            while name not in held and (maker := makers.get(name)) is not None and maker.input:
                path.append(maker)
                name = maker.input[0]
            if name in held and len(held[name].dims) >= 2:
                yield node.name, _weight(held[name], path, held)


def _weight(tensor: Any, path: list[Any], held: dict[str, Any]) -> Weight:
    from onnx import TensorProto, numpy_helper

    kinds = {TensorProto.INT8: "int8", TensorProto.INT4: "int4", TensorProto.FLOAT8E4M3FN: "fp8"}
    kind = kinds.get(tensor.data_type)
    values = numpy_helper.to_array(tensor)
    if kind is None:
        return Weight(tensor.name, values, str(values.dtype), None)
    if kind == "fp8":
        return Weight(tensor.name, values.view(np.uint8), kind, None)
    integers = values.astype(np.int8)
    return Weight(tensor.name, integers, kind, _dequantized(integers, path, held))


def _dequantized(
    integers: npt.NDArray[np.int8], path: list[Any], held: dict[str, Any]
) -> npt.NDArray[np.float32] | None:
    from onnx import numpy_helper

    node = next((node for node in path if node.op_type == "DequantizeLinear"), None)
    if node is None or node.input[1] not in held:
        return None
    scale = numpy_helper.to_array(held[node.input[1]]).astype(np.float32)
    if scale.ndim > 1:  # blocks: too many roundings to expect the same bytes
        return None
    if scale.ndim == 1:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1) % integers.ndim
        if scale.size != integers.shape[axis]:
            return None
        scale = scale.reshape([-1 if axis == d else 1 for d in range(integers.ndim)])
    real: npt.NDArray[np.float32] = integers.astype(np.float32) * scale
    return real
