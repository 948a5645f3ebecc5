"""What keeps FP32 in an FP16 graph, and why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from half_graphs import distance, graph, operand_types, ops, run, types_of
from onnx import TensorProto, helper

from fdda_deploy.errors import ExportError
from fdda_deploy.exporters.half import to_half
from fdda_deploy.exporters.half_table import FP32_OPS, MAX_TERMS, SUMS, signature, survives

X = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
UNARY = "g (float[2,8] x) => (float[2,8] y) { y = %s(x) }"


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Exp", "Softplus", "CumSum"])
def test_operators_of_the_table_read_fp32(op):
    text = UNARY % op
    if op == "CumSum":
        text = "g (float[2,8] x) => (float[2,8] y) <int64 a = {1}> { y = CumSum(x, a) }"
    half = to_half(graph(text))
    assert operand_types(half.proto, op)[0] == "FLOAT"
    assert half.islands == (("n0", FP32_OPS[op]),)


@pytest.mark.parametrize("op", sorted({*FP32_OPS, *SUMS}))
def test_every_row_names_an_operator_that_onnx_would_give_fp16(op):
    schema = onnx.defs.get_schema(op, 23)
    node = helper.make_node(op, ["x"], ["y"])
    assert signature(node, 23).inputs == (True,)
    assert schema.domain == ""


def test_a_layer_norm_between_halves_is_an_island():
    text = """g (float[2,8] x) => (float[2,8] y) {
        a = Relu(x)
        b = LayerNormalization<axis = -1>(a, w)
        y = Relu(b)
    }"""
    model = graph(text, w=np.ones(8, np.float32))
    half = to_half(model).proto
    assert ops(half) == ["Cast", "Relu", "Cast", "LayerNormalization", "Cast", "Relu", "Cast"]
    assert distance(model, x=X) < 1e-3


@pytest.mark.parametrize(("pixels", "kind"), [(45, "FLOAT16"), (46, "FLOAT")])
def test_a_mean_over_more_elements_than_fp16_counts_is_an_island(pixels, kind):
    text = (
        f"g (float[N,3,{pixels},{pixels}] x) => (float[N,3,1,1] y) {{ y = GlobalAveragePool(x) }}"
    )
    half = to_half(graph(text)).proto
    assert operand_types(half, "GlobalAveragePool") == [kind]
    assert (pixels**2 > MAX_TERMS) == (kind == "FLOAT")


def test_a_mean_over_an_unknown_number_of_elements_is_an_island():
    text = "g (float[N,3,H,W] x) => (float[N,3,1,1] y) { y = ReduceMean(x, axes) }"
    half = to_half(graph(text, axes=np.int64([2, 3])))
    assert half.islands[0][1] == "It adds inf elements; FP16 sums stop growing at 2048."


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        ([1.0, 65504.0], True),
        ([1.0, 70000.0], False),
        ([1.0, -np.inf], True),
        ([1e-5], False),
        ([1.0, 1e-9], True),
        ([0.0], True),
    ],
)
def test_numbers_survive_or_not(values, fits):
    assert survives(np.float32(values)) is fits


@pytest.mark.parametrize("value", [1e-6, 1e5])
def test_a_constant_that_fp16_cannot_hold_keeps_its_node_in_fp32(value):
    model = graph("g (float[2,8] x) => (float[2,8] y) { y = Add(x, c) }", c=np.float32([value]))
    half = to_half(model)
    assert operand_types(half.proto, "Add") == ["FLOAT", "FLOAT"]
    assert "FP16 cannot hold c" in half.islands[0][1]
    assert distance(model, x=X) == 0


def test_a_weight_that_overflows_keeps_its_layer_in_fp32_and_others_in_fp16():
    text = "g (float[2,8] x) => (float[2,8] y) { a = MatMul(x, w) b = MatMul(a, v) y = Relu(b) }"
    eye = np.eye(8, dtype=np.float32)
    model = graph(text, w=eye * 1e5, v=eye * np.float32(2**-14))
    half = to_half(model)
    assert [name for name, _ in half.islands] == ["n0"]


def test_sizes_and_positions_stay_exact():
    text = """g (float[2,8] x, int64[1] n) => (float[2,8] y, int64[1] m) {
        f = Cast<to = 1>(n)
        h = Add(f, one)
        m = Cast<to = 7>(h)
        y = Relu(x)
    }"""
    model = graph(text, one=np.float32([1]))
    half = to_half(model)
    assert operand_types(half.proto, "Add") == ["FLOAT", "FLOAT"]
    assert half.islands == ()
    assert run(half.proto, x=X, n=np.int64([4097]))[1].tolist() == [4098]


def test_a_size_that_meets_an_activation_is_cast_there():
    text = """g (float[2,8] x, int64[1] n) => (float[2,8] y) {
        f = Cast<to = 1>(n)
        y = Div(x, f)
    }"""
    half = to_half(graph(text)).proto
    assert operand_types(half, "Div") == ["FLOAT16", "FLOAT16"]


def test_an_output_that_other_nodes_read_has_both_types():
    text = "g (float[2,8] x) => (float[2,8] a, float[2,8] y) { a = Relu(x) y = Sigmoid(a) }"
    model = graph(text)
    half = to_half(model).proto
    assert ops(half).count("Cast") == 3
    assert types_of(half)["a"] == TensorProto.FLOAT
    assert distance(model, x=X) < 1e-3


def test_inputs_that_onnx_wants_in_fp32_get_it():
    text = """g (float[1,1,2,8] x) => (float[1,1,4,16] y) {
        y = Resize<mode = "nearest">(x, , s)
    }"""
    model = graph(text, s=np.float32([1, 1, 2, 2]))
    half = to_half(model).proto
    assert operand_types(half, "Resize") == ["FLOAT16", "FLOAT"]
    assert distance(model, x=X.reshape(1, 1, 2, 8)) < 1e-3


def test_a_node_with_graphs_inside_finds_what_it_reads():
    text = """g (float[2,8] x, bool c) => (float[2,8] y) {
        a = Relu(x)
        y = If (c) <
            then_branch = t () => (float[2,8] p) { p = Sigmoid(a) },
            else_branch = e () => (float[2,8] q) { q = Neg(a) }
        >
    }"""
    model = graph(text)
    half = to_half(model)
    assert half.islands[0][1].startswith("It holds graphs of its own")
    wanted = run(model, x=X, c=np.asarray(True))[0]
    np.testing.assert_allclose(run(half.proto, x=X, c=np.asarray(True))[0], wanted, rtol=2e-3)


def test_tensors_of_unknown_type_are_refused_with_a_way_out():
    model = graph(UNARY % "Relu")
    model.graph.node[0].domain = "somewhere.else"
    model.opset_import.append(helper.make_opsetid("somewhere.else", 1))
    model.graph.node.append(helper.make_node("Odd", ["y"], ["z"], domain="somewhere.else"))
    with pytest.raises(ExportError, match=r"z: its type cannot be told .*--float-type fp32"):
        to_half(model)
