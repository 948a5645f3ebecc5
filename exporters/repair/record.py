"""What a repair is, and what it reports: which node, which tensor, what changed, exactly or not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fdda_deploy.exporters.repair.editing import GraphEdit
from fdda_deploy.exporters.rules.graph import Request


@dataclass(frozen=True)
class Change:
    """One change of the graph, before the repair's own words are added.

    Attributes:
        node: Name of the node that was changed, made or taken out; empty for the whole model.
        tensor: The tensor it was about; may be empty.
        what: Before and after, in a few words.
        exact: The graph computes the same numbers, to float rounding.
    """

    node: str
    tensor: str
    what: str
    exact: bool


@dataclass(frozen=True)
class Applied:
    """One change of the graph, complete.

    Attributes:
        repair: For instance ``R05``.
        rules: The rules whose findings it clears, for instance ``("T015",)``.
        node: Name of the node that was changed, made or taken out; empty for the whole model.
        tensor: The tensor it was about; may be empty.
        what: Before and after, in a few words.
        exact: The graph computes the same numbers, to float rounding.
    """

    repair: str
    rules: tuple[str, ...]
    node: str
    tensor: str
    what: str
    exact: bool


@dataclass(frozen=True)
class Repair:
    """One line of the table of repairs.

    Attributes:
        id: ``R01`` to ``R16``.
        rules: The rules whose findings it clears; empty for those that make a plan compact.
        title: What it does, in one line.
        reason: Why the result is the same, or what is given up.
        restores: True for a repair that lets readers other than TensorRT load the file at all, so
            that its result, not its input, is what later repairs are measured against.
        compact: True for a repair that makes TensorRT-RTX's plan smaller, applied on request.
        apply: Changes the graph and yields each change.
    """

    id: str
    rules: tuple[str, ...]
    title: str
    reason: str
    apply: Callable[[GraphEdit, Request], Iterable[Change]]
    restores: bool = False
    compact: bool = False

    def run(self, graph: GraphEdit, request: Request) -> tuple[Applied, ...]:
        """Applies the repair to ``graph``; returns every change, in order."""
        return tuple(
            Applied(self.id, self.rules, change.node, change.tensor, change.what, change.exact)
            for change in self.apply(graph, request)
        )
