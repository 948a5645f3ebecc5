"""docs/rules.md, written from the tables of rules and repairs that the program itself uses."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from fdda_deploy.exporters.repair.repairing import REPAIRS
from fdda_deploy.exporters.rules.finding import SEVERITIES
from fdda_deploy.exporters.trt_rules import RULES

COLUMNS = ("rtx", "trt11", "trt10.16")

_HEAD = """\
# The rules of `fdda-deploy check`, and the repairs of `--fix`

This page is written by `python benchmarks/rules_page.py`; a test compares it with the code.

Severities are those that the broken graphs of the tests get on each target: an error is refused by
the parser or gives wrong numbers, a warning is slow or risky, a note is for information. "Tests" is
the number of small graphs that break the rule or are its repaired twin, and "builder" how many of
them the real TensorRT-RTX parser and builder were asked about.

| rule | what it wants | rtx | trt11 | trt10.16 | tests | builder | repaired by |
|---|---|---|---|---|---|---|---|
"""

_MIDDLE = """
## Repairs

In the order of application. A change is exact where the graph computes the same numbers, to float
rounding; where a grid had to change, the proof says by how much the outputs moved.

| repair | rules | what it does | why that is safe |
|---|---|---|---|
"""


def rules_page(
    severities: Mapping[str, Mapping[str, Collection[str]]],
    graphs: Mapping[str, int],
    built: Mapping[str, int],
) -> str:
    """Returns the page in Markdown.

    Args:
        severities: By rule, then by target of `COLUMNS`: what its broken graphs were given.
        graphs: By rule: number of graphs in the tests.
        built: By rule: number of graphs that the real builder was asked about.
    """
    lines = []
    for rule in RULES:
        found = severities.get(rule.id, {})
        cells = [
            rule.id,
            rule.title,
            *(_severity(found.get(target, ())) for target in COLUMNS),
            str(graphs.get(rule.id, 0)),
            str(built.get(rule.id, 0)),
            ", ".join(entry.id for entry in REPAIRS if rule.id in entry.rules),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    repairs = [
        f"| {entry.id} | {', '.join(entry.rules)} | {entry.title} | {entry.reason} |"
        for entry in REPAIRS
    ]
    return _HEAD + "\n".join(lines) + "\n" + _MIDDLE + "\n".join(repairs) + "\n"


def _severity(found: Collection[str]) -> str:
    """Returns the severities worst first, a dash where the target has no such finding."""
    return ", ".join(severity for severity in SEVERITIES if severity in found) or "-"
