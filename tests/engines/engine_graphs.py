"""Small ONNX graphs for the engine tests: quantized as we export them, float, and broken."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IMAGE = (3, 16, 16)
ACT_SCALE = np.float32(0.05)


class GraphMaker:
    """Collects nodes and initializers; `model` closes the graph."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        self.initializers[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def op(self, kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def qdq(self, tensor: str) -> str:
        scale = self.constant(f"{tensor}/scale", ACT_SCALE)
        zero_point = self.constant(f"{tensor}/zero_point", np.int8(0))
        x_int = self.op("QuantizeLinear", [tensor, scale, zero_point], f"{tensor}/quantize")
        return self.op("DequantizeLinear", [x_int, scale, zero_point], f"{tensor}/dequantize")

    def quantized_conv(
        self, x: str, name: str, cin: int, cout: int, *, int32_bias: bool = False
    ) -> str:
        weight = self.rng.integers(-127, 128, (cout, cin, 3, 3), dtype=np.int8)
        parts = [
            self.constant(f"{name}.weight", weight),
            self.constant(f"{name}.weight/scale", np.full(cout, 0.01, np.float32)),
            self.constant(f"{name}.weight/zero_point", np.zeros(cout, np.int8)),
        ]
        w_deq = self.op("DequantizeLinear", parts, f"{name}.weight/dequantize", axis=0)
        bias = self._bias(name, cout, int32_bias)
        return self.op("Conv", [x, w_deq, bias], name, pads=[1, 1, 1, 1])

    def float_conv(self, x: str, name: str, cin: int, cout: int) -> str:
        weight = self.rng.normal(size=(cout, cin, 3, 3)).astype(np.float32)
        parts = [x, self.constant(f"{name}.weight", weight), self._bias(name, cout, False)]
        return self.op("Conv", parts, name, pads=[1, 1, 1, 1])

    def _bias(self, name: str, cout: int, as_int32: bool) -> str:
        if not as_int32:
            return self.constant(f"{name}.bias", np.zeros(cout, np.float32))
        parts = [
            self.constant(f"{name}.bias", np.zeros(cout, np.int32)),
            self.constant(f"{name}.bias/scale", np.full(cout, 0.0005, np.float32)),
        ]
        return self.op("DequantizeLinear", parts, f"{name}.bias/dequantize", axis=0)

    def model(
        self, output: str, shape: tuple[object, ...], input_shape: tuple[object, ...]
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "small",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, list(input_shape))],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, list(shape))],
            list(self.initializers.values()),
        )
        opset = helper.make_opsetid("", 21)
        return helper.make_model(graph, opset_imports=[opset], ir_version=10)


def residual_w8a8(
    *, channels: int = 16, batch: object = "N", int32_bias: bool = False
) -> onnx.ModelProto:
    """A W8A8 convolution and relu, then one with a quantized skip, relu, pool and 10 logits."""
    make = GraphMaker()
    x = make.qdq("input")
    x = make.op("Relu", [make.quantized_conv(x, "conv1", 3, channels)], "relu1")
    skip = make.qdq(x)
    y = make.quantized_conv(skip, "conv2", channels, channels, int32_bias=int32_bias)
    y = make.op("Relu", [make.op("Add", [y, skip], "add")], "relu2")
    return _head(make, y, channels, batch)


def residual_float(*, channels: int = 16) -> onnx.ModelProto:
    """The same network in float."""
    make = GraphMaker()
    x = make.op("Relu", [make.float_conv("input", "conv1", 3, channels)], "relu1")
    y = make.op("Add", [make.float_conv(x, "conv2", channels, channels), x], "add")
    return _head(make, make.op("Relu", [y], "relu2"), channels, "N")


def _head(make: GraphMaker, x: str, channels: int, batch: object) -> onnx.ModelProto:
    pooled = make.op("Flatten", [make.op("GlobalAveragePool", [x], "pool")], "flatten")
    weight = make.rng.normal(size=(10, channels)).astype(np.float32)
    logits = make.op("Gemm", [pooled, make.constant("fc.weight", weight)], "logits", transB=1)
    return make.model(logits, (batch, 10), (batch, *IMAGE))


def with_int4_weight(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Restores one INT8 weight as INT4 in place, which no convolution kernel takes beside INT8."""
    for tensor in model.graph.initializer:
        if tensor.name in (name, f"{name}/zero_point"):
            values = np.clip(numpy_helper.to_array(tensor), -8, 7).ravel() & 15
            tensor.raw_data = (values[0::2] | (values[1::2] << 4)).astype(np.uint8).tobytes()
            tensor.data_type = TensorProto.INT4
    return model


def images(count: int, seed: int = 1) -> np.ndarray:
    """A batch ``(count, 3, 16, 16)`` of noise."""
    return np.random.default_rng(seed).normal(size=(count, *IMAGE)).astype(np.float32)
