"""Repairs that change how a number is stored leave every number as it was, and RTX builds it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import repair_graphs as graphs
import trt_rules_graphs as rule_graphs
from onnx import TensorProto
from repair_graphs import UINT8, Foreign, left, operators, outputs, plan_of, repaired
from trt_rules_graphs import INT8


def microsoft_pair() -> onnx.ModelProto:
    g = Foreign()
    x = g.pair("x", dtype=INT8, domain="com.microsoft")
    return g.model(g.conv(x, g.weights(32, 16, 3, 3)))


def unsigned_weight() -> onnx.ModelProto:
    g = Foreign()
    return g.model(
        g.conv(g.pair("x", dtype=INT8), g.weights(32, 16, 3, 3, dtype=np.uint8, zero=128))
    )


EXACT = {
    "R02 com.microsoft": (microsoft_pair(), "R02", "T016"),
    "R04 missing axis that fits": (rule_graphs.conv(axis=None, cout=16), "R04", "T008"),
    "R05 bias per channel": (graphs.integer_bias(), "R05", "T015"),
    "R05 bias per tensor": (graphs.integer_bias(per_channel=False), "R05", "T015"),
    "R06 float weight": (graphs.float_weight(), "R06", "T010"),
    "R06 float weight, UINT8 around 128": (graphs.float_weight(UINT8, 128), "R06", "T004"),
    "R07 UINT8 weight around 128": (unsigned_weight(), "R07", "T004"),
    "R08 a pair per consumer": (graphs.per_consumer(), "R08", "T023"),
    "R12 UINT8 around 128": (graphs.activation(0.05, 128), "R12", "T004"),
}


@pytest.mark.parametrize(("model", "id_", "rule"), EXACT.values(), ids=EXACT.keys())
def test_the_numbers_stay_and_the_finding_goes(model: onnx.ModelProto, id_: str, rule: str) -> None:
    result, applied = repaired(model, id_)
    assert all(change.exact for change in applied if change.repair == id_)
    np.testing.assert_allclose(outputs(result), outputs(model), rtol=1e-5, atol=1e-6)
    errors = left(result, rule, "T003", "T015")
    assert errors == []
    assert plan_of(result) is not None


def test_an_integer_bias_is_its_product_with_the_scale() -> None:
    model = graphs.integer_bias()
    (dequantize,) = [n for n in model.graph.node if n.output[0] == bias_of(model)]
    integers, scale = (graphs.constant(model, name) for name in dequantize.input)
    result, _ = repaired(model)
    np.testing.assert_array_equal(
        graphs.constant(result, bias_of(result)), integers.astype(np.float32) * scale
    )


def bias_of(model: onnx.ModelProto) -> str:
    (conv,) = [node for node in model.graph.node if node.op_type == "Conv"]
    return str(conv.input[2])


def test_float_weights_become_integers_and_the_file_shrinks() -> None:
    g = Foreign(shape=(1, 128, 8, 8))
    names = g.array(np.full(128, 0.01, np.float32)), g.const(INT8, [128], 0)
    integers = g.add("QuantizeLinear", g.floats(128, 128, 3, 3), *names, axis=0)
    w = g.add("DequantizeLinear", integers, *names, axis=0)
    model = g.model(g.conv(g.pair("x", dtype=INT8), w))
    result, _ = repaired(model)
    types = [t.data_type for t in result.graph.initializer if list(t.dims) == [128, 128, 3, 3]]
    assert types == [INT8]
    assert len(result.SerializeToString()) < 0.3 * len(model.SerializeToString())


def test_equal_pairs_become_one_and_unequal_ones_stay() -> None:
    result, _ = repaired(graphs.per_consumer(), "R08")
    assert operators(result).count("QuantizeLinear") == 1
    g = Foreign()
    first = g.conv(g.pair("x", 0.02, dtype=INT8), g.weights(16, 16, 3, 3))
    second = g.conv(g.pair("x", 0.03, dtype=INT8), g.weights(16, 16, 3, 3))
    result, applied = repaired(g.model(g.add("Add", first, second)))
    assert operators(result).count("QuantizeLinear") == 2
    assert applied == []


@pytest.mark.parametrize("stated", [None, 1], ids=["no axis", "the input channels' axis"])
def test_scales_that_fit_no_axis_but_the_output_channels_get_that_axis(stated: int | None) -> None:
    model = graphs.wrong_axis(stated=stated)
    assert left(model, "T008")
    assert plan_of(model) is None
    result, (change,) = repaired(model, "R04")
    assert "to axis=0" in change.what
    assert not change.exact
    assert left(result, "T008") == []
    assert plan_of(result) is not None
    assert np.isfinite(outputs(result)).all()


def test_a_newer_opset_and_ir_are_pinned_where_no_operator_changed() -> None:
    model = rule_graphs.conv(opset=26, ir=14)
    result, applied = repaired(model, "R01")
    assert [(o.domain, o.version) for o in result.opset_import] == [("", 25)] or [
        (o.domain, o.version) for o in result.opset_import
    ] == [("", 21)]
    assert result.ir_version <= 13
    assert [change.what.split()[0] for change in applied] == ["opset", "IR"]
    assert left(result, "T001", "T033") == []
    assert plan_of(result) is not None


def test_an_old_opset_is_raised_to_what_16_bit_scales_need() -> None:
    half = TensorProto.FLOAT16
    g = rule_graphs.Graph(dtype=half)
    names = g.const(half, [], 0.02), g.const(INT8, [], 0)
    y = g.add("DequantizeLinear", g.add("QuantizeLinear", "x", *names), *names)
    model = g.model(g.add("Relu", y), opset=18, dtype=half)
    result, (change,) = repaired(model, "R01")
    assert change.what == "opset 18 to 19"
    assert left(result, "T002") == []
    assert plan_of(result) is not None


def test_opset_8_is_raised() -> None:
    g = rule_graphs.Graph()
    result, _ = repaired(g.model(g.add("Relu", "x"), opset=8), "R01")
    assert left(result, "T001") == []
    assert plan_of(result) is not None


def test_a_scale_shared_by_name_with_a_float_reader_keeps_its_value_there() -> None:
    g = Foreign()
    scale, zero = g.const(TensorProto.FLOAT, [], 0.05), g.const(UINT8, [], 10)
    y = g.add("DequantizeLinear", g.add("QuantizeLinear", "x", scale, zero), scale, zero)
    result, _ = repaired(g.model(g.add("Mul", g.conv(y, g.weights(8, 16, 3, 3)), scale)), "R12")
    (mul,) = [node for node in result.graph.node if node.op_type == "Mul"]
    assert graphs.constant(result, mul.input[1]) == np.float32(0.05)
