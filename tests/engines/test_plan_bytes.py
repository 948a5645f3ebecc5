"""Weights are found in real plans byte for byte; what is not found is called unknown."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from engine_graphs import GraphMaker, residual_float, residual_w8a8
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from refused_graphs import fp8_convolution

from fdda_deploy.engines.build_options import BuildOptions
from fdda_deploy.engines.plan_bytes import LayerBytes, PlanBytes, attribute
from fdda_deploy.engines.trt_api import load_api
from fdda_deploy.engines.trt_build import build_plan

MODEL = residual_w8a8().SerializeToString()


def built(model: onnx.ModelProto, options: BuildOptions | None = None) -> PlanBytes:
    pytest.importorskip("tensorrt_rtx_bindings", reason="has wheels for Linux x86-64 only")
    data = model.SerializeToString()
    return attribute(
        build_plan(data, options or BuildOptions(), load_api("tensorrt_rtx")).plan, data
    )


def weight(make: GraphMaker, shape: tuple[int, ...], axis: int = 0) -> str:
    """INT8 weights of ``shape`` behind a DequantizeLinear."""
    scale = np.full(shape[axis], 0.01, np.float32)
    parts = [
        make.constant("w", make.rng.integers(-127, 128, shape, dtype=np.int8)),
        make.constant("w/scale", scale),
        make.constant("w/zero_point", np.zeros(shape[axis], np.int8)),
    ]
    return make.op("DequantizeLinear", parts, "w/dequantize", axis=axis)


def convolution(
    shape: tuple[int, int, int, int], group: int, *, quantized: bool
) -> onnx.ModelProto:
    make, channels = GraphMaker(), shape[1] * group
    stem = make.constant("stem", make.rng.normal(size=(channels, 3, 1, 1)).astype(np.float32))
    x = make.op("Conv", ["input", stem], "first")
    x = make.qdq(x) if quantized else x
    pads = [shape[2] // 2] * 4
    y = make.op("Conv", [x, weight(make, shape)], "conv", pads=pads, group=group)
    return make.model(y, ("N", shape[0], 16, 16), ("N", 3, 16, 16))


def product(kind: str, shape: tuple[int, int]) -> onnx.ModelProto:
    """``MatMul`` or ``Gemm`` with INT8 weights and activations."""
    make = GraphMaker()
    x = make.qdq(make.op("Relu", [make.op("Flatten", ["input"], "flat")], "relu"))
    if kind == "Gemm":
        y = make.op("Gemm", [x, weight(make, shape)], "product", transB=1)
        return make.model(y, ("N", shape[0]), ("N", 3, 16, 16))
    y = make.op("MatMul", [x, weight(make, shape, axis=1)], "product")
    return make.model(y, ("N", shape[1]), ("N", 3, 16, 16))


def share(found: PlanBytes, node: str) -> LayerBytes:
    return next(layer for layer in found.layers if layer.node == node)


def test_int8_weights_are_found_as_integers_and_float_ones_as_floats() -> None:
    found = built(residual_w8a8(channels=32))
    stored = {layer.node: (layer.stored, layer.layout, layer.num_bytes) for layer in found.layers}
    assert stored == {
        "conv1": ("int8", "channels-last, padded to 4", 32 * 9 * 4),
        "conv2": ("int8", "channels-last", 32 * 9 * 32),
        "logits": ("float32", "as in ONNX", 4 * 10 * 32),
    }
    assert found.weight_bytes == 32 * 9 * 4 + 32 * 9 * 32 + 4 * 10 * 32
    assert found.weight_bytes + found.other_bytes == found.plan_bytes
    assert found.generated_kernels > 0
    assert found.source_bytes < found.other_bytes


def test_a_float_network_is_found_as_floats() -> None:
    found = built(residual_float())
    assert {layer.stored for layer in found.layers} == {"float32"}
    assert [layer.num_bytes for layer in found.layers] == [x.float_bytes for x in found.layers]


@pytest.mark.parametrize(
    ("model", "node"),
    [
        (convolution((96, 64, 1, 1), 1, quantized=True), "conv"),
        (convolution((48, 32, 5, 5), 1, quantized=True), "conv"),
        (convolution((64, 16, 3, 3), 4, quantized=True), "conv"),
        (convolution((64, 64, 3, 3), 1, quantized=False), "conv"),
        (convolution((64, 1, 3, 3), 64, quantized=False), "conv"),
        (product("Gemm", (128, 768)), "product"),
        (product("MatMul", (768, 128)), "product"),
    ],
    ids=[
        *("1x1", "5x5", "4 groups", "weight-only", "weight-only depthwise"),
        *("gemm", "matmul"),
    ],
)
def test_integer_weights_stay_integers_without_padding(model: onnx.ModelProto, node: str) -> None:
    layer = share(built(model), node)
    assert layer.stored == "int8"
    assert layer.num_bytes == layer.float_bytes // 4


def test_an_int8_depthwise_filter_saves_nothing_because_it_is_padded() -> None:
    layer = share(built(convolution((64, 1, 3, 3), 64, quantized=True)), "conv")
    assert layer.layout == "channels-last, padded to 4"
    assert layer.num_bytes == layer.float_bytes
    assert not layer.grew


@pytest.mark.parametrize("batch", [1, 8])
def test_with_a_fixed_batch_the_padding_of_depthwise_inputs_is_in_the_plan_as_zeros(
    batch: int,
) -> None:
    """Three zeros for each element of the input: what pads 1 channel per group to 4."""
    channels, size = 256, 16
    model = convolution((channels, 1, 3, 3), channels, quantized=True)
    assert built(model).zero_bytes < 10_000
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    found = built(model)
    assert found.zero_bytes == pytest.approx(3 * batch * channels * size * size, rel=0.02)
    warning = found.warnings()[-1]
    assert "bytes of the plan are zeros: with a fixed batch" in warning
    assert "Export with a dynamic batch" in warning


def test_fp8_weights_that_are_all_alike_are_not_looked_for() -> None:
    assert share(built(fp8_convolution()), "conv").stored == "unknown"


def test_fp8_weights_are_found_as_bytes() -> None:
    model = fp8_convolution()
    for tensor in model.graph.initializer:
        if tensor.name == "w":
            values = np.random.default_rng(0).integers(0, 126, 432, dtype=np.uint8)
            tensor.raw_data = values.tobytes()
    layer = share(built(model), "conv")
    assert (layer.stored, layer.num_bytes) == ("fp8", 16 * 9 * 4)


def test_int4_blocks_are_found_packed() -> None:
    make = GraphMaker()
    x = make.op("Relu", [make.op("Flatten", ["input"], "flat")], "relu")
    rows, columns, block = 768, 128, 64
    nibbles = make.rng.integers(0, 16, (rows, columns), dtype=np.uint8).ravel()
    raw = (nibbles[0::2] | (nibbles[1::2] << 4)).astype(np.uint8).tobytes()
    zeros = bytes(rows // block * columns // 2)
    for name, dims, data in (("w", [rows, columns], raw), ("z", [rows // block, columns], zeros)):
        make.initializers[name] = TensorProto(
            name=name, data_type=TensorProto.INT4, dims=dims, raw_data=data
        )
    scale = make.constant("s", np.full((rows // block, columns), 0.01, np.float32))
    dq = make.op("DequantizeLinear", ["w", scale, "z"], "dq", axis=0, block_size=block)
    y = make.op("MatMul", [x, dq], "product")
    layer = share(built(make.model(y, ("N", columns), ("N", 3, 16, 16))), "product")
    assert (layer.stored, layer.num_bytes) == ("int4", rows * columns // 2)


def test_integers_stored_as_floats_are_seen_and_said() -> None:
    """By a plan made up for it: no builder at hand does this, and full TensorRT may."""
    model = onnx.load_from_string(MODEL)
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    real = held["conv2.weight"].astype(np.float32) * np.float32(0.01)
    plan = bytes(100) + real.transpose(0, 2, 3, 1).tobytes()
    layer = share(attribute(plan, MODEL), "conv2")
    assert (layer.stored, layer.num_bytes) == ("float32", real.nbytes)
    half = share(attribute(real.astype(np.float16).tobytes(), MODEL), "conv2")
    assert (half.stored, half.layout) == ("float16", "as in ONNX")


def test_a_layer_that_grew_is_warned_of() -> None:
    layer = LayerBytes("conv", "w", "int8", "channels-last, padded to 64", 5000, 1000)
    assert layer.grew
    (warning,) = PlanBytes(9000, (layer,), 5000, 0, 0).warnings()
    assert warning == (
        "conv: its int8 weight takes 5,000 bytes in the plan (channels-last, padded to 64), and "
        "1,000 in float32. Leave the layer in float."
    )


def test_a_weight_that_two_layers_share_counts_once() -> None:
    model = onnx.load_from_string(MODEL)
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    plan = held["conv2.weight"].transpose(0, 2, 3, 1).tobytes()
    twice = next(n for n in model.graph.node if n.name == "conv2")
    model.graph.node.append(twice)
    found = attribute(plan, model.SerializeToString())
    assert [layer.num_bytes for layer in found.layers if layer.node == "conv2"] == [2304, 2304]
    assert found.weight_bytes == 2304


def test_the_document_is_json_and_adds_up() -> None:
    found = attribute(bytes(1000), MODEL)
    document = json.loads(json.dumps(found.to_json()))
    assert found.warnings() == tuple(document["warnings"])
    assert document["other_bytes"] == 1000
    assert {layer["stored"] for layer in document["layers"]} == {"unknown"}
    assert document["warnings"][0].startswith("conv1, conv2, logits: the weights are not in")


@pytest.mark.fuzz
@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=3000))
def test_any_bytes_are_attributed_without_error(plan: bytes) -> None:
    found = attribute(plan, MODEL)
    assert 0 <= found.weight_bytes <= len(plan)
