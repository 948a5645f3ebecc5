"""Engine: the plan of the Q/DQ graph, the float plan it is held against, and where its bytes go."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fdda_deploy.engines.build_options import BuildOptions, options_from
from fdda_deploy.engines.device_memory import open_device_memory
from fdda_deploy.engines.doctor import flavour_of
from fdda_deploy.engines.gpu import gpu_present
from fdda_deploy.engines.plan_bytes import attribute
from fdda_deploy.engines.trt_api import TrtApi, load_api
from fdda_deploy.engines.trt_build import BuiltPlan, build_plan
from fdda_deploy.engines.trt_calibrator import make_calibrator, record_of, told
from fdda_deploy.pipeline.progress import Progress
from fdda_deploy.pipeline.report.phrases import PORTABLE
from fdda_deploy.pipeline.stages.context import Record, RunContext, Stage
from fdda_deploy.pipeline.stages.exporting import QDQ
from fdda_deploy.pipeline.stages.images import Pool
from fdda_deploy.pipeline.stages.synthesizing import synthetic_images
from fdda_deploy.pipeline.workspace import Json

PLAN = "engine.plan"
PLAN_BYTES = "plan_bytes.json"
FLOAT_GRAPH = "model.fp32.onnx"
TABLE = "trt_calibration.cache"
_SPENT = (
    "weight_bytes",
    "other_bytes",
    "generated_kernels",
    "source_bytes",
    "zero_bytes",
    "warnings",
)


def _inputs(context: RunContext) -> dict[str, Json]:
    engine = context.config.engine
    return {
        **context.keys("load", "export"),
        "backend": context.backend.backend,
        "sm": list(engine.sm),
        "gpu": gpu_present(),
        "batches": list(engine.batches(context.config.run.batch_size)),
        "opt_level": engine.opt_level,
        "workspace": engine.workspace,
        "hardware_compatible": engine.hardware_compatible,
        "version_compatible": engine.version_compatible,
        "strip": engine.strip,
        "calibrator": engine.calibrator,
    }


def _run(context: RunContext, folder: Path, progress: Progress) -> Record:
    backend = context.backend.backend
    if backend == "ort-cpu":
        return _skipped(f"ONNX Runtime runs {QDQ} itself: there is no plan to build.")
    api = load_api(flavour_of(backend))
    options = options_from(context.config.engine, context.config.run.batch_size)
    graph, floats = context.file("export", QDQ), context.file("load", FLOAT_GRAPH)
    notes, calibrated = [], None
    if context.config.engine.calibrator == "trt":
        notes.append(told(api))
    progress(0, 0, "building the plan")
    if context.config.engine.calibrator == "trt" and api.capabilities.calibrators:
        graph = floats
        built, calibrated = _calibrated(context, api, options, folder)
    else:
        built = build_plan(graph.read_bytes(), options, api)
    (folder / PLAN).write_bytes(built.plan)
    progress(0, 0, "building the float plan, for its size")
    reference = build_plan(floats.read_bytes(), options, api)
    progress(0, 0, "looking for the weights in the plan")
    spent: dict[str, Json] | None = None
    if not options.strip:  # a stripped plan has no weights to look for
        spent = json.loads(json.dumps(attribute(built.plan, graph.read_bytes()).to_json()))
        (folder / PLAN_BYTES).write_text(json.dumps(spent, indent=1), encoding="utf-8")
    if not options.compute_capabilities and not gpu_present():
        notes.append(PORTABLE)
    notes += built.notes
    return {
        "backend": built.backend,
        "version": built.version,
        "status": "built",
        "plan_bytes": len(built.plan),
        "fp32_plan_bytes": len(reference.plan),
        "seconds": built.seconds,
        "detail": "; ".join(note.rstrip(".") for note in notes) or None,
        "batches": [options.min_batch, options.opt_batch, options.max_batch],
        "spent": None if spent is None else {key: spent[key] for key in _SPENT},
        "calibrated": calibrated,
    }


def _skipped(detail: str) -> Record:
    return {
        "backend": "ort-cpu",
        "version": None,
        "status": "skipped",
        "plan_bytes": None,
        "fp32_plan_bytes": None,
        "seconds": None,
        "detail": detail,
        "batches": None,
        "spent": None,
        "calibrated": None,
    }


def _calibrated(
    context: RunContext, api: TrtApi, options: BuildOptions, folder: Path
) -> tuple[BuiltPlan, Json]:
    """Returns the plan of the float network that TensorRT 10 calibrated, and what it says of it."""
    kind = "minmax" if context.config.quantize.observer == "minmax" else "entropy2"
    with ExitStack() as stack:
        memory = open_device_memory()
        stack.callback(memory.close)
        key = f"{context.record('load')['digest']}-{context.results['synthesize'].key}"
        calibration = make_calibrator(
            api, _images(context), memory, cache=folder / TABLE, key=key, kind=kind
        )
        model = context.file("load", FLOAT_GRAPH).read_bytes()
        built = build_plan(model, options, api, calibration)
        record: Json = json.loads(json.dumps(record_of(calibration, api, kind)))
    return built, record


def _images(context: RunContext) -> Iterator[npt.NDArray[np.float32]]:
    pool = Pool(context.calibration, synthetic_images(context), context.config.run.seed)
    counts = pool.calibration_counts(context.config.quantize.calibrate_on)
    for batch in pool.calibration_batches(counts, context.config.run.batch_size):
        yield batch.numpy().astype(np.float32)


ENGINE = Stage("engine", _inputs, _run, {PLAN: PLAN, PLAN_BYTES: PLAN_BYTES, TABLE: TABLE})
