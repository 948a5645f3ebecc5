"""The result folder of a build, read for packaging: what is taken from it, and what must hold."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fdda_deploy
from fdda_deploy.engines.deploy_manifest import MAX_MANIFEST_BYTES, strict_json
from fdda_deploy.engines.json_schema import problem_in
from fdda_deploy.engines.sealed_folder import changed_files, read_inside
from fdda_deploy.errors import EngineError

REPORT, GRAPH, PLAN = "report.json", "model.qdq.onnx", "engine.plan"
RESULT_MANIFEST = "manifest.json"
SCHEMA = 1
"""Version of both documents."""
SCHEMAS = Path(fdda_deploy.__file__).parent / "schemas"
AGAIN = "Run `fdda-deploy build` again, to its end."

_TABLE = {"type": "object"}
_TABLE_OR_NONE = {"type": ["object", "null"]}
_COUNT = {"type": "integer", "minimum": 0}
_RESULT_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "required": ["schema", "tool_version", "files"],
    "properties": {
        "schema": {"const": 1},
        "tool_version": {"type": "string"},
        "files": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["sha256", "bytes"],
                "properties": {"sha256": {"type": "string"}, "bytes": _COUNT},
            },
        },
    },
}
_REPORT_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "required": [
        *("schema", "scheme", "runs_as", "target", "recipe", "model", "deploy", "data"),
        *("accuracy", "engine", "bench", "rounding", "config"),
    ],
    "properties": {
        "schema": {"const": 1},
        "scheme": {"type": "string"},
        "runs_as": {"type": "string"},
        "target": {"type": "string"},
        "recipe": {"type": ["string", "null"]},
        "model": {
            "type": "object",
            "required": ["name", "digest", "parameters", "classes"],
            "properties": {"name": {"type": "string"}},
        },
        "deploy": {
            "type": "object",
            "required": [
                *("preprocessing", "class_names", "platform", "gpu", "compute_capability"),
                "batches",
            ],
            "properties": {
                "class_names": {"type": ["array", "null"], "items": {"type": "string"}},
                "batches": {
                    "type": ["array", "null"],
                    "items": {"type": "integer", "minimum": 1},
                    "minItems": 3,
                    "maxItems": 3,
                },
                "preprocessing": {
                    "type": "object",
                    "required": [
                        *("height", "width", "channels", "resize", "mean", "std"),
                        "interpolation",
                    ],
                },
            },
        },
        "data": {
            "type": "object",
            "required": ["calibrated_on", "evaluation"],
            "properties": {
                "calibrated_on": {"type": ["object", "null"], "additionalProperties": _COUNT},
                "evaluation": _TABLE_OR_NONE,
                "calibration": {
                    "type": ["object", "null"],
                    "properties": {"recipe": {"type": ["string", "null"]}},
                },
            },
        },
        "accuracy": {
            "type": ["object", "null"],
            "required": ["float", "quantized", "drop"],
            "properties": {"float": _TABLE, "quantized": _TABLE, "drop": _TABLE},
        },
        "engine": {
            "type": ["object", "null"],
            "required": ["backend", "version", "status", "compute_capabilities"],
        },
        "bench": _TABLE,
        "rounding": _TABLE,
        "config": {
            "type": "object",
            "required": ["quantize", "engine"],
            "properties": {"quantize": _TABLE, "engine": _TABLE},
        },
    },
}


@dataclass(frozen=True)
class BuildFiles:
    """What a package is made of.

    Attributes:
        report: report.json, with the fields that packaging reads.
        tool_version: The fdda-deploy that built it.
        graph: The Q/DQ ONNX file.
        plan: The plan; None where the build made none.
    """

    report: Mapping[str, Any]
    tool_version: str
    graph: bytes
    plan: bytes | None


def read_build(folder: Path) -> BuildFiles:
    """Returns the files of a finished build, each as its manifest says.

    Raises:
        EngineError: No finished build is there, a file was changed since, or the report lacks
            what a package needs.
    """
    if not folder.is_dir():
        raise EngineError(f"{folder}: no such folder. Give the result folder of a build.")
    if not (folder / RESULT_MANIFEST).is_file():
        raise EngineError(f"{folder}: no {RESULT_MANIFEST}: no finished build is here. {AGAIN}")
    manifest = _checked(folder, RESULT_MANIFEST, _RESULT_SCHEMA)
    wanted = {name: manifest["files"].get(name) for name in (REPORT, GRAPH, PLAN)}
    missing = [name for name in (REPORT, GRAPH) if wanted[name] is None]
    if missing:
        raise EngineError(f"{folder}: its manifest names no {' and no '.join(missing)}. {AGAIN}")
    changed = changed_files(folder, {name: entry for name, entry in wanted.items() if entry})
    if changed:
        raise EngineError(f"{folder}: {changed[0]}. {AGAIN}")
    report = _checked(folder, REPORT, _REPORT_SCHEMA)
    plan = read_inside(folder, PLAN) if wanted[PLAN] else None
    return BuildFiles(report, manifest["tool_version"], read_inside(folder, GRAPH), plan)


@functools.cache
def _shipped(name: str) -> Mapping[str, Any]:
    """Returns the whole JSON Schema of a document, made from the types of what writes it."""
    path = SCHEMAS / f"{name}.schema.json"
    schema: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return schema


def _checked(folder: Path, name: str, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    where = str(folder / name)
    document = strict_json(read_inside(folder, name, limit=MAX_MANIFEST_BYTES), where=where)
    version = document.get("schema") if isinstance(document, dict) else None
    if isinstance(version, int) and not isinstance(version, bool) and version > SCHEMA:
        raise EngineError(
            f"{where}: schema {version}, this fdda-deploy reads {SCHEMA}. Upgrade fdda-deploy, or "
            "build again with this one."
        )
    called = name.removesuffix(".json")
    problem = problem_in(document, schema, called)
    problem = problem or problem_in(document, _shipped(called), called)
    if problem:
        raise EngineError(f"{where}: {problem}. {AGAIN}")
    assert isinstance(document, dict)  # the schema says so
    return document
