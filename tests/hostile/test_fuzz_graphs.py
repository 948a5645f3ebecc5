"""ONNX files and plans that somebody damaged: read, checked, or refused in one line."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
from fuzzing import SEEDS, damaged_bytes, fuzz, outcome
from onnx import TensorProto, helper, numpy_helper

from fdda_deploy.engines.onnx_gate import require_sound_onnx
from fdda_deploy.engines.package_manifest import described_graph
from fdda_deploy.engines.plan_header import HEADER_BYTES, read_header
from fdda_deploy.exporters.onnx_file import read_onnx
from fdda_deploy.exporters.trt_rules import check


def graph() -> bytes:
    """Returns a quantized convolution and its float neighbours, 1 kB."""
    rng = np.random.default_rng(0)
    constants = {
        "s": np.float32(0.1),
        "z": np.int8(0),
        "w": rng.integers(-127, 127, (2, 3, 3, 3), dtype=np.int8),
        "ws": np.full(2, 0.05, np.float32),
        "wz": np.zeros(2, np.int8),
        "b": np.zeros(2, np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="d"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="wd", axis=0),
        helper.make_node("Conv", ["d", "wd", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"], name="relu"),
    ]
    shapes = {"x": ["n", 3, 8, 8], "y": ["n", 2, 8, 8]}
    values = [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in shapes.items()]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    body = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    opsets = [helper.make_opsetid("", 21)]
    data: bytes = helper.make_model(body, opset_imports=opsets, ir_version=10).SerializeToString()
    return data


WHOLE = graph()
PLANS = {
    "TensorRT": b"ftrt".ljust(24, b"\1") + bytes((10, 13, 2, 6)) + b"\0" * 100,
    "TensorRT-RTX": b"vtrt".ljust(16, b"\1")
    + struct.pack("<Q", 128)
    + bytes((1, 7, 1, 0))
    + b"\0" * 100,
}


def read_and_check(path: Path) -> None:
    """Reads a file as `check` does, and looks for what breaks a rule."""
    model = read_onnx(path)
    assert isinstance(model, onnx.ModelProto)
    check(model, target="trt")


def test_the_sound_graph_breaks_no_rule(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(WHOLE)
    model = read_onnx(tmp_path / "a.onnx")
    assert [finding for finding in check(model, target="trt") if finding.severity == "error"] == []
    require_sound_onnx(WHOLE)


@fuzz(1000, seed=SEEDS)
def test_a_damaged_graph_is_checked_or_refused(tmp_path: Path, seed: int) -> None:
    (tmp_path / "a.onnx").write_bytes(damaged_bytes(WHOLE, seed))
    outcome(lambda: read_and_check(tmp_path / "a.onnx"))


@fuzz(1000, seed=SEEDS)
def test_a_damaged_graph_is_let_to_the_builder_or_refused(seed: int) -> None:
    data = damaged_bytes(WHOLE, seed)
    outcome(lambda: require_sound_onnx(data))
    outcome(lambda: described_graph(data))


@pytest.mark.parametrize("flavour", PLANS)
@fuzz(1500, seed=SEEDS)
def test_a_damaged_plan_has_a_header_or_is_refused(flavour: str, seed: int) -> None:
    data = damaged_bytes(PLANS[flavour], seed)
    told = outcome(lambda: read_header(data))
    assert told or len(data) >= HEADER_BYTES
