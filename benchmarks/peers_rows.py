"""Rows of benchmarks/peers.py: one network quantized one way and measured, and what it was made by.

A row is measured in a lane: a process with CPUs of its own, which quantizers inherit. Latency is
not: files of a network are timed together, when no lane works any more.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnxruntime
import peers_modelopt_venv
from peers_child import GIB, Finished, run
from peers_inputs import Inputs, prepared
from peers_measure import Effort, latencies, measured
from peers_tools import (
    MODELOPT,
    ORT,
    OURS,
    VARIANTS,
    Variant,
    command_of,
    file_of,
    require_same_images,
)
from tally import Row, processor_seconds

from fdda_deploy.pipeline.workspace import code_digest

DIGITS = 12
"""Hex digits of the code's digest that a row keeps."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a row depends on beside its network and variant.

    Attributes:
        images: To calibrate on.
        test_images: At most.
        threads: CPU threads of every tool.
        rounds: Of latency.
        limit_seconds: Of one quantization.
        limit_gib: Memory of one quantization.
        lanes: Quantizations at a time.
    """

    images: int = 500
    test_images: int = 1000
    threads: int = 1
    rounds: int = 3
    limit_seconds: float = 600
    limit_gib: float = 6
    lanes: int = 2


@dataclasses.dataclass(frozen=True)
class Place:
    """Where files are made, and the Python that has ModelOpt.

    Attributes:
        work: Scratch folder.
        settings: Of the run.
        modelopt: Python of its environment.
        no_modelopt: Why there is none; None where it is there.
    """

    work: Path
    settings: Settings
    modelopt: Path = Path()
    no_modelopt: str | None = None

    def inputs(self, network: str) -> Inputs:
        """Returns the files that all tools are given."""
        images, test_images = self.settings.images, self.settings.test_images
        folder = self.work / f"{network}-{images}-{test_images}"
        return prepared(network, folder, images=images, test_images=test_images)

    def made_with(self, tool: str) -> dict[str, str]:
        """Returns what a tool's rows hold for: a version, or the digest of our sources."""
        if tool == OURS:
            return {"code": code_digest()[:DIGITS]}
        if tool == ORT:
            return {"onnxruntime": onnxruntime.__version__}
        return {} if self.no_modelopt else peers_modelopt_venv.versions(self.modelopt)


def row_of(network: str, variant: Variant, place: Place) -> Row:
    """Quantizes and measures; returns the row without its latency."""
    before = processor_seconds()
    row: Row = {
        "network": network,
        **variant.key,
        "measured_at": datetime.now(UTC).isoformat(timespec="minutes"),
        "made_with": place.made_with(variant.tool),
        "load_average": os.getloadavg()[0],
        **_measured(network, variant, place),
    }
    return {**row, "all_cpu_seconds": processor_seconds() - before}


def _measured(network: str, variant: Variant, place: Place) -> Row:
    inputs = place.inputs(network)
    row: Row = {"calibrated_on": inputs.num_calib}
    if variant.tool == MODELOPT and place.no_modelopt is not None:
        return {**row, "failed": place.no_modelopt}
    finished, graph = _quantized(network, variant, place)
    row |= dataclasses.asdict(finished)
    if finished.failed is not None:
        return row
    if variant.tool == OURS:
        require_same_images(graph, inputs)
    maker = place.modelopt if variant.tool == MODELOPT else None
    return row | measured(graph, inputs, place.settings.threads, maker)


def _quantized(network: str, variant: Variant, place: Place) -> tuple[Finished, Path]:
    inputs, settings = place.inputs(network), place.settings
    out = inputs.folder / variant.slug
    out.mkdir(exist_ok=True)
    command, graph = command_of(
        variant, network, inputs, out, threads=settings.threads, modelopt=place.modelopt
    )
    finished = run(
        command,
        out.with_suffix(".log"),
        threads=settings.threads,
        limit_seconds=settings.limit_seconds,
        limit_bytes=int(settings.limit_gib * GIB),
    )
    return finished, graph


def timed(network: str, rows: Sequence[Row], place: Place) -> list[Row]:
    """Returns a network's rows with the latency of every graph that is there and loads.

    Rows whose graph another run made, in another folder, keep what they have. A graph that ONNX
    Runtime refuses when it optimizes has its words as ``latency_words``.
    """
    inputs, settings = place.inputs(network), place.settings
    slugs = {tuple(variant.key.values()): variant for variant in VARIANTS}
    graphs: dict[str, Path] = {}
    for row in rows:
        variant = slugs[row["tool"], row["variant"], row["scheme"]]
        graph = file_of(variant, inputs.folder / variant.slug)
        if "n" in row and not row["ort_words"] and graph.is_file():
            graphs[variant.slug] = graph
    found, refused = latencies(graphs, inputs, Effort(settings.threads, settings.rounds))
    for_rows = []
    for row in rows:
        slug = slugs[row["tool"], row["variant"], row["scheme"]].slug
        more: dict[str, Any] = {"latency": found[slug]} if slug in found else {}
        more |= {"latency_words": refused[slug]} if slug in refused else {}
        for_rows.append({**row, **more})
    return for_rows


def is_timed(row: Row) -> bool:
    """Whether nothing is left to time of a row."""
    return "n" not in row or bool(row["ort_words"]) or "latency" in row or "latency_words" in row


def versions(place: Place, tools: Sequence[str]) -> dict[str, Any]:
    """Returns the versions that the page names."""
    from fdda_deploy import __version__
    from fdda_deploy.engines.bench_environment import bench_environment
    from fdda_deploy.engines.trt_api import load_api

    found: dict[str, Any] = {
        OURS: {"fdda-deploy": __version__, **bench_environment().libraries},
        "builder": load_api("tensorrt_rtx").title,
    }
    if MODELOPT in tools and place.no_modelopt is None:
        found[MODELOPT] = place.made_with(MODELOPT)
    return found
