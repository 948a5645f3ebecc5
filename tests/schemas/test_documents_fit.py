"""What a build and its package write fits the JSON Schema that is shipped for it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from fdda_deploy.cli.schemas import FILES
from fdda_deploy.engines.package import PackageOptions, write_package
from fdda_deploy.pipeline.quantization.sensitivity import LayerSensitivity


def problems(name: str, document: Any) -> list[str]:
    """Returns what a validator that we did not write says."""
    jsonschema = pytest.importorskip("jsonschema", reason="comes with the extra 'test'")
    schema = json.loads(FILES[name][1].read_text(encoding="utf-8"))
    found = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in found]


@pytest.mark.parametrize("name", ["report", "manifest", "calibration", "plan_bytes"])
def test_a_document_of_a_build_fits_its_schema(finished_build: Path, name: str) -> None:
    path = finished_build / f"{name}.json"
    if name == "plan_bytes" and not path.is_file():
        pytest.skip("no plan was built here")
    assert problems(name, json.loads(path.read_text())) == []


def test_the_manifest_of_a_package_fits_its_schema(finished_build: Path, tmp_path: Path) -> None:
    write_package(finished_build, tmp_path / "package", PackageOptions())
    document = json.loads((tmp_path / "package" / "manifest.json").read_text())
    assert problems("package", document) == []


def test_a_ranking_of_layers_fits_its_schema() -> None:
    layer = LayerSensitivity(("conv",), 4, None, 0.1, 20.0, 100, 50, 100)
    rows = [{**dataclasses.asdict(layer), "nodes": list(layer.nodes)}]
    document = {"schema": 1, "scheme": "w4a8", "target": "trt", "num_images": 8}
    document |= {"rest_bytes": 4, "narrow": rows, "wide": rows}
    assert problems("sensitivity", document) == []
    assert problems("sensitivity", {**document, "schema": 2}) != []
