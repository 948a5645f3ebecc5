"""FP16 for the float parts of a graph, strongly typed, with FP32 islands where FP16 cannot hold.

TensorRT 11 and TensorRT-RTX know no precision flag: a layer computes in the type that the graph
states. This file states FP16. Q and DQ follow their neighbours, inputs and outputs keep FP32, and
what computes shapes is left alone. The table of islands is `half_table`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from fdda_deploy.errors import ExportError
from fdda_deploy.exporters.half_operands import FLOAT, HALF, Operands
from fdda_deploy.exporters.half_scales import raise_small_scales
from fdda_deploy.exporters.half_table import FP32_OPS, MAX_TERMS, SUMS, signature, terms_of_sum
from fdda_deploy.exporters.rules.shapes import tensor_types

_SIZES = "sizes and positions"
"""Why a node keeps FP32 that is no island: FP16 counts to 2048 only, and nobody computes much."""
_CONSTANT_OPS = frozenset({"Constant", "ConstantOfShape", "Range", "EyeLike"})


@dataclass(frozen=True)
class HalfGraph:
    """A graph with FP16 inside.

    Attributes:
        proto: The graph; inputs and outputs are as they were.
        islands: Pairs of (node name, reason) for nodes that keep FP32.
        scales_raised: Weight scales that FP16 could not hold (`half_scales`).
    """

    proto: onnx.ModelProto
    islands: tuple[tuple[str, str], ...]
    scales_raised: int


def to_half(model: onnx.ModelProto) -> HalfGraph:
    """Returns the FP16 twin of a float or Q/DQ graph; ``model`` is left as it is.

    Args:
        model: Any graph of `float_onnx` or `qdq` (opset 21; weights inside the file).

    Raises:
        ExportError: The types of its tensors cannot be told, or the result is not valid ONNX.

    Example:
        >>> from onnx.parser import parse_model
        >>> text = '<ir_version: 10, opset_import: ["" : 21]> g (float[2] x) => (float[2] y) '
        >>> [n.op_type for n in to_half(parse_model(text + "{ y = Relu(x) }")).proto.graph.node]
        ['Cast', 'Relu', 'Cast']
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    conversion = _Conversion(result)
    for node in model.graph.node:
        conversion.take(onnx.NodeProto.FromString(node.SerializeToString()))
    conversion.finish()
    try:
        onnx.checker.check_model(result)
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"the FP16 graph is not valid ONNX: {str(error).splitlines()[0]}. "
            "Export with --float-type fp32."
        ) from error
    return HalfGraph(result, tuple(conversion.islands), conversion.raised)


