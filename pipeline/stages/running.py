"""Bench and evaluate: latency of plan and graph, and what quantization cost in accuracy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fdda_deploy.engines.bench import BenchOptions, BenchRecord, Subject, bench, bench_together
from fdda_deploy.engines.compare import compare_arrays
from fdda_deploy.engines.doctor import flavour_of
from fdda_deploy.engines.gpu import gpu_present
from fdda_deploy.engines.ort_run import OrtRunner
from fdda_deploy.engines.runner import Runner
from fdda_deploy.engines.trt_api import load_api
from fdda_deploy.engines.trt_run import TrtRunner
from fdda_deploy.exporters import names
from fdda_deploy.pipeline.evaluate import (
    Evaluation,
    agreement,
    evaluate,
    paired_drop,
    torch_predictor,
)
from fdda_deploy.pipeline.progress import Progress
from fdda_deploy.pipeline.stages.building import PLAN
from fdda_deploy.pipeline.stages.context import Record, RunContext, Stage
from fdda_deploy.pipeline.stages.exporting import QDQ
from fdda_deploy.pipeline.stages.grids import apply_grids, load_grids
from fdda_deploy.pipeline.stages.images import Pool
from fdda_deploy.pipeline.stages.placing import converted, placement_of
from fdda_deploy.pipeline.stages.synthesizing import synthetic_images
from fdda_deploy.pipeline.workspace import Json

BENCH_SECONDS = 3.0
PARITY_IMAGES = 64


def _bench_inputs(context: RunContext) -> dict[str, Json]:
    return {
        **context.keys("export", "engine"),
        "threads": context.config.run.threads,
        "batches": list(context.config.engine.bench_batches),
    }


def _bench(context: RunContext, _folder: Path, progress: Progress) -> Record:
    timings = _timed(context, 1, progress)
    swept = []
    for batch in sorted(set(context.config.engine.bench_batches)):
        found = timings if batch == 1 else _timed(context, batch, progress)
        swept += [found[name] for name in ("gpu", "cpu", "float_cpu") if found[name] is not None]
    return {**timings, "sweep": swept}


def _timed(context: RunContext, batch: int, progress: Progress) -> dict[str, Json]:
    """Returns the timings of graph and float graph on the CPU, and of the plan where it runs."""
    feed = {names.INPUT: np.zeros((batch, *context.preprocessing.shape), np.float32)}
    feed[names.INPUT] += np.random.default_rng(0).standard_normal(feed[names.INPUT].shape)
    timings: dict[str, Json] = {"gpu": None}
    threads = context.config.run.threads
    files = context.file("export", QDQ), context.file("load", "model.fp32.onnx")
    whats = (f"{QDQ}, ONNX Runtime on the CPU", "float, ONNX Runtime on the CPU")
    runners = [OrtRunner(path, optimizations="all", num_threads=threads) for path in files]
    with runners[0] as quantized, runners[1] as reference:
        subjects = [Subject(whats[0], quantized, feed), Subject(whats[1], reference, feed)]
        options = BenchOptions(min_seconds=BENCH_SECONDS)
        found = bench_together(subjects, options, progress=progress)
    timings |= {"cpu": _timing(found[0]), "float_cpu": _timing(found[1])}
    if _runs_on_gpu(context):
        with _plan_runner(context) as plan_runner:
            what = f"{PLAN}, {plan_runner.describe()}"
            timings["gpu"] = _timing(bench(plan_runner, feed, what=what, progress=progress))
    return timings


def _timing(record: BenchRecord) -> dict[str, Json]:
    latency = record.gpu_compute or record.latency
    return {
        "what": record.what,
        "batch": record.batch,
        "num_threads": record.num_threads,
        "latency_ms": {
            key: getattr(latency, f"{key}_ms") for key in ("mean", "median", "p90", "p95", "p99")
        },
        "cov_percent": latency.variation_percent,
        "unstable": latency.unstable,
        "images_per_s": record.images_per_second,
    }


def _runs_on_gpu(context: RunContext) -> bool:
    """Whether the plan can be executed here: full TensorRT, and a GPU."""
    return context.backend.backend == "tensorrt" and gpu_present()


@contextlib.contextmanager
def _plan_runner(context: RunContext) -> Iterator[TrtRunner]:
    api = load_api(flavour_of(context.backend.backend))
    with TrtRunner(context.file("engine", PLAN).read_bytes(), api) as runner:
        yield runner


@contextlib.contextmanager
def _quantized_runner(context: RunContext) -> Iterator[Runner]:
    """The plan where it runs, else the Q/DQ graph as it stands, no operator fused."""
    if _runs_on_gpu(context):
        with _plan_runner(context) as plan_runner:
            yield plan_runner
        return
    with _graph_runner(context, context.file("export", QDQ)) as runner:
        yield runner


def _graph_runner(context: RunContext, path: Path) -> OrtRunner:
    return OrtRunner(path, optimizations="none", num_threads=context.config.run.threads)


def _evaluate_inputs(context: RunContext) -> dict[str, Json]:
    images = context.evaluation
    return {
        **context.keys("export", "engine"),
        "images": None if images is None else images.digest,
    }


def _evaluate(context: RunContext, _folder: Path, progress: Progress) -> Record:
    progress(0, 0, "comparing torch and ONNX Runtime")
    parity = {} if context.ranks.follows else _parity(context)
    images = context.evaluation
    if images is None or images.labels is None:
        return {"accuracy": None, "evaluation": None, "parity": parity, "skipped": []}
    with _graph_runner(context, context.file("load", "model.fp32.onnx")) as runner:
        before = _judged(context, runner, _said(progress, "float accuracy"))
        float_on = runner.describe()
    with _quantized_runner(context) as quantized:
        after = _judged(context, quantized, _said(progress, "accuracy"))
        quantized_on = quantized.describe()
    drop = paired_drop(before, after)
    return {
        "accuracy": {
            "float": _measured(before, float_on),
            "quantized": _measured(after, quantized_on),
            "drop": {"mean": drop.mean, "low": drop.low, "high": drop.high},
            "agreement": agreement(before.predictions, after.predictions),
        },
        "evaluation": {
            "origin": images.origin,
            "n": before.n,
            "digest": images.digest,
            "skipped": len(images.skipped),
        },
        "parity": parity,
        "skipped": list(images.skipped),
    }


def _judged(context: RunContext, runner: Runner, progress: Progress) -> Evaluation:
    """Returns what a runner answers; of several ranks each asks its own for its share."""
    images, batch_size = context.evaluation, context.config.run.batch_size
    assert images is not None  # as the caller checked
    return evaluate(_predictor(runner), images, batch_size, progress, context.ranks)


def _said(progress: Progress, text: str) -> Progress:
    return lambda done, total, _text: progress(done, total, text)


def _predictor(runner: Runner) -> _Predictor:
    return _Predictor(runner)


class _Predictor:
    """A runner as the function from images to logits that `evaluate` takes."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def __call__(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return self._runner.infer({names.INPUT: images})[names.OUTPUT].astype(np.float32)


