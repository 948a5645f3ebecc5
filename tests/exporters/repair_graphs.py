"""Graphs as other quantizers write them, one habit each, and what runs and builds them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from trt_rules_graphs import FLOAT, INT8, Graph

from fdda_deploy.engines.ort_run import OrtRunner
from fdda_deploy.engines.trt_api import load_api
from fdda_deploy.engines.trt_build import BuildOptions, build_plan
from fdda_deploy.errors import BuildError, MissingBackendError
from fdda_deploy.exporters.repair.record import Applied
from fdda_deploy.exporters.repair.repairing import repair
from fdda_deploy.exporters.trt_rules import check

UINT8 = TensorProto.UINT8


class Foreign(Graph):
    """Graph with random weights and with pairs of any 8-bit type and zero-point."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.rng = np.random.default_rng(0)

    def array(self, value: np.ndarray) -> str:
        name = f"a{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def pair(
        self, x: str, scale: float = 0.02, zero: int = 0, dtype: int = UINT8, out: str = "",
        domain: str = "",
    ) -> str:  # fmt: skip
        names = self.const(FLOAT, [], scale), self.const(dtype, [], zero)
        integers = self.add("QuantizeLinear", x, *names, domain=domain)
        return self.add("DequantizeLinear", integers, *names, out=out, domain=domain)

    def floats(self, *dims: int) -> str:
        return self.array((self.rng.standard_normal(dims) * 0.2).astype(np.float32))

    def weights(
        self, *dims: int, dtype: type = np.int8, zero: int = 0, axis: int | None = 0
    ) -> str:
        info = np.iinfo(dtype)
        low = max(info.min, zero - 127)
        data = self.rng.integers(low, min(info.max, low + 254), dims, endpoint=True).astype(dtype)
        count = () if axis is None else (dims[axis],)
        scale = self.rng.uniform(0.001, 0.003, count).astype(np.float32)
        zeros = np.full(count, zero, dtype)
        attributes = {} if axis is None else {"axis": axis}
        names = self.array(data), self.array(np.asarray(scale)), self.array(zeros)
        return self.add("DequantizeLinear", *names, **attributes)

    def conv(self, x: str, w: str, *bias: str, out: str = "", group: int = 1) -> str:
        return self.add("Conv", x, w, *bias, out=out, pads=[1] * 4, group=group)


def shaped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Gives outputs the shape that the ONNX checker wants; returns ``model``."""
    inferred = onnx.shape_inference.infer_shapes(model)
    for value, found in zip(model.graph.output, inferred.graph.output, strict=True):
        tensor = value.type.tensor_type
        if not tensor.HasField("shape"):
            tensor.shape.CopyFrom(found.type.tensor_type.shape)
            if not tensor.shape.dim:  # of an operator that only ONNX Runtime knows
                for _ in model.graph.input[0].type.tensor_type.shape.dim:
                    tensor.shape.dim.add()
    return model


def fed(model: onnx.ModelProto, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    (value,) = model.graph.input
    shape = [size.dim_value or 2 for size in value.type.tensor_type.shape.dim]
    return {value.name: rng.standard_normal(shape).astype(np.float32)}


def outputs(model: onnx.ModelProto) -> np.ndarray:
    with OrtRunner(model.SerializeToString(), num_threads=1) as runner:
        return next(iter(runner.infer(fed(model)).values()))


def distance(before: onnx.ModelProto, after: onnx.ModelProto) -> float:
    """Returns ``||b - a|| / ||a||`` of the first output, as ONNX Runtime computes it."""
    a, b = outputs(before), outputs(after)
    return float(np.linalg.norm(b - a) / np.linalg.norm(a))


def repaired(
    model: onnx.ModelProto, *only: str, target: str = "trt"
) -> tuple[onnx.ModelProto, list[Applied]]:
    """Returns the repaired model, sound and fully typed, and its changes, at least one."""
    shaped(model)
    given = model.SerializeToString()
    result = repair(model, target=target)
    assert model.SerializeToString() == given, "the repair changed what it was given"
    assert {change.repair for change in result.applied} >= set(only)
    onnx.checker.check_model(result.model, full_check=True)
    return result.model, list(result.applied)


def left(model: onnx.ModelProto, *rules: str, target: str = "trt") -> list[str]:
    """Returns which of ``rules`` the model still breaks."""
    return [f.message for f in check(model, target=target) if f.rule in rules]


def plan_of(model: onnx.ModelProto) -> bytes | None:
    """Returns RTX's plan, None where it refuses; skips where RTX is not installed."""
    try:
        api = load_api("tensorrt_rtx")
    except MissingBackendError as error:
        pytest.skip(str(error))
    try:
        return build_plan(model.SerializeToString(), BuildOptions(), api).plan
    except BuildError:
        return None


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    return numpy_helper.to_array(held[name])


def quantizer_of(model: onnx.ModelProto, source: str) -> onnx.NodeProto:
    """Returns the only QuantizeLinear that reads ``source``."""
    (node,) = [
        n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == source
    ]
    return node


def integer_bias(*, per_channel: bool = True) -> onnx.ModelProto:
    """Conv with an INT32 bias behind DequantizeLinear."""
    g = Foreign()
    x, w = g.pair("x", dtype=INT8), g.weights(32, 16, 3, 3, axis=0 if per_channel else None)
    integers = g.array(g.rng.integers(-9000, 9000, 32).astype(np.int32))
    scale = g.array(np.full((32,) if per_channel else (), 4e-5, np.float32))
    attributes = {"axis": 0} if per_channel else {}
    bias = g.add("DequantizeLinear", integers, scale, **attributes)
    return g.model(g.conv(x, w, bias))


