"""Placements of the small networks, plain grids that fill them, and a run of the result."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from fdda_deploy.exporters.float_onnx import FloatGraph
from fdda_deploy.exporters.placement import place
from fdda_deploy.exporters.qdq import Grids
from fdda_deploy.quant.affine import qparams_from_amax, quantize, signed_range
from fdda_deploy.quant.points import Placement, WeightPoint
from fdda_deploy.quant.qparams import QParams
from fdda_deploy.quant.scheme import scheme_from_name


def placed(
    graph: FloatGraph, scheme: str, target: str, everything: bool = True, first_last_bits: int = 8
) -> Placement:
    return place(
        graph.proto,
        scheme_from_name(scheme, first_last_bits),
        target,
        torch_tensors=graph.fx_from_tensor,
        parameters=graph.parameter_from_initializer,
        everything=everything,
    )


def grids_of(graph: FloatGraph, placement: Placement) -> Grids:
    """Returns plain grids for every point: weights by their amax, activations up to 3."""
    held = {t.name: numpy_helper.to_array(t) for t in graph.proto.graph.initializer}
    activations = {}
    for index, point in enumerate(placement.activations):
        qmin, qmax = signed_range(point.num_bits)
        if index % 2 and point.num_bits < 8:
            qmin, qmax = 0, qmax - qmin  # the lopsided grids behind a ReLU
        activations[point.name] = QParams(np.float32(3 / qmax), qmin, qmax)
    weights = {}
    for point in placement.weights:
        grid = _weight_grid(held[point.initializer], point)
        weights[point.initializer] = (quantize(held[point.initializer], grid), grid)
    return Grids(activations, weights, {})


def _weight_grid(weight: np.ndarray, point: WeightPoint) -> QParams:
    others = tuple(d for d in range(weight.ndim) if d != point.axis)
    if point.block_size is None:
        return qparams_from_amax(np.abs(weight).max(axis=others), point.num_bits, point.axis)
    shape = list(weight.shape)
    shape[point.axis] //= point.block_size
    qmin, qmax = signed_range(point.num_bits)
    return QParams(np.full(shape, 0.1), qmin, qmax, point.axis, block_size=point.block_size)


def weights_of(placement: Placement) -> dict[str, WeightPoint]:
    return {point.initializer: point for point in placement.weights}


def place_plain(
    model: onnx.ModelProto,
    target: str,
    scheme: str = "w8a8",
    first_last_bits: int = 8,
    torch_tensors: tuple[str, ...] = ("input", "logits"),
) -> Placement:
    return place(
        model,
        scheme_from_name(scheme, first_last_bits),
        target,
        torch_tensors=torch_tensors,
        parameters={"w": ("w", False)},
    )


def gemm_model(k: int, out: int = 10) -> onnx.ModelProto:
    return _model(helper.make_node("Gemm", ["input", "w"], ["logits"], "fc", transB=1), (out, k))


def conv_model(channels: int, groups: int) -> onnx.ModelProto:
    node = helper.make_node("Conv", ["input", "w"], ["logits"], "conv", group=groups)
    return _model(node, (channels, channels // groups, 1, 1))


def _model(node: onnx.NodeProto, shape: tuple[int, ...]) -> onnx.ModelProto:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=shape)
    graph = helper.make_graph(
        [node],
        "plain",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [weight],
    )
    return helper.make_model(graph)


def run_onnx(model: onnx.ModelProto, x: Tensor) -> np.ndarray:
    """Returns the logits that ONNX Runtime computes from the graph as it is written."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"input": x.numpy()})[0]
