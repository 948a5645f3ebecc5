"""``engine FILE.onnx`` builds anybody's graph, and refuses what it must in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fdda_deploy.cli import main
from fdda_deploy.engines.gpu import gpu_present

sys.path.insert(0, str(Path(__file__).parent / "engines"))
from engine_graphs import residual_w8a8

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for Linux x86-64")


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "small.onnx"
    path.write_bytes(residual_w8a8().SerializeToString())
    return path


def test_a_file_becomes_a_plan_with_its_bytes_explained(
    graph: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = graph.parent / "out"
    line = ["engine", str(graph), "--backend", "rtx", "--out", str(out)]
    assert main([*line, "--hardware-compatible", "ampere-plus"]) == 0
    told = capsys.readouterr().out
    assert "T035: --hardware-compatible" in told
    assert "conv2" in told
    assert main([*line, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["plan"] == json.loads((out / "plan_bytes.json").read_text())
    assert document["plan"]["plan_bytes"] == (out / "engine.plan").stat().st_size


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("none.onnx", None, "none.onnx: cannot be read (No such file or directory)"),
        ("text.onnx", b"no protobuf at all", "text.onnx: no ONNX model"),
    ],
)
def test_a_file_that_is_no_graph_is_one_line(
    tmp_path: Path,
    name: str,
    data: bytes | None,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    assert main(["engine", str(tmp_path / name), "--backend", "rtx"]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


@pytest.mark.skipif(gpu_present(), reason="the claim is about a machine without a GPU")
def test_a_stripped_plan_is_refused_without_a_gpu(
    graph: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["engine", str(graph), "--backend", "rtx", "--strip"]) == 1
    assert "the whole plan builds here" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_line(
    graph: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = graph / "below-a-file"
    assert main(["engine", str(graph), "--backend", "rtx", "--out", str(out)]) == 1
    assert "Give another --out" in capsys.readouterr().err
