"""Look-ups over a float ONNX graph: who makes a tensor, who reads it, which nodes have weights."""

from __future__ import annotations

from collections import defaultdict
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
