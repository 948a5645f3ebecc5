"""Export and check: the Q/DQ graph, an FP16 baseline, TensorRT's table, and the rules to obey."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import onnx

from fdda_deploy import __version__
from fdda_deploy.calib_cache.trt_table import render, table_from_record
from fdda_deploy.errors import ExportError
from fdda_deploy.exporters.half import to_half
from fdda_deploy.exporters.qdq import insert_qdq
from fdda_deploy.exporters.trt_rules import check
from fdda_deploy.pipeline.progress import Progress
from fdda_deploy.pipeline.stages.context import Record, RunContext, Stage
from fdda_deploy.pipeline.stages.grids import load_grids
from fdda_deploy.pipeline.stages.placing import placement_of
from fdda_deploy.pipeline.workspace import Json

QDQ = "model.qdq.onnx"
FP16 = "model.fp16.onnx"
TABLE = "calibration.cache"


def _export_inputs(context: RunContext) -> dict[str, Json]:
    target = context.target
    return {**context.keys("load", "quantize"), "half": _casts_to_half(context), "target": target}


def _casts_to_half(context: RunContext) -> bool:
    """Whether the float parts become FP16: as asked; on a CPU, which has no FP16, only then."""
    section = context.config.quantize
    if context.target == "ort-cpu" and section.float_type == "auto":
        return section.numbers == "fp16"
    return section.casts_to_half


def _export(context: RunContext, folder: Path, progress: Progress) -> Record:
    progress(0, 0, "inserting Q/DQ pairs")
    model = onnx.load(context.file("load", "model.fp32.onnx"), load_external_data=False)
    if model.SerializeToString() != context.float_graph.proto.SerializeToString():
        raise ExportError(
            "the network traces to another graph than when it was loaded: its forward() is not "
            "deterministic. Make it so, or run again with --no-cache."
        )
    grids, record = load_grids(context.results["quantize"].folder)
    half = _casts_to_half(context)
    metadata = {
        "fdda_deploy.version": __version__,
        "fdda_deploy.scheme": record.scheme,
        "fdda_deploy.target": record.target,
        "fdda_deploy.float_type": "fp16" if half else "fp32",
        "fdda_deploy.model_digest": record.model_digest,
        "fdda_deploy.data_digest": record.data_digest,
    }
    result = insert_qdq(model, placement_of(context), grids, metadata)
    islands: tuple[tuple[str, str], ...] = ()
    scales_raised = 0
    if half:
        progress(0, 0, "casting to FP16")
        halved = to_half(result)
        result, islands, scales_raised = halved.proto, halved.islands, halved.scales_raised
    (folder / QDQ).write_bytes(result.SerializeToString())
    if context.target != "ort-cpu":  # what a quantized engine is compared with
        (folder / FP16).write_bytes(to_half(model).proto.SerializeToString())
    (folder / TABLE).write_text(render(table_from_record(record)), encoding="ascii")
    return {
        "fp32_bytes": context.file("load", "model.fp32.onnx").stat().st_size,
        "qdq_bytes": (folder / QDQ).stat().st_size,
        "float_type": "fp16" if half else "fp32",
        "fp32_islands": [list(island) for island in islands],
        "scales_raised": scales_raised,
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


EXPORT = Stage("export", _export_inputs, _export, {QDQ: QDQ, FP16: FP16, TABLE: TABLE})
CHECK = Stage("check", _check_inputs, _check)
