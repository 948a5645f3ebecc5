"""Repairs that change a grid keep its range, put back the ReLU it was, and stay near."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import repair_graphs as graphs
from repair_graphs import (
    UINT8,
    Foreign,
    constant,
    distance,
    left,
    operators,
    plan_of,
    quantizer_of,
    repaired,
)
from trt_rules_graphs import INT8


def test_the_new_scale_reaches_the_farther_end_of_the_old_range() -> None:
    result, (change,) = repaired(graphs.activation(0.02, 100), "R12")
    node = quantizer_of(result, "y")
    assert constant(result, node.input[1]) == pytest.approx(155 * 0.02 / 127, rel=1e-6)
    assert constant(result, node.input[2]) == np.int8(0)
    assert constant(result, node.input[2]).dtype == np.int8
    assert not change.exact
    assert "UINT8, zero-point 100 to INT8, zero-point 0" in change.what


@pytest.mark.parametrize(
    ("zero", "dtype"), [(0, UINT8), (-128, INT8)], ids=["UINT8 from 0", "INT8 from -128"]
)
def test_a_grid_that_was_the_relu_gets_its_relu_back(zero: int, dtype: int) -> None:
    model = graphs.activation(0.02, zero, dtype)
    result, (change,) = repaired(model, "R12")
    assert operators(result).count("Relu") == 1
    assert "the ReLU that it implied put back" in change.what
    assert distance(model, result) < 0.02
    assert left(result, "T003", "T004") == []
    assert plan_of(result) is not None


def test_without_that_relu_the_outputs_would_be_far_off() -> None:
    model = graphs.activation(0.02, 0)
    result, _ = repaired(model)
    (relu,) = [node for node in result.graph.node if node.op_type == "Relu"]
    relu.op_type = "Identity"
    assert distance(model, result) > 0.3


def test_a_relu_that_is_there_is_not_doubled() -> None:
    result, _ = repaired(graphs.activation(0.02, 0, relu=True), "R12")
    assert operators(result).count("Relu") == 1


@pytest.mark.parametrize("op", ["MaxPool", "Reshape", "AveragePool", "Concat"])
def test_what_cannot_be_negative_needs_no_relu(op: str) -> None:
    g = Foreign()
    y = g.add("Relu", "x")
    if op == "Reshape":
        y = g.add(op, y, g.array(np.array([2, 16, 8, 8], np.int64)))
    elif op == "Concat":
        y = g.add(op, y, y, axis=1)
    else:
        y = g.add(op, y, kernel_shape=[2, 2])
    y = g.pair(y, 0.02)
    result, _ = repaired(
        g.model(g.conv(y, g.weights(8, 32 if op == "Concat" else 16, 3, 3))), "R12"
    )
    assert operators(result).count("Relu") == 1


def test_a_skewed_grid_keeps_its_negative_values() -> None:
    model = graphs.activation(0.1, 100)
    result, _ = repaired(model)
    assert "Relu" not in operators(result)
    assert distance(model, result) < 0.03


def test_a_pool_between_q_and_dq_moves_with_them() -> None:
    g = Foreign()
    names = g.const(graphs.FLOAT, [], 0.02), g.const(UINT8, [], 90)
    q = g.add("MaxPool", g.add("QuantizeLinear", "x", *names), kernel_shape=[2, 2])
    model = g.model(g.conv(g.add("DequantizeLinear", q, *names), g.weights(8, 16, 3, 3)))
    result, _ = repaired(model, "R12")
    assert distance(model, result) < 0.03
    assert left(result, "T003", "T004") == []


def test_a_pair_whose_integers_someone_else_reads_is_left_whole() -> None:
    g = Foreign()
    names = g.const(graphs.FLOAT, [], 0.02), g.const(UINT8, [], 90)
    q = g.add("QuantizeLinear", "x", *names)
    y = g.conv(g.add("DequantizeLinear", q, *names), g.weights(16, 16, 3, 3))
    model = g.model(g.add("Add", y, g.add("Cast", q, to=graphs.FLOAT)))
    result, applied = repaired(model)
    assert applied == []
    assert result.SerializeToString() == model.SerializeToString()


def test_a_pair_without_zero_point_is_uint8_from_zero() -> None:
    g = Foreign()
    scale = g.const(graphs.FLOAT, [], 0.02)
    y = g.add("DequantizeLinear", g.add("QuantizeLinear", "x", scale), scale)
    model = g.model(g.conv(y, g.weights(8, 16, 3, 3)))
    result, _ = repaired(model, "R12")
    assert operators(result).count("Relu") == 1
    assert distance(model, result) < 0.02
    assert left(result, "T004") == []


@pytest.mark.parametrize("axis", [0, None], ids=["per channel", "per tensor"])
def test_asymmetric_weights_are_quantized_anew_per_output_channel(axis: int | None) -> None:
    g = Foreign()
    w = g.weights(32, 16, 3, 3, dtype=np.uint8, zero=140, axis=axis)
    model = g.model(g.conv(g.pair("x", dtype=INT8), w))
    result, (change,) = repaired(model, "R07")
    assert not change.exact
    (dequantize,) = [
        n
        for n in result.graph.node
        if n.op_type == "DequantizeLinear" and n.output[0] == conv_of(result).input[1]
    ]
    assert constant(result, dequantize.input[1]).shape == (32,)
    assert distance(model, result) < 0.01
    assert plan_of(result) is not None


def conv_of(model: onnx.ModelProto) -> onnx.NodeProto:
    (node,) = [node for node in model.graph.node if node.op_type == "Conv"]
    return node


def test_asymmetric_float_weights_are_quantized_from_their_float_values() -> None:
    model = graphs.float_weight(UINT8, 120)
    result, applied = repaired(model, "R06")
    assert [change.exact for change in applied if change.repair == "R06"] == [False]
    assert distance(model, result) < 0.03


@pytest.mark.parametrize("dtype", ["UINT16", "INT16"])
def test_sixteen_bits_are_left_with_their_finding(dtype: str) -> None:
    kind = getattr(onnx.TensorProto, dtype)
    model = graphs.activation(0.001, 0, kind)
    result, applied = repaired(model)
    assert applied == []
    assert left(result, "T004")
