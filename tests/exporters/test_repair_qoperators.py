"""ONNX Runtime's QOperator format becomes Q/DQ that TensorRT reads, within one rounding."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import repair_graphs as graphs
from repair_graphs import constant, distance, left, operators, plan_of, repaired

from fdda_deploy.exporters.repair.qoperators import LAYOUTS


@pytest.mark.parametrize("channels", [True, False], ids=["per channel", "per tensor"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_quantized_convolution_becomes_a_float_one_between_pairs(
    channels: bool, bias: bool
) -> None:
    model = graphs.qlinear_conv(channels=channels, bias=bias)
    result, applied = repaired(model, "R03", "R12")
    assert "Conv" in operators(result)
    assert left(result, "T003", "T004", "T015", "T016") == []
    assert distance(model, result) < 0.03
    assert plan_of(result) is not None
    assert not next(change for change in applied if change.repair == "R03").exact


def test_its_bias_is_scaled_by_input_and_weight() -> None:
    model = graphs.qlinear_conv()
    (old,) = [node for node in model.graph.node if node.op_type == "QLinearConv"]
    x_scale, w_scale, bias = (constant(model, old.input[index]) for index in (1, 4, 8))
    result, _ = repaired(model)
    (new,) = [node for node in result.graph.node if node.op_type == "Conv"]
    np.testing.assert_allclose(constant(result, new.input[2]), bias * x_scale * w_scale, rtol=1e-6)
    assert new.name == old.name


OF_MICROSOFT = [op for domain, op in LAYOUTS if domain] + ["QLinearConcat"]
NO_KERNEL_HERE = {"QLinearSoftmax"}
"""Whose schema asks for an attribute of its own, so the plain node of this test does not load."""


@pytest.mark.parametrize("op", sorted(set(OF_MICROSOFT) - NO_KERNEL_HERE))
def test_each_operator_of_onnx_runtime_has_its_float_twin(op: str) -> None:
    model = graphs.microsoft(op)
    result, _ = repaired(model, "R03")
    assert left(result, "T003", "T004", "T015", "T016") == []
    assert distance(model, result) < 0.1  # one integer step here and there
    assert [entry.domain for entry in result.opset_import] == [""]


def test_channels_last_is_left_with_its_finding() -> None:
    model = graphs.microsoft("QLinearAveragePool")
    node = next(n for n in model.graph.node if n.op_type == "QLinearAveragePool")
    node.attribute.append(onnx.helper.make_attribute("channels_last", 1))
    result, _ = repaired(model)
    assert "QLinearAveragePool" in operators(result)
    assert left(result, "T016")


def test_a_computed_scale_is_left_with_its_finding() -> None:
    model = graphs.qlinear_conv()
    scale = g_input(model, "x_scale")
    node = next(n for n in model.graph.node if n.op_type == "QLinearConv")
    node.input[1] = scale
    result, _ = repaired(model)
    assert "QLinearConv" in operators(result)


def g_input(model: onnx.ModelProto, name: str) -> str:
    model.graph.input.append(onnx.helper.make_tensor_value_info(name, graphs.FLOAT, []))
    return name
