"""Zero-points that cost nothing: on a grid that TensorRT takes, with the shift in biases.

TensorRT executes symmetric INT8 alone, so behind a ReLU half of the 256 steps stay empty. But a
tensor may be stored as ``x + z s`` where its maker adds ``z s`` to its bias and its readers take
``z s`` times the sum of their weights from theirs. Then the symmetric grid with zero-point 0 holds
the very integers that zero-point z would give. A ReLU before it becomes ``max(x, 0) + z s``, which
with z = -128 is what INT8 saturates to anyway, so the operator goes.

A zero-padded reader is the exception: its border would read 0, which is no longer 0.0.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import onnx

from fdda_deploy.exporters.float_view import WEIGHT_AXES, FloatView

Edge = tuple[str, int]
_MONOTONE = frozenset({"MaxPool", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity"})
"""Operators that hand a shift on, and give the same on either side of a saturation."""
_CLIPS = frozenset({"Relu", "Clip"})
_LAYERS = frozenset({*WEIGHT_AXES, "Gemm"})


@dataclass(frozen=True)
class Absorption:
    """Who takes up the shift of one tensor.

    Attributes:
        maker: Node whose bias takes the shift.
        clips: Activation functions between the maker and the tensor, whose bounds move with it.
        layers: Nodes that multiply the tensor and take the shift from their biases.
        beside: Layers that make the other operand of an addition, whose biases take the shift
            back; one for each addition that reads the tensor.
    """

    maker: str
    clips: tuple[str, ...]
    layers: tuple[str, ...]
    beside: tuple[str, ...]


class Absorbers:
    """Finds who takes up shifts in one float graph.

    Args:
        graph: It; weights and biases are initializers.
        quantized: Names of the nodes whose weights are quantized.
    """

    def __init__(self, graph: FloatView, quantized: Set[str]) -> None:
        self._graph = graph
        self._quantized = quantized
        self._outputs = {value.name for value in graph.proto.output}
        self._nodes = {node.name: node for node in graph.proto.node}

    def of(self, tensor: str, consumers: tuple[Edge, ...]) -> Absorption | None:
        """Returns who takes up a shift of ``tensor``; None where somebody would see it.

        Args:
            tensor: Its name.
            consumers: Pairs (node name, input index) that read it from its grid.
        """
        if {(node.name, index) for node, index in self._graph.consumers[tensor]} != set(consumers):
            return None
        path = self._path(tensor)
        if path is None or tensor in self._outputs:
            return None
        layers: list[str] = []
        beside: list[str] = []
        for name, index in consumers:
            node = self._nodes[name]
            if index == 0 and name in self._quantized and self._takes_shift(node):
                layers.append(name)
            elif node.op_type == "Add" and (other := self._beside(node, index)):
                beside.append(other)
            else:
                return None
        maker, clips = path
        return Absorption(maker, clips, tuple(layers), tuple(beside))

    def _path(self, tensor: str) -> tuple[str, tuple[str, ...]] | None:
        """Follows ``tensor`` back to the layer that makes it, past the clips that stand between.

        A mean is no way: what it averages would have to be clipped, not saturated, before it.
        """
        clips: list[str] = []
        while (node := self._graph.producer.get(tensor)) is not None:
            if node.op_type in _LAYERS:
                return (node.name, tuple(clips)) if self._has_bias(node) else None
            if node.op_type == "Add":
                maker = self._beside(node, 1) or self._beside(node, 0)
                return (maker, tuple(clips)) if maker else None
            source = node.input[0]
            if node.op_type in _CLIPS and self._bounds_are_constant(node):
                clips.append(node.name)
            elif node.op_type not in _MONOTONE:
                return None
            if len(self._graph.consumers[source]) != 1 or source in self._outputs:
                return None
            tensor = source
        return None

    def _beside(self, addition: onnx.NodeProto, index: int) -> str:
        """Returns the layer that makes the other operand for this addition alone, or ""."""
        tensor = addition.input[1 - index]
        node = self._graph.producer.get(tensor)
        if node is None or node.op_type not in _LAYERS or tensor in self._outputs:
            return ""
        alone = len(self._graph.consumers[tensor]) == 1
        return node.name if alone and self._has_bias(node) else ""

    def _bounds_are_constant(self, node: onnx.NodeProto) -> bool:
        return all(bound in self._graph.initializers for bound in node.input[1:] if bound)

    def _has_bias(self, node: onnx.NodeProto) -> bool:
        """Whether the layer adds one number per channel that no other node reads."""
        if len(node.input) < 3 or len(self._graph.initializers.get(node.input[2], ())) != 1:
            return False
        factors = {a.name: a.f for a in node.attribute}
        return factors.get("beta", 1.0) == 1.0 and len(self._graph.consumers[node.input[2]]) == 1

    def _takes_shift(self, node: onnx.NodeProto) -> bool:
        """Whether a constant added to the input is a constant per channel of the output."""
        if not self._has_bias(node):
            return False
        attributes = {a.name: a for a in node.attribute}
        if node.op_type == "Gemm":
            plain = "alpha" not in attributes or attributes["alpha"].f == 1.0
            return plain and not ("transA" in attributes and attributes["transA"].i)
        if node.op_type != "Conv":
            return False
        same = "auto_pad" in attributes and attributes["auto_pad"].s not in (b"NOTSET", b"VALID")
        return not same and not ("pads" in attributes and any(attributes["pads"].ints))
