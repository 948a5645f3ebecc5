"""Builds of a network of one's own: every recipe, scheme, target and backend, and the seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from road_networks import own, write_images

from fdda_deploy.calib_cache.store import load_record
from fdda_deploy.errors import CalibrationError, ConfigError
from fdda_deploy.pipeline.run import build
from fdda_deploy.pipeline.synthesis import loop


def notes_of(report: dict[str, Any] | None) -> str:
    assert report is not None
    return " ".join(report["notes"])


def test_without_any_image_genie_makes_them_and_the_report_says_so(
    networks: Path, tmp_path: Path
) -> None:
    result = build(own(networks, tmp_path, backend="ort-cpu"))
    report = result.report
    assert report is not None
    assert report["recipe"] == "genie"
    assert "No real image was used (recipe genie): everything rests on" in notes_of(report)
    assert "Recipe genie: there is no real image, and the network has" in notes_of(report)
    assert report["synthesis"]["teacher_top1"] is None
    assert report["data"]["calibration"] is None
    assert report["data"]["calibrated_on"] == {"real": 0, "synthetic": 16}
    assert (report["accuracy"], report["data"]["evaluation"]) == (None, None)
    assert ("top-1", "not measured: no labelled images (--eval-data)") in result.lines
    assert (report["bytes"]["plan"], report["engine"]["status"]) == (None, "skipped")
    assert not (tmp_path / "engine.plan").exists()
    assert load_record(tmp_path / "calibration.json").data_digest == ""


def test_images_that_a_recipe_made_before_do_not_count_as_real(
    networks: Path, tmp_path: Path
) -> None:
    build(own(networks, tmp_path / "first"), until="synthesize")
    images = str(tmp_path / "first/synthetic/images.npz")
    report = build(own(networks, tmp_path / "next", calib_data=images), until="report").report
    assert report is not None
    assert (report["recipe"], report["data"]["synthetic"]) == ("none", None)
    assert report["data"]["calibration"]["recipe"] == "genie"
    assert report["data"]["calibrated_on"] == {"real": 0, "synthetic": 16}
    assert "No real image was used (recipe genie): everything rests on" in notes_of(report)
    assert "16 synthetic images were given, so none are made" in notes_of(report)
    page = (tmp_path / "next/report.html").read_text()
    assert "16\u00a0images that recipe genie had synthesized" in page


def test_without_synthesis_everything_rests_on_real_images(networks: Path, tmp_path: Path) -> None:
    config = own(networks, tmp_path, calib_data=str(networks / "calib.npz"), recipe="none")
    report = build(config, until="report").report
    assert report is not None
    assert (report["recipe"], report["schedule"], report["synthesis"]) == ("none", None, None)
    assert report["data"]["calibrated_on"] == {"real": 40, "synthetic": 0}
    assert "No image was synthesized" in notes_of(report)
    assert not (tmp_path / "synthetic").exists()
    assert "held-out images" in report["finetune"]["metric"]


def test_the_papers_recipe_runs_interleaved_on_ranges_of_an_untrained_generator(
    networks: Path, tmp_path: Path
) -> None:
    data = str(networks / "calib.npz")
    changes: dict[str, Any] = {"calib_data": data, "backend": "ort-cpu", "num_steps": 24}
    paper = build(own(networks, tmp_path / "p", recipe="fdda-paper", **changes)).report
    assert paper is not None
    assert paper["recipe"] == "fdda-paper"
    assert paper["data"]["calibrated_on"] == {"real": 0, "synthetic": 56}
    assert "generator before its first step, as published" in notes_of(paper)
    assert paper["synthesis"]["steps"] == 3  # the warm-up; the rest is taken while the student is
    assert paper["finetune"]["steps"] == 4
    acts = {layer["name"]: layer["act_bits"] for layer in paper["layers"]}
    assert acts["stem/Conv"] is None
    assert acts["head/Gemm"] is None
    assert acts["blocks.0.point/Conv"] == 8
    mended = build(own(networks, tmp_path / "m", **changes), until="quantize")
    record = load_record(mended.out / "calibration.json")
    ours = {n for n, t in record.tensors.items() if t.role == "activation"}
    record = load_record(tmp_path / "p" / "calibration.json")
    theirs = {n for n, t in record.tensors.items() if t.role == "activation"}
    assert theirs < ours


def test_images_that_are_not_finite_are_refused_before_they_spread(
    networks: Path, tmp_path: Path
) -> None:
    config = own(networks, tmp_path, recipe="gdfq", overrides={"lr": 1e30})
    with pytest.raises(CalibrationError, match=r"gdfq: the generator diverged at once.*Lower lr"):
        build(config, until="synthesize")


def test_a_generator_that_diverged_cannot_teach_interleaved(
    networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        loop.SetInTheMaking, "_train", lambda *_: 1
    )  # as at a loss that is not finite
    data = str(networks / "calib.npz")
    config = own(networks, tmp_path, calib_data=data, recipe="fdda-paper", num_steps=80)
    with pytest.raises(CalibrationError, match="fdda-paper: the generator diverged before the st"):
        build(config, until="quantize")


COMBINATIONS = [
    ("w8a8", "trt", "ort-cpu"),
    ("w4a4", "ort-cpu", "ort-cpu"),
    ("w4a16", "ort-cpu", "ort-cpu"),
    ("w8a8", "rtx", "rtx"),
    ("w4a4", "rtx", "rtx"),
    ("w4a16", "rtx", "rtx"),
    ("w4a8", "trt", "rtx"),
    ("w4a16", "trt", "rtx"),
    ("w2a3", "trt", "rtx"),
    ("w8a8", "ort-cpu", "ort-cpu"),
    ("w8a8", "ort-cpu", "auto"),
]


@pytest.fixture(scope="module")
def shared_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all combinations: they load the network once."""
    return tmp_path_factory.mktemp("combinations")


