"""The layers of a Q/DQ graph that multiply 8-bit activations by 8-bit weights."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import onnx

from fdda_deploy.exporters.repair.editing import Array, GraphEdit
from fdda_deploy.exporters.repair.grids import grid_of
from fdda_deploy.exporters.repair.implied import CARRIERS
from fdda_deploy.exporters.repair.narrow_filters import weight_values
from fdda_deploy.exporters.repair.residuals import pair_before
from fdda_deploy.exporters.rules.graph import WEIGHTED_OPS
from fdda_deploy.exporters.rules.shapes import Shape


@dataclass(frozen=True)
class Layer:
    """A layer whose input is a Q/DQ pair, and whose weight is integers behind a DequantizeLinear.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        quantize: The Q of the pair.
        weight: The values of its weight.
    """

    node: onnx.NodeProto
    quantize: onnx.NodeProto
    weight: Array

    @property
    def source(self) -> str:
        """The float tensor that the pair quantizes."""
        return str(self.quantize.input[0])

    @property
    def num_weights(self) -> int:
        """How many numbers the weight has."""
        return math.prod(self.weight.shape)


def quantized_layers(graph: GraphEdit) -> list[Layer]:
    """Returns the layers that read one pair on a grid of one scale, each under a name of its own.

    A layer without such a name is left out: the proof would not find it again. So is one that
    reads integers through a MaxPool: its pair is the pool's as well.
    """
    named: dict[str, list[Layer]] = defaultdict(list)
    for node in graph.of_type(*WEIGHTED_OPS):
        quantize = pair_before(graph, node.input[0]) if len(node.input) > 1 else None
        grid = None if quantize is None else grid_of(graph, quantize)
        weight = (
            None if grid is None or grid.axis is not None else weight_values(graph, node.input[1])
        )
        if quantize is not None and weight is not None and graph.tensor(quantize.input[0]) is None:
            named[node.name].append(Layer(node, quantize, weight))
    return [layers[0] for name, layers in named.items() if name and len(layers) == 1]


def image_shapes(graph: GraphEdit) -> dict[str, Shape]:
    """Returns the shape of one image's share of each tensor."""
    return {name: shape[1:] for name, shape in graph.shapes().items() if shape}


def is_multiplied(graph: GraphEdit, tensor: str) -> bool:
    """Returns whether a layer reads ``tensor``, itself or through operators that move values."""
    pending, seen = [tensor], set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        for node, index in graph.readers(name):
            if node.op_type in WEIGHTED_OPS:
                return True
            if node.op_type in CARRIERS and index == 0 and not node.domain:
                pending += [output for output in node.output if output]
    return False
