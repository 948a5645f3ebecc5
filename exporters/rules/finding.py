"""What a rule is, and what it reports: node, tensor, value, why, and the repair."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fdda_deploy.exporters.rules.graph import GraphView

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)


@dataclass(frozen=True)
class Problem:
    """One place where a rule is broken, before the rule's own words are added.

    Attributes:
        node: Node name, empty for the whole model.
        tensor: Tensor, input or flag that shows it; may be empty.
        value: What stands there.
        repair: The next action.
        why: Instead of the rule's reason, where this place has its own.
        severity: Instead of the rule's, where this place is worse or better.
    """

    node: str
    tensor: str
    value: str
    repair: str
    why: str = ""
    severity: str = ""


@dataclass(frozen=True)
class Finding:
    """One broken rule at one place, complete.

    Attributes:
        rule: For instance ``T005``.
        severity: ``error`` (parse fails or wrong numbers), ``warning`` (slow or risky), ``note``.
        node: Node name, empty for the whole model.
        tensor: Tensor, input or flag that shows it; may be empty.
        value: What stands there.
        why: Why it matters, one sentence.
        repair: The next action, one sentence.
    """

    rule: str
    severity: str
    node: str
    tensor: str
    value: str
    why: str
    repair: str

    @property
    def message(self) -> str:
        """One line: what, where, got, why, what to do next."""
        place = ", ".join(part for part in (self.node, self.tensor) if part) or "model"
        return f"{self.rule} {self.severity}: {place}: {self.value}. {self.why} {self.repair}"


@dataclass(frozen=True)
class Rule:
    """One line of the rule table.

    Attributes:
        id: ``T001`` to ``T035``; ``T000`` for what the check could not see.
        severity: Of a finding that does not say otherwise.
        title: The rule in one line.
        reason: Why TensorRT wants it.
        broken_at: Yields the places where a graph breaks it.
    """

    id: str
    severity: str
    title: str
    reason: str
    broken_at: Callable[[GraphView], Iterable[Problem]]

    def findings(self, view: GraphView) -> tuple[Finding, ...]:
        """Returns each broken place once, in graph order."""
        found = (
            Finding(
                self.id,
                problem.severity or self.severity,
                problem.node,
                problem.tensor,
                problem.value,
                problem.why or self.reason,
                problem.repair,
            )
            for problem in self.broken_at(view)
        )
        return tuple(dict.fromkeys(found))
