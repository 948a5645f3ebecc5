"""benchmarks/peers_measure.py and peers_tools.py: figures of a graph, and who quantizes it how."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import peers_measure
import peers_ort
import peers_tools
import pytest
from onnx import TensorProto, helper, numpy_helper
from peers_inputs import Inputs, logits_of
from peers_tools import MODELOPT, ORT, OURS, VARIANTS


def graph(path: Path, scale: float = 1.0, kind: str = "Gemm") -> Path:
    """Writes a network of one layer, batch free, 4 inputs and 3 classes."""
    weight = numpy_helper.from_array(scale * np.eye(4, 3, dtype=np.float32), "w")
    value = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node(kind, ["input", "w"], ["logits"], name="layer")],
            "g",
            [value("input", TensorProto.FLOAT, ["N", 4])],
            [value("logits", TensorProto.FLOAT, ["N", 3])],
            [weight],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    onnx.save(model, path)
    return path


@pytest.fixture
def inputs(tmp_path) -> Inputs:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(60, 4)).astype(np.float32)
    graph(tmp_path / "float.onnx")
    logits = logits_of(tmp_path / "float.onnx", images)
    np.save(tmp_path / "test.npy", images)
    np.save(tmp_path / "labels.npy", logits.argmax(1))
    np.save(tmp_path / "float_logits.npy", logits)
    return Inputs(tmp_path, "digest", 8)


def test_logits_are_the_same_whole_or_in_batches(inputs):
    images, _ = inputs.test()
    assert np.allclose(inputs.float_logits(), images[:, :3], atol=1e-6)


def test_a_graph_is_measured_in_every_column(inputs, tmp_path):
    found = peers_measure.measured(graph(tmp_path / "q.onnx", scale=0.5), inputs)
    assert found["rtx_accepts"]
    assert found["plan_bytes"] > 0 < found["float_plan_bytes"]
    assert found["drop"]["mean"] == 0
    assert found["kl_nats"] > 0.01
    assert (found["n"], found["ort_words"]) == (60, "")
    assert found["model_bytes"] == (tmp_path / "q.onnx").stat().st_size


def test_graphs_are_timed_together_and_a_refused_one_says_why(inputs, tmp_path):
    graphs = {
        "a": graph(tmp_path / "a.onnx"),
        "refused": graph(tmp_path / "r.onnx", kind="NoSuchOperator"),
        "b": graph(tmp_path / "b.onnx", scale=0.5),
    }
    effort = peers_measure.Effort(rounds=2, seconds=0.0)
    found, refused = peers_measure.latencies(graphs, inputs, effort)
    assert list(found) == ["a", "b"]
    assert list(refused) == ["refused"]
    assert "NoSuchOperator" in refused["refused"]
    assert str(tmp_path) not in refused["refused"]
    assert found["a"]["float_round_ms"] == found["b"]["float_round_ms"]
    assert len(found["a"]["round_ms"]) == 2
    assert found["a"]["ratio"] > 0


def test_a_ratio_is_the_median_of_rounds_and_not_of_medians():
    found = peers_measure.compared([2.0, 30.0, 4.0], [1.0, 10.0, 4.0])
    assert (found["ratio"], found["ms"], found["float_ms"]) == (2.0, 4.0, 4.0)


def test_a_graph_that_nobody_takes_has_the_words_of_both_and_no_path(inputs, tmp_path):
    path = graph(tmp_path / "q.onnx", kind="NoSuchOperator")
    found = peers_measure.measured(path, inputs)
    assert not found["rtx_accepts"]
    assert found["plan_bytes"] is None
    assert "NoSuchOperator" in found["rtx_words"]
    assert found["failed"].startswith("q.onnx: ONNX Runtime")
    assert str(tmp_path) not in found["rtx_words"] + found["failed"]
    assert "drop" not in found


def test_a_file_that_this_onnx_runtime_refuses_is_judged_by_the_one_it_was_made_with(
    inputs, tmp_path
):
    logits = peers_measure.logits_elsewhere(
        Path(sys.executable), graph(tmp_path / "q.onnx"), inputs, 1
    )
    assert logits is not None
    assert np.allclose(logits, inputs.float_logits(), atol=1e-6)
    refused = graph(tmp_path / "r.onnx", kind="NoSuchOperator")
    assert peers_measure.logits_elsewhere(Path(sys.executable), refused, inputs, 1) is None


def test_the_same_logits_lose_nothing_and_others_what_they_get_wrong():
    wanted = np.eye(4, dtype=np.float32) * 5
    labels = np.arange(4)
    same = peers_measure.accuracy(wanted, wanted, labels)
    assert (same["drop"]["mean"], same["kl_nats"], same["top1"]) == (0, 0, 100)
    got = wanted[[1, 0, 2, 3]]
    lost = peers_measure.accuracy(got, wanted, labels)
    assert lost["drop"]["mean"] == 50
    assert lost["kl_nats"] > 1
    assert peers_measure.unpacked(lost["right"], 4).tolist() == [False, False, True, True]


def test_which_images_are_right_survives_packing():
    right = np.random.default_rng(0).random(37) > 0.3
    assert np.array_equal(peers_measure.unpacked(peers_measure.packed(right), 37), right)


@pytest.mark.parametrize("tool", [ORT, MODELOPT, OURS])
def test_a_tool_is_told_its_files_and_the_threads(tool, inputs, tmp_path):
    variant = next(variant for variant in VARIANTS if variant.tool == tool)
    command, out = peers_tools.command_of(
        variant, "cifar_resnet20", inputs, tmp_path, threads=3, modelopt=Path("venv/bin/python")
    )
    assert command[command.index("--threads") + 1] == "3"
    assert out.parent == tmp_path
    if tool == OURS:
        assert command[command.index("--calib-limit") + 1] == "8"
        assert "--input-size" in command
    else:
        assert [str(inputs.float_graph), str(inputs.calib), str(out)] == command[2:5]
    assert (command[0] == "venv/bin/python") == (tool == MODELOPT)


def test_our_graph_must_have_been_calibrated_on_the_same_images(inputs, tmp_path):
    path = graph(tmp_path / "ours.onnx")
    with pytest.raises(ValueError, match=r"calibrated on images None, the other tools on digest\."):
        peers_tools.require_same_images(path, inputs)
    model = onnx.load(path)
    helper.set_model_props(model, {"fdda_deploy.data_digest": "digest"})
    onnx.save(model, path)
    peers_tools.require_same_images(path, inputs)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.tool == ORT], ids=lambda v: v.slug)
def test_onnx_runtime_quantizes_with_the_options_of_its_row(variant, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(onnxruntime, "SessionOptions", onnxruntime.SessionOptions)  # put back
    np.save(inputs.calib, np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32))
    command, out = peers_tools.command_of(
        variant, "cifar_resnet20", inputs, tmp_path, threads=1, modelopt=Path()
    )
    assert command[0] == sys.executable
    peers_ort.main(command[2:])
    assert onnxruntime.SessionOptions().intra_op_num_threads == 1
    model = onnx.load(out)
    held = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    kinds = {held[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    unsigned = "uint8" in variant.name
    assert kinds == {TensorProto.UINT8 if unsigned else TensorProto.INT8}
