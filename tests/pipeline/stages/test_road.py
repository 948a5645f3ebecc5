"""One real build of the embedded network: every file and figure that a result folder promises."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from road_networks import short

from fdda_deploy.calib_cache.store import load_record
from fdda_deploy.calib_cache.trt_table import parse
from fdda_deploy.cli import main
from fdda_deploy.config import BuildConfig, config_from
from fdda_deploy.engines.gpu import gpu_present
from fdda_deploy.engines.ort_run import OrtRunner
from fdda_deploy.pipeline.data import open_images
from fdda_deploy.pipeline.models import load_float_model
from fdda_deploy.pipeline.report.manifest import verify
from fdda_deploy.pipeline.report.schema import validate
from fdda_deploy.pipeline.run import ROAD, BuildResult, build

FILES = {
    "model.fp16.onnx",
    "model.fp32.onnx",
    "model.qdq.onnx",
    "engine.plan",
    "plan_bytes.json",
    "calibration.json",
    "calibration.cache",
    "synthetic/images.npz",
    "synthetic/contact_sheet.png",
    "synthetic/synthesis.json",
    "report.json",
    "report.html",
    "config.toml",
}
STAGES = [
    "load",
    "statistics",
    "synthesize",
    "sensitivity",
    "assign",
    "quantize",
    "export",
    "check",
    "engine",
    "bench",
    "evaluate",
    "report",
]


@dataclasses.dataclass(frozen=True)
class Built:
    config: BuildConfig
    out: Path
    result: BuildResult

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "report.json").read_text())
        return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, rtx: str) -> Built:
    out = tmp_path_factory.mktemp("built") / "digits"
    config = short(out, backend=rtx, bench_batches="1,3")
    return Built(config, out, build(config))


def visible_files(folder: Path) -> set[str]:
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return {p.as_posix() for p in found if not p.parts[0].startswith(".")}


def test_the_folder_holds_what_is_promised_and_nothing_else(built: Built) -> None:
    assert visible_files(built.out) == FILES | {"manifest.json"}
    assert all((built.out / name).stat().st_size > 0 for name in FILES)


def test_the_manifest_has_every_file_and_its_digest(built: Built) -> None:
    document = json.loads((built.out / "manifest.json").read_text())
    assert document["files"].keys() == FILES
    assert verify(document, built.out) == []
    data = (built.out / "engine.plan").read_bytes()
    assert document["files"]["engine.plan"]["sha256"] == hashlib.sha256(data).hexdigest()


def test_scripts_find_the_promised_keys_with_their_types(built: Built) -> None:
    report = built.report
    validate(report)
    assert (report["schema"], report["scheme"], report["recipe"]) == (1, "w4a8", "fdda")
    for network in ("float", "quantized"):
        assert isinstance(report["accuracy"][network]["top1"], float)
        assert report["accuracy"][network]["n"] == 100
    drop = report["accuracy"]["drop"]
    assert drop["low"] <= drop["mean"] <= drop["high"]
    assert [stage["name"] for stage in report["stages"]] == STAGES[:-1]
    for stage in report["stages"]:
        assert isinstance(stage["seconds"], float)
        assert stage["cached"] is False
    assert 50 < report["peak_rss_mib"] < 3 * 1024
    assert report["versions"]["torch"]
    assert built.result.report == report


def test_sizes_are_those_of_the_files(built: Built) -> None:
    sizes = {key: (built.out / name).stat().st_size for key, name in (
        ("fp32_onnx", "model.fp32.onnx"), ("qdq_onnx", "model.qdq.onnx"), ("plan", "engine.plan")
    )}  # fmt: skip
    found = built.report["bytes"]
    assert {key: found[key] for key in sizes} == sizes
    assert sizes["qdq_onnx"] < 0.35 * sizes["fp32_onnx"]


def test_accuracy_is_that_of_the_published_graphs(built: Built) -> None:
    preprocessing = load_float_model("digits").preprocessing
    images = open_images("digits:test", preprocessing, num_classes=10, limit=100, seed=0)
    x, labels = images.load(np.arange(100))
    for name, key in (("model.fp32.onnx", "float"), ("model.qdq.onnx", "quantized")):
        with OrtRunner(built.out / name, optimizations="none", num_threads=1) as runner:
            logits = runner.infer({"input": x.numpy()})["logits"]
        top1 = 100 * float((logits.argmax(1) == labels.numpy()).mean())
        assert built.report["accuracy"][key]["top1"] == pytest.approx(top1)
        assert "CPU" in built.report["accuracy"][key]["runs_on"]


def test_what_was_not_measured_says_so(built: Built) -> None:
    assert built.report["bench"]["gpu"] is None
    assert ("GPU latency", "not measured") in built.result.lines
    assert "not measured" in (built.out / "report.html").read_text()
    assert "CPU" in built.report["bench"]["cpu"]["what"]
    swept = [(entry["batch"], entry["what"]) for entry in built.report["bench"]["sweep"]]
    assert [batch for batch, _ in swept] == [1, 1, 3, 3]
    assert {what for _, what in swept[:2]} == {what for _, what in swept[2:]}
    notes = " ".join(built.report["notes"])
    assert "GPU latency was not measured" in notes
    assert ("without a GPU" in notes) is not gpu_present()


def test_a_reduced_schedule_is_named_with_its_length(built: Built) -> None:
    assert "8 of 80,000 generator steps" in built.report["schedule"]
    assert "10 real and 16 synthetic" in " ".join(built.report["notes"])
    assert built.report["synthesis"]["steps"] == 8
    assert built.report["finetune"]["steps"] == 4


def test_judges_that_were_trained_on_are_not_called_held_out(built: Built) -> None:
    assert "too few to hold any out" in built.report["finetune"]["metric"]


def test_torch_and_the_exported_graph_agree(built: Built) -> None:
    parity = built.report["parity"]
    assert parity["n"] == 26
    assert parity["top1_agreement"] >= 99.5
    assert parity["relative_l2"] < 1e-2


def test_the_graph_is_as_promised(built: Built) -> None:
    model = onnx.load(built.out / "model.qdq.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, model.opset_import[0].version) == (10, 21)
    assert [value.name for value in model.graph.input] == ["input"]
    assert [value.name for value in model.graph.output] == ["logits"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    weights = [name for name in kinds if name.endswith(".weight_quantized")]
    assert len(weights) == sum(n.op_type in {"Conv", "Gemm"} for n in model.graph.node)
    assert {kinds[name] for name in weights} == {onnx.TensorProto.INT8}
    assert {kinds[name] for name in kinds if name.endswith(".bias")} == {onnx.TensorProto.FLOAT}
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["fdda_deploy.scheme"] == "w4a8"
    assert metadata["fdda_deploy.model_digest"] == built.report["model"]["digest"]


def test_the_table_says_what_the_record_says(built: Built) -> None:
    table = parse((built.out / "calibration.cache").read_text())
    record = load_record(built.out / "calibration.json")
    activations = {n: t for n, t in record.tensors.items() if t.role == "activation"}
    assert table.scales.keys() == activations.keys()
    for name, tensor in activations.items():
        wanted = float(tensor.qparams.scale)
        if tensor.qparams.zero_point != 0:  # a table has none: the symmetric grid of that range
            wanted = float(tensor.amax) / 127
        assert float(table.scales[name]) == pytest.approx(wanted)
    assert (record.scheme, record.target) == ("w4a8", "rtx")


def test_synthetic_images_are_plain_arrays_and_a_picture(built: Built) -> None:
    with np.load(built.out / "synthetic/images.npz", allow_pickle=False) as arrays:
        assert (arrays["x"].dtype, len(arrays["x"])) == (np.uint8, 16)
        assert arrays["y"].tolist()[:10] == list(range(10))
        assert str(arrays["recipe"]) == "fdda"
    with Image.open(built.out / "synthetic/contact_sheet.png") as sheet:
        assert sheet.format == "PNG"
        sheet.load()
    again = open_images(
        str(built.out / "synthetic/images.npz"), load_float_model("digits").preprocessing
    )
    assert (len(again), again.recipe) == (16, "fdda")


def test_the_page_needs_no_other_file_and_names_no_folder_of_this_machine(built: Built) -> None:
    page = (built.out / "report.html").read_text()
    assert 'src="data:image/png;base64,' in page
    assert str(Path.home()) not in page.replace(str(built.out), "")


def test_the_written_config_makes_the_same_build_again_from_the_cache_at_once(
    built: Built, capsys: pytest.CaptureFixture[str]
) -> None:
    written = built.out / "config.toml"
    assert config_from(written, {}) == built.config
    before = {name: (built.out / name).stat().st_mtime_ns for name in FILES}
    start = time.process_time()
    again = build(config_from(written, {}))
    assert time.process_time() - start < 5
    assert [stage["name"] for stage in again.stages] == STAGES == [s.name for s in ROAD]
    assert all(stage["cached"] for stage in again.stages)
    assert again.report == built.result.report
    assert {name: (built.out / name).stat().st_mtime_ns for name in FILES} == before
    assert main(["evaluate", "--config", str(written)]) == 0
    assert capsys.readouterr().out.split()[:2] == ["load", "cached"]
    assert visible_files(built.out) == FILES | {"manifest.json"}


def test_the_same_seed_gives_the_same_graph_in_another_folder(built: Built, tmp_path: Path) -> None:
    build(short(tmp_path, backend=built.config.engine.backend), until="export")
    for name in ("model.fp32.onnx", "model.qdq.onnx", "calibration.json", "calibration.cache"):
        assert (tmp_path / name).read_bytes() == (built.out / name).read_bytes()
