"""Small Q/DQ graphs for the tests of the TensorRT rules, sound unless an argument breaks them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

FLOAT, FLOAT16, INT8, INT4 = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.INT8,
    TensorProto.INT4,
)
FP8 = TensorProto.FLOAT8E4M3FN


class Graph:
    """Builds a model line by line; every method returns the name of the tensor it made."""

    def __init__(self, shape: Sequence[int | str] = (2, 16, 8, 8), dtype: int = FLOAT) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info("x", dtype, list(shape))]

    def add(self, op: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        out = out or f"t{len(self.nodes)}"
        domain = attributes.pop("domain", "")
        self.nodes.append(
            helper.make_node(op, inputs, [out], name=f"{op}_{out}", domain=domain, **attributes)
        )
        return out

    def input(self, name: str, dtype: int, shape: Sequence[int | str] = ()) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def const(self, dtype: int, dims: Sequence[int], value: Any, name: str = "") -> str:
        name = name or f"c{len(self.initializers)}"
        count = int(np.prod(dims))
        if dtype in {INT4, TensorProto.UINT4}:
            data = bytes([0x11]) * ((count + 1) // 2)
            tensor = TensorProto(name=name, data_type=dtype, dims=dims, raw_data=data)
        else:
            values = np.broadcast_to(np.asarray(value), dims or (1,)).reshape(-1)
            tensor = helper.make_tensor(name, dtype, dims, values)
        self.initializers.append(tensor)
        return name

    def qdq(self, x: str, scale: Any = 0.02, *, dtype: int = INT8, **attributes: Any) -> str:
        size = np.shape(scale)
        names = self.const(FLOAT, size, scale), self.const(dtype, size, 0)
        integers = self.add("QuantizeLinear", x, *names, **attributes)
        return self.add("DequantizeLinear", integers, *names, **attributes)

    def weight(
        self,
        dims: Sequence[int],
        *,
        axis: int | None = 0,
        dtype: int = INT8,
        scale: Sequence[int] | None = None,
        scale_type: int = FLOAT,
        **attributes: Any,
    ) -> str:
        """Integers behind one DequantizeLinear, as our own export stores them."""
        if scale is None:
            scale = [] if axis is None else [dims[axis]]
        if axis is not None:
            attributes["axis"] = axis
        data = self.const(dtype, dims, 1), self.const(scale_type, scale, 0.01)
        return self.add("DequantizeLinear", *data, **attributes)

    def model(
        self, out: str, *, opset: int = 21, ir: int = 10, dtype: int = FLOAT
    ) -> onnx.ModelProto:
        outputs = [helper.make_tensor_value_info(out, dtype, None)]
        graph = helper.make_graph(self.nodes, "g", self.inputs, outputs, self.initializers)
        domains = sorted({"", *(node.domain for node in self.nodes)})
        opsets = [helper.make_opsetid(domain, 1 if domain else opset) for domain in domains]
        return helper.make_model(graph, opset_imports=opsets, ir_version=ir)


def conv(
    *,
    cin: int = 16,
    cout: int = 32,
    kernel: int = 3,
    group: int = 1,
    act: int | None = INT8,
    act_scale: Any = 0.02,
    weight_type: int = INT8,
    weight_scale: Sequence[float] | None = None,
    axis: int | None = 0,
    shape: Sequence[int | str] = (),
    opset: int = 21,
    ir: int = 10,
    **act_attributes: Any,
) -> onnx.ModelProto:
    """x -> Q -> DQ -> Conv with integer weights."""
    g = Graph(shape or (2, cin, 8, 8))
    x = "x" if act is None else g.qdq("x", act_scale, dtype=act, **act_attributes)
    dims = [cout, cin // group, kernel, kernel]
    scales = [0.01] * cout if weight_scale is None else weight_scale
    names = g.const(weight_type, dims, 1), g.const(FLOAT, [len(scales)], scales)
    attributes = {} if axis is None else {"axis": axis}
    w = g.add("DequantizeLinear", *names, **attributes)
    return g.model(g.add("Conv", x, w, group=group, pads=[kernel // 2] * 4), opset=opset, ir=ir)


def pair(
    *,
    scale: Any = 0.02,
    scale_type: int = FLOAT,
    zero_point: int | None = 0,
    zero_points: Sequence[int] | None = None,
    zero_type: int = INT8,
    computed: str = "",
    through: str = "",
    x_type: int = FLOAT,
    shape: Sequence[int | str] = (2, 16, 8, 8),
    opset: int = 21,
    ir: int = 10,
    **attributes: Any,
) -> onnx.ModelProto:
    """x -> Q -> DQ -> Relu, with every part of the pair open to damage."""
    g = Graph(shape, x_type)
    size = np.shape(scale)
    s = g.input("s", FLOAT) if computed == "scale" else g.const(scale_type, size, scale)
    names = [s]
    if computed == "zero-point":
        names.append(g.input("z", INT8))
    elif zero_point is not None:
        names.append(g.const(zero_type, size if zero_points is None else zero_points, zero_point))
    if through == "Identity":
        names = [g.add("Identity", name) for name in names]
    integers = g.add("QuantizeLinear", "x", *names, **attributes)
    out = g.add("Relu", g.add("DequantizeLinear", integers, *names))
    return g.model(out, opset=opset, ir=ir, dtype=scale_type)


def matmul(
    *,
    op: str = "MatMul",
    k: int = 128,
    n: int = 64,
    rows: int | str = 32,
    dims: Sequence[int] | None = None,
    weight_type: int = INT4,
    axis: int | None = 0,
    block: int | None = 64,
    scale: Sequence[int] | None = None,
    act: bool = False,
    trans_b: int = 0,
    x_type: int = FLOAT,
    scale_type: int = FLOAT,
) -> onnx.ModelProto:
    """x -> MatMul or Gemm with quantized weights, in blocks along K unless told otherwise."""
    dims = dims or ([n, k] if trans_b else [k, n])
    g = Graph([*dims[:-2], rows, k], x_type)
    if block and scale is None and axis is not None:
        scale = [size // block if index == axis else size for index, size in enumerate(dims)]
    attributes = {"block_size": block} if block else {}
    w = g.weight(
        dims, axis=axis, dtype=weight_type, scale=scale, scale_type=scale_type, **attributes
    )
    x = g.qdq("x") if act else "x"
    transposed = {"transB": trans_b} if op == "Gemm" else {}
    return g.model(g.add(op, x, w, **transposed), dtype=scale_type)


def bias(*, integer: bool) -> onnx.ModelProto:
    """A quantized convolution with a bias, as ONNX Runtime or as we export it."""
    g = Graph()
    x, w = g.qdq("x"), g.weight([32, 16, 3, 3])
    b = g.weight([32], dtype=TensorProto.INT32) if integer else g.const(FLOAT, [32], 0.5)
    return g.model(g.add("Conv", x, w, b, pads=[1] * 4))


def moved_weight(*, by: str = "") -> onnx.ModelProto:
    """Integer weights that reach their DQ through another operator."""
    g = Graph()
    x = g.qdq("x")
    if by == "Reshape":
        shape = g.const(TensorProto.INT64, [4], [32, 16, 1, 1])
        integers = g.add("Reshape", g.const(INT8, [32, 16], 1), shape)
    elif by == "Identity":
        integers = g.add("Identity", g.const(INT8, [32, 16, 1, 1], 1))
    elif by == "Constant":
        value = helper.make_tensor("v", INT8, [32, 16, 1, 1], [1] * 512)
        integers = g.add("Constant", value=value)
    else:
        integers = g.const(INT8, [32, 16, 1, 1], 1)
    w = g.add("DequantizeLinear", integers, g.const(FLOAT, [32], 0.01), axis=0)
    return g.model(g.add("Conv", x, w))


def typed(dtype: int) -> onnx.ModelProto:
    """Values of one type, moved from the input to the output."""
    g = Graph(dtype=dtype)
    return g.model(g.add("Identity", "x"), dtype=dtype)


def foreign(op: str, domain: str = "") -> onnx.ModelProto:
    """One operator of ONNX Runtime's own, or of the integer family."""
    g = Graph()
    if op == "Gelu" or op.startswith("Swirl"):
        return g.model(g.add(op, "x", domain=domain))
    if op == "FusedConv":
        return g.model(g.add(op, "x", g.const(FLOAT, [16, 16, 1, 1], 0.1), domain=domain))
    if op == "DynamicQuantizeLinear":
        node = helper.make_node(op, ["x"], ["q", "s", "z"], name=op)
        g.nodes.append(node)
        return g.model(g.add("DequantizeLinear", "q", "s", "z"))
    s, z = g.const(FLOAT, [], 0.02), g.const(INT8, [], 0)
    q = g.add("QuantizeLinear", "x", s, z)
    w = g.const(INT8, [8, 8] if "MatMul" in op else [16, 16, 1, 1], 1)
    if op.startswith("QLinear"):
        return g.model(g.add("DequantizeLinear", g.add(op, q, s, z, w, s, z, s, z), s, z))
    return g.model(g.add("Cast", g.add(op, q, w), to=FLOAT))


def mixed_types(*, mixed: bool) -> onnx.ModelProto:
    g = Graph()
    half = g.add("Cast", "x", to=FLOAT16)
    return g.model(g.add("Add", "x", g.add("Cast", half, to=FLOAT) if not mixed else half))


def scalar(*, op: str) -> onnx.ModelProto:
    """A scalar constant behind Q, or behind DQ, or a vector of one behind DQ."""
    g = Graph()
    s, z = g.const(FLOAT, [], 0.02), g.const(INT8, [], 0)
    if op == "QuantizeLinear":
        c = g.add("DequantizeLinear", g.add(op, g.const(FLOAT, [], 1.0), s, z), s, z)
    else:
        c = g.add(
            "DequantizeLinear", g.const(INT8, [] if op == "DequantizeLinear" else [1], 1), s, z
        )
    return g.model(g.add("Add", "x", c))
