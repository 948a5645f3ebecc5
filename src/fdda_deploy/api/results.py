"""What the verbs hand back: where the files are, how long it took, and what was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdda_deploy.exporters.rules.finding import Finding
    from fdda_deploy.pipeline.repairing import Fix


@dataclass(frozen=True)
class StageTime:
    """One stage that ran.

    Attributes:
        name: As in the report.
        seconds: Wall time of this call.
        cached: It was finished before and taken over.
    """

    name: str
    seconds: float
    cached: bool


@dataclass(frozen=True)
class BuildResult:
    """What `build`, `synthesize`, `quantize` and `export` return.

    Attributes:
        out: The result folder.
        files: What users find there, by its name in the folder, for instance ``model.qdq.onnx``.
        stages: Every stage that ran, in order.
        record: What the last stage found, as JSON values.
        report: ``report.json`` as JSON values; None where the verb stops before the report.
    """

    out: Path
    files: Mapping[str, Path]
    stages: tuple[StageTime, ...]
    record: Mapping[str, Any]
    report: Mapping[str, Any] | None

    @property
    def top1_drop(self) -> float | None:
        """Points of top-1 accuracy lost, measured; None where nothing was evaluated."""
        accuracy = None if self.report is None else self.report["accuracy"]
        return None if accuracy is None else float(accuracy["drop"]["mean"])


@dataclass(frozen=True)
class CheckResult:
    """What `check` returns.

    Attributes:
        findings: Rules that are broken, of the repaired graph where one was asked for.
        out: The result folder, or the repaired file; None for a file that was only read.
        fix: Repairs and their proof; None where none was asked for.
        applies: False for a network built for ``ort-cpu``, whose graph TensorRT never sees.
    """

    findings: tuple[Finding, ...]
    out: Path | None = None
    fix: Fix | None = None
    applies: bool = True

    @property
    def errors(self) -> int:
        """How many findings are errors: TensorRT refuses the graph, or computes other numbers."""
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def warnings(self) -> int:
        """How many findings cost speed, or may."""
        return sum(finding.severity == "warning" for finding in self.findings)

    @property
    def passed(self) -> bool:
        """Whether no finding is an error."""
        return self.errors == 0
