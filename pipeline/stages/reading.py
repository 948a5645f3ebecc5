"""Load and statistics: the network, its float graph, and what real images look like inside it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch

from fdda_deploy.engines.ort_run import OrtRunner
from fdda_deploy.errors import ExportError
from fdda_deploy.exporters import names
from fdda_deploy.pipeline.progress import Progress
from fdda_deploy.pipeline.stages.context import Record, RunContext, Stage
from fdda_deploy.pipeline.stages.identity import model_identity
from fdda_deploy.pipeline.synthesis.center_file import load_class_centers
from fdda_deploy.pipeline.synthesis.center_writer import CenterWriter
from fdda_deploy.pipeline.synthesis.statistics import untrained_statistics
from fdda_deploy.pipeline.workspace import Json

FLOAT_TOLERANCE = 1e-3
"""Largest relative L2 between torch and ONNX Runtime on the float network: summation order only."""
_CHECK_BATCH = 3
CENTERS = "centers.safetensors"


def _load_inputs(context: RunContext) -> dict[str, Json]:
    return {
        "model": json.loads(json.dumps(dataclasses.asdict(context.config.model))),
        "identity": model_identity(context.config.model),
    }


def _load(context: RunContext, folder: Path, progress: Progress) -> Record:
    progress(0, 0, "reading the network")
    model = context.model
    network = context.statistics
    progress(0, 0, "exporting the float graph")
    graph = context.float_graph
    proto = graph.proto.SerializeToString()
    (folder / "model.fp32.onnx").write_bytes(proto)
    difference = _float_difference(context, proto)
    if not difference <= FLOAT_TOLERANCE:
        raise ExportError(
            f"{model.name}: the exported graph differs from the network by {difference:.2g} "
            f"(relative L2, at most {FLOAT_TOLERANCE:g}). An operator's translation is wrong; "
            "cut the network before it."
        )
    warnings = []
    if network.layers and untrained_statistics(network):
        warnings.append(
            "Every BatchNorm layer has running mean 0 and variance 1: the network was never "
            "trained, or its BatchNorm was folded. Synthetic images mean nothing then."
        )
    return {
        "name": model.name,
        "origin": model.origin,
        "digest": model.digest,
        "parameters": sum(p.numel() for p in model.module.parameters()),
        "classes": model.num_classes,
        "class_names": list(model.class_names) if model.class_names else None,
        "preprocessing": _plain(dataclasses.asdict(model.preprocessing)),
        "described": model.preprocessing.describe(),
        "input": list(model.preprocessing.shape),
        "batchnorm_layers": len(network.layers),
        "layer_names": [layer.name for layer in network.layers],
        "float_difference": difference,
        "warnings": warnings,
    }


def _float_difference(context: RunContext, proto: bytes) -> float:
    """Returns ``||onnx - torch|| / ||torch||`` on random images, in another batch than traced."""
    shape = (_CHECK_BATCH, *context.model.preprocessing.shape)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = context.model.module(x)
    while isinstance(wanted, tuple | list):
        wanted = wanted[0]
    with OrtRunner(proto, optimizations="basic") as runner:
        got = runner.infer({names.INPUT: x.numpy()})[names.OUTPUT]
    reference = wanted.numpy()
    return float(np.linalg.norm(got - reference)) / max(float(np.linalg.norm(reference)), 1e-12)


def _statistics_inputs(context: RunContext) -> dict[str, Json]:
    recipe, images = context.recipe, context.calibration
    uses_centers = recipe is not None and recipe.uses_centers
    return {
        **context.keys("load"),
        "centers": uses_centers,
        "images": images.digest if uses_centers and images is not None else None,
        "device": context.device.type,
    }


def _statistics(context: RunContext, folder: Path, progress: Progress) -> Record:
    recipe, images = context.recipe, context.calibration
    if recipe is None or not recipe.uses_centers or images is None:
        return {"centers": False, "covered": None, "correct": None}
    labels, ranks = images.labels, context.ranks
    assert labels is not None  # as the recipe was chosen
    by_class = np.argsort(labels, kind="stable")
    mine = by_class[labels[by_class] % ranks.size == ranks.rank]  # whole classes, one by one
    path = folder / CENTERS
    with CenterWriter(
        context.statistics,
        context.record("load")["classes"],
        path,
        device=context.device,
        ranks=ranks,
    ) as writer:
        left = mine[~np.isin(labels[mine], writer.done.nonzero().numpy())]
        done = len(mine) - len(left)
        for batch in images.batches(context.config.run.batch_size, left):
            writer.add(*batch)
            done += len(batch[0])
            progress(done, len(mine), "measuring class centers")
        writer.finish()
    if ranks.follows:
        return {}
    centers = load_class_centers(path)
    return {
        "centers": True,
        "covered": int((centers.counts > 0).sum()),
        "correct": int((centers.correct & (centers.counts > 0)).sum()),
    }


def _plain(value: object) -> Json:
    plain: Json = json.loads(json.dumps(value))
    return plain


LOAD = Stage("load", _load_inputs, _load, {"model.fp32.onnx": "model.fp32.onnx"})
STATISTICS = Stage(
    "statistics",
    _statistics_inputs,
    _statistics,
    shared=lambda context: context.recipe is not None and context.recipe.uses_centers,
)
