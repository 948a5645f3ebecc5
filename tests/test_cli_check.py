"""`check FILE.onnx`: findings in words or JSON, and exit code 1 when one is an error."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fdda_deploy.cli import main


def save(path: Path, *, zero_point: int) -> str:
    """Writes x -> QuantizeLinear -> DequantizeLinear -> y; TensorRT wants its zero-point 0."""
    constants = [
        numpy_helper.from_array(np.array(0.1, np.float32), "scale"),
        numpy_helper.from_array(np.array(zero_point, np.int8), "zero_point"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["q"], name="quantize"),
        helper.make_node(
            "DequantizeLinear", ["q", "scale", "zero_point"], ["d"], name="dequantize"
        ),
        helper.make_node("Relu", ["d"], ["y"], name="relu"),
    ]
    shape = ["batch", 3, 8, 8]
    graph = helper.make_graph(
        nodes,
        "one_pair",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path)
    return str(path)


def test_a_broken_rule_is_told_with_its_node_and_repair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", save(tmp_path / "a.onnx", zero_point=3)]) == 1
    out = capsys.readouterr().out
    assert "T003" in out
    assert "quantize" in out
    assert "Repair: " in out


def test_the_same_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = save(tmp_path / "a.onnx", zero_point=3)
    assert main(["check", file, "--json", "--target", "rtx", "--sm", "86"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["errors"] == sum(row["severity"] == "error" for row in found["findings"]) > 0
    assert found["file"] == file


def test_a_graph_without_errors_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", save(tmp_path / "a.ONNX", zero_point=0)]) == 0
    assert capsys.readouterr().out.rstrip().endswith("0 of them errors")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory. Want an ONNX file."),
        (b"", "no node in its graph. Want an ONNX file with a network."),
        (b"\xff\xff\xff" * 50, "not a readable ONNX file ("),
    ],
    ids=["missing", "empty", "garbage"],
)
def test_what_is_no_onnx_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str
) -> None:
    file = tmp_path / "a.onnx"
    if content is not None:
        file.write_bytes(content)
    assert main(["check", str(file)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {file}: {message}")
    assert error.count("\n") == 1


def test_a_file_that_points_outside_its_folder_for_data_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secret").write_bytes(bytes(4))
    (tmp_path / "sub").mkdir()
    file = save(tmp_path / "sub" / "a.onnx", zero_point=0)
    model = onnx.load(file)
    scale = model.graph.initializer[0]
    scale.ClearField("raw_data")
    scale.data_location = TensorProto.EXTERNAL
    scale.external_data.add(key="location", value="../secret")
    Path(file).write_bytes(model.SerializeToString())
    assert main(["check", file]) == 1
    assert "not a readable ONNX file" in capsys.readouterr().err
