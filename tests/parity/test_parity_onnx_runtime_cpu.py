"""--target ort-cpu: ONNX Runtime fuses every product, and computes what torch and NumPy do."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from onnx import TensorProto, numpy_helper
from parity_layers import relative_l2, run_onnx
from parity_networks import NETWORKS, ResidualNet, SplitNet, build_chain, chain, float_graph, images

from fdda_deploy.engines.ort_run import OrtRunner, import_onnxruntime
from fdda_deploy.exporters.onnx_runtime_cpu import uint8_zero_point
from fdda_deploy.pipeline.quantization.fake_quant import ActivationQuantizer
from fdda_deploy.quant import affine
from fdda_deploy.quant.qparams import QParams

OBSERVERS = ("minmax", "mse", "lp", "percentile", "entropy")
PRODUCTS = {"Conv", "FusedConv", "Gemm", "MatMul"}


def optimized(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Returns the operators that ONNX Runtime runs, by type."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(folder / "optimized.onnx").graph
    return Counter(node.op_type for node in graph.node)


@pytest.mark.parametrize("observer", OBSERVERS)
def test_every_convolution_addition_and_gemm_is_fused_and_no_activation_is_left(
    observer: str, tmp_path: Path
) -> None:
    graph = float_graph(ResidualNet)
    made = build_chain(graph, "w8a8", "ort-cpu", images(64, 1), observer)
    count = Counter(node.op_type for node in graph.proto.graph.node)
    found = optimized(made.model, tmp_path)
    assert found["QLinearConv"] == count["Conv"]
    assert found["QLinearAdd"] == count["Add"]
    assert found["QGemm"] == count["Gemm"]
    assert not (PRODUCTS | {"Relu", "Clip"}) & found.keys()


def test_the_same_network_for_tensorrt_is_fused_only_where_a_zero_point_replaced_the_relu(
    tmp_path: Path,
) -> None:
    made = chain(ResidualNet, "w8a8", "trt")
    found = optimized(made.model, tmp_path)
    shifted = sum(point.shifted for point in made.network.placement.activations)
    count = Counter(node.op_type for node in made.graph.proto.graph.node)
    assert found["QLinearConv"] <= shifted < count["Conv"], "why there is a placement of its own"


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_fused_kernels_keep_the_answers_of_torch(kind: type) -> None:
    made, x = chain(kind, "w8a8", "ort-cpu"), images(64, 7)
    with torch.no_grad():
        wanted = made.network(x).numpy()
    with OrtRunner(made.model.SerializeToString(), optimizations="all", num_threads=1) as runner:
        got = runner.infer({"input": x.numpy()})["logits"]
    assert relative_l2(got, wanted) < 0.05
    assert (got.argmax(1) == wanted.argmax(1)).mean() > 0.95


def test_rectified_tensors_use_all_256_levels() -> None:
    made = chain(ResidualNet, "w8a8", "ort-cpu")
    rectified = {n.output[0] for n in made.graph.proto.graph.node if n.op_type in {"Relu", "Clip"}}
    zeros = {t: g.zero_point for t, g in made.grids.activations.items() if t in rectified}
    assert len(zeros) >= 3
    assert set(zeros.values()) == {-128}


def test_relu6_keeps_its_clip_out_of_the_way_at_its_very_edge(tmp_path: Path) -> None:
    """255 steps may not pass 6 in float32, or ONNX Runtime keeps the Clip and fuses nothing."""
    graph = float_graph(ResidualNet)
    made = build_chain(graph, "w8a8", "ort-cpu", 40 * images(64, 1), "minmax")
    clipped = {n.output[0] for n in graph.proto.graph.node if n.op_type == "Clip"}
    tops = [float(made.grids.activations[t].high) for t in clipped]
    assert tops == pytest.approx([6] * len(tops))
    assert "Clip" not in optimized(made.model, tmp_path)


@given(
    zero_point=st.integers(-128, 127),
    scale=st.floats(2.0**-20, 2.0**10, width=32),
    x=npst.arrays(np.float32, 24, elements=st.floats(-1e4, 1e4, width=32)),
)
def test_any_zero_point_means_the_same_in_numpy_and_torch(
    zero_point: int, scale: float, x: np.ndarray
) -> None:
    grid = QParams(np.float32(scale), -128, 127, zero_point=zero_point)
    quantizer = ActivationQuantizer()
    quantizer.set_qparams(grid)
    np.testing.assert_array_equal(quantizer(torch.from_numpy(x)), affine.fake_quant(x, grid))
    assert int(uint8_zero_point(grid)) == zero_point + 128


@pytest.mark.parametrize("kind", [ResidualNet, SplitNet], ids=lambda kind: kind.__name__)
def test_gemm_biases_are_whole_steps_of_the_accumulator(kind: type) -> None:
    made = chain(kind, "w8a8", "ort-cpu")
    held = {t.name: numpy_helper.to_array(t) for t in made.model.graph.initializer}
    gemms = [node for node in made.model.graph.node if node.op_type == "Gemm"]
    assert gemms
    for node in gemms:
        stem = f"{node.name}.bias"
        assert node.input[2] == f"{stem}_dequantized"
        assert held[f"{stem}_quantized"].dtype == np.int32
        point = next(p for p in made.network.placement.weights if node.name in p.consumers)
        source = next(
            p for p in made.network.placement.activations if (node.name, 0) in p.consumers
        )
        weight_scale = made.grids.weights[point.initializer][1].scale
        step = made.grids.activations[source.tensor].scale * weight_scale
        np.testing.assert_array_equal(held[f"{stem}_scale"], step)
        floats = {t.name: t for t in made.graph.proto.graph.initializer}
        assert not [name for name in floats if name in held and name.endswith("head.bias")]


def test_bias_that_int32_cannot_hold_stays_float() -> None:
    made = chain(ResidualNet, "w8a8", "ort-cpu")
    name = next(n.input[2] for n in made.graph.proto.graph.node if n.op_type == "Gemm")
    from fdda_deploy.exporters.qdq import Grids, insert_qdq

    huge = made.grids.parameters | {name: np.full(10, 1e30, np.float32)}
    grids = Grids(made.grids.activations, made.grids.weights, huge)
    model = insert_qdq(made.graph.proto, made.network.placement, grids, {})
    node = next(n for n in model.graph.node if n.op_type == "Gemm")
    held = {t.name: t for t in model.graph.initializer}
    assert held[node.input[2]].data_type == TensorProto.FLOAT
    assert np.isfinite(run_onnx(model, images(2, 3))["logits"]).all()
