"""The shape of report.json, written once: as types, and as the check that runs before writing.

``None`` always means "not measured" or "does not apply", never zero. Accuracies are percent, sizes
are bytes, latencies are milliseconds, other times are seconds. Scripts rely on the names here: a
key may be added, and is never renamed or given another unit without a new ``REPORT_SCHEMA``.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict, cast

from fdda_deploy.pipeline.report.checking import Between, problem_in, without_nonfinite
from fdda_deploy.pipeline.report.diagnosis import LayerFinding
from fdda_deploy.pipeline.report.mixed import Mixed
from fdda_deploy.pipeline.report.parts import (
    Accuracy,
    Bench,
    Check,
    Data,
    Deploy,
    Drop,
    Engine,
    Finetune,
    Layer,
    Measured,
    Model,
    Parity,
    Sizes,
    Stage,
    Synthesis,
)
from fdda_deploy.pipeline.report.rounding import Rounding

__all__ = ["REPORT_SCHEMA", "Report", "validate", "without_nonfinite"]

REPORT_SCHEMA = 1
"""Version of the names and units below."""


class Report(TypedDict):
    """Everything that one build measured and decided.

    Attributes:
        created: ISO 8601, with its offset.
        runs_as: What the hardware executes for this scheme, in one sentence.
        backend_reason: Why this backend was taken.
        mixed: None without ``--max-drop``.
        diagnosis: The layers where most noise enters, the worst first; empty if all are sound.
        schedule: For instance ``reduced schedule: 1,200 of 80,000 generator steps``.
        deploy: For `fdda-deploy package`.
        config: The resolved configuration, by section.
    """

    schema: Literal[1]
    created: str
    tool_version: str
    scheme: str
    runs_as: str
    target: str
    backend: str
    backend_reason: str | None
    recipe: str | None
    schedule: str | None
    notes: list[str]
    warnings: list[str]
    model: Model
    deploy: Deploy
    data: Data
    accuracy: Accuracy | None
    bytes: Sizes
    layers: list[Layer]
    parity: Parity | None
    check: Check | None
    engine: Engine | None
    bench: Bench
    synthesis: Synthesis | None
    rounding: Rounding
    finetune: Finetune | None
    diagnosis: list[LayerFinding]
    mixed: Mixed | None
    stages: list[Stage]
    peak_rss_mib: Annotated[float, Between(0)] | None
    versions: dict[str, str | None]
    seed: int
    config: dict[str, dict[str, object]]


def validate(report: object) -> None:
    """Checks ``report`` against :class:`Report`; keys that the types do not know are let pass.

    Raises:
        ValueError: The first thing that is missing, of another type or out of range, by its path,
            for instance ``report.accuracy.float.top1: got 123.0, wanted 0 to 100.``
    """
    problem = problem_in(report, Report, "report")
    problems = [problem] if problem else _contradictions(cast("Report", report))
    if problems:
        raise ValueError(problems[0])


def _contradictions(report: Report) -> list[str]:
    """Returns what no single type can say: numbers outside their interval, lists that differ."""
    found = []
    for path, part, middle in _intervals(report):
        low, high = part["low"], part["high"]
        if low is not None and high is not None and not low <= middle <= high:
            found.append(f"{path}: got {middle} outside its interval [{low}, {high}].")
    if report["synthesis"] is not None:
        synthesis = report["synthesis"]
        layers, distances = len(synthesis["layer_names"]), len(synthesis["bns_distance"])
        if layers != distances:
            found.append(
                f"report.synthesis.bns_distance: got {distances} values for {layers} layer_names."
            )
    mixed = report["mixed"]
    if mixed is not None and sum(point["chosen"] for point in mixed["points"]) != 1:
        found.append("report.mixed.points: wanted exactly one that is chosen.")
    return found


def _intervals(report: Report) -> list[tuple[str, Measured | Drop, float]]:
    """Returns every (path, part with low and high, number between them)."""
    accuracy = report["accuracy"]
    if accuracy is None:
        return []
    measured = [
        ("float", accuracy["float"]),
        ("quantized", accuracy["quantized"]),
        ("torch_quantized", accuracy.get("torch_quantized")),
    ]
    found: list[tuple[str, Measured | Drop, float]] = [
        (f"report.accuracy.{key}", part, part["top1"]) for key, part in measured if part
    ]
    return [*found, ("report.accuracy.drop", accuracy["drop"], accuracy["drop"]["mean"])]
