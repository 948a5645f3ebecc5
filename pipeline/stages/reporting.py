"""Report: everything the stages measured, as JSON for scripts and as one page for people."""

from __future__ import annotations

import datetime
import json
import platform
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from fdda_deploy import __version__
from fdda_deploy.config import to_dict, to_toml
from fdda_deploy.engines.gpu import gpu_compute_capability, gpu_name, gpu_present
from fdda_deploy.pipeline.progress import Progress
from fdda_deploy.pipeline.report.html import render_html
from fdda_deploy.pipeline.report.rounding import Rounding, rounding_warnings
from fdda_deploy.pipeline.report.schema import REPORT_SCHEMA, validate, without_nonfinite
from fdda_deploy.pipeline.report.skipped import skipped_images
from fdda_deploy.pipeline.stages.context import Record, RunContext, Stage
from fdda_deploy.pipeline.stages.identity import version_of
from fdda_deploy.pipeline.workspace import Json

_BEFORE = (
    "load",
    "statistics",
    "synthesize",
    "sensitivity",
    "assign",
    "quantize",
    "export",
    "check",
    "engine",
    "bench",
    "evaluate",
)
FEWEST_RECOGNISED = 50.0
"""Percent of synthetic images given their label by the float network, below which we warn."""
_MODEL = ("name", "origin", "digest", "parameters", "input", "classes", "batchnorm_layers")
_QUALITY = (
    "teacher_confidence",
    "noise_distance",
    "diversity",
    "class_spread",
    "real_diversity",
    "real_class_spread",
)
_ENGINE = ("backend", "version", "status", "plan_bytes", "seconds", "detail")
_VERSIONS = (
    "fdda-deploy",
    "torch",
    "torchvision",
    "onnx",
    "onnxruntime-gpu",
    "onnxruntime",
    "tensorrt-rtx-cu13-bindings",
    "tensorrt",
    "numpy",
)


def _inputs(context: RunContext) -> dict[str, Json]:
    return {**context.keys(*_BEFORE), "config": json.loads(json.dumps(to_dict(context.config)))}


