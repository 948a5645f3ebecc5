"""Whose biases take up the zero-point of an activation, in anybody's Q/DQ graph.

`zero_points` has the idea and finds who: a tensor that is stored as ``x + z s`` needs no zero-point
if its maker adds that to its bias and its readers take it from theirs. Here the graph has Q/DQ
pairs already:

1. Whoever reads the pair's value reads the tensor. Another pair on the way there is in the way.
2. Weights and biases are float32, as they are or behind a DequantizeLinear.
3. A ReLU before the pair goes if INT8's lowest value stands for it; any other bound moves along.
4. A tensor that somebody else reads in float, and one that is padded with zeros, is left alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from fdda_deploy.exporters.float_view import FloatView
from fdda_deploy.exporters.repair.editing import Array, GraphEdit
from fdda_deploy.exporters.repair.grids import (
    RANGES,
    Grid,
    axis_of_reader,
    grid_of,
    scaled_integers,
)
from fdda_deploy.exporters.repair.narrow_filters import weight_values
from fdda_deploy.exporters.repair.nodes import label
from fdda_deploy.exporters.rules.graph import WEIGHTED_OPS
from fdda_deploy.exporters.zero_points import Absorbers, Absorption

Float64Array = npt.NDArray[np.float64]


class Shifter:
    """Moves tensors by their zero-points; biases are written once, by `finish`.

    Args:
        graph: To be changed.
    """

    def __init__(self, graph: GraphEdit) -> None:
        self._graph = graph
        self._nodes = dict(enumerate(graph.nodes))
        self._view = self._float_view()
        multiplied = {
            name
            for name, node in ((str(at), node) for at, node in self._nodes.items())
            if node.op_type in WEIGHTED_OPS and self._weight(node) is not None
        }
        self._absorbers = Absorbers(self._view, multiplied)
        self._biases: dict[str, tuple[float, Float64Array]] = {}

    def found(self, quantize: onnx.NodeProto, grid: Grid) -> Absorption | None:
        """Returns who takes up the zero-point of a pair's grid; None where nobody can."""
        tensor = quantize.input[0]
        ends = [node for node, _ in self._graph.readers(quantize.output[0])]
        if grid.scale.dtype != np.float32 or self._graph.pinned & {n.output[0] for n in ends}:
            return None
        if any(node.op_type != "DequantizeLinear" for node in ends):
            return None
        edges = [
            (reader.name, index)
            for end in ends
            for reader, index in self._view.consumers[end.output[0]]
        ]
        absorption = self._absorbers.of(tensor, tuple(edges))
        if absorption is None:
            return None
        if not self._bounds_can_move(absorption, grid):
            return None
        touched = (absorption.maker, *absorption.layers, *absorption.beside)
        biases = [self._graph.constant(self._node(name).input[2]) for name in touched]
        if any(bias is None or bias.dtype != np.float32 for bias in biases):
            return None
        return absorption if all(map(self._fits, absorption.layers)) else None

    def bounded_below(self, absorption: Absorption) -> bool:
        """Returns whether a function in front of the tensor cuts it off below, not its grid."""
        nodes = [self._node(name) for name in absorption.clips]
        return any(self._bounds(node)[0] is not None for node in nodes)

    def shift(self, absorption: Absorption, grid: Grid, coarser: float | None = None) -> str:
        """Moves one tensor so that ``grid`` without its zero-point fits; returns it in words.

        Args:
            absorption: As `found` returns it.
            grid: The tensor's.
            coarser: The scale that it gets, if not that of ``grid``; its lowest value stays.
        """
        lowest = float(grid.scale) * (RANGES[grid.dtype][0] - int(grid.zero_point))
        amount = -128 * (coarser or float(grid.scale)) - lowest
        self._raise(absorption.maker, np.float64(amount))
        for name in absorption.layers:
            node = self._node(name)
            weight = self._weight(node)
            assert weight is not None
            others = tuple(at for at in range(weight.ndim) if at != axis_of_reader(node))
            self._raise(name, -amount * weight.astype(np.float64).sum(axis=others))
        for name in absorption.beside:
            self._raise(name, np.float64(-amount))
        for name in absorption.clips:
            self._move_bounds(self._node(name), grid, amount)
        maker = label(self._node(absorption.maker))
        readers = len(absorption.layers) + len(absorption.beside)
        return f"taken up by the biases of {maker} and {readers} reader{'s'[: readers != 1]}"

    def can_multiply(self, absorption: Absorption, tensor: str) -> bool:
        """Returns whether layers alone say how large ``tensor`` is, and no addition does."""
        while (node := self._graph.producer(tensor)) is not self._node(absorption.maker):
            if node is None or node.op_type == "Add":
                return False
            tensor = node.input[0]
        layers = (absorption.maker, *absorption.layers)
        alone = bool(absorption.layers) and not absorption.beside
        return alone and all(self._can_multiply_weight(self._node(name)) for name in layers)

    def multiply(self, absorption: Absorption, factor: float) -> str:
        """Makes one tensor ``factor`` times as large and nothing else; returns it in words."""
        maker = self._node(absorption.maker)
        times, added = self._biases.get(absorption.maker, (1.0, np.zeros(())))
        self._biases[absorption.maker] = times * factor, added * factor
        self._multiply_weight(maker, factor)
        for name in absorption.layers:
            self._multiply_weight(self._node(name), 1 / factor)
        for name in absorption.clips:
            if self._node(name).op_type == "Clip":
                self._write_bounds(self._node(name), lambda bound: bound * factor)
        return f"{factor:.4g} times as large out of {label(maker)}"

    def finish(self) -> None:
        """Writes the new biases."""
        for name, (times, added) in self._biases.items():
            node = self._node(name)
            old = self._graph.constant(node.input[2])
            assert old is not None
            value = (old.astype(np.float64) * times + added).astype(np.float32)
            self._graph.rewire(node, 2, self._graph.add_constant(f"{node.input[2]}_shifted", value))

    def _node(self, name: str) -> onnx.NodeProto:
        return self._nodes[int(name)]

    def _bounds_can_move(self, absorption: Absorption, grid: Grid) -> bool:
        """Returns whether a Clip with bounds of its own may be written; before opset 11 not."""
        versions = [
            o.version for o in self._graph.model.opset_import if o.domain in {"", "ai.onnx"}
        ]
        return max(versions, default=1) >= 11 or not absorption.clips or grid.starts_at_zero

    def _fits(self, name: str) -> bool:
        """Returns whether a layer's bias has one number for each of its output channels."""
        node = self._node(name)
        weight, bias = self._weight(node), self._graph.constant(node.input[2])
        axis = axis_of_reader(node)
        if weight is None or bias is None or axis is None or weight.ndim < 2:
            return False
        return bias.shape == (weight.shape[axis],)

    def _raise(self, name: str, amount: Float64Array | np.float64) -> None:
        times, before = self._biases.get(name, (1.0, np.zeros(())))
        self._biases[name] = times, before + amount

    def _weight(self, node: onnx.NodeProto) -> Array | None:
        """Returns a layer's float32 weight, None where it is computed or of another type."""
        if len(node.input) < 2:
            return None
        weight = self._graph.constant(node.input[1])
        weight = weight_values(self._graph, node.input[1]) if weight is None else weight
        return weight if weight is not None and weight.dtype == np.float32 else None

    def _move_bounds(self, node: onnx.NodeProto, grid: Grid, amount: float) -> None:
        if node.op_type == "Relu" and grid.starts_at_zero:
            source, output = node.input[0], node.output[0]
            self._graph.remove(node)
            self._graph.rename_output(source, output)  # the tensor keeps the name it is known by
            return
        self._write_bounds(node, lambda bound: bound + amount)

    def _write_bounds(self, node: onnx.NodeProto, change: Callable[[float], float]) -> None:
        """Puts a Clip with other bounds in place of a Clip or Relu."""
        inputs = [node.input[0], "", ""]
        for at, bound in enumerate(self._bounds(node), start=1):
            if bound is not None:
                value = np.asarray(change(bound), np.float32)
                inputs[at] = self._graph.add_constant(f"{node.output[0]}_bound", value)
        while not inputs[-1]:
            inputs.pop()
        self._graph.remove(node)
        made = self._graph.add_node("Clip", inputs, node.output[0])
        self._nodes.update({at: made for at, held in self._nodes.items() if held is node})

    def _can_multiply_weight(self, node: onnx.NodeProto) -> bool:
        if self._weight(node) is None or self._graph.constant(node.input[1]) is not None:
            return self._weight(node) is not None
        dequantize = self._graph.producer(node.input[1])
        grid = None if dequantize is None else grid_of(self._graph, dequantize)
        return grid is not None and grid.repaired

    def _multiply_weight(self, node: onnx.NodeProto, factor: float) -> None:
        tensor = node.input[1]
        held = self._graph.constant(tensor)
        if held is not None:
            value = (held.astype(np.float64) * factor).astype(held.dtype)
            made = self._graph.add_constant(f"{tensor}_scaled", value)
        else:
            made = scaled_integers(self._graph, tensor, factor)
        self._graph.rewire(node, 1, made)
        multiplied = self._graph.notes.multiplied
        multiplied[node.name] = multiplied.get(node.name, 1.0) * factor

    def _bounds(self, node: onnx.NodeProto) -> list[float | None]:
        if node.op_type == "Relu":
            return [0.0, None]
        held = [self._graph.constant(name) if name else None for name in [*node.input[1:], "", ""]]
        return [None if bound is None else float(bound) for bound in held[:2]]

    def _float_view(self) -> FloatView:
        """Returns the graph's nodes by number; readers of a pair are readers of its tensor."""
        proto = onnx.GraphProto()
        for at, node in self._nodes.items():
            copy = proto.node.add()
            copy.CopyFrom(node)
            copy.name = str(at)
            old_form = node.op_type == "Clip" and node.attribute  # its bounds, before opset 11
            if node.domain not in {"", "ai.onnx"} or old_form:
                copy.op_type = f"{node.domain}::{node.op_type}"
        proto.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(self._graph.pinned))
        view = FloatView(proto)
        for name in {tensor for node in self._graph.nodes for tensor in node.input if tensor}:
            held = self._graph.tensor(name)
            if held is not None and held.data_type == TensorProto.FLOAT:
                view.initializers[name] = tuple(held.dims)
        for node in proto.node:
            if node.op_type == "QuantizeLinear":
                ends = [end for end, _ in view.consumers[node.output[0]] if end.output]
                beyond = [edge for end in ends for edge in view.consumers[end.output[0]]]
                others = [e for e in view.consumers[node.input[0]] if e[0].name != node.name]
                view.consumers[node.input[0]] = others + beyond
        return view
