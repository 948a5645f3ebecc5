"""A float graph as other exporters write it, and the calibration table TensorRT 10 made of it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from fdda_deploy.calib_cache.record import CalibrationRecord
from fdda_deploy.calib_cache.trt_table import TrtTable, record_from_table

CHANNELS, CLASSES = 16, 5
IMAGE = (3, 8, 8)
ACTIVATIONS = ("image", "x0", "x1", "x2", "x3", "x4", "x5", "x6", "pooled", "flat", "logits")


def foreign(opset: int = 11, *, listed: bool = True) -> onnx.ModelProto:
    """Conv, BatchNorm, Clip(0, 6), Conv, BatchNorm, + skip, Relu, pool, Gemm: none of it tidy.

    Nodes have no names, the ends of Clip are Constant nodes, initializers are listed as inputs.
    """
    rng = np.random.default_rng(0)
    constants: dict[str, np.ndarray] = {}

    def conv(name: str, cin: int) -> str:
        constants[name] = rng.normal(0, 0.4, (CHANNELS, cin, 3, 3)).astype(np.float32)
        return name

    def norm(name: str) -> list[str]:
        values = {
            "gamma": rng.uniform(0.5, 1.5, CHANNELS),
            "beta": rng.normal(0, 0.5, CHANNELS),
            "mean": rng.normal(0, 0.5, CHANNELS),
            "var": rng.uniform(0.5, 2.0, CHANNELS),
        }
        constants.update({f"{name}.{k}": v.astype(np.float32) for k, v in values.items()})
        return [f"{name}.{key}" for key in values]

    constants["fc"] = rng.normal(0, 0.4, (CLASSES, CHANNELS)).astype(np.float32)
    constants["fc.bias"] = rng.normal(0, 0.4, CLASSES).astype(np.float32)
    low, high = (numpy_helper.from_array(np.float32(value)) for value in (0, 6))
    node = helper.make_node
    nodes = [
        node("Conv", ["image", conv("w0", 3)], ["x0"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["x0", *norm("bn0")], ["x1"], epsilon=1e-3),
        node("Constant", [], ["low"], value=low),
        node("Constant", [], ["high"], value=high),
        node("Clip", ["x1", "low", "high"], ["x2"]),
        node("Conv", ["x2", conv("w1", CHANNELS)], ["x3"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["x3", *norm("bn1")], ["x4"]),
        node("Add", ["x4", "x2"], ["x5"]),
        node("Relu", ["x5"], ["x6"]),
        node("GlobalAveragePool", ["x6"], ["pooled"]),
        node("Flatten", ["pooled"], ["flat"]),
        node("Gemm", ["flat", "fc", "fc.bias"], ["logits"], transB=1),
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *IMAGE])]
    if listed:
        inputs += [
            helper.make_tensor_value_info(t.name, TensorProto.FLOAT, t.dims) for t in initializers
        ]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])
    graph = helper.make_graph(nodes, "foreign", inputs, [logits], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6)


def images(count: int = 8) -> np.ndarray:
    """Noise ``(count, 3, 8, 8)``."""
    return np.random.default_rng(1).normal(size=(count, *IMAGE)).astype(np.float32)


def run(model: onnx.ModelProto, batch: np.ndarray, *tensors: str) -> list[np.ndarray]:
    """Computes tensors of a float graph with ONNX Runtime, nothing fused."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    del copy.graph.output[:]
    copy.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [np.asarray(value) for value in session.run(None, {"image": batch})]


def ranges(model: onnx.ModelProto, tensors: tuple[str, ...] = ACTIVATIONS) -> dict[str, float]:
    """Largest absolute value of each activation on `images`."""
    found = run(model, images(), *[name for name in tensors if name != "image"])
    names = [name for name in tensors if name != "image"]
    amax = {name: float(np.abs(value).max()) for name, value in zip(names, found, strict=True)}
    return {"image": float(np.abs(images()).max()), **amax}


def table(amax: dict[str, float], *, extra: bool = True) -> CalibrationRecord:
    """A min-max table of ``amax``, with an entry that only TensorRT 10's network had."""
    scales = {name: np.float32(value / 127) for name, value in amax.items()}
    if extra:
        scales["(Unnamed Layer* 12) [Constant]_output"] = np.float32(0.004)
    return record_from_table(TrtTable("101601", "MinMaxCalibration", scales))
