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
    assert "outside the file's folder. Refused" in capsys.readouterr().err


def test_warnings_fail_only_where_asked(tmp_path: Path) -> None:
    file = save(tmp_path / "a.onnx", zero_point=0)  # its dynamic batch is a warning
    assert main(["check", file, "--quiet"]) == 0
    assert main(["check", file, "--quiet", "--fail-on", "warning"]) == 1
    assert main(["check", file, "--quiet", "--fail-on", "warning", "--profile"]) == 0


def test_errors_can_be_let_pass(tmp_path: Path) -> None:
    file = save(tmp_path / "a.onnx", zero_point=3)
    assert main(["check", file, "--quiet", "--fail-on", "never"]) == 0


def test_sarif_is_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", save(tmp_path / "a.onnx", zero_point=3), "--format", "sarif"]) == 1
    log = json.loads(capsys.readouterr().out)
    assert log["version"] == "2.1.0"
    assert {result["ruleId"] for result in log["runs"][0]["results"]} >= {"T003"}


def test_flags_that_a_target_lacks_are_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save(tmp_path / "a.onnx", zero_point=0)
    line = ["check", file, "--target", "trt11", "--flag", "fp16", "--flag", "sparse", "--json"]
    assert main(line) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [row["tensor"] for row in findings if row["rule"] == "T035"] == ["FP16"]


def test_many_findings_of_one_rule_are_cut_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save(tmp_path / "a.onnx", zero_point=3)
    model = onnx.load(file)
    for index in range(4):
        node = model.graph.node.add()
        node.CopyFrom(model.graph.node[0])
        node.name, node.output[0] = f"more{index}", f"more{index}"
    onnx.save(model, file)
    assert main(["check", file]) == 1
    out = capsys.readouterr().out
    assert out.count("zero-point 3") == 3
    assert "T003  3 more of the same; --json lists all." in out


def test_fix_writes_a_file_that_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, fixed = save(tmp_path / "a.onnx", zero_point=3), tmp_path / "fixed.onnx"
    before = Path(file).read_bytes()
    assert main(["check", file, "--fix", "--out", str(fixed)]) == 0
    out = capsys.readouterr().out
    assert "R12  1x  UINT8 and asymmetric activations become symmetric INT8." in out
    assert "output y: relative L2 0.0" in out
    assert "against the file as it was; 4 rows of normal numbers, seed 0; ONNX Runtime" in out
    assert out.rstrip().endswith(f"{fixed}: 1 findings, 0 of them errors")
    assert Path(file).read_bytes() == before
    assert main(["check", str(fixed), "--quiet"]) == 0
    assert main(["check", str(fixed), "--fix", "--out", str(tmp_path / "again.onnx")]) == 0
    assert "nothing that is safe to repair" in capsys.readouterr().out
    assert (tmp_path / "again.onnx").read_bytes() == fixed.read_bytes()


def test_fix_as_json_has_repairs_and_proof(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, fixed = save(tmp_path / "a.onnx", zero_point=3), tmp_path / "fixed.onnx"
    assert main(["check", file, "--fix", "--out", str(fixed), "--json", "--seed", "7"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [change["repair"] for change in told["repairs"]] == ["R12"]
    assert told["repairs"][0]["node"] == "quantize"
    assert told["errors"] == 0
    assert any(row["severity"] == "error" for row in told["findings_before"])
    assert told["proof"]["outputs"]["y"]["relative_l2"] < told["proof"]["tolerance"] == 0.1
    assert "seed 7" in told["proof"]["inputs"]


def test_a_repair_that_goes_too_far_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, fixed = save(tmp_path / "a.onnx", zero_point=3), tmp_path / "fixed.onnx"
    assert main(["check", file, "--fix", "--out", str(fixed), "--tolerance", "1e-9"]) == 1
    assert "over the tolerance of 1e-09; nothing is written" in capsys.readouterr().err
    assert not fixed.exists()


def test_a_feed_decides_what_is_proved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, fixed = save(tmp_path / "a.onnx", zero_point=3), str(tmp_path / "fixed.onnx")
    np.savez(tmp_path / "feed.npz", x=np.ones((2, 3, 8, 8), np.float32))
    feed = str(tmp_path / "feed.npz")
    assert main(["check", file, "--fix", "--out", fixed, "--feed", feed, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["proof"]["inputs"] == "the feed that was given"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.onnx --fix", "--fix: give --out FIXED.onnx too"),
        ("a.onnx --fix --out a.onnx", "--out is MODEL itself"),
        ("a.onnx --out b.onnx", "--out: goes with --fix"),
        ("a.onnx --tolerance 1", "--tolerance: goes with --fix"),
        ("a.onnx --compact-plan", "--compact-plan: goes with --fix. Add --fix, or leave"),
        (
            "a.onnx --fix --out b.onnx --compact-plan",
            "--compact-plan: for TensorRT-RTX alone, got target trt. Take --target rtx, or leave",
        ),
        ("a.onnx --bits 4", "--bits: has no meaning for an ONNX file"),
        ("a.onnx --no-cache", "--no-cache: has no meaning for an ONNX file"),
        ("a.onnx --target ort-cpu", "--target: unknown 'ort-cpu'. Known: trt, trt11, trt10.16"),
        ("a.onnx --format xml", "--format: unknown 'xml'. Known: text, json, sarif."),
        ("a.onnx --format sarif --json", "--json and --format sarif: want one of the two."),
        ("a.onnx --fail-on note", "--fail-on: unknown 'note'. Known: error, warning, never."),
        ("a.onnx --sm ninety", "--sm"),
        ("digits --fix", "--fix: only where MODEL is an ONNX file"),
        ("digits --format sarif", "--format: only where MODEL is an ONNX file"),
    ],
)
def test_what_does_not_go_together_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    assert main(["check", *line.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_the_targets_of_a_file_are_those_of_the_rules() -> None:
    from fdda_deploy.cli.checking import FILE_TARGETS
    from fdda_deploy.exporters.trt_rules import TARGETS

    assert set(FILE_TARGETS) == set(TARGETS)
