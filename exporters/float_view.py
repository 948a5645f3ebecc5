"""Look-ups over a float ONNX graph: who makes a tensor, who reads it, which nodes have weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass, field

import onnx

WEIGHT_AXES = {"Conv": 0, "ConvTranspose": 1}
"""Output-channel axis of a convolution's weight."""


@dataclass(frozen=True)
class WeightedNode:
    """A node that multiplies an activation by a constant weight.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        weight: Initializer of the weight.
        shape: Of the weight.
        axis: Output-channel axis of the weight.
        depthwise: A convolution with one input channel per group.
        channels_per_group: Input channels of one group; all of them without groups.
    """

    node: onnx.NodeProto
    weight: str
    shape: tuple[int, ...]
    axis: int
    depthwise: bool
    channels_per_group: int


@dataclass
class FloatView:
    """Look-ups over one float graph.

    Attributes:
        proto: The graph.
        initializers: Shape by name.
        producer: Node by the tensor it computes.
        consumers: (node, input index) pairs by the tensor they read.
    """

    proto: onnx.GraphProto
    initializers: dict[str, tuple[int, ...]] = field(init=False)
    producer: dict[str, onnx.NodeProto] = field(init=False)
    consumers: dict[str, list[tuple[onnx.NodeProto, int]]] = field(init=False)

    def __post_init__(self) -> None:
        self.initializers = {t.name: tuple(t.dims) for t in self.proto.initializer}
        self.producer = {t: node for node in self.proto.node for t in node.output}
        self.consumers = defaultdict(list)
        for node in self.proto.node:
            for index, tensor in enumerate(node.input):
                self.consumers[tensor].append((node, index))

    def weighted(self) -> list[WeightedNode]:
        """Returns the nodes that multiply an activation by a constant weight, in graph order."""
        found = (self._weighted(node) for node in self.proto.node)
        return [entry for entry in found if entry is not None]

    def skip_input(self, node: onnx.NodeProto, quantized: Container[str]) -> int | None:
        """Returns the input index of a residual addition that is the skip, None elsewhere.

        The other input comes straight from a quantized convolution or linear layer; when both do (a
        projection shortcut), the one computed last is the main branch that the addition fuses into.
        """
        if node.op_type != "Add" or any(t in self.initializers for t in node.input):
            return None
        producers = [self.producer.get(tensor) for tensor in node.input]
        fusable = [
            producer is not None and producer.name in quantized and len(self.consumers[tensor]) == 1
            for producer, tensor in zip(producers, node.input, strict=True)
        ]
        if not any(fusable):
            return None
        if all(fusable):
            order = {entry.name: index for index, entry in enumerate(self.proto.node)}
            first, second = (order[producer.name] for producer in producers if producer is not None)
            return 0 if first < second else 1
        return 1 if fusable[0] else 0

    def is_add(self, edge: tuple[str, int]) -> bool:
        """Returns whether the (node name, input index) pair belongs to an addition."""
        return any(node.name == edge[0] and node.op_type == "Add" for node in self.proto.node)

    def tensors(self) -> list[str]:
        """Returns the graph's inputs and all that its nodes compute, in graph order."""
        computed = [tensor for node in self.proto.node for tensor in node.output]
        return [*(value.name for value in self.proto.input), *computed]

    def _weighted(self, node: onnx.NodeProto) -> WeightedNode | None:
        if node.op_type not in {"Conv", "ConvTranspose", "Gemm", "MatMul"}:
            return None
        weight = node.input[1]
        if weight not in self.initializers or node.input[0] in self.initializers:
            return None
        shape = self.initializers[weight]
        attributes = {a.name: a.i for a in node.attribute if a.name in {"group", "transB"}}
        groups = attributes.get("group", 1)
        axis = WEIGHT_AXES.get(node.op_type, 0 if attributes.get("transB") else len(shape) - 1)
        convolution = node.op_type in WEIGHT_AXES
        if not convolution and len(shape) != 2:
            return None
        per_group = shape[1] if node.op_type == "Conv" else shape[0] // groups
        return WeightedNode(
            node, weight, shape, axis, convolution and groups > 1 and per_group == 1, per_group
        )
