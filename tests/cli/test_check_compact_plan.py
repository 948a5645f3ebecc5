"""`check --fix --target rtx` makes a compact plan where it can be proved, and says what it did."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fdda_deploy.cli import main

C = 8


@pytest.fixture
def file(tmp_path: Path) -> str:
    """x -> pair -> Conv with INT8 weights per channel -> pair -> Add with x."""
    rng = np.random.default_rng(0)
    constants = {
        "scale": np.float32(0.03),
        "zero": np.int8(0),
        "w": rng.integers(-127, 128, (C, C, 1, 1), np.int8),
        "w_scale": rng.uniform(1e-3, 3e-3, C).astype(np.float32),
        "w_zero": np.zeros(C, np.int8),
        "b": rng.normal(0, 0.2, C).astype(np.float32),
    }
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "quantize"),
        node("DequantizeLinear", ["q", "scale", "zero"], ["d"], "dequantize"),
        node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], "weight", axis=0),
        node("Conv", ["d", "wd", "b"], ["c"], "layer"),
        node("Add", ["d", "c"], ["y"], "sum"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", C, 4, 4]) for name in "xy"]
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "a.onnx")
    return str(tmp_path / "a.onnx")


def fixed(file: str, *flags: str) -> int:
    return main(["check", file, "--fix", "--out", f"{file}.fixed.onnx", *flags])


def repairs(capsys: pytest.CaptureFixture[str]) -> tuple[bool, set[str]]:
    told = json.loads(capsys.readouterr().out)
    assert told["not_compact"] == ""
    return told["compact_plan"], {change["repair"] for change in told["repairs"]}


@pytest.mark.parametrize("flags", [[], ["--compact-plan"]], ids=["by itself", "asked for"])
def test_for_rtx_it_is_made(
    file: str, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fixed(file, "--target", "rtx", "--json", *flags) == 0
    assert repairs(capsys) == (True, {"R13", "R15"})


def test_it_can_be_left_out(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fixed(file, "--target", "rtx", "--json", "--no-compact-plan") == 0
    assert repairs(capsys) == (False, set())


def test_other_targets_have_none(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fixed(file, "--json", "--target", "trt11") == 0
    assert repairs(capsys) == (False, set())


def test_the_text_names_what_was_done(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fixed(file, "--target", "rtx") == 0
    out = capsys.readouterr().out
    assert "R13  1x  Compact plan: skips, pools and whatever else is no layer read floats." in out
    assert "R15  1x  Compact plan: weights have one scale instead of one per channel." in out
    assert "8 scales of its weight to one" in out


def test_what_could_not_be_proved_is_left_out_and_told(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--target", "rtx", "--tolerance", "1e-6"]
    assert fixed(file, *flags, "--compact-plan") == 1
    assert "over the tolerance of 1e-06; nothing is written" in capsys.readouterr().err
    assert fixed(file, *flags) == 0
    out = capsys.readouterr().out
    assert "no compact plan:  output y: the repairs move it by" in out
    assert "R15" not in out
