"""The short table that a build prints last."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fdda_deploy.pipeline.report.mixed import mixed_summary
from fdda_deploy.pipeline.report.parts import Accuracy, Sizes, Timing
from fdda_deploy.pipeline.report.phrases import (
    NOT_MEASURED,
    PORTABLE,
    change_of_size,
    counted,
    decimal,
    interval,
    percent,
    plain,
    size,
)
from fdda_deploy.pipeline.report.schema import Report


def summary_rows(report: Report, *, folder: Path | None = None) -> list[tuple[str, str]]:
    """Returns (what, value) lines of plain text, for instance ``("top-1", "98.83 % -> 98.66 %")``.

    The text is free of control characters, and is not markup: print it as it is.

    Args:
        report: A report that :func:`schema.validate` has passed.
        folder: The result folder; the last line says where its report is. None leaves it out.
    """
    rows = [
        ("network", f"{report['model']['name']} as {report['scheme']} for {report['target']}"),
        *_accuracy_rows(report["accuracy"]),
        *([("max drop", mixed_summary(report["mixed"]))] if report["mixed"] else []),
        ("ONNX", _onnx(report["bytes"])),
        ("plan", _plan(report)),
        *_engine_rows(report["engine"] or {}),
        ("GPU latency", _latency(report["bench"]["gpu"])),
    ]
    if report["bench"]["cpu"] is not None:
        rows.append(("CPU latency", _latency(report["bench"]["cpu"])))
    if report["warnings"]:
        rows.append(("warnings", f"{len(report['warnings'])}, named in the report"))
    if folder is not None:
        rows.append(("report", str(folder / "report.html")))
    return [(what, plain(value)) for what, value in rows]


def stage_rows(stage: str, record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns what one stage found as (what, value) lines; none where its files say it.

    Args:
        stage: Its name, for instance ``evaluate``.
        record: As the stage returned it.
    """
    if stage == "evaluate":
        return _accuracy_rows(record["accuracy"])
    if stage == "bench":
        names = (("GPU latency", "gpu"), ("CPU latency", "cpu"), ("CPU, float", "float_cpu"))
        return [(name, plain(_latency(record[key]))) for name, key in names]
    if stage == "check" and not record["applies"]:
        return [("rules", "TensorRT's do not apply: ONNX Runtime runs this graph")]
    if stage == "check":
        parts = (counted(record[f"{name}s"], name) for name in ("error", "warning", "note"))
        return [("rules", ", ".join(parts))]
    return _engine_rows(record) if stage == "engine" else []


def _engine_rows(engine: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns what the engine did otherwise than asked, if anything."""
    told = (engine.get("detail") or "") if engine.get("status") == "built" else ""
    told = told.replace(PORTABLE, "").strip("; ")
    return [("engine", plain(told))] if told else []


def _accuracy_rows(accuracy: Accuracy | None) -> list[tuple[str, str]]:
    if accuracy is None:
        return [("top-1", f"{NOT_MEASURED}: no labelled images (--eval-data)")]
    before, after, drop = accuracy["float"], accuracy["quantized"], accuracy["drop"]
    images = counted(after["n"], "image")
    # Always "drop" with its sign, so that the number and its interval speak of the same thing.
    bounds = "no interval"
    if drop["low"] is not None:
        bounds = f"95 % interval {interval(drop['low'], drop['high'])}"
    return [
        ("top-1", f"{percent(before['top1'])} -> {percent(after['top1'])} on {images}"),
        ("drop", f"{decimal(drop['mean'])} points, {bounds}"),
    ]


def _onnx(sizes: Sizes) -> str:
    before, after = sizes["fp32_onnx"], sizes["qdq_onnx"]
    if after is None:
        return "not written"
    if before is None:
        return size(after)
    return f"{size(before)} -> {size(after)} ({change_of_size(before, after)})"


def _plan(report: Report) -> str:
    engine, plan_bytes = report["engine"], report["bytes"]["plan"]
    if engine is None:
        return "not built"
    name = " ".join(part for part in (engine["backend"], engine["version"]) if part)
    state = engine["status"] if plan_bytes is None else size(plan_bytes)
    return f"{state}, {name}" if name else state


def _latency(timing: Timing | None) -> str:
    if timing is None:
        return NOT_MEASURED
    text = f"{decimal(timing['latency_ms']['median'], 3)} ms median, batch {timing['batch']}"
    return f"{text}, {timing['what']}" + (", unstable" if timing["unstable"] else "")
