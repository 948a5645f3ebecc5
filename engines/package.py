"""The folder to deploy, made from a finished build: whole, or not there at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fdda_deploy.durable import TEMP_SUFFIX
from fdda_deploy.engines import deployed
from fdda_deploy.engines.build_result import AGAIN, GRAPH, PLAN, BuildFiles, read_build
from fdda_deploy.engines.deploy_manifest import (
    MANIFEST,
    SCHEMA_FILE,
    TEMPLATES,
    manifest_schema,
    parse_manifest,
    read_manifest,
)
from fdda_deploy.engines.json_schema import problem_in
from fdda_deploy.engines.package_manifest import batches, described_graph, package_manifest
from fdda_deploy.engines.package_texts import build_script, readme
from fdda_deploy.engines.probe import (
    IMAGES,
    PROBE,
    open_graph,
    probe_bytes,
    probe_images,
    take_probe,
)
from fdda_deploy.engines.sealed_folder import added_files, entry_of
from fdda_deploy.engines.triton import (
    FILES,
    LABELS,
    Loads,
    TritonModel,
    config_pbtxt,
    triton_name,
)
from fdda_deploy.errors import ConfigError, EngineError

DEPLOYED = Path(deployed.__file__).parent
SCRIPTS = ("infer.py", "run_plan.py")
BUILD_SCRIPT, BUILD_LINE = "build_on_target.py", "build_on_target.sh"
READABLE, EXECUTABLE = 0o644, 0o755


@dataclass(frozen=True)
class PackageOptions:
    """What goes into a package.

    Attributes:
        plan: The plan, where the build made one.
        graph: The Q/DQ graph, to run in ONNX Runtime and to build from on the target.
        triton_name: Triton's name of the network; None makes one of the model's.
        max_batch: Largest batch; None takes the plan's.
        force: Replace a package of ours that is there already.
    """

    plan: bool = True
    graph: bool = True
    triton_name: str | None = None
    max_batch: int | None = None
    force: bool = False


def write_package(result: Path, out: Path, options: PackageOptions) -> Mapping[str, Any]:
    """Writes the package of a finished build to ``out``; returns its manifest.

    Raises:
        ConfigError: Options that leave nothing to deploy, or a batch or name out of range.
        EngineError: The build is not finished or was changed, ``out`` is taken, the graph does
            not run, or the disk refuses; nothing is left of the package then.
    """
    if not (options.plan or options.graph):
        raise ConfigError("--no-plan and --no-onnx together leave nothing to deploy. Drop one.")
    _require_free(out, force=options.force)
    build = read_build(result)
    with_plan = options.plan and build.plan is not None
    if not (with_plan or options.graph):
        raise ConfigError(f"{result}: the build made no plan. Leave --no-onnx out.")
    opset, inputs, outputs = described_graph(build.graph)
    manifest = package_manifest(
        build,
        graph=opset if options.graph else None,
        inputs=inputs,
        outputs=outputs,
        batch=batches(build, inputs, max_batch=options.max_batch, planned=with_plan),
        with_plan=with_plan,
    )
    problem = problem_in(manifest, manifest_schema())
    if problem:
        raise EngineError(f"{result}: what its report says makes no package: {problem}. {AGAIN}")
    triton = _triton(manifest, build, options)
    files = _files(manifest, build, triton)
    temp = out.parent / f".{secrets.token_hex(6)}{TEMP_SUFFIX}"
    try:
        try:
            _fill(temp, files, manifest)
            _publish(temp, out)
        finally:
            shutil.rmtree(temp, ignore_errors=True)
    except OSError as error:
        raise EngineError(
            f"{out}: cannot be written ({error.strerror or error}). Choose another --out, with "
            "room."
        ) from error
    return read_manifest(out)


def _triton(
    manifest: Mapping[str, Any], build: BuildFiles, options: PackageOptions
) -> TritonModel | None:
    """Returns what Triton loads: a plan of full TensorRT, else the graph, else nothing."""
    name = options.triton_name or triton_name(manifest["model"]["name"])
    plan = manifest["plan"]
    loads: Loads = "plan" if plan is not None and plan["flavour"] == "tensorrt" else "graph"
    on_gpu = build.report["target"] != "ort-cpu"
    batch = manifest["batch"]
    model = TritonModel(
        name,
        loads,
        tuple(manifest["inputs"]),
        tuple(manifest["outputs"]),
        (batch["min"], batch["opt"], batch["max"]),
        on_gpu,
        has_labels=manifest["labels"] is not None,
    )
    return None if loads == "graph" and manifest["graph"] is None else model


def _files(
    manifest: dict[str, Any], build: BuildFiles, triton: TritonModel | None
) -> dict[str, bytes]:
    """Returns every file but the manifest by name, and notes probe and triton in the manifest."""
    files = {name: (DEPLOYED / name).read_bytes() for name in SCRIPTS}
    files[SCHEMA_FILE] = (TEMPLATES / SCHEMA_FILE).read_bytes()
    probe, runs_on = _probe(manifest, build.graph)
    files[PROBE] = probe
    count = _probe_count(manifest)
    manifest["probe"] = {"file": PROBE, "n": count, "runs_on": runs_on}
    if manifest["plan"] is not None:
        assert build.plan is not None  # it is why the manifest has one
        files[PLAN] = build.plan
    if manifest["graph"] is not None:
        files[GRAPH] = build.graph
        files[BUILD_SCRIPT] = (DEPLOYED / BUILD_SCRIPT).read_bytes()
        files[BUILD_LINE] = build_script(manifest).encode()
    labels = None
    if manifest["labels"] is not None:
        labels = "".join(f"{label}\n" for label in manifest["labels"]).encode()
        files[LABELS] = labels
    if triton is not None:
        manifest["triton"] = {"name": triton.name, "loads": triton.loads}
        place = f"triton/{triton.name}"
        files[f"{place}/config.pbtxt"] = config_pbtxt(triton).encode("ascii")
        content = files[PLAN] if triton.loads == "plan" else files[GRAPH]
        files[f"{place}/1/{FILES[triton.loads]}"] = content
        if labels is not None:
            files[f"{place}/{LABELS}"] = labels
    files["README.md"] = readme(manifest).encode()
    return files


def _probe_count(manifest: Mapping[str, Any]) -> int:
    """Returns how many images the probe has: a batch that every runtime here accepts."""
    batch = manifest["batch"]
    return int(min(max(IMAGES, batch["min"]), batch["max"]))


def _probe(manifest: Mapping[str, Any], graph: bytes) -> tuple[bytes, str]:
    images = probe_images(manifest["preprocessing"], _probe_count(manifest))
    with open_graph(graph) as runner:
        probe = take_probe(runner, images, manifest["outputs"][0]["name"])
        return probe_bytes(probe), runner.describe()


def _fill(temp: Path, files: Mapping[str, bytes], manifest: dict[str, Any]) -> None:
    """Writes everything into a new folder, the manifest last."""
    temp.parent.mkdir(parents=True, exist_ok=True)
    temp.mkdir()
    for name in sorted(files):
        _write(temp / name, files[name], executable=name == BUILD_LINE)
        manifest["files"][name] = entry_of(temp / name)
    document = json.dumps(manifest, indent=1, allow_nan=False).encode()
    parse_manifest(document)  # what this version writes, it reads
    _write(temp / MANIFEST, document, executable=False)


def _write(path: Path, data: bytes, *, executable: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(EXECUTABLE if executable else READABLE)


def _require_free(out: Path, *, force: bool) -> None:
    """Refuses a target whose content is anybody's but ours.

    Raises:
        EngineError: The target is a link, a file, a folder with other files, or a package that
            may not be replaced.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise EngineError(f"{out}: not a folder of its own. Choose another --out.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    try:
        manifest = read_manifest(out)
    except EngineError:
        raise EngineError(
            f"{out}: not empty, and no package of this fdda-deploy. Choose another --out."
        ) from None
    if not force:
        raise EngineError(f"{out}: a package is there already. Replace it with --force.")
    foreign = added_files(out, {MANIFEST, *manifest["files"]})
    if foreign:
        name = foreign[0].split(":")[0]
        raise EngineError(f"{out}: {name} is no file of the package there. Move it away first.")


def _publish(temp: Path, out: Path) -> None:
    """Gives the finished folder its name; what was there goes only once that is done."""
    aside = out.parent / f".{secrets.token_hex(6)}{TEMP_SUFFIX}"
    if out.is_dir():
        out.rename(aside)
    try:
        temp.rename(out)
    except OSError:
        if aside.is_dir():
            aside.rename(out)
        raise
    shutil.rmtree(aside, ignore_errors=True)
