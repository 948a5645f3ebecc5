"""Export and check: the Q/DQ graph, TensorRT's calibration table, and the rules it must obey."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import onnx

from fdda_deploy import __version__
from fdda_deploy.calib_cache.trt_table import render, table_from_record
from fdda_deploy.errors import ExportError
from fdda_deploy.exporters.qdq import insert_qdq
from fdda_deploy.exporters.trt_rules import check
from fdda_deploy.pipeline.progress import Progress
from fdda_deploy.pipeline.stages.context import Record, RunContext, Stage
from fdda_deploy.pipeline.stages.grids import load_grids
from fdda_deploy.pipeline.stages.quantizing import placement_of
from fdda_deploy.pipeline.workspace import Json

QDQ = "model.qdq.onnx"
TABLE = "calibration.cache"


def _export_inputs(context: RunContext) -> dict[str, Json]:
    return context.keys("load", "quantize")


def _export(context: RunContext, folder: Path, progress: Progress) -> Record:
    progress(0, 0, "inserting Q/DQ pairs")
    model = onnx.load(context.file("load", "model.fp32.onnx"), load_external_data=False)
    if model.SerializeToString() != context.float_graph.proto.SerializeToString():
        raise ExportError(
            "the network traces to another graph than when it was loaded: its forward() is not "
            "deterministic. Make it so, or run again with --no-cache."
        )
    grids, record = load_grids(context.results["quantize"].folder)
    metadata = {
        "fdda_deploy.version": __version__,
        "fdda_deploy.scheme": record.scheme,
        "fdda_deploy.target": record.target,
        "fdda_deploy.model_digest": record.model_digest,
        "fdda_deploy.data_digest": record.data_digest,
    }
    result = insert_qdq(model, placement_of(context), grids, metadata)
    (folder / QDQ).write_bytes(result.SerializeToString())
    (folder / TABLE).write_text(render(table_from_record(record)), encoding="ascii")
    return {
        "fp32_bytes": context.file("load", "model.fp32.onnx").stat().st_size,
        "qdq_bytes": (folder / QDQ).stat().st_size,
    }


def _check_inputs(context: RunContext) -> dict[str, Json]:
    return {
        **context.keys("export"),
        "target": context.target,
        "sm": list(context.config.engine.sm),
    }


def _check(context: RunContext, folder: Path, progress: Progress) -> Record:
    if context.target == "ort-cpu":
        return {"errors": 0, "warnings": 0, "notes": 0, "findings": [], "applies": False}
    progress(0, 0, "checking TensorRT's rules")
    findings = check(
        onnx.load(context.file("export", QDQ), load_external_data=False),
        target=context.target,
        compute_capabilities=context.config.engine.sm,
        profiles_given=True,  # the engine stage gives one for the batch
    )
    plain: list[dict[str, Json]] = [
        json.loads(json.dumps(dataclasses.asdict(finding), default=str)) for finding in findings
    ]
    counts = {
        key: sum(finding["severity"] == severity for finding in plain)
        for key, severity in (("errors", "error"), ("warnings", "warning"), ("notes", "note"))
    }
    if counts["errors"]:
        first = next(finding for finding in plain if finding["severity"] == "error")
        raise ExportError(
            f"{first['rule']} at {first['node'] or first['tensor']}: {first['why']} "
            f"{first['repair']}"
        )
    (folder / "findings.json").write_text(json.dumps(plain, indent=1), encoding="utf-8")
    return {**counts, "findings": list(plain), "applies": True}


EXPORT = Stage("export", _export_inputs, _export, {QDQ: QDQ, TABLE: TABLE})
CHECK = Stage("check", _check_inputs, _check)