@pytest.mark.parametrize(("scheme", "target", "backend"), COMBINATIONS)
def test_every_scheme_target_and_backend_agrees_with_torch(
    networks: Path, shared_out: Path, scheme: str, target: str, backend: str, request: Any
) -> None:
    if backend == "rtx":
        request.getfixturevalue("rtx")
    data = str(networks / "calib.npz")
    asked: dict[str, Any] = {"scheme": scheme, "target": target, "backend": backend}
    config = own(
        networks,
        shared_out,
        recipe="none",
        calib_data=data,
        eval_data=data,
        finetune=False,
        **asked,
    )
    report = build(config).report
    assert report is not None
    assert report["parity"]["top1_agreement"] >= 99.5
    assert report["parity"]["relative_l2"] < 1e-2
    runs_on = "ort-cpu" if backend == "auto" else backend
    assert (report["scheme"], report["target"], report["backend"]) == (scheme, target, runs_on)
    assert (report["check"] is None) == (target == "ort-cpu")
    assert report["accuracy"]["quantized"]["n"] == 40
    plan = shared_out / "engine.plan"
    assert plan.exists() == (backend == "rtx")  # none of the build before is left lying
    assert report["bytes"]["plan"] == (plan.stat().st_size if backend == "rtx" else None)
    weight_only = scheme.endswith("a16")
    assert ("no range was measured" in notes_of(report)) == weight_only
    model = onnx.load(shared_out / "model.qdq.onnx")
    assert any(n.op_type == "QuantizeLinear" for n in model.graph.node) != weight_only


def test_parameters_that_onnx_folds_still_agree_after_fine_tuning(
    networks: Path, tmp_path: Path
) -> None:
    config = own(
        networks,
        tmp_path,
        "gained",
        calib_data=str(networks / "calib.npz"),
        target="trt",
        scheme="w4a4",
        effort="none",
        finetune_steps=40,
        overrides={"student_lr": 1e-5, "student_alpha": 20.0},
    )
    report = build(config).report
    assert report is not None
    assert report["finetune"]["kept"], report["finetune"]["reason"]
    assert report["parity"]["relative_l2"] < 1e-4


def test_the_seed_decides_the_images(networks: Path, tmp_path: Path) -> None:
    images = []
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        build(own(networks, tmp_path / out, seed=seed), until="synthesize")
        images.append((tmp_path / out / "synthetic/images.npz").read_bytes())
    assert images[0] == images[1] != images[2]


def test_unlabelled_images_give_no_centers_and_no_accuracy(networks: Path, tmp_path: Path) -> None:
    flat = str(write_images(tmp_path / "flat.npz", 24, labelled=False))
    config = own(networks, tmp_path / "out", backend="ort-cpu", calib_data=flat, eval_data=flat)
    report = build(config).report
    assert report is not None
    assert (report["recipe"], report["accuracy"]) == ("genie", None)
    assert report["data"]["calibrated_on"] == {"real": 24, "synthetic": 16}
    with pytest.raises(ConfigError, match="--recipe fdda needs one labelled real image per class"):
        build(own(networks, tmp_path / "out", calib_data=flat, recipe="fdda"))
