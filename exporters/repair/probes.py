"""How well the grids of a Q/DQ graph fit its float network's values: what is added to measure it.

A probe is a few nodes in the float twin of a graph (`float_twin`): the mean squared error of a
tensor's old grid and of its new one, both on the values that the old one was made for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from fdda_deploy.exporters.repair.editing import Array, GraphEdit
from fdda_deploy.exporters.repair.pairs import Pair

_PROBE = "fdda_probe"


@dataclass(frozen=True)
class Probe:
    """One tensor whose grid a repair changed, measured on the float network's values.

    Attributes:
        tensor: What both graphs quantize.
        old: Output of the twin with the old grid's mean squared error.
        new: Output of the twin with the new grid's.
        step: The old grid's.
        widening: What keeping the range around zero-point 0 costs, in steps of the old grid: 1 to
            255 / 127.
        widened: A step of the new grid over what ``widening`` makes of one of the old.
        coarsened: The new grid was to share a larger scale, so ``widened`` may be more than 1.
        factor: How many times as large the tensor is in the repaired graph.
        shift: What biases added to the tensor, 0 where they took up no zero-point; before it was
            multiplied by ``factor``.
        means: Where there is a shift, outputs with the tensor's mean: of the old twin, and the new.
    """

    tensor: str
    old: str
    new: str
    step: float
    widening: float
    widened: float
    coarsened: bool = False
    factor: float = 1.0
    shift: float = 0.0
    means: tuple[str, str] = ("", "")


def add_mean(graph: GraphEdit, tensor: str) -> str:
    """Adds the mean of all of a tensor; returns its name."""
    mean = graph.fresh(f"{_PROBE}_mean")
    graph.add_node("ReduceMean", [tensor], mean, keepdims=0)
    graph.pinned.add(mean)
    return mean


def add_raised(graph: GraphEdit, tensor: str, shift: float) -> str:
    """Adds ``tensor + shift``; returns its name."""
    output = graph.fresh(f"{_PROBE}_raised")
    amount = graph.add_constant(f"{output}_by", np.asarray(shift, np.float32))
    graph.add_node("Add", [tensor, amount], output)
    return output


def add_relu(graph: GraphEdit, tensor: str) -> str:
    """Adds the ReLU of a tensor; returns its name."""
    output = graph.fresh(f"{_PROBE}_relu")
    graph.add_node("Relu", [tensor], output)
    return output


def add_squared_error(
    graph: GraphEdit, pair: tuple[GraphEdit, Pair], read: str, wanted: str, factor: float = 1.0
) -> str:
    """Adds ``mean((DQ(Q(read)) - wanted)^2)`` with the nodes of a pair; returns its name.

    Args:
        graph: Where to.
        pair: The graph that it is in, and the pair.
        read: What is quantized.
        wanted: What it stands for.
        factor: The pair's scales are divided by it.
    """
    owner, nodes = pair
    for node in (nodes.quantize, nodes.ends[0]):
        names = [
            graph.add_constant(_PROBE, value / value.dtype.type(factor) if index == 0 else value)
            for index, value in enumerate(_operands(owner, node))
        ]
        made = graph.fresh(f"{_PROBE}_{node.op_type}")
        graph.add_node(node.op_type, [read, *names], made).attribute.extend(node.attribute)
        read = made
    error, single, squared = (
        graph.fresh(f"{_PROBE}_{what}") for what in ("error", "single", "squared")
    )
    graph.add_node("Sub", [read, wanted], error)
    graph.add_node("Cast", [error], single, to=TensorProto.FLOAT)
    graph.add_node("Mul", [single, single], squared)
    return add_mean(graph, squared)


def _operands(owner: GraphEdit, node: onnx.NodeProto) -> list[Array]:
    held = [owner.constant(name) for name in node.input[1:] if name]
    return [value for value in held if value is not None]
