"""What a command prints last: one short table, or the same as JSON on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fdda_deploy.pipeline.report.phrases import plain


class BuildResult(Protocol):
    """What a run hands back; :mod:`fdda_deploy.pipeline.run` makes it.

    Attributes:
        report: report.json as a dict, or None when the run stopped before the report.
        out: The result folder.
        stages: name, seconds and cached of every stage that ran.
        lines: Label and value of each row of the final table.
        record: What the last stage found, as JSON values.
    """

    @property
    def report(self) -> dict[str, object] | None: ...  # noqa: D102 - see the class
    @property
    def out(self) -> Path: ...  # noqa: D102 - see the class
    @property
    def stages(self) -> list[dict[str, object]]: ...  # noqa: D102 - see the class
    @property
    def lines(self) -> list[tuple[str, str]]: ...  # noqa: D102 - see the class
    @property
    def record(self) -> Mapping[str, object]: ...  # noqa: D102 - see the class


def print_json(value: object) -> None:
    """Writes one JSON document to stdout."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def print_table(rows: Iterable[Sequence[str]]) -> None:
    """Writes aligned columns to stdout, plain and unfolded, so that eyes and grep both like them.

    Args:
        rows: Cells; every column but the last is as wide as its widest cell. Names of files,
            layers and classes are others' words: what would steer a terminal is shown, not done.
    """
    table = [[plain(" ".join(cell.splitlines())) for cell in row] for row in rows]
    widths = [
        max((len(row[i]) for row in table if i < len(row)), default=0)
        for i in range(max(map(len, table), default=0))
    ]
    for row in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        sys.stdout.write(line.rstrip() + "\n")


def stages_json(result: BuildResult) -> dict[str, object]:
    """Returns the result of a road that stopped before its report, as JSON values.

    ``result`` holds what the last stage found; its keys are the stage's.
    """
    return {
        "out": str(result.out),
        "stages": result.stages,
        "lines": dict(result.lines),
        "result": dict(result.record),
    }


def print_build(result: BuildResult, *, as_json: bool, quiet: bool) -> None:
    """Writes the result of a build: JSON if asked for, else the table unless ``quiet``."""
    if as_json:
        print_json(stages_json(result) if result.report is None else result.report)
    elif not quiet:
        print_table(result.lines)
