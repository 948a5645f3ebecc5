"""Result folders that another hand changed, with fitting digests: packaged soundly, or refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import SEEDS, damaged_json, fuzz, outcome
from onnx import TensorProto, helper, numpy_helper

from fdda_deploy.engines.deploy_manifest import read_manifest
from fdda_deploy.engines.package import PackageOptions, write_package
from fdda_deploy.engines.sealed_folder import changed_files, entry_of

sys.path.append(str(Path(__file__).parents[1] / "pipeline" / "report"))
from report_sample import full_report

FREE = ("deploy", "config", "model", "engine", "accuracy", "data", "bench", "rounding", "recipe")
"""Parts of a report that end up in a package."""


def graph() -> bytes:
    """Returns a network from grey images of 32 pixels to ten classes."""
    shapes = {"input": ["n", 1, 32, 32], "logits": ["n", 10]}
    ends = [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in shapes.items()]
    weight = numpy_helper.from_array(np.ones((1024, 10), np.float32), "w")
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    body = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    opsets = [helper.make_opsetid("", 21)]
    data: bytes = helper.make_model(body, opset_imports=opsets, ir_version=10).SerializeToString()
    return data


def sample() -> dict[str, Any]:
    report: dict[str, Any] = json.loads(json.dumps(full_report()))
    report["config"]["engine"] = {"strip": False, "flags": []}
    return report


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("result")
    (folder / "model.qdq.onnx").write_bytes(graph())
    return folder


def rewrite(result: Path, report: object) -> None:
    """Writes the report, and a manifest with its digest."""
    (result / "report.json").write_text(json.dumps(report))
    files = {name: entry_of(result / name) for name in ("report.json", "model.qdq.onnx")}
    manifest = {"schema": 1, "tool_version": "0.1.0", "files": files}
    (result / "manifest.json").write_text(json.dumps(manifest))


def test_the_sound_report_is_packaged(result: Path, tmp_path: Path) -> None:
    rewrite(result, sample())
    write_package(result, tmp_path / "package", PackageOptions())
    assert read_manifest(tmp_path / "package")["labels"] == [str(digit) for digit in range(10)]


@fuzz(150, SEEDS)
def test_a_strange_report_is_packaged_soundly_or_refused(
    result: Path, tmp_path: Path, seed: int
) -> None:
    report = sample()
    part = FREE[seed % len(FREE)]
    damaged = damaged_json({part: report[part]}, seed)
    rewrite(result, {**report, part: damaged.get(part) if isinstance(damaged, dict) else damaged})
    out = tmp_path / "package"
    told = outcome(lambda: write_package(result, out, PackageOptions()))
    assert out.is_dir() == (told == "")
    if not told:
        assert changed_files(out, read_manifest(out)["files"]) == []
        shutil.rmtree(out)
    assert list(tmp_path.iterdir()) == []
