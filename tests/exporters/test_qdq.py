"""The Q/DQ graph: integers for weights, one pair per tensor, zeros for zero-points (T003)."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import onnx
import pytest
from export_grids import grids_of, placed, run_onnx
from export_networks import (
    EVERY_NETWORK,
    Depthwise,
    Residual,
    SharedModule,
    WideHead,
    graph_of,
    images,
)
from onnx import TensorProto, numpy_helper
from qdq_cases import METADATA, Case, case_of

from fdda_deploy.exporters.placement_table import TARGETS
from fdda_deploy.exporters.qdq import insert_qdq
from fdda_deploy.quant.affine import dequantize, fake_quant
from fdda_deploy.quant.qparams import QParams

CASES = [
    (kind, scheme, target)
    for index, kind in enumerate(EVERY_NETWORK)
    for scheme, target in (
        (("w8a8", "trt"), ("w4a16", "rtx"), ("w4a4", "ort-cpu")),
        (("w4a4", "rtx"), ("w4a16", "trt"), ("w8a8", "ort-cpu")),
    )[index % 2]
]


@pytest.fixture(scope="module", params=CASES, ids=lambda c: f"{c[0].__name__}-{c[1]}-{c[2]}")
def case(request: pytest.FixtureRequest) -> Case:
    return case_of(*request.param)


def test_result_is_valid_onnx_and_the_float_graph_is_untouched(case):
    onnx.checker.check_model(case.model, full_check=True)
    assert case.graph.proto.SerializeToString() == case.before
    assert [value.name for value in case.model.graph.input] == ["input"]
    assert [value.name for value in case.model.graph.output] == ["logits"]
    assert case.model.opset_import[0].version == 21
    assert case.model.ir_version == 10


def test_zero_points_are_constants_and_zero_for_tensorrt(case):
    for node in [*case.nodes("QuantizeLinear"), *case.nodes("DequantizeLinear")]:
        if len(node.input) == 3:
            zero = numpy_helper.to_array(case.initializers[node.input[2]])
            assert zero.dtype in (
                (np.int8,) if case.for_tensorrt else (np.int8, np.uint8, np.int32)
            )
            assert zero.dtype == np.uint8 or not zero.any()


def test_activations_of_onnx_runtime_are_the_same_grid_128_higher():
    case = case_of(Residual, "w8a8", "ort-cpu")
    for point in case.placement.activations:
        zero = numpy_helper.to_array(case.initializers[f"{point.tensor}_zero_point"])
        assert zero.dtype == np.uint8
        assert int(zero) == case.grids.activations[point.tensor].zero_point + 128


def test_weights_are_stored_as_integers_and_no_float_copy_is_left(case):
    for point in case.placement.weights:
        stored = case.initializers[f"{point.initializer}_quantized"]
        want = TensorProto.INT4 if point.storage == "int4" else TensorProto.INT8
        assert stored.data_type == want
        x_int, grid = case.grids.weights[point.initializer]
        np.testing.assert_array_equal(numpy_helper.to_array(stored).astype(np.int8), x_int)
        assert point.initializer not in case.initializers
        scale = numpy_helper.to_array(case.initializers[f"{point.initializer}_scale"])
        np.testing.assert_array_equal(scale, grid.scale)
    assert len(case.initializers) == len(case.model.graph.initializer), "each name once"


def test_biases_stay_float_but_those_of_gemm_for_onnx_runtime(case):
    for node in case.model.graph.node:
        if node.op_type in {"Conv", "ConvTranspose", "Gemm"} and len(node.input) == 3:
            if node.op_type == "Gemm" and node.input[2] in case.integer_biases:
                continue
            assert case.initializers[node.input[2]].data_type == TensorProto.FLOAT


def test_each_point_has_one_pair_and_all_its_consumers_read_it(case):
    counts = Counter(node.name for node in case.model.graph.node)
    assert set(counts.values()) == {1}
    readers = {node.name: node for node in case.model.graph.node}
    for point in case.placement.activations:
        assert counts[f"{point.name}/QuantizeLinear"] == 1
        for consumer, index in point.consumers:
            assert readers[consumer].input[index] == f"{point.name}_dequantized"
    assert len(case.nodes("QuantizeLinear")) == len(case.placement.activations)
    pairs = len(case.placement.activations) + len(case.placement.weights)
    assert len(case.nodes("DequantizeLinear")) == pairs + len(case.integer_biases)


def test_clip_stands_before_grids_below_eight_bits_and_nowhere_else(case):
    readers = {node.name: node for node in case.model.graph.node}
    for point in case.placement.activations:
        source = readers[f"{point.name}/QuantizeLinear"].input[0]
        clip = readers.get(f"{point.name}/Clip")
        assert (clip is not None) == (point.num_bits < 8)
        assert source == (point.tensor if clip is None else f"{point.name}_clipped")
        if clip is not None:
            grid = case.grids.activations[point.name]
            low, high = (numpy_helper.to_array(case.initializers[name]) for name in clip.input[1:])
            assert (low, high) == (grid.low, grid.high)


def test_metadata_is_in_the_file(case):
    assert {entry.key: entry.value for entry in case.model.metadata_props} == METADATA


@pytest.mark.parametrize("num_bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("lopsided", [False, True], ids=["signed", "behind a relu"])
def test_pair_with_its_clip_is_the_numpy_grid(num_bits, lopsided):
    """On values beyond the range, on ties, and at its ends."""
    graph = graph_of(SharedModule)
    placement = placed(graph, f"w8a{num_bits}", "trt", first_last_bits=num_bits)
    steps = 2**num_bits - 1
    qmin = 0 if lopsided and num_bits < 8 else -(steps + 1) // 2
    grid = QParams(np.float32(0.0207925), qmin, qmin + steps)
    grids = grids_of(graph, placement)
    grids = dataclasses.replace(grids, activations={**grids.activations, "input": grid})
    model = insert_qdq(graph.proto, placement, grids, {})
    model.graph.output[0].name = "input_dequantized"
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    x = images(2)
    x[0] = torch_ties(grid, x[0].numel()).reshape(x[0].shape)
    np.testing.assert_array_equal(run_onnx(model, x), fake_quant(x.numpy(), grid))


def torch_ties(grid: QParams, count: int):
    import torch

    k = np.resize(np.arange(grid.qmin - 2, grid.qmax + 3), count).astype(np.float32)
    return torch.from_numpy((k + np.float32(0.5)) * grid.scale)


@pytest.mark.parametrize("target", ["trt", "rtx"])
def test_blocks_of_int4_are_dequantized_as_numpy_does(target):
    placement = placed(graph_of(WideHead), "w4a16", target, first_last_bits=4)
    graph = graph_of(WideHead)
    grids = grids_of(graph, placement)
    point = next(p for p in placement.weights if p.block_size is not None)
    model = insert_qdq(graph.proto, placement, grids, {})
    model.graph.output[0].name = f"{point.initializer}_dequantized"
    model.graph.output[0].type.tensor_type.ClearField("shape")
    np.testing.assert_array_equal(
        run_onnx(model, images()), dequantize(*grids.weights[point.initializer])
    )


def test_new_values_of_float_parameters_reach_the_file():
    case = case_of(Residual, "w8a8", "trt")
    value = np.arange(8, dtype=np.float32)
    grids = dataclasses.replace(case.grids, parameters={"conv1.bias": value})
    model = insert_qdq(case.graph.proto, case.placement, grids, {})
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    np.testing.assert_array_equal(held["conv1.bias"], value)


def test_same_grids_give_the_same_bytes():
    case = case_of(Depthwise, "w4a8", "trt")
    again = insert_qdq(case.graph.proto, case.placement, case.grids, METADATA)
    assert again.SerializeToString() == case_of(Depthwise, "w4a8", "trt").model.SerializeToString()


@pytest.mark.parametrize("target", TARGETS)
def test_file_is_about_as_large_as_its_integers(target):
    case = case_of(WideHead, "w8a8", target)
    weights = sum(x.size for x, _ in case.grids.weights.values())
    assert weights < case.model.ByteSize() < weights + 12_000