def _measured(result: Evaluation, runs_on: str) -> dict[str, Json]:
    return {
        "top1": result.top1,
        "top5": result.top5,
        "n": result.n,
        "low": result.low,
        "high": result.high,
        "runs_on": runs_on,
    }


def _parity(context: RunContext) -> dict[str, Json]:
    """Compares the fake-quantized torch network with the exported graph on the same images."""
    grids, _ = load_grids(context.results["quantize"].folder)
    network = converted(context, placement_of(context))
    apply_grids(network, grids)
    pool = Pool(context.calibration, synthetic_images(context), context.config.run.seed)
    images = pool.sample(PARITY_IMAGES)
    wanted = torch_predictor(network, torch.device("cpu"))(images.numpy())
    with _graph_runner(context, context.file("export", QDQ)) as runner:
        got = _predictor(runner)(images.numpy())
    found = compare_arrays(names.OUTPUT, wanted, got)
    assert found.top1_agreement is not None  # logits have classes
    return {
        "top1_agreement": 100 * found.top1_agreement,
        "relative_l2": min(found.relative_l2, 1e12),  # JSON has no infinity
        "n": len(images),
    }


BENCH = Stage("bench", _bench_inputs, _bench)
EVALUATE = Stage(
    "evaluate",
    _evaluate_inputs,
    _evaluate,
    shared=lambda context: context.evaluation is not None,
)
