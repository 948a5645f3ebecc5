"""Q, DQ and scales in an FP16 graph: each pair holds one number, each reader gets its type."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from half_graphs import graph, operand_types, ops, run
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fdda_deploy.errors import ExportError
from fdda_deploy.exporters.half import to_half
from fdda_deploy.exporters.trt_rules import check

X = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
PAIR = """g (float[2,8] x) => (float[2,8] y) {
    a = Relu(x)
    q = QuantizeLinear(a, s, z)
    d = DequantizeLinear(q, s, z)
    w = DequantizeLinear<axis = 1>(wq, ws, wz)
    m = MatMul(d, w)
    y = %s
}"""


def pair(scale: float, weight_scales: list[float], tail: str = "Relu(m)") -> onnx.ModelProto:
    integers = np.random.default_rng(1).integers(-128, 128, (8, 8), dtype=np.int8)
    return graph(
        PAIR % tail,
        s=np.float32(scale),
        z=np.int8(0),
        wq=integers,
        ws=np.float32(weight_scales),
        wz=np.zeros(8, np.int8),
    )


def held(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def errors(model: onnx.ModelProto) -> list[str]:
    return [finding.message for finding in check(model) if finding.severity == "error"]


def test_a_pair_between_halves_has_one_half_scale():
    half = to_half(pair(0.03, [0.01] * 8)).proto
    assert operand_types(half, "QuantizeLinear") == ["FLOAT16", "FLOAT16", "INT8"]
    assert operand_types(half, "MatMul") == ["FLOAT16", "FLOAT16"]
    assert sorted(held(half)) == ["s", "wq", "ws", "wz", "z"]
    assert errors(half) == []


def test_a_pair_on_the_network_input_reads_fp32_and_gives_fp16_of_one_number():
    text = PAIR.replace("a = Relu(x)", "").replace("QuantizeLinear(a", "QuantizeLinear(x")
    model = graph(
        text % "Relu(m)",
        s=np.float32(0.03),
        z=np.int8(0),
        wq=np.ones((8, 8), np.int8),
        ws=np.full(8, 0.01, np.float32),
        wz=np.zeros(8, np.int8),
    )
    half = to_half(model).proto
    assert operand_types(half, "QuantizeLinear") == ["FLOAT", "FLOAT", "INT8"]
    constants = held(half)
    assert constants["s"].dtype == np.float32
    assert constants["s_fp16"].dtype == np.float16
    assert float(constants["s"]) == float(constants["s_fp16"]) == float(np.float16(0.03))
    assert errors(half) == []
    assert [f.rule for f in check(half) if f.rule == "T023"] == []


def test_readers_of_two_types_get_a_dq_each_and_no_cast_between():
    half = to_half(pair(0.03, [0.01] * 8, "Softmax(d)")).proto
    dequantizers = [n for n in half.graph.node if n.op_type == "DequantizeLinear"]
    assert [n.output[0] for n in dequantizers if n.input[0] == "q"] == ["d", "d_fp32"]
    softmax = next(n for n in half.graph.node if n.op_type == "Softmax")
    assert softmax.input[0] == "d_fp32"
    assert errors(half) == []


@pytest.mark.parametrize("scale", [2.0**-16, 600.0])
def test_an_activation_scale_that_fp16_cannot_hold_keeps_its_layer_in_fp32(scale):
    half = to_half(pair(scale, [0.01] * 8))
    assert [name for name, _ in half.islands] == ["n4"]
    assert operand_types(half.proto, "MatMul") == ["FLOAT", "FLOAT"]
    assert operand_types(half.proto, "QuantizeLinear")[:2] == ["FLOAT", "FLOAT"]
    assert errors(half.proto) == []


def test_small_weight_scales_are_raised_and_no_weight_moves_far():
    scales = [2.0**-14, 2.0**-15, 2.0**-20, 0.01, 0.01, 0.01, 0.01, 1e-30]
    model = pair(0.03, scales)
    half = to_half(model)
    assert half.scales_raised == 3
    assert half.islands == ()
    before, after = held(model), held(half.proto)
    assert float(after["ws"].min()) == 2.0**-14
    moved = before["wq"] * before["ws"] - after["wq"] * after["ws"].astype(np.float32)
    assert np.abs(moved[:, [0, 1, 2, 7]]).max() <= 2.0**-15
    np.testing.assert_array_equal(before["wq"][:, [0, 3, 4, 5, 6]], after["wq"][:, [0, 3, 4, 5, 6]])
    assert errors(half.proto) == []


def test_scales_that_others_read_too_are_left_and_their_layer_stays_in_fp32():
    model = pair(0.03, [2.0**-16] * 8)
    model.graph.node.append(helper.make_node("Relu", ["ws"], ["other"], "reader"))
    model.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [8]))
    half = to_half(model)
    assert half.scales_raised == 0
    assert ("n4" in dict(half.islands)) is True


def test_blocks_of_int4_are_raised_block_by_block():
    node = helper.make_node("DequantizeLinear", ["wq", "ws"], ["w"], "dq", axis=0, block_size=2)
    product = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    integers = onnx.helper.make_tensor("wq", TensorProto.INT4, [4, 2], [7, -8, 3, 2, 1, 0, -1, 5])
    scales = np.float32([[2.0**-16, 0.1], [0.1, 2.0**-15]])
    value = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            [node, product],
            "g",
            [value("x", TensorProto.FLOAT, [2, 4])],
            [value("y", TensorProto.FLOAT, [2, 2])],
            [integers, numpy_helper.from_array(scales, "ws")],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    half = to_half(model)
    assert half.scales_raised == 2
    found = held(half.proto)["wq"].astype(int).tolist()
    assert found == [[2, -8], [1, 2], [1, 0], [-1, 2]]


def test_a_scale_that_is_computed_is_refused():
    model = pair(0.03, [0.01] * 8)
    model.graph.node.insert(0, helper.make_node("Identity", ["s"], ["moving"], "move"))
    model.graph.node[2].input[1] = "moving"
    with pytest.raises(ExportError, match=r"moving: a scale that is not a constant.*T005"):
        to_half(model)


@given(st.floats(1e-4, 100.0), st.floats(1e-5, 1.0))
def test_any_pair_gives_what_the_float_graph_gives(scale, weight_scale):
    scale, weight_scale = float(np.float32(scale)), float(np.float32(weight_scale))
    model = pair(scale, [weight_scale] * 8)
    x = (X * 100 * scale).astype(np.float32)
    wanted = run(model, x=x)[0]
    half = to_half(model)
    if half.scales_raised or np.abs(wanted).max() > 6e4:
        return
    got = run(half.proto, x=x)[0]
    bound = 8 * (128 * scale) * (128 * weight_scale)
    assert np.abs(got - wanted).max() <= 0.02 * bound
    assert ops(half.proto).count("QuantizeLinear") == 1
