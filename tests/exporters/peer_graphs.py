"""One float network as three quantizers write it: ONNX Runtime's, ModelOpt's style, and our own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from export_grids import placed
from onnx import TensorProto, helper, numpy_helper

from fdda_deploy.exporters.float_onnx import FloatGraph
from fdda_deploy.exporters.qdq import Grids, insert_qdq
from fdda_deploy.quant.affine import qparams_from_amax, quantize

WEIGHTED = {"Conv", "Gemm", "MatMul"}
Arrays = Sequence[np.ndarray]


def ort_static(
    model: onnx.ModelProto,
    batches: Arrays,
    folder: Path,
    *,
    operators: bool = False,
    per_channel: bool = False,
    unsigned: bool = True,
) -> onnx.ModelProto:
    """Returns what ``onnxruntime.quantization.quantize_static`` makes of a float graph."""
    import onnxruntime.quantization as ort
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc]  # ships no types
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {model.graph.input[0].name: batch}

    plain, prepared, made = (str(folder / f"{name}.onnx") for name in ("float", "pre", "ort"))
    onnx.save(model, plain)
    quant_pre_process(plain, prepared)
    ort.quantize_static(
        prepared,
        made,
        Reader(),
        quant_format=ort.QuantFormat.QOperator if operators else ort.QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=ort.QuantType.QUInt8 if unsigned else ort.QuantType.QInt8,
    )
    return onnx.load(made)


def ranges(model: onnx.ModelProto, batches: Arrays) -> dict[str, float]:
    """Returns the largest magnitude of every float tensor of a float graph."""
    import onnxruntime as ort

    watched = onnx.ModelProto()
    watched.CopyFrom(onnx.shape_inference.infer_shapes(model))
    outputs = {value.name for value in watched.graph.output}
    floats = [
        value
        for value in watched.graph.value_info
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and value.name not in outputs
    ]
    watched.graph.output.extend(floats)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    source = model.graph.input[0].name
    found: dict[str, float] = {source: max(float(np.abs(b).max()) for b in batches)}
    for batch in batches:
        for name, array in zip(names, session.run(names, {source: batch}), strict=True):
            found[name] = max(found.get(name, 0.0), float(np.abs(array).max()))
    return found


def own_export(graph: FloatGraph, target: str, found: dict[str, float]) -> onnx.ModelProto:
    """Returns our own w8a8 export with min-max ranges."""
    placement = placed(graph, "w8a8", target)
    held = {t.name: numpy_helper.to_array(t) for t in graph.proto.graph.initializer}
    weights = {}
    for point in placement.weights:
        weight = held[point.initializer]
        others = tuple(axis for axis in range(weight.ndim) if axis != point.axis)
        grid = qparams_from_amax(np.abs(weight).max(axis=others), 8, point.axis)
        weights[point.initializer] = (quantize(weight, grid), grid)
    activations = {p.tensor: qparams_from_amax(found[p.tensor]) for p in placement.activations}
    return insert_qdq(graph.proto, placement, Grids(activations, weights, {}), {})


def modelopt_style(model: onnx.ModelProto, found: dict[str, float]) -> onnx.ModelProto:
    """Returns a float graph with Q/DQ as ModelOpt places them.

    Float weights with Q and DQ on them, float biases, a pair of its own for every consumer, and
    pairs on both inputs of each addition.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        wanted = {"Add": (0, 1)}.get(node.op_type, (0, 1) if node.op_type in WEIGHTED else ())
        moving = [name for name in node.input if name not in held]
        for index in wanted if node.op_type != "Add" or len(moving) == 2 else ():
            nodes += _pair(graph, node, index, held, found)
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return result


def _pair(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    index: int,
    held: dict[str, np.ndarray],
    found: dict[str, float],
) -> Iterator[onnx.NodeProto]:
    tensor, label = node.input[index], f"{node.name}_{index}"
    attributes = {}
    if tensor in held:
        axis = 1 if node.op_type == "Gemm" and not _transposed(node) else 0
        others = tuple(at for at in range(held[tensor].ndim) if at != axis)
        scale = qparams_from_amax(np.abs(held[tensor]).max(axis=others), 8, axis).scale
        attributes = {"axis": axis}
    else:
        scale = qparams_from_amax(found[tensor]).scale
    zero = np.zeros(scale.shape, np.int8)
    graph.initializer.append(numpy_helper.from_array(scale, f"{label}_scale"))
    graph.initializer.append(numpy_helper.from_array(zero, f"{label}_zero"))
    operands = [f"{label}_scale", f"{label}_zero"]
    for op, source, made in (
        ("QuantizeLinear", tensor, f"{label}_q"),
        ("DequantizeLinear", f"{label}_q", f"{label}_dq"),
    ):
        yield helper.make_node(op, [source, *operands], [made], name=made, **attributes)
    node.input[index] = f"{label}_dq"


def _transposed(node: onnx.NodeProto) -> bool:
    return any(entry.name == "transB" and entry.i for entry in node.attribute)
