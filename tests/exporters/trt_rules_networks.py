"""Small networks of several layers for the tests of the TensorRT rules."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper
from trt_rules_graphs import FLOAT, INT8, Graph


def residual(*, skip: bool = True, branch: bool = False, shortcut: bool = False) -> onnx.ModelProto:
    """Relu(x) -> Conv, added to the skip, as in a residual block."""
    g = Graph()
    start = g.add("Relu", "x")
    quantized = g.qdq(start)
    main = g.add("Conv", quantized, g.weight([16, 16, 3, 3]), pads=[1] * 4)
    if branch:
        main = g.qdq(main, 0.05)
    other = quantized if skip else start
    if shortcut:
        other = g.qdq(g.add("Conv", quantized, g.weight([16, 16, 1, 1])), 0.03)
    return g.model(g.add("Relu", g.add("Add", main, other)))


def tail(*ops: str, pair_at: int) -> onnx.ModelProto:
    """x through ``ops``, with one Q/DQ pair behind the first ``pair_at`` of them."""
    g = Graph()
    x = "x"
    for index, op in enumerate((*ops, "")):
        x = g.qdq(x) if index == pair_at else x
        x = g.add(op, x) if op else x
    return g.model(x)


def concat(*scales: float) -> onnx.ModelProto:
    g = Graph()
    parts = [g.qdq(g.add("Relu", "x"), scale) for scale in scales]
    joined = g.qdq(g.add("Concat", *parts, axis=1), 0.02)
    return g.model(g.add("Conv", joined, g.weight([32, 16 * len(scales), 1, 1])))


def two_readers(first: float, second: float) -> onnx.ModelProto:
    """One tensor, quantized for each of its two convolutions."""
    g = Graph()
    w = g.weight([16, 16, 1, 1])
    return g.model(
        g.add("Add", g.add("Conv", g.qdq("x", first), w), g.add("Conv", g.qdq("x", second), w))
    )


def unequal_pair(q_scale: float, dq_scale: float) -> onnx.ModelProto:
    g = Graph()
    q = g.add("QuantizeLinear", "x", g.const(FLOAT, [], q_scale), g.const(INT8, [], 0))
    return g.model(g.add("Relu", g.add("DequantizeLinear", q, g.const(FLOAT, [], dq_scale))))


def pool(*, both: bool) -> onnx.ModelProto:
    g = Graph()
    out = g.add("AveragePool", g.qdq("x"), kernel_shape=[2, 2])
    return g.model(g.add("Conv", g.qdq(out) if both else out, g.weight([16, 16, 1, 1])))


def float_weight(*, act: bool, weight: bool, dtype: int = INT8) -> onnx.ModelProto:
    g = Graph()
    w = g.weight([16, 16, 3, 3], dtype=dtype) if weight else g.const(FLOAT, [16, 16, 3, 3], 0.1)
    return g.model(g.add("Conv", g.qdq("x") if act else "x", w, pads=[1] * 4))


def between(op: str) -> onnx.ModelProto:
    """DQ -> ``op`` -> Conv."""
    g = Graph()
    return g.model(g.add("Conv", g.add(op, g.qdq("x")), g.weight([16, 16, 1, 1])))


def two_layers(first: int, second: int) -> onnx.ModelProto:
    """Two convolutions whose weights have the given float types, joined by Cast."""
    g = Graph(dtype=first)
    y = g.add("Conv", "x", g.const(first, [16, 16, 1, 1], 0.1))
    y = g.add("Cast", y, to=second) if first != second else y
    return g.model(g.add("Conv", y, g.const(second, [16, 16, 1, 1], 0.1)), dtype=second)


def two_grids(act: int, weight: int, second: int) -> onnx.ModelProto:
    """A quantized convolution, then one with both operands on another grid."""
    g = Graph()
    y = g.add("Conv", g.qdq("x", dtype=act), g.weight([16, 16, 1, 1], dtype=weight))
    return g.model(g.add("Conv", g.qdq(y, dtype=second), g.weight([16, 16, 1, 1], dtype=second)))


def attention(*, product: bool = False, softmax: bool = False) -> onnx.ModelProto:
    g = Graph((2, 4, 16, 16))
    keys = g.qdq("x") if product else "x"
    scores = g.add("MatMul", keys, keys)
    return g.model(g.add("Softmax", g.qdq(scores) if softmax else scores))


def weighted_if() -> onnx.ModelProto:
    """A model with a branch that has a body of its own."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["b"])],
        "body",
        [],
        [helper.make_tensor_value_info("b", FLOAT, None)],
    )
    g = Graph()
    condition = g.input("c", TensorProto.BOOL)
    return g.model(g.add("If", condition, then_branch=body, else_branch=body))
