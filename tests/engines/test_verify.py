"""Whether a package works here: whole, loadable, and answering as it did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from package_samples import fitting_machine

from fdda_deploy.engines.package import PackageOptions, write_package
from fdda_deploy.engines.preflight import facts_here
from fdda_deploy.engines.sealed_folder import entry_of
from fdda_deploy.engines.verify import verify_package
from fdda_deploy.errors import EngineError


@pytest.fixture(scope="module")
def packages(finished_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("verified")
    write_package(finished_build, root / "both", PackageOptions(triton_name="tiny"))
    write_package(finished_build, root / "graph", PackageOptions(plan=False))
    write_package(finished_build, root / "plan", PackageOptions(graph=False))
    return root


@pytest.fixture
def both(packages: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packages / "both", tmp_path / "both"))


def without_gpu() -> Any:
    facts = facts_here()
    return fitting_machine(gpu=None, compute_capability=None, onnxruntime=facts.onnxruntime)


def resealed(folder: Path, *names: str) -> None:
    """Gives changed files fitting digests, as a forger would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in names:
        manifest["files"][name] = entry_of(folder / name)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_without_a_gpu_a_plan_does_not_load_and_the_graph_is_named_instead(both: Path) -> None:
    found = verify_package(both, facts=without_gpu)
    assert not found.loads
    assert found.reason == (
        "no NVIDIA GPU or driver is visible, and the TensorRT-RTX "
        f"{json.loads((both / 'manifest.json').read_text())['plan']['version']} plan needs one; "
        "model.qdq.onnx runs with ONNX Runtime: python infer.py"
    )
    assert [probe.passed for probe in found.probes] == [True]


def test_a_package_of_the_graph_alone_loads_wherever_onnx_runtime_is(packages: Path) -> None:
    found = verify_package(packages / "graph")
    assert found.loads
    assert found.reason.endswith("runs model.qdq.onnx")
    assert found.probes[0].relative_l2 < 1e-3


def test_a_package_of_the_plan_alone_has_no_way_out_to_offer(packages: Path) -> None:
    found = verify_package(packages / "plan", facts=without_gpu)
    assert not found.loads
    assert "ONNX" not in found.reason
    assert found.probes == []


def test_verification_leaves_no_trace(packages: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in packages.rglob("*"))
    verify_package(packages / "both", facts=without_gpu)
    assert sorted((path, path.stat().st_mtime_ns) for path in packages.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("model.qdq.onnx", b"\0", "model.qdq.onnx: changed: "),
        ("engine.plan", b"\0", "engine.plan: changed: "),
        ("infer.py", None, "infer.py: missing"),
        ("triton/tiny/2/model.onnx", b"x", "triton/tiny/2/model.onnx: not in the manifest"),
    ],
    ids=["graph", "plan", "missing", "added"],
)
def test_a_file_that_is_not_as_packaged_is_named_and_nothing_is_loaded(
    both: Path, name: str, change: bytes | None, says: str
) -> None:
    path = both / name
    if change is None:
        path.unlink()
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(change + (path.read_bytes() if path.exists() else b""))

    def not_asked() -> Any:
        raise AssertionError("the machine was looked at")

    found = verify_package(both, facts=not_asked)
    assert not found.loads
    assert found.reason.startswith(f"not as it was packaged: {says}")
    assert found.reason.endswith("Get the package again")
    assert found.plan is None


def test_several_problems_are_counted(both: Path) -> None:
    for name in ("infer.py", "run_plan.py", "README.md"):
        (both / name).unlink()
    found = verify_package(both)
    assert "README.md: missing, and 2 more" in found.reason
    assert len(found.problems) == 3


def test_a_graph_that_answers_otherwise_fails_the_self_test(both: Path) -> None:
    model = onnx.load(both / "model.qdq.onnx")
    bias = next(t for t in model.graph.initializer if t.name == "head.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(3), bias.name))
    onnx.save(model, both / "model.qdq.onnx")
    resealed(both, "model.qdq.onnx")
    found = verify_package(both, facts=without_gpu)
    assert not found.loads
    assert "answers the stored images otherwise" in found.reason
    assert found.reason.endswith("Do not deploy it here")


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("model.qdq.onnx", b"junk", "no ONNX file"),
        ("probe.npz", b"junk", "probe.npz: cannot be read"),
    ],
)
def test_a_forged_file_is_refused_in_one_line(
    both: Path, name: str, data: bytes, says: str
) -> None:
    (both / name).write_bytes(data)
    resealed(both, name)
    found = verify_package(both, facts=without_gpu)
    assert not found.loads
    assert says in found.reason
    assert "\n" not in found.reason


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("outputs", [{"name": "else", "dtype": "float32", "shape": [None, 4]}], "wants one input"),
        ("probe", {"file": "model.qdq.onnx", "n": 4, "runs_on": "x"}, "probe.npz: cannot be read"),
        ("graph", {"file": "infer.py", "opset": 21, "ir_version": 10}, "no ONNX file"),
        ("schema", 2, "schema 2, this fdda-deploy reads 1"),
    ],
    ids=["another output", "no probe", "no graph", "later schema"],
)
def test_a_forged_manifest_is_refused_in_one_line(
    both: Path, field: str, value: object, says: str
) -> None:
    manifest = json.loads((both / "manifest.json").read_text())
    (both / "manifest.json").write_text(json.dumps({**manifest, field: value}))
    try:
        reason = verify_package(both, facts=without_gpu).reason
    except EngineError as error:
        reason = str(error)
    assert says in reason
    assert "\n" not in reason


def test_a_package_without_a_probe_is_verified_without_a_self_test(both: Path) -> None:
    manifest = json.loads((both / "manifest.json").read_text())
    (both / "manifest.json").write_text(json.dumps({**manifest, "probe": None}))
    found = verify_package(both, facts=without_gpu)
    assert found.probes == []
    assert "no NVIDIA GPU" in found.reason


def test_a_folder_of_anything_else_is_no_package(tmp_path: Path, finished_build: Path) -> None:
    with pytest.raises(EngineError, match=r"no manifest\.json"):
        verify_package(tmp_path)
    with pytest.raises(EngineError, match="run `fdda-deploy package` on that folder first"):
        verify_package(finished_build)


@pytest.mark.gpu
def test_a_plan_answers_as_the_graph_did(packages: Path) -> None:
    facts = facts_here()
    if facts.gpu is None:
        pytest.skip("no NVIDIA GPU is visible")
    found = verify_package(packages / "both")
    assert found.loads == (found.plan is not None and found.plan.loads)
    assert all(probe.passed for probe in found.probes)
