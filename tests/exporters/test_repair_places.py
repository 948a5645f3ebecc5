"""Repairs of where pairs stand: fused additions, depthwise filters on RTX, pairs nobody needs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import repair_graphs as graphs
from repair_graphs import Foreign, constant, distance, left, operators, plan_of, repaired
from trt_rules_graphs import INT8


def inputs_of(model: onnx.ModelProto, output: str) -> list[str]:
    (node,) = [node for node in model.graph.node if output in node.output]
    return list(node.input)


def test_the_product_is_added_in_float_and_the_skip_stays_integer() -> None:
    model = graphs.residual()
    assert left(model, "T020")
    result, (change,) = repaired(model, "R09")
    assert inputs_of(result, "sum") == ["start", "main"]
    assert change.tensor == "main"
    assert left(result, "T020") == []
    assert distance(model, result) < 0.05
    assert plan_of(result) is not None


def test_of_two_products_the_one_that_others_read_keeps_its_pair() -> None:
    g = Foreign()
    skip = g.conv(g.pair("x", dtype=INT8), g.weights(16, 16, 3, 3), out="skip")
    start = g.pair(skip, 0.05, dtype=INT8, out="start")
    main = g.conv(start, g.weights(16, 16, 3, 3), out="main")
    model = g.model(g.add("Add", start, g.pair(main, dtype=INT8), out="sum"))
    result, _ = repaired(model, "R09")
    assert inputs_of(result, "sum") == ["start", "main"]


def test_a_projection_shortcut_keeps_one_pair() -> None:
    result, _ = repaired(graphs.residual(projection=True), "R09")
    made = [n.output[0] for n in result.graph.node if n.op_type == "DequantizeLinear"]
    assert sum(name in made for name in inputs_of(result, "sum")) == 1
    assert left(result, "T020") == []


def test_a_product_whose_relu_was_in_the_grid_is_not_added_without_it() -> None:
    g = Foreign()
    start = g.pair("x", 0.02, dtype=INT8)
    main = g.pair(g.conv(start, g.weights(16, 16, 3, 3)), 0.02, 0)
    model = g.model(g.add("Add", start, main))
    result, applied = repaired(model)
    assert "R09" not in {change.repair for change in applied}
    assert distance(model, result) < 0.02


@pytest.mark.parametrize(("target", "runs"), [("rtx", "float"), ("trt", "INT8")])
def test_depthwise_filters_run_in_float_on_rtx_only(target: str, runs: str) -> None:
    model = graphs.depthwise()
    result, applied = repaired(model, target=target)
    assert ("R10" in {change.repair for change in applied}) == (runs == "float")
    group = [n for n in result.graph.node if len(n.input) > 1 and n.op_type == "Conv"][-1]
    held = {tensor.name for tensor in result.graph.initializer}
    assert (group.input[1] in held) == (runs == "float")
    assert distance(model, result) < 0.05


@pytest.mark.parametrize(("scale", "function"), [(0.02, "Clip"), (6 / 255, "Clip"), (0.05, "Relu")])
def test_a_filter_that_now_reads_float_reads_it_behind_the_relu_that_was_dropped(
    scale: float, function: str
) -> None:
    result, _ = repaired(graphs.depthwise(scale), "R10", target="rtx")
    (node,) = [node for node in result.graph.node if node.op_type in {"Clip", "Relu"}]
    assert node.op_type == function
    assert node.input[0] == "y"
    if function == "Clip":
        assert [float(constant(result, name)) for name in node.input[1:]] == [0.0, 6.0]


def test_a_depthwise_plan_on_rtx_is_a_fraction_of_what_it_was() -> None:
    g = Foreign(shape=(1, 1024, 8, 8))
    model = g.model(g.conv(g.pair("x", dtype=INT8), g.weights(1024, 1, 3, 3), group=1024))
    result, _ = repaired(model, "R10", target="rtx")
    before, after = plan_of(model), plan_of(result)
    assert before is not None
    assert after is not None
    assert len(after) < 0.5 * len(before)
    assert left(result, "T025", target="rtx") == []


def test_a_quantized_output_becomes_float_under_its_own_name() -> None:
    g = Foreign()
    y = g.conv(g.pair("x", dtype=INT8), g.weights(8, 16, 3, 3), out="made")
    model = g.model(g.pair(y, 0.05, dtype=INT8, out="y"))
    result, _ = repaired(model, "R11")
    assert [value.name for value in result.graph.output] == ["y"]
    assert operators(result).count("QuantizeLinear") == 1
    assert left(result, "T021") == []
    assert distance(model, result) < 0.05
    assert plan_of(result) is not None


def test_an_output_that_only_repeats_the_input_stays_an_output() -> None:
    g = Foreign()
    result, _ = repaired(g.model(g.pair("x", 0.02, dtype=INT8, out="y")), "R11")
    assert operators(result) == ["Identity"]


def test_a_pair_in_front_of_a_float_operator_goes() -> None:
    g = Foreign()
    y = g.conv(g.pair("x", dtype=INT8), g.weights(8, 16, 3, 3))
    model = g.model(g.add("Sigmoid", g.pair(y, 0.05, dtype=INT8)))
    result, _ = repaired(model, "R11")
    assert operators(result).count("QuantizeLinear") == 1
    assert distance(model, result) < 0.05


def test_a_pair_that_one_int8_reader_needs_stays() -> None:
    g = Foreign()
    y = g.pair("x", 0.05, dtype=INT8)
    model = g.model(g.add("Add", g.conv(y, g.weights(16, 16, 3, 3)), g.add("Sigmoid", y)))
    _, applied = repaired(model)
    assert applied == []


def test_weights_of_a_grouped_layer_keep_their_values() -> None:
    model = graphs.depthwise()
    (dequantize,) = [n for n in model.graph.node if n.output[0] == conv_weight(model)]
    integers, scale, _ = (constant(model, name) for name in dequantize.input)
    result, _ = repaired(model, "R10", target="rtx")
    np.testing.assert_array_equal(
        constant(result, conv_weight(result)), integers * scale.reshape(-1, 1, 1, 1)
    )


def conv_weight(model: onnx.ModelProto) -> str:
    return str([node for node in model.graph.node if node.op_type == "Conv"][-1].input[1])
