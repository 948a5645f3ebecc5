"""Small questions about one ONNX node or name, asked all over the repairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import onnx
from onnx import TensorProto, helper

INTEGERS = (
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.INT16,
    TensorProto.UINT16,
    TensorProto.INT32,
)
"""Element types of quantized tensors whose declared type a repair may make untrue."""


def attribute(node: onnx.NodeProto, name: str) -> Any:
    """Returns the value of an attribute, None where it is missing."""
    for entry in node.attribute:
        if entry.name == name:
            try:
                return helper.get_attribute_value(entry)
            except ValueError:
                return None
    return None


def set_integer(node: onnx.NodeProto, name: str, value: int) -> None:
    """Writes an integer attribute, in place of an older one."""
    for index in reversed(range(len(node.attribute))):
        if node.attribute[index].name == name:
            del node.attribute[index]
    node.attribute.append(helper.make_attribute(name, value))


def plain_name(tensor: str) -> str:
    """Returns a tensor's name without what ONNX Runtime's quantizer adds to it."""
    return tensor.removesuffix("_quantized")


def label(node: onnx.NodeProto) -> str:
    """Returns the node's name, or its type and output where it has none."""
    return node.name or f"{node.op_type} of {node.output[0] if node.output else 'nothing'}"


def unused(hint: str, taken: set[str]) -> str:
    """Returns ``hint``, with a number where it is taken, and takes it."""
    name, number = hint, 1
    while name in taken:
        number += 1
        name = f"{hint}_{number}"
    taken.add(name)
    return name


def copy_of(node: onnx.NodeProto) -> onnx.NodeProto:
    """Returns a node of its own, whatever happens to the graph it came from."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def captured(node: onnx.NodeProto) -> Iterator[str]:
    """Yields every name that the bodies of ``node`` read or make."""
    for entry in node.attribute:
        bodies: Iterable[onnx.GraphProto] = (
            [entry.g] if entry.type == onnx.AttributeProto.GRAPH else entry.graphs
        )
        for body in bodies:
            for inner in body.node:
                yield from inner.input
                yield from captured(inner)
            yield from (value.name for value in body.output)


def declared_type(model: onnx.ModelProto, tensor: str) -> int | None:
    """Returns the ONNX element type that a graph input declares, None where it does not."""
    for value in model.graph.input:
        if value.name == tensor and value.type.tensor_type.elem_type:
            return int(value.type.tensor_type.elem_type)
    return None


def drop_untrue_types(graph: onnx.GraphProto) -> None:
    """Takes out declared types of tensors that are gone, or whose integers may have changed."""
    made = {name for node in graph.node for name in node.output}
    for index in reversed(range(len(graph.value_info))):
        value = graph.value_info[index]
        if value.name not in made or value.type.tensor_type.elem_type in INTEGERS:
            del graph.value_info[index]
