"""R12: UINT8 or asymmetric activations become INT8 with zero-point 0.

1. A tensor's Q, its DQs, and what only moves integers between them change together, or not at all.
2. UINT8 with zero-point 128 is INT8 with zero-point 0 on the same scale: exact.
3. A zero-point that biases can take up (`taken_up`) goes there: the same integers, all 256 steps.
4. Any other grid [low, high] becomes symmetric with `scale = max(|low|, |high|) / 127`. The grid
   is coarser for it: behind a ReLU, where low is 0, each step is 255 / 127 times as wide, because
   the negative half of INT8 stays empty. The proof measures what it does to the outputs.
5. A grid that starts at 0 also cut off what was negative. Quantizers rely on that and drop the
   ReLU in front of it; so a Relu is put back, unless the tensor cannot be negative anyway, or
   the zero-point was taken up: then INT8's lowest value cuts off the same.
6. The pair is named after the tensor that it quantizes, shortly: a plan repeats every name.
7. Until this repair the old grids tell where a ReLU was dropped; behind it comes R16 alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from fdda_deploy.exporters.repair.editing import GraphEdit
from fdda_deploy.exporters.repair.grids import Grid, grid_of
from fdda_deploy.exporters.repair.implied import CARRIERS, implies_relu, rectified
from fdda_deploy.exporters.repair.nodes import label
from fdda_deploy.exporters.repair.record import Change, Repair
from fdda_deploy.exporters.repair.taken_up import Shifter
from fdda_deploy.exporters.rules.graph import Request, type_name
from fdda_deploy.exporters.zero_points import Absorption

_NEW_RELU = "a new Relu"


@dataclass
class _Replacements:
    """New scale and zero-point names by old grid, so that equal grids stay one constant."""

    graph: GraphEdit
    made: dict[tuple[object, ...], tuple[str, str]] = field(default_factory=dict)

    def operands(self, grid: Grid, hint: str, *, same_scale: bool) -> tuple[str, str]:
        new = grid.amax / np.float32(127)
        scale = grid.scale if same_scale else new.astype(grid.scale.dtype)
        key = (scale.dtype.str, scale.tobytes())
        if key not in self.made:
            self.made[key] = (
                self.graph.add_constant(f"{hint}_int8_scale", scale),
                self.graph.add_constant(f"{hint}_int8_zero_point", np.zeros(scale.shape, np.int8)),
            )
        return self.made[key]


@dataclass(frozen=True)
class _Pair:
    """A Q with its DQs, and what is to become of them."""

    quantize: onnx.NodeProto
    grid: Grid
    group: list[onnx.NodeProto]
    relu: str
    absorption: Absorption | None


def _apply(graph: GraphEdit, request: Request) -> Iterator[Change]:
    del request  # the same for every target
    replacements, shifter = _Replacements(graph), Shifter(graph)
    pairs = list(_pairs(graph, shifter))  # all decided on the old grids before one of them changes
    for pair in pairs:
        node, grid, absorption = pair.quantize, pair.grid, pair.absorption
        source, was = node.input[0], label(node)
        words = ""
        if absorption is not None:
            words = shifter.shift(absorption, grid)
            graph.notes.moved.add(source)
        operands = replacements.operands(
            grid, source, same_scale=grid.symmetric or absorption is not None
        )
        for member in pair.group:
            move(graph, member, operands)
            graph.name_after(member, f"{source}_{'q' if member is node else 'dq'}")
        if pair.relu == _NEW_RELU:
            graph.rewire(node, 0, _new_relu(graph, source))
        elif pair.relu:
            graph.rewire(node, 0, pair.relu)
        yield Change(was, source, _words(grid, words, relu=bool(pair.relu)), grid.symmetric)
    shifter.finish()


def _pairs(graph: GraphEdit, shifter: Shifter) -> Iterator[_Pair]:
    for node in graph.of_type("QuantizeLinear"):
        grid = grid_of(graph, node)
        if grid is None or grid.repaired or grid.axis is not None:
            continue
        group = None if graph.tensor(node.input[0]) is not None else group_of(graph, node, grid)
        if group is None:
            continue
        absorption = None if grid.symmetric else shifter.found(node, grid)
        relu = "" if absorption is not None else _rectified(graph, node, grid)
        yield _Pair(node, grid, group, relu, absorption)


def _new_relu(graph: GraphEdit, source: str) -> str:
    output = graph.fresh(f"{source}_relu")
    graph.add_node("Relu", [source], output)
    return output


def _rectified(graph: GraphEdit, node: onnx.NodeProto, grid: Grid) -> str:
    """Returns the tensor to quantize where a ReLU was dropped: one that is there, or a new one."""
    if not implies_relu(graph, node.input[0], grid):
        return ""
    return rectified(graph, node.input[0]) or _NEW_RELU


def _words(grid: Grid, taken_up: str, *, relu: bool) -> str:
    was = f"{type_name(grid.dtype)}, zero-point {int(grid.zero_point)}"
    scale = float(grid.scale)
    if grid.symmetric or taken_up:
        extra = f", {taken_up}" if taken_up else ""
        return f"{was} to INT8, zero-point 0, same scale {scale:.4g}{extra}"
    new = float(grid.amax) / 127
    extra = ", the ReLU that it implied put back" if relu else ""
    return f"{was} to INT8, zero-point 0, scale {scale:.4g} to {new:.4g}{extra}"


def group_of(graph: GraphEdit, quantize: onnx.NodeProto, grid: Grid) -> list[onnx.NodeProto] | None:
    """Returns the Q and every DQ of its integers; None where something else reads them."""
    members, pending, seen = [quantize], [quantize.output[0]], set()
    while pending:
        tensor = pending.pop()
        if tensor in seen:
            continue
        seen.add(tensor)
        if tensor in graph.pinned:
            return None
        for node, index in graph.readers(tensor):
            if node.op_type == "DequantizeLinear" and index == 0:
                found = grid_of(graph, node)
                if found is None or not found.same_as(grid):
                    return None
                members.append(node)
            elif node.op_type in CARRIERS and index == 0 and not node.domain:
                pending += [name for name in node.output if name]
            else:
                return None
    return members


def move(graph: GraphEdit, node: onnx.NodeProto, operands: Sequence[str]) -> None:
    """Gives a Q or DQ another scale and zero-point, of INT8."""
    for index, name in enumerate(operands, start=1):
        if index < len(node.input):
            graph.rewire(node, index, name)
        else:
            graph.append_input(node, name)
    if node.op_type == "DequantizeLinear":
        return  # there the attribute is the type of the floats
    for at in reversed(range(len(node.attribute))):
        if node.attribute[at].name == "output_dtype":
            del node.attribute[at]


REPAIR = Repair(
    "R12",
    ("T003", "T004"),
    "UINT8 and asymmetric activations become symmetric INT8.",
    "Biases take the zero-point up; where none can, the steps are up to 255 / 127 times as wide.",
    _apply,
)
