"""A small network with placement, grids, and its Q/DQ graph."""

from __future__ import annotations

import dataclasses

import onnx
from export_grids import grids_of, placed
from export_networks import graph_of
from onnx import TensorProto

from fdda_deploy.exporters.float_onnx import FloatGraph
from fdda_deploy.exporters.qdq import Grids, insert_qdq
from fdda_deploy.quant.points import Placement

METADATA = {"fdda_deploy.scheme": "w4a4", "fdda_deploy.model_digest": "0123abcd"}


@dataclasses.dataclass(frozen=True)
class Case:
    graph: FloatGraph
    placement: Placement
    grids: Grids
    before: bytes
    model: onnx.ModelProto

    @property
    def initializers(self) -> dict[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    @property
    def for_tensorrt(self) -> bool:
        return self.placement.target != "ort-cpu"

    @property
    def integer_biases(self) -> list[str]:
        """Biases behind a DequantizeLinear, none for TensorRT."""
        held = {name for name, t in self.initializers.items() if t.data_type == TensorProto.INT32}
        found = [n.output[0] for n in self.nodes("DequantizeLinear") if n.input[0] in held]
        assert not (found and self.for_tensorrt)
        return found

    def nodes(self, op_type: str) -> list[onnx.NodeProto]:
        return [node for node in self.model.graph.node if node.op_type == op_type]


def case_of(kind: type, scheme: str, target: str) -> Case:
    graph = graph_of(kind)
    placement = placed(graph, scheme, target)
    grids = grids_of(graph, placement)
    before = graph.proto.SerializeToString()
    model = insert_qdq(graph.proto, placement, grids, METADATA)
    return Case(graph, placement, grids, before, model)
