"""`--max-drop` on the road: what is chosen is what is built, and what cannot be met says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from road_networks import own, write_images

from fdda_deploy.config import BuildConfig
from fdda_deploy.errors import CalibrationError, ConfigError, DataError
from fdda_deploy.pipeline.report.manifest import verify
from fdda_deploy.pipeline.report.mixed import chosen_point
from fdda_deploy.pipeline.run import BuildResult, build
from fdda_deploy.pipeline.stages import assigning

LAYERS = {
    "stem/Conv",
    "blocks.0.depthwise/Conv",
    "blocks.0.point/Conv",
    "blocks.1.depthwise/Conv",
    "blocks.1.point/Conv",
    "head/Gemm",
}


@pytest.fixture(scope="module")
def tune(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Coloured images without labels, so that answers differ, and those that change count."""
    random = np.random.default_rng(5)
    colors, noise = random.uniform(0, 255, (64, 1, 1, 3)), random.normal(0, 40, (64, 16, 16, 3))
    path = tmp_path_factory.mktemp("tune") / "tune.npz"
    np.savez(path, x=np.clip(colors + noise, 0, 255).astype(np.uint8))
    return str(path)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all builds: they load the network and measure its layers once."""
    return tmp_path_factory.mktemp("mixed")


def config(networks: Path, out: Path, **changes: Any) -> BuildConfig:
    data = str(networks / "calib.npz")
    asked: dict[str, Any] = {"scheme": "w2a4", "target": "trt", "backend": "ort-cpu"}
    return own(networks, out, recipe="none", calib_data=data, finetune=False, **(asked | changes))


def report_of(result: BuildResult) -> dict[str, Any]:
    assert result.report is not None
    return result.report


@pytest.fixture(scope="module")
def mixed(networks: Path, out: Path, tune: str) -> dict[str, Any]:
    """The report of a build that must raise some layers and not all."""
    return report_of(build(config(networks, out, max_drop=3.0, tune_data=tune)))


def test_some_layers_are_raised_until_the_bound_holds(mixed: dict[str, Any]) -> None:
    part = mixed["mixed"]
    assert part["drop"] <= part["max_drop"] == 3
    assert part["points"][0]["layers_at"] == {"2": 4, "8": 2}
    assert part["points"][0]["drop"] > 3
    assert 1 < len(part["points"]) <= 8
    sizes = [point["grid_bytes"] for point in part["points"]]
    assert sizes == sorted(sizes)
    assert sizes[-1] < part["float_bytes"]
    for point in part["points"]:
        assert point["grid_bytes"] <= point["stored_bytes"]
        if point["grid_bytes"] < chosen_point(part)["grid_bytes"]:
            assert point["drop"] > part["max_drop"]
    assert part["tune"] == {"origin": part["tune"]["origin"], "n": 64, "labelled": False}
    assert part["metric"].startswith("share of answers that change")


def test_the_graph_that_is_built_has_the_chosen_widths(mixed: dict[str, Any], out: Path) -> None:
    raised = {layer["name"]: layer["to_bits"] for layer in mixed["mixed"]["raised"]}
    bits = {layer["name"]: layer["weight_bits"] for layer in mixed["layers"]}
    ends = {"stem/Conv", "head/Gemm"}
    assert bits == {name: raised.get(name, 8 if name in ends else 2) for name in LAYERS}
    counts = chosen_point(mixed["mixed"])["layers_at"]
    assert counts == {
        str(width or "float"): list(bits.values()).count(width) for width in set(bits.values())
    }
    model = onnx.load(out / "model.qdq.onnx")
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, width in bits.items():
        weight = name.split("/")[0] + ".weight"
        assert (weight in held) == (width is None)
        if width == 2:
            assert set(np.unique(held[f"{weight}_quantized"])) <= {-2, -1, 0, 1}
    assert mixed["parity"]["top1_agreement"] >= 99.5
    assert mixed["parity"]["relative_l2"] < 1e-2


def test_the_ranking_is_published_with_every_layer_at_both_widths(
    mixed: dict[str, Any], out: Path
) -> None:
    found = json.loads((out / "sensitivity.json").read_text())
    for key, widths in (("narrow", {2, 8}), ("wide", {8})):
        assert {layer["nodes"][0] for layer in found[key]} == LAYERS
        assert {layer["weight_bits"] for layer in found[key]} == widths
    assert (found["schema"], found["scheme"], found["num_images"]) == (1, "w2a4", 32)
    manifest = json.loads((out / "manifest.json").read_text())
    assert "sensitivity.json" in manifest["files"]
    assert verify(manifest, out) == []
    assert "Mixed precision" in (out / "report.html").read_text()


def test_another_bound_takes_the_measured_layers_from_the_cache(
    mixed: dict[str, Any], networks: Path, out: Path, tune: str
) -> None:
    loose = build(config(networks, out, max_drop=100.0, tune_data=tune))
    part = report_of(loose)["mixed"]
    cached = {stage["name"]: stage["cached"] for stage in loose.stages}
    assert (cached["sensitivity"], cached["assign"]) == (True, False)
    assert part["raised"] == []
    assert len(part["points"]) == 1
    assert part["points"][0] == {**mixed["mixed"]["points"][0], "chosen": True}
    again = build(config(networks, out, max_drop=3.0, tune_data=tune))
    assert all(stage["cached"] for stage in again.stages)
    assert report_of(again) == mixed


def test_labels_make_it_a_top1_drop_and_other_images_another_choice(
    mixed: dict[str, Any], networks: Path, out: Path, tmp_path: Path
) -> None:
    labelled = str(write_images(tmp_path / "labelled.npz", 48))
    result = build(config(networks, out, max_drop=100.0, tune_data=labelled), until="quantize")
    assert not next(stage for stage in result.stages if stage["name"] == "assign")["cached"]
    (record,) = (
        json.loads(path.read_text())["record"]
        for path in out.glob(".stages/assign/*/stage.json")
        if "labelled.npz" in path.read_text()
    )
    assert record["metric"] == "top-1 drop"
    assert record["tune"] == {"origin": labelled, "n": 48, "labelled": True}


def test_without_tune_images_those_held_out_of_fine_tuning_choose(
    networks: Path, tmp_path: Path
) -> None:
    result = build(config(networks, tmp_path, scheme="w8a8", max_drop=30.0))
    part = report_of(result)["mixed"]
    assert part["tune"] == {"origin": "held out of fine-tuning", "n": 8, "labelled": False}
    assert dict(result.lines)["max drop"].startswith("30.00\u00a0points held: ")


def test_without_a_bound_nothing_is_measured_and_nothing_said(
    networks: Path, tmp_path: Path
) -> None:
    result = build(config(networks, tmp_path))
    assert report_of(result)["mixed"] is None
    assert not (tmp_path / "sensitivity.json").exists()
    assert "max drop" not in dict(result.lines)


def test_asked_for_alone_the_ranking_needs_no_bound(networks: Path, tmp_path: Path) -> None:
    build(config(networks, tmp_path), until="sensitivity")
    found = json.loads((tmp_path / "sensitivity.json").read_text())
    assert {layer["nodes"][0] for layer in found["narrow"]} == LAYERS
    assert not (tmp_path / "model.qdq.onnx").exists()


def test_a_mixture_is_built_by_tensorrt_rtx(
    networks: Path, tmp_path: Path, tune: str, rtx: str
) -> None:
    changes: dict[str, Any] = {"backend": rtx, "target": "rtx", "scheme": "w2a2"}
    report = report_of(build(config(networks, tmp_path, max_drop=1.0, tune_data=tune, **changes)))
    assert report["mixed"]["raised"]
    assert report["engine"]["status"] == "built"
    assert report["check"]["errors"] == 0
    assert "blocks.0.depthwise/Conv" not in {each["name"] for each in report["mixed"]["raised"]}


@pytest.mark.parametrize(
    ("bound", "why"),
    [
        (5.0, "the layers that stay quantized lose more than that"),
        (1.0, "one image is 1.6 points there, so no answer may change"),
    ],
)
def test_a_bound_that_cannot_be_met_says_the_best_found_and_why(
    networks: Path, out: Path, tune: str, monkeypatch: pytest.MonkeyPatch, bound: float, why: str
) -> None:
    lost = iter([40.0, 12.5, 9.375, 7.123, 20.0, 20.0, 20.0, 20.0])
    monkeypatch.setattr(assigning, "drop_measurer", lambda *_: lambda _module: next(lost))
    with pytest.raises(CalibrationError) as caught:
        build(config(networks, out, max_drop=bound, tune_data=tune))
    line = str(caught.value)
    assert line.startswith(f"--max-drop {bound:g}: no widths hold it on 64\u00a0images (")
    assert why in line
    assert "The best found loses 7.12 points with" in line
    assert "of weights (3\u00a0layers at 8 bits, 3 in float)" in line
    assert "Give --max-drop 7.13 or more, other --tune-data, or a wider --scheme." in line
    assert "\n" not in line


def test_the_evaluation_images_may_not_choose_however_they_are_spelled(
    networks: Path, out: Path, tmp_path: Path
) -> None:
    same = str(networks / ".." / networks.name / "calib.npz")
    asked = config(
        networks, out, max_drop=1.0, tune_data=same, eval_data=str(networks / "calib.npz")
    )
    with pytest.raises(ConfigError, match=r"these images measure the result, so they must not ch"):
        build(asked)
    copy = tmp_path / "copy.npz"
    copy.write_bytes((networks / "calib.npz").read_bytes())
    asked = config(
        networks,
        out,
        max_drop=1.0,
        tune_data=str(copy),
        eval_data=str(networks / "calib.npz"),
        eval_limit=None,
    )
    with pytest.raises(ConfigError, match=r"--tune-data .*copy\.npz: these images measure"):
        build(asked)


def test_tune_images_that_are_not_there_are_named(networks: Path, out: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere"):
        build(config(networks, out, max_drop=1.0, tune_data="nowhere/"))
