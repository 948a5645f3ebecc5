"""OrtRunner: its Q/DQ is our arithmetic to the bit, its errors are one line, stderr stays quiet."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from engine_graphs import images, residual_w8a8
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from fdda_deploy.engines.ort_run import OrtRunner
from fdda_deploy.errors import ConfigError, EngineError
from fdda_deploy.quant.affine import dequantize, quantize
from fdda_deploy.quant.qparams import QParams

CHANNELS = 3


def qdq_model(axis: int | None) -> bytes:
    """x, scale -> x_int, x_deq: the scale is an input, so one session serves every example."""
    attributes = {} if axis is None else {"axis": axis}
    zeros = np.zeros(() if axis is None else CHANNELS, np.int8)
    zero_point = helper.make_tensor(
        "zero_point", TensorProto.INT8, zeros.shape, zeros.tobytes(), True
    )
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["x_int"], **attributes),
        helper.make_node(
            "DequantizeLinear", ["x_int", "scale", "zero_point"], ["x_deq"], **attributes
        ),
    ]
    x_shape, scale_shape = (["N"], []) if axis is None else (["N", CHANNELS], [CHANNELS])
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "qdq",
        [value("x", TensorProto.FLOAT, x_shape), value("scale", TensorProto.FLOAT, scale_shape)],
        [value("x_int", TensorProto.INT8, x_shape), value("x_deq", TensorProto.FLOAT, x_shape)],
        [zero_point],
    )
    opset = helper.make_opsetid("", 21)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()


@pytest.fixture(scope="module")
def per_tensor() -> Iterator[OrtRunner]:
    with OrtRunner(qdq_model(None), num_threads=1) as runner:
        yield runner


@pytest.fixture(scope="module")
def per_channel() -> Iterator[OrtRunner]:
    with OrtRunner(qdq_model(1), num_threads=1) as runner:
        yield runner


scales = st.floats(2.0**-20, 1024.0, width=32).map(np.float32)


def assert_same(runner: OrtRunner, x: np.ndarray, qparams: QParams) -> None:
    outputs = runner.infer({"x": x, "scale": qparams.scale})
    np.testing.assert_array_equal(outputs["x_int"], quantize(x, qparams))
    np.testing.assert_array_equal(outputs["x_deq"], dequantize(outputs["x_int"], qparams))


@given(
    scale=scales,
    x=hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e6, 1e6, width=32)),
)
def test_qdq_of_any_values_equals_the_reference(
    per_tensor: OrtRunner, scale: np.float32, x: np.ndarray
) -> None:
    assert_same(per_tensor, x, QParams(scale, -128, 127))


@given(
    exponent=st.integers(-20, 10),
    steps=hnp.arrays(np.int16, st.integers(1, 40), elements=st.integers(-400, 400)),
)
def test_ties_round_half_to_even_as_in_the_reference(
    per_tensor: OrtRunner, exponent: int, steps: np.ndarray
) -> None:
    scale = np.float32(2.0**exponent)  # a power of two, so that k + 1/2 steps are exact ties
    x = (steps + np.float32(0.5)).astype(np.float32) * scale
    assert_same(per_tensor, x, QParams(scale, -128, 127))
    inside = (steps >= -128) & (steps < 127)
    assert not np.any(quantize(x, QParams(scale, -128, 127))[inside] % 2)


@given(
    scale=scales, steps=hnp.arrays(np.int16, st.integers(1, 40), elements=st.integers(-300, 300))
)
def test_near_ties_of_any_scale_fall_on_the_same_side(
    per_tensor: OrtRunner, scale: np.float32, steps: np.ndarray
) -> None:
    x = (steps + np.float32(0.5)).astype(np.float32) * scale
    assert_same(per_tensor, x, QParams(scale, -128, 127))


@given(
    scale=hnp.arrays(np.float32, CHANNELS, elements=st.floats(2.0**-20, 1024.0, width=32)),
    x=hnp.arrays(np.float32, (4, CHANNELS), elements=st.floats(-1e6, 1e6, width=32)),
)
def test_per_channel_qdq_equals_the_reference(
    per_channel: OrtRunner, scale: np.ndarray, x: np.ndarray
) -> None:
    assert_same(per_channel, x, QParams(scale, -128, 127, axis=1))


def test_network_runs_from_bytes_and_from_a_file_alike(tmp_path: Path) -> None:
    model = residual_w8a8().SerializeToString()
    path = tmp_path / "model.qdq.onnx"
    path.write_bytes(model)
    feed = {"input": images(3)}
    with OrtRunner(model) as a, OrtRunner(path) as b:
        assert (a.input_names, a.output_names) == (("input",), ("logits",))
        logits = a.infer(feed)["logits"]
        np.testing.assert_array_equal(logits, b.infer(feed)["logits"])
    assert logits.shape == (3, 10)
    assert np.ptp(logits) > 0


def test_batch_is_dynamic_and_rows_do_not_touch_each_other() -> None:
    batch = images(5)
    with OrtRunner(residual_w8a8().SerializeToString()) as runner:
        whole = runner.infer({"input": batch})["logits"]
        for index in range(5):
            row = runner.infer({"input": batch[index : index + 1]})["logits"]
            np.testing.assert_allclose(row[0], whole[index], rtol=1e-4, atol=1e-4)


def test_description_says_version_threads_and_optimizations() -> None:
    runner = OrtRunner(b"", optimizations="basic", num_threads=1)
    assert runner.describe().startswith("ONNX Runtime 1.")
    assert runner.describe().endswith(", CPU, 1 thread, optimizations basic")
    assert (runner.runs_on, runner.num_threads) == ("CPU", 1)


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({}, "feed has no arrays: the graph wants input"),
        ({"image": images(1)}, "feed has image: the graph wants input"),
        ({"input": images(1).astype(np.float64)}, "input input: got float64, want float32"),
        ({"input": images(1)[:, :, :8]}, "got shape 1x3x8x16, want Nx3x16x16"),
        ({"input": images(1)[0]}, "got shape 3x16x16, want Nx3x16x16"),
        ({"input": images(0)}, "got shape 0x3x16x16"),
    ],
    ids=["empty", "unknown name", "wrong dtype", "wrong size", "no batch axis", "empty batch"],
)
def test_feed_that_does_not_fit_is_refused(feed: dict[str, np.ndarray], message: str) -> None:
    with (
        OrtRunner(residual_w8a8().SerializeToString()) as runner,
        pytest.raises(EngineError, match=message),
    ):
        runner.infer(feed)


@pytest.mark.parametrize("model", [b"no protobuf", b""], ids=["garbage", "empty"])
def test_damaged_model_is_a_one_line_error(model: bytes) -> None:
    with pytest.raises(EngineError, match=r"cannot load it.*Export it again") as caught:
        OrtRunner(model).__enter__()
    assert "\n" not in str(caught.value)
    assert "ONNXRuntimeError" not in str(caught.value)


def test_damaged_file_and_missing_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(EngineError, match=r"model\.onnx: no such file"):
        OrtRunner(path).__enter__()
    path.write_bytes(residual_w8a8().SerializeToString()[:500])
    with pytest.raises(EngineError, match=r"model\.onnx: ONNX Runtime .* cannot load it"):
        OrtRunner(path).__enter__()


def test_failure_while_running_is_a_one_line_error() -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"], name="fold")],
        "fold",
        [value("x", TensorProto.FLOAT, ["N"])],
        [value("y", TensorProto.FLOAT, None)],
        [helper.make_tensor("shape", TensorProto.INT64, [2], [7, 7])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with (
        OrtRunner(model.SerializeToString()) as runner,
        pytest.raises(EngineError, match=r"failed while it ran.*fold") as caught,
    ):
        runner.infer({"x": np.zeros(5, np.float32)})
    assert "\n" not in str(caught.value)


def test_runner_is_closed_outside_its_block() -> None:
    runner = OrtRunner(residual_w8a8().SerializeToString())
    with runner:
        pass
    with pytest.raises(EngineError, match="OrtRunner is closed"):
        runner.infer({"input": images(1)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizations": "some"}, "optimizations some: want none, basic, extended, all"),
        ({"provider": "rocm"}, "provider rocm: want cpu, cuda, tensorrt"),
        ({"num_threads": 0}, "0 threads: want 1 or more"),
    ],
)
def test_unknown_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OrtRunner(b"", **options)  # type: ignore[arg-type]  # wrong on purpose


def test_damaged_model_leaves_stderr_silent(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(residual_w8a8().SerializeToString().replace(b"Relu", b"Rela"))
    code = (
        "import sys; from pathlib import Path\n"
        "from fdda_deploy.engines.ort_run import OrtRunner\n"
        "from fdda_deploy.errors import EngineError\n"
        "try: OrtRunner(Path(sys.argv[1])).__enter__()\n"
        "except EngineError as error: print(error)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert "Rela" in answer.stdout
    assert len(answer.stdout.splitlines()) == 1
    assert answer.stderr == ""


def int4_matmul(weight_int: np.ndarray, scale: np.ndarray) -> bytes:
    """x -> x @ (weight_int * scale), the weight stored as INT4 in blocks of 32 along K."""
    packed = (weight_int.ravel()[0::2] & 15) | ((weight_int.ravel()[1::2] & 15) << 4)
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("DequantizeLinear", ["w_int", "scale"], ["w"], axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    size_in, size_out = weight_int.shape
    graph = helper.make_graph(
        nodes,
        "int4",
        [value("x", TensorProto.FLOAT, ["N", size_in])],
        [value("y", TensorProto.FLOAT, ["N", size_out])],
        [
            helper.make_tensor(
                "w_int",
                TensorProto.INT4,
                weight_int.shape,
                packed.astype(np.uint8).tobytes(),
                raw=True,
            ),
            helper.make_tensor("scale", TensorProto.FLOAT, scale.shape, scale.tobytes(), raw=True),
        ],
    )
    opset = helper.make_opsetid("", 21)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()


def test_int4_weights_keep_their_exact_values_by_default() -> None:
    """With every optimization ONNX Runtime swaps in a kernel that rounds the activations too."""
    rng = np.random.default_rng(3)
    weight_int = rng.integers(-8, 8, (128, 32), dtype=np.int8)
    scale = rng.uniform(0.01, 0.1, (4, 32)).astype(np.float32)
    x = rng.normal(size=(8, 128)).astype(np.float32)
    wanted = x @ dequantize(weight_int, QParams(scale, -8, 7, axis=0, block_size=32))
    with OrtRunner(int4_matmul(weight_int, scale)) as runner:
        np.testing.assert_allclose(runner.infer({"x": x})["y"], wanted, rtol=1e-4, atol=1e-4)
