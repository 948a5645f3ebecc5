"""Small graphs for the FP16 tests, in ONNX's text form, and a run of them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.parser import parse_model

from fdda_deploy.exporters.half import to_half

HEAD = '<ir_version: 10, opset_import: ["" : 21]> '


def graph(text: str, **initializers: np.ndarray) -> onnx.ModelProto:
    """Returns ``text`` as a model, with more initializers than the text can hold."""
    model = parse_model(HEAD + text)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"n{index}"
    for name, value in initializers.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return model


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Returns the element type of every tensor, by ONNX's own inference."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return found | {tensor.name: tensor.data_type for tensor in inferred.initializer}


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def operand_types(model: onnx.ModelProto, op_type: str) -> list[str]:
    """Returns the types of the inputs of the first node of a kind."""
    types = types_of(model)
    node = next(node for node in model.graph.node if node.op_type == op_type)
    return [TensorProto.DataType.Name(types[tensor]) for tensor in node.input if tensor]


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    """Returns what ONNX Runtime computes from the graph as it is written."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def distance(model: onnx.ModelProto, **feeds: np.ndarray) -> float:
    """Returns the relative L2 between a graph and its FP16 twin."""
    wanted = np.concatenate([out.ravel() for out in run(model, **feeds)])
    got = np.concatenate([out.ravel() for out in run(to_half(model).proto, **feeds)])
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
