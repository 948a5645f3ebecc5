"""R03: ONNX Runtime's QOperator format becomes Q/DQ around float operators.

1. Each quantized input (tensor, scale, zero-point) is dequantized, constants included.
2. An INT32 bias becomes float: its scale is the product of the scales of input and weight.
3. The float operator computes, and its output is quantized with the operator's own output grid.
4. An operator whose grids or bias are not constant is left, with its finding.

The integer kernels round once where the float graph rounds in float32, so the last integer of an
output may differ by one step: this is not counted as exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from fdda_deploy.exporters.repair.editing import GraphEdit
from fdda_deploy.exporters.repair.nodes import attribute, label, plain_name
from fdda_deploy.exporters.repair.record import Change, Repair
from fdda_deploy.exporters.rules.graph import Request

MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Layout:
    """Where one quantized operator keeps its inputs.

    Attributes:
        float_type: The float operator that stands for it.
        inputs: Index of each (tensor, scale, zero-point).
        output: Index of the output's scale; its zero-point follows.
        bias: Index of an INT32 bias, None where there is none.
        weight_axis: Axis of weight scales per channel.
    """

    float_type: str
    inputs: tuple[int, ...]
    output: int
    bias: int | None = None
    weight_axis: int = 0


_ONE, _TWO = (0,), (0, 3)
LAYOUTS = {
    ("", "QLinearConv"): Layout("Conv", _TWO, 6, bias=8),
    ("", "QLinearMatMul"): Layout("MatMul", _TWO, 6, weight_axis=1),
    (MICROSOFT, "QGemm"): Layout("Gemm", _TWO, 7, bias=6, weight_axis=1),
    (MICROSOFT, "QLinearAdd"): Layout("Add", _TWO, 6),
    (MICROSOFT, "QLinearMul"): Layout("Mul", _TWO, 6),
    (MICROSOFT, "QLinearAveragePool"): Layout("AveragePool", _ONE, 3),
    (MICROSOFT, "QLinearGlobalAveragePool"): Layout("GlobalAveragePool", _ONE, 3),
    (MICROSOFT, "QLinearLeakyRelu"): Layout("LeakyRelu", _ONE, 3),
    (MICROSOFT, "QLinearSigmoid"): Layout("Sigmoid", _ONE, 3),
    (MICROSOFT, "QLinearSoftmax"): Layout("Softmax", _ONE, 3),
}
_FOREIGN_ATTRIBUTES = {"channels_last", "opset"}


def _apply(graph: GraphEdit, request: Request) -> Iterator[Change]:
    del request  # the same for every target
    names = {str(node.name) for node in graph.nodes}
    for node in list(graph.nodes):
        layout = LAYOUTS.get((str(node.domain), str(node.op_type)))
        if (node.domain, node.op_type) == (MICROSOFT, "QLinearConcat"):
            layout = Layout("Concat", tuple(range(2, len(node.input), 3)), 0)
        if layout is None or attribute(node, "channels_last"):
            continue
        # the name that the operator had before ONNX Runtime's quantizer
        plain = str(node.name).removesuffix("_quant")
        change = _rewrite(graph, node, layout, str(node.name) if plain in names else plain)
        if change is not None:
            yield change


def _rewrite(graph: GraphEdit, node: onnx.NodeProto, layout: Layout, name: str) -> Change | None:
    triples = [_names(node, index) for index in layout.inputs]
    target = _names(node, layout.output - 1)[1:]
    scales = [graph.constant(triple[1]) for triple in triples]
    if any(scale is None for scale in scales) or not all(name for t in triples for name in t[:2]):
        return None
    bias = _bias(graph, node, layout, [scale for scale in scales if scale is not None])
    if bias is None:
        return None
    axis = layout.weight_axis
    if layout.float_type == "Gemm" and attribute(node, "transB"):
        axis = 0
    floats = [_dequantized(graph, triple, axis) for triple in triples]
    was, output = f"{node.domain or 'ONNX'} {node.op_type}", node.output[0]
    kept = [entry for entry in node.attribute if entry.name not in _FOREIGN_ATTRIBUTES]
    moved = bool(target[0])
    graph.remove(node)
    result = graph.fresh(plain_name(output)) if moved else output
    new = graph.add_node(layout.float_type, [*floats, *bias], result, name=name)
    new.attribute.extend(kept)
    if moved:
        graph.add_node("QuantizeLinear", [result, *filter(None, target)], output)
    return Change(label(new), output, f"{was} to {layout.float_type} between Q and DQ", False)


def _names(node: onnx.NodeProto, index: int) -> tuple[str, str, str]:
    """Returns three inputs from ``index`` on, empty where they are left out."""
    names = [node.input[at] if 0 <= at < len(node.input) else "" for at in range(index, index + 3)]
    return names[0], names[1], names[2]


def _bias(
    graph: GraphEdit, node: onnx.NodeProto, layout: Layout, scales: Sequence[np.ndarray]
) -> list[str] | None:
    """Returns the float bias as a list of no or one name, None where it cannot be made."""
    if layout.bias is None or layout.bias >= len(node.input) or not node.input[layout.bias]:
        return []
    integers = graph.constant(node.input[layout.bias])
    if integers is None:
        return None
    # Gemm's alpha scales the product only, and ONNX Runtime folds it into the bias's scale.
    alpha = np.float32(attribute(node, "alpha") or 1.0) if layout.float_type == "Gemm" else 1
    scale = scales[0].astype(np.float32) * scales[1].astype(np.float32) * alpha
    value = (integers.astype(np.float32) * scale.reshape(-1)).astype(np.float32)
    return [graph.add_constant(plain_name(node.input[layout.bias]), value.reshape(integers.shape))]


def _dequantized(graph: GraphEdit, triple: tuple[str, str, str], axis: int) -> str:
    scale = graph.constant(triple[1])
    attributes: dict[str, Any] = {"axis": axis} if scale is not None and scale.size > 1 else {}
    output = graph.fresh(f"{plain_name(triple[0])}_dq")
    graph.add_node("DequantizeLinear", [name for name in triple if name], output, **attributes)
    return output


REPAIR = Repair(
    "R03",
    ("T016",),
    "QLinear operators become float operators between Q and DQ.",
    "The same grids; the last integer may round differently.",
    _apply,
)
