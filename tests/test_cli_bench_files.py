"""`bench` and `compare` on files: tables, JSON, plots, exit codes, and one line per failure."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fdda_deploy.cli import main
from fdda_deploy.engines.build_options import BuildOptions
from fdda_deploy.engines.gpu import gpu_present
from fdda_deploy.engines.trt_api import load_api
from fdda_deploy.engines.trt_build import build_plan


def network(gain: float, quantized: bool = False) -> onnx.ModelProto:
    """Returns logits = gain * x @ w, its operands behind DequantizeLinear if quantized."""
    rng = np.random.default_rng(0)
    weight = (gain * rng.normal(size=(6, 4))).astype(np.float32)
    held = {"w": weight, "s": np.float32(0.02), "z": np.int8(0)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["logits"], "fc")]
    if quantized:
        held["w"] = np.clip(np.rint(weight / 0.02), -127, 127).astype(np.int8)
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "d"),
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"], "wd"),
            helper.make_node("MatMul", ["d", "wd"], ["logits"], "fc"),
        ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(network(1.0), "float.onnx")
    onnx.save(network(1.0, quantized=True), "int8.onnx")
    onnx.save(network(3.0), "other.onnx")
    Path("notes.plan").write_text("not a plan")
    return tmp_path


QUICK = ["--seconds", "0", "--threads", "1"]


def test_files_are_measured_in_turns_and_tabled(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "float.onnx", "int8.onnx", "--batches", "4,1", *QUICK]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0][:3] == ["file", "batch", "on"]
    assert [row[:3] for row in rows[1:]] == [
        ["float.onnx", "1", "CPU"],
        ["int8.onnx", "1", "CPU"],
        ["float.onnx", "4", "CPU"],
        ["int8.onnx", "4", "CPU"],
    ]
    assert all("not measured" in " ".join(row) for row in rows[1:])
    assert rows[1][-1] == "1.000"


def test_json_has_environment_coverage_and_conditions(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "int8.onnx", "float.onnx", "--json", *QUICK]) == 0
    found = json.loads(capsys.readouterr().out)
    first, second = found["records"]
    assert first["qdq_coverage"] == {"products": 1, "quantized": 1, "weight_only": 0, "pairs": 1}
    assert second["qdq_coverage"]["quantized"] == 0
    assert (first["interleaved_with"], first["warmup_ms"]) == (["float.onnx"], 200)
    assert first["bytes"] == (files / "int8.onnx").stat().st_size
    assert first["gpu_compute"] is first["cuda_graph"] is None
    assert found["environment"]["cpu"]
    assert found["trtexec"] is None


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_sweep_is_drawn(files: Path, suffix: str) -> None:
    plot = files / f"sweep.{suffix}"
    line = ["bench", "float.onnx", "--batches", "1,2", "--plot", str(plot), "--quiet"]
    assert main([*line, *QUICK]) == 0
    if suffix == "png":
        assert plot.read_bytes().startswith(b"\x89PNG")
        return
    root = ET.fromstring(plot.read_text())  # noqa: S314  # written a line ago
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "batch 2" in root.attrib["aria-label"]


def test_exported_times_are_read_back_beside_the_next_bench(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "float.onnx", "--export-times", "t.json", "--quiet", *QUICK]) == 0
    assert main(["bench", "float.onnx", "--against", "t.json", *QUICK]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("trtexec")


def test_profile_is_explained_without_a_model(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = [{"count": 1}, {"name": "x/QuantizeLinear", "averageMs": 2.0, "medianMs": 2.0}]
    (files / "p.json").write_text(json.dumps(profile))
    assert main(["bench", "--layer-profile", "p.json"]) == 0
    assert "unfused Q/DQ" in capsys.readouterr().out


def test_own_feed_is_what_runs(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(files / "feed.npz", x=np.ones((5, 6), np.float32))
    assert main(["bench", "float.onnx", "--feed", "feed.npz", "--json", *QUICK]) == 0
    assert json.loads(capsys.readouterr().out)["records"][0]["batch"] == 5


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("bench digits --plot x.svg", 2, "--plot goes with .onnx, .plan, .engine, .trt files"),
        ("bench digits float.onnx", 2, "a second MODEL goes with"),
        (
            "bench times.json",
            2,
            "bench times.json: files of trtexec are given by a flag: --against",
        ),
        ("bench float.onnx --layers", 2, "bench --layers: name one plan, and nothing else"),
        ("bench none.onnx", 1, "none.onnx: no such file"),
        ("bench float.onnx --batches 0", 2, "--batches 0: want whole numbers above 0"),
        ("bench float.onnx --no-transfers --seconds 0", 1, "runs on the CPU without transfers"),
        ("bench float.onnx --seconds -1", 1, "want 1 or more iterations and no negative time"),
        ("bench float.onnx --provider rocm", 2, "unknown 'rocm'. Known: cpu, cuda, tensorrt"),
        ("bench float.onnx --plot x.pdf --seconds 0", 1, "want a file that ends in .svg or .png"),
        ("bench float.onnx --against float.onnx", 1, "float.onnx: not readable JSON"),
        ("bench notes.plan", 1, "notes.plan is no TensorRT plan"),
        ("compare float.onnx none.onnx", 1, "none.onnx: no such file"),
        ("compare float.onnx notes.txt", 1, "notes.txt: want a file that ends in .onnx"),
        ("compare float.onnx int8.onnx --samples 0", 2, "--samples 0: want 1 or more"),
        ("compare float.onnx int8.onnx --max-relative-l2 nan", 2, "want 0 or more"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_mistakes_are_told_in_one_line(
    files: Path, capsys: pytest.CaptureFixture[str], line: str, code: int, message: str
) -> None:
    assert main(line.split()) == code
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_comparison_is_tabled(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "float.onnx", "int8.onnx", "--samples", "32"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["output", "max"]
    assert row.startswith("logits")


@pytest.mark.parametrize(("limit", "code"), [("1e-4", 1), ("1", 0)])
def test_distance_decides_the_exit_code(
    files: Path, capsys: pytest.CaptureFixture[str], limit: str, code: int
) -> None:
    line = ["compare", "float.onnx", "int8.onnx", "--json", "--max-relative-l2", limit]
    assert main(line) == code
    found = json.loads(capsys.readouterr().out)
    assert found["beyond"] == (["logits"] if code else [])
    assert 1e-4 < found["outputs"]["logits"]["relative_l2"] < 1


def test_seed_makes_the_batch(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for seed in ("3", "3", "4"):
        assert main(["compare", "float.onnx", "other.onnx", "--seed", seed]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]


def test_plan_without_a_gpu_says_what_still_works(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if gpu_present():
        pytest.skip("the claim is about a machine without a GPU")
    pytest.importorskip("tensorrt_rtx_bindings", reason="has wheels for Linux x86-64 only")
    options, api = BuildOptions(max_batch=4, opt_batch=1), load_api("tensorrt_rtx")
    Path("engine.plan").write_bytes(build_plan(Path("float.onnx").read_bytes(), options, api).plan)
    for command in ("bench", "bench --layers", "compare float.onnx"):
        assert main([*command.split(), "engine.plan"]) == 1
        assert "What works without one" in capsys.readouterr().err