class _Conversion:
    """Takes the nodes in order and writes each with operands of the one type it computes in."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.opset = max((o.version for o in model.opset_import if not o.domain), default=0)
        self.types, self.shapes, failure = tensor_types(model)
        self.initializers = {tensor.name: tensor for tensor in self.graph.initializer}
        self.types |= {name: int(t.data_type) for name, t in self.initializers.items()}
        unknown = [t for n in self.graph.node for t in n.output if t and t not in self.types]
        if unknown:
            raise ExportError(
                f"{unknown[0]}: its type cannot be told ({failure or 'no inference for it'}), so "
                "it cannot be cast to FP16. Export with --float-type fp32."
            )
        self.pinned = {value.name for value in self.graph.output} | _captured(self.graph)
        self.operands = Operands(self.graph, self.types, self.initializers)
        self.islands: list[tuple[str, str]] = []
        self.raised = 0
        self._readers = Counter(tensor for node in self.graph.node for tensor in node.input)
        self._exact: set[str] = set()

    def take(self, node: onnx.NodeProto) -> None:
        """Writes one node, which is the caller's no longer, or keeps it for whoever reads it."""
        if node.op_type == "DequantizeLinear":
            self.raised += raise_small_scales(node, self.initializers, self._readers)
            self.operands.keep(node)
            if node.output[0] in self.pinned:
                self.operands.wanted(node.output[0], FLOAT)
        elif node.op_type == "QuantizeLinear":
            self._quantize(node)
        elif node.op_type == "Cast":
            self._cast(node)
        else:
            self._compute(node)

    def finish(self) -> None:
        """Puts the new nodes and constants into the graph."""
        nodes, constants = self.operands.nodes, self.operands.constants
        renamed = self.operands.renamed()
        for node in nodes:
            node.input[:] = [renamed.get(tensor, tensor) for tensor in node.input]
        for tensor in constants.values():
            tensor.name = renamed.get(tensor.name, tensor.name)
        new = {tensor.name for tensor in constants.values()}
        read = {t for node in nodes for t in node.input} | self.pinned
        kept = [t for n, t in self.initializers.items() if n in read and n not in new]
        held = [TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
        del self.graph.node[:]
        del self.graph.initializer[:]
        del self.graph.value_info[:]  # the types have changed; readers infer them
        self.graph.node.extend(nodes)
        self.graph.initializer.extend([*held, *constants.values()])

    def _compute(self, node: onnx.NodeProto) -> None:
        """Writes an ordinary node in the one float type that it gets."""
        where = signature(node, self.opset)
        floats = [self._is_float(tensor) for tensor in node.input]
        gives = [self._is_float(tensor) for tensor in node.output]
        if not any(floats) and not any(gives):
            self.operands.nodes.append(node)
            return
        reason = self._reason_for_float(node, floats)
        kind = FLOAT if reason else HALF
        if reason and reason != _SIZES:
            self.islands.append((node.name, reason))
        for index, tensor in enumerate(node.input):
            if floats[index]:
                wanted = kind if where.inputs[index] else FLOAT
                node.input[index] = self.operands.wanted(tensor, wanted)
        self.operands.nodes.append(node)
        for index, tensor in enumerate(list(node.output)):
            if gives[index]:
                if reason == _SIZES:
                    self._exact.add(tensor)
                self._produced(node, index, kind if where.outputs[index] else FLOAT)

    def _reason_for_float(self, node: onnx.NodeProto, floats: list[bool]) -> str:
        """Returns why a node keeps FP32, empty where it gets FP16."""
        inputs = [tensor for tensor, is_float in zip(node.input, floats, strict=True) if is_float]
        computed = [tensor for tensor in inputs if tensor not in self.initializers]
        lost = next((tensor for tensor in inputs if not self.operands.fits(tensor)), None)
        reason = ""
        if any(a.type in {a.GRAPH, a.GRAPHS} for a in node.attribute):
            reason = "It holds graphs of its own, which are not looked into."
        elif node.op_type in _CONSTANT_OPS or all(tensor in self._exact for tensor in computed):
            reason = _SIZES
        elif node.op_type in FP32_OPS:
            reason = FP32_OPS[node.op_type]
        elif not any(signature(node, self.opset).inputs):
            reason = f"ONNX has no FP16 {node.op_type}."
        elif lost is not None:
            reason = f"FP16 cannot hold {lost}: it overflows, or too much of it underflows."
        elif node.op_type in SUMS:
            terms = terms_of_sum(node, self.shapes.get(node.input[0]), self.initializers)
            if terms > MAX_TERMS:
                reason = f"It adds {terms:g} elements; FP16 sums stop growing at {MAX_TERMS}."
        return reason

    def _quantize(self, node: onnx.NodeProto) -> None:
        """Writes Q in the type of its input, as strong typing wants (T017)."""
        tensor, scale = node.input[0], node.input[1]
        fits = self.operands.scale_fits(scale, node.input[2] if len(node.input) > 2 else "")
        kind = self.operands.native(tensor) if fits else FLOAT
        node.input[0] = self.operands.wanted(tensor, kind)
        node.input[1] = self.operands.scale(scale, kind, rounded=fits)
        self.operands.nodes.append(node)

    def _cast(self, node: onnx.NodeProto) -> None:
        """Writes a Cast; one to FP32 gives FP16 where its values come from FP16."""
        source, target = node.input[0], node.output[0]
        to = next(attribute for attribute in node.attribute if attribute.name == "to")
        exact = not self._is_float(source) or source in self._exact
        if self._is_float(source):
            node.input[0] = self.operands.wanted(source, self.operands.native(source))
        self.operands.nodes.append(node)
        if to.i == FLOAT:
            if exact:
                self._exact.add(target)
            to.i = FLOAT if exact else HALF
            self._produced(node, 0, to.i)

    def _produced(self, node: onnx.NodeProto, index: int, kind: int) -> None:
        pinned = node.output[index] in self.pinned
        self.operands.produced(node, index, kind, pinned=pinned)

    def _is_float(self, tensor: str) -> bool:
        return bool(tensor) and self.types.get(tensor) == FLOAT


def _captured(graph: onnx.GraphProto) -> set[str]:
    """Returns the tensors that graphs inside of nodes may read by name."""
    found: set[str] = set()
    pending = [a for node in graph.node for a in node.attribute]
    while pending:
        attribute = pending.pop()
        for body in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
            found |= {tensor for node in body.node for tensor in node.input}
            pending += [a for node in body.node for a in node.attribute]
    return found
