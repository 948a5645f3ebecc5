"""What makes a tensor and what reads it, from the graph: a swish, a gate, a ReLU."""

from __future__ import annotations

from torch import fx

_RECTIFIERS = frozenset({"relu", "relu_", "relu6", "relu6_"})
_CLAMPS = frozenset({"hardtanh", "hardtanh_", "clamp", "clamp_", "clamp_min", "clamp_min_"})
_SWISHES = frozenset({"silu", "silu_", "hardswish", "hardswish_", "gelu", "mish"})
_GATES = frozenset({"sigmoid", "hardsigmoid"})


def source_of(operand: object, emitted: set[str]) -> fx.Node | None:
    """Returns what an operand comes from: nodes that ONNX absorbed (a pad) are looked through.

    Args:
        operand: An argument of a node; None is returned for one that is no node.
        emitted: Torch nodes that have an ONNX node (``GraphMap.fx_from_node``).
    """
    if not isinstance(operand, fx.Node):
        return None
    while operand.op == "call_function" and operand.name not in emitted and operand.all_input_nodes:
        operand = operand.all_input_nodes[0]
    return operand


def is_rectifier(node: fx.Node) -> bool:
    """Returns whether a node makes 0 of all that is below 0."""
    clamps_at_zero = _word(node) in _CLAMPS and node.args[1:2] == (0,)
    return _word(node) in _RECTIFIERS or clamps_at_zero


def origin_of(node: fx.Node) -> str:
    """Returns ``swish`` or ``gate`` where a tensor comes from one, else ``other``.

    A product of ``x`` with the sigmoid of ``x`` itself is a swish.
    """
    if _word(node) in _SWISHES:
        return "swish"
    gates = [each for each in node.all_input_nodes if _word(each) in _GATES]
    if _word(node) != "mul" or not gates:
        return "other"
    rest = [each for each in node.all_input_nodes if each not in gates]
    return "swish" if set(gates[0].all_input_nodes) & set(rest) else "gate"


def _word(node: fx.Node) -> str:
    """Returns the operator in a word, ``relu`` for ``aten.relu.default``."""
    return str(node.target).split(".")[1] if str(node.target).count(".") > 1 else str(node.target)
