"""What a plan's bytes say about its weights: INT4 and FP8 stay as small as they were stored."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fdda_deploy.engines.trt_api import load_api
from fdda_deploy.engines.trt_build import BuildOptions, build_plan
from fdda_deploy.exporters.half import to_half
from fdda_deploy.exporters.stored import stored

pytest.importorskip("tensorrt_rtx_libs", reason="the TensorRT-RTX wheels are not installed")
K = 1024
LAYERS = 3


def plan_bytes(model: onnx.ModelProto) -> int:
    built = build_plan(model.SerializeToString(), BuildOptions(), load_api("tensorrt_rtx"))
    return len(built.plan)


def products(storage: str | None, block: int | None = None) -> onnx.ModelProto:
    """Three square layers, weights in float (None) or stored behind a DQ."""
    random = np.random.default_rng(0)
    nodes, held, tensor = [], [], "x"
    for index in range(LAYERS):
        weight = f"w{index}"
        if storage is None:
            value = random.standard_normal((K, K)).astype(np.float32) / 32
            held.append(numpy_helper.from_array(value, weight))
        else:
            integers = random.integers(-7, 8, (K, K), dtype=np.int8)
            scale = np.full((K // block, K) if block else (K,), 0.01, np.float32)
            held += [stored(f"q{index}", integers, storage)]
            held += [numpy_helper.from_array(scale, f"s{index}")]
            layout = {"axis": 0, "block_size": block} if block else {"axis": 1}
            nodes.append(
                helper.make_node(
                    "DequantizeLinear", [f"q{index}", f"s{index}"], [weight], f"d{index}", **layout
                )
            )
        nodes.append(helper.make_node("MatMul", [tensor, weight], [f"m{index}"], f"p{index}"))
        nodes.append(helper.make_node("Relu", [f"m{index}"], [f"y{index}"], f"r{index}"))
        tensor = f"y{index}"
    value_info = helper.make_tensor_value_info
    return helper.make_model(
        helper.make_graph(
            nodes,
            "products",
            [value_info("x", TensorProto.FLOAT, ["n", K])],
            [value_info(tensor, TensorProto.FLOAT, ["n", K])],
            held,
        ),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )


@pytest.mark.parametrize(
    ("storage", "block", "most"),
    [("int4", 64, 0.20), ("int4", 128, 0.18), ("int8", None, 0.32), ("fp8", None, 0.32)],
)
def test_stored_weights_stay_small_in_the_plan(storage, block, most):
    # Besides the weights a plan holds kernels, so the share is above 4 or 8 of 32 bits.
    float_plan = plan_bytes(products(None))
    assert plan_bytes(to_half(products(storage, block)).proto) <= most * float_plan


def test_a_half_plan_is_half_as_large():
    float_model = products(None)
    assert plan_bytes(to_half(float_model).proto) <= 0.55 * plan_bytes(float_model)
