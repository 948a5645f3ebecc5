"""Findings as SARIF 2.1.0, the format in which code hosts and editors read what a checker found.

An ONNX graph has no lines, so a place is a logical location: the node, or the tensor where the
finding is about no node.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from fdda_deploy.exporters.rules.finding import Finding
from fdda_deploy.exporters.trt_rules import RULES

VERSION = "2.1.0"
SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
TOOL = "fdda-deploy check"


def to_sarif(findings: Sequence[Finding], file: PurePath, version: str) -> dict[str, Any]:
    """Returns the findings as one SARIF log with one run.

    Args:
        findings: From `trt_rules.check`; their severities are SARIF's levels of the same names.
        file: The ONNX file, relative to the folder that the reader of the log works in; of an
            absolute path the name alone is told.
        version: This program's version.
    """
    order = {rule.id: index for index, rule in enumerate(RULES)}
    artifact = {"uri": relative_uri(file)}
    return {
        "$schema": SCHEMA,
        "version": VERSION,
        "runs": [
            {
                "tool": {"driver": {"name": TOOL, "version": version, "rules": _rules()}},
                "artifacts": [{"location": artifact}],
                "results": [_result(finding, order, artifact) for finding in findings],
                "columnKind": "unicodeCodePoints",
            }
        ],
    }


def relative_uri(file: PurePath) -> str:
    """Returns a path as a relative URI reference, percent-encoded.

    Example:
        >>> relative_uri(PurePath("my models/a.onnx"))
        'my%20models/a.onnx'
    """
    parts = file.parts if not file.is_absolute() else (file.name,)
    return quote("/".join(part for part in parts if part != "."), safe="/")


def _rules() -> list[dict[str, Any]]:
    return [
        {
            "id": rule.id,
            "shortDescription": {"text": rule.title},
            "fullDescription": {"text": rule.reason},
            "defaultConfiguration": {"level": rule.severity},
        }
        for rule in RULES
    ]


def _result(finding: Finding, order: dict[str, int], artifact: dict[str, str]) -> dict[str, Any]:
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": artifact}}
    names = [("function", finding.node), ("variable", finding.tensor)]
    logical = [{"name": name, "kind": kind} for kind, name in names if name]
    if logical:
        location["logicalLocations"] = logical
    return {
        "ruleId": finding.rule,
        "ruleIndex": order[finding.rule],
        "level": finding.severity,
        "message": {"text": f"{finding.value}. {finding.why} {finding.repair}"},
        "locations": [location],
    }
