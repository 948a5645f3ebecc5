"""The road in FP8 and FP16, up to what the files hold and how near ONNX Runtime is to torch."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto
from road_networks import own, write_images, write_networks

from fdda_deploy.pipeline.run import build


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("formats")
    write_networks(path)
    write_images(path / "images.npz", 16)
    return path


def built(folder: Path, name: str, **changes):
    images = str(folder / "images.npz")
    config = own(folder, folder / name, calib_data=images, recipe="none", backend="rtx", **changes)
    result = build(config)
    model = onnx.load(folder / name / "model.qdq.onnx")
    return result.report, model


def kinds(model: onnx.ModelProto) -> Counter[int]:
    return Counter(tensor.data_type for tensor in model.graph.initializer)


def test_fp8_runs_from_images_to_a_plan(folder):
    report, model = built(folder, "fp8", scheme="fp8", effort="auto", finetune=None)
    assert report["scheme"] == "fp8"
    assert kinds(model)[TensorProto.FLOAT8E4M3FN]
    assert not kinds(model)[TensorProto.INT8]
    assert "FP8 (E4M3)" in {layer["precision"] for layer in report["layers"]}
    assert report["engine"]["status"] == "built"
    assert report["parity"]["relative_l2"] < 1e-2
    record = json.loads((folder / "fp8" / "calibration.json").read_text())
    assert {t["qmax"] for t in record["tensors"].values()} == {448}
    assert record["algorithm"] == "minmax"


def test_fp16_quantizes_nothing_and_is_the_baseline_file(folder):
    report, model = built(folder, "fp16", scheme="fp16", effort="auto", finetune=None)
    assert {layer["precision"] for layer in report["layers"]} == {"float"}
    assert kinds(model)[TensorProto.FLOAT] == 0
    baseline = onnx.load(folder / "fp16" / "model.fp16.onnx")
    assert baseline.graph == model.graph
    assert report["parity"]["relative_l2"] < 1e-2


def test_int8_with_half_floats_says_so_in_the_file(folder):
    report, model = built(folder, "w8a8", scheme="w8a8", float_type="fp16")
    props = {entry.key: entry.value for entry in model.metadata_props}
    assert props["fdda_deploy.float_type"] == "fp16"
    assert kinds(model)[TensorProto.FLOAT16]
    assert report["engine"]["status"] == "built"
