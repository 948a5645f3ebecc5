"""Does TensorRT take this graph, and run it as meant? 35 rules, each finding with its repair.

`check` reads an ONNX model and decides, without TensorRT and without a GPU, what can be decided
from the graph. `RULES` is the table. Where the rules were measured against the real TensorRT-RTX
1.7 builder and it is softer or harder than NVIDIA's documentation, the severity follows the target.
The bodies of If, Loop and Scan are not looked into; a T000 note says so.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import onnx

from fdda_deploy.errors import ExportError
from fdda_deploy.exporters.rules import (
    axes,
    blocks,
    fusion,
    numbers,
    operators,
    versions,
)
from fdda_deploy.exporters.rules.finding import SEVERITIES, Finding, Rule
from fdda_deploy.exporters.rules.graph import GraphView, Request

TARGETS = {"trt": "trt11", "trt11": "trt11", "trt10.16": "trt10.16", "rtx": "rtx"}
"""Names that ``target`` may have, and what each stands for."""

RULES: tuple[Rule, ...] = tuple(
    sorted(
        (
            *versions.RULES,
            *numbers.RULES,
            *axes.RULES,
            *blocks.RULES,
            *operators.RULES,
            *fusion.RULES,
        ),
        key=lambda rule: rule.id,
    )
)
"""The table: id, severity, one-line title, reason, and the function that finds broken places."""

_SHOWN_PER_RULE = 3


def check(
    model: onnx.ModelProto,
    *,
    target: str = "rtx",
    compute_capabilities: tuple[int, ...] = (),
    profiles_given: bool = False,
    flags: tuple[str, ...] = (),
) -> tuple[Finding, ...]:
    """Returns every broken rule of ``model``, by rule, then in graph order.

    Args:
        model: Any ONNX model; its weights may be missing, its scales may not.
        target: ``rtx``, ``trt11`` (also ``trt``) or ``trt10.16``.
        compute_capabilities: GPUs that the plan is for, for instance (86, 89); empty if unknown.
        profiles_given: The build has a min/opt/max profile for every dynamic input (T032).
        flags: Builder flags that were asked for, for instance ("FP16",) (T035).

    Raises:
        ExportError: Unknown target, or ``model`` is no ONNX model with nodes.
    """
    resolved = known_target(target)
    if not isinstance(model, onnx.ModelProto):
        raise ExportError(f"want an onnx.ModelProto, got {type(model).__name__}. Use onnx.load.")
    if not model.graph.node:
        raise ExportError("the ONNX model has no nodes: nothing to check. Export it again.")
    view = GraphView(
        model, Request(resolved, tuple(compute_capabilities), profiles_given, tuple(flags))
    )
    return tuple(finding for rule in RULES for finding in rule.findings(view))


def known_target(target: str) -> str:
    """Returns what the name ``target`` stands for: ``trt11``, ``trt10.16`` or ``rtx``.

    Raises:
        ExportError: No such target.
    """
    if target not in TARGETS:
        raise ExportError(f"target {target!r}: the TensorRT check knows {', '.join(TARGETS)}.")
    return TARGETS[target]


def summary(findings: Sequence[Finding]) -> str:
    """Returns one line of counts, then one line per finding, worst first, long rules cut short.

    Example:
        >>> summary(())
        'TensorRT check: no findings.'
    """
    if not findings:
        return "TensorRT check: no findings."
    counts = Counter(finding.severity for finding in findings)
    parts = [
        f"{counts[severity]} {severity}{'s' if counts[severity] != 1 else ''}"
        for severity in SEVERITIES
        if counts[severity]
    ]
    groups: dict[tuple[int, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[SEVERITIES.index(finding.severity), finding.rule].append(finding)
    lines = [f"TensorRT check: {', '.join(parts)}."]
    for (_, rule), found in sorted(groups.items(), key=lambda entry: entry[0]):
        lines += [finding.message for finding in found[:_SHOWN_PER_RULE]]
        if len(found) > _SHOWN_PER_RULE:
            lines.append(f"{rule}: {len(found) - _SHOWN_PER_RULE} more of the same.")
    return "\n".join(lines)
