"""R12: UINT8 or asymmetric activations become INT8 with zero-point 0.

1. A tensor's Q, its DQs, and what only moves integers between them change together, or not at all.
2. UINT8 with zero-point 128 is INT8 with zero-point 0 on the same scale: exact.
3. Any other grid [low, high] becomes symmetric with `scale = max(|low|, |high|) / 127`. The grid
   is coarser for it: behind a ReLU, where low is 0, each step is 255 / 127 times as wide, because
   the negative half of INT8 stays empty. The proof measures what it does to the outputs.
4. A grid that starts at 0 also cut off what was negative. Quantizers rely on that and drop the
   ReLU in front of it; so a Relu is put back, unless the tensor cannot be negative anyway.
5. The pair is named after the tensor that it quantizes, shortly: a plan repeats every name.
6. This is the last repair: until here the old grids tell where a ReLU was dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx

from fdda_deploy.exporters.repair.editing import GraphEdit
from fdda_deploy.exporters.repair.grids import Grid, grid_of
from fdda_deploy.exporters.repair.implied import CARRIERS, implies_relu, rectified
from fdda_deploy.exporters.repair.nodes import label
from fdda_deploy.exporters.repair.record import Change, Repair
from fdda_deploy.exporters.rules.graph import Request, type_name

_NEW_RELU = "a new Relu"


@dataclass
class _Replacements:
    """New scale and zero-point names by old grid, so that equal grids stay one constant."""

    graph: GraphEdit
    made: dict[tuple[object, ...], tuple[str, str]] = field(default_factory=dict)

    def operands(self, grid: Grid, hint: str) -> tuple[str, str]:
        if grid.key not in self.made:
            new = grid.amax / np.float32(127)
            scale = grid.scale if grid.symmetric else new.astype(grid.scale.dtype)
            self.made[grid.key] = (
                self.graph.add_constant(f"{hint}_int8_scale", scale),
                self.graph.add_constant(f"{hint}_int8_zero_point", np.zeros(scale.shape, np.int8)),
            )
        return self.made[grid.key]


def _apply(graph: GraphEdit, request: Request) -> Iterator[Change]:
    del request  # the same for every target
    replacements = _Replacements(graph)
    found = [(node, grid_of(graph, node)) for node in graph.of_type("QuantizeLinear")]
    wanted = [
        (node, grid, _rectified(graph, node, grid))
        for node, grid in found
        if grid is not None and not grid.repaired and grid.axis is None
    ]
    for node, grid, relu in wanted:  # all decided on the old grids before one of them changes
        group = None if graph.tensor(node.input[0]) is not None else _group(graph, node, grid)
        if group is None:
            continue
        source, was = node.input[0], label(node)
        for member in group:
            _move(graph, member, replacements.operands(grid, source))
            graph.name_after(member, f"{source}_{'q' if member is node else 'dq'}")
        if relu == _NEW_RELU:
            graph.rewire(node, 0, _new_relu(graph, source))
        elif relu:
            graph.rewire(node, 0, relu)
        yield Change(was, source, _words(grid, relu=bool(relu)), grid.symmetric)


def _new_relu(graph: GraphEdit, source: str) -> str:
    output = graph.fresh(f"{source}_relu")
    graph.add_node("Relu", [source], output)
    return output


def _rectified(graph: GraphEdit, node: onnx.NodeProto, grid: Grid) -> str:
    """Returns the tensor to quantize where a ReLU was dropped: one that is there, or a new one."""
    if not implies_relu(graph, node.input[0], grid):
        return ""
    return rectified(graph, node.input[0]) or _NEW_RELU


def _words(grid: Grid, *, relu: bool) -> str:
    was = f"{type_name(grid.dtype)}, zero-point {int(grid.zero_point)}"
    scale = float(grid.scale)
    if grid.symmetric:
        return f"{was} to INT8, zero-point 0, same scale {scale:.4g}"
    new = float(grid.amax) / 127
    extra = ", the ReLU that it implied put back" if relu else ""
    return f"{was} to INT8, zero-point 0, scale {scale:.4g} to {new:.4g}{extra}"


def _group(graph: GraphEdit, quantize: onnx.NodeProto, grid: Grid) -> list[onnx.NodeProto] | None:
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


def _move(graph: GraphEdit, node: onnx.NodeProto, operands: tuple[str, str]) -> None:
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
    "The range is kept and the grid is coarser, up to 255 / 127 times behind a ReLU.",
    _apply,
)
