"""The scripts that travel: the build's own pixels, no torch, a plan built where they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fdda_deploy.engines.deployed.infer import normalized, pixels_of
from fdda_deploy.engines.ort_run import OrtRunner
from fdda_deploy.engines.package import PackageOptions, write_package
from fdda_deploy.engines.package_texts import build_script
from fdda_deploy.pipeline.preprocessing import (
    Preprocessing,
    normalized_from_uint8,
    pixels_from_image,
)

NO_TORCH = """
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "fdda_deploy", "onnx"}:
            raise ModuleNotFoundError("blocked: " + name)

sys.meta_path.insert(0, Absent())
sys.path.insert(0, sys.argv[1].rpartition("/")[0])
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def packed(finished_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scripts") / "tiny"
    write_package(finished_build, out, PackageOptions(triton_name="tiny"))
    return out


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo of a $(bee).png"
    pixels = np.random.default_rng(3).integers(0, 256, (41, 29, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def script(name: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", NO_TORCH, str(folder / name), *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=600, cwd=folder.parent
    )


MODES = ("RGB", "L", "RGBA", "P", "CMYK", "I;16", "1")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("resize", [None, 24, 37])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_and_numbers_are_exactly_those_of_the_build(
    mode: str, resize: int | None, channels: int
) -> None:
    draw = np.random.default_rng(7)
    ours = Preprocessing(
        20,
        24,
        channels=channels,
        resize=resize,
        mean=tuple(draw.uniform(0, 1, channels).tolist()),
        std=tuple(draw.uniform(0.1, 1, channels).tolist()),
        interpolation="bicubic" if resize == 37 else "bilinear",
    )
    theirs: dict[str, Any] = json.loads(json.dumps(vars(ours)))
    for size in ((24, 20), (31, 77), (90, 25), (5, 7)):
        image = _image(mode, size, draw)
        wanted, got = pixels_from_image(image, ours), pixels_of(image, theirs)
        np.testing.assert_array_equal(got, wanted)
        np.testing.assert_array_equal(
            normalized(got[None], theirs),
            normalized_from_uint8(wanted[None].copy(), ours).numpy(),
        )


def _image(mode: str, size: tuple[int, int], draw: np.random.Generator) -> Image.Image:
    shape = (size[1], size[0])
    if mode == "I;16":
        return Image.fromarray(draw.integers(0, 65536, shape, dtype=np.uint16))
    rgb = Image.fromarray(draw.integers(0, 256, (*shape, 3), dtype=np.uint8))
    return rgb.convert(mode)


def test_infer_answers_without_torch_as_onnx_runtime_does(packed: Path, photo: Path) -> None:
    done = script("infer.py", packed, str(photo), "--backend", "onnx", "--json", "--top", "4")
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads(done.stdout)
    manifest = json.loads((packed / "manifest.json").read_text())
    with Image.open(photo) as image:
        pixels = pixels_of(image, manifest["preprocessing"])
    with OrtRunner(packed / "model.qdq.onnx") as runner:
        feed = {"input": normalized(pixels[None], manifest["preprocessing"])}
        logits = runner.infer(feed)["logits"][0].astype(np.float64)
    shares = 100 * np.exp(logits) / np.exp(logits).sum()
    assert [row["class"] for row in answer["top"]] == list(np.argsort(-shares))
    assert [row["label"] for row in answer["top"]] == [
        ("ant", "bee", "cat", "dog")[row["class"]] for row in answer["top"]
    ]
    assert [row["percent"] for row in answer["top"]] == pytest.approx(sorted(shares)[::-1])


def test_infer_prints_the_best_classes_of_each_image(packed: Path, photo: Path) -> None:
    done = script("infer.py", packed, str(photo), str(photo), "--backend", "onnx", "--top", "2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    assert lines[0] == lines[3] == str(photo)
    assert "%  class" in lines[1]


def test_infer_says_in_one_line_what_is_wrong(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("no image")
    for words in ([str(tmp_path / "no.png")], [str(tmp_path / "none.png")]):
        done = script("infer.py", packed, *words, "--backend", "onnx")
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


def test_infer_leaves_a_plan_that_does_not_run_and_says_so(packed: Path, photo: Path) -> None:
    done = script("infer.py", packed, str(photo))
    assert done.returncode == 0, done.stderr
    assert "class" in done.stdout
    if "ONNX" not in done.stderr:
        pytest.skip("the plan runs here")
    assert "note: not the plan: " in done.stderr
    forced = script("infer.py", packed, str(photo), "--backend", "plan")
    assert forced.returncode == 1
    assert "error: " in forced.stderr
    assert "Traceback" not in forced.stderr


def test_the_target_builds_its_own_plan_with_tensorrt_alone(
    finished_build: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="has wheels for Linux x86-64 only")
    out = tmp_path / "p"
    write_package(finished_build, out, PackageOptions(plan=False))
    done = script("build_on_target.py", out, "--flavour", "tensorrt_rtx", "--max-batch", "4")
    assert done.returncode == 0, done.stderr
    plan, record = out / "local" / "engine.plan", out / "local" / "engine.json"
    assert f"{plan.stat().st_size:,} bytes" in done.stdout
    assert json.loads(record.read_text())["flavour"] == "tensorrt_rtx"
    assert sorted(path.name for path in (out / "local").iterdir()) == ["engine.json", "engine.plan"]


def test_a_batch_below_the_smallest_is_refused_on_the_target(packed: Path) -> None:
    done = script("build_on_target.py", packed, "--max-batch", "0")
    assert (done.returncode, done.stderr) == (1, "error: --max-batch 0: want 1 or more\n")


TOOL = """#!/bin/sh
if [ "$1" = --help ]; then echo " --stronglyTyped  Create strongly typed network"; exit; fi
for word in "$@"; do printf '%s\\n' "$word"; done >"$LOG"
for word in "$@"; do case "$word" in --saveEngine=*) echo plan >"${word#--saveEngine=}";; esac; done
"""


def test_the_shell_script_gives_trtexec_the_packages_shapes(packed: Path, tmp_path: Path) -> None:
    tool, log = tmp_path / "trtexec", tmp_path / "log"
    tool.write_text(TOOL)
    tool.chmod(0o755)
    environment = {**os.environ, "TRTEXEC": str(tool), "LOG": str(log)}
    subprocess.run(
        ["sh", str(packed / "build_on_target.sh"), "--noDataTransfers"], check=True, env=environment
    )
    assert log.read_text().splitlines() == [
        "--onnx=model.qdq.onnx",
        "--saveEngine=local/engine.plan.new",
        "--stronglyTyped",
        "--minShapes=input:1x3x16x16",
        "--optShapes=input:8x3x16x16",
        "--maxShapes=input:64x3x16x16",
        "--noDataTransfers",
    ]
    assert (packed / "local" / "engine.plan").read_text() == "plan\n"
    assert json.loads((packed / "local" / "engine.json").read_text()) == {"flavour": "tensorrt"}
    for path in (packed / "local").iterdir():
        path.unlink()


def test_without_trtexec_the_shell_script_names_the_other_way(packed: Path) -> None:
    done = subprocess.run(
        ["sh", str(packed / "build_on_target.sh")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRTEXEC": "no-such-tool"},
    )
    assert done.returncode == 1
    assert "use: python build_on_target.py" in done.stderr


def test_an_input_name_cannot_leave_its_argument(packed: Path, tmp_path: Path) -> None:
    manifest = json.loads((packed / "manifest.json").read_text())
    marker = tmp_path / "ran"
    manifest["inputs"][0]["name"] = f"x'; touch {marker}; '$(touch {marker})"
    path = tmp_path / "build_on_target.sh"
    path.write_text(build_script(manifest))
    tool = tmp_path / "trtexec"
    tool.write_text(TOOL)
    tool.chmod(0o755)
    environment = {**os.environ, "TRTEXEC": str(tool), "LOG": str(tmp_path / "log")}
    subprocess.run(["sh", str(path)], check=True, env=environment, cwd=tmp_path)
    assert not marker.exists()
    assert str(marker) in (tmp_path / "log").read_text()
