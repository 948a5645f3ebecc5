"""TensorRT's rules on one ONNX file, whoever wrote it: findings, and repairs with their proof."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdda_deploy.exporters.rules.finding import Finding
    from fdda_deploy.pipeline.repairing import Fix

FILE_TARGETS = ("trt", "trt11", "trt10.16", "rtx")
"""Whose rules a file can be held against; `exporters.trt_rules.TARGETS`, known without onnx."""


@dataclass(frozen=True)
class FileQuestion:
    """What is asked about one ONNX file.

    Attributes:
        path: The file.
        target: One of `FILE_TARGETS`.
        compute_capabilities: For instance (86, 89).
        profiles_given: The build has a min/opt/max profile for every dynamic input.
        flags: Builder flags in use.
        fixed: Where the repaired file goes; None checks only.
        feed: ``.npz`` of inputs for the proof; None draws them.
        tolerance: Relative L2 that the outputs may move; None asks whether the graph stands for
            the same float network, and no farther from it.
        seed: Of the inputs that are drawn.
        compact_plan: The repair makes TensorRT-RTX's plan smaller too; None does so for ``rtx`` if
            that can be proved.
    """

    path: Path
    target: str = "trt"
    compute_capabilities: tuple[int, ...] = ()
    profiles_given: bool = False
    flags: tuple[str, ...] = ()
    fixed: Path | None = None
    feed: Path | None = None
    tolerance: float | None = None
    seed: int = 0
    compact_plan: bool | None = None


def checked_file(question: FileQuestion) -> tuple[tuple[Finding, ...], Fix | None]:
    """Returns the findings, and the repair where one was asked for, after writing its file.

    Raises:
        ExportError: The file is missing or no ONNX graph, or the repairs are not proved.
        ConfigError: A tolerance that is not positive.
    """
    from fdda_deploy.exporters.onnx_file import read_onnx
    from fdda_deploy.exporters.trt_rules import check

    model = read_onnx(question.path)
    if question.fixed is not None:
        fix = _fixed(model, question, question.fixed)
        return fix.after, fix
    findings = check(
        model,
        target=question.target,
        compute_capabilities=question.compute_capabilities,
        profiles_given=question.profiles_given,
        flags=question.flags,
    )
    return tuple(findings), None


def _fixed(model: Any, question: FileQuestion, place: Path) -> Fix:
    """Returns the repaired model with its proof, after writing it to ``place``."""
    from fdda_deploy.pipeline.durable import atomic_write
    from fdda_deploy.pipeline.repairing import fix, read_feed

    fixed = fix(
        model,
        target=question.target,
        compute_capabilities=question.compute_capabilities,
        profiles_given=question.profiles_given,
        flags=question.flags,
        feed=None if question.feed is None else read_feed(question.feed),
        tolerance=question.tolerance,
        seed=question.seed,
        compact_plan=question.compact_plan,
    )
    atomic_write(place, fixed.model.SerializeToString())
    return fixed
