"""`fdda-deploy refit` at the command line: what stands in its way is told in one line."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fdda_deploy.cli import main
from fdda_deploy.engines.gpu import gpu_present


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A graph, and the plan that the real builder makes of it."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="has wheels for Linux x86-64 only")
    folder = tmp_path_factory.mktemp("refit")
    import numpy as np

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in "xy"]
    weight = numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        "g",
        ends[:1],
        ends[1:],
        [weight],
    )
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), folder / "g.onnx")
    out = str(folder / "built")
    assert (
        main(["engine", str(folder / "g.onnx"), "--backend", "rtx", "--out", out, "--quiet"]) == 0
    )
    return {"onnx": str(folder / "g.onnx"), "plan": f"{out}/engine.plan"}


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["refit", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.skipif(gpu_present(), reason="the claim is about a machine without a GPU")
def test_without_a_gpu_it_says_what_can_be_done_instead(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "whole.plan"
    line = refused([files["plan"], files["onnx"], "--out", str(out)], capsys)
    assert "needs an NVIDIA GPU, and none is visible" in line
    assert line.endswith("Build the whole plan instead: leave --strip out.")
    assert not out.exists()


def test_a_file_that_is_no_plan_is_told_by_its_name(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused([files["onnx"], files["onnx"], "--out", "whole.plan"], capsys)
    assert f"{files['onnx']} is no TensorRT plan" in line


def test_a_missing_plan_or_graph_is_told(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "none.plan: cannot be read" in refused(
        ["none.plan", files["onnx"], "--out", "o"], capsys
    )
    assert "none.onnx" in refused([files["plan"], "none.onnx", "--out", "o"], capsys)


def test_without_out_it_is_wrong_usage(files: dict[str, str]) -> None:
    assert main(["refit", files["plan"], files["onnx"]]) == 2
