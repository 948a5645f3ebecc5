"""Writes zero-points into the biases of a float graph, before its Q/DQ pairs are inserted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from fdda_deploy.errors import ExportError
from fdda_deploy.exporters.float_view import FloatView
from fdda_deploy.exporters.zero_points import Absorbers, Absorption
from fdda_deploy.quant.affine import dequantize
from fdda_deploy.quant.points import Placement
from fdda_deploy.quant.qparams import QParams

Float64Array = npt.NDArray[np.float64]
IntegerWeight = tuple[npt.NDArray[np.int8], QParams]


def absorb_zero_points(
    graph: onnx.GraphProto,
    placement: Placement,
    activations: Mapping[str, QParams],
    weights: Mapping[str, IntegerWeight],
) -> dict[str, QParams]:
    """Shifts every activation that has a zero-point, in place; returns grids without any.

    Args:
        graph: Float graph, its parameters final.
        placement: Where it will be quantized.
        activations: Grid by tensor.
        weights: Integers and grid by initializer, in ONNX layout.

    Raises:
        ExportError: A zero-point that no bias can take up (`zero_points.Absorbers`).
    """
    grids = dict(activations)
    moved = {name for name, grid in grids.items() if grid.zero_point != 0}
    shifted = [point for point in placement.activations if point.name in moved]
    if not shifted:
        return grids
    view = FloatView(graph)
    weighted = {entry.node.name: entry for entry in view.weighted()}
    quantized = {name for point in placement.weights for name in point.consumers}
    absorbers = Absorbers(view, quantized & weighted.keys())
    shifter = _Shifter(graph, view)
    for point in shifted:
        grid = grids[point.name]
        absorption = absorbers.of(point.tensor, point.consumers)
        if absorption is None:
            raise ExportError(
                f"{point.tensor}: zero-point {grid.zero_point}, and no bias can take it up; "
                "TensorRT wants 0 (T003). Calibrate with a symmetric grid."
            )
        shift = grid.zero_point * float(grid.scale)
        shifter.raise_bias(absorption.maker, np.float64(shift))
        for name in absorption.layers:
            entry = weighted[name]
            x_deq = dequantize(*weights[entry.weight]).astype(np.float64)
            others = tuple(axis for axis in range(x_deq.ndim) if axis != entry.axis)
            shifter.raise_bias(name, -shift * x_deq.sum(axis=others))
        for other in absorption.beside:
            shifter.raise_bias(other, np.float64(-shift))
        shifter.move_clips(absorption, grid, shift)
        grids[point.name] = dataclasses.replace(grid, zero_point=0)
    shifter.finish()
    return grids


class _Shifter:
    """Gathers what each bias takes, and moves the bounds of activation functions."""

    def __init__(self, graph: onnx.GraphProto, view: FloatView) -> None:
        self._graph = graph
        self._view = view
        self._nodes = {node.name: node for node in graph.node}
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._added: dict[str, Float64Array] = {}
        self._old_bounds: set[str] = set()

    def raise_bias(self, layer: str, amount: Float64Array | np.float64) -> None:
        """Notes what a layer's bias takes, ``()`` or ``(C,)``."""
        bias = self._nodes[layer].input[2]
        self._added[bias] = self._added.get(bias, np.zeros(())) + amount

    def move_clips(self, absorption: Absorption, grid: QParams, shift: float) -> None:
        """Moves the bounds of activation functions; drops those that saturation stands for.

        An INT8 value saturates at both ends of its grid, so a bound at or beyond the last step but
        half of one is never seen.
        """
        for name in absorption.clips:
            node = self._nodes[name]
            self._old_bounds.update(bound for bound in node.input[1:] if bound)
            low, high = self._bounds(node)
            below = low <= (grid.first_step + 0.5) * float(grid.scale)
            above = high >= (grid.last_step - 0.5) * float(grid.scale)
            if below and above:
                # the tensor keeps its name, which points and calibration records know it by
                self._view.producer[node.input[0]].output[0] = node.output[0]
                self._view.producer[node.output[0]] = self._view.producer[node.input[0]]
                self._graph.node.remove(node)
            else:
                self._reclip(node, low + shift, high + shift)

    def _bounds(self, node: onnx.NodeProto) -> tuple[float, float]:
        if node.op_type == "Relu":
            return 0.0, float("inf")
        held = [*node.input[1:], "", ""][:2]
        return (
            self._number(held[0]) if held[0] else float("-inf"),
            self._number(held[1]) if held[1] else float("inf"),
        )

    def _number(self, name: str) -> float:
        return float(numpy_helper.to_array(self._initializers[name]))

    def _reclip(self, node: onnx.NodeProto, low: float, high: float) -> None:
        inputs = [node.input[0], "", ""]
        for index, value in ((1, low), (2, high)):
            if np.isfinite(value):
                inputs[index] = f"{node.output[0]}_bound_{index}"
                bound = numpy_helper.from_array(np.asarray(value, np.float32), inputs[index])
                self._graph.initializer.append(bound)
        while not inputs[-1]:
            inputs.pop()
        clip = helper.make_node("Clip", inputs, list(node.output), name=node.name)
        node.CopyFrom(clip)

    def finish(self) -> None:
        """Writes the new biases and drops bounds that nobody reads any more."""
        for name, added in self._added.items():
            value = numpy_helper.to_array(self._initializers[name]).astype(np.float64) + added
            bias = numpy_helper.from_array(value.astype(np.float32), name)
            self._initializers[name].CopyFrom(bias)
        read = {name for node in self._graph.node for name in node.input}
        for bound in self._old_bounds - read:
            self._graph.initializer.remove(self._initializers[bound])
