"""Element types and shapes of all tensors, by ONNX shape inference over a copy without weights."""

from __future__ import annotations

import math

import onnx
from google.protobuf.message import Error as ProtobufError  # type: ignore[import-untyped]  # no types shipped

Shape = tuple[int | None, ...]
_KEPT_ELEMENTS = 4096
"""Smaller initializers may be shapes that inference needs; larger ones are weights."""


def tensor_types(model: onnx.ModelProto) -> tuple[dict[str, int], dict[str, Shape], str]:
    """Returns (element types, shapes, why inference failed or "") by tensor name.

    Where inference fails, what the model declares is all there is.
    """
    failure = ""
    try:
        # Bytes in, bytes out: inference sees a copy, and weights are never copied.
        model = onnx.shape_inference.infer_shapes(_without_weights(model))
    except (onnx.shape_inference.InferenceError, ProtobufError, ValueError, RuntimeError) as error:
        failure = (str(error).splitlines() or [type(error).__name__])[0]
    types: dict[str, int] = {}
    shapes: dict[str, Shape] = {}
    graph = model.graph
    for value in (*graph.value_info, *graph.output, *graph.input):
        if not value.type.HasField("tensor_type"):
            continue
        tensor = value.type.tensor_type
        if tensor.elem_type:
            types[value.name] = int(tensor.elem_type)
        if tensor.HasField("shape"):
            shapes[value.name] = tuple(_size(dimension) for dimension in tensor.shape.dim)
    return types, shapes, failure


def _size(dimension: onnx.TensorShapeProto.Dimension) -> int | None:
    known = dimension.HasField("dim_value") and dimension.dim_value > 0
    return int(dimension.dim_value) if known else None


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy in which large initializers are inputs of the same type and shape."""
    copy = onnx.ModelProto(ir_version=model.ir_version)
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    graph = copy.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    named = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        outside = tensor.data_location == onnx.TensorProto.EXTERNAL
        if math.prod(int(size) for size in tensor.dims) <= _KEPT_ELEMENTS and not outside:
            graph.initializer.append(tensor)
        elif tensor.name not in named:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return copy
