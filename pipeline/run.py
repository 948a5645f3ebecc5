"""The whole road as a list of stages, from a network to its report."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fdda_deploy import __version__
from fdda_deploy.config import BuildConfig
from fdda_deploy.config.compact_plan import require_compact_plan
from fdda_deploy.engines.doctor import choose_backend, target_of
from fdda_deploy.pipeline.allocator import keep_freed_memory
from fdda_deploy.pipeline.distributed import Ranks, joined
from fdda_deploy.pipeline.memory import memory_explained
from fdda_deploy.pipeline.progress import ignore_progress, stage_progress
from fdda_deploy.pipeline.report.manifest import manifest
from fdda_deploy.pipeline.report.skipped import skipped_images
from fdda_deploy.pipeline.report.summary import stage_rows, summary_rows
from fdda_deploy.pipeline.stages.assigning import ASSIGN
from fdda_deploy.pipeline.stages.building import ENGINE
from fdda_deploy.pipeline.stages.context import (
    CHECKPOINT_EVERY_SECONDS,
    Record,
    RunContext,
    Stage,
)
from fdda_deploy.pipeline.stages.exporting import CHECK, EXPORT
from fdda_deploy.pipeline.stages.quantizing import QUANTIZE
from fdda_deploy.pipeline.stages.reading import LOAD, STATISTICS
from fdda_deploy.pipeline.stages.reporting import REPORT
from fdda_deploy.pipeline.stages.running import BENCH, EVALUATE
from fdda_deploy.pipeline.stages.sensing import SENSITIVITY, require_layers_to_rank
from fdda_deploy.pipeline.stages.synthesizing import SYNTHESIZE
from fdda_deploy.pipeline.workspace import StageResult, Workspace, atomic_write

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
        follows: Another rank leads the build and prints; here is nothing more to do.
        record: What the last stage found, JSON values; empty where the report says it.
    """

    report: dict[str, Any] | None
    out: Path
    stages: list[dict[str, Any]]
    lines: list[tuple[str, str]]
    follows: bool = False
    record: dict[str, Any] = field(default_factory=dict)


def build(
    config: BuildConfig,
    *,
    until: str = "report",
    console: Console | None = None,
    checkpoint_every_seconds: float = CHECKPOINT_EVERY_SECONDS,
) -> BuildResult:
    """Runs the road up to the stage ``until``; finished stages are taken from the result folder.

    Results are published together when all stages are done: a run that fails leaves those of the
    run before it, or none. Under ``torchrun`` the ranks share the long stages, and rank 0 alone
    writes and publishes (`distributed`).

    Args:
        config: The resolved configuration.
        until: A stage of `ROAD`.
        console: Where progress goes; nowhere when not given.
        checkpoint_every_seconds: Least time between two checkpoints of the generator's training.

    Raises:
        FddaDeployError: What a stage refused; what is finished stays, and the next run goes on.
    """
    with joined() as ranks:
        return _build(config, until, console, checkpoint_every_seconds, ranks)


def _build(
    config: BuildConfig,
    until: str,
    console: Console | None,
    checkpoint_every_seconds: float,
    ranks: Ranks,
) -> BuildResult:
    screen = console or Console(quiet=True, stderr=True)
    if until == SENSITIVITY.name:
        require_layers_to_rank(config)
    backend = choose_backend(config.engine.backend, config.engine.target)
    context = RunContext(
        config,
        backend,
        config.engine.target or target_of(backend.backend),
        checkpoint_every_seconds,
        until,
        ranks=ranks,
    )
    require_compact_plan(config.quantize, context.target)
    keep_freed_memory()
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    last = next(index for index, stage in enumerate(ROAD) if stage.name == until)
    if ranks.follows:
        _follow(context, ROAD[: last + 1])
        return BuildResult(None, config.out_folder, [], [], follows=True)

    def say(line: str) -> None:
        screen.print(line, markup=False, highlight=False, soft_wrap=True)  # one line in a log too

    with Workspace(config.out_folder, no_cache=config.run.no_cache, say=say) as workspace:
        for stage in ROAD[: last + 1]:
            _run_stage(workspace, context, stage, screen)
            if stage is LOAD and config.quantize.max_drop is not None:
                _ = context.tune  # a wrong path is told now, not after hours of synthesis
        _publish(workspace, context)
    ranks.meet()  # the others have not ended well before the results are there
    return _result(config, context, until)


def _run_stage(workspace: Workspace, context: RunContext, stage: Stage, console: Console) -> None:
    """Runs or recalls one stage."""
    with memory_explained(stage.name), stage_progress(console, stage.name) as progress:
        inputs = stage.inputs(context)

        def work(folder: Path) -> Record:
            context.ranks.told(stage.shared(context))
            return stage.run(context, folder, progress)

        result = workspace.run_stage(stage.name, inputs, work)
    context.results[stage.name] = result
    if not context.ranks.alone:
        context.ranks.told(dataclasses.replace(result, folder=result.folder.resolve()))


def _follow(context: RunContext, stages: tuple[Stage, ...]) -> None:
    """Runs the stages of a build that rank 0 leads: those that all share, for their share.

    Rank 0 says of each stage that is not finished whether to share it, then what came out.
    """
    for stage in stages:
        said = context.ranks.told(None)
        if not isinstance(said, StageResult):
            if said:
                with tempfile.TemporaryDirectory(prefix="fdda-deploy-") as folder:
                    stage.run(context, Path(folder), ignore_progress)
            said = context.ranks.told(None)
        context.results[stage.name] = said
    context.ranks.meet()


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
    record = dict(context.record(until))
    records = {name: result.record for name, result in context.results.items()}
    lines += [("skipped", line) for line in skipped_images(records)]
    lines += [*stage_rows(until, record), ("results in", str(out))]
    return BuildResult(None, out, stages, lines, record=record)
