"""What the tests know about each rule, for docs/rules.md."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from pathlib import Path

from trt_rules_cases import CASES

from fdda_deploy.exporters.rule_table import COLUMNS, rules_page
from fdda_deploy.exporters.trt_rules import check


def severities() -> dict[str, dict[str, set[str]]]:
    """Returns, by rule and target, the severities that the broken graphs get."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for case in CASES:
        for target in COLUMNS:
            for finding in check(case.broken, **{**case.options, "target": target}):
                if finding.rule == case.rule:
                    found[case.rule][target].add(finding.severity)
    return found


def asked_of_the_builder() -> Counter[str]:
    """Returns, by rule, how many graphs test_trt_rules_builder.py hands to the real builder."""
    source = Path(__file__).with_name("test_trt_rules_builder.py").read_text(encoding="utf-8")
    counts: Counter[str] = Counter()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for key in node.value.keys:
                if isinstance(key, ast.Constant) and str(key.value)[:1] == "T":
                    counts[str(key.value)[:4]] += 1
    return counts


def page() -> str:
    """Returns what docs/rules.md must hold."""
    graphs = Counter(case.rule for case in CASES for _ in ("broken", "repaired"))
    return rules_page(severities(), graphs, asked_of_the_builder())
