"""The folder that `package` writes: complete, consistent, free of the building machine's paths."""

from __future__ import annotations

import json
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from protobuf_text import read_config

from fdda_deploy.engines import package as package_module
from fdda_deploy.engines.deploy_manifest import read_manifest
from fdda_deploy.engines.package import PackageOptions, write_package
from fdda_deploy.engines.sealed_folder import added_files, changed_files
from fdda_deploy.errors import ConfigError, EngineError

HOSTILE = 'a"b\\ $(touch /tmp/x) `id` <script>alert(1)</script> [x](http://y) | \n# z @{name}'


@pytest.fixture(scope="module")
def packed(finished_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packages") / "tiny"
    write_package(finished_build, out, PackageOptions())
    return out


def test_every_file_is_in_the_manifest_with_its_digest(packed: Path) -> None:
    manifest = read_manifest(packed)
    assert changed_files(packed, manifest["files"]) == []
    assert added_files(packed, {"manifest.json", *manifest["files"]}) == []
    name = manifest["triton"]["name"]
    assert {
        *("engine.plan", "model.qdq.onnx", "probe.npz", "README.md", "manifest.schema.json"),
        *("infer.py", "run_plan.py", "build_on_target.py", "build_on_target.sh", "labels.txt"),
        *(f"triton/{name}/config.pbtxt", f"triton/{name}/1/model.onnx"),
        f"triton/{name}/labels.txt",
    } == set(manifest["files"])


def test_the_manifest_says_what_the_build_found(packed: Path, finished_build: Path) -> None:
    manifest = read_manifest(packed)
    report = json.loads((finished_build / "report.json").read_text())
    assert manifest["accuracy"]["quantized"]["top1"] == report["accuracy"]["quantized"]["top1"]
    assert manifest["accuracy"]["quantized"]["n"] == 12
    assert manifest["latency"]["gpu"] == "not measured" or report["bench"]["gpu"]
    assert manifest["model"]["scheme"] == report["scheme"]
    assert manifest["calibration"] | {"effort": "fast"} == {
        "real": report["data"]["calibrated_on"]["real"],
        "synthetic": report["data"]["calibrated_on"]["synthetic"],
        "recipe": report["recipe"],
        "observer": report["config"]["quantize"]["observer"],
        "effort": "fast",
        "scale_search": "none",
    }
    assert manifest["inputs"] == [{"name": "input", "dtype": "float32", "shape": [None, 3, 16, 16]}]
    assert manifest["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert manifest["preprocessing"]["channel_order"] == "RGB"
    assert manifest["labels"] == ["ant", "bee", "cat", "dog"]
    assert manifest["plan"]["version"] == report["engine"]["version"]
    assert manifest["plan"]["portable"]


def test_the_plan_and_the_graph_are_the_builds(packed: Path, finished_build: Path) -> None:
    for name in ("engine.plan", "model.qdq.onnx"):
        assert (packed / name).read_bytes() == (finished_build / name).read_bytes()


def test_no_path_of_the_building_machine_is_in_a_text(packed: Path, input_folder: Path) -> None:
    for path in packed.rglob("*"):
        if path.suffix in {".json", ".md", ".pbtxt", ".txt", ".sh"}:
            assert str(input_folder) not in path.read_text(), path
    assert read_manifest(packed)["model"]["name"] == "nets.py:tiny"


def test_the_readme_has_the_figures_and_not_a_placeholder(packed: Path) -> None:
    text = (packed / "README.md").read_text()
    manifest = read_manifest(packed)
    assert f"top-1 {manifest['accuracy']['quantized']['top1']:.2f} % of 12 images" in text
    assert "GPU latency: not measured." in text
    assert manifest["plan"]["version"] in text
    assert "@" not in text


def test_only_the_shell_script_is_executable(packed: Path) -> None:
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in packed.rglob("*") if p.is_file()}
    assert {name for name, mode in modes.items() if mode & 0o111} == {"build_on_target.sh"}
    assert set(modes.values()) <= {0o644, 0o755}


def test_a_package_without_the_plan_is_built_on_the_target(
    finished_build: Path, tmp_path: Path
) -> None:
    manifest = write_package(
        finished_build, tmp_path / "p", PackageOptions(plan=False, max_batch=500)
    )
    assert manifest["plan"] is None
    assert not (tmp_path / "p" / "engine.plan").exists()
    assert manifest["batch"]["max"] == 500
    assert "input:500x3x16x16" in (tmp_path / "p" / "build_on_target.sh").read_text()


def test_a_package_without_the_graph_gives_triton_nothing_it_cannot_load(
    finished_build: Path, tmp_path: Path
) -> None:
    manifest = write_package(finished_build, tmp_path / "p", PackageOptions(graph=False))
    assert manifest["graph"] is None
    assert manifest["triton"] is None
    assert not (tmp_path / "p" / "triton").exists()
    assert "do not load TensorRT-RTX plans" in (tmp_path / "p" / "README.md").read_text()


def test_a_plan_of_full_tensorrt_is_what_triton_loads(rewritten: Any, tmp_path: Path) -> None:
    result = rewritten(engine__backend="tensorrt", engine__version="10.13.2.6")
    manifest = write_package(result, tmp_path / "p", PackageOptions(triton_name="net"))
    config = read_config((tmp_path / "p" / "triton" / "net" / "config.pbtxt").read_text())
    assert config["platform"] == "tensorrt_plan"
    assert (tmp_path / "p" / "triton" / "net" / "1" / "model.plan").is_file()
    assert manifest["plan"]["flavour"] == "tensorrt"
    assert not manifest["plan"]["portable"]


def test_how_the_plan_was_built_decides_where_it_loads(rewritten: Any, tmp_path: Path) -> None:
    config = {"version_compatible": True, "hardware_compatible": "ampere-plus", "strip": True}
    deploy = json.loads((rewritten() / "report.json").read_text())["deploy"]
    shutil.rmtree(tmp_path / "rewritten")
    result = rewritten(
        engine__backend="tensorrt",
        engine__version="10.13.2.6",
        config__engine=config,
        deploy={**deploy, "gpu": "NVIDIA L4", "compute_capability": 89, "batches": [2, 4, 16]},
    )
    manifest = write_package(result, tmp_path / "p", PackageOptions())
    assert manifest["plan"]["flags"] == ["VERSION_COMPATIBLE", "AMPERE_PLUS", "STRIP_PLAN"]
    assert manifest["plan"]["compute_capabilities"] == [89]
    assert manifest["plan"]["built_for"] == "NVIDIA L4"
    assert manifest["batch"] == {"min": 2, "opt": 4, "max": 16}


def test_names_of_model_and_classes_break_out_of_no_file(rewritten: Any, tmp_path: Path) -> None:
    deploy = json.loads((rewritten() / "report.json").read_text())["deploy"]
    shutil.rmtree(tmp_path / "rewritten")
    result = rewritten(
        model__name=HOSTILE,
        runs_as=HOSTILE,
        recipe=HOSTILE,
        deploy={**deploy, "class_names": [HOSTILE] * 4},
    )
    out = tmp_path / "p"
    manifest = write_package(result, out, PackageOptions())
    readme = (out / "README.md").read_text()
    assert "<script>" not in readme
    assert not re.search(r"(?<!\\)\]\(", readme)  # no bracket that Markdown would read
    assert not any(line.startswith("# z") for line in readme.splitlines())
    config = read_config((out / "triton" / manifest["triton"]["name"] / "config.pbtxt").read_text())
    assert config["name"] == manifest["triton"]["name"]
    assert len((out / "labels.txt").read_text().splitlines()) == 4
    assert "touch" not in (out / "build_on_target.sh").read_text()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (PackageOptions(plan=False, graph=False), "leave nothing to deploy"),
        (PackageOptions(max_batch=65), "--max-batch 65: the plan takes 1 to 64"),
        (PackageOptions(max_batch=0), "--max-batch 0"),
        (PackageOptions(triton_name="../x"), "--triton-name '../x'"),
    ],
    ids=["nothing", "too large", "none", "triton"],
)
def test_options_that_cannot_be_met_are_refused_and_nothing_is_written(
    finished_build: Path, tmp_path: Path, options: PackageOptions, says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        write_package(finished_build, tmp_path / "p", options)
    assert says in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_already_is_replaced_only_if_it_is_ours_and_on_demand(
    finished_build: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p"
    out.mkdir()
    write_package(finished_build, out, PackageOptions())
    with pytest.raises(EngineError, match=r"a package is there already. Replace it with --force"):
        write_package(finished_build, out, PackageOptions())
    (out / "local").mkdir()
    (out / "local" / "engine.plan").touch()
    write_package(finished_build, out, PackageOptions(force=True, plan=False))
    assert not (out / "engine.plan").exists()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(EngineError, match=r"notes\.txt is no file of the package there"):
        write_package(finished_build, out, PackageOptions(force=True))
    assert (out / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize("kind", ["folder", "build", "file", "link"])
def test_what_is_no_package_is_never_replaced(
    finished_build: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "p"
    if kind == "folder":
        out.mkdir()
        (out / "thesis.tex").touch()
    elif kind == "build":
        shutil.copytree(finished_build, out)
    elif kind == "file":
        out.touch()
    else:
        (tmp_path / "elsewhere").mkdir()
        out.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EngineError, match="Choose another --out"):
        write_package(finished_build, out, PackageOptions(force=True))
    assert out.exists()


def test_a_write_that_fails_leaves_the_old_package_and_nothing_beside_it(
    finished_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p"
    write_package(finished_build, out, PackageOptions())
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(package_module.os, "fsync", full)
    with pytest.raises(EngineError, match="No space left on device"):
        write_package(finished_build, out, PackageOptions(force=True))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_a_build_that_is_unfinished_or_changed_is_not_packaged(
    finished_build: Path, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match="no such folder"):
        write_package(tmp_path / "none", tmp_path / "p", PackageOptions())
    copy = tmp_path / "copy"
    shutil.copytree(finished_build, copy, ignore=shutil.ignore_patterns(".*"))
    plan = copy / "engine.plan"
    plan.write_bytes(plan.read_bytes()[:-1] + b"?")
    with pytest.raises(EngineError, match=r"engine\.plan: changed: its sha256 differs"):
        write_package(copy, tmp_path / "p", PackageOptions())
    (copy / "manifest.json").unlink()
    with pytest.raises(EngineError, match="no finished build is here"):
        write_package(copy, tmp_path / "p", PackageOptions())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": []}, "report.model: got a list of 0, wanted object"),
        ({"deploy": {}}, "report.deploy.preprocessing: missing"),
        ({"scheme": 4}, "report.scheme: got 4, wanted string"),
    ],
    ids=["model", "an older build", "scheme"],
)
def test_a_report_without_what_a_package_needs_asks_for_a_new_build(
    rewritten: Any, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    result = rewritten(**changes)
    with pytest.raises(EngineError) as caught:
        write_package(result, tmp_path / "p", PackageOptions())
    assert says in str(caught.value)
    assert str(caught.value).endswith("Run `fdda-deploy build` again, to its end.")