def float_weight(dtype: int = INT8, zero: int = 0) -> onnx.ModelProto:
    """Conv whose float weight has Q and DQ on it."""
    g = Foreign()
    names = g.array(np.full(32, 0.01, np.float32)), g.const(dtype, [32], zero)
    integers = g.add("QuantizeLinear", g.floats(32, 16, 3, 3), *names, axis=0)
    w = g.add("DequantizeLinear", integers, *names, axis=0)
    return g.model(g.conv(g.pair("x", dtype=INT8), w))


def activation(
    scale: float, zero: int, dtype: int = UINT8, *, relu: bool = False
) -> onnx.ModelProto:
    """Conv -> [Relu] -> pair of any grid -> Conv."""
    g = Foreign()
    y = g.conv(g.pair("x", dtype=INT8), g.weights(32, 16, 3, 3), out="y")
    y = g.add("Relu", y, out="rectified") if relu else y
    return g.model(g.conv(g.pair(y, scale, zero, dtype), g.weights(32, 32, 3, 3)))


def per_consumer() -> onnx.ModelProto:
    """One tensor with a pair of its own for each of its two readers."""
    g = Foreign()
    first = g.conv(g.pair("x", dtype=INT8), g.weights(16, 16, 3, 3))
    second = g.conv(g.pair("x", dtype=INT8), g.weights(16, 16, 3, 3))
    return g.model(g.add("Add", first, second))


def residual(*, projection: bool = False) -> onnx.ModelProto:
    """Conv and skip, both with pairs in front of the addition."""
    g = Foreign()
    skip = g.conv(g.pair("x", dtype=INT8), g.weights(16, 16, 3, 3), out="skip")
    start = g.pair(skip, 0.05, dtype=INT8, out="start")
    main = g.conv(start, g.weights(16, 16, 3, 3), out="main")
    other = start
    if projection:
        other = g.pair(g.conv(start, g.weights(16, 16, 3, 3)), 0.04, dtype=INT8)
    return g.model(g.add("Add", other, g.pair(main, 0.15, dtype=INT8), out="sum"))


def depthwise(scale: float = 0.02, zero: int = 0) -> onnx.ModelProto:
    """Conv -> pair -> depthwise Conv, with integer weights throughout."""
    g = Foreign()
    y = g.conv(g.pair("x", dtype=INT8), g.weights(32, 16, 3, 3), out="y")
    w = g.weights(32, 1, 3, 3)
    return g.model(g.conv(g.pair(y, scale, zero), w, group=32))


def qlinear_conv(*, channels: bool = True, bias: bool = True) -> onnx.ModelProto:
    """Q -> QLinearConv -> DQ as ONNX Runtime's QOperator format has it."""
    g = Foreign()
    x_grid = g.const(FLOAT, [], 0.03), g.const(UINT8, [], 120)
    y_grid = g.const(FLOAT, [], 0.05), g.const(UINT8, [], 0)
    x = g.add("QuantizeLinear", "x", *x_grid)
    scale = g.rng.uniform(0.001, 0.003, 32 if channels else ()).astype(np.float32)
    w = g.array(g.rng.integers(-127, 128, (32, 16, 3, 3)).astype(np.int8))
    w_grid = g.array(np.asarray(scale)), g.array(np.zeros_like(scale, np.int8))
    extra = [g.array(g.rng.integers(-9000, 9000, 32).astype(np.int32))] if bias else []
    y = g.add("QLinearConv", x, *x_grid, w, *w_grid, *y_grid, *extra, pads=[1] * 4)
    return g.model(g.add("DequantizeLinear", y, *y_grid))


def microsoft(op: str) -> onnx.ModelProto:
    """One operator of ONNX Runtime's QOperator format between Q and DQ."""
    shape = (4, 32) if op == "QGemm" else (2, 16, 8, 8)
    g = Foreign(shape=shape)
    grid = g.const(FLOAT, [], 0.03), g.const(UINT8, [], 128)
    x = g.add("QuantizeLinear", "x", *grid)
    triple = [x, *grid]
    attributes: dict[str, Any] = {}
    if op == "QGemm":
        w = g.array(g.rng.integers(-127, 128, (24, 32)).astype(np.int8))
        w_grid = g.const(FLOAT, [24], 0.002), g.const(INT8, [24], 0)
        bias = g.array(g.rng.integers(-900, 900, 24).astype(np.int32))
        inputs, attributes = [*triple, w, *w_grid, bias, *grid], {"transB": 1, "alpha": 1.0}
    elif op in {"QLinearAdd", "QLinearMul"}:
        inputs = [*triple, *triple, *grid]
    elif op == "QLinearConcat":
        inputs, attributes = [*grid, *triple, *triple], {"axis": 1}
    elif op == "QLinearAveragePool":
        inputs, attributes = [*triple, *grid], {"kernel_shape": [2, 2]}
    else:
        inputs = [*triple, *grid]
    y = g.add(op, *inputs, domain="com.microsoft", **attributes)
    return g.model(g.add("Relu", g.add("DequantizeLinear", y, *grid)))


def wrong_axis(*, stated: int | None = None) -> onnx.ModelProto:
    """Weight scales that fit the output channels only, on another axis or none."""
    g = Foreign()
    w = g.weights(32, 16, 3, 3)
    node = g.nodes[-1]
    del node.attribute[:]
    if stated is not None:
        node.attribute.append(helper.make_attribute("axis", stated))
    return g.model(g.conv(g.pair("x", dtype=INT8), w))
