"""Opset 23: a DequantizeLinear may make FP16 of FP32 scales; checks and repairs know that."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from repair_graphs import left, plan_of, repaired

from fdda_deploy.errors import ExportError
from fdda_deploy.exporters.repair.grids import float_type
from fdda_deploy.pipeline.repair_proof import EXACT_TOLERANCE
from fdda_deploy.pipeline.repairing import fix

HALF = TensorProto.FLOAT16


def half_network(weight: str = "uint8") -> onnx.ModelProto:
    """FP16 in and out, FP32 scales, all DQ stating FP16; UINT8 around 128, and an INT32 bias."""
    rng = np.random.default_rng(0)
    held = {
        "scale": np.float32(0.05),
        "zero": np.uint8(128),
        "w_int": rng.integers(1, 256, (16, 16, 3, 3)).astype(np.uint8),
        "w_scale": np.full(16, 0.01, np.float32),
        "w_zero": np.full(16, 128, np.uint8),
        "b_int": rng.integers(-999, 999, 16).astype(np.int32),
        "b_scale": np.full(16, 5e-4, np.float32),
    }

    def dequantize(inputs: list[str], output: str, **attributes: int) -> onnx.NodeProto:
        return helper.make_node(
            "DequantizeLinear", inputs, [output], output, output_dtype=HALF, **attributes
        )

    nodes = [
        helper.make_node("Cast", ["x"], ["x_float"], "cast", to=TensorProto.FLOAT),
        helper.make_node("QuantizeLinear", ["x_float", "scale", "zero"], ["q"], "q"),
        dequantize(["q", "scale", "zero"], "d"),
        dequantize(["w_int", "w_scale", "w_zero"], "w", axis=0),
        dequantize(["b_int", "b_scale"], "b", axis=0),
        helper.make_node("Conv", ["d", "w", "b"], ["y"], "conv"),
    ]
    if weight == "float":
        held["w_float"] = rng.standard_normal((16, 16, 3, 3)).astype(np.float16)
        nodes[3].input[0] = "w_q"
        operands = ["w_float", "w_scale", "w_zero"]
        nodes.insert(3, helper.make_node("QuantizeLinear", operands, ["w_q"], "w_q", axis=0))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", HALF, [2, 16, 8, 8])],
        [helper.make_tensor_value_info("y", HALF, [2, 16, 6, 6])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


@pytest.mark.parametrize("weight", ["uint8", "float"])
def test_repairs_keep_the_stated_type(weight: str) -> None:
    model = half_network(weight)
    result, _ = repaired(model, "R05", "R06" if weight == "float" else "R07", "R12")
    stated = [
        helper.get_attribute_value(entry)
        for node in result.graph.node
        if node.op_type == "DequantizeLinear"
        for entry in node.attribute
        if entry.name == "output_dtype"
    ]
    assert stated == [HALF, HALF]
    (bias,) = [t for t in result.graph.initializer if t.name.startswith("b_int")]
    assert bias.data_type == HALF
    assert plan_of(result) is not None


def test_the_operands_are_seen_as_of_one_type() -> None:
    assert left(half_network(), "T017") == []


def test_the_repaired_network_computes_the_same() -> None:
    proof = fix(half_network(), target="trt").proof
    assert proof is not None
    assert proof.outputs["y"].relative_l2 <= EXACT_TOLERANCE


def test_a_stated_type_that_is_none_is_refused() -> None:
    node = helper.make_node("DequantizeLinear", ["q", "s"], ["d"], "deq", output_dtype=65)
    with pytest.raises(ExportError, match=r"node 'deq': output_dtype 65 is no element type"):
        float_type(node, np.float32([1.0]))
