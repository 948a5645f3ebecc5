"""In-place operators replaced by those that return a new tensor, where nobody sees the difference.

The exporter traces every in-place operator through its Python decompositions, twice and with a
symbolic batch: for the 35 ReLU6 of mobilenet_v2 that was more than half of the whole export.
"""

from __future__ import annotations

import torch
from torch import fx


def make_functional(module: fx.GraphModule) -> None:
    """Makes the in-place operators of a graph functional, in place; it computes what it did.

    Left as they are: operators on a tensor that another node reads, or that may be a view, whose
    base would miss the change; and those without a twin that takes the same arguments.
    """
    for node in module.graph.nodes:
        twin = _twin(node)
        if twin is not None and _alone_sees(node):
            node.target = twin
    module.recompile()


def _twin(node: fx.Node) -> torch._ops.OpOverload | None:
    """Returns the functional overload of an in-place ATen operator, None where there is none."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    name = target._schema.name.removeprefix("aten::")
    if not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    twin = getattr(packet, target._overloadname, None)
    if not isinstance(twin, torch._ops.OpOverload):
        return None
    return twin if _signature(twin) == _signature(target) else None


def _signature(target: torch._ops.OpOverload) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.type)) for argument in target._schema.arguments]


def _alone_sees(node: fx.Node) -> bool:
    """Whether what ``node`` writes over is a tensor of its own that nobody else reads."""
    written = node.args[0] if node.args else None
    if not isinstance(written, fx.Node) or set(written.users) != {node}:
        return False
    made_by = written.target
    if written.op != "call_function" or not isinstance(made_by, torch._ops.OpOverload):
        return False
    return all(result.alias_info is None for result in made_by._schema.returns)
