"""The engine stage builds as configured, says where the plan's bytes go, and what it left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from road_networks import own

from fdda_deploy.cli import main
from fdda_deploy.engines.gpu import gpu_present
from fdda_deploy.engines.plan_header import read_header, targets_of
from fdda_deploy.engines.trt_api import load_api
from fdda_deploy.errors import MissingBackendError
from fdda_deploy.pipeline.run import build

FAST: dict[str, Any] = {"recipe": "none", "finetune": False, "effort": "none", "scheme": "w8a8"}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One result folder: what does not change is not done again."""
    return tmp_path_factory.mktemp("engines")


def test_options_reach_the_builder(networks: Path, out: Path, rtx: str) -> None:
    data = str(networks / "calib.npz")
    config = own(networks, out, calib_data=data, backend=rtx, sm="86,89", max_batch=32, **FAST)
    build(config, until="engine")
    header = read_header((out / "engine.plan").read_bytes())
    assert targets_of(header, load_api("tensorrt_rtx")) == {86, 89}


def test_every_weight_is_accounted_for(networks: Path, out: Path, rtx: str) -> None:
    data = str(networks / "calib.npz")
    build(own(networks, out, calib_data=data, backend=rtx, **FAST), until="engine")
    found = json.loads((out / "plan_bytes.json").read_text())
    stored = {layer["node"].split("/")[0]: layer["stored"] for layer in found["layers"]}
    assert stored["blocks.0.point"] == stored["stem"] == "int8"
    assert stored["blocks.0.depthwise"] == "float32"  # left in float for rtx
    assert found["plan_bytes"] == (out / "engine.plan").stat().st_size
    assert found["weight_bytes"] + found["other_bytes"] == found["plan_bytes"]


def test_what_this_tensorrt_lacks_stands_in_the_report(
    networks: Path, tmp_path: Path, rtx: str
) -> None:
    data = str(networks / "calib.npz")
    asked = {"calibrator": "trt", "hardware_compatible": "ampere-plus"}
    report = build(own(networks, tmp_path, calib_data=data, backend=rtx, **FAST, **asked)).report
    assert report is not None
    detail = report["engine"]["detail"]
    assert (
        "has no calibrators (gone since TensorRT 11), so our calibration record went in" in detail
    )
    assert "T035: --hardware-compatible ampere-plus" in detail


@pytest.mark.skipif(gpu_present(), reason="the claim is about a machine without a GPU")
def test_a_stripped_plan_needs_a_gpu_to_be_built(networks: Path, tmp_path: Path, rtx: str) -> None:
    data = str(networks / "calib.npz")
    config = own(networks, tmp_path, calib_data=data, backend=rtx, strip=True, **FAST)
    with pytest.raises(MissingBackendError, match=r"--strip: .*the whole plan builds here"):
        build(config, until="engine")


def test_the_command_prints_layers_and_the_same_as_json(
    networks: Path, out: Path, rtx: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [
        *("engine", f"{networks / 'nets.py'}:tiny", "--weights"),
        *(str(networks / "tiny.safetensors"), "--calib-data", str(networks / "calib.npz")),
        *("--recipe", "none", "--no-finetune", "--effort", "none", "--scheme", "w8a8"),
        *("--backend", rtx, "--num-classes", "4", "--input-size", "16", "--out", str(out)),
    ]
    assert main(line) == 0
    told = capsys.readouterr().out
    assert "kernels" in told
    assert "blocks.0.point/Conv" in told
    assert main([*line, "--json", "--quiet"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["plan"] == json.loads((out / "plan_bytes.json").read_text())
