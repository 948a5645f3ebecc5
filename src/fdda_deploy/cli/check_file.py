"""TensorRT's rules on any ONNX file, whoever wrote it: findings, repairs, their proof."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

import fdda_deploy
from fdda_deploy.api.checking import FileQuestion, checked_file
from fdda_deploy.cli.results import print_json, print_table

if TYPE_CHECKING:
    from fdda_deploy.exporters.rules.finding import Finding
    from fdda_deploy.pipeline.repairing import Fix

FORMATS = ("text", "json", "sarif")
FAIL_ON = ("error", "warning", "never")
_SHOWN_PER_RULE = 3


@dataclass(frozen=True)
class FileRequest:
    """What was asked about one ONNX file, and how the answer is to look.

    Attributes:
        question: What was asked.
        output_format: One of `FORMATS`.
        quiet: No text.
        fail_on: One of `FAIL_ON`.
    """

    question: FileQuestion
    output_format: str
    quiet: bool
    fail_on: str


def check_file(request: FileRequest) -> None:
    """Prints what breaks a rule, and writes the repaired file where one was asked for.

    Raises:
        ExportError: The file is missing or no ONNX graph, or the repairs moved its outputs by
            more than the tolerance.
        typer.Exit: Code 1, when a finding is as severe as ``fail_on``.
    """
    findings, fix = checked_file(request.question)
    if request.output_format == "sarif":
        from fdda_deploy.exporters.sarif import to_sarif

        print_json(to_sarif(findings, request.question.path, fdda_deploy.__version__))
    elif request.output_format == "json":
        print_json(_as_json(request.question, findings, fix))
    elif not request.quiet:
        _print_text(request.question, findings, fix)
    failing = {"error": ("error",), "warning": ("error", "warning"), "never": ()}
    if any(finding.severity in failing[request.fail_on] for finding in findings):
        raise typer.Exit(1)


def _as_json(
    question: FileQuestion, findings: Sequence[Finding], fix: Fix | None
) -> dict[str, Any]:
    counts = Counter(finding.severity for finding in findings)
    found = {
        "file": str(question.path),
        "target": question.target,
        "errors": counts["error"],
        "warnings": counts["warning"],
        "notes": counts["note"],
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }
    if fix is None:
        return found
    return {
        **found,
        "out": str(question.fixed),
        "repairs": [dataclasses.asdict(change) for change in fix.applied],
        "findings_before": [dataclasses.asdict(finding) for finding in fix.before],
        "compact_plan": fix.compact_plan,
        "not_compact": fix.not_compact,
        "proof": None if fix.proof is None else dataclasses.asdict(fix.proof),
    }


def _print_text(question: FileQuestion, findings: Sequence[Finding], fix: Fix | None) -> None:
    if fix is not None:
        _print_fix(question, fix)
    shown: Counter[str] = Counter()
    for finding in findings:
        shown[finding.rule] += 1
        if shown[finding.rule] > _SHOWN_PER_RULE:
            continue
        place = " ".join(filter(None, (finding.node, finding.tensor, finding.value)))
        print_table([(finding.rule, finding.severity, place)])
        print_table([("    ", finding.why), ("    ", f"Repair: {finding.repair}")])
    for rule, count in shown.items():
        if count > _SHOWN_PER_RULE:
            print_table([(rule, f"{count - _SHOWN_PER_RULE} more of the same; --json lists all.")])
    errors = sum(finding.severity == "error" for finding in findings)
    checked = question.path if fix is None else question.fixed
    print_table([(f"{checked}: {len(findings)} findings, {errors} of them errors",)])


def _print_fix(question: FileQuestion, fix: Fix) -> None:
    from fdda_deploy.exporters.repair.repairing import REPAIRS

    errors = sum(finding.severity == "error" for finding in fix.before)
    print_table([(f"{question.path}: {len(fix.before)} findings, {errors} of them errors",)])
    for repair in REPAIRS:
        changes = [change for change in fix.applied if change.repair == repair.id]
        if not changes:
            continue
        print_table([(repair.id, f"{len(changes)}x", repair.title)])
        for change in changes[:_SHOWN_PER_RULE]:
            print_table([("    ", change.node or change.tensor, change.what)])
        if len(changes) > _SHOWN_PER_RULE:
            print_table([("    ", f"{len(changes) - _SHOWN_PER_RULE} more; --json lists all.")])
    if fix.not_compact:
        print_table([("no compact plan:", fix.not_compact)])
    if fix.proof is None:
        print_table([("nothing that is safe to repair; written as it was",)])
        return
    for name, output in fix.proof.outputs.items():
        agreement = output.top1_agreement
        same = "" if agreement is None else f", same largest in {100 * agreement:.0f} % of rows"
        moved = f"relative L2 {output.relative_l2:.3g} (tolerance {fix.proof.tolerance:g})"
        worst = f"largest error {output.max_abs_error:.3g}"
        print_table([(f"output {name}: {moved}, {worst}{same}",)])
        against = fix.proof.against_float
        if against is not None:
            before, after = against.before[name].relative_l2, against.after[name].relative_l2
            print_table([(f"    off its float network: {before:.3g} before, {after:.3g} after",)])
    print_table([(f"against {fix.proof.reference}; {fix.proof.inputs}; {fix.proof.runtime}",)])
