"""The whole road as a list of stages, from a network to its report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fdda_deploy import __version__
from fdda_deploy.config import BuildConfig
from fdda_deploy.engines.doctor import choose_backend, target_of
from fdda_deploy.pipeline.allocator import keep_freed_memory
from fdda_deploy.pipeline.progress import stage_progress
from fdda_deploy.pipeline.report.manifest import manifest
from fdda_deploy.pipeline.report.summary import summary_rows
from fdda_deploy.pipeline.stages.assigning import ASSIGN
from fdda_deploy.pipeline.stages.context import CHECKPOINT_EVERY_SECONDS, RunContext, Stage
from fdda_deploy.pipeline.stages.exporting import CHECK, EXPORT
from fdda_deploy.pipeline.stages.quantizing import QUANTIZE
from fdda_deploy.pipeline.stages.reading import LOAD, STATISTICS
from fdda_deploy.pipeline.stages.reporting import REPORT
from fdda_deploy.pipeline.stages.running import BENCH, ENGINE, EVALUATE
from fdda_deploy.pipeline.stages.sensing import SENSITIVITY
from fdda_deploy.pipeline.stages.synthesizing import SYNTHESIZE
from fdda_deploy.pipeline.workspace import Workspace, atomic_write

MANIFEST = "manifest.json"
ROAD: tuple[Stage, ...] = (
    LOAD,
    STATISTICS,
    SYNTHESIZE,
    SENSITIVITY,
    ASSIGN,
    QUANTIZE,
    EXPORT,
    CHECK,
    ENGINE,
    BENCH,
    EVALUATE,
    REPORT,
)


@dataclass(frozen=True)
class BuildResult:
    """What a run hands back.

    Attributes:
        report: report.json as a dict; None when the run stopped before the report.
        out: The result folder.
        stages: name, seconds and cached of every stage that ran.
        lines: Label and value of each row of the final table.
    """

    report: dict[str, Any] | None
    out: Path
    stages: list[dict[str, Any]]
    lines: list[tuple[str, str]]


def build(
    config: BuildConfig,
    *,
    until: str = "report",
    console: Console | None = None,
    checkpoint_every_seconds: float = CHECKPOINT_EVERY_SECONDS,
) -> BuildResult:
    """Runs the road up to the stage ``until``; finished stages are taken from the result folder.

    Results are published together when all stages are done: a run that fails leaves those of the
    run before it, or none.

    Args:
        config: The resolved configuration.
        until: A stage of `ROAD`.
        console: Where progress goes; nowhere when not given.
        checkpoint_every_seconds: Least time between two checkpoints of the generator's training.

    Raises:
        FddaDeployError: What a stage refused; what is finished stays, and the next run goes on.
    """
    screen = console or Console(quiet=True, stderr=True)
    backend = choose_backend(config.engine.backend)
    context = RunContext(
        config,
        backend,
        config.engine.target or target_of(backend.backend),
        checkpoint_every_seconds,
        until,
    )
    keep_freed_memory()
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    last = next(index for index, stage in enumerate(ROAD) if stage.name == until)

    def say(line: str) -> None:
        screen.print(line, markup=False, highlight=False)

    with Workspace(config.out_folder, no_cache=config.run.no_cache, say=say) as workspace:
        for stage in ROAD[: last + 1]:
            _run_stage(workspace, context, stage, screen)
            if stage is LOAD and config.quantize.max_drop is not None:
                _ = context.tune  # a wrong path is told now, not after hours of synthesis
        _publish(workspace, context)
    return _result(config, context, until)


def _run_stage(workspace: Workspace, context: RunContext, stage: Stage, console: Console) -> None:
    """Runs or recalls one stage."""
    with stage_progress(console, stage.name) as progress:
        inputs = stage.inputs(context)
        result = workspace.run_stage(
            stage.name, inputs, lambda folder: stage.run(context, folder, progress)
        )
    context.results[stage.name] = result


def _publish(workspace: Workspace, context: RunContext) -> None:
    """Makes the result folder show this run alone, its manifest last.

    Files of stages that this run did not come to stay only if they belong to the same results.
    """
    files: dict[str, Path] = {}
    stale: list[str] = []
    later: list[str] = []
    for stage in ROAD:
        result = context.results.get(stage.name)
        for name, public in stage.published.items():
            if result is None:
                later.append(public)
            elif (result.folder / name).is_file():
                files[public] = result.folder / name
            else:
                stale.append(public)
    if not workspace.holds(files):
        workspace.withdraw([MANIFEST, *later])
    workspace.withdraw(stale)
    workspace.publish(files)
    if not later:
        document = manifest(files, tool_version=__version__)
        atomic_write(workspace.root / MANIFEST, json.dumps(document, indent=1))


def _result(config: BuildConfig, context: RunContext, until: str) -> BuildResult:
    stages = [
        {"name": name, "seconds": result.seconds, "cached": result.cached}
        for name, result in context.results.items()
    ]
    out = config.out_folder
    if until == "report":
        report: dict[str, Any] = context.record("report")["report"]
        return BuildResult(report, out, stages, summary_rows(report, folder=out))  # type: ignore[arg-type]  # validated when written
    lines = [
        (name, "cached" if result.cached else f"{result.seconds:.1f} s")
        for name, result in context.results.items()
    ]
    lines.append(("results in", str(out)))
    return BuildResult(None, out, stages, lines)
