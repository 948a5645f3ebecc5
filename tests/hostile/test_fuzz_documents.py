"""JSON that other tools and other machines wrote, damaged: read, or refused in one line."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzzing import SEEDS, damaged_bytes, damaged_json, fuzz, outcome
from package_samples import DIGEST, sample_manifest

from fdda_deploy.engines.deploy_manifest import parse_manifest, read_manifest
from fdda_deploy.engines.json_schema import problem_in
from fdda_deploy.engines.layer_info import layers_from_json
from fdda_deploy.engines.layer_profile import profile_from_json
from fdda_deploy.engines.package_texts import readme
from fdda_deploy.engines.sealed_folder import changed_files
from fdda_deploy.engines.trtexec_json import ADVICE, load_json, times_from_json
from fdda_deploy.pipeline.report.manifest import verify

ENTRY = {"sha256": DIGEST, "bytes": 10}
PACKAGE = sample_manifest(
    plan=None,
    probe=None,
    latency={"gpu": {"latency_ms": {"median": 1.5}, "what": "x"}, "cpu": "not measured"},
    triton={"name": "digits", "loads": "graph"},
    files={"model.qdq.onnx": ENTRY, "labels.txt": ENTRY},
)
RUN = {
    "startEnqMs": 0.0,
    "endEnqMs": 0.1,
    "startH2dMs": 0.0,
    "endH2dMs": 0.1,
    "h2dMs": 0.1,
    "startComputeMs": 0.1,
    "endComputeMs": 1.1,
    "computeMs": 1.0,
    "startD2hMs": 1.1,
    "endD2hMs": 1.2,
    "d2hMs": 0.1,
    "latencyMs": 1.2,
}
TIMES = [RUN, {**RUN, "startComputeMs": 2.0, "endComputeMs": 3.0}]
PROFILE = [{"count": 10}, {"name": "conv1", "timeMs": 10.0, "averageMs": 1.0, "percentage": 100.0}]
TENSOR = {"Name": "x", "Dimensions": [1, 3], "Format/Datatype": "Int8 NCHW32"}
INFO = {
    "Layers": [
        "conv0",
        {
            "Name": "conv1",
            "LayerType": "CaskConvolution",
            "TacticName": "t",
            "Inputs": [TENSOR],
            "Outputs": [TENSOR],
            "Weights": {"Type": "Int8"},
            "Metadata": "[ONNX Layer: /conv1/Conv]\u001f[ONNX Layer: q]",
        },
    ],
    "Bindings": ["x", "y"],
}
BUILD = {"schema": 1, "tool_version": "0.1.0", "files": {"a.txt": ENTRY, "b/c.bin": ENTRY}}


def packed(document: object) -> None:
    """Reads a package's manifest, and writes the README that comes of it."""
    manifest = parse_manifest(json.dumps(document).encode())
    assert "<script" not in readme(manifest)


def sealed(root: Path, document: object) -> None:
    """Compares a folder with the manifest of a build; names that lead out are only told of."""
    problems = verify(document, root)
    assert all(isinstance(problem, str) for problem in problems)
    if isinstance(document, dict) and problem_in(document, SEALED) is None:
        changed_files(root, document["files"])


SEALED: dict[str, Any] = {
    "required": ["files"],
    "properties": {"files": {"type": "object", "additionalProperties": {"type": "object"}}},
}
READERS: dict[str, tuple[Any, Callable[[Any], object]]] = {
    "package manifest": (PACKAGE, packed),
    "run times": (TIMES, lambda document: times_from_json(document, "times.json")),
    "layer profile": (PROFILE, lambda document: profile_from_json(document, "profile.json")),
    "layer info": (INFO, lambda document: layers_from_json(document, "info.json")),
}


@pytest.mark.parametrize("kind", READERS)
def test_every_sound_document_is_read(kind: str) -> None:
    document, read = READERS[kind]
    assert outcome(lambda: read(document)) == ""


@pytest.mark.parametrize("kind", READERS)
@fuzz(700, seed=SEEDS)
def test_a_document_with_strange_values_is_read_or_refused(kind: str, seed: int) -> None:
    document, read = READERS[kind]
    outcome(lambda: read(damaged_json(document, seed)))


@fuzz(500, seed=SEEDS)
def test_the_manifest_of_a_build_with_strange_values_gives_lines(tmp_path: Path, seed: int) -> None:
    outcome(functools.partial(sealed, tmp_path, damaged_json(BUILD, seed)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["package manifest", "run times"])
@fuzz(500, seed=SEEDS)
def test_a_damaged_file_of_json_is_read_or_refused(tmp_path: Path, kind: str, seed: int) -> None:
    document, _ = READERS[kind]
    path = tmp_path / "manifest.json"
    path.write_bytes(damaged_bytes(json.dumps(document).encode(), seed))
    outcome(lambda: read_manifest(tmp_path))
    outcome(lambda: times_from_json(load_json(path, ADVICE), "times.json"))


def test_a_layer_that_repeats_one_mark_a_million_times_is_read_at_once() -> None:
    entry = {"Name": "conv", "Metadata": "[ONNX Layer: " * 1_000_000}  # hours, with a pattern
    assert layers_from_json({"Layers": [entry]}, "info.json").layers[0].name == "conv"
