"""The source of generated kernels is shared out among the layers that the plan says it computes."""

from __future__ import annotations

import pytest
from engine_graphs import residual_w8a8
from hypothesis import given, settings
from hypothesis import strategies as st

from fdda_deploy.engines.build_options import BuildOptions
from fdda_deploy.engines.plan_bytes import LayerBytes, PlanBytes, attribute
from fdda_deploy.engines.plan_kernels import kernel_bytes, source_bytes
from fdda_deploy.engines.trt_api import load_api
from fdda_deploy.engines.trt_build import build_plan

WEIGHTS = {"conv1": "conv1.weight", "conv2": "conv2.weight", "logits": "logits.weight"}
GRAPH = residual_w8a8(channels=32)


@pytest.fixture(scope="module")
def plan() -> bytes:
    pytest.importorskip("tensorrt_rtx_bindings", reason="has wheels for Linux x86-64 only")
    return build_plan(GRAPH.SerializeToString(), BuildOptions(), load_api("tensorrt_rtx")).plan


def launch(kernel: str, layers: list[str]) -> bytes:
    """One line of a plan's list of launches, as TensorRT-RTX 1.7.1 writes it."""
    named = "\x1f".join(f"[ONNX Layer: {name}]" for name in layers)
    return (
        f"  function={{ name=__myl_Mul fqn=__myl_Mul_0x{kernel}_vec args={{ }} "
        f'layers="{named}" swap_ab=false }}\n'
    ).encode()


def source(kernel: str, size: int) -> bytes:
    head = f"\0__global__ void __myl_Mul_0x{kernel}_vec(".encode()
    return head + b"x" * (size - len(head) + 1) + b"\0"


A, B = 32 * "a", 32 * "b"


def test_all_of_a_real_plans_source_is_shared_out(plan: bytes) -> None:
    shares = kernel_bytes(plan, GRAPH.graph, WEIGHTS)
    assert sum(source_bytes(plan).values()) > 100_000
    assert sum(shares.values()) == pytest.approx(sum(source_bytes(plan).values()), abs=1)
    assert shares.keys() == {"conv1", "conv2"}


def test_quantized_layers_that_cost_more_than_they_save_are_told(plan: bytes) -> None:
    found = attribute(plan, GRAPH.SerializeToString())
    dear = [layer for layer in found.layers if layer.does_not_pay]
    assert [layer.node for layer in dear] == ["conv1", "conv2"]
    spent = sum((layer.num_bytes or 0) + layer.kernel_bytes for layer in dear)
    (warning,) = found.warnings()
    assert warning.startswith(f"2 layers take {spent:,} bytes with the kernels that were generated")
    assert f"and {4 * 32 * 9 * (3 + 32):,} in float32 (conv1, conv2)." in warning


def test_a_float_layer_is_not_said_to_cost_too_much() -> None:
    layer = LayerBytes("conv", "w", "float32", "as in ONNX", 100, 100, kernel_bytes=50)
    assert not layer.does_not_pay
    assert PlanBytes(1000, (layer,), 100, 1, 0).warnings() == ()


def test_a_kernel_is_shared_by_its_launches_and_a_launch_by_its_layers() -> None:
    plan = source(A, 9000) + launch(A, ["conv1"]) + launch(A, ["conv1", "conv2", "relu"])
    shares = kernel_bytes(plan, GRAPH.graph, WEIGHTS)
    assert shares == {"conv1": 6750, "conv2": 2250}


def test_copies_of_one_source_add_up() -> None:
    assert source_bytes(2 * source(A, 5000) + source(B, 6000)) == {A: 10000, B: 6000}


def test_a_launch_that_only_quantizes_is_charged_to_the_readers() -> None:
    quantize = next(node for node in GRAPH.graph.node if node.op_type == "QuantizeLinear")
    plan = source(A, 8000) + launch(A, [quantize.name])
    assert kernel_bytes(plan, GRAPH.graph, WEIGHTS) == {"conv1": 8000}


def test_a_launch_of_unknown_nodes_is_charged_to_nobody() -> None:
    plan = source(A, 8000) + launch(A, ["elsewhere"]) + launch(B, ["conv1"])
    assert kernel_bytes(plan, GRAPH.graph, WEIGHTS) == {}


@settings(max_examples=30)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=400),
            st.sampled_from([source(A, 5000), launch(A, ["conv1"]), launch(B, ["conv1"])[:90]]),
        ),
        max_size=8,
    ).map(b"".join)
)
def test_no_more_is_shared_out_than_there_is(plan: bytes) -> None:
    shares = kernel_bytes(plan, GRAPH.graph, WEIGHTS)
    assert sum(shares.values()) <= sum(source_bytes(plan).values()) + 1e-6