def _run(context: RunContext, folder: Path, progress: Progress) -> Record:
    progress(0, 0, "writing the report")
    report = without_nonfinite(_report(context))
    validate(report)
    sheet = context.file("synthesize", "contact_sheet.png")
    page = render_html(report, contact_sheet_png=sheet.read_bytes() if sheet.is_file() else None)
    (folder / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (folder / "report.html").write_text(page, encoding="utf-8")
    (folder / "config.toml").write_text(to_toml(context.config), encoding="utf-8")
    return {"report": report}


def _report(context: RunContext) -> dict[str, Any]:
    config, load = context.config, context.record("load")
    evaluated = context.record("evaluate")
    synthesis, quantized = context.record("synthesize"), context.record("quantize")
    check, rounding = context.record("check"), _rounding(quantized)
    return {
        "schema": REPORT_SCHEMA,
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "tool_version": __version__,
        "scheme": config.quantize.scheme.name,
        "runs_as": config.quantize.scheme.runs_as,
        "target": context.target,
        "backend": context.backend.backend,
        "backend_reason": context.backend.reason,
        "recipe": synthesis["recipe"] or "none",
        "schedule": synthesis.get("schedule"),
        "notes": _notes(context),
        "warnings": _warnings(context, rounding),
        "model": {key: load[key] for key in _MODEL} | {"preprocessing": load["described"]},
        "deploy": _deploy(context, load),
        "data": _data(context),
        "accuracy": evaluated["accuracy"],
        "bytes": _bytes(context),
        "layers": quantized["layers"],
        "parity": evaluated["parity"],
        "check": {k: check[k] for k in ("errors", "warnings", "notes", "findings")}
        if check["applies"]
        else None,
        "engine": {key: context.record("engine")[key] for key in _ENGINE}
        | {"compute_capabilities": list(config.engine.sm)},
        "bench": context.record("bench"),
        "synthesis": _synthesis(load, synthesis),
        "rounding": rounding,
        "finetune": quantized["finetune"],
        "diagnosis": quantized["diagnosis"],
        "mixed": _mixed(context.record("assign")),
        "stages": [
            {"name": name, "seconds": result.work_seconds, "cached": result.cached}
            for name, result in context.results.items()
        ],
        "peak_rss_mib": peak_rss_mib(),
        "versions": {name: found for name in _VERSIONS if (found := version_of(name))}
        | {"python": sys.version.split()[0]},
        "seed": config.run.seed,
        "config": to_dict(config),
    }


def _warnings(context: RunContext, rounding: Rounding) -> list[str]:
    return [
        *context.record("load")["warnings"],
        *_image_warnings(context.record("synthesize")),
        *skipped_images({name: result.record for name, result in context.results.items()}),
        *rounding_warnings(rounding),
        *(context.record("engine")["spent"] or {"warnings": []})["warnings"],
    ]


def _deploy(context: RunContext, load: Record) -> dict[str, Any]:
    """Returns what a package must know and no reader of the page asks for."""
    sets = (images for images in (context.calibration, context.evaluation) if images is not None)
    named = (list(images.class_names) for images in sets if images.class_names is not None)
    return {
        "preprocessing": load["preprocessing"],
        "class_names": load["class_names"] or next(named, None),
        "platform": f"{sys.platform}-{platform.machine()}".lower(),
        "gpu": gpu_name(),
        "compute_capability": gpu_compute_capability(),
        "batches": context.record("engine").get("batches"),
    }


def _bytes(context: RunContext) -> dict[str, int | None]:
    exported, engine = context.record("export"), context.record("engine")
    return {
        "fp32_onnx": exported["fp32_bytes"],
        "qdq_onnx": exported["qdq_bytes"],
        "plan": engine["plan_bytes"],
        "fp32_plan": engine["fp32_plan_bytes"],
    }


def _notes(context: RunContext) -> list[str]:
    synthesis, quantized = context.record("synthesize"), context.record("quantize")
    notes = []
    given = context.calibration
    if given is None or given.recipe is not None:
        recipe = synthesis["recipe"] or (given.recipe if given is not None else "")
        notes.append(
            f"No real image was used (recipe {recipe}): everything rests on images from the "
            "network itself."
        )
    elif synthesis["recipe"] is None:
        notes.append("No image was synthesized: ranges and fine-tuning rest on real images alone.")
    if context.config.synthesis.recipe == "auto":
        notes.append(f"Recipe {synthesis['recipe'] or 'none'}: {synthesis['reason']}.")
    if synthesis.get("schedule"):
        notes.append(f"Synthesis: {synthesis['schedule']}.")
    notes.append(_ranges_note(context, quantized))
    engine = context.record("engine")
    if engine["plan_bytes"] and engine["plan_bytes"] > engine["fp32_plan_bytes"]:
        notes.append(
            "The plan is larger than the float one: the INT8 kernels it carries for each layer "
            "outweigh the bytes saved on weights this small."
        )
    if context.backend.backend == "rtx":
        why = "was built without a GPU and cannot run" if not gpu_present() else "was not run"
        notes.append(
            f"The plan {why} here: accuracy was measured on the same graph in ONNX Runtime, and "
            "GPU latency was not measured."
        )
    return notes


def _image_warnings(synthesis: Mapping[str, Any]) -> list[str]:
    """Returns what speaks against the synthetic images."""
    if synthesis["recipe"] is None:
        return []
    warnings = list(synthesis["warnings"])
    if synthesis["teacher_top1"] is not None and synthesis["teacher_top1"] < FEWEST_RECOGNISED:
        warnings.append(
            f"The float network recognises {synthesis['teacher_top1']:.0f} % of the synthetic "
            "images: the schedule was too short for its classes. Images it does not recognise "
            "were used without labels. Take more steps (--num-steps), or --schedule published on "
            "a GPU."
        )
    return warnings


def _ranges_note(context: RunContext, quantized: Mapping[str, Any]) -> str:
    counts = quantized["calibrated_on"]
    if context.config.quantize.scheme.weight_only:
        return "Activations stay in floating point: no range was measured."
    if quantized["ranges_from"] == "untrained-generator":
        return (
            f"Activation ranges come from {counts['synthetic']} images of the generator before its "
            "first step, as published."
        )
    return (
        f"Activation ranges come from {counts['real']} real and {counts['synthetic']} synthetic "
        "images."
    )


def _data(context: RunContext) -> dict[str, Any]:
    images, synthesis = context.calibration, context.record("synthesize")
    covered = context.record("statistics")["covered"]
    real = None
    if images is not None:
        real = {
            "origin": images.origin,
            "n": len(images),
            "classes_covered": covered,
            "digest": images.digest,
            "recipe": images.recipe,
        }
    made = None
    if synthesis["recipe"] is not None:
        made = {"n": synthesis["num_images"], "teacher_top1": synthesis["teacher_top1"]}
    return {
        "calibration": real,
        "synthetic": made,
        "calibrated_on": context.record("quantize")["calibrated_on"],
        "evaluation": context.record("evaluate")["evaluation"],
    }


def _rounding(quantized: Mapping[str, Any]) -> Rounding:
    """Returns how weights came to their integers, with what was not finite as None."""
    changes = {key: quantized[key] for key in ("scale_search", "bias_correction")}
    return cast("Rounding", without_nonfinite({**quantized["rounding"], **changes}))


def _mixed(assigned: dict[str, Any]) -> dict[str, Any] | None:
    """Returns how widths were chosen; every layer's own stands among the layers."""
    if assigned["assignment"] is None:
        return None
    return {key: value for key, value in assigned.items() if key != "assignment"}


def _synthesis(load: dict[str, Any], synthesis: dict[str, Any]) -> dict[str, Any] | None:
    if synthesis["recipe"] is None:
        return None
    keys = ("recipe", "steps", "published_steps", "num_images", "seconds")
    more = ("history", "history_every", "teacher_top1", "bns_distance", *_QUALITY)
    return {**{k: synthesis[k] for k in (*keys, *more)}, "layer_names": load["layer_names"]}


def peak_rss_mib() -> float:
    """Returns this process's largest resident memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


REPORT = Stage(
    "report",
    _inputs,
    _run,
    {"report.json": "report.json", "report.html": "report.html", "config.toml": "config.toml"},
)
