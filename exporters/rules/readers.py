"""Who reads a tensor's values, seen through operators that only pass them on."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from fdda_deploy.exporters.rules.graph import GraphView, Node


def readers_behind(
    view: GraphView, tensor: str, through: Collection[str]
) -> Iterator[tuple[Node, int]]:
    """Yields (node, input index) of each reader of ``tensor``.

    A node of a type in ``through`` whose first input it is does not count: its own readers do.
    """
    seen: set[str] = set()
    pending = [tensor]
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        for node, index in view.consumers(name):
            if node.op_type in through and index == 0:
                pending.append(node.output())
            else:
                yield node, index
