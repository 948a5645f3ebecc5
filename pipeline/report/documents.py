"""The documents that a build leaves, each with its version and its JSON Schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from fdda_deploy.calib_cache.record_schema import record_schema
from fdda_deploy.engines.deploy_manifest import manifest_schema
from fdda_deploy.engines.plan_bytes import LayerBytes
from fdda_deploy.pipeline.quantization.sensitivity import LayerSensitivity
from fdda_deploy.pipeline.report.checking import Between
from fdda_deploy.pipeline.report.json_schema import schema_of
from fdda_deploy.pipeline.report.schema import Report

Count = Annotated[int, Between(0)]


class File(TypedDict):
    """One file of a result folder."""

    sha256: str
    bytes: Count


class BuildManifest(TypedDict):
    """Every file of a finished build, by its name below the folder."""

    schema: Literal[1]
    tool_version: str
    files: dict[str, File]


class Sensitivity(TypedDict):
    """What each layer does to the logits when it alone is quantized, at two widths."""

    schema: Literal[1]
    scheme: str
    target: str
    num_images: Count
    rest_bytes: Count
    narrow: list[LayerSensitivity]
    wide: list[LayerSensitivity]


class PlanBytesFile(TypedDict):
    """Where the bytes of a plan go."""

    schema: Literal[1]
    plan_bytes: Count
    weight_bytes: Count
    other_bytes: Count
    generated_kernels: Count
    source_bytes: Count
    zero_bytes: Count
    warnings: list[str]
    layers: list[LayerBytes]


def schemas() -> dict[str, dict[str, Any]]:
    """Returns the JSON Schema of every document by the name that `fdda-deploy schema` gives it."""
    return {
        "report": schema_of(Report, "fdda-deploy report.json, version 1"),
        "manifest": schema_of(BuildManifest, "fdda-deploy manifest.json of a build, version 1"),
        "calibration": record_schema(),
        "sensitivity": schema_of(Sensitivity, "fdda-deploy sensitivity.json, version 1"),
        "plan_bytes": schema_of(PlanBytesFile, "fdda-deploy plan_bytes.json, version 1"),
        "package": dict(manifest_schema()),
    }
